"""Cases of RoIAlign, RoIWarp and RoIPool: maps, boxes on them, and boxes that miss them."""

from __future__ import annotations

from functools import partial

import numpy as np

from minimask.functions.roi import RoIAlign, RoIPool, RoIWarp
from minimask.kernels.roi_align import Sampling, roi_align_loop
from minimask.kernels.roi_pool import roi_pool_loop
from minimask.kernels.roi_warp import roi_warp_loop
from minimask.lessons.gradient_cases.case import Case, spread

SIZE = 16.0  # side of the images in pixels; the maps have 8 x 8, 4 x 4 and 2 x 2 cells


def _inside(rng, count: int, images: int = 2) -> np.ndarray:
    """(R, 5): boxes within the images."""
    corners = np.sort(rng.uniform(0, SIZE, (count, 2, 2)), axis=1)  # (R, corners, x and y)
    return np.concatenate([rng.integers(0, images, (count, 1)), corners.reshape(count, 4)], axis=1)


def _astray(rng, count: int) -> np.ndarray:
    """Boxes inside, across and wholly outside the border; the first one covers the whole image."""
    rois = _inside(rng, count)
    rois[:, 1:] += rng.choice([-SIZE, -SIZE / 2, 0, SIZE / 2, SIZE], (count, 2))[:, [0, 1, 0, 1]]
    rois[:1, 1:] = -5.3, -7.1, 22.9, 19.3
    return rois


def _flat(rng, count: int) -> np.ndarray:
    """Boxes of width 0, of height 0, of both, and turned inside out."""
    rois = _inside(rng, count)
    rois[0::4, 3] = rois[0::4, 1]
    rois[1::4, 4] = rois[1::4, 2]
    rois[2::4, 3:] = rois[2::4, 1:3]
    rois[3::4] = rois[3::4][:, [0, 3, 4, 1, 2]]
    return rois


def _by_level(one_map, rois, xs, output_size, scales, levels):
    """Ask ``one_map(x, roi, scale)`` for each RoI separately, on the map of its level."""
    levels = np.zeros(len(rois), np.int64) if levels is None else levels
    y = np.zeros((len(rois), xs[0].shape[1], *output_size))
    for r, level in enumerate(levels):
        y[r : r + 1] = one_map(xs[level], rois[r : r + 1], scales[level])
    return y


def _maps(levels):
    """The sides of the maps and their scales: of one map, or of a pyramid of three."""
    sides = [8] if levels is None else [8, 4, 2]
    return sides, tuple(side / SIZE for side in sides)


def _inputs(sides, boxes, count: int, images: int):
    def inputs(rng):
        # A maximum has a kink where two samples are equal, so the values of each channel lie apart. They are
        # not evenly spaced (hence sinh): in a box of whole pixels, whose points have weights like 1/12, two
        # points could then still read the same.
        maps = [np.stack([spread(rng, (images, side, side)) for _ in range(2)], axis=1) for side in sides]
        return boxes(rng, count), *map(np.sinh, maps)

    return inputs


def _points(loop, name: str, boxes=_inside, count: int = 5, levels=None, images: int = 2, **options) -> Case:
    """A case of a layer that reads the maps at points."""
    sampling, (sides, scales) = Sampling((2, 3), **options), _maps(levels)

    def reference(rois, *xs, sampling, scales, levels):
        one_map = partial(loop, s=sampling)
        return _by_level(one_map, rois, xs, sampling.output_size, scales, levels)

    options = dict(sampling=sampling, scales=scales, levels=levels)
    return Case(name, _inputs(sides, boxes, count, images), options, reference=reference, constants=(0,))


_align, _warp = partial(_points, roi_align_loop), partial(_points, roi_warp_loop)


def _pool(name: str, boxes=_inside, count: int = 5, levels=None, images: int = 2, aligned=False) -> Case:
    sides, scales = _maps(levels)

    def reference(rois, *xs, output_size, scales, aligned, levels):
        def one_map(x, roi, scale):
            return roi_pool_loop(x, roi, output_size, scale, aligned)[0]

        return _by_level(one_map, rois, xs, output_size, scales, levels)

    options = dict(output_size=(2, 4), scales=scales, aligned=aligned, levels=levels)
    return Case(name, _inputs(sides, boxes, count, images), options, reference=reference, constants=(0,))


_LEVELS = np.array([1, 0, 2, 0, 1, 0])

CASES = {
    RoIAlign: [
        _align("2 x 2 points"),
        _align("aligned", aligned=True, ratio=3),
        _align("adaptive", ratio=0, count=8),
        _align("adaptive, aligned", ratio=-1, aligned=True, count=8),
        _align("crossings", points="crossings", aligned=True),
        _align("crossings, adaptive", points="crossings", ratio=0),
        _align("maximum", aggregation="max", aligned=True),
        _align("maximum, adaptive", aggregation="max", ratio=0, count=8),
        _align("maximum at crossings", aggregation="max", points="crossings"),
        _align("outside the map", _astray, count=12, aligned=True),
        _align("outside the map, adaptive", _astray, count=12, ratio=0),
        _align("maximum outside the map", _astray, count=12, aggregation="max"),
        _align("without area", _flat, count=8),
        _align("without area, adaptive", _flat, count=8, aligned=True, ratio=0),
        _align("without area, maximum", _flat, count=8, aligned=True, ratio=0, aggregation="max"),
        _align("three levels", count=6, levels=_LEVELS, aligned=True),
        _align("three levels, maximum", count=6, levels=_LEVELS, aggregation="max", ratio=0),
        _align("a level without RoIs", count=6, levels=np.where(_LEVELS == 1, 0, _LEVELS), ratio=0),
        _align("no RoIs", count=0),
        _align("no RoIs, adaptive", count=0, ratio=0, aggregation="max"),
        _align("no RoIs on three levels", count=0, levels=_LEVELS[:0]),
        _align("no images", count=0, images=0),
    ],
    RoIWarp: [
        _warp("average"),
        _warp("average, aligned", aligned=True, ratio=3),
        _warp("average, adaptive", ratio=0, count=8),
        _warp("average at crossings", points="crossings", aligned=True),
        _warp("maximum", aggregation="max"),
        _warp("maximum, aligned", aggregation="max", aligned=True),
        _warp("maximum, crossings, adaptive", aggregation="max", points="crossings", ratio=0, count=8),
        _warp("outside the map", _astray, count=12),
        _warp("maximum outside the map", _astray, count=12, aggregation="max", aligned=True),
        _warp("without area", _flat, count=8, ratio=0),
        _warp("without area, maximum", _flat, count=8, aggregation="max", aligned=True),
        _warp("three levels", count=6, levels=_LEVELS),
        _warp("three levels, maximum", count=6, levels=_LEVELS, aggregation="max", aligned=True),
        _warp("no RoIs", count=0),
        _warp("no RoIs on three levels", count=0, levels=_LEVELS[:0], aggregation="max"),
        _warp("no images", count=0, images=0),
    ],
    RoIPool: [
        _pool("inside"),
        _pool("aligned", aligned=True),
        _pool("outside the map", _astray, count=12),
        _pool("outside the map, aligned", _astray, count=12, aligned=True),
        _pool("without area", _flat, count=8),
        _pool("without area, aligned", _flat, count=8, aligned=True),
        _pool("three levels", count=6, levels=_LEVELS),
        _pool("a level without RoIs", count=6, levels=np.where(_LEVELS == 1, 0, _LEVELS), aligned=True),
        _pool("no RoIs", count=0),
        _pool("no RoIs on three levels", count=0, levels=_LEVELS[:0]),
        _pool("no images", count=0, images=0),
    ],
}
