"""Keypoints and heat maps: which cell of a RoI a keypoint is in, and where in a box a heat map is highest.

Shapes: R RoIs or boxes, K keypoints each, M x M heat map cells, H x W pixels of a box.

A cell d of an axis of M covers [d, d + 1) of M equal parts of the box, and stands for its middle, d + 1/2.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minimask import backend
from minimask.backend import array_module

CUBIC = -0.75
"""The slope at 1 of the cubic convolution kernel (Keys 1981), as in torch and OpenCV."""

_EXPONENT_MOST = 80.0  # e^80 still fits into a float32
_AT_ONCE = 1 << 20  # pixels of resized rows that are computed together


def keypoints_to_heatmap(keypoints, boxes, size: int):
    """The cell of each keypoint in a heat map over its box, as in torchvision and detectron2.

    Parameters
    ----------
    keypoints : (R, K, 3) float
        x, y in the same pixels as the boxes, and visibility: 0 is not labelled.
    boxes : (R, 4) float
        x1, y1, x2, y2.
    size : int
        M.

    Returns
    -------
    cells : (R, K) int64
        y M + x; 0 where not valid. The right and the lower border belong to the last cells.
    valid : (R, K) bool
        Labelled, and in the box.
    """
    xp = array_module(boxes)
    low, high = boxes[:, None, :2], boxes[:, None, 2:]  # (R, 1, 2) each
    xy = keypoints[..., :2]  # (R, K, 2)
    # A box without width has no cells; this only keeps its scale finite.
    scale = size / xp.maximum(high - low, np.finfo(boxes.dtype).tiny * size)
    cell = xp.where(xy == high, size - 1, xp.floor((xy - low) * scale))
    valid = ((cell >= 0) & (cell < size)).all(axis=2) & (keypoints[..., 2] > 0)
    column, row = (xp.where(valid, cell[..., i], 0).astype(np.int64) for i in (0, 1))
    return row * size + column, valid


class Peaks(NamedTuple):
    """The highest points of heat maps: a row for each box and keypoint.

    Attributes
    ----------
    xy : (R, K, 2)
        In the same pixels as the boxes.
    logits : (R, K)
        The resized heat map at that point; torchvision's score of a keypoint.
    probabilities : (R, K)
        exp(logit) over the sum of exp over the map's M^2 cells: detectron2's score. Above 1 where the resized
        map rises far above the map's own cells.
    """

    xy: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray


def heatmaps_to_keypoints(maps: np.ndarray, boxes: np.ndarray) -> Peaks:
    """The highest point of each heat map, resized to the pixels of its box by cubic interpolation.

    Like torchvision's and detectron2's functions of that name, up to rounding. Most of a resized map need not
    be computed: once the map is resized vertically, a row of pixels has M values, and nothing interpolated
    from four neighbours among them exceeds ``m + q (m - n)``: m is their maximum, n their minimum, q = 3/16.

    Parameters
    ----------
    maps : (R, K, M, M) float
        Logits.
    boxes : (R, 4) float
        x1, y1, x2, y2; a side shorter than 1 counts as 1.

    Returns
    -------
    Peaks of `maps`' dtype; of several equal maxima the first, row by row.
    """
    return _peaks(maps, boxes, _highest)


def heatmaps_to_keypoints_reference(maps: np.ndarray, boxes: np.ndarray) -> Peaks:
    """`heatmaps_to_keypoints` by resizing every map as a whole."""
    return _peaks(maps, boxes, _highest_reference)


def _peaks(maps, boxes, highest) -> Peaks:
    count, keypoints = maps.shape[:2]
    peaks = Peaks(*(np.zeros((count, keypoints, *last), maps.dtype) for last in ((2,), (), ())))
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)  # (R, 2): width, height
    pixels = np.ceil(sides).astype(np.int64)  # of the resized map
    if not keypoints:
        return peaks

    def decode(chosen: slice):
        for i in range(count)[chosen]:
            width, height = pixels[i].tolist()
            logits, row, column = highest(maps[i], height, width)  # (K,) each
            place = np.stack([column, row], axis=1).astype(maps.dtype) + 0.5  # (K, 2): pixels' middles
            peaks.xy[i] = place * (sides[i] / pixels[i]).astype(maps.dtype) + boxes[i, :2]
            peaks.logits[i] = logits
            peaks.probabilities[i] = np.exp(np.minimum(logits - _log_sum(maps[i]), _EXPONENT_MOST))

    backend.parallel_slices(count, decode, operations=maps.size * 16)
    return peaks


def _log_sum(maps):  # (K, M, M) -> (K,): log sum exp
    top = maps.max(axis=(1, 2))
    return top + np.log(np.exp(maps - top[:, None, None]).sum(axis=(1, 2)))


def _highest(maps, height: int, width: int):
    """Of maps (K, M, M), resized to height x width: the maximum, its row and its column, (K,) each."""
    tall = _resized_rows(maps, height)  # (K, H, M)
    bound = _bound(tall)  # (K, H): no pixel of the row is higher
    best = np.full(bound.shape, -np.inf, maps.dtype)  # the highest pixel of each row that was looked at
    column = np.zeros(bound.shape, np.int64)
    promising = bound.argmax(axis=1)  # (K,)
    chosen = np.arange(len(maps)), promising
    best[chosen], column[chosen] = _highest_of_rows(tall[chosen], width)
    # A row whose bound is below a pixel already found is done with; rounding may lower a bound by a hair.
    slack = 1e-5 * np.abs(maps).max(axis=(1, 2))  # (K,)
    chosen = np.nonzero(bound >= (best[chosen] - slack)[:, None])
    best[chosen], column[chosen] = _highest_of_rows(tall[chosen], width)
    row = best.argmax(axis=1)  # the first of equals
    k = np.arange(len(maps))
    return best[k, row], row, column[k, row]


def _highest_reference(maps, height: int, width: int):
    pixels = _resized_columns(_resized_rows(maps, height), width)  # (K, H, W)
    place = pixels.reshape(len(maps), -1).argmax(axis=1)
    row, column = np.divmod(place, width)
    return pixels[np.arange(len(maps)), row, column], row, column


def _highest_of_rows(rows, width: int):
    """Of rows (n, M), resized to `width`: the maximum and its column, (n,) each."""
    value, column = np.zeros(len(rows), rows.dtype), np.zeros(len(rows), np.int64)
    step = max(1, _AT_ONCE // width)
    for begin in range(0, len(rows), step):
        part = slice(begin, begin + step)
        pixels = _resized_columns(rows[part], width)  # (n, W)
        column[part] = pixels.argmax(axis=1)
        value[part] = pixels.max(axis=1)
    return value, column


def _bound(tall):
    """(K, H, M) -> (K, H): no less than any value that cubic interpolation along the last axis gives.

    Of the four weights, the two outer ones are negative or 0 and sum to CUBIC t (1 - t), which is -3/16 at
    worst (t = 1/2); all four sum to 1. So the value is at most (1 + q) m - q n, q = 3/16.
    """
    padded = np.pad(tall, ((0, 0), (0, 0), (2, 2)), mode="edge")  # as `_taps` repeats the outermost cells
    windows = np.lib.stride_tricks.sliding_window_view(padded, 4, axis=2)  # (K, H, M + 1, 4)
    highest, lowest = windows.max(axis=3), windows.min(axis=3)
    return (highest - CUBIC / 4 * (highest - lowest)).max(axis=2)


def _taps(size: int, out: int, dtype) -> tuple[np.ndarray, np.ndarray]:
    """For each of `out` pixels the four cells of `size` that it is interpolated from, and their weights.

    Returns
    -------
    cells, weights : (4, out) int64, (4, out)
    """
    centre = (np.arange(out) + 0.5) * (size / out) - 0.5  # cell i has its middle at i
    first = np.floor(centre)
    t = centre - first  # in [0, 1): the cells' distances are 1 + t, t, 1 - t, 2 - t
    near = [((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1 for d in (t, 1 - t)]
    far = [((CUBIC * d - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC for d in (1 + t, 2 - t)]
    cells = np.clip(first.astype(np.int64) + np.arange(-1, 3)[:, None], 0, size - 1)
    return cells, np.stack([far[0], near[0], near[1], far[1]]).astype(dtype)


def _resized_rows(maps, height: int):  # (K, M, M) -> (K, H, M)
    cells, weights = _taps(maps.shape[1], height, maps.dtype)
    return sum(maps[:, c] * w[:, None] for c, w in zip(cells, weights))


def _resized_columns(rows, width: int):  # (..., M) -> (..., W)
    cells, weights = _taps(rows.shape[-1], width, rows.dtype)
    return sum(rows[..., c] * w for c, w in zip(cells, weights))
