"""Whole models by name: torchvision's, with its arguments and defaults, and one that a laptop trains."""

from __future__ import annotations

from dataclasses import replace

from minimask.anchors import AnchorGenerator
from minimask.models.box_head import BoxHead, BoxOptions, Pooler
from minimask.models.conventions import MINIMASK, TORCHVISION
from minimask.models.fpn import FPN, Backbone
from minimask.models.mask_head import MaskHead
from minimask.models.mask_rcnn import MaskRCNN
from minimask.models.resnet import BasicBlock, Bottleneck, ResNet
from minimask.models.rpn import RPN, RPNOptions
from minimask.models.transform import Transform
from minimask.nn import FrozenBatchNorm2d, GroupNorm
from minimask.randomness import Draws, Purpose


def maskrcnn_resnet50_fpn(
    num_classes: int = 91,
    trainable_backbone_layers: int = 3,
    *,
    min_size: int = 800,
    max_size: int = 1333,
    image_mean: tuple[float, float, float] = TORCHVISION.mean,
    image_std: tuple[float, float, float] = TORCHVISION.std,
    rpn_pre_nms_top_n_train: int = 2000,
    rpn_pre_nms_top_n_test: int = 1000,
    rpn_post_nms_top_n_train: int = 2000,
    rpn_post_nms_top_n_test: int = 1000,
    rpn_nms_thresh: float = 0.7,
    rpn_fg_iou_thresh: float = 0.7,
    rpn_bg_iou_thresh: float = 0.3,
    rpn_batch_size_per_image: int = 256,
    rpn_positive_fraction: float = 0.5,
    rpn_score_thresh: float = 0.0,
    box_score_thresh: float = 0.05,
    box_nms_thresh: float = 0.5,
    box_detections_per_img: int = 100,
    box_fg_iou_thresh: float = 0.5,
    box_bg_iou_thresh: float = 0.5,
    box_batch_size_per_image: int = 512,
    box_positive_fraction: float = 0.25,
    seed: int = 0,
) -> MaskRCNN:
    """torchvision's `maskrcnn_resnet50_fpn`: ResNet-50 with frozen batch norm, FPN of 256 channels.

    Parameters
    ----------
    num_classes : int
        Background included.
    trainable_backbone_layers : int, 0 to 5
        Stages of the ResNet that train, counted from the last; 5 includes the stem.
    min_size, max_size : int
        Pixels of the shorter side after resizing, and bound of the longer one.
    seed : int
        Of the initial weights.

    Notes
    -----
    The other arguments are torchvision's, of the same names and defaults, and so are the names of the
    parameters: its checkpoints' arrays go into `load_state_dict` as they are. The batch norms' eps is 1e-5,
    as torchvision builds them; for its V1 weights torchvision sets it to 0 after loading, and so must you.
    """
    if not 0 <= trainable_backbone_layers <= 5:
        raise ValueError(f"trainable_backbone_layers must be 0 to 5, is {trainable_backbone_layers}")
    conventions = replace(TORCHVISION, mean=tuple(image_mean), std=tuple(image_std))
    rng = Draws(seed).rng(Purpose.WEIGHTS)
    body = ResNet(Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), FrozenBatchNorm2d, rng)
    body.freeze(trainable_backbone_layers)
    rpn = RPNOptions(
        (rpn_pre_nms_top_n_train, rpn_pre_nms_top_n_test),
        (rpn_post_nms_top_n_train, rpn_post_nms_top_n_test),
        rpn_nms_thresh,
        rpn_score_thresh,
        fg_iou_thresh=rpn_fg_iou_thresh,
        bg_iou_thresh=rpn_bg_iou_thresh,
        batch_size_per_image=rpn_batch_size_per_image,
        positive_fraction=rpn_positive_fraction,
        beta=conventions.rpn_beta,
    )
    box = BoxOptions(
        box_fg_iou_thresh,
        box_bg_iou_thresh,
        box_batch_size_per_image,
        box_positive_fraction,
        score_thresh=box_score_thresh,
        nms_thresh=box_nms_thresh,
        detections_per_img=box_detections_per_img,
        beta=conventions.box_beta,
    )
    transform = Transform(conventions, min_size, max_size)
    return _assemble(transform, body, 256, 1024, num_classes, (32, 64, 128, 256, 512), rpn, box, rng)


def maskrcnn_small(
    num_classes: int,
    *,
    min_size: int | None = None,
    max_size: int = 1600,
    channels: tuple[int, int, int, int] = (32, 64, 128, 256),
    fpn_channels: int = 64,
    box_width: int = 256,
    anchor_sizes: tuple[int, ...] = (8, 16, 32, 64, 128),
    rpn_pre_nms_top_n_train: int = 1000,
    rpn_pre_nms_top_n_test: int = 1000,
    rpn_post_nms_top_n_train: int = 1000,
    rpn_post_nms_top_n_test: int = 1000,
    rpn_batch_size_per_image: int = 256,
    box_score_thresh: float = 0.05,
    box_nms_thresh: float = 0.5,
    box_detections_per_img: int = 100,
    box_batch_size_per_image: int = 256,
    box_positive_fraction: float = 0.25,
    seed: int = 0,
) -> MaskRCNN:
    """A Mask R-CNN of 2.5 M parameters that a laptop trains from nothing, without rounding anywhere.

    Parameters
    ----------
    num_classes : int
        Background included.
    min_size : int or None
        The shorter side is scaled to this; by default images keep their size.
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

    Notes
    -----
    The other arguments are those of `maskrcnn_resnet50_fpn`.
    """
    rng = Draws(seed).rng(Purpose.WEIGHTS)
    body = ResNet(BasicBlock, (1, 1, 1, 1), channels, GroupNorm, rng, stem=3)
    rpn = RPNOptions(
        (rpn_pre_nms_top_n_train, rpn_pre_nms_top_n_test),
        (rpn_post_nms_top_n_train, rpn_post_nms_top_n_test),
        batch_size_per_image=rpn_batch_size_per_image,
    )
    box = BoxOptions(
        batch_size_per_image=box_batch_size_per_image,
        positive_fraction=box_positive_fraction,
        score_thresh=box_score_thresh,
        nms_thresh=box_nms_thresh,
        detections_per_img=box_detections_per_img,
    )
    transform = Transform(MINIMASK, min_size, max_size)
    return _assemble(transform, body, fpn_channels, box_width, num_classes, anchor_sizes, rpn, box, rng)


def _assemble(
    transform, body, channels: int, box_width: int, num_classes: int, sizes, rpn, box, rng
) -> MaskRCNN:
    conventions = transform.conventions
    anchors = AnchorGenerator(
        tuple((s,) for s in sizes),
        ((0.5, 1.0, 2.0),) * len(sizes),
        rounded=conventions.anchors_rounded,
        offset=conventions.anchor_offset,
    )
    return MaskRCNN(
        transform,
        Backbone(body, FPN(body.channels, channels, rng)),
        RPN(channels, anchors, rpn, rng),
        BoxHead(channels, box_width, num_classes, Pooler(7, conventions), box, rng),
        MaskHead(channels, num_classes, Pooler(14, conventions), rng),
    )
