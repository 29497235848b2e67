# ruff: noqa: E402, E501

# %% [markdown]
# # 02 Convolution
#
# **Time** 4 hours with pencil, paper and exercises (an hour and a half to read); it runs in about a minute.
# **Needs** notebook 01 (backward passes, finite differences), Python and NumPy. No GPU, no downloads.
#
# Nearly all the arithmetic of Mask R-CNN is convolution: backbone, pyramid, RPN and mask head consist of
# little else. It is also the layer that most people use for years without ever having derived its
# backward pass. Yet there is just one idea in it, and everything in this notebook follows from it: **a
# convolution is a list of products $w \cdot x$, and the two gradients are the same list, summed over
# other indices.**
#
# Afterwards you can
#
# 1. derive both gradients with stride, padding, dilation and groups, and say why one of them is a
#    correlation and the other a convolution;
# 2. write a convolution as loops, as one matrix product, by blocks of rows, and on shifted views without
#    any copy, and say what each costs;
# 3. say what a transposed convolution ("deconvolution") is, why the mask head's has a 2 x 2 kernel, and
#    why, in a fresh network, the squared gradient of some pixels is 64 times that of others a few pixels
#    away.

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
import time
import tracemalloc

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from scipy.signal import convolve2d, correlate2d

from minimask import Tensor, exercises, gradcheck, tutorial
from minimask import functions as F
from minimask.backend import reference_only
from minimask.data import nuclei_sample
from minimask.kernels import convolution, geometry, im2col
from minimask.kernels.geometry import Geometry
from minimask.tutorial import BLUE, GREEN, GREY, ORANGE, RED, source

rng = np.random.default_rng(0)

# %% [markdown]
# ## The idea in a picture
#
# A convolution is linear in the image, so it is a matrix $A$: one row for each output, one column for
# each pixel. We need no formula to see it. Column $k$ of a matrix is what it makes of the $k$-th unit
# vector; so feed in all the images that are 1 in one pixel and 0 elsewhere. Below: a 3 x 3 kernel, its
# elements numbered 1 to 9, on an image of 6 x 6.


# %%
# alt: The 16 x 36 matrix of a 3 x 3 convolution: every row holds the nine weights in three groups, one pixel
#   or more further right than in the row above. One row, laid out as an image, is the kernel, 1 to 9; one
#   column, laid out as an output, is the kernel turned by 180 degrees, with the 9 at its upper left.
def matrix(operator, channels, size):
    """The matrix of a linear operator on images: one column for each pixel."""
    units = np.eye(channels * size * size).reshape(-1, channels, size, size)
    return operator(units).numpy().reshape(len(units), -1).T  # (outputs, pixels)


def numbered(axes, values, title="", xlabel="column", ylabel="row", top=None):
    """A small array as coloured squares with their values, zeros left white."""
    top = values.max() if top is None else top
    axes.imshow(np.where(values == 0, np.nan, values), cmap="viridis", vmin=0, vmax=top)
    for u, v in np.argwhere(values):
        colour = "black" if values[u, v] > 0.6 * top else "white"
        axes.text(v, u, f"{values[u, v]:g}", color=colour, ha="center", va="center", fontsize=9)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.set_xticks(np.arange(values.shape[1]))
    axes.set_yticks(np.arange(values.shape[0]))


kernel = np.arange(1.0, 10).reshape(1, 1, 3, 3)
A = matrix(lambda x: F.conv2d(x, kernel), 1, 6)  # (16, 36): 4 x 4 outputs, 6 x 6 pixels
output, pixel = 5, 15  # output (1, 1) of 4 x 4 and pixel (2, 3) of 6 x 6
(p, q), (u, v) = divmod(output, 4), divmod(pixel, 6)

figure, axes = plt.subplot_mosaic(
    "AAAAR\nAAAAC", figsize=(12, 5.4), layout="constrained", gridspec_kw=dict(width_ratios=[1, 1, 1, 1, 1.7])
)
axes["A"].imshow(np.where(A == 0, np.nan, A), cmap="viridis", vmin=0, vmax=9, aspect="auto")
axes["A"].add_patch(Rectangle((-0.5, output - 0.5), 36, 1, fill=False, ec=BLUE, lw=3))
axes["A"].add_patch(Rectangle((pixel - 0.5, -0.5), 1, 16, fill=False, ec=RED, lw=3))
axes["A"].set(title="the matrix A of the convolution", xlabel="pixel of the image", ylabel="output")
numbered(axes["R"], A[output].reshape(6, 6), f"a row, as an image:\nwhat output ({p}, {q}) reads", top=9)
numbered(axes["C"], A[:, pixel].reshape(4, 4), f"a column, as an output:\nwho reads pixel ({u}, {v})", top=9)
for name, colour in (("R", BLUE), ("C", RED)):
    axes[name].spines[:].set(color=colour, lw=3)
plt.show()


# %%
assert np.array_equal(A[output].reshape(6, 6)[p : p + 3, q : q + 3], kernel[0, 0])
wide = np.pad(A[:, pixel].reshape(4, 4), 2)  # with room around it: a pixel near the border has fewer readers

# %%
assert np.array_equal(wide[u : u + 3, v : v + 3], kernel[0, 0, ::-1, ::-1] * (wide[u : u + 3, v : v + 3] > 0))

# %% [markdown]
# Here is the whole notebook in one picture.
#
# * Going **forward**, an output asks: which pixels do I read? The answer is a row of $A$: **the kernel**.
# * Going **backward**, a pixel asks: which outputs read me, and with what weight? The answer is a column
#   of $A$: **the kernel turned by 180 degrees**. The output *left* of the pixel reads it with the *right*
#   side of its window. So the gradient of the image, $A^\top \bar y$, is a convolution with the turned
#   kernel. Nobody had to remember to flip anything.
# * Follow one colour down: **one weight sits in many places**, once in every row, that is, for every
#   output. Its gradient is the sum over those places, and they are arranged like the image itself. That
#   sum will turn out to be a correlation.
#
# In mathematics, "convolution" means the sum with the turned kernel, and the sum without turning is
# called (cross-)correlation. Deep learning calls the second one convolution, since for a kernel that is
# learnt it makes no difference which way round it is stored. For the gradient it does. Both in SciPy's
# terms:

# %%
x = rng.normal(size=(6, 6))
y = F.conv2d(x[None, None], kernel).numpy()[0, 0]
gy = rng.normal(size=y.shape)
gx = (A.T @ gy.ravel()).reshape(6, 6)

assert np.allclose(y, correlate2d(x, kernel[0, 0], mode="valid"))  # forward: a correlation
assert np.allclose(gx, convolve2d(gy, kernel[0, 0], mode="full"))  # backward to the image: a convolution
print("forward = correlate2d(x, w, 'valid')      gradient of x = convolve2d(gy, w, 'full')")

# %% [markdown]
# ## The formula, as loops
#
# With stride $s$, padding $P$ and dilation $d$ (the distance between neighbouring elements of the
# kernel), for image $n$, output channel $o$, output position $(p, q)$:
#
# $$y_{n o p q} = b_o + \sum_{c, i, j} w_{o c i j}\; x_{n,\, c,\, p s + i d - P,\, q s + j d - P},$$
#
# where pixels outside the image count as 0. Now the one idea. The formula is a list of products
# $w \cdot x$, each of which is added to one $y$. Let `_terms` enumerate that list: for each product the
# index of its $y$, of its $w$, of its $x$. Then look at the three functions.

# %%
source(
    im2col._terms,
    im2col.forward_loop,
    im2col.input_gradient_loop,
    im2col.weight_gradient_loop,
)

# %% [markdown]
# The list is the same; only the place where the product goes differs:
#
# | | reads | adds to |
# | --- | --- | --- |
# | forward | $w, x$ | $y$ |
# | gradient of the input | $\bar y, w$ | $\bar x$, where $x$ was |
# | gradient of the weights | $\bar y, x$ | $\bar w$, where $w$ was |
#
# This *is* the derivation. If $x$ or $w$ changes a little, the loss changes by $\sum \bar y \, dy$, and
# $dy$ consists of the products $w\,dx + dw\,x$. So with
#
# $$T(\bar y, w, x) = \sum_{\text{terms}} \bar y_{n o p q}\; w_{o c i j}\; x_{n c u v},
# \qquad
# y = \frac{\partial T}{\partial \bar y}, \quad \bar x = \frac{\partial T}{\partial x}, \quad \bar w =
# \frac{\partial T}{\partial w} .$$
#
# Three things follow at once.
#
# * **The cost.** Each of the three passes does the same number of multiplications. That is the origin of
#   the rule that a backward pass costs twice a forward pass.
# * **What has to be kept.** $\bar x$ needs $w$ but not $x$; $\bar w$ needs $x$ but not $w$. If the
#   weights are frozen, as in the first stages of a pretrained backbone, the activations need not be kept.
# * **A test for free.** $T$ is linear in each of its arguments, so
#   $\langle \bar y, y\rangle = \langle \bar x, x\rangle = \langle \bar w, w\rangle = T$. Three numbers
#   that have to agree to the last digits, without any finite difference.
#
# Here is the layer itself. `needs` says which gradients are wanted.

# %%
source(F.conv.Conv2d)

# %%
x, w = Tensor(rng.normal(size=(2, 3, 9, 8)), True), Tensor(rng.normal(size=(4, 3, 3, 2)), True)
y = F.conv2d(x, w, stride=2, padding=1, dilation=2)
gy = rng.normal(size=y.shape)
y.backward(gy)
three = [float((gy * y.numpy()).sum()), float((x.grad * x.data).sum()), float((w.grad * w.data).sum())]
print("<gy, y>, <gx, x>, <gw, w> =", *(f"{number:.12f}" for number in three))

# %%
assert np.ptp(three) < 1e-12

# %% [markdown]
# (Would it find every mistake? No: it says nothing about the part of $\bar x$ that is orthogonal to $x$.
# Use it with fresh random $x$ and $w$, and use the gradient check as well, which moves in random
# directions of its own.)
#
# ## The mathematics: what kind of sum is each gradient?
#
# **Weights: a correlation.** Fix $w_{ocij}$ and sum over everything else:
#
# $$\bar w_{ocij} = \sum_{n, p, q} \bar y_{nopq}\; x_{n,\,c,\, i d + p s - P,\, j d + q s - P} .$$
#
# Put this line beside the formula of the forward pass. It *is* that formula, with other names: $(i, j)$
# now counts the output's positions, and $(p, q)$ the kernel's; the kernel is $\bar y$; **stride and
# dilation have changed places**; the sum runs over images instead of channels. All signs are $+$, nothing
# is turned: a correlation of the image with the gradient that arrives.
#
# In words: *$-\bar w_{ij}$ says how well the image, moved by $(i, j)$, agrees with what the loss wants
# of the output, $-\bar y$.* In a moment we use that to measure something.
#
# **Input: a convolution with the turned kernel.** Fix the pixel $u = p s + i d - P$. With stride 1,
# $p = u + P - i d$:
#
# $$\bar x_{ncuv} = \sum_{o, i, j} w_{ocij}\; \bar y_{n,\,o,\, u + P - i d,\, v + P - j d} .$$
#
# This time $i$ comes with a minus sign, because the pixel is fixed and the window moves. Count from the
# other end, $i = K - 1 - i'$:
#
# $$\bar x_{ncuv} = \sum_{o, i', j'} \underbrace{w_{o,\,c,\,K-1-i',\,K-1-j'}}_{\text{turned by } 180^\circ}\;
#   \bar y_{n,\,o,\; u + i' d - P',\; v + j' d - P'}, \qquad P' = d (K - 1) - P ,$$
#
# the forward formula once more: padding $P'$, input and output channels exchanged. A 3 x 3 kernel with
# padding 1 has $P' = 1$.
#
# **With stride $s$**, only some $p = (u + P - i d)/s$ are whole numbers; the others do not exist.
# Equivalently: put $s - 1$ zeros between the elements of $\bar y$, and continue as with stride 1.
#
# **Bias.** $b_o$ is in every output of its channel: $\bar b_o = \sum_{n, p, q} \bar y_{nopq}$.
#
# So no new code is needed to compute the gradients: `conv2d` gives them. We check it for both, with a
# stride, a padding and a dilation at once.


# %%
def gradients(x, w, gy, **options):
    """gx and gw, from minimask's tape."""
    x, w = Tensor(x, True), Tensor(w, True)
    F.conv2d(x, w, **options).backward(gy)
    return x.grad, w.grad


def turned(w):
    return w[:, :, ::-1, ::-1].swapaxes(0, 1)  # (O, C, KH, KW) -> (C, O, KH, KW), by 180 degrees


s, d, P, K, H = 3, 2, 2, 3, 18
x, w = rng.normal(size=(5, 2, H, H)), rng.normal(size=(4, 2, K, K))
gy = rng.normal(size=F.conv2d(x, w, stride=s, padding=P, dilation=d).shape)
gx, gw = gradients(x, w, gy, stride=s, padding=P, dilation=d)

# weights: x correlated with gy, images and channels exchanged, stride and dilation exchanged
correlation = F.conv2d(x.swapaxes(0, 1), gy.swapaxes(0, 1), stride=d, padding=P, dilation=s).numpy()
correlation = correlation.swapaxes(0, 1)  # (C, O, .., ..) -> (O, C, .., ..)
print("gy as a kernel gives", correlation.shape[2:], "positions, of which the kernel has", gw.shape[2:])
assert np.allclose(gw, correlation[:, :, :K, :K], rtol=0, atol=1e-12)

# input: zeros between the elements of gy, then a convolution of stride 1 with the turned kernel
spread = np.zeros((5, 4, H + 2 * P - d * (K - 1), H + 2 * P - d * (K - 1)))
spread[:, :, ::s, ::s] = gy
assert np.allclose(
    gx, F.conv2d(spread, turned(w), padding=d * (K - 1) - P, dilation=d).numpy(), rtol=0, atol=1e-12
)
print("both gradients are convolutions themselves: agreed to 1e-12")

# %% [markdown]
# Two details that would cost you an evening. With a stride, the last rows of the image may be read by no
# window at all; then the correlation has more positions than the kernel has elements, and the surplus is
# cut off. And if the padding exceeds $d (K-1)$, then $P'$ is negative: cut a border off $\bar y$ instead
# of padding it.
#
# ## An experiment: the weight gradient finds a displacement
#
# Take a piece $t$ of a microscope slide, and a piece $x$ of the same slide that is 12 pixels larger on
# each side, and not quite centred on $t$. We want a 25 x 25 kernel that turns $x$ into $t$, we start at
# **zero**, and look at nothing but the first gradient. With $L = \frac{1}{2M} \sum (y - t)^2$ over $M$
# pixels, the gradient that arrives at $w = 0$, where $y = 0$, is $\bar y = -t / M$, so
#
# $$-\bar w_{ij} = \frac{1}{M} \sum_{p, q} t_{pq}\; x_{p + i,\, q + j}$$
#
# is the correlation of the two pictures. It must be largest where they match.

# %%
# alt: Four panels: a piece of a slide of nuclei, a smaller and shifted piece, minus the first gradient as a
#   25 x 25 map, and the kernel after 100 steps. The first gradient has one broad peak, centred in the circle
#   at row -9, column 5; after 100 steps the peak is only a few pixels wide, at the same place.
slide = nuclei_sample("train").image(8).mean(axis=0).astype(np.float64)[:256, :256]  # grey
slide = (slide - slide.mean()) / slide.std()
moved, size, reach = (-9, 5), 112, 12
begin = (len(slide) - size) // 2 - reach
x = slide[begin : begin + size + 2 * reach, begin : begin + size + 2 * reach]
row, column = (begin + reach + offset for offset in moved)
t = slide[row : row + size, column : column + size]

w = Tensor(np.zeros((1, 1, 2 * reach + 1, 2 * reach + 1)), requires_grad=True)


def step_back(w):
    """The loss, with its gradient in w.grad."""
    w.grad = None
    with reference_only():  # one matrix of patches; blocks (below) are made for many channels, small kernels
        difference = F.conv2d(x[None, None], w) - t[None, None]
        loss = (difference * difference).mean() * 0.5
        loss.backward()
    return loss.item()


losses = [step_back(w)]
first = -w.grad[0, 0]
found = tuple(int(i) - reach for i in np.unravel_index(first.argmax(), first.shape))
print(f"off the centre by {moved}; the largest element of the first gradient is at {found}")

velocity = np.zeros_like(w.data)
for _ in range(10 if FAST else 100):  # gradient descent with momentum
    velocity = 0.9 * velocity - 0.01 * w.grad
    w.data += velocity
    losses.append(step_back(w))

_, axes = plt.subplots(1, 4, figsize=(14, 3.7), layout="constrained")
for axis, picture, title in ((axes[0], x, "x"), (axes[1], t, f"t, off x's centre by {moved}")):
    axis.imshow(picture, cmap="gray")
    axis.set(title=title, xlabel="column (pixels)", ylabel="row (pixels)")
lost = f"after {len(losses) - 1} steps, loss {losses[0]:.3f} to {losses[-1]:.3f}: w"
for axis, picture, title in ((axes[2], first, "at w = 0: minus the gradient"), (axes[3], w.data[0, 0], lost)):
    limit = np.abs(picture).max()
    axis.imshow(
        picture, cmap="PuOr_r", vmin=-limit, vmax=limit, extent=np.array([-1, 1, 1, -1]) * (reach + 0.5)
    )  # centre: 0
    axis.plot(moved[1], moved[0], "o", ms=16, mfc="none", mec=GREEN, mew=2)
    axis.set(title=title, xlabel=f"j - {reach} (pixels)", ylabel=f"i - {reach} (pixels)")
plt.show()

# %%
assert max(map(abs, moved)) > reach or found == moved
assert FAST or min(losses) < losses[0]  # with another picture, ten steps may still overshoot

# %% [markdown]
# One gradient, from a kernel that knows nothing, and it knows the displacement (the circle). This is what
# the weight gradient of every convolution in the network does: it correlates what is in its input with
# what is missing in its output.
#
# The peak is broad, about as broad as a nucleus. A picture moved by one pixel too many still looks much
# the same, so the first gradient cannot tell them apart; only further descent makes the peak sharp (the
# last panel). (Undoing this blur takes many steps of gradient descent, since the spectrum of natural
# images spans orders of magnitude. It is one reason why *whitening* the input, and the norm layers of
# notebook 03, help.)
#
# ## Padding, stride, dilation, groups: six matrices
#
# Each option is a change of the matrix, and the gradient is always its transpose. The last panel is a
# transposed convolution, of which more below: compare it with the one of stride 2.

# %%
# alt: Six convolution matrices, outputs by pixels, on one scale: padding 1 (36 x 36, in diagonal bands),
#   stride 2 (9 x 36), dilation 2 (4 x 36, bands with gaps), two channels to two (2 x 2 full blocks), groups 2
#   (only the diagonal blocks), and a transposed convolution (36 x 9), the mirror image of the one of stride
#   2.
OPTIONS = {
    "padding 1": (lambda x: F.conv2d(x, kernel, padding=1), 1, 6),
    "padding 1, stride 2": (lambda x: F.conv2d(x, kernel, padding=1, stride=2), 1, 6),
    "dilation 2": (lambda x: F.conv2d(x, kernel, dilation=2), 1, 6),
    "two channels to two": (lambda x: F.conv2d(x, np.tile(kernel, (2, 2, 1, 1))), 2, 4),
    "groups 2": (lambda x: F.conv2d(x, np.tile(kernel, (2, 1, 1, 1)), groups=2), 2, 4),
    "transposed, padding 1, stride 2": (
        lambda x: F.conv_transpose2d(x, kernel, padding=1, stride=2, output_padding=1),
        1,
        3,
    ),
}
matrices = {name: matrix(*what) for name, what in OPTIONS.items()}
side, wide, high = 0.085, 13.2, 5.2  # of a square, which is the same in all six, and of the figure, in inches
places = ((0.5, 0.6), (4.3, 2.6), (4.3, 0.9), (8.1, 2.6), (8.1, 0.9), (11.9, 0.6))  # left, bottom
figure = plt.figure(figsize=(wide, high))
for (left, bottom), (name, made) in zip(places, matrices.items()):
    size = made.shape[1] * side / wide, made.shape[0] * side / high
    axis = figure.add_axes((left / wide, bottom / high, *size))
    axis.imshow(np.where(made == 0, np.nan, made), cmap="viridis", vmin=0, vmax=9)
    title = name.replace(", padding", ",\npadding") + f"\n{made.shape[0]} outputs, {made.shape[1]} pixels,"
    axis.set_title(title + f"\n{np.count_nonzero(made)} products", fontsize=9)
    axis.set(xlabel="pixel", ylabel="output")
    axis.set_yticks(range(0, len(made), 3 if len(made) < 10 else 5))
plt.show()

# %%
assert np.array_equal(matrices["transposed, padding 1, stride 2"], matrices["padding 1, stride 2"].T)
assert not matrices["groups 2"][:4, 16:].any()  # the first group does not see the second channel

# %% [markdown]
# * **Padding** adds rows (outputs) whose windows reach beyond the image, and are cut there: near the
#   border a row has fewer than nine colours.
# * **Stride 2** leaves rows out. Columns get thinner as well: some pixels are read once, others four
#   times. Keep that in mind.
# * **Dilation** moves the diagonals apart; the number of weights stays.
# * **Two channels** are two by two blocks, each with a kernel of its own (here, all alike). **Groups**
#   keep the blocks on the diagonal.
#
# The number of weights never shows in the picture: nine numbers, 18 or 36, fill it all. For one layer of
# ResNet-50's first stage the matrix would have $64 \cdot 200 \cdot 304$ rows and as many columns,
# $1.5 \cdot 10^{13}$ elements, made of 36 864 weights. Nobody builds *that* matrix.
#
# ## From loops to one matrix product: im2col
#
# But there is a smaller one. Write the pixels that each output reads into a column: a matrix of
# **patches**, with $C K_H K_W$ rows and $P Q$ columns. Then the convolution is
# $Y = W \cdot \text{patches}$ with $W$ the weights as an $O \times C K_H K_W$ matrix, and the two
# gradients follow from the matrix product's of notebook 01:
#
# $$\bar W = \bar Y \cdot \text{patches}^\top, \qquad \overline{\text{patches}} = W^\top \bar Y ,$$
#
# after which the patches' gradient is added back into the image (`col2im`, the transpose of `im2col`): a
# pixel that was copied nine times collects nine gradients. **Added**, not written.

# %%
source(
    im2col.im2col,
    im2col.col2im,
    im2col.forward_im2col,
    im2col.input_gradient_im2col,
    im2col.weight_gradient_im2col,
)

# %% [markdown]
# `im2col` has no loop over pixels: it loops over the kernel's elements, and copies for each of them the
# whole image, shifted. So the matrix of patches can be read in two ways, and both will be useful:
#
# * its **columns** are the windows, one for each output;
# * its **rows** are the image, moved by $(i, j)$, one for each element of the kernel.
#
# Below is a 3 x 3 kernel with dilation 6, so that the rows are moved far enough to be seen: nine moved
# images, and three windows, each in a colour of its own: its column, its pixels in the unmoved image (row
# 4), and what it holds.

# %%
# alt: On top a wide grey strip, nine rows of the matrix of patches over 480 columns. Below, each row as an
#   image of its own is the same picture of nuclei, moved a different way (row 4 not at all); three marked
#   columns, as images, are 3 x 3 windows, whose pixels are dotted into row 4.
crop = slide[132:180, 136:184][None, None]
apart = 6  # pixels: so that one sees it
g = Geometry.of(crop.shape, (1, 1, 3, 3), stride=1, padding=apart, dilation=apart, groups=1)
patches = im2col.im2col(crop, g).reshape(9, -1)  # (9, 48 * 48)

figure, axes = plt.subplot_mosaic(
    "PPPPPP\n012abc\n345abc\n678abc",
    figsize=(12, 7),
    layout="constrained",
    gridspec_kw=dict(height_ratios=[1.2, 1, 1, 1]),
)
axes["P"].imshow(
    patches[:, 720:1200],
    cmap="gray",
    aspect="auto",
    interpolation="nearest",
    extent=(719.5, 1199.5, 8.5, -0.5),
)
axes["P"].set(
    title="the matrix of patches: its columns for ten rows of outputs",
    xlabel="column: output",
    ylabel="row: kernel element",
)
axes["P"].set_yticks(range(0, 9, 2))
for row, name in enumerate("012345678"):
    axes[name].imshow(patches[row].reshape(48, 48), cmap="gray")
    axes[name].set(title=f"row {row}", xticks=[], yticks=[])
windows_at = (17 * 48 + 14, 20 * 48 + 24, 23 * 48 + 34)
for column, name, colour in zip(windows_at, "abc", (BLUE, ORANGE, GREEN)):
    window = patches[:, column].reshape(3, 3)
    axes[name].imshow(window, cmap="gray", vmin=patches.min(), vmax=patches.max())
    axes[name].set(title=f"column {column}", xticks=[], yticks=[])
    axes[name].spines[:].set(color=colour, lw=4)
    axes["P"].axvline(column, color=colour, lw=1.5)  # the column itself, and below the pixels that it copies
    (down, across), around = divmod(column, 48), apart * np.arange(-1, 2)
    axes["4"].plot(*np.meshgrid(across + around, down + around), "s", ms=3, color=colour)
plt.show()

counted = im2col.col2im(np.ones((1, 1, 3, 3, 48, 48)), g)[0, 0]
copies = counted[0, 0], counted[0, 24], counted[24, 24]
print("copies of a pixel in the corner, at the border, inside:", *copies)

# %%
assert np.array_equal(patches[4], crop.ravel())  # the kernel's centre: the image itself
assert copies == (4, 6, 9)

# %% [markdown]
# ## Blocks of rows, and shifted views
#
# The price of im2col is memory: every pixel is stored nine times. What would that be for one 3 x 3
# convolution of the feature pyramid, 256 channels on the finest level of an 800 x 1216 image?

# %%
g = Geometry.of((1, 256, 200, 304), (256, 256, 3, 3), 1, 1, 1, 1)
image_bytes = 4 * np.prod(g.x_shape)
patch_bytes = 4 * g.patch_size * g.out_pixels
print(f"image {image_bytes / 2**20:.0f} MiB, patches {patch_bytes / 2**20:.0f} MiB, for one image")

# %%
assert patch_bytes == np.prod(g.w_shape[2:]) * image_bytes * g.out_pixels / np.prod(g.x_shape[2:])

# %% [markdown]
# Half a GiB, written to memory and read back, for one layer and one image. There are two ways out, and
# they correspond to the two readings of the matrix.
#
# **By columns: blocks.** Build the patches of a few rows of outputs, multiply, throw them away. The
# buffer, 8 MiB at most, is used over and over, so that a large last-level cache still holds it when the
# product reads it. Each thread has its own buffer and its own rows. (A 1 x 1 convolution needs no patches
# at all: there, the image itself is the matrix.)
#
# In plain NumPy, for one image and a stride of 1:


# %%
def forward_by_rows(x, w, padding, at_once):
    """A convolution of stride 1, some rows of outputs at a time: (C, H, W), (O, C, kh, kw) -> (O, P, Q)."""
    (channels, height, width), (outs, _, kh, kw) = x.shape, w.shape
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    p, q = height + 2 * padding - kh + 1, width + 2 * padding - kw + 1
    y = np.empty((outs, p, q))
    for first in range(0, p, at_once):
        last = min(first + at_once, p)
        patches = np.empty((channels, kh, kw, last - first, q))
        for i, j in np.ndindex(kh, kw):  # element (i, j) of all patches is the image, moved
            patches[:, i, j] = padded[:, first + i : last + i, j : j + q]
        product = w.reshape(outs, -1) @ patches.reshape(channels * kh * kw, -1)
        y[:, first:last] = product.reshape(outs, last - first, q)
    return y


plain_rng = np.random.default_rng(3)
plain_x, plain_w = plain_rng.normal(size=(3, 11, 8)), plain_rng.normal(size=(4, 3, 3, 3))
whole = F.conv2d(plain_x[None], plain_w, padding=1).numpy()[0]
for at_once in (1, 4, 100):
    by_rows = forward_by_rows(plain_x, plain_w, 1, at_once)
    print(f"rows at a time: {at_once:3}; largest difference {np.abs(by_rows - whole).max():.0e}")

# %%
assert all(np.allclose(forward_by_rows(plain_x, plain_w, 1, k), whole, atol=1e-12) for k in (1, 4, 100))

# %% [markdown]
# minimask's own does just that: `_patches` is the loop over `i, j`, `forward` the one over the blocks.
# Beyond that, it takes any stride and dilation, and groups of channels; it does not pad the image (that
# would copy it), but sets to 0 what lies outside in the patches; it keeps the buffer (`backend.scratch`),
# writes the product straight into `y`, and divides the blocks over several threads.

# %%
source(convolution._blocks, convolution._patches, convolution.forward)

# %% [markdown]
# **By rows: shifted views.** Row $(i, j)$ of the patches is the moved image. Pad the image with zeros and
# lay it out flat, row after row: then the moved image is *the same memory, read from a later position
# on*: $i \cdot \text{pitch} + j$, with the pitch the width of the padded image. Nothing is copied at all;
# $Y = \sum_{ij} W_{ij} \cdot \text{view}_{ij}$. There is a catch: a window that begins near the end of a
# row continues at the beginning of the next one. These outputs are nonsense. They are computed all the
# same, and thrown away.
#
# The figure is a 6 x 6 image with padding 1, so a pitch of 8. Both outputs begin at some flat position
# and read on from there; the orange one straddles two rows.

# %%
# alt: Left, a 6 x 6 image padded to 8 x 8 with two windows of nine outlined pixels: one a compact square, the
#   other torn apart, with three pixels in the last column and six in columns 0 and 1, a row further down.
#   Right, the outputs, 6 rows of 8; the last two columns, with the second window's output, are hatched.
g = Geometry.of((1, 1, 6, 6), (1, 1, 3, 3), 1, 1, 1, 1)
x = rng.uniform(0.3, 1.0, size=g.x_shape)
pitch = 8
flat = np.pad(
    x[0, 0], ((1, 2), (1, 1))
).ravel()  # 8 rows of 8, and one more, into which the last view reaches
views = np.stack([flat[i * pitch + j :][: 6 * pitch] for i, j in np.ndindex(3, 3)])  # (9, 6 * 8)

_, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
left.imshow(flat[:64].reshape(8, 8), cmap="gray", vmin=0, vmax=1.2)
right.imshow((kernel.reshape(1, 9) @ views).reshape(6, 8), cmap="gray")
for begin, colour, style in ((11, BLUE, "-"), (23, ORANGE, "--")):
    for i, j in np.ndindex(3, 3):
        row, column = divmod(begin + i * pitch + j, pitch)
        square = dict(fill=False, ec=colour, lw=3, ls=style)
        left.add_patch(Rectangle((column - 0.4, row - 0.4), 0.8, 0.8, **square))
    row, column = divmod(begin, pitch)
    right.add_patch(Rectangle((column - 0.4, row - 0.4), 0.8, 0.8, **square))
for column in (6, 7):
    right.add_patch(Rectangle((column - 0.5, -0.5), 1, 6, fill=False, ec=RED, hatch="//", lw=0))
left.set(title="the padded image; the windows of two flat positions", xlabel="column", ylabel="row")
right.set(title="outputs; those hatched straddle two rows", xlabel="column", ylabel="row")
plt.show()

# row (i, j) of the patches is a piece of the flat image, but for the last two columns
assert np.array_equal(views.reshape(9, 6, 8)[:, :, :6], im2col.im2col(x, g).reshape(9, 6, 6))
kept = (kernel.reshape(1, 9) @ views).reshape(6, 8)[:, :6]

# %%
assert np.allclose(kept, F.conv2d(x, kernel, padding=1).numpy()[0, 0])

# %% [markdown]
# ### How fast, on your machine
#
# Five ways to the same numbers: the loops, im2col, minimask's blocks, the sum over shifted views without
# any copy (a short function, below), and, as the goal, the bare matrix product of ready-made patches. (It
# has to fetch them from memory, so blocks may even be faster.) The figures are those of the machine that
# made this page, which had other work to do. **Run it on yours**; nothing is asserted about times, only
# about results and memory.


# %%
# alt: Left, bars of multiplications a second on a logarithmic axis: im2col, shifted views, blocks and the
#   bare matrix product have 20 billion or more each, plain loops less than a thousandth of one billion.
#   Right, the time over the buffer of patches, from 256 KiB to 32 MiB: highest for the smallest, lowest from
#   2 to 8 MiB.
def forward_views(x, w, padding):
    """Stride 1: one product for each kernel element, on views of the flat padded image; no patches."""
    (n, c), (o, _, kh, kw) = x.shape[:2], w.shape
    x = np.pad(
        x, ((0, 0), (0, 0), (padding, padding + 1), (padding, padding))
    )  # a row more for the last view
    height, pitch = x.shape[2] - kh, x.shape[3]
    flat, y = x.reshape(n, c, -1), np.zeros((n, o, height * pitch), x.dtype)
    for image, out in zip(flat, y):
        for i, j in np.ndindex(kh, kw):
            out += w[:, :, i, j] @ image[:, i * pitch + j :][:, : height * pitch]
    return y.reshape(n, o, height, pitch)[..., : pitch - kw + 1]


def seconds(works, repeats):
    """The best of some runs of each, in turns: the machine has other things to do, now and then."""
    best = [np.inf] * len(works)
    for _ in range(repeats):
        for i, work in enumerate(works):
            begin = time.perf_counter()
            work()
            best[i] = min(best[i], time.perf_counter() - begin)
    return best


def with_block(size):
    """minimask's convolution with another size of its buffer, which it reads at each call."""
    before, convolution.BLOCK_ELEMENTS = convolution.BLOCK_ELEMENTS, size
    try:
        convolution.forward(x, w, None, g)
    finally:
        convolution.BLOCK_ELEMENTS = before


def peak(work):
    """MiB allocated by NumPy, at most, during a call."""
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / 2**20


side, repeats = (64, 3) if FAST else (128, 20)
x = rng.normal(size=(1, 64, side, side)).astype(np.float32)
w = rng.normal(size=(64, 64, 3, 3)).astype(np.float32)
g = Geometry.of(x.shape, w.shape, 1, 1, 1, 1)
small = Geometry.of((1, 8, 8, 8), (8, 8, 3, 3), 1, 1, 1, 1)
patches = im2col.im2col(x, g).reshape(g.patch_size, -1)
WAYS = {
    "loops (on 8 x 8 pixels)": (
        lambda: im2col.forward_loop(x[:, :8, :8, :8], w[:8, :8], None, small),
        small,
    ),
    "im2col": (lambda: im2col.forward_im2col(x, w, None, g), g),
    "shifted views": (lambda: forward_views(x, w, 1), g),
    "minimask: blocks": (lambda: convolution.forward(x, w, None, g), g),
    "bare matrix product": (lambda: w.reshape(64, -1) @ patches, g),
}
works = [work for work, _ in WAYS.values()]
times = seconds(works[:1], 1) + seconds(works[1:], repeats)
rates = {
    name: np.prod(geometry.y_shape) * geometry.patch_size / taken / 1e9
    for (name, (_, geometry)), taken in zip(WAYS.items(), times)
}

reference = im2col.forward_im2col(x, w, None, g)
assert np.allclose(convolution.forward(x, w, None, g), reference, rtol=0, atol=2e-3)
assert np.allclose(forward_views(x, w, 1), reference, rtol=0, atol=2e-3)

peaks = {name: peak(WAYS[name][0]) for name in ("im2col", "shifted views", "minimask: blocks")}
print("peak memory:", ", ".join(f"{name} {most:.1f} MiB" for name, most in peaks.items()))
print(f"(the output itself: {reference.nbytes / 2**20:.1f} MiB; the blocks' buffers,", end=" ")
print(f"up to {4 * convolution.BLOCK_ELEMENTS / 2**20:.0f} MiB a thread, are kept between calls)")
assert peaks["minimask: blocks"] < 0.6 * peaks["im2col"]

sizes = 2 ** np.arange(16, 24, 2 if FAST else 1)  # from a row at a time to nearly all rows
works = [lambda size=int(size): with_block(size) for size in sizes]
over_block = 1e3 * np.array(seconds(works, 2 * repeats))  # twice as many: the points lie close together

_, (left, right) = plt.subplots(1, 2, figsize=(12, 3.8), layout="constrained")
left.barh(list(rates), list(rates.values()), color=[GREY, ORANGE, GREEN, BLUE, GREY])
left.set(
    xscale="log",
    xlabel="multiplications a second (billions)",
    title=f"3 x 3, 64 to 64 channels, {side} x {side}",
)
for name, rate in rates.items():
    left.text(rate, name, f" {rate:.2g}", va="center", fontsize=9)
left.set_xlim(right=6 * max(rates.values()))
right.semilogx(4 * sizes / 1024, over_block, "o-", color=BLUE, base=2)
right.axvline(4 * convolution.BLOCK_ELEMENTS / 1024, color=GREY, ls="--", lw=1)
right.text(4 * convolution.BLOCK_ELEMENTS / 1024, 0, " minimask's", color=GREY, va="bottom")
right.set(
    xlabel="buffer of patches (KiB)",
    ylabel="time (ms)",
    ylim=(0, 1.2 * max(over_block)),
    title="blocks: how large?",
)
plt.show()

# %% [markdown]
# The loops are slower by a factor of more than ten thousand, which is Python's price for touching each
# number by itself. Among the others, the arithmetic is the same, and all that differs is where the
# numbers wait.
#
# * **Blocks** of a single row (the left end of the curve) make short matrix products, and many of them;
#   blocks of all rows (the right end) are im2col. What is best in between depends on the layer, on your
#   caches, and on who else is using them, so believe no single point of a curve from a busy machine.
#   Textbooks say: as large as the second-level cache. That is right for a program of one thread in C.
#   Here several Python threads fill buffers and multiply, and between any two calls of NumPy a thread
#   needs the **interpreter's lock**, for which it may have to wait. Small blocks mean many calls, and the
#   waiting can cost more than the better cache saves. minimask's size was chosen for larger layers than
#   this one: on the machine on which it was made, the 7 x 7 stem and a 3 x 3 on 200 x 272 pixels took
#   about half as long with 8 MiB as with 1 MiB. The price is memory: each point further to the right
#   takes twice as much, for every thread.
# * **Shifted views** copy nothing, but each of the nine products goes through the whole output once more
#   to add to it. The fewer the channels, the shorter the products, and the more that costs. Change 64 to
#   256 in the cell above and look again. (One can also *fill* a block's buffer from shifted views, long
#   pieces of memory, where rows are short. With small blocks that was faster in the mask head; with large
#   ones, it no longer was.)
#
# ### The gradients, fast
#
# The gradient of the input, with stride 1, calls `forward` with the turned kernel: what we derived. With
# a stride it would multiply mostly zeros (with stride 2, three quarters of the spread-out gradient), so
# it computes `W^T @ gy` by blocks, and adds the result into place. Note who may add where: two threads
# must never add to the same pixel, so each has some of the input channels to itself. Where the stride is
# as large as the kernel, windows touch without overlap, each pixel is read once, and there is nothing to
# add: there blocks of rows are divided over the threads, as in the forward pass, and *written* into
# place.

# %%
source(convolution.input_gradient, convolution._input_gradient_by_patches)

# %% [markdown]
# The gradient of the weights is a sum over all positions, so over all threads: each adds up its own rows,
# and the sums are added in a fixed order, since floating-point numbers added in another order differ in
# the last digits. The product is computed as $\text{patches} \cdot \bar Y^\top$, the transpose of the
# formula above: a product of the same numbers, but BLAS is faster where the first matrix is the larger
# one.

# %%
source(convolution.weight_gradient)

# %% [markdown]
# ## Transposed convolution
#
# The mask head (notebook 07) ends with 14 x 14 features and wants a 28 x 28 mask. A *transposed
# convolution* does it: its forward pass is the input gradient of a convolution, $y = A^\top x$. Then its
# own input gradient is $A \bar y$, a plain convolution, and its weight gradient is the convolution's with
# $x$ and $\bar y$ exchanged. Nothing is left to derive.

# %%
source(F.conv.ConvTranspose2d)

# %% [markdown]
# It is called deconvolution as well, which it is not: it does not undo a convolution. $A^\top A \ne I$;
# what it undoes is the *shape*. And not even that is unique: with stride 2, images of 7 and of 8 pixels
# both have 4 outputs. So a transposed convolution from 4 pixels has to be told which of the two it is to
# make, by `output_padding`.

# %%
w = rng.normal(size=(1, 1, 3, 3))
for side in (7, 8):
    there = F.conv2d(np.ones((1, 1, side, side)), w, stride=2, padding=1)
    back = F.conv_transpose2d(there, w, stride=2, padding=1, output_padding=side - 7)
    print(f"{side} -> {there.shape[2]} -> {back.shape[2]}")
    assert back.shape[2] == side

x, y = rng.normal(size=(1, 1, 8, 8)), rng.normal(size=(1, 1, 4, 4))
Ax, ATy = (
    F.conv2d(x, w, stride=2, padding=1),
    F.conv_transpose2d(y, w, stride=2, padding=1, output_padding=1),
)
inner = float((Ax.numpy() * y).sum()), float((x * ATy.numpy()).sum())
print(f"<A x, y> = {inner[0]:.12f} = <x, A^T y> = {inner[1]:.12f}")

# %%
assert abs(inner[0] - inner[1]) < 1e-12

# %% [markdown]
# Every input pixel puts a stamp of the kernel, times its value, onto the output; where stamps overlap,
# they are added. How many stamps does an output pixel get? A kernel and an input of ones count them:

# %%
# alt: Three grids with the number of stamps on each output of a transposed convolution of stride 2. Kernel 3
#   x 3: a checkerboard of 1, 2 and 4; kernel 2 x 2: 1 everywhere; kernel 4 x 4: 4 everywhere inside, 2 along
#   the border and 1 in the corners.
_, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
stamps = {}
for axis, (k, padding) in zip(axes, ((3, 0), (2, 0), (4, 1))):
    stamps[k] = F.conv_transpose2d(np.ones((1, 1, 4, 4)), np.ones((1, 1, k, k)), stride=2, padding=padding)
    stamps[k] = stamps[k].numpy()[0, 0]
    numbered(axis, stamps[k], f"kernel {k} x {k}: stamps on each output", top=4)
plt.show()

# %%
assert set(np.unique(stamps[3])) == {1, 2, 4}  # a checkerboard
assert np.all(stamps[2] == 1)  # the mask head's
assert np.all(stamps[4][1:-1, 1:-1] == 4)

# %% [markdown]
# A 3 x 3 kernel of stride 2 makes a **checkerboard**: whatever it has learnt, some outputs are sums of
# four terms, others of one. (Odena et al. found this pattern in images that networks had painted.) A
# kernel that is a multiple of the stride treats all alike. The mask head uses 2 x 2, stride 2: stamps
# side by side, never overlapping. Does it look at neighbours at all, then? No: each input pixel becomes a
# 2 x 2 block by itself, and the layer is a 1 x 1 convolution to four times as many channels, reordered:

# %%
x, w = rng.normal(size=(2, 8, 14, 14)), rng.normal(size=(8, 5, 2, 2))
y = F.conv_transpose2d(x, w, stride=2).numpy()  # (2, 5, 28, 28)

as_pointwise = w.transpose(1, 2, 3, 0).reshape(5 * 4, 8, 1, 1)  # (8, 5, 2, 2) -> (5 * 2 * 2, 8, 1, 1)
z = F.conv2d(x, as_pointwise).numpy()  # (2, 20, 14, 14)
z = z.reshape(2, 5, 2, 2, 14, 14).transpose(0, 1, 4, 2, 5, 3).reshape(2, 5, 28, 28)  # "pixel shuffle"
assert np.allclose(y, z, rtol=0, atol=1e-12)
print("a 2 x 2 transposed convolution of stride 2 is a 1 x 1 convolution and a reordering")

# %% [markdown]
# ## Is it right? The error over the step size
#
# In notebook 01 truncation and rounding met at $h \approx 6 \cdot 10^{-6}$. Now the convolution alone,
# moving $x$ and $w$ together. Before you look: $y(x + h v, w + h v')$ is a polynomial in $h$. Of which
# degree? And what does that do to a central difference?

# %%
# alt: Relative error over the step h, both logarithmic. For conv2d alone the central difference falls to
#   about 1e-16 at a step near 1 and is still near 1e-15 at 1000, while the one-sided error rises to 1; with a
#   sigmoid behind it every curve is a V, and the central one rises again from a step of about 1e-5 on.
shapes = ((2, 3, 8, 8), (4, 3, 3, 3), (4,))
inputs = [rng.normal(size=shape) for shape in shapes]
steps = np.logspace(-13, 3, 33 if FAST else 97)


def convolved(x, w, b):
    return F.conv2d(x, w, b, stride=2, padding=1)


_, axes = plt.subplots(1, 2, figsize=(12.5, 4.4), sharey=True, layout="constrained")
alone = tutorial.step_errors(convolved, inputs, steps=steps, kinds=("one-sided", "central"))
alone.plot(axes[0], "conv2d alone")
curved = tutorial.step_errors(
    lambda x, w, b: F.sigmoid(convolved(x * 0.3, w * 0.3, b)), inputs, steps=steps[steps <= 1]
)
curved.plot(axes[1], "conv2d, then sigmoid")
axes[0].set_xlim(1e-14, 1e4)
plt.show()

large = steps >= 1e-3
worst = alone.errors["central"][large].max()
print(f"central difference, largest error for h from 0.001 to 1000: {worst:.1e}")

# %%
assert alone.errors["central"][large].max() < 1e-10  # no truncation at all
assert 1e-9 < alone.best("one-sided") < 1e-5
assert curved.best("central") < 1e-9 and curved.errors["central"].max() > 1e-4

# %% [markdown]
# The convolution is linear in $x$ and in $w$, so of degree 2 in both together:
# $y = y_0 + h\,y_1 + h^2 y_2$. A one-sided difference has the error $h\,y_2$. In the central one the
# squares cancel, **exactly**, at any $h$: there is no truncation, only rounding, and the larger the step
# the better. Even a step of 1000 gives the derivative to 13 digits. (From $h = 1$ on the error creeps up
# again: the values grow with $h^2$, and their last places with them.) So this layer needs no small step
# at all. Only behind a curved function, on the right, does truncation appear, and with it a best step;
# and a network is full of curved functions.
#
# Now everything at once: forward by loops, by im2col and by blocks, the gradients of the input and of the
# weights likewise, and the gradient check, over the options.

# %%
TABLE = {
    "plain": ((2, 3, 7, 6), (4, 3, 3, 3), {}),
    "padding 1": ((2, 3, 5, 6), (4, 3, 3, 3), dict(padding=1)),
    "stride 2, even and odd": ((1, 3, 6, 7), (4, 3, 3, 3), dict(stride=2, padding=1)),
    "stride 3, kernel 2": ((2, 2, 8, 8), (3, 2, 2, 2), dict(stride=3)),
    "dilation 2": ((1, 2, 8, 7), (3, 2, 3, 2), dict(dilation=2, padding=1)),
    "groups 2": ((2, 4, 5, 5), (6, 2, 3, 3), dict(groups=2, padding=1)),
    "a group each (depthwise)": ((2, 3, 6, 6), (3, 1, 3, 3), dict(groups=3, stride=2, padding=1)),
    "1 x 1": ((2, 3, 4, 5), (4, 3, 1, 1), {}),
    "1 x 1, stride 2": ((2, 3, 5, 5), (4, 3, 1, 1), dict(stride=2)),
    "padding beyond the kernel": ((1, 2, 4, 4), (2, 2, 2, 2), dict(padding=3)),
    "no images": ((0, 2, 5, 5), (3, 2, 3, 3), dict(padding=1)),
}
DEFAULTS = dict(stride=1, padding=0, dilation=1, groups=1)


def three_ways(g, x, w, b, gy):
    """The largest difference of loops and im2col from the blocks, over all three passes."""
    passes = {"forward": (x, w, b), "input_gradient": (gy, w), "weight_gradient": (gy, x)}
    worst = 0.0
    for name, arrays in passes.items():
        fast = getattr(convolution, name)(*arrays, g)
        others = (getattr(im2col, name + way)(*arrays, g) for way in ("_im2col", "_loop"))
        worst = max([worst, *(float(np.abs(fast - other).max(initial=0)) for other in others)])
    return worst


def both_checked(x, w, b, gy, options):
    """Worst relative errors of the gradients of a convolution and of its transpose."""
    plain = gradcheck(lambda x, w, b: F.conv2d(x, w, b, **options), [x, w, b])
    return plain.worst_error, gradcheck(lambda y, w: F.conv_transpose2d(y, w, **options), [gy, w]).worst_error


print(f"{'':28}{'three ways differ by':>22}{'gradient check':>16}{'transposed':>12}")
for name, (x_shape, w_shape, options) in TABLE.items():
    g = Geometry.of(x_shape, w_shape, **DEFAULTS | options)
    x, w, b, gy = (rng.normal(size=shape) for shape in (x_shape, w_shape, w_shape[:1], g.y_shape))
    differ = three_ways(g, x, w, b, gy)
    plain, back = both_checked(x, w, b, gy, options) if len(x) else (0.0, 0.0)
    print(f"{name:28}{differ:22.1e}{plain:16.1e}{back:12.1e}")
    assert differ < 1e-12 and max(plain, back) < 1e-6

# %% [markdown]
# ### Plant a bug
#
# And would these checks have noticed? Six backward passes that people really write, each tried on five
# sorts of input. It is not only the check that can be blind, the *inputs* can. A dash means that the bug
# went unnoticed.


# %%
def overwriting(gy, w, g):
    """col2im with = in place of +=."""
    n, o = gy.shape[:2]
    patches = w.reshape(o, -1).T @ gy.reshape(n, o, -1)
    patches, gx = patches.reshape(n, g.x_shape[1], *g.w_shape[2:], *g.out_size), np.zeros(g.x_shape)
    for i, j, out, pixels in geometry.windows(g):
        gx[:, :, pixels[0], pixels[1]] = patches[:, :, i, j, out[0], out[1]]
    return gx


K = convolution
BUGS = {
    "kernel not turned": lambda gy, x, w, g: (K.input_gradient(gy, w[:, :, ::-1, ::-1], g), None),
    "rows and columns swapped": lambda gy, x, w, g: (K.input_gradient(gy, w.swapaxes(2, 3), g), None),
    "channels not exchanged": lambda gy, x, w, g: (K.input_gradient(gy, w.swapaxes(0, 1), g), None),
    "written, not added": lambda gy, x, w, g: (overwriting(gy, w, g), None),
    "gw of the last image only": lambda gy, x, w, g: (
        None,
        im2col.weight_gradient_im2col(gy[-1:], x[-1:], g),
    ),
    "gw turned": lambda gy, x, w, g: (None, K.weight_gradient(gy, x, g)[:, :, ::-1, ::-1]),
}


class Buggy(F.conv.Conv2d):
    """A convolution with one of the two gradients replaced by a wrong one."""

    def __init__(self, bug, **options):
        super().__init__(**options)
        self.bug = BUGS[bug]

    def backward(self, gy):
        right = super().backward(gy)[:2]
        wrong = self.bug(gy, *self.saved, self.geometry)
        return *(r if w is None else w for r, w in zip(right, wrong)), None


x, w = rng.normal(size=(2, 3, 6, 6)), rng.normal(size=(3, 3, 3, 3))
INPUTS = {
    "random": (x, w),
    "kernel of 1s": (x, np.ones_like(w)),
    "one image": (x[:1], w),
    "one channel": (x[:, :1], w[:1, :1]),
    "1 x 1 kernel": (x, w[:, :, :1, :1]),
}


def found(bug, x, w):
    """Whether the gradient check notices a bug at these inputs."""
    padding = w.shape[2] // 2
    return not gradcheck(
        lambda x, w: Buggy.apply(x, w, None, bug=bug, padding=padding), [x, w], raise_error=False
    )


missed = {name: [bug for bug in BUGS if not found(bug, *arrays)] for name, arrays in INPUTS.items()}
print(f"{'':25}" + "".join(f"{name:>14}" for name in INPUTS))
for bug in BUGS:
    print(f"{bug:25}" + "".join(f"{'-' if bug in missed[name] else 'found':>14}" for name in INPUTS))

# %%
assert not missed["random"]
assert all(missed[name] for name in INPUTS if name != "random")

# %% [markdown]
# A kernel of ones looks the same from all sides and hides half of the bugs; a smoothing kernel in a unit
# test does the same. One image hides the forgotten sum over the batch. So minimask's table of cases has
# random values, unequal sizes in each direction, more than one image, more channels out than in: no
# symmetry that a bug could hide behind.
#
# ## The experiment: not all pixels are equal
#
# Now the picture of stride 2 comes back, where some pixels were read once and others four times. In a
# backbone such layers follow one another. Take four convolutions, 3 x 3, stride 2, padding 1, so a total
# stride of 16, and count the **paths** from each pixel to the outputs: with kernels of ones, the gradient
# of the sum of all outputs is that number. What do you expect? Some smooth hill, since everything gets
# mixed?


# %%
def paths(size, layers):
    """Ways from each pixel to the outputs through layers of (kernel, stride, padding): exact whole numbers."""
    y = x = Tensor(np.ones((1, 1, size, size)), requires_grad=True)
    for k, stride, padding in layers:
        y = F.conv2d(y, np.ones((1, 1, k, k)), stride=stride, padding=padding)
    y.backward(np.ones(y.shape))
    return x.grad[0, 0]


count = paths(64, [(3, 2, 1)] * 4)
row = np.round(np.sqrt(count.diagonal())).astype(int)[16:33]  # count[u, v] = row[u] row[v]
print("along a row, over one period of 16 pixels:", *row)
print(f"fewest {count[16:48, 16:48].min():.0f}, most {count[16:48, 16:48].max():.0f}")

# %%
assert row.tolist() == [1, 5, 4, 7, 3, 8, 5, 7, 2, 7, 5, 8, 3, 7, 4, 5, 1]

# %% [markdown]
# The diagonal neighbour of a pixel with one path has 25. In the plane the numbers run from 1 to 64, and
# they are *self-similar*. You can derive them: an even pixel $2p$ is read by output $p$ only, with the
# kernel's centre; an odd pixel $2p + 1$ by $p$ and by $p + 1$. So with $a$ the number of paths,
#
# $$a_{2p} = a_p, \qquad a_{2p+1} = a_p + a_{p+1} :$$
#
# this is *Stern's diatomic sequence* of 1858, in which the ratios of neighbours are all the positive
# fractions, each once. Its largest values are Fibonacci numbers, 2, 3, 5, 8, 13, the next one with each
# further layer, and in the plane their squares: 169 for five layers, the stride of 32 of a ResNet.
#
# ### How large should random weights be?
#
# We are about to use random kernels, so we have to decide how large their elements shall be, as everyone
# must who begins to train a network. An output $y$ of a convolution is a sum of $n = C k^2$ products
# $w x$. With independent weights of mean 0,
#
# $$\operatorname{Var} y = n \cdot \operatorname{Var} w \cdot \langle x^2 \rangle .$$
#
# If $x = \max(0, z)$ comes out of a ReLU and $z$ is as often negative as positive, then half of the
# squares are gone, $\langle x^2 \rangle = \tfrac12 \operatorname{Var} z$. So a layer multiplies the
# variance by $\tfrac n2 \operatorname{Var} w$, and $L$ layers do so $L$ times: it must be 1, or the
# numbers explode or vanish. Hence
#
# $$\operatorname{Var} w = \frac{2}{n} ,$$
#
# **He's initialisation** (He et al., 2015). The same argument holds backwards for the gradient, with
# $n = O k^2$. In minimask the 2 is the `gain` of `nn.Conv2d` and `nn.Linear`. The layer before a
# ReLU gets it, not the one after, which in a chain comes to the same. Layers that no ReLU follows, such as
# the pyramid's, take 1, and predictors, which should begin by saying "I do not know", far less.


# %%
# alt: Variance of the outputs, on a logarithmic axis, over 16 layers of random convolutions with ReLU, for
#   three variances of the weights. With 2 / n it stays near 1; with 1 / n it falls to about 2e-5, with 4 / n
#   it rises to nearly 1e5.
def mean_squares(gain, layers, rng, channels=32, size=16):
    """<y^2> behind each of some layers of 3x3 convolution and ReLU, with weights of variance gain / n."""
    y, found = rng.normal(size=(1, channels, size, size)), []
    for _ in range(layers):
        w = rng.normal(0, np.sqrt(gain / (channels * 9)), (channels, channels, 3, 3))
        z = F.conv2d(np.pad(y, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="wrap"), w).numpy()  # without a border
        found.append((z**2).mean())
        y = np.maximum(z, 0)
    return np.array(found)


DEPTH = 16
_, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
growth = {}
for gain, colour, marker in ((1.0, ORANGE, "s"), (2.0, BLUE, "o"), (4.0, GREEN, "^")):
    values = mean_squares(gain, DEPTH, np.random.default_rng(4))
    growth[gain] = (values[-1] / values[0]) ** (1 / (DEPTH - 1))
    axes.semilogy(range(1, DEPTH + 1), values, marker=marker, color=colour, label=f"Var w = {gain:g} / n")
    print(
        f"Var w = {gain:g} / n: a layer multiplies the variance by {growth[gain]:.2f}; derived {gain / 2:g}"
    )
axes.set(xlabel="layer", ylabel="variance of its outputs", title="random 3 x 3 convolutions with ReLU")
axes.legend()
axes.grid(alpha=0.3)
plt.show()

# %%
assert all(0.85 < measured / (gain / 2) < 1.15 for gain, measured in growth.items())

# %% [markdown]
# After sixteen layers, a factor of 2 in the variance of the weights decides between a signal that stays,
# one that is gone (about $2^{-15}$) and one that has exploded. (A layer followed by a norm, notebook 03,
# need not worry about it. The heads of Mask R-CNN have no norms.)
#
# ### Back to the paths
#
# With kernels of ones, counting paths is just a game. Does it matter for a real, random kernel, with a
# ReLU behind it? Weights of random sign make the terms of the sum over paths cancel, so the *mean square*
# of the gradient should go with their number. Measured, over random networks with He's initialisation:


# %%
# alt: Two maps of 16 x 16 pixels, paths counted and mean square gradient measured, show the same tartan:
#   darkest in row and column 0, then 8, and brightest where 5 and 11 meet. Right, paths along a row in four
#   designs: 3 x 3 zigzags from 0.2 to 1.6 of the mean, 4 x 4 is flat, 1 x 1 is 0 at 15 pixels of 16.
def mean_square_gradient(layers, size, networks, channels, rng):
    """Of each pixel, over random networks of 3x3 convolutions with ReLU, inputs and upstream gradients."""
    total = np.zeros((size, size))
    for _ in range(networks):
        x = y = Tensor(rng.normal(size=(1, channels, size, size)), requires_grad=True)
        for k, stride, padding in layers:
            w = rng.normal(0, np.sqrt(2 / (channels * k * k)), (channels, channels, k, k))
            y = F.relu(F.conv2d(y, w, stride=stride, padding=padding))
        y.backward(rng.normal(size=y.shape))
        total += (x.grad[0] ** 2).mean(axis=0)
    return total / networks


def one_period(values):
    """Mean over the periods of 16 inside, away from the border: (64, 64) -> (16, 16), mean 1."""
    inside = values[16:48, 16:48].reshape(2, 16, 2, 16).mean(axis=(0, 2))
    return inside / inside.mean()


measured = mean_square_gradient([(3, 2, 1)] * 4, 64, 30 if FAST else 300, 16, rng)
counted, found = one_period(count), one_period(measured)
correlation = np.corrcoef(np.log(counted).ravel(), np.log(found).ravel())[0, 1]
print(f"correlation of the logarithms of measured mean square and number of paths: {correlation:.4f}")
assert correlation > 0.97

DESIGNS = {
    "3 x 3, stride 2": ([(3, 2, 1)] * 4, BLUE, "-"),
    "with a 3 x 3 of stride 1 after each": ([(3, 2, 1), (3, 1, 1)] * 4, ORANGE, "--"),
    "4 x 4, stride 2": ([(4, 2, 1)] * 4, GREEN, "-."),
    "1 x 1, stride 2": ([(1, 2, 0)] * 4, RED, "x"),
}
_, axes = plt.subplots(
    1, 3, figsize=(14, 4.3), layout="constrained", gridspec_kw=dict(width_ratios=[1, 1, 1.4])
)
scale = dict(cmap="viridis", vmin=np.log2(counted.min()), vmax=np.log2(counted.max()))
for axis, values, title in zip(axes, (counted, found), ("number of paths", "random networks: mean square")):
    shown = axis.imshow(np.log2(values), **scale)
    axis.set(title=title, xlabel="column modulo 16 (pixels)", ylabel="row modulo 16 (pixels)")
    axis.set(xticks=range(0, 16, 3), yticks=range(0, 16, 3))
plt.colorbar(shown, ax=axes[:2], label="log2 of the value over its mean", pad=0.02, aspect=30)
axes[0].figure.get_layout_engine().set(wspace=0.06)
ratios = {}
for name, (layers, colour, style) in DESIGNS.items():
    profile = np.sqrt(paths(128, layers).diagonal())[48:81]  # far from the border
    ratios[name] = float(profile.max() / profile.min()) ** 2 if profile.min() else np.inf
    axes[2].plot(profile / profile.mean(), style, color=colour, label=name)
axes[2].set(
    xlabel="pixel along a row",
    ylabel="paths over their mean, one direction",
    ylim=(-0.1, 2.5),
    title="other designs (1 x 1: one in 16 is off the scale)",
)
axes[2].legend(fontsize=8, ncols=2, loc="upper center")
plt.show()
print("most paths of a pixel over fewest:")
for name, ratio in ratios.items():
    print(f"  {name:<35} {ratio:.3g}")

# %%
assert (
    ratios["3 x 3, stride 2"] == 64 and ratios["4 x 4, stride 2"] == 1 and list(ratios.values())[-1] == np.inf
)

# %% [markdown]
# The two squares are the same picture. A pixel's position modulo 16 decides how much of it a fresh
# network takes in, and how much gradient comes back to it.
#
# * **A convolution of stride 1 after each** (as in a ResNet's blocks) evens it out, from 64 to between 5
#   and 6, but not completely.
# * **4 x 4** is perfectly even: the kernel is a multiple of the stride.
# * **1 x 1 with stride 2** reads one pixel of four and never looks at the rest; after four of them, 255
#   pixels of 256 are never looked at. It is not a far-fetched example: it is the shortcut of every
#   downsampling block in every ResNet. In the original ResNets (and in detectron2's default models) the
#   *main path* has its stride in a 1 x 1 convolution as well; torchvision moved it to the 3 x 3. With
#   both in 1 x 1, a downsampling block never looks at three of four values of its input; only the
#   pyramid's lateral connection does. Look into `source(minimask.models.resnet)` where minimask has it.
#
# None of this keeps Mask R-CNN from working: the weights learn to compensate, and the pyramid's fine
# levels have small strides. But it is there, and now you know what a grid in a saliency map is.
#
# ## Exercises
#
# **1.** im2col. The attempt below has one of the common mistakes.

# %%
exercises.describe("im2col")


# %%
def my_im2col(x, kernel, stride, padding):
    (n, c, h, w), (kh, kw) = x.shape, kernel
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    p, q = (h + 2 * padding - kh) // stride + 1, (w + 2 * padding - kw) // stride + 1
    cols = np.zeros((n, c, kh, kw, p, q), x.dtype)
    for i, j in np.ndindex(kh, kw):
        cols[:, :, i, j] = x[:, :, i : i + p, j : j + q]
    return cols


exercises.check("im2col", my_im2col)

# %% [markdown]
# **2.** The forward pass, without im2col this time: NumPy can show all windows as a view. The attempt
# below follows the definition of a convolution in a textbook of mathematics.

# %%
exercises.describe("conv2d_forward")


# %%
def my_conv2d_forward(x, w, b, stride, padding):
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]  # (N, C, P, Q, KH, KW)
    return np.einsum("ncpqij,ocij->nopq", windows, w[:, :, ::-1, ::-1]) + b[:, None, None]


exercises.check("conv2d_forward", my_conv2d_forward)

# %% [markdown]
# **3.** The three gradients. Loop over output positions, or over kernel elements, or use the identities
# of this notebook.

# %%
exercises.describe("conv2d_backward")


# %%
def my_conv2d_backward(gy, x, w, stride, padding):
    kh, kw = w.shape[2:]
    wide = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    gx, gw = np.zeros_like(wide), np.zeros_like(w)
    for p, q in np.ndindex(gy.shape[2:]):
        window = (..., slice(p * stride, p * stride + kh), slice(q * stride, q * stride + kw))
        g = gy[:, :, p, q]  # (N, O)
        gx[window] = np.einsum("no,ocij->ncij", g, w)
        gw += np.einsum("no,ncij->ocij", g, wide[window])
    gx = gx[:, :, padding : padding + x.shape[2], padding : padding + x.shape[3]]
    return gx, gw, gy.sum(axis=(0, 2, 3))


exercises.check("conv2d_backward", my_conv2d_backward)

# %% [markdown]
# **4.** On paper: which kernel sizes and paddings make a transposed convolution of stride $s$ multiply
# the side by exactly $s$, without `output_padding`? Which of them have no checkerboard?
#
# <details><summary>Answer</summary>
#
# $(H - 1) s - 2P + K = s H$, so $K = s + 2P$: for $s = 2$, kernel 2 with padding 0, kernel 4 with padding
# 1, kernel 6 with padding 2. Away from the border, every output gets equally many stamps where $K$ is a
# multiple of $s$: for $s = 2$ that is all of them; for $s = 3$, kernels 3 and 9 but not 5 or 7.
#
# </details>
#
# **5.** How large is a convolution? The largest factor by which it can stretch an image,
# $\max \lVert A x \rVert / \lVert x \rVert$, is the root of the largest eigenvalue of $A^\top A$. Find it
# by repeating $x \leftarrow A^\top A x / \lVert A^\top A x\rVert$ with `conv2d` and `conv_transpose2d`,
# for a blur of nine times 1/9 and for the edge kernel $(-1, 0, 1)$, on 32 x 32 pixels with padding 1.
# Which images come out?
#
# <details><summary>Answer</summary>
#
# Just below 1 for the blur: a large bump in the middle that vanishes towards the border, since a smooth
# image passes unchanged. Just below 2 for the edge kernel (1 x 3, padding 0 and 1): a wave of period 4
# along each row (how strong in which row is left to the start), for which the differences
# $x_{q+1} - x_{q-1}$ are twice as large as $x$. Far from the border, the factors are the moduli of the
# kernel's Fourier transform.
#
# </details>
#
# **6.** A depthwise 3 x 3 convolution (`groups=C`) has $C$ times fewer multiplications than a full one.
# Why does it not run $C$ times faster, in any of the ways above? Measure it for $C = 64$, then count the
# numbers that have to be *moved* for each multiplication.
#
# <details><summary>Answer</summary>
#
# A full convolution uses each number of the patches $O$ times once it is in cache, a depthwise one only
# once. The matrix product becomes a product of one row of nine numbers with nine rows of patches: all of
# the time goes into moving memory. For this layer, direct loops over shifted views in a compiled language
# beat any matrix product.
#
# </details>
#
# **7.** In the experiment of the displacement, the peak was as broad as a nucleus. Replace the slide by
# white noise of the same size. What does the first gradient look like now, and how many steps are needed?
# Then explain what "whitening the input" is good for.
#
# <details><summary>Answer</summary>
#
# The correlation of white noise with itself is a single point, with noise of relative size
# $1/\sqrt{112 \cdot 112}$ around it: the first gradient points straight to the solution, and a single
# step of the right length nearly arrives there. The matrix of second derivatives of $L$ is the input's
# autocorrelation; for a white input it is a multiple of the identity, and gradient descent is at its
# best.
#
# </details>
#
# **8.** Derive the input gradient for groups from `_terms` alone. Which single line of `input_gradient`
# takes care of it?
#
# <details><summary>Answer</summary>
#
# Group $\gamma$ of outputs reads group $\gamma$ of inputs, so channels are exchanged within each group:
# $w$ as $(G, O/G, C/G, K_H, K_W)$ with axes 1 and 2 swapped. `.swapaxes(1, 2)` does it; without the
# reshape before it, weights of different groups would be mixed.
#
# </details>
#
# ## Read on
#
# * V. Dumoulin, F. Visin, *A guide to convolution arithmetic for deep learning*, 2016
#   ([arXiv:1603.07285](https://arxiv.org/abs/1603.07285)): all the shapes, drawn.
# * A. Odena, V. Dumoulin, C. Olah, *Deconvolution and checkerboard artifacts*, Distill, 2016.
# * K. Chellapilla, S. Puri, P. Simard, *High performance convolutional neural networks for document
#   processing*, 2006: im2col.
# * K. Goto, R. van de Geijn, *Anatomy of high-performance matrix multiplication*, ACM TOMS 34, 2008: why
#   one product can be so fast, and what "in cache" means.
# * M. A. Stern, *Ueber eine zahlentheoretische Funktion*, Journal für die reine und angewandte Mathematik
#   55, 1858.
#
# Next: [03 Backbone and pyramid](03_backbone_and_pyramid.ipynb),
# where these layers are stacked and each learns to see a different
# size.
