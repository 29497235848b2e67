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
    if xp is not np or not contiguous or backend.use_reference():
        return xp.multiply(gy, y > 0, out=out)
    g, mask, target = gy.reshape(-1), y.reshape(-1), out.reshape(-1)
    _for_pieces(gy.size, lambda own: np.multiply(g[own], mask[own] > 0, out=target[own]))
    return out


def _for_pieces(size: int, run) -> None:
    def work(part, parts):
        begin, end = backend.share(size, part, parts)
        for first in range(begin, end, PIECE):
            run(slice(first, min(first + PIECE, end)))

    backend.parallel(work, 1 if size < 2 * PIECE else None)
