"""An annotation's segmentation: polygons, run lengths, or compressed run lengths; checked, then encoded.

`check_mask` measures everything before pycocotools sees it, which takes memory in proportion to the length of
a polygon's edges, and trusts the sums of run lengths.
"""

from dataclasses import dataclass

import numpy as np

from minimask.data import rle
from minimask.data.fields import Fault, finite_numbers, show, value

OUTLINE = 2_000_000
"""Most pixels that the edges of an annotation's polygons may have: each takes pycocotools some 100 bytes."""


@dataclass(frozen=True, eq=False)
class Mask:
    """A checked segmentation: either polygons or run lengths."""

    polygons: list[list[float]] | None
    outline: tuple[float, float, float, float] | None  # x1, y1, x2, y2 of the polygons' points
    counts: str | None  # the compressed run lengths, if given that way
    runs: np.ndarray | None  # (R,) int64

    def encode(self, height: int, width: int) -> bytes:
        """The compressed run lengths."""
        if self.polygons is not None:
            return rle.encode_polygons(self.polygons, height, width)
        if self.counts is not None and self.runs[1:].all():
            return self.counts.encode("ascii")
        return rle.encode_runs(rle.without_empty_runs(self.runs).tolist(), height, width)


def check_mask(entry: dict, place: str, height: int, width: int) -> Mask:
    """Check the segmentation of an annotation in an image of this size.

    Raises
    ------
    Fault
        With a line that begins with `place`.
    """
    mask = value(entry, "segmentation", place)
    if isinstance(mask, dict):
        return _check_runs(mask, place, height, width)
    if not isinstance(mask, list):
        raise Fault(f"{place}: segmentation must be polygons or an RLE, is {show(mask)}", "segmentation")
    if not mask:
        raise Fault(
            f"{place}: segmentation is empty; draw the object's mask or remove the annotation", "no mask"
        )
    _check_nesting(mask, place)
    x1, y1, x2, y2 = zip(*(_check_polygon(polygon, place, height, width) for polygon in mask))
    outline = min(x1), min(y1), max(x2), max(y2)
    _check_length(mask, outline, place, height, width)
    return Mask(mask, outline, None, None)


def _check_nesting(mask: list, place: str) -> None:
    """Refuse anything but a list of flat lists: [[x, y, x, y, ...], ...]."""
    lists = [part for part in mask if isinstance(part, list)]
    if len(lists) < len(mask):
        raise Fault(
            f"{place}: segmentation must be a list of polygons [[x, y, ...], ...], is {show(mask)}", "nesting"
        )
    points = [point for part in lists for point in part[:1]]
    if (all(len(part) == 2 for part in lists) and len(lists) > 2) or any(isinstance(p, list) for p in points):
        raise Fault(
            f"{place}: segmentation {show(mask)} lists its points as [x, y]; they must be flat: "
            "[[x1, y1, x2, y2, ...]]",
            "nesting",
        )


def _check_polygon(polygon: list, place: str, height: int, width: int) -> tuple[float, float, float, float]:
    """Check three points or more, x, y, x, y, ..., inside the image or not far outside; returns their box."""
    if not finite_numbers(polygon):
        raise Fault(
            f"{place}: polygon {show(polygon)} has a coordinate that is not a finite number", "polygon"
        )
    if len(polygon) % 2:
        raise Fault(
            f"{place}: polygon has an odd number of coordinates ({len(polygon)}); it needs x, y pairs", "odd"
        )
    if len(polygon) < 6:
        raise Fault(
            f"{place}: polygon {show(polygon)} has fewer than three points; remove or complete it", "short"
        )
    xs, ys = polygon[0::2], polygon[1::2]
    x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
    for low, high, size, axis in ((x1, x2, width, "x"), (y1, y2, height, "y")):
        if low < -size or high > 2 * size:
            raise Fault(
                f"{place}: polygon has {axis} from {low:g} to {high:g}, far outside the image of {width} x "
                f"{height} pixels; give its coordinates in pixels of this image",
                "outside",
            )
    return x1, y1, x2, y2


def _check_length(polygons: list, outline: tuple, place: str, height: int, width: int) -> None:
    """Refuse edges that are too long: an outline longer than the image has pixels makes no sense."""
    most = min(max(height * width, 100_000), OUTLINE)
    x1, y1, x2, y2 = outline
    if sum(map(len, polygons)) / 2 * (max(x2 - x1, y2 - y1) + 1) <= most:  # nearly always
        return
    length = 0.0
    for polygon in polygons:
        points = np.array(polygon, np.float64).reshape(-1, 2)
        length += abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum() + len(points)
    if length > most:
        raise Fault(
            f"{place}: the polygons' edges are {length:.0f} pixels long together, where {most} are enough "
            "for this image; simplify them, or give the mask as an RLE",
            "outline",
        )


def _check_runs(mask: dict, place: str, height: int, width: int) -> Mask:
    """Check run lengths, as a list or a compressed string, which must fill the image exactly."""
    size, counts = (value(mask, key, f"{place}: segmentation") for key in ("size", "counts"))
    if size != [height, width]:
        turned = "; an RLE's size is [height, width]" if size == [width, height] else ""
        raise Fault(
            f"{place}: mask of size {show(size)}, but the image is [{height}, {width}]{turned}", "RLE size"
        )
    if isinstance(counts, str):
        try:
            runs = rle.read_runs(counts.encode("ascii"), height * width)
        except ValueError as error:  # UnicodeEncodeError is one
            why = "has characters that no RLE has" if isinstance(error, UnicodeError) else error
            raise Fault(f"{place}: the mask's compressed RLE {why}; encode it again", "RLE") from None
        total = int(runs.sum())  # each at most height x width
    elif isinstance(counts, list) and all(type(r) is int and 0 <= r <= height * width for r in counts):
        runs, total = np.array(counts, np.int64), sum(counts)
    else:
        raise Fault(
            f"{place}: the RLE's counts must be a string or whole numbers >= 0 of at most height x width, "
            f"are {show(counts)}",
            "RLE counts",
        )
    if total != height * width:
        raise Fault(
            f"{place}: the RLE's counts add up to {total} pixels, the image has {height} x {width} = "
            f"{height * width}; encode the mask again",
            "RLE sum",
        )
    return Mask(None, None, counts if isinstance(counts, str) else None, runs)
