"""What a file's boxes show together: corners in place of sizes, centres, normalised boxes, two scales.

One box proves nothing: an amodal box is larger than the visible mask, and a hand-drawn one is loose. But a
file is written by one program, and what holds for nine tenths of its annotations is not due to chance.

Shapes: A annotations.
"""

from functools import partial
from pathlib import Path

import numpy as np

from minimask.data.checks import Annotation
from minimask.data.fields import Fault, Faults, numbers, refuse

_NEARLY_ALL = 0.9  # of the annotations


def check_boxes(
    path: Path,
    rows: list[Annotation],
    boxes: np.ndarray,
    extents: np.ndarray,
    sizes: np.ndarray,
    faults: Faults | None = None,
) -> None:
    """Refuse boxes that are not x, y, width, height in pixels, or not on the same scale as the polygons.

    Parameters
    ----------
    path : Path
    rows : list of A Annotation
    boxes : (A, 4) float64
        bbox as given.
    extents : (A, 4) int
        The tight boxes of the masks, x1, y1, x2, y2; zeros where a mask is empty.
    sizes : (A, 2) int
        Width and height of each annotation's image.
    faults : Faults, optional
        Collects what would be raised.
    """
    if not rows:
        return
    outlines = np.array([row.outline or (np.nan,) * 4 for row in rows])  # (A, 4); NaN for an RLE
    _check_normalised(path, rows, boxes, outlines, sizes, faults)
    if faults is not None and any(found.kind.startswith("normalised") for found in faults.found):
        return
    _check_corners(path, rows, boxes, extents, sizes, faults)
    _check_centres(path, rows, boxes, extents, sizes, faults)
    _check_scale(path, rows, boxes, outlines, faults)


def _check_normalised(
    path: Path,
    rows: list[Annotation],
    boxes: np.ndarray,
    outlines: np.ndarray,
    sizes: np.ndarray,
    faults: Faults | None,
) -> None:
    drawn = ~np.isnan(outlines[:, 0])
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    for what, values, known in (("bbox", corners, np.full(len(rows), True)), ("polygon", outlines, drawn)):
        small = known & (values >= 0).all(axis=1) & (values <= 1.001).all(axis=1) & (sizes > 2).all(axis=1)
        fractions = small & (values != np.round(values)).any(axis=1)
        if small.sum() > _NEARLY_ALL * known.sum() and fractions.any():
            first = int(fractions.argmax())
            shown = numbers(rows[first].bbox) if what == "bbox" else f"from {numbers(outlines[first])}"
            text = (
                f"{path}: {rows[first].label}: {what} {shown} looks normalised to 0..1; COCO means pixels: "
                f"multiply x by the image's width {sizes[first, 0]}, y by its height {sizes[first, 1]}"
            )
            _refuse(faults, Fault(text, f"normalised {what}"), rows, small)


def _refuse(faults: Faults | None, fault: Fault, rows: list[Annotation], wrong: np.ndarray) -> None:
    examples = [rows[a].label for a in np.flatnonzero(wrong)[: Faults.MOST]]
    refuse(faults, fault, int(wrong.sum()), len(rows), "annotations", examples)


def like_corners(
    boxes: np.ndarray, extents: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which boxes could be x1, y1, x2, y2; which of them fit their masks as such, and not as x, y, width,
    height; and which stick out of the image if read as the latter: (A,) bool each. Parameters as in
    `check_boxes`.
    """
    a, b, slack = boxes[:, :2], boxes[:, 2:], _slack(extents)
    fits = partial(_fits, extents)
    possible = (b > a).all(axis=1) & (b <= sizes + 1).all(axis=1) & (a >= -1).all(axis=1)
    as_meant = fits(np.clip(a, 0, sizes), np.clip(a + b, 0, sizes))  # a box may extend beyond the border
    as_corners = possible & ~as_meant & fits(a, b)
    sticks_out = possible & ~as_meant & (a + b > sizes + slack).any(axis=1)
    return possible, as_corners, sticks_out


def nearly_all_corners(possible: np.ndarray, as_corners: np.ndarray, sticks_out: np.ndarray) -> bool:
    """Whether width and height cannot be meant, given what `like_corners` returns for a file.

    They cannot if nearly all boxes could be corners and, read as such, at least half fit their masks (a
    single box must also stick out of the image, read as x, y, width, height), or at least half of three or
    more stick out.
    """
    fit = as_corners.mean() >= 0.5 and (len(possible) > 1 or sticks_out.all())
    stick_out = sticks_out.mean() >= 0.5 and len(possible) > 2
    return bool(possible.mean() >= _NEARLY_ALL and (fit or stick_out))


def _check_corners(
    path: Path,
    rows: list[Annotation],
    boxes: np.ndarray,
    extents: np.ndarray,
    sizes: np.ndarray,
    faults: Faults | None,
) -> None:
    """Refuse boxes given as x1, y1, x2, y2, if width and height cannot be meant."""
    possible, as_corners, sticks_out = like_corners(boxes, extents, sizes)
    if nearly_all_corners(possible, as_corners, sticks_out):
        wrong = as_corners | sticks_out
        row = rows[int(wrong.argmax())]
        x1, y1, x2, y2 = row.bbox
        text = (
            f"{path}: {row.label}: bbox {numbers(row.bbox)} reads like x1, y1, x2, y2; COCO means "
            f"x, y, width, height: write {numbers((x1, y1, x2 - x1, y2 - y1))}"
        )
        _refuse(faults, Fault(text, "corners"), rows, wrong)


def _check_centres(
    path: Path,
    rows: list[Annotation],
    boxes: np.ndarray,
    extents: np.ndarray,
    sizes: np.ndarray,
    faults: Faults | None,
) -> None:
    """Refuse boxes whose x and y are those of their centres, as in YOLO.

    They are if there are two or more, nearly all fit their masks when read that way, and at least half do not
    when read as COCO means them.
    """
    a, half = boxes[:, :2], boxes[:, 2:] / 2
    as_meant = _fits(extents, np.clip(a, 0, sizes), np.clip(a + 2 * half, 0, sizes))
    as_centres = _fits(extents, np.clip(a - half, 0, sizes), np.clip(a + half, 0, sizes))
    wrong = as_centres & ~as_meant
    if len(rows) > 1 and as_centres.mean() >= _NEARLY_ALL and wrong.mean() >= 0.5:
        row = rows[int(wrong.argmax())]
        x, y, w, h = row.bbox
        text = (
            f"{path}: {row.label}: bbox {numbers(row.bbox)} reads like the centre's x, y, then width, "
            f"height; COCO means the upper left corner: write {numbers((x - w / 2, y - h / 2, w, h))}"
        )
        _refuse(faults, Fault(text, "centres"), rows, wrong)


def _slack(extents: np.ndarray) -> np.ndarray:
    """(A, 2): how much a box may differ from its mask's, since boxes are drawn by hand."""
    return np.maximum(2.0, 0.1 * (extents[:, 2:] - extents[:, :2]))


def _fits(extents: np.ndarray, x1y1: np.ndarray, x2y2: np.ndarray) -> np.ndarray:
    """(A,): whether these corners are those of the masks, within `_slack`."""
    slack = _slack(extents)
    return ((abs(x1y1 - extents[:, :2]) <= slack) & (abs(x2y2 - extents[:, 2:]) <= slack)).all(axis=1)


def _check_scale(
    path: Path, rows: list[Annotation], boxes: np.ndarray, outlines: np.ndarray, faults: Faults | None
) -> None:
    """Refuse polygons that are their boxes times a factor: they were drawn in an image of another size."""
    drawn = np.flatnonzero(~np.isnan(outlines[:, 0]))
    if not len(drawn):
        return
    outline = outlines[drawn].reshape(-1, 2, 2)  # (D, corner, axis)
    box = np.stack([boxes[drawn, :2], boxes[drawn, :2] + boxes[drawn, 2:]], axis=1)
    slack = np.maximum(2.0, 0.1 * (outline[:, 1] - outline[:, 0]))[:, None]  # (D, 1, axis)
    factor = np.median((outline[:, 1] - outline[:, 0]) / (box[:, 1] - box[:, 0]), axis=0)  # (axis,)
    if (factor <= 0).any() or (abs(factor - 1) < 0.15).all():
        return
    scaled = (abs(outline - box * factor) <= slack * np.minimum(factor, 1)).all(axis=(1, 2))
    outside = (outline[:, 0] < box[:, 0] - slack[:, 0]) | (outline[:, 1] > box[:, 1] + slack[:, 0])
    wrong = scaled & outside.any(axis=1)
    if scaled.mean() >= _NEARLY_ALL and wrong.mean() >= 0.5:
        row = drawn[int(wrong.argmax())]
        factors = " and ".join(f"{f:.3g}" for f in (factor if np.ptp(factor) > 0.05 else factor[:1]))
        text = (
            f"{path}: {rows[row].label}: the polygon lies in {numbers(outlines[row])} (x1, y1, x2, y2), "
            f"which is its bbox {numbers(rows[row].bbox)} times {factors}; give both in pixels of this image"
        )
        which = np.zeros(len(rows), bool)
        which[drawn] = scaled
        _refuse(faults, Fault(text, "scale"), rows, which)
