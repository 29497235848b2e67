"""Pointwise passes over large arrays, a piece that fits the cache at a time, divided over the threads."""

from __future__ import annotations

import numpy as np

from minimask import backend

PIECE = 1 << 15  # elements


def relu(x):
    """max(x, 0)."""
    xp = backend.array_module(x)
    if xp is not np or not x.flags.c_contiguous or backend.use_reference():
        return xp.maximum(x, 0)
    y = np.empty_like(x)
    source, target = x.reshape(-1), y.reshape(-1)
    _for_pieces(x.size, lambda own: np.maximum(source[own], 0, out=target[own]))
    return y


def relu_gradient(gy, y, in_place: bool = False):
    """gy where y > 0, else 0; with `in_place`, gy itself is changed."""
    xp = backend.array_module(gy)
    out = gy if in_place else xp.empty_like(gy)
    contiguous = all(a.flags.c_contiguous for a in (gy, y, out))
    if not contiguous or backend.use_reference():
        return xp.multiply(gy, y > 0, out=out)
    if xp is not np:
        grid = (min(-(-gy.size // 1024), 1 << 20),)  # four elements a thread
        backend.launch("elementwise", "relu_gradient", grid, 256, (gy, y, out, gy.size), gy.dtype)
        return out
    g, mask, target = gy.reshape(-1), y.reshape(-1), out.reshape(-1)
    _for_pieces(gy.size, lambda own: np.multiply(g[own], mask[own] > 0, out=target[own]))
    return out


def finish_block(product, bias, residual, y, begin: int, relu: bool) -> None:
    """On the GPU: add bias and residual to a block of a convolution, apply the ReLU, and put it in its place.

    Parameters
    ----------
    product : (G, O/G, n pixels)
        Images side by side. May be the memory of y, for one image.
    bias : (O,) or None
    residual, y : (n, O, P, Q)
        residual may be None.
    begin : int
        Where in a plane of y the pixels go.
    """
    (images, channels, height, width), pixels = y.shape, product.shape[2] // len(y)
    grid = -(-images * channels // 8), min(-(-pixels // 256), 65535)  # eight pixels a thread
    args = (product, bias, residual, y, images, channels, pixels, height * width, begin, relu)
    backend.launch("elementwise", "finish_block", grid, (32, 8), args, y.dtype)


def _for_pieces(size: int, run) -> None:
    def work(part, parts):
        begin, end = backend.share(size, part, parts)
        for first in range(begin, end, PIECE):
            run(slice(first, min(first + PIECE, end)))

    backend.parallel(work, 1 if size < 2 * PIECE else None)
