"""Cases of convolutions, norms, pooling, resizing, and the explicit RPN, mask and keypoint heads."""

from __future__ import annotations

import math

import numpy as np

from minimask.functions import conv, explicit_keypoint_head, explicit_mask_head, explicit_rpn_head, norm, pool
from minimask.functions.activation import relu as relu_function
from minimask.functions.conv_norm import ConvFrozenNorm, conv_frozen_norm_reference
from minimask.kernels import pooling
from minimask.kernels.geometry import Geometry, as_pair
from minimask.kernels.im2col import forward_loop
from minimask.kernels.roi_align import bilinear_loop
from minimask.lessons.gradient_cases.case import Case, apart, normal, positive

# -------------------------------------------------------------------------------------------- convolutions


def _conv(name: str, x, w, bias: bool = True, **options) -> Case:
    def loop(x, w, b, stride=1, padding=0, dilation=1, groups=1):
        return forward_loop(x, w, b, Geometry.of(x.shape, w.shape, stride, padding, dilation, groups))

    return Case(name, normal(x, w, w[:1] if bias else None), options, loop)


def _conv_transpose_loop(x, w, b, stride=1, padding=0, output_padding=0, dilation=1, groups=1):
    """Each pixel of x adds a copy of the kernel to y; `padding` rows are then cut off on every side."""
    s, pad, extra, d = (as_pair(v) for v in (stride, padding, output_padding, dilation))
    (n, channels, *in_size), (_, outs, *kernel) = x.shape, w.shape
    size = [(in_size[i] - 1) * s[i] + d[i] * (kernel[i] - 1) + 1 + extra[i] for i in (0, 1)]
    y = np.zeros((n, outs * groups, *size))
    for c, u, v, i, j in np.ndindex(*x.shape[1:], *kernel):
        first = c // (channels // groups) * outs  # of the output channels of c's group
        pixel = y[:, first : first + outs, u * s[0] + i * d[0], v * s[1] + j * d[1]]  # (N, outs), a view
        pixel += x[:, c, u, v, None] * w[c, :, i, j]
    y = y[:, :, pad[0] : size[0] - pad[0], pad[1] : size[1] - pad[1]]
    return y if b is None else y + b[:, None, None]


def _conv_transpose(name: str, x, w, bias: bool = True, **options) -> Case:
    outs = (w[1] * options.get("groups", 1),)
    return Case(name, normal(x, w, outs if bias else None), options, _conv_transpose_loop)


def _linear(name: str, rows: int, bias: bool = True) -> Case:
    def loop(x, w, b):
        y = np.array([[sum(row * column) for column in w] for row in x]).reshape(rows, len(w))
        return y if b is None else y + b

    return Case(name, normal((rows, 5), (3, 5), (3,) if bias else None), {}, loop)


def _conv_norm(name: str, x, w, residual=None, **options) -> Case:
    def composition(x, w, s, t, r, **options):
        return conv_frozen_norm_reference(x, w, (s.data, t.data), r, **options)

    inputs = normal(x, w, w[:1], w[:1], residual)
    return Case(name, inputs, options, composition=composition, constants=(2, 3))


# --------------------------------------------------------------------------------------------------- norms


def _batch_norm_reference(x, w, b, eps):
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    return _frozen_batch_norm_reference(x, w, b, mean, var, eps), mean, var


def _frozen_batch_norm_reference(x, w, b, mean, var, eps):
    w, b, mean, std = (v[:, None, None] for v in (w, b, mean, np.sqrt(var + eps)))
    return (x - mean) / std * w + b


def _group_norm_reference(x, w, b, groups, eps, relu):
    rows = x.reshape(len(x), groups, math.prod(x.shape[1:]) // groups)  # (N, groups, elements of a group)
    mean, std = rows.mean(2, keepdims=True), np.sqrt(rows.var(2, keepdims=True) + eps)
    y = ((rows - mean) / std).reshape(x.shape) * w[:, None, None] + b[:, None, None]
    return np.maximum(y, 0) if relu else y


def _batch_norm(name: str, images: int) -> Case:
    reference = _batch_norm_reference if images else None
    return Case(name, normal((images, 3, 2, 4), (3,), (3,)), dict(eps=1e-5), reference)


def _frozen_batch_norm(name: str, images: int) -> Case:
    def inputs(rng):
        return *normal((images, 3, 2, 4), (3,), (3,), (3,))(rng), *positive((3,))(rng)

    return Case(name, inputs, dict(eps=1e-5), _frozen_batch_norm_reference, constants=(3, 4))


def _group_norm(name: str, x, groups: int, relu: bool = False) -> Case:
    def composition(x, w, b, groups, eps, relu):
        y = norm.group_norm(x, groups, w, b, eps)
        return relu_function(y) if relu else y

    options = dict(groups=groups, eps=1e-5, relu=relu)
    return Case(name, normal(x, x[1:2], x[1:2]), options, _group_norm_reference, composition)


# ----------------------------------------------------------------------------------------- pooling, resizing


def _max_pool(name: str, x, **options) -> Case:
    def loop(x, kernel_size, stride=None, padding=0):
        stride = kernel_size if stride is None else stride
        g = pooling.geometry(x.shape, as_pair(kernel_size), as_pair(stride), as_pair(padding))
        y, _ = pooling.max_pool_loop(x.reshape(x.shape[0] * x.shape[1], 1, *x.shape[2:]), g)
        return y.reshape(*x.shape[:2], *g.out_size)

    return Case(name, apart(x), options, loop)


def _nearest_loop(x, added, size):
    rows, cols = ([k * n // out for k in range(out)] for n, out in zip(x.shape[2:], size))
    y = np.stack([np.stack([x[:, :, v, u] for u in cols], -1) for v in rows], -2)
    return y if added is None else y + added


def _bilinear_loop(x, size):
    (h, w), y = x.shape[2:], np.zeros((*x.shape[:2], *size))
    for n, p, q in np.ndindex(len(x), *size):
        v, u = (p + 0.5) * h / size[0] - 0.5, (q + 0.5) * w / size[1] - 0.5
        y[n, :, p, q] = bilinear_loop(x[n], v, u, h, w)
    return y


RESIZED = {  # images, and their size after resizing from 3 x 4
    "doubled": (2, (6, 8)),
    "no whole factor": (2, (7, 5)),
    "smaller": (1, (2, 3)),
    "no images": (0, (6, 8)),
}


def _upsample_nearest() -> list[Case]:
    """Each resizing alone (the second input is None), then with an array of the new size added."""
    alone, adding = [], []
    for name, (n, size) in RESIZED.items():
        x, added = (n, 2, 3, 4), (n, 2, *size)
        alone.append(Case(name, normal(x, None), dict(size=size), _nearest_loop))
        adding.append(Case(f"{name}, added", normal(x, added), dict(size=size), _nearest_loop))
    return alone + adding


def _upsample_bilinear() -> list[Case]:
    return [
        Case(name, normal((n, 2, 3, 4)), dict(size=size), _bilinear_loop)
        for name, (n, size) in RESIZED.items()
    ]


# ------------------------------------------------------------------------------------------ explicit heads


def _rpn_head(name: str, images: int, sizes) -> Case:
    channels, anchors = 3, 2
    shapes = [(channels, channels, 3, 3), (channels,)]  # the shared convolution
    shapes += [(anchors, channels, 1, 1), (anchors,)]  # logits
    shapes += [(4 * anchors, channels, 1, 1), (4 * anchors,)]  # deltas

    def composition(conv_w, conv_b, logit_w, logit_b, delta_w, delta_b, *xs):
        weights = (conv_w, conv_b), (logit_w, logit_b), (delta_w, delta_b)
        return explicit_rpn_head.rpn_head_reference(xs, *weights)

    return Case(name, normal(*shapes, *((images, channels, *s) for s in sizes)), composition=composition)


def _mask_head(name: str, rois: int, convs: int) -> Case:
    c, classes = 3, 4
    shapes = [(c, c, 3, 3), (c,)] * convs + [(c, c, 2, 2), (c,), (classes, c, 1, 1), (classes,)]

    def composition(x, *weights_and_biases):
        *hidden, deconv, predictor = zip(weights_and_biases[::2], weights_and_biases[1::2])
        return explicit_mask_head.mask_head_reference(x, hidden, deconv, predictor)

    return Case(name, normal((rois, c, 3, 3), *shapes), composition=composition)


def _keypoint_head(name: str, rois: int, convs: int) -> Case:
    c, d, keypoints = 3, 4, 2
    inputs = [c, *[d] * convs]  # channels of h_0, h_1, ...
    shapes = [shape for i in range(convs) for shape in ((d, inputs[i], 3, 3), (d,))]
    shapes += [(inputs[-1], keypoints, 4, 4), (keypoints,)]

    def composition(x, *weights_and_biases):
        *hidden, deconv = zip(weights_and_biases[::2], weights_and_biases[1::2])
        return explicit_keypoint_head.keypoint_head_reference(x, hidden, deconv)

    return Case(name, normal((rois, c, 3, 3), *shapes), composition=composition)


CASES = {
    conv.Conv2d: [
        _conv("plain", (2, 3, 5, 6), (4, 3, 3, 3)),
        _conv("padded", (2, 3, 5, 4), (4, 3, 3, 3), padding=1),
        _conv("stride 2, even and odd size", (1, 2, 6, 5), (3, 2, 3, 3), stride=2, padding=1),
        _conv("stride beyond the kernel", (1, 2, 7, 8), (3, 2, 2, 2), stride=3),
        _conv("dilated", (1, 2, 7, 6), (3, 2, 3, 2), dilation=2, padding=(2, 1)),
        _conv("groups", (2, 4, 4, 4), (6, 2, 3, 3), groups=2, padding=1),
        _conv("a group each, stride 2", (1, 3, 5, 5), (3, 1, 3, 3), groups=3, stride=2, padding=1),
        _conv("pointwise", (2, 3, 4, 3), (4, 3, 1, 1)),
        _conv("pointwise, groups", (2, 4, 3, 3), (2, 2, 1, 1), groups=2),
        _conv("pointwise, stride 2", (2, 3, 5, 4), (4, 3, 1, 1), stride=2),
        _conv("7 x 7 over a smaller image", (1, 2, 5, 4), (2, 2, 7, 7), stride=2, padding=3),
        _conv("1 x 3, unequal strides", (1, 2, 4, 6), (2, 2, 1, 3), stride=(2, 1), padding=(0, 1)),
        _conv("padding beyond the kernel", (1, 2, 3, 3), (2, 2, 2, 2), padding=3),
        _conv("more images than threads", (9, 2, 3, 3), (2, 2, 3, 3), padding=1),
        _conv("without bias", (1, 2, 4, 4), (3, 2, 3, 3), bias=False),
        _conv("no images", (0, 2, 4, 4), (3, 2, 3, 3), padding=1),
        _conv("no images, stride 2", (0, 2, 4, 4), (3, 2, 3, 3), stride=2),
    ],
    conv.ConvTranspose2d: [
        _conv_transpose("2 x 2, stride 2", (2, 3, 3, 4), (3, 4, 2, 2), stride=2),
        _conv_transpose("stride 1, padded", (1, 3, 4, 3), (3, 2, 3, 3), padding=1),
        _conv_transpose(
            "output padding", (1, 2, 3, 4), (2, 3, 3, 3), stride=2, padding=1, output_padding=(1, 0)
        ),
        _conv_transpose("groups, dilated", (2, 4, 3, 3), (4, 2, 2, 3), groups=2, dilation=2, stride=(1, 2)),
        _conv_transpose("without bias", (1, 2, 3, 3), (2, 3, 2, 2), bias=False, stride=2),
        _conv_transpose("no images", (0, 2, 3, 3), (2, 3, 2, 2), stride=2),
    ],
    conv.Linear: [_linear("plain", 4), _linear("without bias", 4, bias=False), _linear("no rows", 0)],
    ConvFrozenNorm: [
        _conv_norm("relu", (2, 3, 4, 5), (4, 3, 3, 3), padding=1),
        _conv_norm("residual, relu", (2, 3, 4, 4), (4, 3, 3, 3), (2, 4, 4, 4), padding=1),
        _conv_norm(
            "residual, stride 2, no relu", (1, 3, 5, 5), (2, 3, 3, 3), (1, 2, 2, 2), stride=2, relu=False
        ),
        _conv_norm("pointwise, groups", (2, 4, 3, 3), (4, 2, 1, 1), groups=2),
        _conv_norm("no images", (0, 3, 4, 4), (4, 3, 3, 3), (0, 4, 4, 4), padding=1),
    ],
    norm.BatchNorm: [_batch_norm("plain", 2), _batch_norm("no images", 0)],
    norm.FrozenBatchNorm: [_frozen_batch_norm("plain", 2), _frozen_batch_norm("no images", 0)],
    norm.GroupNorm: [
        _group_norm("two groups", (2, 4, 3, 2), 2),
        _group_norm("two groups, relu", (2, 4, 3, 2), 2, relu=True),
        _group_norm("one group", (2, 3, 2, 2), 1),
        _group_norm("a group each", (2, 3, 4, 3), 3),
        _group_norm("no images", (0, 4, 3, 2), 2, relu=True),
    ],
    pool.MaxPool2d: [
        _max_pool("2 x 2", (2, 3, 4, 6), kernel_size=2),
        _max_pool("overlapping, padded, odd size", (2, 2, 5, 7), kernel_size=3, stride=2, padding=1),
        _max_pool("unequal sides", (1, 2, 5, 6), kernel_size=(2, 3), stride=(1, 2), padding=(0, 1)),
        _max_pool("stride beyond the window", (1, 2, 5, 8), kernel_size=2, stride=3),
        _max_pool("more than 256 in a window", (1, 1, 18, 19), kernel_size=17, stride=1),
        _max_pool("no images", (0, 2, 4, 4), kernel_size=2),
    ],
    pool.UpsampleNearest: _upsample_nearest(),
    pool.UpsampleBilinear: _upsample_bilinear(),
    explicit_rpn_head.RPNHead: [
        _rpn_head("three levels", 2, [(4, 3), (2, 2), (1, 1)]),
        _rpn_head("one level", 1, [(3, 4)]),
        _rpn_head("no images", 0, [(3, 2), (1, 1)]),
    ],
    explicit_mask_head.MaskHead: [
        _mask_head("two convolutions", 3, 2),
        _mask_head("deconvolution alone", 2, 0),
        _mask_head("no RoIs", 0, 2),
    ],
    explicit_keypoint_head.KeypointHead: [
        _keypoint_head("two convolutions", 3, 2),
        _keypoint_head("deconvolution alone", 2, 0),
        _keypoint_head("no RoIs", 0, 2),
    ],
}
