"""What the annotations of a readable data set show: boxes beside masks, duplicates, classes, crowds.

Shapes: A annotations, N images, K classes.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minimask.data.box_checks import like_corners
from minimask.data.coco import CocoDataset
from minimask.data.fields import Faults, Note
from minimask.errors import one_line
from minimask.results.survey.findings import HARMFUL, NOTE, REFUSED, Finding, finding

FEW = 10  # with fewer objects, a class can be neither learnt nor judged
_LOOSE = 2.0  # a box so many times as wide or high as its mask was not just drawn carelessly
_MARGIN = 4.0  # pixels by which it must be larger as well
_INSIDE = 2.0  # pixels by which a mask may reach beyond its box

_OF_ALL_BOXES = ("corners", "centres", "normalised bbox", "normalised polygon", "scale")
# Mends of faults whose line has none, by kind.
_MENDS = {
    "category_id": "add the category, or correct the id",
    "corners": "convert all of them: width is x2 - x1, height is y2 - y1",
    "centres": "convert all of them: take half the width from x, half the height from y",
    "normalised bbox": "multiply by the width and height of each image",
    "normalised polygon": "multiply by the width and height of each image",
}
# Kind of a note of the reader -> level, and the mend for notes that have none.
_NOTES = {
    "degenerate box": (HARMFUL, "give them a box with width and height inside the image, or remove them"),
    "empty mask": (HARMFUL, "draw their masks, or remove them"),
    "mask outside box": (HARMFUL, "make it the box around the mask: x, y, width, height in pixels"),
    "no area given": (NOTE, "nothing to do"),
    "ids below 1": (NOTE, "nothing to do; other tools want ids from 1"),
    "as stored": (
        NOTE,
        "nothing to do here; other tools may turn the images: save them without EXIF orientation",
    ),
    "one file twice": (HARMFUL, "give each file one entry"),
    "several pages": (NOTE, ""),
    "unused bits": (HARMFUL, ""),
    "no keypoint": (HARMFUL, "label some, or remove the categories' keypoint names"),
}


def boxes_hold(faults: Faults) -> bool:
    """Whether boxes can be compared with masks: not if all boxes of a file are at fault."""
    return not any(fault.kind in _OF_ALL_BOXES for fault in faults.found)


def of_reading(name: str, faults: Faults, notes: list[str]) -> Iterator[Finding]:
    """What reading the file has found."""
    for found in faults.found:
        text, _, mend = _without(found.text, name).partition("; ")
        mend = mend or _MENDS.get(found.kind, "correct it, or remove the entry")
        yield Finding(
            REFUSED, found.kind, name, text, mend, found.count, found.total, found.what, tuple(found.examples)
        )
    for note in notes:
        text, _, mend = _without(note, name).partition("; ")
        kind, count = (note.kind, note.count) if isinstance(note, Note) else ("reading", 1)
        if kind == "mask outside box" and not boxes_hold(faults):
            continue
        level, usual = _NOTES.get(kind, (NOTE, ""))
        yield Finding(level, kind, name, text, mend or usual, count)


def _without(text: str, name: str) -> str:
    """A line of the reader without the path at its beginning."""
    return re.sub(rf"^(?:[^:]|:(?! ))*{re.escape(one_line(name))}: ", "", one_line(text))


def of_annotations(dataset: CocoDataset, most: int, boxes_hold: bool = True) -> Iterator[Finding]:
    """What the annotations of one data set show; `most` is the limit of detections per image."""
    labels = _Labels(dataset)
    if boxes_hold:
        yield from _boxes(dataset, labels)
    yield from _doubles(dataset, labels)
    yield from _crowds(dataset, labels)
    yield from _images(dataset, most)


def _boxes(dataset: CocoDataset, labels: Callable) -> Iterator[Finding]:
    """Boxes beside the masks that they belong to."""
    table, name = dataset.table, dataset.name
    sizes = np.array([(r.width, r.height) for r in dataset.records])[table.images]  # (A, 2)
    total = len(table.ids)
    low, high = table.extents[:, :2].astype(float), table.extents[:, 2:].astype(float)  # (A, 2) each
    begin, end = table.boxes[:, :2], table.boxes[:, :2] + table.boxes[:, 2:]

    def told(level: str, kind: str, which: np.ndarray, text: str, mend: str) -> Iterator[Finding]:
        if which.any():
            yield finding(level, kind, name, text, mend, labels(which), int(which.sum()), total)

    corners = np.zeros(total, bool)
    if total:
        _, as_corners, sticks_out = like_corners(table.boxes, table.extents, sizes)
        corners = as_corners | (
            sticks_out & (low > begin - _INSIDE).all(axis=1) & (high < end / 2).all(axis=1)
        )
    text = "bbox reads like x1, y1, x2, y2"
    yield from told(HARMFUL, "corners of some", corners, text, "COCO means x, y, width, height: convert them")
    cut_end, cut_begin = np.minimum(end, sizes), np.maximum(begin, 0)
    excess = (cut_end - cut_begin) - (high - low)
    loose = (excess > np.maximum(_MARGIN, (_LOOSE - 1) * (high - low))).any(axis=1) & ~corners & ~table.crowd
    text = f"the box is more than {_LOOSE:g} times as wide or high as its mask"
    mend = "make it the box around the mask, or complete the mask: the network learns both"
    yield from told(HARMFUL, "box larger than mask", loose, text, mend)
    slack = np.maximum(_INSIDE, 0.1 * (high - low))
    beyond = ((low < begin - slack) | (high > end + slack)).any(axis=1) & ~corners
    beyond &= ((low < end) & (high > begin)).all(axis=1)  # if they are wholly apart, the reader says so
    text, mend = (
        "the mask reaches beyond its box",
        "make it the box around the mask: what is outside is not learnt",
    )
    yield from told(HARMFUL, "mask larger than box", beyond, text, mend)


class _Labels:
    """What examples are called: "annotation 17 (image 4)"."""

    def __init__(self, dataset: CocoDataset):
        self.table, self.ids = dataset.table, dataset.image_ids

    def __call__(self, which: np.ndarray) -> list[str]:
        return [
            f"annotation {self.table.ids[a]} (image {self.ids[self.table.images[a]]})"
            for a in np.flatnonzero(which)[:5]
        ]


def _doubles(dataset: CocoDataset, labels: Callable) -> Iterator[Finding]:
    """Annotations with the same box as another one, of the same class or of a different one."""
    table, total = dataset.table, len(dataset.table.ids)
    where = np.column_stack([table.images, np.round(table.boxes, 1), table.crowd])  # (A, 6)
    numbers: dict[bytes, int] = {}
    masks = [numbers.setdefault(counts, len(numbers)) for counts in table.counts]  # equal for equal masks
    duplicate = _seen_before(np.column_stack([where, table.labels]))
    # Two objects may share a box, but not a mask as well.
    two_classes = _seen_before(np.column_stack([where, masks])) & ~duplicate
    text, mend = (
        "annotated twice: the same box and class",
        "remove one of the two: the second can never be found",
    )
    if duplicate.any():
        count = int(duplicate.sum())
        yield finding(HARMFUL, "duplicate", dataset.name, text, mend, labels(duplicate), count, total)
    text = "the same box and mask again, of another class"
    mend = "keep the class that is right: the network cannot learn both"
    if two_classes.any():
        count = int(two_classes.sum())
        yield finding(HARMFUL, "two classes", dataset.name, text, mend, labels(two_classes), count, total)


def _seen_before(rows: np.ndarray) -> np.ndarray:
    """Of each row of a matrix, whether an earlier one is equal; (A,) bool."""
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)] != np.arange(len(rows))


def _crowds(dataset: CocoDataset, labels: Callable) -> Iterator[Finding]:
    table = dataset.table
    if table.crowd.any():
        text = "iscrowd 1: regions of many objects, neither objects nor background to training and evaluation"
        mend = "nothing to do if that is meant; set iscrowd to 0 where a single object was drawn"
        level = HARMFUL if table.crowd.mean() > 0.5 else NOTE
        count, total = int(table.crowd.sum()), len(table.crowd)
        yield finding(level, "crowd", dataset.name, text, mend, labels(table.crowd), count, total)


def _images(dataset: CocoDataset, most: int) -> Iterator[Finding]:
    counts, total = dataset.object_counts(), len(dataset)
    empty = np.flatnonzero(counts == 0)
    if len(empty) == total:
        text, mend = "no object is left to learn from", "annotate some; training refuses such a file"
        yield finding(REFUSED, "no object", dataset.name, text, mend, count=1)
    elif len(empty):
        text = "without objects: all of it is background"
        mend = "nothing to do if that is true; else annotate their objects, or remove the images"
        level = HARMFUL if len(empty) > total / 2 else NOTE
        examples = [_called(dataset, i) for i in empty]
        yield finding(level, "empty images", dataset.name, text, mend, examples, total=total, what="images")
    many = np.flatnonzero(counts > most)
    if len(many):
        text = f"more objects (up to {counts.max()}) than the {most} detections that each may have"
        mend = f"--set model.detections={int(np.ceil(counts.max() / 50)) * 50}: else some can never be found"
        examples = [_called(dataset, i) for i in many]
        yield finding(HARMFUL, "detections", dataset.name, text, mend, examples, total=total, what="images")


def _called(dataset: CocoDataset, index: int) -> str:
    record = dataset.records[index]
    return one_line(f"image {record.id} ({record.file_name})")


def of_categories(dataset: CocoDataset) -> Iterator[Finding]:
    """Names of the classes in the set to train on, and how many objects each has."""
    alike = defaultdict(list)
    for name in dataset.class_names:
        alike[re.sub(r"[\s_-]+", " ", name.casefold())].append(name)
    pairs = [" and ".join(names) for names in alike.values() if len(names) > 1]
    if pairs:
        text, mend = (
            "names that differ only in case or spaces",
            "make them one category: they look alike to a network",
        )
        yield finding(
            HARMFUL,
            "names alike",
            dataset.name,
            text,
            mend,
            pairs,
            total=len(dataset.class_names),
            what="classes",
        )
    counts = _class_counts(dataset)
    unused = [name for name, count in zip(dataset.class_names, counts) if not count]
    total = len(counts)
    if unused and len(unused) < total:
        text, mend = (
            "without an object",
            "remove them from the categories, or annotate some: they cannot be learnt",
        )
        yield finding(
            NOTE, "unused categories", dataset.name, text, mend, unused, total=total, what="classes"
        )
    few = [f"{name} ({count})" for name, count in zip(dataset.class_names, counts) if 0 < count < FEW]
    if few:
        text, mend = f"with fewer than {FEW} objects", "annotate more of them, or join classes"
        yield finding(NOTE, "few objects", dataset.name, text, mend, few, total=total, what="classes")


def _class_counts(dataset: CocoDataset) -> np.ndarray:
    """Objects of each class, (K,) int."""
    table = dataset.table
    return np.bincount(table.labels[~table.crowd] - 1, minlength=len(dataset.class_names))


def of_both(train: CocoDataset, val: CocoDataset) -> Iterator[Finding]:
    """What the classes of both sets show together."""
    if train.class_names != val.class_names:
        ours, theirs = Counter(train.class_names), Counter(val.class_names)
        differing = [f"{name} only in {train.name}" for name in (ours - theirs)]
        differing += [f"{name} only in {val.name}" for name in (theirs - ours)]
        text = (
            f"has other classes than {train.name}"
            if differing
            else f"has the classes in another order than {train.name}"
        )
        mend = "write the same categories with the same ids into both files (convert: --classes train.json)"
        count = max(1, len(differing))  # the order alone is one thing to mend
        yield finding(REFUSED, "other categories", val.name, text, mend, differing, count, what="classes")
        return
    ours, theirs = _class_counts(train), _class_counts(val)
    for kind, which, text, mend in (
        (
            "class missing in val",
            (ours > 0) & (theirs == 0),
            f"of {train.name} have no object here: nothing tells how well they are found",
            "move some images with them from training to validation",
        ),
        (
            "class missing in train",
            (ours == 0) & (theirs > 0),
            f"have no object in {train.name}: they cannot be learnt",
            "move some images with them to training",
        ),
    ):
        if which.any():
            names = [name for name, chosen in zip(train.class_names, which) if chosen]
            level = NOTE if kind == "class missing in val" else HARMFUL
            yield finding(level, kind, val.name, text, mend, names, total=len(ours), what="classes")


def facts(dataset: CocoDataset) -> dict[str, Any]:
    """Numbers of images, objects and classes."""
    table, counts = dataset.table, dataset.object_counts()
    sizes = sorted({(r.height * r.width, f"{r.width} x {r.height}") for r in dataset.records})
    classes = dict(zip(dataset.class_names, _class_counts(dataset).tolist()))
    return {
        "images": len(dataset),
        "objects": int(counts.sum()),
        "crowds": int(table.crowd.sum()),
        "objects_per_image": {
            "least": int(counts.min()),
            "mean": float(counts.mean()),
            "most": int(counts.max()),
        },
        "smallest_image": sizes[0][1],
        "largest_image": sizes[-1][1],
        "classes": classes,
    }
