"""The image files themselves: which can be decoded, which are grey, and which show the same picture."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from minimask.data import images
from minimask.data.coco import CocoDataset
from minimask.errors import InputError, one_line
from minimask.files import open_regular
from minimask.results.survey.findings import HARMFUL, REFUSED, Finding, finding


@dataclass
class Contents:
    """What decoding every image of a data set tells.

    Attributes
    ----------
    damaged : list of (index, str)
        Images that cannot be decoded, and why.
    grey : int
        Images without colour.
    digests : dict of int to (bytes, bytes)
        Of each image: a digest of its file, and one of its pixels.
    """

    damaged: list[tuple[int, str]] = field(default_factory=list)
    grey: int = 0
    digests: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)


def read_contents(dataset: CocoDataset, progress: Callable[[Iterable], Iterable] = iter) -> Contents:
    """Decode all images, one at a time; `progress` wraps the range of their indices."""
    found = Contents()
    for index in progress(range(len(dataset))):
        record = dataset.records[index]
        try:
            pixels = images.decode(record.path, (record.height, record.width))
        except InputError as error:
            found.damaged.append((index, str(error)))
            continue
        grey = pixels.ndim == 2 or bool((pixels == pixels[..., :1]).all())
        found.grey += grey
        shown = pixels if pixels.ndim == 2 else pixels[..., 0] if grey else pixels
        digest = hashlib.blake2b(repr((shown.shape, shown.dtype.str)).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(shown))
        with open_regular(record.path) as file:
            of_file = hashlib.file_digest(file, "sha256").digest()
        found.digests[index] = of_file, digest.digest()
    return found


def of_contents(dataset: CocoDataset, contents: Contents) -> Iterator[Finding]:
    """Damaged files, and pictures that one data set has twice."""
    if contents.damaged:
        text = contents.damaged[0][1].rpartition("; ")
        examples = [_called(dataset, index) for index, _ in contents.damaged]
        reason = f"cannot be decoded: {text[0]}"
        yield finding(
            REFUSED, "damaged", dataset.name, reason, text[2], examples, total=len(dataset), what="images"
        )
    same = defaultdict(list)
    for index, (_, pixels) in contents.digests.items():
        same[pixels].append(index)
    twice = [indices for indices in same.values() if len({dataset.records[i].path for i in indices}) > 1]
    if twice:
        examples = [" = ".join(_called(dataset, index) for index in indices[:2]) for indices in twice]
        text = "the same picture as another one, under another name"
        mend = "remove one of the two: what only one has annotated is background in the other"
        count = sum(len(indices) - 1 for indices in twice)
        yield finding(
            HARMFUL, "same picture twice", dataset.name, text, mend, examples, count, len(dataset), "images"
        )


def of_both_contents(
    train: CocoDataset, ours: Contents, val: CocoDataset, theirs: Contents
) -> Iterator[Finding]:
    """Images for validation that are trained on: the same file, the same bytes, or the same pixels."""
    files = {train.records[i].path.resolve(): i for i in range(len(train))}
    by_file = {digests[0]: i for i, digests in ours.digests.items()}
    by_pixels = {digests[1]: i for i, digests in ours.digests.items()}
    found: dict[str, list[str]] = {"file": [], "bytes": [], "pixels": []}
    for index, record in enumerate(val.records):
        digests = theirs.digests.get(index, (b"", b""))
        for how, other in (
            ("file", files.get(record.path.resolve())),
            ("bytes", by_file.get(digests[0])),
            ("pixels", by_pixels.get(digests[1])),
        ):
            if other is not None:
                found[how].append(f"{_called(val, index)} = {_called(train, other)} of {train.name}")
                break
    for how, examples in found.items():
        if examples:
            same = "are the same files" if how == "file" else f"have the same {how}"
            text = f"{same} as images of {train.name}"
            mend = "remove them from one of the two: a score on what was trained on is no validation"
            yield finding(
                HARMFUL, f"shared {how}", val.name, text, mend, examples, total=len(val), what="images"
            )


def _called(dataset: CocoDataset, index: int) -> str:
    return one_line(f"image {dataset.records[index].id} ({dataset.records[index].file_name})")
