"""The fully convolutional mask head (figure 4, right) as one Function, its backward pass derived by hand.

Shapes: R RoIs, C channels, P x P features in, M x M = 2P x 2P masks out, K classes and background.

    h_0 = x                                      (R, C, P, P)
    h_i = relu(w_i * h_(i-1) + b_i)   3x3, i = 1..n
    t   = relu(D^T h_n + d)           2x2 deconvolution, stride 2: (R, C, M, M)
    y   = p t + q                     1x1: a mask of logits for each class
"""

from __future__ import annotations

from minimask.autograd import Function, Tensor
from minimask.backend import require_floating
from minimask.functions.activation import relu
from minimask.functions.conv import conv2d, conv_transpose2d
from minimask.kernels import convolution, elementwise
from minimask.kernels.geometry import Geometry


class MaskHead(Function):
    """Mask logits of every class for every RoI; classes do not compete (section 3)."""

    def forward(self, x, *parameters):  # (R, C, P, P), n pairs w b, D d, p q -> (R, K+1, M, M)
        *convs, (deconv, d), (p, q) = _in_pairs(parameters)
        require_floating("mask_head", x=x, **{f"parameter {i}": each for i, each in enumerate(parameters)})
        hs, geometries = [x], []
        for w, b in convs:
            same = Geometry.of(hs[-1].shape, w.shape, 1, 1, 1, 1)
            hs.append(convolution.forward(hs[-1], w, b, same, relu=True))
            geometries.append(same)
        (r, _, side, _), channels = x.shape, deconv.shape[1]
        # D is a convolution of stride 2 from M x M to P x P: its input gradient is D^T
        double = Geometry.of((r, channels, 2 * side, 2 * side), deconv.shape, 2, 0, 1, 1)
        t = convolution.input_gradient(hs[-1], deconv, double)
        t += d[:, None, None]
        self.xp.maximum(t, 0, out=t)
        point = Geometry.of(t.shape, p.shape, 1, 0, 1, 1)
        self.save(parameters, hs, t, geometries, double, point)
        return convolution.forward(t, p, q, point)

    def backward(self, gy):  # (R, K+1, M, M)
        parameters, hs, t, geometries, double, point = self.saved
        *convs, (deconv, _), (p, _) = _in_pairs(parameters)
        # y = p t + q
        gt, *g_predictor = convolution.gradients(gy, t, p, point)
        # t = relu(D^T h_n + d): the transpose of a transpose is the convolution itself
        gt = elementwise.relu_gradient(gt, t, in_place=True)
        g_deconv = convolution.weight_gradient(hs[-1], gt, double), convolution.bias_gradient(gt)
        gh = convolution.forward(gt, deconv, None, double)
        # h_i = relu(z_i), z_i = w_i * h_(i-1) + b_i; convs begin with w_1, hs with h_0
        g_convs = []
        for i in reversed(range(len(convs))):
            needs = (i > 0 or self.needs[0], True, True)
            gh, *gs = convolution.gradients(gh, hs[i], convs[i][0], geometries[i], needs, y=hs[i + 1])
            g_convs = [*gs, *g_convs]
        return gh if self.needs[0] else None, *g_convs, *g_deconv, *g_predictor


def _in_pairs(parameters):
    """w_1, b_1, w_2, b_2, ... as pairs of a layer's weight and bias."""
    return list(zip(parameters[::2], parameters[1::2]))


def mask_head(x, convs, deconv, predictor) -> Tensor:
    """Mask logits of every class, for every RoI.

    Parameters
    ----------
    x : (R, C, P, P) float
        RoI features.
    convs : n pairs (weight (C, C, 3, 3), bias (C,))
    deconv : (weight (C, C, 2, 2), bias (C,))
    predictor : (weight (K + 1, C, 1, 1), bias (K + 1,))

    Returns
    -------
    (R, K + 1, 2P, 2P) Tensor of logits: apply a sigmoid to each class by itself.
    """
    return MaskHead.apply(x, *(v for layer in [*convs, deconv, predictor] for v in layer))


def mask_head_reference(x, convs, deconv, predictor) -> Tensor:
    """`mask_head` composed of small Functions."""
    for weight, bias in convs:
        x = relu(conv2d(x, weight, bias, padding=1))
    return conv2d(relu(conv_transpose2d(x, *deconv, stride=2)), *predictor)
