"""COCO instance JSON as a dataset: everything is checked on reading; pixels and masks are decoded on demand.

Shapes: A annotations; G objects and C crowd regions in an image of H x W; K keypoints of an object.
"""

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from minimask.data import checks, keypoint_checks, rle
from minimask.data.box_checks import check_boxes
from minimask.data.fields import Faults, Note, of_all
from minimask.data.image_entries import ImageRecord, read_images, wrong_size
from minimask.data.images import PixelCache, decode, to_float_within
from minimask.data.sample import PixelBox, Sample, cut, cut_keypoints
from minimask.data.skeleton import Skeleton
from minimask.errors import InputError, one_line

CACHE_BYTES = 256 * 2**20
DIGESTED_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class Table:
    """Annotations column by column, grouped by image, and within an image in the order of the file."""

    ids: np.ndarray  # (A,) int64; 0 where the file has none
    images: np.ndarray  # (A,) int64: index into the images sorted by id
    labels: np.ndarray  # (A,) int64; 1 is the first category
    boxes: np.ndarray  # (A, 4) float64: x, y, width, height as in the file
    areas: np.ndarray  # (A,) float64: the file's, or else the number of the mask's pixels
    crowd: np.ndarray  # (A,) bool
    counts: np.ndarray  # (A,) object: compressed RLE, bytes
    pixels: np.ndarray  # (A,) int64: number of the mask's pixels
    extents: np.ndarray  # (A, 4) int64: x1, y1, x2, y2 of the mask
    keypoints: np.ndarray  # (A, K, 3) float64: x, y, visibility; K is 0 in files without keypoints

    def select(self, rows) -> "Table":
        """The rows of a slice, an index array or a bool array."""
        return Table(*(getattr(self, field.name)[rows] for field in fields(self)))


class CocoDataset:
    """The images of a COCO instances file with their objects. Made by `read_coco`.

    Small in memory: masks stay run-length encoded, and decoded images are kept as they are stored (a byte per
    channel) up to `CACHE_BYTES`; the least recently used are dropped first. Several threads may read at once.

    Attributes
    ----------
    name : str
        The JSON file's name.
    class_names : tuple of str
        Label k is ``class_names[k - 1]``; 0 is the background.
    category_ids : tuple of int
        The COCO ids in the same order.
    image_ids : tuple of int
        Sorted; item i is the image ``image_ids[i]``.
    skeleton : Skeleton or None
        The names of the objects' keypoints; None where the categories have none.
    notes : list of str
        What was dropped or changed in reading, one line each, to be shown to the user.
    """

    def __init__(
        self,
        path: Path,
        records: list[ImageRecord],
        categories: dict[int, str],
        table: Table,
        notes: list[str],
        skeleton: Skeleton | None = None,
    ):
        self.path = path
        self.name = path.name
        self.class_names = tuple(categories.values())
        self.category_ids = tuple(categories)
        self.image_ids = tuple(record.id for record in records)
        self.notes = [one_line(note) for note in notes]
        self.skeleton = skeleton
        self._records = records
        self._table = table
        self._starts = np.searchsorted(table.images, np.arange(len(records) + 1))
        self._cache = PixelCache(CACHE_BYTES)

    @property
    def records(self) -> list[ImageRecord]:
        """The images in order: id, file and size."""
        return self._records

    @property
    def table(self) -> Table:
        """The annotations, crowds included, in order of the images."""
        return self._table

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        return self.load(index)

    def describe(self, index: int) -> str:
        """The image's name for messages: 'train.json: image 17 (a.png)'."""
        record = self._records[index]
        return one_line(f"{self.name}: image {record.id} ({record.file_name})")

    def digests(self) -> dict[str, str]:
        """Hashes that tell this data set from another with the same image names: of annotations and of files.

        For the files, their contents are hashed if that is quick (up to `DIGESTED_BYTES` in all), otherwise
        their sizes and times of change.
        """
        table = self._table
        annotations = hashlib.sha256()
        columns = [table.images, table.labels, table.boxes, table.crowd]
        for column in columns + ([table.keypoints] if self.skeleton else []):
            annotations.update(np.ascontiguousarray(column).tobytes())
        for counts in table.counts:
            annotations.update(counts + b"\n")
        return {"annotations": annotations.hexdigest(), "files": _digest([r.path for r in self._records])}

    def object_counts(self) -> np.ndarray:
        """How many objects each image has, without crowds: (N,) int64."""
        return np.bincount(self._table.images[~self._table.crowd], minlength=len(self))

    def outline(self, index: int) -> tuple[int, int, np.ndarray]:
        """Height, width and the objects' boxes, (G, 4) float32 x1, y1, x2, y2, without decoding anything."""
        record, table = self._records[index], self._annotations(index)
        return record.height, record.width, _corners(table.boxes[~table.crowd], record)

    def image(self, index: int) -> np.ndarray:
        """The image alone, (3, H, W) float32; an InputError if that would take too much memory."""
        return to_float_within(self.pixels(index), self._records[index].path)

    def load(self, index: int, window: PixelBox | None = None) -> Sample:
        """An image with its objects, or a window of it as `sample.crop` would cut it.

        Only the masks that reach into the window are decoded, and only there: a window of 256 x 256 takes a
        few milliseconds, however many objects the image has.

        Raises
        ------
        InputError
            If the image file cannot be decoded, or does not have the annotated size.
        """
        record, table = self._records[index], self._annotations(index)
        window = PixelBox(*(window or (0, 0, record.width, record.height)))
        pixels = self.pixels(index)[window.y1 : window.y2, window.x1 : window.x2]
        image = to_float_within(pixels, record.path)
        begins, ends = table.extents[:, :2], table.extents[:, 2:]  # (A, 2) each
        in_window = (begins < window[2:]).all(axis=1) & (ends > window[:2]).all(axis=1)
        objects, crowds = table.select(in_window & ~table.crowd), table.select(in_window & table.crowd)
        boxes, labels, masks, keypoints = _cut_objects(objects, record, window)
        crowd_boxes, _, crowd_masks, _ = _cut_objects(crowds, record, window, min_share=0.0)
        keypoints = keypoints if self.skeleton else None
        return Sample(
            image, boxes, labels, masks, crowd_boxes, crowd_masks, record.id, keypoints, self.skeleton
        )

    def coco_document(self) -> dict:
        """The checked ground truth for pycocotools; a new one at each call, since pycocotools writes into it.

        Annotation ids are the file's if all of them are at least 1, otherwise they count from 1: pycocotools
        takes a match with the id 0 for no match. Every mask is a compressed RLE; no area or iscrowd is
        missing.
        """
        table, records = self._table, self._records
        names = self.skeleton.category() if self.skeleton else {}
        ids = table.ids if (table.ids >= 1).all() else np.arange(1, len(table.ids) + 1)
        return {
            "info": {"description": self.name},
            "images": [
                {"id": r.id, "file_name": r.file_name, "height": r.height, "width": r.width} for r in records
            ],
            "categories": [
                {"id": i, "name": name} | names for i, name in zip(self.category_ids, self.class_names)
            ],
            "annotations": [
                {
                    "id": int(ids[a]),
                    "image_id": records[i].id,
                    "category_id": self.category_ids[table.labels[a] - 1],
                    "bbox": table.boxes[a].tolist(),
                    "area": float(table.areas[a]),
                    "iscrowd": int(table.crowd[a]),
                    "segmentation": {
                        "size": [records[i].height, records[i].width],
                        "counts": table.counts[a].decode("ascii"),
                    },
                }
                | (keypoint_checks.coco_entries(table.keypoints[a]) if self.skeleton else {})
                for a, i in enumerate(table.images)
            ],
        }

    def _annotations(self, index: int) -> Table:
        """The annotations of one image."""
        index = range(len(self))[index]  # takes negative indices, raises IndexError
        return self._table.select(slice(self._starts[index], self._starts[index + 1]))

    def pixels(self, index: int) -> np.ndarray:
        """The image as `images.decode` returns it, (H, W) or (H, W, 3), from the cache if it is there."""
        record = self._records[index]

        def read() -> np.ndarray:
            pixels = decode(record.path, (record.height, record.width))
            if pixels.shape[:2] != (record.height, record.width):
                raise wrong_size(self.path, record, *pixels.shape[:2])
            return pixels

        return self._cache.get(record.id, read)


def read_coco(
    json_path: str | Path, images_dir: str | Path | None, strict: bool = False, allow_empty: bool = True
) -> CocoDataset:
    """Read and check a COCO instances file.

    Everything but the pixels is checked now (see `checks`): a file that passes is safe for pycocotools.
    Annotations whose box has no area or lies outside the image, or whose mask has no pixel, are dropped, and
    areas that are 0 or missing are measured from the masks; `CocoDataset.notes` says so.

    Parameters
    ----------
    json_path : str or Path
        With the lists images, annotations and categories. Masks are polygons, RLE or compressed RLE; category
        ids may have gaps; images may have no objects. Keypoints are read if the categories name them.
    images_dir : str, Path or None
        The folder that the images' file_name is relative to. With None, no files are looked for: such a data
        set can be compared with results, but has no pixels.
    strict : bool
        Raise an error if an annotation would be dropped.
    allow_empty : bool
        Whether a file without a single object is accepted; it is of no use for training.

    Raises
    ------
    InputError
        One line that names the file and the annotation or image id, and says what to do.
    """
    path, notes = Path(json_path), []
    document = checks.read_document(path)
    records = read_images(document["images"], path, None if images_dir is None else Path(images_dir), notes)
    categories = checks.read_categories(document["categories"], path)
    skeletons = keypoint_checks.read_skeletons(document["categories"], path)
    counts = {i: len(skeleton.names) for i, skeleton in skeletons.items()}
    rows = checks.read_annotations(document["annotations"], path, records, categories, counts)
    skeleton = next(iter(skeletons.values()), None)
    dataset = _assembled(rows, path, records, categories, skeleton, strict, notes)
    _check_objects(dataset.table, len(records), path, allow_empty, dataset.notes)
    return dataset


def survey_coco(
    json_path: str | Path, images_dir: str | Path
) -> tuple[CocoDataset | None, Faults, list[str]]:
    """As `read_coco`, but goes on after what that refuses.

    Returns
    -------
    dataset : CocoDataset or None
        Of all that is not at fault; None if no image or no category is left. Annotations of an image or a
        category that is at fault are left out, but not counted as faults.
    faults : Faults
    notes : list of str
        As `CocoDataset.notes`; those that speak of a number of entries are a `fields.Note`.

    Raises
    ------
    InputError
        If the file is not COCO instances JSON, or there is no such folder.
    """
    path, faults, notes = Path(json_path), Faults(), []
    document = checks.read_document(path)
    records = read_images(document["images"], path, Path(images_dir), notes, faults)
    categories = checks.read_categories(document["categories"], path, faults)
    if not records or not categories:
        return None, faults, notes
    # Annotations whose image file is missing, or whose category's name is at fault, are checked and then left
    # out. Those of an image whose size is in doubt cannot be checked.
    found, folder = {record.id for record in records}, Path(images_dir)
    sized = read_images(document["images"], path, None, [], Faults())
    sized = [record for record in sized if record.id in found or not (folder / record.path).exists()]
    lost = _ids(document["images"]) - {record.id for record in sized}
    entries = [
        entry
        for entry in document["annotations"]
        if not (isinstance(entry, dict) and _is_number(entry.get("image_id")) and entry["image_id"] in lost)
    ]
    skeleton, counts = _survey_skeletons(document["categories"], path, categories, faults)
    rows = checks.read_annotations(entries, path, sized, _ids(document["categories"]), counts, faults)
    rows = [row for row in rows if row.image_id in found and row.category_id in categories]
    return _assembled(rows, path, records, categories, skeleton, False, notes, faults), faults, notes


def _survey_skeletons(
    entries: list, path: Path, categories: dict[int, str], faults: Faults
) -> tuple[Skeleton | None, dict[int, int | None]]:
    """The skeleton of all categories, None if they differ; and how many keypoints each category has."""
    sound = [e for e in entries if isinstance(e, dict) and _is_number(e.get("id")) and e["id"] in categories]
    skeletons = keypoint_checks.read_skeletons(sound, path, faults)
    counts: dict[int, int | None] = {entry["id"]: None for entry in sound if entry.get("keypoints")}
    counts |= {i: len(skeleton.names) for i, skeleton in skeletons.items()}
    kinds = set(skeletons.values())
    return kinds.pop() if len(kinds) == 1 else None, counts


def _ids(entries: list) -> set:
    return {entry["id"] for entry in entries if isinstance(entry, dict) and _is_number(entry.get("id"))}


def _is_number(number: Any) -> bool:
    return type(number) in (int, float)


def _assembled(
    rows: list[checks.Annotation],
    path: Path,
    records: list[ImageRecord],
    categories: dict[int, str],
    skeleton: Skeleton | None,
    strict: bool,
    notes: list[str],
    faults: Faults | None = None,
) -> CocoDataset:
    """The data set of images, categories and annotations that have been checked one by one."""
    index = {record.id: i for i, record in enumerate(records)}
    rows.sort(key=lambda row: index[row.image_id])  # stable: the file's order within an image
    read = rows

    flat = np.array([row.counts is None for row in rows], bool)
    why = "box has no area or lies outside the image"
    _note_dropped(rows, flat, why, "degenerate box", path, strict, notes)
    rows = [row for row in rows if row.counts is not None]
    table = _make_table(rows, index, list(categories), records, len(skeleton.names) if skeleton else 0)
    width_height = np.array([(r.width, r.height) for r in records])[table.images]  # (A, 2)
    check_boxes(path, rows, table.boxes, table.extents, width_height, faults)
    keypoint_checks.check_together(path, table.keypoints, table.boxes, faults)
    _note_keypoints(read, table, path, notes)
    _note_apart(rows, table, path, notes)
    _note_dropped(rows, table.pixels == 0, "mask has no pixel", "empty mask", path, strict, notes)
    unknown = sum(row.area is None for row in rows)
    if unknown:
        text = (
            f"{path}: area is 0 or missing in {unknown} of {len(rows)} annotations; measured from their masks"
        )
        notes.append(Note(text, "no area given", unknown))
    table = table.select(table.pixels > 0)
    if (table.ids < 1).any():
        text = f"{path}: annotation ids below 1 or missing; numbered anew for the evaluation"
        notes.append(Note(text, "ids below 1", int((table.ids < 1).sum())))
    return CocoDataset(path, records, categories, table, notes, skeleton)


def _check_objects(table: Table, images: int, path: Path, allow_empty: bool, notes: list[str]) -> None:
    """Refuse or note a file in which no annotation is an object."""
    crowds = len(table.crowd) if table.crowd.all() else 0
    only = (
        f"all {crowds} annotations have iscrowd 1, which marks regions of many objects; set iscrowd to 0 "
        "where one object was drawn"
    )
    if not allow_empty and table.crowd.all():
        dropped = f" ({'; '.join(notes)})" if notes else ""
        why = f": {only}" if crowds else "; annotate some"
        raise InputError(f"{path}: no object is left to learn from in {images} images{dropped}{why}")
    if crowds:
        notes.append(one_line(f"{path}: {only}"))


def shared_files(one: Any, other: Any) -> str | None:
    """The warning about image files that a data set for validation shares with the one for training.

    None if there are none, or if both are one file: whoever validates on the training set knows it.
    """
    if not (isinstance(one, CocoDataset) and isinstance(other, CocoDataset)) or one.path == other.path:
        return None
    ours, theirs = (
        {os.path.realpath(record.path): index for index, record in enumerate(dataset._records)}
        for dataset in (one, other)
    )
    both = sorted(ours[file] for file in ours.keys() & theirs.keys())
    if not both:
        return None
    return (
        f"{other.name}: {len(both)} of {len(other)} images are files of {one.name}, too, such as "
        f"{one_line(one._records[both[0]].file_name)}: scores on these are no validation"
    )


def nuclei_sample(split: str) -> CocoDataset:
    """The packaged images of cell nuclei: 32 as split "train", 10 as "val"; see data/nuclei/README.md."""
    if split not in ("train", "val"):
        raise InputError(f"nuclei_sample: split must be 'train' or 'val', is {split!r}")
    folder = Path(__file__).parent / "nuclei"
    return read_coco(folder / f"{split}.json", folder / "images")


def _digest(paths: list[Path]) -> str:
    """The hash of files' contents or, if they are large, of their sizes and times of change."""
    digest, found = hashlib.sha256(), []
    for path in paths:
        with suppress(OSError):  # gone since it was checked: whoever reads it will say so
            found.append((path, path.stat()))
    small = sum(status.st_size for _, status in found) <= DIGESTED_BYTES
    for path, status in found:
        digest.update(f"{status.st_size} {'' if small else status.st_mtime_ns}\n".encode())
        if small:
            with suppress(OSError):
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _note_dropped(
    rows: list[checks.Annotation],
    bad: np.ndarray,
    why: str,
    kind: str,
    path: Path,
    strict: bool,
    notes: list[str],
) -> None:
    """Note that the annotations for which `bad` (A,) is True are dropped; with `strict`, raise InputError."""
    if not bad.any():
        return
    what = f"{bad.sum()} of {len(rows)} annotations, whose {why}: {_first(rows, bad)}"
    if strict:
        raise InputError(f"{path}: {what}; correct or remove them, or read it without strict")
    notes.append(Note(f"{path}: dropped {what}", kind, int(bad.sum())))


def _note_apart(rows: list[checks.Annotation], table: Table, path: Path, notes: list[str]) -> None:
    """Note masks that have nothing in common with their boxes."""
    low = np.maximum(table.boxes[:, :2], table.extents[:, :2])
    high = np.minimum(table.boxes[:, :2] + table.boxes[:, 2:], table.extents[:, 2:])
    apart = (table.pixels > 0) & (low >= high).any(axis=1)
    if apart.any():
        text = (
            f"{path}: {apart.sum()} of {len(rows)} annotations have their mask outside of their box: "
            f"{_first(rows, apart)}"
        )
        notes.append(Note(text, "mask outside box", int(apart.sum())))


def _note_keypoints(rows: list[checks.Annotation], table: Table, path: Path, notes: list[str]) -> None:
    """Note surprises in the keypoints of all annotations in the file, `rows`; `table` has those kept."""
    unread = sum(row.unread_keypoints for row in rows)
    if unread:
        text = (
            f"{path}: the keypoints of {unread} of {len(rows)} annotations are not read, since their "
            "categories name none; give the categories a list 'keypoints'"
        )
        notes.append(Note(text, "keypoints without names", unread))
    found = [row for row in rows if row.keypoints]
    wrong = sum(row.num_keypoints not in (None, sum(v > 0 for v in row.keypoints[2::3])) for row in found)
    if wrong:
        number = of_all(wrong, len(rows), "annotations") or f" (in 1 of {len(rows)} annotations)"
        text = f"{path}: num_keypoints is not the number of labelled keypoints{number}; counted anew"
        notes.append(Note(text, "number of keypoints", wrong))
    if table.keypoints.shape[1] and not (table.keypoints[..., 2] > 0).any():
        notes.append(Note(f"{path}: its categories have keypoints, but not one is labelled", "no keypoint"))


def _first(rows: list[checks.Annotation], chosen: np.ndarray) -> str:
    """The labels of the first five annotations for which `chosen` (A,) is True."""
    labels = ", ".join(rows[a].label for a in np.flatnonzero(chosen)[:5])
    return labels + (", ..." if chosen.sum() > 5 else "")


def _make_table(
    rows: list[checks.Annotation],
    index: dict[int, int],
    category_ids: list[int],
    records: list[ImageRecord],
    num_keypoints: int,
) -> Table:
    images = np.array([index[row.image_id] for row in rows], np.int64)
    label = {category_id: k for k, category_id in enumerate(category_ids, start=1)}
    masks = [
        {"size": [records[i].height, records[i].width], "counts": row.counts} for i, row in zip(images, rows)
    ]
    pixels, extents = rle.measure(masks)
    areas = [float(count) if row.area is None else row.area for row, count in zip(rows, pixels)]
    counts = np.empty(len(rows), object)
    counts[:] = [row.counts for row in rows]
    return Table(
        ids=np.array([row.id for row in rows], np.int64),
        images=images,
        labels=np.array([label[row.category_id] for row in rows], np.int64),
        boxes=np.array([row.bbox for row in rows], np.float64).reshape(-1, 4),
        areas=np.array(areas, np.float64),
        crowd=np.array([row.crowd for row in rows], bool),
        counts=counts,
        pixels=pixels,
        extents=extents,
        keypoints=keypoint_checks.as_array(
            [row.keypoints if num_keypoints else None for row in rows], num_keypoints
        ),
    )


def _corners(boxes: np.ndarray, record: ImageRecord) -> np.ndarray:
    """(A, 4) x, y, width, height -> float32 x1, y1, x2, y2 clipped to the image."""
    return checks.corners_in_image(boxes, record.height, record.width)


def _cut_objects(
    table: Table, record: ImageRecord, window: PixelBox, **options
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (G, 4), labels (G,), masks (G, h, w) and keypoints (G, K, 3) of the objects that a window shows.

    `sample.cut` decides which these are.
    """
    masks = _decode_masks(table, record.height, window)
    keep, boxes = cut(_corners(table.boxes, record), masks, table.pixels, window, **options)
    return boxes[keep], table.labels[keep], masks[keep], cut_keypoints(table.keypoints[keep], window)


def _decode_masks(table: Table, height: int, window: PixelBox) -> np.ndarray:
    """The masks' parts inside a window, which all of them reach into: (A, h, w) uint8, 0 or 1."""
    masks = np.zeros((len(table.ids), window.y2 - window.y1, window.x2 - window.x1), np.uint8)
    begins = np.maximum(table.extents[:, :2], window[:2]).tolist()
    ends = np.minimum(table.extents[:, 2:], window[2:]).tolist()
    for mask, counts, (x1, y1), (x2, y2) in zip(masks, table.counts, begins, ends):
        part = rle.decode_runs(rle.read_runs(counts), height, PixelBox(x1, y1, x2, y2))
        mask[y1 - window.y1 : y2 - window.y1, x1 - window.x1 : x2 - window.x1] = part
    return masks
