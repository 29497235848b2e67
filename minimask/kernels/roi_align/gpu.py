"""RoIAlign on a GPU: which kernel of roi_align.cu is launched, on what grid, with which arguments.

Shapes: R RoIs, PH x PW bins, L pyramid levels of (N, C, H, W) features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from minimask import backend
from minimask.kernels.roi_align.formula import Sampling
from minimask.kernels.roi_launch import maps, one_each, tiles


@dataclass(frozen=True)
class OnDevice:
    """Where R RoIs on a GPU read L feature maps; all levels in one launch. Nothing here waits for the GPU."""

    rois: object  # (R, 5), C-contiguous, of the features' dtype
    levels: object  # (R,) int32, or None
    scales: tuple
    sampling: Sampling

    def forward(self, xs):  # L of (N, C, H, W) -> (R, C, PH, PW), and argmax of that shape or None
        xp, s, shape = backend.array_module(self.rois), self.sampling, xs[0].shape
        xs = [xp.ascontiguousarray(x) for x in xs]
        y = xp.empty((len(self.rois), shape[1], *s.output_size), xs[0].dtype)
        argmax = xp.empty(y.shape, np.int32) if s.aggregation == "max" else None
        arrays = maps(xs, self.scales), self.rois, self.levels, y
        if argmax is None and s.ratio == 2 and not backend.use_reference():
            self._launch("roi_align_forward_by_bin", channels_in_turn(y.shape), arrays, shape, y.dtype)
        else:
            self._launch("roi_align_forward", one_each(y.shape), (*arrays, argmax), shape, y.dtype)
        return y, argmax

    def backward(self, gy, argmax, shapes):  # (R, C, PH, PW) -> L of (N, C, H, W)
        xp, ordered, shape = backend.array_module(gy), backend.is_deterministic(), shapes[0]
        gxs, gy = [(xp.empty if ordered else xp.zeros)(s, gy.dtype) for s in shapes], xp.ascontiguousarray(gy)
        arrays = self.rois, self.levels, maps(gxs, self.scales)
        if ordered:
            self._launch("roi_align_backward_ordered", tiles(shapes), (gy, argmax, *arrays), shape, gy.dtype)
        elif argmax is None and axis_has_room(self.sampling) and not backend.use_reference():
            self._launch(
                "roi_align_backward_by_pixel", channels_in_turn(gy.shape), (gy, *arrays), shape, gy.dtype
            )
        else:
            self._launch("roi_align_backward", one_each(gy.shape), (gy, argmax, *arrays), shape, gy.dtype)
        return gxs

    def _launch(self, kernel: str, grid_and_block, arrays, shape, dtype) -> None:
        args = *arrays, len(self.rois), *shape[:2], struct_sampling(self.sampling)
        backend.launch("roi_align", kernel, *grid_and_block, args, dtype)


def struct_sampling(s: Sampling) -> np.ndarray:
    """``struct Sampling`` of the CUDA source."""
    fields = [("ph", "i4"), ("pw", "i4"), ("ratio", "i4"), ("aligned", "?"), ("crossings", "?")]
    values = (*s.output_size, s.ratio, s.aligned, s.points == "crossings")
    return np.array(values, np.dtype(fields, align=True))


def axis_has_room(s: Sampling) -> bool:
    """Whether ``struct Axis`` of the CUDA source has room for the bins and pixels of a RoI along an axis."""
    most = max(s.output_size)
    return s.ratio > 0 and most <= 16 and 2 * s.ratio * most <= 64


def channels_in_turn(shape):
    """Grid and block for outputs (R, C, PH, PW) where a thread goes through channels.

    There are 2048 blocks or so: enough for any GPU.
    """
    rois, channels, bins = shape[0], shape[1], math.prod(shape[2:])
    lanes = max(1, 256 // bins)  # channels that a block of whole RoIs takes at a time
    groups = max(1, min(-(-2048 // max(rois, 1)), -(-channels // lanes)))
    return (rois if channels else 0, groups), lanes * bins if bins <= 256 else 256
