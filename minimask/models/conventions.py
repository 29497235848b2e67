"""What implementations of Mask R-CNN do differently, as one frozen object that is passed to the stages.

A checkpoint trained under one set of conventions gives shifted boxes and masks under another, without any
error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import minimask.masks
from minimask.boxes import TINY
from minimask.masks import MaskConvention


@dataclass(frozen=True)
class Conventions:
    """The choices that change the numbers that come out.

    Parameters
    ----------
    aligned : bool
        RoIAlign's half pixel (see `minimask.kernels.roi_align.Sampling`).
    sampling_ratio : int
        Sampling points per bin in each direction; 0 takes as many as the bin has pixels, rounded up.
    masks : MaskConvention
        How mask targets are cropped and masks pasted (see `minimask.masks`).
    mask_threshold : float or None
        Makes mask targets binary: 1 from this value up; None leaves them soft.
    resize_masks : bool
        Resize target masks with the image (nearest neighbour), instead of cropping them at their own size.
    anchors_rounded : bool
        Whether the anchors around the origin are rounded to whole pixels.
    anchor_offset : float
        Where in its cell an anchor is centred, in strides: 0 is the cell's corner (see
        `minimask.anchors.AnchorGenerator`).
    anchors_size_major : bool
        Order within a cell where a level has several sizes: True goes through the ratios of each size, False
        through the sizes of each ratio.
    nominal_strides : bool
        Whether anchors lie 4, 8, ... 64 pixels apart. If not, they lie image size // grid size apart, which
        is less where the image does not fill the grid (832 pixels: 13 cells of P6, 64 apart; 800 pixels: 13
        cells, 61 apart).
    untouched_matches_all : bool
        Whether an object that no anchor touches gets every anchor, or none (see `minimask.matching.Matcher`).
    rpn_fixed_normalizer : bool
        Whether the RPN's losses are divided by the number of anchors to be sampled, or by the number actually
        sampled.
    rpn_ranks_logits : bool
        Whether suppression ranks proposals by logits, or by probabilities, which are all 1 for logits from 17
        up; the best of each level are taken by logits.
    rpn_min_size : float
        Proposals with a side below this, in pixels of the batch, are dropped.
    rpn_post_nms_top_n_train : int
        Proposals kept for a loss, unless the builder is told otherwise.
    box_min_size, box_min_size_last : float, bool
        Detections with a side below the first are dropped: before suppression, or as the last step.
    rpn_beta, box_beta : float
        Where smooth L1 turns from quadratic to linear in the two box losses; 0 makes it L1.
    level_eps, side_eps : float
        Used to choose the pyramid level that a RoI reads (see `minimask.matching.assign_fpn_levels`).
    norm_eps : float
        Of the frozen batch norms.
    stride_in_1x1 : bool
        Whether a bottleneck has its stride in the first 1x1 convolution, or in the 3x3 (see
        `minimask.models.resnet.Bottleneck`).
    sizes_rounded : bool
        Whether the sides of resized images are rounded to the nearest pixel, or down.
    mean, std : three floats
        RGB, for images in 0..1.
    """

    aligned: bool = True
    sampling_ratio: int = 2
    masks: MaskConvention = minimask.masks.FLOAT
    mask_threshold: float | None = None
    resize_masks: bool = False
    anchors_rounded: bool = False
    anchor_offset: float = 0.5
    anchors_size_major: bool = False
    nominal_strides: bool = False
    untouched_matches_all: bool = False
    rpn_fixed_normalizer: bool = False
    rpn_ranks_logits: bool = False
    rpn_min_size: float = 1e-3
    rpn_post_nms_top_n_train: int = 2000
    box_min_size: float = 1e-2
    box_min_size_last: bool = False
    rpn_beta: float = 1 / 9
    box_beta: float = 1 / 9
    level_eps: float = 1e-6
    side_eps: float = 0.0
    norm_eps: float = 1e-5
    stride_in_1x1: bool = False
    sizes_rounded: bool = False
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


MINIMASK = Conventions()  # no rounding anywhere
TORCHVISION = Conventions(
    aligned=False,
    masks=minimask.masks.TORCHVISION,
    resize_masks=True,
    anchors_rounded=True,
    anchor_offset=0.0,
    untouched_matches_all=True,
)
TORCHVISION_COCO_V1 = replace(TORCHVISION, norm_eps=0.0)  # what torchvision sets with its COCO_V1 weights
DETECTRON2 = Conventions(
    sampling_ratio=0,
    mask_threshold=0.5,
    resize_masks=True,
    anchor_offset=0.0,
    anchors_size_major=True,
    nominal_strides=True,
    untouched_matches_all=True,
    rpn_fixed_normalizer=True,
    rpn_ranks_logits=True,
    rpn_min_size=TINY,
    rpn_post_nms_top_n_train=1000,
    box_min_size=TINY,
    box_min_size_last=True,
    rpn_beta=0.0,
    box_beta=0.0,
    level_eps=0.0,
    side_eps=1e-8,
    stride_in_1x1=True,
    sizes_rounded=True,
    std=(1 / 255, 1 / 255, 1 / 255),
)
DETECTRON2_RESNEXT = replace(DETECTRON2, stride_in_1x1=False, std=MINIMASK.std)  # std 57 to 58 of 0..255


def with_keypoints(conventions: Conventions) -> Conventions:
    """detectron2's conventions for a Keypoint R-CNN: its configurations change the box loss and keep more
    proposals.
    """
    return replace(conventions, box_beta=0.5, rpn_post_nms_top_n_train=1500)
