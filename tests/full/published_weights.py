"""Published weights, fetched and compared: python -m tests.full.published_weights [NAME ...]

Needs a network and the extra `download`; takes minutes and some gigabytes. It has not been run yet: minimask
was written where there is no network. What is expected is what torch finds with the same file, and what the
publishers say of their models, COCO's box, mask and keypoint AP on val2017.

Without arguments every detector of `minimask.weights.published` is fetched, recognised and built. With torch
and torchvision installed, torchvision's are run beside their own model on noise, or on the images given by
``--images DIR``: scores must agree to 1e-3 and boxes to half a pixel. With ``--coco DIR``, which has val2017/
and annotations/, AP is computed, to be compared with the published one.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from minimask.models import from_checkpoint
from minimask.weights.published import PUBLISHED

# AP on COCO val2017 as published: box, mask, keypoints.
EXPECTED = {
    "torchvision:maskrcnn_resnet50_fpn": (37.9, 34.6, None),
    "torchvision:maskrcnn_resnet50_fpn_v2": (47.4, 41.8, None),
    "torchvision:keypointrcnn_resnet50_fpn": (None, None, 65.0),
    "detectron2:mask_rcnn_R_50_C4_1x": (36.8, 32.2, None),
    "detectron2:mask_rcnn_R_50_FPN_1x": (38.6, 35.2, None),
    "detectron2:mask_rcnn_R_50_FPN_3x": (41.0, 37.2, None),
    "detectron2:mask_rcnn_R_101_FPN_3x": (42.9, 38.6, None),
    "detectron2:keypoint_rcnn_R_50_FPN_3x": (None, None, 65.5),
}
DETECTORS = [name for name in PUBLISHED if "rcnn" in name]


def images_of(folder: Path | None) -> list[np.ndarray]:
    if folder is None:
        return [np.random.default_rng(0).random((3, 480, 640), np.float32)]
    from PIL import Image

    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())[:10]]
    return [picture.transpose(2, 0, 1).astype(np.float32) / 255 for picture in pictures]


def beside_torchvision(name: str, images: list[np.ndarray]) -> str:
    """The greatest differences from torchvision's own model, of scores and of boxes in pixels."""
    import torch
    from torchvision.models import detection

    theirs = getattr(detection, name.partition(":")[2])(weights="COCO_V1").eval()
    ours = from_checkpoint(name).eval()
    scores, boxes = 0.0, 0.0
    for image in images:
        with torch.no_grad():
            want = theirs([torch.from_numpy(image)])[0]
        got = ours([image])[0]
        if len(got["scores"]) != len(want["scores"]):
            return f"FAIL: {len(got['scores'])} detections, torchvision has {len(want['scores'])}"
        if len(got["scores"]):
            scores = max(scores, float(np.abs(got["scores"] - want["scores"].numpy()).max()))
            boxes = max(boxes, float(np.abs(got["boxes"] - want["boxes"].numpy()).max()))
    verdict = "ok" if scores <= 1e-3 and boxes <= 0.5 else "FAIL"
    return f"{verdict}: scores differ by {scores:.1e}, boxes by {boxes:.1e} pixels from torchvision's"


def average_precision(name: str, coco: Path) -> str:
    """AP on val2017 beside the published one."""
    from minimask.command.cli import main

    output = Path("published") / name.replace(":", "-")
    kind = "person_keypoints" if "keypoint" in name else "instances"
    data = coco / "annotations" / f"{kind}_val2017.json"
    arguments = ["--weights", name, "--data", data, "--images", coco / "val2017", "--output", output]
    status = main(["evaluate", *map(str, arguments)])
    return f"published {EXPECTED.get(name)}, measured in {output / 'metrics.json'} (status {status})"


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=DETECTORS)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--coco", type=Path)
    arguments = parser.parse_args(argv)
    failed = 0
    for name in arguments.names:
        model = from_checkpoint(name)
        print(f"{name}: {model.origin.note}")
        if name.startswith("torchvision:"):
            try:
                line = beside_torchvision(name, images_of(arguments.images))
            except ImportError:
                line = "torchvision is not installed: not compared"
            failed += line.startswith("FAIL")
            print(f"  {line}")
        if arguments.coco:
            print(f"  {average_precision(name, arguments.coco)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
