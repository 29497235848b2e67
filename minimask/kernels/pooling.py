"""Max pooling: the largest value of each window, and its gradient.

Shapes: N images, C channels, H x W in, P x Q out, window KH x KW. The windows are those of a convolution
(`minimask.kernels.geometry`); the part of a window outside the image is ignored.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from minimask import backend
from minimask.kernels.geometry import Geometry, windows

# Of the input: 4 MiB of float32; smaller slices wait too often for the interpreter's lock.
ELEMENTS_AT_ONCE = 1 << 20


def geometry(x_shape, kernel, stride, padding) -> Geometry:
    """The sizes of a pooling: those of a convolution of N C images with one channel."""
    n, c, h, w = x_shape
    return Geometry.of((n * c, 1, h, w), (1, 1, *kernel), stride, padding, 1, 1, "max_pool2d")


def _index_dtype(g: Geometry):
    return np.uint8 if g.patch_size < 256 else np.int32


def max_pool_loop(x, g: Geometry):
    """(N C, 1, H, W) -> values and indices (N C, 1, P, Q), window by window (slow; for tests and reading)."""
    y = np.full((len(x), 1, *g.out_size), -np.inf, x.dtype)
    index = np.zeros(y.shape, _index_dtype(g)) + _first_inside(g)
    for k, (i, j) in enumerate(np.ndindex(*g.w_shape[2:])):
        for n, _, p, q in np.ndindex(*y.shape):
            u, v = p * g.stride[0] + i - g.padding[0], q * g.stride[1] + j - g.padding[1]
            if 0 <= u < x.shape[2] and 0 <= v < x.shape[3] and x[n, 0, u, v] > y[n, 0, p, q]:
                y[n, 0, p, q], index[n, 0, p, q] = x[n, 0, u, v], k
    return y, index


def max_pool(x, g: Geometry, want_index: bool):
    """The maximum of each window, and which of the window's elements it is (the first of equals).

    Parameters
    ----------
    x : (N C, 1, H, W)
    want_index : bool
        If False, the second result is None, and pooling takes half the time.

    Returns
    -------
    y : (N C, 1, P, Q) of x's dtype
    index : (N C, 1, P, Q) uint8 in [0, KH KW), or None; int32 for a window of 256 elements or more
    """
    xp = backend.array_module(x)
    if _in_one_pass(xp, g):
        y = xp.empty((len(x), 1, *g.out_size), x.dtype)
        index = xp.empty(y.shape, np.uint8) if want_index else None
        return _launch("max_pool", x, y, index, g), index
    y = xp.full((len(x), 1, *g.out_size), -np.inf, x.dtype)
    index = xp.empty(y.shape, _index_dtype(g)) if want_index else None
    first_inside = xp.asarray(_first_inside(g))

    def pool(planes: slice):
        best = y[planes]
        if want_index:
            index[planes] = first_inside
        for i, j, out, pixels in windows(g):
            value = x[planes, :, *pixels]  # element (i, j) of every window
            if want_index:
                # the last element that is larger than all before it has the largest number of those that are
                number = index.dtype.type(i * g.w_shape[3] + j)
                larger = (value > best[:, :, *out]).view(np.uint8) * number
                xp.maximum(index[planes, :, *out], larger, out=index[planes, :, *out])
            xp.maximum(best[:, :, *out], value, out=best[:, :, *out])

    parts = None if xp is np else 1
    backend.parallel_slices(len(x), pool, _planes_at_once(g), parts, operations=x.size)
    return y, index


def _first_inside(g: Geometry):
    """The number of each window's first element that is inside the image: (P, Q)."""
    rows = np.maximum(g.padding[0] - g.stride[0] * np.arange(g.out_size[0]), 0)  # (P,)
    columns = np.maximum(g.padding[1] - g.stride[1] * np.arange(g.out_size[1]), 0)  # (Q,)
    return (rows[:, None] * g.w_shape[3] + columns).astype(_index_dtype(g))


def max_pool_gradient(gy, index, g: Geometry):
    """Send each output's gradient to the element that was the maximum: (N C, 1, P, Q) -> (N C, 1, H, W)."""
    xp = backend.array_module(gy)
    if _in_one_pass(xp, g):
        gx = xp.empty((len(gy), 1, *g.x_shape[2:]), gy.dtype)
        return _launch("max_pool_gradient", gy, gx, index, g)
    if xp is np and not backend.use_reference():
        return _add_up_by_plane(gy, index, g)
    gx = xp.zeros((len(gy), 1, *g.x_shape[2:]), gy.dtype)
    for i, j, out, pixels in windows(g):
        was_largest = index[:, :, *out] == i * g.w_shape[3] + j
        gx[:, :, *pixels] += gy[:, :, *out] * was_largest
    return gx


def _add_up_by_plane(gy, index, g: Geometry):
    """`max_pool_gradient` as one pass over the outputs: gx[pixel that was the maximum] += gy."""
    (height, width), (rows, columns) = g.x_shape[2:], g.out_size
    gx = np.empty((len(gy), 1, height, width), gy.dtype)
    corner = (np.arange(rows)[:, None] * g.stride[0] - g.padding[0]) * width - g.padding[1]
    corner = (corner + np.arange(columns) * g.stride[1]).astype(np.int32)  # (P, Q) of each window, as v W + u

    def send_back(planes: slice):
        k = index[planes]  # = i KW + j, and the pixel is corner + i W + j
        pixel = corner + k + (k // g.w_shape[3]) * np.int32(width - g.w_shape[3])
        count, outputs = len(k), rows * columns
        matrix = gy[planes].ravel(), pixel.ravel(), np.arange(count + 1, dtype=np.int32) * outputs
        csr_array(matrix, shape=(count, height * width)).toarray(out=gx[planes].reshape(count, -1))

    backend.parallel_slices(len(gy), send_back, _planes_at_once(g), operations=gx.size)
    return gx


def _planes_at_once(g: Geometry) -> int:
    return max(1, ELEMENTS_AT_ONCE // max(g.x_shape[2] * g.x_shape[3], 1))


def _in_one_pass(xp, g: Geometry) -> bool:
    """Whether the CUDA kernels can do it: their indices are bytes."""
    return xp is not np and _index_dtype(g) == np.uint8 and not backend.use_reference()


def _launch(kernel: str, x, y, index, g: Geometry):
    """Fill y (M, 1, height, width) by a kernel of pooling.cu, a thread for each element."""
    args = (backend.array_module(x).ascontiguousarray(x), y, index, g.struct, len(y))
    grid = len(y), min(-(-y.shape[2] * y.shape[3] // 256), 65535)
    backend.launch("pooling", kernel, grid, 256, args, x.dtype)
    return y
