"""Exercises about boxes, RoI layers and masks: the answers come from minimask's own functions.

Shapes: A, B, R boxes; N images, C channels, H x W pixels, output PH x PW, masks M x M, K classes.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from minimask import boxes as box_ops
from minimask import functions as F
from minimask import masks
from minimask.autograd import Tensor
from minimask.kernels.roi_align import Plan, Sampling
from minimask.lessons.exercises.exercise import exercise, gradients

SWAPPED = [1, 0, 3, 2]  # x1, y1, x2, y2 -> y1, x1, y2, x2
ONE = np.array([0, 0, 1, 1], np.float32)  # a box + ONE reaches a pixel farther
AXES = "axes swapped: x runs along a row, y down a column"
PLUS_ONE = "+1: a box from x1 to x2 is x2 - x1 wide"
NO_HALF_PIXEL = "no half pixel: pixel i has its centre at i + 1/2"
ROUNDED = "the box rounded to whole pixels"


def _boxes(rng, n: int, within: float = 30.0):
    corner, size = rng.uniform(0, within, (n, 2)), rng.uniform(4, 20, (n, 2))
    return np.concatenate([corner, corner + size], axis=1)


# ------------------------------------------------------------------------------------------------- boxes


def _iou_of_negative_sides(a, b):
    inter = (np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])).prod(axis=2)
    union = box_ops.box_area(a)[:, None] + box_ops.box_area(b) - inter
    return inter / np.where(union, union, 1)


@exercise(
    lambda rng: {
        "boxes near and far": (_boxes(rng, 5, 18), _boxes(rng, 6, 18)),
        "boxes without area": (np.array([[1.0, 1, 1, 1], [0, 0, 2, 2]]), np.array([[1.0, 1, 1, 1]])),
        "no boxes": (np.zeros((0, 4)), _boxes(rng, 2)),
    },
    {
        PLUS_ONE: dict(a=lambda a: a.a + ONE, b=lambda a: a.b + ONE),
        "the intersection is twice in the union": lambda *a: box_iou(*a) / (1 + box_iou(*a)),
        "negative sides not cut off at 0: two of them make a positive area": _iou_of_negative_sides,
    },
)
def box_iou(a, b):
    """Intersection over union of every pair of boxes.

    a : (A, 4) float, x1, y1, x2, y2
    b : (B, 4) float

    Give iou : (A, B), 0 for a pair whose union has no area.
    """
    return box_ops.box_iou(a, b)


def _encode_corners(boxes, anchors):
    shift = (boxes - anchors)[:, :2] / (anchors[:, 2:] - anchors[:, :2])
    return np.concatenate([shift, box_encode(boxes, anchors)[:, 2:]], axis=1)


def _encode_without_log(boxes, anchors):
    deltas = box_encode(boxes, anchors)
    return np.where(ONE > 0, np.exp(deltas), deltas)  # of dw and dh


@exercise(
    lambda rng: {"normal boxes": (_boxes(rng, 6), _boxes(rng, 6)), "no boxes": (np.zeros((0, 4)),) * 2},
    {
        PLUS_ONE: dict(boxes=lambda a: a.boxes + ONE, anchors=lambda a: a.anchors + ONE),
        AXES: lambda *a: box_encode(*a)[:, SWAPPED],
        "coded against the box, not against the anchor": lambda *a: box_encode(*a[::-1]),
        "from corner to corner: dx and dy lead from centre to centre": _encode_corners,
        "no logarithm": _encode_without_log,
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
    return boxes + np.tile(boxes[:, 2:] - boxes[:, :2], 2) / 2


@exercise(
    lambda rng: {
        "some large offsets": (rng.normal(size=(8, 4)) * [1, 1, 2, 2], _boxes(rng, 8), 0.8),
        "no boxes": (np.zeros((0, 4)), np.zeros((0, 4)), 4.0),
    },
    {
        "dw and dh are not limited": dict(limit=lambda a: np.inf),
        "clipped twice: dx and dy have no limit": dict(deltas=lambda a: np.minimum(a.deltas, a.limit)),
        PLUS_ONE: lambda deltas, anchors, limit: box_decode(deltas, anchors + ONE, limit) - ONE,
        AXES: dict(deltas=lambda a: a.deltas[:, SWAPPED]),
        "the centre taken for a corner: half of the size is on each side": _decode_from_corner,
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


def _nms(boxes, scores, threshold, suppresses=np.greater, by_suppressed=False):
    """The right answer, or a wrong one: with another comparison, or where suppressed boxes suppress."""
    kept, seen = [], []
    for i in np.argsort(-scores, kind="stable"):
        overlaps = box_ops.box_iou(boxes[[i]], boxes[seen if by_suppressed else kept])
        if not suppresses(overlaps, threshold).any():
            kept.append(i)
        seen.append(i)
    return np.array(kept)


def _ranks(boxes, scores, threshold):
    return np.argsort(np.argsort(-scores))[nms(boxes, scores, threshold)]


@exercise(
    lambda rng: {
        "a crowd": (_boxes(rng, 40), rng.permutation(40) / 40, 0.3),
        "at the threshold": (np.array([[0.0, 0, 2, 2], [0, 0, 2, 1]]), np.array([0.9, 0.8]), 0.5),
        "equal scores": (_boxes(rng, 12), np.repeat([0.5, 0.9], 6), 0.3),
        "no boxes": (np.zeros((0, 4)), np.zeros(0), 0.5),
    },
    {
        "a suppressed box still suppresses others": partial(_nms, by_suppressed=True),
        "the lowest score goes first": dict(scores=lambda a: -a.scores),
        PLUS_ONE: dict(boxes=lambda a: a.boxes + ONE),
        "positions after sorting, not in the list you were given": _ranks,
        "in the order of the list, not by falling score": lambda *a: np.sort(nms(*a)),
        "just the threshold suppresses: only more does": partial(_nms, suppresses=np.greater_equal),
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


def _anchors(sizes, ratios, stride, height, width, offset=0.5, keep_area=True, axes=(0, 1, 2, 3)):
    """The right answer, or a wrong one; `axes` is the order of rows, columns, anchors, coordinates."""
    r, s = np.repeat(ratios, len(sizes)), np.tile(sizes, len(ratios))
    half = np.stack([s / np.sqrt(r), s * np.sqrt(r)] if keep_area else [s, s * r], axis=1) / 2  # (K, 2)
    y, x = np.meshgrid(*((np.arange(n) + offset) * stride for n in (height, width)), indexing="ij")
    middle = np.stack([x, y], axis=2)[:, :, None]  # (H, W, 1, 2)
    return np.concatenate([middle - half, middle + half], axis=3).transpose(axes).reshape(-1, 4)


@exercise(
    lambda rng: {"sizes and ratios": ((16, 32), (0.5, 1.0, 3.0), 8, 3, 4), "one": ((64,), (2.0,), 16, 2, 2)},
    {
        "no half pixel: cell i has its middle at (i + 1/2) stride": partial(_anchors, offset=0.0),
        "the ratio taken for width over height": dict(ratios=lambda a: 1 / np.array(a.ratios)),
        "the area changes with the ratio: use its root on both sides": partial(_anchors, keep_area=False),
        "axes swapped: columns before rows": partial(_anchors, axes=(1, 0, 2, 3)),
    },
)
def anchors(sizes, ratios, stride, height, width):
    """The anchors of one feature map.

    sizes : square roots of the anchors' areas, in pixels
    ratios : height over width; every ratio comes with every size
    stride : int, pixels a cell
    height, width : int, cells

    Give anchors : (height width K, 4) float, x1, y1, x2, y2, by row, column, ratio, size; those of cell
    (i, j) are centred at x = (j + 1/2) stride, y = (i + 1/2) stride.
    """
    return _anchors(sizes, ratios, stride, height, width)


# -------------------------------------------------------------------------------------------- RoI layers


def _to_map(a):
    return np.array([1, *[a.scale] * 4])  # times a RoI: the RoI in feature pixels


def _clipped(a):
    """The RoIs, clipped to the image."""
    height, width = (a.x_shape if hasattr(a, "x_shape") else a.x.shape)[2:]
    return np.clip(a.rois, 0, [np.inf, *np.array([width, height] * 2) / a.scale])


ROI_MISTAKES = {
    "no batch index: column 0 says which image a RoI reads": dict(rois=lambda a: a.rois * [0, 1, 1, 1, 1]),
    AXES: dict(rois=lambda a: a.rois[:, [0, 2, 1, 4, 3]]),
    "the scale left out: RoIs are in image pixels": dict(scale=lambda a: 1.0),
}
ALIGN_MISTAKES = ROI_MISTAKES | {
    NO_HALF_PIXEL: dict(rois=lambda a: a.rois + [0, *[0.5 / a.scale] * 4]),
    PLUS_ONE: dict(rois=lambda a: a.rois + [0, *ONE]),
    ROUNDED: dict(rois=lambda a: np.rint(a.rois * _to_map(a)) / _to_map(a)),
    "clipped twice: points are moved into the map, the box is not": dict(rois=_clipped),
}


def _roi_cases(rng, *wanted: str) -> dict[str, tuple]:
    cases = {}
    for name, n, size, scale, ratio in (
        ("two images", 5, (2, 3), 0.25, 2),
        ("3 x 3 points", 2, (2, 2), 0.5, 3),
        ("no RoIs", 0, (2, 2), 0.25, 2),
    ):
        corner, sides = rng.uniform(-4, 14, (n, 2)), rng.uniform(6, 20, (n, 2))
        rois = np.concatenate([np.arange(n)[:, None] % 2, corner, corner + sides], axis=1)
        known = dict(x=rng.normal(size=(2, 3, 6, 7)), rois=rois, gy=rng.normal(size=(n, 3, *size)))
        known |= dict(output_size=size, x_shape=(2, 3, 6, 7), scale=scale, sampling_ratio=ratio)
        cases[name] = tuple(known[k] for k in wanted)
    return cases


@exercise(
    lambda rng: _roi_cases(rng, "x", "rois", "output_size", "scale"),
    ROI_MISTAKES
    | {
        "the last pixel left out: x2 - x1 + 1 belong in": dict(rois=lambda a: a.rois - [0, *ONE / a.scale]),
        "rounded down, not to the nearest": dict(rois=lambda a: np.floor(a.rois * _to_map(a)) / _to_map(a)),
    },
)
def roi_pool(x, rois, output_size, scale):
    """RoIPool (Fast R-CNN): the maximum of each bin's pixels, box and bins rounded to whole pixels.

    x : (N, C, H, W) float
    rois : (R, 5) float, image index, x1, y1, x2, y2 in image pixels
    output_size : (PH, PW)
    scale : float, feature pixels per image pixel

    Give y : (R, C, PH, PW). The box's edges times scale are rounded to the nearest pixel, halves away from 0.
    Both edge pixels belong to it, so it is max(x2 - x1 + 1, 1) pixels wide. Bin j of PW begins at
    floor(j width / PW) and ends before ceil((j + 1) width / PW), both from x1 on and clipped to the map; an
    empty bin gives 0.
    """
    return F.roi_pool(x, rois, output_size, scale).data


@exercise(lambda rng: _roi_cases(rng, "x", "rois", "output_size", "scale", "sampling_ratio"), ALIGN_MISTAKES)
def roi_align_forward(x, rois, output_size, scale, sampling_ratio):
    """RoIAlign (Mask R-CNN, section 3): the average of bilinear samples, nothing rounded.

    x : (N, C, H, W) float
    rois : (R, 5) float, image index, x1, y1, x2, y2 in image pixels
    output_size : (PH, PW)
    scale : float, feature pixels per image pixel
    sampling_ratio : int, n: n x n points a bin, at (k + 1/2) / n of it

    Give y : (R, C, PH, PW). In feature pixels, pixel i has its centre at i + 1/2 (aligned=True). A point more
    than a pixel outside the outermost centres reads 0; any other is moved between them if it lies outside,
    and reads its four neighbours.
    """
    return F.roi_align(x, rois, output_size, scale, sampling_ratio, aligned=True).data


def _points_of_pixel(gy, rois, x_shape, scale, sampling_ratio):
    """How many points read each pixel of x."""
    sampling = Sampling(gy.shape[2:], sampling_ratio, True, aggregation="max")  # a row for each point
    matrix = Plan.build(rois, None, [x_shape], (scale,), sampling, gy.dtype).matrix
    counts = np.bincount(matrix.indices[matrix.data != 0], minlength=matrix.shape[1])
    return counts.reshape(x_shape[0], 1, *x_shape[2:])


@exercise(
    lambda rng: _roi_cases(rng, "gy", "rois", "x_shape", "scale", "sampling_ratio"),
    ALIGN_MISTAKES
    | {"not divided by the points: a bin is their average": dict(gy=lambda a: a.gy * a.sampling_ratio**2)},
    contributions={"gx": _points_of_pixel},
)
def roi_align_backward(gy, rois, x_shape, scale, sampling_ratio):
    """The gradient of RoIAlign's feature map: each bilinear weight sends its share of gy back.

    gy : (R, C, PH, PW) float, gradient of y
    rois : (R, 5) float, image index, x1, y1, x2, y2 in image pixels
    x_shape : (N, C, H, W)
    scale : float
    sampling_ratio : int

    Give gx : (N, C, H, W). See roi_align_forward for where the points lie.
    """
    x, size = np.zeros(x_shape, gy.dtype), gy.shape[2:]
    return gradients(lambda x: F.roi_align(x, rois, size, scale, sampling_ratio, aligned=True), gy, x)[0]


# ------------------------------------------------------------------------------------------------- masks


def _mask_loss(logits, labels, targets, loss_of=F.mask_loss, scale=1.0):
    """The loss and its gradient."""
    x = Tensor(logits, True)
    loss = loss_of(x, labels, targets) * scale
    loss.backward()
    return loss.data, x.grad


def _summed_loss(logits, labels, targets):
    return _mask_loss(logits, labels, targets, scale=float(targets.size))


def _softmax_loss(x, labels, targets):
    p = F.softmax(x, axis=1)[np.arange(len(labels)), labels]
    return (F.log(p) * targets + F.log(1.0 - p) * (1.0 - targets)).mean() * -1.0


def _all_channels_loss(x, labels, targets):
    return F.sigmoid_cross_entropy(x, np.broadcast_to(targets[:, None], x.shape))


@exercise(
    lambda rng: {
        "four classes": (rng.normal(size=(3, 5, 4, 4)), np.array([2, 4, 1]), np.rint(rng.random((3, 4, 4)))),
        "large logits": (np.full((2, 3, 2, 2), -800.0), np.array([1, 2]), np.zeros((2, 2, 2))),
        "no RoIs": (np.zeros((0, 3, 2, 2)), np.zeros(0, np.int64), np.zeros((0, 2, 2))),
    },
    {
        "summed, not averaged": _summed_loss,
        "the channel before the label's: channel 0 is the background's": dict(labels=lambda a: a.labels - 1),
        "a softmax: masks do not compete, each has its sigmoid": partial(_mask_loss, loss_of=_softmax_loss),
        "all channels: only the true class's has a loss": partial(_mask_loss, loss_of=_all_channels_loss),
    },
)
def mask_loss(logits, labels, targets):
    """L_mask (Mask R-CNN, section 3): binary cross-entropy of the one mask that belongs to the true class.

    logits : (R, K + 1, M, M) float; channel 0 is the background's, and never read; may be large
    labels : (R,) int in [1, K]
    targets : (R, M, M) float, 0 or 1

    Give loss, gradient : a number, the mean over RoIs and pixels (0 for no RoIs); its gradient, like logits.
    """
    return _mask_loss(logits, labels, targets)


def _box_within_image(a):
    return np.clip(a.box, 0, [*a.image_size[::-1]] * 2)


@exercise(
    lambda rng: {
        "a box that reaches out": (rng.random((5, 5)), np.array([-3.2, 2.5, 6.3, 11.7]), (8, 9)),
        "a box within": (rng.random((4, 4)), np.array([2.3, 1.6, 9.1, 6.4]), (9, 12)),
    },
    {
        NO_HALF_PIXEL: dict(box=lambda a: a.box + 0.5),
        PLUS_ONE: dict(box=lambda a: a.box + ONE),
        AXES: dict(box=lambda a: a.box[SWAPPED]),
        ROUNDED: dict(box=lambda a: np.rint(a.box)),
        "clipped twice: a box that reaches out is pasted in part, not squeezed": dict(box=_box_within_image),
    },
)
def paste_mask(mask, box, image_size):
    """A predicted mask in its place in the image.

    mask : (M, M) float, probabilities
    box : (4,) float, x1, y1, x2, y2 in image pixels; not whole numbers, and it may reach beyond the image
    image_size : (H, W)

    Give image : (H, W). Pixel i has its centre at i + 1/2; the centre of mask cell j lies at (j + 1/2) / M of
    the box. Between the cells' centres the mask is bilinear; beyond the outermost it falls linearly to 0, one
    cell out.
    """
    return masks.paste_masks(mask[None], box[None], image_size, masks.FLOAT)[0, 0]
