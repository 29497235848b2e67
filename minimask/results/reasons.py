"""Why an AP is -1 or 0, in one line each: what pycocotools knows and does not say."""

from collections import defaultdict

import numpy as np

from minimask.boxes import box_iou
from minimask.results.elsewhere import looks_like_corners
from minimask.results.evaluate import KEYPOINT_DETECTIONS, Evaluation

HARDLY = 0.05
"""Boxes with a lower AP50 are hits by chance, and say nothing about masks."""


def reasons(document: dict, evaluation: Evaluation) -> list[str]:
    """Lines to add to a table in which an AP is -1 or 0; an empty list for others.

    Parameters
    ----------
    document : dict
        The COCO document that the detections were compared with.
    evaluation : Evaluation
    """
    if evaluation.objects == 0:
        crowds = len(document["annotations"])
        only = f" ({crowds} annotations are crowd regions, which are not objects)" if crowds else ""
        return [f"AP is -1: the data has no object in {evaluation.images} images{only}"]
    zero = [kind for kind, values in evaluation.kinds.items() if values["AP"] == 0]
    if not zero:
        return []  # the table itself says which sizes the data lacks
    return [f"{' and '.join(zero)} AP is 0: {_why_zero(document, evaluation, zero)}"]


def _why_zero(document: dict, evaluation: Evaluation, zero: list[str]) -> str:
    found = evaluation.detections
    objects = [a for a in document["annotations"] if not a["iscrowd"]]
    if not found:
        return "there is no detection; a lower score threshold, or longer training, may give some"
    if not {d["image_id"] for d in found} & {a["image_id"] for a in objects}:
        return "no detection is in an image that has objects; compare the image ids"
    classes = {a["category_id"] for a in objects}
    if not {d["category_id"] for d in found} & classes:
        return (
            f"no category id in common: the detections have {sorted({d['category_id'] for d in found})[:8]}, "
            f"the objects {sorted(classes)[:8]}; compare the ids of the classes"
        )
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    kinds = ("bbox", *(["segm"] if evaluation.mask is not None else []))
    if "box" in zero and looks_like_corners(found, kinds, sizes):
        return "the boxes look like x1, y1, x2, y2; COCO means x, y, width, height: convert them"
    most = evaluation.max_detections
    if zero == ["keypoint"]:
        most = min(most, KEYPOINT_DETECTIONS)
    same, other = _overlaps(objects, _best(found, most))
    low, _ = _overlaps(objects, found)
    if same < 0.5 <= low and other < 0.5:
        more = (
            "; --max-detections counts more"
            if most == evaluation.max_detections
            else ", which are all that count"
        )
        return (
            f"a box overlaps an object of its class by IoU {low:.2f}, but is not among the best {most} of "
            f"its image and class{more}"
        )
    if "box" not in zero and ("box" in evaluation.kinds or same >= 0.5):
        boxes = evaluation.box
        if boxes and boxes["AP50"] < HARDLY:
            return f"the boxes hardly fit, either (AP50 {boxes['AP50']:.3f}); longer training may help"
        swapped = {"mask": "rows and columns", "keypoint": "x and y, or left and right,"}
        wrong = " and ".join(f"{kind}s" for kind in zero)
        return f"the boxes fit, but the {wrong} do not; draw some: are {swapped[zero[0]]} swapped?"
    if other >= 0.5 and same < 0.5:
        return (
            f"detections overlap objects, but of other classes (IoU up to {other:.2f}, {same:.2f} of the "
            "same class); compare the ids of the classes"
        )
    scores = {d["score"] for d in found}
    alike = (
        f"; all scores are {next(iter(scores)):g}, too, so that nothing ranks them"
        if len(scores) == 1
        else ""
    )
    return f"no box overlaps an object of its class by more than IoU {same:.2f}, where 0.5 counts{alike}"


def _best(found: list[dict], most: int) -> list[dict]:
    """The detections that count: the best of each image and class."""
    of_class: dict[tuple, list[dict]] = defaultdict(list)
    for detection in sorted(found, key=lambda d: d["score"], reverse=True):
        of_class[detection["image_id"], detection["category_id"]].append(detection)
    return [detection for ranked in of_class.values() for detection in ranked[:most]]


def _overlaps(objects: list[dict], found: list[dict]) -> tuple[float, float]:
    """The greatest IoU of a detection's box with an object's, of its class and of another."""
    of_image: dict[int, tuple[list, list]] = defaultdict(lambda: ([], []))
    for side, entries in enumerate((objects, found)):
        for entry in entries:
            of_image[entry["image_id"]][side].append(entry)
    same, other = 0.0, 0.0
    for truth, guesses in of_image.values():
        if truth and guesses:
            overlap = box_iou(_corners(truth), _corners(guesses))  # (G, D)
            classes = [np.array([entry["category_id"] for entry in entries]) for entries in (truth, guesses)]
            alike = classes[0][:, None] == classes[1]
            same = max(same, float(overlap[alike].max(initial=0)))
            other = max(other, float(overlap[~alike].max(initial=0)))
    return same, other


def _corners(entries: list[dict]) -> np.ndarray:
    boxes = np.array([entry["bbox"] for entry in entries], np.float64)
    boxes[:, 2:] += boxes[:, :2]
    return boxes
