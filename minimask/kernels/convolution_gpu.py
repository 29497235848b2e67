"""Convolution on the GPU: the matrix of patches a block at a time, multiplied by cuBLAS.

Shapes: N images, C channels in, O channels out, G groups, H x W in, P x Q out, kernel KH x KW; of a block n
images, R rows of each, L = n R Q columns; K = C/G KH KW elements a patch.

    forward          cols = im2col(x)                  (G, K, L)
                     y    = w @ cols                   (G, O/G, K) @ (G, K, L), then bias, residual and ReLU
    input gradient   gx   = col2im(w^T @ gy)           or, for stride 1, the convolution with turned weights
    weight gradient  gw   = sum over blocks of gy @ cols^T

All images of a block lie side by side in the columns, so that a block is one product, large enough for the
GPU. `im2col.cu` has the kernels; docs/kernels.md counts the bytes that each step moves.
"""

from __future__ import annotations

from minimask import backend
from minimask.kernels import elementwise
from minimask.kernels.geometry import Geometry

WORKSPACE = 512 << 20  # bytes of patches in a block: few launches, and matrices that keep all processors busy
THREADS = 256  # a block of threads
LARGE = 1024  # pixels from which on a 1x1 convolution multiplies each image where it lies


def forward(x, w, b, g: Geometry, relu: bool = False, residual=None):
    """As `minimask.kernels.convolution.forward`, for CuPy arrays."""
    xp = backend.array_module(x, w)
    x, y = xp.ascontiguousarray(x), xp.empty(g.y_shape, x.dtype)
    w3 = xp.ascontiguousarray(w).reshape(g.groups, -1, g.patch_size)  # (G, O/G, K)
    residual = None if residual is None else xp.ascontiguousarray(residual)
    for n0, n1, first, last in _blocks(g, x.itemsize):
        in_place = (
            n1 - n0 == 1 and last - first == g.out_size[0]
        )  # one whole image: the product lies as y does
        out = y[n0].reshape(g.groups, -1, g.out_pixels) if in_place else None
        product = _product(w3, _columns(x, g, n0, n1, first, last), out)  # (G, O/G, L)
        if not in_place or relu or b is not None or residual is not None:
            added = None if residual is None else residual[n0:n1]
            elementwise.finish_block(product, b, added, y[n0:n1], first * g.out_size[1], relu)
    return y


def input_gradient(gy, w, g: Geometry):
    """As `minimask.kernels.convolution.input_gradient`, for CuPy arrays."""
    xp, back = backend.array_module(gy, w), g.transposed()
    groups, outs, (_, depth, kh, kw), height = g.groups, g.w_shape[0] // g.groups, g.w_shape, g.x_shape[2]
    if g.stride == (1, 1) and min(back.padding) >= 0:
        # x[u] was read by y[u - i + pad] with w[i]: turned by 180 degrees, and channels exchanged
        turned = w.reshape(groups, outs, depth, kh, kw)[:, :, :, ::-1, ::-1].swapaxes(1, 2)
        return forward(gy, xp.ascontiguousarray(turned).reshape(back.w_shape), None, back)
    gx = xp.zeros(g.x_shape, gy.dtype)
    wt = w.reshape(groups, outs, g.patch_size).swapaxes(1, 2)  # (G, K, O/G)
    for n0, n1, first, last in _blocks(g, gy.itemsize):
        cols = _product(wt, _rows(gy, g, n0, n1, first, last))  # (G, K, L)
        # the rows of x that this block's patches read; those of two blocks overlap, so the second one adds
        top = min(height, max(0, first * g.stride[0] - g.padding[0]))
        bottom = min(height, (last - 1) * g.stride[0] - g.padding[0] + (kh - 1) * g.dilation[0] + 1)
        bottom = max(top, bottom)
        grid = _grid((n1 - n0) * (bottom - top) * g.x_shape[3], g)
        args = (cols, gx[n0:n1], g.struct, n1 - n0, first, last - first, top, bottom, first > 0)
        backend.launch("im2col", "col2im", grid, THREADS, args, gy.dtype)
    return gx


def weight_gradient(gy, x, g: Geometry):
    """As `minimask.kernels.convolution.weight_gradient`, for CuPy arrays."""
    xp = backend.array_module(gy, x)
    x, gw = xp.ascontiguousarray(x), xp.zeros((g.groups, g.w_shape[0] // g.groups, g.patch_size), gy.dtype)
    for n0, n1, first, last in _blocks(g, x.itemsize):
        cols = _columns(x, g, n0, n1, first, last)
        gw += _product(_rows(gy, g, n0, n1, first, last), cols.swapaxes(1, 2))
    return gw.reshape(g.w_shape)


def _blocks(g: Geometry, itemsize: int):
    """(first image, past it, first row, past it): whole images, as many as fit, or rows of one."""
    images, height = g.x_shape[0], g.out_size[0]
    rows = max(1, WORKSPACE // (itemsize * g.groups * g.patch_size * g.out_size[1]))
    several = rows // height
    if g.is_pointwise and g.out_pixels >= LARGE:  # nothing is copied
        several, rows = 1, height
    several, rows = _even(images, max(1, several)), _even(height, rows)
    for n in range(0, images, several):
        for first in range(0, height, rows):
            yield n, min(n + several, images), first, min(first + rows, height)


def _even(total: int, most: int) -> int:
    """The size of equal pieces of at most `most`, rather than full ones and a small rest."""
    return max(1, -(-total // -(-total // most))) if total else 1


def _columns(x, g: Geometry, n0: int, n1: int, first: int, last: int):
    """Patches of output rows [first, last) of images [n0, n1): (N, C, H, W) -> (G, K, L)."""
    columns = (n1 - n0) * (last - first) * g.out_size[1]
    if g.is_pointwise and n1 - n0 == 1 and columns == g.out_pixels:
        return x[n0].reshape(g.groups, g.patch_size, columns)
    cols = backend.array_module(x).empty((g.groups, g.patch_size, columns), x.dtype)
    args = (x[n0:n1], cols, g.struct, n1 - n0, first, last - first)
    backend.launch("im2col", "im2col", _grid(columns, g), THREADS, args, x.dtype)
    return cols


def _rows(gy, g: Geometry, n0: int, n1: int, first: int, last: int):
    """Output rows of some images side by side, as the columns are: (N, O, P, Q) -> (G, O/G, L)."""
    rows = gy[n0:n1, :, first:last].swapaxes(0, 1)  # (O, n, R, Q); a view where there is one image
    return rows.reshape(g.groups, g.w_shape[0] // g.groups, (n1 - n0) * (last - first) * g.out_size[1])


def _product(a, b, out=None):
    """a @ b for G matrices; one alone as a plain product, which takes transposed views as they are."""
    xp = backend.array_module(a)
    if len(a) > 1:
        return xp.matmul(a, b, out=out)
    return xp.matmul(a[0], b[0], out=None if out is None else out[0])[None]


def _grid(columns: int, g: Geometry) -> tuple[int, int]:
    return -(-columns // THREADS), min(g.x_shape[1], 65535)
