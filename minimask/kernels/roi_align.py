"""RoIAlign as a sparse matrix: with average aggregation it is linear in the feature map.

Shapes: R RoIs, PH x PW bins, SY x SX sampling points a bin, L pyramid levels of (N, C, H, W) features.

Each sampling point reads four pixels with bilinear weights, so an output row is a combination of at most
4 SY SX pixels. `Plan` holds one CSR matrix A a level, with a row for each bin of that level's RoIs and a
column for each pixel of its N images. Forward is A @ x, backward A^T @ g, on features held as (N H W, C).
For the maximum, A has a row for each sampling point instead, and the largest of a bin's rows is kept.
`roi_align_loop` says the same in plain loops, as the paper does (section 3).

On a GPU there is no matrix: `OnDevice` is launched with the RoIs themselves (roi_align.cu).
"""

from __future__ import annotations

import math
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
        ny, nx = _points(bin_h, s), _points(bin_w, s)
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
    shift = 0.5 if s.aligned else 0.0
    least = 0.0 if s.aligned else 1.0
    bin_w, bin_h = max(x2 - x1, least) / s.output_size[1], max(y2 - y1, least) / s.output_size[0]
    return x1 - shift, y1 - shift, bin_w, bin_h


def _points(bin_size: float, s: Sampling) -> int:
    return s.ratio if s.ratio > 0 else max(0, math.ceil(bin_size))


# ---------------------------------------------------------------------------------------- the sparse matrix


@dataclass(frozen=True)
class Plan:
    """Where R RoIs read L feature maps: a matrix a level, and the RoIs that it serves."""

    matrices: tuple  # L of CSR (rows, N H W)
    rois_of_level: tuple  # L of (R_l,) indices; slice(None) where one level serves all
    count: int  # R
    sampling: Sampling

    @classmethod
    def build(cls, rois, levels, shapes, scales, sampling: Sampling, dtype) -> Plan | OnDevice:
        """Compute the matrices; of RoIs on a GPU, nothing.

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
        matrices, served = [], []
        for level, (shape, scale) in enumerate(zip(shapes, scales)):
            own = slice(None) if levels is None else np.flatnonzero(levels == level)
            matrices.append(_matrix(rois[own], shape, scale, sampling, dtype))
            served.append(own)
        return cls(tuple(matrices), tuple(served), len(rois), sampling)


def _matrix(rois, shape, scale: float, s: Sampling, dtype) -> csr_matrix:
    """CSR (R PH PW, N H W) for the average, (R PH PW S, N H W) for the maximum over S points."""
    n_images, _, height, width = shape
    x1, y1, x2, y2 = (rois[:, 1:] * float(scale)).T
    shift, least = (0.5, 0.0) if s.aligned else (0.0, 1.0)
    bin_h = np.maximum(y2 - y1, least) / s.output_size[0]  # (R,)
    bin_w = np.maximum(x2 - x1, least) / s.output_size[1]
    if s.ratio > 0:
        groups = [(slice(None), s.ratio, s.ratio)]
        most = s.ratio**2
    else:  # RoIs with equally many points are served together
        ny, nx = (np.maximum(np.ceil(b), 0).astype(np.int64) for b in (bin_h, bin_w))
        pairs = sorted(set(zip(ny.tolist(), nx.tolist())))
        groups = [(np.flatnonzero((ny == a) & (nx == b)), a, b) for a, b in pairs]
        most = max((a * b for _, a, b in groups), default=0)

    rows_each = most if s.aggregation == "max" else 1
    bins = s.output_size[0] * s.output_size[1]
    lengths = np.zeros((len(rois), bins, rows_each), np.int64)
    index_type = np.int32 if n_images * height * width < 2**31 else np.int64
    pieces = []
    for own, ny, nx in groups:
        v_index, v_weight = _axis(y1[own] - shift, bin_h[own], s.output_size[0], s.fractions(ny), height)
        u_index, u_weight = _axis(x1[own] - shift, bin_w[own], s.output_size[1], s.fractions(nx), width)
        # (R, PH, SY, 2) and (R, PW, SX, 2) -> (R, PH, PW, SY, SX, 2, 2)
        along_v = (slice(None), slice(None), None, slice(None), None, slice(None), None)
        along_u = (slice(None), None, slice(None), None, slice(None), None, slice(None))
        first = rois[own, 0].astype(index_type)[:, None, None, None] * (height * width)
        index = (first + v_index * width)[along_v] + u_index[along_u]
        weight = v_weight[along_v] * u_weight[along_u]
        if s.aggregation == "average":
            weight = weight / max(ny * nx, 1)
            lengths[own] = 4 * ny * nx
        else:
            lengths[own, :, : ny * nx] = 4
        entries = (len(index), bins * ny * nx * 4)
        pieces.append((own, index.reshape(entries), weight.astype(dtype).reshape(entries)))
    columns, values = _in_order(pieces, len(rois))
    indptr = np.concatenate([[0], np.cumsum(lengths.ravel())])
    shape = (lengths.size, n_images * height * width)
    indptr = indptr.astype(columns.dtype if indptr[-1] < 2**31 else np.int64)
    return csr_matrix((values, columns, indptr), shape=shape)


def _axis(start, bin_size, bins: int, fractions, length: int):
    """The two pixels that each sampling point of one axis reads, and their weights: two (R, bins, S, 2)."""
    place = (np.arange(bins)[:, None] + fractions).astype(start.dtype)  # (bins, S), in bins
    at = start[:, None, None] + place * bin_size[:, None, None]
    inside = (at >= -1) & (at <= length)
    at = np.clip(at, 0, length - 1)
    low = at.astype(np.int32)
    high = np.minimum(low + 1, length - 1)
    fraction = at - low
    weight = np.stack([1 - fraction, fraction], axis=-1) * inside[..., None]
    return np.stack([low, high], axis=-1), weight


def _in_order(pieces, count: int):
    """Join the groups' (R_g, entries) arrays so that RoIs stand in their own order again."""
    if len(pieces) == 1:
        return pieces[0][1].ravel(), pieces[0][2].ravel()
    columns, values = [None] * count, [None] * count
    for own, index, weight in pieces:
        for row, r in enumerate(own):
            columns[r], values[r] = index[row], weight[row]
    if not count:
        return np.zeros(0, np.int32), np.zeros(0)
    return np.concatenate(columns), np.concatenate(values)


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


def forward(xs, plan: Plan):
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
    channels, (ph, pw), is_max = xs[0].shape[1], plan.sampling.output_size, plan.sampling.aggregation == "max"
    y = np.zeros((plan.count, channels, ph * pw), xs[0].dtype)
    argmax = np.zeros((plan.count, ph * pw, channels), np.int32) if is_max else None
    for x, matrix, own in zip(xs, plan.matrices, plan.rois_of_level):
        if not matrix.nnz:
            continue
        rois = np.arange(plan.count)[own]
        per_roi = matrix.shape[0] // len(rois)  # rows: a bin, or a sampling point, each

        # read: (rows, C) of some RoIs
        def write(begin, end, read, matrix=matrix, rois=rois, per_roi=per_roi):
            some = rois[begin:end]
            if is_max:
                indptr = matrix.indptr[begin * per_roi : end * per_roi + 1]
                read, argmax[some] = _largest(read, indptr, len(some), ph * pw)
            y[some] = read.reshape(len(some), ph * pw, channels).swapaxes(1, 2)

        multiply(matrix, channels_last(x, "features"), per_roi, write)
    return y.reshape(plan.count, channels, ph, pw), argmax


def backward(gy, argmax, shapes, plan: Plan):
    """d loss / d x of each level: L of (N, C, H, W)."""
    if isinstance(plan, OnDevice):
        return plan.backward(gy, argmax, shapes)
    r, channels, ph, pw = gy.shape
    g = channels_last(gy, "gradient").reshape(r, ph * pw, channels)
    gradients = []
    for (n, _, height, width), matrix, own in zip(shapes, plan.matrices, plan.rois_of_level):
        gx = np.zeros((n, channels, height * width), gy.dtype)
        gradients.append(gx.reshape(n, channels, height, width))
        if not matrix.nnz:
            continue
        g_level = g[own]
        if argmax is not None:
            points = matrix.shape[0] // (len(g_level) * ph * pw)
            spread = np.zeros((*g_level.shape[:2], points, channels), gy.dtype)
            np.put_along_axis(spread, argmax[own][:, :, None], g_level[:, :, None], axis=2)
            g_level = spread

        def write(begin, end, sums, gx=gx, pixels=height * width):  # sums: (rows, C) of some pixels
            while begin < end:
                image, first = divmod(begin, pixels)
                last = min(pixels, first + end - begin)
                gx[image, :, first:last] = sums[: last - first].T
                begin, sums = begin + last - first, sums[last - first :]

        multiply(matrix.T.tocsr(), g_level.reshape(-1, channels), 1, write)
    return gradients


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
        begin, last = (int(np.searchsorted(ends, matrix.nnz * k // parts)) for k in (part, part + 1))
        last = len(ends) if part == parts - 1 else last
        for first in range(begin, last, step):
            end = min(first + step, last)
            pointer = matrix.indptr[first * unit : end * unit + 1]
            inner = slice(pointer[0], pointer[-1])
            if inner.stop > inner.start:
                rows = (matrix.data[inner], matrix.indices[inner], pointer - pointer[0])
                write(first, end, csr_matrix(rows, shape=(len(pointer) - 1, matrix.shape[1])) @ x)

    backend.parallel(work)


def channels_last(x, name: str):
    """(N, C, H, W) -> (N H W, C) in the buffer of that name; some pixels at a time, to stay in cache."""
    n, c, h, w = x.shape
    x, out = x.reshape(n, c, h * w), backend.scratch(name, x.size, x.dtype).reshape(n, h * w, c)

    def work(part, parts):
        begin, end = backend.share(n * h * w, part, parts)
        while begin < end:
            image, first = divmod(begin, h * w)
            last = min(h * w, first + 256, first + end - begin)
            out[image, first:last] = x[image, :, first:last].T
            begin += last - first

    backend.parallel(work)
    return out.reshape(n * h * w, c)
