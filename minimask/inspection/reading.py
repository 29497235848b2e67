"""Where a RoI layer reads the features: its level and its points, as the layer's own kernel places them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minimask.autograd import Tensor
from minimask.backend import to_cpu
from minimask.functions.roi import RoIAlign, RoIPool, RoIWarp
from minimask.inspection.records import Reading
from minimask.kernels import roi_pool as pool
from minimask.kernels import roi_warp as warp
from minimask.kernels.roi_align import Sampling, points_along
from minimask.models.box_head import Pooler, Res5Pooler


def readings(
    pooler: Pooler | Res5Pooler, levels: Sequence[Tensor], rois, names: Sequence[str]
) -> list[Reading]:
    """Where each RoI is read.

    The layer is called, and its options are those of the Function that it left in the graph. For a
    layer of any other kind, which a model may be given, the points are unknown: columns and rows are empty.

    Parameters
    ----------
    levels : L of (1, C, rows, columns)
    rois : (R, 5) array
    names : L of str
    """
    pooler = getattr(pooler, "pooler", pooler)  # C4's heads have it in front of res5
    if not len(rois):
        return []
    layer = pooler([Tensor(x.data, requires_grad=True) for x in levels], rois).creator
    assigned, rois = to_cpu(pooler.assign(rois)), to_cpu(rois)
    found = []
    for k, roi in enumerate(rois):
        level = int(assigned[k])
        stride, size = pooler.strides[level], levels[level].shape[2:]
        points = _points(layer, roi, level, size)
        rows, columns = (np.asarray(axis, np.float64) * stride for axis in points)
        bins = (pooler.output_size,) * 2
        found.append(Reading(names[level], float(stride), bins, columns, rows))
    return found


def _points(layer: Any, roi: np.ndarray, level: int, size: tuple[int, int]) -> tuple:
    """Rows and columns at which a layer reads a map of this size for a RoI (5,), in cells; 0 is the edge."""
    if isinstance(layer, RoIPool):
        box = roi[1:] * np.asarray(layer.scales[level], roi.dtype)
        return tuple(
            _covered(box[axis], box[axis + 2], layer.output_size[1 - axis], size[1 - axis], layer.aligned)
            for axis in (1, 0)
        )
    if not isinstance(layer, RoIAlign):
        return np.zeros(0), np.zeros(0)
    sampling = layer.sampling
    if isinstance(layer, RoIWarp):
        options = dict(scales=(layer.rounding["scales"][level],), aligned=layer.rounding["aligned"])
        box = warp.quantised(roi[None], None, **options)[0, 1:]
    else:
        box = roi[1:] * np.asarray(layer.scales[level], roi.dtype)
    return tuple(
        _along(box[axis], box[axis + 2], sampling.output_size[1 - axis], sampling) for axis in (1, 0)
    )


def _along(begin, end, bins: int, sampling: Sampling) -> np.ndarray:
    """Places of all points along an axis, in cells; a position counts from the centre of cell 0."""
    ((_, positions),) = points_along(np.array([begin]), np.array([end]), bins, sampling)
    return positions.reshape(-1) + 0.5


def _covered(begin, end, bins: int, length: int, aligned: bool) -> np.ndarray:
    """The centres of the cells that the bins of RoIPool cover along an axis."""
    first, last = pool.bin_edges(np.array([begin]), np.array([end]), bins, length, aligned)
    return np.arange(first.min(), last.max()) + 0.5
