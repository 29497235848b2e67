"""Convolution in plain form: as loops over the formula, and as one product with the matrix of all patches.

Shapes: N images, C channels in, O channels out, G groups, H x W in, P x Q out, kernel KH x KW.
Group g reads channels [g C/G, (g+1) C/G) and writes [g O/G, (g+1) O/G).

    y[n, o, p, q] = b[o] + sum_{c, i, j} w[o, c, i, j] x[n, c, p s + i d - pad, q s + j d - pad]

`*_loop` is this formula; `*_im2col` builds the whole matrix of patches (C KH KW, P Q) and multiplies once,
for NumPy and CuPy. The fast version is `minimask.kernels.convolution`.
"""

from __future__ import annotations

import numpy as np

from minimask.kernels.geometry import Geometry, windows

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
    """All products of the formula: indices of y, of the channel, of the kernel's element and of the pixel."""
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
    for i, j, out, pixels in windows(g):
        cols[:, :, i, j, *out] = x[:, :, *pixels]
    return cols


def col2im(cols, g: Geometry, xp=np):
    """The transpose of `im2col`: a pixel that lies in several patches gets their sum."""
    x = xp.zeros((cols.shape[0], cols.shape[1], *g.x_shape[2:]), cols.dtype)
    for i, j, out, pixels in windows(g):
        x[:, :, *pixels] += cols[:, :, i, j, *out]
    return x


def forward_im2col(x, w, b, g: Geometry, xp=np):
    """y = w @ patches, the whole matrix at once."""
    n, groups = x.shape[0], g.groups
    cols = im2col(x, g, xp).reshape(n, groups, g.patch_size, g.out_pixels)  # (N, G, K, PQ), K = C/G KH KW
    y = (w.reshape(groups, -1, g.patch_size) @ cols).reshape(g.y_shape)  # (N, G, O/G, PQ) -> (N, O, P, Q)
    return y if b is None else y + b[:, None, None]


def input_gradient_im2col(gy, w, g: Geometry, xp=np):
    """The patches' gradient is w^T @ gy; it is then added to the pixels that the patches were read from."""
    n, groups = gy.shape[0], g.groups
    wt = w.reshape(groups, -1, g.patch_size).swapaxes(1, 2)  # (G, K, O/G)
    cols = wt @ gy.reshape(n, groups, g.w_shape[0] // groups, g.out_pixels)  # (N, G, K, PQ)
    return col2im(cols.reshape(n, g.x_shape[1], *g.w_shape[2:], *g.out_size), g, xp)


def weight_gradient_im2col(gy, x, g: Geometry, xp=np):
    """gw = sum over images of gy @ patches^T."""
    n, groups = x.shape[0], g.groups
    cols = im2col(x, g, xp).reshape(n, groups, g.patch_size, g.out_pixels)
    gw = gy.reshape(n, groups, g.w_shape[0] // groups, g.out_pixels) @ cols.swapaxes(2, 3)
    return gw.sum(axis=0).reshape(g.w_shape)
