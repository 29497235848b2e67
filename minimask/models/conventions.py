"""What the systems do differently, as one frozen object that is passed to the stages.

A checkpoint trained under one convention gives shifted boxes and masks under another, and nothing tells.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Conventions:
    """The choices that change numbers.

    Parameters
    ----------
    aligned : bool
        RoIAlign's half pixel (see `minimask.kernels.roi_align.Sampling`).
    sampling_ratio : int
        Sampling points a bin and direction; 0: adaptive.
    masks : "float" or "torchvision"
        How mask targets are cropped and masks pasted (see `minimask.masks`).
    mask_threshold : float or None
        Make mask targets binary at this value; None leaves them soft.
    resize_masks : bool
        Resize target masks with the image (nearest neighbour), instead of reading them as they are.
    anchors_rounded : bool
    anchor_offset : float
        In strides (see `minimask.anchors.AnchorGenerator`).
    rpn_beta, box_beta : float
        Smooth L1's corner in the two box losses; 0 is L1.
    mean, std : three floats
        RGB, of images in 0..1.
    """

    aligned: bool = True
    sampling_ratio: int = 2
    masks: str = "float"
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
    aligned=False, masks="torchvision", resize_masks=True, anchors_rounded=True, anchor_offset=0.0
)
