"""Whole models by name: torchvision's, with its arguments and defaults, and one that a laptop trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np

from minimask import functions as F
from minimask.anchors import AnchorGenerator
from minimask.models.box_head import BoxHead, BoxOptions, BoxPredictor, Pooler, TwoMLPHead
from minimask.models.conventions import MINIMASK, TORCHVISION
from minimask.models.fpn import FPN, Backbone
from minimask.models.mask_head import MaskFCN, MaskHead
from minimask.models.mask_rcnn import MaskRCNN
from minimask.models.options import check_whole, unknown_argument
from minimask.models.resnet import BasicBlock, Bottleneck, MakeNorm, ResNet
from minimask.models.rpn import RPN, RPNHeadNet, RPNOptions
from minimask.models.transform import Transform
from minimask.nn import FrozenBatchNorm2d, GroupNorm
from minimask.randomness import Draws, Purpose


@dataclass(frozen=True)
class Recipe:
    """How a network is trained unless told otherwise.

    Attributes
    ----------
    learning_rate : float
        The greatest one, for a batch of `batch_size` images; for other batches it is in proportion.
    """

    learning_rate: float
    batch_size: int


PAPER_RECIPE = Recipe(0.02, 16)  # Mask R-CNN, section 3.1, by the linear rule
SMALL_RECIPE = Recipe(0.02, 2)  # its norms and its few parameters bear eight times as much


def maskrcnn_resnet50_fpn(
    num_classes: int = 91,
    trainable_backbone_layers: int = 3,
    *,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    image_mean: tuple[float, float, float] = TORCHVISION.mean,
    image_std: tuple[float, float, float] = TORCHVISION.std,
    norm: MakeNorm = FrozenBatchNorm2d,
    seed: int = 0,
    **rpn_and_box,
) -> MaskRCNN:
    """torchvision's `maskrcnn_resnet50_fpn`: ResNet-50 with frozen batch norm, FPN of 256 channels.

    Parameters
    ----------
    num_classes : int
        Background included.
    trainable_backbone_layers : int, 0 to 5
        Stages of the ResNet that train, counted from the last; 5 includes the stem.
    min_size : int, or several
        Pixels of the shorter side after resizing. Of several, a loss draws one for each image, and results
        take the last.
    max_size : int
        Bound of the longer side, in pixels.
    image_mean, image_std : three floats
        RGB, of images in 0..1.
    norm : callable
        Makes the backbone's norm for so many channels. Frozen norms and frozen layers are meant for weights
        that are loaded; to train from random ones, give ``partial(GroupNorm, groups=32)`` and 5 layers.
    seed : int
        Of the initial weights.
    **rpn_and_box
        torchvision's arguments ``rpn_...`` and ``box_...``, with its defaults: ``rpn_nms_thresh=0.7``,
        ``box_score_thresh=0.05`` and so on, each a field of `RPNOptions` or `BoxOptions`.

    Raises
    ------
    TypeError
        For an argument that is none of these.
    ValueError
        If `trainable_backbone_layers` is not 0 to 5.

    Notes
    -----
    The parameters' names are torchvision's: its checkpoints' arrays go into `load_state_dict` as they are.
    The batch norms' eps is 1e-5, as torchvision builds them; for its V1 weights torchvision sets it to 0
    after loading, and so must you.
    """
    check_whole("trainable_backbone_layers", trainable_backbone_layers, 0, 5)
    conventions = replace(TORCHVISION, mean=tuple(image_mean), std=tuple(image_std))
    rng = Draws(seed).rng(Purpose.WEIGHTS)
    body = ResNet(Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), norm, rng)
    body.freeze(trainable_backbone_layers)
    transform = Transform(conventions, min_size, max_size)
    return _fpn_model(transform, body, 256, 1024, num_classes, (32, 64, 128, 256, 512), rng, rpn_and_box)


def maskrcnn_small(
    num_classes: int,
    *,
    min_size: int | Sequence[int] | None = None,
    max_size: int = 1600,
    channels: tuple[int, int, int, int] = (32, 64, 128, 256),
    fpn_channels: int = 64,
    box_width: int = 256,
    anchor_sizes: tuple[int, ...] = (8, 16, 32, 64, 128),
    seed: int = 0,
    **rpn_and_box,
) -> MaskRCNN:
    """A Mask R-CNN of 2.5 M parameters that a laptop trains from nothing, without rounding anywhere.

    Parameters
    ----------
    num_classes : int
        Background included.
    min_size : int, several, or None
        As for `maskrcnn_resnet50_fpn`; by default images keep their size.
    max_size : int
        Bound of the longer side, in pixels.
    channels : four ints
        Of the stages at strides 4, 8, 16 and 32, one basic block each, with group norm.
    fpn_channels, box_width : int
        Channels of the pyramid and of the mask head; width of the box head.
    anchor_sizes : five numbers
        Side of the square anchor of levels P2..P6, in pixels; each also comes at ratios 1/2 and 2.
    seed : int
        Of the initial weights.
    **rpn_and_box
        As for `maskrcnn_resnet50_fpn`, but 1000 proposals at most and 256 RoIs an image by default.

    Raises
    ------
    TypeError
        For an argument that is none of these.
    """
    fewer = dict(rpn_pre_nms_top_n_train=1000, rpn_post_nms_top_n_train=1000, box_batch_size_per_image=256)
    rng = Draws(seed).rng(Purpose.WEIGHTS)
    body = ResNet(BasicBlock, (1, 1, 1, 1), channels, GroupNorm, rng, stem=3)
    transform = Transform(MINIMASK, min_size, max_size)
    options = fewer | rpn_and_box
    return _fpn_model(transform, body, fpn_channels, box_width, num_classes, anchor_sizes, rng, options)


def _fpn_model(
    transform: Transform,
    body: ResNet,
    channels: int,
    box_width: int,
    num_classes: int,
    anchor_sizes: tuple[int, ...],
    rng: np.random.Generator,
    rpn_and_box: dict,
) -> MaskRCNN:
    """Everything behind the body: pyramid, RPN and heads, in torchvision's sizes."""
    conventions = transform.conventions
    rpn_options, box_options = stage_options(
        rpn_and_box, rpn={"beta": conventions.rpn_beta}, box={"beta": conventions.box_beta}
    )
    anchors = AnchorGenerator(
        tuple((size,) for size in anchor_sizes),
        ((0.5, 1.0, 2.0),) * len(anchor_sizes),
        rounded=conventions.anchors_rounded,
        offset=conventions.anchor_offset,
    )
    # Weights are drawn in the order in which the layers are made, so that order decides what a seed gives.
    backbone = Backbone(body, FPN(body.channels, channels, rng))
    rpn = RPN(RPNHeadNet(channels, anchors.num_anchors_per_location()[0], rng), anchors, rpn_options)
    roi_align = partial(F.roi_align, sampling_ratio=conventions.sampling_ratio, aligned=conventions.aligned)
    pooler = Pooler(7, roi_align)
    head = TwoMLPHead(channels * pooler.output_size**2, box_width, rng)
    box_head = BoxHead(pooler, head, BoxPredictor(box_width, num_classes, rng), box_options)
    mask_net = MaskFCN(channels, num_classes, rng)
    mask_head = MaskHead(Pooler(14, roi_align), mask_net, conventions.masks, conventions.mask_threshold)
    return MaskRCNN(transform, backbone, rpn, box_head, mask_head)


def stage_options(rpn_and_box: dict, rpn: dict, box: dict) -> tuple[RPNOptions, BoxOptions]:
    """torchvision's ``rpn_...`` and ``box_...`` arguments as the options of the two stages.

    Parameters
    ----------
    rpn_and_box : dict of str to value
        As given to a builder.
    rpn, box : dict
        Fields that no argument of torchvision's sets.

    Raises
    ------
    TypeError
        For a name that is none of them, naming those there are.
    """
    stages = {"rpn_": (RPNOptions, dict(rpn)), "box_": (BoxOptions, dict(box))}
    known = [prefix + field.name for prefix, (kind, _) in stages.items() for field in fields(kind)]
    for name, value in rpn_and_box.items():
        if name not in known:
            raise TypeError(unknown_argument(name, known))
        stages[name[:4]][1][name[4:]] = value
    rpn_options, box_options = (kind(**values) for kind, values in stages.values())
    return rpn_options, box_options
