"""Pointwise nonlinearities and softmax."""

from __future__ import annotations

import numpy as np

from minimask import backend
from minimask.autograd import Function, Tensor
from minimask.kernels import elementwise


def sigmoid_array(x, xp=np):
    """1 / (1 + exp(-x)) without overflow: the exponential's argument is never positive."""
    if backend.fit_kernels(x):
        return elementwise.sigmoid(x)
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1.0, e) / (1.0 + e)


def softmax_array(x, axis: int = -1, xp=np):
    """exp(x_i) / sum_j exp(x_j), with the maximum subtracted first: it cancels, and nothing overflows."""
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


def relu(x) -> Tensor:
    """max(x, 0), elementwise."""
    return ReLU.apply(x)


def sigmoid(x) -> Tensor:
    """1 / (1 + exp(-x)), elementwise, without overflow at either end."""
    return Sigmoid.apply(x)


def softmax(x, axis: int = -1) -> Tensor:
    """Positive numbers that sum to 1 along `axis`."""
    return Softmax.apply(x, axis=axis)
