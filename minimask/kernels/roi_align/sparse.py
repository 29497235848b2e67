"""RoIAlign as a sparse matrix: with average aggregation it is linear in the feature map.

Shapes: R RoIs, PH x PW bins, L pyramid levels of (N, C, H, W) features.

Each sampling point reads four pixels with bilinear weights, so a bin of n x n points is a combination of at
most 4 n^2 pixels. `Plan` holds a CSR matrix A with a row for each bin and a column for each pixel of all
maps. Forward is A @ x, backward A^T @ g, on features held as (pixels, C). For the maximum, A has a row for
each sampling point instead, and the largest of a bin's rows is kept.

The file first builds the matrix, then multiplies with it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from minimask import backend
from minimask.kernels.channels_last import channels_last, images, transpose
from minimask.kernels.roi_align.formula import Sampling
from minimask.kernels.roi_align.gpu import OnDevice


@dataclass(frozen=True)
class Plan:
    """Where R RoIs read L feature maps."""

    matrix: csr_matrix  # (R PH PW, L N H W), or (R PH PW S, L N H W) for the maximum over at most S points
    count: int  # R
    sampling: Sampling

    @classmethod
    def build(cls, rois, levels, shapes, scales, sampling: Sampling, dtype) -> Plan | OnDevice:
        """Compute the matrix. RoIs on a GPU need none: its kernels are launched with the RoIs themselves.

        Parameters
        ----------
        rois : (R, 5) float
            Image index, x1, y1, x2, y2 in image pixels.
        levels : (R,) int or None
            Which map each RoI reads; None if there is only one.
        shapes : L of (N, C, H, W)
        scales : L of float
            Feature pixels per image pixel.
        dtype : of the features
        """
        if backend.array_module(rois) is not np:
            return OnDevice(rois, levels, tuple(scales), sampling)
        levels = np.zeros(len(rois), np.int64) if levels is None else levels
        x1, y1, x2, y2 = (rois[:, 1:] * np.array(scales, rois.dtype)[levels, None]).T  # (R,) feature pixels
        sizes = np.array([(n * h * w, h, w) for n, _, h, w in shapes])  # (L, 3)
        level_begin = np.cumsum(sizes[:, 0]) - sizes[:, 0]  # (L,) each level's first pixel among all
        _, height, width = sizes[levels].T  # (R,) of the map that each RoI reads
        map_begin = level_begin[levels] + rois[:, 0].astype(np.int64) * height * width  # (R,) its first pixel
        ph, pw = sampling.output_size
        along_y = list(_read_axis(y1, y2, ph, height, sampling))
        along_x = list(_read_axis(x1, x2, pw, width, sampling))
        # maps of 2^31 pixels fit into no memory, so 32 bits are enough
        map_begin, width = map_begin.astype(np.int32), width.astype(np.int32)
        blocks = [_outer_product(*axes, map_begin, width) for axes in itertools.product(along_y, along_x)]
        shape = len(rois), ph * pw, sizes[:, 0].sum()
        return cls(_stacked(blocks, shape, dtype), len(rois), sampling)


# ------------------------------------------------------------------------------------- building the matrix
#
# A bilinear weight is a product: a pixel's weight for a point is one along y, which depends on the point's y
# alone, times one along x, which depends on its x alone. The points of a bin lie on a grid, so
# their mean is such a product, too. Each axis is therefore read by itself, a few numbers for each RoI and
# bin, and a RoI's part of the matrix is the outer product of its two axes:
#
#     weight of pixel (v, u) in bin (i, j)  =  weight of v in bin i, along y  *  weight of u in bin j, along x
#
# RoIs that read equally many pixels are computed together. They are the last axis of every array: NumPy's
# inner loop then runs over hundreds of RoIs instead of the two to four pixels of a bin.


@dataclass(frozen=True)
class AxisReading:
    """What G RoIs read along one axis: K pixels in each of S rows of B bins.

    For the average, a bin has one row; for the maximum, one for each of its points along this axis.
    """

    rois: np.ndarray  # (G,) which of the R RoIs
    pixels: np.ndarray  # (B, S, K, G) int32, positions along the axis
    weights: np.ndarray  # (B, S, K, G) float


def _read_axis(begin, end, bins: int, length, s: Sampling) -> Iterator[AxisReading]:
    """What R RoIs read along one axis, by groups that read equally many points and pixels.

    Parameters
    ----------
    begin, end, length : (R,)
        The boxes' edges, and the size of the map that each one reads, in feature pixels.
    """
    for rois, positions in points_along(begin, end, bins, s):
        last = (length[rois] - 1).astype(np.int32)  # (G,) the last pixel of each one's map
        pixels, weights = _neighbours(positions, last)  # (B, n, 2, G)
        if s.aggregation == "max":
            yield AxisReading(rois, pixels, weights)
        else:
            yield from _mean_of_points(rois, pixels, weights, last)


def points_along(begin, end, bins: int, s: Sampling) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Where the points of R RoIs lie along one axis, by groups that have equally many, n, in a bin.

    Yields
    ------
    rois : (G,) int64
        Which of the R.
    positions : (B, n, G)
        In feature pixels, counted from pixel 0's centre.
    """
    start, bin_size = s.start_and_bin_size(begin, end, bins)
    points = _points_in_a_bin(bin_size, s)
    for n in np.unique(points).tolist():
        rois = np.flatnonzero(points == n)
        in_bins = np.arange(bins)[:, None] + s.fractions(n)  # (B, n) from the first bin's start
        in_bins = in_bins.astype(start.dtype)[..., None]  # (B, n, 1)
        yield rois, start[rois] + in_bins * bin_size[rois]  # (B, n, G)


def _points_in_a_bin(bin_size, s: Sampling) -> np.ndarray:
    """How many points each RoI has in a bin along an axis: (R,) -> (R,)."""
    if s.ratio > 0:
        return np.full(len(bin_size), s.ratio)
    return np.maximum(np.ceil(np.where(np.isfinite(bin_size), bin_size, 0)), 0).astype(np.int64)


def _neighbours(positions, last):
    """The two pixels around each position, and their weights: (B, n, G) -> two of (B, n, 2, G).

    Up to a pixel outside the map, a position reads the pixel at the border. Further out, and where it is NaN,
    the weights are 0.
    """
    counts = ((positions >= -1) & (positions <= last + 1)).astype(positions.dtype)  # (B, n, G) 1 or 0
    clipped = np.clip(np.nan_to_num(positions), 0, last).astype(positions.dtype)
    fraction, low = np.modf(clipped)
    pixels = np.minimum(np.stack([low, low + 1], axis=2), last).astype(np.int32)  # (B, n, 2, G)
    weights = np.stack([1 - fraction, fraction], axis=2) * counts[:, :, None]  # (B, n, 2, G)
    return pixels, weights


def _mean_of_points(rois, pixels, weights, last) -> Iterator[AxisReading]:
    """One row for each bin, the mean of its n points: (B, n, 2, G) -> readings of (B, 1, K, G').

    Points less than two pixels apart share pixels, and a row needs each pixel only once. All bins of a RoI
    get room for the K pixels that its widest one spans, at most 2 n. RoIs of equal K stay together.
    """
    bins, n, _, count = pixels.shape
    weights = weights / max(n, 1)
    pixels, weights = pixels.reshape(bins, 2 * n, count), weights.reshape(bins, 2 * n, count)  # ascending
    spans = np.max(pixels[:, -1:] - pixels[:, :1], axis=(0, 1), initial=-1) + 1  # (G,)
    row_lengths = np.minimum(spans, 2 * n)  # (G,)
    for k in np.unique(row_lengths).tolist():
        members = np.flatnonzero(row_lengths == k)  # (G',) among the G
        once = _each_once(pixels[..., members], weights[..., members], k, last[members])  # (B, K, G')
        yield AxisReading(rois[members], *(values[:, None] for values in once))


def _each_once(pixels, weights, k: int, last):
    """The k pixels from each bin's first one on, with the sum of each one's weights: two (B, K, G').

    `pixels` and `weights` are (B, 2 n, G'), and `last` (G',) is the last pixel of each RoI's map.
    """
    if k == pixels.shape[1]:
        return pixels, weights
    first, steps = pixels[:, :1], np.arange(k, dtype=np.int32)[:, None]  # (B, 1, G'), (K, 1)
    is_this = (pixels - first)[:, :, None] == steps  # (B, 2 n, K, G')
    return np.minimum(first + steps, last), np.where(is_this, weights[:, :, None], 0).sum(axis=1)


@dataclass(frozen=True)
class Block:
    """The rows of the matrix that belong to G RoIs with equally many rows and entries."""

    rois: np.ndarray  # (G,) which of the R RoIs
    rows: int  # of a bin
    row_length: int  # entries of a row
    columns: np.ndarray  # (G, E) int32, E = PH PW rows row_length: which pixels, row by row
    weights: np.ndarray  # (G, E)


def _outer_product(along_y: AxisReading, along_x: AxisReading, map_begin, width) -> Block:
    """The rows of those RoIs that are in both readings; `map_begin` and `width` (R,) place their maps."""
    together = np.intersect1d(along_y.rois, along_x.rois, assume_unique=True, return_indices=True)
    rois, in_y, in_x = together  # (G,) each
    v, weight_v = along_y.pixels.take(in_y, -1), along_y.weights.take(in_y, -1)  # (PH, SY, KY, G)
    u, weight_u = along_x.pixels.take(in_x, -1), along_x.weights.take(in_x, -1)  # (PW, SX, KX, G)
    (_, sy, ky, _), (_, sx, kx, _) = v.shape, u.shape
    columns = _each_with_each(np.add, map_begin[rois] + v * width[rois], u)
    weights = _each_with_each(np.multiply, weight_v, weight_u)
    return Block(rois, sy * sx, ky * kx, columns.T, weights.T)


def _each_with_each(operation, of_y, of_x):
    """The operation on every entry of y with every entry of x: (PH, SY, KY, G), (PW, SX, KX, G) -> (E, G)."""
    grid = operation(of_y[:, None, :, None, :, None], of_x[None, :, None, :, None])
    *axes, count = grid.shape  # (PH, PW, SY, SX, KY, KX), G
    return grid.reshape(math.prod(axes), count)


def _stacked(blocks: list[Block], shape, dtype) -> csr_matrix:
    """The rows of all blocks below one another, in the order of the RoIs.

    Every bin gets as many rows as the largest one needs; those it does not need itself stay empty. `shape` is
    R, PH PW and the number of pixels.
    """
    count, bins, pixels = shape
    most_rows = max((block.rows for block in blocks), default=0)  # S
    lengths = np.zeros((count, bins, most_rows), np.int64)  # (R, PH PW, S) entries of each row
    for block in blocks:
        lengths[block.rois, :, : block.rows] = block.row_length
    ends = np.cumsum(lengths.sum(axis=(1, 2)))  # (R,) entries up to the end of each RoI
    indices, data = np.empty(lengths.sum(), np.int32), np.empty(lengths.sum(), dtype)
    for block in blocks:
        columns, weights = np.ascontiguousarray(block.columns), np.ascontiguousarray(block.weights)
        for end, roi_columns, roi_weights in zip(ends[block.rois].tolist(), columns, weights):
            entries = slice(end - len(roi_columns), end)
            indices[entries], data[entries] = roi_columns, roi_weights
    indptr = np.concatenate([[0], np.cumsum(lengths.ravel())])
    return csr_matrix((data, indices, indptr), shape=(lengths.size, pixels))


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
    rows = max(1, matrix.shape[0] // max(plan.count, 1))  # of a RoI: one for each bin, or each sampling point

    def write(begin, end, product):  # the RoIs' (rows, C)
        if is_max:
            indptr = matrix.indptr[begin * rows : end * rows + 1]
            product, argmax[begin:end] = _largest(product, indptr, end - begin, ph * pw)
        transpose(product.reshape(end - begin, ph * pw, channels), y[begin:end])

    multiply(matrix, channels_last(xs, matrix.indices), rows, write)
    return y.reshape(plan.count, channels, ph, pw), argmax


def backward(gy, argmax, shapes, plan: Plan | OnDevice):
    """d loss / d x of each level: L of (N, C, H, W)."""
    if isinstance(plan, OnDevice):
        return plan.backward(gy, argmax, shapes)
    (r, channels, ph, pw), matrix = gy.shape, plan.matrix
    g = backend.scratch("gradient", gy.size, gy.dtype).reshape(r, ph * pw, channels)

    def bins_first(part, parts):
        rois = slice(*backend.share(r, part, parts))
        g[rois] = gy[rois].reshape(-1, channels, ph * pw).swapaxes(1, 2)

    backend.parallel(bins_first, operations=gy.size)
    if argmax is not None:
        spread = np.zeros((r, ph * pw, matrix.shape[0] // max(r * ph * pw, 1), channels), gy.dtype)
        np.put_along_axis(spread, argmax[:, :, None], g[:, :, None], axis=2)
        g = spread
    gxs = [np.zeros(shape, gy.dtype) for shape in shapes]

    def write(begin, end, sums):  # the pixels' (pixels, C)
        for first, last, gx in images(gxs):
            low, high = max(begin, first), min(end, last)
            if low < high:
                transpose(sums[low - begin : high - begin], gx[:, low - first : high - first])

    # forward: y = A x, so gx = A^T g; a column of A is a pixel, and so is a row of its transpose
    multiply(matrix.T.tocsr(), g.reshape(-1, channels), 1, write)
    return gxs


def _largest(product, indptr, rois: int, bins: int):
    """The maximum over each bin's points, and which one it is; empty rows are no points and do not count."""
    is_point = np.diff(indptr).reshape(rois, bins, -1, 1) > 0  # (R, bins, S, 1)
    values = np.where(is_point, product.reshape(*is_point.shape[:3], -1), -np.inf)  # (R, bins, S, C)
    best = values.argmax(axis=2)  # (R, bins, C)
    largest = np.take_along_axis(values, best[:, :, None], axis=2)[:, :, 0]  # (R, bins, C)
    return np.where(np.isneginf(largest), 0, largest), best


ROWS_AT_ONCE = 1024  # their products are still in the cache when they are written transposed


def multiply(matrix: csr_matrix, x, unit: int, write) -> None:
    """CSR (rows, columns) @ dense (columns, C), some rows at a time, divided over the threads.

    ``write(begin, end, product)`` gets the rows of the units [begin, end), `unit` rows each.
    """
    ends = matrix.indptr[unit::unit]  # entries up to the end of each unit
    step = max(1, ROWS_AT_ONCE // unit)

    def work(part, parts):
        begin, last = np.searchsorted(ends, [matrix.nnz * k // parts for k in (part, part + 1)], "right")
        for first in range(begin, last, step):
            end = min(first + step, last)
            rows = matrix[first * unit : end * unit]
            if rows.nnz:
                write(first, end, rows @ x)

    backend.parallel(work, operations=matrix.nnz * x.shape[1])
