"""Exercises about RoIs and detections: the level of a RoI, the boxes that come out, where an object is lost.

Shapes: R boxes, P proposals, K classes and background, D detections, G objects.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from minimask import boxes as box_ops
from minimask.lessons.exercises.exercise import exercise
from minimask.lessons.exercises.regions import ONE, PLUS_ONE
from minimask.matching import assign_fpn_levels

CLAMPED = "not clamped: there are levels from lowest to highest, and no others"
SIDE = "one side alone: a level goes with the root of the area"


def _with_sides(boxes, sides):
    """Square boxes in place of these, with these sides."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + sides[:, None]], axis=1)


def _sides(boxes):
    return boxes[:, 2:] - boxes[:, :2]


def _level(boxes, canonical, lowest, highest, log=np.log2, whole=np.floor, sign=1, first=4):
    """The right answer, or a wrong one; boxes without area come out on the lowest level all the same."""
    size = np.sqrt(_sides(boxes).prod(axis=1))
    return np.clip(whole(first + sign * log(size / canonical)), lowest, highest)


def _of_all_sizes(rng, count: int):
    corner, size = rng.uniform(0, 50, (count, 2)), 224 * 2 ** np.linspace(-3.6, 2.6, count)
    root = np.exp(rng.uniform(-0.9, 0.9, count))  # of the aspect ratio
    return np.concatenate([corner, corner + np.stack([size / root, size * root], axis=1)], axis=1)


@exercise(
    lambda rng: {
        "boxes of all sizes": (_of_all_sizes(rng, 40), 224.0, 2, 5),
        "just as large as the canonical box, twice, half, a little smaller": (
            np.array(
                [[0.0, 0, 64, 64], [3, 5, 131, 133], [8, 8, 40, 40], [0, 0, 32, 128], [2, 2, 65.9, 65.9]]
                + [[0, 0, 300, 300], [0, 0, 700, 700], [0, 0, 10, 10]]
            ),
            64.0,
            3,
            6,
        ),
        "boxes without area": (np.array([[1.0, 1, 1, 9], [2, 3, 2, 3]]), 224.0, 2, 5),
        "no boxes": (np.zeros((0, 4)), 224.0, 2, 5),
    },
    {
        "the natural logarithm: a level is a factor of 2, so its base is 2": partial(_level, log=np.log),
        "no floor: a level is a whole number": partial(_level, whole=lambda level: level),
        "rounded to the nearest level, not down": partial(_level, whole=np.round),
        "rounded up, not down": partial(_level, whole=np.ceil),
        SIDE: [
            dict(boxes=lambda a, side=side: _with_sides(a.boxes, side(_sides(a.boxes))))
            for side in (
                lambda sides: sides[:, 0],
                lambda sides: sides[:, 1],
                lambda sides: sides.max(axis=1, initial=0),
                lambda sides: sides.min(axis=1, initial=np.inf),
            )
        ],
        "the area, not its root": dict(boxes=lambda a: _with_sides(a.boxes, _sides(a.boxes).prod(axis=1))),
        CLAMPED: [
            dict(lowest=lambda a: -1000),
            dict(highest=lambda a: 1000),
            dict(lowest=lambda a: -1000, highest=lambda a: 1000),
        ],
        "the wrong way round: larger boxes read coarser levels": partial(_level, sign=-1),
        "the 4 left out: a box of the canonical side reads level 4": partial(_level, first=0),
        "counted from the lowest level: the levels have the numbers from lowest to highest": lambda *inputs: (
            assign_levels(*inputs) - inputs[2]
        ),
        PLUS_ONE: dict(boxes=lambda a: a.boxes + ONE),
    },
)
def assign_levels(boxes, canonical, lowest, highest):
    """The pyramid level that each RoI is read from: k = 4 + log2(sqrt(w h) / canonical), rounded down.

    boxes : (R, 4) float, x1, y1, x2, y2, in pixels of the network's input; one without area reads the lowest
    canonical : float, the side in pixels of a square box that reads level 4; 224 in the paper
    lowest, highest : int, the levels that there are; 2 and 5 for P2 to P5

    Give levels : (R,) int.
    """
    return assign_fpn_levels(boxes, lowest, highest, canonical)


def _detect(probabilities, boxes, score_threshold, nms_threshold, most, first=1, enough=np.greater):
    """The right answer, or a wrong one: from another class on, or with another comparison."""
    proposals, labels = np.nonzero(enough(probabilities[:, first:], score_threshold))
    labels = labels + first
    scores, boxes = probabilities[proposals, labels], boxes[proposals, labels]
    kept = box_ops.batched_nms(boxes, scores, labels, nms_threshold)[:most]
    return proposals[kept], labels[kept], scores[kept]


def _together(probabilities, boxes, score_threshold, nms_threshold, most):
    proposals, labels, scores = detect(probabilities, boxes, score_threshold, 1.0, None)
    kept = box_ops.nms(boxes[proposals, labels], scores, nms_threshold)[:most]
    return proposals[kept], labels[kept], scores[kept]


def _best_first(probabilities, boxes, score_threshold, nms_threshold, most):
    """The best `most`, and suppression only among them."""
    proposals, labels, _ = detect(probabilities, boxes, score_threshold, 1.0, most)
    best = np.zeros_like(probabilities)
    best[proposals, labels] = probabilities[proposals, labels]
    return detect(best, boxes, score_threshold, nms_threshold, most)


def _labels_from_0(*inputs):
    proposals, labels, scores = detect(*inputs)
    return proposals, labels - 1, scores


def _best_class_only(a, first: int):
    best = a.probabilities[:, first:].max(axis=1, keepdims=True, initial=0)
    return np.where(a.probabilities == best, a.probabilities, 0)


def _by_class(*inputs):
    proposals, labels, scores = detect(*inputs)
    order = np.argsort(labels, kind="stable")
    return proposals[order], labels[order], scores[order]


def _first_of_classes(probabilities, boxes, score_threshold, nms_threshold, most):
    everything = _by_class(probabilities, boxes, score_threshold, nms_threshold, None)
    return tuple(each[:most] for each in everything)


def _best_of_each_class(probabilities, boxes, score_threshold, nms_threshold, most):
    proposals, labels, scores = detect(probabilities, boxes, score_threshold, nms_threshold, None)
    kept = [i for i in range(len(labels)) if (labels[:i] == labels[i]).sum() < most]
    return proposals[kept], labels[kept], scores[kept]


def _places(*inputs):
    """Where each stands among the detections, not which proposal it was."""
    proposals, labels, scores = detect(*inputs)
    return np.arange(len(proposals)), labels, scores


def _proposals(rng, count: int, objects: int, classes: int = 3):
    """Probabilities and boxes of proposals that crowd around some objects."""
    middle = rng.uniform(20, 60, (objects, 2))[np.arange(count) % objects] + rng.normal(0, 2, (count, 2))
    half = rng.uniform(8, 14, (count, 2))
    boxes = np.concatenate([middle - half, middle + half], axis=1)[:, None]  # (P, 1, 4)
    probabilities = rng.dirichlet(np.full(classes + 1, 0.8), count)
    return probabilities, boxes + rng.normal(0, 2, (count, classes + 1, 4))


def _chained():
    """Class 1's boxes overlap like links of a chain, and the last the first; class 2's lie apart."""
    apart = np.array([[20.0 * k, 30, 20 * k + 9, 39] for k in range(4)])
    links = np.array([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10], [0, 1, 10, 11]])
    return np.stack([apart + 3, links, apart], axis=1)


@exercise(
    lambda rng: {
        "proposals around eight objects": (*_proposals(rng, 40, 8), 0.05, 0.4, 9),
        "one class, one score at its threshold": (
            np.array([[0.75, 0.25], [0.25, 0.75], [0.5, 0.5]]),
            np.array([[[0.0, 0, 5, 5], [k * 9.0, 0, k * 9 + 6, 6]] for k in range(3)]),
            0.25,
            0.5,
            10,
        ),
        "proposals of two classes each": (
            np.array([[0.1, 0.5, 0.4], [0.6, 0.05, 0.35]]),
            np.array([[[0.0, 0, 5, 5], [0, 0, 6, 5], [0, 1, 6, 6]], [[9.0, 9, 14, 14]] * 3]),
            0.2,
            0.5,
            10,
        ),
        "an overlap of just the threshold": (
            np.array([[0.1, 0.9], [0.2, 0.8]]),
            np.array([[[0.0, 0, 1, 1], [0, 0, 2, 2]], [[0.0, 0, 1, 1], [0, 0, 2, 1]]]),
            0.05,
            0.5,
            10,
        ),
        "a chain, and boxes of their own": (
            np.array([[0.05, 0.8, 0.15], [0.05, 0.75, 0.2], [0.45, 0.5, 0.05], [0.4, 0.35, 0.25]]),
            _chained(),
            0.1,
            0.4,
            10,
        ),
        "three of many": (*_proposals(rng, 12, 5, 2), 0.1, 0.5, 3),
        "nothing scores enough": (np.array([[0.99, 0.01]]), np.array([[[0.0, 0, 4, 4]] * 2]), 0.05, 0.5, 10),
        "no proposals": (np.zeros((0, 3)), np.zeros((0, 3, 4)), 0.05, 0.5, 10),
    },
    {
        "suppression over all classes together: each class is suppressed for itself": _together,
        "the best are taken before suppression: they are the best of what suppression leaves": _best_first,
        "the background detected like a class": partial(_detect, first=0),
        "labels counted from 0: 0 is the background": _labels_from_0,
        "only the best class of each proposal: each class that scores enough is a detection": [
            dict(probabilities=partial(_best_class_only, first=first)) for first in (0, 1)
        ],
        "the box of another class: each class of a proposal has its own": [
            dict(boxes=lambda a: a.boxes[:, np.maximum(np.arange(a.boxes.shape[1]) - 1, 0)]),
            dict(boxes=lambda a: np.repeat(a.boxes[:, :1], a.boxes.shape[1], axis=1)),
        ],
        "class by class, not by falling score": [_by_class, _first_of_classes],
        "the best `most` of each class, not of the image": _best_of_each_class,
        "all that suppression leaves: only the best `most` are wanted": dict(most=lambda a: None),
        "a score of just the threshold is enough: only more is": partial(_detect, enough=np.greater_equal),
        "nothing is suppressed": dict(nms_threshold=lambda a: 1.0),
        "the two thresholds taken for each other": dict(
            score_threshold=lambda a: a.nms_threshold, nms_threshold=lambda a: a.score_threshold
        ),
        "the place among the detections, not the proposal's index": _places,
    },
)
def detect(probabilities, boxes, score_threshold, nms_threshold, most):
    """From the classes and boxes of all proposals to the detections of an image.

    probabilities : (P, K + 1) float, of each proposal's classes; class 0 is the background
    boxes : (P, K + 1, 4) float, x1, y1, x2, y2: a box for each class of each proposal
    score_threshold : float; a class of a proposal counts if its probability is above
    nms_threshold : float; a box is suppressed by a better one of its class whose IoU with it is above
    most : int; so many of what is left, by falling score, are detected

    Give proposals, labels, scores : (D,) int, (D,) int and (D,) float, by falling score: which proposal each
    detection comes from, its class and its probability.
    """
    return _detect(probabilities, boxes, score_threshold, nms_threshold, most)


def _seen(objects, boxes, stages, threshold, enough=np.greater_equal, lost=-1):
    """The right answer, or a wrong one: with another comparison, or another word for lost everywhere."""
    there = enough(box_ops.box_iou(objects, boxes), threshold)  # (G, N)
    return np.where(there, stages, lost).max(axis=1, initial=lost)


def _first_stage(objects, boxes, stages, threshold):
    there = box_ops.box_iou(objects, boxes) >= threshold
    first = np.where(there, stages, stages.max(initial=0) + 1).min(axis=1, initial=stages.max(initial=0) + 1)
    return np.where(there.any(axis=1), first, -1)


def _until_first_gone(objects, boxes, stages, threshold):
    """The stage before the first at which it is gone, whatever comes after."""
    there = box_ops.box_iou(objects, boxes) >= threshold
    count = stages.max(initial=-1) + 1
    at = np.stack(
        [(there & (stages == s)).any(axis=1) for s in range(count)] + [np.zeros(len(objects), bool)]
    )
    return at.argmin(axis=0) - 1


def _stage_of_best(objects, boxes, stages, threshold, strict=True):
    iou = box_ops.box_iou(objects, boxes)
    if not len(boxes):
        return np.full(len(objects), -1)
    best = stages[iou.argmax(axis=1)]
    return np.where(iou.max(axis=1) >= threshold, best, -1) if strict else best


def _one_object_each(objects, boxes, stages, threshold):
    """As if a box could stand only for the object that it overlaps most."""
    iou = box_ops.box_iou(objects, boxes)
    if not len(objects):
        return np.zeros(0, np.int64)
    own = iou.argmax(axis=0) == np.arange(len(objects))[:, None]
    return np.where(own & (iou >= threshold), stages, -1).max(axis=1, initial=-1)


def _stages(rng, count: int, objects: int):
    """Objects, and boxes around them that get better from stage to stage; a third are never fitted."""
    corner = rng.uniform(0, 60, (objects, 2))
    truth = np.concatenate([corner, corner + rng.uniform(10, 20, (objects, 2))], axis=1)
    which, stages = rng.integers(0, objects, count), rng.integers(0, 5, count)
    off = rng.normal(0, 1, (count, 4)) * np.where(which % 3, 5 - stages, 12)[:, None]
    boxes = truth[which] + off
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    return truth, boxes, stages


@exercise(
    lambda rng: {
        "twelve objects, five stages": (*_stages(rng, 60, 12), 0.6),
        "gone at a stage, and there again": (
            np.array([[0.0, 0, 8, 8], [20, 20, 30, 30]]),
            np.array([[0.0, 0, 8, 9], [20, 20, 30, 32], [2, 2, 12, 12], [0, 0, 8, 10], [50, 50, 60, 60]]),
            np.array([0, 0, 1, 4, 2]),
            0.5,
        ),
        "an overlap of just the threshold, and of a little less": (
            np.array([[0.0, 0, 4, 4], [10, 10, 14, 14], [20, 20, 24, 24]]),
            np.array([[0.0, 0, 4, 2], [10, 10, 14, 11], [20, 20, 24, 21.9]]),
            np.array([1, 2, 0]),
            0.5,
        ),
        "one box over two objects": (
            np.array([[0.0, 0, 6, 6], [0, 0, 6, 8]]),
            np.array([[0.0, 0, 6, 7]]),
            np.array([0]),
            0.5,
        ),
        "no boxes": (np.array([[0.0, 0, 4, 4]]), np.zeros((0, 4)), np.zeros(0, np.int64), 0.5),
        "no objects": (np.zeros((0, 4)), np.array([[0.0, 0, 4, 4]]), np.array([0]), 0.5),
    },
    {
        "the first stage at which it is there, not the last": _first_stage,
        "the stage before the first at which it is gone: it may be there again later": _until_first_gone,
        "the stage of the box that fits best: a later one that fits well enough counts": _stage_of_best,
        "the stage of the best box, however badly it fits": partial(_stage_of_best, strict=False),
        "more than the threshold: an IoU of just the threshold is enough": partial(_seen, enough=np.greater),
        "0 where it is never there: 0 is the first stage, -1 means never": partial(_seen, lost=0),
        "each box for one object alone: it may overlap two enough": _one_object_each,
        PLUS_ONE: dict(boxes=lambda a: a.boxes + ONE, objects=lambda a: a.objects + ONE),
    },
)
def last_seen(objects, boxes, stages, threshold):
    """The last stage of a detector at which each object is still there.

    objects : (G, 4) float, x1, y1, x2, y2
    boxes : (N, 4) float, all boxes of all stages
    stages : (N,) int, from which stage each box is, counted from 0; there may be none of a stage
    threshold : float; an object is there where a box of the stage overlaps it by an IoU of at least this

    Give last : (G,) int, the last such stage of each object; -1 where there is none.
    """
    return _seen(objects, boxes, stages, threshold)
