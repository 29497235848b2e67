# ruff: noqa: E402

# %% [markdown]
# # 01 Gradients and the tape
#
# **Time** 2 to 3 hours with pencil, paper and exercises (an hour to read); it runs in under a minute.
# **Needs** Python, NumPy, and to know what a derivative and the chain rule are. No GPU, no downloads.
#
# Mask R-CNN learns by one vector: the gradient of its loss. Nobody will hand it to us here. Every layer
# of minimask has a backward pass that was derived on paper, and a *tape* of about a hundred lines chains
# them. So the first question of this course is the one that decides all others: **how do you know that a
# gradient is right?** That the loss falls does not answer it. At the end of this notebook a network
# learns, and learns well, from a gradient that points 45 to 86 degrees away from the true one.
#
# Afterwards you can
#
# 1. derive the backward pass of a layer, and write it;
# 2. say what the tape keeps, in which order it is walked, and why recursion would be a mistake;
# 3. check a gradient so that you would bet on it, and read what a failing check tells you.

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
import tracemalloc

import matplotlib.pyplot as plt
import numpy as np

from minimask import Function, GradientError, Tensor, exercises, gradcheck, tape, tutorial
from minimask import functions as F
from minimask.tutorial import BLUE, GREEN, GREY, ORANGE, RED, source


def say(message, indent=""):
    """Print a message of minimask's, each of its parts on a line of its own."""
    print(indent + str(message).replace("; ", f";\n{indent}  "))


# %% [markdown]
# ## The idea in a picture
#
# Take $y = \max(x w + x,\, 0)$ at $x = 2,\ w = 3$. Computing it means calling three Functions: a product,
# a sum, a ReLU. While they are called, minimask writes down who read whose result: that is the **tape**.
# Then `y.backward()` walks it from the end to the beginning, carrying the derivative of $y$ along.
#
# The picture below is not drawn by hand: nodes, arrows and red numbers are read off the tape. Blue is
# what flowed forward, red (dashed) what flows back: at each arrow, the derivative of $y$ with respect to
# what the blue arrow carries, *along this path*. The first cell below reads the tape; the last only
# draws, and may be skipped.

# %%
x, w = Tensor(2.0, requires_grad=True), Tensor(3.0, requires_grad=True)
y = F.relu(x * w + x)


def nodes_behind(tensor):
    """The calls that led to a Tensor, in the order in which they were made, each with its edges."""
    edges, waiting = {}, [tensor.creator]
    while waiting:
        node = waiting.pop()
        if node not in edges:
            edges[node] = list(node.edges)
            waiting += [edge[0] for edge in node.edges if isinstance(edge, tuple)]
    return dict(sorted(edges.items(), key=lambda item: item[0].order))


def eavesdrop(nodes, sent):
    """Let every node note, when the backward pass comes by, what it sends to each of its inputs."""

    def note(node, backward):
        def noting(*upstream):
            gradients = backward(*upstream)
            sent[node] = gradients if isinstance(gradients, tuple) else (gradients,)
            return gradients

        return noting

    for node in nodes:
        node.backward = note(node, node.backward)


nodes, sent = nodes_behind(y), {}
product = x.item() * w.item()  # the tape does not keep the values: why, we see below
made_by = dict(zip(nodes, (product, product + x.item(), y.item())))
eavesdrop(nodes, sent)
y.backward()
print(f"y = {y.item():g}, dy/dx = {x.grad:g}, dy/dw = {w.grad:g}")

# %%
passes = float(y.item() > 0)  # the ReLU
assert np.allclose([x.grad, w.grad], [passes * (w.item() + 1), passes * x.item()])


# %%
# alt: Graph of the tape: x and w lead into Multiply, its result and x once more into Add, then come ReLU and
#   y. Solid arrows carry 2, 3, 6, 8 and 8 forward; dashed ones carry 1 back along the chain, then 2 to w, and
#   two numbers to x: 3 from Multiply and 1 from Add.
def draw_tape(labels, values, nodes, sent, output):
    """Leaves on the left, then the calls as they were made: blue arrows forward, red ones back."""
    _, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    places = {leaf: (0.0, 1.1 - 2.2 * i) for i, leaf in enumerate(labels)}
    places |= {node: (2.0 * (i + 1), 0.0) for i, node in enumerate(nodes)}
    places[output] = (2.0 * len(nodes) + 1.6, 0.0)
    boxes = {}
    for thing, (u, v) in places.items():
        label = labels.get(thing) or ("y" if thing is output else type(thing).__name__)
        box = dict(boxstyle="round,pad=0.5", fc="#eeeeee" if thing in nodes else "white", ec=GREY)
        text = axes.text(u, v, label, ha="center", va="center", fontsize=12, bbox=box)
        boxes[thing] = text.get_bbox_patch()

    def arrows(begin, end, forward, back, bend):
        for one, other, colour, style in ((begin, end, BLUE, "-"), (end, begin, RED, "--")):
            rad = -bend if colour == BLUE else bend - 0.24
            shape = dict(arrowstyle="-|>", color=colour, ls=style, connectionstyle=f"arc3,rad={rad}")
            hold = dict(patchA=boxes[one], patchB=boxes[other], shrinkA=3, shrinkB=3)
            axes.annotate("", places[other], places[one], arrowprops=shape | hold)
        (u0, v0), (u1, v1) = places[begin], places[end]
        across = np.array([v0 - v1, u1 - u0])  # at right angles to the arrow
        for text, colour, where in ((forward, BLUE, bend / 2), (back, RED, bend / 2 - 0.12)):
            side = 0.2 if colour == BLUE else -0.2
            at = np.array([u0 + u1, v0 + v1]) / 2 + across * where + side * across / np.linalg.norm(across)
            axes.text(*at, f"{float(text):g}", color=colour, ha="center", va="center", fontsize=13)

    for node, edges in nodes.items():
        for edge, g in zip(edges, sent[node]):
            begin = edge[0] if isinstance(edge, tuple) else edge
            arrows(begin, node, values[begin], g, 0.45 if places[node][0] - places[begin][0] > 3 else 0.12)
    arrows(list(nodes)[-1], output, output.item(), 1.0, 0.12)
    axes.set(xlim=(-0.5, 8.2), ylim=(-1.5, 2.0), aspect="equal")
    axes.axis("off")


draw_tape({x: "x", w: "w"}, {x: x.item(), w: w.item()} | made_by, nodes, sent, y)
plt.show()

# %% [markdown]
# Two red numbers arrive at $x$: 3 through the product and 1 through the sum. They are **added**, 3 + 1 =
# 4, because $x$ reaches $y$ by two paths, and a change of $x$ travels along both. Forgetting that is the
# most common bug in hand-written backward passes. You will meet it again in the convolution (a pixel lies
# in several windows), in RoIAlign (a pixel lies in several boxes) and in the exercises.
#
# ## The mathematics
#
# Number the values in the order in which they are computed, $v_1, \dots, v_n$, each from some earlier
# ones, and let $L$ be the last. Write $\bar v_i = \partial L / \partial v_i$. If $v_i$ changes, $L$
# changes only through the values $v_j$ that *read* $v_i$, so
#
# $$\bar v_i \;=\; \sum_{j \text{ reads } i} \Big(\frac{\partial v_j}{\partial v_i}\Big)^{\!\top} \bar v_j ,
# \qquad \bar v_n = 1 .$$
#
# That is all of backpropagation. Read three things off the formula:
#
# * **A sum over the readers.** Gradients that arrive at one value are added.
# * **An order.** $\bar v_i$ is complete only when all its readers are done; since a reader has a higher
#   number, going through the numbers backwards is always right.
# * **Locality.** A layer $y = f(x)$ need not know anything about the network. It is handed $\bar y$,
#   called `gy` in minimask, and gives back $\bar x = J^\top \bar y$ with its own Jacobian
#   $J = \partial y / \partial x$. It never *forms* $J$: for a 3 x 3 convolution of 256 channels on a 200
#   x 300 map that would be $2 \cdot 10^{14}$ numbers.
#
# ### What it costs
#
# Finite differences need two evaluations of the network *for each parameter*. The backward pass gives all
# the derivatives at once, for the price of about two evaluations: one matrix product forward becomes two
# products backward, as we are about to see. Let us count multiplications in a small network:


# %%
class CountedMatMul(F.array.MatMul):
    """A matrix product that counts its multiplications, forward and backward."""

    multiplications = {"forward": 0, "backward": 0}

    def forward(self, a, b):
        self.size = a.shape[0] * a.shape[1] * b.shape[1]
        self.multiplications["forward"] += self.size
        return super().forward(a, b)

    def backward(self, gy):
        self.multiplications["backward"] += sum(self.needs) * self.size
        return super().backward(gy)


layers = [Tensor(np.full((200, 200), 0.01), requires_grad=True) for _ in range(4)]
x = np.ones((100, 200))
for w in layers:
    x = F.relu(CountedMatMul.apply(x, w))
x.mean().backward()

count, parameters = CountedMatMul.multiplications, sum(w.size for w in layers)
print(f"forward   {count['forward']:>18,} multiplications")
print(f"backward  {count['backward']:>18,}  ({count['backward'] / count['forward']:.2f} times that)")
print(f"differences {2 * parameters * count['forward']:>16,}  ({parameters:,} parameters, moved up and down)")

# %%
# not 2 times: the batch itself needs no gradient, which saves the first of all products
assert np.isclose(count["backward"] / count["forward"], 2 - 1 / len(layers))

# %% [markdown]
# ### One layer on paper: the matrix product
#
# $y_{ik} = \sum_j a_{ij} b_{jk}$. Who reads $a_{ij}$? Every $y_{ik}$ of row $i$, with the factor
# $b_{jk}$:
#
# $$\bar a_{ij} = \sum_k \bar y_{ik}\, b_{jk} = (\bar y\, b^\top)_{ij}, \qquad
#   \bar b_{jk} = \sum_i a_{ij}\, \bar y_{ik} = (a^\top \bar y)_{jk}.$$
#
# No rule to remember: write the formula with indices, ask who reads the element, sum over the rest. If
# the shapes fit, there is usually just one way to put the factors.
#
# ### And one with a full Jacobian: softmax
#
# $y_i = e^{x_i} / \sum_k e^{x_k}$. Every output reads every input:
# $\partial y_i / \partial x_j = y_i (\delta_{ij} - y_j)$. Then
#
# $$\bar x_j = \sum_i \bar y_i\, y_i (\delta_{ij} - y_j) = y_j \Big(\bar y_j - \sum_i \bar y_i y_i\Big),$$
#
# which costs a sum and a product, and no $K \times K$ matrix. Here is how both stand in minimask (this is
# printed from the package that you run, not copied into the notebook):

# %%
source(F.array.MatMul, F.activation.Softmax)

# %% [markdown]
# `forward` gets arrays, computes, and calls `self.save(...)` on what `backward` will read, and on nothing
# else. `backward` gets the gradient of the output and returns one gradient for each input. That is the
# whole contract of a **Function**. Let us write one.
#
# ## Your own Function
#
# Softplus, $y = \log(1 + e^x)$, a ReLU without the corner. Its derivative is the sigmoid,
# $e^x / (1 + e^x)$. As written, $e^{1000}$ overflows in the forward pass *and* in the derivative,
# although both results are harmless (1000 and 1). So the code below uses two identities that never
# exponentiate a positive number: $\log(1 + e^x) = \max(x, 0) + \log(1 + e^{-|x|})$ and
# $e^x/(1+e^x) = \tfrac12 (1 + \tanh \tfrac x2)$.


# %%
class Softplus(Function):
    """y = log(1 + exp x)."""

    def forward(self, x):
        self.save(x)
        return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))

    def backward(self, gy):
        (x,) = self.saved
        return gy * 0.5 * (1 + np.tanh(x / 2))


x = Tensor(np.array([-1000.0, -1.0, 0.0, 1.0, 1000.0]), requires_grad=True)
y = Softplus.apply(x)
y.backward(np.ones(5))
print("y      ", y.numpy())
print("dy / dx", x.grad)

# %%
assert np.isfinite(y.numpy()).all() and ((x.grad >= 0) & (x.grad <= 1)).all()

# %% [markdown]
# ## What the tape is
#
# `Softplus.apply(x)` makes an object, and calls it. The call runs `forward` and, if some input needs a
# gradient, records itself. (If memory runs out, the error says in which Function, and for inputs of which
# shapes.) Here is the recording:

# %%
source(Function.__call__, Function._record, Function.save)

# %% [markdown]
# The object itself is the node of the graph. An **edge** says where the gradient of an input has to go:
# `(creator, slot)`, "output number *slot* of that call", for something computed; the Tensor itself for a
# leaf, whose `.grad` is wanted; `None` for a constant. `order` counts the calls as they are made.
#
# What is *not* there is the input Tensors. The tape holds the call that made a value, but not the value.
# An array lives on only if some Function has saved it for its backward pass. We shall soon measure what
# that is worth.

# %%
rng = np.random.default_rng(0)
a, b = Tensor(rng.normal(size=(3, 4)), True), Tensor(rng.normal(size=(4, 2)), True)
labels = np.array([0, 1, 1])
loss = F.softmax_cross_entropy(F.relu(a @ b) * 2.0, labels)


def shown(edge):
    if isinstance(edge, tuple):
        return f"{type(edge[0]).__name__} (output {edge[1]})"
    return f"leaf {'ab'[(edge is b)]}" if edge is not None else "constant"


for node, edges in nodes_behind(loss).items():
    print(f"{type(node).__name__:<20} reads {', '.join(shown(edge) for edge in edges)}")

# %% [markdown]
# ## Walking it back
#
# The other half of the tape is the walk. `pending` holds, for each call reached, what has arrived so far
# of the gradients of its outputs; a heap says which of these calls was created last.

# %%
source(tape.run_backward, tape._add)

# %% [markdown]
# `_add` is careful about *whose* array it writes to. The backward pass of a sum hands one and the same
# array to both of its inputs; adding to it in place for one of them would change the gradient of the
# other. So the tape writes only into sums that it has made itself, and into arrays that nobody else
# holds: Python counts the references to an array, and a view counts as one. An exercise comes back to
# this.
#
# Why a heap and a counter, when three lines of recursion ("send the gradient to my creators, and they to
# theirs") look as if they would do? Because recursion does not wait. A call that is reached by two paths
# is walked twice, and so is everything behind it; after a second such fork it is four times. Each path
# adds a correct part of the sum; there are just too many paths. Watch it: `x = x + x`, over and over.


# %%
# alt: Calls of backward, on a logarithmic axis, over 1 to 16 additions in a row. Recursion rises as a
#   straight line, doubling with each addition, to about 65,000 calls; the heap needs only one call per
#   addition, 16 at the end.
def recursive_backward(node, gradient, count):
    """What one writes first: pass every gradient on as soon as it arrives."""
    count[0] += 1
    gradients = node.backward(gradient)
    for edge, g in zip(node.edges, gradients if isinstance(gradients, tuple) else (gradients,)):
        if isinstance(edge, tuple):
            recursive_backward(edge[0], g, count)
        elif edge is not None:
            edge.grad = g if edge.grad is None else edge.grad + g


def doubled(depth):
    leaf = top = Tensor(np.ones(1), requires_grad=True)
    for _ in range(depth):
        top = top + top
    return leaf, top


depths, calls = np.arange(1, 13 if FAST else 17), []
for depth in depths:
    leaf, top = doubled(depth)
    count = [0]
    recursive_backward(top.creator, np.ones(1), count)
    calls.append(count[0])
    assert leaf.grad[0] == 2.0**depth  # right, but at what a price

_, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
axes.semilogy(depths, calls, "o-", color=ORANGE, label="recursion: a call for each path")
axes.semilogy(depths, depths, "s-", color=BLUE, label="heap: a call for each node")
axes.set(xlabel="additions in a row", ylabel="calls of backward")
axes.legend()
plt.show()

# %% [markdown]
# Every residual block of a ResNet is such a fork: a ResNet-50 has 16 of them, so at least
# $2^{16} = 65\,536$ paths lead from the loss to its first layer. And there is a second trap: Python's
# stack ends at a depth of about a thousand.

# %%
x = chain = Tensor(np.ones(1), requires_grad=True)
for _ in range(20_000):
    chain = chain + 1.0
try:
    recursive_backward(chain.creator, np.ones(1), [0])
except RecursionError as error:
    print("recursion:", error)
x.grad = None
chain.backward()
print(f"minimask:  20,000 calls, gradient {x.grad[0]:g}")

# %%
assert x.grad[0] == 1.0

# %% [markdown]
# ## What the tape keeps, and when it lets go
#
# The memory of training is the memory of the tape, so look at it. `Probe` is a Function that changes
# nothing and notes how much memory is in use when data passes through it, forward and backward. We put
# one after each of 24 blocks $x \leftarrow \max(0.9\, x + 0.1,\, 0)$ on arrays of 1 MiB. A block makes
# three calls: the product by a constant and the sum save no array, and the ReLU saves its output.

# %%
source(F.array.Add, F.array.Multiply, F.activation.ReLU)


# %%
# alt: Memory alive in MiB over the blocks passed, 24 forward and 24 backward. A tape that holds its inputs
#   climbs to 74 MiB and stays there; minimask's climbs to a peak of 26 MiB at the turn and falls to about 4
#   on the way back.
class Probe(Function):
    """Hands everything on, and notes the memory in use."""

    def __init__(self, log):
        self.log = log

    def forward(self, x):
        self.log.append(tracemalloc.get_traced_memory()[0] / 2**20)
        return x

    def backward(self, gy):
        self.log.append(tracemalloc.get_traced_memory()[0] / 2**20)
        return gy


def memory(blocks, hold):
    """MiB in use along a forward and a backward pass; with `hold`, every Tensor is kept till the end."""
    log, held = [], []
    tracemalloc.start()
    x = Tensor(np.ones(2**17), requires_grad=True)  # 1 MiB
    for _ in range(blocks):
        for step in (lambda x: x * 0.9, lambda x: x + 0.1, F.relu, lambda x: Probe.apply(x, log=log)):
            x = step(x)
            held.append(x if hold else None)
    x.sum().backward()
    tracemalloc.stop()
    return log


blocks = 24
_, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
curves = {}
for hold, colour, label in (
    (True, ORANGE, "a tape that holds its inputs"),
    (False, BLUE, "minimask: saved arrays only"),
):
    curves[hold] = memory(blocks, hold)
    axes.plot(curves[hold], ".-", color=colour, label=label)
axes.axvline(blocks - 0.5, color=GREY, lw=1)
axes.text(blocks - 1, 4, "forward", ha="right", color=GREY)
axes.text(blocks, 4, "backward", ha="left", color=GREY)
axes.set(xlabel="blocks passed", ylabel="MiB alive", ylim=(0, None))
axes.legend(loc="upper left")
plt.show()
print(f"peaks: {max(curves[True]):.0f} and {max(curves[False]):.0f} MiB")

# %%
assert max(curves[True]) - max(curves[False]) > 1.5 * blocks  # three arrays a block, or one
assert curves[False][-1] < 8  # at the end, nothing but the last block is left

# %% [markdown]
# Going forward, the tape grows by one array per block instead of three. Going backward, it shrinks: a
# node is freed as soon as it is done. The price is that the graph is gone afterwards, and minimask says
# so rather than give you half a gradient:

# %%
try:
    loss.backward()
    loss.backward()
except RuntimeError as error:
    say(error)

# %% [markdown]
# ## Is it right? Finite differences, and their two errors
#
# A derivative is a limit, so compare with a difference. For $\varphi(t) = \langle u, f(x + t v) \rangle$,
# with random directions $v$ of the inputs and weights $u$ of the outputs,
#
# $$\varphi'(0) = \langle u, J v\rangle = \langle J^\top u, v \rangle .$$
#
# The left side we estimate without any derivative, the right side is what `backward(u)` gives, times $v$.
# Both sides are single numbers. If $J^\top u$ is wrong in any element, a random $v$ will see it.
#
# How small should the step be? By Taylor,
#
# $$\frac{\varphi(h) - \varphi(-h)}{2h} = \varphi'(0) + \frac{h^2}{6} \varphi'''(0) + \dots$$
#
# so **truncation** falls with $h^2$. But $\varphi$ is computed to a relative
# $\varepsilon \approx 2 \cdot 10^{-16}$ only, and the division by $h$ magnifies this **rounding** to
# about $\varepsilon |\varphi| / h$. Smaller steps are better until they are worse; the two meet where
# $h^3 \approx \varepsilon$:
#
# $$h \approx \varepsilon^{1/3} \approx 6 \cdot 10^{-6}, \qquad
# \text{error} \approx \varepsilon^{2/3} \approx 4 \cdot 10^{-11}.$$
#
# With five points the truncation is $h^4$, and they meet at $h \approx \varepsilon^{1/5}$, error
# $\varepsilon^{4/5} \approx 3 \cdot 10^{-13}$; the textbook's $(\varphi(h) - \varphi(0))/h$ never gets
# below $\varepsilon^{1/2} \approx 10^{-8}$. All of that can be seen, in a network of a matrix product,
# our Softplus, and a softmax:

# %%
# alt: Relative error over the step h, both logarithmic, in float64 and float32: the curves are Vs that fall
#   along the rounding line and rise with h, its square or its fourth power. In float64 central differences
#   get to about 1e-11, five points to 1e-13; in float32 all errors are 1 below a step of 1e-7, and no valley
#   is deep.
inputs = [rng.normal(size=(5, 6)), rng.normal(size=(6, 4))]
steps = np.logspace(-13, 0, 27 if FAST else 79)


def network(x, w):
    return F.softmax(Softplus.apply(x @ w))


_, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
double = tutorial.step_errors(network, inputs, steps=steps)
double.plot(axes[0], "values in float64")
single = tutorial.step_errors(network, inputs, steps=steps, dtype=np.float32)
single.plot(axes[1], "values in float32")
plt.show()

print("best error, a single lucky step aside")
for kind in double.errors:
    print(f"  {kind:<12} float64 {double.best(kind):.0e}, float32 {single.best(kind):.0e}")

# %%
assert (
    double.best("one-sided") < 1e-6 and double.best("central") < 1e-9 and double.best("five points") < 1e-11
)
assert single.best("central") > 1e-7

# %% [markdown]
# The estimates are right up to a factor of ten: rounding errors of both signs partly cancel, so that the
# best errors are smaller. Now look at the right half. In float32, with $\varepsilon \approx 10^{-7}$,
# there is no good step any more: central differences get no better than $2 \cdot 10^{-6}$, at a step that
# you would have to guess, and at the step that is best for float64 the error is near one percent. **Check
# gradients in float64**, even if you train in float32.
#
# `minimask.gradcheck` does just that: five points, $h = 10^{-5}$, several random $v$, for each input
# alone and for all together. Its *relative error* is the one in the plots above, $|n - d| / (|n| + |d|)$
# for the numeric slope $n$ and the derived one $d$: 0 where they agree, 1 where the sign is wrong, and
# half the share by which a nearly right $d$ is off. It wants less than $10^{-6}$, about four
# orders of magnitude above what rounding does to a right gradient.

# %%
report = gradcheck(network, inputs)
print(f"worst relative error {report.worst_error:.1e}, at {report.where}")

# %%
assert report.worst_error < 1e-8

# %% [markdown]
# ### Plant a bug
#
# A check that has never failed proves nothing, so make it fail. Here are six wrong versions of softmax's
# backward pass, from the crude to the subtle, and what the check says about each. Where random directions
# disagree, it looks at single elements, and names the worst and its ratio, which often gives the mistake
# away.

# %%
BUGS = {
    "the sign": lambda gy, y: -y * (gy - (gy * y).sum(-1, keepdims=True)),
    "a factor 2": lambda gy, y: 2 * y * (gy - (gy * y).sum(-1, keepdims=True)),
    "no sum: a diagonal Jacobian": lambda gy, y: y * gy * (1 - y),
    "the sum over the wrong axis": lambda gy, y: y * (gy - (gy * y).sum(0, keepdims=True)),
    "zeros": lambda gy, y: 0 * y,
    "one element of 20 off by 1 %": lambda gy, y: (
        y
        * (gy - (gy * y).sum(-1, keepdims=True))
        * np.where(np.arange(y.size).reshape(y.shape) == 7, 1.01, 1.0)
    ),
}


class Buggy(F.activation.Softmax):
    def __init__(self, bug):
        super().__init__()
        self.bug = BUGS[bug]

    def backward(self, gy):
        return self.bug(gy, *self.saved)


def buggy(bug):
    return lambda x: Buggy.apply(x, bug=bug)


x = rng.normal(size=(5, 4))
for bug in BUGS:
    try:
        gradcheck(buggy(bug), [x])
        raise AssertionError(f"{bug} was not noticed")
    except GradientError as error:
        print(bug)
        say(error, indent="    ")

# %% [markdown]
# ### Blind checks
#
# Many tutorials check `f(x).sum()`, as if $u$ were all ones. For softmax that is worthless: the outputs
# sum to 1 whatever $x$ is, so the true gradient of the sum is 0, and a backward pass with the wrong sign,
# or with all zeros, gives 0 as well. Batch and group normalisation are blind in the same way.


# %%
def check_of_the_sum(bug):
    return gradcheck(lambda x: buggy(bug)(x).sum(), [x], raise_error=False)


blind = [bug for bug in BUGS if check_of_the_sum(bug)]
print("these pass the check of the sum:", "; ".join(blind))

# %%
assert blind == ["the sign", "a factor 2", "zeros", "one element of 20 off by 1 %"]

# %% [markdown]
# ## Kinks
#
# A ReLU has no derivative at 0, and near 0 a difference of step $h$ reaches across the corner. Below on
# the left, one of ten inputs lies at a distance of $10^{-4}$ from it, on the right at a distance of 1.
# Elsewhere the function is linear: there is no truncation at all, and the *largest* step is the best one,
# until it reaches the corner (red line).


# %%
# alt: Two plots of the relative error over the step for a ReLU, one input lying 0.0001 or 1 from its corner.
#   In both the error falls along the rounding line up to a vertical line at that distance; on the left it
#   jumps there from about 1e-11 to 4e-3 and stays.
def with_corner(distance):
    x = np.linspace(4.0, 5.0, 10)
    x[3] = distance
    return x


_, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
for axis, distance in zip(axes, (1e-4, 1.0)):
    errors = tutorial.step_errors(
        F.relu, [with_corner(distance)], kinds=("central", "five points"), steps=steps
    )
    errors.plot(axis, f"one input {distance:g} from the corner")
    axis.axvline(distance, color=RED, lw=1)
plt.show()

report = gradcheck(F.relu, [with_corner(0.0)], raise_error=False)
print("gradcheck at the corner:")
say(report.kink, indent="  ")

# %%
assert report.kink and report.mismatch is None  # not a wrong gradient, and not called one

# %% [markdown]
# A check has to tell the two apart, for it would be useless if it cried "wrong!" at every ReLU.
# `gradcheck` compares the slopes on both sides, with several steps. A kink says nothing about the
# gradient: move the inputs.
#
# At the corner itself there is no right answer, and minimask takes 0. That has a consequence which
# surprises even people who have used automatic differentiation for years. Mathematically,
# $\max(x, 0) - \max(-x, 0) = x$, so its derivative is 1 everywhere.

# %%
x = Tensor(np.array([-1.0, 0.0, 1.0]), requires_grad=True)
y = F.relu(x) - F.relu(x * -1.0)
y.backward(np.ones(3))
print("y      ", y.numpy())
print("dy / dx", x.grad)

# %%
assert np.array_equal(y.numpy(), x.numpy()) and np.array_equal(x.grad, [1, 0, 1])

# %% [markdown]
# Each part is right, the chain rule is right, and the result at 0 is wrong: the chain rule asks for
# derivatives to exist. (In PyTorch it is the same. It is harmless because hardly anything stays *exactly*
# on a corner, unless someone initialises it there: think of all-zero biases behind an all-zero image
# border.)
#
# ## The experiment: learning from a wrong gradient
#
# "The loss goes down, so the backward pass must be right." Let us see. A network of three layers has to
# tell two spirals apart. In the backward pass of its linear layers, $\bar x = \bar y\, W$, we replace $W$
# by another matrix $B$:
#
# * `right`: $B = W$;
# * `random`: $B$ is drawn once, at random, and never changed. What the lower layers are told has nothing
#   to do with how the upper layers use them;
# * `nothing`: $B = 0$, so that only the last layer learns. This is the control.


# %%
# alt: Left, the share classified correctly over 2000 steps, three runs each: with the right B it is 1 within
#   500 steps, with a random B nearly 1 later on, with nothing 0.6 to 0.72 at the end. Right, angles to the
#   true gradient for random B: about 75 to 85 degrees for all weights in the end, and for the middle layer a
#   fall from 110 to about 40.
class FeedbackLinear(Function):
    """y = x W^T, whose backward pass uses B in place of W."""

    def forward(self, x, w, b):
        self.save(x, b)
        return x @ w.T

    def backward(self, gy):
        x, b = self.saved
        return gy @ b, gy.T @ x, None  # the gradient of W itself is right


WIDTH, POINTS = 24, 400


def spirals(rng):
    t, label = rng.uniform(0.3, 1.0, POINTS), rng.integers(0, 2, POINTS)
    angle = 12 * t + np.pi * label
    x = np.stack([t * np.cos(angle), t * np.sin(angle)], axis=1) + rng.normal(0, 0.02, (POINTS, 2))
    return np.concatenate([x, np.ones((POINTS, 1))], axis=1), label  # the column of ones: a bias


def logits(x, weights, feedback):
    for i, (w, b) in enumerate(zip(weights, feedback)):
        x = FeedbackLinear.apply(F.relu(x) if i else x, w, b)
    return x


def gradient(x, label, weights, feedback):
    for w in weights:
        w.grad = None
    F.softmax_cross_entropy(logits(x, weights, feedback), label).backward()
    return [w.grad for w in weights]


def degrees(a, b):
    """The angle between two lists of arrays, each taken as one long vector."""
    a, b = (np.concatenate([part.ravel() for part in parts]) for parts in (a, b))
    return np.degrees(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1)))


def learn(kind, steps, seed):
    """Every 50 steps: step, accuracy, angle between used and true gradient, the middle layer's alone."""
    rng = np.random.default_rng(seed)
    shapes = ((WIDTH, 3), (WIDTH, WIDTH), (2, WIDTH))
    weights, drawn = ([rng.normal(0, np.sqrt(2 / s[1]), s) for s in shapes] for _ in range(2))
    weights = [Tensor(w, requires_grad=True) for w in weights]
    true = [w.data for w in weights]  # these very arrays: they change along
    feedback = {"right": true, "random": drawn, "nothing": [np.zeros(s) for s in shapes]}[kind]
    (x, label), velocity, log = spirals(np.random.default_rng(7)), [np.zeros(s) for s in shapes], []
    for step in range(steps + 1):
        used = gradient(x, label, weights, feedback)
        if step % 50 == 0:
            right = (logits(x, weights, feedback).numpy().argmax(axis=1) == label).mean()
            wanted = gradient(x, label, weights, true)
            angles = (degrees(used, wanted), degrees(used[1:2], wanted[1:2])) if kind == "random" else (0, 0)
            log.append((step, right, *angles))
        for w, v, g in zip(weights, velocity, used):
            v *= 0.9
            v -= 0.05 * g
            w.data += v
    return np.array(log).T


_, (left, right) = plt.subplots(1, 2, figsize=(11, 3.9), layout="constrained")
seeds, steps, final = (0,) if FAST else (0, 1, 2), 300 if FAST else 2000, {}
begun = []
for kind, colour in (("right", BLUE), ("random", ORANGE), ("nothing", GREEN)):
    runs = [learn(kind, steps, seed) for seed in seeds]
    final[kind] = [float(run[1, -1]) for run in runs]
    for i, (step, accuracy, whole, middle) in enumerate(runs):
        left.plot(step, accuracy, color=colour, label=kind if i == 0 else None)
        if kind == "random":
            right.plot(step, whole, color=ORANGE, label="all weights" if i == 0 else None)
            right.plot(step, middle, color=RED, ls="--", label="the middle layer's only" if i == 0 else None)
            begun.append(round(middle[0]))
            assert whole[1:].max() < 90  # so that a small step along it goes downhill
left.set(xlabel="step", ylabel="share classified correctly", ylim=(0.4, 1.02), title="learning with B ...")
left.legend(loc="lower right")
right.axhline(90, color=GREY, lw=1)
right.text(steps, 91, "no relation", color=GREY, ha="right", va="bottom")
right.set(
    xlabel="step", ylabel="degrees", ylim=(0, 130), title="random B: angle between used and true gradient"
)
right.legend(loc="lower left")
plt.show()
for kind, shares in final.items():
    print(f"{kind:<8} classified correctly at the end:", *(f"{share:.1%}" for share in shares))
print("random B: the middle layer's angle begins at", *begun, "degrees")
assert min(begun) > 90
if not FAST:
    assert min(final["right"]) > 0.99 and min(final["random"]) > 0.95 and max(final["nothing"]) < 0.8

# %% [markdown]
# The network learns the spirals from a gradient that, once under way, is off by 45 to 86 degrees, with
# lower layers that are told random things. The dashed lines show the reason: they begin beyond 90 degrees
# (at 108 to 113), which is worse than no relation at all, and then *fall*. Nobody turns the feedback
# towards the weights; the weights turn towards the feedback, because the last layer, whose gradient is
# right, finds a use for whatever the layers below can be taught. This is *feedback alignment* (Lillicrap
# et al., 2016).
#
# What it means for us: a small step in any direction within 90 degrees of the right one leads downhill. A
# missing factor, a lost term, a gradient that is overwritten where it should be added: training goes on,
# a little worse, and nothing complains. A falling loss says that the angle is below 90 degrees. The check
# says that it is 0.

# %%
x, label = spirals(rng)
w, b = rng.normal(size=(2, 2, 3))
report = gradcheck(lambda x, w: FeedbackLinear.apply(x, w, Tensor(b)), [x[:5], w], raise_error=False)
say(f"gradcheck: {report.mismatch}")

# %%
assert not report

# %% [markdown]
# ## Everything in minimask is checked
#
# Every Function in the package has rows in a table of cases, and the tests fail for one that has none.
# Here are three of them; `minimask gradcheck` on the command line prints all.

# %%
from minimask.lessons.gradient_cases import all_functions, run_table

print(len(all_functions()), "Functions in the package\n")

# %%
assert run_table(["relu", "softmax", "matmul"])

# %% [markdown]
# ## Exercises
#
# `exercises.check` runs your function on several inputs and says that it is right, or where it is wrong,
# and which of the common mistakes it looks like. Change the cells until it says "right". Solutions are in
# `tutorials/solutions/`, but a wrong attempt teaches more than they do.
#
# **1.** The backward pass of a ReLU. The attempt below is what one writes first.

# %%
exercises.describe("relu_backward")


# %%
def my_relu_backward(gy, x):
    return (x > 0).astype(x.dtype)


exercises.check("relu_backward", my_relu_backward)

# %% [markdown]
# **2.** Softmax and cross-entropy in one, averaged over the rows. Derive it first: with
# $p = \mathrm{softmax}(x)$ and $L = -\log p_t$, insert $\bar p_i = -\delta_{it} / p_t$ into the formula
# for softmax above. Almost everything cancels.

# %%
exercises.describe("softmax_cross_entropy_backward")


# %%
def my_softmax_cross_entropy_backward(gy, logits, labels):
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    p[np.arange(len(p)), labels] -= 1
    return gy * p


exercises.check("softmax_cross_entropy_backward", my_softmax_cross_entropy_backward)

# %% [markdown]
# **3.** The tape itself. The list is in the order of creation, so you need no heap; but a value may be
# used twice, a call may lead nowhere, and a call may hand you the same array for two inputs.

# %%
exercises.describe("tape_backward")


# %%
def my_tape_backward(tape, output, gradient):
    gradients = {output: gradient}
    for call in reversed(tape):
        for name, g in zip(call.inputs, call.backward(gradients[call.output])):
            gradients[name] = g
    return gradients


exercises.check("tape_backward", my_tape_backward)

# %% [markdown]
# **4.** On paper: $y = x / \lVert x \rVert$ for a vector $x$. Derive $\bar x$, write it as a Function,
# and let `gradcheck` be the judge.
#
# <details><summary>Answer</summary>
#
# With $n = \lVert x \rVert$: $\partial y_i / \partial x_j = \delta_{ij} / n - x_i x_j / n^3$, so
# $\bar x = (\bar y - y \langle y, \bar y \rangle) / n$. The part along $y$ is removed, since stretching
# $x$ does not change $y$.
#
# </details>
#
# **5.** Which of Add, Multiply, ReLU, Softmax, MatMul, Sum save an array of the size of their input?
# Which of them could save *less* than they do, and what would it cost?
#
# <details><summary>Answer</summary>
#
# Add and Sum save shapes only. ReLU and Softmax save their output, which the next layer often holds
# anyway; ReLU could save one bit for each element, but would have to pack and unpack it. Multiply and
# MatMul need both inputs, but each only for the other's gradient: when the weights are frozen, the
# activations need not be kept (`source(F.conv.Conv2d)` shows how a convolution does it).
#
# </details>
#
# **6.** There is a difference quotient without cancellation. If $f$ is analytic,
# $\operatorname{Im} f(x + i h v) / h$ is the derivative up to $O(h^2)$, and nothing is subtracted, so
# $h = 10^{-200}$ is fine. Do it for softmax, `np.exp(x) / np.exp(x).sum()`, and compare with `F.softmax`.
# Then for `np.maximum(x, 0)` and for `np.abs(x)`: which of the two fails, and does anything tell you?
#
# <details><summary>Answer</summary>
#
# For softmax the error is $10^{-16}$ at every $h$ below $10^{-8}$: no valley, no best step. `np.maximum`
# compares the real parts and keeps the imaginary part of the winner, so it is right away from the corner.
# `np.abs` of a complex number is its modulus, which is not analytic: the result has no imaginary part,
# the "derivative" is 0, and nothing tells you. A cast to float does the same. So use this check only on
# code that you know.
#
# </details>
#
# **7.** Give `gradcheck` a function of ten thousand inputs whose gradient is wrong in one element. How
# often does one random direction overlook it, at a tolerance of $10^{-6}$, if the error is 1 %? If it is
# 0.01 %? What do four directions change?
#
# <details><summary>Answer</summary>
#
# A sum of ten thousand terms of random sign is about 100 times as large as one term. An element that is
# off by 1 % changes it by $10^{-4}$ of itself, a relative error of $5 \cdot 10^{-5}$: always seen. Off by
# 0.01 %, the error is $5 \cdot 10^{-7}$ for a typical direction, and only the directions whose sum
# happens to be small see it: 37 in 100. Four directions overlook it in 16 of 100 tries. This is why
# `gradcheck` takes several, with no element near 0 in any of them; and why one also checks small inputs,
# in which an element counts for more.
#
# </details>
#
# ## Read on
#
# * minimask's tape in full: `source(tape, minimask.autograd)`, 800 lines with comments and arithmetic.
#   The check: `source(minimask.gradient_check)`.
# * A. Griewank, A. Walther, *Evaluating Derivatives*, 2nd ed., SIAM 2008: the cost of a backward pass,
#   and trading memory for time.
# * T. Lillicrap, D. Cownden, D. Tweed, C. Akerman, *Random synaptic feedback weights support error
#   backpropagation for deep learning*, Nature Communications 7, 2016.
# * W. Squire, G. Trapp, *Using complex variables to estimate derivatives of real functions*, SIAM Review
#   40, 1998 (exercise 6).
#
# Next: [02 Convolution](02_convolution.ipynb),
# where a pixel lies in several windows and collects the sum of their gradients.
