"""Why an object was not found: the last stage at which it was still there.

Shapes: G objects, D detections, P proposals, B candidates of one class each.
"""

from __future__ import annotations

import numpy as np

from minimask.boxes import box_iou, scale_boxes
from minimask.inspection.records import Classifying, Failures, Proposing
from minimask.masks import Masks
from minimask.models.inputs import Objects

OVERLAP = 0.5
"""The lowest IoU at which a box or a mask counts as an object's."""

CAUSES = {
    "found": "a confident detection of its class overlaps it enough, and so does its mask",
    "poor mask": "a detection found its box, but the detection's mask overlaps its mask too little",
    "wrong class": "a confident detection overlaps it enough, but is of another class",
    "suppressed": "a box of its class scored high enough, but suppression or the limit removed it, or "
    "it went to another object",
    "scored too low": "a proposal was there, but the object's class scored too low",
    "badly placed": "a proposal was there and scored high enough, but its refined box overlaps too little",
    "suppressed by the RPN": "one of the best anchors led to it, but did not become a proposal",
    "missed by the RPN": "none of the best anchors led to it",
}


def judge(
    target: Objects,
    scale: tuple[float, float],
    proposing: Proposing,
    classifying: Classifying,
    result: dict,
    above: float,
) -> Failures:
    """Compare detections with objects, and follow what was missed back through the stages.

    Parameters
    ----------
    scale : (y, x)
        Pixels of the batch per pixel of the image.
    result : dict
        The detections, in pixels of the image.
    above : float
        The lowest score of a detection that counts as confident.
    """
    boxes, labels = target.boxes, target.labels
    confident = np.asarray(result["scores"]) >= above  # (D,)
    iou = box_iou(boxes, result["boxes"]) if len(result["boxes"]) else np.zeros((len(boxes), 0))  # (G, D)
    match = _matched(iou, labels, result, confident)  # (D,)
    in_batch = scale_boxes(boxes, scale).astype(proposing.ranked.boxes.dtype)
    of_proposals = _iou(in_batch, proposing.proposals)
    of_ranked, of_candidates = (
        _iou(in_batch, proposing.ranked.boxes),
        _iou(in_batch, classifying.candidates.boxes),
    )
    causes, chosen = [], np.full(len(boxes), -1)
    mask_iou = np.full(len(boxes), np.nan)
    free = confident & (match < 0)  # (D,): matched to no object yet
    for g, label in enumerate(labels.tolist()):
        other = np.flatnonzero(free & (iou[g] >= OVERLAP) & (np.asarray(result["labels"]) != label))
        mine = np.flatnonzero(match == g)
        if len(mine):
            chosen[g], cause = mine[0], "found"
            if "masks" in result and target.masks is not None:
                mask_iou[g] = overlap_of_masks(result["masks"], int(mine[0]), np.asarray(target.masks[g]))
                cause = "found" if mask_iou[g] >= OVERLAP else "poor mask"
        elif len(other):
            chosen[g], cause = other[0], "wrong class"
            free[other[0]] = False
        else:
            cause = _lost(label, of_candidates[g], of_proposals[g], of_ranked[g], classifying, above)
        causes.append(cause)
    there = chosen >= 0
    box_iou_ = np.where(there, iou[np.arange(len(boxes)), chosen] if iou.shape[1] else 0, np.nan)
    invented = np.flatnonzero(confident & (match < 0))
    best = of_proposals.max(axis=1, initial=0)
    return Failures(causes, chosen, box_iou_, mask_iou, best, invented.tolist())


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return box_iou(a, b) if len(a) and len(b) else np.zeros((len(a), len(b)))


def _matched(iou: np.ndarray, labels: np.ndarray, result: dict, confident: np.ndarray) -> np.ndarray:
    """(D,): the object of each detection, or -1; the best score chooses first, within its class."""
    match, left = np.full(len(confident), -1), iou.copy()
    for d in np.flatnonzero(confident).tolist():  # by falling score
        left_of_class = np.where(labels == result["labels"][d], left[:, d], 0)
        g = int(left_of_class.argmax()) if len(labels) else -1
        if g >= 0 and left_of_class[g] >= OVERLAP:
            match[d], left[g] = g, 0
    return match


def _lost(label: int, of_candidates, of_proposals, of_ranked, stage: Classifying, above: float) -> str:
    """Why an object has no detection, by its IoU with the boxes of each stage."""
    found = stage.candidates
    near = (of_candidates >= OVERLAP) & (found.labels == label)
    if (near & (found.scores >= above)).any():
        return "suppressed"
    if near.any():
        return "scored too low"
    covered = of_proposals >= OVERLAP
    if covered.any():
        scored = found.probabilities[covered, label] >= above
        return "badly placed" if scored.any() else "scored too low"
    return "suppressed by the RPN" if (of_ranked >= OVERLAP).any() else "missed by the RPN"


def overlap_of_masks(masks: Masks, index: int, truth: np.ndarray) -> float:
    """IoU of a detection's mask, where it exceeds 1/2, with a mask (H, W)."""
    (y0, y1, x0, x1), patch = masks.window(index)
    mine = patch > 0.5
    both = np.count_nonzero(mine & (truth[y0:y1, x0:x1] != 0))
    return both / max(np.count_nonzero(mine) + np.count_nonzero(truth) - both, 1)
