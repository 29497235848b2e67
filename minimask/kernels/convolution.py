"""Convolution as matrix products: forward, and the gradients of input and weights.

Shapes: N images, C channels in, O channels out, G groups, H x W in, P x Q out, kernel KH x KW.
Group g reads channels [g C/G, (g+1) C/G) and writes [g O/G, (g+1) O/G).

    y[n, o, p, q] = b[o] + sum_{c, i, j} w[o, c, i, j] x[n, c, p s + i d - pad, q s + j d - pad]

`minimask.kernels.im2col` has this as loops, and as one product with the whole matrix of patches
(C KH KW, P Q). Here the same is done for a block of output rows at a time, so that the patches are still in
cache when they are multiplied, with the blocks divided over the threads.
"""

from __future__ import annotations

import numpy as np

from minimask import backend
from minimask.kernels import convolution_gpu
from minimask.kernels.geometry import Geometry, row_blocks, windows
from minimask.kernels.im2col import forward_im2col, input_gradient_im2col, weight_gradient_im2col

BLOCK = 1 << 21  # floats of a block's patches, 8 MiB: smaller ones fit the second-level cache, but then the
# threads wait more for the interpreter's lock between NumPy's calls than they gain

# ------------------------------------------------------------------------------------- blocks, in threads
# n images of a block at a time, R rows of each, L = R Q positions; K = C/G KH KW elements a patch.


def _blocks(g: Geometry, part: int, parts: int, block: int | None = None):
    """This part's blocks of rows: (first image, past it, first row, past it)."""
    rows = max(1, (block or BLOCK) // max(1, g.groups * g.patch_size * g.out_size[1]))
    return row_blocks(g.x_shape[0], g.out_size[0], rows, part, parts)


def _patches(x, g: Geometry, first: int, last: int):
    """Patches of output rows [first, last) of n images (n, C, H, W) -> (n, G, K, L)."""
    n, channels = x.shape[:2]
    (kh, kw), rows = g.w_shape[2:], last - first
    if g.is_pointwise:
        size = g.out_size[1]
        return x.reshape(n, g.groups, g.patch_size, -1)[..., first * size : last * size]
    cols = backend.scratch("patches", n * channels * kh * kw * rows * g.out_size[1], x.dtype)
    cols = cols.reshape(n, channels, kh, kw, rows, g.out_size[1])
    for i, j, (down, across), pixels in windows(g, first, rows):
        target = cols[:, :, i, j]
        target[:, :, : down.start] = 0
        target[:, :, down.stop :] = 0
        target[..., : across.start] = 0
        target[..., across.stop :] = 0
        target[:, :, down, across] = x[:, :, pixels[0], pixels[1]]
    return cols.reshape(n, g.groups, g.patch_size, rows * g.out_size[1])


def forward(x, w, b, g: Geometry, relu: bool = False, residual=None):
    """Convolution of a batch; what often follows is done to each block while it is in cache.

    Parameters
    ----------
    x : (N, C, H, W) float
    w : (O, C/G, KH, KW) float
    b : (O,) float or None
    g : Geometry
    relu : bool
        Apply max(y, 0), last.
    residual : (N, O, P, Q) float, optional
        Added before that.

    Returns
    -------
    (N, O, P, Q) of x's dtype.
    """
    xp = backend.array_module(x, w)
    if xp is not np and not backend.use_reference():
        return convolution_gpu.forward(x, w, b, g, relu, residual)
    if backend.use_reference():
        y = forward_im2col(x, w, b, g, xp)
        y = y if residual is None else y + residual
        return xp.maximum(y, 0) if relu else y
    x, y = np.ascontiguousarray(x), np.empty(g.y_shape, x.dtype)
    w3 = np.ascontiguousarray(w).reshape(g.groups, -1, g.patch_size)  # (G, O/G, K)
    b3 = None if b is None else b.reshape(g.groups, -1, 1)

    def work(part, parts):
        for n0, n1, first, last in _blocks(g, part, parts):
            out = _rows(y, g, n0, n1, first, last)  # (n, G, O/G, R, Q)
            block = out.reshape(*out.shape[:3], -1)  # the same memory: (n, G, O/G, L)
            _product(w3, _patches(x[n0:n1], g, first, last), block)
            if b3 is not None:
                block += b3
            if residual is not None:
                out += _rows(residual, g, n0, n1, first, last)
            if relu:
                np.maximum(out, 0, out=out)

    backend.parallel(work, operations=y.size * g.patch_size)
    return y


def _rows(y, g: Geometry, n0: int, n1: int, first: int, last: int):
    """Output rows of some images by group, a view: (N, O, P, Q) -> (n, G, O/G, R, Q)."""
    return y.reshape(len(y), g.groups, y.shape[1] // g.groups, *y.shape[2:])[n0:n1, :, :, first:last]


def input_gradient(gy, w, g: Geometry):
    """d loss / d x (N, C, H, W) from d loss / d y (N, O, P, Q)."""
    xp = backend.array_module(gy, w)
    if xp is not np and not backend.use_reference():
        return convolution_gpu.input_gradient(gy, w, g)
    if backend.use_reference():
        return input_gradient_im2col(gy, w, g, xp)
    back = g.transposed()
    if g.stride == (1, 1) and min(back.padding) >= 0:
        # Stride 1: x[u] was read by y[u - i + pad] with w[i], so gx is the convolution of gy with w turned
        # by 180 degrees, input and output channels exchanged.
        o, c, kh, kw = g.w_shape
        turned = w.reshape(g.groups, o // g.groups, c, kh, kw)[:, :, :, ::-1, ::-1].swapaxes(1, 2)
        return forward(gy, np.ascontiguousarray(turned).reshape(back.w_shape), None, back)
    if g.stride == g.w_shape[2:] and g.padding == (0, 0) and g.dilation == (1, 1) and g.groups == 1:
        return _input_gradient_apart(np.ascontiguousarray(gy), w, g)
    return _input_gradient_by_channels(np.ascontiguousarray(gy), w, g)


def _input_gradient_apart(gy, w, g: Geometry):
    """w^T @ gy put into place, for windows that touch without overlap: the mask head's deconvolution."""
    (o, channels, kh, kw), (height, width) = g.w_shape, g.out_size
    gx = (np.empty if g.x_shape[2:] == (height * kh, width * kw) else np.zeros)(g.x_shape, gy.dtype)
    wt = np.ascontiguousarray(w.reshape(o, -1).T)[None]  # (1, C KH KW, O)

    def work(part, parts):
        rows = max(1, BLOCK // (channels * kh * kw * width))
        for n0, n1, first, last in row_blocks(len(gy), height, rows, part, parts):
            g_rows = _rows(gy, g, n0, n1, first, last)  # (n, 1, O, R, Q)
            n, size = n1 - n0, (last - first) * width
            cols = backend.scratch("patches", n * channels * kh * kw * size, gy.dtype)
            cols = cols.reshape(n, 1, channels * kh * kw, size)
            _product(wt, g_rows.reshape(n, 1, o, size), cols)
            cols = cols.reshape(n, channels, kh, kw, last - first, width)
            for i, j in np.ndindex(kh, kw):
                down, across = slice(first * kh + i, last * kh, kh), slice(j, width * kw, kw)
                gx[n0:n1, :, down, across] = cols[:, :, i, j]

    backend.parallel(work, operations=gy.size * w[0].size)
    return gx


def _input_gradient_by_channels(gy, w, g: Geometry):
    """w^T @ gy added into place; each thread owns some input channels, so no two add to the same pixel."""
    gx = np.empty(g.x_shape, gy.dtype)
    n_images, (o, depth, kh, kw), (height, width) = len(gy), g.w_shape, g.out_size
    w5 = w.reshape(g.groups, o // g.groups, depth, kh, kw)

    def work(part, parts):
        if g.groups > 1:  # whole groups
            groups, channels = slice(*backend.share(g.groups, part, parts)), slice(0, depth)
        else:
            groups, channels = slice(0, 1), slice(*backend.share(depth, part, parts))
        own = slice(groups.start * depth + channels.start, (groups.stop - 1) * depth + channels.stop)
        count = own.stop - own.start
        if count <= 0:
            return
        gx[:, own] = 0
        wt = w5[groups, :, channels].reshape(groups.stop - groups.start, o // g.groups, -1).swapaxes(1, 2)
        rows = min(height, max(1, BLOCK // (count * kh * kw * width)))
        images = max(1, BLOCK // (count * kh * kw * width * height)) if rows == height else 1
        for n in range(0, n_images, images):
            some = slice(n, min(n + images, n_images))
            for first in range(0, height, rows):
                last = min(height, first + rows)
                g_rows = _rows(gy, g, some.start, some.stop, first, last)[:, groups]  # (n, G, O/G, R, Q)
                size = (last - first) * width
                cols = backend.scratch("patches", len(g_rows) * count * kh * kw * size, gy.dtype)
                cols = cols.reshape(len(g_rows), *wt.shape[:2], size)
                _product(wt, g_rows.reshape(*g_rows.shape[:3], size), cols)
                cols = cols.reshape(len(g_rows), count, kh, kw, last - first, width)
                for i, j, out, pixels in windows(g, first, last - first):
                    gx[some, own, pixels[0], pixels[1]] += cols[:, :, i, j, out[0], out[1]]

    backend.parallel(work, operations=gy.size * w[0].size)
    return gx


def weight_gradient(gy, x, g: Geometry):
    """d loss / d w (O, C/G, KH, KW) from d loss / d y and the input; each thread adds up its own rows."""
    xp = backend.array_module(gy, x)
    if xp is not np and not backend.use_reference():
        return convolution_gpu.weight_gradient(gy, x, g)
    if backend.use_reference():
        return weight_gradient_im2col(gy, x, g, xp)
    x, gy = np.ascontiguousarray(x), np.ascontiguousarray(gy)
    sums: dict[int, np.ndarray] = {}

    def work(part, parts):
        total = np.zeros((g.groups, g.patch_size, g.w_shape[0] // g.groups), gy.dtype)
        # Each block also reads and writes all of gw: larger blocks where gw is large.
        for n0, n1, first, last in _blocks(g, part, parts, max(BLOCK, 4 * total.size)):
            g_rows = _rows(gy, g, n0, n1, first, last)  # (n, G, O/G, R, Q)
            one = backend.scratch("weights", (n1 - n0) * total.size, gy.dtype).reshape(n1 - n0, *total.shape)
            cols = _patches(x[n0:n1], g, first, last)  # (n, G, K, L)
            # patches @ gy^T: BLAS is faster where the first matrix is the larger one
            _product(cols, g_rows.reshape(*g_rows.shape[:3], -1).swapaxes(2, 3), one)
            for gw in one:
                total += gw
        sums[part] = total

    backend.parallel(work, operations=gy.size * g.patch_size)
    gw = sums.pop(0)
    for part in sorted(sums):
        gw += sums[part]
    return np.ascontiguousarray(gw.swapaxes(1, 2)).reshape(g.w_shape)


def bias_gradient(gy):
    """d loss / d b (O,): the sum over images and positions, contiguous ones first."""
    if backend.array_module(gy) is not np or backend.use_reference():
        return gy.sum(axis=(2, 3)).sum(axis=0)  # CuPy is slow at few long sums of scattered pieces
    n, o, p, q = gy.shape
    rows, sums = gy.reshape(n * o, p * q), np.empty(n * o, gy.dtype)

    def work(part, parts):
        own = slice(*backend.share(n * o, part, parts))
        rows[own].sum(axis=1, out=sums[own])

    backend.parallel(work, operations=gy.size)
    return sums.reshape(n, o).sum(axis=0)


def _product(a, b, out) -> None:
    """out = a @ b for stacks of matrices; NumPy gives single ones to BLAS without copying."""
    if out.shape[:2] == (1, 1):
        np.matmul(a.reshape(a.shape[-2:]) if a.ndim == 3 else a[0, 0], b[0, 0], out=out[0, 0])
    else:
        np.matmul(a, b, out=out)
