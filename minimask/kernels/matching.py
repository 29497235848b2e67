"""Matching on the GPU: the candidates of all images in two launches (matching.cu).

Shapes: N images, each with A candidates, G objects and C crowd regions. In NumPy: `minimask.matching`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minimask import backend


def match(
    candidates: Sequence,
    objects: Sequence,
    crowds: Sequence,
    high: float,
    low: float,
    rescue: bool,
    untouched: bool,
    coverage: float,
):
    """The matches of all images' candidates, one image after another, for CuPy arrays.

    Parameters
    ----------
    candidates, objects, crowds : N of (A, 4), of (G, 4) and of (C, 4) float
        They are compared in the first candidates' dtype.
    high, low, rescue, untouched : float, float, bool, bool
        The four fields of `minimask.matching.Matcher`.
    coverage : float
        Background candidates of which a crowd region covers at least this share are ignored.

    Returns
    -------
    (sum of A,) int64 CuPy array.
    """
    xp, dtype = backend.array_module(*candidates), candidates[0].dtype
    arrays = [[xp.ascontiguousarray(a, dtype) for a in row] for row in zip(candidates, objects, crowds)]
    sizes = np.array([[len(a) for a in row] for row in arrays], np.int64)  # (N, 3)
    # (N, 3): an image's parts of iou, best_of, matches
    parts = np.stack([sizes[:, 0] * sizes[:, 1], sizes[:, 1], sizes[:, 0]], axis=1)
    ends = np.cumsum(parts, axis=0)
    addresses = np.array([[a.data.ptr for a in row] for row in arrays], np.int64)
    table = backend.to_gpu(np.concatenate([addresses, sizes, ends - parts], axis=1))  # (N, 9), struct Image
    iou, best_of, matches = (
        xp.empty(int(size), kind) for size, kind in zip(ends[-1], (dtype, dtype, np.int64))
    )
    (most, most_objects, _), images = sizes.max(axis=0).tolist(), len(arrays)
    backend.launch("matching", "overlaps", (most_objects, images), 256, (table, iou, best_of), dtype)
    args = table, iou, best_of, high, low, rescue, untouched, coverage, matches
    backend.launch("matching", "match", (-(-most // 256), images), 256, args, dtype)
    return matches
