# ruff: noqa: E402

# %% [markdown]
# # 05 RoIPool and RoIAlign
#
# **Time** an hour and a half to read, 4 hours with pencil, paper and exercises; it runs in half a minute.
# **Needs** notebook 01 (backward passes, and how to check one). The anchors of 04 help, but a box is a box.
# No GPU, no downloads; the last section steps through CUDA code if there is g++ on Linux, and says so if
# there is none.
#
# A detector finds boxes of any size, and its heads want features of *one* size, say 7 x 7. The layer
# between them is a **RoI layer** (RoI: *region of interest*). Mask R-CNN adds two things to its
# predecessor, Faster R-CNN: a branch that draws masks (notebook 07), and a better RoI layer. The one thing
# that makes it better is that it does not round. On COCO that is worth 3.4 points of mask AP, and 5.1 where
# masks have to be accurate (26.4 to 31.5 AP75). This notebook is about why.
#
# Afterwards you can
#
# 1. say by how many pixels each layer is off for a given box, and derive the worst case;
# 2. write RoIAlign as a sparse matrix, and its gradient without differentiating anything;
# 3. explain what `aligned`, `sampling_ratio`, the placement of points and max or average change, and
#    measure it;
# 4. read the CUDA source, because you have stepped through it.

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
import textwrap
from functools import partial
from itertools import groupby
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display
from matplotlib.colors import PowerNorm

from minimask import Tensor, backend, data, exercises, misalign, tutorial
from minimask import functions as F
from minimask.kernels import roi_align as align
from minimask.kernels import roi_pool as pool
from minimask.kernels import roi_warp as warp
from minimask.kernels.roi_align import Plan, Sampling
from minimask.lessons import cuda_on_cpu, explorer, misalign_figures
from minimask.lessons.cuda_on_cpu.launches import Launches
from minimask.lessons.roi_integral import roi_integral, roi_integral_gradient
from minimask.matching import assign_fpn_levels
from minimask.tutorial import BLUE, GREY, ORANGE, RED, source

STRIDE = 16  # input pixels a cell of the feature map

# %% [markdown]
# ## The idea in a picture
#
# Here is a nucleus, and the box that some detector found. Beside it is the *feature map*: the network sees
# the image in cells of `STRIDE` = 16 pixels, as it does behind the paper's C4 backbone. (A real map has
# 1024 channels, computed by 40 layers. We take one channel, the mean brightness of each cell: a RoI layer
# treats all channels alike, and this one we can check by eye.)
#
# The box is 66 pixels wide, which is 4.1 cells, and it begins at 1.6 cells. **What are the features of this
# box?**

# %%
# alt: A microscope image of 160 x 128 pixels beside its feature map of 10 x 8 grey cells, with the same box
#   around a nucleus in both. On the map the edges of the box cut through cells: the left one, at pixel 25,
#   lies between the cell borders at 16 and 32.
image = data.nuclei_sample("val")[8].image[:, 82:210, 6:166].mean(axis=0, dtype=np.float64)  # (128, 160)
height, width = (side // STRIDE for side in image.shape)  # in cells: 8 x 10
cells = image[: height * STRIDE, : width * STRIDE].reshape(height, STRIDE, width, STRIDE).mean(axis=(1, 3))
cells = cells / cells.max()
box = np.array([25.0, 30.0, 91.0, 93.0])  # x1, y1, x2, y2 in pixels

_, both = plt.subplots(1, 2, figsize=(10, 4.7), layout="constrained")
for axes, picture, title in zip(
    both, (image, cells), ("the image, 160 x 128 pixels", f"its feature map, {width} x {height} cells")
):
    axes.imshow(picture, cmap="gray", extent=(0, 160, 128, 0))
    axes.add_patch(plt.Rectangle(box[:2], *(box[2:] - box[:2]), fill=False, ec=ORANGE, lw=2))
    axes.set(title=title, xlabel="input pixels")
    axes.set(xticks=range(0, 161, STRIDE * 2), yticks=range(0, 129, STRIDE * 2))
plt.show()

# %% [markdown]
# Three answers have been given. All of them divide the box into bins, 3 x 3 here. Dotted is the box as the
# detector meant it, divided evenly; in colour is what the layer takes instead. If you run this notebook
# yourself, there are sliders: **move the box** slowly to the right and watch the numbers on the right.

# %%
# alt: Three rows, one for each layer: the box and its 3 x 3 bins on the feature map, and beside it the nine
#   numbers read. RoIPool's bins are up to 17 pixels off and read a nearly even 0.74 to 0.84; RoIWarp's are up
#   to 7 pixels off; RoIAlign's lie exactly on the dotted true bins and read 0.30 to 0.81.
s = Sampling((3, 3), ratio=2, aligned=True)
explorer.explore(cells, box, s, STRIDE)

# %% [markdown]
# * **RoIPool** (Fast R-CNN, 2015) knows whole cells only. It rounds the box to cells, then rounds each bin
#   *outwards* to cells, so that bins overlap, and takes the maximum. The dots are the cells that won: four
#   cells for nine bins. All that is left of the nucleus's shape is a nearly even grey.
# * **RoIWarp** (2016) rounds the box as well, but divides the result evenly, and reads between the cells:
#   by bilinear interpolation at each dot, and then the average of a bin's dots.
# * **RoIAlign** (Mask R-CNN, 2017) rounds nothing.
#
# With the sliders you saw it: the numbers of RoIPool and RoIWarp stay the same for a while, and then jump.
# Without sliders, there is a page for any browser, `explorer.html`: a single file, in which the arrow keys
# move the box to the right, pixel by pixel, until it has passed over one cell.

# %%
right = np.array([1.0, 0.0, 1.0, 0.0])  # by a pixel
steps = np.arange(0, STRIDE, 4 if FAST else 1)
page = explorer.write_page("explorer.html", cells, box + steps[:, None] * right, s, STRIDE)
display(Markdown(f"[{page.name}]({page.name})"))
print(f"{page.stat().st_size / 1e6:.1f} MB\n")
print("what the bin at the top right reads, and by how many pixels the edges of its layer are off:")
at_start = [explorer.reading(name, cells, box, s, STRIDE) for name in explorer.LAYERS]
for step in (0, 5, 12, 13, 14, 15):
    reads = [explorer.reading(name, cells, box + step * right, s, STRIDE) for name in explorer.LAYERS]
    print(
        f"box moved by {step:2}:",
        "   ".join(f"{r.name} {r.values[0, -1]:.4f}, {r.off:4.1f}" for r in reads),
    )

# %%
bins = np.prod(s.output_size)
for read, layer in zip(at_start, ("RoIPool", "RoIWarp", "RoIAlign")):
    most = misalign.bound(layer, max(s.output_size), s.aligned) * STRIDE
    assert read.off <= most + 1e-9 and (layer != "RoIAlign" or read.off < 1e-9)

# %%
assert len(at_start[0].points) <= bins

# %% [markdown]
# ## Rounding, in pixels
#
# Take one axis, in cells: a box from $a = x_1 / s$ to $b = x_2 / s$ with the stride $s$, and $P$ bins.
#
# * **RoIPool** rounds the box, $a' = \mathrm{round}(a)$ and $b' = \mathrm{round}(b)$, so that it has $W =
#   b' - a'$ cells. Bin $k = 0, \dots, P - 1$ takes the cells from $a' + \lfloor k W / P \rfloor$ to $a' +
#   \lceil (k + 1) W / P \rceil$.
# * **RoIWarp** rounds the box likewise; bin $k$ reaches from $a' + k W / P$ to $a' + (k + 1) W / P$.
# * **RoIAlign**: from $a + k (b - a) / P$ to $a + (k + 1) (b - a) / P$.
#
# So there are **two** quantisations, and RoIWarp removes only the second. Here are both, as they stand in
# minimask:

# %%
source(pool.box_pixels, pool.bin_edges)

# %% [markdown]
# By how much can the edge of a bin be off?
#
# * **RoIWarp.** Edge $k$ should be at $(1 - \tfrac kP) a + \tfrac kP b$ and is at $(1 - \tfrac kP) a' +
#   \tfrac kP b'$. The displacement is a weighted mean of $a' - a$ and $b' - b$, and neither exceeds
#   $\tfrac12$. Bound: **half a cell**, 8 pixels at stride 16.
# * **RoIPool.** The same, and then outwards from $k W / P$ to a whole number. $k W / P$ is a multiple of
#   $\tfrac1P$, so that is at most $1 - \tfrac1P$. Bound: $(\tfrac32 - \tfrac1P)$ cells: **21.7 pixels** at
#   stride 16 with 7 bins.
# * **RoIAlign**: 0.
#
# This holds for every box that is at least a cell wide and high, however large. A smaller one is made a
# cell wide, and then its far edge can be off by up to a cell and a half, in RoIWarp as well: [2.5, 2.55]
# becomes [3, 4], whose end lies 1.45 cells too far to the right (23.2 pixels at stride 16).
#
# A bound is worth something if it can be reached. Below are 20,000 random boxes. The positions are not
# taken from the formulas but *from what the layer reads* of a map that holds positions
# (`minimask.misalign.bin_edges`).

# %%
rng = np.random.default_rng(5)
boxes = misalign.random_boxes(rng, 2000 if FAST else 20_000, 1, 20, 32)  # in cells
print("worst displacement of a bin's edge, 7 bins, in input pixels\n")
print("layer      stride 4          stride 8         stride 16         stride 32")
found = []  # for each layer and stride, the box whose bins are off farthest, of the large ones
large = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= 4
for name in misalign.GEOMETRIES:
    line = f"{name:<9}"
    for stride in misalign.STRIDES:
        off = np.abs(misalign.displacements(name, boxes * stride, 7, stride, True)).max(axis=(1, 2, 3))
        bound = misalign.bound(name, 7, True) * stride
        assert 0.9 * bound <= off.max() <= bound + 1e-9
        farthest = boxes[np.where(large, off, 0).argmax()] * stride
        found.append(dict(layer=name, stride=stride, aligned=True, box=farthest))
        line += f"{off.max():6.2f} of {bound:5.2f}   "
    print(line.rstrip())

# %% [markdown]
# Of the boxes that are at least four cells wide and high, this one comes nearest to RoIPool's bound at
# stride 16 with seven bins. Each layer has a row; the dotted lines are where the edges should be.

# %%
# alt: Seven numbered bins along an axis of input pixels, a row for each layer, with dotted lines where their
#   edges should be. RoIPool's bins overlap, and bin 7 begins 21.7 pixels too far to the left; RoIWarp's bins
#   touch, but all begin about 8 pixels too early; RoIAlign's end exactly on the lines.
figure, _ = misalign_figures.bins(dict(options=dict(bins=7), worst=found), None, None)
figure.set_size_inches(11, 5.5)
figure.suptitle(figure.get_suptitle(), fontsize=18)
display(figure)

# %% [markdown]
# `minimask misalign` on the command line draws this figure and measures more, on an image of yours if you
# like, and also for the way the original code read boxes (more on that below).
# [docs/roi_layers.md](../docs/roi_layers.md) has the derivation in full.
#
# ## A ramp, whose right answer is known
#
# Displacements of edges are geometry. What does the layer *read*? Use a map on which we know what is right:
# a **ramp**, where each cell holds the $x$ of its own centre, in pixels. Then whatever a bin reads is a
# place, and it should be the middle of the bin.
#
# RoIAlign's average should be exactly right, for two reasons. Bilinear interpolation reproduces linear
# functions. And the average of a linear function over points that lie symmetrically is its value in the
# middle. Move a box over one stride and look:

# %%
# alt: Error of the place that the middle bin reads, over a shift of the box by 0 to 16 pixels, a line for
#   each of five layers. RoIAlign's average stays at 0 and its maximum at 3 pixels; RoIPool falls to -4.4 and
#   leaps to 11.5 at a shift of 12; both RoIWarps are sawtooth lines that leap by about 8 at 3 and 12.
ramp = misalign.ramp_map((12, 16), STRIDE)
start = STRIDE * np.array([3.3125, 2.5625, 8.75, 7.5])  # 53, 41, 140, 120 pixels
fine = 1 / 4 if FAST else 1 / 16
moving = misalign.moved(start, STRIDE, fine)
middle = roi_integral(ramp, moving / STRIDE, 7)[:, 3, 3]  # of the bin in the middle
styles = dict(zip(misalign.LAYERS, [(RED, "-"), (ORANGE, ":"), (ORANGE, "-"), (BLUE, ":"), (BLUE, "-")]))

_, axes = plt.subplots(figsize=(8.5, 4), layout="constrained")
spread = {}
for name, layer in misalign.LAYERS.items():
    error = misalign.reading(layer, ramp, moving, STRIDE, 7)[:, 3, 3] - middle
    spread[name] = np.ptp(error)
    axes.plot(moving[:, 0] - start[0], error, styles[name][1], color=styles[name][0], lw=2, label=name)
axes.set(xlabel="shift of the box, input pixels", ylabel="error of the place it reads, input pixels")
axes.set(title=f"The middle bin of a box {start[2] - start[0]:g} pixels wide that moves over a stride")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
axes.grid(alpha=0.3)
plt.show()
for name, value in spread.items():
    print(f"{name:<17} the error changes by {value:.2g} pixels")

# %%
assert min(spread["RoIPool"], spread["RoIWarp, average"]) > 0.4 * STRIDE
assert spread["RoIAlign, average"] < 1e-11 and spread["RoIAlign, max"] < 1e-11

# %% [markdown]
# (RoIWarp jumps twice, by half a cell each time, because the position of the middle bin depends on both
# edges of the box. RoIPool's maximum, for this box, jumps with the right edge only. From 3 to 12 pixels
# RoIPool's line is hidden behind that of RoIWarp's average.)
#
# There are two kinds of error, and they are not equally bad.
#
# * A **constant** one: on a ramp the maximum is the value of the rightmost points, a quarter of a bin from
#   the middle. RoIAlign's maximum (dotted blue) is off by that much and by nothing else. A head behind the
#   layer learns to live with it, because it is the same share of a bin for every box.
# * A **sawtooth**: RoIPool and RoIWarp are off by an amount that depends on where the box lies *within a
#   cell*, and the features do not say where that is. No head can correct what it cannot see. Whatever it
#   predicts relative to the box, a mask above all, is blurred by it.
#
# ## RoIAlign
#
# A map has values at the cells' centres only. Between four of them we interpolate, first along $x$, then
# along $y$. With $h(t) = \max(0, 1 - |t|)$, the *hat*,
#
# $$f(x, y) = \sum_{v, u} X_{vu}\, h(y - v - \tfrac12)\, h(x - u - \tfrac12) ,$$
#
# where all hats but those of four cells are 0. A bin is the average of $f$ over $n \times n$ points (or the
# maximum).
#
# One thing is missing: **the border**. Boxes reach to the edge of the image. Between the centre of the
# outermost cell and the edge, half a cell away, the sum has only one hat where it needs two: $f$ would fall
# towards 0, to half the cell's value at the edge, as if the image went dark there. So, for a map of $W$
# cells, write $t = x - \tfrac12$, and
#
# $$t \;\to\; \min(\max(t, 0),\, W - 1) \quad\text{if } -1 \le t \le W, \qquad f = 0 \quad\text{otherwise:}$$
#
# the point is **clamped** to the outermost centre, whose value is read up to a whole cell beyond it; what
# lies farther out reads 0. The same holds in $y$. That is all, and here it is in loops (`fractions` says
# where in a bin its points lie, which is the next section's subject):

# %%
source(align.bilinear_loop, align.roi_align_loop, Sampling.fractions)

# %%
# alt: A curve through the values of four cells, straight from centre to centre. With clamping it stays level
#   beyond the outermost centres, at 0.6 on the left and 0.8 on the right, and drops to 0 half a cell outside
#   the map; the sum of hats alone slopes down to 0 there, and has half the value at the map's edge.
CELLS = np.array([0.6, 1.0, 0.3, 0.8])
t = np.linspace(-2, len(CELLS) + 1, 601)
clamped = np.array([align.bilinear_loop(CELLS[None, None], 0.0, u, 1, len(CELLS))[0] for u in t])
hats = np.maximum(1 - np.abs(t[:, None] - np.arange(len(CELLS))), 0)  # (601, 4)
_, axes = plt.subplots(figsize=(8.5, 3.2), layout="constrained")
axes.plot(t + 0.5, hats @ CELLS, "--", color=ORANGE, label="the sum of hats alone")
axes.plot(t + 0.5, clamped, color=BLUE, label="with clamping")
axes.plot(np.arange(len(CELLS)) + 0.5, CELLS, "o", color=BLUE, label="the cells' values")
for edge in (0, len(CELLS)):
    axes.axvline(edge, color=GREY, lw=0.8, ls=":")
axes.set(xlabel="x in cells; dotted: the edges of the map", ylabel="f", title="one row of four cells")
axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %%
inside = (t >= 0) & (t <= len(CELLS) - 1)
assert np.allclose(clamped[inside], (hats @ CELLS)[inside])
assert (clamped[(t > -1) & (t < 0)] == CELLS[0]).all()
assert (clamped[(t > len(CELLS) - 1) & (t < len(CELLS))] == CELLS[-1]).all()
assert not clamped[(t < -1) | (t > len(CELLS))].any()

# %% [markdown]
# ### Where do the points lie?
#
# The paper says "regularly sampled locations", and that the results are not sensitive to where exactly they
# are. That can be read in two ways: as the **centres** of $n \times n$ parts of the bin, $(i +
# \tfrac12)/n$, which torchvision and detectron2 take; or as the inner **crossings** of a grid of $(n+1)
# \times (n+1)$ parts, $(i + 1)/(n + 1)$. minimask has both.

# %%
# alt: Eight squares, each a bin with its n x n sampling points, n from 1 to 4: above in the centres of equal
#   parts, below on the crossings of grid lines. With n = 1 they agree; with n = 4 the outermost centres lie
#   an eighth of the side from the edge, the crossings a fifth.
_, grid = plt.subplots(2, 4, figsize=(11, 6.2), layout="constrained")
for row, placement in zip(grid, ("centers", "crossings")):
    for axes, n in zip(row, (1, 2, 3, 4)):
        parts = n if placement == "centers" else n + 1
        for k in range(parts + 1):
            axes.axhline(k / parts, color=GREY, lw=0.8, ls=":")
            axes.axvline(k / parts, color=GREY, lw=0.8, ls=":")
        at = Sampling((1, 1), n, points=placement).fractions(n)
        axes.plot(*np.meshgrid(at, at), "o", color=BLUE)
        axes.set(
            title=f"{placement}, n = {n}", aspect="equal", xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[]
        )
plt.show()

# %% [markdown]
# Does it matter? The average of points is a numerical **integral**: what it approximates is the mean of the
# surface $f$ over the bin, which `lessons.roi_integral` computes exactly (as a product of two integrals of
# hats, without any points). So let $n$ grow and look at the distance.

# %%
# alt: Log-log plot of the distance from the exact integral over n, the points along a bin, from 1 to 32. Both
#   placements begin at about 0.33; crossings fall like 1 / n to 0.012, centres like 1 / n squared to 0.00025.
texture = rng.normal(size=(12, 16))
room = STRIDE * np.array(texture.shape[::-1]) - 6.0
some = misalign.random_boxes(rng, 60, 2.5 * STRIDE, 7.5 * STRIDE, room)
exact = roi_integral(texture, some / STRIDE, 3)
counts, distance = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32]), {}
_, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for placement, colour, mark in (("centers", BLUE, "o"), ("crossings", ORANGE, "s")):
    layers = [partial(F.roi_align, sampling_ratio=int(n), sampling_points=placement) for n in counts]
    errors = [misalign.reading(layer, texture, some, STRIDE, 3) - exact for layer in layers]
    distance[placement] = np.array([np.sqrt(np.mean(e**2)) for e in errors])
    axes.loglog(counts, distance[placement], mark + "-", color=colour, label=placement)
axes.loglog(counts, 0.25 / counts, ":", color=GREY, label="1 / n")
axes.loglog(counts, 0.2 / counts**2, "--", color=GREY, label=r"$1 / n^2$")
axes.set(
    xticks=counts,
    xticklabels=counts,
    xlabel="n: points along a bin",
    ylabel="distance from the integral (rms)",
    title="Points against the integral, noise with standard deviation 1",
)
axes.legend()
axes.grid(alpha=0.3)
plt.show()
slope = {k: np.polyfit(np.log(counts[4:]), np.log(d[4:]), 1)[0] for k, d in distance.items()}
print("falls with n to the power", {k: round(float(power), 2) for k, power in slope.items()})

# %%
assert -2.3 < slope["centers"] < -1.7 and -1.3 < slope["crossings"] < -0.7

# %% [markdown]
# They differ in kind. Centres are the *midpoint rule*, whose error falls as $n^{-2}$. Crossings lie too
# close to the middle, whatever $n$ is: for $f = x^2$ on $[0, 1]$ their mean is $\tfrac13 - \tfrac1{6(n+1)}$
# (do the sum), so the error falls only as $1/n$. They read each bin as if it were smaller. At $n = 2$,
# which the paper and torchvision use, centres are already three times closer to the integral. Does a network
# care? Less than one might think: the crossings' error changes little with where the box lies within a cell.
# (Measured as in the table of RoI layers below, it wobbles by 6 % of the contrast, RoIWarp's by 22 %.)
#
# ### How many points?
#
# `sampling_ratio` fixes $n$; 0 or less takes $n = \lceil \text{bin size in cells} \rceil$, one point per
# cell. A fixed $n = 2$ is right where bins are about two cells wide, and *that is what the pyramid is for*.
#
# ### Which level?
#
# A pyramid (notebook 03) offers four maps, P2 to P5, of strides 4, 8, 16 and 32. Which of them does a box
# read? A box of $w$ by $h$ pixels is $\sqrt{wh} / 2^k$ cells wide and high, on average, on level $k$, whose
# stride is $2^k$. The heads want about as many cells for every box, so $k$ must grow by 1 where the side
# doubles:
#
# $$k = \Big\lfloor 4 + \log_2 \frac{\sqrt{w h}}{224} \Big\rfloor , \qquad \text{clamped to } 2 \dots 5$$
#
# (FPN, equation 1). The 224 is the side of the images on which backbones are trained to classify, and 4 is
# the level that the network without a pyramid, C4, reads; so a box as large as such an image is treated as
# it always was. It has $224 / 16 = 14$ cells there, and a box of nearly twice the side, the largest on its
# level, has 28. With 7 bins that is 2 to 4 cells per bin. Small objects read fine maps, where there is
# something left of them, and large ones coarse maps, whose cells have seen enough of the image.

# %%
source(assign_fpn_levels)

# %%
# alt: Two panels over the side of a square box, 16 to 1024 pixels. Left, the level it reads is a staircase
#   from 2 to 5 with steps at 112, 224 and 448. Right, the cells per bin are a sawtooth between 2 and 4; only
#   boxes below 56 pixels have fewer, down to 0.6, and the very largest more, up to 4.6.
CANONICAL, LOWEST, HIGHEST = 224.0, 2, 5
side = np.geomspace(16, 1024, 601)
boxes_of_side = np.concatenate([np.zeros((len(side), 2)), np.stack([side, side], axis=1)], axis=1)
level = assign_fpn_levels(boxes_of_side, LOWEST, HIGHEST, CANONICAL)
_, both = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
both[0].semilogx(side, level, ".", ms=3, color=BLUE)
both[0].set(ylabel="level", yticks=range(LOWEST, HIGHEST + 1), title="which level a square box reads")
both[1].semilogx(side, side / 2.0**level / 7, ".", ms=3, color=BLUE)
both[1].axhspan(2, 4, color=ORANGE, alpha=0.25, label="2 to 4")
both[1].set(ylabel="cells per bin (7 bins)", title="and how many cells wide its bins are there", ylim=(0, 5))
both[1].legend()
for axes in both:
    axes.set(xlabel="side of the box in pixels", xticks=(16, 56, 112, 224, 448, 1024))
    axes.set_xticklabels((16, 56, 112, 224, 448, 1024))
    axes.minorticks_off()
plt.show()
for w, h in ((224, 224), (112, 112), (448, 112), (20, 20), (900, 900)):
    (k,) = assign_fpn_levels(np.array([[0.0, 0, w, h]]), LOWEST, HIGHEST, CANONICAL)
    root = np.sqrt(w * h)
    print(
        f"{w:3} x {h:3}: 4 + log2({root:.0f} / {CANONICAL:g}) = {4 + np.log2(root / CANONICAL):.2f} -> P{k}"
    )

# %%
unclamped = (level > LOWEST) & (level < HIGHEST)
cells_a_bin = side / 2.0**level / 7
assert (cells_a_bin[unclamped] >= CANONICAL / 112 - 1e-4).all() and (
    cells_a_bin[unclamped] <= CANONICAL / 56
).all()

# %% [markdown]
# Below 112 pixels there is no finer level to go to, and below 56 bins become smaller than 2 cells: for a
# nucleus of 16 pixels, half a cell. Beyond 896 there is no coarser one. (`maskrcnn_small` keeps the 224; the
# network of notebook 00, whose maps have half the strides, has 112 in its place.) The levels jump, and do
# not depend on anything that is learnt: two boxes that differ by a hair may read different maps. Exercise 9
# is to write this function.
#
# Now read a large box from a fine map all the same, and most cells are never looked at. Where nothing is
# read, no gradient arrives:

# %%
# alt: Three heat maps of the gradient that the cells of a large box receive. Two points along a bin reach 35
#   % of the cells: for centres in small patches, 14 in a row, for crossings in 7 larger ones, with nothing in
#   between. Adaptive sampling reaches every cell, nearly evenly.
large = np.array([8.0, 8.0, 232.0, 168.0])  # on a map of stride 4: bins of 8 x 5.7 cells
x1, y1, x2, y2 = np.rint(large / 4).astype(int)  # in cells
_, grid = plt.subplots(1, 3, figsize=(12, 3.9), layout="constrained")
for axes, (ratio, placement) in zip(grid, ((2, "centers"), (2, "crossings"), (0, "centers"))):
    layer = partial(F.roi_align, sampling_ratio=ratio, sampling_points=placement)
    sent = misalign.gradient(layer, np.zeros((44, 60)), large[None], 4, np.ones((7, 7)))[0]
    share = np.count_nonzero(sent[y1:y2, x1:x2]) / ((y2 - y1) * (x2 - x1))
    shown = axes.imshow(sent, cmap="cividis", norm=PowerNorm(0.4, vmin=0, vmax=0.25))
    axes.set(
        title=f"{'adaptive' if ratio == 0 else f'n = {ratio}'}, {placement}: {share:.0%} of the box read",
        xlabel="cells",
    )
    assert ratio or share == 1  # adaptive: every cell
plt.colorbar(shown, ax=grid, label="gradient of a cell", extend="max", shrink=0.65)
plt.show()

# %% [markdown]
# ## `aligned`: half a cell
#
# torchvision's `roi_align` has an option `aligned`, which is `False` unless one says otherwise; in
# detectron2 it is `True`. What is it? The question is what the coordinate of a box *means*.
#
# * `aligned=True`: a place. Cell $i$ covers the interval $[i, i+1)$, and its value belongs to the middle,
#   $i + \tfrac12$. A box over the whole of an image $W$ cells wide goes from 0 to $W$.
# * `aligned=False`, as in the first implementations: $a = 1.0$ is the *name* of cell 1, whose value is read
#   there: half a cell, 8 pixels at stride 16, too far to the right and down. (In addition, boxes are made
#   one cell wide at least.)
#
# In minimask that is one subtraction, of `shift`:

# %%
source(Sampling.start_and_bin_size)

# %% [markdown]
# To see who is right, no convention is needed, only a **mirror**: flip the map and the box, and the features
# must come out flipped.


# %%
def mirror_error(layer, aligned):
    """What a layer reads of map and box, against the same mirrored; relative to what it reads."""
    rois, far = np.array([[0, *start]]), texture.shape[1] * STRIDE
    flipped = rois[:, [0, 3, 2, 1, 4]] * [1, -1, 1, -1, 1] + [0, far, 0, far, 0]
    maps = texture[None, None]
    y = layer(maps, rois, 7, 1 / STRIDE, aligned=aligned).numpy()
    mirrored = layer(maps[..., ::-1], flipped, 7, 1 / STRIDE, aligned=aligned).numpy()[..., ::-1]
    return np.abs(y - mirrored).max() / np.abs(y).max()


print("                    aligned  original")
for name, layer in misalign.LAYERS.items():
    symmetric, original = mirror_error(layer, True), mirror_error(layer, False)
    print(f"{name:<18} {symmetric:8.0e} {original:9.0e}")
    if name.startswith("RoIAlign"):
        assert symmetric < 1e-13 and original > 0.1

off = misalign.displacements("RoIAlign", start[None], 7, STRIDE, False)
print("\nRoIAlign as the original reads boxes: every edge is off by", np.unique(off.round(9)), "pixels")

# %%
assert (start[2:] - start[:2]).min() < STRIDE or np.allclose(off, STRIDE / 2)  # it widens boxes below a cell

# %% [markdown]
# Why did networks with `aligned=False` work at all? Because the error is a constant, half a cell of the
# level that is read, and the heads get used to it, as they do to that of the maximum. What they cannot get
# used to is a *change*: load weights that were trained with one setting and run them with the other, and
# the AP drops. minimask sets the option to what the checkpoint was trained with, and takes `True` for its
# own networks.
#
# (RoIPool and RoIWarp fail the mirror test a little even when aligned, if they have to round a half:
# $\mathrm{round}(1.5) = 2$, but mirrored in 16 cells $\mathrm{round}(14.5) = 15 \ne 14$. Along $x$,
# where we mirror, this box has no halves.)
#
# ## RoIWarp, or: which of the two is it?
#
# RoIAlign differs from RoIPool in two things: it interpolates, and it does not round. Which one helps?
# RoIWarp is the experiment that tells, since it interpolates *and* rounds. In minimask it is simply the
# aligned RoIAlign of the rounded box:

# %%
source(warp.quantised, F.roi.RoIWarp)

# %% [markdown]
# The table has the paper's results (Table 2c: ResNet-50-C4, stride 16, mask AP on COCO minival) beside what
# we measure here, without any training, on an image of nuclei: how much what a bin reads *wobbles* about
# the exact integral while its box moves over a stride (in % of the image's contrast), what share of
# quarter-pixel steps the layer does not notice, and how far its gradient is from that of the exact
# integral.

# %%
PAPER = {  # mask AP, AP50, AP75
    "RoIPool": (26.9, 48.8, 26.4),
    "RoIWarp, max": (27.2, 49.2, 27.1),
    "RoIWarp, average": (27.1, 48.9, 27.1),
    "RoIAlign, max": (30.2, 51.0, 31.8),
    "RoIAlign, average": (30.3, 51.2, 31.5),
}
nuclei = misalign.image_map(misalign.IMAGE, STRIDE)
sides = np.array(nuclei.shape[::-1])
places = misalign.random_boxes(rng, 3 if FAST else 12, sides / 4, sides / 2, sides) * STRIDE
found = misalign.compare(nuclei, places, STRIDE, 7)
print("                      paper, COCO        measured here, an image of nuclei")
print("                     AP  AP50  AP75      wobble  steps unseen  gradient off by")
for name, ap in PAPER.items():
    m = found[name]
    print(
        f"{name:<18} {ap[0]:.1f}  {ap[1]:.1f}  {ap[2]:.1f}"
        f"{m['wobble']:12.1%} {m['unseen']:13.0%} {m['gradient']:16.0%}"
    )

# %%
warps = [found[name]["wobble"] for name in PAPER if "Warp" in name]
assert min(warps) > 3 * found["RoIAlign, average"]["wobble"] and found["RoIAlign, max"]["unseen"] == 0
# each of a box's four edges jumps once a stride, in steps of a quarter of a pixel
assert min(found[name]["unseen"] for name in list(PAPER)[:3]) > 1 - 1.5 / STRIDE

# %% [markdown]
# Interpolation alone brings 0.2 to 0.3 AP. Not rounding brings 3. Maximum or average: 0.1. Only one of the
# measured columns falls clearly into the same two groups, three layers and two: the **steps unseen**.
# Everything else (the maximum's coarse gradient, its larger error) seems to matter little to a network that
# learns. What matters is whether the layer can see where the box is.
#
# That is an interpretation, from one table. Below we put it to the test.
#
# ## The operator as a sparse matrix
#
# Look at the formula again: $f$ is **linear in the map** $X$. With average aggregation so is each bin: $y_i
# = \sum_j A_{ij} x_j$, where $x$ is the flattened map, with a row of $A$ for each bin and a column for each
# cell. $A$ depends on the boxes and on nothing else; most of it is zero. minimask's RoIAlign builds this
# very matrix (in SciPy's CSR format: the weights, their columns, and where each row begins) and multiplies.
# Even with several images and levels it is *one* matrix: their cells are numbered one after the other.

# %%
# alt: The matrix A as a picture, 18 bins down and 80 cells across, nearly all of it empty. Each bin has
#   weights of up to 0.44 in short runs, in two or three rows of the map; from bin to bin the runs move to the
#   right, so that each box makes slanting stripes.
rois = np.array([[0, *box], [0, 60, 20, 150, 70]])
plan = Plan.build(rois, None, [(1, 1, *cells.shape)], (1 / STRIDE,), s, np.float64)
A = plan.matrix
dense = A.toarray()
points = s.ratio**2  # of a bin
print(f"A: {A.shape[0]} bins x {A.shape[1]} cells, {np.count_nonzero(dense) / dense.size:.0%} of it not zero")
print(f"cells per bin: {A[0].nnz} for the first box and {A[bins].nnz} for the second,", end=" ")
print(f"of {points} * 4 = {4 * points} that the points of a bin read")

figure, axes = plt.subplots(figsize=(11, 3.2), layout="constrained")
shown = axes.imshow(np.ma.masked_equal(dense, 0), cmap="viridis_r", aspect="auto")
axes.axhline(bins - 0.5, color=RED, lw=1)
axes.set_yticks(range(0, 2 * bins, s.output_size[1]))
for k in range(1, height):
    axes.axvline(width * k - 0.5, color=GREY, lw=0.5)
axes.set(
    xlabel="cell, row by row of the map (grey: a row ends)",
    ylabel="bin (below red: second box)",
    title="A: what each bin reads of each cell",
)
figure.colorbar(shown, label="weight")
plt.show()

x = cells.ravel()
y = F.roi_align(cells[None, None], rois, s.output_size, 1 / STRIDE, s.ratio, True).numpy()

# %%
assert np.allclose((A @ x).reshape(y.shape), y, rtol=0, atol=1e-14)
assert np.allclose(align.roi_align_loop(cells[None, None], rois, 1 / STRIDE, s), y, rtol=0, atol=1e-14)
assert np.allclose(A.sum(axis=1), 1)
assert ((dense > 0).sum(axis=1) <= 4 * points).all()

# %% [markdown]
# A bin's four points read four cells each, which would be 16 weights. But these points are less than two
# cells apart and share cells, and a cell that several points read stands in the row once, with the sum of
# its weights. (All bins of a box get room for as many cells as the widest of them needs, so a few of the
# stored weights are 0.)
#
# Each row sums to 1 (an average of averages), and each row is a pattern of stripes: the cells of a bin lie
# in a few rows of the map. Put a row back into the shape of the map, and you see the bin. It is the
# *product* of a vector along $y$ and one along $x$, because bilinear weights are such a product and so is a
# grid of points. (That is how minimask builds $A$: `_read_axis` of `kernels/roi_align/sparse.py` reads each
# axis by itself, and `_outer_product` multiplies.) Below is one bin, as different rules read it.

# %%
# alt: Five small heat maps of what one bin, a white outline, reads of the cells around it. All give most
#   weight to the same cell; adaptive sampling looks the same as two centres, crossings with n = 2 are nearly
#   as concentrated as a single point, and the exact integral spreads widest.
rules = {
    "centers, n = 1": Sampling(s.output_size, 1, True),
    "centers, n = 2": Sampling(s.output_size, 2, True),
    "crossings, n = 2": Sampling(s.output_size, 2, True, "crossings"),
    "adaptive": Sampling(s.output_size, 0, True),
}
rows, columns = s.output_size
i, j = rows // 2, columns // 2  # the bin in the middle
footprints = {}
for name, rule in rules.items():
    matrix = Plan.build(rois, None, [(1, 1, *cells.shape)], (1 / STRIDE,), rule, np.float64).matrix
    footprints[name] = matrix.toarray()[i * columns + j].reshape(cells.shape)
    assert np.linalg.matrix_rank(footprints[name]) == 1
middle = np.zeros(s.output_size)
middle[i, j] = 1  # the gradient of one bin is its row
if rows == columns:  # which the integral is written for
    footprints["exact integral"] = roi_integral_gradient(middle, rois[:1, 1:] / STRIDE, cells.shape)[0]
corner = box[:2] + (box[2:] - box[:2]) * (j / columns, i / rows)
sides = (box[2:] - box[:2]) / (columns, rows)
left, top = (corner + sides / 2) // STRIDE * STRIDE - STRIDE  # of what is shown, four cells a side

figure, grid = plt.subplots(1, len(footprints), figsize=(13, 3.1), layout="constrained")
for axes, (name, footprint) in zip(grid, footprints.items()):
    extent = (0, width * STRIDE, height * STRIDE, 0)
    shown = axes.imshow(footprint, cmap="cividis", vmin=0, vmax=0.5, extent=extent)
    axes.add_patch(plt.Rectangle(corner, *sides, fill=False, ec="white", lw=1.5))
    axes.set(title=name, xlabel="input pixels")
    axes.set(xlim=(left, left + 4 * STRIDE), ylim=(top + 4 * STRIDE, top))
    axes.set(xticks=left + 2 * STRIDE * np.arange(3), yticks=top + 2 * STRIDE * np.arange(3))
figure.colorbar(shown, ax=grid, label="weight", extend="max")
plt.show()

# %% [markdown]
# ### Its transpose is the gradient
#
# Now the backward pass. Given is $\bar y = \partial L / \partial y$, and wanted is $\bar x$. Cell $j$ is
# read by every bin $i$ with the factor $A_{ij}$, so, summing over the readers as always,
#
# $$\bar x_j = \sum_i A_{ij}\, \bar y_i, \qquad \bar x = A^\top \bar y .$$
#
# Nothing was differentiated: a linear map is its own derivative. What forward *gathers* from the cells of a
# bin, backward *scatters* to the same cells, with the same weights. Two things follow at once.
#
# * Boxes overlap, bins share cells: the contributions to a cell are **added**. (`gx[cells] += ...` in NumPy
#   adds only once where an index is repeated. It is *the* classic bug of this layer.)
# * The backward pass needs the boxes, not the features: nothing of the map is saved.
#
# In minimask's `backward`, $A^\top \bar y$ is the call of `multiply` at the end. What stands around it
# deals with the order of numbers in memory. $A$ is the same for all channels, so the channels are the
# columns of a dense matrix, side by side: `bins_first` turns the gradient (R, C, PH, PW) into (R PH PW, C),
# and `write` brings the sums of some cells, (cells, C), back into their maps. (`backend.scratch` is a
# buffer that is kept between calls, `backend.parallel` divides work over threads. For the maximum, $A$ has
# a row for each point, and `spread` is 0 for all points but the winner. A GPU goes its own way,
# `plan.backward`; see below.)

# %%
source(F.roi.RoIAlign, align.backward)

# %% [markdown]
# There is a test for such pairs that needs neither finite differences nor tolerances to speak of. For all
# $v$ and $u$, $\langle A v, u \rangle = \langle v, A^\top u \rangle$: it is the same sum in another order.
# This is the **adjoint test** (or *dot-product test*), and it applies to every linear layer: convolution,
# upsampling, padding, RoIAlign.

# %%
pyramid = [rng.normal(size=(2, 3, 24 // k, 32 // k)) for k in (1, 2, 4)]
many = np.concatenate(
    [rng.integers(0, 2, (50, 1)), misalign.random_boxes(rng, 50, 5, 60, np.array([126.0, 94.0]))], axis=1
)
levels, scales = rng.integers(0, 3, 50), (1 / 4, 1 / 8, 1 / 16)
for points in ("centers", "crossings"):
    for ratio in (0, 1, 2, 5):
        maps = [Tensor(p, requires_grad=True) for p in pyramid]
        y = F.roi_align(maps, many, (7, 5), scales, ratio, True, levels=levels, sampling_points=points)
        u = rng.normal(size=y.shape)
        y.backward(u)
        forward = (y.numpy() * u).sum()
        backward = sum((m.grad * p).sum() for m, p in zip(maps, pyramid))
        size = np.linalg.norm(y.numpy()) * np.linalg.norm(u)
        assert abs(forward - backward) / size < 1e-15
        print(
            f"{points:<10} n = {ratio or 'adaptive':<9}<Av, u> = {forward:+.9f}   <v, A'u> = {backward:+.9f}"
        )

# %% [markdown]
# What does it *not* see? **A wrong $A$.** It compares the backward pass with the forward pass, and if both
# use the same wrong matrix, they agree to the last digit. Here is RoIAlign with half a cell forgotten,
# `aligned=False`; and, since that is an honest option of the layer, a version that nobody could want: each
# box read with $x$ and $y$ exchanged.

# %%
ramp = np.broadcast_to(np.arange(32) + 0.5, (24, 32))[None, None]  # each cell holds the x of its centre
inner = np.array([[0, 6.0, 5, 20, 15]])  # in cells
swapped = inner[:, [0, 2, 1, 4, 3]]
wrong = {
    "right": lambda x: F.roi_align(x, inner, 5, 1.0, 2, True),
    "half a cell forgotten": lambda x: F.roi_align(x, inner, 5, 1.0, 2, False),
    "x and y exchanged": lambda x: F.roi_align(x, swapped, 5, 1.0, 2, True),
}
middle_of_box = (inner[0, 1] + inner[0, 3]) / 2
adjoint, read = {}, {}
for name, layer in wrong.items():
    v = Tensor(np.random.default_rng(5).normal(size=ramp.shape), requires_grad=True)
    y = layer(v)
    u = np.random.default_rng(6).normal(size=y.shape)
    y.backward(u)
    adjoint[name] = (
        abs((y.data * u).sum() - (v.grad * v.data).sum()) / np.linalg.norm(y.data) / np.linalg.norm(u)
    )
    read[name] = layer(ramp).data[0, 0, 2, 2]  # the bin in the middle
    print(
        f"{name:<22} adjoint test off by {adjoint[name]:.0e}; the middle bin reads x = {read[name]:5.2f}",
        f"of {middle_of_box:.2f}",
    )

# %%
assert max(adjoint.values()) < 1e-15
assert np.isclose(read["right"], middle_of_box) and np.isclose(
    read["half a cell forgotten"], middle_of_box + 0.5
)

# %% [markdown]
# All three pass. They would pass a gradient check as well, for the same reason: it asks whether the
# backward pass belongs to the forward pass, not whether the forward pass is what you wanted. *That* takes a
# case whose result one knows, such as the ramp, or an implementation by somebody else.
#
# ## The gradient against finite differences
#
# Finite differences would do, too, and for a linear layer they teach something: there is no truncation
# error at all. A straight line has the slope of its chord, whatever the step $h$. What is left is rounding,
# which falls as $1/h$: the larger the step, the *better*. Only a nonlinear function behind RoIAlign (here a
# sigmoid, as behind the mask head) brings truncation back, so that the two meet. And the maximum is linear
# *in pieces*: the difference is right until the step reaches a point where another cell wins.

# %%
# alt: Three log-log plots of the relative error of finite differences over the step h. For RoIAlign it falls
#   all the way to about 1e-16 at h = 1; with a sigmoid behind it, central differences turn near 1e-5 and rise
#   like h squared; for RoIPool it falls below 1e-12, then leaps to 0.04 at h = 0.001.
steps = np.logspace(-13, 0, 27 if FAST else 53)
tests = {
    "RoIAlign, average: linear": lambda t: F.roi_align(t, rois, 3, 1 / STRIDE, 2, True),
    "sigmoid(4 RoIAlign): curved": lambda t: F.sigmoid(F.roi_align(t, rois, 3, 1 / STRIDE, 2, True) * 4.0),
    "RoIPool: linear in pieces": lambda t: F.roi_pool(t, rois, 3, 1 / STRIDE, aligned=True),
}
figure, grid = plt.subplots(1, 3, figsize=(14, 4.2), sharey=True, layout="constrained")
errors = {}
for axes, (name, function) in zip(grid, tests.items()):
    kinds = ("one-sided", "central") if "sigmoid" in name else ("central",)
    errors[name] = tutorial.step_errors(function, [cells[None, None]], kinds=kinds, steps=steps)
    errors[name].plot(axes, name)
plt.show()

# %%
linear, curved, pieces = (e.errors["central"] for e in errors.values())
assert linear[-3:].max() < 1e-12 < linear[:10].max(), "the larger the step, the better"
assert 1e-13 < curved.min() < 1e-8 and curved[-1] > 1e-2, "truncation and rounding meet in between"
assert pieces[(steps > 1e-6) & (steps < 1e-4)].max() < 1e-9 and pieces[-1] > 1e-2, "right up to a kink"

# %% [markdown]
# ## Where the gradient goes
#
# What does a box teach the map? Send back a 1 from each of 7 x 7 bins, for one box of 87 x 79 pixels, at
# stride 16.

# %%
# alt: Six heat maps of the gradient that one box sends to the cells of a map. The exact integral and
#   RoIAlign's average, off by 3 %, are an even patch under the box; RoIWarp's average, off by 27 %, lies
#   lower; the maxima are uneven, and RoIPool, off by 116 %, reaches scattered cells only.
ones = np.ones((7, 7))
images = {"exact integral": roi_integral_gradient(ones, start[None] / STRIDE, texture.shape)[0]}
for name, layer in reversed(misalign.LAYERS.items()):
    images[name] = misalign.gradient(layer, texture, start[None], STRIDE, ones)[0]

figure, grid = plt.subplots(2, 3, figsize=(12, 6.2), layout="constrained")
for axes, (name, sent) in zip(grid.flat, images.items()):
    extent = (0, texture.shape[1] * STRIDE, texture.shape[0] * STRIDE, 0)
    shown = axes.imshow(sent, cmap="cividis", vmin=0, vmax=2 * images["exact integral"].max(), extent=extent)
    axes.add_patch(plt.Rectangle(start[:2], *(start[2:] - start[:2]), fill=False, ec="white", lw=1.5))
    miss = np.linalg.norm(sent - images["exact integral"]) / np.linalg.norm(images["exact integral"])
    axes.set(
        title=f"{name}: off by {miss:.0%}" if miss else name,
        xticks=range(0, extent[1] + 1, 4 * STRIDE),
        yticks=range(0, extent[2] + 1, 4 * STRIDE),
    )
    assert np.isclose(sent.sum(), ones.size)
for axes in grid[1]:
    axes.set(xlabel="input pixels")
figure.colorbar(shown, ax=grid, label="gradient of a cell", extend="max")
plt.show()

# %% [markdown]
# All six hand on the same total, 49: no layer loses or invents gradient (the rows sum to 1). They differ in
# *whom they tell*. RoIAlign's average tells every cell under the box, in proportion. RoIWarp tells every
# cell under the *rounded* box: here 7 pixels at the top of the box are left out, and 8 pixels below it are
# told what does not concern them. The maxima tell a few, and RoIPool single cells: those that happened to
# be the largest of their bins, of up to six bins at once, while their neighbours hear nothing.
#
# And the box itself? Rounding is a step function, whose derivative is 0 or does not exist: RoIPool and
# RoIWarp, as they are here, *cannot* have a gradient for the box. RoIAlign could, since it is piecewise
# smooth in $x_1, \dots, y_2$. minimask, torchvision and the paper do not use it: proposals are treated as
# given.
#
# ## The experiment: Table 2c in a few seconds
#
# If what matters is where the box lies within a cell, then it should show *without any deep network*. Take
# the simplest mask head there is: a linear function of the 7 x 7 features, fitted by least squares. Its
# input: blobs of random shape, seen through cells of 16 x 16 pixels, with eight channels per cell (the
# first eight cosine coefficients, a stand-in for what a trained backbone keeps of a cell). Its target: the
# mask in the box, 28 x 28, as the paper's head for pyramids has it. Training is one `np.linalg.solve`. The
# RoI layer is the only thing that we change.

# %%
SIDE, MASK, CHANNELS = 160, 28, 8


def encoder():
    """The eight lowest cosine waves of a cell, (C, S, S): the channels are inner products with them."""
    wave = np.cos(np.pi * np.arange(4)[:, None] * (np.arange(STRIDE) + 0.5) / STRIDE)
    order = sorted(np.ndindex(4, 4), key=lambda ij: (sum(ij), ij))[:CHANNELS]
    return np.stack([np.outer(wave[i], wave[j]) for i, j in order]) / STRIDE**2


def blobs(rng, count):
    """Feature maps (N, C, 10, 10), boxes (N, 4) and masks in the boxes (N, 28, 28) of noisy blobs."""
    waves, v, u = encoder(), *(np.indices((SIDE, SIDE)) + 0.5)
    across = SIDE // STRIDE  # cells
    maps, boxes = np.zeros((count, CHANNELS, across, across)), np.zeros((count, 4))
    masks = np.zeros((count, MASK, MASK))
    for n in range(count):
        dx, dy = u - rng.uniform(68, 92), v - rng.uniform(68, 92)
        angle, radius, stretch = np.arctan2(dy, dx), rng.uniform(26, 44), rng.uniform(0.75, 1.33)
        bumps = sum(
            rng.normal(0, 0.16 / np.sqrt(k - 1)) * np.cos(k * angle + rng.uniform(0, 7)) for k in (2, 3, 4, 5)
        )
        mask = np.hypot(dx / stretch, dy * stretch) < radius * (1 + bumps)
        noisy = (mask + rng.normal(0, 0.1, mask.shape)).reshape(across, STRIDE, across, STRIDE)
        maps[n] = np.einsum("aibj,cij->cab", noisy, waves, optimize=True)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x1, y1, x2, y2 = boxes[n] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        at = (np.arange(MASK) + 0.5) / MASK
        masks[n] = mask[np.ix_((y1 + at * (y2 - y1)).astype(int), (x1 + at * (x2 - x1)).astype(int))]
    return maps, boxes, masks


def mask_iou(layer, train, test, penalty=30.0):
    """IoU of each test mask with the one that a linear head predicts from a layer's features."""
    features = []
    for maps, boxes, _ in (train, test):
        rois = np.concatenate([np.arange(len(boxes))[:, None], boxes], axis=1)
        features.append(layer(maps, rois, 7, 1 / STRIDE, aligned=True).numpy().reshape(len(boxes), -1))
    mean, scale = features[0].mean(axis=0), features[0].std(axis=0)
    a, b = (np.c_[(f - mean) / scale, np.ones(len(f))] for f in features)
    weights = np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T @ train[2].reshape(len(a), -1))
    guess, truth = b @ weights > 0.5, test[2].reshape(len(b), -1) > 0.5
    return (guess & truth).sum(axis=1) / (guess | truth).sum(axis=1)


train, test = (
    blobs(np.random.default_rng(1), 700 if FAST else 3000),
    blobs(np.random.default_rng(2), 300 if FAST else 1000),
)
ious = {name: mask_iou(layer, train, test) for name, layer in misalign.LAYERS.items()}
print("                   paper: mask AP  AP75     here: mean IoU   masks with IoU above 0.9")
for name, iou in ious.items():
    print(
        f"{name:<18} {PAPER[name][0]:14.1f} {PAPER[name][2]:5.1f}"
        f"{iou.mean():19.3f} {np.mean(iou > 0.9):16.0%}"
    )

# %%
worst_aligned = min(ious[name].mean() for name in PAPER if "Align" in name)
best_rounded = max(ious[name].mean() for name in PAPER if "Align" not in name)
assert worst_aligned > best_rounded + (0.02 if STRIDE >= 16 else 0)

# %% [markdown]
# The same two groups, and within them nearly the same order: RoIWarp is a little better than RoIPool, and
# RoIAlign is far ahead, while it hardly matters whether one takes the maximum or the average. And the gap
# is widest where masks must be accurate, as it is at AP75. A deep network trained on more than 100,000
# photographs, and a linear function fitted to 3000 blobs, agree on what a RoI layer must not do. It is a
# property of the *layer*, not of the network. (The sizes of the gaps cannot be compared: AP and IoU are
# different scales, and blobs are easier than photographs.)
#
# Is it really the place within a cell? Sort the test boxes by how far rounding moves their edges.

# %%
# alt: Mean mask IoU of five layers over how far rounding moves a box's edges, 2 to 6 pixels. Both lines of
#   RoIAlign stay level at about 0.95; RoIPool and both RoIWarps lie far below and fall together, from about
#   0.91 to 0.88.
edges = test[1] / STRIDE
moved_by = np.abs(np.rint(edges) - edges).mean(axis=1) * STRIDE  # (N,) pixels, mean over the four edges
groups = np.array_split(np.argsort(moved_by), 4 if FAST else 8)
at = [moved_by[group].mean() for group in groups]
lost = {}
_, axes = plt.subplots(figsize=(8.5, 4), layout="constrained")
for name, iou in ious.items():
    means = [iou[group].mean() for group in groups]
    lost[name] = means[0] - means[-1]
    axes.plot(at, means, "o" + styles[name][1], color=styles[name][0], label=name)
axes.set(xlabel="how far rounding moves a box's edges (mean of the four), input pixels", ylabel="mean IoU")
axes.set(title="Masks of a linear head, by how far the box lies from whole cells")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
axes.grid(alpha=0.3)
plt.show()
print("lost from the left to the right:")
for name, value in lost.items():
    print(f"  {name:<17} {value:6.3f}")

# %%
most_of_align = max(lost[name] for name in PAPER if "Align" in name)
assert min(lost[name] for name in PAPER if "Warp" in name) > most_of_align

# %% [markdown]
# RoIAlign does not care where a box lies. The other three get worse the farther rounding moves their boxes,
# all three alike, interpolation or not. They do not reach RoIAlign at the left end either: even there edges
# are moved by 2 pixels on average, and their one head was fitted to boxes that are off by any amount, so
# that it blurs all outlines.
#
# ## The CUDA source, stepped through on the CPU
#
# On a GPU, RoIAlign is not a sparse matrix but a loop whose iterations run at the same time: one **thread**
# for each output. The source is C++ with a few additions; it ships with minimask, and it starts with the
# loop that it replaces:

# %%
cuda_source = Path(align.__file__).with_name("roi_align.cu")
lines = cuda_source.read_text(encoding="utf-8").splitlines()


def cpp(lines):
    """Lines of C++, with its colours."""
    return Markdown("\n".join(["```cpp", *lines, "```"]))


cpp([line for line in lines[: lines.index("struct Maps {") - 2] if line.startswith("//")])

# %% [markdown]
# The kernel is the body of that loop. `blockIdx.x` says which RoI this thread works on, and `k` which of
# its outputs; both loops advance by the size of the whole grid, so that any number of threads does all of
# the work.

# %%
first = next(i for i, line in enumerate(lines) if "__global__ void roi_align_backward(" in line) - 2
cpp(lines[first : lines.index("}", first) + 1])

# %% [markdown]
# Now for something that a GPU cannot do: **stop time**. `minimask.lessons.cuda_on_cpu` compiles this very
# file with g++ and runs its threads one after the other ([docs/kernels.md](../docs/kernels.md) describes
# it), and it can say what a single thread did to memory, line by line. This needs Linux and g++. Without
# them, read the outputs that are stored here *before* you run the cells of this section: they then print
# nothing.

# %%
can_run = cuda_on_cpu.compiler() is not None
print("g++ is there" if can_run else "there is no g++, or no Linux: the cells of this section do nothing")

# %% [markdown]
# One box, 3 x 3 bins, one sampling point in each ($n = 1$). Nine threads; we follow number 4, which has the
# bin in the middle. First forward:

# %%
one = Sampling((3, 3), 1, True)
thread = 4  # of nine
x, upstream = cells[None, None].copy(), np.ones((1, 1, 3, 3))
A1 = Plan.build(rois[:1], None, [x.shape], (1 / STRIDE,), one, np.float64).matrix


def step_through(name, thread, *args, **arrays):
    """Run a kernel of nine threads, and print what one of them does to memory."""
    kernel = cuda_on_cpu.load(cuda_source, [f"{name}<double>"], watch=True).get_function(f"{name}<double>")
    sizes = [np.int32(1)] * 3  # R, N, C
    steps = kernel.trace(
        (1,), (9,), (*args, *sizes, align.struct_sampling(one)), thread_index=(thread,), arrays=arrays
    )
    for number, of_line in groupby(steps, key=lambda step: step.line):
        said = f"line {number}: {lines[number - 1].strip()}"
        print(textwrap.fill(said, 92, subsequent_indent=" " * 10))
        for step in of_line:
            print(f"    {step.kind} {step.array}[{', '.join(map(str, step.index))}]")
    return steps


if can_run:
    level, y = np.zeros(1, np.int32), np.zeros((1, 1, 3, 3))
    maps = align.maps([x], [1 / STRIDE])
    steps = step_through("roi_align_forward", thread, maps, rois[:1], level, y, np.uintp(0), x=x)
    read = [step.index for step in steps if step.array == "x"]
    written = [step.index for step in steps if step.kind == "write"]
    assert len(read) == 4 and written == [(0, 0, *divmod(thread, 3))]
    assert {width * v + u for _, _, v, u in read} == set(A1[thread].nonzero()[1])  # the columns of its row
    np.testing.assert_allclose(y.ravel(), A1 @ x.ravel(), rtol=1e-14)

# %% [markdown]
# It reads its level and its box, then four cells of the map, and writes one number: that is row 4 of the
# matrix $A$ for one point per bin, spelled out. Now backward: it reads one number of the gradient, and
# **adds** to the same four cells.

# %%
if can_run:
    gx = np.zeros_like(x)
    maps = align.maps([gx], [1 / STRIDE])
    steps = step_through("roi_align_backward", thread, upstream, np.uintp(0), rois[:1], level, maps, gx=gx)
    assert [step.index for step in steps if step.kind == "add"] == read
    np.testing.assert_allclose(gx.ravel(), A1.T @ upstream.ravel(), rtol=1e-14)

# %% [markdown]
# Why `atomicAdd`, and not simply `+=`? Because `+=` is three steps (read, add, write), and thread 5 may
# read between 4's read and 4's write; then one of the two contributions is lost. On a GPU this happens now
# and then, in some runs, on some hardware. It is the bug of `gx[cells] += ...` again, made unpredictable.
# `cuda_on_cpu` records who touched what, so it finds the race *in any order*, even one in which the result
# happens to be right:


# %%
def gradient_by_kernel(gy, rois, how, **options):
    """The gradient of the map by the naive kernel, run on the CPU."""
    with mock.patch.object(backend, "launch", Launches(**options)), backend.reference_only():
        (gx,) = align.OnDevice(rois, None, (1 / STRIDE,), how).backward(gy, None, [x.shape])
    return gx


if can_run:
    wrong = cuda_source.read_text(encoding="utf-8")
    wrong = wrong.replace("atomicAdd(gx + pixel[q], weight[q] * share)", "gx[pixel[q]] += weight[q] * share")
    side = max(3, int((box[2:] - box[:2]).max() / STRIDE / 1.5))  # bins so small that neighbours share pixels
    gy, small = np.ones((1, 1, side, side)), Sampling((side, side), 1, True)
    try:
        gradient_by_kernel(gy, rois[:1], small, watch=True, sources={"roi_align": wrong})
    except cuda_on_cpu.KernelError as error:
        print(textwrap.fill(str(error), 90))
        assert "race" in str(error)
    else:
        raise AssertionError("the race was overlooked")

# %% [markdown]
# `atomicAdd` lets the threads in one by one, but in *which* order is up to the hardware, and floating-point
# addition is not associative. So a gradient that is summed in this way differs in the last digits from run
# to run, in every framework. On the CPU we can choose the order:

# %%
if can_run:
    crowd = np.tile(rois[:1], (40, 1)).astype(np.float32)
    crowd[:, 1:] += rng.uniform(-8, 8, (40, 4))
    gy = rng.normal(size=(40, 1, 7, 7)).astype(np.float32)
    sums = {}
    for order in ("forward", "reverse", "shuffled"):
        sums[order] = gradient_by_kernel(gy, crowd, Sampling((7, 7), 2, True), order=order)
        differs = np.abs(sums[order] - sums["forward"]).max() / np.abs(gy).max()
        print(f"threads in {order:<8} order: differs by {differs:.0e}")
        assert differs < 1e-5
    assert not np.array_equal(sums["forward"], sums["reverse"])
    maps = Tensor(np.zeros(x.shape, np.float32), requires_grad=True)
    F.roi_align(maps, crowd, 7, 1 / STRIDE, 2, True).backward(gy)
    np.testing.assert_allclose(maps.grad, sums["forward"], rtol=0, atol=1e-4)

# %% [markdown]
# (minimask on the CPU multiplies by a sparse matrix, whose sums have a fixed order: the same bits in every
# run.)
#
# ## Exercises
#
# **1.** RoIPool, forward. The task says how it rounds. The attempt below is the natural one, and makes two
# mistakes; the check finds one after the other.

# %%
exercises.describe("roi_pool")


# %%
def my_roi_pool(x, rois, output_size, scale):
    ph, pw = output_size
    y = np.zeros((len(rois), x.shape[1], ph, pw))
    for r, roi in enumerate(rois):
        x1, y1, x2, y2 = np.round(roi[1:] * scale).astype(int)
        for i in range(ph):
            for j in range(pw):
                top, bottom = y1 + (y2 - y1) * i // ph, y1 + -(-(y2 - y1) * (i + 1) // ph)
                left, right = x1 + (x2 - x1) * j // pw, x1 + -(-(x2 - x1) * (j + 1) // pw)
                (top, bottom), (left, right) = (
                    np.clip((top, bottom), 0, x.shape[2]),
                    np.clip((left, right), 0, x.shape[3]),
                )
                if bottom > top and right > left:
                    y[r, :, i, j] = x[int(roi[0]), :, top:bottom, left:right].max(axis=(1, 2))
    return y


exercises.check("roi_pool", my_roi_pool)

# %% [markdown]
# **2.** RoIAlign, forward. Something is missing below.

# %%
exercises.describe("roi_align_forward")


# %%
def my_roi_align(x, rois, output_size, scale, sampling_ratio):
    (ph, pw), n, (height, width) = output_size, sampling_ratio, x.shape[2:]
    y = np.zeros((len(rois), x.shape[1], ph, pw))
    for r, roi in enumerate(rois):
        x1, y1, x2, y2 = roi[1:] * scale
        for i, j, a, b in np.ndindex(ph, pw, n, n):
            v = y1 + (i + (a + 0.5) / n) * (y2 - y1) / ph
            u = x1 + (j + (b + 0.5) / n) * (x2 - x1) / pw
            y[r, :, i, j] += align.bilinear_loop(x[int(roi[0])], v, u, height, width) / n**2
    return y


exercises.check("roi_align_forward", my_roi_align)

# %% [markdown]
# **3.** RoIAlign, backward. You have all you need: gather becomes scatter. The attempt takes the matrix,
# which is fine. It looks right, and is not.

# %%
exercises.describe("roi_align_backward")


# %%
def my_roi_align_backward(gy, rois, x_shape, scale, sampling_ratio):
    s = Sampling(gy.shape[2:], sampling_ratio, aligned=True)
    matrix = Plan.build(rois, None, [x_shape], (scale,), s, gy.dtype).matrix
    entries = matrix.tocoo()  # bin entries.row reads cell entries.col with the weight entries.data
    n, channels, height, width = x_shape
    g = gy.transpose(1, 0, 2, 3).reshape(channels, -1)  # (R, C, PH, PW) -> (C, R*PH*PW)
    gx = np.zeros((channels, n * height * width))
    gx[:, entries.col] += entries.data * g[:, entries.row]
    return gx.reshape(channels, n, height, width).swapaxes(0, 1)


exercises.check("roi_align_backward", my_roi_align_backward)

# %% [markdown]
# **4.** On paper: RoIPool's bound is $\tfrac32 - \tfrac1P$ cells. Construct a box that comes within a
# hundredth of a cell of it for $P = 2$, and look at it with `explorer.draw(cells, box)` (2 x 2 bins, `box` in
# pixels).
#
# <details><summary>Answer</summary>
#
# $W$ must be odd, so that rounding $W / 2$ moves it by a half, and both ends must be rounded by almost a
# half, in the same direction. For instance $a = 1.495$, $b = 4.495$: $a' = 1$, $b' = 4$, $W = 3$. The
# second bin begins at $1 + \lfloor 1.5 \rfloor = 2$ and should begin at 2.995: off by 0.995, of at most 1
# cell.
#
# </details>
#
# **5.** Bilinear interpolation of a map that is itself a *bilinear* function, $x y$, is exact. Is
# RoIAlign's average then exact? Its maximum? And for $x^2$?
#
# <details><summary>Answer</summary>
#
# The average: yes, for the points lie symmetrically along each axis, so that the mean of $x y$ over the
# grid is the product of the means, and that is the mean over the bin. The maximum: no, it is the value of
# one of the points. For $x^2$ neither: between two centres the interpolated surface is a chord, above the
# parabola, and the points miss part of the curvature besides. The first of these errors is the map's, not
# the layer's.
#
# </details>
#
# **6.** Tell the linear head of the experiment how far, and in which direction, each of the four edges was
# rounded: four more features. Does RoIWarp come up to RoIAlign? Why not?
#
# <details><summary>Answer</summary>
#
# Hardly. Four additional features raise the mean IoU of RoIWarp's average from 0.896 to 0.899. A linear
# head can only *add* something for each of them, the same to every mask, whatever its features. Let it use
# a feature differently depending on the shift: add the products of the four with all other features, five
# times as many in all. With a penalty ten times as large, which so many features ask for, that gives 0.908
# (and with the old penalty 0.896); RoIAlign has 0.949. So part of what was lost is information, the place
# within a cell, but the head must also learn to undo the shift, and for a layer that knows the box there is
# nothing to undo.
#
# </details>
#
# **7.** The adjoint test of `F.roi_align(..., aggregation="max")` fails. Is its gradient wrong?
#
# <details><summary>Answer</summary>
#
# No: the layer is not linear, so there is no one $A$ for all maps, and the test does not apply. Near a
# given map it *is* linear: there $\langle J v, u \rangle = \langle v, J^\top u \rangle$ holds, where $J v$
# is the difference of outputs over a step so small that no other point wins, divided by that step. The
# finite differences above say the same of RoIPool.
#
# </details>
#
# **8.** How many multiplications does RoIAlign cost for 512 boxes, 256 channels, 7 x 7 bins and $n = 2$,
# and how many does the first layer behind it, a fully connected one of 1024 outputs? Why does RoIAlign take
# noticeable time all the same?
#
# <details><summary>Answer</summary>
#
# At most $512 \cdot 256 \cdot 49 \cdot 16 \approx 10^8$ (fewer where the points of a bin share cells)
# against $512 \cdot (256 \cdot 49) \cdot 1024 \approx 6.6 \cdot 10^9$. But each of RoIAlign's needs its own
# number from a map of many megabytes, in an irregular order, while a matrix product uses each number that
# it loads hundreds of times. RoIAlign is limited by memory. This is why minimask first copies the cells that
# it reads into an order with the channels last: the 256 channels of a cell then lie side by side.
#
# </details>
#
# **9.** Which level does each box read? The attempt is close.

# %%
exercises.describe("assign_levels")


# %%
def my_assign_levels(boxes, canonical, lowest, highest):
    w, h = (boxes[:, 2:] - boxes[:, :2]).T
    levels = 4 + np.log(np.sqrt(np.maximum(w * h, 1e-9)) / canonical)
    return np.clip(np.floor(levels), lowest, highest).astype(int)


exercises.check("assign_levels", my_assign_levels)

# %% [markdown]
# ## Read on
#
# * [docs/roi_layers.md](../docs/roi_layers.md): the five layers, the bounds in full, what `minimask
#   misalign` measures; [docs/kernels.md](../docs/kernels.md): the CUDA sources.
# * K. He, G. Gkioxari, P. Dollár, R. Girshick, *Mask R-CNN*, ICCV 2017: section 3, Table 2c and 2d.
# * R. Girshick, *Fast R-CNN*, ICCV 2015 (RoIPool); J. Dai, K. He, J. Sun, *Instance-aware semantic
#   segmentation via multi-task network cascades*, CVPR 2016 (RoI warping).
# * B. Jiang, R. Luo, J. Mao, T. Xiao, Y. Jiang, *Acquisition of localization confidence for accurate object
#   detection*, ECCV 2018: the exact integral as a layer, with a gradient for the box.
#
# Next: [06 CUDA kernels](06_cuda_kernels.ipynb), the same layer on a GPU, from naive to fast. Those in a
# hurry go straight to [07 Heads and losses](07_heads_and_losses.ipynb).
