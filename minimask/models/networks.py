"""The networks that a configuration can name: how each is built, and how it trains unless told otherwise."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from minimask import backend
from minimask import functions as F
from minimask.config import Config, ModelConfig, from_dict
from minimask.errors import InputError
from minimask.models.box_head import RoILayer
from minimask.models.conventions import (
    DETECTRON2,
    DETECTRON2_RESNEXT,
    MINIMASK,
    TORCHVISION,
    TORCHVISION_COCO_V1,
    Conventions,
    with_keypoints,
)
from minimask.models.mask_head import MaskFCN, MaskMLP, SigmoidMasks, SoftmaxMasks
from minimask.models.mask_rcnn import MaskRCNN
from minimask.models.zoo import (
    PAPER_RECIPE,
    SMALL_RECIPE,
    Recipe,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    keypointrcnn_resnet50_fpn,
    keypointrcnn_small,
    maskrcnn_fine,
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

CONVENTIONS = {
    "torchvision": TORCHVISION,
    "torchvision_coco_v1": TORCHVISION_COCO_V1,
    "detectron2": DETECTRON2,
    "detectron2_resnext": DETECTRON2_RESNEXT,
}
NORMS = {"group": partial(GroupNorm, groups=32), "batch": BatchNorm2d, "frozen": FrozenBatchNorm2d}


def _at_points(layer: RoILayer, **options: Any) -> Callable[[Conventions], RoILayer]:
    return lambda c: partial(layer, sampling_ratio=c.sampling_ratio, aligned=c.aligned, **options)


ROI_LAYERS = {  # Table 2c, under the conventions of a network: only what the table compares differs
    "roi_pool": lambda c: partial(F.roi_pool, aligned=c.aligned),
    "roi_warp_max": _at_points(F.roi_warp, aggregation="max"),
    "roi_warp": _at_points(F.roi_warp),
    "roi_align_max": _at_points(F.roi_align, aggregation="max"),
    "roi_align": _at_points(F.roi_align),
}
MASK_LOSSES = {"sigmoid": SigmoidMasks, "softmax": SoftmaxMasks}  # Table 2b
MASK_BRANCHES = {"fcn": MaskFCN, "mlp2": MaskMLP, "mlp3": partial(MaskMLP, layers=3)}  # Table 2e


@dataclass(frozen=True)
class Network:
    """A builder, its recipe, and what `from_scratch` sets in `ModelConfig` if unset, for random weights.

    The network does not have the options in `without`. With `keypoints`, its builder is given their number
    as ``num_keypoints``.
    """

    build: Callable[..., MaskRCNN]
    recipe: Recipe
    conventions: Conventions
    from_scratch: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    keypoints: bool = False


_OF_SMALL = ("magnification",)  # the others scale by min_size


def _resnet(
    build: Callable[..., MaskRCNN],
    norm: str = "group",
    conventions: Conventions = TORCHVISION,
    without: tuple[str, ...] = (),
    keypoints: bool = False,
) -> Network:
    # Frozen norms do nothing until their weights are loaded: with random weights, C5 would be some 300 times
    # as large as C2's input.
    scratch = {"norm": norm, "trainable_layers": 5}
    return Network(build, PAPER_RECIPE, conventions, scratch, without + _OF_SMALL, keypoints)


_OF_MASKS = ("mask_loss", "mask_branch", "class_agnostic_mask")
_OF_KEYPOINTS = ("with_masks",)
_OF_RESNETS = ("norm", "trainable_layers", "conventions")
# C4's mask branch is the last stage, and it has a single level to pool from.
_c4 = partial(_resnet, conventions=DETECTRON2, without=("mask_branch", "canonical_scale"))
NETWORKS = {
    "maskrcnn_small": Network(maskrcnn_small, SMALL_RECIPE, MINIMASK, without=_OF_RESNETS),
    "maskrcnn_fine": Network(maskrcnn_fine, SMALL_RECIPE, MINIMASK, without=_OF_RESNETS),
    "maskrcnn_resnet50_fpn": _resnet(maskrcnn_resnet50_fpn),
    "maskrcnn_resnet50_fpn_v2": _resnet(maskrcnn_resnet50_fpn_v2, norm="batch"),
    "maskrcnn_resnet101_fpn": _resnet(maskrcnn_resnet101_fpn),
    "maskrcnn_resnext101_32x8d_fpn": _resnet(maskrcnn_resnext101_32x8d_fpn),
    "maskrcnn_resnet50_c4": _c4(maskrcnn_resnet50_c4),
    "maskrcnn_resnet101_c4": _c4(maskrcnn_resnet101_c4),
    "fasterrcnn_resnet50_fpn": _resnet(fasterrcnn_resnet50_fpn, without=_OF_MASKS),
    "fasterrcnn_resnet50_fpn_v2": _resnet(fasterrcnn_resnet50_fpn_v2, norm="batch", without=_OF_MASKS),
    "keypointrcnn_small": Network(
        keypointrcnn_small, SMALL_RECIPE, MINIMASK, without=_OF_RESNETS + _OF_MASKS, keypoints=True
    ),
    "keypointrcnn_resnet50_fpn": _resnet(keypointrcnn_resnet50_fpn, without=_OF_MASKS, keypoints=True),
}


def resolved(config: Config) -> Config:
    """The configuration with everything filled in that it leaves to the network.

    Raises
    ------
    InputError
        For an option that the network does not have.
    """
    network = NETWORKS[config.model.name]
    for name in network.without + (() if network.keypoints else _OF_KEYPOINTS):
        if getattr(config.model, name) not in (None, False):
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

    One that does not mention norms was written when a ResNet-50 had frozen norms and trained three stages.
    """
    config = from_dict(checkpoint.config, where)
    if NETWORKS[config.model.name].from_scratch and config.model.norm is None:
        config = replace(config, model=replace(config.model, norm="frozen", trainable_layers=3))
    return resolved(config)


def alternatives(options: ModelConfig, conventions: Conventions) -> dict[str, Any]:
    """The builder's arguments for what the paper compares; None for what is left to the network.

    Parameters
    ----------
    options : ModelConfig
    conventions : Conventions
        Of the network.
    """
    roi_layer = ROI_LAYERS.get(options.roi_layer)
    masks = None
    if options.mask_loss is not None or options.class_agnostic_mask:
        masks = MASK_LOSSES[options.mask_loss or "sigmoid"](options.class_agnostic_mask)
    return {
        "roi_layer": roi_layer and roi_layer(conventions),
        "mask_loss": masks,
        "mask_branch": MASK_BRANCHES.get(options.mask_branch),
        "box_class_agnostic": options.class_agnostic_box or None,
    }


def has_keypoints(config: Config) -> bool:
    """Whether the network that a configuration names finds keypoints, and needs data with them."""
    return NETWORKS[config.model.name].keypoints


def build_model(config: Config, num_classes: int, device: str = "cpu", num_keypoints: int = 0) -> MaskRCNN:
    """The network that a configuration names, with random weights from its seed.

    Parameters
    ----------
    num_classes : int
        Background included.
    device : "cpu" or "cuda"
        Where the model will be.
    num_keypoints : int
        Of an object; used only if the network has keypoints.

    Raises
    ------
    InputError
        If the network has keypoints and their number is 0.
    """
    options = resolved(config).model
    if device == "cuda":
        backend.set_up_gpu(config.train.tf32, config.train.gpu_memory_limit)
    arguments = builder_arguments(options)
    if has_keypoints(config):
        if num_keypoints < 1:
            raise InputError(
                f"model.name: {options.name} needs keypoints, and the data name none; give the categories a "
                "list 'keypoints', or take a network without them"
            )
        arguments |= {"num_keypoints": num_keypoints}
    model = NETWORKS[options.name].build(num_classes, seed=config.train.seed, **arguments)
    return model.to(device)


def builder_arguments(options: ModelConfig) -> dict[str, Any]:
    """The arguments of a network's builder for these options, except the numbers of classes and keypoints."""
    network = NETWORKS[options.name]
    conventions = CONVENTIONS.get(options.conventions)
    if network.keypoints and (options.conventions or "").startswith("detectron2"):
        conventions = with_keypoints(conventions)
    norm = NORMS.get(options.norm)
    if options.norm == "frozen" and conventions:
        norm = partial(FrozenBatchNorm2d, eps=conventions.norm_eps)
    given = {"min_size": options.min_size, "max_size": options.max_size, "conventions": conventions}
    given |= alternatives(options, conventions or network.conventions)
    given |= {"norm": norm, "trainable_backbone_layers": options.trainable_layers}
    given |= {"with_masks": options.with_masks or None, "magnification": options.magnification}
    given |= {"anchor_sizes": options.anchor_sizes, "canonical_scale": options.canonical_scale}
    given |= {"box_batch_size_per_image": options.rois, "box_positive_fraction": options.positive_share}
    limits = {
        "box_score_thresh": options.score_threshold,
        "box_nms_thresh": options.nms_threshold,
        "box_detections_per_img": options.detections,
    }
    return limits | {name: value for name, value in given.items() if value is not None}
