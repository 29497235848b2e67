"""The keypoint head (section 5) as one Function, its backward pass derived by hand.

Shapes: R RoIs, C channels in, D in between, P x P features in, K keypoints, M x M = 4P x 4P heat maps out.

    h_0 = x                                      (R, C, P, P)
    h_i = relu(w_i * h_(i-1) + b_i)   3x3, i = 1..n: (R, D, P, P)
    t   = T^T h_n + d                 4x4 deconvolution, stride 2, padding 1: (R, K, 2P, 2P)
    y   = U t U^T                     U doubles an axis by linear interpolation: (R, K, 4P, 4P)
"""

from __future__ import annotations

from minimask.autograd import Function, Tensor
from minimask.backend import require_floating
from minimask.functions.activation import relu
from minimask.functions.conv import conv2d, conv_transpose2d
from minimask.functions.pool import upsample_bilinear
from minimask.kernels import convolution, elementwise, resample
from minimask.kernels.geometry import Geometry


class KeypointHead(Function):
    """Logits of every position for every keypoint of every RoI."""

    def forward(self, x, *parameters):  # (R, C, P, P), n pairs w b, T d -> (R, K, 4P, 4P)
        *convs, (deconv, d) = zip(parameters[::2], parameters[1::2])
        require_floating(
            "keypoint_head", x=x, **{f"parameter {i}": each for i, each in enumerate(parameters)}
        )
        hs, geometries = [x], []
        for w, b in convs:
            same = Geometry.of(hs[-1].shape, w.shape, 1, 1, 1, 1)
            hs.append(convolution.forward(hs[-1], w, b, same, relu=True))
            geometries.append(same)
        (r, _, side, _), keypoints = x.shape, deconv.shape[1]
        # T is a convolution of stride 2 from 2P x 2P to P x P: its input gradient is T^T
        double = Geometry.of((r, keypoints, 2 * side, 2 * side), deconv.shape, 2, 1, 1, 1)
        t = convolution.input_gradient(hs[-1], deconv, double)
        t += d[:, None, None]
        self.save(parameters, hs, geometries, double)
        return resample.bilinear(t, (4 * side, 4 * side))

    def backward(self, gy):  # (R, K, 4P, 4P)
        parameters, hs, geometries, double = self.saved
        *convs, (deconv, _) = zip(parameters[::2], parameters[1::2])
        # y = U t U^T, so gt = U^T gy U
        gt = resample.bilinear_gradient(gy, (gy.shape[2] // 2, gy.shape[3] // 2))
        # t = T^T h_n + d: the transpose of a transpose is the convolution itself. If a softmax over all
        # positions follows, it does not see d, whose gradient is then 0 up to rounding.
        g_deconv = convolution.weight_gradient(hs[-1], gt, double), convolution.bias_gradient(gt)
        gh = convolution.forward(gt, deconv, None, double)
        # h_i = relu(z_i), z_i = w_i * h_(i-1) + b_i; convs begin with w_1, hs with h_0
        g_convs = []
        for i in reversed(range(len(convs))):
            gz = elementwise.relu_gradient(gh, hs[i + 1], in_place=True)
            gw, gb = convolution.weight_gradient(gz, hs[i], geometries[i]), convolution.bias_gradient(gz)
            g_convs = [gw, gb, *g_convs]
            if i > 0 or self.needs[0]:
                gh = convolution.input_gradient(gz, convs[i][0], geometries[i])
        return gh if self.needs[0] else None, *g_convs, *g_deconv


def keypoint_head(x, convs, deconv) -> Tensor:
    """Logits of the positions of every keypoint, for every RoI.

    Parameters
    ----------
    x : (R, C, P, P) float
        RoI features.
    convs : n pairs (weight (D, C or D, 3, 3), bias (D,))
    deconv : (weight (D, K, 4, 4), bias (K,))

    Returns
    -------
    (R, K, 4P, 4P) Tensor of logits: apply one softmax to all positions of a keypoint.
    """
    return KeypointHead.apply(x, *(v for layer in [*convs, deconv] for v in layer))


def keypoint_head_reference(x, convs, deconv) -> Tensor:
    """`keypoint_head` composed of small Functions."""
    for weight, bias in convs:
        x = relu(conv2d(x, weight, bias, padding=1))
    return upsample_bilinear(conv_transpose2d(x, *deconv, stride=2, padding=1))
