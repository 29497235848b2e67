"""Box coding, clipping and pyramid levels on the GPU, each in one launch (coding.cu).

For CuPy arrays of one dtype (`backend.fit_kernels`). NumPy's versions are in `minimask.boxes` and
`minimask.matching`. Shapes: R boxes, K classes.
"""

from __future__ import annotations

import numpy as np

from minimask import backend


def encode(boxes, others, weights):
    """Offsets (R, 4) that lead from the others (R, 4) to the boxes (R, 4)."""
    xp, deltas = backend.array_module(boxes), backend.array_module(boxes).empty(boxes.shape, boxes.dtype)
    args = xp.ascontiguousarray(boxes), xp.ascontiguousarray(others), *weights, deltas, len(boxes)
    _launch("encode", len(boxes), args, boxes.dtype)
    return deltas


def decode(deltas, others, weights, limit: float):
    """The boxes (R, K, 4) that the offsets (R, K, 4) from (R, 4) lead to; `limit` bounds the log sizes."""
    xp, boxes = backend.array_module(deltas), backend.array_module(deltas).empty(deltas.shape, deltas.dtype)
    arrays = xp.ascontiguousarray(deltas), xp.ascontiguousarray(others)
    _launch("decode", boxes.size // 4, (*arrays, *weights, limit, boxes, *deltas.shape[:2]), deltas.dtype)
    return boxes


def clip(boxes, width: float, height: float):
    """The boxes (..., 4) with x in [0, width] and y in [0, height]."""
    xp, clipped = backend.array_module(boxes), backend.array_module(boxes).empty(boxes.shape, boxes.dtype)
    args = xp.ascontiguousarray(boxes), width, height, clipped, boxes.size // 4
    _launch("clip", boxes.size, args, boxes.dtype)
    return clipped


def fpn_levels(boxes, k_min, k_max, canonical_scale, canonical_level, eps, side_eps):
    """(R,) int64; parameters as in `minimask.matching.assign_fpn_levels`."""
    xp = backend.array_module(boxes)
    boxes, levels = xp.ascontiguousarray(boxes), xp.empty(len(boxes), np.int64)
    args = boxes, canonical_scale, canonical_level, side_eps, eps, k_min, k_max, levels, len(boxes)
    _launch("fpn_levels", len(boxes), args, boxes.dtype)
    return levels


def _launch(kernel: str, threads: int, args, dtype) -> None:
    backend.launch("coding", kernel, (min(-(-threads // 256), 65535),), 256, args, dtype)
