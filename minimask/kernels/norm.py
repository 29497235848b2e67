"""Group normalisation on the GPU: two kernels forward and two backward (norm.cu).

Shapes: N images, C channels, G groups, H x W pixels. NumPy's version, with the derivation, is
`minimask.functions.norm.GroupNorm`.
"""

from __future__ import annotations

from minimask import backend


def group_norm(x, weight, bias, groups: int, eps: float, relu: bool):
    """Normalise each image's channels of each group, for CuPy arrays.

    Parameters
    ----------
    x : (N, C, H, W) float
    weight, bias : (C,)
    relu : bool
        Apply max(y, 0) to the result.

    Returns
    -------
    y : (N, C, H, W)
    mean, inv_std : (N, G)
    """
    xp, channels = backend.array_module(x), x.shape[1]
    x, weight, bias = (xp.ascontiguousarray(v) for v in (x, weight, bias))
    rows, pixels, grid, threads = _launch_sizes(x)
    y, moments = xp.empty_like(x), xp.empty((2, rows), x.dtype)
    mean, inv_std = (xp.empty((len(x), groups), x.dtype) for _ in range(2))
    backend.launch("norm", "row_moments", grid[:1], threads, (x, moments, rows, pixels), x.dtype)
    args = x, moments, weight, bias, y, mean, inv_std, rows, channels, channels // groups, pixels, eps, relu
    backend.launch("norm", "group_norm", grid, threads, args, x.dtype)
    return y, mean, inv_std


def group_norm_gradient(gy, x, y, mean, inv_std, weight):
    """Gradients of x, weight and bias; y is the result if a ReLU was applied to it, else None."""
    xp, channels = backend.array_module(x), x.shape[1]
    gy, x, weight = (xp.ascontiguousarray(v) for v in (gy, x, weight))
    rows, pixels, grid, threads = _launch_sizes(x)
    depth = channels // mean.shape[1]
    gx, sums = xp.empty_like(x), xp.empty((2, rows), x.dtype)
    g_weight, g_bias = ((xp.empty_like if x.size else xp.zeros_like)(weight) for _ in range(2))
    args = gy, x, y, mean, inv_std, sums, rows, depth, pixels
    backend.launch("norm", "row_gradients", grid[:1], threads, args, x.dtype)
    args = gy, x, y, mean, inv_std, sums, weight, gx, g_weight, g_bias, rows, channels, depth, pixels
    backend.launch("norm", "group_norm_gradient", grid, threads, args, x.dtype)
    return gx, g_weight, g_bias


def _launch_sizes(x):
    """Rows (an image's channels), pixels of each, blocks for each row and its pixels, threads of a block.

    A thread takes four pixels or more; the threads of a block are a power of 2, for the sums over them.
    """
    rows, pixels = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]
    threads = min(256, max(32, 1 << (pixels - 1).bit_length()))
    return rows, pixels, (rows, min(-(-pixels // (4 * threads)), 65535)), threads
