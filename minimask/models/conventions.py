"""What implementations of Mask R-CNN do differently, as one frozen object that is passed to the stages.

A checkpoint trained under one convention gives shifted boxes and masks under another, without any error.
"""

from __future__ import annotations

from dataclasses import dataclass

import minimask.masks
from minimask.masks import MaskConvention


@dataclass(frozen=True)
class Conventions:
    """The choices that change numbers.

    Parameters
    ----------
    aligned : bool
        RoIAlign's half pixel (see `minimask.kernels.roi_align.Sampling`).
    sampling_ratio : int
        Sampling points per bin and direction; 0 takes as many as the bin has pixels, rounded up.
    masks : MaskConvention
        How mask targets are cropped and masks pasted (see `minimask.masks`).
    mask_threshold : float or None
        Makes mask targets binary: 1 from this value on; None leaves them soft.
    resize_masks : bool
        Resize target masks with the image (nearest neighbour), instead of cropping them at their own size.
    anchors_rounded : bool
        Whether the anchors around the origin are rounded to whole pixels.
    anchor_offset : float
        Where in its cell an anchor is centred, in strides: 0 is the cell's corner (see
        `minimask.anchors.AnchorGenerator`).
    rpn_beta, box_beta : float
        Where smooth L1 turns from quadratic to linear in the two box losses; 0 makes it L1.
    mean, std : three floats
        RGB, of images in 0..1.
    """

    aligned: bool = True
    sampling_ratio: int = 2
    masks: MaskConvention = minimask.masks.FLOAT
    mask_threshold: float | None = None
    resize_masks: bool = False
    anchors_rounded: bool = False
    anchor_offset: float = 0.5
    rpn_beta: float = 1 / 9
    box_beta: float = 1 / 9
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


MINIMASK = Conventions()  # no rounding anywhere
TORCHVISION = Conventions(
    aligned=False,
    masks=minimask.masks.TORCHVISION,
    resize_masks=True,
    anchors_rounded=True,
    anchor_offset=0.0,
)
