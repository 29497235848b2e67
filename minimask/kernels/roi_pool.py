"""RoIPool (Fast R-CNN, section 2.1): the box is rounded to whole feature pixels, and so is each of its bins.

Shapes: R RoIs, PH x PW bins, features (N, C, H, W). `roi_pool_loop` is the definition; `roi_pool` reads all
bins of equal size at once.
"""

from __future__ import annotations

import numpy as np

from minimask import backend
from minimask.kernels.roi_launch import maps, one_each, tiles

LARGEST_GATHER = 1 << 24  # elements gathered at once: 64 MiB of float32


def box_pixels(begin, end, aligned: bool, xp=np):
    """The whole pixels [first, past) that a box covers along one axis: the first quantisation.

    Parameters
    ----------
    begin, end : (R,) float
        Edges in feature pixels, rounded here half away from zero, as C's round does.
    aligned : bool
        True: an edge is a place, pixel i covers [i, i + 1), and the box covers [round(begin), round(end)).
        False, as in the original: an edge names a pixel, and both edge pixels belong to the box:
        [round(begin), round(end) + 1). At least one pixel in either case.

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
        floor and ceil of the bin's edges: the second quantisation. Clipped to the map, so that a bin outside
        is empty.
    """
    first_pixel, past_pixel = box_pixels(begin, end, aligned, xp)
    bin_size = (past_pixel - first_pixel) / bins
    k = xp.arange(bins).astype(bin_size.dtype)
    first = xp.floor(k * bin_size[:, None]) + first_pixel[:, None]
    past = xp.ceil((k + 1) * bin_size[:, None]) + first_pixel[:, None]
    return tuple(xp.clip(e, 0, length).astype(np.int64) for e in (first, past))


def _edges(rois, output_size, scale: float, height: int, width: int, aligned: bool):
    """Top and bottom (R, PH), left and right (R, PW) of the bins."""
    x1, y1, x2, y2 = (np.asarray(rois)[:, 1:] * float(scale)).T
    top, bottom = bin_edges(y1, y2, output_size[0], height, aligned)
    left, right = bin_edges(x1, x2, output_size[1], width, aligned)
    return top, bottom, left, right


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
    features = x.reshape(n, channels, height * width).swapaxes(1, 2)
    features = np.ascontiguousarray(features).reshape(-1, channels)  # (N H W, C)
    # of every bin of every RoI: its size, the flat index of its first pixel, and the first pixel of its image
    shape = (len(rois), ph, pw)
    heights = np.broadcast_to((bottom - top)[:, :, None], shape).ravel()  # (R PH PW,)
    widths = np.broadcast_to((right - left)[:, None, :], shape).ravel()  # (R PH PW,)
    corners = (top[:, :, None] * width + left[:, None, :]).ravel()  # (R PH PW,)
    images = np.repeat(np.asarray(rois)[:, 0].astype(np.int64) * (height * width), ph * pw)  # (R PH PW,)
    y = np.zeros((len(corners), channels), x.dtype)
    argmax = np.full(y.shape, -1, np.int64)
    for bin_h, bin_w in sorted(set(zip(heights.tolist(), widths.tolist()))):
        if bin_h <= 0 or bin_w <= 0:
            continue
        # row by row: the first maximum wins
        offsets = (np.arange(bin_h)[:, None] * width + np.arange(bin_w)).ravel()  # (area,)
        of_this_size = np.flatnonzero((heights == bin_h) & (widths == bin_w))
        portions = -(-of_this_size.size * offsets.size * channels // LARGEST_GATHER)
        for bins in np.array_split(of_this_size, portions):
            pixels = corners[bins, None] + offsets  # (bins, area)
            values = features[images[bins, None] + pixels]  # (bins, area, C)
            best = values.argmax(axis=1)  # (bins, C)
            y[bins] = np.take_along_axis(values, best[:, None], axis=1)[:, 0]
            argmax[bins] = np.take_along_axis(pixels, best, axis=1)
    by_roi = (a.reshape(len(rois), ph * pw, channels) for a in (y, argmax))
    return tuple(np.ascontiguousarray(a.swapaxes(1, 2)).reshape(-1, channels, ph, pw) for a in by_roi)


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
    """`roi_pool` of L levels (N, C, H, W): level by level in NumPy, all in one launch on a GPU."""
    xp, shape = backend.array_module(*xs), (len(rois), xs[0].shape[1], *output_size)
    if xp is np:
        y, argmax = np.zeros(shape, xs[0].dtype), np.zeros(shape, np.int64)
        for x, scale, readers in zip(xs, scales, _readers(levels, len(xs))):
            y[readers], argmax[readers] = roi_pool(x, rois[readers], output_size, scale, aligned)
        return y, argmax
    y, argmax, xs = xp.empty(shape, xs[0].dtype), xp.empty(shape, np.int32), [*map(xp.ascontiguousarray, xs)]
    args = maps(xs, scales), rois, levels, y, argmax, len(rois), *xs[0].shape[:2], *output_size, aligned
    backend.launch("roi_pool", "roi_pool_forward", *one_each(shape), args, y.dtype)
    return y, argmax


def backward(gy, argmax, rois, levels, scales, shapes, aligned: bool = False):
    """`roi_pool_gradient` of L levels: L of (N, C, H, W)."""
    xp, ordered = backend.array_module(gy), backend.is_deterministic()
    if xp is np:
        readers = zip(_readers(levels, len(shapes)), shapes)
        return [roi_pool_gradient(gy[r], argmax[r], rois[r], shape) for r, shape in readers]
    gxs = [(xp.empty if ordered else xp.zeros)(shape, gy.dtype) for shape in shapes]
    args = xp.ascontiguousarray(gy), argmax, rois, levels, maps(gxs, scales)
    args = *args, len(rois), *shapes[0][:2], *gy.shape[2:]
    if ordered:  # each pixel looks for its bins
        backend.launch("roi_pool", "roi_pool_backward_ordered", *tiles(shapes), (*args, aligned), gy.dtype)
    else:  # each bin knows its pixel
        backend.launch("roi_pool", "roi_pool_backward", *one_each(gy.shape), args, gy.dtype)
    return gxs


def _readers(levels, count: int) -> list:
    """For each level, which RoIs read it."""
    return [slice(None) if levels is None else levels == k for k in range(count)]
