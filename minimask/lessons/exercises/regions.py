"""Exercises about boxes: the answers come from minimask's own functions.

Shapes: A, B, R boxes; H x W cells; K anchors per cell.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from minimask import boxes as box_ops
from minimask.lessons.exercises.exercise import exercise

SWAPPED = [1, 0, 3, 2]  # x1, y1, x2, y2 -> y1, x1, y2, x2
ONE = np.array([0, 0, 1, 1], np.float32)  # a box + ONE reaches a pixel farther
AXES = "axes swapped: x runs along a row, y down a column"
PLUS_ONE = "+1: a box from x1 to x2 is x2 - x1 wide"


def _boxes(rng, n: int, within: float = 30.0):
    corner, size = rng.uniform(0, within, (n, 2)), rng.uniform(4, 20, (n, 2))
    return np.concatenate([corner, corner + size], axis=1)


def _iou_of_negative_sides(a, b, least=-np.inf, guarded=False):
    """Sides without a limit; `least` limits the area, and a guarded division needs a positive union."""
    sides = np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])
    inter = np.maximum(sides.prod(axis=2), least)
    union = box_ops.box_area(a)[:, None] + box_ops.box_area(b) - inter
    return np.where(union > 0 if guarded else union != 0, inter / np.where(union, union, 1), 0)


def _zero_by_zero(a, b):
    """0 / 0 where it is not looked for."""
    areas = box_ops.box_area(a)[:, None] + box_ops.box_area(b)
    return np.where(areas > 0, box_iou(a, b), np.nan)


def _overlaps(a, b, union):
    """The intersection over something other than the union: a function of both areas."""
    iou, area_a, area_b = box_iou(a, b), box_ops.box_area(a)[:, None], box_ops.box_area(b)
    inter = iou * (area_a + area_b) / (1 + iou)
    return inter / np.where(iou > 0, union(area_a, area_b), 1)


@exercise(
    lambda rng: {
        "boxes near and far": (_boxes(rng, 5, 18), _boxes(rng, 6, 18)),
        "apart along one axis, and along both": (
            np.array([[0.0, 0, 4, 3], [20, 1, 23, 6]]),
            np.array([[1.0, 2, 6, 9], [10, 1, 12, 5], [1, 10, 3, 12], [9, 8, 14, 11], [4, 3, 7, 7]]),
        ),
        "boxes smaller than a pixel": (_boxes(rng, 3) / 50, _boxes(rng, 4) / 50),
        "boxes without area": (np.array([[1.0, 1, 1, 1], [0, 0, 2, 2]]), np.array([[1.0, 1, 1, 1]])),
        "no boxes": (np.zeros((0, 4)), _boxes(rng, 2)),
    },
    {
        PLUS_ONE: dict(a=lambda a: a.a + ONE, b=lambda a: a.b + ONE),
        "the intersection is twice in the union": lambda *a: box_iou(*a) / (1 + box_iou(*a)),
        "negative sides not cut off at 0: two of them make a positive area": [
            partial(_iou_of_negative_sides, guarded=guarded) for guarded in (False, True)
        ],
        "the area cut off at 0, not the sides: two negative ones make a positive area": [
            partial(_iou_of_negative_sides, least=0, guarded=guarded) for guarded in (False, True)
        ],
        "the intersection, not divided by the union": partial(_overlaps, union=lambda a, b: 1.0),
        "divided by the smaller area, not by the union": partial(_overlaps, union=np.minimum),
        "0 / 0: a pair without area has 0": _zero_by_zero,
    },
)
def box_iou(a, b):
    """Intersection over union of every pair of boxes.

    a : (A, 4) float, x1, y1, x2, y2
    b : (B, 4) float

    Give iou : (A, B), 0 for a pair whose union has no area.
    """
    return box_ops.box_iou(a, b)


def _sizes(boxes):
    return boxes[:, 2:] - boxes[:, :2]


def _encode_corners(boxes, anchors):
    shift = (boxes - anchors)[:, :2] / _sizes(anchors)
    return np.concatenate([shift, box_encode(boxes, anchors)[:, 2:]], axis=1)


def _encode_with(shift_by=lambda boxes, anchors: 1.0, size_by=lambda boxes, anchors: 1.0):
    """The right answer with dx and dy, and the sizes of which the logarithm is taken, times something."""

    def wrong(boxes, anchors):
        deltas = box_encode(boxes, anchors)
        shift = deltas[:, :2] * shift_by(boxes, anchors)
        size = np.exp(deltas[:, 2:]) * size_by(boxes, anchors)
        return np.concatenate([shift, np.log(size)], axis=1)

    return wrong


def _width_by_height(boxes, anchors):
    return _sizes(anchors) / _sizes(anchors)[:, ::-1]


def _anchor_size(boxes, anchors):
    return _sizes(anchors)


def _encode_without_log(boxes, anchors):
    deltas = box_encode(boxes, anchors)
    return np.concatenate([deltas[:, :2], np.exp(deltas[:, 2:])], axis=1)


@exercise(
    lambda rng: {"normal boxes": (_boxes(rng, 6), _boxes(rng, 6)), "no boxes": (np.zeros((0, 4)),) * 2},
    {
        PLUS_ONE: dict(boxes=lambda a: a.boxes + ONE, anchors=lambda a: a.anchors + ONE),
        AXES: lambda *a: box_encode(*a)[:, SWAPPED],
        "coded against the box, not against the anchor": lambda *a: box_encode(*a[::-1]),
        "from corner to corner: dx and dy lead from centre to centre": _encode_corners,
        "no logarithm": _encode_without_log,
        "dx and dy not divided by the anchor's width and height": _encode_with(shift_by=_anchor_size),
        "dw and dh not divided by the anchor's width and height": _encode_with(size_by=_anchor_size),
        "nothing is divided by the anchor's width and height": _encode_with(_anchor_size, _anchor_size),
        "width and height swapped: dx and dw go with the width, dy and dh with the height": [
            _encode_with(shift_by=_width_by_height),
            _encode_with(size_by=_width_by_height),
            _encode_with(_width_by_height, _width_by_height),
            _encode_with(size_by=lambda boxes, anchors: _sizes(boxes)[:, ::-1] / _sizes(boxes)),
            lambda *a: box_encode(*a)[:, [0, 1, 3, 2]],
        ],
        "divided by the box's own size, not by the anchor's": _encode_with(
            shift_by=lambda boxes, anchors: _sizes(anchors) / _sizes(boxes)
        ),
    },
)
def box_encode(boxes, anchors):
    """Offsets that lead from anchors to boxes.

    boxes, anchors : (R, 4) float, x1, y1, x2, y2, row by row

    Give deltas : (R, 4), dx = (x - xa) / wa, dy = (y - ya) / ha, dw = log(w / wa), dh = log(h / ha), where
    (x, y) is the centre of a box, (w, h) its size, and a marks the anchor's.
    """
    return box_ops.BoxCoder().encode(boxes, anchors)


def _decode_from_corner(deltas, anchors, limit):
    boxes = box_decode(deltas, anchors, limit)
    return boxes + np.tile(_sizes(boxes), 2) / 2


def _shift_not_multiplied(deltas, anchors, limit):
    boxes = box_decode(deltas, anchors, limit)
    return boxes + np.tile(deltas[:, :2] * (1 - _sizes(anchors)), 2)


def _shift_from_corner(deltas, anchors, limit):
    return box_decode(deltas, anchors, limit) - np.tile(_sizes(anchors), 2) / 2


@exercise(
    lambda rng: {
        "some large offsets": (rng.normal(size=(8, 4)) * [1, 1, 2, 2], _boxes(rng, 8), 0.8),
        "no boxes": (np.zeros((0, 4)), np.zeros((0, 4)), 4.0),
    },
    {
        "dw and dh are not limited": dict(limit=lambda a: np.inf),
        "dx and dy limited: only dw and dh are": dict(deltas=lambda a: np.minimum(a.deltas, a.limit)),
        PLUS_ONE: lambda deltas, anchors, limit: box_decode(deltas, anchors + ONE, limit) - ONE,
        AXES: dict(deltas=lambda a: a.deltas[:, SWAPPED]),
        "the centre taken for a corner: half of the size is on each side": _decode_from_corner,
        "dx and dy not times the anchor's width and height": _shift_not_multiplied,
        "dx and dy lead away from the anchor's corner: they start at its centre": _shift_from_corner,
        "limited on both sides: only large numbers make exp overflow": dict(
            deltas=lambda a: np.concatenate([a.deltas[:, :2], np.maximum(a.deltas[:, 2:], -a.limit)], axis=1)
        ),
        "width and height swapped: dx and dw go with the width, dy and dh with the height": dict(
            deltas=lambda a: a.deltas[:, [0, 1, 3, 2]]
        ),
    },
)
def box_decode(deltas, anchors, limit):
    """The boxes that offsets lead to: the inverse of box_encode.

    deltas : (R, 4) float, dx, dy, dw, dh
    anchors : (R, 4) float, x1, y1, x2, y2
    limit : float; dw and dh above it count as this much, so that exp cannot overflow

    Give boxes : (R, 4), x1, y1, x2, y2.
    """
    return box_ops.BoxCoder(bbox_xform_clip=limit).decode(deltas, anchors)[:, 0]


APART = np.array(  # along both axes, and thin ones along one
    [[0.0, 0, 4, 4], [7, 7, 11, 11], [1, 0, 5, 4], [0, 20, 1, 30], [1.5, 20, 2.5, 30], [20, 0, 30, 1]]
    + [[20, 1.5, 30, 2.5]]
)


def _nms(boxes, scores, threshold, suppresses=np.greater, by_suppressed=False, iou=box_ops.box_iou):
    """The right answer, or a wrong one: with another comparison, or where suppressed boxes suppress."""
    kept, seen = [], []
    for i in np.argsort(-scores, kind="stable"):
        overlaps = iou(boxes[[i]], boxes[seen if by_suppressed else kept])
        if not suppresses(overlaps, threshold).any():
            kept.append(i)
        seen.append(i)
    return np.array(kept, dtype=np.int64)


def _last_of_equals_first(boxes, scores, threshold):
    return len(scores) - 1 - _nms(boxes[::-1], scores[::-1], threshold)


def _ranks(boxes, scores, threshold):
    return np.argsort(np.argsort(-scores))[nms(boxes, scores, threshold)]


@exercise(
    lambda rng: {
        "a crowd": (_boxes(rng, 40), rng.permutation(40) / 40, 0.3),
        "at the threshold": (np.array([[0.0, 0, 2, 2], [0, 0, 2, 1]]), np.array([0.9, 0.8]), 0.5),
        "equal scores": (_boxes(rng, 60, 90), rng.integers(1, 4, 60) / 4, 0.3),
        "boxes that lie apart": (APART, np.array([0.5, 0.9, 0.8, 0.4, 0.7, 0.2, 0.3]), 0.3),
        "no boxes": (np.zeros((0, 4)), np.zeros(0), 0.5),
    },
    {
        "a suppressed box still suppresses others": partial(_nms, by_suppressed=True),
        "the lowest score goes first": dict(scores=lambda a: -a.scores),
        PLUS_ONE: dict(boxes=lambda a: a.boxes + ONE),
        "positions after sorting, not in the list you were given": _ranks,
        "in the order of the list, not by falling score": lambda *a: np.sort(nms(*a)),
        "an IoU of just the threshold suppresses: only more does": partial(_nms, suppresses=np.greater_equal),
        "nothing is suppressed": dict(threshold=lambda a: 1.0),
        "of equal scores, the last goes first: the first does": _last_of_equals_first,
        "negative sides not cut off at 0: two of them make a positive area": partial(
            _nms, iou=_iou_of_negative_sides
        ),
    },
)
def nms(boxes, scores, threshold):
    """Non-maximum suppression: by falling score, keep each box that overlaps no kept one too much.

    boxes : (R, 4) float, x1, y1, x2, y2
    scores : (R,) float; of equal ones, the first in the list goes first
    threshold : float, of the intersection over union

    Give kept : (M,) int, indices into boxes, by falling score.
    """
    return box_ops.nms(boxes, scores, threshold)


def _anchors(
    sizes, ratios, stride, height, width, offset=0.5, keep_area=True, axes=(0, 1, 2, 3), sizes_first=False
):
    """The right answer, or a wrong one; `axes` is the order of rows, columns, anchors, coordinates."""
    r, s = np.repeat(ratios, len(sizes)), np.tile(sizes, len(ratios))
    if sizes_first:
        r, s = np.tile(ratios, len(sizes)), np.repeat(sizes, len(ratios))
    half = np.stack([s / np.sqrt(r), s * np.sqrt(r)] if keep_area else [s, s * r], axis=1) / 2  # (K, 2)
    y, x = np.meshgrid(*((np.arange(n) + offset) * stride for n in (height, width)), indexing="ij")
    middle = np.stack([x, y], axis=2)[:, :, None]  # (H, W, 1, 2)
    return np.concatenate([middle - half, middle + half], axis=3).transpose(axes).reshape(-1, 4)


def _rows_for_columns(sizes, ratios, stride, height, width):
    return _anchors(sizes, ratios, stride, width, height)


def _moved(sizes, ratios, stride, height, width, move):
    """The right answer, with each anchor's centre (x, y) at `move` of what it should be, and the stride."""
    right = _anchors(sizes, ratios, stride, height, width)
    center = right[:, :2] + _sizes(right) / 2
    return right + np.tile(move(center, stride) - center, 2)


@exercise(
    lambda rng: {
        "sizes and ratios": ((16, 32), (0.5, 1.0, 3.0), 8, 3, 4),
        "one shape, odd stride": ((64,), (2.0,), 7, 2, 1),
    },
    {
        "no half pixel: cell i has its middle at (i + 1/2) stride": partial(_anchors, offset=0.0),
        "the ratio taken for width over height": dict(ratios=lambda a: 1 / np.array(a.ratios)),
        "the area changes with the ratio: use its root on both sides": partial(_anchors, keep_area=False),
        "axes swapped: columns before rows": partial(_anchors, axes=(1, 0, 2, 3)),
        "the sizes before the ratios: all sizes of a ratio come together": partial(
            _anchors, sizes_first=True
        ),
        "x and y swapped: x = (j + 1/2) stride runs along a row": partial(
            _moved, move=lambda center, stride: center[:, ::-1]
        ),
        "height and width swapped: there are height rows of width cells": _rows_for_columns,
        "the stride left out: cells are stride pixels apart": partial(
            _moved, move=lambda center, stride: center / stride
        ),
        "the middle of a cell moved by half a pixel, not by half a cell": partial(
            _moved, move=lambda center, stride: center - stride / 2 + 0.5
        ),
    },
)
def anchors(sizes, ratios, stride, height, width):
    """The anchors of one feature map.

    sizes : square roots of the anchors' areas, in pixels
    ratios : height over width; every ratio comes with every size
    stride : int, pixels per cell
    height, width : int, cells

    Give anchors : (height width K, 4) float, x1, y1, x2, y2, by row, column, ratio, size; those of cell
    (i, j) are centred at x = (j + 1/2) stride, y = (i + 1/2) stride.
    """
    return _anchors(sizes, ratios, stride, height, width)
