"""Non-maximum suppression of boxes that come by falling score: on the CPU 64 boxes at a time, and nms.cu.

Both versions do the same: who strikes out whom is computed for many pairs at once and kept as bits, and only
the greedy pass over the bits goes one box at a time. `minimask.boxes.nms_loop` is the definition.
Shapes: N boxes; words are of 64 bits.
"""

import math

import numpy as np

from minimask import backend

TINY = 1e-37  # as in `minimask.boxes.box_iou`
BLOCK = 64  # boxes settled at a time: a word of bits
COLUMNS = 1024  # boxes compared with a block at once: three tables of 256 KiB stay in a core's own cache
LIMIT = 64 * 4096  # boxes of one call on a GPU: the greedy pass holds their bits in shared memory


def in_order(boxes, iou_threshold: float) -> np.ndarray:
    """Places of the boxes kept, rising, of boxes (N, 4) that come by falling score; NumPy.

    Settle who survives within a block, then strike out, in one step, everything after it that a survivor
    overlaps. Boxes struck out are never looked at again.
    """
    x1, y1, x2, y2 = boxes.T
    table = np.stack((x1, y1, x2, y2, (x2 - x1) * (y2 - y1)))  # (5, N)
    least = 0.5 * table[4].min(initial=1)  # no union is smaller, rounding included; NaN if an area is
    kept, rest, bits = [], np.arange(len(boxes)), np.empty((BLOCK, BLOCK), bool)
    while len(rest):
        block, after = table[:, :BLOCK], table[:, BLOCK:]
        n = block.shape[1]
        bits[:n, :n] = _strikes(block, block, iou_threshold, least)
        out, alive = 0, []  # bits of boxes struck out: Python's whole numbers are words of any length
        for i, word in enumerate(np.packbits(bits, axis=1, bitorder="little").view("<u8")[:n, 0].tolist()):
            if not out >> i & 1:
                alive.append(i)
                out |= word
        kept.append(rest[alive])
        stays = np.flatnonzero(~_struck(block[:, alive], after, iou_threshold, least))
        table, rest = after.take(stays, axis=1), rest[BLOCK:][stays]
    return np.concatenate(kept) if kept else rest


def _struck(block, table, iou_threshold: float, least: float) -> np.ndarray:  # (5, B), (5, A) -> (A,) bool
    struck = np.empty(table.shape[1], bool)

    def work(part, parts):
        begin, end = backend.share(len(struck), part, parts)
        for first in range(begin, end, COLUMNS):
            some = slice(first, min(first + COLUMNS, end))
            _strikes(block, table[:, some], iou_threshold, least).any(axis=0, out=struck[some])

    backend.parallel(work) if len(struck) > 2 * COLUMNS else work(0, 1)
    return struck


def _strikes(a, b, iou_threshold: float, least: float) -> np.ndarray:
    """Whether IoU > threshold: tables (5, A), (5, B) of coordinates and areas -> (A, B) bool.

    `box_iou`, rounding by rounding, in memory that is still in cache from the call before. A height below
    zero need not become zero: it makes the quotient negative, which is no more than any threshold either.
    """
    shape = 3, a.shape[1], b.shape[1]
    inter, side, union = backend.scratch("nms", math.prod(shape), a.dtype).reshape(shape)

    def spread(k, out):  # NumPy has vector code for two long rows, and none for a number and a row
        out[:] = a[k, :, None]
        return out

    np.minimum(spread(2, inter), b[2], out=inter)
    inter -= np.maximum(spread(0, side), b[0], out=side)
    np.maximum(inter, 0, out=inter)
    np.minimum(spread(3, side), b[3], out=side)
    side -= np.maximum(spread(1, union), b[1], out=union)
    inter *= side
    np.add(spread(4, union), b[4], out=union)
    union -= inter
    inter /= union if least > TINY else np.maximum(union, TINY, out=union)
    return inter > iou_threshold


def suppress(boxes, order, groups, iou_threshold: float):
    """On a GPU: the boxes that survive, without the host waiting for it.

    Parameters
    ----------
    boxes : (N, 4) CuPy array
    order : (N,) integer CuPy array
        Places of the boxes by falling score.
    groups : (N,) integer CuPy array or None
        The group of each box; only boxes of one group compete.
    iou_threshold : float

    Returns
    -------
    kept : (N,) int64 CuPy array
        The members of `order` that survive, in its order; what comes after them is undefined.
    count : () int32 CuPy array
        How many survive.

    Raises
    ------
    ValueError
        For more than `LIMIT` boxes.
    """
    xp, n = backend.array_module(boxes), len(boxes)
    if n > LIMIT:
        raise ValueError(f"nms: {n} boxes are more than the {LIMIT} that a GPU suppresses at once")
    words = -(-n // 64)
    boxes, order = xp.ascontiguousarray(boxes), xp.ascontiguousarray(order, dtype=np.int64)
    groups = None if groups is None else xp.ascontiguousarray(groups, dtype=np.int64)
    strikes = xp.empty((n, words), dtype=np.uint64)
    kept, count = xp.empty(n, dtype=np.int64), xp.zeros((), dtype=np.int32)
    args = (boxes, order, groups, iou_threshold, n, words, strikes)
    backend.launch("nms", "nms_matrix", (words, words), 64, args, boxes.dtype)
    backend.launch("nms", "nms_greedy", (min(words, 1),), 1024, (strikes, order, n, words, kept, count))
    return kept, count
