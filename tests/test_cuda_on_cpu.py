"""CUDA kernels run on the CPU: what a GPU would compute, and what a GPU would not tell."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from minimask import backend
from minimask.kernels import roi_align
from minimask.kernels.roi_align import OnDevice, Plan, Sampling
from minimask.lessons import cuda_on_cpu
from minimask.lessons.cuda_on_cpu import ORDERS, KernelError, load
from minimask.lessons.cuda_on_cpu.launches import Launches

pytestmark = pytest.mark.skipif(
    cuda_on_cpu.compiler() is None, reason="no g++ to run CUDA sources on the CPU with"
)

ROOT = Path(__file__).parent.parent

# Sum of each block's 64 elements by halving, in static shared memory. {barrier} stands where one is needed.
BLOCK_SUM = """
__global__ void block_sum(const float* x, float* sums, int n) {
    __shared__ float part[64];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    part[threadIdx.x] = i < n ? x[i] : 0;
    %s
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = part[0];
}
"""

X = np.random.default_rng(0).integers(-99, 99, 300).astype(np.float32)
SUMS = np.pad(X, (0, 20)).reshape(5, 64).sum(axis=1)


def block_sums(source: str, watch: bool = False, **options) -> np.ndarray:
    sums = np.full(5, np.nan, np.float32)
    kernel = load(source, watch=watch).get_function("block_sum")
    kernel((5,), (64,), (X, sums, np.int32(len(X))), **options)
    return sums


def run(source: str, grid, block, *args, watch: bool = False, **options):
    module = load(source, watch=watch)
    module.get_function(module.names[0])(grid, block, args, **options)


# ---------------------------------------------------------------------------------------------- what is right


@pytest.mark.parametrize("order", ORDERS)
def test_a_sum_in_shared_memory_with_barriers_is_right_in_every_order(order):
    for seed in range(3):
        np.testing.assert_array_equal(
            block_sums(BLOCK_SUM % "__syncthreads();", order=order, seed=seed), SUMS
        )


def test_the_same_sum_in_dynamic_shared_memory():
    source = (BLOCK_SUM % "__syncthreads();").replace(
        "__shared__ float part[64]", "extern __shared__ float part[]"
    )
    np.testing.assert_array_equal(block_sums(source, shared_mem=64 * 4, order="shuffled"), SUMS)


def test_every_thread_of_a_grid_of_three_dimensions_runs_once_and_knows_its_place():
    source = """
    __global__ void places(int* seen) {
        dim3 g = gridDim, b = blockDim;
        int block = (blockIdx.z * g.y + blockIdx.y) * g.x + blockIdx.x;
        int thread = (threadIdx.z * b.y + threadIdx.y) * b.x + threadIdx.x;
        atomicAdd(&seen[block * b.x * b.y * b.z + thread], 1);
    }
    """
    for order in ORDERS:
        seen = np.zeros((2 * 3 * 4, 5 * 3 * 2), np.int32)
        run(source, (2, 3, 4), (5, 3, 2), seen, order=order)
        np.testing.assert_array_equal(seen, 1)


TRANSPOSE = """
const int TILE = 8;
template <typename T, bool twice>
__global__ void __launch_bounds__(TILE * TILE) transpose(const T* x, T* y, int rows, int columns) {
    __shared__ T tile[TILE][TILE + 1], unused;  // two declarations in one
    unused = 0;
    int u = blockIdx.x * TILE + threadIdx.x, v = blockIdx.y * TILE + threadIdx.y;
    if (u < columns && v < rows) tile[threadIdx.y][threadIdx.x] = (twice ? 2 : 1) * x[v * columns + u];
    __syncthreads();
    u = blockIdx.y * TILE + threadIdx.x, v = blockIdx.x * TILE + threadIdx.y;
    if (u < rows && v < columns) y[v * rows + u] = tile[threadIdx.x][threadIdx.y];
}
"""


@pytest.mark.parametrize("order", ORDERS)
def test_a_template_of_several_parameters_with_a_tile_of_two_dimensions(order):
    module = load(TRANSPOSE, ["transpose<double, true>", "transpose<float, false>"])
    for name, dtype, factor in (("transpose<double, true>", "f8", 2), ("transpose<float, false>", "f4", 1)):
        x = np.random.default_rng(0).normal(size=(13, 21)).astype(dtype)
        y = np.full((21, 13), np.nan, dtype)
        module.get_function(name)((3, 2), (8, 8), (x, y, np.int32(13), np.int32(21)), order=order)
        np.testing.assert_array_equal(y, factor * x.T)


def test_orders_are_what_they_say_and_a_seed_repeats_one():
    source = """
    __global__ void queue(int* place, int* next) {
        place[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(next, 1);
    }
    """

    def places(order, seed=0):
        place = np.zeros(24, np.int32)
        run(source, (3,), (8,), place, np.zeros(1, np.int32), order=order, seed=seed)
        return place.tolist()

    assert places("forward") == list(range(24))
    assert places("reverse") == list(range(24))[::-1]
    assert sorted(places("shuffled")) == list(range(24))
    assert places("shuffled") == places("shuffled") != places("shuffled", seed=1)
    with pytest.raises(ValueError, match="sideways"):
        places("sideways")


def test_arithmetic_is_that_of_cuda():
    source = """
    __global__ void numbers(float* y, float x, double d, bool flag, long long big) {
        y[0] = max(NAN, x), y[1] = min(x, NAN);  // the other one
        y[2] = floor(x), y[3] = round(-x), y[4] = max(1, 2), y[5] = d, y[6] = flag, y[7] = big / (1LL << 40);
    }
    """
    y = np.zeros(8, np.float32)
    run(source, (1,), (1,), y, np.float32(2.5), np.float64(0.1), np.bool_(True), np.int64(3 << 40))
    np.testing.assert_array_equal(y, np.array([2.5, 2.5, 2, -3, 2, 0.1, 1, 3], np.float32))


def test_a_structure_goes_by_value():
    source = """
    template <typename T> struct Line { T* y; T a[2]; bool up; };
    template <typename T> __global__ void draw(Line<T> line, int n) {
        for (int i = threadIdx.x; i < n; i += blockDim.x)
            line.y[i] = line.up ? line.a[0] + line.a[1] * i : 0;
    }
    """
    for dtype, name in (("f4", "draw<float>"), ("f8", "draw<double>")):
        y = np.zeros(5, dtype)
        line = np.zeros((), np.dtype([("y", "u8"), ("a", dtype, 2), ("up", "?")], align=True))
        line["y"], line["a"], line["up"] = y.ctypes.data, (1, 2), True
        load(source).get_function(name)((1,), (2,), (line, np.int32(5)))
        np.testing.assert_array_equal(y, [1, 3, 5, 7, 9])


def test_kernels_are_found_but_not_in_comments():
    source = """
    // __global__ void no(int a) {
    /* template <typename T> __global__ void neither(T* x) { */
    const char* slashes = "// no comment";
    template <class T> __global__ void one(const T* __restrict__ x, T y[], unsigned long long n) {}
    extern "C" __global__ void two() {}
    template <typename T, int n> __global__ void three(T* x) {}
    """
    assert cuda_on_cpu.kernels(source) == {
        "one": ("class T", ["x", "y", "n"]),
        "two": (None, []),
        "three": ("typename T, int n", ["x"]),
    }
    assert cuda_on_cpu.instances(source) == ["one<float>", "one<double>", "two"]


# ----------------------------------------------------------------------------------- what is wrong, and found


def test_a_missing_barrier_changes_the_result_of_some_order():
    right = {order: np.array_equal(block_sums(BLOCK_SUM % "", order=order), SUMS) for order in ORDERS}
    assert right["reverse"] and not right["forward"] and not right["shuffled"]


def test_a_missing_barrier_is_a_race_in_any_order():
    for order in ORDERS:
        with pytest.raises(
            KernelError, match=r"race: .*\(line [58]\) where thread .*\(line [58]\), and nothing orders"
        ):
            block_sums(BLOCK_SUM % "", watch=True, order=order)
    np.testing.assert_array_equal(block_sums(BLOCK_SUM % "__syncthreads();", watch=True), SUMS)


ADD = """
__global__ void add(const float* x, float* sum) {
    %s
}
"""


def test_an_addition_that_is_not_atomic_is_a_race():
    """In one order after another it is right every time: only watching the accesses finds it."""
    x, sums = np.ones(64, np.float32), np.zeros(2, np.float32)
    atomic, plain = "atomicAdd(sum, x[threadIdx.x]);", "*sum += x[threadIdx.x];"
    run(ADD % plain, (2,), (32,), x, sums[:1])
    run(ADD % atomic, (2,), (32,), x, sums[1:], watch=True)
    assert sums.tolist() == [64, 64]
    with pytest.raises(
        KernelError,
        match=r"race: thread \(1, 0, 0\) of block \(0, 0, 0\) reads \(line 3\) where thread \(0, ",
    ):
        run(ADD % plain, (2,), (32,), x, sums[:1], watch=True)
    with pytest.raises(KernelError, match=r"of block \(1, 0, 0\) reads .* of block \(0, 0, 0\) wrote"):
        run(ADD % plain, (2,), (1,), x, sums[:1], watch=True)
    with pytest.raises(
        KernelError, match=r"\(1, 0, 0\) of block \(0, 0, 0\) adds \(line 3\) where .* read \(line 3\)"
    ):
        run(ADD % (atomic + " if (*sum > 99) return;"), (1,), (2,), x, sums[:1], watch=True)


OUTSIDE = """
static const float weights[2] = {0.5f, 0.25f};
__global__ void shifted(const float* x, float* y, int by) {
    __shared__ float part[32];
    const int t = threadIdx.x;
    part[t] = x[t];
    __syncthreads();
    const float own[2] = {1, 2};
    y[t + by] = part[31 - t] * own[t % 2] * weights[t % 2];
    __syncthreads();
    if (t == 0) y[0] += part[LAST];
}
"""


@pytest.mark.parametrize("order", ORDERS)
def test_an_access_outside_of_the_arrays_is_stopped_before_it_happens(order):
    kernel = load(OUTSIDE.replace("LAST", "31"), watch=True).get_function("shifted")
    x, room = np.ones(32, np.float32), np.zeros(96, np.float32)
    y = room[32:64]
    for by, what in (
        (1, r"thread \(31, 0, 0\) of block \(0, 0, 0\) writes y\[32\], and y has 32 elements"),
        (-2, r"thread \([01], 0, 0\) of block \(0, 0, 0\) writes y\[-[12]\], and y has 32 elements"),
        (1 << 28, r"writes far from all of them"),
    ):
        with pytest.raises(KernelError, match=rf"outside of the arrays: .*{what} \(line 9\)"):
            kernel((1,), (32,), (x, y, np.int32(by)), order=order)
    assert not room[:32].any() and not room[64:].any()
    kernel((1,), (32,), (x, y, np.int32(0)), order=order)  # the one after it finds all as it should be
    np.testing.assert_array_equal(y, [1.5, *[0.5] * 31])
    with pytest.raises(KernelError, match=r"reads x\[16\], and x has 16 elements \(line 6\)"):
        kernel((1,), (32,), (x[:16], y, np.int32(0)))
    with pytest.raises(KernelError, match=r"writes by a null pointer \(line 9\)"):
        kernel((1,), (32,), (x, np.uintp(0), np.int32(0)), order=order)
    kernel = load(OUTSIDE.replace("LAST", "32"), watch=True).get_function("shifted")
    with pytest.raises(KernelError, match=r"of block \(0, 0, 0\) reads behind its shared memory \(line 11\)"):
        kernel((1,), (32,), (x, y, np.int32(0)), order=order)


def test_a_block_may_not_read_what_another_writes_but_reuse_of_shared_memory_is_none_of_its_business():
    source = """
    __global__ void shift(float* x) {
        __shared__ float mine;
        mine = x[blockIdx.x];
        x[blockIdx.x + %d] = mine;
    }
    """
    x = np.zeros(9, np.float32)
    with pytest.raises(KernelError, match="block"):
        run(source % 1, (4,), (1,), x, watch=True)
    run(source % 4, (4,), (1,), x, watch=True)


@pytest.mark.parametrize(
    "body, message",
    [
        (
            "if (threadIdx.x < 16) __syncthreads();",
            r"waits in line 3 with 16 of 32 threads, the others have ended",
        ),
        ("if (threadIdx.x < 16) return;\n__syncthreads();", r"waits in line 4 with 16 of 32 threads"),
        (
            "if (threadIdx.x < 5) __syncthreads();\nelse __syncthreads();",
            r"in line 3, .*\(5, 0, 0\).* in line 4",
        ),
        ("for (int i = 0; i < threadIdx.x; i++) __syncthreads();", r"line 3 with 31 of 32"),
    ],
)
def test_a_barrier_that_not_all_threads_reach_is_reported(body, message):
    source = f"\n__global__ void diverge() {{\n{body}\n}}\n"
    with pytest.raises(KernelError, match=rf"kernel\.cu: diverge: divergent barrier: .*{message}"):
        run(source, (2,), (32,))
    run(source.replace(body, "__syncthreads();"), (2,), (32,))  # and the next launch is not disturbed


def test_shared_memory_holds_nan_until_it_is_written():
    source = """
    __global__ void leave(float* y) {
        __shared__ float left;
        y[blockIdx.x] = left;  // of the block before, on some GPUs
        left = 1;
    }
    """
    y = np.zeros(3, np.float32)
    run(source, (3,), (1,), y)
    assert np.isnan(y).all()


@pytest.mark.slow
def test_a_stack_that_is_too_deep_does_not_reach_its_neighbour():
    """Its page of guard ends the process; in a child, therefore."""
    source = "__global__ void deep(int* y) { volatile char big[1 << 20]; big[0] = 1; *y = big[0]; }"
    assert child(f"run({source!r}, (1,), (1,), np.zeros(1, np.int32))").returncode < 0


@pytest.mark.parametrize(
    "grid, block, shared, message",
    [
        ((0,), (32,), 0, r"grid \(0,\)"),
        ((1, 65536), (32,), 0, "grid"),
        ((1,), (1025,), 0, r"block \(1025,\)"),
        ((1,), (32, 33), 0, "more than 1024 threads"),
        ((1,), (1, 1, 65), 0, "block"),
        ((1,), (1, 1, 1, 1), 0, "block"),
        ((1,), (32,), 1 << 16, "shared_mem 65536"),
    ],
)
def test_a_launch_that_cuda_would_refuse_is_refused(grid, block, shared, message):
    with pytest.raises(ValueError, match=message):
        run("__global__ void nothing() {}", grid, block, shared_mem=shared)


READ_ONLY = np.zeros(4, np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    "args, message",
    [
        ((np.zeros(4), np.float32(1), np.int32(4)), r"parameter y \(\*f4\): got float64"),
        ((np.zeros((4, 4), "f4")[:, 1], np.float32(1), np.int32(4)), "y.*C-contiguous"),
        ((READ_ONLY, np.float32(1), np.int32(4)), "y.*read-only"),
        ((None, np.float32(1), np.int32(4)), r"y.*NoneType has no size in C"),
        (
            (np.zeros(4, "f4"), 1.0, np.int32(4)),
            r"a \(f4\): float has no size in C; pass a NumPy array or scalar",
        ),
        ((np.zeros(4, "f4"), np.float64(1), np.int32(4)), r"a \(f4\): got float64"),
        ((np.zeros(4, "f4"), np.float32(1), np.int64(4)), r"n \(i4\): got int64"),
        ((np.zeros(4, "f4"), np.ones(2, "f4"), np.int32(4)), r"a \(f4\): got an array of shape \(2,\)"),
        ((np.zeros(4, "f4"), np.float32(1)), "2 arguments for 3 parameters"),
    ],
)
def test_arguments_that_do_not_fit_the_kernel_are_refused(args, message):
    """A GPU takes any bytes: a Python float is eight of them, and a view's strides are not among them."""
    source = "__global__ void fill(float* y, float a, int n) { for (int i = 0; y && i < n; i++) y[i] = a; }"
    run(source, (1,), (1,), np.zeros(4, "f4"), np.float32(1), np.int32(4))
    run(source, (1,), (1,), np.uintp(0), np.float32(1), np.int32(4))
    with pytest.raises(TypeError, match=message):
        run(source, (1,), (1,), *args)


def test_what_gpp_says_names_the_line_of_the_source():
    with pytest.raises(KernelError, match=r"kernel\.cu:2:.*not_there"):
        load("\n__global__ void f() { not_there(); }")
    with pytest.raises(KernelError, match=r"kernel\.cu:1:.*unused variable"):
        load("__global__ void f() { int x; }")
    with pytest.raises(KeyError, match=r"no kernel 'g' among f"):
        load("__global__ void f() {}").get_function("g")


# --------------------------------------------------------------------------------------------------- stepping


def test_a_trace_lists_what_one_thread_does_and_where_it_stands():
    source = """
    struct Into { double* y; };
    __global__ void pair(const double* x, Into into, double* sum) {
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        double a = x[2 * i];
        double b = x[2 * i + 1];
        into.y[i] = a - b;
        atomicAdd(sum, a);
    }
    """
    x, y, total = np.arange(12.0).reshape(6, 2), np.zeros(6), np.zeros(1)
    into = np.array([(y.ctypes.data,)], np.dtype([("y", "u8")]))
    kernel = load(source, watch=True).get_function("pair")
    steps = kernel.trace((2,), (3,), (x, into, total), block_index=(1,), thread_index=(2,), arrays={"y": y})
    assert [(s.line, s.kind, s.array, s.index) for s in steps] == [
        (5, "read", "x", (5, 0)),
        (6, "read", "x", (5, 1)),
        (7, "write", "y", (5,)),
        (8, "add", "sum", (0,)),
    ]
    assert y.tolist() == [-1] * 6 and total[0] == x[:, 0].sum(), "the other threads have run too"
    with pytest.raises(ValueError, match="watch=True"):
        load(source).get_function("pair").trace((2,), (3,), (x, into, total))


def test_the_examples_of_the_documentation_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    exec("".join(blocks), {})


# ------------------------------------------------------------------------------------------------- sanitizers


def child(code: str, sanitize: str = "") -> subprocess.CompletedProcess:
    """Run code in a Python of its own, with kernels built by g++ with sanitizers."""
    start = "import numpy as np\nfrom tests.test_cuda_on_cpu import run\n"
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    if sanitize:
        env |= {
            cuda_on_cpu.SANITIZE: sanitize,
            "LD_PRELOAD": cuda_on_cpu.libasan(),
            "ASAN_OPTIONS": "detect_leaks=0",
        }
    code = start + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_address_sanitizer_names_the_line_that_writes_past_an_array():
    source = "\n__global__ void past(float* y, int n) {\n    for (int i = 0; i <= n; i++) y[i] = 1;\n}\n"
    result = child(f"run({source!r}, (1,), (1,), np.zeros(5000, 'f4'), np.int32(5000))", "address,undefined")
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr and "kernel.cu:3" in result.stderr, result.stderr
    right = source.replace("<=", "<")
    result = child(f"run({right!r}, (1,), (1,), np.zeros(5000, 'f4'), np.int32(5000))", "address,undefined")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_address_sanitizer_watches_shared_memory_and_bears_fibers():
    static, dynamic = "__shared__ float part[64]", "extern __shared__ float part[]"
    source = BLOCK_SUM % "__syncthreads();"
    code = """
        for order in ("forward", "reverse", "shuffled"):
            x, sums = np.ones(300, "f4"), np.zeros(5, "f4")
            run({!r}, (5,), (64,), x, sums, np.int32(300), order=order, shared_mem={})
            assert sums.tolist() == [64, 64, 64, 64, 44]
    """
    result = child(code.format(source, 0), "address,undefined")
    assert result.returncode == 0, result.stderr
    result = child(code.format(source.replace(static, dynamic), 63 * 4), "address,undefined")
    assert "heap-buffer-overflow" in result.stderr and "kernel.cu:5" in result.stderr, result.stderr
    result = child(code.format(source.replace("part[64]", "part[63]"), 0), "address,undefined")
    assert "index 63 out of bounds" in result.stderr and "kernel.cu:5" in result.stderr, result.stderr


@pytest.mark.slow
def test_undefined_behaviour_is_named():
    source = "\n__global__ void convert(int* y, float x) {\n    y[0] = (int)x;\n}\n"
    result = child(f"run({source!r}, (1,), (1,), np.zeros(1, 'i4'), np.float32(np.nan))", "address,undefined")
    assert "kernel.cu:3" in result.stderr and "outside the range" in result.stderr, result.stderr


def test_an_assumption_that_nvcc_would_believe_is_checked():
    source = """
    __global__ void add(float* x, bool own) {
        __shared__ float shared[1];
        float mine = 0;
        float* to = own ? &mine : shared;
        if (threadIdx.x == 1) to = x;
        __builtin_assume(__isGlobal(to));
        atomicAdd(to, 1.0f);
    }
    """
    kernel = load(source).get_function("add")
    for own in (False, True):
        with pytest.raises(
            KernelError, match=r"false assumption: of thread \(0, 0, 0\) of block .* in line 7"
        ):
            kernel((1,), (2,), (np.zeros(1, np.float32), np.bool_(own)))
    kernel = load(source.replace("== 1", "< 2")).get_function("add")
    x = np.zeros(1, np.float32)
    kernel((1,), (2,), (x, np.bool_(True)))
    assert x == 2


# ------------------------------------------------------------------------------------ minimask's own launches


def roi_align_of_a_map():
    """Features, a RoI on them, and how it is read."""
    x = np.random.default_rng(4).normal(size=(1, 2, 9, 11))
    return x, np.array([[0, 1.3, 0.7, 9.1, 7.9]]), Sampling((3, 2), 2, True)


@pytest.mark.parametrize("order", ORDERS)
def test_minimasks_launches_run_on_arrays_of_numpy(order, monkeypatch):
    x, rois, s = roi_align_of_a_map()
    monkeypatch.setattr(backend, "launch", Launches(order))
    device = OnDevice(rois, None, (1.0,), s)
    (y, argmax), gy = device.forward([x]), np.ones((1, 2, 3, 2))
    plan = Plan.build(rois, None, [x.shape], (1.0,), s, np.dtype("f8"))
    np.testing.assert_allclose(y, roi_align.forward([x], plan)[0], rtol=0, atol=1e-14)
    want = roi_align.backward(gy, None, [x.shape], plan)
    np.testing.assert_allclose(device.backward(gy, argmax, [x.shape]), want, rtol=0, atol=1e-14)


def test_launches_take_another_source_and_watch_it(monkeypatch):
    x, rois, s = roi_align_of_a_map()
    source = Path(roi_align.__file__).with_name("roi_align.cu").read_text(encoding="utf-8")
    racing = source.replace(
        "atomicAdd(gx + pixel[q], weight[q] * share)", "gx[pixel[q]] += weight[q] * share"
    )
    assert racing != source
    monkeypatch.setattr(backend, "launch", Launches(watch=True, sources={"roi_align": racing}))
    with backend.reference_only(), pytest.raises(KernelError, match="race"):
        OnDevice(rois, None, (1.0,), s).backward(np.ones((1, 2, 3, 2)), None, [x.shape])


def test_shuffled_launches_differ_from_one_another_and_are_the_same_again_with_the_same_seed(monkeypatch):
    rng = np.random.default_rng(5)
    corner = rng.uniform(0, 4, (60, 2))
    rois = np.concatenate([np.zeros((60, 1)), corner, corner + rng.uniform(2, 6, (60, 2))], axis=1).astype(
        "f4"
    )
    gy = rng.normal(size=(60, 1, 3, 3)).astype("f4")

    def gradients() -> list[bytes]:
        monkeypatch.setattr(backend, "launch", Launches("shuffled", seed=7))
        device = OnDevice(rois, None, (1.0,), Sampling((3, 3), 2, True))
        return [device.backward(gy, None, [(1, 1, 9, 11)])[0].tobytes() for _ in range(3)]

    first = gradients()
    assert len(set(first)) == 3 and gradients() == first


def test_launches_count_arguments_and_run_nothing_of_an_empty_grid():
    launch = Launches()
    launch("roi_align", "roi_align_forward", (0, 1), 32, (), np.float64)
    with pytest.raises(TypeError, match="2 arguments for"):
        launch("roi_align", "roi_align_forward", (1, 1), 32, (1, 2), np.float64)
