"""Convolution, its transpose, and the fully connected layer.

Shapes: N images, C channels in, O out, G groups, H x W in, P x Q out, kernel KH x KW; for the fully connected
layer, R rows, D inputs, O outputs. The products themselves are in `minimask.kernels.convolution`.
"""

from __future__ import annotations

from minimask import backend
from minimask.autograd import Function, Tensor
from minimask.backend import require_floating
from minimask.kernels import convolution
from minimask.kernels.geometry import Geometry, as_pair
from minimask.kernels.product import product


class Conv2d(Function):
    """y[n, o, p, q] = b[o] + sum_{c, i, j} w[o, c, i, j] x[n, c, p s + i d - pad, q s + j d - pad]."""

    def __init__(self, stride=1, padding=0, dilation=1, groups: int = 1):
        self.options = stride, padding, dilation, groups

    def forward(self, x, w, b):  # (N, C, H, W), (O, C/G, KH, KW), (O,) or None -> (N, O, P, Q)
        require_floating("conv2d", x=x, weight=w, bias=b)
        self.geometry = Geometry.of(x.shape, w.shape, *self.options)
        self.save(x if self.needs[1] else None, w if self.needs[0] else None)
        return convolution.forward(x, w, b, self.geometry)

    def backward(self, gy):  # (N, O, P, Q)
        x, w = self.saved
        if backend.fit_kernels(gy):  # what the three below have in common is done once there
            return convolution.gradients(gy, x, w, self.geometry, self.needs)
        # linear in each: a product w x in y sends gy w to x, gy x to w (x correlated with gy), and b gets gy
        gx = convolution.input_gradient(gy, w, self.geometry) if self.needs[0] else None
        gw = convolution.weight_gradient(gy, x, self.geometry) if self.needs[1] else None
        gb = convolution.bias_gradient(gy) if self.needs[2] else None
        return gx, gw, gb


class ConvTranspose2d(Function):
    """The transpose of the convolution with the same weights: forward is its input gradient."""

    def __init__(self, stride=1, padding=0, output_padding=0, dilation=1, groups: int = 1):
        self.stride, self.padding, self.output_padding = (
            as_pair(stride),
            as_pair(padding),
            as_pair(output_padding),
        )
        self.dilation, self.groups = as_pair(dilation), groups

    def forward(self, x, w, b):  # (N, C, H, W), (C, O/G, KH, KW), (O,) or None -> (N, O, P, Q)
        require_floating("conv_transpose2d", x=x, weight=w, bias=b)
        if x.ndim != 4 or w.ndim != 4:
            raise ValueError(f"conv_transpose2d: x and weight must have 4 axes, not {x.shape} and {w.shape}")
        if x.shape[1] != w.shape[0]:
            raise ValueError(
                f"conv_transpose2d: x has {x.shape[1]} channels, weight {w.shape} takes {w.shape[0]}"
            )
        axes = zip(x.shape[2:], self.stride, self.padding, self.dilation, w.shape[2:], self.output_padding)
        size = [(n - 1) * s - 2 * p + d * (k - 1) + extra + 1 for n, s, p, d, k, extra in axes]
        if min(size) < 1:
            what = f"stride {self.stride}, padding {self.padding} and a {w.shape[2:]} kernel"
            raise ValueError(f"conv_transpose2d: {what} leave nothing of x {x.shape}")
        y_shape = (x.shape[0], w.shape[1] * self.groups, *size)
        options = self.stride, self.padding, self.dilation, self.groups
        self.geometry = Geometry.of(y_shape, w.shape, *options, "conv_transpose2d")
        if self.geometry.out_size != x.shape[2:]:
            raise ValueError(
                f"conv_transpose2d: output_padding {self.output_padding} must be below the stride"
            )
        self.save(x if self.needs[1] else None, w if self.needs[0] else None)
        y = convolution.input_gradient(x, w, self.geometry)
        if b is not None:
            y += b[:, None, None]
        return y

    def backward(self, gy):  # (N, O, P, Q)
        x, w = self.saved
        # y = A^T x where A is the convolution with w: so gx = A gy, and gw is A's with x and gy exchanged
        gx = convolution.forward(gy, w, None, self.geometry) if self.needs[0] else None
        gw = convolution.weight_gradient(x, gy, self.geometry) if self.needs[1] else None
        gb = convolution.bias_gradient(gy) if self.needs[2] else None
        return gx, gw, gb


class Linear(Function):
    """y = x w^T + b."""

    def forward(self, x, w, b):  # (R, D), (O, D), (O,) or None -> (R, O)
        require_floating("linear", x=x, weight=w, bias=b)
        if x.ndim != 2 or x.shape[1] != w.shape[1]:
            raise ValueError(f"linear: x must be (rows, {w.shape[1]}), is {x.shape}")
        self.save(x if self.needs[1] else None, w if self.needs[0] else None)
        y = product(x, w.T)
        if b is not None:
            y += b
        return y

    def backward(self, gy):  # (R, O)
        x, w = self.saved
        # y_ro = sum_d x_rd w_od + b_o
        gx = product(gy, w) if self.needs[0] else None
        gw = product(gy.T, x) if self.needs[1] else None
        gb = gy.sum(axis=0) if self.needs[2] else None
        return gx, gw, gb


def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups: int = 1) -> Tensor:
    """2D convolution (a cross-correlation, as everywhere in deep learning).

    Parameters
    ----------
    x : (N, C, H, W) float
    weight : (O, C/G, KH, KW) float
    bias : (O,) float, optional
    stride, padding, dilation : int or (vertical, horizontal)
        Padding is with zeros, on all sides.
    groups : int
        Divides C and O; each group of outputs sees only the inputs of the same group.

    Returns
    -------
    (N, O, P, Q), P = (H + 2 padding - dilation (KH - 1) - 1) // stride + 1, Q likewise.

    Raises
    ------
    ValueError
        If channels, groups and kernel do not fit the input.
    TypeError
        If x, weight and bias are not floating point, all of one dtype.
    """
    return Conv2d.apply(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


def conv_transpose2d(
    x, weight, bias=None, stride=1, padding=0, output_padding=0, groups: int = 1, dilation=1
) -> Tensor:
    """Transposed convolution ("deconvolution"); with stride 2 it doubles a mask's side (figure 4).

    Parameters
    ----------
    x : (N, C, H, W) float
    weight : (C, O/G, KH, KW) float
    bias : (O,) float, optional
    stride, padding, output_padding, dilation : int or (vertical, horizontal)
    groups : int

    Returns
    -------
    (N, O, P, Q), P = (H - 1) stride - 2 padding + dilation (KH - 1) + output_padding + 1, Q likewise.

    Raises
    ------
    ValueError
        If channels, groups and kernel do not fit the input, padding leaves nothing of it, or output_padding
        is not below the stride.
    TypeError
        If x, weight and bias are not floating point, all of one dtype.
    """
    options = dict(
        stride=stride, padding=padding, output_padding=output_padding, dilation=dilation, groups=groups
    )
    return ConvTranspose2d.apply(x, weight, bias, **options)


def linear(x, weight, bias=None) -> Tensor:
    """Fully connected layer: (R, D) x (O, D) [+ (O,)] -> (R, O), y = x w^T + b.

    Raises
    ------
    ValueError
        If x is not (R, D).
    TypeError
        If x, weight and bias are not floating point, all of one dtype.
    """
    return Linear.apply(x, weight, bias)
