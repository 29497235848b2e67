# ruff: noqa: E402, E501

# %% [markdown]
# # 07 Heads and losses
#
# **Time** an hour and a quarter to read, 3 hours with pencil, paper and exercises; it runs in a minute.
# **Needs** notebooks 01 (the tape and the check), 04 (matching, box coding, smooth L1) and what RoIAlign
# does (05). No GPU, no downloads.
#
# The region proposal network has said "something may be here", a thousand times. The second stage cuts
# features out of the pyramid for each of these regions and asks three questions: *what* is it, *where
# exactly* is it, and *which pixels* belong to it? The paper's loss is the sum of three, one for each
# question,
#
# $$L = L_{cls} + L_{box} + L_{mask}.$$
#
# Afterwards you can
#
# 1. derive the gradient of softmax cross-entropy, compare it with that of sigmoid cross-entropy, and say
#    why both are computed from logits;
# 2. say what the box branch learns, what its weights 10, 10, 5, 5 and smooth L1's 1/9 mean in pixels, and
#    how far it ever has to move a box;
# 3. show, by zeros that are exactly zero, that the mask branch does not depend on the class branch, and
#    what happens where it has to know classes itself;
# 4. say why training and inference run the mask branch on different boxes, and what that changes;
# 5. say what it costs to round a box.

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
from matplotlib.patches import Rectangle

from minimask import Tensor, data, exercises, models, no_grad, tutorial
from minimask import functions as F
from minimask.boxes import BoxCoder, box_iou, nms
from minimask.functions.activation import sigmoid_array, softmax_array
from minimask.masks import FLOAT, TORCHVISION, crop_masks, paste_masks
from minimask.models.box_head import BoxHead, Detections, RoIs
from minimask.models.mask_head import MaskFCN, MaskHead
from minimask.randomness import Draws
from minimask.training.optim import SGD
from minimask.tutorial import BLUE, GREEN, ORANGE, RED, source

plt.rcParams["figure.dpi"] = 85
rng = np.random.default_rng(0)

# %% [markdown]
# ## The idea in a picture
#
# Here is a generated image with circles (class 1), squares (2) and triangles (3), and a network that has
# learnt nothing yet. What a training step computes is kept in a *record*: the proposals, which object each
# of them was matched with, which of them were drawn for the loss, the logits and the losses. We read it
# instead of computing anything again.
#
# Only one thing is staged. An untrained RPN proposes boxes of nothing in particular, so we give the second
# stage what a trained one proposes: boxes around the objects that are a little off, among others that are
# not around anything.

# %%
CLASSES = ("background", *data.Shapes.class_names)
SIDE = 128  # pixels
sample = data.Shapes(8, seed=1, size=SIDE)[7]
model = models.maskrcnn_small(num_classes=4)


def jittered(boxes, rng, size):
    """Boxes with each edge moved by a normal share `size` of the box's width or height."""
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return boxes + size * sides * rng.normal(size=boxes.shape)


def with_better_proposals(record):
    """The record of the same step, if the RPN had proposed boxes around the objects, too."""
    near = jittered(np.repeat(sample.boxes, 4, axis=0), np.random.default_rng(3), 0.1)
    proposals = [np.concatenate([near.clip(0, SIDE).astype(np.float32), record.proposals[0]])]
    held = model.box_head.sample(proposals, record.targets, Draws())
    held = replace(record, proposals=proposals, rois=held)
    return model.training_record([sample.image], [sample.target()], held=held)


record = with_better_proposals(model.training_record([sample.image], [sample.target()]))
rois, positive = record.rois, record.rois.positive
print(f"{len(rois.labels)} RoIs, {len(positive.labels)} of them on an object; losses:")
for name, loss in record.losses.items():
    print(f"  {name:<17} {loss.item():.4f}")


# %%
# alt: A generated image with four RoIs on objects and dotted ones of background. Beside it each of the four
#   has a column: its crop with the class and the object's true box dashed, the four numbers that lead there,
#   and a mask in the RoI's frame. The second column's square lacks what a circle in front of it hides.
def outline(axes, box, colour, **style):
    x1, y1, x2, y2 = box
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, **style))


def picture(axes, values, title, extent=None, **style):
    shown = axes.imshow(values, extent=extent, interpolation="nearest", **style)
    axes.set(title=title, xticks=[], yticks=[])
    return shown


off = np.abs(positive.boxes[:, 1:] - sample.boxes[positive.matches]).sum(axis=1)  # 0: the true box itself
shown = [int(np.flatnonzero((positive.matches == g) & (off > 0))[0]) for g in np.unique(positive.matches)][:4]
figure = plt.figure(figsize=(11, 5.2), layout="constrained")
grid = figure.add_gridspec(2, 3 + len(shown))
axes = figure.add_subplot(grid[:, :3])
title = "RoIs: some of background (dotted) and of objects"
picture(axes, sample.image.transpose(1, 2, 0), title, (0, SIDE, SIDE, 0))
for box in rois.boxes[rois.labels == 0][:25, 1:]:
    outline(axes, box, "white", lw=0.7, ls=":")
for i in shown:
    outline(axes, positive.boxes[i, 1:], ORANGE, lw=2)
wanted = model.mask_head.targets(positive, record.targets, 28)
encoded = BoxCoder((10.0, 10.0, 5.0, 5.0)).encode(sample.boxes[positive.matches], positive.boxes[:, 1:])
for k, i in enumerate(shown):
    box, its_object = positive.boxes[i, 1:], sample.boxes[positive.matches[i]]
    crop = F.roi_align(sample.image[None], positive.boxes[i : i + 1], 28, sampling_ratio=2, aligned=True)
    axes = figure.add_subplot(grid[0, 3 + k])
    picture(axes, crop.numpy()[0].transpose(1, 2, 0), f"what?\n{CLASSES[positive.labels[i]]}")
    scale = 28 / (box[2:] - box[:2])
    corners = ((its_object - np.tile(box[:2], 2)) * np.tile(scale, 2)) - 0.5
    outline(axes, corners, RED, lw=2, ls="--")
    axes.set(xlim=(-4, 31), ylim=(31, -4), xlabel="where?\n" + "\n".join(f"{v:+.2f}" for v in encoded[i]))
    axes = figure.add_subplot(grid[1, 3 + k])
    picture(axes, wanted[i], "which pixels?", cmap="gray", vmin=0, vmax=1)
plt.show()

# %%
assert np.all(positive.labels == sample.labels[positive.matches])

# %% [markdown]
# Each column is one RoI (orange in the image) with its three right answers: a class; four numbers that lead
# from the RoI to the object's box (dashed); and a mask of 28 x 28 **in the RoI's own frame**: where the RoI
# cuts the object off, the mask is cut off too.
#
# ## The heads
#
# This is all of the second stage. The class and box branch is two fully connected layers, the mask branch a
# small convolutional network. Both read what RoIAlign takes from the same pyramid, and neither reads the
# other.

# %%
source(BoxHead.forward, MaskHead.forward, MaskFCN.forward)

# %%
r, rp = len(rois.labels), len(positive.labels)
print("class logits  ", record.box.logits.shape, "        R, K + 1")
print("box deltas    ", record.box.deltas.shape, "       R, 4 (K + 1): a box for each class")
print("mask logits   ", record.mask.shape, "R+, K + 1, M, M: a mask for each class")

# %%
assert record.box.logits.shape == (r, 4) and record.box.deltas.shape == (r, 16)
assert record.mask.shape == (rp, 4, 28, 28)

# %% [markdown]
# Why fully connected layers for class and box, and convolutions for the mask? A class is one word about the
# whole region, and the spatial layout may be collapsed to give it. A mask answers pixel by pixel, and a
# convolution keeps the correspondence between places at no cost, with fewer weights. In the paper's table
# 2e an MLP that draws the mask is 2.1 AP worse.
#
# ### The first numbers to look at
#
# A fresh network should be *undecided*. Its last layers start near zero, so all logits are near 0: the
# softmax gives each of $K + 1$ classes $1 / (K + 1)$, a sigmoid gives $1/2$. Hence
# $L_{cls} \approx \log (K + 1)$ and $L_{mask} \approx \log 2$, and so is the RPN's objectness loss. If your
# first step prints something else, do not train on: look.

# %%
first = {name: loss.item() for name, loss in record.losses.items()}
print(f"L_cls  {first['loss_classifier']:.3f}, log 4 = {np.log(4):.3f}")
print(f"L_mask {first['loss_mask']:.3f}, log 2 = {np.log(2):.3f}")
print(f"L_obj  {first['loss_objectness']:.3f}")

# %%
assert abs(first["loss_classifier"] - np.log(4)) < 0.3 and abs(first["loss_mask"] - np.log(2)) < 0.01

# %% [markdown]
# (The class loss is 0.11 above $\log 4$, as the weights of its last layer are small, but not zero. That is near
# enough; 3 would not be.)
#
# ### Which RoIs? One with an object, three without
#
# The RPN proposes up to 2000 boxes. Which of them train the heads? Each is matched as anchors were
# (notebook 04), with another threshold: it is **positive** if its IoU with some object is at least 0.5, and
# **background** otherwise. None is ignored, and no object's best box is rescued. Of these, some are drawn
# (512 per image with a pyramid, in the paper; fewer in the small network), of which **at most a quarter**
# are positive: the paper's ratio of 1:3. If there are fewer positives, background fills up the rest.
#
# Why not all? The heads are the expensive part, and hundreds of near-copies of one piece of background
# teach little. Why not half, as in the RPN? A head does not see a balanced set when it is used: most
# proposals *are* background, and a head that has met too little of it finds objects everywhere. A quarter
# is a compromise that Fast R-CNN made in 2015, and it has stayed. And since the RPN's early proposals are
# poor, **the true boxes are put among the proposals**: so there is a positive box for every object from the
# first step on.

# %%
source(BoxHead.sample)

# %%
options = model.box_head.options
candidates = np.concatenate([record.proposals[0], sample.boxes])
best_iou = box_iou(sample.boxes, candidates).max(axis=0)
is_positive = best_iou >= options.fg_iou_thresh
enough = f"{is_positive.sum()} of them ({is_positive.mean():.1%}) overlap an object enough"
print(f"{len(candidates)} candidates, the true boxes included; {enough}")
drawn = {"positive": int((rois.labels > 0).sum()), "background": int((rois.labels == 0).sum())}
most = f"{options.positive_fraction:.0%} of {options.batch_size_per_image} may be positive"
print(f"drawn: {drawn['positive']} positive, {drawn['background']} background; at most {most}")

# %%
assert drawn["positive"] == min(
    is_positive.sum(), int(options.batch_size_per_image * options.positive_fraction)
)
assert sum(drawn.values()) == min(len(candidates), options.batch_size_per_image)

# %% [markdown]
# ## What? Softmax cross-entropy
#
# With logits $x$ and the true class $t$,
#
# $$L = -\log p_t = \log \sum_k e^{x_k} - x_t, \qquad p_k = \frac{e^{x_k}}{\sum_j e^{x_j}},$$
#
# $$\frac{\partial L}{\partial x_k} = \frac{e^{x_k}}{\sum_j e^{x_j}} - [k = t] = p_k - [k = t].$$
#
# "What you said, minus what is right." The entries sum to 0: what is taken from one class is given to the
# others, because **classes compete**. That is right for $L_{cls}$, since a region is one thing. Remember it
# for the masks. (In notebook 01 it was an exercise.)
#
# ## Which pixels? Sigmoid cross-entropy
#
# One logit, one yes or no, at each pixel: that is the objectness loss of notebook 04 again. With $s = 1 / (1 + e^{-x})$ and a
# target $t$, which may now lie anywhere in $[0, 1]$,
#
# $$\ell = -t \log s - (1 - t) \log (1 - s) = \max(x, 0) - x t + \log (1 + e^{-|x|}), \qquad
# \frac{d\ell}{dx} = \frac{d\ell}{ds} \frac{ds}{dx} = \frac{s - t}{s (1 - s)}\, s (1 - s) = s - t .$$
#
# Again "said minus right", and here nobody competes: each logit has a loss of its own. The two factors $s (1 - s)$ cancel *on
# paper*. Computed one after the other they do not: in float32 $s$ is exactly 1 from $x = 17$ on, so that for a target of 0 the loss $-\log (1 - s)$ is
# infinite and its slope $\infty \cdot 0$. That is why a loss takes **logits**. Both losses as they stand in minimask, each as a pair of
# value and derivative:

# %%
source(F.loss._softmax_cross_entropy, F.loss._sigmoid_cross_entropy)

# %%
x = np.array([-100, -20, 0, 20, 100], np.float32)
with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
    s = 1 / (1 + np.exp(-x))
    naive, naive_slope = -np.log(1 - s), (s / (s * (1 - s))) * s * (1 - s)  # target 0
logit = Tensor(x, requires_grad=True)
stable = F.sigmoid_cross_entropy(logit, np.zeros_like(x), normalizer=1.0)
stable.backward()
with np.printoptions(precision=3, suppress=True):
    print("logit                       ", x)
    print("-log(1 - s), as written     ", naive)
    print("its slope, factor by factor ", naive_slope)
    print("slope from the logits       ", logit.grad)
print("sum of the losses from logits", stable.numpy())

# %%
assert (
    np.isinf(naive[-1]) and np.isnan(naive_slope[-1]) and np.isfinite(stable.numpy()) and logit.grad[-1] == 1
)

# %% [markdown]
# ## Where exactly? Box coding
#
# The box branch answers as the RPN does (notebook 04): not in pixels, but by how to get from a box, here the RoI
# $(x_a, y_a, w_a, h_a)$, to the object's. RoIAlign has scaled every RoI to 7 x 7, and in those features a tree of 400 pixels and
# one of 40 look alike, so the answers must, too. Two things are new. There is a box **for each class**, of which only the true
# class's is trained. And the four numbers are multiplied by **weights**, 10, 10, 5 and 5:
#
# $$d_x = w_x \frac{x - x_a}{w_a}, \quad d_y = w_y \frac{y - y_a}{h_a}, \quad
# d_w = w_w \log \frac{w}{w_a}, \quad d_h = w_h \log \frac{h}{h_a} .$$
#
# Why? Let us see what the numbers are without them.
#
# How large can an offset be? A RoI trains the box branch when its IoU with the object is at least 1/2. In two dimensions the
# IoU is at most what it is along each axis, so look at two intervals of lengths $w_a$ and $w$ with an IoU of at least 1/2. It is at
# most the ratio of the lengths, so $|\log (w / w_a)| \le \log 2$. How far apart can the centres be? If one interval contains
# the other, by at most half the difference of the lengths, and $|w - w_a| / 2 \le w_a / 2$ since $w \le 2 w_a$. If they
# overlap by $i$ only in part, the centres are $(w_a + w) / 2 - i$ apart; an IoU $i / (w_a + w - i) \ge 1/2$ means
# $i \ge (w_a + w) / 3$, so that this is at most $(w_a + w) / 6$, and again at most $w_a / 2$. So
#
# $$|d_x| \le \tfrac12 w_x = 5, \qquad |d_w| \le w_w \log 2 = 3.47 .$$
#
# The box branch *never* has to say more. It does not find objects; it corrects boxes.


# %%
# alt: Scatter plot of the two offsets that the box branch is asked for, the logarithm of the widths' ratio
#   over the shift of the centre. RoIs crowd around zero, nearly all with shifts below 0.3, well inside the
#   dashed bounds of 0.5 and 0.69; a RoI that is its object's left half sits in a corner of the bounds.
count = 4000 if FAST else 20_000
objects = np.tile([100.0, 100.0, 160.0, 140.0], (count, 1))
candidates = jittered(objects, rng, rng.uniform(0.02, 0.4, (count, 1)))
candidates = candidates[(candidates[:, 2:] > candidates[:, :2] + 1).all(axis=1)]
iou = box_iou(objects[:1], candidates)[0]
THRESHOLD = 0.5  # the IoU from which on a RoI trains the box branch
matched = candidates[iou >= THRESHOLD]
bounds = (1 - THRESHOLD) / (2 * THRESHOLD), -np.log(THRESHOLD)  # of an offset: 1/2; of a logarithm: log 2
plain, coder = BoxCoder(), BoxCoder((10.0, 10.0, 5.0, 5.0))
offsets = plain.encode(objects[: len(matched)], matched)

_, axes = plt.subplots(figsize=(8.5, 4.3), layout="constrained")
axes.plot(*offsets[:5000, [0, 2]].T, ".", color=BLUE, ms=2, alpha=0.5, label=f"RoIs with IoU ≥ {THRESHOLD}")
outline(axes, (-bounds[0], -bounds[1], *bounds), RED, lw=1.5, ls="--", label="the bounds")
extreme = plain.encode(np.array([[0.0, 0, 10 / THRESHOLD, 10]]), np.array([[0.0, 0, 10, 10]]))[0]
axes.plot(extreme[0], extreme[2], "s", color=ORANGE, ms=8, label="a RoI that is its\nobject's left half")
axes.set(xlabel="offset $(x - x_a) / w_a$", ylabel="offset $\\log (w / w_a)$")
axes.set(xlim=(-1.2 * bounds[0], 1.2 * bounds[0]), ylim=(-1.2 * bounds[1], 1.2 * bounds[1]))
axes.set_title("what the box branch is asked to say (y and h look the same)")
axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()
spread = offsets.std(axis=0)
print("standard deviations        ", spread.round(3))
print("times the weights 10 10 5 5", (spread * coder.weights).round(2))

# %%
assert np.abs(offsets[:, :2]).max() <= bounds[0] and np.abs(offsets[:, 2:]).max() <= bounds[1]
assert np.all((0.2 < spread * coder.weights) & (spread * coder.weights < 10 * bounds[0]))

# %% [markdown]
# So the weights are about one over the usual spread: with them the four targets are numbers of order 1, like everything else
# that a network is asked to say. (Here the spread is that of our jitter. The code of Faster R-CNN has 0.1, 0.1, 0.2, 0.2,
# “precomputed (or made up)” in the words of its comment, and these have stayed.) The RPN's weights are 1.
#
# ### What 1/9 means
#
# The loss of an offset is smooth L1, as in notebook 04: quadratic below $\beta$, linear beyond. In Fast R-CNN $\beta = 1$; in
# torchvision, and here, it is 1/9. What is that in pixels? $d_x$ is 10 times the shift over the width, so $d_x = 1/9$ is **one
# pixel of a box that is 90 wide**, and $d_x = 1$ is 9 pixels. With $\beta = 1/9$ the loss is L1 down to a precision of about
# 1 % of the width.
#
# ### Which RoIs, which box, divided by what
#
# Background has no box, so only positives have an $L_{box}$, each for the box of its true class. Both losses are divided by
# **all** $R$ RoIs, not by the positives, for the reason that the RPN's are (notebook 04): a positive then counts the same in every
# step. It also makes $L_{box}$ look small; it is. *Why is there no factor to balance the two?* There is one, hidden: the weights
# 10 and 5. Where smooth L1 is linear, they are factors of the loss.

# %%
source(F.loss.BoxHeadLoss)

# %% [markdown]
# ## Masks: K independent sigmoids
#
# The mask branch gives $K$ masks for each RoI (and one for background, which nobody reads: it keeps the
# channels' numbers equal to the labels). For a RoI of class $k$, the loss is the average binary
# cross-entropy of **mask $k$ alone**:
#
# $$L_{mask} = \frac{1}{R_+ M^2} \sum_{r, i, j} \ell\big(x_{r, k_r, i, j},\, t_{r, i, j}\big), \qquad
# \frac{\partial L_{mask}}{\partial x_{r, c, i, j}} = \frac{[c = k_r]}{R_+ M^2} \big(s(x_{r, c, i, j}) - t_{r, i, j}\big).$$
#
# The usual way to segment (FCN, U-Net, ...) is different: at each pixel a softmax over background and the
# $K$ classes,
#
# $$\frac{\partial L}{\partial x_{r, c, i, j}} = \frac{1}{R_+ M^2} \big(p_{r, c, i, j} - [c = \text{class of that pixel}]\big),$$
#
# and now *every* channel has a gradient at *every* pixel. Where mask $k$ is right, all other masks are
# pushed down.

# %%
source(F.loss.MaskLoss)


# %%
# alt: Two grids of heat maps of a mask loss's gradient, with a row for each of three RoIs and a column for
#   each of four channels. With sigmoids only the channel of the RoI's class has a gradient, the other nine
#   maps are exactly 0; with the softmax all twelve have one, that of background opposite to that of the
#   class.
def softmax_mask_loss(logits, labels, targets):
    """At each pixel one softmax over background and the K classes, from small Functions."""
    of_pixel = np.where(targets >= 0.5, labels[:, None, None], 0).reshape(-1)
    rows = logits.transpose(0, 2, 3, 1).reshape(-1, logits.shape[1])  # (R, K+1, M, M) -> (R M M, K+1)
    return F.softmax_cross_entropy(rows, of_pixel)


def gradient_of(loss, logits, labels, targets):
    x = Tensor(logits, requires_grad=True)
    loss(x, labels, targets).backward()
    return x.grad


present = np.unique(positive.labels)  # the classes in the image
three = np.array([int(np.flatnonzero(positive.labels == k)[0]) for k in present])
labels, targets = positive.labels[three], wanted[three]
logits = rng.normal(0, 0.5, (len(three), 4, 28, 28))
pictures = {
    "sigmoids": gradient_of(F.mask_loss, logits, labels, targets),
    "softmax": gradient_of(softmax_mask_loss, logits, labels, targets),
}
size = 11, 1.3 * len(three) + 1
figure, panels = plt.subplots(len(three), 8, figsize=size, layout="constrained", squeeze=False)
for block, (name, g) in enumerate(pictures.items()):
    for row, channel in np.ndindex(len(three), 4):
        axes, values = panels[row, 4 * block + channel], g[row, channel]
        title = (f"{name}\n" if channel == 0 else "\n") + CLASSES[channel] if row == 0 else ""
        image = picture(axes, values, "", cmap="PuOr", vmin=-5e-4, vmax=5e-4)
        axes.set_title(title, fontsize=9)
        if not values.any():
            axes.text(13.5, 13.5, "exactly\n0", ha="center", va="center", fontsize=9)
        if channel == 0:
            axes.set_ylabel(CLASSES[labels[row]])
figure.colorbar(image, ax=panels, label="dL / d logit", shrink=0.7)
figure.suptitle("rows: a RoI's true class; columns: the channel's class")
plt.show()
zeros = {name: float((g == 0).mean()) for name, g in pictures.items()}
print("share of gradients that are exactly 0:", zeros)

# %%
assert zeros == {"sigmoids": 1 - 1 / len(CLASSES), "softmax": 0.0}

# %% [markdown]
# ## Decoupled: five losses, ten parts of the network
#
# The same can be seen in the whole network. Let each of the five losses flow back alone, and look at the
# norm of the gradient that arrives in each part.


# %%
# alt: A table of five losses and ten parts of the network, with the gradient's norm in each cell. All five
#   reach the backbone and the pyramid, with 0.01 to 5.3; beyond these each reaches only its own branch, the
#   mask loss for instance the mask convolutions and predictor, and all other cells say never reached or
#   exactly 0.
PARTS = {
    "backbone": "backbone.body",
    "pyramid": "backbone.fpn",
    "RPN conv": "rpn.head.conv",
    "RPN objectness": "rpn.head.cls_logits",
    "RPN box": "rpn.head.bbox_pred",
    "box MLP": "roi_heads.box_head",
    "class predictor": "roi_heads.box_predictor.cls_score",
    "box predictor": "roi_heads.box_predictor.bbox_pred",
    "mask convs": "roi_heads.mask_head",
    "mask predictor": "roi_heads.mask_predictor",
}


def norms_of(name):
    """Norm of one loss's gradient in each part; NaN where no gradient ever arrives."""
    for p in model.parameters():
        p.grad = None
    model.training_record([sample.image], [sample.target()], held=record).losses[name].backward()
    norms = []
    for prefix in PARTS.values():
        own = [p.grad for key, p in model.named_parameters() if key.startswith(prefix)]
        assert own and len({g is None for g in own}) == 1  # a part is reached as a whole or not at all
        norms.append(np.nan if own[0] is None else np.sqrt(sum((g.astype(float) ** 2).sum() for g in own)))
    return norms


names = list(record.losses)
table = np.array([norms_of(name) for name in names])
powers = np.log10(np.where(table > 0, table, np.nan))
figure, axes = plt.subplots(figsize=(11, 3.8), layout="constrained")
image = axes.imshow(powers, cmap="cividis", aspect="auto")
for (i, j), v in np.ndenumerate(table):
    text = "never\nreached" if np.isnan(v) else f"{v:.2g}" if v else "exactly\n0"
    dark = v > 0 and powers[i, j] < np.nanmean(powers)
    axes.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
axes.set_xticks(range(len(PARTS)), PARTS, rotation=25, ha="right")
axes.set_yticks(range(len(names)), names)
axes.set(title="the norm of each loss's gradient in each part", xlabel="part of the network", ylabel="loss")
figure.colorbar(image, label="log10 of the norm")
plt.show()
of_mask = dict(zip(PARTS, table[names.index("loss_mask")]))

# %%
assert all(np.isnan(of_mask[part]) for part in PARTS if part.startswith(("RPN", "box", "class")))
assert of_mask["backbone"] > 0 and of_mask["mask convs"] > 0

# %% [markdown]
# "Never reached" is stronger than zero: on the tape there is no path from the mask loss to the class
# predictor, to the box predictor or to the RPN. (The exact zeros: $L_{cls}$ and $L_{box}$ are two outputs
# of one Function, so a zero is sent to the other's predictor. The same holds for the two losses of the
# RPN.) What all five share is the backbone and the pyramid, and only there does the mask loss meet the
# others. The separation goes on within the mask predictor: the channels of background and of classes that do
# not occur get zeros.
#
# And in the forward pass: replace the weights of the class and box predictors by noise, and for the same
# RoIs not one bit of the masks changes.

# %%
print("one RoI of class", CLASSES[labels[0]])
for p in model.parameters():
    p.grad = None
once = model.training_record([sample.image], [sample.target()], held=record)
one = RoIs(positive.boxes[three[:1]], positive.labels[three[:1]], positive.matches[three[:1]])
model.mask_head.loss(model.mask_head(once.levels, one.boxes), one, once.targets)["loss_mask"].backward()
predictor = model.mask_head.net.mask_predictor.mask_fcn_logits
for name, g in zip(CLASSES, predictor.weight.grad):
    print(f"  gradient of the mask predictor's channel {name:<10} {np.abs(g).max():.3g}")
others = [k for k in range(4) if k != labels[0]]
assert np.all(predictor.weight.grad[others] == 0) and np.all(predictor.bias.grad[others] == 0)

before = {name: p.data for name, p in model.box_head.box_predictor.named_parameters()}
for p in model.box_head.box_predictor.parameters():
    p.data = rng.normal(size=p.shape).astype(np.float32)
after = with_better_proposals(model.training_record([sample.image], [sample.target()]))
for name, p in model.box_head.box_predictor.named_parameters():
    p.data = before[name]
assert not np.array_equal(after.box.logits.data, record.box.logits.data)
assert np.array_equal(after.rois.boxes, record.rois.boxes)
assert np.array_equal(after.mask.data, record.mask.data)
print("other class logits, the same mask logits to the last bit")

# %% [markdown]
# ## The experiment: what if classes cannot be seen?
#
# "Decoupled" sounds like a matter of taste, until one sees what the opposite costs. In the paper's table 2b
# the softmax costs 5.5 points of mask AP (24.8 against 30.3). Let us find out where they go, with the mask
# head alone: its features are crops of the image, followed by three convolutions of 16 channels, the
# deconvolution and the predictor. The pictures and their true masks are the same in every run. Only what we
# *call* the objects changes:
#
# * `colour`: the class is the brightest colour channel, which every pixel shows by itself;
# * `shape`: circle, square or triangle; no pixel shows it, only the whole outline does;
# * `random`: drawn at random, which nobody can see.
#
# Each is learnt once with K sigmoids and once with the softmax. The mask is then read for the object's own
# class: the pixels where its sigmoid, or its softmax probability, is above 1/2.


# %%
# alt: Bar chart of the masks' mean IoU for classes by colour, by shape and at random. K sigmoids reach 0.89,
#   0.87 and 0.87; the softmax 0.82 for colour and 0.00 for the other two; the same softmax, read against
#   background only, about 0.84 for all three.
def crops(count, seed):
    """Objects as the mask head sees them: RoIs that are a little off, features, classes, target masks."""
    rng, xs, shapes, colours, masks = np.random.default_rng(seed), [], [], [], []
    for picture in data.Shapes(count, seed=seed, size=96):
        boxes = jittered(picture.boxes, rng, 0.1).astype(np.float32)
        x = F.roi_align(picture.image[None], [boxes], 14, sampling_ratio=2, aligned=True)
        xs.append(x.numpy() - 0.3)
        shapes.append(picture.labels)
        means = [picture.image[:, mask.astype(bool)].mean(axis=1) for mask in picture.masks]
        colours.append(1 + np.array(means).reshape(-1, 3).argmax(axis=1))
        masks.append(crop_masks(picture.masks, boxes, np.arange(len(boxes)), 28, FLOAT))
    xs, shapes, colours, masks = (np.concatenate(v) for v in (xs, shapes, colours, masks))
    return xs, masks, {"colour": colours, "shape": shapes, "random": rng.integers(1, 4, len(xs))}


def new_head(rng, width=16):
    """Three convolutions, the transposed one, and a predictor of four channels; biases begin at 0."""
    shapes = [
        (width, 3, 3, 3),
        (width, width, 3, 3),
        (width, width, 3, 3),
        (width, width, 2, 2),
        (4, width, 1, 1),
    ]
    # He's initialisation: notebook 02
    he = [(rng.normal(size=s) * np.sqrt(2 / np.prod(s[1:]))).astype(np.float32) for s in shapes]
    return [(Tensor(w, True), Tensor(np.zeros(len(w), np.float32), True)) for w in he]


def mask_logits(head, x):
    return F.mask_head(x, head[:3], head[3], head[4])


def learn(loss, x, masks, labels, steps, rate=0.2, seed=0):
    rng = np.random.default_rng(seed)
    head = new_head(rng)
    optimizer = SGD([(f"{i}.{j}", v) for i, pair in enumerate(head) for j, v in enumerate(pair)], rate)
    for step in range(steps):
        drawn = rng.integers(0, len(x), 32)
        optimizer.zero_grad()
        loss(mask_logits(head, x[drawn]), labels[drawn], masks[drawn]).backward()
        optimizer.step(rate * min(1, (step + 1) / 20) * (1 - step / steps))
    return head


def mask_iou(a, b):
    return (a & b).sum(axis=(1, 2)) / np.maximum((a | b).sum(axis=(1, 2)), 1)


steps = 60 if FAST else 250
x, masks, kinds = crops(60 if FAST else 150, seed=1)
test_x, test_masks, test_kinds = crops(20 if FAST else 60, seed=2)
truth, rows = test_masks >= 0.5, np.arange(len(test_x))
heads, scores, said = {}, {}, {}
for kind in kinds:
    own = test_kinds[kind]
    for name, loss in (("sigmoids", F.mask_loss), ("softmax", softmax_mask_loss)):
        heads[kind, name] = learn(loss, x, masks, kinds[kind], steps)
        with no_grad():
            y = mask_logits(heads[kind, name], test_x).numpy()  # (R, 4, 28, 28)
        if name == "sigmoids":
            scores[kind, "K sigmoids"] = mask_iou(y[rows, own] > 0, truth).mean()
        else:
            p = softmax_array(y, 1)
            inside = p.transpose(0, 2, 3, 1)[truth]  # (pixels of objects, 4)
            of_own = p[rows, own][truth]
            said[kind] = inside[:, 0].mean(), of_own.mean(), inside[:, 1:].sum(axis=1).mean() - of_own.mean()
            scores[kind, "softmax"] = mask_iou(p[rows, own] > 0.5, truth).mean()
            scores[kind, "softmax, class against\nbackground only"] = mask_iou(
                y[rows, own] > y[:, 0], truth
            ).mean()
readings = list(dict.fromkeys(reading for _, reading in scores))

_, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
for i, (reading, colour, hatch) in enumerate(zip(readings, (BLUE, ORANGE, GREEN), ("", "//", ".."))):
    values = [scores[kind, reading] for kind in kinds]
    bars = axes.bar(
        np.arange(3) + 0.27 * (i - 1), values, 0.25, color=colour, hatch=hatch, ec="white", label=reading
    )
    axes.bar_label(bars, fmt="%.2f", fontsize=9)
axes.set_xticks(range(3), [f"class is {kind}" for kind in kinds])
axes.set(ylabel="mean IoU of the masks", ylim=(0, 1.05), xlim=(-0.5, 2.5))
axes.set_title(f"{len(test_x)} objects that were not trained on")
axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
print("what the softmax says of a pixel inside an object, on average:")
for kind, (background, right, wrong) in said.items():
    print(
        f"  class is {kind:<6}  background {background:.2f}, its class {right:.2f}, the other two {wrong:.2f}"
    )

# %%
sigmoid_scores = [scores[kind, "K sigmoids"] for kind in kinds]
assert max(sigmoid_scores) - min(sigmoid_scores) < 0.05  # the sigmoids do not care what things are called
assert scores["random", "softmax"] < 0.1 < 0.4 < scores["colour", "softmax"]

# %% [markdown]
# The sigmoids draw masks almost equally well, whatever the objects are called. The softmax comes near them
# where each pixel shows its class, and draws **nothing at all** where it does not. Look at what it says:
# inside an object it gives *something* a probability of 0.88, and divides that about evenly among the three
# classes, so that none of them reaches 1/2.
#
# The middle is surprising at first sight: shape *can* be seen. But it can be seen only by a network that
# looks at the whole outline, and the mask head is a few local convolutions. It was built to draw, and the
# softmax makes it classify. Mask R-CNN leaves the class to the branch that is built for it, and then asks
# for that class's mask.
#
# The third bar answers a careful reader's question: is it only the reading? If one compares the class with
# background alone, $x_k > x_0$, most comes back. So the softmax's features were not useless; what was wrong
# was to let the classes compete *at the pixel*. (In a benchmark, where a class can be seen mostly but not
# always, the harm is the paper's 5.5 points, not everything.)
#
# ### Ask the wrong channel
#
# A circle's RoI trains the circles' channel, and no other. So what does the *triangles'* channel say about a circle, which it was never
# shown?

# %%
# alt: A circle, a square and a triangle, each with the masks that the three channels draw of it, which look
#   alike. On the right a table of the mean IoU by true class and channel asked: 0.90 all along the circles'
#   row, 0.87 along the squares' and 0.83 along the triangles'.
with no_grad():
    y = mask_logits(heads["shape", "sigmoids"], test_x).numpy()
asked = np.array(
    [
        [mask_iou(y[own, c] > 0, truth[own]).mean() for c in (1, 2, 3)]
        for own in (test_kinds["shape"] == k for k in (1, 2, 3))
    ]
)
figure = plt.figure(figsize=(9, 3.7), layout="constrained")
grid = figure.add_gridspec(3, 5, width_ratios=(1, 1, 1, 1, 3.6))
for row, k in enumerate((1, 2, 3)):
    i = np.flatnonzero(test_kinds["shape"] == k)[0]
    crop = np.clip(test_x[i].transpose(1, 2, 0) + 0.3, 0, 1)
    picture(figure.add_subplot(grid[row, 0]), crop, "RoI" if row == 0 else "")
    for c in (1, 2, 3):
        axes = figure.add_subplot(grid[row, c])
        title = f"{CLASSES[c]}'s\nchannel" if row == 0 else ""
        picture(axes, sigmoid_array(y[i, c]), "", cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=9)
axes = figure.add_subplot(grid[:, 4])
axes.imshow(asked, cmap="cividis", vmin=0, vmax=1)
for (i, j), v in np.ndenumerate(asked):
    axes.text(j, i, f"{v:.2f}", ha="center", va="center", color="black" if v > 0.5 else "white")
axes.set_xticks(range(3), CLASSES[1:])
axes.set_yticks(range(3), CLASSES[1:])
axes.set(xlabel="channel asked", ylabel="true class", title="mean IoU of the mask")
plt.show()

# %%
assert np.abs(asked - np.diag(asked)[:, None]).max() < 0.06  # FAST or not: the channels agree

# %% [markdown]
# It says the same as the right one. Nothing in the loss told the three channels to be different, and for
# shapes of one colour each there is no reason to be. This explains a result of the paper that looks odd at
# first: a *class-agnostic* head, with one mask in all, is nearly as good (29.7 against 30.3). And it says
# what a wrong class costs in Mask R-CNN: the label is wrong, the outline is right.
#
# ## Mask targets
#
# What is the right answer for a RoI? The object's bitmap, seen through the RoI: RoIAlign of a map of zeros
# and ones, one bin for each of the 28 x 28 cells. Each value is about the share of its cell that the object
# fills, so targets are **soft** along the outline. In minimask this is three functions: where the samples
# lie, what each of them reads along one axis, and the two axes together, as two matrix products.

# %%
source(minimask.masks._samples, minimask.masks._bin_weights, minimask.masks._crop)

# %% [markdown]
# Pasting a mask back is the inverse: the centre of cell $j$ lies at $(j + 1/2) / M$ of the box, between
# centres the mask is bilinear, and it is cut at 1/2. This happens once for every detection, and a rounding
# here or there does not look like much. Let us measure. A perfect mask head would return its target; so
# crop ellipses at boxes that lie between the pixels, paste the crops back, and compare with the bitmap.


# %%
# alt: Two panels over the size of an object, 8 to 128 pixels. Left, the IoU of a mask that was cropped and
#   pasted back: nearly 1 with boxes as they are, but with rounded boxes 0.76 at 8 pixels and 0.98 only from
#   96 on. Right, the smallest possible mask loss, which falls from 0.18 to 0.054 and never reaches 0.
def ellipses(size, count, rng):
    """Bitmaps (N, H, W) of ellipses of about `size` pixels anywhere between the pixels, and their boxes (N, 4)."""
    side = int(1.6 * size) + 8
    centre = side / 2 + rng.uniform(-0.5, 0.5, (count, 2))
    radius = size / 2 * rng.uniform(0.8, 1.2, (count, 2))
    at = np.arange(side) + 0.5  # pixel i has its centre at i + 1/2
    u = (at - centre[:, :1]) / radius[:, :1]  # (N, side)
    v = (at - centre[:, 1:]) / radius[:, 1:]
    boxes = np.concatenate([centre - radius, centre + radius], axis=1)
    return (u[:, None, :] ** 2 + v[:, :, None] ** 2 <= 1).astype(np.uint8), boxes


def round_trip(size, count, cells, convention, rng):
    masks, boxes = ellipses(size, count, rng)
    crops = crop_masks(masks, boxes, np.arange(count), cells, convention)
    pasted = paste_masks(crops, boxes, masks.shape[1:], convention)[:, 0]
    inside = crops[(crops > 0) & (crops < 1)]  # cells on the outline
    floor = -(inside * np.log(inside) + (1 - inside) * np.log(1 - inside)).sum() / crops.size
    return mask_iou(pasted >= 0.5, masks.astype(bool)), floor


sizes = [8, 16, 32, 64, 128] if FAST else [8, 12, 16, 24, 32, 48, 64, 96, 128]
count = 10 if FAST else 40
_, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
lines = (
    (28, "boxes as they are", FLOAT, BLUE, "-", "o"),
    (14, "boxes as they are", FLOAT, GREEN, "-.", "^"),
    (28, "rounded", TORCHVISION, ORANGE, "--", "s"),
)
trips = {}
for cells, boxes_are, convention, colour, style, marker in lines:
    results = [round_trip(size, count, cells, convention, np.random.default_rng(size)) for size in sizes]
    mean, worst = (np.array([f(iou) for iou, _ in results]) for f in (np.mean, np.min))
    trips[cells, boxes_are] = worst
    label = f"{boxes_are}, M = {cells}"
    axes[0].plot(sizes, mean, style, color=colour, marker=marker, ms=4, label=label)
    axes[0].fill_between(sizes, worst, mean, color=colour, alpha=0.2)
    if cells == 28 and convention is FLOAT:
        floors = np.array([floor for _, floor in results])
        axes[1].plot(sizes, floors, style, color=colour, marker=marker, ms=4)
for panel in axes:
    panel.set_xscale("log", base=2)
    panel.set_xticks(sizes[::2], [str(s) for s in sizes[::2]])
    panel.set(xlabel="size of the object (pixels)")
    panel.grid(alpha=0.3)
axes[0].set(
    ylabel="IoU of the mask pasted back", title="a perfect mask head: the mean, shaded down to the worst"
)
axes[0].legend(loc="lower right")
axes[1].set(
    ylabel="smallest possible L_mask", ylim=(0, None), title="soft targets: the loss does not end at 0"
)
plt.show()
print("worst IoU:")
for (cells, boxes_are), worst in trips.items():
    print(f"  M = {cells}, {boxes_are:<17}", *(f"{value:.2f}" for value in worst))

# %%
exact, rounded = trips[28, "boxes as they are"], trips[28, "rounded"]
assert all(exact[i] > 0.97 and exact[i] > rounded[i] for i, size in enumerate(sizes) if 12 <= size <= 32)
assert all(rounded[i] > 0.95 for i, size in enumerate(sizes) if size >= 128)

# %% [markdown]
# With rounding, an object of 16 pixels loses a tenth of its IoU *before any learning*, and one of 8 pixels
# a quarter. It loses them to half a pixel in the crop (RoIAlign without `aligned`) and to truncated boxes
# in the paste. At 128 pixels nobody notices, which is how such things survive. `maskrcnn_small`, made for
# cells and nuclei of 16 pixels, rounds nowhere; `maskrcnn_resnet50_fpn` keeps torchvision's convention,
# because the checkpoints were trained with it, and a checkpoint under another convention has shifted masks
# without any error message. (detectron2 does not round here, either.)
#
# The right half answers another question that comes up in every training: *why does my mask loss stop at
# 0.1?* The smallest binary cross-entropy of a soft target $t$ is not 0 but its entropy, which is reached at
# $s = t$. For an object of 16 pixels, a fifth of the 28 x 28 cells lie on its outline and are neither 0 nor
# 1. The loss cannot say that the masks are perfect; the IoU can.
#
# ## Training and inference: which boxes does the mask branch see?
#
# In **training** the three branches see the same RoIs at the same time: proposals and true boxes, of which
# a sample is drawn. In **inference** the box branch goes first; its boxes are refined, suppressed and cut
# to the best 100, and the mask branch runs on *those*. It is the one place where the parallel branches run
# in series.

# %%
source(models.MaskRCNN.training_record, models.MaskRCNN.inference_record)

# %% [markdown]
# **Why in parallel in training?** Because matching has said what the right class and the right object of
# each RoI are, so nothing needs to be predicted first. If the mask branch were to train on detections, it
# would have none at the beginning, and later only those that the box branch finds easy. Besides, the
# gradients of all branches arrive at the same features in one step, and proposals that are off by a third
# of their width teach the mask branch to cope with poor boxes.
#
# ### From proposals to detections
#
# What does the box branch do in inference, before the masks? For each of $P$ proposals it gives $K + 1$
# probabilities and $K + 1$ boxes. To make a list of objects out of these:
#
# 1. **The score cut.** Each pair of a proposal and a class whose probability is above a small threshold
#    (0.05) is a candidate. Background is not a class to detect. One proposal may become *several*
#    candidates: "60 % cat, 30 % dog" makes two, with two boxes.
# 2. **Suppression, class by class.** Non-maximum suppression as in notebook 04, but a box strikes out only boxes *of its own class*: a rider does not strike out
#    the horse below. The price is that cat and dog from step 1 both stay.
# 3. **The best 100** of what is left, by score, over all classes.
#
# The order of 2 and 3 matters: if the best 100 were taken first, a hundred near-copies of one easy object
# would use up all places. The order of 1 and 2 does not, since a box is struck out only by better ones;
# cutting first is cheaper. In loops:


# %%
def plain_detect(probabilities, boxes, score_threshold, nms_threshold, most):
    """Detections of (P, K + 1) probabilities and (P, K + 1, 4) boxes: (score, proposal, class), best first."""
    found = []
    for label in range(1, probabilities.shape[1]):
        (candidate,) = np.nonzero(probabilities[:, label] > score_threshold)
        kept = nms(boxes[candidate, label], probabilities[candidate, label], nms_threshold)
        found += [(float(probabilities[i, label]), int(i), label) for i in candidate[kept]]
    return sorted(found, reverse=True)[:most]


# %%
source(BoxHead._filter)

# %% [markdown]
# `_filter` does this for all classes at once (`batched_nms` keeps them apart), decodes only the boxes that
# score enough, and clips them to the image. Here are both on four proposals: three around two objects, a
# circle and, over it, a square, and one on background:

# %%
four = np.array([[10.0, 10, 40, 40], [12, 11, 41, 42], [11, 9, 41, 40], [60, 60, 90, 90]], np.float32)
said = np.array([[0.1, 0.8, 0.1, 0], [0.1, 0.3, 0.6, 0], [0.5, 0.45, 0.05, 0], [0.96, 0.02, 0.02, 0]])
logits_of_four = np.log(np.maximum(said, 1e-6)).astype(np.float32)
deltas_of_four = np.zeros(
    (len(four), 4 * said.shape[1]), np.float32
)  # every class leaves the box where it is
o = model.box_head.options
result = model.box_head._filter(logits_of_four, deltas_of_four, four, (SIDE, SIDE)).detections
probabilities = softmax_array(logits_of_four, 1)
boxes_of_four = np.repeat(four[:, None], said.shape[1], axis=1)
looped = plain_detect(probabilities, boxes_of_four, o.score_thresh, o.nms_thresh, o.detections_per_img)
for score, i, label in looped:
    print(f"proposal {i}: {CLASSES[label]:<9} {score:.2f}")
together = nms(result.boxes, result.scores, o.nms_thresh)
print(f"suppressed over all classes together, {len(together)} of these {len(looped)} would be left")

# %%
assert [label for _, _, label in looped] == list(result.labels)
assert np.allclose([score for score, _, _ in looped], result.scores)

# %% [markdown]
# **Why not predict masks for all proposals in inference?** First, what would it cost? These are the
# multiplications for each RoI in the heads of `maskrcnn_resnet50_fpn`:

# %%
mask_cost = (
    4 * 14**2 * 256 * 256 * 9 + 14**2 * 256 * 256 * 4 + 28**2 * 256 * 91
)  # convs, deconvolution, predictor
box_cost = 7**2 * 256 * 1024 + 1024 * 1024 + 1024 * 91 * 5  # two layers, predictors
print(f"box branch {box_cost / 1e6:6.0f} million, mask branch {mask_cost / 1e6:.0f} million:", end=" ")
print(f"{mask_cost / box_cost:.0f} times as many")
print(f"masks of 1000 proposals {1000 * mask_cost / 1e9:.0f} billion,", end=" ")
print(f"of 100 kept boxes {100 * mask_cost / 1e9:.0f} billion")

# %%
assert 35 < mask_cost / box_cost < 40

# %% [markdown]
# Second, and worth more: **the refined box is the better frame.** The mask lives inside its box; what
# sticks out is lost, whatever the mask head does. So the box sets a ceiling, and we can measure it with a
# perfect mask head: crop the true mask at a box that is off, paste it back, and compare it with the whole
# object. Blue: proposals as the mask branch meets them in training. Orange: the same boxes after a box
# branch that makes 70 % of the right correction, which is what the mask branch would meet in inference.

# %%
# alt: Left, a scatter plot of the best possible mask IoU over the IoU of the box: proposals spread down to
#   0.5 on both axes, refined boxes crowd above 0.8. Right, the share of RoIs with a lower ceiling: about 0.3
#   of the proposals cannot reach a mask IoU of 0.9, and hardly any of the refined boxes.
ceilings = {}
pictures = data.Shapes(20 if FAST else 80, seed=5, size=128)
for s in pictures:
    boxes = s.boxes.astype(np.float64)
    local = np.random.default_rng([s.image_id, 7])
    for size in (0.05, 0.1, 0.2, 0.3):
        proposals = jittered(boxes, local, size)
        fine = (proposals[:, 2:] > proposals[:, :2] + 2).all(axis=1)
        proposals, own = proposals[fine], np.flatnonzero(fine)
        overlap = box_iou(boxes, proposals)[own, np.arange(len(own))] if len(own) else np.zeros(0)
        proposals, own = proposals[overlap >= 0.5], own[overlap >= 0.5]
        refined = coder.decode(0.7 * coder.encode(boxes[own], proposals), proposals)[:, 0]
        for name, frame in (("proposals", proposals), ("refined boxes", refined)):
            seen = crop_masks(s.masks, frame, own, 28, FLOAT)
            pasted = paste_masks(seen, frame, s.masks.shape[1:], FLOAT)[:, 0] >= 0.5
            row = box_iou(boxes, frame)[own, np.arange(len(own))] if len(own) else np.zeros(0)
            ceilings.setdefault(name, []).append(np.stack([row, mask_iou(pasted, s.masks[own].astype(bool))]))
ceilings = {name: np.concatenate(parts, axis=1) for name, parts in ceilings.items()}

_, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(1.2, 1))
for (name, (u, v)), colour, marker in zip(ceilings.items(), (BLUE, ORANGE), "ox"):
    axes[0].plot(u, v, marker, color=colour, ms=3, alpha=0.5, label=name)
    axes[1].plot(
        np.sort(v), np.linspace(0, 1, len(v)), "-" if marker == "o" else "--", color=colour, label=name
    )
    print(f"{name:<14} mean ceiling {v.mean():.3f}, below 0.75: {(v < 0.75).mean():.0%}")
axes[0].set(
    xlabel="IoU of the box with the object's",
    ylabel="best possible mask IoU",
    title="the box is the mask's ceiling",
)
axes[1].set(
    xlabel="best possible mask IoU",
    ylabel="share of RoIs with a lower ceiling",
    title="how low the ceilings are",
)
for panel in axes:
    panel.legend()
    panel.grid(alpha=0.3)
plt.show()
means = {name: v.mean() for name, (_, v) in ceilings.items()}

# %%
assert means["refined boxes"] > means["proposals"] + 0.05

# %% [markdown]
# Third, the class. A mask is read from *one* channel, so something must have said which, and after
# suppression there is one answer for each object.
#
# **What does this order not change?** The masks of the kept boxes. The branch looks at one RoI at a time,
# so running it on all refined boxes and then choosing gives the same masks as choosing and then running it.
# The order saves work; it does not make another network. The network below is untrained, so it "detects" a
# hundred boxes of nothing; the numbers agree all the same.

# %%
model.eval()
model.box_head.options = minimask.models.box_head.BoxOptions(score_thresh=0.0)
with no_grad():
    batch = model.transform([sample.image])
    levels = model.backbone(Tensor(batch.images))
    proposals = model.rpn.propose(model.rpn(levels, batch), batch)
    out = model.box_head(levels, np.insert(proposals[0], 0, 0, axis=1))
    (found,) = model.box_head.detect(out, proposals, batch)
    (everything,) = model.mask_head.predict(levels, [found])
    keep = slice(0, 5)
    (few,) = model.mask_head.predict(
        levels, [Detections(found.boxes[keep], found.labels[keep], found.scores[keep])]
    )
print(f"{len(proposals[0])} proposals, {len(found.boxes)} boxes kept;")
differ = np.abs(few - everything[keep]).max()
print(f"5 of {len(everything)} masks, alone and among all: largest difference {differ:.1g}")

# %%
assert few.shape == (5, 28, 28) and np.allclose(few, everything[keep], atol=1e-6)

# %% [markdown]
# **And the price?** The mask branch trains on boxes like the blue ones and is used on boxes like the orange
# ones, which are better: a shift between training and use, though to the easier side. (Cascade R-CNN and
# its followers close it by training further stages on refined boxes.) The other price is that a mask cannot
# save an object whose box was suppressed: it never gets to speak.
#
# ## The gradients against finite differences
#
# As in notebook 01, we take a random direction and look at the error over the step, for the losses of the
# second stage, in float64.

# %%
# alt: Three log-log plots of the relative error of finite differences over the step h. For the class and the
#   mask loss it falls and then rises steadily, for central differences from below 1e-4 on, for five points
#   later; for smooth L1 it falls to about 1e-14 and leaps up at a red line, the nearest corner.
steps_h = np.logspace(-13, 0, 27 if FAST else 53)
check_labels = np.array([1, 0, 3, 2, 0, 1])
check_logits, check_deltas = rng.normal(size=(6, 4)), rng.normal(size=(6, 16))
check_targets, check_masks = rng.normal(size=(6, 4)), rng.uniform(size=(6, 7, 7))
cases = {
    "L_cls: softmax cross-entropy": (lambda x: F.softmax_cross_entropy(x, check_labels), [check_logits]),
    "L_box: smooth L1, β = 1/9": (
        lambda x: F.box_head_loss(Tensor(check_logits), x, check_labels, check_targets)[1],
        [check_deltas],
    ),
    "L_mask: one sigmoid of K": (
        lambda x: F.mask_loss(x, check_labels.clip(1), check_masks),
        [rng.normal(size=(6, 4, 7, 7))],
    ),
}
_, axes = plt.subplots(1, 3, figsize=(12, 4.2), sharey=True, layout="constrained")
best = {}
for panel, (name, (function, inputs)) in zip(axes, cases.items()):
    errors = tutorial.step_errors(function, inputs, kinds=("central", "five points"), steps=steps_h)
    errors.plot(panel, name)
    best[name] = errors.best()
rows, own = np.flatnonzero(check_labels), check_labels[check_labels > 0]
distances = np.abs(check_deltas.reshape(6, 4, 4)[rows, own] - check_targets[rows])
corner = np.abs(distances - 1 / 9).min()
axes[1].axvline(corner, color=RED, lw=1)
axes[1].text(corner, 1, " corner", color=RED)
plt.show()
for name, error in best.items():
    print(f"{name:<30} smallest error {error:.0e}")
print(f"nearest corner of smooth L1 at {corner:.2g}")

# %%
assert max(best.values()) < 1e-8

# %% [markdown]
# Left and right are the two slopes of notebook 01: rounding falls, truncation rises, and for central
# differences they meet between $10^{-5}$ and $10^{-4}$. In the middle there is no truncation at all: smooth
# L1 is made of straight lines and parabolas, for which central differences are exact, *until* the step
# reaches beyond the nearest corner (red), where the error appears at once. (The five-point rule gets there
# earlier: it goes two steps to either side.) So a piecewise loss allows, and wants, a step that stays this
# side of its nearest corner.
#
# ## Exercises
#
# `exercises.check` says that your function is right, or where it is wrong and which common mistake it looks
# like. Change the cells until it says "right". Solutions are in `tutorials/solutions/`.
#
# **1.** The mask loss with its gradient. Large logits occur. (Box coding was an exercise of notebook 04.)

# %%
exercises.describe("mask_loss")


# %%
def my_mask_loss(logits, labels, targets):
    s = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    gradient = s - targets[:, None]
    loss = np.maximum(logits, 0) - logits * targets[:, None] + np.log1p(np.exp(-np.abs(logits)))
    return loss.sum() / max(loss.size, 1), gradient / max(loss.size, 1)


exercises.check("mask_loss", my_mask_loss)

# %% [markdown]
# **2.** Paste a mask into the image, between the pixels.

# %%
exercises.describe("paste_mask")


# %%
def my_paste_mask(mask, box, image_size):
    image = np.zeros(image_size)
    x1, y1, x2, y2 = (int(v) for v in box)
    for y, x in np.ndindex(*image_size):
        if y1 <= y < y2 and x1 <= x < x2:
            image[y, x] = mask[(y - y1) * len(mask) // (y2 - y1), (x - x1) * len(mask) // (x2 - x1)]
    return image


exercises.check("paste_mask", my_paste_mask)

# %% [markdown]
# **3.** On paper: take $\tfrac12 (s - t)^2$ instead of the cross-entropy for one pixel of a mask. Derive
# the gradient. What does a pixel with $x = -10$, $t = 1$ learn from each of the two?
#
# <details><summary>Answer</summary>
#
# $(s - t)\, s (1 - s)$: now $s (1 - s)$ does *not* cancel. At $x = -10$ it is $4.5 \cdot 10^{-5}$: the
# pixel that is most wrong learns least. The cross-entropy's $s - t \approx -1$ is 22,000 times as large.
#
# </details>
#
# **4.** What is the first $L_{cls}$ for COCO's 80 classes? Why is it a bad sign if it falls to 0.5 within
# ten steps?
#
# <details><summary>Answer</summary>
#
# $\log 81 = 4.39$. At least three quarters of the RoIs are background, and at first far more, since few
# proposals hit an object. A network that always says "background" with confidence then has a small loss and
# has learnt nothing about objects. Look at the loss of the positives alone.
#
# </details>
#
# **5.** The class predictor of a trained detector is replaced by one for other classes, and everything else
# stays. Which masks change, and what must be done with the mask predictor?
#
# <details><summary>Answer</summary>
#
# For the same box, not one bit of the mask *logits* changes. What changes is which boxes are kept, and
# which channel is read. New classes have no trained channel; but we saw that channels agree: copy one, or
# the mean of all, and go on from there.
#
# </details>
#
# **6.** Give the experiment a class-agnostic head: `F.mask_loss` with `class_agnostic=True`, and a
# predictor of one channel (a shape in `new_head`; read channel 0). Does it learn faster than the K sigmoids?
# Why could it?
#
# <details><summary>Answer</summary>
#
# Hardly: after 60 steps it reaches a mean IoU of 0.80 and they 0.81, after 250 both 0.87 (with the classes
# `shape`). It could, because each of K channels sees only its own class's RoIs, a third of them here, and
# the single channel sees all. But the layers below are shared, and learn from all RoIs in either case. With
# 80 classes, rare ones gain more. What the single mask loses: classes whose outline *depends* on the class,
# a rider on a horse, say, where the same pixels belong to one mask or the other.
#
# </details>
#
# **7.** From proposals to detections. The attempt below compares boxes of all classes with each other.

# %%
exercises.describe("detect")


# %%
def my_detect(probabilities, boxes, score_threshold, nms_threshold, most):
    proposals, labels = np.nonzero(probabilities[:, 1:] > score_threshold)
    labels = labels + 1
    scores = probabilities[proposals, labels]
    kept = nms(boxes[proposals, labels], scores, nms_threshold)[:most]
    return proposals[kept], labels[kept], scores[kept]


exercises.check("detect", my_detect)

# %% [markdown]
# ## Read on
#
# * K. He, G. Gkioxari, P. Dollár, R. Girshick, *Mask R-CNN*, ICCV 2017: section 3 for the head and the
#   loss, table 2b for what we measured (sigmoids against a softmax), table 2e for the MLP.
# * R. Girshick, *Fast R-CNN*, ICCV 2015: equations 1 to 3, and why smooth L1.
# * Z. Cai, N. Vasconcelos, *Cascade R-CNN*, CVPR 2018: the boxes of training and of inference.
# * The code: `source(minimask.models.box_head)`, `source(minimask.models.mask_head)`, `source(F.loss)`, `source(minimask.masks)`.
#
# Next: [08 The whole model inspected](08_the_whole_model_inspected.ipynb): one image through all of these stages, from its pixels to
# its masks.
