"""Upsampling and resizing, nearest and bilinear, as separable maps: one small matrix or index a direction.

A pixel i covers [i, i + 1) and has its centre at i + 1/2; an output pixel's centre, scaled, is where the
input is read (what torch calls ``align_corners=False``).
"""

from __future__ import annotations

import math

import numpy as np

from minimask import backend
from minimask.kernels.product import product

CACHED = 1 << 18  # elements of a piece that stays in cache over its four passes


def nearest_index(size: int, out: int, xp=np):
    """The input pixel under each output pixel's left edge: floor(i size / out), in torch's float32."""
    return xp.minimum(
        xp.floor(xp.arange(out, dtype=np.float32) * np.float32(size / out)).astype(np.int64), size - 1
    )


def nearest(x, out_size: tuple[int, int], add=None):
    """(..., H, W) -> (..., P, Q), each output a copy of one input; plus `add` (..., P, Q), if given."""
    xp = backend.array_module(x)
    (h, w), (p, q) = x.shape[-2:], out_size
    if xp is np and (p, q) == (2 * h, 2 * w) and not backend.use_reference():
        return _doubled(x, add)
    if xp is not np and x.dtype.kind == "f" and not backend.use_reference():  # the kernel copies floats
        y = _nearest_gpu("nearest", x, out_size, (h, w, p, q))
    else:
        y = x[..., nearest_index(h, p, xp)[:, None], nearest_index(w, q, xp)]
    return y if add is None else xp.add(y, add, out=y)


def _doubled(x, add):
    """The pyramid's case in one pass: the outputs of even and odd rows and columns, apart, are x itself."""
    *planes, h, w = x.shape
    y = np.empty((math.prod(planes), 2 * h, 2 * w), x.dtype)
    x, add = x.reshape(-1, h, w), None if add is None else add.reshape(y.shape)

    def work(part, parts):
        begin, end = backend.share(len(y), part, parts)
        step = max(1, CACHED // max(4 * h * w, 1))
        for n in range(begin, end, step):
            some = slice(n, min(n + step, end))
            for i, j in np.ndindex(2, 2):
                quarter = some, slice(i, None, 2), slice(j, None, 2)
                y[quarter] = x[some] if add is None else x[some] + add[quarter]

    backend.parallel(work, operations=4 * y.size)
    return y.reshape(*planes, 2 * h, 2 * w)


def nearest_gradient(gy, size: tuple[int, int]):
    """Add up the gradients of each input's copies: (..., P, Q) -> (..., H, W)."""
    xp = backend.array_module(gy)
    (h, w), (p, q) = size, gy.shape[-2:]
    if xp is not np and not backend.use_reference():
        return _nearest_gpu("nearest_gradient", gy, size, (h, w, p, q))
    if xp is np and (p, q) == (2 * h, 2 * w) and not backend.use_reference():
        g, gx = gy.reshape(-1, p, q), np.empty((math.prod(gy.shape[:-2]), h, w), gy.dtype)

        def work(part, parts):
            own = slice(*backend.share(len(g), part, parts))
            np.add(g[own, ::2, ::2], g[own, ::2, 1::2], out=gx[own])
            gx[own] += g[own, 1::2, ::2]
            gx[own] += g[own, 1::2, 1::2]

        backend.parallel(work, operations=4 * g.size)
        return gx.reshape(*gy.shape[:-2], h, w)
    rows = (nearest_index(h, p, xp) == xp.arange(h)[:, None]).astype(gy.dtype)  # (H, P)
    cols = (nearest_index(w, q, xp) == xp.arange(w)[:, None]).astype(gy.dtype)  # (W, Q)
    return rows @ gy @ cols.T


def _nearest_gpu(kernel: str, x, size, sizes):
    """A kernel of resample.cu, a thread for each pixel of the result, of `size`; sizes are H, W, P, Q."""
    xp, (h, w, p, q) = backend.array_module(x), sizes
    y, planes = xp.empty((*x.shape[:-2], *size), x.dtype), math.prod(x.shape[:-2])
    args = (xp.ascontiguousarray(x), y, planes, *sizes, h / p, w / q)
    grid = planes, min(-(-size[0] * size[1] // 256), 65535)
    backend.launch("resample", kernel, grid, 256, args, x.dtype)
    return y


def bilinear_matrix(size: int, out: int, dtype, scale: float | None = None, xp=np):
    """The (out, size) matrix that resizes one axis linearly.

    Parameters
    ----------
    size, out : int
        Pixels in and out.
    scale : float, optional
        Input pixels per output pixel, size / out by default.

    Notes
    -----
    Rows sum to 1; positions beyond the outermost pixel centres read the outermost pixel.
    """
    scale = size / out if scale is None else scale
    centre = np.clip((np.arange(out) + 0.5) * scale - 0.5, 0, size - 1)  # in units of pixel centres
    low = np.floor(centre).astype(np.int64)
    high = np.minimum(low + 1, size - 1)
    matrix = np.zeros((out, size), dtype)
    rows, fraction = np.arange(out), centre - low
    matrix[rows, low] += 1 - fraction
    matrix[rows, high] += fraction
    return xp.asarray(matrix)


def bilinear(x, out_size: tuple[int, int]):
    """(..., H, W) -> (..., P, Q) by linear interpolation in both directions."""
    xp = backend.array_module(x)
    rows = bilinear_matrix(x.shape[-2], out_size[0], x.dtype, xp=xp)
    cols = bilinear_matrix(x.shape[-1], out_size[1], x.dtype, xp=xp)
    return _both(rows, x, cols)


def bilinear_gradient(gy, size: tuple[int, int]):
    """The transpose of `bilinear`: (..., P, Q) -> (..., H, W)."""
    xp = backend.array_module(gy)
    rows = bilinear_matrix(size[0], gy.shape[-2], gy.dtype, xp=xp)
    cols = bilinear_matrix(size[1], gy.shape[-1], gy.dtype, xp=xp)
    return _both(rows.T, gy, cols.T)


def _both(rows, x, cols):
    """rows @ x @ cols^T for each of the (..., H, W) matrices of x."""
    if backend.array_module(x) is not np:
        return rows @ (x @ cols.T)
    across = product(x.reshape(-1, x.shape[-1]), cols.T).reshape(-1, x.shape[-2], len(cols))
    y = np.array([product(rows, image) for image in across], x.dtype)
    return y.reshape(*x.shape[:-2], len(rows), len(cols))
