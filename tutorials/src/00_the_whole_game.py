# ruff: noqa: E402

# %% [markdown]
# # 00 The whole game
#
# **Time** 1 hour with the exercises (20 minutes to read); it runs in about a minute. **Needs** Python and
# NumPy. No GPU, no downloads: the trained weights are in the package.
#
# Before we take Mask R-CNN apart, line by line and gradient by gradient, here is all of it at once: a
# trained model, a picture, and what comes out. Nothing is derived in this notebook. You see what each
# stage is *for*, what goes into it and what comes out, and where in the course it is explained. Nobody
# expects you to understand every word yet.
#
# Afterwards you can
#
# 1. run a trained model, and say what goes in and what comes out, with shapes, units and dtypes;
# 2. name the stages from the image to the pasted masks, and say what each adds;
# 3. say what is different in training, and name the five losses;
# 4. find in the map of the course which notebook explains what.

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
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from minimask import Tensor, models, tutorial
from minimask import functions as F
from minimask.boxes import box_iou
from minimask.data import nuclei_sample
from minimask.functions.activation import sigmoid_array
from minimask.randomness import Draws
from minimask.results.visualize import draw_instances
from minimask.tutorial import BLUE, GREEN, ORANGE, RED, source

CLASS_NAMES = ["nucleus"]  # of label 1; label 0 is the background

# %% [markdown]
# ## In the first minute
#
# Cell nuclei under a fluorescence microscope. The model was trained on other pictures of the same
# collection, and has not seen this one. The task is **instance segmentation**: find every object, say
# what it is, and which pixels are *its own*, so that two nuclei that touch are still two.

# %%
# alt: A fluorescence picture of nuclei, grey blobs on black, and beside it the same picture with a thin box
#   and a shaded outline for each of 45 detections. Nearly every bright blob has one, and nuclei that touch
#   get separate masks; near the upper edge some of them overlap.
CONFIDENT = 0.5  # detections that score less are not drawn
model = models.from_checkpoint("minimask:nuclei").eval()
sample = nuclei_sample("val")[6]
(found,) = model.predict([sample.image])

sure = found["scores"] >= CONFIDENT
left = draw_instances(np.clip(4 * sample.image, 0, 1), np.zeros((0, 4)), [], None, CLASS_NAMES, zoom=2)
right = draw_instances(
    np.clip(4 * sample.image, 0, 1),
    found["boxes"][sure],
    found["labels"][sure],
    found["masks"][sure][:, 0] >= 0.5,
    CLASS_NAMES,
    zoom=2,
    names=False,
)
_, axes = plt.subplots(1, 2, figsize=(9.6, 5), layout="constrained")
for panel, picture, title in (
    (axes[0], left, "in: an image (brightened, to make it visible)"),
    (axes[1], right, f"out: {sure.sum()} nuclei that score {CONFIDENT} or more"),
):
    panel.imshow(np.asarray(picture)[: 2 * sample.image.shape[1]])  # without the strip that counts
    panel.set(title=title, xticks=[], yticks=[])
plt.show()
print(f"found, with a score of {CONFIDENT} or more: {sure.sum()}; drawn by hand: {len(sample.boxes)}")

# %% [markdown]
# Three lines did it: load, read, `predict`. The colours only tell neighbours apart. Look closely: most
# detections are right, but not all. Some nuclei were found twice, a few were missed, and here and there a
# mask bleeds over the edge. Which ones are wrong, and at which stage each went wrong, can be found out
# (08): that is what stages are good for.
#
# ## What goes in, what comes out
#
# `predict` takes a *list* of images, since images have different sizes, and returns a list with one
# dictionary for each.

# %%
rows = [("in: image", sample.image, "red, green, blue of each pixel, from 0 to 1")]
units = {
    "boxes": "x1, y1, x2, y2 in pixels; x to the right, y down",
    "labels": "the class: 1 is the first, 0 would be background",
    "scores": "how confident, from 0 to 1; the highest first",
    "masks": "the probability that a pixel belongs to the object",
}
rows += [(f"out: {name}", found[name], units[name]) for name in units]
for name, values, meaning in rows:
    print(f"{name:<12} {values.shape!s:<19} {values.dtype!s:<8} {meaning}")

# %%
count, size = len(found["scores"]), sample.image.shape[1:]
assert sample.image.dtype == np.float32 and 0 <= sample.image.min() and sample.image.max() <= 1
assert found["boxes"].shape == (count, 4) and found["masks"].shape == (count, 1, *size)
assert found["labels"].dtype == np.int64 and set(found["labels"]) <= {1}
assert (np.diff(found["scores"]) <= 0).all()

# %% [markdown]
# What to notice:
#
# * **How many** objects there are is not known beforehand. A network has a fixed number of outputs; how
#   to get a list of any length out of it is the subject of notebook 04.
# * Boxes are **floating-point numbers**, between the pixels. Rounding them costs more than one would
#   think (05).
# * There are more detections than nuclei: low scores are in the list as well. Where to cut is *your*
#   decision (`CONFIDENT` above), and average precision judges a detector without choosing a cut (09).
# * A mask is a **probability for each pixel**, and each object has its own: masks may overlap. Cutting
#   it, usually at 1/2, gives the outline.
# * `masks` behaves like an array with a full-size mask for each object, but stores only 28 x 28 numbers
#   for each, and pastes them into the image when you ask for it (07).
#
# ## The stages
#
# Here is the whole model, as it stands in the package: stage after stage, with the shape of what each one
# returns. (N images, A anchors, P proposals, D detections; Q mask channels, M x M each. The keypoint head
# is for 12.)

# %%
source(models.MaskRCNN.inference_record)

# %% [markdown]
# `inference_record` keeps what every stage returned, so nothing has to be computed again. We can simply
# look.

# %%
record = model.inference_record([sample.image])
(ranked,), (candidates,), (detections,) = record.ranked, record.candidates, record.detections
mask_logits = record.mask.data
print("1 image      ", record.batch.images.shape, "normalised colours, padded to a multiple of 32")
print("2 features   ", *(tuple(x.shape[1:]) for x in record.levels))
print(f"3 proposals   {len(record.rpn.anchors):,} anchors -> {len(ranked.anchors):,} best", end=" ")
print(f"-> {len(ranked.survivors):,} after suppression -> {len(ranked.proposals):,} kept")
pooled = model.box_head.pooler.output_size, model.mask_head.pooler.output_size
print(
    f"4 RoIs        {record.levels[0].shape[1]} channels of {pooled[0]} x {pooled[0]} for each proposal,",
    end=" ",
)
print(f"of {pooled[1]} x {pooled[1]} for each detection")
print(f"5 classes     {candidates.probabilities.shape} probabilities -> {len(candidates.labels):,}", end=" ")
print(f"score enough -> {len(candidates.survivors)} after suppression -> {len(detections.boxes)} kept")
print("6 masks      ", mask_logits.shape, "for each detection a mask of each class, background included")
print("7 pasted     ", found["masks"].shape)

# %%
assert np.array_equal(record.results[0]["boxes"], found["boxes"])
assert np.array_equal(record.results[0]["scores"], found["scores"])
halves = [x.shape[2:] for x in record.levels]
assert all((2 * h, 2 * w) == before for before, (h, w) in zip(halves, halves[1:]))
assert sum(h * w for h, w in halves) * 3 == len(record.rpn.anchors)  # three shapes at each cell of each level

# %% [markdown]
# Here is one small picture of each. One nucleus is marked in orange, so that you can follow it through
# all of them: the detection with the highest score in the middle of the image. The line printed below the
# picture says how well its proposal already fitted, as an *IoU*, intersection over union: the area that
# two boxes have in common, divided by the area that they cover together. It is 1 for equal boxes and 0
# for boxes that do not touch.

# %%
# alt: Eight panels follow a picture through the seven stages: nuclei, four ever coarser feature maps P2 to
#   P5, proposals crowding on the nuclei, pooled features, final boxes, one mask, a white disc of 28 x 28
#   pixels, and outlines pasted back. One nucleus is marked in several of them; enlarged, its outline runs
#   just around the bright disc.
STAGES = {
    "image": "pixels",
    "features": "a pyramid of maps:\nwhat is where, fine to coarse",
    "proposals": "where might there be\nan object?",
    "RoIs": "the features under a box,\nalways the same number",
    "classes and boxes": "what is it, and where\nexactly?",
    "masks": "which of its pixels?",
    "pasted": "back into the image",
}


def outlines(axes, boxes, **style):
    """Draw boxes (N, 4)."""
    x1, y1, x2, y2 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    corners = np.stack([x1, y1, x2, y1, x2, y2, x1, y2, x1, y1], axis=1).reshape(-1, 5, 2)
    axes.add_collection(LineCollection(corners, **style))


def cross(axes, at):
    """A white cross between four square pictures of this side."""
    axes.axvline(at - 0.5, color="white", lw=2)
    axes.axhline(at - 0.5, color="white", lw=2)


bright = np.clip(4 * sample.image, 0, 1).transpose(1, 2, 0)
height, width = size
middle = (found["boxes"][:, :2] + found["boxes"][:, 2:]) / 2
central = np.abs(middle - [width / 2, height / 2]).max(axis=1) < min(size) / 4
one = int(np.flatnonzero(central)[0]) if central.any() else 0  # the highest score comes first
own_box = detections.boxes[one]  # in pixels of the network's input
origin = ranked.proposals[candidates.proposals[candidates.kept[one]]]
roi = np.concatenate([[0], own_box]).astype(np.float32)[None]
features = model.mask_head.pooler(record.levels, roi).data[0]  # (C, 14, 14)
channels = np.argsort(-features.std(axis=(1, 2)))[:4]  # those that differ most over the box

figure, axes = plt.subplots(2, 4, figsize=(11, 6.8), layout="constrained")
figure.get_layout_engine().set(h_pad=0.12)
*panels, large = axes.flat
for number, (panel, (name, what)) in enumerate(zip(panels, STAGES.items()), 1):
    panel.set_title(f"{number} {name}", weight="bold", loc="left")
    panel.set(xlabel=what, xticks=[], yticks=[])
panels[0].imshow(bright)
maps = [x.data[0].std(axis=0) for x in record.levels[:4]]  # of each cell: how much its channels differ
side = maps[0].shape[0]
tiles = [np.repeat(np.repeat(m / m.max(), 1 << k, axis=0), 1 << k, axis=1) for k, m in enumerate(maps)]
panels[1].imshow(np.block([tiles[:2], tiles[2:]]), cmap="cividis")
for k, (y, x) in enumerate(np.ndindex(2, 2), 2):
    label = dict(color="white", weight="bold", va="top", bbox=dict(fc="black", ec="none", alpha=0.7, pad=2))
    panels[1].text((x + 0.05) * side, (y + 0.05) * side, f"P{k}", **label)
cross(panels[1], side)
scale = np.tile(record.batch.scale(0)[::-1], 2)  # x, y, x, y: input pixels per image pixel
panels[2].imshow(bright)
outlines(panels[2], ranked.proposals[:150] / scale, colors=BLUE, lw=0.6)
outlines(panels[2], origin / scale, colors=ORANGE, lw=2.5)
tiles = np.concatenate([np.concatenate(features[channels[k : k + 2]], axis=1) for k in (0, 2)])
panels[3].imshow(tiles, cmap="cividis")
cross(panels[3], pooled[1])
panels[4].imshow(bright)
outlines(panels[4], found["boxes"][sure], colors=GREEN, lw=1)
outlines(panels[4], found["boxes"][one], colors=ORANGE, lw=2.5)
panels[5].imshow(sigmoid_array(mask_logits[one, found["labels"][one]], np), cmap="gray", vmin=0, vmax=1)
for panel in (panels[6], large):
    panel.imshow(bright)
    for k in np.flatnonzero(sure):
        colour, thick = (ORANGE, 2.5) if k == one else (GREEN, 1)
        panel.contour(found["masks"][k, 0], [0.5], colors=[colour], linewidths=thick)
for panel in (panels[2], panels[4], panels[6]):
    panel.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))  # the whole image, and nothing beside it
x1, y1, x2, y2 = found["boxes"][one]
large.set(
    xlim=(x1 - 8, x2 + 8),
    ylim=(y2 + 8, y1 - 8),
    xlabel="its edge is where the mask is 1/2",
    xticks=[],
    yticks=[],
)
large.set_title("the orange one, enlarged", loc="left")
plt.show()
print(
    f"the orange one: class {CLASS_NAMES[found['labels'][one] - 1]}, score {found['scores'][one]:.3f};",
    end=" ",
)
print(f"IoU of its proposal with its final box {box_iou(origin[None], own_box[None])[0, 0]:.2f}")

# %% [markdown]
# 1. **Image.** The mean colour is subtracted, the result divided by the standard deviation, and the image
#    padded so that it can be halved five times without a remainder.
# 2. **Features.** A convolutional network, the *backbone*, with a *feature pyramid* on top: five maps,
#    each half as fine as the one before. At each cell, a vector of numbers describes what is there and
#    around it. Fine maps are for small objects, coarse ones for large. (Drawn are the four finest, all at
#    the same size: the yellower a cell, the more its channels differ.)
# 3. **Proposals.** For three boxes at every cell, the *anchors*, the network says whether there is an
#    object nearby, and how the box must move to fit it. The most confident, without near-copies, become
#    proposals (drawn: the best 150). They do not say *what* the object is.
# 4. **RoIs**, regions of interest. Under every proposal, however large, *RoIAlign* reads the same number
#    of features. (Drawn: four channels of the orange nucleus, as the mask branch will read them.)
# 5. **Classes and boxes.** From the features of a RoI, the box head says what it is, where background is
#    one of the answers, and corrects the box. Then near-copies are suppressed once more, class by class.
# 6. **Masks.** A small convolutional network draws a mask of 28 x 28 *in the frame of the box*.
# 7. **Pasted.** The mask is stretched to its box, and cut at 1/2.
#
# (The picture without a number shows 7 once more, for the orange nucleus.)
#
# Stages 1 to 5 are Faster R-CNN (2015), with the pyramid of 2016. Mask R-CNN (2017) adds stage 6, a
# branch *beside* the one for classes, not behind it, and, in stage 4, RoIAlign. That does not sound like
# much. The experiment further down shows what it is worth.
#
# ## Training: five losses
#
# In training, the true boxes, labels and masks are given. Each decision gets a **loss**, a number that
# says how wrong it was. There are five of them, and training makes their sum small by following its
# gradient, one small step at a time.

# %%
model.train()
step = model.training_record([sample.image], [sample.target()], Draws(0))
model.eval()
K = len(CLASS_NAMES)
undecided = {"loss_objectness": np.log(2), "loss_classifier": np.log(K + 1), "loss_mask": np.log(2)}
asks = {
    "loss_objectness": "does an anchor know whether it has an object?",
    "loss_rpn_box_reg": "does it know how to reach the object's box?",
    "loss_classifier": "is a proposal's class right?",
    "loss_box_reg": "is its box?",
    "loss_mask": "is each pixel of its mask?",
}
for name, question in asks.items():
    untrained = f"{undecided[name]:.3f}" if name in undecided else "-"
    print(f"{name:<17} {step.losses[name].item():.3f}   undecided: {untrained:<6} {question}")
positive = len(step.rois.positive.labels)
print(f"{len(step.rois.labels)} RoIs were drawn from the proposals, {positive} of them on an object:")
print("only those have a box and a mask to learn")

# %%
options = model.box_head.options
assert set(step.losses) == set(asks)
assert len(step.rois.labels) <= options.batch_size_per_image
assert positive <= options.batch_size_per_image * options.positive_fraction
assert all(step.losses[name].item() < value for name, value in undecided.items())

# %% [markdown]
# "Undecided" is the loss of a network that gives every answer the same probability: $\log 2$ for a yes or
# no, $\log (K + 1)$ for $K$ classes and background, which for one class is the same. A fresh network
# starts near these values; this one has left them behind. (The box losses have no such number.) Notebooks
# 04 and 07 say why it is these losses, why so few RoIs are drawn, and why the network learns nothing from
# the rest; 09 says how the steps are taken.
#
# ## The map of the course
#
# The top row has the stages in the order in which the data flows, each with the notebook that explains
# it. Below is what they stand on, and what is done with them.

# %%
# alt: Map of the course in three rows of numbered boxes. On top, arrows lead from an image through 03, 04, 05
#   and 07 to boxes, labels, scores and masks, and a dashed one, for the gradients, back from 07 to 03; below
#   stand 01, 02, 06, 13 and 14 (what they stand on), then 08 to 12 (what is done with them).
COURSE = {  # notebook: (what it explains, x, y, width)
    "03": ("backbone,\npyramid", 1.9, 4.0, 1.7),
    "04": ("anchors,\nproposals", 4.1, 4.0, 1.7),
    "05": ("RoIPool and\nRoIAlign", 6.3, 4.0, 1.7),
    "07": ("classes, boxes,\nmasks, pasting", 8.5, 4.0, 1.9),
    "01": ("gradients,\nthe tape", 0.3, 2.1, 2.0),
    "02": ("convolution", 2.7, 2.1, 2.0),
    "06": ("CUDA\nkernels", 5.1, 2.1, 1.6),
    "13": ("gradient check\nof everything", 7.1, 2.1, 2.3),
    "14": ("why it\nis fast", 9.8, 2.1, 1.6),
    "08": ("the whole model,\ninspected", 0.3, 0.2, 2.4),
    "09": ("training, and how\ngood is it?", 3.0, 0.2, 2.4),
    "10": ("your own\nimages", 5.7, 0.2, 1.7),
    "11": ("the paper's\nablations", 7.7, 0.2, 1.8),
    "12": ("keypoints", 9.8, 0.2, 1.6),
}
ROWS = (
    (4.0, BLUE, "the stages"),
    (2.1, GREEN, "what they stand on"),
    (0.2, ORANGE, "what is done with them"),
)
HIGH = 1.0

figure, axes = plt.subplots(figsize=(10, 4.8), layout="constrained")
for number, (what, x, y, wide) in COURSE.items():
    colour = next(colour for row, colour, _ in ROWS if row == y)
    axes.add_patch(FancyBboxPatch((x, y), wide, HIGH, "round,pad=0.06", fc="white", ec=colour, lw=2))
    axes.text(x + 0.03, y + HIGH / 2, number, fontsize=15, weight="bold", color=colour, va="center")
    axes.text(x + 0.5, y + HIGH / 2, what, fontsize=10, va="center")
for row, colour, name in ROWS:
    axes.text(-0.2, row + HIGH + 0.2, name, fontsize=11, color=colour, style="italic")


def arrow(x1, y1, x2, y2, **style):
    axes.add_patch(FancyArrowPatch((x1, y1), (x2, y2), arrowstyle="-|>", mutation_scale=14, lw=1.5, **style))


along = [(x, wide) for x, y, wide in (COURSE[n][1:] for n in ("03", "04", "05", "07"))]
for (x, wide), (following, _) in zip(along, along[1:]):
    arrow(x + wide + 0.08, 4.5, following - 0.08, 4.5, color=BLUE)
axes.text(0.3, 4.5, "image", fontsize=11, va="center", ha="center")
arrow(0.75, 4.5, 1.82, 4.5, color=BLUE)
arrow(10.48, 4.5, 11.0, 4.5, color=BLUE)
axes.text(11.05, 4.5, "boxes,\nlabels, scores,\nmasks", fontsize=11, va="center")
arrow(9.4, 5.12, 2.6, 5.12, color=RED, connectionstyle="arc3,rad=0.13", linestyle="--")
axes.text(
    6.0, 5.78, "gradients of the five losses, in training", color=RED, fontsize=10, ha="center", va="bottom"
)
axes.set(xlim=(-0.4, 12.4), ylim=(-0.1, 6.2))
axes.axis("off")
plt.show()

# %% [markdown]
# To understand everything, go by the numbers. To find out what the paper is about and no more, read 05
# and the second half of 07. To train on pictures of your own, begin with 10, and come back when something
# looks strange. If you are in a hurry, leave out 06, 13 and 14: nothing else needs them.
#
# ## The surprise: what is half a pixel worth?
#
# Stage 4 reads features under a box whose edges lie between the cells. Before Mask R-CNN they were
# *rounded* to whole cells, which is what **RoIPool** does; **RoIAlign** interpolates instead. Rounding
# moves the edge of a box by at most half a cell of its map, which on the finest level of this model is a
# single pixel. Now replace one layer by the other in the trained model, without touching a single weight,
# and compare the IoU of the masks: pixels in common, divided by pixels that either mask covers.

# %%
# alt: Bar chart of the share of 77 true nuclei whose mask reaches a given IoU, RoIAlign beside RoIPool. At an
#   IoU of 0.5 both have 91 %; at 0.85 RoIAlign still has 55 %, RoIPool only 9 %.
IMAGES = (6, 8) if FAST else (2, 6, 8)  # of the validation images; others have more nuclei and take longer
LAYERS = {"RoIAlign, as trained": None, "RoIPool": F.roi_pool}
BARS = (0.5, 0.85)  # of the masks' IoU


def mask_ious(samples):
    """For each true nucleus the best IoU of its mask with a confident detection's."""
    best = []
    for s in samples:
        (result,) = model.predict([s.image])
        mine = (result["masks"][result["scores"] >= CONFIDENT][:, 0] >= 0.5).reshape(-1, s.masks[0].size)
        true = s.masks.astype(bool).reshape(len(s.masks), -1)
        both = true.astype(np.float32) @ mine.T.astype(np.float32)  # pixels in common
        union = true.sum(axis=1)[:, None] + mine.sum(axis=1) - both
        best.append((both / union).max(axis=1, initial=0))
    return np.concatenate(best)


samples = [nuclei_sample("val")[i] for i in IMAGES]
heads, scored = (model.box_head, model.mask_head), {}
poolers = [head.pooler for head in heads]
for name, layer in LAYERS.items():
    for head, pooler in zip(heads, poolers):
        head.pooler = pooler if layer is None else replace(pooler, roi_layer=layer)
    scored[name] = mask_ious(samples)
for head, pooler in zip(heads, poolers):
    head.pooler = pooler

_, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
for k, (name, colour, hatch) in enumerate(zip(LAYERS, (BLUE, ORANGE), ("", "//"))):
    values = [np.mean(scored[name] >= bar) for bar in BARS]
    drawn = axes.bar(
        np.arange(len(BARS)) + 0.36 * (k - 0.5),
        values,
        0.34,
        color=colour,
        hatch=hatch,
        ec="white",
        label=name,
    )
    axes.bar_label(drawn, fmt="{:.0%}")
axes.set_xticks(range(len(BARS)), [f"masks with an IoU of {bar} or more" for bar in BARS])
axes.set(ylabel="share of the true nuclei", ylim=(0, 1.12))
axes.set_title(f"{len(scored[name])} nuclei in {len(IMAGES)} validation images, the same weights")
axes.legend()
plt.show()
sides = np.concatenate([np.sqrt((s.boxes[:, 2:] - s.boxes[:, :2]).prod(axis=1)) for s in samples])
print(f"the median nucleus is {np.median(sides):.0f} pixels wide")

# %%
aligned, rounded = (np.mean(values >= BARS[-1]) for values in scored.values())
assert rounded < 0.5 * aligned

# %% [markdown]
# Nearly all nuclei are still found, and their masks are roughly right. What is lost is *precision*: count
# only the masks that fit well, and few are left. The nuclei are small, so one pixel matters.
#
# Is the comparison fair? No: the heads were trained with RoIAlign and never saw rounded features.
# Notebook 05 asks the fair question, with a small head fitted to each layer, and derives how far off each
# of them is.
#
# ## And it is all differentiable
#
# Why can such a machine be trained? Because one can go back from the mask's loss, stage by stage, to the
# features, the weights and even the pixels, and say of each how the loss changes with it. In this course
# every one of these backward passes is derived, and **checked against numbers that need no derivation**:
# change the pixels a little, and see how the loss changes. Here is the check of all of them at once, on a
# small piece of the image: from the pixels through backbone, pyramid, RoIAlign and mask branch to the
# mask's loss.

# %%
# alt: Three panels: a piece of the picture with one boxed nucleus; what the loss asks of each pixel, brighter
#   or darker, in rings along the edge of that nucleus; and the relative error over the step h, both
#   logarithmic. The error falls along the rounding line to 1e-10 at a step of 1e-7, then jumps to about 1e-4
#   and rises.
SIDE = 64  # pixels of the piece
x1, y1 = (
    int(np.clip(v - SIDE / 2, 0, side - SIDE)) // 2 * 2 for v, side in zip(middle[one], (width, height))
)
piece = {"boxes": sample.boxes - [x1, y1, x1, y1], "labels": sample.labels}
inside = (piece["boxes"] >= 0).all(axis=1) & (piece["boxes"] <= SIDE).all(axis=1)
piece = {name: values[inside] for name, values in piece.items()}
piece["masks"] = sample.masks[inside, y1 : y1 + SIDE, x1 : x1 + SIDE]
piece["boxes"] = piece["boxes"].astype(np.float32)

precise = models.from_checkpoint("minimask:nuclei").train().astype(np.float64)
cut = sample.image[:, y1 : y1 + SIDE, x1 : x1 + SIDE]
held = precise.training_record([cut], [piece], Draws(0))  # the RoIs that were drawn, and their targets
rois = held.rois.positive


def mask_loss(pixels):
    """L_mask as a function of the network's input, for RoIs that are held."""
    logits = precise.mask_head(precise.backbone(pixels), rois.boxes)
    return precise.mask_head.loss(logits, rois, held.targets)["loss_mask"]


pixels = Tensor(held.batch.images, requires_grad=True)
mask_loss(pixels).backward()
asked = -pixels.grad[0].mean(axis=0)[:SIDE, :SIDE]  # brighter, or darker, to lower the loss
errors = tutorial.step_errors(
    mask_loss, [held.batch.images], kinds=("central",), steps=np.logspace(-12, 0, 13 if FAST else 25)
)

_, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained", width_ratios=(1, 1.15, 1.5))
axes[0].imshow(np.clip(4 * cut, 0, 1).transpose(1, 2, 0))
outlines(axes[0], piece["boxes"] - 0.5, colors="white", lw=1)
axes[0].set(title=f"the piece; whole nuclei in it: {inside.sum()}", xticks=[], yticks=[])
most = np.abs(asked).max()
shown = axes[1].imshow(asked, cmap="PuOr_r", vmin=-most, vmax=most)
axes[1].set(title="what the mask's loss asks of the pixels", xticks=[], yticks=[])
plt.colorbar(shown, ax=axes[1], ticks=[-most, 0, most]).set_ticklabels(["darker", "as is", "brighter"])
errors.plot(axes[2], "the derived gradient against differences")
plt.show()
print(f"best error of central differences, a single lucky step aside: {errors.best():.0e}")

# %%
assert errors.best() < 1e-6

# %% [markdown]
# The middle picture came out of the network *backwards*: what would have to be brighter or darker for the
# mask to be better. It is strongest along the edge of the nucleus whose mask is asked for, and fades away
# from it. The right picture says that it is correct. Towards the left the error grows, since a computer
# rounds. Towards the right it jumps up, since a larger step switches some of the network's many ReLUs on
# or off, and there the function has corners. In between, gradient and differences agree to six digits or
# more. You will meet this picture again and again, and 01 says how to read it.
#
# ## Exercises
#
# Try them before you open the answers; each is a line or two of code.
#
# **1.** Cut at 0.9 instead of 0.5 in the first cell that predicts. What do you gain, what do you lose?
# And at 0.05?
#
# <details><summary>Answer</summary>
#
# At 0.9 only 27 nuclei are drawn, all of them right, so 13 of the 40 are missed. At 0.05 it is the other
# way round: 39 are found, among 70 outlines. No cut is right for everybody: someone who counts cells
# wants neither too many nor too few, someone who looks for a rare one must not miss any. Notebook 09
# draws the whole curve, and takes the area under it.
#
# </details>
#
# **2.** Predict the image rotated by 90 degrees:
# `model.predict([np.rot90(sample.image, axes=(1, 2)).copy()])`. Do you get the same nuclei? Should you?
#
# <details><summary>Answer</summary>
#
# Nearly: 43 instead of 45. Nuclei have no up and down, so a perfect model would find the same. But a
# convolution does not turn with its input: its weights have a top and a left. The model had to learn from
# examples, which were rotated and mirrored in training, that direction does not matter.
#
# </details>
#
# **3.** With paper and pencil: an image of 512 x 384 pixels, five levels, the finest with a stride of 2
# pixels, three anchors at each cell. How many anchors are there? Check with
# `model.inference_record([np.zeros((3, 384, 512), np.float32)]).rpn.anchors`.
#
# <details><summary>Answer</summary>
#
# $3\,(256 \cdot 192 + 128 \cdot 96 + 64 \cdot 48 + 32 \cdot 24 + 16 \cdot 12) = 196{,}416$. Each level
# has a quarter of the one before, so the finest alone has about three quarters of them all.
#
# </details>
#
# **4.** Replace only the *mask* head's RoIAlign in the experiment above:
# `heads, scored = (model.mask_head,), {}`. Which of RoIPool's two bars changes, and why?
#
# <details><summary>Answer</summary>
#
# Classes and boxes do not change by a single bit, since the mask branch stands beside them. As many
# nuclei are found as before, but at 0.85 the share falls from 55 % to 27 %, more than half of the whole
# loss. A class survives features that are off by half a cell; a mask, whose answer is a *place*, does
# not.
#
# </details>
#
# **5.** Set `model.rpn.options = replace(model.rpn.options, post_nms_top_n_test=20)` and predict again.
# How many proposals does the model need for the nuclei of this image?
#
# <details><summary>Answer</summary>
#
# With 20 proposals at most 20 of the 40 nuclei can be found, and 19 are. With 40 it is 33: several
# proposals lie on the same nucleus, and others get none. From 80 on it is 38, and more proposals find
# nothing more. But proposals are cheap, and an object that none of them covers is lost: so a thousand are
# kept.
#
# </details>
#
# ## Read on
#
# * K. He, G. Gkioxari, P. Dollár, R. Girshick, *Mask R-CNN*, ICCV 2017. Read the introduction and figure
#   1 now, section 3 after notebook 07.
# * The pictures are of the 2018 Data Science Bowl (BBBC038); see `minimask/data/nuclei/README.md`.
#
# Next: [01 Gradients and the tape](01_gradients_and_the_tape.ipynb),
# which begins with one product and one sum, and builds the machine
# that finds every gradient in this notebook.
