# ruff: noqa: E402, E501

# %% [markdown]
# # 12 Keypoints
#
# **Time** an hour to read, 3 hours with pencil, paper and exercises; it runs in under four minutes, most
# of them training. **Needs** notebooks 01 (the tape and the check), 05 (RoIPool and RoIAlign), 07 (heads
# and losses) and 09 (AP). No GPU, no downloads.
#
# Section 5 of the paper turns Mask R-CNN into a pose estimator and hardly changes anything. A keypoint head takes the place of the
# mask head: "We model a keypoint's location as a one-hot mask". This notebook takes those words apart: what is predicted, what the
# loss wants, where half a pixel hides, how a result is scored, and what RoIPool does to all of it.
#
# Afterwards you can
#
# 1. derive the gradient of a softmax over $m \times m$ positions, and say what sigmoids would do in its place;
# 2. write bilinear upscaling as a matrix, and its backward pass as the transpose;
# 3. say what visibility 0, 1 and 2 mean, and which keypoints have a loss;
# 4. compute what $m = 56$ cells cost, in object keypoint similarity (OKS), before anything is trained;
# 5. draw the circle in which a keypoint counts as found, and read an OKS;
# 6. say when "sub-pixel" decoding is finer than the cells, and when it is coarser;
# 7. say what rounding a box costs, measured with trained keypoint heads.

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
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Circle, Rectangle

from minimask import Tensor, data, exercises, models, no_grad, tutorial
from minimask import functions as F
from minimask.data.figures import INSET
from minimask.functions.pool import UpsampleBilinear
from minimask.functions.roi import as_rois
from minimask.kernels.resample import bilinear_matrix
from minimask.keypoints import heatmaps_to_keypoints, keypoints_to_heatmap
from minimask.models.keypoint_head import KeypointHead, NormedKeypointNet
from minimask.results import oks
from minimask.training.optim import SGD, clip_gradients
from minimask.tutorial import BLUE, GREEN, ORANGE, RED, source

plt.rcParams["figure.dpi"] = 85
rng = np.random.default_rng(0)

# %% [markdown]
# ## The idea in a picture
#
# Photographs of people would need a download; generated figures do not. Triangles, kites and arrows have up to four named points,
# just inside their corners: the *tip*, the *right* and the *left* corner (as seen by someone inside who looks towards the tip), and
# the *tail*, which a triangle does not have. A figure may be turned in any direction, so its place in the picture does not tell which
# corner is "left": that has to be recognised, as with a person's left hand.

# %%
# alt: A picture of three figures with their corners marked, filled where visible, hollow where hidden; a
#   dashed box frames an arrow. Beside it the arrow cut out with its four corners, and for tip, right corner,
#   tail and left corner a black map of 56 x 56 cells with one lit cell, circled, where that corner is.
NAMES = ("tip", "right corner", "tail", "left corner")
STYLES = (("^", BLUE), (">", ORANGE), ("o", GREEN), ("<", RED))  # the markers point where the names do
M = 56


def picture(axes, values, title="", extent=None, **style):
    shown = axes.imshow(values, extent=extent, interpolation="nearest", **style)
    axes.set(title=title, xticks=[], yticks=[])
    return shown


def outline(axes, box, colour="white", **style):
    x1, y1, x2, y2 = box
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, **style))


def points(axes, keypoints, size=9, **style):
    """Corners (K, 3): filled where visible, hollow where hidden; not labelled, not drawn."""
    for (x, y, seen), (marker, colour) in zip(keypoints, STYLES):
        if seen:
            face = colour if seen == 2 else "none"
            axes.plot(x, y, marker, ms=size, mfc=face, mec=colour if seen == 1 else "white", mew=1.5, **style)


def image_of(axes, sample, title=""):
    size = sample.image.shape[1]
    picture(axes, sample.image.transpose(1, 2, 0), title, (0, size, size, 0))


def whole(sample):
    """Indices of the figures that have all four corners labelled and in their boxes."""
    return np.flatnonzero(keypoints_to_heatmap(sample.keypoints, sample.boxes, M)[1].all(axis=1))


def tells(sample):
    """Whether a picture shows all three kinds of visibility, and a whole figure."""
    seen = sample.keypoints[..., 2]
    left_out = (seen == 0)[sample.labels > 1].any()  # in a triangle the tail always is
    return left_out and (seen == 1).any() and len(whole(sample))


figures = data.Figures(200, seed=3)
sample = next(s for s in figures if tells(s))
g = whole(sample)[0]
box = sample.boxes[g]
cells, _ = keypoints_to_heatmap(sample.keypoints[g : g + 1], sample.boxes[g : g + 1], M)

figure = plt.figure(figsize=(11, 4.4), layout="constrained")
grid = figure.add_gridspec(2, 5)
axes = figure.add_subplot(grid[:, :2])
image_of(axes, sample, "corners: filled visible, hollow hidden")
for keypoints in sample.keypoints:
    points(axes, keypoints)
outline(axes, box, lw=1.5, ls="--")
axes = figure.add_subplot(grid[:, 2])
crop = F.roi_align(sample.image[None], as_rois([box[None]]), M, sampling_ratio=2, aligned=True).numpy()[0]
picture(axes, crop.transpose(1, 2, 0), "the RoI", (0, M, M, 0))
inside = (sample.keypoints[g, :, :2] - box[:2]) * M / (box[2:] - box[:2])
points(axes, np.column_stack([inside, sample.keypoints[g, :, 2]]))
for k, name in enumerate(NAMES):
    axes = figure.add_subplot(grid[k // 2, 3 + k % 2])
    one_hot = np.arange(M * M).reshape(M, M) == cells[0, k]
    picture(axes, one_hot, name, (0, M, M, 0), cmap="gray")
    axes.add_patch(
        Circle((cells[0, k] % M + 0.5, cells[0, k] // M + 0.5), 4, fill=False, ec=STYLES[k][1], lw=1.5)
    )
plt.show()

# %% [markdown]
# On the right is what the head should say about the framed figure: for each of its $K = 4$ keypoints a map of $56 \times 56$ cells
# over the RoI, and in each map **one** cell is right.
#
# ### Visibility
#
# An annotation is $x$, $y$ and a visibility, as in COCO: **0** not labelled (outside the picture, or there is no such corner), **1**
# labelled but hidden behind something, **2** visible. The loss counts 1 and 2 alike: one can tell where a hidden elbow must be. It also
# matters that the RoI is a proposal, not the true box: a keypoint outside the RoI has no cell in it.

# %%
source(keypoints_to_heatmap)

# %%
seen = np.concatenate([s.keypoints[..., 2] for s in figures])
for value, meaning in enumerate(("not labelled", "hidden", "visible")):
    print(f"visibility {value}, {meaning:<13} {(seen == value).mean():6.1%}")
print(
    f"tails of triangles, never labelled  {np.mean(np.concatenate([s.labels == 1 for s in figures])) / 4:6.1%}"
)


def jittered(boxes, rng, size):
    """Boxes with each edge moved by a normal share `size` of the box's width or height."""
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return (boxes + size * sides * rng.normal(size=boxes.shape)).astype(np.float32)


lost = {}
for size in (0.0, 0.05, 0.1, 0.2):
    labelled = counted = 0
    for s in figures:
        _, inside = keypoints_to_heatmap(s.keypoints, jittered(s.boxes, rng, size), M)
        labelled, counted = labelled + (s.keypoints[..., 2] > 0).sum(), counted + inside.sum()
    lost[size] = 1 - counted / labelled
    print(f"edges of the RoI off by {size:4.0%}: {lost[size]:5.1%} of the labelled corners have no cell")

# %%
shares = list(lost.values())  # the farther off, the more
assert list(lost) == sorted(lost) and shares == sorted(shares)

# %% [markdown]
# Even in the *true* box a few corners have no cell: a hidden one may lie outside it, since the box surrounds only what can be seen. When
# the edges are off by a fifth, many are lost: a proposal that is too small teaches little about corners.
#
# The named points of these figures lie *inside* the corners, a fifth of the way to the figure's middle, as a wrist lies inside the end
# of a sleeve. Does that matter? Move them to the corners themselves, and count again, in the true boxes.

# %%
OF_TIP = {1: 4 / 9, 2: 1 / 5, 3: 4 / 9}  # the middle divides the line from tip to base in this proportion
outside, beyond = [], []
for s in figures:
    for label, true_box, own in zip(s.labels, s.boxes, s.keypoints):
        if (own[[0, 1, 3], 2] == 2).all():  # all three visible
            tip, right, left = own[[0, 1, 3], :2].astype(float)
            centre = OF_TIP[label] * tip + (1 - OF_TIP[label]) * (right + left) / 2
            corners = centre + (own[[0, 1, 3], :2] - centre) / INSET
            out = np.maximum(true_box[:2] - corners, corners - true_box[2:]).max(axis=1)
            outside.extend(out > 0)
            beyond.extend(out[out > 0])
print(
    f"{np.mean(outside):.0%} of the corners lie outside of the true box, by {np.median(beyond):.1f} pixels in the median"
)

# %%
assert np.mean(outside) > 0.5

# %% [markdown]
# Most of them would have no cell and no loss! A mask consists of the pixels whose centres the figure covers, the box is the mask's, and
# a sharp corner ends beyond the last such pixel. It is only half a pixel, which nobody sees in a picture, and the loss falls nicely all
# the same, since it counts only the points that have a cell. (minimask's figures were made like that at first. Counting revealed it; the
# losses did not.) Before you train on keypoints of your own, count how many lie in their boxes.
#
# ## The head
#
# RoIAlign to $14 \times 14$, convolutions that keep the size (eight of 512 channels in the paper, four of 64 here), a deconvolution to
# $28 \times 28$ with a channel for each keypoint, and bilinear upscaling to $56 \times 56$.

# %%
source(KeypointHead.forward, NormedKeypointNet.forward, KeypointHead.loss)

# %%
model = models.keypointrcnn_small(num_classes=4, num_keypoints=4)
losses = model.train()([sample.image], [sample.target()])
for name, loss in losses.items():
    print(f"{name:<17} {loss.item():.3f}")
print(f"log(56 * 56) = {np.log(M * M):.3f}")

# %%
assert abs(losses["loss_keypoint"].item() - np.log(M * M)) < 0.3

# %% [markdown]
# This is the first number to look at: a fresh head thinks all 3136 positions equally likely, so $L_{keypoint} \approx \log 3136 = 8.05$.
# That is more than all the other losses together; `KeypointOptions(weight=...)` gives it a smaller weight.
#
# ## A softmax over positions
#
# One map has logits $x_j$, $j = 1 \dots m^2$, and one right cell $t$:
#
# $$L = -\log p_t = \log \sum_j e^{x_j} - x_t, \qquad p_j = \frac{e^{x_j}}{\sum_i e^{x_i}}, \qquad
# \frac{\partial L}{\partial x_j} = \frac{e^{x_j}}{\sum_i e^{x_i}} - [j = t] = p_j - [j = t].$$
#
# It is the classifier's gradient (notebook 07), with *places* instead of classes. There the masks were better off when they did not
# compete; why must places compete here? Because exactly one place is right, and the loss should know that. Take the alternative: $m^2$
# independent sigmoids with the one-hot mask as target, whose gradient is $s(x_j) - [j = t]$, with $s$ the sigmoid. In a fresh head, where
# all logits are 0:

# %%
middle = np.array([[M * (M // 2) + M // 2]])
gradients = {}
x = Tensor(np.zeros((1, 1, M, M)), requires_grad=True)
F.keypoint_loss(x, middle, np.array([[True]])).backward()
gradients["softmax"] = x.grad[0, 0]
x = Tensor(np.zeros((1, 1, M, M)), requires_grad=True)
one_hot = (np.arange(M * M) == middle[0]).astype(float).reshape(1, 1, M, M)
F.sigmoid_cross_entropy(x, one_hot, normalizer=1.0).backward()
gradients["sigmoids"] = x.grad[0, 0]
for name, gradient in gradients.items():
    up, down = -gradient[gradient < 0].sum(), gradient[gradient > 0].sum()
    print(f"{name:<9} pulls its one cell up by {up:.4f}, all others down by {down:.4f} together")

# %%
assert np.isclose(gradients["softmax"].sum(), 0) and np.isclose(gradients["sigmoids"].sum(), M * M / 2 - 1)

# %% [markdown]
# The softmax pulls up as much as it pulls down. The sigmoids say "nowhere!" 3135 times for each "here": every weight that all cells
# share, above all the last layer's bias, is pulled down by the sum. How far? Take a head that has learnt nothing but its bias $b$. The
# softmax does not depend on $b$ at all ($\sum_j (p_j - [j = t]) = 0$); the sigmoids' loss is smallest where the sum
# $\sum_j (s(b) - [j = t]) = m^2 s(b) - 1$ is 0, that is, where $s(b) = 1/m^2$.

# %%
bias = -np.log(M * M - 1)
x = Tensor(np.full((1, 1, M, M), bias), requires_grad=True)
F.sigmoid_cross_entropy(x, one_hot, normalizer=1.0).backward()
print(
    f"bias {bias:.2f}: every cell says {1 / (1 + np.exp(-bias)):.5f}, and the sum of the gradients is {x.grad.sum():.0e}"
)
print(f"all others together pull by {x.grad[x.grad > 0].sum():.2f}, each by {x.grad[x.grad > 0].max():.5f}")

# %%
assert abs(x.grad.sum()) < 1e-9 and np.isclose(x.grad[x.grad > 0].max(), 1 / M**2)

# %% [markdown]
# So the sigmoids *first* learn that a keypoint is nowhere, and only there is their gradient the one that the softmax starts with: $1/m^2$
# everywhere, and nearly $-1$ at the one cell. The softmax has this for free. It does have a price: it cannot say "nowhere". A keypoint
# that cannot be seen gets a place like all others, and a low score at best.
#
# ### As it stands in minimask, and the check

# %%
source(F.keypoint.KeypointLoss)

# %%
# alt: Relative error over the step h, both logarithmic: three kinds of differences fall along the rounding
#   line, then rise along dotted lines. The one-sided one turns near 1e-8, at an error of a few 1e-9, the
#   central one near a step of 1e-5 at about 1e-11, five points near 2e-3 at about 1e-13.
check_cells, check_valid = np.array([[3, 17], [24, 0]]), np.array([[True, True], [True, False]])
errors = tutorial.step_errors(
    lambda x: F.keypoint_loss(x, check_cells, check_valid), [Tensor(rng.normal(size=(2, 2, 5, 5)), True)]
)
errors.plot(title="the softmax over 5 x 5 positions, three keypoints of four counted")
plt.show()
print(f"smallest error of the central difference: {errors.best():.0e}")

# %%
assert errors.best() < 1e-9

# %% [markdown]
# ## Bilinear upscaling is a matrix
#
# From $28 \times 28$ to $56 \times 56$ nothing is learnt; the map is only drawn finer. Along one axis, number the middles of the coarse
# cells 0, 1, 2, ... Then the middle of fine cell $i$ lies at $(i + 1/2) / 2 - 1/2$, a quarter of a cell to one side of a coarse middle: it
# reads $3/4$ of that coarse cell and $1/4$ of the next one. (The first and the last fine cell have no next one, and read the
# outermost coarse cell alone.) Write $u$ for the coarse map and $y$ for the fine one. In $y = U u\, U^T$ the
# matrix $U$ looks like this (4 cells to 8):

# %%
print(bilinear_matrix(4, 8, float))
source(UpsampleBilinear)

# %% [markdown]
# The backward pass of a linear function is its transpose: the loss changes by $\langle g_y, U\, du\, U^T \rangle = \langle U^T g_y U, du \rangle$, so
# $g_u = U^T g_y U$. Read down a column of $U$: a coarse cell gets back $1/4, 3/4, 3/4, 1/4$ of the gradients of the four fine cells that
# read it. The rows of $U$ sum to 1 (a constant map stays constant), its columns to 2: in two dimensions a coarse cell receives four times
# the average gradient, because it stands for four cells.

# %%
# alt: Left, a single lit cell of the fine map. Middle, the four coarse cells that it teaches, with shares of
#   9/16, twice 3/16, and 1/16. Right, the relative error over the step, both logarithmic: all three kinds of
#   differences fall along the rounding line to about 1e-15 at a step of 1, and none turns up.
u = bilinear_matrix(28, 56, np.float64)
t, g_y = rng.normal(size=(28, 28)), rng.normal(size=(56, 56))
there, back = (u @ t @ u.T * g_y).sum(), (t * (u.T @ g_y @ u)).sum()
print(f"<g, U t U'> = {there:.12f}\n<U' g U, t> = {back:.12f}")
assert np.isclose(there, back) and np.allclose(u.sum(axis=1), 1) and np.allclose(u.sum(axis=0), 2)
x = Tensor(t[None, None], requires_grad=True)
F.upsample_bilinear(x).backward(g_y[None, None])
assert np.allclose(x.grad[0, 0], u.T @ g_y @ u)

errors = tutorial.step_errors(F.upsample_bilinear, [Tensor(rng.normal(size=(1, 2, 5, 5)), True)])
row, column = 30, 21  # of the right cell
target = np.zeros((56, 56))
target[row, column] = 1.0
around = [slice(max(at // 2 * 2 - 4, 0), at // 2 * 2 + 6) for at in (row, column)]
coarse = [slice(part.start // 2, part.stop // 2) for part in around]
figure, axes = plt.subplots(1, 3, figsize=(12, 3.7), layout="constrained", width_ratios=(1, 1, 1.5))
picture(axes[0], target[*around], "one right cell of 56 x 56 ...", cmap="cividis")
taught = (u.T @ target @ u)[*coarse]
shown = picture(axes[1], taught, "... teaches four of 28 x 28", cmap="cividis")
for (i, j), v in np.ndenumerate(taught):
    if v:
        axes[1].text(
            j, i, f"{16 * v:.0f}/16", ha="center", va="center", color="black" if v > 0.3 else "white"
        )
errors.plot(axes[2], "bilinear upscaling: only rounding is left")
plt.show()

# %%
assert errors.best() < 1e-10

# %% [markdown]
# The curves on the right show no truncation error: the function is linear, so a finite difference is exact for every step. Only the
# rounding of the difference remains, and it falls as the step grows.
#
# ## From a point to a cell and back
#
# The box is divided into $m$ parts along each axis; a point at $x$ lies in cell $c = \lfloor (x - x_1)\, m / w \rfloor$, and a cell stands for
# its **middle**, $x_1 + (c + 1/2)\, w / m$. Going there and back costs up to half a cell along each axis. The error is uniform between
# $-1/2$ and $1/2$ cell, so its square is $1/12$ on average, and in a box of $w$ by $w$, over both axes,
#
# $$\overline{e^2} = 2 \cdot \frac1{12} \left(\frac{w}{m}\right)^2 .$$
#
# Whoever forgets the half cell and takes the cell's corner is off by another $1/2$ along both axes: in cells squared,
# $2 \cdot (\frac1{12} + \frac14) = 8/12$ instead of $2/12$, **four times** the squared error. Is any of this much? That depends on how a keypoint
# is scored.
#
# ## Object keypoint similarity
#
# Boxes and masks have an IoU. Two points do not: they coincide or they don't. COCO's answer is a similarity that falls with the distance
# $d_k$, *relative to the object*, and at its own rate for each kind of keypoint:
#
# $$\mathrm{OKS} = \frac{\sum_k [v_k > 0]\; e^{-d_k^2 / (2 s^2 (2 \sigma_k)^2)}}{\sum_k [v_k > 0]}, \qquad s = \sqrt{\text{area}} .$$
#
# ($v_k$ is the visibility.) Where does $\sigma_k$ come from? Let several people mark the same keypoint, and take the standard deviation of
# $d / s$: it says how precisely people know where a hip is (0.107) or an eye (0.025). The similarity is a bell curve with *twice* that
# width. For a single keypoint we can solve for the distance, and a value of OKS becomes a circle with the radius
#
# $$d = 2 \sigma_k\, s\, \sqrt{2 \log (1 / \mathrm{OKS})} .$$
#
# COCO's sigmas are for COCO's seventeen keypoints. For all others minimask takes 0.05, and the table of `minimask evaluate` says so. In the
# figure, solid, dashed and dotted lines mean an OKS of 0.5, 0.75 and 0.95.

# %%
source(oks.similarity)


# %%
# alt: Left and middle, triangles of 203 and 1343 pixels with three circles around each corner, for an OKS of
#   0.5, 0.75 and 0.95: even the widest is small beside the figure. Right, bells of the similarity over the
#   distance by the root of the area: down to 0.5 at 0.06 for eyes, 0.12 for ours, 0.25 for hips.
def radius_of(value, sigma, area):
    return 2 * sigma * np.sqrt(2 * area * np.log(1 / value))


sizes = [
    (int(s.masks[i].sum()), k, i)
    for k, s in enumerate(figures)
    for i in range(len(s.labels))
    if len(s.labels) == 1
]
sizes = [row for row in sizes if (figures[row[1]].keypoints[row[2], :2, 2] == 2).all()]
_, axes = plt.subplots(1, 3, figsize=(12, 4.1), layout="constrained")
for panel, (area, k, i) in zip(axes, (min(sizes), max(sizes))):
    s = figures[k]
    panel.set_facecolor("0.85")  # beyond the picture's edge
    image_of(panel, s, f"area {area}: OKS 0.5, 0.75 and 0.95")
    for x, y, seen in s.keypoints[i]:
        for value, line in ((0.5, "-"), (0.75, "--"), (0.95, ":")) if seen else ():
            panel.add_patch(
                Circle((x, y), radius_of(value, 0.05, area), fill=False, ec="white", lw=1.3, ls=line)
            )
    x1, y1, x2, y2 = s.boxes[i]
    half = max(x2 - x1, y2 - y1) / 2 + 8
    panel.set(
        xlim=((x1 + x2) / 2 - half, (x1 + x2) / 2 + half), ylim=((y1 + y2) / 2 + half, (y1 + y2) / 2 - half)
    )
    print(
        f"area {area}: OKS 0.5 within {radius_of(0.5, 0.05, area):.1f} pixels, 0.95 within {radius_of(0.95, 0.05, area):.1f}"
    )
d = np.linspace(0, 0.6, 200)
for sigma, colour, line, name in (
    (0.025, BLUE, "-", "COCO's eyes"),
    (0.05, ORANGE, "--", "ours"),
    (0.107, GREEN, "-.", "COCO's hips"),
):
    one = oks.similarity(
        np.column_stack([d, 0 * d])[:, None], np.array([[[0.0, 0, 2]]]), np.ones(1), np.array([sigma])
    )
    axes[2].plot(d, one[:, 0], line, color=colour, label=f"σ = {sigma}: {name}")
for value, line in ((0.5, "-"), (0.75, "--"), (0.95, ":")):
    axes[2].axhline(value, color="0.6", ls=line, lw=1)
axes[2].set(xlabel="distance / √area", ylabel="similarity", title="one keypoint's similarity")
axes[2].legend()
plt.show()
true = np.concatenate([rng.uniform(0, 30, (1, 4, 2)), np.full((1, 4, 1), 2.0)], axis=2)
swapped = true[:, [0, 3, 2, 1], :2]
print(
    f"a figure whose left and right are swapped, everything else perfect: OKS {oks.similarity(swapped, true, np.array([400.0]), np.full(4, 0.05)).item():.2f}"
)

# %%
assert np.isclose(oks.similarity(swapped, true, np.array([400.0]), np.full(4, 0.05)), 0.5, atol=0.01)
assert np.isclose(radius_of(0.5, 0.05, 400), 2.355, atol=1e-3)

# %% [markdown]
# AP is then what it is for masks, with OKS instead of IoU: the average over the thresholds 0.50, 0.55, ... 0.95. The circles are small!
# And note that the sum is over *names*: swap left and right, and half of the OKS is gone, although every corner has been found to the
# pixel.
#
# ### What $m$ costs, before anything is trained
#
# Now the two can be put together. For small errors $1 - e^{-a} \approx a$, so $1 - \mathrm{OKS} \approx \overline{e^2} / (2 s^2 (2\sigma)^2)$. With
# $\overline{e^2} = w^2 / (6 m^2)$, and an object that fills a share $f$ of its box, $s^2 = f w^2$:
#
# $$1 - \mathrm{OKS} \approx \frac{1}{48\, f\, m^2 \sigma^2} .$$
#
# The size of the box has cancelled: large or small, it costs the same. Let us compare that with a *perfect* head, which always names the
# right cell.

# %%
# alt: What a perfect head loses, 1 - OKS, over m from 7 to 112 cells, both logarithmic, for two sigmas: marks
#   along the formula's falling dashed lines, 0.005 for sigma 0.05 at m = 56. With half a cell forgotten it is
#   four times as much, 0.02, and those marks coincide with the ones of sigma 0.025.
count, fill = (2000 if FAST else 20_000), 0.5
sides = np.array([7, 14, 28, 56, 112])
costs = {}
for sigma in (0.025, 0.05):
    for m in sides:
        boxes = np.tile([3.3, 7.7, 43.3, 47.7], (count, 1))
        keypoints = np.concatenate(
            [rng.uniform(boxes[:, :2], boxes[:, 2:]), np.full((count, 1), 2.0)], axis=1
        )
        own, _ = keypoints_to_heatmap(keypoints[:, None], boxes, m)
        cell = np.column_stack([own[:, 0] % m, own[:, 0] // m])
        for half in (0.5, 0.0):
            e = boxes[:, :2] + (cell + half) * 40 / m - keypoints[:, :2]
            similar = oks.similarity(
                e[:, None], np.array([[[0.0, 0, 2]]]), np.array([fill * 40**2]), np.array([sigma])
            )
            costs[sigma, m, half] = 1 - similar.mean()

_, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
for sigma, colour, marker in ((0.025, BLUE, "o"), (0.05, ORANGE, "s")):
    axes.loglog(
        sides,
        [costs[sigma, m, 0.5] for m in sides],
        marker,
        color=colour,
        label=f"σ = {sigma}, cells' middles",
    )
    axes.loglog(
        sides,
        [costs[sigma, m, 0.0] for m in sides],
        marker,
        ms=10,
        mfc="none",
        color=colour,
        label=f"σ = {sigma}, half a cell forgotten",
    )
    axes.loglog(sides, 1 / (48 * fill * sides**2 * sigma**2), "--", color=colour, lw=1)
axes.set_xticks(sides, [str(m) for m in sides])
axes.minorticks_off()
axes.set(
    xlabel="m, cells along a side of the RoI",
    ylabel="1 - OKS",
    ylim=(5e-4, 1.2),
    title="what a perfect head loses to its cells; dashed: the formula",
)
axes.legend(fontsize=8)
axes.grid(alpha=0.3)
plt.show()
for m in sides[1:-1]:
    print(
        f"m = {m}: perfect heads reach OKS {1 - costs[0.05, m, 0.5]:.3f} with σ = 0.05, {1 - costs[0.025, m, 0.5]:.3f} with σ = 0.025"
    )
m = sides[-2]
ratio = costs[0.05, m, 0.0] / costs[0.05, m, 0.5]
print(f"m = {m}: without the half cell 1 - OKS is {ratio:.1f} times as large")

# %%
for m in sides[sides >= 40]:  # where the errors are small, the formula holds
    assert abs(costs[0.05, m, 0.5] * 48 * fill * m**2 * 0.05**2 - 1) < 0.1
    assert 3.7 < costs[0.05, m, 0.0] / costs[0.05, m, 0.5] < 4.1

# %% [markdown]
# (The hollow squares lie on the filled circles: forgetting the half cell costs as much as a $\sigma$ half as large, since both multiply
# $e^2 / \sigma^2$ by four.) This is why the keypoint head goes up to 56 where the mask head stays at 28. With 14 cells, which is what RoIAlign
# gives, a perfect head would reach an OKS of 0.73 for keypoints as exacting as eyes, and would hardly ever pass the threshold
# of 0.95. "A relatively high resolution output (compared to masks) is required for keypoint-level localization accuracy", says the paper.
#
# ## Decoding: is it sub-pixel?
#
# torchvision, detectron2 and minimask all do the same: they resize the map to *the box's size in pixels* by cubic interpolation, and take
# the highest pixel. Compare three ways of decoding on maps whose peak is known: a bell with a standard deviation of 1.5 cells, somewhere in a box of
# $w$ pixels. The position is taken to be
#
# * the middle of the highest **cell**;
# * the highest **pixel** of the resized map, as those systems do;
# * on each axis, the vertex of a **parabola** through the logits of the highest cell and its two neighbours.

# %%
source(heatmaps_to_keypoints)


# %%
# alt: Error in cells over the width of the box from 14 to 448 pixels, both logarithmic. The highest cell
#   stays near 0.4 for every width; the highest pixel falls from 1.6 to 0.15 and meets that level at a
#   vertical line, 56 pixels; the parabola is exact and drawn at 0.001.
def highest_cells(maps):
    flat = maps.reshape(*maps.shape[:2], -1).argmax(axis=2)
    return np.stack([flat % maps.shape[3], flat // maps.shape[3]], axis=2)  # (R, K, 2): x, y


def by_cells(maps, boxes):
    """The middle of the highest cell."""
    return (
        boxes[:, None, :2]
        + (highest_cells(maps) + 0.5) * ((boxes[:, 2:] - boxes[:, :2]) / maps.shape[3])[:, None]
    )


def by_parabola(maps, boxes):
    """The vertex of a parabola through the highest cell and its neighbours, on each axis."""
    at = highest_cells(maps)
    r, k = np.indices(at.shape[:2])
    place = at + 0.5
    for axis in range(2):
        low, high = np.maximum(at[..., axis] - 1, 0), np.minimum(at[..., axis] + 1, maps.shape[3] - 1)
        a, b = (maps[r, k, at[..., 1], c] if axis == 0 else maps[r, k, c, at[..., 0]] for c in (low, high))
        top = maps[r, k, at[..., 1], at[..., 0]]
        bend = np.maximum(2 * top - a - b, 1e-6)
        place[..., axis] += np.where((low < at[..., axis]) & (at[..., axis] < high), (b - a) / (2 * bend), 0)
    return boxes[:, None, :2] + place * ((boxes[:, 2:] - boxes[:, :2]) / maps.shape[3])[:, None]


DECODERS = {
    "highest cell": (by_cells, GREEN, "-.", "^"),
    "highest pixel (all systems)": (
        lambda maps, boxes: heatmaps_to_keypoints(maps, boxes).xy,
        BLUE,
        "-",
        "o",
    ),
    "parabola": (by_parabola, ORANGE, "--", "s"),
}
widths = [14, 28, 42, 56, 84, 112, 224] if FAST else [14, 20, 28, 40, 48, 56, 80, 112, 160, 224, 448]
at = np.arange(M) + 0.5
decoded = {}
for width in widths:
    peak = rng.uniform(5, M - 5, (20 if FAST else 60, 1, 2))  # in cells
    maps = -((at - peak[..., :1]) ** 2)[:, :, None, :] / 4.5 - ((at - peak[..., 1:]) ** 2)[..., None] / 4.5
    boxes = np.tile([0.0, 0, width, width], (len(peak), 1))
    for name, (decode, *_) in DECODERS.items():
        e = decode(maps, boxes) - peak * width / M
        decoded[name, width] = np.sqrt((e**2).sum(axis=2).mean())
_, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
for name, (_, colour, line, marker) in DECODERS.items():
    axes.plot(
        widths,
        [max(decoded[name, w] / w * M, 1e-3) for w in widths],
        line,
        marker=marker,
        color=colour,
        label=name,
    )
axes.axvline(M, color="0.6", ls=":", lw=1)
axes.text(M * 1.05, 1.6, "w = 56 pixels", color="0.4")
axes.text(widths[0], 1.2e-3, "exact: drawn at 0.001", color="0.4")
axes.set(
    xscale="log", yscale="log", xlabel="width of the box (pixels)", ylabel="error in cells (root mean square)"
)
axes.set_xticks(widths[::2], [str(w) for w in widths[::2]])
axes.minorticks_off()
axes.legend()
axes.grid(alpha=0.3)
plt.show()

# %%
for width in widths:
    of_pixel, of_cell = (decoded[name, width] for name in ("highest pixel (all systems)", "highest cell"))
    if width <= M / 2:
        assert of_pixel > 1.6 * of_cell
    elif width >= 2 * M:
        assert of_pixel < 0.7 * of_cell
    elif width == M:
        assert np.isclose(of_pixel, of_cell)

# %% [markdown]
# Here is a small surprise in a convention that everyone copies. For boxes **larger** than 56 pixels the answer is finer than the cells. At
# 56 the resized map is the map itself. For **smaller** boxes the map is *shrunk*, and the answer is the middle of a pixel, which is **coarser** than
# the cells that the head was trained with. So the answer is never sub-*pixel*; it is sub-*cell*, for large boxes. That suits the people in COCO's
# photographs, most of whom are larger than 56 pixels; our figures are smaller. The parabola is exact for this bell, because its logarithm is a
# parabola; trained maps are not such bells, so judge it below, on real ones.

# %% [markdown]
# ## Training
#
# `minimask train --config figures --output run` trains the whole network on the figures (docs/keypoints.md says how long that takes and
# what it reaches). Here we have a few minutes, so we make the task smaller, in two ways:
#
# * **The boxes are given.** There is no RPN and no box head. The RoIs are the true boxes, with edges moved by about 5 % in training; so what we
#   measure is the keypoint head and the backbone below it.
# * **The figures lean by less than 60° from upright.** Telling left from right in all directions takes longer to learn than finding corners: try
#   it (exercise 6).


# %%
def leaning(sample, most=np.pi / 3):
    """Indices of the figures that lean by less than `most`; tip, left and right corner are labelled."""
    tip, right, _, left = (sample.keypoints[:, k, :2] for k in range(4))
    x, y = (tip - (left + right) / 2).T
    known = (sample.keypoints[:, [0, 1, 3], 2] > 0).all(axis=1)
    return np.flatnonzero(known & (np.abs(np.arctan2(x, -y)) < most))


def pictures_of(count, seed):
    """Samples and, for each, the figures in it that lean little; samples without any are left out."""
    drawn = [(s, leaning(s)) for s in data.Figures(count, seed=seed, objects=(2, 4))]
    return [(s, own) for s, own in drawn if len(own)]


def heat_maps(model, sample, boxes):
    """The keypoint branch alone, on given boxes (R, 4) of one picture: logits (R, K, M, M)."""
    batch = model.transform([sample.image], model.dtype, model.device)
    return model.keypoint_head(model.backbone(Tensor(batch.images)), as_rois([boxes]))


def loss_of(model, sample, own, rng):
    """L_keypoint on two boxes around each of the figures `own`."""
    matches = np.repeat(own, 2)
    boxes = jittered(sample.boxes[matches], rng, 0.05)
    logits = heat_maps(model, sample, boxes)
    cells, inside = keypoints_to_heatmap(sample.keypoints[matches], boxes, logits.shape[-1])
    return F.keypoint_loss(logits, cells, inside)


def train(layer, seed, pictures, steps, rate=0.01):
    """A new network whose backbone and keypoint head learn from one picture a step; the losses."""
    model = models.keypointrcnn_small(4, 4, roi_layer=layer, seed=seed)
    parts = ("backbone", "roi_heads.keypoint")
    parameters = [(name, p) for name, p in model.named_parameters() if name.startswith(parts)]
    optimizer, rng, losses = SGD(parameters, rate), np.random.default_rng(seed), []
    for step in range(steps):
        sample, own = pictures[rng.integers(len(pictures))]
        optimizer.zero_grad()
        loss = loss_of(model, sample, own, rng)
        loss.backward()
        clip_gradients([p for _, p in parameters], 5.0)
        optimizer.step(rate * min(1, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * step / steps)))
        losses.append(loss.item())
    return model, np.array(losses)


def found_by(model, pictures, decode=lambda maps, boxes: heatmaps_to_keypoints(maps, boxes).xy):
    """Keypoints of every figure in its true box, and what is true: (G, K, 2), (G, K, 3), areas (G,)."""
    rows = []
    with no_grad():
        for s, own in pictures:
            maps = heat_maps(model, s, s.boxes[own]).numpy()
            rows.append(
                (decode(maps, s.boxes[own]), s.keypoints[own], s.masks[own].sum(axis=(1, 2)).astype(float))
            )
    return [np.concatenate(column) for column in zip(*rows)]


THRESHOLDS = np.arange(0.5, 0.96, 0.05)


def similarities(found, true, areas):
    return np.array(
        [
            oks.similarity(f[None], t[None], a[None], np.full(4, 0.05)).item()
            for f, t, a in zip(found, true, areas)
        ]
    )


def share_found(similar):
    """The mean over COCO's thresholds of the share of figures with at least that OKS."""
    return np.mean([(similar >= threshold - 1e-9).mean() for threshold in THRESHOLDS])


ALIGN = partial(F.roi_align, sampling_ratio=2, aligned=True)
POOL = partial(F.roi_pool, aligned=True)
train_pictures = pictures_of(100 if FAST else 900, seed=20)
test_pictures = pictures_of(20 if FAST else 150, seed=21)
STEPS = 60 if FAST else 400
SEEDS = (0,) if FAST else (0, 1)
print(
    f"{len(train_pictures)} pictures to train on; {sum(len(own) for _, own in test_pictures)} figures to test on"
)

# %% [markdown]
# There are four trainings, of about half a minute of processor time each: both RoI layers, with two seeds for the initial weights and the
# order of the pictures.

# %%
runs = {("RoIAlign", seed): train(ALIGN, seed, train_pictures, STEPS) for seed in SEEDS}

# %%
runs |= {("RoIPool", seed): train(POOL, seed, train_pictures, STEPS) for seed in SEEDS}
for (name, seed), (_, losses) in runs.items():
    print(
        f"{name}, seed {seed}: L_keypoint {losses[:20].mean():.2f} at first, {losses[-50:].mean():.2f} in the last 50 steps"
    )

# %% [markdown]
# This is what the first of them finds in figures that it was not trained on. The large, coloured markers are predicted, the small white
# dots are true.

# %%
# alt: Ten figures cut out, each with its OKS above, 0.18 to 0.77: large markers where the corners are
#   predicted, white dots where they are. Tips are mostly found to within a pixel or two; where the OKS is
#   low, a left or right corner is put at the place of another corner, or at the edge of a figure in front.
trained = runs["RoIAlign", 0][0]
_, panels = plt.subplots(2, 5, figsize=(11, 4.6), layout="constrained")
shown = [(s, int(own[0])) for s, own in test_pictures[:10]]
for panel, (s, i) in zip(panels.flat, shown):
    with no_grad():
        maps = heat_maps(trained, s, s.boxes[i : i + 1]).numpy()
    found = heatmaps_to_keypoints(maps, s.boxes[i : i + 1]).xy[0]
    image_of(panel, s)
    known = (s.keypoints[i, :, 2] > 0) * 2.0
    points(panel, np.column_stack([found, known]))
    panel.plot(*s.keypoints[i, known > 0, :2].T, "o", ms=3, color="white", mec="black", mew=0.7)
    x1, y1, x2, y2 = s.boxes[i]
    half = max(x2 - x1, y2 - y1) / 2 + 8
    panel.set(
        xlim=((x1 + x2) / 2 - half, (x1 + x2) / 2 + half), ylim=((y1 + y2) / 2 + half, (y1 + y2) / 2 - half)
    )
    similar = similarities(
        found[None], s.keypoints[i : i + 1], s.masks[i : i + 1].sum(axis=(1, 2)).astype(float)
    )
    panel.set_title(f"OKS {similar[0]:.2f}", fontsize=9)
plt.show()

# %%
# alt: A kite in its RoI with its true corners, and a heat map for each. The right corner is one bright spot,
#   with 8 % in its highest cell; the tip has a second, faint spot; the left corner has two, the brighter one
#   at the wrong place; the tail's is smeared along the whole lower edge and over the middle.
i = max(range(len(shown)), key=lambda i: shown[i][0].masks[shown[i][1]].sum())
s, i = shown[i]
with no_grad():
    maps = heat_maps(trained, s, s.boxes[i : i + 1]).numpy()[0]
_, panels = plt.subplots(1, 5, figsize=(11, 2.6), layout="constrained")
x1, y1, x2, y2 = s.boxes[i]
image_of(panels[0], s, "the RoI")
points(panels[0], s.keypoints[i])
panels[0].set(xlim=(x1, x2), ylim=(y2, y1), aspect="auto")
for k, panel in enumerate(panels[1:]):
    p = np.exp(maps[k] - maps[k].max())
    picture(panel, p / p.sum(), NAMES[k], (x1, x2, y2, y1), cmap="cividis", aspect="auto")
    panel.set_xlabel(f"highest cell: {(p / p.sum()).max():.0%}")
plt.show()

# %% [markdown]
# In the heat maps (each with its own colour scale), look at how the probability spreads: where the head is sure, over a few neighbouring
# cells; where it hesitates, over several places. A softmax can hesitate between two places; a regression of $x$ and $y$ would answer
# with their mean, which lies at neither.
#
# ## The experiment: RoIPool against RoIAlign
#
# In the paper's table 6 (ResNet-50-FPN, COCO minival) the keypoint AP is 59.8 with RoIPool and 64.2 with RoIAlign. FPN's finest level has
# a stride of 4 pixels, so on that level RoIPool's rounding moves an edge by at most 2 pixels. Is a pixel or two worth that much? For each seed we have two
# networks that differ in one argument, `roi_layer`: the same initial weights, the same pictures in the same order, the same boxes.

# %%
table = {}
for (name, seed), (model, _) in runs.items():
    for decoder, (decode, *_) in DECODERS.items():
        similar = similarities(*found_by(model, test_pictures, decode))
        table[name, seed, decoder] = share_found(similar), (similar >= 0.5).mean()
print(f"{'':<22}{'decoded by':<30}{'mean over OKS 0.50 .. 0.95':>27}{'at OKS 0.50':>14}")
for (name, seed, decoder), (mean, half) in table.items():
    print(f"{name + ', seed ' + str(seed):<22}{decoder:<30}{mean:>27.3f}{half:>14.3f}")
usual = "highest pixel (all systems)"
gains = [table["RoIAlign", seed, usual][0] - table["RoIPool", seed, usual][0] for seed in SEEDS]
print("RoIAlign minus RoIPool, seed by seed:", " ".join(f"{gain:+.3f}" for gain in gains))

# %%
assert FAST or min(gains) > 0.05  # a fast run has not learnt enough to compare
assert FAST or all(
    np.ptp([table[layer, seed, decoder][0] for decoder in DECODERS]) < min(gains) for layer, seed in runs
)

# %% [markdown]
# The order is the paper's, and the gap is wider than its 4.4 points. Do not compare the sizes of the gaps: our figures are smaller (two pixels
# are a larger part of them), the test has some hundred figures, the boxes are given, and two seeds are only two seeds. What can be compared
# is the mechanism, so let us look at that directly.
#
# Now read down the table: the three ways of decoding differ by far less than the two layers. Here, with RoIAlign, the highest *pixel* has the
# lowest mean of the three, by 0.03 at most, as the picture of the decoders led us to expect for figures smaller than 56 pixels; but differences of
# 0.01 are within the noise, and on another machine, whose last bits differ, the order was another. The parabola gains little over the
# cell's middle, since trained maps are not bells. With RoIPool all three lie within about 0.01 of each other: no decoding brings back what the
# rounding has moved.
#
# ### Slide the box
#
# A keypoint does not move when its RoI does. Draw a box around each figure of the first 60 test pictures, with a margin, whose
# edges lie at multiples of 4 pixels (exactly at the edges of FPN's cells), and slide it to the right by up to 8 pixels. Where does each network say the points are?

# %%
# alt: What is said minus what is true, in x, while the box slides right by 0 to 8 pixels, for two seeds each.
#   RoIAlign's lines are flat, between -0.5 and 0 pixels. RoIPool's are saw teeth: they climb about a pixel
#   for each pixel of the box, up to 1.6, and fall by about three to four at 2 and 6 pixels, two grey lines.
STRIDE = 4
shifts = np.arange(0, 8.01, 1.0 if FAST else 0.5)


def said_minus_true(model, shift):
    """The median error in x over the labelled points of the first 60 pictures, their boxes moved by `shift`."""
    errors = []
    with no_grad():
        for s, own in test_pictures[:20] if FAST else test_pictures[:60]:
            low, high = np.floor(s.boxes[own, :2] / STRIDE - 2), np.ceil(s.boxes[own, 2:] / STRIDE + 2)
            boxes = (np.concatenate([low, high], axis=1) * STRIDE + [shift, 0, shift, 0]).astype(np.float32)
            found = by_cells(heat_maps(model, s, boxes).numpy(), boxes)
            errors.extend((found[..., 0] - s.keypoints[own, :, 0])[s.keypoints[own, :, 2] > 0])
    return np.median(errors)


_, axes = plt.subplots(figsize=(8, 4), layout="constrained")
slides = {}
for name, colour, marker, lines in (
    ("RoIAlign", BLUE, "o", ("-", "-.")),
    ("RoIPool", ORANGE, "s", ("--", ":")),
):
    for seed, line in zip(SEEDS, lines):
        slides[name, seed] = np.array([said_minus_true(runs[name, seed][0], shift) for shift in shifts])
        axes.plot(
            shifts, slides[name, seed], line, marker=marker, ms=4, color=colour, label=f"{name}, seed {seed}"
        )
for edge in (2, 6):
    axes.axvline(edge, color="0.7", lw=1)
axes.text(4, 1.7, "grey lines: RoIPool's rounding tips over", color="0.4", fontsize=9, ha="center")
axes.set(
    xlabel="the box slides to the right by (pixels)",
    ylabel="said minus true, x (pixels)",
    title="the points stand still; the median over all of them",
)
axes.set_ylim(-4, 2.2)
axes.legend(fontsize=8, ncols=2, loc="lower right")
axes.grid(alpha=0.3)
plt.show()
for key, slide in slides.items():
    print(f"{key[0]}, seed {key[1]}: from {slide.min():+.2f} to {slide.max():+.2f} pixels")
    assert FAST or (np.ptp(slide) > 2.5 if key[0] == "RoIPool" else np.ptp(slide) < 1.2)

# %% [markdown]
# RoIAlign's answers stay where they are, to a fraction of a pixel. RoIPool's are carried along by the box for a whole stride, and fall
# back by about three to four pixels where the rounding tips over. The reason lies in the two halves of the head's job: *features* are read from
# the rounded box, but a *cell* is converted to a place by the box as it is. The two differ by up to half a stride, and the network cannot
# learn to correct this, because nothing that it sees tells it how the box was rounded. All it can do is blur its maps (its loss stays higher).
# And the OKS circles are small: for our figures the one of 0.5 has a radius of about two to four pixels, so two pixels decide
# between found and not found.
#
# A box head can shrug that off: IoU hardly notices two pixels in forty. A mask loses its outline. A keypoint has nothing but its place.
#
# ## Exercises
#
# **1.** Write the backward pass of the loss. The attempt below is how people often begin: see what `check` says about it, and correct it.

# %%
exercises.describe("keypoint_loss_backward")


# %%
def my_keypoint_loss_backward(gy, logits, cells, valid):
    p = np.exp(logits) / np.exp(logits).sum(axis=3, keepdims=True)
    gx = p.reshape(*cells.shape, -1)
    roi, keypoint = np.indices(cells.shape)
    gx[roi, keypoint, cells] -= 1
    return (gy * gx * valid[:, :, None] / max(valid.sum(), 1)).reshape(logits.shape)


exercises.check("keypoint_loss_backward", my_keypoint_loss_backward)

# %% [markdown]
# **2.** Write object keypoint similarity from its formula.

# %%
exercises.describe("oks")


# %%
def my_oks(found, keypoints, areas, sigmas):
    d2 = ((found[:, None] - keypoints[None, :, :, :2]) ** 2).sum(axis=3)  # (D, G, K)
    return np.exp(-d2 / (2 * areas[:, None] * (2 * sigmas) ** 2)).mean(axis=2)


exercises.check("oks", my_oks)

# %% [markdown]
# **3.** On paper: a detector finds every corner to the pixel, but confuses left and right in one figure out of five. Its boxes and classes are perfect. What is its AP (averaged over the ten thresholds), if all figures have four corners?
#
# <details><summary>Answer</summary>
#
# Confused figures have an OKS of 0.5, the others 1. At the threshold 0.50 all are found (0.5 is enough), at the nine others four out of five.
# If confused figures turn up at any score, precision is 0.8 all the way to the largest recall, 0.8: AP at these thresholds is about
# $0.8 \cdot 0.8 = 0.64$, and $(1 + 9 \cdot 0.64) / 10 \approx 0.68$ overall. If the confused ones have the lowest scores, precision is 1 up to
# that recall, so it is 0.8 at the nine and 0.82 overall: AP rewards a detector that knows when it hesitates.
#
# </details>
#
# **4.** The head's deconvolution has a bias for each keypoint. What gradient does this loss give it, and what would weight decay do to it?
#
# <details><summary>Answer</summary>
#
# The bias is added to all cells of a map (bilinear upscaling keeps constants), and the gradients of a map sum to 0: nothing but rounding reaches it. So only weight decay would move it, towards 0; minimask does not decay biases, so it stays where it was.
#
# </details>
#
# **5.** A person fills a third of the box. With which $m$ would the eyes ($\sigma = 0.025$) lose 0.01 of OKS to the cells? What does that $m$ cost?
#
# <details><summary>Answer</summary>
#
# $m^2 = 1 / (48 \cdot \frac13 \cdot 0.025^2 \cdot 0.01) = 10^4$: $m = 100$. The last layers have $(100/56)^2 \approx 3.2$ times as many cells. If the maps are smooth, a parabola through the peak is cheaper.
#
# </details>
#
# **6.** Give `leaning` a `most` of $\pi$, so that figures point in every direction, and train again. Which corners are confused, and with which? Then train for ten times as many steps.
#
# <details><summary>Answer</summary>
#
# First the head learns "a corner": some corner is found to a pixel or two, but not which one, and the probability is shared among them (look at the maps). The tail, which has an angle of its own, is told apart first;
# tip, left and right come last. As long as these three share the probability equally, the loss stays about $\log 3$ above where it can end.
#
# </details>
#
# **7.** Replace `ALIGN` by `partial(F.roi_warp, sampling_ratio=2, aligned=True)`: the box is rounded, the bins are not, and values are interpolated. Before you run it: will it come out nearer to RoIPool or to RoIAlign? What will the sliding box show?
#
# <details><summary>Answer</summary>
#
# The features still come from a rounded box, and the cells are still converted by the box as it is, so the saw teeth of the sliding box must remain: no interpolation
# inside the box can know how its edges were moved. The paper's table 2c finds the same for masks (ResNet-50-C4): an AP of 27.1 for RoIWarp and 26.9 for RoIPool, against 30.3
# for RoIAlign.
#
# </details>
#
# ## Read on
#
# * K. He, G. Gkioxari, P. Dollár, R. Girshick, *Mask R-CNN*, ICCV 2017: section 5, tables 4 to 6.
# * M. Ronchi, P. Perona, *Benchmarking and error diagnosis in multi-instance pose estimation*, ICCV 2017: what OKS counts, and which errors there are (jitter, inversion, swap, miss).
# * F. Zhang and others, *Distribution-aware coordinate representation for human pose estimation*, CVPR 2020: decoding better than to a cell.
# * The code: `source(minimask.models.keypoint_head)`, `source(minimask.keypoints)`, `source(F.keypoint)`; [docs/keypoints.md](../docs/keypoints.md) says what systems do differently.
#
# Next: [13 A gradient check of everything](13_gradient_check_of_everything.ipynb),
# which takes all these layers as one function and holds its gradient to finite differences.
