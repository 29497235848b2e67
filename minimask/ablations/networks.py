"""The networks of ablations: small ones, whose heads read a single map at stride 16 or 32, or a pyramid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from minimask.anchors import AnchorGenerator
from minimask.models.assembly import RATIOS
from minimask.models.box_head import BoxHead, BoxOptions, BoxPredictor, Pooler, RoILayer, TwoMLPHead
from minimask.models.conventions import MINIMASK
from minimask.models.fpn import FPN, Backbone
from minimask.models.mask_head import MaskFCN, MaskHead
from minimask.models.mask_rcnn import MaskRCNN
from minimask.models.networks import MASK_BRANCHES, MASK_LOSSES, ROI_LAYERS
from minimask.models.resnet import BasicBlock, ResNet
from minimask.models.rpn import RPN, RPNHeadNet, RPNOptions
from minimask.models.transform import Transform
from minimask.nn import ConvNorm, GroupNorm, Module
from minimask.randomness import Draws, Purpose

PYRAMID = 0
"""In place of a stride: P2 to P6."""


@dataclass(frozen=True)
class Network:
    """What an ablation's network consists of; in all else the networks are the same.

    Attributes
    ----------
    stride : 16, 32 or PYRAMID
        Of the map that RPN and heads read: C4 or C5 of a ResNet with basic blocks, its channels reduced.
    roi_layer, mask_loss, mask_branch : str
        As ``model.roi_layer`` and so on in a configuration.
    sampling_ratio : int
        Points per bin in each direction, for RoI layers that read at points; 0: as many as the bin has cells.
    aligned : bool
        Whether the RoI layer reads where its box lies, not shifted by half a cell (`functions.roi_align`).
    class_agnostic : bool
        One mask per RoI instead of one for each class.
    masks : bool
        Mask R-CNN, or Faster R-CNN.
    """

    stride: int = 16
    roi_layer: str = "roi_align"
    sampling_ratio: int = 2
    aligned: bool = True
    mask_loss: str = "sigmoid"
    class_agnostic: bool = False
    mask_branch: str = "fcn"
    masks: bool = True

    def bound_roi_layer(self) -> RoILayer:
        """The RoI layer, bound to `sampling_ratio` and `aligned`."""
        reads = replace(MINIMASK, sampling_ratio=self.sampling_ratio, aligned=self.aligned)
        return ROI_LAYERS[self.roi_layer](reads)


@dataclass(frozen=True)
class Sizes:
    """How large these networks are, and how much of an image their losses look at."""

    body: tuple[int, ...] = (24, 48, 96, 128)  # channels at strides 4, 8, 16 and 32, one block each
    features: int = 48  # of the map that RPN and heads read
    box_width: int = 128
    mask_convs: int = 2
    anchors: tuple[float, ...] = (0.16, 0.25, 0.375)  # sides on a single map, as shares of the picture's
    pyramid_anchors: tuple[float, ...] = (0.125, 0.25, 0.375, 0.5, 0.75)  # of P2 to P6
    sampled_anchors: int = 64  # per image, as are the numbers below
    proposals: int = 100
    sampled_rois: int = 24
    positive_rois: float = 0.5  # at most, as a share of the sampled ones
    detections: int = 20  # at most


class OneMap(Module):
    """A body without a pyramid; the channels of its last map are reduced."""

    def __init__(self, body: ResNet, channels: int, rng):
        self.body, self.reduce = body, ConvNorm(body.channels[-1], channels, 1, rng, GroupNorm, gain=1.0)

    def forward(self, images):  # (N, 3, H, W) -> one level (N, C, H/s, W/s)
        return [self.reduce(self.body(images)[-1])]


def build(network: Network, num_classes: int, size: int, seed: int, sizes: Sizes) -> MaskRCNN:
    """A network with random weights.

    Two networks of one seed and stride have the same weights wherever they have the same layers: weights are
    drawn in a fixed order, and the part in which networks differ, the mask head's net, comes last.

    Parameters
    ----------
    network : Network
    num_classes : int
        Background included.
    size : int
        Side of the pictures.
    seed : int
    sizes : Sizes
    """
    rng, channels = Draws(seed).rng(Purpose.WEIGHTS), sizes.features
    stages = {16: 3, 32: 4, PYRAMID: 4}[network.stride]
    body = ResNet(BasicBlock, (1,) * stages, sizes.body[:stages], GroupNorm, rng, stem=3)
    if network.stride == PYRAMID:
        backbone = Backbone(body, FPN(body.channels, channels, rng, GroupNorm))
        anchor_sizes, strides = tuple((side * size,) for side in sizes.pyramid_anchors), (4, 8, 16, 32)
    else:
        backbone, strides = OneMap(body, channels, rng), (network.stride,)
        anchor_sizes = (tuple(side * size for side in sizes.anchors),)
    anchors = AnchorGenerator(anchor_sizes, (RATIOS,) * len(anchor_sizes), rounded=False, offset=0.5)
    head = RPNHeadNet(channels, anchors.num_anchors_per_location()[0], rng)
    few = dict(post_nms_top_n_train=sizes.proposals, post_nms_top_n_test=sizes.proposals)
    rpn = RPN(head, anchors, RPNOptions(batch_size_per_image=sizes.sampled_anchors, **few))
    pooler = partial(Pooler, roi_layer=network.bound_roi_layer(), strides=strides, canonical_scale=112.0)
    trunk = TwoMLPHead(channels * 7 * 7, sizes.box_width, rng)
    options = BoxOptions(
        batch_size_per_image=sizes.sampled_rois,
        positive_fraction=sizes.positive_rois,
        detections_per_img=sizes.detections,
    )
    box_head = BoxHead(pooler(7), trunk, BoxPredictor(sizes.box_width, num_classes, rng), options)
    mask_head = None
    if network.masks:
        masks = MASK_LOSSES[network.mask_loss](network.class_agnostic)
        fcn = partial(MaskFCN, convs=sizes.mask_convs, norm=GroupNorm)
        make = fcn if network.mask_branch == "fcn" else MASK_BRANCHES[network.mask_branch]
        net = make(channels, masks.channels(num_classes), rng)
        mask_head = MaskHead(pooler(14), net, MINIMASK.masks, mask_loss=masks)
    transform = Transform(MINIMASK, min_size=None, max_size=1600, size_divisible=32)
    return MaskRCNN(transform, backbone, rpn, box_head, mask_head)
