"""Pointwise nonlinearities, softmax and dropout."""

from __future__ import annotations

import numpy as np

from minimask.autograd import Function, Tensor
from minimask.kernels import elementwise


def sigmoid_array(x, xp=np):
    """1 / (1 + exp(-x)) without overflow: the exponential's argument is never positive."""
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1.0, e) / (1.0 + e)


def softmax_array(x, axis: int = -1, xp=np):
    """exp(x_i) / sum_j exp(x_j); shifted by the maximum, which cancels, so that nothing overflows."""
    e = xp.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


class ReLU(Function):
    """y = max(x, 0); its derivative at 0 is taken as 0."""

    def forward(self, x):
        y = elementwise.relu(x)
        self.save(y)
        return y

    def backward(self, gy):
        (y,) = self.saved
        return elementwise.relu_gradient(gy, y)  # y > 0 just where x > 0: the input need not be kept


class Sigmoid(Function):
    """y = 1 / (1 + exp(-x))."""

    def forward(self, x):
        y = sigmoid_array(x, self.xp)
        self.save(y)
        return y

    def backward(self, gy):
        (y,) = self.saved
        return gy * y * (1 - y)


class Softmax(Function):
    """y_i = exp(x_i) / sum_j exp(x_j) along an axis."""

    def __init__(self, axis: int = -1):
        self.axis = axis

    def forward(self, x):
        y = softmax_array(x, self.axis, self.xp) if x.size else x
        self.save(y)
        return y

    def backward(self, gy):
        (y,) = self.saved
        # dy_i / dx_j = y_i (delta_ij - y_j), so gx_j = y_j (gy_j - sum_i gy_i y_i)
        return y * (gy - (gy * y).sum(axis=self.axis, keepdims=True))


class LogSoftmax(Function):
    """y_i = x_i - log sum_j exp(x_j) along an axis."""

    def __init__(self, axis: int = -1):
        self.axis = axis

    def forward(self, x):
        if x.size == 0:
            self.save(x)
            return x
        shifted = x - x.max(axis=self.axis, keepdims=True)
        y = shifted - self.xp.log(self.xp.exp(shifted).sum(axis=self.axis, keepdims=True))
        self.save(y)
        return y

    def backward(self, gy):
        (y,) = self.saved
        # dy_i / dx_j = delta_ij - softmax_j
        return gy - self.xp.exp(y) * gy.sum(axis=self.axis, keepdims=True)


class Dropout(Function):
    """y = x m / (1 - p), with m = 0 with probability p, else 1: its expectation is x."""

    def __init__(self, p: float, rng: np.random.Generator):
        self.p, self.rng = p, rng

    def forward(self, x):
        kept = self.rng.random(x.shape) >= self.p
        m = self.xp.asarray(kept).astype(x.dtype) / (1.0 - self.p)
        self.save(m)
        return x * m

    def backward(self, gy):
        return gy * self.saved[0]


def relu(x) -> Tensor:
    """max(x, 0), elementwise."""
    return ReLU.apply(x)


def sigmoid(x) -> Tensor:
    """1 / (1 + exp(-x)), elementwise, without overflow at either end."""
    return Sigmoid.apply(x)


def softmax(x, axis: int = -1) -> Tensor:
    """Positive numbers that sum to 1 along `axis`."""
    return Softmax.apply(x, axis=axis)


def log_softmax(x, axis: int = -1) -> Tensor:
    """log(softmax(x)), finite where softmax itself would round to 0."""
    return LogSoftmax.apply(x, axis=axis)


def dropout(x, p: float, rng: np.random.Generator) -> Tensor:
    """Set elements to 0 with probability p and scale the others by 1 / (1 - p) (Srivastava et al. 2014).

    Raises
    ------
    ValueError
        If p is not in [0, 1).
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must be in [0, 1), is {p}")
    return Dropout.apply(x, p=p, rng=rng)
