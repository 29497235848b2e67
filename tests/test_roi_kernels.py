"""The CUDA sources of RoIAlign and RoIPool on the CPU: torchvision's numbers, and the NumPy version's."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minimask.kernels import roi_align as align
from minimask.kernels import roi_pool as pool
from minimask.kernels.roi_align import Plan, Sampling, roi_align_loop
from tests import cuda_on_cpu
from tests.cuda_on_cpu import ORDERS, KernelError

HERE = Path(__file__).parent
KERNELS = Path(align.__file__).parent
SOURCES = {name: (KERNELS / f"{name}.cu").read_text(encoding="utf-8") for name in ("roi_align", "roi_pool")}
CTYPE = {np.dtype("f4"): "float", np.dtype("f8"): "double"}

needs_gpp = pytest.mark.skipif(cuda_on_cpu.compiler() is None, reason="no g++ to run CUDA sources with")


def vectors(name: str) -> dict:
    with np.load(HERE / "reference" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


# ---------------------------------------------------------------------------------------------- how to launch


class Launcher:
    """RoIAlign and RoIPool as CUDA kernels; attributes say how they are launched."""

    def __init__(self, source: str | None = None, watch: bool = False, grid=(5, 2), block=32, **options):
        self.source, self.watch, self.grid, self.block, self.options = source, watch, grid, block, options

    def run(self, name: str, dtype, *args) -> None:
        source = self.source or SOURCES[name.rpartition("_")[0]]
        kernel = cuda_on_cpu.load(source, watch=self.watch).get_function(f"{name}<{CTYPE[dtype]}>")
        kernel(self.grid, (self.block,), args, **self.options)

    def align(self, xs, rois, levels, scales, s: Sampling):
        n, channels = xs[0].shape[:2]
        y = np.full((len(rois), channels, *s.output_size), np.nan, xs[0].dtype)
        argmax = np.full(y.shape, -9, np.int32) if s.aggregation == "max" else np.uintp(0)
        levels = np.zeros(len(rois), np.int32) if levels is None else levels.astype(np.int32)
        sizes = np.int32(len(rois)), np.int32(n), np.int32(channels)
        self.run("roi_align_forward", y.dtype, maps(xs, scales), rois, levels, y, argmax, *sizes, sampling(s))
        return y, argmax

    def align_gradient(self, gy, argmax, rois, levels, shapes, scales, s: Sampling):
        gxs = [np.zeros(shape, gy.dtype) for shape in shapes]
        levels = np.zeros(len(rois), np.int32) if levels is None else levels.astype(np.int32)
        sizes = np.int32(len(rois)), np.int32(shapes[0][0]), np.int32(shapes[0][1])
        self.run(
            "roi_align_backward", gy.dtype, gy, argmax, rois, levels, maps(gxs, scales), *sizes, sampling(s)
        )
        return gxs

    def pool(self, xs, rois, levels, scales, output_size, aligned=False):
        n, channels = xs[0].shape[:2]
        y = np.full((len(rois), channels, *output_size), np.nan, xs[0].dtype)
        argmax = np.full(y.shape, -9, np.int32)
        levels = np.zeros(len(rois), np.int32) if levels is None else levels.astype(np.int32)
        sizes = map(np.int32, (len(rois), n, channels, *output_size))
        self.run(
            "roi_pool_forward", y.dtype, maps(xs, scales), rois, levels, y, argmax, *sizes, np.bool_(aligned)
        )
        return y, argmax

    def pool_gradient(self, gy, argmax, rois, levels, shapes, scales):
        gxs = [np.zeros(shape, gy.dtype) for shape in shapes]
        levels = np.zeros(len(rois), np.int32) if levels is None else levels.astype(np.int32)
        sizes = map(np.int32, (len(rois), *shapes[0][:2], *gy.shape[2:]))
        self.run("roi_pool_backward", gy.dtype, gy, argmax, rois, levels, maps(gxs, scales), *sizes)
        return gxs


def maps(arrays, scales) -> np.ndarray:
    """``struct Maps<T>`` of the sources."""
    dtype = arrays[0].dtype
    fields = [
        ("data", "u8", 8),
        ("height", "i4", 8),
        ("width", "i4", 8),
        ("scale", dtype, 8),
        ("count", "i4"),
    ]
    value = np.zeros((), np.dtype(fields, align=True))
    for k, (array, scale) in enumerate(zip(arrays, scales)):
        value["data"][k], value["scale"][k] = array.ctypes.data, scale
        value["height"][k], value["width"][k] = array.shape[2:]
    value["count"] = len(arrays)
    return value


def sampling(s: Sampling) -> np.ndarray:
    """``struct Sampling``."""
    fields = [("ph", "i4"), ("pw", "i4"), ("ratio", "i4"), ("aligned", "?"), ("crossings", "?")]
    value = (*s.output_size, s.ratio, s.aligned, s.points == "crossings")
    return np.array(value, np.dtype(fields, align=True))


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


@needs_gpp
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("number", range(6))
def test_the_cuda_source_of_roi_align_computes_what_torchvision_does(number, order):
    assert max(align_by_torchvision(number, Launcher(order=order))) < 1e-10


@needs_gpp
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("number", range(6))
def test_the_cuda_source_of_roi_pool_computes_what_torchvision_does(number, order):
    forward, backward = pool_by_torchvision(number, Launcher(order=order))
    assert forward == 0 and backward < 1e-12


@needs_gpp
@pytest.mark.parametrize("number", range(6))
def test_in_float_they_differ_by_float_rounding(number):
    """Coordinates of up to 17 pixels are rounded to 1e-6, and the features' slopes are about 3."""
    assert max(align_by_torchvision(number, Launcher(), "f4")) < 3e-5
    forward, backward = pool_by_torchvision(number, Launcher(), "f4")
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
@pytest.mark.parametrize("ratio", [0, 1, 3])
def test_roi_align_over_a_pyramid_is_that_of_numpy(ratio, aligned, points, aggregation):
    xs, rois, levels, scales = pyramid()
    s = Sampling((3, 2), ratio, aligned, points, aggregation)
    shapes = [x.shape for x in xs]
    plan = Plan.build(rois, levels, shapes, scales, s, np.dtype("f8"))
    launcher = Launcher(order="shuffled")
    (y, argmax), (want, won) = launcher.align(xs, rois, levels, scales, s), align.forward(xs, plan)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-13)
    if aggregation == "max":
        has_points = argmax >= 0
        np.testing.assert_array_equal(
            argmax[has_points], won.reshape(40, 3, 2, 3).transpose(0, 3, 1, 2)[has_points]
        )
        assert has_points.all() == (ratio > 0 or not aligned) and not y[~has_points].any()
    gy = np.random.default_rng(1).normal(size=y.shape)
    got = launcher.align_gradient(gy, argmax, rois, levels, shapes, scales, s)
    for gx, wanted in zip(got, align.backward(gy, won, shapes, plan)):
        np.testing.assert_allclose(gx, wanted, rtol=0, atol=1e-13)


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
def test_roi_pool_over_a_pyramid_is_that_of_numpy(dtype, aligned):
    xs, rois, levels, scales = pyramid(dtype)
    xs = [np.round(x) for x in xs]  # many equal ones: the first wins
    launcher = Launcher(order="shuffled")
    y, argmax = launcher.pool(xs, rois, levels, scales, (3, 2), aligned)
    gy = np.random.default_rng(1).normal(size=y.shape).astype(dtype)
    gxs = launcher.pool_gradient(gy, argmax, rois, levels, [x.shape for x in xs], scales)
    assert (argmax < 0).any(), "some bins are empty"
    for k, (x, scale) in enumerate(zip(xs, scales)):
        own = levels == k
        want, won = pool.roi_pool(x, rois[own], (3, 2), scale, aligned)
        np.testing.assert_array_equal(y[own], want)
        np.testing.assert_array_equal(argmax[own], won)
        wanted = pool.roi_pool_gradient(gy[own], won, rois[own], x.shape)
        np.testing.assert_allclose(gxs[k], wanted, rtol=0, atol=1e-5 if dtype == "f4" else 1e-14)


@needs_gpp
@pytest.mark.parametrize("grid, block", [((1,), 1), ((3,), 7), ((64, 9), 128)])
def test_any_grid_and_block_compute_the_same(grid, block):
    """The loops over RoIs and outputs go on where the grid ends, and stop where it reaches too far."""
    xs, rois, levels, scales = pyramid()
    s = Sampling((3, 2), 0, True)
    results = []
    for launcher in (Launcher(), Launcher(grid=grid, block=block)):
        y, argmax = launcher.align(xs, rois, levels, scales, s)
        gxs = launcher.align_gradient(np.cos(y), argmax, rois, levels, [x.shape for x in xs], scales, s)
        pooled, won = launcher.pool(xs, rois, levels, scales, (3, 2))
        pool_gxs = launcher.pool_gradient(np.cos(y), won, rois, levels, [x.shape for x in xs], scales)
        results.append((y, *gxs, pooled, *pool_gxs))
    for got, want in zip(*results):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)  # gradients are added in another order


# --------------------------------------------------------------------------------------- what must not happen


@needs_gpp
def test_no_two_threads_race():
    xs, rois, levels, scales = pyramid()
    shapes = [x.shape for x in xs]
    launcher = Launcher(watch=True)
    for aggregation in ("average", "max"):
        s = Sampling((2, 2), 2, True, aggregation=aggregation)
        y, argmax = launcher.align(xs, rois, levels, scales, s)
        launcher.align_gradient(y, argmax, rois, levels, shapes, scales, s)
    y, argmax = launcher.pool(xs, rois, levels, scales, (2, 2))
    launcher.pool_gradient(y, argmax, rois, levels, shapes, scales)


@needs_gpp
def test_a_roi_of_no_image_or_level_reads_nan_and_disturbs_no_other():
    xs, rois, levels, scales = pyramid()
    shapes, s = [x.shape for x in xs], Sampling((2, 2), 2, True)
    right, _ = Launcher().align(xs, rois, levels, scales, s)
    right_pooled, won = Launcher().pool(xs, rois, levels, scales, (2, 2))
    gy = np.ones(right.shape)
    wrong_rois, wrong_levels, wrong = rois.copy(), levels.copy(), [3, 4, 5, 6, 7]
    wrong_rois[3:6, 0] = -1, 2, np.nan
    wrong_levels[6:8] = -1, 3
    others = np.setdiff1d(np.arange(40), wrong)

    y, none = Launcher().align(xs, wrong_rois, wrong_levels, scales, s)
    pooled, _ = Launcher().pool(xs, wrong_rois, wrong_levels, scales, (2, 2))
    for got, want in ((y, right), (pooled, right_pooled)):
        assert np.isnan(got[wrong]).all()
        np.testing.assert_array_equal(got[others], want[others])
    gxs = Launcher().align_gradient(gy, none, wrong_rois, wrong_levels, shapes, scales, s)
    for gx, want in zip(
        gxs, Launcher().align_gradient(gy[others], none, rois[others], levels[others], shapes, scales, s)
    ):
        np.testing.assert_allclose(gx, want, rtol=0, atol=1e-14)
    gxs = Launcher().pool_gradient(
        gy, won, wrong_rois, wrong_levels, shapes, scales
    )  # argmax as if all were right
    for gx, want in zip(
        gxs, Launcher().pool_gradient(gy[others], won[others], rois[others], levels[others], shapes, scales)
    ):
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
    launcher.run("roi_align_backward", gx.dtype, y, np.uintp(0), rois, level, into, *sizes, sampling(s))
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
    ],
    "roi_pool": [
        ("an atomic left out", "atomicAdd(gx + argmax[out], gy[out])", "gx[argmax[out]] += gy[out]"),
        ("an edge rounded down", "ceil((k + 1) * bin_size)", "floor((k + 1) * bin_size)"),
        ("no + 1", "(aligned ? 0 : 1)", "(aligned ? 0 : 0)"),
        ("the last maximum", "value > best", "value >= best"),
        ("a stride too short", "k += gridDim.y * blockDim.x", "k += 1"),
    ],
}


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
        errors = [check(n, Launcher(source, watch=True, grid=(3,), block=8)) for n in range(4)]
        if name == "roi_pool":  # torchvision's file does not hold the index of the maximum
            x, rois = np.ones((1, 1, 4, 4)), np.array([[0, 0, 0, 3, 3.0]])
            errors.append((0, Launcher(source).pool([x], rois, None, (1.0,), (1, 1))[1].item()))
    except KernelError as error:
        assert "race" in str(error)
        return True
    return not np.max(errors) < 1e-10  # also where NaN


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
