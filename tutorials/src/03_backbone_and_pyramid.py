# ruff: noqa: E402, E501

# %% [markdown]
# # 03 Backbone and pyramid
#
# **Time** 3 to 4 hours with pencil, paper and exercises (an hour and a quarter to read); it runs in half
# a minute. **Needs** notebook 01 (what a Function is, how a gradient is checked) and what a convolution
# is. No GPU, no downloads.
#
# Mask R-CNN asks two things of an image that get in each other's way: *what is there?*, which needs a
# wide view, and *where exactly?*, which needs a fine grid. The **backbone** (a ResNet) buys a wide view
# and pays with the grid; the **feature pyramid** (FPN) gives the fine grid its view back. Between every
# two layers sits a **norm**, and which norm it is decides more than one would think: whether a gradient
# is local, and whether your answer depends on the image that happens to lie next to yours in the batch.
#
# Afterwards you can
#
# 1. say why a residual block has a shortcut, and show what happens without it;
# 2. derive the backward pass of batch norm in four lines, read it as a projection, and say what "frozen"
#    changes;
# 3. compute the receptive field of any cell, measure it by a gradient, and explain where the two
#    disagree;
# 4. derive the gradient of nearest upsampling, and say what each level of the pyramid sees.

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
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from minimask import Tensor, exercises, gradcheck, nn, no_grad, tutorial
from minimask import functions as F
from minimask.data import Shapes, nuclei_sample
from minimask.functions.conv_norm import ConvFrozenNorm, conv_frozen_norm_reference
from minimask.functions.norm import BatchNorm, FrozenBatchNorm, GroupNorm
from minimask.functions.pool import UpsampleNearest
from minimask.kernels import resample
from minimask.models.conventions import MINIMASK
from minimask.models.fpn import FPN, Backbone
from minimask.models.resnet import BasicBlock, Bottleneck, ResNet
from minimask.models.transform import Transform
from minimask.tutorial import BLUE, GREEN, GREY, ORANGE, RED, source

nuclei = nuclei_sample("train")
to_batch = Transform(MINIMASK, min_size=None, max_size=1600)  # normalises, and pads to a multiple of 32

# %% [markdown]
# ## The idea in a picture
#
# A ResNet is a stem, which divides the grid by 4, and four stages, of which all but the first halve it: a
# cell of **C2** stands for 4 x 4 pixels, of C3 for 8 x 8, of C4 for 16 x 16, of **C5** for 32 x 32. On
# the right you see what such coarse grids leave of an image of nuclei (means over the cells): at stride 4
# one could still trace the outlines; at stride 32 a nucleus is one or two numbers.
#
# On the left is what the cell gets in exchange. The filled squares are the cells of the four stages at
# one place; the frames are the pixels that *can* influence each of them in a ResNet-50. C2's cell has
# only 35 x 35 pixels to go by, less than a nucleus. C5's reads 427 x 427, more than the whole image.

# %%
# alt: Left, nuclei with a cell of C2 to C5 at one place and a square frame for what each can see: C2's is
#   smaller than a nucleus, C5's reaches beyond the 360-pixel image. Right, the image averaged over cells of
#   4, 8, 16 and 32 pixels: at 88 x 88 cells the outlines are clear, at 11 x 11 they are gone.
COLOURS, STAGES = (BLUE, GREEN, ORANGE, RED), ("C2", "C3", "C4", "C5")
FIELDS = {"C2": 35, "C3": 91, "C4": 267, "C5": 427}  # pixels; computed and measured below
image = nuclei[5].image  # (3, 360, 360)
shown = np.clip(image.transpose(1, 2, 0) * 4, 0, 1)  # it is dark
rows, columns = (side // 32 * 32 for side in shown.shape[:2])  # whole cells of C5

figure = plt.figure(figsize=(11, 4.8), layout="constrained")
left, right = figure.subfigures(1, 2)
axes = left.subplots()
axes.set_facecolor("#dddddd")
axes.imshow(shown, extent=(0, shown.shape[1], shown.shape[0], 0))
x, y = 210, 150
for i, (stage, width) in enumerate(FIELDS.items()):
    stride = 4 * 2**i
    column, row = x // stride * stride, y // stride * stride
    corner = column - width // 2, row - width // 2  # cell 0 of C2 sees pixels -17 to 17, and so on
    axes.add_patch(Rectangle(corner, width, width, fill=False, ec=COLOURS[i], lw=2, zorder=10))
    cell = dict(fc=COLOURS[i], alpha=0.6, zorder=5 - i)  # the larger lies behind, and covers no frame
    axes.add_patch(Rectangle((column, row), stride, stride, label=stage, **cell))
axes.set(xlim=(-45, 430), ylim=(400, -110), xlabel="x in pixels", ylabel="y in pixels")
axes.set_title("a cell (filled) and what it can see (frame)")
axes.legend(loc="lower left", ncols=4)
for i, axis in enumerate(right.subplots(2, 2).flat):
    stride = 4 * 2**i
    means = shown[:rows, :columns].reshape(rows // stride, stride, columns // stride, stride, 3)
    means = means.mean(axis=(1, 3))
    axis.imshow(means, interpolation="nearest", extent=(0, columns, rows, 0))
    axis.set_title(f"stride {stride}: {len(means)} x {means.shape[1]} cells", fontsize=10)
    axis.set(xlabel="x in pixels", ylabel="y in pixels")
    axis.label_outer()
plt.show()

# %% [markdown]
# The pyramid adds the maps up, from the coarse to the fine: P5 = C5, P4 = C4 + P5 enlarged, and so on
# (with small convolutions that we shall come to). Everything after it reads the pyramid: the proposals
# P2 to P6, the boxes and the masks P2 to P5.
#
# ## The stem's max pooling
#
# The second half of the stem's factor of 4 comes from a **max pooling**: windows of 3 x 3, two pixels
# apart, of which only the largest number is passed on, $y_p = \max_{k \in \text{window}(p)} x_k$. What is
# its gradient? Move one $x_k$ a little: where it is the largest of the window, $y_p$ moves along; where
# it is not, nothing happens. So
#
# $$\frac{\partial y_p}{\partial x_k} = [k = k^*(p)], \qquad k^*(p) = \operatorname*{arg\,max}_{k \in
# \text{window}(p)} x_k, \qquad
# \bar x_k = \sum_{p\,:\,k^*(p) = k} \bar y_p :$$
#
# each output sends its gradient to its **winner**, and a pixel that wins in several windows, which
# overlap, gets the **sum**. The losers get nothing. (If two are equal, either is right as a derivative
# from one side; minimask takes the first.) All that the backward pass has to remember is where the
# winners were.

# %%
source(F.pool.MaxPool2d.backward)

# %%
# alt: Max pooling in three grids of numbers: a 5 x 5 input with four overlapping 3 x 3 windows framed, the 2
#   x 2 output with 9, 8, 4 and 8, and the gradient of the input. It is zero but for three winners: 1 at the
#   9, 100 at the 4, and 1010 at the 8, which wins in two windows.
few = np.array([[1.0, 2, 0, 1, 3], [0, 9, 1, 2, 0], [2, 1, 0, 8, 1], [1, 0, 4, 1, 0], [0, 2, 1, 0, 5]])
pixels = Tensor(few[None, None], requires_grad=True)
pooled = F.max_pool2d(pixels, 3, stride=2)
pooled.backward(np.array([[[[1.0, 10], [100, 1000]]]]))  # so that one sees where each comes from

_, axes = plt.subplots(1, 3, figsize=(10, 3.5), layout="constrained", width_ratios=(5, 2.6, 5))
titles = "x, and its four windows", "y", "gradient of x, for 1, 10, 100, 1000 from y"
for axis, values, title in zip(axes, (few, pooled.data[0, 0], pixels.grad[0, 0]), titles):
    axis.imshow(np.where(values > 0, np.log1p(values), np.nan), cmap="Blues", vmin=0, vmax=12)
    for (i, j), v in np.ndenumerate(values):
        axis.text(j, i, f"{v:g}", ha="center", va="center")
    axis.set(title=title, xticks=[], yticks=[])
for (p, q), colour, style in zip(np.ndindex(2, 2), (BLUE, ORANGE, GREEN, RED), ("-", "--", "-.", ":")):
    corner = 2 * q - 0.42 + 0.03 * p, 2 * p - 0.42 + 0.03 * q
    axes[0].add_patch(Rectangle(corner, 2.84, 2.84, fill=False, ec=colour, ls=style, lw=2))
plt.show()

# %%
winners = [(i, j) for i, j in np.argwhere(pixels.grad[0, 0])]
assert pixels.grad.sum() == 1111 and set(few[tuple(zip(*winners))]) == set(pooled.data.ravel())

# %% [markdown]
# The 9 and the 4 win in one window each, the 8 in two, so that 10 and 1000 add up there; most pixels get
# nothing at all.
#
# ## A residual block
#
# He et al. (2016) let a block compute what is to be *added* to its input: $y = \max(0,\; x + f(x))$. Here
# are minimask's two kinds. `Bottleneck` makes up ResNet-50 and ResNet-101; `BasicBlock` is cheaper, and
# the small network uses it.

# %%
source(BasicBlock, Bottleneck, nn.Norm)

# %% [markdown]
# ### What the shortcut does to the gradient
#
# Leave the outer ReLU aside. With $J_l = \partial f_l / \partial x_l$, a block hands back
#
# $$\bar x = (I + J_l)^\top \bar y = \bar y + J_l^\top \bar y ,$$
#
# and a tower of $L$ blocks $(I + J_1)^\top \cdots (I + J_L)^\top$, where a plain tower has
# $J_1^\top \cdots J_L^\top$. Multiply the first one out: it is a sum over all subsets of the blocks. The
# empty subset is $I$: the gradient arrives at the bottom as it left the top, whatever the blocks do. The
# plain product has one term only, with all the blocks in it, and a product of thirty random matrices is a
# wild thing.
#
# How wild? Take a network with one input number $t$ and one output number, so that we can simply plot it.
# Sixteen blocks, as many as ResNet-50 has, of 64 channels on images of a single pixel; 256 images, one
# for each $t$. The norms are calibrated on these inputs (each channel has mean 0 and variance 1), so
# nothing is out of scale anywhere. `Plain` is the same block with the same weights, but without the
# shortcut.


# %%
# alt: Output (top) and gradient (bottom) over the input t for three networks, each panel with a scale of its
#   own. One plain block: a smooth curve, gradients within 5; 16 plain blocks: noise, with gradients of up to
#   6000; 16 residual blocks: a jagged curve that can be followed, with gradients of up to about 80.
class Plain(BasicBlock):
    """A basic block without its shortcut."""

    def forward(self, x):
        return self.bn2.after(self.conv2, self.bn1.after(self.conv1, x))


def calibrated(channels):
    return nn.BatchNorm2d(channels, momentum=1.0)  # running statistics: those of the last batch


def tower(block, depth, seed):
    """Output and gradient over t of `depth` random blocks."""
    rng = np.random.default_rng(seed)
    first, last = nn.Conv2d(1, 64, 1, rng), nn.Conv2d(64, 1, 1, rng, gain=1.0)  # He's initialisation: 02
    blocks = nn.Sequential(*(block(64, 64, 1, calibrated, rng) for _ in range(depth)))
    net = nn.Sequential(first, calibrated(64), blocks, last)
    t = Tensor(np.linspace(-2, 2, 256, dtype=np.float32).reshape(256, 1, 1, 1), requires_grad=True)
    with no_grad():
        net(t)  # measures mean and variance, layer by layer
    y = net.eval()(t)  # uses them as constants, so that the 256 outputs have nothing to do with each other
    y.backward(np.ones(y.shape))
    return t.numpy().ravel(), y.numpy().ravel(), t.grad.ravel()


_, axes = plt.subplots(2, 3, figsize=(11.5, 4.8), sharex=True, layout="constrained")
towers = (
    ("plain, 1 block", Plain, 1),
    ("plain, 16 blocks", Plain, 16),
    ("residual, 16 blocks", BasicBlock, 16),
)
for column, (title, block, depth), colour in zip(axes.T, towers, (GREY, ORANGE, BLUE)):
    t, y, g = tower(block, depth, seed=0)
    column[0].plot(t, y / y.std(), color=colour, lw=1.2)
    column[1].plot(t, g / y.std(), color=colour, lw=1.2)
    column[0].set_title(title)
    column[1].set_xlabel("input t")
axes[0, 0].set_ylabel("output / its std")
axes[1, 0].set_ylabel("gradient / output's std")
plt.show()


def relation_of_neighbours(block, depth, seed):
    _, y, g = tower(block, depth, seed)
    outputs, gradients = (np.corrcoef(v[1:], v[:-1])[0, 1] for v in (y, g))
    return outputs, gradients, np.abs(g).mean() / y.std()


seeds = range(1 if FAST else 5)
numbers = {title: np.mean([relation_of_neighbours(b, d, s) for s in seeds], axis=0) for title, b, d in towers}
print(" " * 20, "correlation of neighbouring outputs   of gradients   mean |gradient|")
for title, (outputs, gradients, slope) in numbers.items():
    print(f"{title:<20} {outputs:35.2f} {gradients:14.2f} {slope:17.1f}")

# %%
assert numbers["plain, 16 blocks"][0] < 0.5 < 0.9 < numbers["residual, 16 blocks"][0]
assert numbers["plain, 16 blocks"][1] < 0.1 < numbers["residual, 16 blocks"][1] < numbers["plain, 1 block"][1]
assert numbers["plain, 16 blocks"][2] > 10 * numbers["residual, 16 blocks"][2]

# %% [markdown]
# The plain network is noise: move $t$ by 1/64 and you get an unrelated number. Its gradient is hundreds
# of times larger than that of one block, and says nothing about what happens one small step further on,
# so no learning rate is right. The output of the residual network of the same depth is a curve one could
# follow. Its gradient is rough, too (neighbours correlate at 0.21 only, where one block has 0.97), but it
# does point somewhere; at 0.01 there is only noise. *That* is what the shortcut is for. (Balduzzi et al.,
# 2017, call it the *shattered gradient*.)
#
# ## Norms
#
# A norm takes $m$ numbers, subtracts their mean, divides by their standard deviation, and gives each
# channel a scale $w$ and a shift $b$ of its own:
#
# $$\mu = \frac1m \sum_i x_i,\quad \sigma^2 = \frac1m \sum_i (x_i - \mu)^2,\quad
#   \hat x_i = \frac{x_i - \mu}{\sqrt{\sigma^2 + \varepsilon}},\quad y_i = w\,\hat x_i + b .$$
#
# All that differs is *which* numbers belong together. Each column below is a channel, each row an image,
# each square a whole map; squares with the same number (and colour) share their mean and variance.

# %%
# alt: Three grids of 4 images by 8 channels, in which squares with the same number share mean and variance.
#   Batch norm has one number for each column, 0 to 7; group norm one for each pair of neighbouring channels
#   in each row, 0 to 15; in the frozen grid all squares are empty.
_, axes = plt.subplots(1, 3, figsize=(11, 2.5), layout="constrained")
channel, row = np.meshgrid(np.arange(8), np.arange(4))
for axis, (title, groups) in zip(
    axes,
    {
        "batch norm: a channel of all images": channel,
        "group norm: some channels of one image": 4 * row + channel // 2,
        "frozen: constants, nothing is shared": np.full((4, 8), -1),
    }.items(),
):
    axis.imshow(np.where(groups < 0, np.nan, groups * 7 % 16), cmap="cividis", vmin=0, vmax=15)
    for (i, k), group in np.ndenumerate(groups):
        colour = "black" if group * 7 % 16 > 8 else "white"
        axis.text(k, i, group if group >= 0 else "", color=colour, ha="center", va="center", fontsize=9)
    for i in range(9):
        axis.axvline(i - 0.5, color="white" if groups.min() >= 0 else GREY, lw=1.5)
    for i in range(5):
        axis.axhline(i - 0.5, color="white" if groups.min() >= 0 else GREY, lw=1.5)
    axis.set(title=title, xlabel="channel", ylabel="image", xticks=range(8), yticks=range(4))
plt.show()

# %% [markdown]
# ### The backward pass, in four lines
#
# The trap: $\mu$ and $\sigma$ depend on every $x_j$, so every $\hat x_i$ does. Write
# $r = (\sigma^2 + \varepsilon)^{-1/2}$ and take differentials, with
# $\langle a \rangle = \frac1m \sum_i a_i$ for a mean:
#
# $$\begin{aligned}
# d\mu &= \langle dx \rangle, \qquad d(\sigma^2) = 2\, \langle (x - \mu)\, dx \rangle, \qquad dr =
# -\tfrac12\, r^3\, d(\sigma^2) \\
# d\hat x_i &= r\,(dx_i - d\mu) + (x_i - \mu)\, dr \\
#           &= r\, \big(dx_i - \langle dx \rangle - \hat x_i\, \langle \hat x\, dx \rangle \big) \\
# J &= r\, \big( I - \tfrac1m \mathbf 1 \mathbf 1^\top - \tfrac1m \hat x\, \hat x^\top \big)
# \end{aligned}$$
#
# $J$ is symmetric, so $J^\top = J$, and the backward pass is the *same* formula, applied to
# $g = w\,\bar y$:
#
# $$\bar x = r\, \big( g - \langle g \rangle - \hat x\, \langle \hat x\, g \rangle \big), \qquad
#   \bar w = \sum_i \bar y_i\, \hat x_i, \qquad \bar b = \sum_i \bar y_i .$$
#
# Read it as geometry. The vectors $\mathbf 1$ and $\hat x$ are orthogonal and (up to $\varepsilon$) of
# length $\sqrt m$, so the bracket is a **projection**: it takes from $g$ what points along $\mathbf 1$
# and along $\hat x$. It has to: adding a constant to all $x$, or multiplying all by a factor, does not
# change $y$, so the gradient cannot ask for it. Written out, for group norm:


# %%
def plain_group_norm_backward(gy, x, weight, groups, eps):
    """The formula above, for the numbers of one image and group at a time: gx, gw, gb."""
    gx, g_weight, g_bias = np.empty_like(x), np.zeros_like(weight), np.zeros_like(weight)
    for image in range(len(x)):
        for channels in np.split(np.arange(len(weight)), groups):
            own, upstream = x[image, channels], gy[image, channels]  # (C/G, H, W), one mean for all of it
            r = 1 / np.sqrt(own.var() + eps)
            x_hat = (own - own.mean()) * r
            g = weight[channels, None, None] * upstream
            gx[image, channels] = r * (g - g.mean() - x_hat * (g * x_hat).mean())
            g_weight[channels] += (upstream * x_hat).sum(axis=(1, 2))  # every image uses the same weight
            g_bias[channels] += upstream.sum(axis=(1, 2))
    return gx, g_weight, g_bias


plain_rng = np.random.default_rng(7)
some = [Tensor(v, True) for v in (plain_rng.normal(2, 3, (2, 6, 4, 3)), *plain_rng.uniform(0.5, 2, (2, 6)))]
upstream = plain_rng.normal(size=some[0].shape)
F.group_norm(some[0], 3, *some[1:], eps=1e-5).backward(upstream)
plain = plain_group_norm_backward(upstream, some[0].data, some[1].data, 3, 1e-5)
for name, mine, fast in zip(("x", "w", "b"), plain, some):
    print(f"gradient of {name}: largest difference from minimask's {np.abs(mine - fast.grad).max():.0e}")

# %%
assert all(np.allclose(mine, fast.grad, rtol=1e-10, atol=1e-12) for mine, fast in zip(plain, some))

# %% [markdown]
# And this is how it stands in minimask. `BatchNorm` has mean and variance as further outputs, for the
# running averages, so their gradients come in as well (two more terms of the same kind). `GroupNorm`
# takes as many groups at a time as fit into the cache, and computes the sums over a group from those over
# each channel, which it needs for $\bar w$ and $\bar b$ anyway:
# $\langle g \rangle = \tfrac1m \sum_c w_c \bar b_c$, with the $\bar b_c$ of one image. On a GPU it hands
# the same formula to kernels.

# %%
source(BatchNorm, GroupNorm.backward)

# %%
rng = np.random.default_rng(0)
x = Tensor(rng.normal(2.0, 3.0, (4, 6, 5, 5)), requires_grad=True)
w, b = rng.uniform(0.5, 2.0, 6), rng.normal(size=6)
u = rng.normal(size=x.shape)

for name, norm, axes_of in (
    ("batch norm", lambda x: F.batch_norm(x, w, b)[0], (0, 2, 3)),
    ("group norm, 2 groups", lambda x: F.group_norm(x, 2, w, b), None),
):
    x.grad = None
    norm(x).backward(u)
    values, g = x.numpy(), x.grad
    if axes_of is None:
        values, g, axes_of = values.reshape(4, 2, -1), g.reshape(4, 2, -1), (2,)
    hat = (values - values.mean(axes_of, keepdims=True)) / values.std(axes_of, keepdims=True)
    along_1, along_x = np.abs(g.mean(axes_of)).max(), np.abs((g * hat).mean(axes_of)).max()
    print(f"{name:<22} largest <gx> {along_1:.0e}, largest <gx x_hat> {along_x:.0e};", end=" ")
    print(f"mean |gx| {np.abs(g).mean():.2f}")
    assert along_1 < 1e-15 and along_x < 1e-6  # the second is zero up to epsilon, 1e-5 of a variance of 9

# %% [markdown]
# A consequence that few people expect: if a convolution stands before the norm, multiplying its *weights*
# by a factor changes nothing either. So the gradient of the weights is orthogonal to the weights, and a
# step along it can only make them *longer* (Pythagoras), and the longer they are, the less the same step
# turns them. Weight decay in front of a norm does not make the function simpler; it sets the pace at
# which the weights turn.

# %%
conv = nn.Conv2d(3, 6, 3, rng).astype(np.float64)
image = Tensor(rng.normal(size=(2, 3, 8, 8)))
for name, norm in (
    ("batch norm", lambda y: F.batch_norm(y, w, b)[0]),
    ("group norm", lambda y: F.group_norm(y, 2, w, b)),
    ("frozen norm", lambda y: F.frozen_batch_norm(y, w, b, 0 * b, 1 + 0 * b)),
):
    conv.weight.grad = None
    y = norm(conv(image))
    y.backward(np.random.default_rng(1).normal(size=y.shape))
    v, g = conv.weight.data.ravel(), conv.weight.grad.ravel()
    cosine = v @ g / np.linalg.norm(v) / np.linalg.norm(g)
    print(f"conv + {name:<12} cosine between weights and their gradient {cosine:+.1e}")
    assert (abs(cosine) < 1e-5) == (name != "frozen norm")

# %% [markdown]
# ### Is it right? The error over the step
#
# As in notebook 01: finite differences along a random direction against the derived gradient. For the
# norms, that is all inputs at once: $x$, $w$ and $b$. A block is checked through its shortcut, its norms
# and both its ReLUs, with one of its weights. Its error jumps up at large steps, where some ReLU's corner
# is crossed.

# %%
# alt: Relative error over the step, both logarithmic, for batch norm, group norm and a residual block.
#   One-sided, central and five-point differences make ever deeper Vs, down to 1e-12 or less for five points;
#   in the residual block the central and five-point errors jump to about 1e-2 beyond a step of 1e-3.
steps = np.logspace(-13, 0, 27 if FAST else 53)
block = BasicBlock(4, 4, 1, lambda c: nn.GroupNorm(c, 2), np.random.default_rng(0)).astype(np.float64)


def through_block(x, weight):
    block.conv2.weight = weight
    return block(x)


cases = {
    "batch norm, with its mean and variance": (F.batch_norm, [rng.normal(size=(3, 4, 3, 3)), w[:4], b[:4]]),
    "group norm, 2 groups": (
        lambda x, w, b: F.group_norm(x, 2, w, b),
        [rng.normal(size=(2, 4, 3, 3)), w[:4], b[:4]],
    ),
    "a residual block": (through_block, [rng.normal(size=(2, 4, 5, 5)), block.conv2.weight.numpy()]),
}
_, axes = plt.subplots(1, 3, figsize=(12, 3.7), sharey=True, layout="constrained")
for axis, (title, (function, inputs)) in zip(axes, cases.items()):
    errors = tutorial.step_errors(function, inputs, steps=steps)
    errors.plot(axis, title)
    axis.label_outer()
    if axis is not axes[0]:
        axis.get_legend().remove()  # the same in all three
    print(f"{title:<40} best error of central differences {errors.best():.0e}")
    assert errors.best() < 1e-8
plt.show()

# %% [markdown]
# And now the bug that everyone writes once: mean and variance treated as constants, $\bar x = r\,g$. What
# is missing is not a small term. The check says so at once; a training run does not.


# %%
class CarelessBatchNorm(BatchNorm):
    """Batch norm whose backward pass forgets that mean and variance depend on x."""

    def backward(self, gy, g_mean, g_var):
        x_hat, inv_std, weight = self.saved
        return gy * weight[:, None, None] * inv_std, (gy * x_hat).sum((0, 2, 3)), gy.sum((0, 2, 3))


function, inputs = cases["batch norm, with its mean and variance"]
report = gradcheck(lambda *x: CarelessBatchNorm.apply(*x, eps=1e-5)[0], inputs, raise_error=False)
for line in ["careless:", *str(report.mismatch).split("; ")]:
    print(line)

# %%
assert not report and gradcheck(lambda *x: function(*x)[0], inputs)

# %% [markdown]
# ### Frozen batch norm
#
# Detectors are trained with one or two images per GPU. Statistics of two images are poor, and we shall
# see how poor; the ResNet paper (appendix A) gives another reason, memory. So one starts from a ResNet
# trained for classification and *freezes* its norms: $\mu$, $\sigma$, and also $w$ and $b$, are
# constants. What is left is a scale and a shift,
#
# $$y = s\,x + t, \qquad s = \frac{w}{\sqrt{\sigma^2 + \varepsilon}}, \quad t = b - \mu s, \qquad\qquad
# \bar x = s\,\bar y .$$
#
# The projection is gone: the careless formula above, wrong for batch norm, is *right* for the frozen one.
# And a scale and a shift behind a convolution are again a convolution: $s\,(W * x) + t = (sW) * x + t$.
# minimask folds them in, and with them the shortcut and the ReLU; four passes over memory become one. The
# weights' gradient comes back through the fold: $\bar W = s\,\overline{(sW)}$. For the backward pass it
# keeps $W$, which is in memory anyway, and computes $sW$ once more: a product for each weight, where
# keeping it would be a second copy of the backbone.

# %%
source(FrozenBatchNorm.forward, ConvFrozenNorm, F.scale_and_shift)

# %%
x, r = rng.normal(size=(2, 3, 9, 9)), rng.normal(size=(2, 6, 9, 9))
weight, norm = (
    rng.normal(size=(6, 3, 3, 3)),
    F.scale_and_shift(w, b, rng.normal(size=6), rng.uniform(0.5, 2, 6)),
)
results = []
for function in (F.conv_frozen_norm, conv_frozen_norm_reference):  # one Function; four small ones
    inputs = [Tensor(v, requires_grad=True) for v in (x, weight, r)]
    y = function(*inputs[:2], norm, inputs[2], padding=1)
    y.backward(np.random.default_rng(2).normal(size=y.shape))
    results.append([y.numpy(), *(v.grad for v in inputs)])
for name, folded, plain in zip(("y", "gx", "gW", "g of the shortcut"), *results):
    print(f"{name:<18} largest difference {np.abs(folded - plain).max():.0e}")
    assert np.allclose(folded, plain, rtol=0, atol=1e-12)

# %% [markdown]
# Freezing has a price: nothing keeps the scale of the activations in check any more. It works because the
# statistics fit the weights they were measured with. With *random* weights and statistics of 0 and 1,
# every block about doubles the variance. Look at the standard deviation of the four stages, for one image
# and three norms:

# %%
NORMS = {
    "frozen, never calibrated": nn.FrozenBatchNorm2d,
    "batch norm": nn.BatchNorm2d,
    "group norm": nn.GroupNorm,
}


def small_body(norm, seed=0, blocks=(3, 4, 6, 3)):
    """ResNet-50's depth with an eighth of its channels: what follows does not depend on the channels."""
    return ResNet(Bottleneck, blocks, (8, 16, 32, 64), norm, np.random.default_rng(seed))


batch = Tensor(to_batch([nuclei[0].image]).images)
spread = {}
for name, norm in NORMS.items():
    with no_grad():
        spread[name] = [float(c.numpy().std()) for c in small_body(norm)(batch)]
    print(f"{name:<25}", "  ".join(f"{stage} {value:7.2f}" for stage, value in zip(STAGES, spread[name])))

# %%
assert spread["frozen, never calibrated"][3] > 10 * spread["group norm"][3]

# %% [markdown]
# ### The surprise: your answer depends on your neighbour
#
# Take one image $A$ of fluorescing nuclei on black, and put it into a batch of two: once beside another
# dark image $B$, once beside a bright image $C$ of stained tissue. Nothing about $A$ changes. What
# happens to $A$'s own feature map C5?

# %%
# alt: Three images of 256 pixels, A and B dark with faint nuclei, C bright stained tissue, and a bar chart of
#   how much A's map C5 changes when C takes B's place beside it in the batch: 0 % with group norm, 96 % with
#   batch norm, 0 % with frozen norm.
a, dark, bright = (nuclei[i].image[:, :256, :256] for i in (0, 1, 28))
change = {}
for name, norm in NORMS.items():
    body = small_body(norm)
    with no_grad():
        beside_dark, beside_bright = (
            body(Tensor(to_batch([a, other]).images))[3].numpy()[0] for other in (dark, bright)
        )
    change[name] = np.linalg.norm(beside_dark - beside_bright) / np.linalg.norm(beside_dark)

_, axes = plt.subplots(1, 4, figsize=(9.5, 2.4), layout="constrained", width_ratios=(1, 1, 1, 1.6))
for axis, picture, title in zip(axes, (a, dark, bright), ("A", "B, dark", "C, bright")):
    small = picture.reshape(3, 64, 4, 64, 4).mean(axis=(2, 4)).transpose(1, 2, 0)
    axis.imshow(small, extent=(0, 256, 256, 0), interpolation="nearest")
    axis.set(title=title, xlabel="x in pixels")
axes[0].set_ylabel("y in pixels")
bars = axes[3].barh(["frozen", "batch norm", "group norm"], [100 * v for v in change.values()], color=ORANGE)
axes[3].bar_label(bars, fmt="%.0f %%", padding=3)
axes[3].set(xlabel="% of its norm", xlim=(0, 130), title="change of A's C5, B to C")
plt.show()
for name, value in change.items():
    print(f"{name:<25} C5 of A changes by {100 * value:.0f} % of its norm")

# %%
assert change["group norm"] == 0 and change["frozen, never calibrated"] == 0 and change["batch norm"] > 0

# %% [markdown]
# With batch norm, the features of $A$ change by nearly their own size. With 32 images in a batch this
# averages out; with two it is the noise that you train on, and at inference, where running averages are
# used, the network meets statistics that it has never seen in training. Group norm has nothing to average
# out: $A$ is normalised by $A$ alone. So: **frozen** norms if you start from a trained ResNet, **group**
# norm if you train from scratch, as `maskrcnn_small` does.
#
# ## Receptive fields
#
# Which pixels can a cell see at all? Go backwards. If you know that cells $a$ to $b$ of a map are wanted,
# then a convolution of kernel $k$, stride $s$ and padding $p$ has read cells
#
# $$a\,s - p \quad\text{to}\quad b\,s - p + k - 1$$
#
# of its input. Do that from the cell back to the image; a $3\times3$ convolution that reads a map of
# stride $j$ adds $2j$ pixels to the width. At an addition (a shortcut, a lateral) take the union of both
# sides. For the whole network that is a few dozen lines, which read kernels and strides off the modules:


# %%
def before(conv, a, b):
    """The input cells that output cells a to b of a convolution have read."""
    kernel, stride, padding = conv.weight.shape[3], conv.options["stride"], conv.options["padding"]
    return a * stride - padding, b * stride - padding + kernel - 1


def field_of_stage(body, stage, a, b):
    """First and last pixel that cells a to b of C_stage can see. A shortcut never sees more than its block."""
    for i in range(stage, 1, -1):
        for block in reversed(list(getattr(body, f"layer{i - 1}"))):
            convs = [v for name, v in vars(block).items() if name.startswith("conv")]
            for conv in reversed(convs):
                a, b = before(conv, a, b)
    a, b = a * 2 - 1, b * 2 - 1 + 2  # the max pooling: kernel 3, stride 2, padding 1
    return before(body.conv1, a, b)


def field_of_level(body, level, a, b):
    """The same for P_level: its 3 x 3 smoothing, then C_level and, through the upsampling, all deeper stages."""
    if level == 6:  # P6 is every second cell of P5
        level, a, b = 5, 2 * a, 2 * b
    a, b = a - 1, b + 1
    ends = [field_of_stage(body, i, a >> (i - level), b >> (i - level)) for i in range(level, 6)]
    return min(e[0] for e in ends), max(e[1] for e in ends)


body = small_body(calibrated)
for i, stage in enumerate(STAGES):
    first, last = field_of_stage(body, i + 2, 0, 0)
    print(
        f"{stage}: stride {4 * 2**i:>2}, cell 0 sees pixels {first:>4} to {last:>3}: {last - first + 1} wide"
    )
    assert last - first + 1 == FIELDS[stage]

# %% [markdown]
# Notice two things. C5's cell 0 sees 213 pixels to the left of the image: zeros of the padding, layer
# upon layer of them. And its field reaches from -213 to 213, so it is centred on pixel 0 (whose middle is
# at 0.5), while the cell "is" the square from 0 to 32, with its middle at 16. Convolutions with stride
# look at their cell's *corner*, not its middle. Remember that when anchors and RoIAlign argue about half
# a pixel.
#
# ### Measured
#
# A derivation should be tested by something that knows nothing of it, such as the gradient: put a random
# gradient on all channels of one cell, zeros everywhere else, walk the tape back to the image, and see
# which pixels received anything. "Anything" is exact: a pixel that is not connected gets 0.0, not
# $10^{-9}$.

# %%
SIDE = 704  # pixels: room for the largest field
pyramid = Backbone(body, FPN(body.channels, 32, np.random.default_rng(1)))
for parameter in pyramid.parameters():
    parameter.requires_grad = False  # only the image's gradient is wanted
picture = to_batch([Shapes(1, seed=1, size=SIDE, objects=(40, 40))[0].image]).images
with no_grad():
    pyramid(Tensor(picture))  # calibrates the norms ...
pyramid.eval()  # ... and freezes them


def energy(maps, k, cell, x):
    """Squared gradient (H, W) of one cell of the k-th map with respect to each pixel, for random channel weights."""
    y = maps(x)[k]
    g = np.zeros(y.shape, np.float32)
    g[0, :, cell, cell] = np.random.default_rng(3).normal(size=y.shape[1])
    x.grad = None
    y.backward(g)
    return (x.grad[0].astype(np.float64) ** 2).sum(axis=0)


def extent(e):
    rows = np.flatnonzero(e.any(axis=1))
    return int(rows[0]), int(rows[-1])


x = Tensor(picture, requires_grad=True)
seen = {}
for k in range(4):
    for name, maps, theory in ((f"C{k + 2}", body, field_of_stage), (f"P{k + 2}", pyramid, field_of_level)):
        cell = SIDE // (4 * 2**k) // 2
        seen[name] = energy(maps, k, cell, x)
        first, last = theory(body, k + 2, cell, cell)
        print(
            f"{name} cell {cell:>2}: computed {first} to {last}, measured {extent(seen[name])}, {last - first + 1} wide"
        )
        assert extent(seen[name]) == (first, last)
middle = SIDE // 64 // 2

# %%
assert extent(energy(pyramid, 4, middle, x)) == field_of_level(body, 6, middle, middle)  # P6

# %% [markdown]
# Computed and measured agree to the pixel, on all nine maps. Look at the P rows: C2's cell sees 35
# pixels, **P2's sees almost as much as P5's**. That is the point of a pyramid with top-down additions, in
# one number: even the finest level has a view far wider than the objects that it is there for. (P6 sees
# what P5 sees: it *is* P5, every second cell.)
#
# ### "Can see" is not "looks at"
#
# So does a cell of C5 look at 427 x 427 pixels? The gradient tells more than whether it is zero. Take a
# plain stack of $n$ 3 x 3 convolutions with random weights and ask for the *expected squared* gradient.
# With independent weights of variance $v$, cross terms vanish, and one layer turns the squares $e$ into
#
# $$\mathbb E\, \bar x_p^2 \;\propto\; v \sum_{|q - p| \le 1} \bar y_q^2 ,$$
#
# a running mean over 3 (and a ReLU only halves it). $n$ layers are $n$ running means, one after another;
# by the central limit theorem that is a **Gaussian**. A uniform step on $\{-1, 0, 1\}$ has variance
# $\frac23$, so
#
# $$\text{can see: } \pm n \text{ cells}, \qquad \text{looks at: a standard deviation of } \sqrt{2n/3}
# \text{ cells}.$$
#
# What can be seen grows with the depth, what is looked at only with its square root (Luo et al., 2016).

# %%
# alt: Left, bell curves of where stacks of 4, 8, 16 and 32 layers look: they get lower and wider, from a peak
#   of 0.24 to one below 0.09, but with 32 layers, too, nearly nothing lies beyond 14 cells. Right, over the
#   layers: what can be seen rises to 32 cells, what is looked at to less than 5, with the measured points on
#   the derived curve.
depths, size, tries = (4, 8, 16, 32), 97, 2 if FAST else 6
_, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
position = np.arange(size) - size // 2


def profile(depth, rng):
    """Share of the squared gradient in each column, of a stack of random 3 x 3 convolutions with ReLUs."""
    x = y = Tensor(rng.normal(size=(1, 8, size, size)).astype(np.float32), requires_grad=True)
    for _ in range(depth):
        y = F.relu(F.conv2d(y, nn.he_normal(rng, (8, 8, 3, 3), 72), padding=1))
    g = np.zeros(y.shape, np.float32)
    g[0, :, size // 2, size // 2] = rng.normal(size=8)
    y.backward(g)
    e = (x.grad.astype(np.float64) ** 2).sum(axis=(0, 1, 2))
    return e / e.sum()


measured = []
for depth, colour, style in zip(depths, COLOURS, ("-", "--", "-.", ":")):
    p = np.mean([profile(depth, np.random.default_rng([depth, i])) for i in range(tries)], axis=0)
    measured.append(np.sqrt((p * position**2).sum() - (p * position).sum() ** 2))
    left.plot(position, p, color=colour, ls=style, label=f"{depth} layers: can see ±{depth}")
left.set(
    xlabel="cells from the middle",
    ylabel="share of the squared gradient",
    title="where a stack of 3 x 3 convolutions looks",
)
left.set_xlim(-33, 33)
left.legend(fontsize=8)
right.plot(depths, depths, "^-", color=GREY, label="can see: n")
right.plot(depths, np.sqrt(2 * np.array(depths) / 3), "-", color=BLUE, label=r"looks at: $\sqrt{2n/3}$")
right.plot(depths, measured, "o", color=ORANGE, label="measured")
right.set(
    xlabel="layers n", ylabel="cells to either side", title="the field, and one standard deviation of it"
)
right.legend(fontsize=8)
plt.show()
print("measured / derived:", np.round(measured / np.sqrt(2 * np.array(depths) / 3), 2))

# %%
assert np.allclose(measured, np.sqrt(2 * np.array(depths) / 3), rtol=0.25)

# %% [markdown]
# Now the real thing, at ResNet-50's depth, untrained. The shortcuts keep it even narrower: part of the
# gradient takes no sideways step at all. Each panel shows the cell's field and a little around it. Red
# frames show what the cell can see, white ones the squares that hold a half (dashed) and 95 % (solid) of
# the squared gradient; the titles give the sides of all three, in pixels.


# %%
# alt: Eight maps of the squared gradient of a cell, C2 to C5 above P2 to P5, with a frame for what the cell
#   can see and two inner ones for 50 and 95 %. Each is a blob, brightest in the middle, that fades towards
#   the outer frame: C5 sees 427 pixels, with 95 % within 174; P2 sees 459, nearly as much as P5 with 491.
def side_of(e, share):
    """The side of the square around the middle of the image that holds a share of e."""
    away = np.abs(np.arange(SIDE) - SIDE / 2)
    distance = np.maximum(away[:, None], away).ravel()
    order = distance.argsort()
    return 2 * distance[order][np.searchsorted(e.ravel()[order].cumsum(), share * e.sum())]


def blocks(e, n):
    """Means over n x n pixels: a picture need not show each."""
    return e.reshape(len(e) // n, n, -1, n).mean(axis=(1, 3))


sides = {}
_, axes = plt.subplots(2, 4, figsize=(12, 6.4), layout="constrained")
for axis, (name, e) in zip(axes.T.flat, seen.items()):
    first, last = extent(e)
    reach = 0.6 * (last - first + 1)  # of the panel: a little more than the cell can see
    density = blocks(e, 1 if reach < 60 else 4)
    drawn = axis.imshow(
        np.log10(np.maximum(density / density.max(), 1e-8)),
        cmap="cividis", vmin=-8, vmax=0, extent=(0, SIDE, SIDE, 0), interpolation="nearest",
    )  # fmt: skip
    axis.add_patch(Rectangle((first, first), last - first + 1, last - first + 1, fill=False, ec=RED, lw=1.5))
    sides[name] = side_of(e, 0.5), side_of(e, 0.95)
    for side, style in zip(sides[name], ("--", "-")):
        corner = (SIDE - side) / 2
        axis.add_patch(Rectangle((corner, corner), side, side, fill=False, ec="white", ls=style, lw=1.2))
    axis.set_title(
        f"{name}: sees {last - first + 1}; {sides[name][0]:.0f}, {sides[name][1]:.0f}", fontsize=10
    )
    middle = (first + last + 1) / 2
    axis.set(xlim=(middle - reach, middle + reach), ylim=(middle + reach, middle - reach))
    axis.tick_params(labelsize=8)
for axis in axes[:, 0]:
    axis.set(ylabel="y in pixels")
for axis in axes[1]:
    axis.set(xlabel="x in pixels")
plt.colorbar(drawn, ax=axes, label="squared gradient, log10 of the largest", shrink=0.7)
plt.show()
print(f"gradient of a cell, squared and summed: C2 {seen['C2'].sum():.1f}, C5 {seen['C5'].sum():.1f}")

# %%
assert sides["C5"][1] < FIELDS["C5"] / 2 and sides["P2"][1] > 5 * sides["C2"][1]
assert seen["C5"].sum() > 5 * seen["C2"].sum()

# %% [markdown]
# C5 sees 427 pixels and, untrained, takes 95 % of its information from a square of less than half that
# side. Training widens it, but it remains a bell. If an object fills the field to the edge, the cell
# hardly sees the object's edge. This is one reason why a level is given objects that are much smaller
# than its field (in the FPN paper P2's anchors have 32 pixels, P5's 256).
#
# The lower row is the pyramid's doing: P2, P3 and P4 look nearly as far as P5. Where, then, is the fine
# position for which P2 exists? In what the lateral adds, which is a spot some 40 pixels wide. One cannot
# see it here: in an untrained network the gradient of a deep stage is larger (more than 150 times for C5, if you
# take the root of the ratio printed above: remember the towers), so what comes down from above drowns
# what comes in from the side. How much P2 should listen to each is for training to decide.
#
# ### A surprise: with group norm there is no receptive field
#
# The derivation above went through convolutions. But a norm computes a mean over the *whole map*, and its
# gradient has the terms $\langle g \rangle$ and $\hat x \langle \hat x g \rangle$, which send something
# to every pixel. Measure C2, which should see 35 x 35 pixels, in a batch of two images:

# %%
# alt: Six maps of the squared gradient of one C2 cell, on a logarithmic scale, for frozen, batch and group
#   norm: its own image above, the other one below. All three have a bright spot some 40 pixels wide in their
#   own image; around it frozen has nothing, group norm reaches all of that image, and batch norm the other
#   one as well.
pair = to_batch([nuclei[i].image[:, :256, :256] for i in (0, 1)]).images
_, axes = plt.subplots(2, 3, figsize=(9.5, 6.2), sharex=True, sharey=True, layout="constrained")
reach = {}
for column, (name, norm) in zip(axes.T, NORMS.items()):
    x = Tensor(pair, requires_grad=True)
    c2 = small_body(norm)(x)[0]
    g = np.zeros(c2.shape, np.float32)
    g[0, :, 32, 32] = np.random.default_rng(3).normal(size=c2.shape[1])
    c2.backward(g)
    e = (x.grad.astype(np.float64) ** 2).sum(axis=1)  # (2, H, W)
    reach[name] = [float((part > 0).mean()) for part in e]
    inside = e[0, 110:150, 110:150].sum() / e.sum()
    for axis, part, which in zip(column, e, ("own image", "the other image")):
        drawn = axis.imshow(
            np.log10(np.maximum(blocks(part, 4) / e.max(), 1e-14)),
            cmap="cividis", vmin=-14, vmax=0, extent=(0, 256, 256, 0), interpolation="nearest",
        )  # fmt: skip
        axis.set_title(f"{name.split(',')[0]}: {which}", fontsize=10)
        axis.set(xlabel="x in pixels", ylabel="y in pixels")
        axis.label_outer()
    print(
        f"{name:<25} pixels reached: {100 * reach[name][0]:3.0f} % and {100 * reach[name][1]:3.0f} %;",
        end=" ",
    )
    print(f"{100 * inside:.3f} % of it within 40 x 40")
plt.colorbar(drawn, ax=axes, label="squared gradient, log10 of the largest", shrink=0.7)
plt.show()

# %%
assert reach["frozen, never calibrated"][0] < 0.05 and reach["frozen, never calibrated"][1] == 0
assert reach["group norm"][0] > 0.99 and reach["group norm"][1] == 0
assert min(reach["batch norm"]) > 0.99

# %% [markdown]
# Every pixel of the image reaches every cell of the *first* stage, with group norm; with batch norm, so
# does every pixel of the *other image*: this is the neighbour from above, seen as a gradient. The amount
# is small (what the last number lacks of 100 %). But it means that one cannot cut a large image into
# tiles, run a group-norm network on each, and get what the whole image would have given, however wide the
# tiles overlap. With frozen norms one can: tiles that begin at multiples of 64 pixels and overlap by the
# field give the same numbers.
#
# ## The pyramid
#
# Here is all of it:

# %%
source(FPN)

# %% [markdown]
# In formulas, with laterals $L_i$ (1 x 1), smoothing $S_i$ (3 x 3) and nearest upsampling $U$:
#
# $$M_5 = L_5 C_5, \qquad M_i = L_i C_i + U M_{i+1}, \qquad P_i = S_i M_i, \qquad P_6 = P_5[::2, ::2].$$
#
# The sum $L_i C_i + U M_{i+1}$ is one Function, `F.upsample_nearest(..., add=...)`: the enlarged map is
# never stored by itself, it is added to the lateral on the way. Its backward pass has two results,
# $\bar M_i$ as it is for the lateral, and $U^\top \bar M_i$ for the coarser level.
#
# Why nearest upsampling, and not something smoother? It needs no arithmetic, and the 3 x 3 convolution
# after it can learn to smooth the steps away.
#
# ### The gradient of nearest upsampling
#
# $y_{pq} = x_{\lfloor p/2 \rfloor \lfloor q/2 \rfloor}$. Who reads $x_{ij}$? Four outputs, each with the
# factor 1:
#
# $$\bar x_{ij} = \bar y_{2i,2j} + \bar y_{2i,2j+1} + \bar y_{2i+1,2j} + \bar y_{2i+1,2j+1} .$$
#
# Again a sum over the readers. Written as a matrix, $U$ has a single 1 in each row, and the gradient is
# $U^\top$: two 1s in each row, along each axis. For sizes that are not doubled exactly (a map of 5 cells
# over one of 3) the index is $\lfloor p \cdot 3/5 \rfloor$, and the sums have as many terms as there are
# copies. (Here minimask pads images to a multiple of 32, so within the pyramid the factor is always 2.
# `_doubled` is that case without any index: the outputs of even rows and even columns are $x$ itself, and
# the other three quarters are $x$ again.)

# %%
source(UpsampleNearest, resample.nearest, resample._doubled, resample._doubled_gradient)

# %%
# alt: Four grids of numbers: x with 1 to 9; y with each of them copied into a 2 x 2 block; gy, which is 1 on
#   a 3 x 3 square and 0 elsewhere; and gx, the sums of gy over the blocks, with 2 and 4 in the middle row, 1
#   and 2 in the bottom row, and 0 elsewhere.
x = Tensor(np.arange(1.0, 10.0).reshape(1, 1, 3, 3), requires_grad=True)
y = F.upsample_nearest(x, (6, 6))
gy = np.zeros((1, 1, 6, 6))
top, left = 2, 1
gy[0, 0, top : top + 3, left : left + 3] = 1.0
y.backward(gy)

_, axes = plt.subplots(1, 4, figsize=(11.5, 2.9), layout="constrained")
for axis, values, title in zip(
    axes, (x.numpy(), y.numpy(), gy, x.grad), ("x", "y = U x", "gy", r"gx = U$^\top$ gy")
):
    values = values[0, 0]
    axis.imshow(values, cmap="cividis")
    for i, j in np.ndindex(values.shape):
        dark_cell = values[i, j] < values.max() / 2
        axis.text(
            j, i, f"{values[i, j]:g}", ha="center", va="center", color="white" if dark_cell else "black"
        )
    axis.set(title=title, xlabel="column", ylabel="row", xticks=range(len(values)), yticks=range(len(values)))
plt.show()

# %%
assert np.array_equal(x.grad[0, 0], gy[0, 0].reshape(3, 2, 3, 2).sum(axis=(1, 3)))
assert x.grad.sum() == gy.sum()  # nothing is lost: each column of the transpose sums to 1

# %% [markdown]
# ### Who trains C5?
#
# Follow the additions back. $M_3$ gets its own gradient and the sums of four from $M_2$; $M_4$ its own,
# four from $M_3$, and through it sixteen from $M_2$; $M_5$ gets $1 + 4 + 16 + 64 = 85$ terms. If these
# are independent and of variance 1, the standard deviations are
#
# $$1, \quad \sqrt{1 + 4}, \quad \sqrt{1 + 4 + 16}, \quad \sqrt{1 + 4 + 16 + 64} \approx 9.2 ,$$
#
# and $64/85 = 75\,\%$ of what C5 is told (measured as variance) was said at P2. Here it is, measured on
# minimask's own FPN, whose initial weights keep the variance:

# %%
# alt: Stacked bars of the variance of the gradient at C2 to C5, divided by the level where it was said, with
#   diamonds for the derived 1, 5, 21 and 85. The bars grow about fourfold from stage to stage and reach 79 at
#   C5, of which about 60 come from P2.
channels, cells = 64, 64
pyramid_only = FPN([channels] * 4, channels, np.random.default_rng(4))
rng = np.random.default_rng(5)
cs = [
    Tensor(rng.normal(size=(1, channels, cells >> i, cells >> i)).astype(np.float32), True) for i in range(4)
]
measured = np.zeros((4, 4))  # of the gradient put on P_k, what reaches C_i
for k in range(4):
    for c in cs:
        c.grad = None
    p = pyramid_only(cs)[k]
    p.backward(rng.normal(size=p.shape).astype(np.float32))
    measured[k] = [0.0 if c.grad is None else float(c.grad.var()) for c in cs]
derived = np.array([[4.0 ** (i - k) if i >= k else 0.0 for i in range(4)] for k in range(4)])

_, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
below = np.zeros(4)
for k in range(4):
    axes.bar(
        STAGES,
        measured[k],
        bottom=below,
        color=COLOURS[k],
        label=f"said at P{k + 2}",
        hatch=("", "//", "..", "xx")[k],
    )
    below += measured[k]
axes.plot(STAGES, derived.sum(axis=0), "D", color="black", label="derived: 1, 5, 21, 85")
axes.set(
    ylabel="variance of the gradient", title="what reaches each stage, if all levels speak equally loudly"
)
axes.legend()
plt.show()
print("standard deviations at C2..C5:", np.round(np.sqrt(measured.sum(axis=0)), 2))

# %%
assert np.allclose(measured, derived, rtol=0.35)

# %% [markdown]
# So the deepest stage is trained mostly by small objects. (In real training the levels do not speak
# equally loudly: the losses read only a few cells of each, and large objects are read from the coarse
# levels.)
#
# ### What the top-down path costs: shifts
#
# A convolution of stride 1 does the same everywhere: shift the image by a pixel, and the map shifts by a
# pixel. With strides, that holds only for shifts by whole cells. C2 has a stride of 4, so it follows a
# shift of 4 pixels exactly. Does P2, which has the same stride?

# %%
# alt: Bars of how much a map differs from its shifted self, in percent of its norm, for shifts of 4, 8, 16
#   and 32 pixels. C2 has 0 at every shift; P2 has 91.6, 76.8 and 47.4 %, and 0 only at 32 pixels.
shifts = (4, 8, 16, 32)
margin = (459 // 2 + max(shifts)) // 4 + 2  # cells of P2: as far as its field and the shift reach
kept = {"C2": [], "P2": []}
with no_grad():
    for name, maps in (("C2", body), ("P2", pyramid)):
        still = maps(Tensor(picture))[0].numpy()
        for shift in shifts:
            moved = maps(Tensor(np.roll(picture, shift, axis=3)))[0].numpy()
            difference = (np.roll(still, shift // 4, axis=3) - moved)[..., margin:-margin, margin:-margin]
            kept[name].append(
                np.linalg.norm(difference) / np.linalg.norm(still[..., margin:-margin, margin:-margin])
            )

_, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
place = np.arange(len(shifts))
for name, at, look in (("C2", -0.2, dict(color=BLUE)), ("P2", 0.2, dict(color=ORANGE, hatch="//"))):
    bars = axes.bar(place + at, 100 * np.array(kept[name]), 0.38, label=name, **look)
    axes.bar_label(bars, [f"{100 * v:.3g}" for v in kept[name]], color=look["color"])  # a 0 has no height
axes.set(xticks=place, xticklabels=shifts, xlabel="shift of the image in pixels", ylabel="% of its norm")
axes.set(ylim=(0, 115), title="by how much a map differs from its shifted self")
axes.legend(loc="upper right")
plt.show()
for name, values in kept.items():
    print(f"{name} changes by", ", ".join(f"{v:.0%} for {shift} pixels" for shift, v in zip(shifts, values)))

# %%
assert max(kept["C2"]) < 1e-5
for shift, difference in zip(shifts, kept["P2"]):
    assert difference < 1e-5 if shift % 32 == 0 else difference > 0.05

# %% [markdown]
# C2 follows. P2 does not, until the shift is a multiple of 32: it contains C5, enlarged, and C5 has only
# one cell for every 32 pixels. The same object, 4 pixels to the right, is a different input to the heads.
# This is one reason why training images are cropped at random: the network has to *learn* what its grid
# does not give it. It is also why the fields above were not centred on their cells: P2's view reaches
# further to the left (C5's cell looks at its corner), and by how much depends on where the cell lies within
# its C5 cell.

# %%
for cell in range(88, 96):
    first, last = field_of_level(body, 2, cell, cell)
    print(f"P2 cell {cell}, pixels {4 * cell} to {4 * cell + 3}:", end=" ")
    print(f"sees {4 * cell - first} to its left, {last - 4 * cell - 3} to its right")
fields = {cell: field_of_level(body, 2, cell, cell) for cell in range(88, 96)}
widths = {last - first + 1 for first, last in fields.values()}

# %%
assert widths == {427, 459}
assert all(4 * cell - first > last - 4 * cell - 3 for cell, (first, last) in fields.items())

# %% [markdown]
# ## The whole backbone, checked
#
# A body and a pyramid in double precision, with few channels, but with every kind of part: group norm,
# stride, shortcut, max pooling, laterals, upsampling, subsampling. Random weights on all five outputs,
# against finite differences of the image and of three weights far apart. If an addition of the pyramid
# were lost on the way back, it would show here.

# %%
# alt: Relative error over the step, both logarithmic, for backbone and pyramid together. Five-point
#   differences fall along the rounding line to below 1e-11 at a step of 2e-5, then jump to 3e-4; central ones
#   turn near 2e-6, at about 1e-10, and jump at 6e-5. The valley of good steps is narrow.
rng = np.random.default_rng(6)
thin = ResNet(BasicBlock, (1, 1, 1, 1), (4, 4, 6, 6), lambda c: nn.GroupNorm(c, 2), rng, stem=3)
whole = Backbone(thin, FPN(thin.channels, 4, rng)).astype(np.float64)


def through_backbone(x, stem, deepest, lateral):
    thin.conv1.weight, thin.layer4[0].conv2.weight = stem, deepest
    whole.fpn.inner_blocks[3][0].weight = lateral
    return tuple(whole(x))


inputs = [rng.normal(size=(1, 3, 64, 64))]
inputs += [
    t.numpy() for t in (thin.conv1.weight, thin.layer4[0].conv2.weight, whole.fpn.inner_blocks[3][0].weight)
]
errors = tutorial.step_errors(through_backbone, inputs, steps=np.logspace(-12, -2, 21 if FAST else 41))
errors.plot(title="backbone and pyramid, all five outputs")
plt.show()
print(f"best error of central differences, a single lucky step aside: {errors.best():.0e}")

# %%
assert errors.best() < 1e-7

# %% [markdown]
# The rounding error is that of all layers together, and beyond a step of $10^{-5}$ or so some of the many
# thousand ReLUs and max poolings switch: here the error jumps at $3 \cdot 10^{-5}$ (five points, which
# reach farther) and at $6 \cdot 10^{-5}$ (central). Between too much rounding and the first switch lies a
# valley of good steps, and it is narrow: the deeper a network, the harder it is to check in one piece. So
# minimask checks every Function alone, and the whole only to see that the parts are put together right.
#
# ## Exercises
#
# **1.** Group norm's backward pass. The attempt below takes the mean into account, but treats the
# variance as a constant. Add the term that is missing.

# %%
exercises.describe("group_norm_backward")


# %%
def my_group_norm_backward(gy, x, weight, groups, eps):
    rows = (len(x), groups, -1)
    mean, var = (f(x.reshape(rows), axis=2, keepdims=True) for f in (np.mean, np.var))
    r = 1 / np.sqrt(var + eps)
    x_hat = (x.reshape(rows) - mean) * r
    g = (gy * weight[:, None, None]).reshape(rows)
    gx = r * (g - g.mean(axis=2, keepdims=True))
    return gx.reshape(x.shape), (gy * x_hat.reshape(x.shape)).sum((0, 2, 3)), gy.sum((0, 2, 3))


exercises.check("group_norm_backward", my_group_norm_backward)

# %% [markdown]
# **2.** Max pooling's backward pass, for windows that may overlap. The attempt below is right for windows
# that do not.

# %%
exercises.describe("max_pool_backward")


# %%
def my_max_pool_backward(gy, x, kernel, stride):
    gx = np.zeros_like(x)
    for n, c, p, q in np.ndindex(gy.shape):
        window = x[n, c, p * stride : p * stride + kernel, q * stride : q * stride + kernel]
        i, j = np.unravel_index(window.argmax(), window.shape)
        gx[n, c, p * stride + i, q * stride + j] = gy[n, c, p, q]
    return gx


exercises.check("max_pool_backward", my_max_pool_backward)

# %% [markdown]
# **3.** Write the gradient of nearest upsampling to *any* size with `np.add.at` and
# `resample.nearest_index`, and compare with `resample.nearest_gradient` for 3 x 4 enlarged to 5 x 9.
#
# <details><summary>Answer</summary>
#
# ```python
# def gradient(gy, size):
#     gx = np.zeros((*gy.shape[:-2], *size))
#     rows, columns = (resample.nearest_index(n, m) for n, m in zip(size, gy.shape[-2:]))
#     np.add.at(gx, (..., rows[:, None], columns), gy)  # adds where an index recurs; gx[...] += gy does not
#     return gx
# ```
#
# </details>
#
# **4.** Batch norm in training, one image, a map of 1 x 1 pixel. What is $y$, and what is $\bar x$? Where
# in a Mask R-CNN would that happen?
#
# <details><summary>Answer</summary>
#
# $m = 1$: $x = \mu$, so $\hat x = 0$, $y = b$, and $\bar x = 0$: the layer outputs a constant and nothing
# before it learns. An image of 32 x 32 pixels has a C5 of one cell. With $m = 2$, $\hat x$ is $\pm 1$ (up
# to $\varepsilon$), whatever $x$ is, and the gradient is zero again: two numbers whose mean and variance
# are prescribed have no freedom left. In general, $m - 2$ degrees of freedom remain.
#
# </details>
#
# **5.** `Bottleneck` has its stride in the 3 x 3 convolution (torchvision); the original ResNets, and
# detectron2's default models, have it in the first 1 x 1. Compute the receptive field of C5 for the latter.
# Which has the wider view, and which skips pixels?
#
# <details><summary>Answer</summary>
#
# A 3 x 3 before the stride adds $2j$, after it $2 \cdot 2j$. Stages 3, 4 and 5 each have one such
# convolution, at $j = 4, 8, 16$, so the view grows by $8 + 16 + 32 = 56$ pixels to 483. But a 1 x 1
# convolution of stride 2 never reads three of four cells: what only they knew is lost.
#
# </details>
#
# **6.** In a copy of `FPN.forward`, let `inner[i] = inner[i] + F.upsample_bilinear(inner[i + 1])`. What
# are the variances at C3, C4 and C5 now? Predict first: how much of a unit gradient's *square* does an
# input of bilinear upsampling by 2 collect?
#
# <details><summary>Answer</summary>
#
# Along one axis, an input is read with the weights ¼, ¾, ¾, ¼, whose squares add up to 1.25 (nearest:
# $1 + 1 = 2$). In two dimensions $1.25^2 \approx 1.56$ instead of 4. But the four neighbours' gradients
# are correlated after one level, since they share outputs, so the next levels get more than $1.56^2$:
# measured, the variances are about 2.6, 8 and 33 instead of 5, 21 and 85. The *sum* of the weights is 4
# either way: for gradients that agree with one another, nothing changes.
#
# </details>
#
# **7.** Give P2 a gradient at one cell and look at $\bar C_5$. How many of its cells are not zero? And
# how many of $\bar C_2$'s? Use the method of `energy` on the FPN alone.
#
# <details><summary>Answer</summary>
#
# The smoothing reads 3 x 3 cells of $M_2$, so C2 gets 3 x 3. They lie in 1, 2 or 4 cells of $M_5$,
# depending on where the cell is: in one where neither its row nor its column touches a border of C5's
# cells, 36 of 64 positions.
#
# </details>
#
# ## Read on
#
# * K. He, X. Zhang, S. Ren, J. Sun, *Deep residual learning for image recognition*, CVPR 2016; and
#   *Identity mappings in deep residual networks*, ECCV 2016, where the gradient past a tower is written as
#   what the shortcuts carry and a sum.
# * D. Balduzzi et al., *The shattered gradients problem: if resnets are the answer, then what is the
#   question?*, ICML 2017.
# * S. Ioffe, C. Szegedy, *Batch normalization*, ICML 2015. Y. Wu, K. He, *Group normalization*, ECCV
#   2018.
# * W. Luo, Y. Li, R. Urtasun, R. Zemel, *Understanding the effective receptive field in deep
#   convolutional neural networks*, NeurIPS 2016.
# * T.-Y. Lin et al., *Feature pyramid networks for object detection*, CVPR 2017.
#
# Next: [04 Anchors and the RPN](04_anchors_and_rpn.ipynb),
# which asks at every cell of these levels: is there an object, and
# where?
