"""Convolution as matrix products: forward, and the gradients of input and weights.

Shapes: N images, C channels in, O channels out, G groups, H x W in, P x Q out, kernel KH x KW.
Group g reads channels [g C/G, (g+1) C/G) and writes [g O/G, (g+1) O/G).

    y[n, o, p, q] = b[o] + sum_{c, i, j} w[o, c, i, j] x[n, c, p s + i d - pad, q s + j d - pad]

Three versions of each: `*_loop` is this formula; `*_im2col` builds the whole matrix of patches
(C KH KW, P Q) and multiplies once, for NumPy and CuPy; the fast one, without suffix, does the same for a
block of output rows at a time, so that the patches are still in cache when they are multiplied, with the
blocks divided over the threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minimask import backend

BLOCK = 1 << 18  # floats in the buffer of patches of one block: 1 MiB, about half of a core's second-level cache


@dataclass(frozen=True)
class Geometry:
    """All sizes of one convolution; pairs are (vertical, horizontal)."""

    x_shape: tuple[int, int, int, int]
    w_shape: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, x_shape, w_shape, stride, padding, dilation, groups: int) -> Geometry:
        """Check the sizes against each other; single numbers stand for pairs."""
        stride, padding, dilation = pair(stride), pair(padding), pair(dilation)
        if len(x_shape) != 4 or len(w_shape) != 4:
            raise ValueError(f"conv2d: x and weight must have 4 axes, not shapes {x_shape} and {w_shape}")
        if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0 or groups < 1:
            raise ValueError(f"conv2d: stride {stride}, padding {padding}, dilation {dilation}, groups {groups}")
        if x_shape[1] != w_shape[1] * groups or w_shape[0] % groups:
            raise ValueError(
                f"conv2d: x has {x_shape[1]} channels; weight {w_shape} with groups={groups} reads "
                f"{w_shape[1] * groups} and must write a multiple of {groups}"
            )
        geometry = cls(tuple(x_shape), tuple(w_shape), stride, padding, dilation, groups)
        if min(geometry.out_size) < 1:
            raise ValueError(f"conv2d: a {w_shape[2:]} kernel does not fit into {x_shape[2:]} padded by {padding}")
        return geometry

    @property
    def out_size(self) -> tuple[int, int]:
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(self.x_shape[2:], self.w_shape[2:], self.stride, self.padding, self.dilation)
        )

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return (self.x_shape[0], self.w_shape[0], *self.out_size)

    @property
    def out_pixels(self) -> int:
        """P Q: spelt out in reshapes, where a -1 could not be resolved for a batch of no images."""
        return self.out_size[0] * self.out_size[1]

    @property
    def patch_size(self) -> int:
        """Elements of one group's patch: C/G KH KW."""
        return self.w_shape[1] * self.w_shape[2] * self.w_shape[3]

    @property
    def is_pointwise(self) -> bool:
        """A 1x1 kernel of stride 1: the image itself is the matrix of patches."""
        return self.w_shape[2:] == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)

    def transposed(self) -> Geometry:
        """The convolution, of stride 1, that takes gradients of y to gradients of x."""
        n, c, h, w = self.x_shape
        o, _, kh, kw = self.w_shape
        padding = tuple(d * (k - 1) - p for d, k, p in zip(self.dilation, (kh, kw), self.padding))
        return Geometry(self.y_shape, (c, o // self.groups, kh, kw), (1, 1), padding, self.dilation, self.groups)


def pair(value) -> tuple[int, int]:
    """A number for both directions, or one for each."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def overlap(offset: int, stride: int, size: int, out: int) -> tuple[int, int]:
    """The outputs p in [0, out) for which the input p stride + offset lies in [0, size)."""
    begin = min(max(0, -(offset // stride)), out)
    end = min(max(begin, (size - 1 - offset) // stride + 1), out)
    return begin, end


# ------------------------------------------------------------------------------------ the formula as loops


def forward_loop(x, w, b, g: Geometry):
    """The formula, pixel by pixel (slow; for tests and reading)."""
    y = np.zeros(g.y_shape, x.dtype)
    for n, o, p, q, c, i, j, u, v in _terms(g):
        y[n, o, p, q] += w[o, c % g.w_shape[1], i, j] * x[n, c, u, v]
    return y if b is None else y + b[:, None, None]


def input_gradient_loop(gy, w, g: Geometry):
    """Each product w x of the formula sends gy w back to x (slow)."""
    gx = np.zeros(g.x_shape, gy.dtype)
    for n, o, p, q, c, i, j, u, v in _terms(g):
        gx[n, c, u, v] += gy[n, o, p, q] * w[o, c % g.w_shape[1], i, j]
    return gx


def weight_gradient_loop(gy, x, g: Geometry):
    """Each product w x of the formula sends gy x back to w (slow)."""
    gw = np.zeros(g.w_shape, gy.dtype)
    for n, o, p, q, c, i, j, u, v in _terms(g):
        gw[o, c % g.w_shape[1], i, j] += gy[n, o, p, q] * x[n, c, u, v]
    return gw


def _terms(g: Geometry):
    """All products of the formula: indices of y, channel, kernel element, and pixel of x."""
    (images, _, height, width), (outs, depth, kh, kw) = g.x_shape, g.w_shape
    for n, o, p, q in np.ndindex(images, outs, *g.out_size):
        first = o // (outs // g.groups) * depth
        for c, i, j in np.ndindex(depth, kh, kw):
            u = p * g.stride[0] + i * g.dilation[0] - g.padding[0]
            v = q * g.stride[1] + j * g.dilation[1] - g.padding[1]
            if 0 <= u < height and 0 <= v < width:
                yield n, o, p, q, first + c, i, j, u, v


# ------------------------------------------------------------------------------------ one matrix of patches


def im2col(x, g: Geometry, xp=np):
    """Patches as columns: (N, C, H, W) -> (N, C, KH, KW, P, Q), zero where a patch leaves the image."""
    kh, kw = g.w_shape[2:]
    cols = xp.zeros((*x.shape[:2], kh, kw, *g.out_size), x.dtype)
    for i, j, out, rows_cols in windows(g):
        cols[:, :, i, j, out[0], out[1]] = x[:, :, rows_cols[0], rows_cols[1]]
    return cols


def col2im(cols, g: Geometry, xp=np):
    """The transpose of `im2col`: what lay in several patches is added up."""
    x = xp.zeros((cols.shape[0], cols.shape[1], *g.x_shape[2:]), cols.dtype)
    for i, j, out, rows_cols in windows(g):
        x[:, :, rows_cols[0], rows_cols[1]] += cols[:, :, i, j, out[0], out[1]]
    return x


def windows(g: Geometry):
    """For each kernel element: which outputs meet the image there, and which pixels they read."""
    for i, j in np.ndindex(*g.w_shape[2:]):
        outs, pixels = [], []
        for axis, k in enumerate((i, j)):
            s, offset = g.stride[axis], k * g.dilation[axis] - g.padding[axis]
            begin, end = overlap(offset, s, g.x_shape[2 + axis], g.out_size[axis])
            outs.append(slice(begin, end))
            pixels.append(slice(begin * s + offset, max(begin * s + offset, (end - 1) * s + offset + 1), s))
        if all(o.stop > o.start for o in outs):
            yield i, j, outs, pixels


def forward_im2col(x, w, b, g: Geometry, xp=np):
    """y = w @ patches, the whole matrix at once."""
    n, groups = x.shape[0], g.groups
    cols = im2col(x, g, xp).reshape(n, groups, g.patch_size, g.out_pixels)
    y = (w.reshape(groups, -1, g.patch_size) @ cols).reshape(g.y_shape)  # (N, G, O/G, PQ) -> (N, O, P, Q)
    return y if b is None else y + b[:, None, None]


def input_gradient_im2col(gy, w, g: Geometry, xp=np):
    """patches' gradient = w^T @ gy, then added into place."""
    n, groups = gy.shape[0], g.groups
    cols = w.reshape(groups, -1, g.patch_size).swapaxes(1, 2) @ gy.reshape(n, groups, g.w_shape[0] // groups, g.out_pixels)
    return col2im(cols.reshape(n, g.x_shape[1], *g.w_shape[2:], *g.out_size), g, xp)


def weight_gradient_im2col(gy, x, g: Geometry, xp=np):
    """gw = sum over images of gy @ patches^T."""
    n, groups = x.shape[0], g.groups
    cols = im2col(x, g, xp).reshape(n, groups, g.patch_size, g.out_pixels)
    gw = gy.reshape(n, groups, g.w_shape[0] // groups, g.out_pixels) @ cols.swapaxes(2, 3)
    return gw.sum(axis=0).reshape(g.w_shape)


# ------------------------------------------------------------------------------------------ blocks of rows


def _blocks(g: Geometry, part: int, parts: int, block: int | None = None):
    """This part's share of the output rows of all images, as (image, first row, end row) of bounded size."""
    height, width = g.out_size
    rows = max(1, (block or BLOCK) // max(1, g.groups * g.patch_size * width))
    begin, end = backend.share(g.x_shape[0] * height, part, parts)
    pieces = max(1, -(-(end - begin) // rows))
    rows = -(-(end - begin) // pieces)  # equal blocks rather than full ones and a rest
    while begin < end:
        n, first = divmod(begin, height)
        last = min(height, first + rows, first + end - begin)
        yield n, first, last
        begin += last - first


def _patches(x_n, g: Geometry, first: int, last: int):
    """Patches of output rows [first, last) of one image (C, H, W) -> (G, C/G KH KW, rows Q)."""
    width = g.out_size[1]
    if g.is_pointwise:
        return x_n.reshape(g.groups, g.patch_size, -1)[:, :, first * width : last * width]
    channels, (kh, kw), rows = x_n.shape[0], g.w_shape[2:], last - first
    cols = backend.scratch("patches", channels * kh * kw * rows * width, x_n.dtype)
    cols = cols.reshape(channels, kh, kw, rows, width)
    for i in range(kh):
        v_offset = i * g.dilation[0] - g.padding[0] + first * g.stride[0]
        top, bottom = overlap(v_offset, g.stride[0], g.x_shape[2], rows)
        cols[:, i, :, :top] = 0
        cols[:, i, :, bottom:] = 0
        y0 = top * g.stride[0] + v_offset
        for j in range(kw):
            h_offset = j * g.dilation[1] - g.padding[1]
            left, right = overlap(h_offset, g.stride[1], g.x_shape[3], width)
            target = cols[:, i, j, top:bottom]
            target[:, :, :left] = 0
            target[:, :, right:] = 0
            if bottom > top and right > left:
                x0 = left * g.stride[1] + h_offset
                x1 = (right - 1) * g.stride[1] + h_offset + 1
                y1 = (bottom - 1) * g.stride[0] + v_offset + 1
                target[:, :, left:right] = x_n[:, y0 : y1 : g.stride[0], x0 : x1 : g.stride[1]]
    return cols.reshape(g.groups, g.patch_size, rows * width)


def forward(x, w, b, g: Geometry, relu: bool = False, residual=None):
    """Convolution of a batch, with what often follows it done to each block of the result while it is in cache.

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
    if xp is not np or backend.use_reference():
        y = forward_im2col(x, w, b, g, xp)
        y = y if residual is None else y + residual
        return xp.maximum(y, 0) if relu else y
    x, y = np.ascontiguousarray(x), np.empty(g.y_shape, x.dtype)
    w3 = w.reshape(g.groups, -1, g.patch_size)  # (G, O/G, C/G KH KW)
    y4 = y.reshape(len(y), g.groups, w3.shape[1], g.out_pixels)  # (N, G, O/G, PQ)
    b3 = None if b is None else b.reshape(g.groups, -1, 1)
    residual = None if residual is None else residual.reshape(y4.shape)
    width = g.out_size[1]

    def work(part, parts):
        for n, first, last in _blocks(g, part, parts):
            block = y4[n, :, :, first * width : last * width]
            _product(w3, _patches(x[n], g, first, last), block)
            if b3 is not None:
                block += b3
            if residual is not None:
                block += residual[n, :, :, first * width : last * width]
            if relu:
                np.maximum(block, 0, out=block)

    backend.parallel(work)
    return y


def input_gradient(gy, w, g: Geometry):
    """d loss / d x (N, C, H, W) from d loss / d y (N, O, P, Q)."""
    xp = backend.array_module(gy, w)
    if xp is not np or backend.use_reference():
        return input_gradient_im2col(gy, w, g, xp)
    back = g.transposed()
    if g.stride == (1, 1) and min(back.padding) >= 0:
        # Stride 1: x[u] was read by y[u - i + pad] with w[i], so gx is the convolution of gy with w turned by 180
        # degrees, input and output channels exchanged.
        o, c, kh, kw = g.w_shape
        turned = w.reshape(g.groups, o // g.groups, c, kh, kw)[:, :, :, ::-1, ::-1].swapaxes(1, 2)
        return forward(gy, np.ascontiguousarray(turned).reshape(back.w_shape), None, back)
    return _input_gradient_by_channels(np.ascontiguousarray(gy), w, g)


def _input_gradient_by_channels(gy, w, g: Geometry):
    """w^T @ gy added into place; each thread owns some input channels, so no two add to the same pixel."""
    gx = np.zeros(g.x_shape, gy.dtype)
    (n_images, c_all), (o, depth, kh, kw) = g.x_shape[:2], g.w_shape
    gy4 = gy.reshape(n_images, g.groups, o // g.groups, g.out_pixels)
    w5 = w.reshape(g.groups, o // g.groups, depth, kh, kw)
    height, width = g.out_size

    def work(part, parts):
        if g.groups > 1:  # whole groups
            groups, channels = slice(*backend.share(g.groups, part, parts)), slice(None)
            own = slice(groups.start * depth, groups.stop * depth)
        else:
            groups, channels = slice(None), slice(*backend.share(depth, part, parts))
            own = channels
        count = own.stop - own.start
        if count == 0:
            return
        wt = w5[groups, :, channels].reshape(-1, o // g.groups, count // len(w5[groups]) * kh * kw).swapaxes(1, 2)
        rows = max(1, BLOCK // (count * kh * kw * width))
        for n in range(n_images):
            for first in range(0, height, rows):
                last = min(height, first + rows)
                cols = backend.scratch("patches", count * kh * kw * (last - first) * width, gy.dtype)
                cols = cols.reshape(*wt.shape[:2], -1)
                _product(wt, gy4[n, groups, :, first * width : last * width], cols)
                _add_patches(cols.reshape(count, kh, kw, last - first, width), gx[n, own], g, first)

    backend.parallel(work)
    return gx


def _add_patches(cols, gx, g: Geometry, first: int) -> None:
    """col2im for output rows from `first` on: (C, KH, KW, rows, Q) added to (C, H, W)."""
    rows, width = cols.shape[3:]
    for i in range(cols.shape[1]):
        v_offset = i * g.dilation[0] - g.padding[0] + first * g.stride[0]
        top, bottom = overlap(v_offset, g.stride[0], g.x_shape[2], rows)
        for j in range(cols.shape[2]):
            h_offset = j * g.dilation[1] - g.padding[1]
            left, right = overlap(h_offset, g.stride[1], g.x_shape[3], width)
            if bottom > top and right > left:
                y0, x0 = top * g.stride[0] + v_offset, left * g.stride[1] + h_offset
                y1, x1 = (bottom - 1) * g.stride[0] + v_offset + 1, (right - 1) * g.stride[1] + h_offset + 1
                gx[:, y0 : y1 : g.stride[0], x0 : x1 : g.stride[1]] += cols[:, i, j, top:bottom, left:right]


def weight_gradient(gy, x, g: Geometry):
    """d loss / d w (O, C/G, KH, KW) from d loss / d y and the input; each thread adds up its own rows."""
    xp = backend.array_module(gy, x)
    if xp is not np or backend.use_reference():
        return weight_gradient_im2col(gy, x, g, xp)
    x, gy = np.ascontiguousarray(x), np.ascontiguousarray(gy)
    gy4 = gy.reshape(len(gy), g.groups, g.w_shape[0] // g.groups, g.out_pixels)
    width = g.out_size[1]
    sums: dict[int, np.ndarray] = {}

    def work(part, parts):
        total = np.zeros((g.groups, g.w_shape[0] // g.groups, g.patch_size), gy.dtype)
        one = np.empty_like(total)
        # Each block also reads and writes all of gw: larger blocks where gw is large.
        for n, first, last in _blocks(g, part, parts, max(BLOCK, 4 * total.size)):
            cols = _patches(x[n], g, first, last)
            _product(gy4[n, :, :, first * width : last * width], cols.swapaxes(1, 2), one)
            total += one
        sums[part] = total

    backend.parallel(work)
    gw = sums.pop(0)
    for part in sorted(sums):
        gw += sums[part]
    return gw.reshape(g.w_shape)


def _product(a, b, out) -> None:
    """out = a @ b for stacks of one or several matrices; NumPy gives single matrices to BLAS without copying."""
    if len(a) == 1:
        np.matmul(a[0], b[0], out=out[0])
    else:
        np.matmul(a, b, out=out)
