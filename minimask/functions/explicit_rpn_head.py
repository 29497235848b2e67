"""The RPN's head over all pyramid levels as one Function, its backward pass derived by hand.

Shapes: N images, C channels, levels (N, C, H_l, W_l), a anchors at each position, A = sum_l H_l W_l a in all.
For each level, with the same weights (Faster R-CNN, section 3.1; FPN, section 4.1):

    h = relu(w * x + b)   3x3: (N, C, H_l, W_l)
    o = u h + c           1x1: objectness, (N, a, H_l, W_l)
    d = v h + e           1x1: box deltas, (N, 4a, H_l, W_l)
"""

from __future__ import annotations

from minimask.autograd import Function, Tensor
from minimask.backend import device_of, require_floating
from minimask.functions.activation import relu
from minimask.functions.array import concatenate
from minimask.functions.conv import conv2d
from minimask.kernels import convolution, elementwise, rpn_levels
from minimask.kernels.geometry import Geometry


class RPNHead(Function):
    """Objectness logits (N, A) and box deltas (N, A, 4), level by level, position by position."""

    def forward(self, w, b, u, c, v, e, *xs):  # as above, and the levels -> (N, A), (N, A, 4)
        _require_floating(xs, w=w, b=b, u=u, c=c, v=v, e=e)
        xp, a = self.xp, len(u)
        uv, ce = xp.concatenate([u, v]), xp.concatenate([c, e])  # both 1x1 convolutions as one, of 5a outputs
        hs, geometries, logits, deltas = [], [], [], []
        for x in xs:
            g3, g1 = Geometry.of(x.shape, w.shape, 1, 1, 1, 1), Geometry.of(x.shape, uv.shape, 1, 0, 1, 1)
            h = convolution.forward(x, w, b, g3, relu=True)  # (N, C, H, W)
            od = convolution.forward(h, uv, ce, g1)  # (N, 5a, H, W)
            logits.append(_position_major(od[:, :a], 1))  # (N, H W a, 1)
            deltas.append(_position_major(od[:, a:], 4))  # (N, H W a, 4)
            hs.append(h)
            geometries.append((g3, g1))
        self.save(w, uv, xs, hs, geometries)
        return xp.concatenate(logits, axis=1)[..., 0], xp.concatenate(deltas, axis=1)

    def backward(self, g_logits, g_deltas):  # (N, A), (N, A, 4)
        w, uv, xs, hs, geometries = self.saved
        xp, a = self.xp, len(uv) // 5
        totals, gxs, begin = None, [], 0
        for i, (x, h, (g3, g1)) in enumerate(zip(xs, hs, geometries)):
            end = begin + h.shape[2] * h.shape[3] * a
            g_o = _channel_major(g_logits[:, begin:end, None], h.shape)  # (N, a, H, W)
            g_d = _channel_major(g_deltas[:, begin:end], h.shape)  # (N, 4a, H, W)
            g_od = xp.concatenate([g_o, g_d], axis=1)  # (N, 5a, H, W)
            begin = end
            # od = uv h + ce
            g_uv, g_ce = convolution.weight_gradient(g_od, h, g1), convolution.bias_gradient(g_od)
            gh = convolution.input_gradient(g_od, uv, g1)
            # h = relu(z), z = w * x + b: h > 0 exactly where z > 0
            gz = elementwise.relu_gradient(gh, h, in_place=True)
            gw, gb = convolution.weight_gradient(gz, x, g3), convolution.bias_gradient(gz)
            gxs.append(convolution.input_gradient(gz, w, g3) if self.needs[6 + i] else None)
            # the levels share their weights, so the weights' gradients add up
            level = [gw, gb, g_uv, g_ce]
            totals = level if totals is None else [t + g for t, g in zip(totals, level)]
        gw, gb, g_uv, g_ce = totals
        return gw, gb, g_uv[:a], g_ce[:a], g_uv[a:], g_ce[a:], *gxs


class _RPNHeadAtOnce(RPNHead):
    """The same with each layer's patches of all levels in one matrix, where a GPU has room for that."""

    def forward(self, w, b, u, c, v, e, *xs):
        self.at_once = rpn_levels.has_room(xs, w)
        if not self.at_once:
            return super().forward(w, b, u, c, v, e, *xs)
        _require_floating(xs, w=w, b=b, u=u, c=c, v=v, e=e)
        logits, deltas, h = rpn_levels.forward(xs, w, b, u, c, v, e)
        self.save(w, u, v, xs, h)
        return logits, deltas

    def backward(self, g_logits, g_deltas):
        if not self.at_once:
            return super().backward(g_logits, g_deltas)
        w, u, v, xs, h = self.saved
        *gs, gxs = rpn_levels.backward(g_logits, g_deltas, xs, h, w, u, v, any(self.needs[6:]))
        return *gs, *(gxs[i] if need else None for i, need in enumerate(self.needs[6:]))


def _require_floating(xs, **parameters) -> None:
    require_floating("rpn_head", **{f"map {i}": x for i, x in enumerate(xs)}, **parameters)


def _position_major(o, values: int):  # (N, a values, H, W) -> (N, H W a, values)
    n, c, h, w = o.shape
    o = o.reshape(n, c // values, values, h, w).transpose(0, 3, 4, 1, 2)  # (N, H, W, a, values)
    return o.reshape(n, h * w * c // values, values)


def _channel_major(g, shape):  # (N, H W a, values) -> (N, a values, H, W)
    n, _, h, w = shape
    a, values = g.shape[1] // (h * w), g.shape[2]
    g = g.reshape(n, h, w, a, values).transpose(0, 3, 4, 1, 2)  # (N, a, values, H, W)
    return g.reshape(n, a * values, h, w)


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
        Level by level and row by row; the a anchors of a position follow one another.
    """
    on_gpu = device_of(xs[0].data if isinstance(xs[0], Tensor) else xs[0]) == "cuda"
    return (_RPNHeadAtOnce if on_gpu else RPNHead).apply(*conv, *objectness, *deltas, *xs)


def rpn_head_reference(xs, conv, objectness, deltas) -> tuple[Tensor, Tensor]:
    """`rpn_head` composed of small Functions."""
    hs = [relu(conv2d(x, *conv, padding=1)) for x in xs]
    flat = []
    for (weight, bias), values in ((objectness, 1), (deltas, 4)):
        outs = [conv2d(h, weight, bias) for h in hs]
        n, a = len(outs[0]), weight.shape[0] // values
        levels = [o.reshape(n, a, values, *o.shape[2:]).transpose(0, 3, 4, 1, 2) for o in outs]
        levels = [o.reshape(n, o.shape[1] * o.shape[2] * a, values) for o in levels]
        flat.append(concatenate(levels, axis=1))
    return flat[0].reshape(flat[0].shape[:2]), flat[1]
