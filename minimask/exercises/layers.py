"""Exercises about the tape and the layers: the answers come from minimask's own functions and loops.

Shapes: R rows, K classes; N images, C channels in, O channels out, H x W in, P x Q out, kernel KH x KW.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minimask import functions as F
from minimask.autograd import Tensor
from minimask.exercises.exercise import Exercise

EXERCISES: list[Exercise] = []


def exercise(cases: Callable, mistakes: dict, returns: tuple[str, ...]) -> Callable:
    """Make an exercise of the function that answers it."""

    def register(answer):
        EXERCISES.append(Exercise(answer, cases, mistakes, returns))
        return answer

    return register


def gradients(function: Callable, gy, *inputs) -> tuple:
    """Gradients of some inputs, by minimask's own tape."""
    tensors = [Tensor(x, True) for x in inputs]
    function(*tensors).backward(gy)
    return tuple(x.grad for x in tensors)


# --------------------------------------------------------------------------------------------- the tape


class Call(NamedTuple):
    """One call on the tape: names of what it read and made, and gradient of output -> gradients of inputs."""

    inputs: tuple[str, ...]
    output: str
    backward: Callable


def _tapes(rng) -> dict[str, tuple]:
    x, w, gy = rng.normal(size=(3, 4))
    product = Call(("x", "w"), "a", lambda g: (g * w, g * x))
    total = Call(("a", "x"), "b", lambda g: (g, g))
    aside = Call(("b",), "c", lambda g: (-g,))
    again = Call(("b", "a"), "d", lambda g: (g * x, g * w))
    both = Call(("d", "b"), "y", lambda g: (g, g))
    return {
        "values used twice": ([product, total, again, both], "y", gy),
        "a call that leads nowhere": ([product, total, aside, again, both], "y", gy),
        "no calls": ([], "y", gy),
    }


def _walk(tape, output, gradient, order: int = -1, add: Callable = operator.add) -> dict:
    found = {output: gradient.copy()}
    for call in tape[::order]:
        if call.output in found:
            for name, g in zip(call.inputs, call.backward(found[call.output])):
                found[name] = add(found[name], g) if name in found else g
    return found


@exercise(
    _tapes,
    {
        "overwritten instead of added: a value that is used twice gets a gradient from each use": (
            lambda *inputs: _walk(*inputs, add=lambda old, new: new)
        ),
        "added in place, into an array that another value's gradient shares: make a new sum": (
            lambda *inputs: _walk(*inputs, add=operator.iadd)
        ),
        "walked forwards: the last call comes first": lambda *inputs: _walk(*inputs, order=1),
    },
    ("gradients",),
)
def tape_backward(tape, output, gradient):
    """The backward pass over a tape.

    tape : list of calls, in the order in which they were computed. call.inputs is a tuple of names of values,
        call.output the name of the value it made, call.backward(g) gives, from the gradient of that value, a
        tuple with the gradient of each input; several of them may be one and the same array.
    output : str, name of the value to differentiate
    gradient : array, the gradient of that value

    Give a dict: the gradient of every value that output was computed from, by name, output itself included.
    """
    return _walk(tape, output, gradient)


# ------------------------------------------------------------------------------------ pointwise and losses


@exercise(
    lambda rng: {"normal numbers": tuple(rng.normal(size=(2, 3, 4))), "no rows": (np.zeros((0, 4)),) * 2},
    {
        "gy left out: this is the slope, the chain rule multiplies it by gy": lambda gy, x: 1.0 * (x > 0),
        "the mask is taken from gy: it says where x was positive": lambda gy, x: gy * (gy > 0),
        "this is the forward pass": lambda gy, x: np.maximum(x, 0),
        "let through where x is negative": lambda gy, x: gy * (x < 0),
    },
    ("gx",),
)
def relu_backward(gy, x):
    """The gradient of y = max(x, 0).

    gy : (R, K) float, gradient of y
    x : (R, K) float

    Give gx : (R, K), gradient of x; 0 where x is 0.
    """
    return gradients(F.relu, gy, x)[0]


def _softmax(x, axis=1):
    e = np.exp(x - x.max(axis=axis, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=axis, keepdims=True)


def _one_hot(logits, labels):
    return (np.arange(logits.shape[1]) == labels[:, None]).astype(logits.dtype)


@exercise(
    lambda rng: {
        "five rows": (np.float64(0.7), rng.normal(size=(5, 4)), rng.integers(0, 4, 5)),
        "large logits": (np.float64(1.0), 1000 * rng.normal(size=(5, 4)), rng.integers(0, 4, 5)),
        "no rows": (np.float64(1.0), np.zeros((0, 4)), np.zeros(0, np.int64)),
    },
    {
        "not divided by the number of rows: the loss is their mean": (
            lambda gy, x, t: gy * (_softmax(x) - _one_hot(x, t))
        ),
        "gy left out": lambda gy, x, t: (_softmax(x) - _one_hot(x, t)) / max(len(x), 1),
        "1 is not subtracted at the labels": lambda gy, x, t: gy * _softmax(x) / max(len(x), 1),
        "softmax along the wrong axis: a row's classes compete": (
            lambda gy, x, t: gy * (_softmax(x, 0) - _one_hot(x, t)) / max(len(x), 1)
        ),
        "the sign: it is softmax minus one-hot": lambda gy, x, t: (
            gy * (_one_hot(x, t) - _softmax(x)) / max(len(x), 1)
        ),
    },
    ("gx",),
)
def softmax_cross_entropy_backward(gy, logits, labels):
    """The gradient of y = mean over rows of -log softmax(logits)[label].

    gy : () float, gradient of y
    logits : (R, K) float; may be large: exp(1000) overflows
    labels : (R,) int in [0, K)

    Give gx : (R, K), gradient of the logits. R may be 0.
    """
    return gradients(lambda x: F.softmax_cross_entropy(x, labels), gy, logits)[0]
