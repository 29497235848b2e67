# ruff: noqa: E402

# %% [markdown]
# # 06 CUDA kernels
#
# **Time** an hour to read, 3 hours with the exercises; it runs in a minute. **Needs** notebook 05 (what
# RoIAlign computes). Readers in a hurry may leave this notebook out: nothing after it needs it. No GPU:
# without one, the same CUDA source is compiled by g++ and run thread by thread on the CPU. For that you
# need Linux and g++; with a GPU, only CuPy. With neither, running all cells ends in one line that says so,
# before the first kernel, and you read the outputs that are stored here.
#
# A GPU runs tens of thousands of threads at a time, each of which does little. So a program for it answers
# one question above all: **which thread computes which number?** Everything else follows from the answer:
# how fast memory is read, where two threads get in each other's way, and whether a result is the same
# twice.
#
# Afterwards you can
#
# 1. read a CUDA kernel: find out which thread writes which output;
# 2. see from the addresses of 32 neighbouring threads whether their reads are cheap;
# 3. recognise a race, say why a test may not see it, and remove it by `atomicAdd`, a barrier or another
#    division of labour;
# 4. explain how minimask's RoIAlign gets from a naive kernel to a fast one, and what it costs to have the
#    same bits in every run.

# %%
# Where minimask is missing, it is installed from the clone or wheel that MINIMASK_CLONE names, if it does.
import importlib.util
import os
import subprocess
import sys
from importlib.metadata import distributions

from IPython.core.error import UsageError

cupy = [f"{d.name}=={d.version}" for d in distributions() if str(d.name).startswith("cupy")]
if importlib.util.find_spec("minimask") is None:
    where = os.environ.get("MINIMASK_CLONE")
    if not where:
        raise UsageError("minimask is missing: '%pip install PATH' installs it from a clone or a wheel.")
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    if subprocess.run([*pip, where, *cupy]).returncode:  # named with its version, a CuPy that is there stays
        raise UsageError(f"minimask is missing, and pip could not install it from MINIMASK_CLONE, {where}.")

import minimask

FAST = os.environ.get("MINIMASK_FAST") == "1"  # fewer points and steps: how the tests run this notebook
print(f"minimask {minimask.__version__}; CuPy: {', '.join(cupy) or 'none, and none is needed'}")

# %%
import re
import textwrap
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
from IPython.core.error import UsageError
from IPython.display import Markdown

from minimask import Tensor, backend, gradcheck, tutorial
from minimask import functions as F
from minimask.autograd import Function
from minimask.kernels import roi_align as align
from minimask.kernels.roi_align import OnDevice, Plan, Sampling
from minimask.lessons import cuda_on_cpu
from minimask.lessons.cuda_on_cpu.launches import Launches
from minimask.tutorial import BLUE, GREY, ORANGE, source

rng = np.random.default_rng(6)

# %% [markdown]
# ## Where the kernels run
#
# On a GPU, where CuPy finds one. Otherwise on the CPU: `minimask.lessons.cuda_on_cpu` compiles a CUDA
# source with g++ and runs its threads one after the other, on NumPy arrays. It is slow, but it can do what
# no GPU can: choose the order in which threads run, and watch every access to memory. minimask's tests use
# it, too.


# %%
def launch(code, name, grid, block, *arguments, order="forward", watch=False, seed=0):
    """Run a kernel on NumPy arrays, and change them; a GPU knows neither `order` nor `watch`."""
    arguments = tuple(np.int32(a) if isinstance(a, int) else a for a in arguments)
    if not gpu:
        kernel = cuda_on_cpu.load(code, [name], watch=watch).get_function(name)
        return kernel(grid, block, arguments, order=order, seed=seed)
    on_gpu = tuple(xp.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments)
    xp.RawModule(code=code, name_expressions=[name]).get_function(name)(grid, block, on_gpu)
    for array, moved in zip(arguments, on_gpu):
        if isinstance(array, np.ndarray):
            array[...] = xp.asnumpy(moved)


gpu = backend.device("auto") == "cuda"
xp = importlib.import_module("cupy" if gpu else "numpy")  # whose arrays the kernels work on
if not gpu:
    if cuda_on_cpu.compiler() is None:
        raise UsageError("no GPU, and no g++ on Linux: nothing is run, and the outputs stored below stay.")
    backend.launch = Launches(order="shuffled")  # minimask's own kernels; each launch in an order of its own
print("kernels run on", "the GPU" if gpu else "the CPU, thread by thread")

# %% [markdown]
# ## Which thread computes which output
#
# A kernel is a function that many threads run at once. They come in **blocks**, and each thread knows where
# it stands: `blockIdx` says which block it is in, `threadIdx` which thread of the block it is, and
# `gridDim` and `blockDim` how many blocks, and threads per block, there are. From these it works out which
# part of the work is its own. The smallest useful kernel is a loop that starts at the thread's number and
# advances by the number of all threads, so that any number of threads does all the work:

# %%
# alt: Three grids of 3 x 3 bins, one for each channel, whose 27 cells name the block, thread and turn that
#   compute each output k. Block 0 takes 0 to 7 and block 1 takes 8 to 15; in a second turn block 0 takes 16
#   to 23 and block 1 the last three.
WHO = """
__global__ void who(int* block, int* thread, int* turn, int n) {
    int turns = 0;
    for (int k = blockIdx.x * blockDim.x + threadIdx.x; k < n; k += gridDim.x * blockDim.x) {
        block[k] = blockIdx.x;
        thread[k] = threadIdx.x;
        turn[k] = turns++;
    }
}
"""

channels, bins, blocks, threads = 3, 3, 2, 8
block, thread, turn = (np.full(channels * bins * bins, -1, np.int32) for _ in range(3))
launch(WHO, "who", (blocks,), (threads,), block, thread, turn, block.size)  # 27 outputs
_, panels = plt.subplots(1, channels, figsize=(3 * channels, 3.2), layout="constrained", squeeze=False)
for c, axes in enumerate(panels[0]):
    axes.set(title=f"channel {c}", xticks=range(bins), yticks=range(bins), xlabel="bin j")
    axes.set(xlim=(-0.5, bins - 0.5), ylim=(bins - 0.5, -0.5), aspect="equal")
    for i, j in np.ndindex(bins, bins):
        k = (c * bins + i) * bins + j
        colour, alpha = (BLUE, ORANGE)[block[k] % 2], 0.75 if turn[k] == 0 else 0.35
        axes.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fc=colour, ec="white", alpha=alpha))
        text = f"k = {k}\nblock {block[k]}\nthread {thread[k]}\nturn {turn[k]}"
        axes.text(j, i, text, ha="center", va="center", fontsize=7)
panels[0, 0].set(ylabel="bin i")
plt.show()

# %%
number = np.arange(block.size)
assert np.array_equal(number % (blocks * threads), block * threads + thread)  # who takes which output
assert np.array_equal(turn, number // (blocks * threads))

# %% [markdown]
# These are the 27 outputs of RoIAlign for one RoI: 3 channels of 3 x 3 bins, `k = (c * 3 + i) * 3 + j`.
# Block 0 (blue) takes eight outputs, block 1 (orange) the next eight, and in a second turn (paler) both go
# on: block 0 with outputs 16 to 23, block 1 with the three that are left, from 24 on.
#
# Now minimask's own kernel. It has the same loop, twice: the blocks of `blockIdx.x` share out the RoIs, and
# those of `blockIdx.y`, with their threads, the outputs of one RoI. The body is what notebook 05 says: for
# each sampling point the four pixels around it, and then the mean.

# %%
CU = Path(align.__file__).with_name("roi_align.cu").read_text(encoding="utf-8")


def cuda(name):
    """One function of roi_align.cu, with the comment above it."""
    end = re.search(rf"\b{name}\([^;]*?\) \{{\n", CU).start()
    begin = CU.rindex("\n\n", 0, end) + 2
    return Markdown(f"```cpp\n{CU[begin : CU.index(chr(10) + '}', end) + 2]}\n```")


cuda("roi_align_forward")

# %% [markdown]
# The host, which is to say Python, passes a grid, a block and the arguments in the order of the source;
# `backend.launch` checks them against it, because a kernel cannot: it sees addresses and no shapes. (`Maps`
# is a structure with the addresses of all levels of a pyramid, so that one launch serves them all.)

# %%
source(OnDevice.forward, align.one_each)


# %%
def on_the_device(x, boxes, size, gradient, how=backend.reference_only):
    """RoIAlign of one map and its gradient on the device, as NumPy arrays; by default the naive kernels."""
    plan = OnDevice(xp.asarray(boxes), None, (1.0,), Sampling((size, size), 2, True))
    with how():
        y, _ = plan.forward([xp.asarray(x)])
        (gx,) = plan.backward(xp.asarray(gradient), None, [x.shape])
    return backend.to_cpu(y), backend.to_cpu(gx)


x = rng.normal(size=(1, 8, 30, 40))
corner = rng.uniform(0, 12, (20, 2))
boxes = np.concatenate([np.zeros((20, 1)), corner, corner + rng.uniform(10, 18, (20, 2))], axis=1)
boxes[0, 1:] = 3.2, 2.6, 29.4, 24.1
upstream = rng.normal(size=(20, 8, 7, 7))
on_cpu = Tensor(x, requires_grad=True)
y_cpu = F.roi_align(on_cpu, boxes, 7, 1.0, sampling_ratio=2, aligned=True)
y_cpu.backward(upstream)
y, gx = on_the_device(x, boxes, 7, upstream)
print("largest difference to NumPy: forward", f"{np.abs(y - y_cpu.numpy()).max():.0e}", end=", ")
print("backward", f"{np.abs(gx - on_cpu.grad).max():.0e}")
np.testing.assert_allclose(y, y_cpu.numpy(), rtol=0, atol=1e-12)
np.testing.assert_allclose(gx, on_cpu.grad, rtol=0, atol=1e-12)

# %% [markdown]
# ## What a read costs: 32 threads, and pieces of 32 bytes
#
# The hardware runs 32 neighbouring threads as a **warp**: one instruction for all of them at a time. When
# it is a read, memory does not serve 32 numbers but **pieces of 32 bytes**, eight floats each, and a piece
# that several threads want is fetched once. Neighbouring threads that read neighbouring addresses need 4
# pieces for 32 numbers (the reads are *coalesced*); scattered ones need up to 32. What is written or added
# goes by the same pieces.
#
# On the left below is what the first warp of the naive kernel adds to in one instruction of its backward
# pass: the first pixel of each of 32 bins. On the right are the same 32 threads if each takes a *pixel*
# instead, one after the other.

# %%
# alt: Two maps of pixels, 32 columns wide, with the dashed RoI, the pixels of 32 threads, and the pieces of
#   memory that they touch. If a thread takes a bin, the pixels are spread over five rows and 18 pieces; if it
#   takes a pixel, they lie side by side in two rows and 6 pieces.
WIDTH = 40


def pieces(pixels):
    """Pieces of 32 bytes that a warp touches, of a float32 map."""
    return np.unique(np.asarray(pixels) // 8)


one = boxes[0, 1:]
at = (
    one[:2, None, None]
    - 0.5
    + (np.arange(7)[:, None] + [0.25, 0.75]) * ((one[2:] - one[:2]) / 7)[:, None, None]
)
low_u, low_v = np.floor(at).astype(int)  # (7, 2): the left and the upper pixel of each bin's two points
columns, rows = (np.unique([low, low + 1]) for low in (low_u, low_v))
by_bin = (low_v[:, 0, None] * WIDTH + low_u[:, 0]).ravel()[:32]
by_pixel = (rows[:, None] * WIDTH + columns).ravel()[:32]

_, both = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
for axes, pixels, title in zip(both, (by_bin, by_pixel), ("a thread takes a bin", "a thread takes a pixel")):
    for piece in pieces(pixels):
        v, u = divmod(piece * 8, WIDTH)
        axes.add_patch(plt.Rectangle((u - 0.5, v - 0.5), 8, 1, fc=ORANGE, ec="white", alpha=0.5))
    axes.scatter(pixels % WIDTH, pixels // WIDTH, s=14, color=BLUE, zorder=3, label="a thread's pixel")
    axes.add_patch(plt.Rectangle(one[:2] - 0.5, *(one[2:] - one[:2]), fill=False, ec=GREY, ls="--", lw=1.5))
    axes.set(title=f"{title}: {len(pieces(pixels))} pieces for 32 numbers", xlabel="column u", aspect="equal")
    axes.set(xlim=(-0.5, 31.5), ylim=(rows[-1] + 2, -0.5))
both[0].set(ylabel="row v")
both[0].legend(loc="lower center", bbox_to_anchor=(0.5, 0.1))
plt.show()
print("one instruction:", len(pieces(by_bin)), "pieces by bin,", len(pieces(by_pixel)), "by pixel")

# %%
assert len(pieces(by_bin)) >= len(pieces(by_pixel))

# %% [markdown]
# Dashed is the RoI, orange are the pieces that memory hands over. On the left, a row has seven numbers that
# lie a bin's width apart. In the forward pass little can be done about that: an output needs the pixels it
# needs. In the backward pass much can, as we will see.
#
# ## Step 1, forward: compute where to read once
#
# What does the naive thread do for one output? There are four points, and each takes two divisions, two
# roundings, comparisons with the border and four weights; then come 16 reads. All but the values read
# depends on the box and the bin alone, not on the channel; with 256 channels it is computed 256 times. So
# let a thread **keep its bin** and go through the channels.
#
# There is more. The weight of a pixel is that of its row times that of its column, and the points of a bin
# lie on a grid, so 4 rows and 4 columns describe it (two for each point; where points are less than two
# pixels apart, some may coincide, and as in the sparse matrix of notebook 05 they are merged). That is 8
# positions and 8 weights, few enough for registers.

# %%
cuda("roi_align_forward_by_bin")

# %%
with mock.patch.object(backend, "launch", wraps=backend.launch) as launched:
    y, gx = on_the_device(x, boxes, 7, upstream, nullcontext)  # what minimask takes by itself
kernels = [call.args[1] for call in launched.call_args_list]
print(", ".join(kernels))
assert kernels == ["roi_align_forward_by_bin", "roi_align_backward_by_pixel"]
np.testing.assert_allclose(y, y_cpu.numpy(), rtol=0, atol=1e-12)

reads = sum(np.unique([a, a + 1]).size * np.unique([b, b + 1]).size for a in low_v for b in low_u)
print(f"reads for a channel of this RoI: 7 * 7 * 16 = {7 * 7 * 16} by the naive kernel, {reads} by the other")

# %%
assert reads < 7 * 7 * 16

# %% [markdown]
# ## Step 2, backward: who adds to which pixel
#
# Take one RoI and one channel. Let $A$ ($P \times H$) hold the weight of each row of the map in each row of
# bins, and $B$ ($P \times W$) that of each column of the map in each column of bins. Then
#
# $$ Y = A X B^\top, \qquad y_{ij} = \sum_v \sum_u A_{iv} B_{ju} x_{vu}, $$
#
# and for an upstream gradient $G$, as $\partial y_{ij} / \partial x_{vu} = A_{iv} B_{ju}$,
#
# $$ \frac{\partial L}{\partial x_{vu}} = \sum_i \sum_j A_{iv} B_{ju} g_{ij}
# = \sum_i A_{iv} \Big( \sum_j B_{ju} g_{ij} \Big), \qquad G_X = A^\top G B. $$
#
# The sparse matrix of notebook 05 shows it: it is the Kronecker product of the two.

# %%
# alt: Three heat maps. Left, the weights A of seven bins over the rows of the map form a descending
#   staircase. Then the additions to each pixel of the RoI: the naive kernel makes 784, with 2 to a pixel
#   along some rows and columns and 4 where these cross; one thread for each pixel makes 572, one to each.
s = Sampling((7, 7), 2, True)


def matrix(box, height, width):
    """The sparse matrix of one box on a map, as a full one."""
    plan = Plan.build(np.array([[0, *box]]), None, [(1, 1, height, width)], (1.0,), s, np.float64)
    return plan.matrix.toarray()


left, top, right, bottom = one
A = matrix([0, top, 1, bottom], 30, 1)[::7]  # of a map of one column: bins (i, 0)
B = matrix([left, 0, right, 1], 1, 40)[:7]  # of a map of one row: bins (0, j)
np.testing.assert_allclose(np.kron(A, B), matrix(one, 30, 40), atol=1e-15)
G = upstream[0, 0]
np.testing.assert_allclose((np.kron(A, B).T @ G.ravel()).reshape(30, 40), A.T @ G @ B, atol=1e-14)

_, three = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained", width_ratios=(1, 1.3, 1.3))
naive = np.zeros((30, 40), int)
for v in (low_v, low_v + 1):
    for u in (low_u, low_u + 1):
        np.add.at(naive, (v.ravel()[:, None], u.ravel()), 1)
weights = three[0].imshow(A, aspect="auto", cmap="cividis")
plt.colorbar(weights, ax=three[0], label="weight")
three[0].set(title="A: weights of the rows", xlabel="row v", ylabel="bin i")
for axes, count, title in (
    (three[1], naive, "naive"),
    (three[2], (naive > 0).astype(int), "one thread for each pixel"),
):
    picture = axes.imshow(count[: rows[-1] + 2, : columns[-1] + 2], cmap="cividis", vmin=0, vmax=naive.max())
    axes.set(title=f"{title}: {count.sum()} additions", xlabel="column u")
three[1].set(ylabel="row v")
plt.colorbar(picture, ax=three[1:], label="additions to a pixel", ticks=range(naive.max() + 1))
plt.show()

# %%
assert naive.sum() == 7 * 7 * 16 and (naive > 0).sum() < naive.sum()

# %% [markdown]
# The naive backward kernel sends 784 additions to memory for one channel of this RoI, but only 572 pixels
# are touched. If a thread takes a **pixel** and first computes its $\sum_i A_{iv} \sum_j B_{ju} g_{ij}$, one
# addition per pixel is enough, and neighbouring threads add to neighbouring addresses: that is the right
# half of the figure of pieces above. What such a thread needs are the columns of $A$ and $B$. They are
# computed once for a RoI and all of its threads, and this is what **shared memory** is for, which all
# threads of a block see.

# %%
cuda("roi_align_backward_by_pixel")

# %%
print("largest difference to NumPy:", f"{np.abs(gx - on_cpu.grad).max():.0e}")
np.testing.assert_allclose(gx, on_cpu.grad, rtol=0, atol=1e-12)

# %% [markdown]
# There are two things in it that the forward pass did not need: `atomicAdd` and `__syncthreads()`. Both
# prevent **races**.
#
# ## Races
#
# Several RoIs have read the same pixel, so their threads must add to the same address. `x += 1` is three
# steps: read, add, write. Two threads can do this:

# %%
# alt: Timeline of two threads that each add 1 to the same number. Thread 0 reads 5, thread 1 reads 5 as well
#   before thread 0 has written its 6, and in the end thread 1 writes 6, too: an addition is lost.
_, axes = plt.subplots(figsize=(8, 1.9), layout="constrained")
for row, (name, colour, steps) in enumerate(
    [
        ("thread 0", BLUE, [(0, "read 5"), (2, "5 + 1"), (3, "write 6")]),
        ("thread 1", ORANGE, [(1, "read 5"), (4, "5 + 1"), (5, "write 6")]),
    ]
):
    for column, text in steps:
        axes.add_patch(plt.Rectangle((column, row - 0.4), 0.95, 0.8, fc=colour, ec="white", alpha=0.6))
        axes.text(column + 0.475, row, text, ha="center", va="center")
    axes.text(-0.1, row, name, ha="right", va="center")
axes.set(xlim=(-1, 6.2), ylim=(1.6, -0.6), yticks=[], xticks=[], xlabel="time")
axes.set_title("5 + 1 + 1 = 6: an addition is lost")
plt.show()

# %% [markdown]
# Here are 64 threads that all add 1 to the same number, in three ways. The second does the same as the
# first, but makes sure of the bad moment: a **barrier**, `__syncthreads()`, lets no thread go on until all
# threads of the block have reached it, so that all have read before the first one writes.

# %%
ADD = """
__global__ void plain(int* sum) {
    *sum += 1;
}

__global__ void plain_at_a_bad_moment(int* sum) {
    int before = *sum;
    __syncthreads();
    *sum = before + 1;
}

__global__ void atomic(int* sum) {
    atomicAdd(sum, 1);
}
"""
results = {}
for name in ("plain", "plain_at_a_bad_moment", "atomic"):
    for order in ("forward", "reverse", "shuffled"):
        total = np.zeros(1, np.int32)
        launch(ADD, name, (1,), (64,), total, order=order)
        results[name, order] = int(total[0])
    print(
        f"{name:<22}",
        *(f"{order}: {results[name, order]:2}" for order in ("forward", "reverse", "shuffled")),
    )

# %%
assert {results["atomic", o] for o in ("forward", "reverse", "shuffled")} == {64}
assert {results["plain_at_a_bad_moment", o] for o in ("forward", "reverse", "shuffled")} == {1}
if not gpu:
    assert {results["plain", o] for o in ("forward", "reverse", "shuffled")} == {64}

# %% [markdown]
# **The surprise is the first line.** On a GPU nothing says what comes out of it. Here it is 64 each time:
# on the CPU one thread runs after the other, and no order of theirs shows the mistake. A test that compares
# results would pass. So `cuda_on_cpu` does not compare, it *watches*: it knows for every address who
# touched it last, and if two threads did, one of them wrote, and no barrier lies between, then that is a
# race, whatever came out.

# %%
if not gpu:
    for name in ("plain", "atomic"):
        try:
            launch(ADD, name, (1,), (64,), np.zeros(1, np.int32), watch=True)
            print(f"{name}: nothing to object to")
            assert name == "atomic"
        except cuda_on_cpu.KernelError as error:
            print(textwrap.fill(str(error), 90))
            assert name == "plain" and "race" in str(error)

# %% [markdown]
# ## Barriers
#
# The other kind of race concerns shared memory: a thread reads what another one has not written yet. This
# is how a block adds up 64 numbers in six steps, each of which halves how many are left:

# %%
SUM = """
__global__ void block_sum(const float* x, float* y) {
    __shared__ float part[64];
    const int t = threadIdx.x;
    part[t] = x[blockIdx.x * 64 + t];
    __syncthreads();
    for (int half = 32; half > 0; half /= 2) {
        if (t < half) part[t] += part[t + half];
        __syncthreads();
    }
    if (t == 0) y[blockIdx.x] = part[0];
}
"""
without_first = SUM.replace("    __syncthreads();\n    for", "    for")
without_second = SUM.replace("        __syncthreads();\n", "")
numbers = np.arange(128, dtype=np.float32)
sums = {}
versions = {"both barriers": SUM, "first left out": without_first, "second left out": without_second}
for name, code in versions.items():
    for order in ("forward", "reverse", "shuffled"):
        sums[name, order] = np.zeros(2, np.float32)
        launch(code, "block_sum", (2,), (64,), numbers, sums[name, order], order=order)
    print(
        f"{name:<16}",
        "   ".join(f"{order}: {sums[name, order]}" for order in ("forward", "reverse", "shuffled")),
    )
right_answer = numbers.reshape(2, 64).sum(axis=1)
assert all(
    (sums["both barriers", order] == right_answer).all() for order in ("forward", "reverse", "shuffled")
)
if not gpu:
    assert (sums["first left out", "reverse"] == right_answer).all()  # by luck
    assert np.isnan(sums["first left out", "forward"]).all()  # fresh shared memory is full of NaN here
    for name in ("first left out", "second left out"):
        try:
            launch(versions[name], "block_sum", (2,), (64,), numbers, np.zeros(2, np.float32), watch=True)
            raise AssertionError("the race was overlooked")
        except cuda_on_cpu.KernelError as error:
            print(textwrap.fill(f"{name}: {error}", 90))

# %% [markdown]
# With either barrier left out, the sum is right in one order of threads, by luck, and wrong in the others:
# this is why minimask's tests run kernels in several orders, and watch them besides. (On a GPU it may well
# come out right, as the 32 threads of a warp mostly go in step. Mostly.)
#
# Read `roi_align_backward_by_pixel` again: which race does each of its two barriers prevent? We take each
# out and let the watch tell.

# %%
HIDDEN = {
    "first": ("        __syncthreads();       // ", "        // "),
    "second": (
        "s.crossings);\n        __syncthreads();\n        const int pixels",
        "s.crossings);\n        const int pixels",
    ),
}
if not gpu:
    for which, (old, new) in HIDDEN.items():
        assert CU.count(old) == 1
        broken = CU.replace(old, new)
        kernel = cuda_on_cpu.load(broken, ["roi_align_backward_by_pixel<double>"], watch=True)
        kernel = kernel.get_function("roi_align_backward_by_pixel<double>")
        gx = np.zeros(x.shape)
        sizes = np.int32(20), np.int32(1), np.int32(8), align.struct_sampling(s)
        arguments = upstream, boxes, np.uintp(0), align.maps([gx], (1.0,)), *sizes
        try:
            kernel((1, 1), (64,), arguments)  # one block takes all RoIs, one after the other
            raise AssertionError("the race was overlooked")
        except cuda_on_cpu.KernelError as error:
            print(f"without the {which} barrier:")
            print(textwrap.fill(str(error), 90, initial_indent="  ", subsequent_indent="  "))
            for line in re.findall(r"line (\d+)", str(error)):
                print(f"  line {line}: {broken.splitlines()[int(line) - 1].strip()}")

# %% [markdown]
# Both times one thread asks how many pixels a RoI has (`rows.count`) while another one writes that number.
# Without the first barrier, thread 0 is done with its pixels and builds the axes of the *next* RoI while
# thread 1 still works on this one. Without the second, thread 1 may read before the axes of *this* RoI are
# built. Two barriers for one table, one before it is written and one after: this pattern is in every kernel
# that fills shared memory anew in a loop.
#
# ## The same bits in every run
#
# `atomicAdd` loses nothing, but it does not say who comes first, and floating-point addition depends on the
# order: $(a + b) + c \neq a + (b + c)$ in the last digit. So a gradient of RoIAlign that is summed by
# `atomicAdd` is a little different in every run, in every framework, and a training that is repeated with
# the same seed drifts away from the first one. Inside `backend.deterministic()`, minimask turns the work
# around: a thread takes a pixel *of the map*, asks all RoIs in their order whether they reach it, and sums
# alone. One writer, one order.

# %%
cuda("roi_align_backward_ordered")

# %%
# alt: Error of one pixel's gradient, in units of its last place, in 12 runs of two kernels. The deterministic
#   one lies at -3.5 every time; atomicAdd lies there in seven runs, and in the others at different places
#   from -6.5 to -1.5. Neither is ever at 0, the value in float64.
x32, boxes32, count = x.astype(np.float32), np.tile(boxes, (4, 1)).astype(np.float32), 6 if FAST else 12
boxes32[:, 1:] += rng.uniform(-2, 2, (80, 4))
gy32 = rng.normal(size=(80, 8, 7, 7)).astype(np.float32)
runs = {
    "atomicAdd": [on_the_device(x32, boxes32, 7, gy32, nullcontext)[1] for _ in range(count)],
    "deterministic": [on_the_device(x32, boxes32, 7, gy32, backend.deterministic)[1] for _ in range(count)],
}
exact = Tensor(x, requires_grad=True)
F.roi_align(exact, boxes32.astype(np.float64), 7, 1.0, 2, True).backward(gy32.astype(np.float64))
v, u = np.unravel_index(np.abs(exact.grad[0, 0]).argmax(), (30, 40))
_, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
right, unit = exact.grad[0, 0, v, u], np.spacing(np.float32(exact.grad[0, 0, v, u]))
for (name, gradients), marker, colour in zip(runs.items(), "os", (BLUE, ORANGE)):
    different = len({g.tobytes() for g in gradients})
    off = [(float(g[0, 0, v, u]) - right) / unit for g in gradients]
    axes.plot(off, marker, color=colour, label=f"{name}: {different} distinct of {count}", alpha=0.8)
    print(f"{name}: of {count} gradients {different} distinct")
    assert (different == 1) == (name == "deterministic")
    assert max(np.abs(g - exact.grad).max() for g in gradients) < 1e-5 * np.abs(exact.grad).max()
axes.axhline(0, color=GREY, lw=1, label="in float64")
axes.set(xlabel="run", ylabel="error of one pixel's gradient,\nin units of its last place")
axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
plt.show()

# %% [markdown]
# A dot behind a square: at this pixel that run gave what the ordered sum gives; elsewhere in the map even
# such runs differ. Note what the picture does *not* say: that the deterministic sum is more exact. Its error
# is of the same size, only always the same.
#
# And the price? For a map of 200 x 304 pixels and 256 channels, and RoIs of 21 x 21 pixels:

# %%
tiles, groups = (
    -(-200 // 8) * -(-304 // 32),
    256 // 8,
)  # of 32 x 8 pixels; a thread takes a pixel and 8 channels
print(f"{'RoIs':>6} {'questions':>12} {'answers looked at':>18} {'additions, either way':>22}")
for number in (64, 512, 2000):
    questions, looks, additions = (
        tiles * groups * number,
        tiles * 256 * groups * number,
        number * 256 * 21**2,
    )
    print(f"{number:>6} {questions:>12,} {looks:>18,} {additions:>22,}")

# %% [markdown]
# A block of 256 threads has a tile of 32 x 8 pixels. It asks once, for all of them, whether a RoI reaches
# its tile, and it asks about 256 RoIs at a time. But then every thread goes through all the answers, most
# of which are no: that is pixels times RoIs, where the other version has additions for the pixels *of* the
# RoIs alone. Looking at an answer is much cheaper than adding to memory, a few instructions that 32 threads
# run in step; the times are in [docs/kernels.md](../docs/kernels.md). Still, it is work that grows with the
# map, and so minimask does it only where it is asked to.
#
# ## Is the gradient right?
#
# Finite differences do not care where a function is computed. This Function wraps both CUDA kernels, and
# gets the test that all Functions get:


# %%
# alt: Log-log plot of the relative error of the kernels' gradient, against three kinds of finite differences,
#   over the step h. All three fall together just below the line of rounding, from about 0.004 at h = 1e-13 to
#   below 1e-15 at h = 1, and none rises again.
class RoIAlignOnDevice(Function):
    """The CUDA kernels between two copies."""

    def __init__(self, boxes):
        self.boxes = boxes

    def forward(self, x):
        plan = OnDevice(xp.asarray(self.boxes), None, (1.0,), Sampling((3, 3), 2, True))
        self.save(plan, x.shape)
        return backend.to_cpu(plan.forward([xp.asarray(x)])[0])

    def backward(self, gy):
        plan, shape = self.saved
        # forward: Y = A X B^T for each RoI, so gx = the sum over RoIs of A^T gy B
        return backend.to_cpu(plan.backward(xp.asarray(gy), None, [shape])[0])


small = rng.normal(size=(1, 2, 6, 7))
some = np.array([[0, 0.3, 1.2, 5.1, 4.4], [0, -1.0, 2.0, 3.7, 8.0], [0, 2.2, 0.1, 6.9, 5.5]])


def function(x):
    return RoIAlignOnDevice.apply(x, boxes=some)


gradcheck(function, [Tensor(small, requires_grad=True)])
kinds = ("central",) if FAST else ("one-sided", "central", "five points")
errors = tutorial.step_errors(function, [Tensor(small, requires_grad=True)], kinds=kinds)
errors.plot(title="the CUDA kernels of RoIAlign")
plt.show()

# %%
assert errors.best() < 1e-10

# %% [markdown]
# There is no rising slope of $h^2$: RoIAlign is linear in the map, so a difference has no truncation error,
# and only rounding is left.
#
# ## Exercises
#
# Write CUDA. `check` runs your kernel in three orders of threads, watches it, and says what is wrong; a
# thread that misses its arrays is stopped before it reads or writes. (On a GPU it can only look at the
# result.)


# %%
def check(code, name, grid, block, arguments, wanted):
    """Say whether the kernel leaves `wanted` in the last array, in every order, and without a race."""
    for order in ("forward", "reverse", "shuffled"):
        mine = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
        try:
            launch(code, name, grid, block, *mine, order=order, watch=True)
        except cuda_on_cpu.KernelError as error:
            said = str(error)[str(error).find("kernel.cu:") :]  # of the compiler, without its own command
            return print(textwrap.fill("wrong. " + said.replace("kernel.cu: ", "")[:400], 90))
        result = next(a for a in reversed(mine) if isinstance(a, np.ndarray))
        if not np.allclose(result, wanted, rtol=1e-5, atol=1e-6):
            worst = np.unravel_index(
                np.nan_to_num(np.abs(result - wanted), nan=np.inf).argmax(), wanted.shape
            )
            index = ", ".join(str(int(i)) for i in worst)
            return print(
                f"wrong, threads in {order} order: [{index}] is {result[worst]:.6g}, not {wanted[worst]:.6g}"
            )
    print("right" + ("" if gpu else ", in every order and without a race"))


# %% [markdown]
# **1. Channels last.** Turn a map (C, H, W) into (H, W, C): `y[v, u, c] = x[c, v, u]`. The attempt has two
# mistakes, one in the step of its loop and one in an index. When it is right: which of a warp's two
# accesses, the read or the write, is coalesced?

# %%
TRANSPOSE = """
__global__ void transpose(const float* x, float* y, int C, int H, int W) {
    for (int k = blockIdx.x * blockDim.x + threadIdx.x; k < C * H * W; k += blockDim.x) {
        int c = k / (H * W), v = k / W, u = k % W;
        y[(v * W + u) * C + c] = x[k];
    }
}
"""
maps = rng.normal(size=(3, 4, 5)).astype(np.float32)
check(
    TRANSPOSE,
    "transpose",
    (2,),
    (16,),
    (maps, np.zeros((4, 5, 3), np.float32), 3, 4, 5),
    maps.transpose(1, 2, 0),
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# `k += gridDim.x * blockDim.x` (as it is, the two blocks both do nearly all of the work, which is a race,
# though a harmless one), and `v = k / W % H`. The reads are coalesced, for `k` is the address; the writes
# are `C` numbers apart. If `k` counted the outputs instead, it would be the other way round.
#
# </details>
#
# **2. RoIPool, backward.** Each output sends its gradient to the pixel that was its maximum:
# `gx[argmax[k]] += gy[k]`, unless `argmax[k]` is -1.

# %%
POOL = """
__global__ void pool_backward(const float* gy, const int* argmax, float* gx, int n) {
    int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k < n && argmax[k] >= 0) gx[argmax[k]] += gy[k];
}
"""
winners = rng.integers(-1, 12, 100).astype(np.int32)
sent = rng.normal(size=100).astype(np.float32)
wanted = np.bincount(winners[winners >= 0], weights=sent[winners >= 0], minlength=12)
check(POOL, "pool_backward", (4,), (32,), (sent, winners, np.zeros(12, np.float32), 100), wanted)

# %% [markdown]
# <details><summary>Answer</summary>
#
# `atomicAdd(gx + argmax[k], gy[k])`. Or without atomics: a thread for each of the 12 pixels, which goes
# through all `k`. That is the deterministic version, in which 12 threads read 100 numbers each.
#
# </details>
#
# **3. A running sum** in shared memory: `y[t] = x[0] + ... + x[t]` for one block of 64 threads, in six
# steps, `far` = 1, 2, 4, ..., 32: in each, every thread adds what stands `far` places before its own
# number. The attempt has a barrier in each step, and still a race. Whose read meets whose write?

# %%
SCAN = """
__global__ void running_sum(const float* x, float* y) {
    __shared__ float part[64];
    const int t = threadIdx.x;
    part[t] = x[t];
    __syncthreads();
    for (int far = 1; far < 64; far *= 2) {
        if (t >= far) part[t] += part[t - far];
        __syncthreads();
    }
    y[t] = part[t];
}
"""
sixty_four = rng.normal(size=64).astype(np.float32)
check(SCAN, "running_sum", (1,), (64,), (sixty_four, np.zeros(64, np.float32)), np.cumsum(sixty_four))

# %% [markdown]
# <details><summary>Answer</summary>
#
# Within a step, thread `t` writes `part[t]` while thread `t + far` reads it. Read first, wait, then write:
#
# ```cpp
# float before = t >= far ? part[t - far] : 0;
# __syncthreads();
# part[t] += before;
# __syncthreads();
# ```
#
# The barrier must not stand inside the `if`: some threads would never reach it, and the others would wait
# for them. (Try it.)
#
# </details>
#
# **4. RoIAlign of your own**, naive: one box `(x1, y1, x2, y2)` in pixels of a map (C, H, W), P x P bins,
# one sampling point in the middle of each. Each thread takes one output; the box lies well inside the map.
# The attempt rounds to the nearest pixel: it is a kind of RoIPool.

# %%
MINE = """
__global__ void my_roi_align(const float* x, const float* box, float* y, int C, int H, int W, int P) {
    int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= C * P * P) return;
    int c = k / (P * P), i = k / P % P, j = k % P;
    float v = box[1] + (i + 0.5f) * (box[3] - box[1]) / P - 0.5f;
    float u = box[0] + (j + 0.5f) * (box[2] - box[0]) / P - 0.5f;
    y[k] = x[(c * H + (int)(v + 0.5f)) * W + (int)(u + 0.5f)];
}
"""
my_box = np.array([2.3, 1.6, 9.1, 8.7], np.float32)
my_map = rng.normal(size=(2, 11, 12)).astype(np.float32)
wanted = F.roi_align(my_map[None], np.array([[0, *my_box]], np.float32), 3, 1.0, 1, True).numpy()[0]
check(
    MINE, "my_roi_align", (1,), (32,), (my_map, my_box, np.zeros((2, 3, 3), np.float32), 2, 11, 12, 3), wanted
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```cpp
# int top = (int)v, left = (int)u;
# float dv = v - top, du = u - left;
# const float* p = x + (c * H + top) * W + left;
# y[k] = (1 - dv) * ((1 - du) * p[0] + du * p[1]) + dv * ((1 - du) * p[W] + du * p[W + 1]);
# ```
#
# </details>
#
# **5.** The threads of a block all read the same `box`. Is this expensive?
#
# <details><summary>Answer</summary>
#
# No: a warp that reads one address fetches one piece and hands the number to all 32 threads.
#
# </details>
#
# **6.** Why does `roi_align_backward_by_pixel` still need `atomicAdd`, where a thread has a pixel to itself?
#
# <details><summary>Answer</summary>
#
# To itself within its RoI. Other RoIs, in other blocks, reach the same pixel, and no barrier reaches across
# blocks. The deterministic kernel gives a pixel *of the map* to a thread, for all RoIs: no other thread
# adds there.
#
# </details>
#
# **7.** Before it calls `atomicAdd`, a kernel might check whether the number is 0, and save the addition.
# When would that be wrong, and when does it save nothing?
#
# <details><summary>Answer</summary>
#
# It is wrong where the gradient is NaN and the test is written so that NaN counts as 0 (`if (g > 0 || g <
# 0)`): a broken training would look healthy. It saves nothing where only some threads of a warp skip, for
# these wait for the others; all 32 must skip.
#
# </details>
#
# ## Read on
#
# * [docs/kernels.md](../docs/kernels.md): all sources, how they are launched and tested, what each mistake
#   is found by, and what they cost on a GPU.
# * NVIDIA, *CUDA C++ Programming Guide*: hardware, memory, and `__syncthreads()`; *Best Practices Guide*:
#   coalesced access.
# * CuPy's documentation on `RawModule`. K. He and others, *Mask R-CNN*, ICCV 2017, section 3.
#
# Next: [07 Heads and losses](07_heads_and_losses.ipynb), what is done with the 7 x 7.
