"""The RPN's head over all pyramid levels as one Function, its backward pass derived by hand.

Shapes: N images, C channels, levels (N, C, H_l, W_l), a anchors a position, A = sum_l H_l W_l a in all.

    h = relu(w * x + b)   3x3          for each level with the same weights (Faster R-CNN, section 3.1;
    o = u h + c           1x1, a       FPN, section 4.1)
    d = v h + e           1x1, 4a
"""

from __future__ import annotations

from minimask.autograd import Function, Tensor
from minimask.functions.activation import relu
from minimask.functions.array import concatenate
from minimask.functions.conv import conv2d
from minimask.kernels import convolution, elementwise
from minimask.kernels.geometry import Geometry


class RPNHead(Function):
    """Objectness logits (N, A) and box deltas (N, A, 4), level by level, position by position."""

    def forward(self, w, b, u, c, v, e, *xs):
        xp = self.xp
        uv = xp.concatenate([u, v])  # both 1x1 convolutions in one product: (a + 4a, C, 1, 1)
        ce = xp.concatenate([c, e])
        geometries = [self._geometries(x, w, uv) for x in xs]
        hs = [
            convolution.forward(x, w, b, g3, relu=True) for x, (g3, _) in zip(xs, geometries)
        ]  # (N, C, H, W)
        outs = [convolution.forward(h, uv, ce, g1) for h, (_, g1) in zip(hs, geometries)]  # (N, 5a, H, W)
        self.save(w, uv, xs, hs, geometries)
        a = len(u)
        logits = [_position_major(o[:, :a], 1) for o in outs]
        deltas = [_position_major(o[:, a:], 4) for o in outs]
        return xp.concatenate(logits, axis=1)[..., 0], xp.concatenate(deltas, axis=1)

    def backward(self, g_logits, g_deltas):  # (N, A), (N, A, 4)
        w, uv, xs, hs, geometries = self.saved
        xp, a = self.xp, len(uv) // 5
        totals, gxs, begin = None, [], 0
        for i, (x, h, (g3, g1)) in enumerate(zip(xs, hs, geometries)):
            end = begin + h.shape[2] * h.shape[3] * a
            go = xp.concatenate(
                [
                    _channel_major(g_logits[:, begin:end, None], h.shape),  # (N, a, H, W)
                    _channel_major(g_deltas[:, begin:end], h.shape),  # (N, 4a, H, W)
                ],
                axis=1,
            )
            begin = end
            # o = uv h + ce
            g_uv, g_ce = convolution.weight_gradient(go, h, g1), convolution.bias_gradient(go)
            gh = convolution.input_gradient(go, uv, g1)
            # h = relu(z), z = w * x + b: h > 0 just where z > 0
            gz = elementwise.relu_gradient(gh, h, in_place=True)
            gw, gb = convolution.weight_gradient(gz, x, g3), convolution.bias_gradient(gz)
            gxs.append(convolution.input_gradient(gz, w, g3) if self.needs[6 + i] else None)
            # the levels share their weights, so the weights' gradients add up
            level = [gw, gb, g_uv, g_ce]
            totals = level if totals is None else [t + g for t, g in zip(totals, level)]
        gw, gb, g_uv, g_ce = totals
        return gw, gb, g_uv[:a], g_ce[:a], g_uv[a:], g_ce[a:], *gxs

    @staticmethod
    def _geometries(x, w, uv):
        return Geometry.of(x.shape, w.shape, 1, 1, 1, 1), Geometry.of(x.shape, uv.shape, 1, 0, 1, 1)


def _position_major(o, values: int):  # (N, a values, H, W) -> (N, H W a, values)
    n, c, h, w = o.shape
    return (
        o.reshape(n, c // values, values, h, w)
        .transpose(0, 3, 4, 1, 2)
        .reshape(n, h * w * c // values, values)
    )


def _channel_major(g, shape):  # (N, H W a, values) -> (N, a values, H, W)
    n, _, h, w = shape
    c = g.shape[1] * g.shape[2] // (h * w)
    return g.reshape(n, h, w, c // g.shape[2], g.shape[2]).transpose(0, 3, 4, 1, 2).reshape(n, c, h, w)


def rpn_head(xs, conv, objectness, deltas) -> tuple[Tensor, Tensor]:
    """Objectness and box deltas of all anchors.

    Parameters
    ----------
    xs : L of (N, C, H_l, W_l)
    conv, objectness, deltas : (weight, bias) each
        (C, C, 3, 3) and (C,); (a, C, 1, 1) and (a,); (4a, C, 1, 1) and (4a,).

    Returns
    -------
    logits : (N, A) Tensor
    deltas : (N, A, 4) Tensor
        Level by level, row by row, position by position, the a anchors of a position together.
    """
    return RPNHead.apply(*conv, *objectness, *deltas, *xs)


def rpn_head_reference(xs, conv, objectness, deltas) -> tuple[Tensor, Tensor]:
    """`rpn_head` from small Functions."""
    hs = [relu(conv2d(x, *conv, padding=1)) for x in xs]
    flat = []
    for (weight, bias), values in ((objectness, 1), (deltas, 4)):
        outs = [conv2d(h, weight, bias) for h in hs]
        n, a = len(outs[0]), weight.shape[0] // values
        levels = [o.reshape(n, a, values, *o.shape[2:]).transpose(0, 3, 4, 1, 2) for o in outs]
        levels = [o.reshape(n, o.shape[1] * o.shape[2] * a, values) for o in levels]
        flat.append(concatenate(levels, axis=1))
    return flat[0].reshape(flat[0].shape[:2]), flat[1]
