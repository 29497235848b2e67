"""The formula of RoIAlign (Mask R-CNN, section 3): its options, and the layer in plain loops.

Shapes: R RoIs, PH x PW bins, features (N, C, H, W).

The other two forms, sparse.py and roi_align.cu, compute what `roi_align_loop` says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How a RoI layer reads a box.

    Parameters
    ----------
    output_size : (PH, PW)
    ratio : int
        Sampling points per bin in each direction; 0 or less is adaptive: ceil(bin size), one per pixel.
    aligned : bool
        Subtract half a pixel, so that a box edge at x lies x from the left edge of pixel 0. Without it (the
        original implementation) x lies that far from pixel 0's centre, and boxes are at least 1 pixel wide.
    points : "centers" or "crossings"
        In a bin of n x n points, at (i + 1/2) / n, or at the inner crossings (i + 1) / (n + 1) of an
        (n + 1) x (n + 1) grid.
    aggregation : "average" or "max"
    """

    output_size: tuple[int, int]
    ratio: int = 2
    aligned: bool = False
    points: str = "centers"
    aggregation: str = "average"

    def __post_init__(self):
        if min(self.output_size) < 1:
            raise ValueError(f"output_size must be positive, is {self.output_size}")
        if not isinstance(self.ratio, Integral):
            raise ValueError(f"sampling_ratio must be a whole number, is {self.ratio!r}")
        if self.points not in ("centers", "crossings"):
            raise ValueError(f'sampling_points must be "centers" or "crossings", not {self.points!r}')
        if self.aggregation not in ("average", "max"):
            raise ValueError(f'aggregation must be "average" or "max", not {self.aggregation!r}')

    def start_and_bin_size(self, begin, end, bins: int):
        """Where the first bin starts along one axis, counted from pixel 0's centre, and how long each bin is.

        `begin` and `end` are the box's edges; all are in feature pixels, numbers or arrays.
        """
        shift, least = (0.5, 0.0) if self.aligned else (0.0, 1.0)
        return begin - shift, np.maximum(end - begin, least) / bins

    def fractions(self, n: int) -> np.ndarray:
        """Where the n points of a bin lie along one axis, as fractions of the bin."""
        return (np.arange(n) + 0.5) / n if self.points == "centers" else (np.arange(n) + 1.0) / (n + 1)


def roi_align_loop(x, rois, scale: float, s: Sampling):
    """(N, C, H, W), (R, 5) -> (R, C, PH, PW), point by point (slow; for tests and reading)."""
    (ph, pw), (height, width) = s.output_size, x.shape[2:]
    y = np.zeros((len(rois), x.shape[1], ph, pw), x.dtype)
    for r, (n, *box) in enumerate(rois):
        x1, y1, x2, y2 = (float(edge) * scale for edge in box)
        top, bin_h = map(float, s.start_and_bin_size(y1, y2, ph))
        left, bin_w = map(float, s.start_and_bin_size(x1, x2, pw))
        ny, nx = (s.ratio if s.ratio > 0 else max(0, math.ceil(size)) for size in (bin_h, bin_w))
        for i, j in np.ndindex(ph, pw):
            rows = [top + (i + v) * bin_h for v in s.fractions(ny)]
            columns = [left + (j + u) * bin_w for u in s.fractions(nx)]
            values = [bilinear_loop(x[int(n)], v, u, height, width) for v in rows for u in columns]
            if values:  # an adaptive grid has no points in a box without area
                y[r, :, i, j] = (np.mean if s.aggregation == "average" else np.max)(values, axis=0)
    return y


def bilinear_loop(x, v: float, u: float, height: int, width: int):
    """The feature vector (C,) at row v, column u of one map (C, H, W); 0 more than a pixel outside."""
    if not (-1 <= v <= height and -1 <= u <= width):
        return np.zeros(len(x), x.dtype)
    v, u = min(max(v, 0.0), height - 1.0), min(max(u, 0.0), width - 1.0)
    top, left = int(v), int(u)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    b, r = v - top, u - left  # weights of the lower and of the right pixels
    upper = (1 - r) * x[:, top, left] + r * x[:, top, right]
    lower = (1 - r) * x[:, bottom, left] + r * x[:, bottom, right]
    return (1 - b) * upper + b * lower
