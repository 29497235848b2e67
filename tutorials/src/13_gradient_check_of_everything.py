# ruff: noqa: E402, E501

# %% [markdown]
# # 13 A gradient check of everything
#
# **Time** an hour to read, 2 hours with the exercises; it runs in two minutes. **Needs** notebooks 01 (the
# check) and 07 (the heads); 04 and 05 help. No GPU, no downloads. If you are in a hurry, you can leave this one out.
#
# Each Function of minimask is checked by itself. But a network of correct Functions can still be wrong: two of them joined in the wrong place,
# an array passed on where a Tensor belonged, a branch that gets no gradient. So here is the last check of all: **the entire Mask R-CNN,
# from the pixels to the five losses, in every parameter**, against finite differences of the losses, which need no derivative.
#
# Afterwards you can
#
# 1. check a whole network, and say what the check does *not* see;
# 2. say which function of the weights training differentiates (it is not the loss!), and measure what is left out;
# 3. tell a kink from a bug by the error over the step size;
# 4. find a wrong line in a network that trains happily, by bisection.

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
import inspect
import re
import textwrap
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

from minimask import Function, Tensor, data, models, no_grad, tutorial
from minimask import functions as F
from minimask.lessons.gradient_cases import CASES, all_functions, check_function, run_table
from minimask.models.fpn import FPN
from minimask.randomness import Draws
from minimask.training.optim import SGD
from minimask.tutorial import BLUE, GREEN, GREY, ORANGE, RED, source

plt.rcParams["figure.dpi"] = 85

# %% [markdown]
# ## The idea in a picture
#
# A backward pass makes a promise: "if you move the weights a small step $t$ along this direction, the loss will change by $t$ times this slope".
# Anyone can hold it to that: move, compute the loss, look.
#
# The network is `maskrcnn_small` with a few channels, in **float64**, on two pictures of 64 x 64 (one, in the fast setting). We move its
# weights away from where they start: the predictors and the RPN start near 0, which would hide errors in the layers below them, and biases
# start at 0, where ReLUs have their corners.


# %%
def small_model(rng=None):
    """A whole Mask R-CNN of 24,000 parameters in float64; with `rng`, its weights are moved off their start."""
    sizes = dict(channels=(8, 8, 16, 16), fpn_channels=8, box_width=16)
    counts = dict(rpn_post_nms_top_n_train=40, box_batch_size_per_image=24, rpn_batch_size_per_image=256)
    model = models.maskrcnn_small(4, **sizes, **counts).astype(np.float64)
    for name, p in model.named_parameters() if rng else ():
        if name.endswith("bias"):
            p.data = rng.normal(0, 0.1, p.shape)
        elif re.search("cls_score|bbox_pred|cls_logits|mask_fcn_logits", name):
            p.data = rng.normal(0, 0.3 / np.sqrt(np.prod(p.shape[1:])), p.shape)
        elif name == "rpn.head.conv.0.0.weight":
            p.data = p.data / 0.01 * np.sqrt(2 / np.prod(p.shape[1:]))  # from 0.01 to what a ReLU wants
    return model


pictures = [data.Shapes(4, seed=1, size=64)[i] for i in ((1,) if FAST else (0, 1))]
images, targets = [s.image.astype(np.float64) for s in pictures], [s.target() for s in pictures]
model = small_model(np.random.default_rng(0))
parameters = dict(model.named_parameters())
record = model.training_record(images, targets, Draws(seed=1))
sum(record.losses.values()).backward()
print(f"{sum(p.size for p in parameters.values()):,} numbers in {len(parameters)} parameters;")
print(
    f"{len(record.anchors.positive)} + {len(record.anchors.negative)} anchors and {len(record.rois.labels)} RoIs in the losses"
)
for name, loss in record.losses.items():
    print(f"  {name:<17} {loss.item():.4f}")
silent = [name for name, p in parameters.items() if p.grad is None or not p.grad.any()]
print("parameters without any gradient:", ", ".join(silent) or "none")  # there, a check compares 0 with 0


# %%
# alt: Change of the sum of the losses over t in three panels, with the straight line that the gradient
#   promises. With t up to 1 the curve has nothing of the line; up to 0.03 it clings to it only near 0; up to
#   0.0001 it is straight, and the two cannot be told apart.
def total_loss(held=record):
    with no_grad():
        return sum(
            loss.item()
            for loss in model.training_record(images, targets, Draws(seed=1), held).losses.values()
        )


def along(name, v, ts, value):
    """`value()` at t along the direction v of a parameter, for each t; the parameter is put back."""
    p = parameters[name]
    at, values = p.data, []
    for t in ts:
        p.data = at + t * v
        values.append(value())
    p.data = at
    return np.array(values)


name, rng = "backbone.body.layer1.0.conv1.weight", np.random.default_rng(2)
v = rng.choice([-1.0, 1.0], parameters[name].shape)
slope = float((parameters[name].grad * v).sum())
_, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
for panel, reach in zip(axes, (1.0, 3e-2, 1e-4)):
    ts = np.linspace(-reach, reach, 11 if FAST else 61)
    values = along(name, v, ts, total_loss)
    panel.plot(ts, values - total_loss(), color=BLUE, lw=2, label="the loss")
    panel.plot(ts, slope * ts, "--", color=ORANGE, label="the promise")
    panel.set(xlabel="t", title=f"moved by up to {reach:g}")
    panel.ticklabel_format(style="sci", scilimits=(-2, 3), axis="both")
axes[0].set_ylabel("change of the sum of the losses")
axes[0].legend()
plt.show()

# %%
# a hundred times closer than in the last panel, where a kink hardly ever lies: the loss keeps its promise
NEAR = 1e-6
low, high = along(name, v, (-NEAR, NEAR), total_loss)
assert abs((high - low) / (2 * NEAR) - slope) < 0.01 * abs(slope)

# %% [markdown]
# From afar the loss is a landscape; close up it is a straight line, and the promise is kept. This notebook checks the same for
# every parameter, by numbers instead of by eye.
#
# ## What exactly is differentiated?
#
# Write $\theta$ for the weights. A training step makes proposals $P(\theta)$ from the RPN's output (decoding, top $k$, non-maximum suppression), matches them with the
# objects and draws a sample $S(P)$; then
#
# $$L(\theta) = \ell\big(\theta,\; P(\theta),\; S(P(\theta))\big), \qquad
# \frac{dL}{d\theta} = \underbrace{\frac{\partial \ell}{\partial \theta}}_{\text{what training uses}} +
# \frac{\partial \ell}{\partial P}\, \frac{dP}{d\theta} + \text{jumps, where } S \text{ changes.}$$
#
# Mask R-CNN, like Faster R-CNN before it, takes the first term only: proposals are *detached*, that is, treated as data like the image
# (notebook 04 says why). So the gradient that training uses is **not the gradient of the loss that it prints**. To check it, we must hold
# $P$ and $S$ where they were. That is what `held` is for:

# %%
source(models.MaskRCNN.training_record)

# %% [markdown]
# ## The network as one Function
#
# For the check, any piece of the network becomes a single Function of the arrays that come in and of its parameters. Its forward pass runs
# the piece, its backward pass is the piece's own tape. Five losses are five outputs, so that the check can weight them at random: with
# their plain sum, it would not notice two losses that got each other's gradient.


# %%
# alt: Relative error over the step h, both logarithmic. Left, the class predictor: it falls along the
#   rounding line and rises with the square or fourth power of h, about 1e-12 at best. Right, all 24,000
#   numbers: it falls likewise, then jumps near 1e-7 by three orders of magnitude and more and climbs in steps
#   to 0.2.
class Piece(Function):
    """A piece of the network as a function of its inputs and of the parameters of these names."""

    def __init__(self, body, names=()):
        self.body, self.names = body, names

    def forward(self, *arrays):
        count = len(arrays) - len(self.names)
        for name, array in zip(self.names, arrays[count:]):
            parameters[name].data = array
        self.inputs = [Tensor(x, requires_grad=True) for x in arrays[:count]]
        self.outputs = list(self.body(*self.inputs))
        return tuple(y.data for y in self.outputs)

    def backward(self, *gys):
        leaves = [*self.inputs, *(parameters[name] for name in self.names)]
        for p in parameters.values():
            p.grad = None
        sum((y * gy).sum() for y, gy in zip(self.outputs, gys)).backward()
        return tuple(np.zeros_like(x.data) if x.grad is None else x.grad for x in leaves)


def losses_of(held=record):
    return lambda: model.training_record(images, targets, Draws(seed=1), held).losses.values()


def errors_over_step(body, names=(), inputs=(), **options):
    """`tutorial.step_errors` of a piece, in a random direction of all its inputs and parameters."""
    before = {name: parameters[name].data for name in names}
    try:
        arrays = [*inputs, *before.values()]
        return tutorial.step_errors(lambda *xs: Piece.apply(*xs, body=body, names=names), arrays, **options)
    finally:
        for name, array in before.items():
            parameters[name].data = array


everything = list(parameters)
steps = np.logspace(-12, -1, 12 if FAST else 45)
_, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
kinds = ("central", "five points")
one = ["roi_heads.box_predictor.cls_score.weight"]
smooth = errors_over_step(losses_of(), one, kinds=kinds, steps=steps)
smooth.plot(axes[0], "the class predictor's weights")
whole = errors_over_step(losses_of(), everything, kinds=kinds, steps=steps[steps < 2e-3])
whole.plot(axes[1], "all 24,000 numbers at once")
plt.show()
print(f"best: {smooth.best():.0e} and {whole.best():.0e}")

# %%
assert smooth.best() < 1e-9 and whole.best() < 1e-6

# %% [markdown]
# On the left, only softmax cross-entropy comes after the class predictor, and that is smooth. Rounding falls and truncation rises, with
# $h^2$ and $h^4$: it is the picture of notebook 01, for the losses of a whole network.
#
# On the right is the whole network at once. For small steps there is the same rounding. But near $h \approx 10^{-7}$ the error *jumps* by three orders of
# magnitude and more, and then climbs in steps; and five points are no better than two. (No power of $h$ fits, so there is no dotted line.) Is that
# a bug?
#
# ## Kinks
#
# The network has about 135,000 ReLUs. Three quarters of them are in the mask head, which runs on all eight positive RoIs, with 4 x 14 x 14 x 8
# and 28 x 28 x 8 ReLUs for each. Every ReLU has a corner at 0, and a step of $h$ reaches across it if the ReLU's input $z$ is nearer
# to 0 than the step moves it, $h\, |dz/dh|$. If the inputs have the density $\rho$ around 0, a central difference reaches across about
# $2 \rho N h\, |dz/dh|$ of $N$ corners. With $N = 10^5$, $\rho = 0.4$ (the standard normal distribution's) and $|dz/dh| = 1$, the nearest
# corner is at $h \approx 10^{-5}$. Here a random direction moves all 24,000 numbers at once, so $|dz/dh|$ is far larger than 1, and the nearest
# corner is at $10^{-7}$. **The larger the network, the smaller the step must be.** Each corner that is crossed changes the difference a
# little. A wrong gradient looks different: its error stays, however small the step.
#
# Let us look at several random directions of the whole network, and at the same directions with one wrong sign among its 78 gradients (that of
# the first norm's bias).

# %%
# alt: Relative error over the step h, both logarithmic, in 12 random directions, with thick medians. With the
#   right gradient the median falls to about 1e-10 at a step of 1e-7, jumps and climbs to 0.02 at 1e-3; with
#   one sign turned it is level at 0.02 for all steps. Only at the right end do the two meet.
culprit = "backbone.body.bn1.bias"


class OneWrong(Piece):
    """The whole network, with the sign of one parameter's gradient turned."""

    def backward(self, *gys):
        return tuple(-g if name == culprit else g for name, g in zip(self.names, super().backward(*gys)))


def directions(cls, count, steps):
    values = [parameters[name].data for name in everything]
    results = [
        tutorial.step_errors(
            lambda *xs: cls.apply(*xs, body=losses_of(), names=everything),
            values,
            kinds=("central",),
            steps=steps,
            seed=seed,
        )
        for seed in range(count)
    ]
    for name, value in zip(everything, values):
        parameters[name].data = value
    return np.array([r.errors["central"] for r in results])


count, steps = (2, np.logspace(-10, -3, 8)) if FAST else (12, np.logspace(-10, -3, 15))
right, wrong = directions(Piece, count, steps), directions(OneWrong, count, steps)
_, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
for errors, colour, style, label in (
    (right, BLUE, "-", "right"),
    (wrong, RED, "--", f"sign of {culprit} turned"),
):
    axes.loglog(steps, errors.T, style, color=colour, lw=0.7, alpha=0.5)
    axes.loglog(steps, np.median(errors, axis=0), style, color=colour, lw=2.5, label=f"{label} (median)")
axes.set(
    xlabel="step h",
    ylabel="relative error",
    title=f"{count} random directions of the whole network",
    ylim=(1e-14, 3),
)
axes.legend(loc="lower right")
axes.grid(alpha=0.3)
plt.show()
best = {"right": right.min(axis=1), "wrong": wrong.min(axis=1)}
print("the best error in each direction")
for kind, values in best.items():
    print(f"  {kind}:", " ".join(f"{e:.0e}" for e in values))
at = np.argmin(np.abs(np.log(steps / 1e-4)))
print(
    f"median at h = {steps[at]:.0e}: right {np.median(right[:, at]):.1%}, wrong {np.median(wrong[:, at]):.1%}"
)

# %%
assert best["right"].max() < 1e-5 and best["wrong"].min() > 10 * best["right"].max()

# %% [markdown]
# The blue lines come down as far as rounding lets them. The red ones level off at the error of the gradient. So the rule is: **the error of
# a kink goes away with the step, the error of a bug does not.** And for a network of this size the window is narrow: at $10^{-4}$, a step that
# looks harmless, some directions of the right gradient are off by a percent and more, like the wrong one. Think of this when you read "my gradient check
# fails in the big network".
#
# (In float32 there is no window at all: rounding reaches up to where the kinks begin. Check in float64.)
#
# ## Everything
#
# Now we move each of the 78 parameters alone, in a random direction, over several steps. Where the error of the best step is not below $10^{-6}$,
# we try up to three more directions, because a slope that happens to be near 0 drowns in rounding; a wrong gradient is wrong in all
# four, like the red lines above. (In the fast setting, the parameters of a layer are moved together.)


# %%
# alt: The relative error of the gradient, on a logarithmic axis, for 78 parameters in order from the image to
#   the losses, marked as ResNet, pyramid, RPN, box head and mask head. All dots lie between about 1e-11 and
#   1e-6, most of them far below the dashed bound of 1e-5.
STEPS = np.logspace(-9, -7, 3) if FAST else np.logspace(-9, -6, 7)


def best_error(body, names=(), inputs=(), goal=1e-6):
    """The error at the best step; where it is not small, the best of four directions."""
    best = np.inf
    for seed in range(4):
        errors = errors_over_step(body, names, inputs, kinds=("central",), steps=STEPS, seed=seed)
        best = min(best, errors.best())
        if best < goal:
            break
    return best


def stage(name):
    """The part of the network that a parameter belongs to."""
    return next(short for prefix, short in STAGES.items() if name.startswith(prefix))


STAGES = {
    "backbone.body": "ResNet",
    "backbone.fpn": "pyramid",
    "rpn": "RPN",
    "roi_heads.box": "box head",
    "roi_heads.mask": "mask head",
}
groups = {}
for name in everything:
    groups.setdefault(".".join(name.split(".")[:3]) if FAST else name, []).append(name)
found = {group: best_error(losses_of(), names) for group, names in groups.items()}

_, axes = plt.subplots(figsize=(11, 3.8), layout="constrained")
styles = dict(zip(STAGES.values(), zip((BLUE, ORANGE, GREEN, RED, GREY), "osD^v")))
for short, (colour, marker) in styles.items():
    own = [i for i, group in enumerate(found) if stage(group) == short]
    axes.semilogy(own, [list(found.values())[i] for i in own], marker, color=colour, ms=5, label=short)
axes.axhline(1e-5, color="black", lw=1, ls="--")
axes.text(0, 1.3e-5, "bound", va="bottom")
axes.set(xlabel="parameter, from the image to the losses", ylabel="relative error", ylim=(1e-12, 1e-3))
axes.set_title(f"{len(found)} checks: the whole Mask R-CNN")
axes.legend(ncols=5, loc="lower right", fontsize=9)
axes.grid(alpha=0.3)
plt.show()
worst = max(found, key=found.get)
print(f"worst: {worst}, {found[worst]:.1e}")

# %%
assert found[worst] < 1e-5

# %% [markdown]
# ### What the check does not see
#
# * **A wrong forward pass.** The check compares the derivative with the function that is there, not with the one that you meant. A RoIAlign that is
#   half a pixel off has a perfectly correct gradient. (To find that, one compares with references and with other people's numbers, as in 05.)
# * **Constants.** No gradient goes through matching, sampling and targets, so the check does not see them. (04 looks at them.)
# * **What is not reached.** The first version of this notebook drew 48 anchors instead of 256. Then no anchor of the level P5 was in the sample, and two
#   parameters had a gradient of 0, which agreed with a difference of 0. That is why the cell that builds the network prints
#   "parameters without any gradient".
#
# ## Detached proposals
#
# What if we do not hold the proposals? Notebook 04 looked at this from the RPN's side, in a random direction of its box branch. Here we measure
# the term that is left out against the one that is used. Take a parameter on which the heads' losses do *not* depend while the
# proposals are held: the bias of the RPN's box predictor. It moves every anchor's box a little.

# %%
# alt: Change of the heads' losses over t in three panels, with proposals that move and, a flat line at 0,
#   with held ones. With t up to 0.1 the moving curve breaks off in jumps, the largest of 0.15; up to 0.003
#   and to 0.00001 it is a straight line that falls through 0: a slope that the held ones lack.
name, heads = "rpn.head.bbox_pred.bias", ("loss_classifier", "loss_box_reg", "loss_mask")
v = np.ones(parameters[name].shape)


def head_losses(held):
    with no_grad():
        losses = model.training_record(images, targets, Draws(seed=1), held).losses
    return [losses[h].item() for h in heads]


_, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
for panel, reach in zip(axes, (0.1, 3e-3, 1e-5)):
    ts = np.linspace(-reach, reach, 15 if FAST else 101)
    curves = {
        kind: along(name, v, ts, lambda held=held: sum(head_losses(held)))
        for kind, held in (("held", record), ("moving", None))
    }
    now = curves["held"][0]  # what is drawn is the difference from here
    panel.plot(ts / reach, curves["moving"] - now, ".-", ms=3, lw=0.8, color=ORANGE, label="proposals move")
    panel.plot(ts / reach, curves["held"] - now, "--", color=BLUE, lw=2, label="proposals held")
    panel.set(xlabel=f"t / {reach:g}", title=f"t up to {reach:g}")
    panel.ticklabel_format(style="sci", scilimits=(-2, 3), axis="y")
axes[0].set_ylabel("change of $L_{cls} + L_{box} + L_{mask}$")
axes[0].legend()
plt.show()

# %%
assert len(set(curves["held"])) == 1  # to the last bit: nothing of the heads depends on it
assert np.ptp(curves["moving"]) > 1e-7

# %% [markdown]
# From afar one sees jumps: non-maximum suppression decides differently, the IoU of a proposal crosses 1/2 so that its label changes, another
# sample is drawn. Jumps have no derivative at all. Between them, and close up, there is a smooth slope: the boxes move, RoIAlign reads elsewhere, and
# the offsets to the objects change. *That* term could be differentiated. How large is it? Here are, for each of the twelve numbers of the bias (four for each
# of three anchors), the slope that training uses and the true slope of the printed loss:

# %%
# alt: Pairs of bars for twelve numbers of the bias, four for each of three anchors: the slope used in
#   training, and that of the printed loss. The first are at most 0.01 in size, with finite differences at
#   their ends; the second go down to -0.27, for dy of anchor 1. Anchor 2 has no bars.
h, size = 1e-6, parameters[name].size
model.training_record(images, targets, Draws(seed=1), record)
for p in parameters.values():
    p.grad = None
sum(losses_of()()).backward()
used = parameters[name].grad.copy()
ends = [
    along(name, np.eye(size)[k], (-h, h), lambda: [*head_losses(None), total_loss(None)]) for k in range(size)
]
slopes = np.array(
    [(after - before) / (2 * h) for before, after in ends]
)  # (12, 4): the heads' losses, and the sum
held_ends = [along(name, np.eye(size)[k], (-h, h), lambda: total_loss(record)) for k in range(size)]
held_slopes = np.array([(after - before) / (2 * h) for before, after in held_ends])

_, axes = plt.subplots(figsize=(11, 3.8), layout="constrained")
at = np.arange(size)
axes.bar(at - 0.2, used, 0.38, color=BLUE, label="used in training (proposals held)")
axes.bar(
    at + 0.2, slopes[:, 3], 0.38, color=ORANGE, hatch="//", ec="white", label="of the loss that is printed"
)
axes.plot(at - 0.2, held_slopes, "k_", ms=12, label="finite differences, held")
axes.set_xticks(at, [f"{c}\nanchor {a}" for a in range(3) for c in ("dx", "dy", "dw", "dh")])
axes.axhline(0, color="black", lw=0.8)
axes.set(ylabel="dL / d bias", title="the bias of the RPN's box predictor")
axes.legend()
plt.show()
cosine = used @ slopes[:, 3] / np.linalg.norm(used) / np.linalg.norm(slopes[:, 3])
ratio = np.linalg.norm(slopes[:, 3] - used) / np.linalg.norm(used)
print(f"what is left out is {ratio:.0f} times as large as what is used;")
print(f"the angle between the two gradients is {np.degrees(np.arccos(cosine)):.0f} degrees")
print("by loss:", {h: f"{np.abs(s).max():.2g}" for h, s in zip(heads, slopes.T)})

# %%
assert np.allclose(used, held_slopes, atol=1e-7) and not np.allclose(used, slopes[:, 3], atol=1e-2)

# %% [markdown]
# It is not a small correction! For this parameter and these random weights, what everybody leaves out is 26 times as large as what is
# kept, and the two gradients point 41 degrees apart. (The last line has the largest slope of each of the heads' losses. Anchor 2 has no bars: the sample has no positive anchor of that shape, and no RoI that came
# from one.)
#
# Training works all the same, because the RPN has a loss of its own, which says directly where its boxes should be, and because the heads are trained on
# whatever proposals they get. The missing term is what the heads *wish* the proposals to be, and at the start they know little. Notebook 04
# gives the reasons for leaving it out. There is one more: it would need the derivative of RoIAlign with respect to the box, of the encoded targets, of
# decoding and of clipping. That can be done: the RoI warping of MNC (below) does differentiate the box. And it was tested: Faster R-CNN (section 3.2)
# found this "approximate joint training" about as accurate as training the two networks in turn, and faster.
#
# So a check of Mask R-CNN that does not hold the proposals *must* fail, and not because of a bug.
#
# ## All Functions
#
# At the other end there is the check of each Function by itself, on inputs chosen to be nasty (odd sizes, strides larger than the kernel, boxes outside the image,
# nothing at all). `minimask gradcheck` on the command line prints this table, and minimask's tests fail for a Function without a row.

# %%
assert run_table(["group_norm", "mask_loss"])

# %%
# alt: For each of 42 Functions a column of dots on a logarithmic axis, the worst relative errors of its
#   cases. All are below the dashed bound of 1e-6, most between 1e-12 and 1e-8; the highest, of
#   SoftmaxCrossEntropy, is near 5e-8. Errors of exactly 0 stand in a row at the bottom.
reports = {cls: [check_function(cls, case) for case in CASES[cls]] for cls in all_functions()}
_, axes = plt.subplots(figsize=(12, 4), layout="constrained")
cases = sum(len(own) for own in reports.values())
for i, own in enumerate(reports.values()):
    errors = [max(report.worst_error, 1e-13) for report in own]
    axes.semilogy([i] * len(own), errors, "o", color=BLUE, ms=4, alpha=0.6)
axes.axhline(1e-6, color=RED, ls="--", lw=1)
axes.text(0, 1.3e-6, "bound", color=RED, va="bottom")
axes.set_xticks(range(len(reports)), [cls.__name__ for cls in reports], rotation=90, fontsize=8)
axes.set(
    ylabel="worst relative error",
    ylim=(5e-14, 1e-4),
    title=f"{cases} cases of {len(reports)} Functions (an error of 0 is drawn at the bottom)",
)
axes.grid(alpha=0.3, axis="y")
plt.show()

# %% [markdown]
# ## A bug is planted
#
# Now somebody changes one line. There are two kinds of bug. Each of the five in `BUGS` makes the backward pass of one Function wrong; a
# generator draws one of them, the *secret* bug, and we do not look which. In the *joint* bug, `JOINT`, all Functions are right, but they are
# put together wrongly.


# %%
BUGS = [
    (
        F.pool.UpsampleNearest,
        "backward",
        "nearest_gradient(gy, self.saved[0])",
        "nearest_gradient(gy, self.saved[0]) / 4",
    ),
    (F.norm.GroupNorm, "backward", "x_hat -= r * a", "x_hat -= 0 * a"),
    (F.explicit_rpn_head.RPNHead, "backward", "[t + g for t, g in zip(totals, level)]", "level"),
    (F.explicit_mask_head.MaskHead, "backward", "gradients(gh, hs[i],", "gradients(gh, hs[0],"),
    (F.loss.BoxHeadLoss, "backward", "[rows, classes] = g_box", "[rows, classes - 1] = g_box"),
]
JOINT = (FPN, "forward", "F.upsample_nearest(inner[i + 1],", "F.upsample_nearest(inner[i + 1].detach(),")


@contextlib.contextmanager
def planted(cls, method, old, new):
    """Inside, one piece of a method's source is replaced by another."""
    right = vars(cls)[method]
    text, namespace = textwrap.dedent(inspect.getsource(right)), dict(vars(inspect.getmodule(cls)))
    assert text.count(old) == 1
    exec(text.replace(old, new), namespace)
    setattr(cls, method, namespace[method])
    try:
        yield
    finally:
        setattr(cls, method, right)


secret = BUGS[np.random.default_rng(21).integers(len(BUGS))]  # another seed: another bug

# %% [markdown]
# Would you notice? Train the small network on its two pictures: as it is, with the secret bug, and with the joint one.


# %%
# alt: Sum of the losses over 80 steps for three networks: right, with the secret bug, with the joint bug. All
#   three fall from 3 to about 1 and cross several times; the joint bug is behind from step 30 to 55, but at
#   the end nothing tells the three apart.
def loss_curve(bug=None):
    trained, values = small_model(), []
    optimizer = SGD(trained.named_parameters(), lr=0.01)
    with planted(*bug) if bug else contextlib.nullcontext():
        for step in range(12 if FAST else 80):
            optimizer.zero_grad()
            total = sum(trained.loss(images, targets, Draws(seed=1, step=step)).values())
            total.backward()
            optimizer.step()
            values.append(total.item())
    return values


_, axes = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
curves = {}
for label, bug, colour, style in (
    ("right", None, BLUE, "-"),
    ("secret bug", secret, ORANGE, "--"),
    ("joint bug", JOINT, GREEN, "-."),
):
    curves[label] = loss_curve(bug)
    axes.plot(curves[label], style, color=colour, label=label)
axes.set(
    xlabel="step", ylabel="sum of the losses", title="which of these networks are wrong?", ylim=(0, None)
)
axes.legend()
plt.show()

# %%
assert all(curve[-1] < curve[0] for curve in curves.values())

# %% [markdown]
# Nobody would: the curves cross, each wrong one is ahead at times, and in the end all three arrive at the same place. Now the hunt begins. Rule
# one: **cut where the intermediate results are known, and check each part by itself.** A bug spoils the gradients of all layers between
# it and the image, because they flow back through it; so a list of wrong parameters does not say which Function is to blame. But a
# piece that is fed recorded arrays, and whose outputs are weighted at random, is right or wrong by itself. The record has everything we need for the cuts.

# %%
cs = [c.data for c in model.backbone.body(Tensor(record.batch.images))]
levels = [x.data for x in record.levels]


def under(prefix):
    return [name for name in everything if name.startswith(prefix)]


def rpn_losses(logits, deltas):
    return model.rpn.loss(replace(record.rpn, logits=logits, deltas=deltas), record.anchors).values()


def box_head(*xs):
    out = model.box_head(xs, record.rois.boxes)
    return out.logits, out.deltas


def box_losses(logits, deltas):
    return model.box_head.loss(
        replace(record.box, logits=logits, deltas=deltas), record.rois, record.targets
    ).values()


def mask_head(*xs):
    return (model.mask_head(xs, record.rois.positive.boxes),)


def mask_losses(logits):
    return model.mask_head.loss(logits, record.rois.positive, record.targets).values()


def all_heads(*xs):
    return [*rpn_losses(*model.rpn.head(xs)), *box_losses(*box_head(*xs)), *mask_losses(*mask_head(*xs))]


# name: what it computes, its parameters, the recorded arrays that go in, and the pieces it is made of
PIECES = {
    "network": (losses_of(), everything, [], ("images to levels", "levels to losses")),
    "images to levels": (
        lambda: model.backbone(Tensor(record.batch.images)),
        under("backbone"),
        [],
        ("ResNet", "pyramid"),
    ),
    "ResNet": (lambda: model.backbone.body(Tensor(record.batch.images)), under("backbone.body"), [], ()),
    "pyramid": (lambda *xs: model.backbone.fpn(xs), under("backbone.fpn"), cs, ()),
    "levels to losses": (
        all_heads,
        under("r"),
        levels,
        ("RPN", "RPN losses", "box head", "box losses", "mask head", "mask loss"),
    ),
    "RPN": (lambda *xs: model.rpn.head(xs), under("rpn"), levels, ()),
    "RPN losses": (rpn_losses, [], [record.rpn.logits.data, record.rpn.deltas.data], ()),
    "box head": (box_head, under("roi_heads.box"), levels, ()),
    "box losses": (box_losses, [], [record.box.logits.data, record.box.deltas.data], ()),
    "mask head": (mask_head, under("roi_heads.mask"), levels, ()),
    "mask loss": (mask_losses, [], [record.mask.data], ()),
}


def bisect(piece="network"):
    """The smallest pieces that are wrong, each check printed."""
    body, names, inputs, parts = PIECES[piece]
    error = best_error(body, names, inputs)
    print(f"{piece:<18} {error:.0e}  {'WRONG' if error > 1e-5 else 'right'}")
    if error <= 1e-5:
        return []
    return [found for part in parts for found in bisect(part)] or [piece]


for piece, (body, names, inputs, _) in PIECES.items():
    assert best_error(body, names, inputs) < 1e-5, piece  # nothing is planted yet: all are right
with planted(*secret):
    (suspect,) = bisect()

# %% [markdown]
# Two cuts, and one piece is left. Rule two: **ask the tape which Functions the piece consists of**, and check each of them by itself, on its
# cases from the table.


# %%
def functions_of(piece):
    """The classes of the Functions on a piece's tape."""
    body, _, inputs, _ = PIECES[piece]
    outputs = body(*(Tensor(x, requires_grad=True) for x in inputs))
    waiting, seen = [y.creator for y in outputs if y.creator], set()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += [edge[0] for edge in node.edges if isinstance(edge, tuple)]
    return sorted({type(node) for node in seen}, key=lambda cls: cls.__name__)


def guilty(piece):
    wrong = {}
    for cls in functions_of(piece):
        reports = [check_function(cls, case) for case in CASES[cls]]
        mismatch = next((str(report.mismatch) for report in reports if report.mismatch), None)
        print(textwrap.fill(f"{cls.__name__:<20} {mismatch or 'right'}", 95, subsequent_indent=" " * 21))
        if mismatch:
            wrong[cls] = mismatch
    return list(wrong)


with planted(*secret):
    accused = guilty(suspect)
assert accused == [secret[0]]
print("\nplanted in", secret[0].__name__, ":", secret[2], "->", secret[3])

# %% [markdown]
# Found: in the backward pass of group normalisation, the mean was treated as a constant. (The line names the worst element. Sometimes its ratio hints
# at the kind of mistake, as in 01; here it does not.)
#
# "Why not run the table right away?", you may ask; it takes only seconds. Do! It is the first thing to try. But look at the other bug.

# %%
with planted(*JOINT):
    table = []
    print(
        "the table of all Functions:",
        "right" if run_table(out=table.append) else "WRONG",
        "-",
        table[-1],
        "\n",
    )
    (suspect,) = bisect()
    accused = guilty(suspect)

# %%
assert accused == [] and suspect == "pyramid"

# %% [markdown]
# All Functions are right, including those of the pyramid, and still the pyramid is wrong. So the fault is in how they are joined. Rule three: **check
# each input and each parameter of the piece alone**, with the others held (here the weights will do, without the biases). The fault
# lies on the paths from those that come out wrong to the outputs, and on no path from those that come out right.

# %%
body, names, inputs, _ = PIECES["pyramid"]
with planted(*JOINT):
    constant = [Tensor(x) for x in inputs]
    alone = {
        name.removeprefix("backbone.fpn."): best_error(body, [name], constant)
        for name in names
        if name.endswith("weight")
    }
    for k in range(4):
        one = [x if i == k else Tensor(x) for i, x in enumerate(inputs)]
        alone[f"C{k + 2}"] = best_error(body, [], one)
for name, error in alone.items():
    print(f"{name:<24} {error:.0e}  {'WRONG' if error > 1e-5 else 'right'}")
wrong = {name for name, error in alone.items() if error > 1e-5}

# %%
assert wrong == {"C3", "C4", "C5", *(f"inner_blocks.{k}.0.weight" for k in (1, 2, 3))}

# %% [markdown]
# The 3 x 3 convolutions (`layer_blocks`) are right, so what comes *after* the additions is right. C2 and its lateral `inner_blocks.0` are right, those of
# the coarser levels are wrong: what sets them apart is the way down, by which they reach the finer levels. That way goes through UpsampleNearest, which has two
# inputs: the coarser map, which it enlarges, and the lateral, which it adds. The Function itself is right, and it is on the tape, but only because of
# the lateral. One line calls it:

# %%
source(FPN.forward)

# %% [markdown]
# In it, `inner[i + 1]` had become `inner[i + 1].detach()`. Without that gradient the coarse levels are trained for their own objects only, and nobody
# complains: in the forward pass not one bit is different. This is the kind of bug that lives for years.
#
# It was not cleverness that made the hunt short. The records give us places to cut, each piece is a function, and each check is one number.
#
# ## Exercises
#
# **1.** Hunt the others. Take each bug in the list `BUGS`, or draw `secret` with other seeds, and *before* you run `bisect`, predict which pieces will be wrong.

# %%
my_bug = BUGS[2]
with planted(*my_bug):
    for piece in bisect():
        guilty(piece)

# %% [markdown]
# **2.** Plant a bug of your own that `bisect` finds, but that a check of the sum of the losses (all weights 1 instead of random) would miss. Hint: a Function with two losses has two outputs.
#
# <details><summary>Answer</summary>
#
# In `BoxHeadLoss.backward` let the classification use `g_box` and the boxes `g_cls`. In the sum both are 1, and nothing is wrong. With
# random weights the gradients are wrong. (Training on the sum would be right, too, until someone weights the losses.)
#
# </details>
#
# **3.** Which pieces does the bug `BUGS[1]` make wrong, if you check all of `PIECES` instead of bisecting? And which parameters of the whole network are wrong? Why is the second
# list longer than the norms?
#
# <details><summary>Answer</summary>
#
# The pieces that contain a group norm: ResNet, images to levels, network. In the network, every parameter from which the way to a loss leads through some norm's
# *input* is wrong. That is the entire ResNet, including its norms, except for the weights and biases of the very last ones, `layer4.0.bn2` and
# `layer4.0.downsample.1`: no norm comes after them.
#
# </details>
#
# **4.** A network has a hundred times as many ReLUs, and a step moves their inputs as far as here. What is the largest step at which its check still works, if here it is
# $10^{-7}$? How large is the relative error of rounding there? What would you do?
#
# <details><summary>Answer</summary>
#
# The nearest corner is a hundred times nearer, at $10^{-9}$. There rounding leaves about $10^{-16} / 10^{-9} = 10^{-7}$ times the loss over the slope: close to the limit.
# (With more parameters the inputs move farther, too, and the corner comes nearer still.) So check pieces instead of the whole, move one parameter instead of all, or use smaller
# pictures. Each of these means fewer ReLUs that move, or ReLUs that move less.
#
# </details>
#
# **5.** Repeat "Detached proposals" for `backbone.body.conv1.weight` instead of the RPN's bias. Which of the two terms is larger now? Explain.
#
# <details><summary>Answer</summary>
#
# In most random directions they are of the same order, and the one that is used is often the larger. The backbone's weights reach the heads directly, through the features, and that part is used; the RPN's bias reaches them by way of the boxes only.
#
# </details>
#
# **6.** Call `best_error(losses_of(held=None), ["rpn.head.bbox_pred.weight"])`. What error comes out, and why does it not go away with the step? For which parameters does the check pass even so?
#
# <details><summary>Answer</summary>
#
# It is of order 1 (0.7): the missing term is several times as large as the gradient that is used, at any step. The check passes for all parameters on which no proposal depends: those of the box and mask head.
#
# </details>
#
# ## Read on
#
# * S. Ren, K. He, R. Girshick, J. Sun, *Faster R-CNN*, section 3.2: alternating, approximate joint and non-approximate joint training.
# * J. Dai, K. He, J. Sun, *Instance-aware Semantic Segmentation via Multi-task Network Cascades*, CVPR 2016: the gradient of the box.
# * A. Griewank, A. Walther, *Evaluating Derivatives*, 2nd ed., SIAM 2008, chapter 14: functions with corners.
# * In the repository: `tests/test_mask_rcnn.py` asserts what this notebook showed, and `tests/test_mutants.py` plants bugs in all Functions and lets none survive.
#
# Next: [14 Why it is fast](14_why_it_is_fast.ipynb),
# from loops in Python to the speed of C++, one step at a time.
