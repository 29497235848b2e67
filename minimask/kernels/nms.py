"""Non-maximum suppression of boxes sorted by falling score: 64 boxes at a time on the CPU, nms.cu on a GPU.

Both versions work alike: who would strike out whom is computed for many pairs at once and kept as bits, and
only the greedy pass over the bits goes one box at a time. `minimask.boxes.nms_loop` is the definition.
Shapes: N boxes; words of 64 bits.
"""

import math

import numpy as np

from minimask import backend

TINY = 1e-37  # as in `minimask.boxes.box_iou`
WORD = 64  # boxes settled at a time: as many as a word has bits
# Boxes, with a word of others: three tables of 2 MiB; smaller ones wait too often for the interpreter's lock.
COMPARED_AT_ONCE = 1 << 13
LIMIT = 64 * 4096  # boxes in one call on a GPU: the greedy pass holds their bits in shared memory


def in_order(boxes, iou_threshold: float) -> np.ndarray:
    """Which of the boxes (N, 4), sorted by falling score, are kept: their indices, ascending; NumPy.

    Settle who survives among the first 64; then strike out, in one step, everything after them that a
    survivor overlaps; and go on with the rest. Boxes struck out are never looked at again.
    """
    (table, least), kept, rest = _table(boxes), [], np.arange(len(boxes))
    while len(rest):
        first, later = table[:, :WORD], table[:, WORD:]
        survivors = _survivors(_strikes(first, first, iou_threshold, least))
        kept.append(rest[survivors])
        stays = np.flatnonzero(~_struck(first[:, survivors], later, iou_threshold, least))
        table, rest = later.take(stays, axis=1), rest[WORD:][stays]
    return np.concatenate(kept) if kept else rest


def in_order_within_groups(boxes, groups, iou_threshold: float) -> np.ndarray:
    """The same for boxes sorted by group (N,), each by falling score, where only those of a group compete.

    There may be as many groups as boxes. So as many whole groups as a word can hold are settled at once.
    """
    ends = np.append(np.flatnonzero(groups[1:] != groups[:-1]) + 1, len(groups))
    kept, begin = [np.zeros(0, np.int64)], 0
    while begin < len(groups):
        fitting = ends[(ends > begin) & (ends <= begin + WORD)]
        end = int(fitting[-1] if len(fitting) else ends[ends > begin][0])
        some, own = boxes[begin:end], groups[begin:end]
        if own[0] == own[-1]:
            survivors = in_order(some, iou_threshold)
        else:
            table, least = _table(some)
            same = own[:, None] == own
            survivors = _survivors(_strikes(table, table, iou_threshold, least) & same)
        kept.append(begin + np.array(survivors, np.int64))
        begin = end
    return np.concatenate(kept)


def _table(boxes) -> tuple[np.ndarray, float]:
    """Coordinates and areas (5, N); and what no union is smaller than, even after rounding."""
    x1, y1, x2, y2 = boxes.T
    table = np.stack((x1, y1, x2, y2, (x2 - x1) * (y2 - y1)))
    return table, 0.5 * table[4].min(initial=1)  # NaN if an area is


def _survivors(strikes) -> list[int]:  # (n, n) bool, n <= 64: who would strike out whom
    """The greedy pass: each box in turn, if it has not been struck out, strikes out the later ones."""
    n = len(strikes)
    bits = np.zeros((n, WORD), bool)
    bits[:, :n] = strikes
    words = np.packbits(bits, axis=1, bitorder="little").view("<u8")[:, 0].tolist()
    struck_out, survivors = 0, []
    for i, word in enumerate(words):
        if not struck_out >> i & 1:
            survivors.append(i)
            struck_out |= word
    return survivors


def _struck(survivors, table, iou_threshold: float, least: float) -> np.ndarray:
    """Which boxes some survivor overlaps by more than the threshold: (5, S), (5, B) -> (B,) bool."""
    struck = np.empty(table.shape[1], bool)

    def compare(part: slice):
        _strikes(survivors, table[:, part], iou_threshold, least).any(axis=0, out=struck[part])

    parts = None if len(struck) > 2 * COMPARED_AT_ONCE else 1
    backend.parallel_slices(len(struck), compare, COMPARED_AT_ONCE, parts)
    return struck


def _strikes(a, b, iou_threshold: float, least: float) -> np.ndarray:
    """Whether IoU > threshold: tables (5, A), (5, B) of coordinates and areas -> (A, B) bool.

    The operations are `box_iou`'s, with the same roundings, in memory that is still in cache from the last
    call. A height below zero need not become zero: the quotient is then negative, below any threshold >= 0.
    """
    shape = 3, a.shape[1], b.shape[1]
    inter, side, union = backend.scratch("nms", math.prod(shape), a.dtype).reshape(shape)

    def spread(k, out):  # NumPy has vector code for two long rows, but none for a number and a row
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
    """On a GPU: the boxes that survive, without making the host wait.

    Parameters
    ----------
    boxes : (N, 4) CuPy array
    order : (N,) integer CuPy array
        Indices of the boxes by falling score.
    groups : (N,) integer CuPy array or None
        The group of each box; only boxes of one group compete.
    iou_threshold : float

    Returns
    -------
    kept : (N,) int64 CuPy array
        Begins with the entries of `order` that survive, in its order; the rest is undefined.
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
    words = -(-n // WORD)
    boxes, order = xp.ascontiguousarray(boxes), xp.ascontiguousarray(order, dtype=np.int64)
    groups = None if groups is None else xp.ascontiguousarray(groups, dtype=np.int64)
    strikes = xp.empty((n, words), dtype=np.uint64)
    kept, count = xp.empty(n, dtype=np.int64), (xp.empty if n else xp.zeros)((), dtype=np.int32)
    args = (boxes, order, groups, iou_threshold, n, words, strikes)
    backend.launch("nms", "nms_matrix", (words, words), WORD, args, boxes.dtype)
    backend.launch("nms", "nms_greedy", (min(words, 1),), 1024, (strikes, order, n, words, kept, count))
    return kept, count
