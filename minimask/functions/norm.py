"""Batch normalisation, trained and frozen, and group normalisation.

Shapes: N images, C channels, G groups, H x W pixels; m values share a mean and a variance.
"""

from __future__ import annotations

import numpy as np

from minimask import backend
from minimask.autograd import Function, Tensor
from minimask.kernels import elementwise
from minimask.kernels import norm as norm_kernels


class BatchNorm(Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with each channel's mean and variance."""

    def __init__(self, eps: float):
        self.eps = eps

    def forward(self, x, weight, bias):  # (N, C, H, W), (C,), (C,) -> (N, C, H, W), mean (C,), var (C,)
        backend.require_floating("batch_norm", x=x, weight=weight, bias=bias)
        m = max(x.size // x.shape[1], 1)  # without images, mean and variance are 0
        mean = x.sum(axis=(0, 2, 3), keepdims=True) / m
        centred = x - mean
        var = (centred * centred).sum(axis=(0, 2, 3), keepdims=True) / m
        inv_std = 1.0 / self.xp.sqrt(var + self.eps)
        x_hat = centred * inv_std
        self.save(x_hat, inv_std, weight)
        return x_hat * weight[:, None, None] + bias[:, None, None], mean.ravel(), var.ravel()

    def backward(self, gy, g_mean, g_var):
        x_hat, inv_std, weight = self.saved
        g_bias = gy.sum(axis=(0, 2, 3))
        g_weight = (gy * x_hat).sum(axis=(0, 2, 3))
        if not self.needs[0]:
            return None, g_weight, g_bias
        # x_hat = (x - mean) inv_std, and mean and variance depend on every x of the channel:
        # gx = inv_std (g - mean(g) - x_hat mean(g x_hat)), with g = gy weight;
        # mean and variance are outputs, too: d mean / dx = 1 / m and
        # d var / dx = 2 (x - mean) / m = 2 x_hat / (m inv_std)
        m = max(gy.size // gy.shape[1], 1)
        r = inv_std.reshape(-1)  # (C,)
        slope = weight * r
        a = (slope * g_bias - g_mean) / m
        b = (slope * g_weight - 2 * g_var / r) / m
        slope, a, b = (v[:, None, None] for v in (slope, a, b))
        return slope * gy - a - x_hat * b, g_weight, g_bias


class FrozenBatchNorm(Function):
    """y = x scale + shift: batch normalisation whose mean and variance are constants."""

    def __init__(self, eps: float):
        self.eps = eps

    def forward(self, x, weight, bias, mean, var):  # (N, C, H, W), the others (C,) -> (N, C, H, W)
        backend.require_floating("frozen_batch_norm", x=x, weight=weight, bias=bias, mean=mean, var=var)
        scale = weight / self.xp.sqrt(var + self.eps)  # (C,)
        self.save(scale, mean, var, x if self.needs[1] else None)
        y = x * scale[:, None, None]
        y += (bias - mean * scale)[:, None, None]
        return y

    def backward(self, gy):
        scale, mean, var, x = self.saved
        gx = gy * scale[:, None, None] if self.needs[0] else None
        g_weight = g_bias = None
        if self.needs[1]:  # y = (x - mean) / sqrt(var + eps) weight + bias
            x_hat = (x - mean[:, None, None]) / self.xp.sqrt(var + self.eps)[:, None, None]
            g_weight = (gy * x_hat).sum(axis=(0, 2, 3))
        if self.needs[2]:
            g_bias = gy.sum(axis=(0, 2, 3))
        return gx, g_weight, g_bias, None, None


ELEMENTS_AT_ONCE = 1 << 18  # of groups that are normalised together: 1 MiB of float32 stays in cache


class GroupNorm(Function):
    """As batch normalisation, but mean and variance are over one image's channels of one group.

    With `relu` the result is max(y, 0): one pass less over memory than a separate ReLU.
    """

    def __init__(self, groups: int, eps: float, relu: bool = False):
        self.groups, self.eps, self.relu = groups, eps, relu

    def forward(self, x, weight, bias):  # (N, C, H, W), (C,), (C,) -> (N, C, H, W)
        backend.require_floating("group_norm", x=x, weight=weight, bias=bias)
        if x.shape[1] % self.groups:
            raise ValueError(f"group_norm: {x.shape[1]} channels do not divide into {self.groups} groups")
        xp = self.xp
        if xp is not np and not backend.use_reference():
            y, mean, inv_std = norm_kernels.group_norm(x, weight, bias, self.groups, self.eps, self.relu)
            self.save(x, mean, inv_std, weight, y if self.relu else None)
            return y
        xs, ws, bs = self._by_group(x), self._to_groups(weight, len(x)), self._to_groups(bias, len(x))
        ys = xp.empty_like(xs)
        mean, inv_std = (xp.empty((len(xs), 1, 1), x.dtype) for _ in range(2))  # (N G, 1, 1)
        m = max(xs.shape[1] * xs.shape[2], 1)
        ones = xp.ones((xs.shape[2], 1), x.dtype)

        def normalise(part: slice):  # so few groups that they stay in cache over all passes
            x, y, w = xs[part], ys[part], ws[part]  # (groups, C/G, HW) twice, (groups, C/G, 1)
            mean[part] = mu = (x @ ones).sum(axis=1, keepdims=True) / m  # BLAS adds up faster than sum does
            xp.subtract(x, mu, out=y)
            var = xp.matmul(y[:, :, None], y[..., None]).sum(axis=1) / m  # (groups, 1, 1)
            inv_std[part] = r = 1.0 / xp.sqrt(var + self.eps)
            # y = (x - mu) r w + b
            y *= w * r
            y += bs[part]
            if self.relu:
                elementwise.relu_into(y, out=y)

        self._in_slices_of_groups(normalise, xs)
        y = ys.reshape(x.shape)
        self.save(x, mean, inv_std, weight, y if self.relu else None)
        return y

    def backward(self, gy):  # (N, C, H, W)
        x, mean, inv_std, weight, y = self.saved
        xp = self.xp
        if xp is not np and not backend.use_reference():
            return norm_kernels.group_norm_gradient(gy, x, y, mean, inv_std, weight)
        xs, gys, ws = self._by_group(x), self._by_group(gy), self._to_groups(weight, len(x))
        ys = self._by_group(y) if self.relu else None
        gxs = xp.empty_like(xs)
        g_weights, g_biases = (xp.empty((*xs.shape[:2], 1), x.dtype) for _ in range(2))  # (N G, C/G, 1)
        m = max(xs.shape[1] * xs.shape[2], 1)

        def send_back(part: slice):
            x, w, mu, r = xs[part], ws[part], mean[part], inv_std[part]
            g = gys[part] * (ys[part] > 0) if self.relu else gys[part]  # (groups, C/G, HW)
            x_hat = (x - mu) * r
            g_biases[part] = g_bias = g.sum(axis=2, keepdims=True)
            g_weights[part] = g_weight = xp.matmul(g[:, :, None], x_hat[..., None])[..., 0]
            # as for batch norm: gx = r (w g - mean(w g) - x_hat mean(w g x_hat)), means over the group
            a = (w * g_bias).sum(axis=1, keepdims=True) / m
            b = (w * g_weight).sum(axis=1, keepdims=True) / m
            x_hat *= -r * b
            x_hat -= r * a
            xp.multiply(g, w * r, out=gxs[part])
            gxs[part] += x_hat

        self._in_slices_of_groups(send_back, xs)
        g_weight, g_bias = (v.reshape(len(x), *weight.shape).sum(axis=0) for v in (g_weights, g_biases))
        return gxs.reshape(x.shape), g_weight, g_bias

    def _by_group(self, x):  # (N, C, H, W) -> (N G, C/G, HW)
        n, c, h, w = x.shape
        return self.xp.ascontiguousarray(x).reshape(n * self.groups, c // self.groups, h * w)

    def _to_groups(self, v, images: int):  # (C,) -> (N G, C/G, 1)
        return v.reshape(self.groups, -1, 1)[self.xp.arange(images * self.groups) % self.groups]

    def _in_slices_of_groups(self, function, xs) -> None:
        """Call the function with slices of the N G groups; on the CPU, and for large maps, in all threads."""
        at_once, parts = max(1, ELEMENTS_AT_ONCE // max(xs[:1].size, 1)), None if self.xp is np else 1
        backend.parallel_slices(len(xs), function, at_once, parts, operations=xs.size, calls_blas=True)


def batch_norm(x, weight, bias, eps: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    """Batch normalisation in training (Ioffe and Szegedy 2015, algorithm 1).

    Parameters
    ----------
    x : (N, C, H, W) float
    weight, bias : (C,) float

    Returns
    -------
    y : (N, C, H, W) Tensor
    mean, var : (C,) Tensors
        Of this batch (var divided by m = N H W, not m - 1), for running averages.

    Raises
    ------
    TypeError
        If x, weight and bias are not floating point, all of one dtype.
    """
    return BatchNorm.apply(x, weight, bias, eps=eps)


def frozen_batch_norm(x, weight, bias, mean, var, eps: float = 1e-5) -> Tensor:
    """Batch normalisation with constant mean and variance (C,): a scale and a shift for each channel.

    Raises
    ------
    TypeError
        If they are not floating point, all of one dtype.
    """
    return FrozenBatchNorm.apply(x, weight, bias, mean, var, eps=eps)


def group_norm(x, groups: int, weight, bias, eps: float = 1e-5, relu: bool = False) -> Tensor:
    """Group normalisation (Wu and He 2018), which does not depend on the other images of the batch.

    Parameters
    ----------
    x : (N, C, H, W) float
    groups : int
        Divides C.
    weight, bias : (C,) float
    relu : bool
        Apply max(y, 0) to the result.

    Raises
    ------
    ValueError
        If the channels do not divide into the groups.
    TypeError
        If x, weight and bias are not floating point, all of one dtype.
    """
    return GroupNorm.apply(x, weight, bias, groups=groups, eps=eps, relu=relu)
