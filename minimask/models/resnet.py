"""ResNet: the body of the backbone (He et al. 2016), with basic or bottleneck blocks and any norm.

Shapes: N images, a stage's C channels at stride s: (N, C, H/s, W/s).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minimask import functions as F
from minimask.nn import Conv2d, Module, Sequential, conv_norm

Norm = Callable[[int], Module]


class BasicBlock(Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int, norm: Norm, rng):
        self.conv1 = Conv2d(channels_in, channels, 3, rng, stride=stride, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = Conv2d(channels, channels, 3, rng, bias=False)
        self.bn2 = norm(channels)
        self.downsample = _shortcut(channels_in, channels, stride, norm, rng)

    def forward(self, x):  # (N, C_in, H, W) -> (N, C, H/stride, W/stride)
        shortcut = conv_norm(*self.downsample, x, relu=False) if self.downsample else x
        y = conv_norm(self.conv1, self.bn1, x)
        return conv_norm(self.conv2, self.bn2, y, residual=shortcut)


class Bottleneck(Module):
    """1x1 to fewer channels, 3x3 (which has the stride, as in torchvision), 1x1 to four times as many."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int, norm: Norm, rng):
        self.conv1 = Conv2d(channels_in, channels, 1, rng, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = Conv2d(channels, channels, 3, rng, stride=stride, bias=False)
        self.bn2 = norm(channels)
        self.conv3 = Conv2d(channels, 4 * channels, 1, rng, bias=False)
        self.bn3 = norm(4 * channels)
        self.downsample = _shortcut(channels_in, 4 * channels, stride, norm, rng)

    def forward(self, x):  # (N, C_in, H, W) -> (N, 4C, H/stride, W/stride)
        shortcut = conv_norm(*self.downsample, x, relu=False) if self.downsample else x
        y = conv_norm(self.conv1, self.bn1, x)
        y = conv_norm(self.conv2, self.bn2, y)
        return conv_norm(self.conv3, self.bn3, y, residual=shortcut)


def _shortcut(channels_in: int, channels_out: int, stride: int, norm: Norm, rng) -> Sequential | None:
    if stride == 1 and channels_in == channels_out:
        return None
    conv = Conv2d(channels_in, channels_out, 1, rng, stride=stride, bias=False, gain=1.0)
    return Sequential(conv, norm(channels_out))


class ResNet(Module):
    """Stem and four stages at strides 4, 8, 16 and 32.

    Parameters
    ----------
    block : BasicBlock or Bottleneck
    blocks : four ints
        Number of blocks of each stage.
    channels : four ints
        Of each stage, before a bottleneck's expansion by 4.
    norm : callable
        Makes a norm for so many channels.
    rng : numpy.random.Generator
    stem : int
        Kernel of the first convolution: 7, as published, or 3.
    """

    def __init__(self, block, blocks: Sequence[int], channels: Sequence[int], norm: Norm, rng, stem: int = 7):
        self.conv1 = Conv2d(3, channels[0], stem, rng, stride=2, bias=False)
        self.bn1 = norm(channels[0])
        self.channels = [c * block.expansion for c in channels]
        before = channels[0]
        for i, (count, c) in enumerate(zip(blocks, channels)):
            stage = []
            for k in range(count):
                stage.append(block(before, c, 2 if i > 0 and k == 0 else 1, norm, rng))
                before = c * block.expansion
            setattr(self, f"layer{i + 1}", Sequential(*stage))

    def freeze(self, trainable_stages: int) -> None:
        """Freeze all but the last stages; 5 trains everything, stem included."""
        kept = ["layer4", "layer3", "layer2", "layer1", "conv1", "bn1"][
            : trainable_stages + (trainable_stages == 5)
        ]
        for name, parameter in self.named_parameters():
            parameter.requires_grad = name.split(".")[0] in kept

    def forward(self, x):  # (N, 3, H, W) -> C2..C5, each (N, C_i, H/s, W/s)
        x = conv_norm(self.conv1, self.bn1, x)  # stride 2
        c2 = self.layer1(F.max_pool2d(x, 3, stride=2, padding=1))  # stride 4
        c3 = self.layer2(c2)  # stride 8
        c4 = self.layer3(c3)  # stride 16
        c5 = self.layer4(c4)  # stride 32
        return [c2, c3, c4, c5]
