"""RoIWarp as in Table 2c of the Mask R-CNN paper: the box is rounded as in RoIPool, its bins are not.

Shapes: R RoIs, L pyramid levels, PH x PW bins, features (N, C, H, W).

The rounded box covers whole pixels, [first, past) of `roi_pool.box_pixels`, where pixel i is the interval
[i, i + 1) with its centre at i + 1/2. It is cut into bins of equal size, which are not rounded, and these are
read with bilinear interpolation. So RoIWarp is the aligned RoIAlign of the rounded box and needs no kernel of
its own.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from minimask import backend
from minimask.kernels.roi_align import Sampling, roi_align_loop
from minimask.kernels.roi_pool import box_pixels


def quantised(rois, levels, scales, aligned: bool):
    """The RoIs, rounded, in feature pixels of the map that each one reads.

    Parameters
    ----------
    rois : (R, 5) float
        Image index, x1, y1, x2, y2 in image pixels.
    levels : (R,) int or None
        Which map each RoI reads; None if there is only one.
    scales : L of float
        Feature pixels per image pixel.
    aligned : bool
        See `roi_pool.box_pixels`.

    Returns
    -------
    (R, 5): image index and whole numbers.
    """
    xp = backend.array_module(rois)
    scale = float(scales[0]) if levels is None else xp.array(scales, rois.dtype)[levels, None]
    x1, y1, x2, y2 = (rois[:, 1:] * scale).T
    (left, right), (top, bottom) = (box_pixels(*edges, aligned, xp) for edges in ((x1, x2), (y1, y2)))
    return xp.stack([rois[:, 0], left, top, right, bottom], axis=1)


def roi_warp_loop(x, rois, scale: float, s: Sampling):
    """(N, C, H, W), (R, 5) -> (R, C, PH, PW), box by box (slow; for tests and reading)."""
    boxes = np.zeros((len(rois), 5))
    for r, (n, *box) in enumerate(rois):
        x1, y1, x2, y2 = (int(math.copysign(math.floor(abs(v * scale) + 0.5), v)) for v in box)
        if not s.aligned:  # the last pixel belongs to the box as well
            x2, y2 = x2 + 1, y2 + 1
        boxes[r] = n, x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)
    return roi_align_loop(x, boxes, 1.0, replace(s, aligned=True))
