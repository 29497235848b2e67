"""Every distinct convolution of ResNet-50-FPN at 800 x 1067 (padded to 800 x 1088): forward, and both passes.

The list comes from the model itself: one inference in which `convolution.forward` only notes what it is asked
for. Like is compared with like: torch gets weights into which the frozen norm's scale is folded beforehand,
its shift as bias, and adds the residual and applies ReLU in place, which is the best that can be done there
(torchvision's own model takes four passes); minimask runs the Function that the model runs, folding included.
Both passes means forward, and the gradients of input, weights, bias where it is trained, and residual; for
the stem, whose input is the image, only that of the weights.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from unittest import mock

import numpy as np

from minimask import Tensor, models, no_grad
from minimask import functions as F
from minimask.kernels import convolution, elementwise
from minimask.kernels.geometry import Geometry
from tests.benchmarks.measure import RELU, Contest, Row, compare

SIZE = 800, 1088


@dataclass(frozen=True)
class Convolution:
    """What the model asks for: sizes, where it stands, and what is fused behind it."""

    geometry: Geometry
    place: str  # "body", "fpn" or "rpn"
    relu: bool
    residual: bool

    @property
    def name(self) -> str:
        g = self.geometry
        (o, c, kh, kw), (height, width) = g.w_shape, g.x_shape[2:]
        stride = f" stride {g.stride[0]}" if g.stride != (1, 1) else ""
        behind = " + residual" * self.residual + " + relu" * self.relu
        return f"{self.place} {kh}x{kw} {c}>{o} at {height}x{width}{stride}{behind}"


@cache
def convolutions(size: tuple[int, int] = SIZE) -> dict[Convolution, int]:
    """Each distinct convolution of backbone, pyramid and RPN head, and how often it occurs."""
    model = models.maskrcnn_resnet50_fpn(2).eval()
    seen: Counter = Counter()
    place = "body"

    def note(x, w, b, g, relu=False, residual=None, **_):
        seen[Convolution(g, place, relu, residual is not None)] += 1
        return np.zeros(g.y_shape, x.dtype)

    with mock.patch.object(convolution, "forward", note), no_grad():
        cs = model.backbone.body(Tensor(np.zeros((1, 3, *size), np.float32)))
        place = "fpn"
        levels = model.backbone.fpn(cs)
        place = "rpn"
        model.rpn.head(levels)
    return dict(seen)


class Inputs:
    """Random arrays of one convolution, and the same memory as torch's tensors."""

    def __init__(self, conv: Convolution):
        import torch

        g, rng = conv.geometry, np.random.default_rng(0)
        self.x = rng.standard_normal(g.x_shape, np.float32)
        self.w = rng.standard_normal(g.w_shape, np.float32) * np.float32(g.patch_size**-0.5)
        self.b = rng.standard_normal(g.w_shape[0], np.float32)
        self.s = rng.uniform(0.5, 1.5, g.w_shape[0]).astype(np.float32)
        self.r = rng.standard_normal(g.y_shape, np.float32) if conv.residual else None
        self.gy = rng.standard_normal(g.y_shape, np.float32)
        self.is_frozen = conv.place == "body"
        folded = self.w * self.s[:, None, None, None] if self.is_frozen else self.w
        as_torch = lambda a: None if a is None else torch.from_numpy(a)  # noqa: E731
        self.tx, self.tw, self.tb, self.tr, self.tgy = map(
            as_torch, (self.x, folded, self.b, self.r, self.gy)
        )
        self.options = dict(stride=g.stride, padding=g.padding)


def forward(conv: Convolution) -> Contest:
    import torch

    a = Inputs(conv)

    def ours():
        with no_grad():
            if a.is_frozen:
                return F.conv_frozen_norm(a.x, a.w, (a.s, a.b), a.r, relu=conv.relu, **a.options)
            if conv.relu:  # inside the RPN head's Function
                return convolution.forward(a.x, a.w, a.b, conv.geometry, relu=True)
            return F.conv2d(a.x, a.w, a.b, **a.options)

    def theirs():
        with torch.no_grad():
            return _torch(a, conv, a.tx, a.tw, a.tb, a.tr)

    return Contest({"minimask": ours, "torch": theirs})


def _torch(a: Inputs, conv: Convolution, x, w, b, r):
    import torch

    y = torch.nn.functional.conv2d(x, w, b, **a.options)
    y = y if r is None else y.add_(r)
    return y.relu_() if conv.relu else y


def both(conv: Convolution) -> Contest:
    import torch

    a = Inputs(conv)
    is_stem = conv.geometry.x_shape[1] == 3

    def ours():
        if conv.relu and not a.is_frozen:
            return _rpn_head_s(a, conv.geometry)
        x, w = Tensor(a.x, requires_grad=not is_stem), Tensor(a.w, requires_grad=True)
        b = Tensor(a.b, requires_grad=True)
        r = None if a.r is None else Tensor(a.r, requires_grad=True)
        if a.is_frozen:
            y = F.conv_frozen_norm(x, w, (a.s, a.b), r, relu=conv.relu, **a.options)
        else:
            y = F.conv2d(x, w, b, **a.options)
        y.backward(a.gy)
        return [y] + [v.grad for v in (x, w, b, r) if v is not None and v.grad is not None]

    def theirs():
        x, w, b = (v.detach() for v in (a.tx, a.tw, a.tb))
        r = None if a.tr is None else a.tr.detach()
        wanted = [v for v in (None if is_stem else x, w, None if a.is_frozen else b, r) if v is not None]
        for v in wanted:
            v.requires_grad_()
        y = _torch(a, conv, x, w, b, r)
        return [y, *torch.autograd.grad(y, wanted, a.tgy)]

    def check(mine, peer):
        if a.is_frozen:  # torch's gradient is that of the folded weights
            peer[1 if is_stem else 2] *= torch.from_numpy(a.s[:, None, None, None])
        compare(mine, peer, RELU if conv.relu else 1e-5)

    return Contest({"minimask": ours, "torch": theirs}, check=check)


def _rpn_head_s(a: Inputs, g: Geometry) -> list:
    """The first convolution as the RPN head's Function computes it, forward and backward."""
    y = convolution.forward(a.x, a.w, a.b, g, relu=True)
    gz = elementwise.relu_gradient(a.gy, y)
    gw, gb = convolution.weight_gradient(gz, a.x, g), convolution.bias_gradient(gz)
    return [y, convolution.input_gradient(gz, a.w, g), gw, gb]


def rows() -> list[Row]:
    kinds = {"forward": forward, "both": both}
    return [
        Row(f"conv/{kind}/{conv.name}", lambda c=conv, make=make: make(c), count)
        for kind, make in kinds.items()
        for conv, count in convolutions().items()
    ]
