"""The RoI layers, NCHW in and out, everything included, over the levels P2..P5 of 800 x 1088 as the model has
them: RoIs of 16 to 600 pixels, each read from the level of its size.

torchvision's side is its operator called once a level and scattered, what `MultiScaleRoIAlign` does.
"""

from __future__ import annotations

import numpy as np

from minimask import functions as F
from minimask.matching import assign_fpn_levels
from tests.benchmarks.measure import Contest, Row
from tests.benchmarks.rows_operators import MAPS, differentiable

STRIDES = 4, 8, 16, 32
CHANNELS = 256
TOLERANCE = 1e-4  # a point's place is rounded to 6e-5 pixels where coordinates reach 1000


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(R, 5) RoIs of one image, sizes evenly spread over their logarithm."""
    size = np.exp(rng.uniform(np.log(16), np.log(600), (count, 2)))
    corner = rng.random((count, 2)) * np.maximum(np.array([1067, 800]) - size, 1)
    return np.concatenate([np.zeros((count, 1)), corner, corner + size], axis=1).astype(np.float32)


def roi_layer(name: str, count: int, size: int, kind: str) -> Contest:
    """`roi_align` (2 x 2 points a bin, not aligned, torchvision's default) or `roi_pool`."""
    import torch
    import torchvision

    rois = boxes(np.random.default_rng(1), count)
    levels = assign_fpn_levels(rois[:, 1:], 2, 5) - 2
    scales = tuple(1 / s for s in STRIDES)
    options = {"sampling_ratio": 2} if name == "roi_align" else {}
    layer, peer = getattr(F, name), getattr(torchvision.ops, name)
    peer_rois = torch.from_numpy(rois)
    members = [torch.from_numpy(np.flatnonzero(levels == k)) for k in range(len(STRIDES))]

    def make(rng):
        return [rng.standard_normal((1, CHANNELS, *hw), np.float32) for hw in MAPS]

    def ours(*xs):
        return layer(xs, rois, size, scales, levels=levels, **options)

    def theirs(*xs):
        y = torch.zeros(count, CHANNELS, size, size)
        for x, own, scale in zip(xs, members, scales):
            y[own] = peer(x, peer_rois[own], size, scale, **options)
        return y

    return differentiable(ours, theirs, make, kind, trained=len(MAPS), tolerance=TOLERANCE)


def one_level(count: int, size: int, kind: str) -> Contest:
    """`roi_align` on the finest map alone: the operators themselves."""
    import torch
    import torchvision

    rois = boxes(np.random.default_rng(1), count)
    peer_rois = torch.from_numpy(rois)

    def make(rng):
        return [rng.standard_normal((1, CHANNELS, *MAPS[0]), np.float32)]

    return differentiable(
        lambda x: F.roi_align(x, rois, size, 0.25, 2),
        lambda x: torchvision.ops.roi_align(x, peer_rois, size, 0.25, 2),
        make,
        kind,
        tolerance=TOLERANCE,
    )


def rows() -> list[Row]:
    out = []
    for kind in ("forward", "both"):
        for count in (64, 512, 2000):
            for size in (7, 14):
                name = f"roi_align/{kind}/{count} RoIs, {size}x{size}, four levels"
                out.append(Row(name, lambda a=(count, size, kind): roi_layer("roi_align", *a)))
        name = f"roi_align/{kind}/512 RoIs, 7x7, one level"
        out.append(Row(name, lambda kind=kind: one_level(512, 7, kind)))
        name = f"roi_pool/{kind}/512 RoIs, 7x7, four levels"
        out.append(Row(name, lambda kind=kind: roi_layer("roi_pool", 512, 7, kind)))
    return out
