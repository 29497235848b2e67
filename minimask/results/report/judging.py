"""Which detections are right, and what kind of error each of the others is, image by image.

Shapes: D detections of an image that score high enough, by falling score; G objects; C crowd regions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MATCHED, TOUCHED = 0.5, 0.1
"""The least IoU of a detection with an object that it found, and with one that it nearly found."""


@dataclass(frozen=True, eq=False)
class Judged:
    """One image's detections beside its objects.

    Attributes
    ----------
    index : int
        Of the image in the document.
    truth, crowds, found : list of dict
        Its G objects and C crowd regions, as COCO annotations, and D results.
    match : (D,) int
        The object that each found, whatever its class; -1 without one.
    overlap : (D,) float
        The greatest IoU with any object.
    touched : (G,) float
        The greatest IoU of each object with any detection.
    ignored : (D,) bool
        Without a match and mostly inside a crowd region, so neither right nor wrong.
    quality : float or None
        Panoptic quality, classes aside: the sum of the matches' IoU, divided by (D' + G) / 2, where D' counts
        the detections that are not ignored; None if there is nothing to find and nothing was found.
    """

    index: int
    truth: list[dict]
    crowds: list[dict]
    found: list[dict]
    match: np.ndarray
    overlap: np.ndarray
    touched: np.ndarray
    ignored: np.ndarray
    quality: float | None

    def errors(self) -> dict[str, list[int]]:
        """The errors by kind: indices of `truth` for what was missed, of `found` for the others."""
        free = (self.match < 0) & ~self.ignored
        kinds = {
            "invented": free & (self.overlap < TOUCHED),
            "badly shaped": free & (self.overlap >= TOUCHED) & (self.overlap < MATCHED),
            "found twice": free & (self.overlap >= MATCHED),
        }
        missed = [g for g, most in enumerate(self.touched) if most < TOUCHED]
        return {"missed": missed} | {kind: np.flatnonzero(which).tolist() for kind, which in kinds.items()}


def judge(document: dict, detections: Sequence[dict], above: float = 0.5) -> list[Judged]:
    """Compare detections that score at least `above` with the objects of their images.

    By masks if all detections have one, else by boxes. The best score chooses first, among the objects that
    are left. Classes do not matter here, so that a confusion of two is one error, and not one missed and one
    invented.
    """
    kind = "segmentation" if all("segmentation" in result for result in detections) else "bbox"
    truth, found = _by_image(document["annotations"]), _by_image(detections)
    judged = []
    for index, image in enumerate(document["images"]):
        mine = truth.get(image["id"], [])
        shown = [result for result in found.get(image["id"], []) if result["score"] >= above]
        shown.sort(key=lambda result: -result["score"])
        objects, crowds = ([a for a in mine if bool(a["iscrowd"]) == crowd] for crowd in (False, True))
        judged.append(_judged(index, objects, crowds, shown, kind))
    return judged


def _by_image(entries: Sequence[dict]) -> dict[int, list[dict]]:
    images: dict[int, list[dict]] = {}
    for entry in entries:
        images.setdefault(entry["image_id"], []).append(entry)
    return images


def _judged(index: int, truth: list, crowds: list, found: list, kind: str) -> Judged:
    iou = _overlaps(found, truth, kind, crowd=False)  # (D, G)
    match, left = np.full(len(found), -1), iou.copy()
    for d in range(len(found)):
        g = int(left[d].argmax()) if len(truth) else -1
        if g >= 0 and left[d, g] >= MATCHED:
            match[d] = g
            left[:, g] = 0
    covered = _overlaps(found, crowds, kind, crowd=True).max(axis=1, initial=0)  # (D,)
    ignored = (match < 0) & (covered >= MATCHED)
    total = (np.count_nonzero(~ignored) + len(truth)) / 2
    right = np.flatnonzero(match >= 0)
    quality = float(iou[right, match[right]].sum()) / total if total else None
    best, touched = iou.max(axis=1, initial=0), iou.max(axis=0, initial=0)
    return Judged(index, truth, crowds, found, match, best, touched, ignored, quality)


def _overlaps(found: list[dict], truth: list[dict], kind: str, crowd: bool) -> np.ndarray:
    """(D, G): IoU; with crowd regions, the share of the detection that lies inside."""
    from pycocotools import mask as coco_mask

    if not found or not truth:
        return np.zeros((len(found), len(truth)))
    ours, theirs = ([entry[kind] for entry in entries] for entries in (found, truth))
    if kind == "bbox":
        ours, theirs = np.array(ours, np.float64), np.array(theirs, np.float64)
    return np.nan_to_num(coco_mask.iou(ours, theirs, [int(crowd)] * len(truth)))


def confusion(judged: Sequence[Judged], category_ids: Sequence[int]) -> np.ndarray:
    """(K + 1, K + 1) int: objects of a class (rows) found as one (columns).

    The last column counts the objects without a match, the last row the detections without one.
    """
    place = {number: k for k, number in enumerate(category_ids)}
    counts = np.zeros((len(place) + 1, len(place) + 1), np.int64)
    for image in judged:
        for result, g, ignored in zip(image.found, image.match, image.ignored):
            if not ignored:
                counts[
                    place[image.truth[g]["category_id"]] if g >= 0 else -1, place[result["category_id"]]
                ] += 1
        for g in set(range(len(image.truth))) - set(image.match.tolist()):
            counts[place[image.truth[g]["category_id"]], -1] += 1
    return counts
