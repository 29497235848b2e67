# ruff: noqa: E402, E501

# %% [markdown]
# # 04 Anchors and the region proposal network
#
# **Time** 3 to 4 hours with pencil, paper and exercises (an hour and a quarter to read); it runs in about
# a minute. **Needs** notebooks 01 and 02; of 03 the pyramid: five maps P2 to P6, at strides of 4 to 64
# pixels. No GPU, no downloads.
#
# How many objects are there in an image? A network has a fixed number of outputs, an image has any number
# of objects, and they come in no order. The **region proposal network** (RPN; Ren et al., 2015) turns
# that into a question with a fixed number of answers: cover the image with tens of thousands of boxes,
# the **anchors**, and ask of each: *is there an object about here, and how must this box be moved and
# stretched to fit it?* What comes out, sorted and thinned, is the proposals that the heads of Mask R-CNN
# look at.
#
# Afterwards you can
#
# 1. compute the anchors of a level, and say from their size and stride what the matching *can* achieve;
# 2. say which anchor learns which object, why some matches have to be rescued, and what becomes of a
#    network that goes without this rescue;
# 3. derive both losses of the RPN and the backward pass of its head over all levels;
# 4. follow a proposal through decode, clip, top-k and non-maximum suppression, and say why no gradient
#    flows through it.

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
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection

from minimask import Tensor, exercises, models, no_grad, tutorial
from minimask import functions as F
from minimask.anchors import AnchorGenerator
from minimask.boxes import (
    BoxCoder,
    batched_nms,
    box_iou,
    clip_boxes_to_image,
    nms,
    nms_loop,
    remove_small_boxes,
)
from minimask.data import Augmentation, Batches, nuclei_sample
from minimask.functions.activation import sigmoid_array
from minimask.functions.explicit_rpn_head import RPNHead, rpn_head_reference
from minimask.functions.loss import RPNLoss, _sigmoid_cross_entropy, _smooth_l1
from minimask.matching import BELOW_LOW, BETWEEN, Matcher, sample_balanced
from minimask.models.rpn import RPN, top_k, top_of_each_level
from minimask.randomness import Draws
from minimask.training.optim import SGD, LearningRate, clip_gradients
from minimask.tutorial import BLUE, GREEN, GREY, ORANGE, RED, source

COLOURS, LEVELS = (BLUE, GREEN, ORANGE, RED, GREY), ("P2", "P3", "P4", "P5", "P6")
train_set, validation_set = nuclei_sample("train"), nuclei_sample("val")


def draw_boxes(axes, boxes, **style):
    """Outlines of boxes (N, 4)."""
    x1, y1, x2, y2 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    corners = np.stack([x1, y1, x2, y1, x2, y2, x1, y2, x1, y1], axis=1).reshape(-1, 5, 2)
    axes.add_collection(LineCollection(corners, **style))


def show(axes, image, title, gain=1.0):
    """An image (3, H, W) at half resolution, with axes in pixels; an odd last row or column is left out."""
    height, width = (side // 2 * 2 for side in image.shape[1:])
    image = image[:, :height, :width]
    coarse = image.reshape(3, height // 2, 2, width // 2, 2).mean(axis=(2, 4)).transpose(1, 2, 0)
    axes.imshow(np.clip(coarse * gain, 0, 1), extent=(0, width, height, 0), interpolation="nearest")
    axes.set(title=title, xlabel="x in pixels", ylabel="y in pixels", xlim=(0, width), ylim=(height, 0))
    axes.label_outer()


# %% [markdown]
# ## The idea in a picture
#
# Left: an image of nuclei and the anchors of *one* cell on each level of `maskrcnn_small`. On P2 a cell
# is 4 pixels wide and has anchors of about 8 pixels; on each further level both are twice as large. Each
# comes in three shapes. Every cell of every level has its own: the image is covered, densely with small
# boxes and sparsely with large ones.
#
# Middle: a third of the objects (white), and for each the anchor that overlaps it most (orange, dashed).
# These are the ones that the network is trained to find: "this is an object, and your box is off by
# *that* much".
#
# Right: anchors that count as background (one in forty of them is drawn). Nearly all anchors do, and that
# is the other problem of this notebook.

# %%
# alt: The same image of nuclei three times, with boxes. Left, the anchors of one cell of each level, three
#   shapes each, from about 8 pixels on P2 to more than 100 on P6; middle, some of the nuclei boxed, each with
#   its best anchor dashed, a rough fit at best; right, a few of 15,631 background anchors, all over the
#   image.
small = models.maskrcnn_small(num_classes=2, seed=0)
sample = train_set[4]
batch = small.transform([sample.image])
sizes = [tuple(side // 2**k for side in batch.padded_size) for k in range(2, 7)]  # (h, w) of P2..P6
levels = small.rpn.anchors.levels(batch.padded_size, sizes)
anchors = np.concatenate(levels)
iou = box_iou(sample.boxes, anchors)  # (G, A)

_, axes = plt.subplots(1, 3, figsize=(12, 4.2), sharey=True, layout="constrained")
show(axes[0], sample.image, "the anchors of one cell of each level", gain=3)
for boxes, size, colour, name in zip(levels, sizes, COLOURS, LEVELS):
    cell = size[0] // 2 * size[1] + size[1] // 2  # in the middle; three anchors each
    draw_boxes(axes[0], boxes[3 * cell : 3 * cell + 3], colors=colour, lw=1.5, label=name)
axes[0].legend(loc="upper right", fontsize=8)
show(axes[1], sample.image, "objects, and the best anchor of each", gain=3)
draw_boxes(axes[1], sample.boxes[::3], colors="white", lw=1)
draw_boxes(axes[1], anchors[iou.argmax(axis=1)][::3], colors=ORANGE, lw=1.2, ls="--")
background = anchors[iou.max(axis=0) < 0.3]
show(axes[2], sample.image, f"{len(background):,} of {len(anchors):,} anchors: background", gain=3)
draw_boxes(axes[2], background[::40], colors=BLUE, lw=0.5)
plt.show()

# %% [markdown]
# ## Anchors
#
# An anchor of size $a$ (the root of its area) and aspect ratio $r$ (height over width) has
#
# $$w = a / \sqrt r, \qquad h = a \sqrt r, \qquad w h = a^2, \quad h / w = r ,$$
#
# so that the three ratios ½, 1 and 2 are three shapes *of one area*. There is not much more to it, but
# libraries differ in each of these: the order of the anchors within a cell; whether corners are rounded
# to whole pixels (torchvision: yes); and where in the cell they are centred (torchvision and detectron2:
# at its corner; `maskrcnn_small`: in its middle). (Notebook 03 found that a cell's receptive field is
# centred at the corner, too. The network learns a constant offset either way. A *checkpoint*, however,
# has learnt one of the two: read it with the other convention, and all boxes are off by half a cell
# without any warning.)

# %%
source(AnchorGenerator.cell_anchors, AnchorGenerator._level)

# %%
paper = AnchorGenerator()  # as torchvision and the paper have it: 32 to 512 pixels at strides 4 to 64
ours = small.rpn.anchors
for name, generator in (("maskrcnn_resnet50_fpn", paper), ("maskrcnn_small", ours)):
    print(f"{name}: {', '.join(f'{size}' for (size,) in generator.sizes)} pixels;", end=" ")
    first = generator.cell_anchors(0)
    print("w x h on P2:", ", ".join(f"{x2 - x1:.4g} x {y2 - y1:.4g}" for x1, y1, x2, y2 in first))
shapes = [(800 // s, 1344 // s) for s in (4, 8, 16, 32)] + [(13, 21)]
print(f"an image of 800 x 1344 pixels has {len(paper((800, 1344), shapes)):,} anchors")
areas = (first[:, 2] - first[:, 0]) * (first[:, 3] - first[:, 1])

# %%
assert np.allclose(areas, ours.sizes[0][0] ** 2)  # not rounded, so exactly of one area

# %% [markdown]
# ## Matching: who learns what?
#
# Overlap is measured by intersection over union,
#
# $$\mathrm{IoU}(a, b) = \frac{|a \cap b|}{|a \cup b|} ,$$
#
# 1 for equal boxes, 0 for disjoint ones, and independent of the scale. Section 3.1.2 of Faster R-CNN then
# says: an anchor is
#
# * **positive** if its IoU with some object is at least 0.7 (the paper: higher), and it answers for the
#   object that it overlaps most;
# * **negative** (background) if its IoU with every object is below 0.3;
# * **ignored** in between: it is neither a good example of an object nor of background;
# * and also positive, *however low its IoU*, if no anchor overlaps some object more than it does. This is
#   the **rescue**: without it, no anchor would learn an object that none of them fits well.

# %%
source(Matcher.__call__)

# %% [markdown]
# The rescue has two traps. It looks for *equality* with an object's maximum, so that all anchors that tie
# are rescued. And an object whose maximum is 0, which no anchor touches at all, must rescue nobody;
# otherwise *every* anchor ties at 0, and all the background turns into objects. (torchvision does that;
# it takes an object outside all anchors, which is rare.) Here is what minimask makes of a small matrix of
# IoUs, whose third object is touched by no anchor:

# %%
HIGH, LOW = 0.7, 0.3  # of the IoU: an anchor is positive from here on, background below there
matcher = Matcher(HIGH, LOW, allow_low_quality_matches=True)
toy = np.array([[0.8, 0.6, 0.4, 0.1, 0.0], [0.0, 0.2, 0.5, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
matches = matcher(toy)
words = {BELOW_LOW: "background", BETWEEN: "ignored"}
for i, match in enumerate(matches):
    print(f"anchor {i}: IoU with the objects {toy[:, i]} -> {words.get(int(match), f'object {match}')}")

# %%
rescued = ((toy == toy.max(axis=1, keepdims=True)) & (toy > 0)).any(axis=0)
best_iou = toy.max(axis=0)
wanted = np.where(best_iou < LOW, BELOW_LOW, BETWEEN)
wanted = np.where(rescued | (best_iou >= HIGH), toy.argmax(axis=0), wanted)
assert list(matches) == list(wanted)
assert (matcher(np.zeros((1, 5))) == BELOW_LOW).all()  # an object that nobody touches

# %% [markdown]
# Anchor 2 shows the rescue at work: its IoU is only 0.5, but no anchor has a higher one with object 1.
#
# ### How well *can* an anchor match?
#
# Take the best case, a square object of exactly the size $a$ of an anchor on a level of stride $s$.
# Anchors stand $s$ apart, so at worst the object's centre is half a stride away from the nearest one, in
# x and in y. The intersection is $(a - s/2)^2$, and with $\rho = a / s$
#
# $$\mathrm{IoU}_{\text{worst}} = \frac{(\rho - \frac12)^2}{2 \rho^2 - (\rho - \frac12)^2} .$$
#
# In the FPN paper $\rho = 32/4 = 8$ on every level: at worst 0.78, above the threshold. `maskrcnn_small` is
# made for small objects and has $\rho = 8/4 = 2$. At worst: **0.39**, hardly above the threshold for
# *background*. The figure shows the best IoU that a square of any side finds among the anchors, over its
# possible positions: the median, and the worst.


# %%
# alt: IoU of the best anchor over the side of a square object, for maskrcnn_small and for the paper's sizes.
#   From 8 pixels on, the former has a median of 0.5 to 0.65 and a worst case near 0.4, always below the 0.7
#   of a positive; the paper's peak near 0.8 to 0.9 at each anchor size and fall to 0.5 in between.
def worst_iou(ratio):
    return (ratio - 0.5) ** 2 / (2 * ratio**2 - (ratio - 0.5) ** 2)


def best_of_squares(generator, side, centres):
    """For a square object of this side at each centre: the IoU of its best anchor."""
    found = generator((128, 128), [(128 // s, 128 // s) for s in (4, 8, 16, 32, 64)])
    return box_iou(np.concatenate([centres - side / 2, centres + side / 2], axis=1), found).max(axis=1)


unrounded = replace(paper, rounded=False, offset=0.5)
steps = np.arange(0, 64, 4 if FAST else 2)
centres = 32.0 + np.stack(np.meshgrid(steps, steps), axis=-1).reshape(
    -1, 2
)  # every position within P6's cell
_, axes = plt.subplots(1, 2, figsize=(11.5, 3.9), sharey=True, layout="constrained")
for axis, name, generator in zip(axes, ("maskrcnn_small", "the paper's sizes"), (ours, unrounded)):
    low = generator.sizes[0][0]
    sides = np.geomspace(low / 2, low * 16, 13 if FAST else 25)  # half the smallest to the largest
    best = np.array([best_of_squares(generator, side, centres) for side in sides])
    axis.semilogx(sides, np.median(best, axis=1), "-", color=BLUE, label="median over the positions")
    axis.semilogx(sides, best.min(axis=1), "--", color=ORANGE, label="worst position")
    exact = np.array([size for (size,) in generator.sizes])
    axis.plot(
        exact,
        worst_iou(exact / np.array([4, 8, 16, 32, 64])),
        "D",
        color=RED,
        label="worst, derived for square anchors",
    )
    for threshold, what in ((HIGH, "positive"), (LOW, "background")):
        axis.axhline(threshold, color=GREY, lw=0.8)
        at, ha, va = (sides[0], "left", "bottom") if threshold > 0.5 else (sides[-1], "right", "top")
        axis.text(at, threshold, what, ha=ha, va=va, color=GREY)
    axis.set(title=name, xlabel="side of the object in pixels", ylabel="IoU of the best anchor", ylim=(0, 1))
    axis.set_xticks(exact, exact)
    axis.minorticks_off()
axes[0].legend(loc="lower right", fontsize=8)
plt.show()
print(f"derived for equal sizes: {worst_iou(2):.3f} and {worst_iou(8):.3f}")
at_corner = np.array([[64.0, 64.0]])  # between four cells of every level
for generator, ratio in ((ours, 2), (unrounded, 8)):
    squares = replace(generator, aspect_ratios=((1.0,),) * 5)
    assert np.isclose(
        best_of_squares(squares, generator.sizes[0][0], at_corner)[0], worst_iou(ratio), atol=1e-6
    )

# %% [markdown]
# (The dashed line may run above the diamonds, since the other two shapes sometimes overlap a square
# better.) In between two sizes even the paper's anchors fall to 0.5: there, too, the rescue has to step
# in, though less often.
#
# ### The surprise: nine of ten positives are rescued
#
# So what becomes of real nuclei? Count, over all packaged training images, the positives by reason.

# %%
# alt: Left, the anchors of all training images as bars on a logarithmic axis: 101 with an IoU of 0.7 or more,
#   1,212 rescued, 11,810 ignored, 654,656 background. Right, a histogram of the IoU of each nucleus's best
#   anchor: a hump with its peak near 0.54, mostly left of the line at 0.7 from which an anchor is positive.
strict = replace(matcher, allow_low_quality_matches=False)
fits, best_of_object = f"IoU of {HIGH} or more", []
counts = {fits: 0, "rescued": 0, "ignored": 0, "background": 0}
for i in range(0, len(train_set), 4 if FAST else 1):
    boxes = train_set[i].boxes
    padded = tuple(-(-side // 32) * 32 for side in train_set[i].image.shape[1:])
    found = ours(padded, [tuple(-(-side // s) for side in padded) for s in (4, 8, 16, 32, 64)])
    overlaps = box_iou(boxes, found)
    by_threshold, all_matches = strict(overlaps), matcher(overlaps)
    counts[fits] += int((by_threshold >= 0).sum())
    counts["rescued"] += int(((all_matches >= 0) & (by_threshold < 0)).sum())
    counts["ignored"] += int((all_matches == BETWEEN).sum())
    counts["background"] += int((all_matches == BELOW_LOW).sum())
    best_of_object.append(overlaps.max(axis=1))
best_of_object = np.concatenate(best_of_object)

_, axes = plt.subplots(1, 2, figsize=(11.5, 3.2), layout="constrained")
bars = axes[0].barh(list(counts), list(counts.values()), color=(BLUE, ORANGE, GREY, GREY))
axes[0].bar_label(bars, fmt="{:,.0f}", padding=3)
axes[0].set(xscale="log", xlim=(10, 3e7), xlabel="anchors", title="anchors of all training images")
axes[0].invert_yaxis()
axes[1].hist(best_of_object, bins=np.linspace(0, 1, 41), color=BLUE)
axes[1].axvline(HIGH, color=RED)
axes[1].text(HIGH + 0.01, axes[1].get_ylim()[1] * 0.98, "positive", color=RED, va="top", fontsize=9)
axes[1].set(
    xlabel="IoU of the object's best anchor",
    ylabel="objects",
    title="what the best anchor of each nucleus achieves",
)
plt.show()
share = np.mean(best_of_object < HIGH)
print("anchors:", "; ".join(f"{count:,} {name}" for name, count in counts.items()))
print(f"{len(best_of_object):,} nuclei; {100 * share:.0f} % have no anchor of IoU {HIGH}:")
print("without the rescue, no anchor would ever learn to find them")

# %%
assert HIGH < 0.7 or (share > 0.6 and counts["rescued"] > 2 * counts[fits])

# %% [markdown]
# What Faster R-CNN provides for "some rare cases" carries the whole training here. We shall soon see what
# becomes of a network that has to do without.
#
# ## Sampling
#
# Look at the numbers again: there are five hundred times as many background anchors as positive ones. If
# all anchors were in the loss, "there is never anything" would be an excellent answer. So the loss sees
# 256 anchors per image, of which **at most half** are positive; the rest are drawn from the background.
# Ignored anchors are never drawn. If there are few positives, background makes up the number.

# %%
source(sample_balanced)

# %%
# alt: The same image of nuclei three times, with anchors: 74 positive ones, one or a few on most nuclei; 663
#   ignored ones, piled up so densely on the nuclei that they nearly hide them; and 182 drawn from the
#   background, most of them small and scattered over the whole image.
matches = matcher(iou)
rng = np.random.default_rng(0)
DRAWN, SHARE = 256, 0.5  # anchors of an image, and how many of them are positive at most
positive, negative = sample_balanced(matches, DRAWN, SHARE, rng)
print(f"{(matches >= 0).sum()} positive, {(matches == BETWEEN).sum()} ignored,", end=" ")
print(f"{(matches == BELOW_LOW).sum():,} background")
print(f"drawn: {len(positive)} positive, {len(negative)} background")

_, axes = plt.subplots(1, 3, figsize=(12, 4.2), sharey=True, layout="constrained")
for axis, chosen, colour, title in zip(
    axes,
    (positive, np.flatnonzero(matches == BETWEEN), negative),
    (ORANGE, GREEN, BLUE),
    ("positive, drawn", "ignored, all", "background, drawn"),
):
    show(axis, sample.image, f"{title}: {len(chosen)}", gain=3)
    draw_boxes(axis, anchors[chosen], colors=colour, lw=0.7)
plt.show()

# %%
assert len(positive) <= DRAWN * SHARE and len(positive) + len(negative) == DRAWN
assert (matches[positive] >= 0).all() and (matches[negative] == BELOW_LOW).all()
again = sample_balanced(matches, DRAWN, SHARE, np.random.default_rng(0))

# %%
assert all(
    np.array_equal(a, b) for a, b in zip(again, (positive, negative))
)  # nothing hidden: same rng, same draw

# %% [markdown]
# ## Box coding
#
# What should the network output to describe a box? Not pixels: an error of 4 pixels is a catastrophe for
# a nucleus and nothing for a house. Code the box $(x, y, w, h)$, by its centre and size, against the
# anchor $(x_a, y_a, w_a, h_a)$:
#
# $$d_x = \frac{x - x_a}{w_a}, \quad d_y = \frac{y - y_a}{h_a}, \quad d_w = \log\frac{w}{w_a}, \quad d_h = \log\frac{h}{h_a}.$$
#
# Multiply everything by a factor, and the code stays the same: one small convolution can serve all
# levels. With the logarithm, twice as wide and half as wide are equally far away, and decoding,
#
# $$x = x_a + d_x w_a, \qquad w = w_a e^{d_w},$$
#
# gives a positive width for *any* output. But the exponential overflows, so $d_w$ and $d_h$ are cut off
# at $\log(1000/16)$: an untrained network must not produce an `inf`.

# %%
source(BoxCoder._encode, BoxCoder._decode)  # what `encode` and `decode` do, for some rows at a time

# %%
# alt: Histograms of the four targets dx, dy, dw and dh over the drawn positives. All are centred near 0 and
#   lie between about -0.65 and 0.6; dx and dy are narrower, with standard deviations of 0.16 and 0.15, than
#   dw and dh with 0.28 and 0.29.
coder = BoxCoder()
targets = coder.encode(sample.boxes[matches[positive]], anchors[positive])
back = coder.decode(targets, anchors[positive])[:, 0]
print(
    "largest error of decode(encode(box)):",
    f"{np.abs(back - sample.boxes[matches[positive]]).max():.0e} pixels",
)
scaled = coder.encode(7 * sample.boxes[matches[positive]], 7 * anchors[positive])
assert np.allclose(back, sample.boxes[matches[positive]], atol=1e-3) and np.allclose(
    targets, scaled, atol=1e-5
)
assert np.isfinite(coder.decode(np.full((1, 4), 1e4, np.float32), anchors[:1])).all()

_, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
bins = np.linspace(-1.2, 1.2, 49)
for k, (name, colour, style) in enumerate(
    zip(("dx", "dy", "dw", "dh"), (BLUE, ORANGE, GREEN, RED), ("-", "--", "-.", ":"))
):
    axes.hist(
        targets[:, k],
        bins=bins,
        histtype="step",
        color=colour,
        ls=style,
        lw=1.5,
        label=f"{name}, std {targets[:, k].std():.2f}",
    )
axes.set(
    xlabel="what the regressor has to output for the drawn positives",
    ylabel="anchors",
    title="targets of the box branch",
)
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# All four are of the same order, a few tenths, whatever the size of the nuclei, so the loss need not
# weight them. (The second stage sees better boxes, so its targets are smaller, and it multiplies them by
# 10, 10, 5, 5: notebook 07.)
#
# ## Two losses
#
# **Objectness** is a yes or no for each anchor: binary cross-entropy. With the sigmoid
# $\sigma(x) = 1/(1 + e^{-x})$ and a target $t \in \{0, 1\}$, use $1 - \sigma(x) = \sigma(-x)$ and
# $\log \sigma(x) = -\log(1 + e^{-x})$:
#
# $$\begin{aligned}
# L(x, t) &= -t \log \sigma(x) - (1 - t) \log \sigma(-x) = t \log(1 + e^{-x}) + (1 - t) \log (1 + e^{x}) \\
#         &= \max(x, 0) - x t + \log(1 + e^{-|x|}) .
# \end{aligned}$$
#
# The last line is for the computer: no exponential of a positive number. And since
# $\frac{d}{dx} \log(1 + e^x) = \sigma(x)$, the derivative is as simple as it could be:
#
# $$\frac{dL}{dx} = -t\,\sigma(-x) + (1 - t)\,\sigma(x) = \sigma(x) - t .$$
#
# **The box** of a positive anchor has the smooth L1 loss of $d = \text{output} - \text{target}$, summed
# over the four numbers:
#
# $$f(d) = \begin{cases} d^2 / (2\beta) & |d| < \beta \\ |d| - \beta/2 & \text{else,} \end{cases}
# \qquad f'(d) = \begin{cases} d / \beta & |d| < \beta \\ \operatorname{sign} d & \text{else.} \end{cases}$$
#
# Value and slope agree at $\pm\beta$. A squared error alone would let one hopeless match (and rescued
# matches *are* far off) dominate the gradient; $|d|$ alone never settles, since its slope stays 1 right
# up to the minimum. Here $\beta = 1/9$.

# %%
# alt: Left, cross-entropy over the logit for targets 1 and 0: mirror images that cross at a logit of 0, near
#   0.7, with slopes from -1 to 0 and from 0 to 1. Right, smooth L1 over the error: for beta 0.11 a V with a
#   round tip, its slope running from -1 to 1 within 0.11 of zero; for beta 1 a parabola with a straight line
#   as slope.
x = np.linspace(-6, 6, 241)
d = np.linspace(-1, 1, 401)


def per_element(piece, points, *rest):
    """Value at each point, of a function that gives the sum; and its derivative."""
    return np.array([piece(np.array([p]), *rest, np)[0] for p in points]), piece(points, *rest, np)[1]


_, axes = plt.subplots(1, 2, figsize=(11.5, 3.6), layout="constrained")
for t, colour in ((1.0, ORANGE), (0.0, BLUE)):
    value, slope = per_element(_sigmoid_cross_entropy, x, t)
    axes[0].plot(x, value, color=colour, label=f"loss, target {t:.0f}")
    axes[0].plot(x, slope, color=colour, ls="--", label=f"its slope, target {t:.0f}")
for beta, colour in ((1 / 9, BLUE), (1.0, ORANGE)):
    value, slope = per_element(_smooth_l1, d, 0.0, beta)
    axes[1].plot(d, value, color=colour, label=f"loss, β = {beta:.2g}")
    axes[1].plot(d, slope, color=colour, ls="--", label=f"its slope, β = {beta:.2g}")
axes[0].set(
    xlabel="logit x",
    ylabel="loss, and loss per logit",
    title="objectness: binary cross-entropy",
    ylim=(-1.5, 6),
)
axes[1].set(xlabel="error d", ylabel="loss, and loss per d", title="box: smooth L1")
for axis in axes:
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
plt.show()

with np.errstate(over="ignore", divide="ignore"):
    far = np.float32(-100)
    naive = -np.log(1 / (1 + np.exp(-far)))  # -log sigmoid(x), as the formula reads
computed = _sigmoid_cross_entropy(np.array([far]), 1.0, np)[0]
print(f"target 1, x = {far}: as the formula reads {naive}, as computed {computed}")

# %%
assert computed == -far and (far > -88 or np.isinf(naive))

# %% [markdown]
# ### Both for all sampled anchors, as one Function
#
# Faster R-CNN (equation 1) writes the sum of the two as
#
# $$L = \frac{1}{N_{cls}} \sum_i L_{cls}(p_i, p_i^*) + \lambda\, \frac{1}{N_{reg}} \sum_i p_i^*\, L_{reg}(d_i, d_i^*),$$
#
# with $p_i^* = 1$ for a positive anchor and 0 for background, so that background has no box loss. There
# $N_{cls} = 256$, the anchors drawn; $N_{reg} \approx 2400$, the number of *positions* of the map (not of
# positives, as one might think); and $\lambda = 10$, so that $\lambda / N_{reg} \approx 1/240$ and both
# terms weigh about alike. The paper tries $\lambda$ from 0.1 to 100 and finds that between 1 and 100 it
# matters little. Today's code, torchvision's, detectron2's and ours, has dropped both numbers:
# $N_{reg} = N_{cls}$ and $\lambda = 1$, which is nearly the same, 1/256 instead of 1/240.
#
# So both sums are divided by the *same* number, that of all anchors drawn (256 per image). Then the box
# loss of an image with one positive counts a hundredth of that of an image with a hundred, as it should:
# every *match* counts the same, not every image. (If one divided by the number of positives, a lone
# rescued match would weigh as much as a crowd.)

# %%
source(RPNLoss)

# %% [markdown]
# The gradient is zero for every anchor that was not drawn: of more than 16,000, only 256 have a say. And
# before any training, the logits are about 0, so $L \approx \log 2$ whatever the targets are. That is a
# number worth remembering: if the first objectness loss is not about 0.69, look for a bug.

# %%
with no_grad():
    out = small.rpn(small.backbone(Tensor(batch.images)), batch)
logits, deltas = Tensor(out.logits.data, True), Tensor(out.deltas.data, True)
objectness, box = F.rpn_loss(logits, deltas, positive, negative, targets)
(objectness + box).backward()
print(f"objectness {objectness.item():.3f} (log 2 = {np.log(2):.3f}), box {box.item():.3f}")
spoken = np.flatnonzero(logits.grad[0])
spoken_boxes = np.count_nonzero(deltas.grad.any(axis=2))
print(f"{len(spoken)} of {logits.size:,} logits and {spoken_boxes} of {logits.size:,} boxes have a gradient")
assert abs(objectness.item() - np.log(2)) < 0.05
assert np.array_equal(spoken, np.sort(np.concatenate([positive, negative])))
assert np.array_equal(np.flatnonzero(deltas.grad[0].any(axis=1)), positive)
wanted = (sigmoid_array(logits.data[0, positive], np) - 1) / DRAWN

# %%
assert np.allclose(logits.grad[0, positive], wanted, rtol=1e-6)  # (sigma(x) - t) / 256

# %% [markdown]
# ## The head
#
# On each level there is a 3 x 3 convolution with a ReLU, and after it two 1 x 1 convolutions, which give
# $K$ logits and $4K$ box numbers for each cell with its $K = 3$ anchors:
#
# $$h_l = \max(0, w * x_l + b), \qquad o_l = u\, h_l + c, \qquad d_l = v\, h_l + e, \qquad l = 2 \dots 6 .$$
#
# There is **one** set of weights for all five levels: a small nucleus on P2 and a large one on P4 look
# alike to it, since box coding has taken out the scale. Who reads $w$? Every level. So its gradient is a
# sum over the levels,
#
# $$\bar u = \sum_l \sum_{\text{cells}} \bar o_l\, h_l^\top, \qquad \bar h_l = u^\top \bar o_l + v^\top \bar d_l, \qquad
# \bar z_l = \bar h_l \cdot [h_l > 0], \qquad \bar w = \sum_l (\bar z_l \star x_l), \qquad \bar x_l = w \star^{\!\top} \bar z_l ,$$
#
# with the convolution's own gradients from notebook 02 ($\star$ for the correlation with the input,
# $\star^\top$ for its transpose). The forward pass takes two lines per level. The rest is a matter of
# order: a list of anchors runs through the cells, row by row, and in each cell through its anchors.


# %%
def plain_rpn_head(levels, conv, objectness, deltas):
    """Logits (N, A) and deltas (N, A, 4) of maps (N, C, H_l, W_l), with one set of weights for all levels."""
    all_logits, all_deltas = [], []
    for x in levels:
        h = F.relu(F.conv2d(x, *conv, padding=1))
        o, d = F.conv2d(h, *objectness).numpy(), F.conv2d(h, *deltas).numpy()  # (N, K, H, W), (N, 4K, H, W)
        _, kinds, rows, columns = o.shape
        for row, column, k in np.ndindex(rows, columns, kinds):  # the order of the anchors
            all_logits.append(o[:, k, row, column])
            all_deltas.append(d[:, 4 * k : 4 * k + 4, row, column])
    return np.stack(all_logits, axis=1), np.stack(all_deltas, axis=1)


# %% [markdown]
# In minimask this is *one* Function, with the backward pass above; $u$ and $v$ are stacked, so that both
# 1 x 1 convolutions are one matrix product, and the order is a transpose.

# %%
source(RPNHead)

# %%
rng = np.random.default_rng(1)
maps = [rng.normal(size=(2, 8, n, n)) for n in (8, 4, 2)]  # three levels, 8 channels
weights = [
    (rng.normal(size=(8, 8, 3, 3)) / 6, rng.normal(size=8)),
    (rng.normal(size=(3, 8, 1, 1)), rng.normal(size=3)),
]
weights.append((rng.normal(size=(12, 8, 1, 1)), rng.normal(size=12)))
results = []
for head in (F.rpn_head, rpn_head_reference):  # one Function; thirty-odd small ones
    xs = [Tensor(x, True) for x in maps]
    parameters = [tuple(Tensor(v, True) for v in pair) for pair in weights]
    outs = head(xs, *parameters)
    sum((y * np.random.default_rng(2).normal(size=y.shape)).sum() for y in outs).backward()
    results.append([y.numpy() for y in outs] + [t.grad for t in (*xs, *sum(parameters, ()))])
worst = max(np.abs(a - b).max() for a, b in zip(*results))
print(f"one Function against small ones, outputs and all gradients: largest difference {worst:.0e}")
plain = plain_rpn_head(maps, *weights)
of_plain = max(np.abs(a - b).max() for a, b in zip(plain, results[0]))
print(f"and against the plain lines, outputs: {of_plain:.0e}")

# %%
assert worst < 1e-11 and of_plain < 1e-11

# %% [markdown]
# ### Do logits and anchors have the same order?
#
# A convolution gives (N, K, H, W), a list of anchors runs through cells and then through the K anchors of
# a cell. `_position_major` puts one into the order of the other, and a wrong transpose there is the
# classic bug of this stage: nothing crashes, the shapes fit, the network even learns a little. So test it
# from outside: poke one cell of one level, see which logits move, and look up where *their anchors* are:

# %%
quiet = [np.zeros((1, 64, *size), np.float32) for size in sizes]
with no_grad():
    still = small.rpn.head([Tensor(x) for x in quiet])[0].numpy()[0]
    for level, (row, column) in ((0, (20, 45)), (1, (9, 4)), (3, (3, 2))):
        poked = [x.copy() for x in quiet]
        poked[level][0, :, row, column] = np.random.default_rng(3).normal(size=64)
        moved = np.flatnonzero(small.rpn.head([Tensor(x) for x in poked])[0].numpy()[0] != still)
        middles = (anchors[moved, :2] + anchors[moved, 2:]) / 2 / (4 * 2**level)  # in cells
        x1, y1, x2, y2 = *middles.min(axis=0), *middles.max(axis=0)
        print(f"{LEVELS[level]}, row {row:>2}, column {column:>2}: {len(moved)} logits move;", end=" ")
        print(f"their anchors: rows {y1:g} to {y2:g}, columns {x1:g} to {x2:g}")
        assert len(moved) == 27 and (x1, x2, y1, y2) == (column - 0.5, column + 1.5, row - 0.5, row + 1.5)

# %% [markdown]
# These are the three by three cells around the poked one (cell $i$ has its middle at $i + \frac12$), with
# three anchors each: 27.
#
# ### Is it right? The error over the step
#
# Left: the two losses as functions of logits and deltas. Right: losses *of* the head of three levels, as
# a function of the maps and of all weights. Cross-entropy is smooth; the first derivative of smooth L1
# has a corner at $\beta$, where the second jumps; the head's ReLUs have corners themselves. Both make the
# error jump at large steps.

# %%
# alt: Relative error over the step, both logarithmic, for the losses alone and for the losses of the head.
#   Central differences fall to about 1e-11 and 1e-10 and turn; then central and five-point errors jump up,
#   near a step of 3e-3 on the left, and near 2e-4 on the right, where they end above 0.01.
some = np.sort(rng.choice(2 * 252, 40, replace=False))  # anchors of two images, 252 each, that are drawn
code = rng.normal(size=(15, 4))


def losses(logits, deltas):
    return F.rpn_loss(logits, deltas, some[:15], some[15:], code)


def losses_of_head(*tensors):
    return losses(*F.rpn_head(tensors[:3], tensors[3:5], tensors[5:7], tensors[7:9]))


steps = np.logspace(-13, 0, 27 if FAST else 53)
_, axes = plt.subplots(1, 2, figsize=(11.5, 4), sharey=True, layout="constrained")
cases = {
    "losses": (losses, [rng.normal(size=(2, 252)), rng.normal(size=(2, 252, 4))]),
    "losses of the head, all weights": (losses_of_head, [*maps, *sum(weights, ())]),
}
for axis, (title, (function, inputs)) in zip(axes, cases.items()):
    errors = tutorial.step_errors(function, inputs, steps=steps)
    errors.plot(axis, title)
    axis.label_outer()
    print(f"{title:<32} best error of central differences {errors.best():.0e}")
    assert errors.best() < 1e-8
plt.show()

# %% [markdown]
# ## Training, for a few seconds
#
# We train `maskrcnn_small`'s backbone and RPN, from random weights, on crops of the packaged nuclei; no
# heads yet. We do it twice: as it is, and with the rescue switched off and everything else equal.

# %%
STEPS = 20 if FAST else 200


def propose(model, samples, keep=1000):
    """The proposals of each sample's image, best first."""
    model.eval()
    found = []
    with no_grad():
        for s in samples:
            b = model.transform([s.image])
            found += model.rpn.propose(model.rpn(model.backbone(Tensor(b.images)), b), b)
    return [f[:keep] for f in found]


def train_rpn(rescue, seed=0):
    """A model with trained backbone and RPN, and for each step: both losses, and how many positives were drawn."""
    model = models.maskrcnn_small(num_classes=2, seed=seed)
    model.rpn.matcher = replace(model.rpn.matcher, allow_low_quality_matches=rescue)
    parameters = [(n, p) for n, p in model.named_parameters() if n.startswith(("backbone", "rpn"))]
    optimizer, rate = SGD(parameters, lr=0.05), LearningRate(0.05, STEPS, warmup_steps=10)
    batches = Batches(train_set, 2, Augmentation(crop=128, flip_horizontal=True, flip_vertical=True), seed)
    log = []
    for step in range(STEPS):
        samples = batches(step)
        batch = model.transform([s.image for s in samples])
        targets = model.transform.targets([s.target() for s in samples], batch)
        out = model.rpn(model.backbone(Tensor(batch.images)), batch)
        drawn = model.rpn.sample(out, targets, Draws(seed, step))
        losses = model.rpn.loss(out, drawn)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        clip_gradients([p for _, p in parameters], 10.0)
        optimizer.step(rate(step))
        log.append([*(v.item() for v in losses.values()), len(drawn.positive)])
    return model, np.array(log)


validation = [validation_set[i] for i in range(0, len(validation_set), 2 if FAST else 1)]
runs = {"untrained": (models.maskrcnn_small(num_classes=2, seed=0), None)}
runs |= {"without rescue": train_rpn(False), "with rescue": train_rpn(True)}

# %% [markdown]
# How good are proposals? What the heads need is that *each object has some proposal that covers it*:
# **recall**, the share of objects whose best proposal has an IoU of at least 0.5, as a function of how
# many proposals are kept.

# %%
# alt: Left, losses over 200 steps: objectness without rescue ends near 0.02, with rescue near 0.1. Middle,
#   positives drawn at each step: about 5 to 60 with rescue, mostly 0 to 4 without. Right, recall over the
#   proposals kept: with 1000 of them about 0.7 with rescue, less than 0.5 without, below 0.1 untrained.
kept = np.unique(np.geomspace(1, 1000, 19).astype(int))
styles = {"untrained": (GREY, ":"), "without rescue": (ORANGE, "--"), "with rescue": (BLUE, "-")}
_, axes = plt.subplots(1, 3, figsize=(13, 3.7), layout="constrained")
recall = {}
for name, (model, log) in runs.items():
    colour, style = styles[name]
    overlaps = [box_iou(s.boxes, p) for s, p in zip(validation, propose(model, validation))]
    curve = [np.concatenate([o[:, :k].max(axis=1) for o in overlaps]) for k in kept]
    recall[name] = [float((best >= 0.5).mean()) for best in curve]
    axes[2].semilogx(kept, recall[name], color=colour, ls=style, label=name)
    if log is not None:
        smooth = np.ones(5) / 5
        axes[0].plot(
            np.convolve(log[:, 0], smooth, "valid"), color=colour, ls=style, label=f"{name}: objectness"
        )
        axes[0].plot(
            np.convolve(log[:, 1], smooth, "valid"), color=colour, ls=style, lw=0.8, label=f"{name}: box"
        )
        axes[1].plot(log[:, 2], color=colour, ls=style, label=name)
axes[0].axhline(np.log(2), color=GREY, lw=0.8)
axes[0].set(xlabel="step", ylabel="loss, mean of 5 steps", title="thick: objectness, thin: box")
axes[0].set(yscale="log", ylim=(2e-4, 50))
axes[0].legend(fontsize=8, loc="upper right")
axes[1].set(
    xlabel="step",
    ylabel="positives drawn, of 512",
    title="what the loss got to see",
    yscale="symlog",
    ylim=(0, 300),
)
axes[2].set(
    xlabel="proposals kept per image",
    ylabel="recall at IoU 0.5",
    title="nuclei found, validation images",
    ylim=(0, 1),
)
axes[1].legend(fontsize=8)
axes[2].legend(fontsize=8, loc="upper left")
plt.show()
for name, (_, log) in runs.items():
    print(f"{name:<15} recall with 100 proposals {recall[name][list(kept).index(100)]:.2f},", end=" ")
    print(f"with all {recall[name][-1]:.2f}")
    if log is not None:
        print(
            f"{'':<15} last losses: objectness {log[-10:, 0].mean():.3f}, box {log[-10:, 1].mean():.3f};",
            end=" ",
        )
        print(f"{log[:, 2].mean():.1f} positives a step")
lost, kept_losses = runs["without rescue"][1], runs["with rescue"][1]
assert lost[-10:, 0].mean() < kept_losses[-10:, 0].mean()  # the *worse* network has the lower loss
of_100 = {name: values[list(kept).index(100)] for name, values in recall.items()}

# %%
assert FAST or of_100["untrained"] < of_100["without rescue"] < of_100["with rescue"] - 0.1

# %% [markdown]
# Judging by the left picture alone, you would take the network without rescue: **its loss is far lower**.
# It has almost nothing to find, and "background" everywhere is nearly right. Losses of different
# *targets* cannot be compared; recall can. And in two hundred steps the network with the rescue has
# learnt that bright blobs are objects.
#
# ## Proposals, step by step
#
# From logits and deltas to a list of boxes, as `RPN.rank` does it. (`xp` is NumPy, or CuPy where the
# arrays are on a GPU. `# sync` marks the lines where the program has to wait for a GPU, because it needs
# to know *how many* boxes are left. On the CPU there is nothing to wait for.)

# %%
source(RPN.rank, top_of_each_level, top_k)

# %% [markdown]
# We take it apart on a validation image, with the same functions and the options of inference, and see at
# the end whether the same boxes come out.

# %%
model = runs["with rescue"][0].eval()
scene = validation_set[6]
options, (truth, scene_batch) = model.rpn.options, (scene.boxes, model.transform([scene.image]))
with no_grad():
    out = model.rpn(model.backbone(Tensor(scene_batch.images)), scene_batch)
logits, deltas = out.logits.data[0], out.deltas.data[0]

# 1. the best of each level, by score
ends = np.cumsum([0, *out.per_level])
chosen = [begin + top_k(logits[begin:end], options.pre_nms_top_n_test) for begin, end in zip(ends, ends[1:])]
level = np.repeat(np.arange(5), [len(c) for c in chosen])
chosen = np.concatenate(chosen)
# 2. decode: move and stretch each anchor as the network says
decoded = model.rpn.coder.decode(deltas[chosen], out.anchors[chosen])[:, 0]
# 3. clip to the image, and drop what has no area left
clipped = clip_boxes_to_image(decoded, scene_batch.sizes[0])
scores = sigmoid_array(logits[chosen], np)
large = remove_small_boxes(clipped, options.min_size)
# 4. non-maximum suppression, each level for itself, best first; 5. the best of what is left
survivors = batched_nms(clipped[large], scores[large], level[large], options.nms_thresh)
proposals = clipped[large][survivors[: options.post_nms_top_n_test]]

funnel = {
    "anchors": len(out.anchors), "best of each level": len(chosen), "with an area inside": len(large),
    "after NMS": len(survivors), "kept": len(proposals), "objects": len(truth),
}  # fmt: skip
for name, count in funnel.items():
    print(f"{count:>6,} {name}")

# %%
assert np.array_equal(proposals, model.rpn.propose(out, scene_batch)[0])

# %%
# alt: Six panels of one image: its 40 nuclei boxed; a coarse map of objectness, highest on and around nuclei;
#   the 150 best anchors, the best boxes decoded, and the best after NMS, all in much the same piles on the
#   nuclei; and the best proposal of each nucleus, most of them solid (IoU of 0.5 or more), a few dashed
#   (less).
top = scores[large].argsort()[::-1][:150]  # the 150 best boxes, before NMS
height, width = scene.image.shape[1:]
gain = 3.0
_, axes = plt.subplots(2, 3, figsize=(12.5, 7.6), sharex=True, sharey=True, layout="constrained")
show(axes[0, 0], scene.image, f"the image, {len(truth)} nuclei", gain)
draw_boxes(axes[0, 0], truth, colors="white", lw=0.8)
tall, wide = scene_batch.padded_size
maps = [
    sigmoid_array(logits[begin:end], np).reshape(tall // (4 << k), wide // (4 << k), 3).max(axis=2)
    for k, (begin, end) in enumerate(zip(ends, ends[1:]))
]
maps = [m.repeat(1 << k, axis=0).repeat(1 << k, axis=1) for k, m in enumerate(maps)]  # all on P2's grid
heat = axes[0, 1].imshow(np.max(maps, axis=0), cmap="cividis", extent=(0, wide, tall, 0))
axes[0, 1].set_title("objectness: the best of all anchors of a cell")
inside = axes[0, 1].inset_axes((0.04, 0.14, 0.4, 0.04))  # so that all panels keep their size
bar = plt.colorbar(heat, cax=inside, orientation="horizontal")
bar.set_label("probability", color="white")
inside.tick_params(colors="white")
bar.outline.set_edgecolor("white")
for axis, boxes, title, colour in (
    (axes[0, 2], out.anchors[chosen][large][top], "1. the 150 best anchors", BLUE),
    (axes[1, 0], clipped[large][top], "2, 3. decoded and clipped", ORANGE),
    (axes[1, 1], proposals[:150], "4, 5. after NMS: the 150 best", GREEN),
):
    show(axis, scene.image, title, gain)
    draw_boxes(axis, boxes, colors=colour, lw=0.7)
best = box_iou(truth, proposals)
show(axes[1, 2], scene.image, "the best proposal of each nucleus", gain)
for good, colour, style in ((best.max(axis=1) >= 0.5, GREEN, "-"), (best.max(axis=1) < 0.5, RED, "--")):
    draw_boxes(axes[1, 2], proposals[best.argmax(axis=1)[good]], colors=colour, lw=1, ls=style)
for axis in axes.flat:
    axis.label_outer()
plt.show()
print(
    f"{(best.max(axis=1) >= 0.5).sum()} of {len(truth)} nuclei have a proposal with IoU 0.5 or more (green)"
)

# %% [markdown]
# After a few seconds of training, objectness has found most nuclei, and the boxes are rough. That is all
# that is asked of a *proposal*: the box head will move it once more. NMS removes little here: at a
# threshold of 0.7 it takes away only near-copies, and rough boxes are not copies of each other. The
# better the regression, the more boxes land on the same object, and the more NMS has to do.
#
# ### Non-maximum suppression
#
# Go through the boxes by falling score; keep a box unless its IoU with one that is already kept exceeds
# the threshold. In code:

# %%
source(nms_loop)

# %% [markdown]
# Watch it on eight boxes around two nuclei. Row $i$, column $j$: the IoU of box $i$ with the later box
# $j$, outlined where it exceeds the threshold, so that $i$ *would* strike out $j$ if $i$ itself survives.

# %%
# alt: Left, eight overlapping boxes in two groups: 0, 1, 4 and 6 are kept (solid), 2, 3, 5 and 7 struck out
#   (dashed). Right, the IoU of each box with each later one in an 8 x 8 grid; six cells above 0.5 are
#   outlined: 0 with 2 and 5, 1 with 3 and 7, 2 with 5, 4 with 7.
rng = np.random.default_rng(4)
middles = np.repeat([[30.0, 34.0], [62.0, 40.0]], 4, axis=0) + rng.normal(0, 4, (8, 2))
half = 14 + rng.normal(0, 2, (8, 2))
boxes = np.concatenate([middles - half, middles + half], axis=1)[rng.permutation(8)]
eight = np.sort(rng.uniform(0.3, 0.99, 8))[::-1]  # the scores, falling
THRESHOLD = 0.5
kept_boxes = nms(boxes, eight, THRESHOLD)

plain_label = dict(zorder=3, bbox=dict(fc="white", ec="none", pad=0.8))  # above the lines
_, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
for i, (x1, y1, x2, y2) in enumerate(boxes):
    stays = i in kept_boxes
    draw_boxes(
        axes[0], boxes[i], colors=GREEN if stays else GREY, lw=2.5 if stays else 1, ls="-" if stays else "--"
    )
    if stays:  # in the upper left corner, and the others in the lower right one, where they do not meet
        axes[0].text(x1 + 0.6, y1 + 0.6, i, va="top", fontsize=9, weight="bold", color=GREEN, **plain_label)
    else:
        axes[0].text(x2 - 0.6, y2 - 0.6, i, ha="right", va="bottom", fontsize=9, color=GREY, **plain_label)
axes[0].set(
    xlim=(0, 95),
    ylim=(70, 5),
    xlabel="x in pixels",
    ylabel="y in pixels",
    title="kept (solid) and struck out (dashed)",
)
axes[0].set_aspect("equal")
overlap = np.triu(box_iou(boxes, boxes), 1)
picture = axes[1].imshow(np.where(overlap > 0, overlap, np.nan), cmap="cividis", vmin=0, vmax=1)
draw_boxes(
    axes[1],
    [(j - 0.5, i - 0.5, j + 0.5, i + 0.5) for i, j in np.argwhere(overlap > THRESHOLD)],
    colors=RED,
    lw=1.5,
)
axes[1].set(
    xlabel="box j",
    ylabel="box i, better",
    title=f"IoU; outlined above {THRESHOLD}",
    xticks=range(8),
    yticks=range(8),
)
plt.colorbar(picture, ax=axes[1], label="IoU")
plt.show()
struck = {
    int(j): [int(i) for i in kept_boxes if overlap[i, j] > THRESHOLD] for j in range(8) if j not in kept_boxes
}
print("kept:", *kept_boxes)
for j, by in struck.items():
    print(f"box {j} struck out by", *by)

# %%
assert np.array_equal(kept_boxes, nms_loop(boxes, eight, THRESHOLD))
assert all(struck.values())

# %% [markdown]
# Two boxes of each nucleus are left, where the drawn boxes are so far off that they overlap by less than the
# threshold: suppression knows of overlaps, not of nuclei.
#
# The rule is greedy, and that has an odd consequence: a *better* box can bring a worse one back. Three
# boxes in a row; B overlaps A and C, but A and C hardly touch.

# %%
row = np.array([[0.0, 0, 10, 10], [4.0, 0, 14, 10], [8.0, 0, 18, 10]])  # A, B, C
score, at_most = np.array([0.9, 0.8, 0.7]), 0.3
alone, with_a = nms(row[1:], score[1:], at_most), nms(row, score, at_most)
print("B and C alone:", ["ABC"[i + 1] for i in alone], "  with A:", ["ABC"[i] for i in with_a])

# %%
overlap_of_two, overlap_of_ends = box_iou(row, row)[0, 1:]
if overlap_of_ends <= at_most < overlap_of_two:
    assert list(alone) == [0] and list(with_a) == [0, 2]

# %% [markdown]
# A strikes out B, so B can no longer strike out C. A tiny change of one score can change *which* boxes
# come out, through a chain of any length. Keep that in mind for the last question.
#
# ## Why no gradient flows through a proposal
#
# `propose` reads `.data`: the tape ends there. But the heads' losses do depend on the RPN's weights, by
# way of the proposals, whose positions are decoded from the deltas. Why throw that derivative away?
#
# Look at the function itself. Take a model whose RPN is trained, and move the weights of its box branch
# along a random direction, by $t$. Plot the loss *of the heads only* (classification, box and mask),
# twice: with proposals computed anew for each $t$, and with those of $t = 0$ held fixed, which is what
# the tape differentiates.

# %%
# alt: Change of the heads' loss over t, in three plots that zoom in; with proposals held it is 0 throughout,
#   a dashed line. With proposals anew it jumps about, over a range of about 0.1, for t within 1, but is a
#   straight, sloping line within 0.01 and within 1e-6.
model = runs["with rescue"][0].train().astype(np.float64)
model.box_head.options = replace(model.box_head.options, batch_size_per_image=64)  # few are enough to see it
model.rpn.options = replace(model.rpn.options, pre_nms_top_n_train=300, post_nms_top_n_train=300)
crop = Batches(train_set, 1, Augmentation(crop=128), seed=3)(0)
images, targets = [s.image for s in crop], [s.target() for s in crop]
HEADS = ("loss_classifier", "loss_box_reg", "loss_mask")
branch = model.rpn.head.bbox_pred
origin, direction = branch.weight.data, np.random.default_rng(5).normal(size=branch.weight.shape) * 0.01


def loss_of_heads(t, held=None):
    branch.weight.data = origin + t * direction
    with no_grad():
        record = model.training_record(images, targets, Draws(1), held)
    branch.weight.data = origin
    return sum(record.losses[name].item() for name in HEADS)


for parameter in model.parameters():
    parameter.grad = None  # what training left there
record = model.training_record(images, targets, Draws(1))
sum(record.losses[name] for name in HEADS).backward()
print("gradient of the heads' losses with respect to the RPN's box branch:", branch.weight.grad)
assert branch.weight.grad is None  # not even zeros: the tape does not lead there

points = 9 if FAST else 41
_, axes = plt.subplots(1, 3, figsize=(13, 3.7), layout="constrained")
for axis, reach in zip(axes, (1.0, 1e-2, 1e-6)):
    t = np.linspace(-reach, reach, points)
    values = np.array([loss_of_heads(v) for v in t]) - loss_of_heads(0.0)
    axis.plot(t / reach, values, ".-", color=ORANGE, lw=0.8, label="proposals anew")
    axis.axhline(0, color=BLUE, ls="--", label="proposals held")
    axis.set(xlabel="t" if reach == 1 else f"t / {reach:g}", title=f"t up to {reach:g}")
    axis.yaxis.set_major_formatter("{x:g}")  # no power of ten set apart above the axis
axes[0].set_ylabel("change of the heads' loss")
axes[0].legend(fontsize=8)
plt.show()
assert np.ptp([loss_of_heads(v, record) for v in (-1.0, 0.0, 1.0)]) == 0.0
spread = np.ptp([loss_of_heads(v) for v in (-1e-2, 0.0, 1e-2)])
assert spread > 0
print(f"within t = ±0.01 the loss with new proposals moves by {spread:.4f}, with held ones by 0")

# %% [markdown]
# From afar (left) it is noise: whenever the order of scores changes, or an overlap crosses the threshold,
# NMS lets other boxes through, other RoIs are drawn, other objects get matched. From close up (middle and
# right) there is a derivative, but it is the slope of one short piece, which ends at the next jump. It
# says little about where the loss goes beyond: continue the line of the middle panel into the left one, and
# the curve does not follow it. So:
#
# * what *matters*, which proposals there are, has no derivative;
# * what has one, the coordinates of a given proposal, is only half the truth: a moved RoI also gets moved
#   targets, and the heads' loss can be lowered by moving proposals to where it is easy rather than to
#   where the objects are;
# * and the RPN needs no such advice: it has a loss of its own, with true boxes.
#
# Faster R-CNN (section 3.2) calls this *approximate joint training*. minimask's training step defines its
# gradient with proposals, samples and matches as constants, and `training_record(..., held)` makes that
# definition checkable: notebook 13 does so for the whole network.
#
# ## Exercises
#
# **1.** Overlap. The attempt below has two of the common mistakes; the check finds one after the other.

# %%
exercises.describe("box_iou")


# %%
def my_box_iou(a, b):
    low = np.maximum(a[:, None, :2], b[:, :2])
    high = np.minimum(a[:, None, 2:], b[:, 2:])
    inter = (high - low).prod(axis=2)
    area_a, area_b = ((c[:, 2] - c[:, 0]) * (c[:, 3] - c[:, 1]) for c in (a, b))
    return inter / (area_a[:, None] + area_b - inter)


exercises.check("box_iou", my_box_iou)

# %% [markdown]
# **2.** The anchors of a map.

# %%
exercises.describe("anchors")


# %%
def my_anchors(sizes, ratios, stride, height, width):
    found = []
    for i in range(height):
        for j in range(width):
            for ratio in ratios:
                for size in sizes:
                    w, h = size / np.sqrt(ratio), size * np.sqrt(ratio)
                    x, y = j * stride, i * stride
                    found.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return np.array(found)


exercises.check("anchors", my_anchors)

# %% [markdown]
# **3.** Coding, and **4.** decoding.

# %%
exercises.describe("box_encode")


# %%
def my_box_encode(boxes, anchors):
    size, size_a = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
    middle, middle_a = boxes[:, :2] + size / 2, anchors[:, :2] + size_a / 2
    return np.concatenate([(middle - middle_a) / size_a, size / size_a], axis=1)


exercises.check("box_encode", my_box_encode)

# %%
exercises.describe("box_decode")


# %%
def my_box_decode(deltas, anchors, limit):
    wa, ha = (anchors[:, 2:] - anchors[:, :2]).T
    x = anchors[:, 0] + wa / 2 + deltas[:, 0] * wa
    y = anchors[:, 1] + ha / 2 + deltas[:, 1] * ha
    w, h = wa * np.exp(deltas[:, 2]), ha * np.exp(deltas[:, 3])
    return np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)


exercises.check("box_decode", my_box_decode)

# %% [markdown]
# **5.** Non-maximum suppression. The attempt below compares each box with *all* better ones, even with
# those that are gone: think of A, B and C above.

# %%
exercises.describe("nms")


# %%
def my_nms(boxes, scores, threshold):
    order = np.argsort(-scores, kind="stable")
    overlap = np.triu(box_iou(boxes[order], boxes[order]) > threshold, 1)
    return order[~overlap.any(axis=0)]


exercises.check("nms", my_nms)

# %% [markdown]
# **6.** Give `maskrcnn_small` twice as many anchors, sizes 8 *and* 11.3 on P2 and so on. In the left
# picture of "How well *can* an anchor match?", where does the median gain, and where does it gain
# nothing? What if the *stride* were halved instead?
#
# <details><summary>Answer</summary>
#
# Sizes in between fill the valleys: for a side of 11.3, the median rises from 0.50 to 0.70. At an exact
# size, such as 16, it stays at 0.62, since there it is the position that limits it; only the worst
# position gains, from 0.41 to 0.50, because a larger anchor still contains most of the object. At half
# the stride, $\rho = 4$, and even the square anchors have 0.62 at worst. That costs four times the cells,
# and so four times the anchors.
#
# </details>
#
# **7.** The objectness loss of the network without rescue ended far below the other's. Estimate both from
# the mean number of positives alone: what is the least cross-entropy of a network that gives *every*
# drawn anchor the same probability?
#
# <details><summary>Answer</summary>
#
# With a share $p$ of positives it is the entropy $-p \log p - (1-p) \log(1-p)$, at the logit
# $\log \frac{p}{1-p}$. For 19.2 of 512 that is 0.16, for 1.2 of 512 it is 0.017. With the rescue the loss
# ended at about 0.1, well below: the network has looked at the image. Without, it ended at about 0.015,
# which is what one gets by knowing how rare objects are.
#
# </details>
#
# **8.** The objectness branch begins with biases of 0, so at first every anchor says "one half". What
# would you choose instead, with exercise 7 in mind? What happens to the first gradients?
#
# <details><summary>Answer</summary>
#
# $\log \frac{p}{1-p}$ for the expected share, about $-3.2$ for 20 of 512 (RetinaNet does this with
# $p = 0.01$). With biases of 0 the first steps all push the same way, towards "no", through the bias and
# through every feature, and only then does the network begin to tell anchors apart. With sampling this
# matters little, without sampling a lot.
#
# </details>
#
# **9.** Replace `.transpose(0, 3, 4, 1, 2)` by `.transpose(0, 1, 2, 3, 4)` in `_position_major`, and
# change `_channel_major`, its inverse, to match. Which cells of this notebook notice? Would `gradcheck`
# of the head notice?
#
# <details><summary>Answer</summary>
#
# The poking does, and the comparison with the small Functions and the plain lines. `gradcheck` does not, if
# the backward pass has the matching mistake: forward and backward are then consistent, and the gradient of
# the wrong function is right. A gradient check never tells you that you differentiate what you wanted to.
#
# </details>
#
# ## Read on
#
# * S. Ren, K. He, R. Girshick, J. Sun, *Faster R-CNN: towards real-time object detection with region
#   proposal networks*, NeurIPS 2015: sections 3.1 and 3.2 of the
#   version on arXiv.
# * T.-Y. Lin et al., *Feature pyramid networks*, CVPR 2017, section 4.1: one size per level, one head for
#   all.
# * R. Girshick et al., *Rich feature hierarchies*, CVPR 2014, appendix C of the
#   version on arXiv: where box coding comes from. R.
#   Girshick, *Fast R-CNN*, ICCV 2015: smooth L1.
# * S. Zhang et al., *Bridging the gap between anchor-based and anchor-free detection via adaptive
#   training sample selection*, CVPR 2020: how much depends on the matching.
#
# Next: [05 RoIPool and RoIAlign](05_roipool_and_roialign.ipynb),
# which reads the features under a proposal, and takes its fractions of
# a pixel seriously.
