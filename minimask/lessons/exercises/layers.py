"""Exercises about the tape and the layers: the answers come from minimask's own functions.

Shapes: R rows, K classes; N images, C channels in, O channels out, H x W in, P x Q out, kernel KH x KW.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from minimask import functions as F
from minimask.functions.activation import softmax_array
from minimask.kernels import im2col as plain
from minimask.kernels.geometry import Geometry
from minimask.lessons.exercises.exercise import exercise, gradients

# --------------------------------------------------------------------------------------------- the tape


class Call(NamedTuple):
    """One call on the tape: the names of what it read and made, and its backward pass."""

    inputs: tuple[str, ...]
    output: str
    backward: Callable  # gradient of the output -> tuple with the gradient of each input


def _tapes(rng) -> dict[str, tuple]:
    x, w, gy = rng.normal(size=(3, 4))

    def times(one, other):
        return lambda g: (g * other.astype(g.dtype), g * one.astype(g.dtype))

    product = Call(("x", "w"), "a", times(x, w))
    total = Call(("a", "x"), "b", lambda g: (g, g))
    aside = Call(("b",), "c", lambda g: (-g,))
    again = Call(("b", "a"), "d", times(w, x))
    both = Call(("d", "b"), "y", lambda g: (g, g))
    turned = Call(("b", "d"), "y", lambda g: (g, g))
    square = Call(("y", "y"), "z", times(x, x))
    return {
        "values used twice": ([product, total, again, both], "y", gy),
        "a value read late before one read early": ([product, total, again, turned], "y", gy),
        "a call that leads nowhere": ([product, total, aside, again, both], "y", gy),
        "calls after the output": ([product, total, again, both, square], "b", gy),
        "twice the same input": ([product, total, again, both, square], "z", gy),
        "no calls": ([], "y", gy),
    }


def _walk(tape, output, gradient, order: int = -1, add: Callable = operator.add) -> dict:
    """The right backward pass, or a wrong one: in another order, or with another way to add."""
    gradients = {output: gradient.copy()}
    for call in tape[::order]:
        if call.output in gradients:
            for name, g in zip(call.inputs, call.backward(gradients[call.output])):
                gradients[name] = add(gradients[name], g) if name in gradients else g
    return gradients


@exercise(
    _tapes,
    {
        "overwritten: a value used twice gets a gradient from each use": [
            partial(_walk, add=lambda _, g: g),
            partial(_walk, add=lambda g, _: g),
        ],
        "added in place, into another value's gradient: make a new sum": partial(_walk, add=operator.iadd),
        "walked forwards: the last call comes first": partial(_walk, order=1),
    },
)
def tape_backward(tape, output, gradient):
    """The backward pass over a tape.

    tape : list of calls, in the order in which they were computed. call.inputs is a tuple of names of values,
        call.output the name of the value it made, call.backward(g) gives, from the gradient of that value, a
        tuple with the gradient of each input; several of these may be the same array.
    output : str, name of the value to differentiate
    gradient : array, the gradient of that value

    Give gradients : dict, by name the gradient of every value that the output was computed from, and of the
    output itself.
    """
    return _walk(tape, output, gradient)


# ------------------------------------------------------------------------------------ pointwise and losses


@exercise(
    lambda rng: {
        "normal numbers": tuple(rng.normal(size=(2, 3, 4))),
        "zeros": (rng.normal(size=(2, 3)), np.array([[0.0, -0.0, 2.0], [-3.0, 0.0, 0.0]])),
        "no rows": (np.zeros((0, 4)),) * 2,
    },
    {
        "gy left out: the chain rule multiplies the slope by it": dict(gy=lambda a: a.gy**0),
        "the mask is taken from gy: it says where x was positive": dict(x=lambda a: a.gy),
        "let through where x is negative": dict(x=lambda a: -a.x),
        "let through where x is 0: there, too, nothing passes": lambda gy, x: gy * (x >= 0),
        "this is the forward pass": lambda gy, x: np.maximum(x, 0),
    },
)
def relu_backward(gy, x):
    """The gradient of y = max(x, 0).

    gy : (R, K) float, gradient of y
    x : (R, K) float

    Give gx : (R, K), gradient of x; 0 where x is 0.
    """
    return gradients(F.relu, gy, x)[0]


def _cross_entropy(gy, logits, labels, axis: int = 1, at_label: float = 1.0, softmax=softmax_array):
    is_label = np.arange(logits.shape[1]) == labels[:, None]  # (R, K)
    return gy * (softmax(logits, axis) - at_label * is_label) / len(logits)


def _careless_softmax(logits, axis):
    e = np.exp(logits)
    return e / e.sum(axis=axis, keepdims=True)


@exercise(
    lambda rng: {
        "five rows": (np.array(0.7), rng.normal(size=(5, 4)), rng.integers(0, 4, 5)),
        "large logits": (np.array(1.0), 1000 * rng.normal(size=(5, 4)), rng.integers(0, 4, 5)),
    },
    {
        "not divided by the number of rows: the loss is a mean": dict(gy=lambda a: a.gy * len(a.labels)),
        "gy left out": dict(gy=lambda a: a.gy**0),
        "1 is not subtracted at the labels": partial(_cross_entropy, at_label=0.0),
        "softmax along the wrong axis": partial(_cross_entropy, axis=0),
        "divided by the number of classes, not of rows": (
            lambda gy, logits, labels: _cross_entropy(gy, logits, labels) * len(logits) / logits.shape[1]
        ),
        "exp of large logits overflows: subtract each row's maximum first": partial(
            _cross_entropy, softmax=_careless_softmax
        ),
    },
)
def softmax_cross_entropy_backward(gy, logits, labels):
    """The gradient of y = mean over rows of -log softmax(logits)[label].

    gy : () float, gradient of y
    logits : (R, K) float; may be large: exp(1000) overflows
    labels : (R,) int in [0, K)

    Give gx : (R, K), gradient of the logits.
    """
    return gradients(lambda x: F.softmax_cross_entropy(x, labels), gy, logits)[0]


# -------------------------------------------------------------------------------------------- convolution

FLIPPED = (Ellipsis, slice(None, None, -1), slice(None, None, -1))
ONE_SIDED = "padded on one side only: window p begins at p stride - padding"


def _padded_behind(x, padding: int):
    """All of the padding at the end of each axis, so that the first window begins at pixel 0."""
    return np.pad(x, ((0, 0), (0, 0), (0, 2 * padding), (0, 2 * padding)))


def _stride_left_out(x, kernel, stride, padding):
    """As many windows as there should be, but each one pixel after the other."""
    p, q = im2col(x, kernel, stride, padding).shape[4:]
    return im2col(x, kernel, 1, padding)[..., :p, :q]


def _rounded_up(length: int, kernel: int, stride: int, padding: int) -> int:
    """A length with which a last, partial window is counted, too."""
    return length + (-(length + 2 * padding - kernel)) % stride


def _with_partial_windows(x, kernel, stride, padding):
    """x with zeros behind, so that partial windows at its end become whole ones."""
    sides = zip(x.shape[2:], kernel)
    return np.pad(x, ((0, 0), (0, 0), *((0, _rounded_up(n, k, stride, padding) - n) for n, k in sides)))


STRIDE = "the stride left out: window p begins at p stride - padding"
NOT_PADDED = "not padded: zeros belong around x"
PARTIAL = "rounded up: a window that reaches beyond the padding does not count"


def _convolutions(rng, *wanted: str) -> dict[str, tuple]:
    cases = {}
    for name, n, size, kernel, stride, padding in (  # height is not width, and strides leave rows over
        ("stride 2", 2, (8, 10), (3, 3), 2, 1),
        ("a wide kernel", 2, (7, 8), (2, 4), 1, 2),
        ("no padding", 1, (4, 6), (2, 3), 1, 0),
        ("stride beyond the kernel", 2, (8, 6), (2, 1), 3, 1),
        ("no images", 0, (5, 6), (3, 2), 1, 1),
    ):
        x, w, b = rng.normal(size=(n, 3, *size)), rng.normal(size=(6, 3, *kernel)), rng.normal(size=6)
        gy = rng.normal(size=F.conv2d(x, w, b, stride, padding).shape)
        known = dict(x=x, w=w, b=b, gy=gy, kernel=kernel, stride=stride, padding=padding)
        cases[name] = tuple(known[k] for k in wanted)
    return cases


@exercise(
    lambda rng: _convolutions(rng, "x", "kernel", "stride", "padding"),
    {
        ONE_SIDED: dict(x=lambda a: _padded_behind(a.x, a.padding), padding=lambda a: 0),
        "the kernel's elements upside down": lambda *a: im2col(*a)[:, :, ::-1, ::-1],
        STRIDE: _stride_left_out,
        PARTIAL: dict(x=lambda a: _with_partial_windows(a.x, a.kernel, a.stride, a.padding)),
        NOT_PADDED: dict(padding=lambda a: 0),
    },
)
def im2col(x, kernel, stride, padding):
    """The windows that a convolution reads, as one array.

    x : (N, C, H, W) float
    kernel : (KH, KW)
    stride, padding : int, the same in both directions

    Give cols : (N, C, KH, KW, P, Q), P = (H + 2 padding - KH) // stride + 1, Q likewise;
    cols[n, c, i, j, p, q] = x[n, c, p stride + i - padding, q stride + j - padding], 0 where that is outside.
    """
    return plain.im2col(x, Geometry.of(x.shape, (1, x.shape[1], *kernel), stride, padding, 1, 1))


def _product_without_stride(x, w, b, stride, padding):
    p, q = conv2d_forward(x, w, b, stride, padding).shape[2:]
    return conv2d_forward(x, w, b, 1, padding)[..., :p, :q]


@exercise(
    lambda rng: _convolutions(rng, "x", "w", "b", "stride", "padding"),
    {
        "the kernel upside down: networks correlate, they do not convolve": dict(w=lambda a: a.w[FLIPPED]),
        "the kernel's rows and columns swapped": dict(w=lambda a: a.w.swapaxes(2, 3)),
        "the bias left out": dict(b=lambda a: 0 * a.b),
        ONE_SIDED: dict(x=lambda a: _padded_behind(a.x, a.padding), padding=lambda a: 0),
        STRIDE: _product_without_stride,
        PARTIAL: dict(x=lambda a: _with_partial_windows(a.x, a.w.shape[2:], a.stride, a.padding)),
        NOT_PADDED: dict(padding=lambda a: 0),
        "the channels not added up: each output reads all of them": dict(
            x=lambda a: a.x[:, -1:], w=lambda a: a.w[:, -1:]
        ),
    },
)
def conv2d_forward(x, w, b, stride, padding):
    """A convolution.

    x : (N, C, H, W) float
    w : (O, C, KH, KW) float
    b : (O,) float
    stride, padding : int, the same in both directions

    Give y : (N, O, P, Q), y[n, o, p, q] = b[o] + sum over c, i, j of
    w[o, c, i, j] x[n, c, p stride + i - padding, q stride + j - padding], where pixels outside are 0.
    """
    return F.conv2d(x, w, b, stride, padding).data


def _gradients_padded_behind(gy, x, w, stride, padding):
    gx, gw, gb = conv2d_backward(gy, _padded_behind(x, padding), w, stride, 0)
    return gx[..., : x.shape[2], : x.shape[3]], gw, gb


def _gradients_of_flipped(gy, x, w, stride, padding):
    gx, gw, gb = conv2d_backward(gy, x, w[FLIPPED], stride, padding)
    return gx, gw[FLIPPED], gb


def _gradients_without_stride(gy, x, w, stride, padding):
    p, q = conv2d_forward(x, w, w[:, 0, 0, 0], 1, padding).shape[2:]
    behind = ((0, 0), (0, 0), (0, p - gy.shape[2]), (0, q - gy.shape[3]))
    return conv2d_backward(np.pad(gy, behind), x, w, 1, padding)


def _without_rows_left_over(gy, x, w, stride, padding):
    """gx as long as the windows reach, which is shorter than x where pixels are left over."""
    gx, *others = conv2d_backward(gy, x, w, stride, padding)
    rows, columns = ((n - 1) * stride + k - 2 * padding for n, k in zip(gy.shape[2:], w.shape[2:]))
    return gx[:, :, :rows, :columns], *others


def _bias_gradient(axes: tuple[int, ...]) -> Callable:
    """The right gradients but for the bias's, which is summed over these axes only."""

    def wrong(gy, x, w, stride, padding):
        return *conv2d_backward(gy, x, w, stride, padding)[:2], gy.sum(axis=axes)

    return wrong


def _of_last_position(gy, x, w, stride, padding):
    """Assigned for each output position, the last one's product is left."""
    last = np.zeros_like(gy)
    last[..., -1:, -1:] = gy[..., -1:, -1:]
    return conv2d_backward(last, x, w, stride, padding)


def _of_image(i: slice) -> dict:
    return dict(gy=lambda a: a.gy[i], x=lambda a: a.x[i])


def _windows_of_pixel(gy, x, w, stride, padding):
    """In how many windows each pixel of x lies."""
    return conv2d_backward(gy[:, :1] ** 0, x, w[:1] ** 0, stride, padding)[0]


@exercise(
    lambda rng: _convolutions(rng, "gy", "x", "w", "stride", "padding"),
    {
        "the kernel upside down": _gradients_of_flipped,
        "the kernel's rows and columns swapped": dict(w=lambda a: a.w.swapaxes(2, 3)),
        ONE_SIDED: _gradients_padded_behind,
        "a mean over the images: their gradients add up": dict(gy=lambda a: a.gy / max(len(a.gy), 1)),
        "overwritten by the last image: those of all images add up": _of_image(slice(-1, None)),
        "of the first image only: those of all images add up": _of_image(slice(0, 1)),
        "overwritten by the last output position: those of all positions add up": _of_last_position,
        STRIDE: _gradients_without_stride,
        "the bias is added in every image, at every position: sum over all of these": [
            _bias_gradient(axes) for axes in ((0,), (2, 3), (0, 2), (0, 3), (1, 2, 3), (0, 1))
        ],
        "pixels left over, which no window reads, are missing: gx is as large as x": _without_rows_left_over,
    },
    contributions={"gx": _windows_of_pixel},
)
def conv2d_backward(gy, x, w, stride, padding):
    """The three gradients of a convolution: each product w x in y sends gy w to x and gy x to w.

    gy : (N, O, P, Q) float, gradient of y
    x : (N, C, H, W) float
    w : (O, C, KH, KW) float
    stride, padding : int, the same in both directions

    Give gx, gw, gb : (N, C, H, W), (O, C, KH, KW), (O,).
    """
    return gradients(lambda x, w, b: F.conv2d(x, w, b, stride, padding), gy, x, w, w[:, 0, 0, 0])


# -------------------------------------------------------------------------------------- pooling and norms


def _to_all_maxima(gy, x, kernel, stride):
    maxima, gx = F.max_pool2d(x, kernel, stride).data[..., None, None], np.zeros_like(x)
    for p, q in np.ndindex(gy.shape[2:]):
        window = (..., slice(p * stride, p * stride + kernel), slice(q * stride, q * stride + kernel))
        gx[window] += gy[:, :, p, q, None, None] * (x[window] == maxima[:, :, p, q])
    return gx


def _spread_evenly(gy, x, kernel, stride):
    return _to_all_maxima(gy / kernel**2, 0 * x, kernel, stride)  # of zeros, each is a maximum


def _shared_by_maxima(gy, x, kernel, stride):
    """Each of several equal maxima gets its share."""
    equals, gx = np.empty_like(gy), np.zeros_like(x)
    for p, q in np.ndindex(gy.shape[2:]):
        window = (..., slice(p * stride, p * stride + kernel), slice(q * stride, q * stride + kernel))
        of_window = x[window] == x[window].max(axis=(2, 3), keepdims=True)
        equals[:, :, p, q] = of_window.sum(axis=(2, 3))
        gx[window] += (gy / equals)[:, :, p, q, None, None] * of_window
    return gx


def _to_last_maximum(gy, x, kernel, stride):
    """The last of equals: the first of x upside down."""
    reach = [(n - 1) * stride + kernel for n in gy.shape[2:]]  # what the windows read
    turned = (..., slice(None, None, -1), slice(None, None, -1))
    gx = np.zeros_like(x)
    read = (..., slice(reach[0]), slice(reach[1]))
    gx[read] = max_pool_backward(gy[turned], x[read][turned], kernel, stride)[turned]
    return gx


def _by_column(gy, x, kernel, stride):
    """The first of equals by column: the first by row of the transposed."""
    return max_pool_backward(gy.swapaxes(2, 3), x.swapaxes(2, 3), kernel, stride).swapaxes(2, 3)


def _windows_apart(gy, x, kernel, stride):
    """Window p looked for at p kernel, as if windows never overlapped, as far as the image reaches."""
    gx = np.zeros_like(x)
    for n, c, p, q in np.ndindex(gy.shape):
        window = x[n, c, p * kernel : (p + 1) * kernel, q * kernel : (q + 1) * kernel]
        if window.size:
            i, j = np.unravel_index(window.argmax(), window.shape)
            gx[n, c, p * kernel + i, q * kernel + j] += gy[n, c, p, q]
    return gx


@exercise(
    lambda rng: {
        "windows overlap": (rng.normal(size=(2, 3, 4, 3)), rng.normal(size=(2, 3, 10, 8)), 3, 2),
        "equal values": (rng.normal(size=(1, 2, 4, 3)), rng.integers(0, 3, (1, 2, 8, 7)) / 2, 2, 2),
        "all negative, pixels left over": (
            rng.normal(size=(1, 2, 2, 3)),
            -rng.random((1, 2, 6, 8)) - 1,
            2,
            3,
        ),
    },
    {
        "each of several equal maxima gets the gradient: only the first does": _to_all_maxima,
        "several equal maxima share the gradient: only the first gets it": _shared_by_maxima,
        "the last of equal maxima gets the gradient: the first does": _to_last_maximum,
        "the first of equal maxima by column: the first by row gets the gradient": _by_column,
        "spread, as average pooling does": _spread_evenly,
        "window p begins at p kernel: it begins at p stride": _windows_apart,
    },
    contributions={"gx": lambda gy, *rest: max_pool_backward(gy**0, *rest)},
)
def max_pool_backward(gy, x, kernel, stride):
    """The gradient of max pooling without padding.

    gy : (N, C, P, Q) float, gradient of y
    x : (N, C, H, W) float
    kernel, stride : int; windows overlap where the kernel is larger than the stride

    Give gx : (N, C, H, W). A window's gradient goes to its largest element; among equals, to the first by
    row.
    """
    return gradients(lambda x: F.max_pool2d(x, kernel, stride), gy, x)[0]


def _as_if_constant(gy, x, weight, groups, eps, statistic: str):
    """The gradients with "mean", "variance" or "both" taken for constants: without the terms they add."""
    rows = x.reshape(len(x), groups, -1)  # (N, groups, elements of a group)
    x_hat = (rows - rows.mean(axis=2, keepdims=True)) / np.sqrt(rows.var(axis=2, keepdims=True) + eps)
    g = (gy * weight[:, None, None]).reshape(rows.shape) / np.sqrt(rows.var(axis=2, keepdims=True) + eps)
    left_out = 0
    if statistic != "variance":
        left_out = left_out + g.mean(axis=2, keepdims=True)
    if statistic != "mean":
        left_out = left_out + x_hat * (g * x_hat).mean(axis=2, keepdims=True)
    gx, *others = group_norm_backward(gy, x, weight, groups, eps)
    return gx + np.broadcast_to(left_out, rows.shape).reshape(x.shape), *others


def _summed_over(axes: tuple[int, ...]) -> Callable:
    """The right gradients but for those of weight and bias, which are summed over these axes only."""

    def wrong(gy, x, weight, groups, eps):
        gx = group_norm_backward(gy, x, weight, groups, eps)[0]
        rows = x.reshape(len(x), groups, -1)
        x_hat = (rows - rows.mean(2, keepdims=True)) / np.sqrt(rows.var(2, keepdims=True) + eps)
        return gx, (gy * x_hat.reshape(x.shape)).sum(axis=axes), gy.sum(axis=axes)

    return wrong


def _of_x_itself(gy, x, weight, groups, eps):
    gx, _, g_bias = group_norm_backward(gy, x, weight, groups, eps)
    return gx, (gy * x).sum(axis=(0, 2, 3)), g_bias


IN_IT = "taken for a constant: every x of the group is in it"


@exercise(
    lambda rng: {
        "two groups": (*rng.normal(size=(2, 2, 4, 3, 5)), rng.uniform(0.5, 2, 4), 2, 0.05),
        "one group": (*rng.normal(size=(2, 1, 3, 2, 4)), rng.uniform(0.5, 2, 3), 1, 0.1),
    },
    {
        f"mean and variance {IN_IT.replace('a constant', 'constants').replace('in it', 'in both')}": partial(
            _as_if_constant, statistic="both"
        ),
        f"the mean {IN_IT}": partial(_as_if_constant, statistic="mean"),
        f"the variance {IN_IT}": partial(_as_if_constant, statistic="variance"),
        "weight left out": dict(weight=lambda a: a.weight**0),
        "mean and variance of a channel, not of its group": dict(groups=lambda a: a.x.shape[1]),
        "eps left out": dict(eps=lambda a: 0.0),
        "the weight's gradient is that of x: weight multiplies x_hat": _of_x_itself,
        "weight and bias serve every image and position: sum over all of these": [
            _summed_over(axes) for axes in ((0,), (2, 3), (0, 2), (0, 3))
        ],
    },
)
def group_norm_backward(gy, x, weight, groups, eps):
    """The gradients of y = (x - mean) / sqrt(var + eps) weight + bias, mean and var over a group of channels.

    gy : (N, C, H, W) float, gradient of y
    x : (N, C, H, W) float
    weight : (C,) float
    groups : int, divides C; each group is C / groups consecutive channels of one image
    eps : float

    Give gx, g_weight, g_bias : (N, C, H, W), (C,), (C,).
    """
    return gradients(lambda x, w, b: F.group_norm(x, groups, w, b, eps), gy, x, weight, weight)
