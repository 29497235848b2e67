"""Elementwise functions and concatenation, and the arithmetic of `autograd.py` under lower-case names."""

from __future__ import annotations

from minimask.autograd import (
    Add,
    Divide,
    Function,
    GetItem,
    MatMul,
    Mean,
    Multiply,
    Power,
    Reshape,
    Subtract,
    Sum,
    Tensor,
    Transpose,
)


class Exp(Function):
    """y = exp x."""

    def forward(self, x):
        y = self.xp.exp(x)
        self.save(y)
        return y

    def backward(self, gy):
        (y,) = self.saved
        return gy * y  # exp' = exp


class Log(Function):
    """y = log x."""

    def forward(self, x):
        self.save(x)
        return self.xp.log(x)

    def backward(self, gy):
        (x,) = self.saved
        return gy / x


class Sqrt(Function):
    """y = sqrt x."""

    def forward(self, x):
        y = self.xp.sqrt(x)
        self.save(y)
        return y

    def backward(self, gy):
        (y,) = self.saved
        return gy / (2 * y)  # d sqrt x / dx = 1 / (2 sqrt x)


class Concatenate(Function):
    """Several arrays one after another along an axis."""

    def __init__(self, axis: int = 0):
        self.axis = axis

    def forward(self, *xs):
        self.save([(x.shape[self.axis], x.dtype) for x in xs])
        return self.xp.concatenate(xs, axis=self.axis)

    def backward(self, gy):
        gradients, begin = [], 0
        along = [slice(None)] * gy.ndim
        for (length, dtype), need in zip(self.saved[0], self.needs):
            along[self.axis] = slice(begin, begin + length)
            gradients.append(gy[tuple(along)].astype(dtype, copy=False) if need else None)
            begin += length
        return tuple(gradients)


def add(a, b) -> Tensor:
    """a + b with NumPy's broadcasting."""
    return Add.apply(a, b)


def subtract(a, b) -> Tensor:
    """a - b with NumPy's broadcasting."""
    return Subtract.apply(a, b)


def multiply(a, b) -> Tensor:
    """Elementwise a b with NumPy's broadcasting."""
    return Multiply.apply(a, b)


def divide(a, b) -> Tensor:
    """Elementwise a / b with NumPy's broadcasting."""
    return Divide.apply(a, b)


def power(x, exponent: float) -> Tensor:
    """x ** exponent for a constant number."""
    return Power.apply(x, exponent=exponent)


def exp(x) -> Tensor:
    """Elementwise e^x."""
    return Exp.apply(x)


def log(x) -> Tensor:
    """Elementwise natural logarithm."""
    return Log.apply(x)


def sqrt(x) -> Tensor:
    """Elementwise square root."""
    return Sqrt.apply(x)


def matmul(a, b) -> Tensor:
    """Matrix product (..., I, J) @ (..., J, K) -> (..., I, K); leading axes broadcast."""
    return MatMul.apply(a, b)


def sum(x, axis=None, keepdims: bool = False) -> Tensor:
    """Sum over an axis, a tuple of axes, or everything."""
    return Sum.apply(x, axis=axis, keepdims=keepdims)


def mean(x, axis=None, keepdims: bool = False) -> Tensor:
    """Mean over an axis, a tuple of axes, or everything; 0 where there is nothing to average."""
    return Mean.apply(x, axis=axis, keepdims=keepdims)


def reshape(x, shape) -> Tensor:
    """The same elements in another shape; one entry may be -1."""
    return Reshape.apply(x, shape=shape)


def transpose(x, axes=None) -> Tensor:
    """The axes in the order `axes`; reversed by default."""
    return Transpose.apply(x, axes=axes)


def concatenate(xs, axis: int = 0) -> Tensor:
    """Join a sequence of arrays or Tensors along an existing axis."""
    return Concatenate.apply(*xs, axis=axis)


def getitem(x, index) -> Tensor:
    """x[index], for slices, integers and integer arrays; duplicate indices add up in the gradient."""
    return GetItem.apply(x, index=index)


def take(x, indices, axis: int = 0) -> Tensor:
    """The entries `indices` of x along `axis`, in that order."""
    return GetItem.apply(x, index=(slice(None),) * (axis % x.ndim) + (indices,))
