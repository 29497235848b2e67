# ruff: noqa: E402, E501

# %% [markdown]
# # 11 The paper's ablations
#
# **Time** 3 hours with pencil, paper and exercises (an hour to read); it runs in under four minutes, most of them training. **Needs** notebooks 05 (RoIPool and
# RoIAlign), 07 (heads and losses) and 09 (AP, and what training is). No GPU, no downloads.
#
# A paper about a system with a dozen new parts has to say which of them matter. It takes the system apart: one choice is changed, all else stays, and both are trained. Such a
# comparison is called an *ablation*, after the surgeon's word for taking something out. Mask R-CNN's Tables 2 and 3 are ablations: each network was trained on COCO for a day or two on eight GPUs.
#
# This notebook asks the same questions with networks that train in a minute or two, and asks one more: **how would one know that a difference is not luck?** The paper reports one run
# of each network. Here, five seeds of each are compared, and you derive what they allow one to say.
#
# Afterwards you can
#
# 1. say what has to be equal in two networks so that their difference means something, and check that it is;
# 2. compute what rounding a box costs a mask, before anything is trained;
# 3. train RoIPool against RoIAlign, and say where the difference shows, and where it does not;
# 4. derive the interval of a paired difference, and say what five seeds can tell and what they cannot;
# 5. read the paper's tables with that in mind.

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
from dataclasses import dataclass, field
from itertools import islice

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display
from matplotlib.patches import Rectangle

from minimask import Tensor, exercises, tutorial
from minimask import functions as F
from minimask.ablations import table
from minimask.ablations.designs import ABLATIONS
from minimask.ablations.measured import measured
from minimask.ablations.networks import Network, build
from minimask.ablations.stars import Stars
from minimask.boxes import box_iou
from minimask.functions.roi import as_rois
from minimask.kernels.roi_warp import quantised
from minimask.models.mask_rcnn import MaskRCNN
from minimask.randomness import Draws
from minimask.results.evaluate import evaluate
from minimask.training.loop import training_step
from minimask.training.optim import SGD, LearningRate
from minimask.tutorial import BLUE, ORANGE, source

plt.rcParams["figure.dpi"] = 85
rng = np.random.default_rng(0)

# %% [markdown]
# ## The idea in a picture
#
# Before you run the next cell: which of these choices is worth most, and which nothing?
#
# * to read a box's features with RoIAlign instead of RoIPool, on a map of stride 16, or of stride 32;
# * a sigmoid for each class's mask, instead of a softmax over classes;
# * a mask for each class, instead of one for whatever is there;
# * a mask head of convolutions, instead of fully connected layers;
# * to train masks at all, if one wants boxes alone.

# %%
# alt: Eleven of the paper's comparisons, each a line from 0 to the points by which another choice differs
#   from the paper's own. RoIPool at stride 32 reaches furthest, beyond -10; at stride 16 RoIPool and a
#   softmax over classes reach about -5, one mask for all classes -0.6; only RoIAlign with the maximum lies
#   just above 0.
papers = []
for ablation in ABLATIONS.values():
    place = table.SCORES.index(ablation.metric)
    for comparison in ablation.comparisons:
        *others, reference = comparison.variants
        for each in (each for each in others if each.paper[place] is not None):
            against = f"against {reference.title}: {ablation.kind} {ablation.metric}, {ablation.source}"
            papers.append(
                (f"{each.title} ({comparison.title})", each.paper[place] - reference.paper[place], against)
            )

figure, axes = plt.subplots(figsize=(11.5, 4.4), layout="constrained")
for row, (_, difference, against) in enumerate(papers):
    axes.plot([0, difference], [row, row], "-", color=BLUE, lw=2)
    axes.plot(difference, row, "o", color=BLUE)
    axes.text(0.7, row, against, va="center", fontsize=8)
axes.axvline(0, color="black", lw=0.8)
axes.set_yticks(range(len(papers)), [what for what, *_ in papers], fontsize=8)
axes.invert_yaxis()
axes.set(xlabel="points more than the paper's own choice", xlim=(-11.5, 9), xticks=range(-10, 1, 2))
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# These are the paper's numbers (mask AP75 where layers are compared, because that is where misplaced edges show; AP elsewhere, of boxes in the last two rows). At stride 16, RoIAlign and the sigmoid are each worth about five points; at stride 32,
# RoIAlign is worth ten, the most of all. A mask for each class is worth about half a point. The paper has one number for each network, so nobody can say from the table whether half a point would be there a second time.
#
# ## All else equal
#
# Two trainings differ in more than the choice that is compared: in the random weights they begin with, in the pictures and their order, in the anchors and RoIs that are drawn. All of this follows from one
# number, the *seed*, and for equal seeds it is made equal. That takes some care. `build` makes the networks of `minimask ablate`:

# %%
source(build)

# %% [markdown]
# Weights are drawn one layer after the other. If the network that is compared had another layer in the middle, every layer after it would draw other numbers. So what differs, the mask head's net, comes last.

# %%
rois = ABLATIONS["roi-layer"]
STRIDE, SIZE = 16, 128
COMPARED = {  # two of them
    "RoIPool": Network(STRIDE, roi_layer="roi_pool"),
    "RoIAlign": Network(STRIDE, roi_layer="roi_align"),
}
AS_WRITTEN = (STRIDE, SIZE, *COMPARED) == (16, 128, "RoIPool", "RoIAlign")  # the text tells of these
CLASSES = len(Stars.class_names) + 1  # with the background
states = {
    name: build(network, CLASSES, SIZE, 0, rois.sizes).state_dict() for name, network in COMPARED.items()
}
pool, align = states.values()
same = sum(np.array_equal(pool[key], align[key]) for key in align)
print(
    f"{sum(w.size for w in align.values()):,} weights in {len(align)} tensors; {same} of them are equal in both networks"
)

# %%
assert pool.keys() == align.keys() and same == len(align)

# %% [markdown]
# The pictures have to ask the question. Discs would not: a mask could be guessed from its box. Stars turned by any angle have to be looked at, and a star of 40 pixels loses a fifth of its width if its edge is
# misplaced by half a cell at stride 16. How many tips it has is its class.

# %%
# alt: Four noisy pictures of 128 x 128 pixels under a grid, the cells of a map at stride 16. Each has one or
#   two turned stars in boxes, named by their number of tips: two is a narrow diamond, three a triangle, four
#   a square with hollow sides. No star is as long as four cells.
pictures = Stars(200, seed=10_000, size=SIZE, objects=rois.training.objects)
figure, panels = plt.subplots(1, 4, figsize=(9, 2.5), layout="constrained")
for axes, index in zip(panels, (0, 1, 2, 4)):
    sample = pictures[index]
    axes.imshow(sample.image.transpose(1, 2, 0))
    for box, label in zip(sample.boxes, sample.labels):
        x1, y1, x2, y2 = box
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec="white", lw=1))
        axes.text(x1, y1 - 2, Stars.class_names[label - 1], color="white", fontsize=8)
    axes.set(xticks=np.arange(0, SIZE + 1, STRIDE), yticks=np.arange(0, SIZE + 1, STRIDE))
    axes.grid(color="white", lw=0.3, alpha=0.6)
    axes.tick_params(labelbottom=False, labelleft=False, length=0)
figure.suptitle(f"pictures of {SIZE} x {SIZE} pixels, and the cells of a map at stride {STRIDE}", fontsize=10)
plt.show()

# %% [markdown]
# ## What rounding costs, before anything is trained
#
# RoIPool reads the cells of a *rounded* box, and calls what it sees the content of the true one (notebook 05). Suppose that the mask head is perfect: it draws exactly what is in the cells it was given. That mask is then
# pasted into the true box, shifted and stretched by as much as the rounding moved each edge. So, with $q$ the rounded box and $b$ the true one, a point of the mask at $b_1 + t\,(b_2 - b_1)$ shows what stands at
# $q_1 + t\,(q_2 - q_1)$, in $x$ and in $y$. Nothing else is lost. What is the IoU with the true mask?


# %%
# alt: Left, a star in its true box and in the rounded one, which is flatter and reaches further right.
#   Middle, what is read, pasted back: an outline displaced against the star, IoU 0.73. Right, the IoU of such
#   masks over the star's side in cells, a dot each: most keep 0.5, few 0.75, and at stride 32 more lie lower.
def moved(mask, box, read):
    """The mask (H, W) of what `read` encloses, pasted into `box`; pixels are looked up at their centres."""
    out = np.zeros_like(mask)
    (x1, y1, x2, y2), size = box, mask.shape[0]
    at = []
    for low, high, first, last in ((y1, y2, read[1], read[3]), (x1, x2, read[0], read[2])):
        pixels = np.arange(max(int(low), 0), min(int(np.ceil(high)), size))
        t = (pixels + 0.5 - low) / (high - low)
        at.append((pixels, np.clip(np.floor(first + t * (last - first)).astype(int), 0, size - 1)))
    (rows, from_rows), (columns, from_columns) = at
    out[np.ix_(rows, columns)] = mask[np.ix_(from_rows, from_columns)]
    return out


def iou(a, b):
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


def rounded(boxes, stride):
    """The boxes that RoIPool reads, in pixels of the image."""
    whole = quantised(as_rois([boxes]), None, (1 / stride,), aligned=True)[:, 1:]
    return whole * stride


def kept(stride, size, count=200):
    """IoU of each star with what a perfect mask of the rounded box shows, and the stars' sides."""
    overlaps, sides = [], []
    for sample in islice(Stars(count, 10_000, size, rois.training.objects), count):
        reads = rounded(sample.boxes, stride)
        for mask, box, read in zip(np.asarray(sample.masks).astype(bool), sample.boxes, reads):
            overlaps.append(iou(mask, moved(mask, box, read)))
            sides.append(np.sqrt(np.prod(box[2:] - box[:2])))
    return np.array(overlaps), np.array(sides)


MAPS = {"stride 16": (16, 128), "stride 32": (32, 192)}  # and the side of the pictures
ceilings = {name: kept(*each) for name, each in MAPS.items()}

sample = pictures[1]
g = int(np.argmax(np.prod(sample.boxes[:, 2:] - sample.boxes[:, :2], axis=1)))
mask, box, read = np.asarray(sample.masks)[g].astype(bool), sample.boxes[g], rounded(sample.boxes, STRIDE)[g]
figure, panels = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained")
panels[0].imshow(sample.image.transpose(1, 2, 0))
for (x1, y1, x2, y2), colour, style, name in ((box, ORANGE, "-", "true"), (read, "white", "--", "rounded")):
    panels[0].add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, ls=style, lw=1.8, label=name)
    )
panels[0].legend(loc="upper right", fontsize=8, facecolor="grey", labelcolor="white")
panels[0].set(xticks=[], yticks=[], title="the box, and what RoIPool reads")
shown = moved(mask, box, read)
panels[1].imshow(mask, cmap="gray_r", vmax=3)
panels[1].contour(shown, [0.5], colors=[ORANGE])
panels[1].set(xticks=[], yticks=[], title=f"pasted into the box: IoU {iou(mask, shown):.2f}")
for (name, (overlaps, sides)), colour, marker in zip(ceilings.items(), (BLUE, ORANGE), "o^"):
    panels[2].plot(sides / MAPS[name][0], overlaps, marker, ms=3, color=colour, label=name)
for level in (0.5, 0.75):
    panels[2].axhline(level, color="black", lw=0.8, ls=":")
panels[2].legend(fontsize=8)
panels[2].set(xlabel="side of the star, in cells", ylabel="IoU of a perfect mask, misplaced", ylim=(0, 1))
plt.show()
for name, (overlaps, _) in ceilings.items():
    shares = [np.mean(overlaps >= level) for level in (0.5, 0.75)]
    print(f"{name}: {shares[0]:.0%} of {len(overlaps)} stars keep an IoU of 0.5, {shares[1]:.0%} one of 0.75")

# %%
for overlaps, _ in ceilings.values():
    assert np.mean(overlaps >= 0.75) < np.mean(overlaps >= 0.5)

# %% [markdown]
# Nine stars in ten keep an IoU of 0.5 at stride 16, one in seven an IoU of 0.75. At stride 32 it is seven in ten and one in eleven, although those stars are half as large again. So, before anything is trained, the prediction is:
# **rounding spares AP50 and takes AP75.**
#
# It is a prediction, not a bound. A star fills its box, so a head could learn to see where the box must be from where the star ends. It would have to learn that, though; RoIAlign's head need not.
#
# ## One training of each
#
# Now the experiment. Both begin with the same weights, see the same pictures and draw the same anchors. The step is the one that `minimask train` takes (notebook 09).

# %%
# alt: Four panels of losses over the steps, RoIPool dashed and RoIAlign solid, and one with bars of mask AP50
#   and AP75. The objectness curves coincide; RoIPool's mask loss soon stays above RoIAlign's, its box loss
#   only later. RoIAlign's bars are higher, and RoIPool has some AP50 but hardly any AP75.
STEPS, EVALUATED = (500, 100) if not FAST else (60, 20)
RATE, WARMUP = rois.training.learning_rate, rois.training.warmup_steps


@dataclass
class Run:
    """A network after training, and what each step said."""

    model: MaskRCNN
    rows: list[dict] = field(default_factory=list)

    def curve(self, name, window=25):
        """Steps, and the mean of a loss over the last `window` at each."""
        values = np.cumsum([0.0, *(row[name] for row in self.rows)])
        return np.arange(window, len(values)), (values[window:] - values[:-window]) / window


def fit(network, seed=0, steps=STEPS):
    run = Run(build(network, CLASSES, SIZE, seed, rois.sizes).train())
    optimizer = SGD(run.model.named_parameters(), RATE, momentum=0.9, weight_decay=1e-4)
    rate, samples = LearningRate(RATE, steps, WARMUP), Stars(2 * steps, seed, SIZE, rois.training.objects)
    for step in range(steps):
        pair = [samples[2 * step], samples[2 * step + 1]]
        run.rows.append(
            training_step(run.model, optimizer, pair, Draws(seed, step), rate(step), clip_norm=10)
        )
    run.model.eval()
    return run


runs = {name: fit(network) for name, network in COMPARED.items()}
held_out = Stars(EVALUATED, 10_000, SIZE, rois.training.objects)
scores = {name: evaluate(run.model, held_out) for name, run in runs.items()}

LOSSES = {
    "loss_mask": "mask",
    "loss_box_reg": "boxes",
    "loss_classifier": "classes",
    "loss_objectness": "objectness",
}
figure, panels = plt.subplots(1, 5, figsize=(12.5, 2.8), layout="constrained")
for axes, (name, title) in zip(panels, LOSSES.items()):
    for (layer, run), colour, style in zip(runs.items(), (ORANGE, BLUE), ("--", "-")):
        axes.plot(*run.curve(name), style, color=colour, label=layer)
    axes.set(title=f"loss of {title}", xlabel="step", ylim=(0, None))
panels[0].legend(fontsize=8)
for k, (layer, colour, hatch) in enumerate(zip(runs, (ORANGE, BLUE), ("//", ""))):
    values = [100 * scores[layer].mask[score] for score in ("AP50", "AP75")]
    bars = panels[4].bar(
        np.arange(2) + 0.4 * k - 0.2, values, 0.4, color=colour, hatch=hatch, ec="white", label=layer
    )
    panels[4].bar_label(bars, fmt="%.0f", fontsize=8)
panels[4].set(title="masks", ylabel="per cent", ylim=(0, 60))
panels[4].set_xticks(range(2), ("AP50", "AP75"))
panels[4].legend(fontsize=8)
plt.show()
for layer, each in scores.items():
    mask, box = each.mask, each.box
    print(
        f"{layer:>8}: masks AP {mask['AP']:.3f}, AP50 {mask['AP50']:.3f}, AP75 {mask['AP75']:.3f}; boxes AP {box['AP']:.3f}"
    )

# %%
if AS_WRITTEN and not FAST:  # 60 steps find nothing yet
    assert scores["RoIAlign"].mask["AP50"] > scores["RoIPool"].mask["AP50"]
    assert scores["RoIAlign"].mask["AP75"] > 3 * scores["RoIPool"].mask["AP75"]

# %% [markdown]
# * **Objectness** is learnt alike. The RPN reads the map itself, not a RoI, and knows nothing of the layer that is compared.
# * **The mask loss** parts within the first hundred steps, and stays apart. RoIPool's head cannot know by how much the box it was given has been moved, so it cannot say where the edge is.
# * **Boxes** part later: deltas have to be read off features that are displaced by an unknown amount.
# * **AP75** is where it shows, as predicted. With another seed or another number of threads you will get other numbers (training is chaotic: a last bit that differs grows within some hundred steps), and the same picture.
#
# Side by side, on pictures that neither has seen:

# %%
# alt: Five pictures with their stars in grey, in two rows, under the outlines that each network predicts.
#   RoIPool's outlines are displaced, cut off whole tips and stick out beyond the sides; RoIAlign's lie over
#   the stars and follow their sides, rounded at the tips.
figure, grid = plt.subplots(2, 5, figsize=(11, 4.8), layout="constrained")
for row, (layer, run) in zip(grid, runs.items()):
    for axes, index in zip(row, range(5)):
        sample = held_out[index]
        found = run.model.predict([sample.image])[0]
        axes.imshow(np.asarray(sample.masks).max(axis=0), cmap="gray_r", vmax=3)
        overlap = box_iou(sample.boxes, found["boxes"])
        for label, near in zip(sample.labels, overlap >= 0.5):
            mine = np.flatnonzero(near & (found["labels"] == label))
            if len(mine):  # they come by falling score
                axes.contour(found["masks"][mine[0], 0], [0.5], colors=[ORANGE], linewidths=1.5)
        axes.set(xticks=[], yticks=[])
    row[0].set_ylabel(layer)
figure.suptitle(
    "grey: the truth; orange: of the detections of its class and box, the most confident", fontsize=10
)
plt.show()

# %% [markdown]
# ## Is each of the five derived correctly?
#
# Table 2c compares five layers: RoIPool, and RoIWarp and RoIAlign with the maximum or the average of what they read in a bin. If the backward pass of one of them had a mistake, the table would compare a mistake with a layer, and its numbers
# would look just as plausible. So each is checked where the ablation uses it: before a mask loss.

# %%
# alt: Five panels, one per RoI layer, of the relative error over the step h, both logarithmic. In each it
#   falls along the rounding line to about 1e-11 near a step of 3e-5 and turns up with the square of h. The
#   two averages follow that line to the end; the three maxima leave it with a jump to about 0.1, RoIPool
#   last.
LAYERS = {
    "RoIPool": lambda x, r: F.roi_pool(x, r, 4, 1 / STRIDE, aligned=True),
    "RoIWarp, maximum": lambda x, r: F.roi_warp(x, r, 4, 1 / STRIDE, 2, True, aggregation="max"),
    "RoIWarp, average": lambda x, r: F.roi_warp(x, r, 4, 1 / STRIDE, 2, True),
    "RoIAlign, maximum": lambda x, r: F.roi_align(x, r, 4, 1 / STRIDE, 2, True, aggregation="max"),
    "RoIAlign, average": lambda x, r: F.roi_align(x, r, 4, 1 / STRIDE, 2, True),
}
boxes = as_rois([np.array([[21.0, 9.0, 77.0, 61.0], [40.0, 33.0, 107.0, 99.0]])])
features = rng.normal(size=(1, 3, 8, 8))
labels, targets = np.array([1, 2]), (rng.random((2, 4, 4)) > 0.5).astype(float)
figure, panels = plt.subplots(1, 5, figsize=(15, 3.6), sharey=True, layout="constrained")
lowest = {}
for axes, (name, layer) in zip(panels, LAYERS.items()):
    steps = np.logspace(-13, 0, 27 if FAST else 53)
    errors = tutorial.step_errors(
        lambda x, layer=layer: F.mask_loss(layer(x, boxes), labels, targets),
        [Tensor(features, True)],
        kinds=("central",),
        steps=steps,
    )
    errors.plot(axes, name).get_legend().remove()  # one for all: each would cover a part of its curve
    axes.label_outer()
    lowest[name] = errors.errors["central"].min()
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
plt.show()

# %%
assert max(lowest.values()) < 1e-10

# %% [markdown]
# All five agree with finite differences to ten digits where rounding and truncation meet. Beyond that the averages follow $h^2$: a mask loss is smooth, and so is what they do. The three maxima leave that line with a jump, as soon as the step is large
# enough for another cell, or another point, to become the greatest. Nothing is wrong there: the function has a kink (notebook 01).
#
# ## Luck, and what five seeds say about it
#
# One run of each shows a difference. Would it be there again? Write the score of network $k$ with seed $s$ as
#
# $$ y_{ks} = q_k + c_s + e_{ks}, $$
#
# where $q_k$ is what the choice is worth, $c_s$ is what the seed gives to every network (easy pictures, a good start), and $e_{ks}$ is the rest: small differences that training blows up. We want $q_1 - q_2$. In the
# difference $d_s = y_{1s} - y_{2s}$ the seed's share $c_s$ cancels. That is what equal starts and equal pictures are for. With variances $\sigma_c^2$ and $\sigma_e^2$,
#
# $$ \operatorname{Var}(d_s) = 2 \sigma_e^2 \qquad \text{instead of} \qquad 2 \sigma_e^2 + 2 \sigma_c^2 \text{ for seeds that differ.} $$
#
# Over $n$ seeds the mean $\bar d$ has the variance $\operatorname{Var}(d_s) / n$. We do not know $\operatorname{Var}(d_s)$, we estimate it: $s^2 = \frac{1}{n - 1} \sum_s (d_s - \bar d)^2$, where $n - 1$ makes up for $\bar d$ lying
# closer to the $d_s$ than $q_1 - q_2$ does. If the $d_s$ are normal, $(\bar d - (q_1 - q_2)) / (s / \sqrt n)$ has Student's distribution with $n - 1$ degrees of freedom, and
#
# $$ \bar d \pm t \, s / \sqrt n, \qquad t = 12.7,\ 4.30,\ 2.78,\ 2.26 \text{ for } n = 2,\ 3,\ 5,\ 10, $$
#
# covers $q_1 - q_2$ in 95 of 100 experiments. A difference is called *beyond the spread* here if 0 lies outside. Two seeds tell almost nothing: $t = 12.7$.

# %%
source(table.paired)

# %% [markdown]
# ### Fifty trainings
#
# `minimask ablate roi-layer` trains the five layers on both maps with five seeds each: 1300 steps, where you took 500. The times of these runs add up to two and a half hours on two busy cores, so they were done once, and the package has their results.

# %%
# alt: Mask AP75 of five RoI layers with five seeds each, dots joined seed by seed, beside means and error
#   bars; stride 16 on the left, 32 on the right. RoIPool and both RoIWarps lie close to 0, both RoIAligns far
#   above them, by many times the spread of the seeds; between these two the lines cross.
done = measured("roi-layer")
METRIC = rois.metric


def by_seed(variant, kind="mask", metric=METRIC):
    return {seed: 100 * r.kinds[kind][metric] for (name, seed), r in done.items() if name == variant.name}


figure, panels = plt.subplots(1, 2, figsize=(11.5, 4), layout="constrained")
differences = {}
for axes, comparison in zip(panels, rois.comparisons):
    *_, reference = comparison.variants
    ours = [by_seed(variant) for variant in comparison.variants]
    for seed in ours[0]:
        axes.plot(range(5), [each[seed] for each in ours], "-", color="grey", lw=0.8, zorder=1)
    for k, (variant, each) in enumerate(zip(comparison.variants, ours)):
        colour = BLUE if "align" in variant.name else ORANGE
        axes.plot([k] * len(each), list(each.values()), "o", color=colour, mfc="white", zorder=2)
        mean, spread = table.mean_and_deviation(list(each.values()))
        axes.errorbar(k + 0.15, mean, spread, color=colour, fmt="s", capsize=3, zorder=3)
        if variant is not reference:
            differences[comparison.title, variant.title] = table.paired(each, ours[-1]), variant
    names = [variant.title.replace(", ", ",\n") for variant in comparison.variants]
    axes.set_xticks(range(5), names, fontsize=8)
    axes.set(title=comparison.title, ylabel=f"mask {METRIC}, per cent", ylim=(0, None))
plt.show()
print("grey lines join the runs of one seed; squares are mean and standard deviation\n")
print(f"mask {METRIC} less that of RoIAlign, average, with its interval:")
for (title, name), (d, variant) in differences.items():
    interval = f"[{d.low:+5.1f}, {d.high:+5.1f}]"
    print(f"{title}, {name:<18}{d.mean:+6.1f}  {interval}  {table.verdict(d, variant.claim)}")


# %%
for (_, layer), (d, _) in differences.items():
    assert d.direction == ("inside" if "Align" in layer else "below")

# %% [markdown]
# On both maps RoIPool and RoIWarp are below RoIAlign, by far more than luck can do: the intervals end at least 35 points below 0 at stride 16, and 15 points below 0 at stride 32. Compare with the prediction that needed no training. At stride 16 RoIPool has an AP50 of 46 and
# an AP75 of 3; RoIAlign has 69 and 45. So AP50 is not spared: here, boxes are learnt from the same displaced features, and suffer too (the table below has their AP75: 14 against 49). But it keeps two thirds of RoIAlign's, and AP75 a fourteenth.
#
# RoIWarp is no better than RoIPool, although it does not round its bins and reads between cells. The paper found so as well, and drew the conclusion: it is the rounding of the *box* that costs, not the interpolation that helps. Maximum or average makes
# no difference that five seeds can see, in the paper 0.3 points.
#
# The paper's differences, 5 and 10 points, are much smaller. Most of COCO's objects are larger than two or three cells of stride 16.
#
# ### Did pairing help?
#
# If seeds gave much to both networks, the grey lines would be parallel. The correlation over seeds says how much of the variance pairing removes: with $r$ the correlation of two networks of equal variance, $\operatorname{Var}(d_s) = 2 \sigma^2 (1 - r)$.

# %%
print("RoIAlign, maximum and average:")
for comparison in rois.comparisons:
    maximum, average = (np.array(list(by_seed(v).values())) for v in comparison.variants[-2:])
    spread = (maximum - average).std(ddof=1)
    apart = np.sqrt(maximum.var(ddof=1) + average.var(ddof=1))
    r = np.corrcoef(maximum, average)[0, 1]
    print(f"{comparison.title}: r = {r:+.2f}; spread of the difference {spread:.1f}, if unpaired {apart:.1f}")


# %% [markdown]
# A little, if at all: with a correlation of 0.3 to 0.4, the spread of the difference is 14 and 23 % smaller. Five seeds do not even tell such a correlation from 0. In the model above, $r = \sigma_c^2 / (\sigma_c^2 + \sigma_e^2)$, so what the seed gives to both, $\sigma_c$, would be 0.6 and 0.9 times the rest, $\sigma_e$: equal weights
# stay equal for a step, and similar for a few dozen. Pairing costs nothing, but what makes a comparison sharper is more seeds, longer training, or a larger difference.
#
# ## A table of nothing
#
# Somebody compares twenty networks with one, five seeds each, and all twenty are the same network under other names. How many are beyond the spread?

# %%
# alt: Bar chart of 400 tables by how many of their 20 rows, which differ in nothing, are beyond the spread.
#   About half of the tables have no such row, not quite 30 % have one and 10 % two; then the bars shrink, but
#   they go on to nine rows.
TABLES, ROWS, SEEDS = 400, 20, 5
found = np.zeros(TABLES, int)
for k in range(TABLES):
    reference = rng.normal(30, 2, SEEDS)
    for _ in range(ROWS):
        rows = rng.normal(30, 2, SEEDS)
        d = table.paired(dict(enumerate(rows)), dict(enumerate(reference)))
        found[k] += d.direction != "inside"
print(f"of {ROWS} rows of nothing, {found.mean():.2f} are beyond the spread on average;")
print(f"{np.mean(found > 0):.0%} of the tables have at least one")
counts = np.bincount(found, minlength=6)
figure, axes = plt.subplots(figsize=(6.5, 2.6), layout="constrained")
axes.bar(range(len(counts)), 100 * counts / TABLES, color=BLUE)
axes.set(
    xlabel=f"rows beyond the spread, of {ROWS} that differ in nothing",
    ylabel="tables, per cent",
    xticks=range(len(counts)),
)
plt.show()

# %%
assert 0.5 < found.mean() / (ROWS * (1 - table.CONFIDENCE)) < 2

# %% [markdown]
# One of twenty on average, as 95 % says; and half of the tables have at least one. All rows of a table share one reference, so if that had bad luck, several rows are above it at once: some tables have four or more. A row that is beyond the spread is a reason to run
# that comparison again with fresh seeds, and to count only those.
#
# `roi-layer` has eight comparisons. That six of them are below by luck alone can be ruled out without a test.
#
# ## The other tables
#
# `minimask ablate NAME` asks the paper's other questions in the same way. The package has results of all of
# them; here they are. If you run one yourself: after its first training it says how long it takes, Ctrl-C
# stops it, and the same command goes on.

# %%
for name, ablation in ABLATIONS.items():
    results = measured(name)
    if results is None:
        print(f"not run: minimask ablate {name}")
    else:
        display(Markdown(table.table(ablation, results, ablation.seeds)))

# %% [markdown]
# ## What you now know
#
# * An ablation means something if all else is equal, down to the numbers that are drawn, and if the difference is larger than what luck does. One run of each shows neither.
# * Rounding a box costs a mask its edges: most of IoU 0.5 survives, of 0.75 hardly anything does. That can be predicted without training.
# * The paper's direction holds in networks sixty times smaller (half a million weights; the paper's with ResNet-50-C4 has 36 million), on pictures of 128 pixels instead of 800. Its sizes do not carry over: a star of two cells loses more to rounding than a person of ten.
#
# ## Exercises
#
# `exercises.check` says that it is right, or where it is wrong and which common mistake it looks like. Change the cells until it says
# "right". Solutions are in `tutorials/solutions/`.
#
# **1.** The interval of a paired difference.

# %%
exercises.describe("paired_difference")


# %%
def my_paired_difference(first, second, t):
    mean = first.mean() - second.mean()
    half = t * np.sqrt(first.var(ddof=1) + second.var(ddof=1)) / np.sqrt(len(first))
    return mean, mean - half, mean + half


exercises.check("paired_difference", my_paired_difference)

# %% [markdown]
# **2.** Differences between two networks have a standard deviation of 3 points over seeds. Which mean difference is just beyond the spread with three seeds, with five, with ten? How many seeds does it take for half a point, the price of class-agnostic masks in the paper?
#
# <details><summary>Answer</summary>
#
# $t s / \sqrt n$: $4.30 \cdot 3 / \sqrt 3 = 7.4$; $2.78 \cdot 3 / \sqrt 5 = 3.7$; $2.26 \cdot 3 / \sqrt{10} = 2.1$. For half a point, with $t \to 1.96$: $n = (1.96 \cdot 3 / 0.5)^2 = 138$. A mean difference that is *just* at the edge is found in half of the experiments only; to find it in four of five takes twice as many, about 280.
#
# </details>
#
# **3.** Somebody trains each network with ten seeds and reports the best run of each. What is wrong with it, if both get ten? And if the new one gets ten, and the old one's number is from a paper?
#
# <details><summary>Answer</summary>
#
# The best of ten lies 1.54 standard deviations above the mean for normal scores: the network whose runs scatter more is praised for it. With one run on the other side those 1.54 standard deviations are the difference, even for two equal networks.
#
# </details>
#
# **4.** RoIPool reads rounded boxes while it is trained, too, and the head is trained on true masks. What does a head learn that sees a box shifted by an unknown amount between $-s/2$ and $s/2$, and has to say for each cell whether the object is there?
#
# <details><summary>Answer</summary>
#
# With a cross-entropy it learns the probability, given what it sees. If it cannot tell the shift, that is the mask blurred by the shift's distribution, and its contour at 1/2 is a smoothed one: tips go, bodies stay. That is the orange contour of RoIPool in the figure above, and why AP50 suffers less than AP75.
#
# </details>
#
# **5.** Change `COMPARED` to two layers of `Network` that you are curious about (`sampling_ratio=1` against `4`, `aligned=False`), predict the direction, and run the training again. Then say what a second seed would have to show for you to believe it.
#
# ## What comes next
#
# * [12 Keypoints](12_keypoints.ipynb): the same system finds points instead of masks, and half a pixel matters once more.
# * [docs/ablations.md](../docs/ablations.md): all designs, and the tables. `minimask ablate --help`.
# * J. Demšar, *Statistical Comparisons of Classifiers over Multiple Data Sets*, JMLR 2006; X. Bouthillier et al., *Accounting for Variance in Machine Learning Benchmarks*, MLSys 2021: what varies between runs, and how to compare in spite of it.
