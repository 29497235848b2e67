# ruff: noqa: E402, E501

# %% [markdown]
# # 14 Why it is fast
#
# **Time** an hour to read, 2 hours with the exercises; it runs in a minute. **Needs** notebooks 02
# (convolution) and 05 (RoIAlign), Python and NumPy, and threadpoolctl for the steps with threads. No GPU, no
# downloads. If you are in a hurry, you can leave this one out.
#
# "NumPy is a hundred times slower than C++." A loop in Python is; NumPy need not be. minimask is written in NumPy, and all its convolutions together take about
# as long as those of the frameworks, which thousands of people have tuned. This notebook goes from the loop to that point, one step at a time, and measures on *your* machine what each step gains. The numbers in
# the text are those of the machine that made this page; yours appear under the cells when you run them.
#
# Afterwards you can
#
# 1. say, before you write it, how fast an operation can be at best on a given machine, from two measured numbers;
# 2. name the five steps from a loop to that limit, and what each of them makes better use of: the interpreter, the arithmetic units, memory, the processors, and memory again;
# 3. tell why a program is slow: because it waits for memory, waits for Python, computes in the wrong type, or copies.

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
import contextlib
import gc
import time
import tracemalloc
from dataclasses import dataclass
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np

from minimask import Tensor, backend, no_grad, tutorial
from minimask import functions as F
from minimask.backend import reference_only
from minimask.functions.conv_norm import ConvFrozenNorm
from minimask.kernels import convolution, im2col
from minimask.kernels import roi_align as align
from minimask.kernels.geometry import Geometry
from minimask.tutorial import BLUE, GREEN, GREY, ORANGE, RED, source

plt.rcParams["figure.dpi"] = 85
rng = np.random.default_rng(0)
threads = backend.threads()
for key in ("processor", "threads", "blas", "blas_kernel", "numpy"):
    print(f"{key:12} {backend.describe()[key]}")

# %% [markdown]
# ## The idea in a picture
#
# A processor does two things: it computes, and it fetches what it computes with. Each has a top speed, and an operation can be no faster than the slower of the two allows. Let it do $F$ operations (a
# multiplication and an addition count as two) and move at least $M$ bytes: its inputs read once, its outputs written once. On a machine that does $P$ operations and moves $B$ bytes per second it takes at least
#
# $$t \ge \max\left(\frac{F}{P},\; \frac{M}{B}\right), \qquad \text{so its speed is at most} \quad \frac{F}{t} \le \min\left(P,\; B \cdot I\right), \quad I = \frac{F}{M} .$$
#
# $I$ is the *intensity*: operations per byte. Drawn over $I$, this bound is a slope followed by a flat top, a **roofline**. Below the slope are the operations that wait for memory, below the flat part
# those that wait for arithmetic. We measure $P$ with a product of two matrices, and $B$ by copying an array that is too large for the caches. (Other programs take their share, above all of $B$: measure on a quiet machine, and twice. $P$ is what BLAS reaches, not what the maker of the processor promises, so "100 % of $P$" below means as fast as BLAS.)


# %%
# alt: Roofline: speed over intensity, both logarithmic. The bound is a slope that turns into a flat top at a
#   corner, a dashed line; a second, lower one is for one thread. Of four vertical lines, x + y and ReLU, at
#   1/12 and 1/8 operations a byte, meet the slope, a 1x1 and a 3x3 convolution, at 26 and 430, the flat top.
def seconds(run, budget=0.05 if FAST else 0.3):
    """The fastest of several runs, after one that does not count: the one that others disturbed least."""
    run()
    begin, times = time.perf_counter(), []
    while len(times) < 3 or time.perf_counter() - begin < budget:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


@contextlib.contextmanager
def on_threads(count):
    """minimask on so many threads, with BLAS on one thread in each of them."""
    with mock.patch.object(backend.workers, "threads", lambda: count):
        yield


def in_shares(run, total):
    """Call run(begin, end) for a share of the work on each of our threads."""
    backend.parallel(lambda part, parts: run(*backend.share(total, part, parts)))


n = 768 if FAST else 1536
a, b, c = (rng.standard_normal((n, n), np.float32) for _ in range(3))
big = np.zeros((2, 4 if FAST else 24, 1 << 20), np.float32)  # two arrays of 96 MiB


def multiply(begin, end):
    np.matmul(a[begin:end], b, out=c[begin:end])


def copy(begin, end):
    np.copyto(big[1, begin:end], big[0, begin:end])


def speeds(count):
    """P and B: operations and bytes per second."""
    with on_threads(count):
        product = seconds(lambda: in_shares(multiply, n))
        copied = seconds(lambda: in_shares(copy, len(big[0])))
    return 2 * n**3 / product, big.nbytes / copied


# the best of several rounds, as a roof should be
(P1, B1), (P, B) = np.max([[speeds(1), speeds(threads)] for _ in range(1 if FAST else 5)], axis=0)
print(f"one thread:  {P1 / 1e9:6.0f} G operations/s  {B1 / 1e9:6.1f} G bytes/s")
print(f"{threads} threads:   {P / 1e9:6.0f} G operations/s  {B / 1e9:6.1f} G bytes/s")
print(f"the corner is at {P / B:.0f} operations a byte")


def roofline(axes):
    """The bound on the speed over the intensity."""
    intensity = np.logspace(-1.5, 3, 200)
    axes.loglog(
        intensity, np.minimum(P, B * intensity) / 1e9, color="black", lw=2, label=f"all {threads} threads"
    )
    axes.loglog(intensity, np.minimum(P1, B1 * intensity) / 1e9, ":", color="black", label="one thread")
    axes.axvline(P / B, color=GREY, lw=1, ls="--")
    axes.set(xlabel="intensity (operations per byte that must be moved)", ylabel="G operations a second")
    axes.grid(alpha=0.3)


_, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
roofline(axes)
for intensity, name, side in (
    (1 / 12, "x + y", "right"),
    (1 / 8, "ReLU", "left"),
    (26, "1x1 conv.,\n256 to 64", "left"),
    (430, "3x3 conv.,\n256 to 256", "right"),
):
    axes.axvline(intensity, color=BLUE, lw=1)
    place = dict(xytext=(3 if side == "left" else -3, 6), textcoords="offset points", ha=side)
    axes.annotate(name, (intensity, axes.get_ylim()[0]), **place, color=BLUE, fontsize=9)
axes.set_title("The roofline of this machine: memory on the left, arithmetic on the right")
axes.legend(loc=(0.18, 0.84))
plt.show()
assert P / B > 0.25  # adding two arrays waits for memory, on any machine of today

# %% [markdown]
# So a ReLU can reach no more than a few percent of what the processor could compute, however cleverly it is written, and a 3 x 3 convolution could reach all of it. Two rules follow, and
# the rest of the notebook applies them.
#
# * **Right of the corner**: turn the work into matrix products. They are the one thing that somebody has already spent years on for each processor: BLAS, whose speed we have just taken for $P$.
# * **Left of the corner**: move less. Whatever must be done to a number, do it while the number is in the cache anyway.
#
# ## Step by step: one convolution
#
# The layer is a 3 x 3 convolution, 64 to 64 channels, followed by a frozen norm (a scale and a shift per channel) and a ReLU: $y = \max(0,\, s\,(w * x) + t)$. Notebook 02 derived the
# convolution as a list of products $w \cdot x$. We compute this list in five ways. The first is the formula:

# %%
source(im2col.forward_loop, im2col._terms)

# %%
height, width = (40, 56) if FAST else (100, 136)
x = rng.standard_normal((1, 64, height, width), np.float32)
w = rng.standard_normal((64, 64, 3, 3), np.float32) / np.float32(24)
scale, shift = rng.uniform(0.5, 1.5, (2, 64)).astype(np.float32)
mean, var = np.zeros(64, np.float32), np.ones(64, np.float32)
g = Geometry.of(x.shape, w.shape, 1, 1, 1, 1)
operations = 2 * g.patch_size * x.size


def norm_and_relu(y):
    return F.relu(F.frozen_batch_norm(y, scale, shift, mean, var, eps=0.0))


def loops():
    """Only for a corner of the image and four channels: the time is scaled up."""
    small = Geometry.of((1, 4, 6, 6), (4, 4, 3, 3), 1, 1, 1, 1)
    im2col.forward_loop(x[:, :4, :6, :6], w[:4, :4], None, small)
    return 2 * small.patch_size * 4 * 36


def shifted():
    """NumPy without matrix products: each of the 64 x 64 x 9 weights times a shifted copy of a channel."""
    padded = np.pad(x[0], ((0, 0), (1, 1), (1, 1)))
    y = np.zeros_like(x[0])
    for o, c, i, j in np.ndindex(w.shape):
        y[o] += w[o, c, i, j] * padded[c, i : i + height, j : j + width]
    return norm_and_relu(y[None])


def one_matrix():
    """All patches in one matrix, one product."""
    with reference_only():
        return norm_and_relu(F.conv2d(x, w, padding=1))


def blocks():
    """The same for a block of rows at a time."""
    return norm_and_relu(F.conv2d(x, w, padding=1))


def fused():
    """Scale, shift and ReLU are applied to each block before the next one is computed."""
    return F.conv_frozen_norm(x, w, (scale, shift), padding=1)


with no_grad(), on_threads(1), backend.workers.one_thread_blas:
    expected = one_matrix().numpy()
    for way in (shifted, blocks, fused):
        difference = np.abs(way().numpy() - expected).max() / expected.max()
        print(f"{way.__name__:10} differs from one_matrix by {difference:.0e} of the largest value")
        assert difference < 1e-5

# %% [markdown]
# The results agree, so now the time. The loop is timed on a corner of the image and scaled up: the whole layer would take many minutes. The first four ways run on one thread; then
# the other threads join in.

# %%
# alt: Seven bars on a logarithmic axis, the time of one convolution step by step, falling from left to right.
#   Loops in Python take minutes; the drop to NumPy is the largest by far, the next largest that to one matrix
#   product; blocks of rows, threads and fusing add less each. The last bar is the bound F / P.
steps = {}
with no_grad():
    with on_threads(1), backend.workers.one_thread_blas:
        steps["loops in Python"] = seconds(loops) * operations / loops()
        steps["NumPy, without\nmatrix products"] = seconds(shifted, 0)
        steps["im2col:\none product"] = seconds(one_matrix)
        steps["blocks of rows"] = seconds(blocks)
    steps[f"blocks on\n{threads} threads"] = seconds(blocks)
    steps["norm and ReLU\nin the block"] = seconds(fused)
steps["the arithmetic\nalone, F / P"] = operations / P

print(f"{operations / 1e9:.1f} G operations")
before = None
for name, took in steps.items():
    name = name.replace("\n", " ")
    print(
        f"{name:30} {took * 1e3:9.1f} ms {operations / took / 1e9:7.2f} G operations/s"
        + (f" {before / took:7.1f} times the one before" if before else "")
    )
    before = took

_, axes = plt.subplots(figsize=(10.5, 4.4), layout="constrained")
bars = axes.bar(
    list(steps), [t * 1e3 for t in steps.values()], color=[RED, ORANGE, BLUE, BLUE, GREEN, GREEN, GREY]
)
axes.bar_label(bars, [f"{t * 1e3:.3g} ms" if t < 10 else f"{t / 60:.0f} min" for t in steps.values()])
axes.set(
    yscale="log",
    ylabel="time (ms)",
    title=f"One 3x3 convolution of 64 channels at {height} x {width}, with norm and ReLU",
)
axes.tick_params(axis="x", labelsize=8)
plt.show()

took = list(steps.values())
assert took[0] > 20 * took[1] > 60 * took[5]

# %% [markdown]
# Read the bars from left to right. Each step removes a different kind of waste.
#
# 1. **Loops.** They take about a microsecond per product, nearly all of it spent by the interpreter looking up what `*` means for these two objects. It learns the answer, forgets it, and asks again.
# 2. **NumPy without matrix products.** It asks once for a whole channel: hundreds to thousands of times faster. But each multiplication reads and writes $y$ once more: at least 12 bytes for 2 operations. This is
#    far down the roofline's slope, at $I \approx 1/6$.
# 3. **im2col.** The same products become one matrix product $W \cdot \text{patches}$. BLAS keeps a tile of the result in registers while it adds to it, so the arithmetic units no longer wait. This
#    step needs no new hardware and no new language, only a look at the formula. Its price is the matrix of patches: nine copies of the image.
# 4. **Blocks.** Notebook 02 showed how: the patches of a few rows at a time, in a buffer that is used again. How much time this saves depends on the
#    machine's caches; the memory it saves does not.
# 5. **Threads.** Each thread has its own blocks, and calls BLAS for itself *with one thread*. NumPy releases the interpreter's lock inside such calls. Why not give all threads to BLAS? Because then
#    only the product is divided, while copying patches, adding the bias and applying the ReLU stay on one thread.
# 6. **Fused.** The norm's scale goes into the weights once; shift and ReLU are applied to each block while it is in the cache. No separate pass over the output is left.
#
# The last bar is not a program: it is the bound. Here is the code of step 6, which is shorter than one would think.

# %%
source(ConvFrozenNorm, convolution.forward)

# %% [markdown]
# ### How large should a block be?
#
# Notebook 02 tried several sizes, and said why the textbooks' rule (a buffer should fit into a core's second-level cache) need not hold
# in Python. Does it hold for this layer, on one thread and on several?

# %%
# alt: Time of a convolution over the size of its blocks, 1/16 to 64 MiB on a logarithmic axis, on one thread
#   and on all. The smallest blocks are slow; towards larger ones both curves come down, and then they stay
#   low and nearly level. minimask's choice, a dashed line at 8 MiB, stands in the level part.
sizes = 2 ** np.arange(14, 25, 2 if FAST else 1)
with no_grad():
    by_size = {}
    for count in sorted({1, threads}):
        with on_threads(count):
            by_size[count] = []
            for size in sizes:
                with mock.patch.object(convolution, "BLOCK_ELEMENTS", int(size)):
                    by_size[count].append(seconds(fused))

_, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
for (count, times), colour, marker in zip(by_size.items(), (BLUE, GREEN), "os"):
    axes.plot(
        sizes * 4 / 2**20,
        np.array(times) * 1e3,
        marker=marker,
        color=colour,
        label=f"{count} thread{'s' * (count > 1)}",
    )
axes.axvline(convolution.BLOCK_ELEMENTS * 4 / 2**20, color=GREY, ls="--", label="minimask's choice")
axes.set(
    xscale="log",
    ylim=(0, None),
    xlabel="patches of a block (MiB)",
    ylabel="time (ms)",
    title="A convolution by blocks of rows, over their size",
)
axes.legend()
axes.grid(alpha=0.3)
plt.show()
for count, times in by_size.items():
    print(f"{count} thread(s): best at {sizes[np.argmin(times)] * 4 / 2**20:.2f} MiB;", end=" ")
    print(f"smallest / best {times[0] / min(times):.2f}, largest / best {times[-1] / min(times):.2f}")

# %% [markdown]
# (A block has at least one row of the output, and the patches of one row are 0.3 MiB here. So up to 0.5 MiB all blocks are the same, and how the
# points differ there is chance.) The first ratio printed above says what small blocks cost, for the reasons given in 02: many calls of NumPy,
# and short matrix products. Large blocks should cost time, too, as they leave the cache; the second ratio says how much, and it is far less. The best block in Python is larger than the best block in C. Measure before you believe.
#
# ### A step that may not pay: short rows
#
# The mask head convolves RoIs of 14 x 14. Copying the patches of an image with rows this short means copying 14 numbers at a time, and NumPy spends as much time on starting a row as on moving it. Here is a trick:
# lay the padded image out *flat*, rows of 16 one after another. Then the patches of kernel element $(i, j)$ are the flat image, shifted by $16 i + j$: one long copy. At the ends of rows the shifted image
# straddles two rows; these positions, two in sixteen, are computed for nothing, so the product has 16/14 of the operations. Does the trick pay?

# %%
channels = 32 if FAST else 256
flat = np.zeros((channels, 16 * 16 + 2), np.float32)  # padded, and two more for the last shift
padded = flat[:, :256].reshape(channels, 16, 16)
padded[:, 1:-1, 1:-1] = rng.standard_normal((channels, 14, 14), np.float32)
by_rows = np.empty((channels, 9, 14, 14), np.float32)
flat_rows = np.empty((channels, 9, 14 * 16), np.float32)
kernel = rng.standard_normal((channels, 9 * channels), np.float32)


def copy_rows():
    for k, (i, j) in enumerate(np.ndindex(3, 3)):
        by_rows[:, k] = padded[:, i : i + 14, j : j + 14]


def copy_flat():
    for k, (i, j) in enumerate(np.ndindex(3, 3)):
        flat_rows[:, k] = flat[:, 16 * i + j : 16 * i + j + 14 * 16]


copy_rows()
copy_flat()
assert np.array_equal(by_rows, flat_rows.reshape(channels, 9, 14, 16)[..., :14])
with backend.workers.one_thread_blas:
    for name, copying, patches in (("row by row", copy_rows, by_rows), ("flat", copy_flat, flat_rows)):
        patches = patches.reshape(9 * channels, -1)
        first, second = seconds(copying) * 1e6, seconds(lambda patches=patches: kernel @ patches) * 1e6
        print(
            f"{name:10} copies {first:6.0f} us, product {second:6.0f} us, together {first + second:6.0f} us"
        )

# %% [markdown]
# The copy is quicker, the product slower; which of the two matters more depends on the machine and on the number of channels. A trick with a good story is not yet a gain: measure it where it is to be used.
#
# %% [markdown]
# ## The surprise: what does a ReLU cost?
#
# Count operations. The convolution above has 64 x 9 products for each output, 1152 operations; norm and ReLU have 3. Three in a thousand: why bother? Guess their share of
# the *time*, if they are separate passes after the convolution. Then guess the same for a 1 x 1 convolution of 64 channels, such as ResNet-50's blocks have.

# %%
wide = rng.standard_normal((1, 64, 2 * height, 2 * width), np.float32)
shares = {}
with no_grad(), on_threads(1):
    for k in (3, 1):
        wk = rng.standard_normal((64, 64, k, k), np.float32)
        y = F.conv2d(wide, wk, padding=k // 2)
        runs = (
            lambda wk=wk, k=k: F.conv2d(wide, wk, padding=k // 2),
            lambda y=y: norm_and_relu(y),
            lambda wk=wk, k=k: F.conv_frozen_norm(wide, wk, (scale, shift), padding=k // 2),
        )
        # in turn, so that a disturbance meets all three
        product, passes, together = np.min([[*map(seconds, runs)] for _ in range(1 if FAST else 4)], axis=0)
        shares[k] = passes / (product + passes)
        print(
            f"{k} x {k}: convolution {product * 1e3:6.2f} ms, norm and ReLU {passes * 1e3:6.2f} ms; fused, all of it {together * 1e3:6.2f} ms"
        )
        print(
            f"       norm and ReLU: {3 / (2 * 64 * k * k + 3):.1%} of the operations, {shares[k]:.0%} of the time"
        )
assert shares[3] > 2 * 3 / (2 * 64 * 9 + 3) and shares[1] > 2 * 3 / (2 * 64 + 3)

# %% [markdown]
# In norm and ReLU the processor does not notice the operations; it waits for the array to arrive. Fused, the norm's scale costs nothing (it is in the weights), and shift and ReLU are applied while the block is
# still in the cache; even so they are not free, as the last number of the 1 x 1 line shows. (Beside a 3 x 3 convolution
# the gain is so small that it can drown in the noise of the measurement.) This is why frameworks fold batch norms into convolutions, and one reason why compilers such as XLA exist.
#
# ## RoIAlign is a sparse matrix
#
# RoIAlign has no large matrix product in it. It reads the feature map at 2 x 2 points in each bin, interpolates each of them between four pixels, and averages. In loops:

# %%
source(align.roi_align_loop)

# %% [markdown]
# But it is linear in the features: each bin is a weighted sum of at most 16 pixels, and of fewer where its points are so close together that they share some. Write the weights of a bin into a row with one column for each
# pixel. Then the whole layer, for all RoIs, is $Y = A X$ with a sparse matrix $A$ (rows: bins; columns: the pixels, for a pyramid those of all levels) and the features $X$ as (pixels, channels). $A$ does
# not depend on the channel, so the geometry is computed once instead of 256 times. And the backward pass follows at once: $\bar X = A^\top \bar Y$, with the same matrix.

# %%
source(F.roi.RoIAlign)

# %%
# alt: Left, one row of A as a map of pixels: weights in a patch of 3 x 3 pixels at most, one of them above
#   0.6, and 0 around it. Right, bars of times on a logarithmic axis: the loops take by far the longest, the
#   whole layer a small fraction of it; its four parts are shorter still, and the backward pass adds to it.
features = rng.standard_normal((1, 64 if FAST else 256, 100, 136), np.float32)
count = 64 if FAST else 512
corner, side = rng.uniform(0, 600, (count, 2)), rng.uniform(30, 190, (count, 2))
boxes = np.concatenate(
    [np.zeros((count, 1)), corner * [0.8, 0.3], corner * [0.8, 0.3] + side], axis=1
).astype(np.float32)
sampling = align.Sampling((7, 7), 2, True)


def build():
    return align.Plan.build(boxes, None, [features.shape], [0.125], sampling, np.float32).matrix


matrix = build()
pixels_read = len(np.unique(matrix.indices))
print(
    f"A has {matrix.shape[0]} x {matrix.shape[1]} elements and stores {matrix.nnz / matrix.shape[0]:.1f} of a row, not 16: {matrix.nnz / np.prod(matrix.shape):.3%}"
)
print(
    f"{pixels_read / matrix.shape[1]:.0%} of the pixels are read, each by {matrix.nnz / pixels_read:.0f} bins"
)
assert matrix.nnz < 16 * matrix.shape[0]

gy = rng.standard_normal((count, features.shape[1], 7, 7), np.float32)
one = seconds(lambda: align.roi_align_loop(features, boxes[:2], 0.125, sampling), 0) / 2


def forward():
    return F.roi_align(features, boxes, 7, 0.125, 2, True)


def both():
    F.roi_align(Tensor(features, True), boxes, 7, 0.125, 2, True).backward(gy)


columns = np.ascontiguousarray(features[0].reshape(features.shape[1], -1).T)  # X: (pixels, channels)
result = np.empty((count, features.shape[1], 49), np.float32)


def multiply_only():
    align.multiply(matrix, columns, 49, lambda begin, end, product: None)


def multiply_and_move():  # product: (49 bins of some RoIs, channels)
    def move(begin, end, product):
        align.transpose(product.reshape(end - begin, 49, -1), result[begin:end])

    align.multiply(matrix, columns, 49, move)


loop_difference = np.abs(
    forward().numpy()[:2] - align.roi_align_loop(features, boxes[:2], 0.125, sampling)
).max()
multiply_and_move()
assert loop_difference < 1e-4 and np.array_equal(result, forward().numpy().reshape(result.shape))
parts = {
    "loops\n(NumPy over channels)": one * count,
    "all of it": seconds(forward),
    "building A": seconds(build),
    "X: to channels last": seconds(lambda: align.channels_last([features], matrix.indices)),
    "A @ X": seconds(multiply_only),
}
parts["Y: to channels first"] = max(0.0, seconds(multiply_and_move) - parts["A @ X"])
parts["with backward"] = seconds(both)
_, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained", gridspec_kw=dict(width_ratios=[1, 1.3]))
row = matrix[[24]].toarray().reshape(100, 136)  # the middle bin of the first RoI
v, u = np.argwhere(row).T
window = slice(v.min() - 2, v.max() + 3), slice(u.min() - 2, u.max() + 3)
picture = axes[0].imshow(
    row[window], cmap="viridis", extent=(u.min() - 2.5, u.max() + 2.5, v.max() + 2.5, v.min() - 2.5)
)
axes[0].set(title="A row of A: the pixels of one bin", xlabel="column (pixels)", ylabel="row (pixels)")
plt.colorbar(picture, label="weight")
bars = axes[1].barh(
    list(parts), [t * 1e3 for t in parts.values()], color=[RED, GREEN, BLUE, BLUE, BLUE, BLUE, GREEN]
)
axes[1].bar_label(bars, [f" {t * 1e3:.1f} ms" for t in parts.values()])
axes[1].set(xscale="log", xlabel="time (ms)", title=f"{count} RoIs, {features.shape[1]} channels")
axes[1].set_xlim(3e2 * parts["X: to channels last"], 1e4 * max(parts.values()))
axes[1].invert_yaxis()
plt.show()
assert parts["loops\n(NumPy over channels)"] > 3 * parts["all of it"]

# %% [markdown]
# The four blue bars make up most of "all of it". Something is missing: measured one at a time, each finds its data still in the cache, and none of them includes fresh memory for the result. Two of them compute nothing at all: they
# move the features from (channels, pixels) to (pixels, channels), and the result from (bins, channels) to (channels, bins). The product makes up for that: it reads all channels of a pixel in one piece, each
# time a bin needs it. And both can be made cheaper. If there are few boxes, only the pixels that they read are moved (with as many boxes as here, finding out which would cost as much as it saves). How to transpose a matrix quickly is
# shown next.
#
# ### Copy first, then transpose
#
# Both moves are transposes. A RoI's result is a matrix of 49 x 256 for the box head, which has 7 x 7 bins, and of 196 x 256 for the mask head with its 14 x 14. NumPy transposes it in one line,
# `target[:] = matrix.T`. What happens if we first *copy* the matrix, into rows with room at their ends for four more numbers that nobody uses? That is one more pass: guess how much slower it is.


# %%
def transpose(array, target, room=None):
    if room is not None:
        room[:] = array
        array = room
    target[:] = array.T


for bins in (49, 196):
    y, target = rng.standard_normal((bins, 256), np.float32), np.empty((256, bins), np.float32)
    for way, gap in (("direct", None), ("by a copy without a gap", 0), ("by a copy with a gap", 4)):
        room = None if gap is None else np.empty((bins, 256 + gap), np.float32)[:, :256]
        took = seconds(lambda y=y, target=target, room=room: transpose(y, target, room))
        assert np.array_equal(target, y.T)
        apart = (y if room is None else room).strides[0]  # bytes from a row to the next
        sets = len({apart * row // 64 % 64 for row in range(bins)})
        print(
            f"{bins:4} x 256, {way:24}{took * 1e6:5.1f} us; rows {apart} bytes apart: a column lies in {sets:2} sets"
        )

# %% [markdown]
# One more pass, and both are faster, the large matrix by far! `target` is written in order, so the matrix is read column by column: one number of each row, though what enters
# the cache is a *line* of 64 bytes, with the numbers of 15 more columns. The first-level cache consists of *sets* (on most processors 64, each with room for 8 or 12 lines), and a line's address says
# which set it must go to. Rows of 256 floats are 1 KiB, or 16 lines, apart, so a whole column falls into 64 / 16 = 4 sets, with room for 32 or 48 lines. Of 49 rows some do not fit, and of 196 each line is evicted before the next
# column comes to read it. The gap of 16 bytes shifts each row a little: a column spreads over many sets (the table counts them), and its lines stay until the other columns on them have been read, too. (The copy itself goes along
# the rows, where none of this matters. Without a gap it gains nothing: it is the gap that helps, not the copying.)
#
# Sizes that are powers of two are the usual ones in a network, and the worst ones here. The small matrix saves a few microseconds; the layer takes the detour where the matrix is large:

# %%
source(align.transpose)

# %% [markdown]
# ## Every operator on the roofline
#
# Now we put all operators under the roof. For each of them: operations, bytes that must be moved, and the time measured. How close do they come?


# %%
# alt: Eleven operators as marks under the roofline, speed over intensity, both logarithmic. Convolutions and
#   the linear layer stand far right, towards the flat top; sum, ReLU, norm and upsampling at the left,
#   towards the slope, with max pooling farthest below it; RoIAlign stands alone, far below the corner.
@dataclass
class Point:
    """An operator: what it does at least, and how long it took."""

    name: str
    operations: float
    bytes: float
    seconds: float
    colour: str


def of_convolution(name, x_shape, w_shape, colour=GREEN):
    x, w = (rng.standard_normal(shape, np.float32) for shape in (x_shape, w_shape))
    g = Geometry.of(x_shape, w_shape, 1, w_shape[2] // 2, 1, 1)
    vectors = np.ones(w_shape[0], np.float32), np.zeros(w_shape[0], np.float32)
    run = seconds(lambda: F.conv_frozen_norm(x, w, vectors, padding=w_shape[2] // 2))
    outputs = int(np.prod(g.y_shape))
    return Point(name, 2 * g.patch_size * outputs, 4 * (x.size + w.size + outputs), run, colour)


h, v = (25, 34) if FAST else (50, 68)
with no_grad():
    large = rng.standard_normal((1, 256, 2 * h, 2 * v), np.float32)
    other, small = large.copy(), large[:, :, ::2, ::2].copy()
    rows, weights = (
        rng.standard_normal((512, 3136), np.float32),
        rng.standard_normal((1024, 3136), np.float32),
    )
    vectors = [np.ones(256, np.float32)] * 4
    cells = large.size
    points = [
        of_convolution("3x3, 256 channels", (1, 256, h, v), (256, 256, 3, 3)),
        of_convolution("3x3, 64 channels", (1, 64, 4 * h, 4 * v), (64, 64, 3, 3)),
        of_convolution("1x1, 256 > 64", (1, 256, 4 * h, 4 * v), (64, 256, 1, 1)),
        of_convolution("1x1, 1024 > 256", (1, 1024, h, v), (256, 1024, 1, 1)),
        Point(
            "linear, 3136 > 1024",
            2 * 512 * weights.size,
            4 * (rows.size + weights.size + 512 * 1024),
            seconds(lambda: F.linear(rows, weights)),
            GREEN,
        ),
        Point("x + y", cells, 12 * cells, seconds(lambda: F.add(large, other)), ORANGE),
        Point("ReLU", cells, 8 * cells, seconds(lambda: F.relu(large)), ORANGE),
        Point(
            "frozen norm", 2 * cells, 8 * cells, seconds(lambda: F.frozen_batch_norm(large, *vectors)), ORANGE
        ),
        Point(
            "max pool 3x3/2", 9 * cells / 4, 5 * cells, seconds(lambda: F.max_pool2d(large, 3, 2, 1)), ORANGE
        ),
        Point("upsample x 2", cells, 5 * cells, seconds(lambda: F.upsample_nearest(small)), ORANGE),
        Point(
            "RoIAlign",
            2 * matrix.nnz * features.shape[1],
            4 * (pixels_read * features.shape[1] + gy.size + 2 * matrix.nnz),
            parts["all of it"],
            BLUE,
        ),
    ]

print(f"{'operator':22}{'G operations':>13}{'M bytes':>10}{'ms':>9}{'of the bound':>14}")
_, axes = plt.subplots(figsize=(10, 5.4), layout="constrained")
roofline(axes)
for i, p in enumerate(points):
    bound = max(p.operations / P, p.bytes / B)
    print(
        f"{p.name:22}{p.operations / 1e9:13.2f}{p.bytes / 1e6:10.1f}{p.seconds * 1e3:9.2f}{bound / p.seconds:14.0%}"
    )
    intensity, speed = p.operations / p.bytes, p.operations / p.seconds / 1e9
    axes.loglog(intensity, speed, "osD^vP*X<>h"[i], ms=9, color=p.colour, label=p.name, ls="none")
axes.set_title("Where the operators stand under this machine's roof")
axes.legend(fontsize=8, ncols=2, loc="lower right")
plt.show()
assert all(p.operations / p.bytes < 4 for p in points if p.colour == ORANGE)  # these wait for memory
assert all(p.operations / p.bytes > 20 for p in points if p.colour == GREEN)

# %% [markdown]
# The green points should come close to the flat roof and the orange ones close to the slope. (A point *above* the slope is not an error: an array that is still in a cache need not come from memory, and the roof was
# measured with one that does not fit.) Max pooling is the farthest from the slope: it goes through its window's nine elements one pass at a time.
# RoIAlign, blue, is far from both parts of the roof: its bytes count each pixel once, but a pixel is read again for every bin that it is part of, in no order. The distance to the roof is what is left to gain, and the table
# has it in percent. If you want to make minimask faster, start with the operator whose percentage is low *and* whose time is long.
#
# ## Three ways to lose it again
#
# **A float64 slip.** A single number of the wrong type turns an array into float64, and with it everything that follows: twice the bytes, and half as many numbers handled at once. Python's own numbers are
# safe; NumPy's are not.

# %%
numbers = rng.standard_normal((1024, 1024), np.float32)
print("x * 0.5 is", (numbers * 0.5).dtype, "   x * np.sqrt(0.25) is", (numbers * np.sqrt(0.25)).dtype)
assert (numbers * 0.5).dtype == np.float32 and (numbers * np.sqrt(0.25)).dtype == np.float64
double = numbers * np.float64(1)
with on_threads(1), backend.workers.one_thread_blas:
    losses = {
        "product in float64": (seconds(lambda: double @ double), seconds(lambda: numbers @ numbers)),
        "sum in float64": (seconds(lambda: double + double), seconds(lambda: numbers + numbers)),
        "copy, transposed": (seconds(lambda: numbers.T.copy()), seconds(lambda: numbers.copy())),
        "a small product, 16 x 16": (seconds(lambda: numbers[:16, :16] @ numbers[:16, :16]), 2 * 16**3 / P1),
    }
for name, (slow, quick) in losses.items():
    print(f"{name:30} {slow * 1e3:9.3f} ms instead of {quick * 1e3:9.4f} ms: {slow / quick:6.1f} times")
assert losses["product in float64"][0] > 1.3 * losses["product in float64"][1]

# %% [markdown]
# **A copy nobody asked for.** `x.transpose(...)` is free, since it only renames the axes. The bill comes with the first operation that needs memory in order; a transposing copy jumps through memory and is
# many times slower than a plain one. (This one is as bad as it gets: its rows are 4 KiB apart, and a whole column shares a single set of the cache.)
#
# **Small calls.** NumPy needs about a microsecond to find out what to do; for a
# product of 16 x 16 that is more than the work itself (which is $F/P$ here). A network of many small layers is slow in NumPy, and no step of this notebook helps; put several images into one batch.
#
# ## What is saved for the backward pass
#
# Memory decides how large an image can be, and what is kept must be written and read again. A convolution's backward pass reads $x$ and $w$, a ReLU's only where $y > 0$, a frozen norm's only
# its scale. Keeping more than that is waste. Here is what a chain of convolution, norm and ReLU keeps in four cases:

# %%
# alt: Pairs of bars of memory, held after the forward pass and at the peak. A chain of eight layers holds 27
#   MiB with every intermediate kept, 9 MiB with what backward reads, 9 MiB with norm and ReLU fused, and 1.1
#   MiB, a single activation, where nothing trains; each peak is a little higher.
layers = 4 if FAST else 8
image = rng.standard_normal((1, 32, 96, 96), np.float32)
weights = [rng.standard_normal((32, 32, 3, 3), np.float32) * np.float32(0.08) for _ in range(layers)]
constants = [np.ones(32, np.float32), np.zeros(32, np.float32)]


def chain(trained, keep=None):
    """The output of the chain; `keep`, a list, gets every intermediate array, as a tape that holds inputs would."""
    y = Tensor(image)
    for w in (Tensor(w, requires_grad=trained) for w in weights):
        y = F.conv2d(y, w, padding=1)
        for last in (lambda y: F.frozen_batch_norm(y, *constants, *constants[::-1], eps=0.0), F.relu):
            if keep is not None:
                keep.append(y)
            y = last(y)
    return y


def fused_chain():
    y = Tensor(image)
    for w in (Tensor(w, requires_grad=True) for w in weights):
        y = F.conv_frozen_norm(y, w, constants, padding=1)
    return y


def held(run, backward=False):
    """MiB that are still allocated when the output has been computed, and the most on the way."""
    run()  # buffers that stay
    gc.collect()
    tracemalloc.start()
    y = run()
    now = tracemalloc.get_traced_memory()[0]
    if backward:
        y.sum().backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return np.array([now, peak]) / 2**20


everything: list = []
kept = {
    "every intermediate\nkept": held(lambda: (everything.clear(), chain(True, everything))[1], True),
    "what backward\nreads": held(lambda: chain(True), True),
    "norm and ReLU\nfused": held(fused_chain, True),
    "nothing trains": held(lambda: chain(False)),
}
everything.clear()
_, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
positions = np.arange(len(kept))
for offset, index, label, colour in (
    (-0.2, 0, "held after forward", BLUE),
    (0.2, 1, "peak, backward included", ORANGE),
):
    bars = axes.bar(
        positions + offset,
        [k[index] for k in kept.values()],
        0.38,
        label=label,
        color=colour,
        hatch="/" * index,
    )
    axes.bar_label(bars, fmt="%.1f")
axes.set_xticks(positions, list(kept))
axes.set_ylim(0, 1.15 * max(k[1] for k in kept.values()))
axes.set(ylabel="MiB", title=f"{layers} layers; one activation has {image.nbytes / 2**20:.1f} MiB")
axes.legend()
plt.show()
amounts = [k[0] for k in kept.values()]
assert amounts[0] > 2.5 * amounts[1] and amounts[1] > 2 * amounts[3]
assert kept["what backward\nreads"][1] < amounts[0]

# %% [markdown]
# That is three activations per layer, then one, one and none. The second case is minimask: a node of its graph holds what its `backward` reads and nothing else, and the output of one layer's ReLU *is* the input that the next
# convolution saves, the same array. Fusing saves passes, but no memory. And during the backward pass each node is
# freed as soon as it has been used, so the peak is only a few activations above what was held.
#
# ## Fast, and still right
#
# Bugs like to hide in fast code. So each fast path has a plain one beside it (`reference_only` turns the fast ones off), a test compares them, and the gradient is compared with finite differences like any
# other. The derivation is short: with a residual $r$ that is added before the ReLU, $z = s\,(w * x) + t + r$ and $y = \max(0, z)$,
#
# $$\bar z = \bar y \cdot [y > 0], \qquad \bar x = (s w)^\top \bar z, \qquad \bar w = s \cdot (\bar z \star x), \qquad \bar r = \bar z ,$$
#
# where $(s w)^\top$ is the transposed convolution and $\star$ the correlation of notebook 02. Note that $[y > 0]$ stands where you might expect $[z > 0]$: they are the same, so $z$ need not be kept.

# %%
# alt: Relative error over the step h, both logarithmic, in two panels that look the same, the fused layer and
#   the reference. Central differences and five points fall along the rounding line to about 1e-12 and jump
#   near a step of 1e-4 to a few hundredths; one-sided ones rise with h from about 1e-8 on.
arrays = rng.normal(size=(2, 3, 12, 12)), rng.normal(size=(4, 3, 3, 3)), rng.normal(size=(2, 4, 12, 12))
factors = rng.uniform(0.5, 1.5, 4), rng.normal(size=4)


def layer(x, w, r):
    constants = [v.astype(x.dtype) for v in factors]
    return F.conv_frozen_norm(x, w, constants, r, padding=1)


steps = np.logspace(-12, -2.5, 25 if FAST else 61)
fast = tutorial.step_errors(layer, arrays, steps=steps)
with reference_only():
    plain = tutorial.step_errors(layer, arrays, steps=steps)
figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained", sharey=True)
fast.plot(axes[0], "blocks, fused")
plain.plot(axes[1], "reference")
plt.show()
print(f"best agreement with central differences: {fast.best():.0e} (fast), {plain.best():.0e} (reference)")
assert max(fast.best(), plain.best()) < 1e-8

# %% [markdown]
# Both show the same errors. (Central differences have no truncation error here: between two corners of the ReLU the layer is a polynomial of degree two in the step, since $x$ and $w$ move together, and for that they are exact. Their errors follow the rounding line, until the step is so
# large that some ReLU switches.)
#
# ## A yardstick
#
# If PyTorch is installed, compare. In the repository, `python -m tests.benchmarks` does it properly: for every layer of the network, taking turns, and only after comparing the results.

# %%
if importlib.util.find_spec("torch"):
    import torch

    torch.set_num_threads(threads)
    folded = torch.from_numpy(w * scale[:, None, None, None]), torch.from_numpy(shift)
    pixels = torch.from_numpy(x)
    with torch.no_grad():
        theirs = torch.nn.functional.conv2d(pixels, *folded, padding=1).relu_()
        assert np.abs(theirs.numpy() - expected).max() < 1e-4 * expected.max()
        torch_time = seconds(lambda: torch.nn.functional.conv2d(pixels, *folded, padding=1).relu_())
    time.sleep(0.1)  # torch's threads wait for more work, busily
    with no_grad():
        print(f"minimask {seconds(fused) * 1e3:.2f} ms, torch {torch_time * 1e3:.2f} ms")
else:
    print("PyTorch is not installed: no yardstick, and none is needed")

# %% [markdown]
# ## Exercises
#
# **1.** Write a convolution by blocks of rows yourself. `my_blocks` below builds one large matrix of patches; make it build the patches of `rows` output rows at a time. The check compares the result, and how much
# memory is allocated on the way.


# %%
def my_blocks(x, w, rows):
    """3x3, padding 1: (C, H, W), (O, C, 3, 3) -> (O, H, W)."""
    channels, height, width = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    y = np.empty((len(w), height, width), x.dtype)
    for first in range(0, height, height):  # here: all rows at once
        last = height
        patches = np.stack(
            [padded[:, first + i : last + i, j : j + width] for i in range(3) for j in range(3)], axis=1
        )  # (C, 9, rows, W)
        y[:, first:last] = (w.reshape(len(w), -1) @ patches.reshape(channels * 9, -1)).reshape(
            len(w), -1, width
        )
    return y


def check(mine, rows=8):
    """Compare with minimask, and measure how much memory is taken on the way."""
    pixels = rng.standard_normal((32, 100, 136), np.float32)  # of 100 rows, the last block has four
    kernels = w[:32, :32].copy()
    wanted = F.conv2d(pixels[None], kernels, padding=1).numpy()[0]
    tracemalloc.start()
    got = mine(pixels, kernels, rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if got.shape != wanted.shape or np.abs(got - wanted).max() > 1e-4:
        print("not yet: the result differs; does the last block, which may be shorter, have the right rows?")
    elif peak > 4 * pixels.nbytes:
        print(f"right, but it takes {peak / pixels.nbytes:.1f} times the image's memory: not by blocks yet")
    else:
        print(f"right, in {peak / pixels.nbytes:.1f} times the image's memory")


check(my_blocks)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Write `for first in range(0, height, rows):` and `last = min(first + rows, height)`. Nothing else changes.
#
# </details>
#
# **2.** Up to which number of channels $C$ does a 1 x 1 convolution of $C$ to $C$ channels wait for memory on your machine, if nothing is in the cache? And a 3 x 3 convolution?
#
# <details><summary>Answer</summary>
#
# With many pixels the weights do not count. A $k \times k$ convolution does $2 k^2 C^2$ operations per pixel and moves $4 \cdot 2 C$ bytes, so $I = k^2 C / 4$. It waits for memory where this is less than $P / B$, that is for $C < 4 (P / B) / k^2$.
#
# </details>
#
# **3.** The backward pass of the sparse RoIAlign multiplies by $A^\top$. What would be lost if it built $A$ again from the boxes? And the box head and the mask head, which read the same features at 7 x 7
# and 14 x 14, each bring what they read to channels last: what would be gained if they shared it, and at what price?
#
# <details><summary>Answer</summary>
#
# Building $A$ again takes the time of the bar "building A" once more; holding it takes 8 bytes for each stored element, which is much less than the features. If the copy were shared, the time of the bar "X: to channels last" would be
# spent once instead of twice, and so would that of the gradients' way back. The price is memory: a copy of the features would have to stay until the mask head has read it, where now there is a buffer that the next layer
# overwrites; and two layers would have to know of each other.
#
# </details>
#
# **4.** The fused layer saves its output $y$ for the ReLU's backward pass, 4 bytes per number, though it needs only one *bit* of each. When would storing bits save memory, and when not?
#
# <details><summary>Answer</summary>
#
# Not here: $y$ is the next convolution's $x$, which is saved anyway, so a bit mask would come on top. It does where nobody else holds $y$: in front of a layer that does not need its input for the backward pass, for instance because its
# weights are frozen.
#
# </details>
#
# **5.** With $p$ threads, step 5 above is at best $p$ times as fast as step 4. Give all threads to BLAS instead: measure `one_matrix` outside of `on_threads` and `one_thread_blas`. What
# speed-up do you expect, if the matrix product takes a share $q$ of the time?
#
# <details><summary>Answer</summary>
#
# $1 / (1 - q + q / p)$, by Amdahl's law. With $q = 0.5$ and two threads that is 1.33.
#
# </details>
#
# ## Read on
#
# * S. Williams, A. Waterman, D. Patterson, *Roofline: An Insightful Visual Performance Model for Multicore Architectures*, Communications of the ACM 52 (2009).
# * K. Goto, R. van de Geijn, *Anatomy of High-Performance Matrix Multiplication*, ACM Transactions on Mathematical Software 34 (2008): what happens inside `@`.
# * K. Chellapilla, S. Puri, P. Simard, *High Performance Convolutional Neural Networks for Document Processing* (2006): where im2col comes from.
# * A. Lavin, S. Gray, *Fast Algorithms for Convolutional Neural Networks*, CVPR 2016: fewer multiplications for a 3 x 3 convolution (Winograd), at the price of more additions and more memory traffic.
# * In the repository: [docs/performance.md](../docs/performance.md), where the time of the whole network goes, and `tests/benchmarks`.
#
# This is the last notebook. What is left is to build something of your own: [docs/own_data.md](../docs/own_data.md) starts from your photos, [docs/architecture.md](../docs/architecture.md) from the code.
