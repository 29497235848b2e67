"""Cases of arithmetic, reductions, shape changes and activations."""

from __future__ import annotations

import math
import operator

import numpy as np
from scipy import special

from minimask.functions import activation, array
from minimask.lessons.gradient_cases.case import Case, apart, elementwise, far_out, normal, positive


def _arithmetic(operation, second=normal) -> list[Case]:
    """The cases of an arithmetic operation on two arrays; `second` makes the one on the right."""

    def operands(left_shape, right_shape):
        return lambda rng: (*normal(left_shape)(rng), *second(right_shape)(rng))

    reference = elementwise(operation)
    return [
        Case("plain", operands((3, 4), (3, 4)), {}, reference),
        Case("broadcast", operands((3, 1, 4), (2, 1)), {}, reference),
        Case("zero axes", operands((), (2, 3)), {}, reference),
        Case("a number", lambda rng: (*normal((2, 3))(rng), 2.5), {}, reference),
        Case("no rows", operands((0, 4), (4,)), {}, reference),
    ]


def _reduction(mean: bool) -> list[Case]:
    def loop(x, axis=None, keepdims=False):
        reduced = range(x.ndim) if axis is None else np.arange(x.ndim)[np.atleast_1d(axis)]
        y = np.zeros([1 if i in reduced else size for i, size in enumerate(x.shape)])
        for index, value in np.ndenumerate(x):
            y[tuple(0 if i in reduced else k for i, k in enumerate(index))] += value
        n = max(math.prod(x.shape[i] for i in reduced), 1) if mean else 1
        return (y if keepdims else y.squeeze(tuple(reduced))) / n

    x = normal((3, 2, 4))
    return [
        Case("everything", x, {}, loop),
        Case("one axis", x, dict(axis=1), loop),
        Case("last axis, kept", x, dict(axis=-1, keepdims=True), loop),
        Case("two axes", x, dict(axis=(0, -1)), loop),
        Case("no rows", normal((0, 4)), {}, loop),
        Case("no rows, along them", normal((0, 4)), dict(axis=0), loop),
    ]


def _pointwise(f, inputs=normal) -> list[Case]:
    shapes = {"plain": (3, 4), "no rows": (0, 4)}
    return [Case(name, inputs(shape), {}, elementwise(f)) for name, shape in shapes.items()]


def _along_axis(scipy_function) -> list[Case]:
    def reference(x, axis=-1):
        return scipy_function(x, axis) if x.size else x

    return [
        Case("rows", normal((3, 5)), {}, reference),
        Case("channels", normal((2, 3, 2, 2)), dict(axis=1), reference),
        Case("far out", far_out((6, 4)), {}, reference),
        Case("no rows", normal((0, 5)), {}, reference),
        Case("no columns", normal((3, 0)), {}, reference),
    ]


def _power(name: str, inputs, exponent: float) -> Case:
    return Case(name, inputs, dict(exponent=exponent), elementwise(lambda v: math.pow(v, exponent)))


def _matmul(name: str, a, b) -> Case:
    return Case(name, normal(a, b), {}, lambda a, b: np.einsum("...ij,...jk->...ik", a, b))


def _reshape(name: str, x, shape) -> Case:
    return Case(name, normal(x), dict(shape=shape), lambda x, shape: np.array([*x.flat]).reshape(shape))


def _transpose(name: str, x, axes) -> Case:
    return Case(name, normal(x), dict(axes=axes), lambda x, axes: np.einsum(x, range(x.ndim), axes or [1, 0]))


def _getitem(name: str, index, reference, shape=(4, 3)) -> Case:
    """`reference` gives the elements of x that the index chooses, as lists of them."""
    return Case(name, normal(shape), dict(index=index), lambda x, index: np.array(reference(x)))


_TWICE = np.array([2, 0, 2, 2])

CASES = {
    array.Add: _arithmetic(operator.add),
    array.Subtract: _arithmetic(operator.sub),
    array.Multiply: _arithmetic(operator.mul),
    array.Divide: _arithmetic(operator.truediv, positive),
    array.Power: [
        _power("square", normal((3, 4)), 2),
        _power("root of inverse", positive((5,)), -0.5),
        _power("no rows", normal((0, 4)), 2),
    ],
    array.Exp: _pointwise(math.exp),
    array.Log: _pointwise(math.log, positive),
    array.Sqrt: _pointwise(math.sqrt, positive),
    array.MatMul: [
        _matmul("matrices", (3, 4), (4, 2)),
        _matmul("stack and matrix", (2, 3, 4), (4, 2)),
        _matmul("stacks, broadcast", (2, 1, 3, 4), (5, 4, 2)),
        _matmul("no rows", (0, 4), (4, 2)),
        _matmul("no columns to add up", (3, 0), (0, 2)),
    ],
    array.Sum: _reduction(mean=False),
    array.Mean: _reduction(mean=True),
    array.Reshape: [
        _reshape("plain", (3, 4), (2, 3, 2)),
        _reshape("inferred", (3, 4), (-1, 6)),
        _reshape("no rows", (0, 4), (2, 0)),
    ],
    array.Transpose: [
        _transpose("reversed", (3, 4), None),
        _transpose("cycled", (2, 3, 4), (2, 0, 1)),
        _transpose("no rows", (0, 4), None),
    ],
    array.Concatenate: [
        Case("rows", normal((2, 3), (1, 3)), {}, lambda a, b: np.array([*a, *b])),
        Case("columns", normal((2, 3), (2, 1), (2, 2)), dict(axis=-1), lambda *xs, axis: np.hstack(xs)),
        Case("no rows", normal((0, 3), (2, 3)), {}, lambda a, b: b),
    ],
    array.GetItem: [
        _getitem("slices", np.s_[1:, ::-2], lambda x: [[row[2], row[0]] for row in x[1:]]),
        _getitem("an integer and a new axis", (2, None), lambda x: [x[2]]),
        _getitem("an ellipsis", (..., 1), lambda x: [row[1] for row in x]),
        _getitem("rows, some twice", _TWICE, lambda x: [x[i] for i in _TWICE]),
        _getitem(
            "one of each row", (np.arange(4), _TWICE), lambda x: [x[i, j] for i, j in enumerate(_TWICE)]
        ),
        _getitem(
            "columns, some twice", np.s_[1:, _TWICE], lambda x: [[row[j] for j in _TWICE] for row in x[1:]]
        ),
        _getitem("a mask", np.array([True, False, True, False]), lambda x: [x[0], x[2]]),
        _getitem("none chosen", np.zeros(0, np.int64), lambda x: x[:0]),
        _getitem("no rows", np.s_[:, 1], lambda x: x.sum(axis=1), (0, 3)),
    ],
    activation.ReLU: _pointwise(lambda v: max(v, 0.0), apart),
    activation.Sigmoid: [
        Case("plain", normal((3, 4)), {}, lambda x: special.expit(x)),
        Case("far out", far_out((3, 4)), {}, lambda x: special.expit(x)),
        Case("no rows", normal((0, 4)), {}, lambda x: x),
    ],
    activation.Softmax: _along_axis(special.softmax),
}
