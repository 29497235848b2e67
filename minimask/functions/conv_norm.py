"""Convolution, frozen batch norm, residual and ReLU as one Function: one pass over memory instead of four.

Shapes: as in `minimask.functions.conv`.

    y = max(0, s (w * x) + t + r)    s = weight / sqrt(var + eps),  t = bias - mean s,  both (O,) constants
"""

from __future__ import annotations

import numpy as np

from minimask.autograd import Function, Tensor
from minimask.backend import array_module, require_floating
from minimask.functions.activation import relu as relu_function
from minimask.functions.conv import conv2d
from minimask.functions.norm import frozen_batch_norm
from minimask.kernels import convolution, elementwise
from minimask.kernels.geometry import Geometry


class ConvFrozenNorm(Function):
    """The scale goes into the weights, the shift becomes the bias; residual and ReLU follow in each block."""

    def __init__(self, stride=1, padding=0, dilation=1, groups: int = 1, relu: bool = True):
        self.options, self.relu = (stride, padding, dilation, groups), relu

    def forward(self, x, w, s, t, r):  # (N, C, H, W), (O, C/G, KH, KW), (O,), (O,), (N, O, P, Q) or None
        require_floating("conv_frozen_norm", x=x, weight=w, scale=s, shift=t, residual=r)
        self.geometry = Geometry.of(x.shape, w.shape, *self.options)
        sw = w * s[:, None, None, None]
        y = convolution.forward(x, sw, t, self.geometry, self.relu, r)
        self.save(x if self.needs[1] else None, w if self.needs[0] else None, s, y if self.relu else None)
        return y

    def backward(self, gy):  # (N, O, P, Q)
        x, w, s, y = self.saved
        gz = elementwise.relu_gradient(gy, y) if self.relu else gy  # z = (s w) * x + t + r
        gx = None
        if self.needs[0]:  # s w is computed again: kept, it would be a second copy of the backbone's weights
            gx = convolution.input_gradient(gz, w * s[:, None, None, None], self.geometry)
        gw = None
        if self.needs[1]:
            gw = convolution.weight_gradient(gz, x, self.geometry)  # of s w
            gw *= s[:, None, None, None]
        return gx, gw, None, None, gz if self.needs[4] else None


def conv_frozen_norm(
    x, weight, norm, residual=None, stride=1, padding=0, dilation=1, groups=1, relu=True
) -> Tensor:
    """Convolution followed by a batch norm with constant statistics, an optional residual and a ReLU.

    Parameters
    ----------
    x : (N, C, H, W) float
    weight : (O, C/G, KH, KW) float
    norm : (scale, shift), each (O,) array
        See `scale_and_shift`. No gradient flows into them.
    residual : (N, O, P, Q) float, optional
    relu : bool

    Returns
    -------
    (N, O, P, Q) Tensor.

    Raises
    ------
    ValueError
        If channels, groups and kernel do not fit the input.
    TypeError
        If the arrays are not floating point, all of one dtype.
    """
    options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups, relu=relu)
    return ConvFrozenNorm.apply(x, weight, *norm, residual, **options)


def scale_and_shift(weight, bias, mean, var, eps: float = 1e-5):
    """A frozen batch norm as y = scale x + shift; arrays (C,) to two arrays (C,)."""
    scale = weight / array_module(var).sqrt(var + eps)
    return scale, bias - mean * scale


def conv_frozen_norm_reference(
    x, weight, norm, residual=None, stride=1, padding=0, dilation=1, groups=1, relu=True
):
    """`conv_frozen_norm` from small Functions."""
    scale, shift = norm
    y = conv2d(x, weight, None, stride, padding, dilation, groups)
    y = frozen_batch_norm(y, scale, shift, np.zeros_like(shift), np.ones_like(scale), eps=0.0)
    y = y if residual is None else y + residual
    return relu_function(y) if relu else y
