"""The networks that a configuration can name: how each is built, and how it trains unless told otherwise."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from minimask import backend
from minimask.config import Config, from_dict
from minimask.errors import InputError
from minimask.models.mask_rcnn import MaskRCNN
from minimask.models.zoo import (
    PAPER_RECIPE,
    SMALL_RECIPE,
    Recipe,
    maskrcnn_resnet50_c4,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
    maskrcnn_resnet101_c4,
    maskrcnn_resnet101_fpn,
    maskrcnn_resnext101_32x8d_fpn,
    maskrcnn_small,
)
from minimask.nn import BatchNorm2d, FrozenBatchNorm2d, GroupNorm
from minimask.weights.checkpoint import Checkpoint

NORMS = {"group": partial(GroupNorm, groups=32), "batch": BatchNorm2d, "frozen": FrozenBatchNorm2d}


@dataclass(frozen=True)
class Network:
    """A builder, its recipe, and the fields of `ModelConfig` that random weights need if nobody sets them."""

    build: Callable[..., MaskRCNN]
    recipe: Recipe
    from_scratch: dict[str, Any] = field(default_factory=dict)


# With frozen norms that change nothing, random weights make C5 some 300 times as large as C2's inputs.
FROM_SCRATCH = {"norm": "group", "trainable_layers": 5}
NETWORKS = {
    "maskrcnn_small": Network(maskrcnn_small, SMALL_RECIPE),
    "maskrcnn_resnet50_fpn": Network(maskrcnn_resnet50_fpn, PAPER_RECIPE, FROM_SCRATCH),
    "maskrcnn_resnet50_fpn_v2": Network(
        maskrcnn_resnet50_fpn_v2, PAPER_RECIPE, FROM_SCRATCH | {"norm": "batch"}
    ),
    "maskrcnn_resnet50_c4": Network(maskrcnn_resnet50_c4, PAPER_RECIPE, FROM_SCRATCH),
    "maskrcnn_resnet101_fpn": Network(maskrcnn_resnet101_fpn, PAPER_RECIPE, FROM_SCRATCH),
    "maskrcnn_resnet101_c4": Network(maskrcnn_resnet101_c4, PAPER_RECIPE, FROM_SCRATCH),
    "maskrcnn_resnext101_32x8d_fpn": Network(maskrcnn_resnext101_32x8d_fpn, PAPER_RECIPE, FROM_SCRATCH),
}


def resolved(config: Config) -> Config:
    """A configuration with what it leaves to the network filled in.

    Raises
    ------
    InputError
        For an option that the network does not have.
    """
    network = NETWORKS[config.model.name]
    for name in ("norm", "trainable_layers"):
        if name not in network.from_scratch and getattr(config.model, name) is not None:
            raise InputError(f"model.{name}: {config.model.name} has no such choice; leave it out")
    scratch = {k: v for k, v in network.from_scratch.items() if getattr(config.model, k) is None}
    recipe, train = network.recipe, config.train
    batch = train.reference_batch or recipe.batch_size
    rate = train.learning_rate or recipe.learning_rate * batch / recipe.batch_size
    return replace(
        config,
        model=replace(config.model, **scratch),
        train=replace(train, learning_rate=rate, reference_batch=batch),
    )


def checkpoint_config(checkpoint: Checkpoint, where: str) -> Config:
    """The configuration in a checkpoint, which `where` names in messages.

    Those that say nothing of norms were written when a ResNet-50 had frozen ones and three stages trained.
    """
    config = from_dict(checkpoint.config, where)
    if NETWORKS[config.model.name].from_scratch and config.model.norm is None:
        config = replace(config, model=replace(config.model, norm="frozen", trainable_layers=3))
    return resolved(config)


def build_model(config: Config, num_classes: int, device: str = "cpu") -> MaskRCNN:
    """The network that a configuration names, with random weights of its seed.

    Parameters
    ----------
    num_classes : int
        Background included.
    device : "cpu" or "cuda"
        Where the model will be.
    """
    options = resolved(config).model
    if device == "cuda":
        backend.set_up_gpu(config.train.tf32, config.train.gpu_memory_limit)
    given = {"min_size": options.min_size, "max_size": options.max_size}
    given |= {"trainable_backbone_layers": options.trainable_layers, "norm": NORMS.get(options.norm)}
    model = NETWORKS[options.name].build(
        num_classes,
        box_score_thresh=options.score_threshold,
        box_nms_thresh=options.nms_threshold,
        box_detections_per_img=options.detections,
        seed=config.train.seed,
        **{name: value for name, value in given.items() if value is not None},
    )
    return model.to(device)
