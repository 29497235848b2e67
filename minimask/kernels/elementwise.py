"""Pointwise passes over large arrays, in slices that fit the cache, divided over the threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minimask import backend

# Of each array: 2 MiB of float32; smaller slices wait too often for the interpreter's lock.
ELEMENTS_AT_ONCE = 1 << 19


def unbroadcast(g, shape: tuple[int, ...], dtype):
    """Sum a gradient over the axes along which its input was broadcast, and give it the input's dtype."""
    if g.shape != shape:
        extra = g.ndim - len(shape)
        stretched = [i + extra for i, n in enumerate(shape) if n == 1 and g.shape[i + extra] != 1]
        g = g.sum(axis=(*range(extra), *stretched), keepdims=True).reshape(shape)
    return g.astype(dtype, copy=False)


def relu(x):
    """max(x, 0)."""
    xp = backend.array_module(x)
    if xp is not np or not x.flags.c_contiguous or backend.use_reference():
        return xp.maximum(x, 0)
    y = np.empty_like(x)
    x_flat, y_flat = x.reshape(-1), y.reshape(-1)
    _in_slices(x.size, lambda part: relu_into(x_flat[part], out=y_flat[part]))
    return y


def relu_into(x, out) -> None:
    """out = max(x, 0); `out` may be x. NumPy compares with a row of zeros faster than with the number 0."""
    xp = backend.array_module(x)
    xp.maximum(x, xp.zeros(x.shape[-1:], x.dtype), out=out)


def relu_gradient(gy, y, in_place: bool = False):
    """gy where y > 0, else 0; with `in_place`, gy itself is changed."""
    xp = backend.array_module(gy)
    out = gy if in_place else xp.empty_like(gy)
    contiguous = all(a.flags.c_contiguous for a in (gy, y, out))
    if not contiguous or backend.use_reference():
        return xp.multiply(gy, y > 0, out=out)
    if xp is not np:
        grid = (min(-(-gy.size // 1024), 1 << 20),)  # four elements per thread
        backend.launch("elementwise", "relu_gradient", grid, 256, (gy, y, out, gy.size), gy.dtype)
        return out
    gy_flat, y_flat, out_flat = gy.reshape(-1), y.reshape(-1), out.reshape(-1)
    _in_slices(gy.size, lambda part: np.multiply(gy_flat[part], y_flat[part] > 0, out=out_flat[part]))
    return out


def sigmoid(x):
    """On the GPU: 1 / (1 + exp(-x)) in one launch instead of six."""
    xp = backend.array_module(x)
    x, y = xp.ascontiguousarray(x), xp.empty(x.shape, x.dtype)
    backend.launch(
        "elementwise", "sigmoid", (min(-(-x.size // 1024), 1 << 20),), 256, (x, y, x.size), x.dtype
    )
    return y


def finish_block(product, bias, residual, y, begin: int, relu: bool) -> None:
    """On the GPU: add bias and residual to a block of a convolution, apply the ReLU, and put it into y.

    Parameters
    ----------
    product : (G, O/G, n pixels)
        The images lie side by side. With a single image this may be y's own memory.
    bias : (O,) or None
    residual, y : (n, O, P, Q)
        residual may be None.
    begin : int
        The pixel of each plane of y at which the block begins.
    """
    (images, channels, height, width), pixels = y.shape, product.shape[2] // len(y)
    grid = -(-images * channels // 8), min(-(-pixels // 256), 65535)  # eight pixels per thread
    args = (product, bias, residual, y, images, channels, pixels, height * width, begin, relu)
    backend.launch("elementwise", "finish_block", grid, (32, 8), args, y.dtype)


def gather_rows(gy, y, rows, g_bias, begin: int, add: bool) -> None:
    """On the GPU, the way back of `finish_block`: a block's gradients side by side, and their sums.

    Parameters
    ----------
    gy : (n, O, P, Q)
    y : (n, O, P, Q) or None
        The ReLU's output, if there is one: the gradient passes only where it is positive.
    rows : (G, O/G, n pixels) or None
    g_bias : (O,) or None
        Receives the sums over rows; with `add`, they are added to what it holds.
    begin : int
        The pixel of each plane of gy at which the block begins; without rows, the whole plane is read.
    """
    images, channels, height, width = gy.shape
    pixels = height * width if rows is None else rows.shape[2] // images
    threads = min(1024, max(32, 1 << (images * pixels - 1).bit_length()))
    args = gy, y, rows, g_bias, images, channels, pixels, height * width, begin, add
    backend.launch("elementwise", "gather_rows", (channels,), threads, args, gy.dtype)


def _in_slices(size: int, function: Callable[[slice], None]) -> None:
    backend.parallel_slices(size, function, ELEMENTS_AT_ONCE, operations=size)
