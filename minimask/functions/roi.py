"""The five RoI layers of the paper's Table 2c: features of a fixed size from a box of any size.

Shapes: R RoIs (image index, x1, y1, x2, y2), L maps (N, C, H, W), output PH x PW.

              box rounded   bins rounded   reads                  aggregation
    RoIPool   yes           yes            whole pixels           max
    RoIWarp   yes           no             bilinear at points     average, max
    RoIAlign  no            no             bilinear at points     average, max

All are called as ``layer(x, rois, output_size, spatial_scale, levels=...)``; `functools.partial` binds the
options that only some of them have.
"""

from __future__ import annotations

from dataclasses import replace
from numbers import Real

import numpy as np

from minimask import backend
from minimask.autograd import Function, Tensor
from minimask.errors import InputError
from minimask.kernels import roi_align as align
from minimask.kernels import roi_pool as pool
from minimask.kernels import roi_warp as warp
from minimask.kernels.geometry import as_pair
from minimask.kernels.roi_launch import beside


class RoIAlign(Function):
    """y = A x: each bin is the average (or maximum) of bilinear samples; nothing is rounded (section 3)."""

    name = "roi_align"
    giving_dtype = slice(1, None)  # the features, not the RoIs

    def __init__(self, sampling: align.Sampling, scales: tuple[float, ...], levels=None):
        self.sampling, self.scales, self.levels = sampling, scales, levels

    def forward(self, rois, *xs):  # (R, 5), L of (N, C, H, W) -> (R, C, PH, PW)
        backend.require_floating(self.name, **{f"map {i}": x for i, x in enumerate(xs)})
        shapes = [x.shape for x in xs]
        rois, levels = beside(xs[0], rois, self.levels)
        plan = align.Plan.build(rois, levels, shapes, self.scales, self.sampling, xs[0].dtype)
        y, argmax = align.forward(xs, plan)
        self.save(plan, argmax, shapes)
        return y

    def backward(self, gy):  # (R, C, PH, PW) -> None, L of (N, C, H, W)
        plan, argmax, shapes = self.saved
        # y = A x, so gx = A^T gy; for the maximum, the rows of A that did not win get no gradient
        return None, *align.backward(gy, argmax, shapes, plan)


class RoIWarp(RoIAlign):
    """y = A x, with A of the rounded box: it jumps from pixel to pixel, but its bins divide it exactly."""

    name = "roi_warp"

    def __init__(self, sampling: align.Sampling, scales: tuple[float, ...], levels=None):
        # RoIAlign is given the rounded box in feature pixels, so with scale 1, and reads it as it is
        super().__init__(replace(sampling, aligned=True), (1.0,) * len(scales), levels)
        self.rounding = dict(scales=scales, aligned=sampling.aligned)

    def forward(self, rois, *xs):  # (R, 5), L of (N, C, H, W) -> (R, C, PH, PW)
        rois, levels = beside(xs[0], rois, self.levels)
        return super().forward(warp.quantised(rois, levels, **self.rounding), *xs)


class RoIPool(Function):
    """y = max over the pixels of a bin of the rounded box; the gradient goes to the maximum alone."""

    giving_dtype = slice(1, None)  # the features, not the RoIs

    def __init__(self, output_size: tuple[int, int], scales: tuple[float, ...], aligned=False, levels=None):
        self.output_size, self.scales, self.aligned, self.levels = output_size, scales, aligned, levels

    def forward(self, rois, *xs):  # (R, 5), L of (N, C, H, W) -> (R, C, PH, PW)
        rois, levels = beside(xs[0], rois, self.levels)
        y, argmax = pool.forward(xs, rois, levels, self.scales, self.output_size, self.aligned)
        self.save(argmax, rois, levels, [x.shape for x in xs])
        return y

    def backward(self, gy):  # (R, C, PH, PW) -> None, L of (N, C, H, W)
        argmax, rois, levels, shapes = self.saved
        # y = x[argmax], so gx[argmax] += gy; rounding is a step function, so the box gets no gradient
        return None, *pool.backward(gy, argmax, rois, levels, self.scales, shapes, self.aligned)


def as_rois(boxes):
    """RoIs as (R, 5), image index first, from such an array or a list of one (R_n, 4) array per image."""
    by_image = isinstance(boxes, (list, tuple))
    arrays = [_array(b) for b in (boxes if by_image else [boxes])]
    if not arrays or any(a.ndim != 2 or a.shape[1] != (4 if by_image else 5) for a in arrays):
        got = [a.shape for a in arrays] if by_image else arrays[0].shape
        raise ValueError(f"RoIs must be (R, 5): image index, x1, y1, x2, y2; or a list of (R, 4); got {got}")
    if not by_image:
        return arrays[0] if arrays[0].dtype.kind == "f" else backend.as_floating(arrays[0])
    arrays, xp = [backend.as_floating(a) for a in arrays], backend.array_module(*arrays)
    index = [xp.full((len(a), 1), n, a.dtype) for n, a in enumerate(arrays)]
    return xp.concatenate([xp.concatenate(columns, axis=1) for columns in zip(index, arrays)])


def _array(value):
    """A Tensor's array, an array as it is, or a NumPy array made of anything else."""
    value = value.data if isinstance(value, Tensor) else value
    return np.asarray(value) if backend.array_module(value) is np else value


def _inputs(name: str, x, rois, spatial_scale, levels):
    """The Function's inputs (RoIs and maps) and its options `scales` and `levels`, checked.

    Values on a GPU are not checked, since that would mean waiting for it: a RoI whose image or level does not
    exist reads NaN there.
    """
    xs = tuple(x) if isinstance(x, (list, tuple)) else (x,)
    scales = tuple(spatial_scale) if isinstance(spatial_scale, (list, tuple)) else (spatial_scale,)
    if len(xs) != len(scales) or (len(xs) > 1 and levels is None):
        raise ValueError(f"{name}: {len(xs)} maps need as many scales ({len(scales)}), and the RoIs' levels")
    for each in xs:
        shape = getattr(each, "shape", ())
        if len(shape) != 4:
            raise InputError(f"{name}: a feature map must be (N, C, H, W); the shape is {shape}")
    for scale in scales:
        if not (isinstance(scale, Real) and 0 < scale < np.inf):
            raise InputError(f"{name}: spatial_scale must be feature pixels per image pixel, is {scale!r}")
    rois, n_images = as_rois(rois), xs[0].shape[0]
    if len(rois) and backend.array_module(rois) is np:
        lowest, highest = float(rois[:, 0].min()), float(rois[:, 0].max())
        if not (0 <= lowest and highest < n_images):
            raise ValueError(
                f"{name}: image indices range from {lowest:g} to {highest:g}, with {n_images} images"
            )
    levels = None if len(xs) == 1 else _array(levels)
    if levels is not None:
        on_cpu = backend.array_module(levels) is np
        if levels.shape != (len(rois),) or (on_cpu and not np.isin(levels, range(len(xs))).all()):
            raise ValueError(f"{name}: levels must be one of 0 to {len(xs) - 1} for each of {len(rois)} RoIs")
    return (rois, *xs), dict(scales=scales, levels=levels)


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
        Image index (left out in a list), x1, y1, x2, y2 in image pixels. No gradient flows into them.
    output_size : int or (PH, PW)
    spatial_scale : float, or one for each level
        Feature pixels per image pixel: 1 / stride.
    sampling_ratio : int
        n x n points per bin; 0 or less is adaptive: n = ceil(bin size).
    aligned : bool
        How a box coordinate is read. True: as a place, where pixel i covers [i, i + 1); this is exact. False,
        as in the original: as a pixel's index, which here means its centre, so that everything is read half a
        pixel off.
    levels : (R,) int, optional
        With several maps: which one each RoI reads. The RoIs' order is kept.
    aggregation : "average" or "max"
    sampling_points : "centers" or "crossings"
        At (i + 1/2) / n of the bin, or at (i + 1) / (n + 1).

    Returns
    -------
    (R, C, PH, PW) Tensor, of the features' dtype.

    Raises
    ------
    ValueError
        If an image index or a level is out of range, the RoIs have another shape, or an option is unknown.
    TypeError
        If the features are not floating point; `roi_pool`, which only compares them, takes integers.

    Examples
    --------
    On a ramp, where pixel i has the value i, a box that moves by half a pixel reads half more.

    >>> import numpy as np
    >>> ramp = np.tile(np.arange(8.0), (1, 1, 8, 1))
    >>> rois = np.array([[0, 1.0, 1, 5, 5], [0, 1.5, 1, 5.5, 5]])
    >>> roi_align(ramp, rois, 2, aligned=True).numpy()[:, 0, 0]
    array([[1.5, 3.5],
           [2. , 4. ]])
    >>> roi_pool(ramp, rois, 2).numpy()[:, 0, 0]
    array([[3., 5.],
           [4., 6.]])
    """
    inputs, options = _inputs("roi_align", x, rois, spatial_scale, levels)
    sampling = align.Sampling(
        as_pair(output_size, "output_size"), sampling_ratio, aligned, sampling_points, aggregation
    )
    return RoIAlign.apply(*inputs, sampling=sampling, **options)


def roi_warp(
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
    """RoIWarp as in the Mask R-CNN paper's Table 2c: the box is rounded as in RoIPool, then read bilinearly.

    Parameters, results and errors are those of `roi_align`, except:

    Parameters
    ----------
    aligned : bool
        True: the box covers the pixels [round(x1 s), round(x2 s)) of a map at scale s. False, as in the
        original: the last one as well, [round(x1 s), round(x2 s) + 1). At least one pixel in either case.
        Pixel i is the interval [i, i + 1) and is read there, so no half pixel is lost.

    Notes
    -----
    RoI warping comes from Multi-task Network Cascades (Dai, He and Sun 2016, section 4), where the box gets a
    gradient, too. The rounded box that Table 2c compares has none.
    """
    inputs, options = _inputs("roi_warp", x, rois, spatial_scale, levels)
    sampling = align.Sampling(
        as_pair(output_size, "output_size"), sampling_ratio, aligned, sampling_points, aggregation
    )
    return RoIWarp.apply(*inputs, sampling=sampling, **options)


def roi_pool(x, rois, output_size, spatial_scale=1.0, aligned: bool = False, *, levels=None) -> Tensor:
    """RoIPool (Fast R-CNN, section 2.1), kept to show what its roundings cost.

    It is the maximum over every pixel of a bin, and so has no sampling points to choose. Parameters, results
    and errors are those of `roi_align`, except:

    Parameters
    ----------
    aligned : bool
        Which pixels the rounded box covers, as in `roi_warp`; False is Fast R-CNN's and torchvision's.

    Returns
    -------
    (R, C, PH, PW) Tensor, of the features' dtype; 0 in empty bins.
    """
    inputs, options = _inputs("roi_pool", x, rois, spatial_scale, levels)
    size = align.Sampling(as_pair(output_size, "output_size")).output_size  # refuses 0
    return RoIPool.apply(*inputs, output_size=size, aligned=aligned, **options)
