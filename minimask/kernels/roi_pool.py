"""RoIPool (Fast R-CNN, section 2.1): the box is rounded to whole feature pixels, and so is each of its bins.

Shapes: R RoIs, PH x PW bins, features (N, C, H, W). `roi_pool_loop` is the definition; `roi_pool` serves all
bins of equal size at once.
"""

from __future__ import annotations

import numpy as np

from minimask import backend
from minimask.kernels.roi_align import maps, one_each, tiles

LARGEST_GATHER = 1 << 24  # elements gathered at once: 64 MiB of float32


def box_pixels(begin, end, aligned: bool, xp=np):
    """The whole pixels [first, past) that a box takes along one axis: the first quantisation.

    Parameters
    ----------
    begin, end : (R,) float
        Edges in feature pixels, rounded here half away from zero, as C's round does.
    aligned : bool
        True: an edge is a place, pixel i covers [i, i + 1), and the box takes [round(begin), round(end)).
        False, the original's: an edge names a pixel, and both edge pixels belong to the box:
        [round(begin), round(end) + 1). One pixel at least, in either reading.

    Returns
    -------
    first, past : (R,) float
        Whole numbers.
    """
    first, last = (xp.floor(xp.abs(e) + 0.5) * xp.sign(e) for e in (begin, end))
    return first, xp.maximum(last if aligned else last + 1, first + 1)


def bin_edges(begin, end, bins: int, length: int, aligned: bool = False, xp=np):
    """First and past-the-last pixel of each bin along one axis, from box edges in feature pixels.

    Parameters
    ----------
    begin, end : (R,) float
    bins, length : int
        Bins along the axis, pixels of the feature map.
    aligned : bool
        See `box_pixels`.

    Returns
    -------
    first, past : (R, bins) int
        floor and ceil of the bin's edges: the second quantisation; clipped to the map, so empty outside.
    """
    first_pixel, past_pixel = box_pixels(begin, end, aligned, xp)
    bin_size = (past_pixel - first_pixel) / bins
    k = xp.arange(bins).astype(bin_size.dtype)
    first = xp.floor(k * bin_size[:, None]) + first_pixel[:, None]
    past = xp.ceil((k + 1) * bin_size[:, None]) + first_pixel[:, None]
    return tuple(xp.clip(e, 0, length).astype(np.int64) for e in (first, past))


def _edges(rois, output_size, scale: float, height: int, width: int, aligned: bool):
    x1, y1, x2, y2 = (np.asarray(rois)[:, 1:] * float(scale)).T
    rows = bin_edges(y1, y2, output_size[0], height, aligned)
    return *rows, *bin_edges(x1, x2, output_size[1], width, aligned)


def roi_pool_loop(x, rois, output_size: tuple[int, int], scale: float, aligned: bool = False):
    """Values (R, C, PH, PW) and flat pixel indices of the maxima (-1: empty bin), bin by bin (slow)."""
    (ph, pw), (_, channels, height, width) = output_size, x.shape
    y = np.zeros((len(rois), channels, ph, pw), x.dtype)
    argmax = np.full(y.shape, -1, np.int64)
    top, bottom, left, right = _edges(rois, output_size, scale, height, width, aligned)
    for r, c, i, j in np.ndindex(*y.shape):
        best = -np.inf
        for v in range(top[r, i], bottom[r, i]):
            for u in range(left[r, j], right[r, j]):
                if x[int(rois[r, 0]), c, v, u] > best:
                    best = y[r, c, i, j] = x[int(rois[r, 0]), c, v, u]
                    argmax[r, c, i, j] = v * width + u
    return y, argmax


def roi_pool(x, rois, output_size: tuple[int, int], scale: float, aligned: bool = False):
    """Maximum over the pixels of each bin.

    Parameters
    ----------
    x : (N, C, H, W) float
    rois : (R, 5) float
        Image index, x1, y1, x2, y2 in image pixels.
    scale : float
        Feature pixels per image pixel.
    aligned : bool
        See `box_pixels`; False is Fast R-CNN's and torchvision's.

    Returns
    -------
    y : (R, C, PH, PW), 0 in empty bins
    argmax : (R, C, PH, PW) int64
        Flat pixel index v W + u of the first maximum; -1 for an empty bin.
    """
    (ph, pw), (n, channels, height, width) = output_size, x.shape
    top, bottom, left, right = _edges(rois, output_size, scale, height, width, aligned)
    rows = x.reshape(n, channels, height * width).swapaxes(1, 2)
    rows = np.ascontiguousarray(rows).reshape(-1, channels)  # (N HW, C)
    y = np.zeros((len(rois), ph * pw, channels), x.dtype)
    argmax = np.full(y.shape, -1, np.int64)
    # every bin as (roi, bin, first pixel), grouped by its size
    shape = (len(rois), ph, pw)
    heights = np.broadcast_to((bottom - top)[:, :, None], shape).ravel()
    widths = np.broadcast_to((right - left)[:, None, :], shape).ravel()
    corner = (top[:, :, None] * width + left[:, None, :]).ravel()
    image = np.repeat(np.asarray(rois)[:, 0].astype(np.int64) * (height * width), ph * pw)
    y2, argmax2 = y.reshape(-1, channels), argmax.reshape(-1, channels)
    for bin_h, bin_w in sorted(set(zip(heights.tolist(), widths.tolist()))):
        if bin_h <= 0 or bin_w <= 0:
            continue
        # row by row: the first maximum wins
        offsets = (np.arange(bin_h)[:, None] * width + np.arange(bin_w)).ravel()
        members = np.flatnonzero((heights == bin_h) & (widths == bin_w))
        for own in np.array_split(members, -(-members.size * offsets.size * channels // LARGEST_GATHER)):
            pixels = corner[own, None] + offsets  # (bins, area)
            values = rows[image[own, None] + pixels]  # (bins, area, C)
            best = values.argmax(axis=1)  # (bins, C)
            y2[own] = np.take_along_axis(values, best[:, None], axis=1)[:, 0]
            argmax2[own] = np.take_along_axis(pixels, best, axis=1)
    return tuple(np.ascontiguousarray(a.swapaxes(1, 2)).reshape(-1, channels, ph, pw) for a in (y, argmax))


def roi_pool_gradient(gy, argmax, rois, x_shape):
    """Add each output's gradient to the pixel that was its maximum: (R, C, PH, PW) -> (N, C, H, W)."""
    n, channels, height, width = x_shape
    plane = np.asarray(rois)[:, 0].astype(np.int64)[:, None] * channels + np.arange(channels)  # (R, C)
    index = plane[:, :, None, None] * (height * width) + argmax
    filled = argmax >= 0
    gx = np.bincount(index[filled], weights=gy[filled], minlength=n * channels * height * width)
    return gx.astype(gy.dtype).reshape(x_shape)


# ------------------------------------------------------------------------------------ all levels of a pyramid


def forward(xs, rois, levels, scales, output_size: tuple[int, int], aligned: bool = False):
    """`roi_pool` of L levels (N, C, H, W), each RoI on its own; in NumPy level by level, on a GPU at once."""
    xp, shape = backend.array_module(*xs), (len(rois), xs[0].shape[1], *output_size)
    if xp is np:
        y, argmax = np.zeros(shape, xs[0].dtype), np.zeros(shape, np.int64)
        for x, scale, own in zip(xs, scales, _served(levels, len(xs))):
            y[own], argmax[own] = roi_pool(x, rois[own], output_size, scale, aligned)
        return y, argmax
    y, argmax, xs = xp.empty(shape, xs[0].dtype), xp.empty(shape, np.int32), [*map(xp.ascontiguousarray, xs)]
    args = maps(xs, scales), rois, levels, y, argmax, len(rois), *xs[0].shape[:2], *output_size, aligned
    backend.launch("roi_pool", "roi_pool_forward", *one_each(shape), args, y.dtype)
    return y, argmax


def backward(gy, argmax, rois, levels, scales, shapes, aligned: bool = False):
    """`roi_pool_gradient` of L levels: L of (N, C, H, W)."""
    xp, ordered = backend.array_module(gy), backend.is_deterministic()
    if xp is np:
        served = zip(_served(levels, len(shapes)), shapes)
        return [roi_pool_gradient(gy[own], argmax[own], rois[own], shape) for own, shape in served]
    gxs = [(xp.empty if ordered else xp.zeros)(shape, gy.dtype) for shape in shapes]
    args = xp.ascontiguousarray(gy), argmax, rois, levels, maps(gxs, scales)
    args = *args, len(rois), *shapes[0][:2], *gy.shape[2:]
    if ordered:  # looks for the bins of a pixel
        backend.launch("roi_pool", "roi_pool_backward_ordered", *tiles(shapes), (*args, aligned), gy.dtype)
    else:  # knows the pixel of a bin
        backend.launch("roi_pool", "roi_pool_backward", *one_each(gy.shape), args, gy.dtype)
    return gxs


def _served(levels, count: int) -> list:
    """Of each level, the RoIs that read it."""
    return [slice(None) if levels is None else levels == k for k in range(count)]
