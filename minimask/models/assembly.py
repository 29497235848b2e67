"""From an architecture and conventions to a model: the networks that `zoo.py` names are put together here.

`assemble` makes the body and calls `_on_pyramid` or `_on_c4`, which make everything after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np

from minimask import functions as F
from minimask.anchors import AnchorGenerator
from minimask.models.box_head import (
    AveragingHead,
    BoxHead,
    BoxOptions,
    BoxPredictor,
    ConvFCHead,
    Pooler,
    Res5Pooler,
    RoILayer,
    TwoMLPHead,
)
from minimask.models.conventions import Conventions
from minimask.models.fpn import FPN, Backbone, SingleLevel
from minimask.models.keypoint_head import KeypointHead, KeypointNet, KeypointOptions, NormedKeypointNet
from minimask.models.mask_head import SIGMOIDS, MaskFCN, MaskHead, SigmoidMasks, SoftmaxMasks
from minimask.models.mask_rcnn import MaskRCNN
from minimask.models.options import check_number, check_whole, unknown_argument
from minimask.models.resnet import Block, Bottleneck, ResNet, residual_stage
from minimask.models.rpn import RPN, RPNHeadNet, RPNOptions
from minimask.models.transform import Transform
from minimask.nn import FrozenBatchNorm2d, MakeNorm, Module
from minimask.randomness import Draws, Purpose

RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the anchors, in every network."""


@dataclass(frozen=True)
class Architecture:
    """What a network consists of; its parameters' names and shapes tell all but `pool` and the last two.

    The defaults are the paper's ResNet-50-FPN.

    Attributes
    ----------
    blocks, channels : four ints each
        Blocks of each stage of the ResNet, and its channels before a bottleneck's expansion by 4.
    block : BasicBlock or Bottleneck
    stem : int
        Kernel size of the first convolution.
    pool : bool
        Whether a max pool follows it. Without one, all levels have half the stride: 2, 4, 8, 16 and 32 for
        P2..P6.
    groups, width_per_group : int
        Of a bottleneck's 3x3 convolution (see `minimask.models.resnet.Bottleneck`).
    pyramid : bool
        FPN if True; else C4: a single level at stride 16, with the fourth stage as the head of each RoI.
    fpn_channels : int
        Of P2..P6, the RPN and the mask head; C4's mask head has as many.
    rpn_convs, box_convs, mask_convs : int
        Number of 3x3 convolutions in each of the three nets. In the box head one fully connected layer
        follows them, or two if there are none. C4 has none in either head: the fourth stage replaces them.
    box_width : int
        Of the fully connected layers; C4's predictors read the fourth stage's channels.
    head_norm : callable, optional
        Makes the norm after the convolutions of the FPN, the box head and the mask head.
    masks : bool
        Whether there is a mask head; without one and without keypoints, it is Faster R-CNN.
    num_keypoints : int
        Of the keypoint head; 0 for no such head. C4 has none.
    keypoint_convs, keypoint_width : int
        Convolutions of the keypoint head, and their channels.
    keypoint_norm : callable, optional
        Makes the norm after each of them.
    anchor_sizes : numbers
        Sides of the square anchors, in pixels: one for each of P2..P6, or all those of C4's single level.
    canonical_scale : number, optional
        Side of a square box that the heads pool from P4, in pixels (see `minimask.models.box_head.Pooler`);
        by default 224 where P2 has stride 4, otherwise in proportion to that stride. C4 has none.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    channels: tuple[int, ...] = (64, 128, 256, 512)
    block: Block = Bottleneck
    stem: int = 7
    pool: bool = True
    groups: int = 1
    width_per_group: int = 64
    pyramid: bool = True
    fpn_channels: int = 256
    rpn_convs: int = 1
    box_convs: int = 0
    mask_convs: int = 4
    box_width: int = 1024
    head_norm: MakeNorm | None = None
    masks: bool = True
    num_keypoints: int = 0
    keypoint_convs: int = 8
    keypoint_width: int = 512
    keypoint_norm: MakeNorm | None = None
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    canonical_scale: float | None = None


MakeMaskNet = Callable[[int, int, np.random.Generator], Module]  # (channels in, masks out, rng)


@dataclass(frozen=True)
class Alternatives:
    """What the paper's ablations vary, as given to a builder (docs/alternatives.md).

    Attributes
    ----------
    roi_layer : RoILayer or None
        Of both heads (Table 2c); None is RoIAlign under the model's conventions.
    mask_loss : SigmoidMasks or SoftmaxMasks
        Sigmoids or a softmax (Table 2b), per class or class-agnostic (section 4.2).
    mask_branch : callable or None
        Makes the mask head's net (Table 2e); None for the architecture's.
    """

    roi_layer: RoILayer | None = None
    mask_loss: SigmoidMasks | SoftmaxMasks = SIGMOIDS
    mask_branch: MakeMaskNet | None = None

    def roi_layer_under(self, conventions: Conventions) -> RoILayer:
        """The RoI layer of a model with these conventions."""
        c = conventions
        return self.roi_layer or partial(F.roi_align, sampling_ratio=c.sampling_ratio, aligned=c.aligned)


PAPER = Alternatives()


def assemble(
    architecture: Architecture,
    num_classes: int,
    conventions: Conventions,
    *,
    min_size: int | Sequence[int] | None,
    max_size: int,
    magnification: float = 1.0,
    trainable_backbone_layers: int = 5,
    norm: MakeNorm | None = None,
    alternatives: Alternatives = PAPER,
    keypoint_options: KeypointOptions | None = None,
    seed: int | None = 0,
    rpn_and_box: dict | None = None,
) -> MaskRCNN:
    """A model of this architecture, with random weights.

    Parameters
    ----------
    architecture : Architecture
    num_classes : int
        Background included.
    conventions : Conventions
    magnification : float
        Scale of the images where there is no `min_size`.
    min_size, max_size, trainable_backbone_layers
        As for `minimask.models.zoo.maskrcnn_resnet50_fpn`.
    norm : callable, optional
        Makes the ResNet's norm, given the number of channels; by default frozen batch norm with the
        conventions' eps.
    alternatives : Alternatives
        RoI layer, mask loss and mask branch; C4's mask branch is fixed.
    keypoint_options : KeypointOptions, optional
        Of a keypoint head.
    seed : int or None
        Of the weights; None where others are about to be loaded: these then take neither memory nor time.
    rpn_and_box : dict, optional
        torchvision's arguments ``rpn_...`` and ``box_...``.

    Raises
    ------
    TypeError
        For an argument that does not exist.
    ValueError
        If a number is out of range, or C4 is given a mask branch, keypoints or a canonical scale.
    """
    check_whole("trainable_backbone_layers", trainable_backbone_layers, 0, 5)
    if architecture.canonical_scale is not None:
        check_number("canonical_scale", architecture.canonical_scale, low=1)
    a = architecture
    if alternatives.mask_branch and not a.pyramid:
        raise ValueError("mask_branch: on C4 the ResNet's last stage is the mask branch; leave it out")
    if a.num_keypoints and not a.pyramid:
        raise ValueError("num_keypoints: C4 has no keypoint head; take a network with a pyramid")
    if a.canonical_scale is not None and not a.pyramid:
        raise ValueError("canonical_scale: C4 has a single level to pool from; leave it out")
    norm = norm or partial(FrozenBatchNorm2d, eps=conventions.norm_eps)
    rng = None if seed is None else Draws(seed).rng(Purpose.WEIGHTS)
    stages = 4 if a.pyramid else 3
    of_stem, of_blocks = dict(stem=a.stem, pool=a.pool), _of_blocks(a, conventions)
    body = ResNet(a.block, a.blocks[:stages], a.channels[:stages], norm, rng, **of_stem, **of_blocks)
    body.freeze(trainable_backbone_layers)
    divisible = 32 if a.pyramid else 1
    transform = Transform(conventions, min_size, max_size, divisible, magnification)
    if a.pyramid:
        heads = alternatives, keypoint_options
        return _on_pyramid(a, transform, body, num_classes, rng, rpn_and_box or {}, *heads)
    layer4 = partial(residual_stage, a.block, a.blocks[3], body.channels[2], a.channels[3], 2, norm)
    model = _on_c4(a, transform, body, layer4, num_classes, rng, rpn_and_box or {}, alternatives)
    if trainable_backbone_layers == 0:
        for parameter in model.box_head.box_head.parameters():
            parameter.requires_grad = False
    return model


def _of_blocks(a: Architecture, conventions: Conventions) -> dict:
    """Options of the ResNet's blocks."""
    if a.block is not Bottleneck:
        return {}
    return dict(groups=a.groups, width_per_group=a.width_per_group, stride_in_1x1=conventions.stride_in_1x1)


def _on_pyramid(
    a: Architecture,
    transform: Transform,
    body: ResNet,
    num_classes: int,
    rng: np.random.Generator | None,
    rpn_and_box: dict,
    alternatives: Alternatives,
    keypoint_options: KeypointOptions | None,
) -> MaskRCNN:
    """Everything after the body: pyramid, RPN and heads, in torchvision's sizes."""
    conventions, channels = transform.conventions, a.fpn_channels
    rpn_options, box_options = stage_options(rpn_and_box, *_set_by(conventions))
    strides = (4, 8, 16, 32, 64) if a.pool else (2, 4, 8, 16, 32)
    nominal = strides if conventions.nominal_strides else None
    anchors = _anchors(tuple((size,) for size in a.anchor_sizes), nominal, conventions)
    pooler = partial(
        Pooler,
        roi_layer=alternatives.roi_layer_under(conventions),
        level_eps=conventions.level_eps,
        side_eps=conventions.side_eps,
        strides=strides[:4],
        canonical_scale=a.canonical_scale or 56.0 * strides[0],  # 224 pixels where P2 has stride 4
    )
    # Weights are drawn in the order in which the layers are made, so that order decides what a seed gives.
    backbone = Backbone(body, FPN(body.channels, channels, rng, a.head_norm))
    head = RPNHeadNet(channels, anchors.num_anchors_per_location()[0], rng, a.rpn_convs)
    rpn = RPN(head, anchors, rpn_options)
    box_pooler = pooler(7)
    if a.box_convs:
        head = ConvFCHead(channels, 7, a.box_convs, a.box_width, a.head_norm, rng)
    else:
        head = TwoMLPHead(channels * 7 * 7, a.box_width, rng)
    predictor = BoxPredictor(a.box_width, num_classes, rng, box_options.class_agnostic)
    box_head, mask_head = BoxHead(box_pooler, head, predictor, box_options), None
    if a.masks:
        mask_loss, c = alternatives.mask_loss, conventions
        fcn = partial(MaskFCN, convs=a.mask_convs, norm=a.head_norm)
        net = (alternatives.mask_branch or fcn)(channels, mask_loss.channels(num_classes), rng)
        mask_head = MaskHead(pooler(14), net, c.masks, c.mask_threshold, mask_loss)
    keypoint_head = (
        KeypointHead(pooler(14), _keypoint_net(a, rng), keypoint_options) if a.num_keypoints else None
    )
    return MaskRCNN(transform, backbone, rpn, box_head, mask_head, keypoint_head)


def _keypoint_net(a: Architecture, rng: np.random.Generator | None) -> KeypointNet | NormedKeypointNet:
    sizes = dict(width=a.keypoint_width, convs=a.keypoint_convs)
    if a.keypoint_norm:
        return NormedKeypointNet(a.fpn_channels, a.num_keypoints, rng, norm=a.keypoint_norm, **sizes)
    return KeypointNet(a.fpn_channels, a.num_keypoints, rng, **sizes)


def _on_c4(
    a: Architecture,
    transform: Transform,
    body: ResNet,
    make_layer4: partial,
    num_classes: int,
    rng: np.random.Generator | None,
    rpn_and_box: dict,
    alternatives: Alternatives,
) -> MaskRCNN:
    """Everything after a body of three stages: the RPN on C4, with the fourth stage as both heads' trunk."""
    conventions = transform.conventions
    rpn, box = _set_by(conventions)
    rpn |= dict(pre_nms_top_n_train=12000, pre_nms_top_n_test=6000, post_nms_top_n_train=2000)
    rpn_options, box_options = stage_options(rpn_and_box, rpn, box)
    anchors = _anchors((a.anchor_sizes,), (16,), conventions)
    backbone = SingleLevel(body)
    rpn = RPN(RPNHeadNet(body.channels[2], len(a.anchor_sizes) * len(RATIOS), rng), anchors, rpn_options)
    layer4 = make_layer4(rng, **_of_blocks(a, conventions))
    pooler = Res5Pooler(Pooler(14, alternatives.roi_layer_under(conventions), strides=(16,)), layer4)
    width = a.channels[3] * a.block.expansion
    predictor = BoxPredictor(width, num_classes, rng, box_options.class_agnostic)
    box_head, mask_head = BoxHead(pooler, AveragingHead(layer4), predictor, box_options), None
    if a.masks:
        mask_loss, c = alternatives.mask_loss, conventions
        net = MaskFCN(a.fpn_channels, mask_loss.channels(num_classes), rng, convs=0, channels_in=width)
        mask_head = MaskHead(pooler, net, c.masks, c.mask_threshold, mask_loss)
    return MaskRCNN(transform, backbone, rpn, box_head, mask_head)


def _anchors(sizes: tuple, strides: tuple[int, ...] | None, conventions: Conventions) -> AnchorGenerator:
    return AnchorGenerator(
        sizes,
        (RATIOS,) * len(sizes),
        rounded=conventions.anchors_rounded,
        offset=conventions.anchor_offset,
        size_major=conventions.anchors_size_major,
        strides=strides,
    )


def _set_by(conventions: Conventions) -> tuple[dict, dict]:
    """The fields of `RPNOptions` and of `BoxOptions` that these conventions set."""
    c = conventions
    rpn = dict(
        beta=c.rpn_beta,
        min_size=c.rpn_min_size,
        post_nms_top_n_train=c.rpn_post_nms_top_n_train,
        fixed_normalizer=c.rpn_fixed_normalizer,
        ranks_logits=c.rpn_ranks_logits,
        untouched_matches_all=c.untouched_matches_all,
    )
    return rpn, dict(beta=c.box_beta, min_size=c.box_min_size, min_size_last=c.box_min_size_last)


def stage_options(rpn_and_box: dict, rpn: dict, box: dict) -> tuple[RPNOptions, BoxOptions]:
    """torchvision's ``rpn_...`` and ``box_...`` arguments as the options of the two stages.

    Parameters
    ----------
    rpn_and_box : dict of str to value
        As given to a builder.
    rpn, box : dict
        Defaults that replace those of `RPNOptions` and `BoxOptions`; the arguments override them.

    Raises
    ------
    TypeError
        For a name that is none of them; suggests the nearest, or lists all.
    ValueError
        For a value out of range.
    """
    stages = {"rpn_": (RPNOptions, dict(rpn)), "box_": (BoxOptions, dict(box))}
    known = [prefix + field.name for prefix, (kind, _) in stages.items() for field in fields(kind)]
    for name, value in rpn_and_box.items():
        if name not in known:
            raise TypeError(unknown_argument(name, known))
        stages[name[:4]][1][name[4:]] = value
    rpn_options, box_options = (kind(**values) for kind, values in stages.values())
    return rpn_options, box_options
