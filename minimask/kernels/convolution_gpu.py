"""Convolution on the GPU: the matrix of patches a block at a time, multiplied by cuBLAS.

Shapes: N images, C channels in, O channels out, G groups, H x W in, P x Q out, kernel KH x KW. Of a block: n
images, R rows of each, L = n R Q columns; K = C/G KH KW elements in a patch.

    forward          cols = im2col(x)                  (G, K, L)
                     y    = w @ cols                   (G, O/G, K) @ (G, K, L), then bias, residual and ReLU
    input gradient   gx   = col2im(w^T @ gy)           or, for stride 1, the convolution with turned weights
    weight gradient  gw   = sum over blocks of gy @ cols^T

All images of a block lie side by side in the columns, so that a block is a single product, large enough for
the GPU. `im2col.cu` has the kernels; docs/kernels.md counts the bytes that each step moves.
"""

from __future__ import annotations

from collections.abc import Iterator

from minimask import backend
from minimask.kernels import elementwise
from minimask.kernels.geometry import Block, Geometry, row_blocks

WORKSPACE = 512 << 20  # bytes of patches in a block: few launches, and matrices that keep all processors busy
LARGE = 1024  # pixels: a 1x1 convolution multiplies images of at least this size in place


def forward(x, w, b, g: Geometry, relu: bool = False, residual=None):
    """As `minimask.kernels.convolution.forward`, for CuPy arrays."""
    xp = backend.array_module(x, w)
    x, y = xp.ascontiguousarray(x), xp.empty(g.y_shape, x.dtype)
    w3 = xp.ascontiguousarray(w).reshape(g.groups, -1, g.patch_size)  # (G, O/G, K)
    b, residual = (v if v is None else xp.ascontiguousarray(v) for v in (b, residual))
    for block in _blocks(g, x.itemsize):
        in_place = block.count == 1 and block.height == g.out_size[0]  # the product has y[n0]'s layout
        out = y[block.n0].reshape(g.groups, -1, g.out_pixels) if in_place else None
        product = _product(w3, _columns(x, g, block), out)  # (G, O/G, L)
        if not in_place or relu or b is not None or residual is not None:
            added = None if residual is None else residual[block.images]
            elementwise.finish_block(product, b, added, y[block.images], block.first * g.out_size[1], relu)
    return y


def input_gradient(gy, w, g: Geometry):
    """As `minimask.kernels.convolution.input_gradient`, for CuPy arrays."""
    xp, back = backend.array_module(gy, w), g.transposed()
    groups, outs, (_, depth, kh, kw) = g.groups, g.w_shape[0] // g.groups, g.w_shape
    if g.stride == (1, 1) and min(back.padding) >= 0:
        # x[u] was read by y[u - i + pad] with w[i]: turned by 180 degrees, and channels exchanged
        turned = w.reshape(groups, outs, depth, kh, kw)[:, :, :, ::-1, ::-1].swapaxes(1, 2)
        return forward(gy, xp.ascontiguousarray(turned).reshape(back.w_shape), None, back)
    gx = xp.zeros(g.x_shape, gy.dtype)
    wt = w.reshape(groups, outs, g.patch_size).swapaxes(1, 2)  # (G, K, O/G)
    for block in _blocks(g, gy.itemsize):
        _put_back(_product(wt, _rows(gy, g, block)), gx, g, block)
    return gx


def weight_gradient(gy, x, g: Geometry):
    """As `minimask.kernels.convolution.weight_gradient`, for CuPy arrays."""
    xp = backend.array_module(gy, x)
    x, gw = xp.ascontiguousarray(x), None
    for block in _blocks(g, x.itemsize):
        of_block = _product(_rows(gy, g, block), _columns(x, g, block).swapaxes(1, 2))
        gw = of_block if gw is None else xp.add(gw, of_block, out=gw)
    return xp.zeros(g.w_shape, gy.dtype) if gw is None else gw.reshape(g.w_shape)


def bias_gradient(gy):
    """As `minimask.kernels.convolution.bias_gradient`, for CuPy arrays."""
    xp = backend.array_module(gy)
    gb = (xp.empty if gy.size else xp.zeros)(gy.shape[1], gy.dtype)
    if gy.size:
        elementwise.gather_rows(xp.ascontiguousarray(gy), None, None, gb, 0, False)
    return gb


def gradients(gy, x, w, g: Geometry, needs, y=None):
    """As `minimask.kernels.convolution.gradients`, for CuPy arrays: what the three have in common, once.

    The gradients of a block's outputs go back through the ReLU, are put side by side, and are added up on the
    way. They are multiplied with the patches and with the weights; the second product goes to the pixels.
    """
    xp, (groups, outs, depth) = backend.array_module(gy), (g.groups, g.w_shape[0] // g.groups, g.patch_size)
    gy, x, y = (v if v is None else xp.ascontiguousarray(v) for v in (gy, x, y))
    wt = w.reshape(groups, outs, depth).swapaxes(1, 2) if needs[0] else None  # (G, K, O/G)
    gx = _place_for_gradients(g, gy) if needs[0] else None
    gw, gb = None, xp.zeros(g.w_shape[0], gy.dtype) if needs[2] else None
    for block in _blocks(g, gy.itemsize):
        rows = _gathered(gy, y, gb, g, block)  # (G, O/G, L)
        patches = None
        if needs[1]:
            patches = _columns(x, g, block)  # (G, K, L)
            of_block = _product(rows, patches.swapaxes(1, 2))
            gw = of_block if gw is None else xp.add(gw, of_block, out=gw)
        if needs[0] and _is_image(g, block):
            _product(wt, rows, gx[block.n0].reshape(groups, depth, g.out_pixels))
        elif needs[0]:
            _put_back(_product(wt, rows, patches), gx, g, block)
    gw = xp.zeros(g.w_shape, gy.dtype) if needs[1] and gw is None else gw
    return gx, None if gw is None else gw.reshape(g.w_shape), gb


def _gathered(gy, y, gb, g: Geometry, block: Block):
    """A block's outputs with its images side by side, (G, O/G, L), their sums added to gb if there is one."""
    columns = block.count * block.height * g.out_size[1]
    shape = g.groups, g.w_shape[0] // g.groups, columns
    in_place = y is None and block.count == 1 and block.height == g.out_size[0]  # gy[n0] has this layout
    rows = gy[block.n0].reshape(shape) if in_place else backend.array_module(gy).empty(shape, gy.dtype)
    if not in_place or gb is not None:
        of_images = gy[block.images], None if y is None else y[block.images]
        elementwise.gather_rows(*of_images, None if in_place else rows, gb, block.first * g.out_size[1], True)
    return rows


def _place_for_gradients(g: Geometry, gy):
    """An array for x's gradient; zeros unless every row is written by the only block of its image."""
    all_rows = Block(0, 1, 0, g.out_size[0])
    alone = all(block.height == all_rows.height for block in _blocks(g, gy.itemsize))
    written = gy.size > 0 and alone and _rows_read(g, all_rows) == (0, g.x_shape[2])
    xp = backend.array_module(gy)
    return (xp.empty if written else xp.zeros)(g.x_shape, gy.dtype)


def _is_image(g: Geometry, block: Block) -> bool:
    """Whether the patches of a block are an image as it lies in memory."""
    return g.is_pointwise and block.count == 1 and block.height == g.out_size[0]


def _put_back(cols, gx, g: Geometry, block: Block) -> None:
    """Add up in gx what the patches of a block's outputs, (G, K, L), send back to its pixels."""
    top, bottom = _rows_read(g, block)
    # the rows that two blocks of an image read overlap, so the second block adds to what the first wrote
    span = block.first, block.height, top, bottom, block.first > 0
    args = cols, gx[block.images], g.struct, block.count, *span
    _launch("col2im", block.count * (bottom - top) * g.x_shape[3], g, args, gx.dtype)


def _blocks(g: Geometry, itemsize: int) -> Iterator[Block]:
    """All output rows in blocks, each of rows of one image or of several whole images."""
    rows = WORKSPACE // (itemsize * g.groups * g.patch_size * g.out_size[1])
    if g.is_pointwise and g.out_pixels >= LARGE:
        rows = g.out_size[0]  # each image by itself, and nothing is copied
    return row_blocks(g.x_shape[0], g.out_size[0], max(1, rows), 0, 1)


def _rows_read(g: Geometry, block: Block) -> tuple[int, int]:
    """The rows of x, [top, bottom), that the patches of a block read."""
    height, stride, padding = g.x_shape[2], g.stride[0], g.padding[0]
    extent = (g.w_shape[2] - 1) * g.dilation[0] + 1
    top = min(height, max(0, block.first * stride - padding))
    bottom = min(height, (block.last - 1) * stride - padding + extent)
    return top, max(top, bottom)


def _columns(x, g: Geometry, block: Block):
    """The patches of a block's outputs: (N, C, H, W) -> (G, K, L)."""
    columns = block.count * block.height * g.out_size[1]
    if _is_image(g, block):
        return x[block.n0].reshape(g.groups, g.patch_size, columns)
    cols = backend.array_module(x).empty((g.groups, g.patch_size, columns), x.dtype)
    args = x[block.images], cols, g.struct, block.count, block.first, block.height
    _launch("im2col", columns, g, args, x.dtype)
    return cols


def _rows(gy, g: Geometry, block: Block):
    """A block's outputs with its images side by side, as in the columns: (N, O, P, Q) -> (G, O/G, L)."""
    rows = gy[block.images, :, block.rows].swapaxes(0, 1)  # (O, n, R, Q); a view if there is one image
    return rows.reshape(g.groups, g.w_shape[0] // g.groups, block.count * block.height * g.out_size[1])


def _product(a, b, out=None):
    """a @ b for G pairs of matrices; a single one by `dot`, which copies no transposed view and uses TF32."""
    xp = backend.array_module(a)
    out = xp.empty((len(a), a.shape[1], b.shape[2]), a.dtype) if out is None else out
    xp.dot(a[0], b[0], out[0]) if len(a) == 1 else xp.matmul(a, b, out=out)
    return out


def _launch(kernel: str, threads: int, g: Geometry, args, dtype) -> None:
    """Run a kernel of im2col.cu with this many threads for each channel of x."""
    backend.launch("im2col", kernel, (-(-threads // 256), min(g.x_shape[1], 65535)), 256, args, dtype)
