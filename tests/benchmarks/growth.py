"""How cost grows with the image's side, the number of RoIs, of instances, and of masks to paste."""

from __future__ import annotations

import numpy as np

from minimask import Tensor, models, no_grad
from tests.benchmarks import rows_boxes, rows_roi
from tests.benchmarks.measure import Contest, Row, compare
from tests.benchmarks.rows_whole import image, similar_losses, small_step, torch_small_step

SIDES = 256, 384, 512, 768, 1024, 1333
ROIS = 64, 256, 1024, 4096
INSTANCES = 1, 10, 50, 100, 400


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


def step(objects: int) -> Contest:
    """A training step of `maskrcnn_small` on 2 x 256 x 256 with so many objects each."""
    runs = {"minimask": small_step(objects), "torch": torch_small_step(objects)}
    return Contest(runs, check=similar_losses)


def rows() -> list[Row]:
    kinds = [
        ("growth/side of the image, maskrcnn_small inference", SIDES, inference),
        ("growth/RoIs, roi_align 7x7", ROIS, lambda n: rows_roi.roi_layer("roi_align", n, 7, "forward")),
        ("growth/instances, maskrcnn_small step", INSTANCES, step),
        ("growth/masks pasted at 800 x 1067", INSTANCES, rows_boxes.paste),
    ]
    return [
        Row(f"{name}/{n}", lambda make=make, n=n: make(n), size=n)
        for name, sizes, make in kinds
        for n in sizes
    ]
