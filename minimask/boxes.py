"""Boxes: areas, overlaps, clipping, the box coder, non-maximum suppression.

A box is x1, y1, x2, y2 in pixels of its image. Pixel i covers [i, i + 1], so the width is x2 - x1: no +1.
All functions take and return arrays of one module, NumPy or CuPy, and keep their dtype; none has a gradient.
Products of float16 and of small integers would overflow: float16 is computed in float32, and integers give
float64 where the result is not an integer.
Shapes: A and B boxes to compare; N boxes to suppress; R boxes to code; K classes.
"""

import math
from dataclasses import dataclass
from numbers import Real

import numpy as np

from minimask.backend import array_module, as_floating, fit_kernels, parallel_slices, use_reference
from minimask.errors import InputError
from minimask.kernels import coding
from minimask.kernels.nms import in_order as _nms_in_order
from minimask.kernels.nms import in_order_within_groups, suppress

BOXES_AT_ONCE = 1 << 15  # to code: their coordinates and deltas stay in cache
TINY = 1e-37  # smallest divisor: boxes without area give 0 / TINY = 0 where 0 / 0 would be NaN


# -------------------------------------------------------------------------------- what functions are given


def as_boxes(boxes, where: str):
    """Boxes in any container of numbers as an array (N, 4): float16 as float32, integers as float64.

    Parameters
    ----------
    boxes : (N, 4) array, or anything that NumPy can make one of
    where : str
        The function and its argument, ``"nms: boxes"``; begins the error.

    Raises
    ------
    InputError
        If they have another shape.
    TypeError
        If they are not numbers.
    """
    boxes = _floating(boxes, where)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(f"{where} must be (N, 4), x1, y1, x2, y2 of each box; the shape is {boxes.shape}")
    return boxes


def as_image_size(size, where: str) -> tuple[Real, Real]:
    """(height, width), or an InputError that begins with the function `where`."""
    try:
        height, width = size
    except (TypeError, ValueError):
        height = width = None
    if not (isinstance(height, Real) and isinstance(width, Real) and height >= 0 and width >= 0):
        raise InputError(f"{where}: image_size must be (height, width) in pixels, is {size!r}")
    return height, width


def _floating(values, where: str):
    try:
        return as_floating(_as_array(values))
    except TypeError as error:
        raise TypeError(f"{where} must be an array of numbers ({error})") from None
    except ValueError as error:  # rows of different lengths
        raise InputError(f"{where} must be an array of numbers ({error})") from None


def _as_array(values):
    return np.asarray(values) if array_module(values) is np else values


def _check_fours(boxes, where: str) -> None:
    if boxes.ndim < 1 or boxes.shape[-1] != 4:
        raise InputError(f"{where} must be (..., 4), x1, y1, x2, y2 of each box; the shape is {boxes.shape}")


def _one_of_each(values, boxes, where: str):
    """An array of numbers, one for each box; not converted to another dtype."""
    values = _as_array(values)
    if values.dtype.kind not in "biuf":
        raise InputError(f"{where} must be an array of numbers, not of {values.dtype}")
    if values.shape != (len(boxes),):
        raise InputError(f"{where} must be ({len(boxes)},), one for each box; the shape is {values.shape}")
    return values


# ------------------------------------------------------------------------------------ areas and overlaps


def box_area(boxes):
    """Area of each box: (..., 4) -> (...), in square pixels; int64 for integers, float32 for float16."""
    is_integer = hasattr(boxes, "dtype") and getattr(boxes.dtype, "kind", "f") in "iu"
    boxes = boxes.astype(np.int64) if is_integer else _floating(boxes, "box_area: boxes")
    _check_fours(boxes, "box_area: boxes")
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _intersection(a, b):  # (A, 4), (B, 4) -> (A, B)
    xp = array_module(a, b)
    x1, y1, x2, y2 = xp.ascontiguousarray(b.T)
    # in place: at (A, B) = (20, 270,000) the time goes into memory, not arithmetic
    inter = xp.minimum(a[:, 2:3], x2)
    inter -= xp.maximum(a[:, 0:1], x1)
    xp.maximum(inter, 0, out=inter)
    height = xp.minimum(a[:, 3:4], y2)
    height -= xp.maximum(a[:, 1:2], y1)
    xp.maximum(height, 0, out=height)
    inter *= height
    return inter


def _like(result, *inputs):
    """The result as float16 if all inputs are float16, else unchanged."""
    half = all(getattr(x, "dtype", None) == np.float16 for x in inputs)
    return result.astype(np.float16) if half else result


def _intersection_and_union(a, b):
    inter = _intersection(a, b)
    union = box_area(a)[:, None] + box_area(b)
    union -= inter
    return inter, union


def box_iou(a, b):
    """Intersection over union of every pair of boxes.

    Parameters
    ----------
    a : (A, 4) array
    b : (B, 4) array

    Returns
    -------
    (A, B) array in [0, 1]; 0 for a pair whose union has no area (where torchvision gives NaN).

    Examples
    --------
    >>> import numpy as np
    >>> box_iou(np.array([[0.0, 0, 2, 2]]), np.array([[0.0, 1, 2, 2], [5, 5, 6, 6]]))
    array([[0.5, 0. ]])
    """
    inter, union = _intersection_and_union(as_boxes(a, "box_iou: a"), as_boxes(b, "box_iou: b"))
    return _like(inter / array_module(inter).maximum(union, TINY), a, b)


def generalized_box_iou(a, b):
    """Generalised IoU of every pair: IoU minus the share of the common hull that neither box covers.

    Parameters
    ----------
    a : (A, 4) array
    b : (B, 4) array

    Returns
    -------
    (A, B) array in [-1, 1]; 0 where the hull has no area.

    Notes
    -----
    Rezatofighi et al. 2019, "Generalized Intersection over Union", algorithm 1.
    """
    xp, given = array_module(a, b), (a, b)
    a, b = as_boxes(a, "generalized_box_iou: a"), as_boxes(b, "generalized_box_iou: b")
    inter, union = _intersection_and_union(a, b)
    low = xp.minimum(a[:, None, :2], b[:, :2])  # (A, B, 2)
    high = xp.maximum(a[:, None, 2:], b[:, 2:])
    hull = (high - low).prod(axis=-1)  # (A, B)
    return _like(inter / xp.maximum(union, TINY) - (hull - union) / xp.maximum(hull, TINY), *given)


def box_coverage(candidates, regions):
    """The share of each candidate's area that lies inside each region.

    Unlike IoU it does not shrink as the region grows. That is what crowd regions need: a candidate on one
    person of a crowd is wholly covered, though its IoU with the crowd's box is small.

    Parameters
    ----------
    candidates : (A, 4) array
    regions : (B, 4) array

    Returns
    -------
    (A, B) array in [0, 1]; 0 for a candidate without area.
    """
    a, b = as_boxes(candidates, "box_coverage: candidates"), as_boxes(regions, "box_coverage: regions")
    covered = _intersection(a, b) / array_module(a).maximum(box_area(a), TINY)[:, None]
    return _like(covered, candidates, regions)


# -------------------------------------------------------------------------- clipping, filtering, scaling


def clip_boxes_to_image(boxes, image_size: tuple[int, int]):
    """The boxes with every coordinate clipped to the image.

    Parameters
    ----------
    boxes : (..., 4) array
    image_size : (height, width)
        In pixels; x ends up in [0, width], y in [0, height].
    """
    boxes, (height, width) = _as_array(boxes), as_image_size(image_size, "clip_boxes_to_image")
    _check_fours(boxes, "clip_boxes_to_image: boxes")
    if fit_kernels(boxes):
        return coding.clip(boxes, width, height)
    clipped = array_module(boxes).empty_like(boxes)
    largest = np.iinfo(boxes.dtype).max if boxes.dtype.kind in "iu" else math.inf  # a uint8 cannot hold 300
    for axis, length in ((1, height), (0, width)):  # y1 and y2, then x1 and x2, in one call
        clipped[..., axis::2] = boxes[..., axis::2].clip(0, min(length, largest))
    return clipped


def remove_small_boxes(boxes, min_size: float):
    """Ascending indices, (M,) int64, of the boxes (N, 4) whose sides are both at least `min_size` pixels."""
    boxes = as_boxes(boxes, "remove_small_boxes: boxes")
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return array_module(boxes).flatnonzero((w >= min_size) & (h >= min_size))  # sync: how many there are


def scale_boxes(boxes, scale: tuple[float, float]):
    """Boxes (..., 4) after their image was resized: y times `scale[0]`, x times `scale[1]`."""
    (sy, sx), wide = scale, as_floating(boxes)
    return _like(wide * array_module(wide).asarray([sx, sy, sx, sy], dtype=wide.dtype), boxes)


# ------------------------------------------------------------------------------------------ the box coder


@dataclass(frozen=True)
class BoxCoder:
    """Converts boxes to offsets from other boxes, which is what the regressors learn, and back.

    ``dx = wx (x - x_a) / w_a, dy = wy (y - y_a) / h_a, dw = ww log(w / w_a), dh = wh log(h / h_a)``, where
    (x, y) is a box's centre, (w, h) its size, and _a marks the box that it is an offset from.

    Parameters
    ----------
    weights : (wx, wy, ww, wh)
        1, 1, 1, 1 for the RPN; 10, 10, 5, 5 for the box head: the inverse of the offsets' typical spread.
    bbox_xform_clip : float
        Decoding clips dw / ww and dh / wh to at most this, so that a wild one cannot overflow exp.

    Notes
    -----
    Girshick et al. 2014, R-CNN, appendix C; the weights come from the code of Faster R-CNN
    (``BBOX_NORMALIZE_STDS``).
    """

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    bbox_xform_clip: float = math.log(1000.0 / 16)

    def encode(self, reference_boxes, proposals):
        """Offsets that lead from `proposals` to `reference_boxes` (the ground truth).

        Parameters
        ----------
        reference_boxes, proposals : (R, 4) arrays
            One pair in each row; every box must have positive width and height.

        Returns
        -------
        (R, 4) array: dx, dy, dw, dh.
        """
        boxes = as_boxes(reference_boxes, "BoxCoder.encode: reference_boxes")
        others = as_boxes(proposals, "BoxCoder.encode: proposals")
        if len(boxes) != len(others):
            raise InputError(
                f"BoxCoder.encode: {len(boxes)} reference_boxes need as many proposals, not {len(others)}"
            )
        if fit_kernels(boxes, others):
            coded = coding.encode(boxes, others, self.weights)
        else:
            coded = _in_slices(self._encode, boxes, others)
        return _like(coded, reference_boxes, proposals)

    def _encode(self, reference_boxes, proposals):
        xp = array_module(reference_boxes, proposals)
        wx, wy, ww, wh = self.weights
        x, y, w, h = _center_and_size(reference_boxes)
        xa, ya, wa, ha = _center_and_size(proposals)
        deltas = wx * (x - xa) / wa, wy * (y - ya) / ha, ww * xp.log(w / wa), wh * xp.log(h / ha)
        return xp.stack(deltas, axis=1)

    def decode(self, deltas, boxes):
        """The boxes that the offsets lead to.

        Parameters
        ----------
        deltas : (R, 4 K) array
            dx, dy, dw, dh of class 0, then of class 1, and so on.
        boxes : (R, 4) array
            The boxes that `deltas` are offsets from.

        Returns
        -------
        (R, K, 4) array of `deltas`' dtype, not clipped to any image.
        """
        wide, boxes = _floating(deltas, "BoxCoder.decode: deltas"), as_boxes(boxes, "BoxCoder.decode: boxes")
        if wide.ndim != 2 or len(wide) != len(boxes) or wide.shape[1] % 4:
            wanted = f"({len(boxes)}, 4 K) for so many boxes and K classes"
            raise InputError(f"BoxCoder.decode: deltas must be {wanted}; the shape is {wide.shape}")
        wide = wide.reshape(len(wide), wide.shape[1] // 4, 4)  # (R, 4 K) -> (R, K, 4)
        if fit_kernels(wide, boxes):
            return _like(coding.decode(wide, boxes, self.weights, self.bbox_xform_clip), deltas)
        return _like(_in_slices(self._decode, wide, boxes), deltas)

    def _decode(self, deltas, boxes):
        xp = array_module(deltas, boxes)
        wx, wy, ww, wh = self.weights
        xa, ya, wa, ha = (v[:, None] for v in _center_and_size(boxes.astype(deltas.dtype, copy=False)))
        x = deltas[..., 0] / wx * wa + xa  # (R, K)
        y = deltas[..., 1] / wy * ha + ya
        half_w = 0.5 * (xp.exp(xp.minimum(deltas[..., 2] / ww, self.bbox_xform_clip)) * wa)
        half_h = 0.5 * (xp.exp(xp.minimum(deltas[..., 3] / wh, self.bbox_xform_clip)) * ha)
        return xp.stack((x - half_w, y - half_h, x + half_w, y + half_h), axis=2)


def _in_slices(function, a, b):
    """``function(a, b)``; on the CPU in all threads, for slices of rows whose arrays stay in cache."""
    if array_module(a, b) is not np or a.size <= 4 * BOXES_AT_ONCE:  # (R, 4), or (R, K, 4) of K classes
        return function(a, b)
    out = np.empty(a.shape, function(a[:0], b[:0]).dtype)

    def code(rows: slice):
        out[rows] = function(a[rows], b[rows])

    parallel_slices(len(a), code, BOXES_AT_ONCE)
    return out


def _center_and_size(boxes):  # (R, 4) -> x, y, w, h, each (R,)
    x1, y1, x2, y2 = boxes.T
    w, h = x2 - x1, y2 - y1
    return x1 + 0.5 * w, y1 + 0.5 * h, w, h


# ------------------------------------------------------------------------------- non-maximum suppression


def by_falling(values):
    """Indices of the values (N,), the largest first; equal ones in the order of the input, NaN last.

    The values are numbers of any dtype: ``-`` wraps around for unsigned integers, and bools have none.
    """
    values = values if hasattr(values, "dtype") else np.asarray(values)
    turned = ~values if values.dtype.kind in "biu" else -values
    return array_module(turned).argsort(turned, kind="stable")


def nms(boxes, scores, iou_threshold: float):
    """Non-maximum suppression: by falling score, keep each box that overlaps none kept so far.

    Parameters
    ----------
    boxes : (N, 4) array
    scores : (N,) array
        Of boxes with equal scores, the one that stands first in the input comes first.
    iou_threshold : float, >= 0
        A box is dropped if its IoU with a kept one is larger than this; an equal one does not suppress.

    Returns
    -------
    (M,) int64 array of indices into `boxes`, by falling score.

    Raises
    ------
    InputError
        If the boxes have another shape, or there is not one score for each of them.

    Examples
    --------
    >>> import numpy as np
    >>> boxes = np.array([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30]])
    >>> nms(boxes, np.array([0.6, 0.9, 0.8]), 0.5)
    array([1, 2])
    """
    return _nms(boxes, scores, None, iou_threshold)


def batched_nms(boxes, scores, idxs, iou_threshold: float):
    """`nms` within each group: boxes of different classes (or pyramid levels, or images) do not compete.

    Parameters
    ----------
    boxes : (N, 4) array
    scores : (N,) array
    idxs : (N,) integer array
        The group of each box.
    iou_threshold : float

    Returns
    -------
    (M,) int64 array of indices into `boxes`, by falling score over all groups together.

    Notes
    -----
    For small inputs torchvision moves each group to a place of its own and suppresses once, which rounds
    coordinates. Here each group is suppressed separately, and gives exactly what `nms` gives.
    """
    return _nms(boxes, scores, idxs, iou_threshold)


def _nms(boxes, scores, groups, iou_threshold: float):
    """`nms`, or `batched_nms` if there are groups."""
    xp, name = array_module(boxes, scores), "nms" if groups is None else "batched_nms"
    boxes = as_boxes(boxes, f"{name}: boxes")
    groups = None if groups is None else _one_of_each(groups, boxes, f"{name}: idxs")
    if not isinstance(iou_threshold, Real) or not iou_threshold >= 0:
        raise InputError(f"{name}: iou_threshold must be a number from 0 on, is {iou_threshold!r}")
    order = by_falling(_one_of_each(scores, boxes, f"{name}: scores"))
    if xp is not np:
        kept, count = suppress(boxes, order, groups, iou_threshold)
        return kept[: int(count)]  # sync: the shape of all that follows depends on how many survive
    if groups is None:
        in_order = _nms_in_order_loop if use_reference() else _nms_in_order
        return order[in_order(boxes[order], iou_threshold)]
    by_group = np.argsort(groups[order], kind="stable")  # within a group still by falling score
    members = order[by_group]
    within = _nms_within_groups_loop if use_reference() else in_order_within_groups
    return order[np.sort(by_group[within(boxes[members], groups[members], iou_threshold)])]


def _nms_in_order_loop(boxes, iou_threshold: float) -> np.ndarray:
    return nms_loop(boxes, -np.arange(len(boxes)), iou_threshold)


def _nms_within_groups_loop(boxes, groups, iou_threshold: float) -> np.ndarray:
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    kept = [each[_nms_in_order_loop(boxes[each], iou_threshold)] for each in members]
    return np.concatenate([np.zeros(0, np.int64), *kept])


def nms_loop(boxes, scores, iou_threshold: float) -> np.ndarray:
    """`nms` as its definition reads, one box at a time: the reference, NumPy only."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: scores[i], reverse=True):  # equal ones keep their order
        if not (box_iou(boxes[[i]], boxes[kept]) > iou_threshold).any():
            kept.append(i)
    return np.array(kept, dtype=np.int64)
