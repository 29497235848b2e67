"""Convolution as matrix products: forward, and the gradients of input and weights.

Shapes: N images, C channels in, O channels out, G groups, H x W in, P x Q out, kernel KH x KW.
Group g reads channels [g C/G, (g+1) C/G) and writes [g O/G, (g+1) O/G).

    y[n, o, p, q] = b[o] + sum_{c, i, j} w[o, c, i, j] x[n, c, p s + i d - pad, q s + j d - pad]

`minimask.kernels.im2col` has this as loops, and as one product with the whole matrix of patches
(C KH KW, P Q). Here the same is done for a block of output rows at a time, so that the patches are still in
cache when they are multiplied, and the blocks are divided over the threads.

Shapes of a block: n images, R rows of each, so L = R Q positions; K = C/G KH KW elements in a patch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from minimask import backend
from minimask.kernels import convolution_gpu
from minimask.kernels.elementwise import relu_gradient, relu_into
from minimask.kernels.geometry import Block, Geometry, all_rows, row_blocks, windows
from minimask.kernels.im2col import forward_im2col, input_gradient_im2col, weight_gradient_im2col

# Elements of a block's patches: 8 MiB of float32. Smaller blocks fit the second-level cache, but then threads
# wait longer for the interpreter's lock between NumPy's calls than the cache saves them.
BLOCK_ELEMENTS = 1 << 21
TRANSPOSED_AT_ONCE = 64  # rows of a weight gradient: all at once would miss the cache at every element


def _blocks(g: Geometry, part: int, parts: int, elements: int | None = None) -> Iterator[Block]:
    """This part's share of the output rows, in blocks whose patches have at most `elements` elements."""
    of_a_row = max(1, g.groups * g.patch_size * g.out_size[1])
    rows = max(1, (elements or BLOCK_ELEMENTS) // of_a_row)
    return row_blocks(g.x_shape[0], g.out_size[0], rows, part, parts)


def _patches(x, g: Geometry, block: Block):
    """The patches that a block's outputs read: (N, C, H, W) -> (n, G, K, L)."""
    x, (channels, (kh, kw), width) = x[block.images], (x.shape[1], g.w_shape[2:], g.out_size[1])
    if g.is_pointwise:
        pixels = x.reshape(block.count, g.groups, g.patch_size, -1)  # (n, G, K, PQ)
        return pixels[..., block.first * width : block.last * width]
    shape = block.count, channels, kh, kw, block.height, width
    cols = backend.scratch("patches", math.prod(shape), x.dtype).reshape(shape)
    for i, j, (rows, columns), (pixel_rows, pixel_columns) in windows(g, block.first, block.height):
        element = cols[:, :, i, j]  # of all patches: (n, C, R, Q)
        element[:, :, rows, columns] = x[:, :, pixel_rows, pixel_columns]
        element[:, :, : rows.start] = 0  # outside the image
        element[:, :, rows.stop :] = 0
        element[..., : columns.start] = 0
        element[..., columns.stop :] = 0
    return cols.reshape(block.count, g.groups, g.patch_size, block.height * width)


def _rows(y, g: Geometry, block: Block):
    """A view of a block's outputs, or of their gradients, by group: (N, O, P, Q) -> (n, G, O/G, R, Q)."""
    by_group = y.reshape(len(y), g.groups, y.shape[1] // g.groups, *y.shape[2:])
    return by_group[block.images, :, :, block.rows]


def forward(x, w, b, g: Geometry, relu: bool = False, residual=None):
    """Convolution of a batch; what often follows it is applied to each block while it is in cache.

    Parameters
    ----------
    x : (N, C, H, W) float
    w : (O, C/G, KH, KW) float
    b : (O,) float or None
    g : Geometry
    relu : bool
        Apply max(y, 0), after everything else.
    residual : (N, O, P, Q) float, optional
        Added to the result, before the ReLU.

    Returns
    -------
    (N, O, P, Q) of x's dtype.
    """
    xp = backend.array_module(x, w)
    if backend.use_reference():
        y = forward_im2col(x, w, b, g, xp)
        y = y if residual is None else y + residual
        return xp.maximum(y, 0) if relu else y
    if xp is not np:
        return convolution_gpu.forward(x, w, b, g, relu, residual)
    x, y = np.ascontiguousarray(x), np.empty(g.y_shape, x.dtype)
    w3 = np.ascontiguousarray(w).reshape(g.groups, -1, g.patch_size)  # (G, O/G, K)
    b3 = None if b is None else b.reshape(g.groups, -1, 1)

    def compute_rows(part, parts):
        for block in _blocks(g, part, parts):
            y_rows = _rows(y, g, block)  # (n, G, O/G, R, Q)
            y_flat = y_rows.reshape(*y_rows.shape[:3], -1)  # the same memory: (n, G, O/G, L)
            _product(w3, _patches(x, g, block), y_flat)
            if b3 is not None:
                y_flat += b3
            if residual is not None:
                y_rows += _rows(residual, g, block)
            if relu:
                relu_into(y_flat, out=y_flat)

    backend.parallel(compute_rows, operations=y.size * g.patch_size, calls_blas=True)
    return y


def input_gradient(gy, w, g: Geometry):
    """d loss / d x (N, C, H, W) from d loss / d y (N, O, P, Q)."""
    xp = backend.array_module(gy, w)
    if backend.use_reference():
        return input_gradient_im2col(gy, w, g, xp)
    if xp is not np:
        return convolution_gpu.input_gradient(gy, w, g)
    back = g.transposed()
    if g.stride == (1, 1) and min(back.padding) >= 0:
        # Stride 1: x[u] was read by y[u - i + pad] with w[i], so gx is the convolution of gy with w turned
        # by 180 degrees, input and output channels exchanged.
        o, c, kh, kw = g.w_shape
        turned = w.reshape(g.groups, o // g.groups, c, kh, kw)[:, :, :, ::-1, ::-1].swapaxes(1, 2)
        return forward(gy, np.ascontiguousarray(turned).reshape(back.w_shape), None, back)
    return _input_gradient_by_patches(np.ascontiguousarray(gy), w, g)


def _input_gradient_by_patches(gy, w, g: Geometry):
    """For any stride: w^T @ gy is the gradient of the patches; it goes back to the pixels that they copied.

    No two threads may add to the same pixel. So each has some of the input channels to itself: whole groups,
    if there are several. Only where windows tile the image (the mask head's deconvolution) does every pixel
    lie in one window at most: there each thread takes some of the output rows, and writes instead of adding.
    """
    depth, kh, kw = g.w_shape[1:]
    (height, width), tile = g.out_size, g.windows_tile and g.groups == 1
    wt = w.reshape(g.groups, -1, g.patch_size).swapaxes(1, 2)  # (G, K, O/G)
    if tile:
        wt = np.ascontiguousarray(wt)  # read for many RoIs: 3 to 6 % faster than a view
    gx = np.empty(g.x_shape, gy.dtype)
    if tile and g.x_shape[2:] != (height * kh, width * kw):
        gx[...] = 0  # windows may leave out pixels at the lower and right edges

    def put_back(part, parts):
        groups, within = slice(0, g.groups), slice(0, depth)  # input channels of each of these groups
        if not tile and g.groups > 1:
            groups = slice(*backend.share(g.groups, part, parts))
        elif not tile:
            within = slice(*backend.share(depth, part, parts))
        channels = slice(groups.start * depth + within.start, (groups.stop - 1) * depth + within.stop)
        count = channels.stop - channels.start
        if count <= 0:
            return
        if not tile:
            gx[:, channels] = 0
        wt_part = wt[groups, within.start * kh * kw : within.stop * kh * kw]  # (G', K', O/G)
        rows = max(1, BLOCK_ELEMENTS // (count * kh * kw * width))
        blocks = row_blocks(len(gy), height, rows, part, parts) if tile else all_rows(len(gy), height, rows)
        for block in blocks:
            g_rows = _rows(gy, g, block)[:, groups]  # (n, G', O/G, R, Q)
            shape = block.count, *wt_part.shape[:2], block.height * width
            cols = backend.scratch("patches", math.prod(shape), gy.dtype).reshape(shape)  # (n, G', K', L)
            _product(wt_part, g_rows.reshape(*g_rows.shape[:3], -1), cols)
            cols = cols.reshape(block.count, count, kh, kw, block.height, width)
            for i, j, out, pixels in windows(g, block.first, block.height):
                if tile:
                    gx[block.images, channels, *pixels] = cols[:, :, i, j, *out]
                else:
                    gx[block.images, channels, *pixels] += cols[:, :, i, j, *out]

    backend.parallel(put_back, operations=gy.size * w[0].size, calls_blas=True)
    return gx


def weight_gradient(gy, x, g: Geometry):
    """d loss / d w (O, C/G, KH, KW) from d loss / d y and the input; each thread adds up its own blocks."""
    xp = backend.array_module(gy, x)
    if backend.use_reference():
        return weight_gradient_im2col(gy, x, g, xp)
    if xp is not np:
        return convolution_gpu.weight_gradient(gy, x, g)
    x, gy = np.ascontiguousarray(x), np.ascontiguousarray(gy)
    sums: dict[int, np.ndarray] = {}  # by part

    def add_up(part, parts):
        total, of_one = None, (g.groups, g.patch_size, g.w_shape[0] // g.groups)
        # Each block also reads and writes all of gw: larger blocks where gw is large.
        for block in _blocks(g, part, parts, max(BLOCK_ELEMENTS, 4 * math.prod(of_one))):
            g_rows = _rows(gy, g, block)  # (n, G, O/G, R, Q)
            shape, to_keep = (block.count, *of_one), total is None and block.count == 1
            scratch = None if to_keep else backend.scratch("weights", math.prod(shape), gy.dtype)
            of_images = np.empty(shape, gy.dtype) if to_keep else scratch.reshape(shape)
            # patches @ gy^T: BLAS is faster where the first matrix is the larger one
            gy_flat = g_rows.reshape(*g_rows.shape[:3], -1)  # (n, G, O/G, L)
            _product(_patches(x, g, block), gy_flat.swapaxes(2, 3), of_images)
            if total is None:
                total, of_images = (of_images[0] if to_keep else of_images[0].copy()), of_images[1:]
            for gw in of_images:
                total += gw
        sums[part] = np.zeros(of_one, gy.dtype) if total is None else total

    backend.parallel(add_up, operations=gy.size * g.patch_size, calls_blas=True)
    gw = np.empty((g.groups, g.w_shape[0] // g.groups, g.patch_size), gy.dtype)

    def put_together(k: slice):  # of the K elements of a patch
        total = sums[0][:, k]
        for part in range(1, len(sums)):
            total += sums[part][:, k]
        gw[:, :, k] = total.swapaxes(1, 2)

    backend.parallel_slices(g.patch_size, put_together, TRANSPOSED_AT_ONCE, operations=gw.size)
    return gw.reshape(g.w_shape)


def gradients(gy, x, w, g: Geometry, needs=(True, True, True), y=None):
    """d loss / d x, d w and d b from d loss / d y; None for those that nobody needs.

    Parameters
    ----------
    gy : (N, O, P, Q)
        May be overwritten if there is a ReLU.
    x, w
        As in `forward`; what is not read may be None.
    g : Geometry
    needs : three of bool
        For x, w and b.
    y : (N, O, P, Q), optional
        The result, if a ReLU was applied to it.
    """
    if backend.fit_kernels(gy):
        return convolution_gpu.gradients(gy, x, w, g, needs, y)
    gy = gy if y is None else relu_gradient(gy, y, in_place=True)
    gx = input_gradient(gy, w, g) if needs[0] else None
    gw = weight_gradient(gy, x, g) if needs[1] else None
    return gx, gw, bias_gradient(gy) if needs[2] else None


def bias_gradient(gy):
    """d loss / d b (O,): the sum over images and positions, over the contiguous positions first."""
    if backend.fit_kernels(gy):
        return convolution_gpu.bias_gradient(gy)
    if backend.array_module(gy) is not np or backend.use_reference():
        return gy.sum(axis=(2, 3)).sum(axis=0)  # CuPy is slow at few long sums over scattered pieces
    n, o, p, q = gy.shape
    planes, sums = gy.reshape(n * o, p * q), np.empty(n * o, gy.dtype)

    def add_up(part: slice):
        planes[part].sum(axis=1, out=sums[part])

    backend.parallel_slices(n * o, add_up, operations=gy.size)
    return sums.reshape(n, o).sum(axis=0)


def _product(a, b, out) -> None:
    """out = a @ b for stacks of matrices; NumPy hands single matrices to BLAS without copying."""
    if out.shape[:2] == (1, 1):
        np.matmul(a.reshape(a.shape[-2:]) if a.ndim == 3 else a[0, 0], b[0, 0], out=out[0, 0])
    else:
        np.matmul(a, b, out=out)
