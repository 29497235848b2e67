"""RoIPool (Fast R-CNN, section 2.1): the box is rounded to whole feature pixels, and so is each of its bins.

Shapes: R RoIs, PH x PW bins, L maps of features (N, C, H, W). `roi_pool_loop` is the definition, bin by bin;
`forward` and `backward` compute the same from all levels of a pyramid at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array

from minimask import backend
from minimask.kernels.channels_last import channels_last
from minimask.kernels.roi_launch import maps, one_each, tiles


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


def bin_edges(begin, end, bins: int, length, aligned: bool = False, xp=np):
    """First and past-the-last pixel of each bin along one axis, from box edges in feature pixels.

    Parameters
    ----------
    begin, end : (R,) float
    bins : int
        Along the axis.
    length : int or (R, 1) int
        Pixels of the feature map along it.
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


def roi_pool_loop(x, rois, output_size: tuple[int, int], scale: float, aligned: bool = False):
    """Values (R, C, PH, PW) and flat pixel indices of the maxima (-1: empty bin), bin by bin (slow)."""
    (ph, pw), (_, channels, height, width) = output_size, x.shape
    y = np.zeros((len(rois), channels, ph, pw), x.dtype)
    argmax = np.full(y.shape, -1, np.int64)
    x1, y1, x2, y2 = (np.asarray(rois)[:, 1:] * float(scale)).T
    top, bottom = bin_edges(y1, y2, ph, height, aligned)  # (R, PH)
    left, right = bin_edges(x1, x2, pw, width, aligned)  # (R, PW)
    for r, c, i, j in np.ndindex(*y.shape):
        for v in range(top[r, i], bottom[r, i]):
            for u in range(left[r, j], right[r, j]):
                value = x[int(rois[r, 0]), c, v, u]
                if argmax[r, c, i, j] < 0 or value > y[r, c, i, j]:
                    y[r, c, i, j], argmax[r, c, i, j] = value, v * width + u
    return y, argmax


def forward(xs, rois, levels, scales, output_size: tuple[int, int], aligned: bool = False):
    """The maximum over the pixels of each bin, for R RoIs that read L maps.

    Parameters
    ----------
    xs : L of (N, C, H, W)
    rois : (R, 5) float
        Image index, x1, y1, x2, y2 in image pixels.
    levels : (R,) int or None
        Which map each RoI reads; None where there is one.
    scales : L of float
        Feature pixels per image pixel.
    aligned : bool
        See `box_pixels`; False is Fast R-CNN's and torchvision's.

    Returns
    -------
    y : (R, C, PH, PW), 0 in empty bins
    argmax : (R, C, PH, PW) int32
        The first maximum's pixel v W + u in its map; -1 for an empty bin, and any of its pixels where y is
        NaN.
    """
    xp, shape = backend.array_module(*xs), (len(rois), xs[0].shape[1], *output_size)
    y, argmax = xp.empty(shape, xs[0].dtype), xp.empty(shape, np.int32)
    if xp is np:
        _pool(xs, Bins.of(xs, rois, levels, scales, output_size, aligned), y, argmax)
        return y, argmax
    xs = [*map(xp.ascontiguousarray, xs)]
    args = maps(xs, scales), rois, levels, y, argmax, len(rois), *xs[0].shape[:2], *output_size, aligned
    backend.launch("roi_pool", "roi_pool_forward", *one_each(shape), args, y.dtype)
    return y, argmax


def backward(gy, argmax, rois, levels, scales, shapes, aligned: bool = False):
    """Add each output's gradient to the pixel that was its maximum: (R, C, PH, PW) -> L of (N, C, H, W)."""
    xp, ordered = backend.array_module(gy), backend.is_deterministic()
    if xp is np:
        return _pool_gradient(gy, argmax, rois, levels, shapes)
    gxs = [(xp.empty if ordered else xp.zeros)(shape, gy.dtype) for shape in shapes]
    args = xp.ascontiguousarray(gy), argmax, rois, levels, maps(gxs, scales)
    args = *args, len(rois), *shapes[0][:2], *gy.shape[2:]
    if ordered:  # each pixel looks for its bins
        backend.launch("roi_pool", "roi_pool_backward_ordered", *tiles(shapes), (*args, aligned), gy.dtype)
    else:  # each bin knows its pixel
        backend.launch("roi_pool", "roi_pool_backward", *one_each(gy.shape), args, gy.dtype)
    return gxs


# ------------------------------------------------------------------------------------------------ on the CPU
#
# Features are read with channels last, so that a pixel's C values are one piece of memory. Bins of equal
# height and width go through their pixels in step: first the first pixel of all of them, then the second, and
# so on. Each step is a few calls of NumPy on (bins, C) values that stay in cache.

VALUES_AT_ONCE = 1 << 18  # of bins and channels: 1 MiB of float32


@dataclass(frozen=True)
class Bins:
    """Where all B = R PH PW bins lie, in pixels. Those of all maps are numbered as in `channels_last`."""

    heights: np.ndarray  # (B,) int, 0 or less: empty
    widths: np.ndarray  # (B,) int, 0 or less: empty
    begin: np.ndarray  # (B,) int, the number of the first pixel of the bin's map
    corner: np.ndarray  # (B,) int, its own first pixel v W + u, counted from there
    map_width: np.ndarray  # (B,) int, W

    @classmethod
    def of(cls, xs, rois, levels, scales, output_size: tuple[int, int], aligned: bool) -> Bins:
        """Round the boxes and their bins; arguments as for `forward`."""
        levels = np.zeros(len(rois), np.int64) if levels is None else levels
        sizes = np.array([(len(x) * x.shape[2] * x.shape[3], *x.shape[2:]) for x in xs])  # (L, 3)
        _, height, width = sizes[levels].T  # (R,)
        begin = (np.cumsum(sizes[:, 0]) - sizes[:, 0])[levels] + rois[:, 0].astype(np.int64) * height * width
        x1, y1, x2, y2 = (rois[:, 1:] * np.array(scales, rois.dtype)[levels, None]).T  # (R,) feature pixels
        top, bottom = (e[:, :, None] for e in bin_edges(y1, y2, output_size[0], height[:, None], aligned))
        left, right = (e[:, None, :] for e in bin_edges(x1, x2, output_size[1], width[:, None], aligned))
        begin, width = begin[:, None, None], width[:, None, None]
        bins = np.broadcast_arrays(bottom - top, right - left, begin, top * width + left, width)
        return cls(*(values.ravel() for values in bins))

    def by_size(self, longest: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Height, width, and up to `longest` bins that have them, empty bins left out."""
        for h, w in sorted(set(zip(self.heights.tolist(), self.widths.tolist()))):
            members = np.flatnonzero((self.heights == h) & (self.widths == w))
            if min(h, w) > 0:
                yield from ((h, w, members[k : k + longest]) for k in range(0, len(members), longest))


def _pool(xs, bins: Bins, y, argmax) -> None:
    """Fill y and argmax (R, C, PH, PW)."""
    count, channels, ph, pw = y.shape
    longest = max(1, VALUES_AT_ONCE // max(channels, 1))
    portions, read = list(bins.by_size(longest)), []
    first = bins.begin + bins.corner  # (B,)
    for h, w, members in portions:
        row = first[members] + np.arange(h)[:, None] * bins.map_width[members]  # (h, members)
        read.append((row[:, None] + np.arange(w)[:, None]).reshape(h * w, -1))  # the k-th pixel of each
    all_read = np.concatenate([pixels.ravel() for pixels in read] or [np.zeros(0, np.int64)])
    features = channels_last(xs, all_read)  # (L N H W, C)
    largest = backend.scratch("largest", y.size, y.dtype).reshape(-1, channels)  # (B, C)
    where = backend.scratch("where", y.size, np.int32).reshape(-1, channels)  # (B, C)
    empty = (bins.heights <= 0) | (bins.widths <= 0)
    largest[empty], where[empty] = 0, -1

    def pool(part, parts):
        for (_, w, members), pixels in zip(portions[part::parts], read[part::parts]):
            largest[members], won = _largest(features, pixels)
            row = won // won.dtype.type(w)  # of the bin: won = row w + column
            corner, skipped = bins.corner[members, None], bins.map_width[members, None] - w
            where[members] = corner.astype(np.int32) + row * skipped.astype(np.int32) + won

    def channels_first(rois: slice):
        for source, target in ((largest, y), (where, argmax)):
            source = source.reshape(count, ph * pw, channels)[rois]
            target.reshape(count, channels, ph * pw)[rois] = source.swapaxes(1, 2)

    backend.parallel(pool, operations=len(all_read) * channels)
    backend.parallel_slices(count, channels_first, longest=16, operations=y.size)


def _largest(features, pixels):
    """The largest of each column's pixels, and which one it was: (K, B) -> values and first k, each (B, C).

    Instead of storing k where a pixel is larger, the maximum of k over all steps that found a larger one is
    taken: the last such step has it, and arithmetic on bytes is faster than storing under a mask.
    """
    best = features[pixels[0]]  # (B, C)
    won = np.zeros(best.shape, np.uint8 if len(pixels) < 256 else np.int32)
    value, is_larger, step = np.empty_like(best), np.empty(best.shape, bool), np.empty_like(won)
    for k in range(1, len(pixels)):
        np.take(features, pixels[k], axis=0, out=value, mode="clip")  # "raise" would copy through a buffer
        np.greater(value, best, out=is_larger)
        np.multiply(is_larger.view(np.uint8), won.dtype.type(k), out=step)
        np.maximum(won, step, out=won)
        np.maximum(best, value, out=best)
    return best, won


CHANNELS_AT_ONCE = 64  # of an image, gathered from all of its RoIs and added up


def _pool_gradient(gy, argmax, rois, levels, shapes):
    """gx[argmax] += gy, a few channels of an image at a time: their planes stay in cache."""
    gxs = [np.zeros(shape, gy.dtype) for shape in shapes]
    work = []
    for k, gx in enumerate(gxs):
        on_level = np.ones(len(rois), bool) if levels is None else levels == k
        for n, image in enumerate(gx):  # (C, H, W)
            readers = np.flatnonzero(on_level & (rois[:, 0].astype(np.int64) == n))
            if len(readers):
                work += [(image, readers, c) for c in range(0, len(image), CHANNELS_AT_ONCE)]

    def add_up(part, parts):
        for image, readers, c in work[part::parts]:
            planes = image[c : c + CHANNELS_AT_ONCE]  # (C', H, W)
            g, pixel = (a[readers, c : c + len(planes)].swapaxes(0, 1).ravel() for a in (gy, argmax))
            plane = np.repeat(np.arange(len(planes), dtype=np.int32), len(g) // len(planes))
            planes, filled = planes.reshape(len(planes), -1), pixel >= 0  # planes: a view (C', H W)
            places = plane[filled], pixel[filled]
            coo_array((g[filled], places), shape=planes.shape).toarray(out=planes)  # adds up equal places

    backend.parallel(add_up, operations=gy.size)
    return gxs
