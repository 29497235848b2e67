"""ResNet: the body of the backbone (He et al. 2016), with basic or bottleneck blocks and any norm.

Shapes: N images, a stage's C channels at stride s: (N, C, H/s, W/s).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minimask import functions as F
from minimask.nn import Conv2d, MakeNorm, Module, Sequential


class BasicBlock(Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(
        self, channels_in: int, channels: int, stride: int, norm: MakeNorm, rng: np.random.Generator
    ):
        self.conv1 = Conv2d(channels_in, channels, 3, rng, stride=stride, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = Conv2d(channels, channels, 3, rng, bias=False)
        self.bn2 = norm(channels)
        self.downsample = _shortcut(channels_in, channels, stride, norm, rng)

    def forward(self, x):  # (N, C_in, H, W) -> (N, C, H/stride, W/stride)
        shortcut = self.downsample(x) if self.downsample else x
        y = self.bn1.after(self.conv1, x)
        return self.bn2.after(self.conv2, y, residual=shortcut)


class Bottleneck(Module):
    """1x1 to fewer channels, 3x3, 1x1 to four times as many, and a shortcut.

    Parameters
    ----------
    channels_in, channels : int
        Of the block's input, and of its stage before the expansion by 4.
    stride : int
    norm : callable
        Makes a norm, given the number of channels.
    rng : numpy.random.Generator
    groups, width_per_group : int
        Of the 3x3 convolution: 32 groups of width 8 make ResNeXt's 32x8d (Xie et al. 2017).
    stride_in_1x1 : bool
        Whether the first 1x1 convolution has the stride, as in the original ResNet and the weights that
        detectron2 converted from it; if not, the 3x3 has it, as in torchvision.
    """

    expansion = 4

    def __init__(
        self,
        channels_in: int,
        channels: int,
        stride: int,
        norm: MakeNorm,
        rng: np.random.Generator,
        *,
        groups: int = 1,
        width_per_group: int = 64,
        stride_in_1x1: bool = False,
    ):
        width = channels * width_per_group // 64 * groups
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = Conv2d(channels_in, width, 1, rng, stride=stride_1x1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = Conv2d(width, width, 3, rng, stride=stride_3x3, groups=groups, bias=False)
        self.bn2 = norm(width)
        self.conv3 = Conv2d(width, 4 * channels, 1, rng, bias=False)
        self.bn3 = norm(4 * channels)
        self.downsample = _shortcut(channels_in, 4 * channels, stride, norm, rng)

    def forward(self, x):  # (N, C_in, H, W) -> (N, 4C, H/stride, W/stride)
        shortcut = self.downsample(x) if self.downsample else x
        y = self.bn1.after(self.conv1, x)
        y = self.bn2.after(self.conv2, y)
        return self.bn3.after(self.conv3, y, residual=shortcut)


class Shortcut(Sequential):
    """A 1x1 convolution and a norm, where a block changes the size; named 0 and 1, as in torchvision."""

    def forward(self, x):  # (N, C_in, H, W) -> (N, C_out, H/stride, W/stride)
        conv, norm = self
        return norm.after(conv, x, relu=False)


def _shortcut(channels_in: int, channels_out: int, stride: int, norm: MakeNorm, rng) -> Shortcut | None:
    if stride == 1 and channels_in == channels_out:
        return None
    conv = Conv2d(channels_in, channels_out, 1, rng, stride=stride, bias=False, gain=1.0)
    return Shortcut(conv, norm(channels_out))


Block = type[BasicBlock] | type[Bottleneck]


def residual_stage(
    block: Block, count: int, before: int, channels: int, stride: int, norm: MakeNorm, rng, **block_options
) -> Sequential:
    """`count` blocks one after another, of which the first has the stride.

    Parameters
    ----------
    before, channels : int
        Of the stage's input, and of its blocks before a bottleneck's expansion by 4.
    block, norm, rng, **block_options
        As for `ResNet`.
    """
    stage = []
    for k in range(count):
        stage.append(block(before, channels, stride if k == 0 else 1, norm, rng, **block_options))
        before = channels * block.expansion
    return Sequential(*stage)


class ResNet(Module):
    """A stem, and stages at strides 4, 8, 16 and 32.

    Parameters
    ----------
    block : BasicBlock or Bottleneck
    blocks : four ints, or three
        Number of blocks of each stage; the fourth is left out where it is the head (C4).
    channels : as many ints
        Of each stage, before a bottleneck's expansion by 4.
    norm : callable
        Makes a norm, given the number of channels.
    rng : numpy.random.Generator
    stem : int
        Kernel size of the first convolution: 7, as published, or 3.
    pool : bool
        Whether a max pool follows it, as published. Without one, all stages have half the stride.
    **block_options
        For every block: `groups`, `width_per_group` and `stride_in_1x1` of `Bottleneck`.
    """

    def __init__(
        self,
        block: Block,
        blocks: Sequence[int],
        channels: Sequence[int],
        norm: MakeNorm,
        rng: np.random.Generator,
        stem: int = 7,
        pool: bool = True,
        **block_options,
    ):
        self.pool = pool
        self.conv1 = Conv2d(3, channels[0], stem, rng, stride=2, bias=False)
        self.bn1 = norm(channels[0])
        self.channels = [c * block.expansion for c in channels]
        before = channels[0]
        for i, (count, c, after) in enumerate(zip(blocks, channels, self.channels)):
            stride = 2 if i > 0 else 1  # the stem has brought the first stage to its stride
            stage = residual_stage(block, count, before, c, stride, norm, rng, **block_options)
            setattr(self, f"layer{i + 1}", stage)
            before = after

    @property
    def stages(self) -> list[Sequential]:
        """layer1 to layer4, or to layer3."""
        return [getattr(self, f"layer{i + 1}") for i in range(len(self.channels))]

    def freeze(self, trainable_stages: int) -> None:
        """Freeze all but the last `trainable_stages` stages; 5 trains everything, the stem included.

        They are counted from layer4, even where layer4 is not here but in the head.
        """
        stages = ["layer4", "layer3", "layer2", "layer1", "conv1", "bn1"]
        trained = stages if trainable_stages == 5 else stages[:trainable_stages]
        for name, parameter in self.named_parameters():
            parameter.requires_grad = name.split(".")[0] in trained

    def forward(self, x):  # (N, 3, H, W) -> C2..C5, each (N, C_i, H/s, W/s)
        x, levels = self.bn1.after(self.conv1, x), []  # stride 2
        if self.pool:
            x = F.max_pool2d(x, 3, stride=2, padding=1)  # stride 4
        for stage in self.stages:
            x = stage(x)  # strides 4, 8, 16, 32; half of these without the pooling
            levels.append(x)
        return levels
