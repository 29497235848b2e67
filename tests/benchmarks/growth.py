"""How cost grows with the image's side, with the number of RoIs, instances, masks to paste, and classes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from minimask import Tensor, models, no_grad
from minimask.models.box_head import BoxOutput
from tests.benchmarks import rows_boxes, rows_roi
from tests.benchmarks.measure import Contest, Row, compare
from tests.benchmarks.rows_whole import image, similar_losses, small_step, torch_small_step

SIDES = 256, 384, 512, 768, 1024, 1333
ROIS = 64, 256, 1024, 4096
INSTANCES = 1, 10, 50, 100, 400
CLASSES = 2, 20, 91, 400, 1200


def inference(side: int) -> Contest:
    """`maskrcnn_small` on a square image; the pyramids are compared, what follows has other conventions."""
    import torch

    from tests.benchmarks.torch_small import torch_small

    model, x = models.maskrcnn_small(2).eval(), image((side, side))
    peer = torch_small(model).eval()
    peer.transform.min_size, peer.transform.max_size = (side,), side
    tx = torch.from_numpy(x)
    mean, std = (np.float32(v)[:, None, None] for v in (peer.transform.image_mean, peer.transform.image_std))
    padded = np.pad((x - mean) / std, ((0, 0), (0, -side % 32), (0, -side % 32)))[None]
    with no_grad(), torch.no_grad():
        levels = model.backbone(Tensor(padded))
        compare(levels, list(peer.backbone(torch.from_numpy(padded)).values()), 1e-4)

    def theirs():
        with torch.no_grad():
            return len(peer([tx])[0]["boxes"])

    return Contest({"minimask": lambda: len(model([x])[0]["boxes"]), "torch": theirs}, tolerance=0.1)


def step(objects: int = 30, num_classes: int = 2) -> Contest:
    """A training step of `maskrcnn_small` on 2 x 256 x 256 with so many objects each."""
    runs = {
        "minimask": small_step(objects, num_classes),
        "torch": torch_small_step(objects, num_classes),
    }
    return Contest(runs, check=similar_losses)


def detections(num_classes: int, count: int = 1000) -> Contest:
    """From the logits and deltas of RoIs, each with one likely class, to the boxes that are shown."""
    import torch

    from tests.benchmarks.torch_small import torch_small

    model = models.maskrcnn_small(num_classes)
    peer, o = torch_small(model).roi_heads, model.box_head.options
    peer.score_thresh, peer.nms_thresh = o.score_thresh, o.nms_thresh
    peer.detections_per_img = o.detections_per_img
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (count, num_classes)).astype(np.float32)
    logits[np.arange(count), rng.integers(0, num_classes, count)] += 3 + np.log(num_classes)
    deltas = rng.normal(0, 0.5, (count, 4 * num_classes)).astype(np.float32)
    boxes = rows_roi.boxes(rng, count)[:, 1:]
    out, batch = BoxOutput(Tensor(logits), Tensor(deltas)), SimpleNamespace(sizes=[rows_boxes.IMAGE])
    tlogits, tdeltas, tboxes = map(torch.from_numpy, (logits, deltas, boxes))

    def mine():
        (found,) = model.box_head.detect(out, [boxes], batch)
        return found.boxes, found.scores, found.labels

    def theirs():
        with torch.no_grad():
            found = peer.postprocess_detections(tlogits, tdeltas, [tboxes], [rows_boxes.IMAGE])
        return [of_images[0] for of_images in found]

    return Contest({"minimask": mine, "torch": theirs})


def rows() -> list[Row]:
    kinds = [
        ("growth/side of the image, maskrcnn_small inference", SIDES, inference),
        ("growth/RoIs, roi_align 7x7", ROIS, lambda n: rows_roi.roi_layer("roi_align", n, 7, "forward")),
        ("growth/instances, maskrcnn_small step", INSTANCES, step),
        ("growth/masks pasted at 800 x 1067", INSTANCES, rows_boxes.paste),
        ("growth/classes, maskrcnn_small step", CLASSES, lambda n: step(num_classes=n)),
        ("growth/classes, detections of 1000 RoIs", CLASSES, detections),
    ]
    return [
        Row(f"{name}/{n}", lambda make=make, n=n: make(n), size=n)
        for name, sizes, make in kinds
        for n in sizes
    ]
