"""The options: one tree of frozen dataclasses, in which each states its default, meaning and range once.

The checks, the help text and the comments in the written file all come from there.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any

from minimask.errors import one_line

SIDE_MOST = 65_536  # pixels: a larger image could not be held
DETECTIONS_MOST = 65_535  # a label map numbers them with 16 bits
BATCH_MOST = 4096  # images
ROIS_MOST = 65_536  # per image
ANCHOR_SIZES = 5  # one for each level of a pyramid; C4 has as many on its single level
RENAMED = {"evaluate.max_detections": "model.detections"}


def option(default: Any, text: str, low=None, high=None, above=None, choices: Sequence[str] = ()) -> Any:
    """A dataclass field with its meaning and range: low <= value <= high, value > above."""
    metadata = {"help": text, "low": low, "high": high, "above": above, "choices": tuple(choices)}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelConfig:
    """Which network, and what it reports. Whatever is unset is the network's own choice."""

    name: str = option(
        "maskrcnn_small",
        "the network",
        choices=(
            "maskrcnn_small",
            "maskrcnn_fine",
            "maskrcnn_resnet50_fpn",
            "maskrcnn_resnet50_fpn_v2",
            "maskrcnn_resnet101_fpn",
            "maskrcnn_resnext101_32x8d_fpn",
            "maskrcnn_resnet50_c4",
            "maskrcnn_resnet101_c4",
            "fasterrcnn_resnet50_fpn",
            "fasterrcnn_resnet50_fpn_v2",
            "keypointrcnn_small",
            "keypointrcnn_resnet50_fpn",
        ),
    )
    norm: str | None = option(
        None, "norm of a ResNet; frozen suits loaded weights", choices=("group", "batch", "frozen")
    )
    trainable_layers: int | None = option(
        None, "how many of a ResNet's last stages train; 5: all", low=0, high=5
    )
    conventions: str | None = option(
        None,
        "for a large network: whose details it follows; unset: the network's, or the weights'",
        choices=("torchvision", "torchvision_coco_v1", "detectron2", "detectron2_resnext"),
    )
    # What the paper compares its choices with: docs/alternatives.md
    roi_layer: str | None = option(
        None, "of all heads", choices=("roi_pool", "roi_warp_max", "roi_warp", "roi_align_max", "roi_align")
    )
    mask_loss: str | None = option(
        None, "a softmax makes the classes' masks compete", choices=("sigmoid", "softmax")
    )
    mask_branch: str | None = option(
        None, "convolutions, or 2 or 3 fully connected layers", choices=("fcn", "mlp2", "mlp3")
    )
    class_agnostic_mask: bool = option(False, "one mask per object, instead of one for each class")
    class_agnostic_box: bool = option(False, "one box per object, instead of one for each class")
    with_masks: bool = option(False, "for a network with keypoints: a mask head as well")
    score_threshold: float = option(0.05, "detections that score less are dropped", low=0, high=1)
    nms_threshold: float = option(
        0.5, "of two boxes of a class with more IoU than this, one is dropped", low=0, high=1
    )
    detections: int = option(
        100, "most detections per image, in results and metrics", low=1, high=DETECTIONS_MOST
    )
    min_size: int | None = option(
        None, "images are scaled until the shorter side has this many pixels", low=32, high=SIDE_MOST
    )
    max_size: int | None = option(
        None, "... unless the longer side would then exceed this", low=32, high=SIDE_MOST
    )
    magnification: float | None = option(
        None, "for a small network without min_size: images are scaled by this", low=0.01, high=100
    )
    anchor_sizes: tuple[float, ...] | None = option(
        None, "sides of the square anchors of P2..P6, in pixels; unset: the network's", low=1, high=SIDE_MOST
    )
    canonical_scale: float | None = option(
        None, "side of the boxes that the heads pool from P4; unset: the network's", low=1, high=SIDE_MOST
    )
    rois: int | None = option(
        None, "RoIs per image in the losses of the heads; unset: the network's", low=1, high=ROIS_MOST
    )
    positive_share: float | None = option(
        None, "largest share of these that may be objects; unset: the network's", low=0, high=1
    )


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from, and what random changes training makes to them."""

    train: str = option("", "COCO instance file to train on, or 'nuclei', 'shapes' or 'figures' (built in)")
    images: str = option("", "folder of its images")
    val: str = option("", "COCO instance file to evaluate on after training")
    val_images: str = option("", "folder of its images, if not the same")
    strict: bool = option(False, "whether annotations without area, or outside the image, are errors")
    crop: int = option(
        256, "side of the random square crop in pixels; 0: whole images", low=0, high=SIDE_MOST
    )
    scale: tuple[float, float] = option(
        (1.0, 1.0), "least and greatest random magnification", low=0.01, high=100
    )
    group_by_aspect: bool = option(
        False, "wide and tall images in batches of their own: less padding of whole images (crop 0)"
    )
    repeat_by_size: bool = option(
        False, "repeat an image in an epoch as often as the crop's side fits into the root of its area"
    )
    flip_horizontal: bool = option(True, "mirror left to right, half of the time")
    flip_vertical: bool = option(False, "mirror top to bottom, half of the time")
    rotate90: bool = option(False, "turn by a random multiple of 90 degrees")
    brightness: float = option(0.0, "random change of all values, by up to this share", low=0, high=1)
    contrast: float = option(0.0, "random change of the distance to the mean grey", low=0, high=1)
    saturation: float = option(0.0, "random change of the distance to each pixel's grey", low=0, high=1)


@dataclass(frozen=True)
class TrainConfig:
    """The optimization."""

    weights: str = option("", "start from these weights of a detector: a file, name or address")
    backbone_weights: str = option("", "start from these weights of a ResNet classifier")
    steps: int = option(1500, "optimizer steps", low=1)
    batch_size: int = option(2, "images per step", low=1, high=BATCH_MOST)
    learning_rate: float | None = option(
        None, "the highest, for a batch of reference_batch images; unset: the network's", above=0
    )
    reference_batch: int | None = option(
        None, "the batch that learning_rate is meant for; unset: the network's", low=1
    )
    warmup_steps: int = option(100, "steps over which the rate rises linearly to its highest", low=0)
    schedule: str = option("cosine", "how the rate falls afterwards", choices=("cosine", "step", "constant"))
    milestones: tuple[int, ...] = option((), "for 'step': the steps at which the rate falls", low=1)
    gamma: float = option(0.1, "for 'step': what it is multiplied by there", above=0, high=1)
    momentum: float = option(0.9, "of SGD", low=0, high=0.9999)
    weight_decay: float = option(1e-4, "of SGD", low=0)
    decay_norms_and_biases: bool = option(False, "whether weight decay applies to them too")
    clip_norm: float = option(10.0, "gradients with a greater norm are scaled down to it; 0: never", low=0)
    seed: int = option(0, "of the initial weights, the order of the images and all random changes", low=0)
    save_every: int = option(100, "steps between checkpoints", low=1)
    validate_every: int = option(
        0, "steps between evaluations on data.val, which also keep best.npz; 0: one at the end", low=0
    )
    validation_images: int = option(0, "images used in these evaluations, evenly spaced; 0: all", low=0)
    patience: int = option(
        0, "stop after this many of these evaluations in a row without a new best; 0: never", low=0
    )
    deterministic: bool = option(False, "on a GPU: the same bits in every run, a little slower")
    tf32: bool = option(False, "on a GPU: faster products of float32, with 10 bits of mantissa instead of 23")
    gpu_memory_limit: float = option(
        0.0, "GiB of the GPU's memory that may be used; 0: all", low=0, high=2**20
    )


@dataclass(frozen=True)
class Config:
    """Everything that decides a training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def options(tree: Any = Config) -> Iterator[tuple[str, Field]]:
    """Every option of the tree as (``"train.steps"``, its dataclass field)."""
    for section in fields(tree):
        for entry in fields(section.type):
            yield f"{section.name}.{entry.name}", entry


def up_to_date(values: dict) -> dict:
    """Sections from TOML files and checkpoints of earlier versions, with today's options.

    The evaluation after training once had a limit of its own, ``evaluate.max_detections``, while ``predict``
    went by ``model.detections``. Today there is only ``model.detections``; where that has its default, it
    takes the value of an old file's ``evaluate.max_detections``.
    """
    old = values.get("evaluate")
    if not isinstance(old, dict) or old.keys() != {"max_detections"}:
        return values
    values = {name: section for name, section in values.items() if name != "evaluate"}
    model, default, most = values.get("model", {}), ModelConfig.detections, old["max_detections"]
    if isinstance(model, dict) and model.get("detections", default) == default:
        values["model"] = model | {"detections": min(most, DETECTIONS_MOST) if type(most) is int else most}
    return values


def to_dict(config: Config) -> dict[str, dict]:
    """The tree as nested dictionaries that JSON can hold; unset options are left out."""
    return {
        section: {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in entries.items()
            if value is not None
        }
        for section, entries in asdict(config).items()
    }


def describe(entry: Field) -> str:
    """An option's meaning and range in one line."""
    meaning = entry.metadata
    limits = [f"one of {', '.join(meaning['choices'])}"] if meaning["choices"] else []
    limits += [f"more than {meaning['above']}"] if meaning["above"] is not None else []
    low, high = meaning["low"] or None, meaning["high"]  # a lower limit of 0 goes without saying
    if low is not None and high is not None:
        limits += [f"{low} to {high}"]
    else:
        limits += [f"at least {low}"] if low is not None else []
        limits += [f"at most {high}"] if high is not None else []
    return meaning["help"] + (f" ({', '.join(limits)})" if limits else "")


def differences(old: Config, new: Config) -> list[str]:
    """One phrase for each option that differs: ``"train.steps is 200, was 100"``."""
    phrases = []
    for key, _ in options():
        section, _, name = key.partition(".")
        before, after = getattr(getattr(old, section), name), getattr(getattr(new, section), name)
        if before != after:
            phrases.append(f"{key} is {shown(after)}, was {shown(before)}")
    return phrases


def shown(value: Any) -> str:
    """An option's value as a person would write it, in one line; if it is long, its beginning and end."""
    if value is None:
        return "unset"
    try:
        text = json.dumps(list(value) if isinstance(value, tuple) else value, default=str)
    except (ValueError, RecursionError):  # a number of more digits than Python writes; too many brackets
        text = f"{type(value).__name__} too large to be shown"
    return one_line(text, 200)
