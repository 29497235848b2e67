"""Feature pyramid network (Lin et al. 2017): the deepest level's meaning, at every level's resolution.

Shapes: C2..C5 (N, C_i, H/s, W/s) in, P2..P6 (N, D, H/s, W/s) out, s = 4, 8, 16, 32, 64.
"""

from __future__ import annotations

from collections.abc import Sequence

from minimask import functions as F
from minimask.nn import ConvNorm, MakeNorm, Module, Sequential


class FPN(Module):
    """1x1 laterals, top-down additions, 3x3 smoothing, and P6 by subsampling P5.

    Parameters
    ----------
    channels_in : sequence of int
        Of C2..C5.
    channels : int
        Of P2..P6.
    rng : numpy.random.Generator
    norm : callable, optional
        Makes the norm after each convolution, given the number of channels: batch norm in torchvision's v2.
    """

    def __init__(self, channels_in: Sequence[int], channels: int, rng, norm: MakeNorm | None = None):
        self.inner_blocks = Sequential(*(ConvNorm(c, channels, 1, rng, norm, gain=1.0) for c in channels_in))
        self.layer_blocks = Sequential(
            *(ConvNorm(channels, channels, 3, rng, norm, gain=1.0) for _ in channels_in)
        )

    def forward(self, cs):
        inner = [lateral(c) for lateral, c in zip(self.inner_blocks, cs)]  # (N, D, H/s, W/s)
        for i in reversed(range(len(inner) - 1)):
            inner[i] = F.upsample_nearest(inner[i + 1], inner[i].shape[2:], add=inner[i])  # top-down
        ps = [smooth(x) for smooth, x in zip(self.layer_blocks, inner)]
        return [*ps, F.max_pool2d(ps[-1], 1, stride=2)]  # P6, for the largest anchors only


class SingleLevel(Module):
    """A body without a pyramid: only its last map, which is C4 for a ResNet of three stages."""

    def __init__(self, body: Module):
        self.body = body

    def forward(self, images):  # (N, 3, H, W) -> one level (N, C, H/s, W/s)
        return self.body(images)[-1:]


class Backbone(Module):
    """Body and pyramid."""

    def __init__(self, body: Module, fpn: FPN):
        self.body, self.fpn = body, fpn

    def forward(self, images):  # (N, 3, H, W) -> P2..P6
        return self.fpn(self.body(images))
