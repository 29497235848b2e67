"""RoIAlign as a sparse matrix: with average aggregation it is linear in the feature map.

Shapes: R RoIs, PH x PW bins, SY x SX sampling points a bin, L pyramid levels of (N, C, H, W) features.

Each sampling point reads four pixels with bilinear weights, so an output row is a combination of at most
4 SY SX pixels. `Plan` holds a CSR matrix A with a row for each bin and a column for each pixel of all maps.
Forward is A @ x, backward A^T @ g, on features held as (pixels, C). For the maximum, A has a row for each
sampling point instead, and the largest of a bin's rows is kept. `roi_align_loop` says the same in plain
loops, as the paper does (section 3).

On a GPU there is no matrix: `OnDevice` is launched with the RoIs themselves (roi_align.cu).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from minimask import backend


@dataclass(frozen=True)
class Sampling:
    """How a RoI layer reads a box.

    Parameters
    ----------
    output_size : (PH, PW)
    ratio : int
        Sampling points a bin in each direction; 0 or less: adaptive, ceil(bin size), one a feature pixel.
    aligned : bool
        Subtract half a pixel, so that a box edge at x lies x from the left edge of pixel 0. Without it (the
        original implementation) x lies that far from pixel 0's centre, and boxes are at least 1 pixel wide.
    points : "centers" or "crossings"
        In a bin of n x n points, at (i + 1/2) / n, or at the inner crossings (i + 1) / (n + 1) of an
        (n + 1) x (n + 1) grid.
    aggregation : "average" or "max"
    """

    output_size: tuple[int, int]
    ratio: int = 2
    aligned: bool = False
    points: str = "centers"
    aggregation: str = "average"

    def __post_init__(self):
        if min(self.output_size) < 1:
            raise ValueError(f"output_size must be positive, is {self.output_size}")
        if self.points not in ("centers", "crossings"):
            raise ValueError(f'sampling_points must be "centers" or "crossings", not {self.points!r}')
        if self.aggregation not in ("average", "max"):
            raise ValueError(f'aggregation must be "average" or "max", not {self.aggregation!r}')

    def fractions(self, n: int) -> np.ndarray:
        """Where the n points of a bin lie, as fractions of the bin."""
        return (np.arange(n) + 0.5) / n if self.points == "centers" else (np.arange(n) + 1.0) / (n + 1)


# ------------------------------------------------------------------------------------ the formula as loops


def roi_align_loop(x, rois, scale: float, s: Sampling):
    """(N, C, H, W), (R, 5) -> (R, C, PH, PW), point by point (slow; for tests and reading)."""
    (ph, pw), (height, width) = s.output_size, x.shape[2:]
    y = np.zeros((len(rois), x.shape[1], ph, pw), x.dtype)
    for r, (n, *box) in enumerate(rois):
        x1, y1, bin_w, bin_h = _bins(*(float(v) * scale for v in box), s)
        ny, nx = (s.ratio if s.ratio > 0 else max(0, math.ceil(size)) for size in (bin_h, bin_w))
        for i, j in np.ndindex(ph, pw):
            points = [
                (y1 + (i + v) * bin_h, x1 + (j + u) * bin_w) for v in s.fractions(ny) for u in s.fractions(nx)
            ]
            values = [bilinear_loop(x[int(n)], *point, height, width) for point in points]
            if values:  # an adaptive grid of a box without area has no points
                y[r, :, i, j] = (np.mean if s.aggregation == "average" else np.max)(values, axis=0)
    return y


def bilinear_loop(x, v: float, u: float, height: int, width: int):
    """The feature vector (C,) at row v, column u of one map (C, H, W); 0 more than a pixel outside."""
    if not (-1 <= v <= height and -1 <= u <= width):
        return np.zeros(len(x), x.dtype)
    v, u = min(max(v, 0.0), height - 1.0), min(max(u, 0.0), width - 1.0)
    top, left = int(v), int(u)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    b, r = v - top, u - left  # weights of the lower and of the right pixels
    upper = (1 - r) * x[:, top, left] + r * x[:, top, right]
    lower = (1 - r) * x[:, bottom, left] + r * x[:, bottom, right]
    return (1 - b) * upper + b * lower


def _bins(x1, y1, x2, y2, s: Sampling):
    """Left, top, bin width and bin height in feature pixels, counted from pixel 0's centre."""
    shift, least = (0.5, 0.0) if s.aligned else (0.0, 1.0)
    bin_w, bin_h = max(x2 - x1, least) / s.output_size[1], max(y2 - y1, least) / s.output_size[0]
    return x1 - shift, y1 - shift, bin_w, bin_h


# ---------------------------------------------------------------------------------------- the sparse matrix


@dataclass(frozen=True)
class Plan:
    """Where R RoIs read L feature maps."""

    matrix: csr_matrix  # (R PH PW, L N H W), or (R PH PW S, L N H W) for the maximum over at most S points
    count: int  # R
    sampling: Sampling

    @classmethod
    def build(cls, rois, levels, shapes, scales, sampling: Sampling, dtype) -> Plan | OnDevice:
        """Compute the matrix; of RoIs on a GPU, nothing.

        Parameters
        ----------
        rois : (R, 5) float
            Image index, x1, y1, x2, y2 in image pixels.
        levels : (R,) int or None
            Which map each RoI reads; None where there is one.
        shapes : L of (N, C, H, W)
        scales : L of float
            Feature pixels per image pixel.
        dtype : of the features
        """
        if backend.array_module(rois) is not np:
            return OnDevice(rois, levels, tuple(scales), sampling)
        levels = np.zeros(len(rois), np.int64) if levels is None else levels
        x1, y1, x2, y2 = (rois[:, 1:] * np.array(scales, rois.dtype)[levels, None]).T
        sizes = np.array([(n * h * w, h, w) for n, _, h, w in shapes])
        begin, (_, height, width) = (np.cumsum(sizes[:, 0]) - sizes[:, 0])[levels], sizes[levels].T
        map_begin = begin + rois[:, 0].astype(np.int64) * height * width  # of each RoI's map among all pixels
        rows = list(_axis(y1, y2, sampling.output_size[0], height, sampling))
        columns = list(_axis(x1, x2, sampling.output_size[1], width, sampling))
        matrix = _matrix(rows, columns, map_begin, width, sizes[:, 0].sum(), sampling, dtype)
        return cls(matrix, len(rois), sampling)


def _matrix(rows: list, columns: list, map_begin, width, pixels: int, s: Sampling, dtype) -> csr_matrix:
    """The outer products of what each RoI reads along the axes, from `_axis`."""
    (ph, pw), is_max, count = s.output_size, s.aggregation == "max", len(width)
    most = max((ny * nx for _, ny, *_ in rows for _, nx, *_ in columns), default=0) if is_max else 1
    lengths, pieces = np.zeros((count, ph * pw, most), np.int64), []
    map_begin, width = map_begin.astype(np.int32), width.astype(np.int32)  # maps of 2^31 pixels fit no memory
    for (of_v, ny, v, a), (of_u, nx, u, b) in itertools.product(rows, columns):
        own, in_v, in_u = np.intersect1d(of_v, of_u, assume_unique=True, return_indices=True)
        ny, nx, kv, ku = (ny, nx, 2, 2) if is_max else (1, 1, v.shape[1], u.shape[1])
        # (PH, PW, NY, NX, KV, KU, G), RoIs last: side by side lies what is added and multiplied
        along_v, along_u = (ph, 1, ny, 1, kv, 1, len(own)), (1, pw, 1, nx, 1, ku, len(own))
        index = (v.take(in_v, -1) * width[own] + map_begin[own]).reshape(along_v)
        index = index + u.take(in_u, -1).reshape(along_u)
        weight = a.take(in_v, -1).reshape(along_v) * b.take(in_u, -1).reshape(along_u)
        lengths[own, :, : ny * nx] = kv * ku
        entries = ph * pw * ny * nx * kv * ku, len(own)
        pieces.append((own.tolist(), index.reshape(entries).T, weight.reshape(entries).T))
    sizes = lengths.sum(axis=(1, 2))
    indices, values = np.empty(sizes.sum(), np.int32), np.empty(sizes.sum(), dtype)
    ends = np.cumsum(sizes).tolist()
    for own, *arrays in pieces:
        for r, index, weight in zip(own, *map(np.ascontiguousarray, arrays)):
            place = slice(ends[r] - len(index), ends[r])
            indices[place], values[place] = index, weight
    indptr = np.concatenate([[0], np.cumsum(lengths.ravel())])
    return csr_matrix((values, indices, indptr), shape=(lengths.size, pixels))


def _axis(begin, end, bins: int, length, s: Sampling) -> Iterator[tuple]:
    """What RoIs read along one axis, those together that read equally many pixels.

    Parameters
    ----------
    begin, end, length : (R,)
        The boxes' edges, and the size of the map, in feature pixels.

    Yields
    ------
    rois : (G,) which ones
    points : S of a bin
    pixels, weights : (rows, K, G), with a row for each bin; for the maximum, for each point
    """
    shift, least = (0.5, 0.0) if s.aligned else (0.0, 1.0)
    start, bin_size = begin - shift, np.maximum(end - begin, least) / bins
    counts = np.full(len(begin), s.ratio)
    if s.ratio <= 0:
        counts = np.maximum(np.ceil(np.where(np.isfinite(bin_size), bin_size, 0)), 0).astype(np.int64)
    for n in np.unique(counts).tolist():
        own = np.flatnonzero(counts == n)
        place = (np.arange(bins)[:, None] + s.fractions(n)).astype(start.dtype)  # (bins, S), in bins
        at, last = start[own] + place[..., None] * bin_size[own], (length[own] - 1).astype(np.int32)
        counted = ((at >= -1) & (at <= last + 1)).astype(start.dtype)  # (bins, S, G)
        fraction, low = np.modf(np.clip(np.nan_to_num(at), 0, last).astype(start.dtype))
        pixels = np.minimum(np.stack([low, low + 1], axis=2), last).astype(np.int32)  # (bins, S, 2, G)
        weights = np.stack([1 - fraction, fraction], axis=2) * counted[:, :, None]
        if s.aggregation == "max":
            yield own, n, *(values.reshape(bins * n, 2, len(own)) for values in (pixels, weights))
            continue
        pixels, weights = (values.reshape(bins, 2 * n, len(own)) for values in (pixels, weights / max(n, 1)))
        spans = np.max(pixels[:, -1:] - pixels[:, :1], axis=(0, 1), initial=-1) + 1
        for k in np.unique(np.minimum(spans, 2 * n)).tolist():
            some = np.flatnonzero(np.minimum(spans, 2 * n) == k)
            yield own[some], n, *_each_once(pixels[..., some], weights[..., some], k, last[some])


def _each_once(pixels, weights, k: int, last):
    """The k pixels from a bin's first one on, each once: points less than two pixels apart share some."""
    if k == pixels.shape[1]:
        return pixels, weights
    place, at = np.arange(k)[:, None], (pixels - pixels[:, :1])[:, :, None]  # (k, 1), (bins, K', 1, G)
    return np.minimum(pixels[:, :1] + place, last), np.where(at == place, weights[:, :, None], 0).sum(axis=1)


# ---------------------------------------------------------------------------------------------- on the GPU


@dataclass(frozen=True)
class OnDevice:
    """Where R RoIs on a GPU read L feature maps; all levels in one launch. Nothing here waits for the GPU."""

    rois: object  # (R, 5), C-contiguous, of the features' dtype
    levels: object  # (R,) int32, or None
    scales: tuple
    sampling: Sampling

    def forward(self, xs):  # L of (N, C, H, W) -> (R, C, PH, PW), and argmax of that shape or None
        xp, s, shape = backend.array_module(self.rois), self.sampling, xs[0].shape
        xs = [xp.ascontiguousarray(x) for x in xs]
        y = xp.empty((len(self.rois), shape[1], *s.output_size), xs[0].dtype)
        argmax = xp.empty(y.shape, np.int32) if s.aggregation == "max" else None
        arrays = maps(xs, self.scales), self.rois, self.levels, y
        if argmax is None and s.ratio == 2 and not backend.use_reference():
            self._launch("forward_by_bin", channels_in_turn(y.shape), arrays, shape, y.dtype)
        else:
            self._launch("forward", one_each(y.shape), (*arrays, argmax), shape, y.dtype)
        return y, argmax

    def backward(self, gy, argmax, shapes):  # (R, C, PH, PW) -> L of (N, C, H, W)
        xp, ordered, shape = backend.array_module(gy), backend.is_deterministic(), shapes[0]
        gxs, gy = [(xp.empty if ordered else xp.zeros)(s, gy.dtype) for s in shapes], xp.ascontiguousarray(gy)
        arrays = self.rois, self.levels, maps(gxs, self.scales)
        if ordered:
            self._launch("backward_ordered", tiles(shapes), (gy, argmax, *arrays), shape, gy.dtype)
        elif argmax is None and _fits(self.sampling) and not backend.use_reference():
            self._launch("backward_by_pixel", channels_in_turn(gy.shape), (gy, *arrays), shape, gy.dtype)
        else:
            self._launch("backward", one_each(gy.shape), (gy, argmax, *arrays), shape, gy.dtype)
        return gxs

    def _launch(self, kernel: str, grid_and_block, arrays, shape, dtype) -> None:
        args = *arrays, len(self.rois), *shape[:2], struct_sampling(self.sampling)
        backend.launch("roi_align", f"roi_align_{kernel}", *grid_and_block, args, dtype)


def struct_sampling(s: Sampling) -> np.ndarray:
    """``struct Sampling`` of the CUDA source."""
    fields = [("ph", "i4"), ("pw", "i4"), ("ratio", "i4"), ("aligned", "?"), ("crossings", "?")]
    values = (*s.output_size, s.ratio, s.aligned, s.points == "crossings")
    return np.array(values, np.dtype(fields, align=True))


def beside(x, rois, levels):
    """RoIs and levels (or None) where the features x are, and as the kernels want them there."""
    xp = backend.array_module(x)
    if xp is np:
        return rois, levels
    levels = None if levels is None else xp.ascontiguousarray(xp.asarray(levels, np.int32))
    return xp.ascontiguousarray(xp.asarray(rois, x.dtype)), levels


def _fits(s: Sampling) -> bool:
    """Whether `struct Axis` of roi_align.cu has room for what a RoI reads along an axis."""
    most = max(s.output_size)
    return s.ratio > 0 and most <= 16 and 2 * s.ratio * most <= 64


def maps(arrays, scales) -> np.ndarray:
    """``struct Maps<T>`` of the CUDA sources: where up to 8 levels (N, C, H, W) lie."""
    if len(arrays) > 8:
        raise ValueError(f"RoI layers read at most 8 levels on a GPU, not {len(arrays)}")
    fields = [("data", "u8", 8), ("height", "i4", 8), ("width", "i4", 8), ("scale", arrays[0].dtype, 8)]
    value = np.zeros((), np.dtype([*fields, ("count", "i4")], align=True))
    for k, (array, scale) in enumerate(zip(arrays, scales)):
        if array.dtype != arrays[0].dtype:
            raise TypeError(f"RoI layers read levels of one dtype, not {arrays[0].dtype} and {array.dtype}")
        value["data"][k], value["scale"][k] = array.data.ptr, scale
        value["height"][k], value["width"][k] = array.shape[2:]
    value["count"] = len(arrays)
    return value


def one_each(shape):
    """Grid and block for R C PH PW outputs: a row of blocks a RoI, four outputs a thread."""
    return (shape[0], min(-(-math.prod(shape[1:]) // 1024), 65535)), 256


def channels_in_turn(shape):
    """Grid and block where a thread goes through channels: 2048 blocks or so, enough for any GPU."""
    rois, channels, bins = shape[0], shape[1], math.prod(shape[2:])
    lanes = max(1, 256 // bins)  # channels that a block of whole RoIs takes at a time
    groups = max(1, min(-(-2048 // max(rois, 1)), -(-channels // lanes)))
    return (rois if channels else 0, groups), lanes * bins if bins <= 256 else 256


def tiles(shapes):
    """Grid and block of the ordered kernels: 32 x 8 pixels of an image and level, and 8 channels, a block."""
    count = sum(n * -(-h // 8) * -(-w // 32) for n, _, h, w in shapes)
    return (count, -(-shapes[0][1] // 8)), 256


# ------------------------------------------------------------------------------------- forward and backward


def forward(xs, plan: Plan | OnDevice):
    """Read the maps.

    Parameters
    ----------
    xs : L of (N, C, H, W)
    plan : Plan or OnDevice

    Returns
    -------
    y : (R, C, PH, PW)
    argmax : (R, PH PW, C) int32 or None; (R, C, PH, PW) from the GPU
        For the maximum, which sampling point won.
    """
    if isinstance(plan, OnDevice):
        return plan.forward(xs)
    matrix, channels, (ph, pw) = plan.matrix, xs[0].shape[1], plan.sampling.output_size
    y, is_max = np.zeros((plan.count, channels, ph * pw), xs[0].dtype), plan.sampling.aggregation == "max"
    argmax = np.zeros((plan.count, ph * pw, channels), np.int32) if is_max else None
    each = max(1, matrix.shape[0] // max(plan.count, 1))  # rows of a RoI: a bin, or a sampling point, each

    def write(begin, end, read):  # read: (rows, C) of some RoIs
        if is_max:
            indptr = matrix.indptr[begin * each : end * each + 1]
            read, argmax[begin:end] = _largest(read, indptr, end - begin, ph * pw)
        transpose(read.reshape(end - begin, ph * pw, channels), y[begin:end])

    multiply(matrix, channels_last(xs, matrix.indices), each, write)
    return y.reshape(plan.count, channels, ph, pw), argmax


def backward(gy, argmax, shapes, plan: Plan | OnDevice):
    """d loss / d x of each level: L of (N, C, H, W)."""
    if isinstance(plan, OnDevice):
        return plan.backward(gy, argmax, shapes)
    (r, channels, ph, pw), matrix = gy.shape, plan.matrix
    g = backend.scratch("gradient", gy.size, gy.dtype).reshape(r, ph * pw, channels)

    def bins_first(part, parts):
        own = slice(*backend.share(r, part, parts))
        g[own] = gy[own].reshape(-1, channels, ph * pw).swapaxes(1, 2)

    backend.parallel(bins_first, operations=gy.size)
    if argmax is not None:
        spread = np.zeros((r, ph * pw, matrix.shape[0] // max(r * ph * pw, 1), channels), gy.dtype)
        np.put_along_axis(spread, argmax[:, :, None], g[:, :, None], axis=2)
        g = spread
    gxs = [np.zeros(shape, gy.dtype) for shape in shapes]

    def write(begin, end, sums):  # sums: (rows, C) of some pixels
        for first, last, gx in _images(gxs):
            low, high = max(begin, first), min(end, last)
            if low < high:
                transpose(sums[low - begin : high - begin], gx[:, low - first : high - first])

    multiply(matrix.T.tocsr(), g.reshape(-1, channels), 1, write)
    return gxs


def _largest(read, indptr, rois: int, bins: int):
    """Maximum over each bin's points; rows past the last point of a RoI with fewer points do not count."""
    is_point = np.diff(indptr).reshape(rois, bins, -1, 1) > 0
    values = np.where(is_point, read.reshape(*is_point.shape[:3], -1), -np.inf)  # (R, bins, S, C)
    best = values.argmax(axis=2)
    largest = np.take_along_axis(values, best[:, :, None], axis=2)[:, :, 0]
    return np.where(np.isneginf(largest), 0, largest), best


ROWS = 1024  # rows multiplied at once: their products are still in cache when they are written transposed


def multiply(matrix: csr_matrix, x, unit: int, write) -> None:
    """CSR (rows, columns) @ dense (columns, C), some rows at a time, divided over the threads.

    ``write(begin, end, product)`` gets the rows of the units [begin, end), `unit` rows each.
    """
    ends = matrix.indptr[unit::unit]  # entries up to the end of each unit
    step = max(1, ROWS // unit)

    def work(part, parts):
        begin, last = np.searchsorted(ends, [matrix.nnz * k // parts for k in (part, part + 1)], "right")
        for first in range(begin, last, step):
            end = min(first + step, last)
            rows = matrix[first * unit : end * unit]
            if rows.nnz:
                write(first, end, rows @ x)

    backend.parallel(work, operations=matrix.nnz * x.shape[1])


PIXELS = 512  # transposed at once: as many as fit the second level of the cache with 256 channels
CELL = 16  # pixels side by side, of which all are read if one is: they come from memory together


def channels_last(xs, read):
    """L of (N, C, H, W) -> (L N H W, C) in this thread's buffer, at least the pixels numbered in `read`."""
    shape = sum(len(x) * math.prod(x.shape[2:]) for x in xs), xs[0].shape[1]
    out, pieces = backend.scratch("features", math.prod(shape), xs[0].dtype).reshape(shape), []
    many = len(read) > 8 * len(out)  # then moving all costs no more than asking which are read
    is_read = np.ones(len(out), bool) if many else np.bincount(read, minlength=len(out)) > 0
    for begin, end, x in _images(xs):
        some = np.logical_or.reduceat(is_read[begin:end], np.arange(0, end - begin, CELL))
        edges = (np.flatnonzero(np.diff(some, prepend=False, append=False)) * CELL).tolist()
        runs = (range(a, min(b, end - begin)) for a, b in zip(edges[::2], edges[1::2]))
        pieces += [(x, begin, run[at : at + PIXELS]) for run in runs for at in range(0, len(run), PIXELS)]

    def work(part, parts):
        for x, begin, own in pieces[slice(*backend.share(len(pieces), part, parts))]:
            transpose(x[:, own.start : own.stop], out[begin + own.start : begin + own.stop])

    backend.parallel(work, operations=out.size)
    return out


def _images(xs) -> Iterator[tuple]:
    """Of each image of each level the first pixel, that past it, and the view (C, H W)."""
    begin = 0
    for x in xs:
        for image in x.reshape(*x.shape[:2], math.prod(x.shape[2:])):
            yield begin, begin + image.shape[1], image
            begin += image.shape[1]


def transpose(source, target) -> None:
    """target = source^T of one matrix or many; if they are large, by way of a copy with a gap after each row.

    Rows that lie a multiple of some KiB apart share a few places of the cache and drive each other out.
    """
    *shape, columns = source.shape
    if min(shape[-1], columns) > 64:
        copy = backend.scratch("transpose", math.prod(shape) * (columns + 4), source.dtype)
        copy = copy.reshape(*shape, columns + 4)[..., :columns]
        copy[:] = source
        source = copy
    target[:] = source.swapaxes(-1, -2)
