"""RoI layers: fixed-size features of boxes of any size, from one feature map or all levels of a pyramid.

Shapes: R RoIs (image index, x1, y1, x2, y2), L maps (N, C, H, W), output PH x PW.
"""

from __future__ import annotations

import numpy as np

from minimask import backend
from minimask.autograd import Function, Tensor
from minimask.kernels import roi_align as align
from minimask.kernels import roi_pool as pool
from minimask.kernels.convolution import pair


class RoIAlign(Function):
    """y = A x: each bin is the average (or maximum) of bilinear samples; nothing is rounded (section 3, RoIAlign)."""

    def __init__(self, sampling: align.Sampling, scales: tuple[float, ...], levels=None):
        self.sampling, self.scales, self.levels = sampling, scales, levels

    def forward(self, rois, *xs):  # (R, 5), L of (N, C, H, W) -> (R, C, PH, PW)
        shapes = [x.shape for x in xs]
        plan = align.Plan.build(rois, self.levels, shapes, self.scales, self.sampling, xs[0].dtype)
        y, argmax = align.forward(xs, plan)
        self.save(plan, argmax, shapes)
        return y

    def backward(self, gy):  # (R, C, PH, PW) -> None, L of (N, C, H, W)
        plan, argmax, shapes = self.saved
        # y = A x, so gx = A^T gy; for the maximum, the rows of A that did not win get no gradient
        return None, *align.backward(gy, argmax, shapes, plan)


class RoIPool(Function):
    """y = max over the pixels of a bin of the rounded box; the gradient goes to the maximum alone."""

    def __init__(self, output_size: tuple[int, int], scale: float):
        self.output_size, self.scale = output_size, scale

    def forward(self, rois, x):  # (R, 5), (N, C, H, W) -> (R, C, PH, PW)
        y, argmax = pool.roi_pool(x, rois, self.output_size, self.scale)
        self.save(rois, argmax, x.shape)
        return y

    def backward(self, gy):
        rois, argmax, shape = self.saved
        return None, pool.roi_pool_gradient(gy, argmax, rois, shape)


def as_rois(boxes) -> np.ndarray:
    """RoIs as (R, 5) with the image index in front: given so, or as a list of (R_n, 4), an array an image."""
    if isinstance(boxes, (list, tuple)):
        boxes = [b.data if isinstance(b, Tensor) else np.asarray(b) for b in boxes]
        index = [np.full((len(b), 1), n, b.dtype) for n, b in enumerate(boxes)]
        return np.concatenate([np.concatenate(pair, axis=1) for pair in zip(index, boxes)])
    boxes = boxes.data if isinstance(boxes, Tensor) else np.asarray(boxes)
    if boxes.ndim != 2 or boxes.shape[1] != 5:
        raise ValueError(
            f"RoIs must be (R, 5): image index, x1, y1, x2, y2; or a list of (R, 4); got {boxes.shape}"
        )
    return boxes


def roi_align(
    x,
    rois,
    output_size,
    spatial_scale=1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    levels=None,
    aggregation: str = "average",
    sampling_points: str = "centers",
) -> Tensor:
    """RoIAlign (Mask R-CNN, section 3), over one feature map or over all levels of a pyramid in one call.

    Parameters
    ----------
    x : (N, C, H, W) float, or a sequence of them
    rois : (R, 5) float, or a list of N arrays (R_n, 4)
        Image index, x1, y1, x2, y2 in image pixels. No gradient flows into them.
    output_size : int or (PH, PW)
    spatial_scale : float, or one for each level
        Feature pixels per image pixel: 1 / stride.
    sampling_ratio : int
        n x n points a bin; 0 or less: adaptive, ceil(bin size).
    aligned : bool
        True: a pixel's area is [i, i + 1), the exact reading. False: the original's, half a pixel off.
    levels : (R,) int, optional
        With several maps: which one each RoI reads. The RoIs' order is kept.
    aggregation : "average" or "max"
    sampling_points : "centers" or "crossings"
        At (i + 1/2) / n of the bin, or at (i + 1) / (n + 1).

    Returns
    -------
    (R, C, PH, PW) Tensor.

    Raises
    ------
    ValueError
        If an image index is out of range, the RoIs have another shape, or an option is unknown.
    """
    xs = tuple(x) if isinstance(x, (list, tuple)) else (x,)
    scales = tuple(spatial_scale) if isinstance(spatial_scale, (list, tuple)) else (spatial_scale,)
    if len(xs) != len(scales) or (len(xs) > 1 and levels is None):
        raise ValueError(
            f"roi_align: {len(xs)} maps need as many scales ({len(scales)}), and the RoIs' levels"
        )
    sampling = align.Sampling(pair(output_size), sampling_ratio, aligned, sampling_points, aggregation)
    levels = None if len(xs) == 1 else backend.to_cpu(levels)
    return RoIAlign.apply(as_rois(rois), *xs, sampling=sampling, scales=scales, levels=levels)


def roi_pool(x, rois, output_size, spatial_scale: float = 1.0) -> Tensor:
    """RoIPool (Fast R-CNN, section 2.1), kept to show what its roundings cost.

    Parameters
    ----------
    x : (N, C, H, W) float
    rois : (R, 5) float, or a list of N arrays (R_n, 4)
        Image index, x1, y1, x2, y2 in image pixels.
    output_size : int or (PH, PW)
    spatial_scale : float
        Feature pixels per image pixel.

    Returns
    -------
    (R, C, PH, PW) Tensor; 0 in empty bins.
    """
    return RoIPool.apply(as_rois(rois), x, output_size=pair(output_size), scale=spatial_scale)
