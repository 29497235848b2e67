"""Does our network learn as well as one of torchvision's parts? ``python -m tests.full.beside_torch``

Trains both on the nuclei from the same weights and on the same 1500 batches of two crops, with the same
learning rates, and compares their AP on the validation images at full size, for several seeds. Each system
draws its own anchors and RoIs, so losses differ from the first step on (tests/test_torch_training.py compares
them without draws). A run takes a quarter of an hour on two cores. What a finished one reached is kept in
``tests/full/measured`` with the options, and is not done again; ``--print`` shows the table so far. Needs
torch, torchvision and MINIMASK_DATA. The exit status is 0 unless, with all seeds done, the means of mask AP
differ by more than the wider of the two spreads.
"""

import argparse
import json
import os
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minimask.config import Config, to_toml, with_settings
from minimask.data import Batches, CocoDataset, read_coco
from minimask.data.rle import encode_mask
from minimask.models import maskrcnn_resnet50_fpn
from minimask.models.mask_rcnn import MaskRCNN
from minimask.models.zoo import SMALL
from minimask.nn import GroupNorm
from minimask.randomness import Draws
from minimask.results.evaluate import coco_results, score
from minimask.training.loop import augmentation, learning_rate, make_optimizer, resolved, training_step
from tests.full.measured import keep, kept

SIDES = ("minimask", "torchvision")
STEPS, DETECTIONS, LEAST_SCORE = 1500, 400, 0.01
METRICS = (("bbox", "AP"), ("segm", "AP"), ("segm", "AP50"))


def our_network(seed: int) -> MaskRCNN:
    """`maskrcnn_small`'s sizes with torchvision's conventions; crops of 256 pixels are not scaled."""
    sizes = dict(architecture=SMALL, norm=GroupNorm, min_size=256, max_size=1600)
    return maskrcnn_resnet50_fpn(2, trainable_backbone_layers=5, seed=seed, **sizes).train()


def train_ours(model: MaskRCNN, config: Config, batches: Batches) -> Callable:
    """Train, and return what finds the objects of an image (3, H, W) at its own size."""
    optimizer, rate = make_optimizer(model, config.train), learning_rate(config.train)
    for step in tqdm(range(config.train.steps), mininterval=10):
        draws = Draws(config.train.seed, step)
        training_step(model, optimizer, batches(step), draws, rate(step), config.train.clip_norm)
    limits = dict(score_thresh=LEAST_SCORE, detections_per_img=DETECTIONS)
    model.eval().box_head.options = replace(model.box_head.options, **limits)

    def find(image: np.ndarray) -> dict:
        model.transform.min_sizes = (min(image.shape[1:]),)
        return model.predict([image])[0]

    return find


def train_theirs(model: MaskRCNN, config: Config, batches: Batches) -> Callable:
    """As `train_ours`, for a network of torchvision's parts with the weights of `model`."""
    import torch

    from tests.benchmarks.torch_small import torch_optimizer, torch_small, torch_step

    torch.manual_seed(config.train.seed)
    peer = torch_small(model)
    optimizer, rate = torch_optimizer(peer, config.train), learning_rate(config.train)
    for step in tqdm(range(config.train.steps), mininterval=10):
        torch_step(peer, optimizer, batches(step), rate(step), config.train.clip_norm)
    peer.eval()
    peer.roi_heads.score_thresh, peer.roi_heads.detections_per_img = LEAST_SCORE, DETECTIONS

    def find(image: np.ndarray) -> dict:
        peer.transform.min_size = (min(image.shape[1:]),)
        with torch.no_grad():
            (found,) = peer([torch.from_numpy(image)])
        found = {name: values.numpy() for name, values in found.items()}
        return found | {"masks": _Pasted(found["masks"])}

    return find


class _Pasted:
    """Pasted masks (D, 1, H, W) as `coco_results` reads them."""

    def __init__(self, masks: np.ndarray):
        self.masks = masks

    def rle(self, threshold: float) -> list[dict]:
        inside = self.masks[:, 0] > threshold
        return [{"size": list(mask.shape), "counts": encode_mask(mask).decode("ascii")} for mask in inside]


def configuration(seed: int, steps: int) -> Config:
    return resolved(
        with_settings(Config(), ["data.flip_vertical=true", f"train.seed={seed}", f"train.steps={steps}"])
    )


def measure(side: str, config: Config, nuclei: Path) -> dict[str, dict[str, float]]:
    """Train one network and evaluate it."""
    seed = config.train.seed
    train = read_coco(nuclei / "train.json", nuclei / "images")
    batches = Batches(train, config.train.batch_size, augmentation(config.data), seed)
    fit = train_ours if side == "minimask" else train_theirs
    return evaluated(
        fit(our_network(seed), config, batches), read_coco(nuclei / "val.json", nuclei / "images")
    )


def evaluated(find: Callable, val: CocoDataset) -> dict[str, dict[str, float]]:
    """The metrics of boxes and of masks."""
    found = []
    for i in range(len(val)):
        found += coco_results(find(val.image(i)), val.image_ids[i], val.category_ids)
    evaluation = score(val.coco_document(), found, DETECTIONS, ["bbox", "segm"])
    return {"bbox": evaluation.box, "segm": evaluation.mask}


def table(seeds: list[int]) -> tuple[list[str], bool]:
    """The comparison in Markdown, and whether it holds as far as it has come."""
    lines = ["| | seeds | box AP | mask AP | mask AP50 |", "| --- | --- | --- | --- | --- |"]
    found = {}
    for side in SIDES:
        runs = [run for seed in seeds if (run := kept(*_record(side, configuration(seed, STEPS))))]
        found[side] = np.array([[run[kind][metric] for kind, metric in METRICS] for run in runs])
        means = found[side].mean(axis=0) if runs else []
        cells = [
            f"{mean:.3f} ({', '.join(f'{v:.3f}' for v in found[side][:, k])})" for k, mean in enumerate(means)
        ]
        lines.append(f"| {side} | {len(runs)} | {' | '.join(cells or ['-'] * len(METRICS))} |")
    ours, theirs = (found[side][:, 1] if len(found[side]) else np.zeros(0) for side in SIDES)
    if min(len(ours), len(theirs)) < len(seeds):
        return lines, True
    return lines, bool(abs(ours.mean() - theirs.mean()) <= max(np.ptp(ours), np.ptp(theirs)))


def _record(side: str, config: Config) -> tuple[str, dict]:
    """A run's name and options."""
    return f"beside_torch-{side}-{config.train.seed}", tomllib.loads(to_toml(config))


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS, help="fewer for a trial, which is not kept")
    parser.add_argument("--print", action="store_true", help="the table so far, without training")
    given = parser.parse_args(argv)
    for seed in given.seeds if not given.print else []:
        for side in SIDES:
            config = configuration(seed, given.steps)
            record = _record(side, config)
            if given.steps == STEPS and kept(*record):
                continue
            print(f"\n# {side}, seed {seed}", flush=True)
            found = measure(side, config, Path(os.environ["MINIMASK_DATA"]) / "nuclei")
            print(json.dumps(found), flush=True)
            if given.steps == STEPS:
                keep(*record, found)
    lines, holds = table(given.seeds)
    print("\n".join(lines))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
