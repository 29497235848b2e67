"""Feature maps with channels last, as RoI layers read them on the CPU: a pixel's C values side by side.

Shapes: L pyramid levels of (N, C, H, W). Their pixels are numbered in order, level by level, image by image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from minimask import backend

PIXELS_AT_ONCE = 512  # transposed together: as many as fit the second level of the cache with 256 channels
NEIGHBOURS = 16  # pixels side by side, all moved if one of them is read: they come from memory together


def channels_last(xs, read):
    """L of (N, C, H, W) -> (L N H W, C) in this thread's buffer: only the pixels numbered in `read`.

    `read` may name a pixel many times. The other rows hold what earlier calls left there.
    """
    shape = sum(len(x) * math.prod(x.shape[2:]) for x in xs), xs[0].shape[1]
    out = backend.scratch("features", math.prod(shape), xs[0].dtype).reshape(shape)
    many = len(read) > 8 * len(out)  # then moving all costs no more than asking which are read
    is_read = np.ones(len(out), bool) if many else np.bincount(read, minlength=len(out)) > 0
    moves = []  # (C, H W) of an image, its first pixel among all, and a range of its pixels
    for begin, end, x in images(xs):
        is_moved = np.logical_or.reduceat(is_read[begin:end], np.arange(0, end - begin, NEIGHBOURS))
        edges = (np.flatnonzero(np.diff(is_moved, prepend=False, append=False)) * NEIGHBOURS).tolist()
        for first, last in zip(edges[::2], edges[1::2]):
            run = range(first, min(last, end - begin))
            moves += [(x, begin, run[k : k + PIXELS_AT_ONCE]) for k in range(0, len(run), PIXELS_AT_ONCE)]

    def work(part, parts):
        for x, begin, run in moves[slice(*backend.share(len(moves), part, parts))]:
            transpose(x[:, run.start : run.stop], out[begin + run.start : begin + run.stop])

    backend.parallel(work, operations=out.size)
    return out


def images(xs) -> Iterator[tuple]:
    """Each image of each level: its first pixel among all, the one past its last, and the view (C, H W)."""
    begin = 0
    for x in xs:
        for image in x.reshape(*x.shape[:2], math.prod(x.shape[2:])):
            yield begin, begin + image.shape[1], image
            begin += image.shape[1]


def transpose(source, target) -> None:
    """target = source^T of one matrix or many; if they are large, by way of a copy with a gap after each row.

    Rows that lie a multiple of some KiB apart share a few places of the cache and evict each other.
    """
    *shape, columns = source.shape
    if min(shape[-1], columns) > 64:
        copy = backend.scratch("transpose", math.prod(shape) * (columns + 4), source.dtype)
        copy = copy.reshape(*shape, columns + 4)[..., :columns]
        copy[:] = source
        source = copy
    target[:] = source.swapaxes(-1, -2)
