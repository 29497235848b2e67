"""Boxes and masks without gradients: suppression, box coding, proposals, targets, pasting, run lengths."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from minimask import Tensor, models, no_grad, ops
from minimask import functions as F
from minimask.data.rle import decode_runs, encode_mask, read_runs
from minimask.masks import TORCHVISION, crop_masks, paste_masks
from minimask.models.rpn import RPNOutput
from tests.benchmarks.measure import Contest, Row
from tests.benchmarks.rows_roi import boxes as random_rois
from tests.benchmarks.rows_whole import discs

IMAGE = 800, 1067
PADDED = 800, 1088


def crowded_boxes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) about ten to an object, as a detector's are, and their scores (N,), all different."""
    rng = np.random.default_rng(0)
    objects = random_rois(rng, max(count // 10, 1))[:, 1:]
    boxes = objects[rng.integers(0, len(objects), count)]
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    boxes = boxes + sides * rng.normal(0, 0.1, boxes.shape)
    return boxes.astype(np.float32), rng.permutation(np.linspace(0, 1, count, dtype=np.float32))


def nms(count: int) -> Contest:
    import torch
    import torchvision

    boxes, scores = crowded_boxes(count)
    peer = torch.from_numpy(boxes), torch.from_numpy(scores)
    return Contest(
        {
            "minimask": lambda: ops.nms(boxes, scores, 0.5),
            "torch": lambda: torchvision.ops.nms(*peer, 0.5),
        },
        tolerance=0,
    )


def box_coding(way: str, count: int = 2000, classes: int = 91) -> Contest:
    """Encoding boxes against as many others; decoding every class's box of every RoI."""
    import torch
    from torchvision.models.detection._utils import BoxCoder

    rng = np.random.default_rng(0)
    anchors, objects = random_rois(rng, count)[:, 1:], random_rois(rng, count)[:, 1:]
    deltas = rng.normal(0, 0.5, (count, 4 * classes)).astype(np.float32)
    coder, peer = ops.BoxCoder((10.0, 10.0, 5.0, 5.0)), BoxCoder((10.0, 10.0, 5.0, 5.0))
    tanchors, tobjects, tdeltas = map(torch.from_numpy, (anchors, objects, deltas))
    if way == "encode":
        runs = {
            "minimask": lambda: coder.encode(objects, anchors),
            "torch": lambda: peer.encode_single(tobjects, tanchors),
        }
    else:
        runs = {
            "minimask": lambda: coder.decode(deltas, anchors),
            "torch": lambda: peer.decode(tdeltas, [tanchors]),
        }
    return Contest(runs)


def proposals(mode: str) -> Contest:
    """From the RPN's logits and deltas, with anchors at hand, to the boxes kept."""
    import torch
    from torchvision.models.detection.image_list import ImageList

    from tests.benchmarks.rows_whole import torch_resnet50

    train = mode == "training"
    model = models.maskrcnn_resnet50_fpn(2).train(train)
    peer = torch_resnet50().train(train).rpn
    batch = SimpleNamespace(sizes=[IMAGE], padded_size=PADDED, images=np.zeros((1, 3, *PADDED), np.float32))
    sizes = [(200, 272), (100, 136), (50, 68), (25, 34), (13, 17)]
    with no_grad():
        empty = model.rpn([Tensor(np.zeros((1, 256, *size), np.float32)) for size in sizes], batch)
    rng = np.random.default_rng(0)
    logits = rng.permutation(np.linspace(-4, 4, len(empty.anchors), dtype=np.float32))[None]
    deltas = rng.normal(0, 0.2, (1, logits.size, 4)).astype(np.float32)
    out = RPNOutput(Tensor(logits), Tensor(deltas), empty.anchors, empty.per_level)
    tlogits, tdeltas = torch.from_numpy(logits).reshape(-1, 1), torch.from_numpy(deltas).reshape(-1, 4)
    images = ImageList(torch.zeros(1, 3, *PADDED), [IMAGE])
    anchors = peer.anchor_generator(images, [torch.zeros(1, 1, *size) for size in sizes])

    def theirs():
        with torch.no_grad():
            decoded = peer.box_coder.decode(tdeltas, anchors).view(1, -1, 4)
            return peer.filter_proposals(decoded, tlogits, [IMAGE], empty.per_level)[0]

    return Contest(
        {"minimask": lambda: model.rpn.propose(out, batch, train), "torch": theirs}, check=same_boxes
    )


def same_boxes(mine, peer) -> None:
    """All but a few in a hundred: IoUs that rounding moves across the threshold change what follows."""
    (a,), (b,) = mine, peer
    found = {tuple(box) for box in np.round(b.numpy(), 1)}
    share = np.mean([tuple(box) in found for box in np.round(a, 1)])
    assert abs(len(a) - len(b)) <= 0.02 * len(b) and share > 0.9, f"{share:.0%} of {len(a)} boxes agree"


def mask_loss(objects: int = 12, count: int = 128, classes: int = 91) -> Contest:
    """Targets cropped from the objects' masks, the true class's logits, their cross entropy, and back."""
    import torch
    from torchvision.models.detection.roi_heads import maskrcnn_loss

    rng = np.random.default_rng(0)
    target = discs(0, objects, IMAGE, (20, 150))
    matches = rng.integers(0, objects, count)
    rois = target["boxes"][matches] + rng.uniform(-8, 8, (count, 4)).astype(np.float32)
    labels = target["labels"][matches]
    logits = rng.standard_normal((count, classes, 28, 28), np.float32)
    masks = target["masks"]
    trois, tmatches, tlabels, tmasks, tlogits = map(
        torch.from_numpy, (rois, matches, target["labels"], masks, logits)
    )

    def ours():
        x = Tensor(logits, requires_grad=True)
        loss = F.mask_loss(x, labels, crop_masks(masks, rois, matches, 28, TORCHVISION))
        loss.backward()
        return [loss, x.grad]

    def theirs():
        x = tlogits.detach().requires_grad_()
        loss = maskrcnn_loss(x, [trois], [tmasks], [tlabels], [tmatches])
        return [loss, *torch.autograd.grad(loss, x)]

    return Contest({"minimask": ours, "torch": theirs})


def crop(objects: int = 12, count: int = 128) -> Contest:
    import torch
    from torchvision.models.detection.roi_heads import project_masks_on_boxes

    rng = np.random.default_rng(0)
    target = discs(0, objects, IMAGE, (20, 150))
    matches = rng.integers(0, objects, count)
    rois = target["boxes"][matches] + rng.uniform(-8, 8, (count, 4)).astype(np.float32)
    peer = [torch.from_numpy(a) for a in (target["masks"], rois, matches)]
    return Contest(
        {
            "minimask": lambda: crop_masks(target["masks"], rois, matches, 28, TORCHVISION),
            "torch": lambda: project_masks_on_boxes(*peer, 28),
        }
    )


def paste(count: int = 100) -> Contest:
    import torch
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    rng = np.random.default_rng(0)
    masks, boxes = rng.random((count, 1, 28, 28), np.float32), random_rois(rng, count)[:, 1:]
    peer = torch.from_numpy(masks), torch.from_numpy(boxes)
    return Contest(
        {
            "minimask": lambda: paste_masks(masks, boxes, IMAGE),
            "torch": lambda: paste_masks_in_image(*peer, IMAGE),
        }
    )


def decode(count: int = 100) -> Contest:
    """Compressed run lengths to whole masks; pycocotools trusts the string, minimask reads it first."""
    from pycocotools import mask as coco_mask

    strings = [encode_mask(m) for m in discs(0, count, IMAGE, (8, 100))["masks"]]
    height, width = IMAGE

    def ours():
        return [decode_runs(read_runs(s), height, (0, 0, width, height)) for s in strings]

    def theirs():
        return [coco_mask.decode({"size": IMAGE, "counts": s}) for s in strings]

    return Contest({"minimask": ours, "pycocotools": theirs}, tolerance=0)


def rows() -> list[Row]:
    return [
        Row("nms/1000 boxes", lambda: nms(1000)),
        Row("nms/10000 boxes", lambda: nms(10_000)),
        Row("boxes/encode 2000", lambda: box_coding("encode")),
        Row("boxes/decode 2000 x 91 classes", lambda: box_coding("decode")),
        Row("proposals/inference, 217413 anchors", lambda: proposals("inference")),
        Row("proposals/training, 217413 anchors", lambda: proposals("training")),
        Row("masks/loss of 128 RoIs, cropping included, forward and backward", mask_loss),
        Row("masks/crop 128 of 28 x 28 at 800 x 1067", crop),
        Row("masks/decode 100 at 800 x 1067 (pycocotools)", decode),
        Row("paste/100 masks at 800 x 1067", paste),
    ]
