"""Keypoints of COCO files: the categories' names and skeletons, and the annotations' triples, checked.

COCO's x and y are pixel indices; here, a keypoint in the middle of pixel i is at i + 1/2 (see `sample`).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from minimask.data.fields import Fault, Faults, finite_numbers, integer, label, read_all, refuse, show
from minimask.data.skeleton import Skeleton
from minimask.errors import one_line

MOST = 1000
"""Most keypoints that an object may have: each takes a map of 56 x 56 cells for every object."""

_VISIBILITY = "0 not labelled, 1 labelled but hidden, 2 visible"


def read_skeletons(entries: list, path: Path, faults: Faults | None = None) -> dict[int, Skeleton]:
    """The skeletons of the categories that have keypoints, by the category's id.

    All are the same, unless `faults` have collected that some differ. The entries must have passed
    `checks.read_categories`: each has an id and a name.
    """

    def read(index: int, entry: Any, _: bool) -> tuple[int, Skeleton | None]:
        place = label(path, "category", entry, index)
        return integer(entry, "id", place), _skeleton(entry, place)

    found = {i: skeleton for i, skeleton in read_all(entries, read, "categories", faults) if skeleton}
    kinds = list(dict.fromkeys(found.values()))
    if len(kinds) > 1:
        one, other = (next(i for i, skeleton in found.items() if skeleton == kind) for kind in kinds[:2])
        what = "names of keypoints" if kinds[0].names != kinds[1].names else "skeletons"
        text = (
            f"{path}: categories {one} and {other} have different {what}; a model has one list of keypoints "
            "for all classes: give each category the names of all, and 0, 0, 0 to those an object lacks"
        )
        refuse(faults, Fault(text, "different keypoints"), total=len(entries), what="categories")
    return found


def _skeleton(category: dict, place: str) -> Skeleton | None:
    names = category.get("keypoints")
    if names is None or names == []:
        return None
    fits = isinstance(names, list) and all(isinstance(name, str) and name.strip() for name in names)
    if not fits or any(one_line(name) != name for name in names):
        raise Fault(f"{place}: keypoints must be a list of names, is {show(names)}", "names")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Fault(f"{place}: two keypoints are named {show(twice)}; rename one", "names")
    if len(names) > MOST:
        raise Fault(f"{place}: has {len(names)} keypoints; at most {MOST} are possible", "names")
    edges = category.get("skeleton") or []
    if not isinstance(edges, list) or not all(_is_edge(edge, len(names)) for edge in edges):
        raise Fault(
            f"{place}: skeleton must be a list of pairs of its keypoints, counted from 1 to {len(names)}, is "
            f"{show(edges)}",
            "skeleton",
        )
    return Skeleton(tuple(names), tuple((a - 1, b - 1) for a, b in edges))


def _is_edge(edge: Any, count: int) -> bool:
    return isinstance(edge, list) and len(edge) == 2 and all(type(k) is int and 1 <= k <= count for k in edge)


def check_keypoints(entry: dict, place: str, count: int, height: int, width: int) -> list[float] | None:
    """The numbers x, y, v, ... of an annotation whose category has `count` keypoints; None if there are none.

    Raises
    ------
    Fault
        With a line that begins with `place`.
    """
    values = entry.get("keypoints")
    if values is None or not count:
        return None
    if not isinstance(values, list) or len(values) != 3 * count:
        length = f"has {len(values)} numbers" if isinstance(values, list) else f"is {show(values)}"
        raise Fault(
            f"{place}: keypoints {length}; its category has {count} keypoints, so it needs {3 * count}: x, y "
            "and visibility of each",
            "keypoints",
        )
    if not finite_numbers(values):
        raise Fault(f"{place}: keypoints {show(values)} has an entry that is not a finite number", "keypoint")
    for k, (x, y, visibility) in enumerate(zip(values[0::3], values[1::3], values[2::3])):
        if visibility not in (0, 1, 2):
            raise Fault(
                f"{place}: keypoint {k + 1} has the visibility {show(visibility)}; it must be {_VISIBILITY}",
                "visibility",
            )
        if visibility and not (-width <= x <= 2 * width and -height <= y <= 2 * height):
            raise Fault(
                f"{place}: keypoint {k + 1} at {x:g}, {y:g} is far outside the image of {width} x {height} "
                "pixels; give its coordinates in pixels of this image",
                "far keypoint",
            )
    if entry.get("num_keypoints") is not None:
        integer(entry, "num_keypoints", place)
    return values


def as_array(rows: Iterable[list[float] | None], count: int) -> np.ndarray:
    """(A, K, 3) float64: x, y, visibility, in coordinates where pixel i covers [i, i + 1)."""
    found = [[0.0] * 3 * count if row is None else row for row in rows]
    keypoints = np.array(found, np.float64).reshape(len(found), count, 3)
    return from_coco(keypoints)


def from_coco(keypoints: np.ndarray) -> np.ndarray:
    """(..., 3) from COCO's x, y to ours: half a pixel more; 0, 0, 0 if not labelled."""
    moved = keypoints + np.array([0.5, 0.5, 0.0])
    return np.where(keypoints[..., 2:] > 0, moved, 0.0)


def to_coco(keypoints: np.ndarray) -> np.ndarray:
    """The inverse of `from_coco`."""
    moved = keypoints - np.array([0.5, 0.5, 0.0])
    return np.where(keypoints[..., 2:] > 0, moved, 0.0)


def coco_entries(keypoints: np.ndarray) -> dict[str, Any]:
    """The entries of a COCO annotation: keypoints (K, 3) as a flat list, and how many are labelled."""
    flat = to_coco(keypoints).ravel()
    return {"keypoints": flat.tolist(), "num_keypoints": int((keypoints[..., 2] > 0).sum())}


def check_together(
    path: Path, keypoints: np.ndarray, boxes: np.ndarray, faults: Faults | None = None
) -> None:
    """Refuse keypoints given as fractions of the image's sides.

    Parameters
    ----------
    keypoints : (A, K, 3)
        As `as_array` gives them.
    boxes : (A, 4)
        In pixels.
    faults : Faults, optional
        Collects what would be raised.
    """
    labelled = keypoints[keypoints[..., 2] > 0]
    if len(labelled) and labelled[:, :2].max() <= 1.5 and boxes.max() > 2:
        text = (
            f"{path}: all keypoints lie in 0..1, so they look normalised; multiply x by the image's width "
            "and y by its height"
        )
        refuse(faults, Fault(text, "normalised keypoints"))
