"""The mask branch: a small fully convolutional network on each RoI (section 3), its loss, its masks.

Shapes: R RoIs, K classes and background, M x M mask cells, G objects an image.
"""

from __future__ import annotations

import numpy as np

from minimask import functions as F
from minimask.autograd import Tensor
from minimask.backend import array_module
from minimask.boxes import scale_boxes
from minimask.functions.activation import sigmoid_array
from minimask.functions.roi import as_rois
from minimask.masks import MaskConvention, crop_masks
from minimask.models.box_head import (
    BoxHead,
    BoxOutput,
    Detections,
    Pooler,
    Res5Pooler,
    RoIs,
    check_labels,
)
from minimask.models.transform import Target
from minimask.nn import Conv2d, ConvNorm, ConvTranspose2d, MakeNorm, Module, Sequential


class MaskPredictor(Module):
    """Deconvolution to twice the side, and a mask of logits for each class."""

    def __init__(self, channels_in: int, channels: int, num_classes: int, rng):
        self.conv5_mask = ConvTranspose2d(channels_in, channels, 2, rng)
        self.mask_fcn_logits = Conv2d(channels, num_classes, 1, rng, gain=1e-6 * channels)  # std 0.001


class MaskFCN(Module):
    """The paper's net: four convolutions, a deconvolution and a 1 x 1 convolution (figure 4, right).

    Parameters
    ----------
    channels, num_classes : int
    rng : numpy.random.Generator
    convs : int
        3x3 convolutions; none after res5, which has done their work (figure 4, left).
    norm : callable, optional
        Makes a norm for so many channels, behind each of them: torchvision's v2 has batch norms.
    channels_in : int, optional
        Of the RoI features where there are no convolutions; `channels` by default.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        rng,
        convs: int = 4,
        norm: MakeNorm | None = None,
        channels_in: int | None = None,
    ):
        self.mask_head = Sequential(*(ConvNorm(channels, channels, 3, rng, norm) for _ in range(convs)))
        self.mask_predictor = MaskPredictor(channels_in or channels, channels, num_classes, rng)
        self.has_norms = norm is not None

    def forward(self, x) -> Tensor:  # (R, C, P, P) -> (R, K+1, 2P, 2P)
        convs = []
        if self.has_norms:
            for block in self.mask_head:
                x = block(x, True)
        else:  # all in one Function
            convs = [block[0].weight_and_bias for block in self.mask_head]
        deconv, logits = self.mask_predictor.conv5_mask, self.mask_predictor.mask_fcn_logits
        return F.mask_head(x, convs, deconv.weight_and_bias, logits.weight_and_bias)


class MaskHead(Module):
    """K independent masks of m x m for each RoI: K m^2 outputs that do not compete (section 3).

    Parameters
    ----------
    pooler : Pooler or Res5Pooler
    net : Module
        RoI features (R, C, P, P) -> logits (R, K+1, M, M), as `MaskFCN` does it.
    convention : MaskConvention
        How targets are cropped, and detected masks pasted.
    threshold : float or None
        Makes targets binary: 1 from this value on; None leaves them soft.
    """

    paths = {"net": ""}  # torchvision's names in the state: roi_heads.mask_head and roi_heads.mask_predictor

    def __init__(
        self,
        pooler: Pooler | Res5Pooler,
        net: Module,
        convention: MaskConvention,
        threshold: float | None = None,
    ):
        self.pooler, self.net = pooler, net
        self.convention, self.threshold = convention, threshold

    def forward(self, levels, boxes, pooled=None) -> Tensor:  # P2..P5, (R, 5) -> (R, K+1, M, M)
        x = self.pooler(levels, boxes) if pooled is None else pooled  # (R, C, 14, 14)
        return self.net(x)  # (R, K+1, 28, 28)

    def pooled_by(self, box_head: BoxHead, out: BoxOutput, rois: RoIs) -> Tensor | None:
        """The positive RoIs' features, where a box head with the same pooler has them: (R+, C, P, P)."""
        if self.pooler is not box_head.pooler or out.pooled is None:
            return None
        return out.pooled[array_module(rois.boxes).asarray(np.flatnonzero(rois.labels))]

    def targets(self, rois: RoIs, targets: list[Target], size: int) -> np.ndarray:
        """(R, M, M): what each positive RoI sees of its object's mask."""
        xp = array_module(rois.boxes)
        out = xp.zeros((len(rois.labels), size, size), rois.boxes.dtype)
        for n, target in enumerate(targets):
            rows = np.flatnonzero(rois.images == n)
            boxes = scale_boxes(rois.boxes[rows, 1:], target.mask_scale)
            matches = xp.asarray(rois.matches[rows])
            out[rows] = crop_masks(target.masks, boxes, matches, size, self.convention, self.threshold)
        return out

    def loss(self, logits: Tensor, rois: RoIs, targets: list[Target]) -> dict[str, Tensor]:
        """L_mask: of each RoI, only the mask of the true class contributes."""
        check_labels(rois, logits.shape[1], "the mask head's net")
        wanted = self.targets(rois, targets, logits.shape[-1])
        return {"loss_mask": F.mask_loss(logits, rois.labels, wanted)}

    def predict(self, levels, detections: list[Detections]) -> list[np.ndarray]:
        """For each image the probabilities (D, M, M) of the detected classes' masks; for inference."""
        xp = array_module(*(d.boxes for d in detections))
        labels = xp.concatenate([d.labels for d in detections])
        logits = self.forward(levels, as_rois([d.boxes for d in detections])).data  # (sum D, K+1, M, M)
        probabilities = sigmoid_array(logits[xp.arange(len(labels)), labels], xp)
        ends = np.cumsum([len(d.labels) for d in detections])
        return [probabilities[end - len(d.labels) : end] for end, d in zip(ends, detections)]
