"""Upsampling and resizing, nearest and bilinear. Both are separable: an index or a matrix for each axis.

Pixel i covers [i, i + 1) and has its centre at i + 1/2. Bilinear reads the input at the scaled centre of the
output pixel (torch's ``align_corners=False``), nearest at its scaled left and upper edges.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.sparse import csr_array

from minimask import backend
from minimask.kernels.geometry import row_blocks

ELEMENTS_AT_ONCE = 1 << 18  # of an array: 1 MiB of float32 stays in cache from pass to pass


def nearest_index(size: int, out: int, xp=np):
    """The input pixel under each output pixel's left edge: floor(i size / out), in float32 as in torch."""
    edges = xp.arange(out, dtype=np.float32) * np.float32(size / out)
    return xp.minimum(xp.floor(edges).astype(np.int64), size - 1)


def nearest(x, out_size: tuple[int, int], add=None):
    """(..., H, W) -> (..., P, Q): each output is a copy of one input, plus `add` (..., P, Q) if given."""
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
    """The pyramid's case in one pass: outputs of even or odd rows, and even or odd columns, are x itself."""
    *planes, h, w = x.shape
    y = np.empty((math.prod(planes), 2 * h, 2 * w), x.dtype)
    x, add = x.reshape(-1, h, w), None if add is None else add.reshape(y.shape)

    def copy(planes: slice):
        for i, j in np.ndindex(2, 2):
            quarter = planes, slice(i, None, 2), slice(j, None, 2)
            y[quarter] = x[planes] if add is None else x[planes] + add[quarter]

    at_once = max(1, ELEMENTS_AT_ONCE // max(4 * h * w, 1))
    backend.parallel_slices(len(y), copy, at_once, operations=4 * y.size)
    return y.reshape(*planes, 2 * h, 2 * w)


def nearest_gradient(gy, size: tuple[int, int]):
    """Add up the gradients of each input's copies: (..., P, Q) -> (..., H, W)."""
    xp = backend.array_module(gy)
    (h, w), (p, q) = size, gy.shape[-2:]
    if xp is not np and not backend.use_reference():
        return _nearest_gpu("nearest_gradient", gy, size, (h, w, p, q))
    if xp is np and (p, q) == (2 * h, 2 * w) and not backend.use_reference():
        return _doubled_gradient(gy)
    rows = (nearest_index(h, p, xp) == xp.arange(h)[:, None]).astype(gy.dtype)  # (H, P)
    cols = (nearest_index(w, q, xp) == xp.arange(w)[:, None]).astype(gy.dtype)  # (W, Q)
    return rows @ gy @ cols.T


def _doubled_gradient(gy):
    *planes, p, q = gy.shape
    gy, gx = gy.reshape(-1, p, q), np.empty((math.prod(planes), p // 2, q // 2), gy.dtype)

    def add_up(planes: slice):
        rows = gy[planes, ::2] + gy[planes, 1::2]  # whole rows first: every other column is slower to read
        np.add(rows[..., ::2], rows[..., 1::2], out=gx[planes])

    at_once = max(1, ELEMENTS_AT_ONCE // max(p * q, 1))
    backend.parallel_slices(len(gy), add_up, at_once, operations=4 * gy.size)
    return gx.reshape(*planes, p // 2, q // 2)


def _nearest_gpu(kernel: str, x, size, sizes):
    """Run a kernel of resample.cu, a thread for each pixel of the result, of `size`; sizes are H, W, P, Q."""
    xp, (h, w, p, q) = backend.array_module(x), sizes
    y, planes = xp.empty((*x.shape[:-2], *size), x.dtype), math.prod(x.shape[:-2])
    args = (xp.ascontiguousarray(x), y, planes, *sizes, h / p, w / q)
    grid = planes, min(-(-size[0] * size[1] // 256), 65535)
    backend.launch("resample", kernel, grid, 256, args, x.dtype)
    return y


def _two_pixels(size: int, out: int):
    """For each of `out` pixels the two input pixels that it lies between, and the weight of the second."""
    centre = np.clip((np.arange(out) + 0.5) * (size / out) - 0.5, 0, size - 1)  # pixel i has its centre at i
    low = np.floor(centre).astype(np.int64)
    return low, np.minimum(low + 1, size - 1), centre - low


def bilinear_matrix(size: int, out: int, dtype, xp=np):
    """The (out, size) matrix that resizes one axis linearly, dense.

    Rows sum to 1; positions beyond the outermost pixel centres read the outermost pixel.
    """
    low, high, fraction = _two_pixels(size, out)
    matrix, rows = np.zeros((out, size), dtype), np.arange(out)
    matrix[rows, low] += 1 - fraction
    matrix[rows, high] += fraction
    return xp.asarray(matrix)


def _sparse_matrix(size: int, out: int, dtype) -> csr_array:
    """`bilinear_matrix` in sparse form, with two entries per row."""
    low, high, fraction = _two_pixels(size, out)
    values, pixels = np.stack([1 - fraction, fraction], axis=1), np.stack([low, high], axis=1)  # (out, 2)
    begins = 2 * np.arange(out + 1)
    return csr_array((values.astype(dtype).ravel(), pixels.ravel(), begins), shape=(out, size))


def bilinear(x, out_size: tuple[int, int]):
    """(..., H, W) -> (..., P, Q) by linear interpolation in both directions."""
    (h, w), (p, q), xp = x.shape[-2:], out_size, backend.array_module(x)
    if xp is not np or backend.use_reference():
        return bilinear_matrix(h, p, x.dtype, xp) @ (x @ bilinear_matrix(w, q, x.dtype, xp).T)
    return _both(_sparse_matrix(h, p, x.dtype), x, _sparse_matrix(w, q, x.dtype))


def bilinear_gradient(gy, size: tuple[int, int]):
    """The transpose of `bilinear`: (..., P, Q) -> (..., H, W)."""
    (h, w), (p, q), xp = size, gy.shape[-2:], backend.array_module(gy)
    if xp is not np or backend.use_reference():
        return bilinear_matrix(h, p, gy.dtype, xp).T @ (gy @ bilinear_matrix(w, q, gy.dtype, xp))
    return _both(_sparse_matrix(h, p, gy.dtype).T, gy, _sparse_matrix(w, q, gy.dtype).T)


def _both(rows, x, cols):
    """rows @ x @ cols^T for each of the (..., H, W) matrices of x; sparse `rows` (P, H) and `cols` (Q, W)."""
    *planes, h, w = x.shape
    rows, cols = rows.tocsr(), cols.tocsr()
    x, y = x.reshape(-1, h, w), np.empty((math.prod(planes), rows.shape[0], cols.shape[0]), x.dtype)

    def resize(part, parts):
        at_once = max(1, ELEMENTS_AT_ONCE // max(w, 1))
        for block in row_blocks(len(x), rows.shape[0], at_once, part, parts):
            side_by_side = x[block.images].swapaxes(0, 1).reshape(h, -1)  # n matrices: (H, n W)
            down = (rows[block.rows] @ side_by_side).reshape(-1, w)  # (R n, W)
            across = (cols @ down.T).T  # (R n, Q)
            y[block.images, block.rows] = across.reshape(block.height, block.count, -1).swapaxes(0, 1)

    backend.parallel(resize, operations=2 * y.size)
    return y.reshape(*planes, *y.shape[1:])
