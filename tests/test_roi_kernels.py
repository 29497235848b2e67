"""The CUDA sources of RoIAlign and RoIPool on the CPU: torchvision's numbers, and the NumPy version's."""

import contextlib
import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minimask import backend
from minimask import functions as F
from minimask.autograd import Tensor
from minimask.kernels import roi_align as align
from minimask.kernels import roi_pool as pool
from minimask.kernels.roi_align import Plan, Sampling, maps, roi_align_loop, struct_sampling
from minimask.lessons import cuda_on_cpu
from minimask.lessons.cuda_on_cpu import ORDERS, KernelError
from tests import fake_cupy

HERE = Path(__file__).parent
FILES = Path(align.__file__).with_name("roi_align.cu"), Path(pool.__file__).with_name("roi_pool.cu")
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in FILES}
CTYPE = {np.dtype("f4"): "float", np.dtype("f8"): "double"}

needs_gpp = pytest.mark.skipif(cuda_on_cpu.compiler() is None, reason="no g++ to run CUDA sources with")


def vectors(name: str) -> dict:
    with np.load(HERE / "reference" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


# ---------------------------------------------------------------------------------------------- how to launch


VERSIONS = ("naive", "fast", "ordered")


class Launcher:
    """RoIAlign and RoIPool as CUDA kernels; attributes say which version, and how it is launched.

    "fast" and "ordered" stand for the naive kernels in what they do not cover.
    """

    def __init__(self, source=None, watch=False, grid=(5, 2), block=32, version="naive", **options):
        self.source, self.watch, self.grid, self.block = source, watch, grid, block
        self.version, self.options = version, options

    def run(self, name: str, dtype, *args, tiles=None) -> None:
        source = self.source or SOURCES["_".join(name.split("_")[:2])]
        kernel = cuda_on_cpu.load(source, watch=self.watch).get_function(f"{name}<{CTYPE[dtype]}>")
        grid, block = (self.grid, self.block) if tiles is None else align.tiles(tiles)
        kernel(grid, (block,), args, **self.options)

    def align(self, xs, rois, levels, scales, s: Sampling):
        y = np.full((len(rois), xs[0].shape[1], *s.output_size), np.nan, xs[0].dtype)
        argmax = np.full(y.shape, -9, np.int32) if s.aggregation == "max" else np.uintp(0)
        sizes = np.int32(len(rois)), np.int32(xs[0].shape[0]), np.int32(xs[0].shape[1])
        fast = self.version == "fast" and s.aggregation == "average" and s.ratio == 2
        outputs = (y,) if fast else (y, argmax)
        name = "roi_align_forward" + ("_by_bin" if fast else "")
        self.run(
            name,
            y.dtype,
            maps(xs, scales),
            rois,
            as_int32(levels),
            *outputs,
            *sizes,
            struct_sampling(s),
        )
        return y, argmax

    def align_gradient(self, gy, argmax, rois, levels, shapes, scales, s: Sampling):
        ordered = self.version == "ordered"
        gxs = [np.full(shape, np.nan if ordered else 0, gy.dtype) for shape in shapes]
        sizes = np.int32(len(rois)), np.int32(shapes[0][0]), np.int32(shapes[0][1])
        fast = self.version == "fast" and s.aggregation == "average" and s.ratio > 0
        inputs = (gy,) if fast else (gy, argmax)
        name = "roi_align_backward" + ("_by_pixel" if fast else "_ordered" if ordered else "")
        args = *inputs, rois, as_int32(levels), maps(gxs, scales), *sizes, struct_sampling(s)
        self.run(name, gy.dtype, *args, tiles=shapes if ordered else None)
        return gxs

    def pool(self, xs, rois, levels, scales, output_size, aligned=False):
        y = np.full((len(rois), xs[0].shape[1], *output_size), np.nan, xs[0].dtype)
        argmax = np.full(y.shape, -9, np.int32)
        sizes = *map(np.int32, (len(rois), *xs[0].shape[:2], *output_size)), np.bool_(aligned)
        self.run("roi_pool_forward", y.dtype, maps(xs, scales), rois, as_int32(levels), y, argmax, *sizes)
        return y, argmax

    def pool_gradient(self, gy, argmax, rois, levels, shapes, scales, aligned=False):
        ordered = self.version == "ordered"
        gxs = [np.full(shape, np.nan if ordered else 0, gy.dtype) for shape in shapes]
        sizes = *map(np.int32, (len(rois), *shapes[0][:2], *gy.shape[2:])), np.bool_(aligned)
        args = (
            gy,
            argmax,
            rois,
            as_int32(levels),
            maps(gxs, scales),
            *(sizes if ordered else sizes[:-1]),
        )
        name = "roi_pool_backward" + ("_ordered" if ordered else "")
        self.run(name, gy.dtype, *args, tiles=shapes if ordered else None)
        return gxs


def as_int32(levels):
    """Levels as the kernels take them; a null pointer where there is one map."""
    return np.uintp(0) if levels is None else levels.astype(np.int32)


# -------------------------------------------------------------------------------------- torchvision's numbers


def align_by_torchvision(number: int, launcher: Launcher, dtype: str = "f8") -> tuple[float, float]:
    """Largest absolute errors of y and of grad_x, NaN if one is NaN."""
    d = vectors(f"roi_align_{number}")
    x, rois, gy = (d[key].astype(dtype) for key in ("x", "rois", "grad_y"))
    s = Sampling(tuple(d["output_size"].tolist()), int(d["sampling_ratio"]), bool(d["aligned"]))
    scales = (float(d["spatial_scale"]),)
    y, argmax = launcher.align([x], rois, None, scales, s)
    (gx,) = launcher.align_gradient(gy, argmax, rois, None, [x.shape], scales, s)
    return np.abs(y - d["y"]).max(), np.abs(gx - d["grad_x"]).max()


def pool_by_torchvision(number: int, launcher: Launcher, dtype: str = "f8") -> tuple[float, float]:
    d = vectors(f"roi_pool_{number}")
    x, rois, gy = (d[key].astype(dtype) for key in ("x", "rois", "grad_y"))
    scales = (float(d["spatial_scale"]),)
    y, argmax = launcher.pool([x], rois, None, scales, tuple(d["output_size"].tolist()))
    (gx,) = launcher.pool_gradient(gy, argmax, rois, None, [x.shape], scales)
    return np.abs(y - d["y"]).max(), np.abs(gx - d["grad_x"]).max()


each_version = pytest.mark.parametrize("version", VERSIONS)


@needs_gpp
@each_version
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("number", range(6))
def test_the_cuda_source_of_roi_align_computes_what_torchvision_does(number, order, version):
    assert max(align_by_torchvision(number, Launcher(order=order, version=version))) < 1e-10


@needs_gpp
@pytest.mark.parametrize("version", ["naive", "ordered"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("number", range(6))
def test_the_cuda_source_of_roi_pool_computes_what_torchvision_does(number, order, version):
    forward, backward = pool_by_torchvision(number, Launcher(order=order, version=version))
    assert forward == 0 and backward < 1e-12


@needs_gpp
@each_version
@pytest.mark.parametrize("number", range(6))
def test_in_float_they_differ_by_float_rounding(number, version):
    """Coordinates of up to 17 pixels are rounded to 1e-6, and the features' slopes are about 3."""
    assert max(align_by_torchvision(number, Launcher(version=version), "f4")) < 3e-5
    forward, backward = pool_by_torchvision(number, Launcher(version=version), "f4")
    assert forward < 1e-6 and backward < 1e-5


# -------------------------------------------------------------------------------------------- NumPy's numbers


@functools.cache
def pyramid(dtype: str = "f8"):
    """Three levels, and 40 boxes in, across and out of them, of all sizes, some without area, some turned."""
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=(2, 3, *side)).astype(dtype) for side in ((16, 21), (8, 11), (4, 6))]
    corners = rng.uniform(-20, 60, (40, 4))
    corners[::5, 2:] = corners[::5, :2] + rng.uniform(0, 3, (8, 2))
    corners[::7, 2] = corners[::7, 0]
    rois = np.concatenate([rng.integers(0, 2, (40, 1)), corners], axis=1).astype(dtype)
    return xs, rois, rng.integers(0, 3, 40), (0.5, 0.25, 0.125)


@needs_gpp
@pytest.mark.parametrize("aggregation", ["average", "max"])
@pytest.mark.parametrize("points", ["centers", "crossings"])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@each_version
def test_roi_align_over_a_pyramid_is_that_of_numpy(version, ratio, aligned, points, aggregation):
    xs, rois, levels, scales = pyramid()
    s = Sampling((3, 2), ratio, aligned, points, aggregation)
    shapes = [x.shape for x in xs]
    plan = Plan.build(rois, levels, shapes, scales, s, np.dtype("f8"))
    launcher = Launcher(order="shuffled", version=version)
    (y, argmax), (want, won) = launcher.align(xs, rois, levels, scales, s), align.forward(xs, plan)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-13)
    if aggregation == "max":
        has_points, won_there = argmax >= 0, won.reshape(40, 3, 2, 3).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(argmax[has_points], won_there[has_points])
        assert has_points.all() == (ratio > 0 or not aligned) and not y[~has_points].any()
    gy = np.random.default_rng(1).normal(size=y.shape)
    got = launcher.align_gradient(gy, argmax, rois, levels, shapes, scales, s)
    for gx, wanted in zip(got, align.backward(gy, won, shapes, plan)):
        np.testing.assert_allclose(gx, wanted, rtol=0, atol=1e-13)


@needs_gpp
@pytest.mark.parametrize("size, ratio", [((16, 1), 2), ((2, 16), 2), ((8, 8), 4), ((1, 1), 32)])
def test_the_fast_versions_have_room_for_what_they_are_launched_with(size, ratio):
    xs, rois, levels, scales = pyramid()
    s, shapes = Sampling(size, ratio, True), [x.shape for x in xs]
    assert align.axis_has_room(s)
    plan, launcher = Plan.build(rois, levels, shapes, scales, s, np.dtype("f8")), Launcher(version="fast")
    y, argmax = launcher.align(xs, rois, levels, scales, s)
    np.testing.assert_allclose(y, align.forward(xs, plan)[0], rtol=0, atol=1e-13)
    gy = np.cos(y)
    got = launcher.align_gradient(gy, argmax, rois, levels, shapes, scales, s)
    for gx, wanted in zip(got, align.backward(gy, None, shapes, plan)):
        np.testing.assert_allclose(gx, wanted, rtol=1e-13, atol=1e-12)  # hundreds are added


@pytest.mark.parametrize("size, ratio", [((17, 1), 1), ((1, 1), 33), ((9, 9), 4), ((7, 7), 0)])
def test_what_the_fast_backward_has_no_room_for_is_left_to_the_naive_one(size, ratio):
    assert not align.axis_has_room(Sampling(size, ratio))


@needs_gpp
def test_roi_align_of_one_level_is_the_loop():
    xs, rois, _, scales = pyramid()
    for aggregation in ("average", "max"):
        s = Sampling((2, 2), 2, True, "crossings", aggregation)
        y, _ = Launcher().align(xs[:1], rois, None, scales, s)
        np.testing.assert_allclose(y, roi_align_loop(xs[0], rois, scales[0], s), rtol=0, atol=1e-14)


@needs_gpp
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("version", ["naive", "ordered"])
def test_roi_pool_over_a_pyramid_is_that_of_numpy(version, dtype, aligned):
    xs, rois, levels, scales = pyramid(dtype)
    xs = [np.round(x) for x in xs]  # many equal ones: the first wins
    launcher = Launcher(order="shuffled", version=version)
    y, argmax = launcher.pool(xs, rois, levels, scales, (3, 2), aligned)
    gy = np.random.default_rng(1).normal(size=y.shape).astype(dtype)
    gxs = launcher.pool_gradient(gy, argmax, rois, levels, [x.shape for x in xs], scales, aligned)
    assert (argmax < 0).any(), "some bins are empty"
    for k, (x, scale) in enumerate(zip(xs, scales)):
        readers = levels == k
        want, won = pool.roi_pool_loop(x, rois[readers], (3, 2), scale, aligned)
        np.testing.assert_array_equal(y[readers], want)
        np.testing.assert_array_equal(argmax[readers], won)
        (wanted,) = pool.backward(gy[readers], won, rois[readers], None, [scale], [x.shape])
        np.testing.assert_allclose(gxs[k], wanted, rtol=0, atol=1e-5 if dtype == "f4" else 1e-14)


@needs_gpp
@pytest.mark.parametrize("grid, block", [((1,), 1), ((3,), 7), ((64, 9), 128)])
@pytest.mark.parametrize("version, ratio", [("naive", 0), ("fast", 2)])
def test_any_grid_and_block_compute_the_same(version, ratio, grid, block):
    """The loops over RoIs and outputs go on where the grid ends, and stop where it reaches too far."""
    xs, rois, levels, scales = pyramid()
    s = Sampling((3, 2), ratio, True)
    results = []
    for launcher in (Launcher(), Launcher(grid=grid, block=block, version=version)):
        y, argmax = launcher.align(xs, rois, levels, scales, s)
        gxs = launcher.align_gradient(np.cos(y), argmax, rois, levels, [x.shape for x in xs], scales, s)
        pooled, won = launcher.pool(xs, rois, levels, scales, (3, 2))
        pool_gxs = launcher.pool_gradient(np.cos(y), won, rois, levels, [x.shape for x in xs], scales)
        results.append((y, *gxs, pooled, *pool_gxs))
    for got, want in zip(*results):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)  # gradients are added in another order


# --------------------------------------------------------------------------------------- what must not happen


@needs_gpp
@each_version
def test_no_two_threads_race(version):
    xs, rois, levels, scales = pyramid()
    shapes = [x.shape for x in xs]
    launcher = Launcher(watch=True, version=version)
    for aggregation in ("average", "max"):
        s = Sampling((2, 2), 2, True, aggregation=aggregation)
        y, argmax = launcher.align(xs, rois, levels, scales, s)
        launcher.align_gradient(y, argmax, rois, levels, shapes, scales, s)
    y, argmax = launcher.pool(xs, rois, levels, scales, (2, 2))
    launcher.pool_gradient(y, argmax, rois, levels, shapes, scales)


@needs_gpp
def test_the_ordered_backward_gives_the_same_bits_in_every_order_and_the_others_do_not():
    rng = np.random.default_rng(2)
    xs = [rng.normal(size=(2, 9, *side)).astype("f4") for side in ((16, 40), (8, 20))]  # 9 channels: 8 and 1
    corner = rng.uniform(0, 16, (300, 2))  # more RoIs than a block asks at a time
    boxes = corner, corner + rng.uniform(2, 16, (300, 2))
    rois = np.concatenate([rng.integers(0, 2, (300, 1)), *boxes], axis=1).astype("f4")
    levels, scales, shapes = rng.integers(0, 2, 300), (1.0, 0.5), [x.shape for x in xs]

    def gradients(version, order, seed):
        launcher = Launcher(version=version, order=order, seed=seed)
        for aggregation in ("average", "max"):
            s = Sampling((2, 2), 2, True, aggregation=aggregation)
            y, argmax = launcher.align(xs, rois, levels, scales, s)
            yield from launcher.align_gradient(y, argmax, rois, levels, shapes, scales, s)
        y, argmax = launcher.pool(xs, rois, levels, scales, (2, 2))
        yield from launcher.pool_gradient(y, argmax, rois, levels, shapes, scales)

    runs = [("forward", 0), ("reverse", 0), ("shuffled", 0), ("shuffled", 1)]
    for version in VERSIONS:
        first, *others = [list(gradients(version, *run)) for run in runs]
        same = [all(np.array_equal(a, b) for a, b in zip(first, other)) for other in others]
        assert same == [version == "ordered"] * 3
        for other in others:
            for a, b in zip(first, other):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


@needs_gpp
@each_version
def test_a_roi_of_no_image_or_level_reads_nan_and_disturbs_no_other(version):
    xs, rois, levels, scales = pyramid()
    launcher = Launcher(version=version)
    shapes, s = [x.shape for x in xs], Sampling((2, 2), 2, True)
    right, _ = launcher.align(xs, rois, levels, scales, s)
    right_pooled, won = launcher.pool(xs, rois, levels, scales, (2, 2))
    gy = np.ones(right.shape)
    wrong_rois, wrong_levels, wrong = rois.copy(), levels.copy(), [3, 4, 5, 6, 7]
    wrong_rois[3:6, 0] = -1, 2, np.nan
    wrong_levels[6:8] = -1, 3
    others = np.setdiff1d(np.arange(40), wrong)

    y, none = launcher.align(xs, wrong_rois, wrong_levels, scales, s)
    pooled, _ = launcher.pool(xs, wrong_rois, wrong_levels, scales, (2, 2))
    for got, want in ((y, right), (pooled, right_pooled)):
        assert np.isnan(got[wrong]).all()
        np.testing.assert_array_equal(got[others], want[others])
    remaining = rois[others], levels[others], shapes, scales
    gxs = launcher.align_gradient(gy, none, wrong_rois, wrong_levels, shapes, scales, s)
    for gx, want in zip(gxs, launcher.align_gradient(gy[others], none, *remaining, s)):
        np.testing.assert_allclose(gx, want, rtol=0, atol=1e-14)
    # the argmax as if all were right
    gxs = launcher.pool_gradient(gy, won, wrong_rois, wrong_levels, shapes, scales)
    for gx, want in zip(gxs, launcher.pool_gradient(gy[others], won[others], *remaining)):
        np.testing.assert_allclose(gx, want, rtol=0, atol=1e-14)


@needs_gpp
@pytest.mark.parametrize("ratio", [0, 2])
def test_a_box_of_nan_reads_nothing_and_a_feature_of_nan_is_not_hidden(ratio):
    x = np.ones((1, 1, 6, 6))
    s = Sampling((1, 1), ratio, True, aggregation="max")
    boxes = np.array([[0, np.nan, 1, 4, 4], [0, np.nan, np.nan, np.nan, np.nan], [0, 1, 1, 4, 4.0]])
    y, _ = Launcher().align([x], boxes, None, (1.0,), s)
    pooled, won = Launcher().pool([x], boxes, None, (1.0,), (1, 1))
    np.testing.assert_array_equal(y.ravel(), [0, 0, 1])
    np.testing.assert_array_equal(pooled.ravel(), [0, 0, 1])
    assert won.ravel().tolist() == [-1, -1, 7]
    for pixel in (2, 3):
        x[0, 0, pixel, pixel] = np.nan
        assert np.isnan(Launcher().align([x], boxes[2:], None, (1.0,), s)[0]).all()
        assert np.isnan(Launcher().pool([x], boxes[2:], None, (1.0,), (1, 1))[0]).all()
        x[0, 0, pixel, pixel] = 1


@needs_gpp
@each_version
def test_a_box_of_nan_gets_no_gradient_and_one_without_end_only_what_it_read(version):
    inf, nan = np.inf, np.nan
    boxes = [
        [nan, 1, 4, 4],
        [nan] * 4,
        [-inf, 1, 4, 4],
        [-inf, -inf, inf, inf],
        [1, 1, inf, 4],
        [1, 1, 4, nan],
    ]
    rois, launcher = np.array([[0, *box] for box in boxes]), Launcher(version=version)
    s = Sampling((2, 2), 2, True)
    (gx,) = launcher.align_gradient(np.ones((6, 1, 2, 2)), np.uintp(0), rois, None, [(1, 1, 6, 6)], (1.0,), s)
    y, _ = launcher.align([np.ones((1, 1, 6, 6))], rois, None, (1.0,), s)
    assert gx.sum() == pytest.approx(y.sum(), abs=1e-13)  # of ones, each box reads what its weights add up to
    np.testing.assert_array_equal(y[:5], 0)
    np.testing.assert_array_equal(y[5], 1)  # its bottom is no number: no height, but places to read


@needs_gpp
def test_features_beyond_2_31_elements_are_reached(tmp_path):
    """A file with a hole stands for the memory: only the pixels of one box exist."""
    shape, side = (3, 1, 27000, 27000), 27000
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=shape)
    gx = np.memmap(tmp_path / "gx", np.float32, "w+", shape=shape)
    assert x.size > 2**31
    x[2, 0, -4:, -4:] = patch = np.arange(16, dtype=np.float32).reshape(4, 4)
    rois = np.array([[2, side - 4, side - 4, side, side]], np.float32)
    s, scales, level = Sampling((2, 2), 2, True), (1.0,), np.zeros(1, np.int32)
    y, _ = Launcher().align([x], rois, None, scales, s)
    np.testing.assert_array_equal(y[0, 0], patch.reshape(2, 2, 2, 2).mean(axis=(1, 3)))
    pooled, won = Launcher().pool([x], rois, None, scales, (2, 2), aligned=True)
    np.testing.assert_array_equal(pooled[0, 0], patch.reshape(2, 2, 2, 2).max(axis=(1, 3)))

    sizes = np.int32(1), np.int32(3), np.int32(1)
    launcher, into = Launcher(), maps([gx], scales)
    launcher.run(
        "roi_align_backward", gx.dtype, y, np.uintp(0), rois, level, into, *sizes, struct_sampling(s)
    )
    np.testing.assert_array_equal(gx[2, 0, -4:, -4:], np.kron(y[0, 0] / 4, np.ones((2, 2))))
    gx[2, 0, -4:, -4:] = 0
    np.testing.assert_array_equal(Launcher(version="fast").align([x], rois, None, scales, s)[0], y)
    launcher.run("roi_align_backward_by_pixel", gx.dtype, y, rois, level, into, *sizes, struct_sampling(s))
    np.testing.assert_array_equal(gx[2, 0, -4:, -4:], np.kron(y[0, 0] / 4, np.ones((2, 2))))
    launcher.run("roi_pool_backward", gx.dtype, y, won, rois, level, into, *sizes, np.int32(2), np.int32(2))
    assert gx[2, 0, -1, -1] == y[0, 0, 1, 1] * 1.25


MUTANTS = {
    "roi_align": [
        (
            "an atomic left out",
            "atomicAdd(gx + pixel[q], weight[q] * share)",
            "gx[pixel[q]] += weight[q] * share",
        ),
        ("no image index", "(long long)roi[0] * C", "0LL * C"),
        ("axes swapped", "x1 = roi[1] * scale, y1 = roi[2]", "x1 = roi[2] * scale, y1 = roi[1]"),
        ("no half pixel", "s.aligned ? T(0.5) : T(0),", "T(0),"),
        ("overwritten", "sum += value;", "sum = value;"),
        ("a neighbour forgotten", "min(left + 1, width - 1)", "left"),
        ("clipped too early", "-1 <= v && v <= height", "0 <= v && v <= height"),
        ("not divided", ": gy[out] / max(box.ny * box.nx, 1);", ": gy[out];"),
        ("a stride too long", "r += gridDim.x", "r += 2 * gridDim.x"),
        ("by_bin: a shared pixel read but not counted", "t.weight[1] += t.weight[2], ", ""),
        (
            "by_bin: a column's place is that of the row",
            "taps(box.x1, box.bin_w, k % s.pw",
            "taps(box.x1, box.bin_w, k / s.pw",
        ),
        ("by_pixel: an atomic left out", "atomicAdd(global(gx), sum)", "*gx += sum"),
        (
            "by_pixel: no barrier before the axes are read",
            "s.pw, s.ratio, box.width, s.crossings);\n        __syncthreads();",
            "s.pw, s.ratio, box.width, s.crossings);",
        ),
        ("by_pixel: no barrier before they are built anew", "__syncthreads();       // until", "// until"),
        ("by_pixel: a pixel of the bin before is overwritten", "axis.last[k] < i;", "true;"),
        (
            "ordered: no barrier before the answers are read",
            "        }\n        __syncthreads();\n        for (int k = 0; k < min(THREADS",
            "        }\n        for (int k = 0; k < min(THREADS",
        ),
        ("ordered: no barrier before the answers are overwritten", "__syncthreads();  // until", "// until"),
        ("ordered: a tile too low", "top + HIGH && top", "top && top"),
        ("ordered: bins looked for too near", "pixel + T(1.5)", "pixel - T(0.5)"),
        ("ordered: another image's", "(int)rois[5LL * (first + t)] == image &&", ""),
    ],
    "roi_pool": [
        ("an atomic left out", "atomicAdd(gx + argmax[out], gy[out])", "gx[argmax[out]] += gy[out]"),
        ("an edge rounded down", "ceil((k + 1) * bin_size)", "floor((k + 1) * bin_size)"),
        ("no + 1", "(aligned ? 0 : 1)", "(aligned ? 0 : 0)"),
        ("the last maximum", "value > best", "value >= best"),
        ("a stride too short", "k += gridDim.y * blockDim.x", "k += 1"),
        ("ordered: the last row left out", "v >= past", "v >= past - 1"),
        ("ordered: another image's", "(int)roi[0] == image &&", ""),
        ("ordered: no barrier before the answers are overwritten", "__syncthreads();  // until", "// until"),
    ],
}


@pytest.mark.slow
@needs_gpp
@pytest.mark.parametrize("name, bug", [(name, bug[0]) for name, bugs in MUTANTS.items() for bug in bugs])
def test_a_planted_bug_is_caught(name, bug):
    """By torchvision's numbers, or as a race; the same checks find nothing in the source as it is."""
    _, old, new = next(b for b in MUTANTS[name] if b[0] == bug)
    assert old in SOURCES[name]
    assert not wrong(name, SOURCES[name])
    assert wrong(name, SOURCES[name].replace(old, new))


@functools.cache
def wrong(name: str, source: str) -> bool:
    """Whether the tests above would fail."""
    check = align_by_torchvision if name == "roi_align" else pool_by_torchvision
    try:
        errors = [
            check(n, Launcher(source, watch=True, grid=(3,), version=version))
            for version in VERSIONS
            for n in range(4)
        ]
        if name == "roi_pool":  # torchvision's file does not hold the index of the maximum
            x, rois = np.ones((1, 1, 4, 4)), np.array([[0, 0, 0, 3, 3.0]])
            errors.append((0, Launcher(source).pool([x], rois, None, (1.0,), (1, 1))[1].item()))
        launcher = Launcher(source, watch=True, version="ordered")  # more RoIs than a block asks at a time
        x, rois = np.ones((1, 1, 2, 2)), np.tile([[0, 0, 0, 2, 2.0]], (257, 1))
        if name == "roi_pool":
            _, argmax = launcher.pool([x], rois, None, (1.0,), (1, 1))
            launcher.pool_gradient(np.ones((257, 1, 1, 1)), argmax, rois, None, [x.shape], (1.0,))
        else:
            gy, s = np.ones((257, 1, 1, 1)), Sampling((1, 1), 2, True)
            launcher.align_gradient(gy, np.uintp(0), rois, None, [x.shape], (1.0,), s)
    except KernelError as error:
        assert "race" in str(error)
        return True
    return not np.max(errors) < 1e-10  # also where NaN


# ------------------------------------------------------------------------------------- the layers on a device

LAYERS = {
    "RoIPool": (F.roi_pool, {}),
    "RoIWarp, max": (F.roi_warp, dict(aggregation="max")),
    "RoIWarp, average": (F.roi_warp, {}),
    "RoIAlign, max": (F.roi_align, dict(aggregation="max")),
    "RoIAlign, average": (F.roi_align, {}),
}
INSIDE = {  # which kernels a layer takes
    "fast": contextlib.nullcontext,
    "reference_only": backend.reference_only,
    "deterministic": backend.deterministic,
}


@pytest.fixture
def cupy():
    if cuda_on_cpu.compiler() is None:
        pytest.skip("no g++ to run CUDA sources with")
    with fake_cupy.installed() as module:
        yield module


def forward_and_backward(name: str, xs, rois, levels, gy, **options) -> list[np.ndarray]:
    layer, more = LAYERS[name]
    xs = [Tensor(x, requires_grad=True) for x in xs]
    scales = (0.5, 0.25, 0.125)[: len(xs)]
    y = layer(xs, rois, (3, 2), scales, levels=levels, **options, **more)
    y.backward(gy)
    return [y.data, *(x.grad for x in xs)]


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_on_the_device_is_that_on_the_cpu_and_waits_for_nothing(name, dtype, inside, cupy):
    xs, rois, levels, _ = pyramid(dtype)
    gy = np.random.default_rng(1).normal(size=(40, 3, 3, 2)).astype(dtype)
    for aligned in (True, False):
        for points in ({},) if name == "RoIPool" else [{"sampling_ratio": ratio} for ratio in (-1, 2, 3)]:
            options = dict(aligned=aligned, **points)
            want = forward_and_backward(name, xs, rois, levels, gy, **options)
            arrays = [cupy.asarray(x) for x in xs], *map(cupy.asarray, (rois, levels, gy))
            fake_cupy.syncs.clear()
            with INSIDE[inside]():
                got = forward_and_backward(name, *arrays, **options)
            assert not fake_cupy.syncs
            for a, b in zip(got, want):
                assert a.dtype == b.dtype
                np.testing.assert_allclose(cupy.asnumpy(a), b, rtol=0, atol=1e-5 if dtype == "f4" else 1e-13)


def test_on_the_device_a_roi_of_no_image_or_level_reads_nan(cupy):
    """To raise, the host would have to wait; RoIs that are still on the CPU are checked as ever."""
    xs, rois, levels, scales = pyramid()
    on_device = [cupy.asarray(x) for x in xs]
    rois = rois[:4].copy()
    rois[0, 0], levels = 2, np.array([0, 3, 1, 2])
    for name, (layer, more) in LAYERS.items():
        y = layer(on_device, cupy.asarray(rois), 2, scales, levels=cupy.asarray(levels), **more).numpy()
        assert np.isnan(y[:2]).all() and np.isfinite(y[2:]).all(), name
        with pytest.raises(ValueError, match="image indices range from 0 to 2"):
            layer(on_device, rois, 2, scales, levels=cupy.asarray(levels), **more)


def test_rois_of_a_device_are_given_as_on_the_cpu(cupy):
    xs, rois, _, scales = pyramid("f4")
    x = [cupy.asarray(xs[0])]
    boxes = [rois[rois[:, 0] == n][:, 1:] for n in (0, 1)]
    want = F.roi_align(xs[0], boxes, 2, 0.5).numpy()
    for given in (boxes, [cupy.asarray(b) for b in boxes], [Tensor(cupy.asarray(b)) for b in boxes]):
        got = F.roi_align(x, given, 2, 0.5)
        assert isinstance(got.data, cupy.ndarray)
        np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-5)
    got = F.roi_align(x, cupy.asarray(rois.astype("f8")), 2, 0.5)  # cast to the features' dtype
    assert got.dtype == np.float32
    no_rois, no_levels = cupy.zeros((0, 5)), cupy.zeros(0, np.int64)
    none = F.roi_align([*map(cupy.asarray, xs)], no_rois, 2, scales, levels=no_levels)
    assert none.shape == (0, 3, 2, 2)


def test_a_pyramid_of_nine_levels_or_of_two_dtypes_is_refused_on_the_device(cupy):
    x, rois, level = cupy.zeros((1, 1, 2, 2)), cupy.zeros((1, 5)), cupy.zeros(1, np.int32)
    for layer, _ in LAYERS.values():
        with pytest.raises(ValueError, match="at most 8 levels on a GPU, not 9"):
            layer([x] * 9, rois, 1, (1.0,) * 9, levels=level)
        with pytest.raises(TypeError, match=r"levels of one dtype, not float64|^roi_.* must have one dtype"):
            layer([x, x.astype(np.float32)], rois, 1, (1.0, 1.0), levels=level)


# ----------------------------------------------------------------------------------- what each version saves


def pieces(addresses) -> int:
    """32-byte pieces of memory that the warps of these threads touch, each its own; -1: no access."""
    lanes = np.full(-(-len(addresses) // 32) * 32, -1)
    lanes[: len(addresses)] = addresses
    piece = np.sort(np.where(lanes < 0, -1, lanes // 8).reshape(-1, 32), axis=1)
    return int((np.diff(piece, axis=1, prepend=-1) > 0).sum())


def counted(bins: int, boxes: int = 50, channels: int = 32, width: int = 304, plane: int = 304 * 200):
    """A channel's additions and pieces, in the naive and in the fast backward; reads and pieces forward."""
    rng, sums = np.random.default_rng(0), np.zeros(6)
    c = np.arange(channels)[:, None] * plane
    for _ in range(boxes):
        corner, side = rng.uniform(0, 170, 2), rng.uniform(14, 28, 2)
        at = corner[:, None, None] + (np.arange(bins)[:, None] + [0.25, 0.75]) * side[:, None, None] / bins
        low = np.floor(at).astype(int)  # (2, bins, 2): along y and x, of each bin's two points
        slots = np.stack([low, low + 1], axis=-1).reshape(2, bins, 4)
        again = np.array([[[p in b[:k] for k, p in enumerate(b)] for b in axis] for axis in slots.tolist()])
        for q, p in np.ndindex(4, 4):
            pixel = slots[0, :, q, None] * width + slots[1, :, p]
            sums[:2] += pixel.size * channels, pieces((c + pixel.ravel()).ravel())
            once = np.where(again[0, :, q, None] | again[1, :, p], -1, pixel).ravel()
            once = np.where(once < 0, -1, c + once).ravel()
            sums[4:] += (once >= 0).sum(), pieces(once)
        pixels = (np.unique(slots[0])[:, None] * width + np.unique(slots[1])).ravel()
        for first in range(0, pixels.size, 256):
            sums[3] += channels * pieces(pixels[first : first + 256])
        sums[2] += pixels.size * channels
    return (sums / boxes / channels).round().astype(int).tolist()


def test_what_the_sources_and_the_page_say_was_counted():
    assert counted(7) == [784, 387, 503, 95, 624, 323]
    assert counted(14) == [3136, 848, 538, 101, 1515, 438]


# ------------------------------------------------------------------------------------------------- sanitizers


@needs_gpp
@pytest.mark.slow
def test_sanitizers_find_nothing():
    """The tests of this file again, in a Python with AddressSanitizer, on kernels built with it and UBSan."""
    environment = dict(
        os.environ,
        LD_PRELOAD=cuda_on_cpu.libasan(),
        ASAN_OPTIONS="detect_leaks=0",
        **{cuda_on_cpu.SANITIZE: "address,undefined"},
    )
    result = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-k", "not planted and not beyond"],
        cwd=HERE.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert " passed" in result.stdout
