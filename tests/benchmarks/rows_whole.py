"""Whole models: inference and a training step beside torchvision's, with equal weights, images and objects.

Both models freeze the same layers (the default: stem, first stage and all norms), draw as many samples, and
take the optimizer's step. Training draws its samples at random, each library its own, so only the losses'
sizes can be compared there; tests/test_mask_rcnn.py compares losses and gradients to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minimask import models
from minimask.randomness import Draws
from minimask.training.optim import SGD
from tests.benchmarks.measure import Contest, Row
from tests.model_data import fill

SIZE = 480, 640
OBJECTS = 12


def image(size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(0).random((3, *size), np.float32)


def discs(seed: int, count: int, size: tuple[int, int], radii: tuple[float, float]) -> dict:
    """A target of discs, of one class."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[: size[0], : size[1]] + 0.5
    r = rng.uniform(*radii, count)
    centres = rng.uniform(r[:, None], np.array(size) - r[:, None])
    masks = np.stack([(yy - y) ** 2 + (xx - x) ** 2 < s**2 for (y, x), s in zip(centres, r)])
    corners = [centres[:, ::-1] - r[:, None], centres[:, ::-1] + r[:, None]]
    boxes = np.concatenate(corners, axis=1).astype(np.float32)
    return dict(boxes=boxes, labels=np.ones(count, np.int64), masks=masks.astype(np.uint8))


def as_torch(target: dict) -> dict:
    import torch

    return {name: torch.from_numpy(value) for name, value in target.items()}


# -------------------------------------------------------------------- maskrcnn_resnet50_fpn, as it is trained


def resnet50():
    """minimask's model with weights that keep activations and scores in a trained model's range."""
    model = fill(models.maskrcnn_resnet50_fpn(91))
    for name, value in model.state_dict().items():
        if name.endswith("bn3.weight"):
            value *= 0.3  # sixteen blocks add up
    return model


def torch_resnet50(state: dict | None = None):
    """What torchvision builds for pretrained weights: frozen norms, three stages that train."""
    from torch import from_numpy
    from torchvision.models import resnet50 as resnet
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.ops.misc import FrozenBatchNorm2d

    peer = MaskRCNN(_resnet_fpn_extractor(resnet(norm_layer=FrozenBatchNorm2d), 3), 91)
    if state:
        peer.load_state_dict({k: from_numpy(v.copy()) for k, v in state.items()})
    return peer


def resnet50_inference() -> Callable:
    model, x = resnet50().eval(), image()

    def run():
        result = model([x])[0]
        return [result["scores"], result["boxes"], result["masks"].numpy()]

    return run


def torch_resnet50_inference() -> Callable:
    import torch

    peer, x = torch_resnet50(resnet50().state_dict()).eval(), torch.from_numpy(image())

    def run():
        with torch.no_grad():
            result = peer([x])[0]
        return [result["scores"], result["boxes"], result["masks"]]

    return run


def same_detections(mine, peer) -> None:
    """As many, of the same scores; boxes and masks equal but for a few that change places in a near tie."""
    (scores, boxes, masks), (peer_scores, peer_boxes, peer_masks) = mine, (v.numpy() for v in peer)
    assert len(scores) == len(peer_scores) > 50, f"{len(scores)} detections, torch {len(peer_scores)}"
    np.testing.assert_allclose(scores, peer_scores, rtol=1e-3)
    equal = np.abs(boxes - peer_boxes).max(axis=1) < 0.05
    assert equal.mean() > 0.9, f"{(~equal).sum()} of {len(boxes)} boxes differ"
    assert np.abs(masks[equal] - peer_masks[equal]).mean() < 1e-3


def large_batch() -> tuple[list[np.ndarray], list[dict]]:
    return [image()], [discs(1, OBJECTS, SIZE, (16, 90))]


def resnet50_step() -> Callable:
    return step(resnet50(), *large_batch())


def torch_resnet50_step() -> Callable:
    return torch_step(torch_resnet50(resnet50().state_dict()).train(), *large_batch())


# ------------------------------------------------------------------------------------------- maskrcnn_small


def small_batch(objects: int = 30) -> tuple[list[np.ndarray], list[dict]]:
    return [image((256, 256))] * 2, [discs(n, objects, (256, 256), (4, 15)) for n in range(2)]


def small_step(objects: int = 30, num_classes: int = 2) -> Callable:
    return step(models.maskrcnn_small(num_classes), *small_batch(objects))


def torch_small_step(objects: int = 30, num_classes: int = 2) -> Callable:
    from tests.benchmarks.torch_small import torch_small

    return torch_step(torch_small(models.maskrcnn_small(num_classes)), *small_batch(objects))


# -------------------------------------------------------------------------------------------- training steps


def step(model, images: list, targets: list) -> Callable:
    """A training step of minimask's model as a function; the rate is so small that the weights stay."""
    optimizer = SGD(model.named_parameters(), 1e-7)

    def run():
        losses = model.loss(images, targets, Draws())
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        return {name: float(value.data) for name, value in losses.items()}

    return run


def torch_step(peer, images: list, targets: list) -> Callable:
    """The same of torchvision's."""
    import torch

    trained = [p for p in peer.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 1e-7, momentum=0.9, weight_decay=1e-4)
    images, targets = [torch.from_numpy(i) for i in images], [as_torch(t) for t in targets]

    def run():
        losses = peer(images, targets)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        return {name: float(value.detach()) for name, value in losses.items()}

    return run


def similar_losses(mine: dict, peer: dict) -> None:
    """The same losses, each of torch's size: they see different samples, and few of them have a box."""
    assert mine.keys() == peer.keys()
    for name, value in mine.items():
        assert abs(value - peer[name]) <= 0.5 * peer[name] + 0.02, (
            f"{name}: {value:.4f}, torch {peer[name]:.4f}"
        )


@dataclass(frozen=True)
class Whole:
    """One run of a whole model: what builds it, for each library; the runs' results must pass the check."""

    minimask: Callable[[], Callable]
    torch: Callable[[], Callable]
    check: Callable

    def contest(self) -> Contest:
        return Contest({"minimask": self.minimask(), "torch": self.torch()}, check=self.check)


WHOLE = {
    "maskrcnn_resnet50_fpn inference": Whole(resnet50_inference, torch_resnet50_inference, same_detections),
    "maskrcnn_resnet50_fpn step": Whole(resnet50_step, torch_resnet50_step, similar_losses),
    "maskrcnn_small step": Whole(small_step, torch_small_step, similar_losses),
}


def rows() -> list[Row]:
    return [Row(f"whole/{name}", whole.contest) for name, whole in WHOLE.items()]
