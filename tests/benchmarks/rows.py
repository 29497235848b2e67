"""What is measured: each row gives two functions without arguments, minimask's and torch's."""

from __future__ import annotations

import numpy as np

import minimask
from minimask import functions as F
from minimask import models, no_grad
from minimask.optim import SGD
from minimask.randomness import Draws


def conv(channels: int, size: int):
    """3x3 convolution with bias and ReLU, forward."""

    def row():
        import torch

        rng = np.random.default_rng(0)
        x = rng.standard_normal((1, channels, size, size), np.float32)
        w = rng.standard_normal((channels, channels, 3, 3), np.float32)
        b = rng.standard_normal(channels, np.float32)
        tx, tw, tb = map(torch.from_numpy, (x, w, b))

        def ours():
            with no_grad():
                F.relu(F.conv2d(x, w, b, padding=1))

        def theirs():
            with torch.no_grad():
                torch.relu(torch.nn.functional.conv2d(tx, tw, tb, padding=1))

        return ours, theirs

    return row


def roi_align(backward: bool):
    """512 RoIs of 256 channels on one map of 200 x 272, 7 x 7 bins of 2 x 2 points, NCHW in and out."""

    def row():
        import torch
        import torchvision

        rng = np.random.default_rng(0)
        x = rng.standard_normal((1, 256, 200, 272), np.float32)
        corner, size = rng.uniform(0, 600, (512, 2)), rng.uniform(20, 200, (512, 2))
        rois = np.concatenate([np.zeros((512, 1)), corner, corner + size], axis=1).astype(np.float32)
        g = rng.standard_normal((512, 256, 7, 7), np.float32)
        tx, tr, tg = torch.from_numpy(x), torch.from_numpy(rois), torch.from_numpy(g)
        tx.requires_grad_(backward)

        def ours():
            y = F.roi_align(minimask.Tensor(x, requires_grad=backward), rois, 7, 0.25, 2, True)
            if backward:
                y.backward(g)

        def theirs():
            y = torchvision.ops.roi_align(tx, tr, 7, 0.25, 2, True)
            if backward:
                y.backward(tg)
                tx.grad = None

        return ours, theirs

    return row


def small_step():
    """A training step of `maskrcnn_small` on 2 x 256 x 256 with 30 objects each, optimizer included."""
    import torch

    from tests.benchmarks.torch_small import torch_small

    rng = np.random.default_rng(0)
    images = [rng.random((3, 256, 256), np.float32) for _ in range(2)]
    targets = [discs(rng, 30, 256) for _ in range(2)]
    model = models.maskrcnn_small(2)
    optimizer = SGD(model.named_parameters(), 1e-4)
    peer = torch_small(model)
    peer_optimizer = torch.optim.SGD(peer.parameters(), 1e-4, momentum=0.9, weight_decay=1e-4)
    peer_images = [torch.from_numpy(i) for i in images]
    peer_targets = [{k: torch.from_numpy(v) for k, v in t.items()} for t in targets]

    def ours():
        sum(model.loss(images, targets, Draws()).values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    def theirs():
        sum(peer(peer_images, peer_targets).values()).backward()
        peer_optimizer.step()
        peer_optimizer.zero_grad()

    return ours, theirs


def discs(rng: np.random.Generator, count: int, size: int) -> dict:
    """A target of discs of 8 to 30 pixels."""
    yy, xx = np.mgrid[:size, :size] + 0.5
    centres, radii = rng.uniform(16, size - 16, (count, 2)), rng.uniform(4, 15, count)
    masks = np.stack([(xx - x) ** 2 + (yy - y) ** 2 < r**2 for (x, y), r in zip(centres, radii)])
    boxes = np.concatenate([centres - radii[:, None], centres + radii[:, None]], axis=1).astype(np.float32)
    return dict(boxes=boxes, labels=np.ones(count, np.int64), masks=masks.astype(np.uint8))


def resnet50_inference():
    """`maskrcnn_resnet50_fpn` on one image of 480 x 640, resized to 800 x 1067; equal random weights."""
    import torch
    import torchvision

    ours = models.maskrcnn_resnet50_fpn(91).eval()
    peer = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    state = {k: torch.from_numpy(v) for k, v in ours.state_dict().items()}
    peer.load_state_dict(state, strict=False)  # it also wants num_batches_tracked
    image = np.random.default_rng(0).random((3, 480, 640), np.float32)
    peer_image = torch.from_numpy(image)

    def theirs():
        with torch.no_grad():
            peer([peer_image])

    return lambda: ours([image])[0]["masks"].numpy(), theirs


ROWS = {
    "conv 64 at 200": conv(64, 200),
    "conv 128 at 100": conv(128, 100),
    "conv 256 at 50": conv(256, 50),
    "conv 512 at 25": conv(512, 25),
    "roi_align forward": roi_align(False),
    "roi_align forward and backward": roi_align(True),
    "maskrcnn_small step": small_step,
    "maskrcnn_resnet50_fpn inference": resnet50_inference,
}
