"""The RPN's head over all levels of a pyramid at once, on the GPU (rpn_levels.cu).

Shapes: N images, C channels, levels (N, C, H, W), L positions of all levels and images; a anchors at each, A
of an image. Level by level, with the derivation: `minimask.functions.explicit_rpn_head`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minimask import backend
from minimask.kernels import convolution_gpu, elementwise

MOST_LEVELS = 8
_STRUCT = np.dtype(
    [("data", "u8", 8), ("height", "i4", 8), ("width", "i4", 8), ("begin", "i4", 9), ("count", "i4")],
    align=True,
)


def has_room(xs: Sequence, w) -> bool:
    """Whether the kernels take these levels: on a GPU, 3 x 3, and all patches fit into one workspace."""
    positions = sum(x.size // max(x.shape[1], 1) for x in xs)
    patches = 9 * xs[0].shape[1] * positions * xs[0].dtype.itemsize
    fits = 0 < patches <= convolution_gpu.WORKSPACE and len(xs) <= MOST_LEVELS and w.shape[2:] == (3, 3)
    return fits and backend.array_module(*xs) is not np and not backend.use_reference()


def forward(xs: Sequence, w, b, u, c, v, e):
    """Logits (N, A), deltas (N, A, 4), and h (C, L), which `backward` reads; parameters as in `rpn_head`."""
    xp, (images, channels), a = backend.array_module(w), xs[0].shape[:2], len(u)
    cols, levels = _patches(xs)
    columns = cols.shape[1]
    h = xp.empty((channels, columns), w.dtype)
    xp.dot(_matrix(w), cols, h)
    elementwise.finish_block(h[None], xp.ascontiguousarray(b), None, h[None, :, None], 0, True)
    od = xp.empty((5 * a, columns), w.dtype)
    xp.dot(_matrix(u), h, od[:a])
    xp.dot(_matrix(v), h, od[a:])
    logits = xp.empty((images, columns // images * a), w.dtype)
    deltas = xp.empty((*logits.shape, 4), w.dtype)
    args = od, xp.ascontiguousarray(c), xp.ascontiguousarray(e), logits, deltas, levels, images, a
    _launch("to_anchors", (_blocks(columns), 5 * a), 256, args, w.dtype)
    return logits, deltas, h


def backward(g_logits, g_deltas, xs: Sequence, h, w, u, v, needs_xs: bool):
    """The gradients of w, b, u, c, v, e, and a list of the levels', or None if nobody needs those."""
    xp, (images, channels), a, (_, columns) = backend.array_module(w), xs[0].shape[:2], len(u), h.shape
    cols, levels = _patches(xs)
    g_od, g_b, g_c, g_e = (xp.empty(s, w.dtype) for s in ((5 * a, columns), channels, a, 4 * a))
    args = xp.ascontiguousarray(g_logits), xp.ascontiguousarray(g_deltas), g_od, g_c, g_e, levels, images, a
    _launch("from_anchors", (5 * a,), _threads(columns), args, w.dtype)
    g_o, g_d = g_od[:a], g_od[a:]
    # o = u h + c, d = v h + e
    g_u, g_v = xp.dot(g_o, h.T).reshape(u.shape), xp.dot(g_d, h.T).reshape(v.shape)
    g, other = xp.dot(_matrix(u).T, g_o), xp.dot(_matrix(v).T, g_d)
    # h = relu(w * x + b)
    _launch("relu_rows", (channels,), _threads(columns), (g, other, h, g_b, channels, columns), w.dtype)
    g_w = xp.dot(g, cols.T).reshape(w.shape)
    gxs = None
    if needs_xs:
        xp.dot(_matrix(w).T, g, cols)
        gxs = [xp.empty(x.shape, w.dtype) for x in xs]
        args = cols, struct_levels(gxs), images, channels
        _launch("unpatches", (_blocks(columns), min(channels, 65535)), 256, args, w.dtype)
    return g_w, g_b, g_u, g_c, g_v, g_e, gxs


def struct_levels(arrays: Sequence) -> np.ndarray:
    """``struct Levels`` of the CUDA source: addresses and sizes of levels, and where their columns begin."""
    value = np.zeros((), _STRUCT)
    for k, array in enumerate(arrays):
        images, _, height, width = array.shape
        value["data"][k], value["height"][k], value["width"][k] = array.data.ptr, height, width
        value["begin"][k + 1] = value["begin"][k] + images * height * width
    value["count"] = len(arrays)
    return value


def _patches(xs: Sequence):
    """The patches of all levels, (9 C, L), and the levels as the kernels take them."""
    xp, (images, channels), dtype = backend.array_module(*xs), xs[0].shape[:2], xs[0].dtype
    xs = [xp.ascontiguousarray(x) for x in xs]
    levels = struct_levels(xs)
    columns = int(levels["begin"][len(xs)])
    cols = xp.empty((9 * channels, columns), dtype)
    grid = _blocks(columns), min(channels, 65535)
    _launch("patches", grid, 256, (levels, cols, images, channels), dtype)
    return cols, levels


def _matrix(w):
    """A convolution's weights (O, C, KH, KW) as (O, C KH KW)."""
    return backend.array_module(w).ascontiguousarray(w).reshape(len(w), w[0].size)


def _blocks(columns: int) -> int:
    return -(-columns // 256)


def _threads(columns: int) -> int:
    """Threads of a block that adds up a row: a power of 2."""
    return min(1024, max(32, 1 << (columns - 1).bit_length()))


def _launch(kernel: str, grid, threads: int, args, dtype) -> None:
    backend.launch("rpn_levels", kernel, grid, threads, args, dtype)
