"""The CUDA sources of convolution, pooling, upsampling and norms, run on the CPU against the NumPy version.

`minimask.kernels.convolution_gpu` and `minimask.kernels.norm` are the same for NumPy arrays, so here they run
as they are, on launches that go to `lessons.cuda_on_cpu`. What is missing is only CuPy: see
test_gpu_functions.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimask import backend
from minimask.functions.norm import GroupNorm
from minimask.kernels import convolution_gpu, im2col, norm, pooling, resample
from minimask.kernels.geometry import Geometry
from minimask.lessons import cuda_on_cpu
from minimask.lessons.cuda_on_cpu import ORDERS, KernelError, launches
from tests.test_convolution import geometries

pytestmark = pytest.mark.skipif(cuda_on_cpu.compiler() is None, reason="no g++ to run CUDA sources with")
HERE = Path(__file__).parent
KERNELS = Path(norm.__file__).parent
ROUNDING = dict(rtol=0, atol=1e-12)
quick = settings(max_examples=25, deadline=None, derandomize=True)
each_order = pytest.mark.parametrize("order", ORDERS)


class Launches(launches.Launches):
    """In place of `backend.launch`: kernels run by cuda_on_cpu, on arrays of NumPy.

    With `few`, a launch has few blocks and threads, so that each takes several shares: all kernels go on in
    steps of the grid.
    """

    def __init__(self, order="forward", watch=False, few=False, source: dict | None = None):
        super().__init__(order, watch=watch, sources=source)
        self.few = few

    def __call__(self, source, kernel, grid, block, args, dtype=None):
        block = (block,) if isinstance(block, int) else block
        if self.few:
            grid = tuple(min(n, most) for n, most in zip(grid, (3, 2)))
            block = tuple(min(n, most) for n, most in zip(block, (8, 2)))
        super().__call__(source, kernel, grid, block, args, dtype)

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(backend, "launch", self)
        self.patch.setattr(pooling, "_in_one_pass", lambda xp, g: True)
        return self

    def __exit__(self, *exception):
        self.patch.undo()


def normal(*shapes, dtype=float, seed: int = 0):
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=s).astype(dtype) for s in shapes]
    return arrays if len(arrays) > 1 else arrays[0]


def assert_equal(got, want, **tolerance):
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, **(tolerance or ROUNDING))


# ------------------------------------------------------------------------------------------- convolution

KINDS = {
    "3 x 3": Geometry.of((2, 3, 6, 5), (4, 3, 3, 3), 1, 1, 1, 1),
    "stride 2": Geometry.of((3, 2, 7, 6), (3, 2, 3, 3), 2, 1, 1, 1),
    "stride beyond the kernel": Geometry.of((1, 2, 8, 7), (2, 2, 2, 1), 3, 0, 1, 1),
    "groups, dilated": Geometry.of((2, 4, 7, 6), (6, 2, 3, 2), (1, 2), (2, 1), 2, 2),
    "pointwise": Geometry.of((3, 3, 4, 3), (5, 3, 1, 1), 1, 0, 1, 1),
    "pointwise, groups": Geometry.of((2, 4, 3, 4), (6, 2, 1, 1), 1, 0, 1, 2),
    "pointwise, stride 2": Geometry.of((2, 3, 5, 4), (4, 3, 1, 1), 2, 0, 1, 1),
    "a deconvolution's": Geometry.of((4, 3, 6, 6), (2, 3, 2, 2), 2, 0, 1, 1),
    "padding beyond the kernel": Geometry.of((1, 2, 3, 3), (2, 2, 2, 2), 1, 3, 1, 1),
    "no images": Geometry.of((0, 2, 4, 4), (3, 2, 3, 3), 2, 1, 1, 1),
}
each_kind = pytest.mark.parametrize("g", KINDS.values(), ids=KINDS)


def by_gpu(g: Geometry, dtype=float, **constants):
    x, w, gy, b = normal(g.x_shape, g.w_shape, g.y_shape, g.w_shape[:1], dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in constants.items():
            patch.setattr(convolution_gpu, name, value)
        return (
            convolution_gpu.forward(x, w, b, g),
            convolution_gpu.input_gradient(gy, w, g),
            convolution_gpu.weight_gradient(gy, x, g),
        )


def by_numpy(g: Geometry, dtype=float):
    x, w, gy, b = normal(g.x_shape, g.w_shape, g.y_shape, g.w_shape[:1], dtype=dtype)
    return (
        im2col.forward_im2col(x, w, b, g),
        im2col.input_gradient_im2col(gy, w, g),
        im2col.weight_gradient_im2col(gy, x, g),
    )


@each_order
@each_kind
def test_convolution_and_its_gradients_are_those_of_one_large_matrix(g, order):
    for few in (False, True):
        with Launches(order, few=few):
            assert_equal(by_gpu(g), by_numpy(g))


@pytest.mark.parametrize("workspace, large", [(1, 1), (400, 1), (2000, 1 << 20), (1 << 20, 1), (1 << 20, 99)])
@each_kind
def test_any_size_of_workspace_gives_the_same(g, workspace, large):
    with Launches(few=True):
        assert_equal(by_gpu(g, WORKSPACE=workspace, LARGE=large), by_numpy(g))


@quick
@given(geometries(images=3), st.integers(1, 3000), st.sampled_from([1, 1 << 20]))
def test_any_geometry_gives_the_same(g, workspace, large):
    with Launches(few=True):
        assert_equal(by_gpu(g, WORKSPACE=workspace, LARGE=large), by_numpy(g))


@each_kind
def test_in_float_they_differ_by_float_rounding(g):
    with Launches():
        assert_equal(by_gpu(g, np.float32), by_numpy(g, np.float32), rtol=0, atol=2e-5)


@pytest.mark.parametrize("workspace", [1, 700, 1 << 20])
@each_kind
def test_blocks_cover_each_output_row_once(g, workspace, monkeypatch):
    monkeypatch.setattr(convolution_gpu, "WORKSPACE", workspace)
    blocks = list(convolution_gpu._blocks(g, 8))
    rows = [(n, r) for n0, n1, first, last in blocks for n in range(n0, n1) for r in range(first, last)]
    assert rows == list(np.ndindex(g.x_shape[0], g.out_size[0]))
    if workspace == 1 << 20 and not g.is_pointwise:
        assert len(blocks) == (g.x_shape[0] > 0), "one block holds them all"


@pytest.mark.parametrize("kernel", ["im2col_by_element", "im2col"])
@each_order
@each_kind
def test_both_versions_of_im2col_write_all_patches(g, kernel, order):
    x = normal(g.x_shape)
    cols = np.full((*g.w_shape[1:], g.groups, len(x), *g.out_size), np.nan)
    args = x, cols, g.struct, len(x), 0, g.out_size[0]
    Launches(order, few=True)("im2col", kernel, (cols.size and 5, 2), 64, args, x.dtype)
    want = im2col.im2col(x, g).transpose(1, 2, 3, 0, 4, 5)  # (C, KH, KW, N, P, Q): images side by side
    np.testing.assert_array_equal(cols.reshape(want.shape), want)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("workspace", [1, 1 << 20])
@pytest.mark.parametrize("images", [1, 3])
def test_bias_residual_and_relu_are_applied_in_this_order(
    relu, bias, residual, workspace, images, monkeypatch
):
    monkeypatch.setattr(convolution_gpu, "WORKSPACE", workspace)
    g = Geometry.of((images, 3, 6, 5), (4, 3, 3, 3), 1, 1, 1, 1)
    x, w, r, b = normal(g.x_shape, g.w_shape, g.y_shape, g.w_shape[:1])
    b, r = b if bias else None, r if residual else None
    want = im2col.forward_im2col(x, w, b, g) + (r if residual else 0)
    with Launches(few=True):
        y = convolution_gpu.forward(x, w, b, g, relu, r)
    np.testing.assert_allclose(y, np.maximum(want, 0) if relu else want, **ROUNDING)


# --------------------------------------------------------------------------------- pooling and upsampling

POOLS = [((7, 6), (3, 3), (2, 2), (1, 1)), ((5, 8), (2, 3), (1, 2), (1, 0)), ((4, 4), (1, 1), (2, 2), (0, 0))]


@each_order
@pytest.mark.parametrize("size, kernel, stride, padding", [*POOLS, ((3, 9), (2, 2), (3, 3), (0, 0))])
def test_max_pool_and_its_gradient_are_those_of_numpy_to_the_bit(size, kernel, stride, padding, order):
    g = pooling.geometry((2, 2, *size), kernel, stride, padding)
    x = np.random.default_rng(0).integers(0, 4, (4, 1, *size)).astype(float)  # many equal ones
    x[0], x[1, 0, 1, 2], x[2] = -np.inf, np.nan, -1
    y, index = pooling.max_pool(x, g, want_index=True)
    gy = np.random.default_rng(1).integers(-8, 8, y.shape).astype(float)
    want = y, index, pooling.max_pool_gradient(gy, index, g)
    for few in (False, True):
        with Launches(order, few=few):
            y, index = pooling.max_pool(x, g, want_index=True)
            gx = pooling.max_pool_gradient(gy, index, g)
            assert pooling.max_pool(x, g, want_index=False)[1] is None
        for got, expected in zip((y, index, gx), want):
            np.testing.assert_array_equal(got, expected)
            assert got.dtype == expected.dtype


@each_order
@pytest.mark.parametrize(
    "size, out",
    [((3, 4), (6, 8)), ((3, 4), (7, 5)), ((9, 13), (4, 4)), ((1, 5), (8, 5)), ((10, 3), (77, 100))],
)
def test_upsampling_repeats_the_pixels_that_numpy_repeats(size, out, order):
    x, gy = normal((2, 3, *size), (2, 3, *out))
    for few in (False, True):
        with Launches(order, few=few):
            y = resample._nearest_gpu("nearest", x, out, (*size, *out))
            gx = resample._nearest_gpu("nearest_gradient", gy, size, (*size, *out))
        np.testing.assert_array_equal(y, resample.nearest(x, out))
        np.testing.assert_allclose(gx, resample.nearest_gradient(gy, size), **ROUNDING)


# ----------------------------------------------------------------------------------------- norms and passes


def group_norms(shape, groups: int, relu: bool, dtype=float):
    """Group norm and its gradients by the kernels and by NumPy."""
    x, weight, bias, gy = normal(shape, shape[1], shape[1], shape, dtype=dtype)
    x = x + dtype(3)  # a mean that is not small: squares must be taken around it
    function = GroupNorm(groups, 1e-5, relu)
    function.needs = (True, True, True)
    want = function.forward(x, weight, bias), *function.backward(gy)
    y, mean, inv_std = norm.group_norm(x, weight, bias, groups, 1e-5, relu)
    return (y, *norm.group_norm_gradient(gy, x, y if relu else None, mean, inv_std, weight)), want


@each_order
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    "shape, groups", [((2, 4, 5, 7), 2), ((3, 6, 1, 1), 2), ((1, 3, 20, 20), 1), ((0, 4, 3, 3), 2)]
)
def test_group_norm_and_its_gradients_are_those_of_numpy(shape, groups, relu, order):
    for few in (False, True):
        with Launches(order, few=few):
            assert_equal(*group_norms(shape, groups, relu))


def test_group_norm_in_float_differs_by_float_rounding():
    with Launches():
        assert_equal(*group_norms((2, 4, 9, 9), 2, True, np.float32), rtol=0, atol=2e-5)


@each_order
def test_the_gradient_of_a_relu_also_in_place(order):
    gy, y = normal((3, 5, 7), (3, 5, 7))
    y[0, 0, :3] = 0
    for target in (np.full_like(gy, np.nan), gy.copy()):
        source = gy if np.isnan(target).all() else target
        Launches(order, few=True)(
            "elementwise", "relu_gradient", (9,), 256, (source, y, target, gy.size), gy.dtype
        )
        np.testing.assert_array_equal(target, gy * (y > 0))


# ---------------------------------------------------------------------------------------- races, planted bugs


def all_kernels_once(launches: Launches) -> float:
    """Run each kernel on something small; gives the largest error."""
    pairs = []
    with launches:
        for g in (KINDS["3 x 3"], KINDS["stride 2"], KINDS["groups, dilated"]):
            pairs += zip(by_gpu(g, WORKSPACE=1500), by_numpy(g))
            cols = np.full((*g.w_shape[1:], g.groups, g.x_shape[0], *g.out_size), np.nan)
            args = normal(g.x_shape), cols, g.struct, g.x_shape[0], 0, g.out_size[0]
            launches("im2col", "im2col_by_element", (5,), 64, args, "f8")
            pairs.append(
                (cols.reshape(-1), im2col.im2col(args[0], g).transpose(1, 2, 3, 0, 4, 5).reshape(-1))
            )
        g = pooling.geometry((2, 2, 7, 6), (3, 3), (2, 2), (1, 1))
        x, gy = normal((4, 1, 7, 6), (4, 1, *g.out_size))
        x = np.round(x)  # equal ones
        y, index = pooling.max_pool(x, g, want_index=True)
        gx = pooling.max_pool_gradient(gy, index, g)
        small, large = normal((2, 3, 4, 3), (2, 3, 9, 6))
        up = resample._nearest_gpu("nearest", small, (9, 6), (4, 3, 9, 6))
        down = resample._nearest_gpu("nearest_gradient", large, (4, 3), (4, 3, 9, 6))
        pairs += zip(*group_norms((2, 4, 6, 7), 2, True))
        masked = np.empty_like(large)
        launches(
            "elementwise", "relu_gradient", (2,), 8, (large, np.maximum(up, 0), masked, large.size), "f8"
        )
    y_numpy, index_numpy = pooling.max_pool_loop(x, g)
    pairs += [(y, y_numpy), (index, index_numpy), (gx, pooling.max_pool_gradient(gy, index, g))]
    pairs += [(up, resample.nearest(small, (9, 6))), (down, resample.nearest_gradient(large, (4, 3)))]
    pairs.append((masked, large * (up > 0)))
    return max(np.abs(a.astype(float) - b).max() for a, b in pairs)


@pytest.mark.parametrize("few", [pytest.param(False, marks=pytest.mark.slow), True])
def test_no_kernel_has_a_race(few):
    assert all_kernels_once(Launches(watch=True, few=few)) < 1e-12


PLANTED = {  # source, old, new
    "no barrier before a step of the sum": (
        "norm",
        "        __syncthreads();\n        if (thr",
        "        if (thr",
    ),
    "no barrier behind the sum": ("norm", "    __syncthreads();\n    const T sum", "    const T sum"),
    "the next sum may begin early": ("norm", "    __syncthreads();  // all have", "    // all have"),
    "the group's first row forgotten": ("norm", "sums[begin + i]", "sums[i]"),
    "variance of the rows alone": ("norm", "between * between", "0 * between"),
    "kernel transposed": ("im2col", "(i * g.kernel_w + j) * columns", "(j * g.kernel_h + i) * columns"),
    "the second block overwrites": ("im2col", "add ? *pixel", "add && false ? *pixel"),
    "rows of the block not counted": ("im2col", "/ g.stride_h - first", "/ g.stride_h - 0 * first"),
    "stride of the other direction": ("im2col", "right % g.stride_w", "right % g.stride_h"),
    "the last of equal maxima": ("pooling", "if (value > best) winner", "if (value >= best) winner"),
    "one window too few": ("pooling", "min(down / g.stride_h, g.out_height - 1)", "down / g.stride_h - 1"),
    "each copy counted once": ("resample", "sum += gy[", "sum = gy["),
    "an image's place without its rows": ("elementwise", "plane + begin", "plane + 0 * begin"),
    "a ReLU's zero let through": ("elementwise", "T(y[k] > 0)", "T(y[k] >= 0)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("source, old, new", PLANTED.values(), ids=PLANTED)
def test_a_planted_bug_is_found(source, old, new):
    text = (KERNELS / f"{source}.cu").read_text(encoding="utf-8")
    assert text.count(old) >= 1
    changed = {source: text.replace(old, new)}
    if "syncthreads" in old:
        with pytest.raises(KernelError, match="race"):
            all_kernels_once(Launches(watch=True, source=changed))
    else:
        assert not all_kernels_once(Launches(source=changed)) < 1e-3  # a NaN is an error, too


@pytest.mark.slow
def test_sanitizers_find_nothing():
    """The tests of this file again, in a Python with AddressSanitizer, on kernels built with it and UBSan."""
    environment = dict(os.environ, LD_PRELOAD=cuda_on_cpu.libasan(), ASAN_OPTIONS="detect_leaks=0")
    environment[cuda_on_cpu.SANITIZE] = "address,undefined"
    command = [sys.executable, "-m", "pytest", __file__, "-k", "not race and not planted and not any_"]
    result = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert " passed" in result.stdout
