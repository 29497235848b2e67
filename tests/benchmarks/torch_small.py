"""The network of `maskrcnn_small` in torchvision's classes, with the same parameters, and its training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(8, channels)


class _Block(nn.Module):
    def __init__(self, before: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.bn1 = _norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = _norm(channels)
        self.downsample = None
        if stride != 1 or before != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, channels, 1, stride, bias=False), _norm(channels)
            )

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + (self.downsample(x) if self.downsample else x))


class _Body(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels[0], 3, 2, 1, bias=False)
        self.bn1 = _norm(channels[0])
        before = channels[0]
        for i, c in enumerate(channels):
            setattr(self, f"layer{i + 1}", nn.Sequential(_Block(before, c, 2 if i else 1)))
            before = c

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        levels = {}
        for i in range(4):
            x = levels[str(i)] = getattr(self, f"layer{i + 1}")(x)
        return levels


class _Backbone(nn.Module):
    def __init__(self, channels, out_channels: int):
        super().__init__()
        self.body = _Body(channels)
        self.fpn = FeaturePyramidNetwork(list(channels), out_channels, LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, x):
        return self.fpn(self.body(x))


def torch_small(model) -> MaskRCNN:
    """A torchvision model that takes over the weights of minimask's `maskrcnn_small`, default options."""
    width, channels, classes = 256, 64, model.box_head.num_classes
    box = TwoMLPHead(channels * 49, width)
    mask = MaskRCNNHeads(channels, [channels] * 4, 1)
    peer = MaskRCNN(
        _Backbone((32, 64, 128, 256), channels),
        rpn_anchor_generator=AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=model.rpn.options.pre_nms_top_n_train,
        rpn_post_nms_top_n_train=model.rpn.options.post_nms_top_n_train,
        box_batch_size_per_image=model.box_head.options.batch_size_per_image,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        box_head=box,
        box_predictor=FastRCNNPredictor(width, classes),
        mask_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2),
        mask_head=mask,
        mask_predictor=MaskRCNNPredictor(channels, channels, classes),
        min_size=256,
        max_size=1600,
    )
    peer.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in model.state_dict().items()})
    return peer.train()


def torch_optimizer(peer: nn.Module, options) -> torch.optim.SGD:
    """SGD as `minimask.training` has it (a `TrainConfig`): norms and biases, the vectors, do not decay."""
    groups = [
        {"params": [p for p in peer.parameters() if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in peer.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=0.1, momentum=options.momentum)  # `torch_step` sets the rate


def torch_step(
    peer: nn.Module, optimizer: torch.optim.Optimizer, samples: Sequence, rate: float, clip_norm: float
) -> dict[str, float]:
    """One training step on minimask's samples, in the model's dtype; the losses, and their sum as "loss"."""
    dtype = next(peer.parameters()).dtype
    images = [torch.from_numpy(sample.image).to(dtype) for sample in samples]
    targets = [
        {name: torch.from_numpy(np.array(target[name])) for name in ("boxes", "labels", "masks")}
        for target in (sample.target() for sample in samples)
    ]
    losses = peer(images, targets)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    torch.nn.utils.clip_grad_norm_(peer.parameters(), clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    values = {name: loss.item() for name, loss in losses.items()}
    return values | {"loss": sum(values.values())}
