"""The mask branch: a small fully convolutional network on each RoI (section 3), its loss, its masks.

`MaskFCN` and `SigmoidMasks` are the paper's choices, which it compares with `MaskMLP` and `SoftmaxMasks`.

Shapes: R RoIs, K classes and background, M x M mask cells, G objects per image, Q channels of the net.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from minimask import functions as F
from minimask.autograd import Tensor
from minimask.backend import array_module
from minimask.boxes import scale_boxes
from minimask.functions.activation import sigmoid_array, softmax_array
from minimask.functions.roi import as_rois
from minimask.masks import MaskConvention, crop_masks
from minimask.models.box_head import BoxHead, BoxOutput, Detections, Pooler, Res5Pooler, RoIs, check_labels
from minimask.models.transform import Target
from minimask.nn import Conv2d, ConvNorm, ConvTranspose2d, Linear, MakeNorm, Module, Sequential


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
        Number of 3x3 convolutions; none after res5, which replaces them (figure 4, left).
    norm : callable, optional
        Makes the norm after each of them, given the number of channels.
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


class MaskMLP(Module):
    """Fully connected layers instead of convolutions: each pixel of a mask sees all of the RoI (Table 2e).

    Parameters
    ----------
    channels : int
        C, of the RoI features.
    num_classes : int
        Q, the number of masks of a RoI.
    rng : numpy.random.Generator
    layers : int
        Number of hidden layers: 2 or 3 in the paper.
    width : int, optional
        Of each hidden layer; 4 C by default, the paper's 1024 where C is 256.
    size : int
        P, the side of the RoI features.

    Notes
    -----
    With 80 classes and background, 256 channels and two hidden layers it has 117.5 M parameters (51.4 M in
    the first layer, 65.1 M in the last): 470 MB, and three times that in training. `MaskFCN` has 2.6 M.
    """

    def __init__(
        self, channels: int, num_classes: int, rng, layers: int = 2, width: int | None = None, size: int = 14
    ):
        self.shape = (num_classes, 2 * size, 2 * size)
        width = width or 4 * channels
        inputs = [channels * size**2] + [width] * (layers - 1)
        self.mask_head = Sequential(*(Linear(n, width, rng) for n in inputs))
        self.mask_predictor = Linear(width, math.prod(self.shape), rng, gain=1e-6 * width)  # std 0.001

    def forward(self, x) -> Tensor:  # (R, C, P, P) -> (R, Q, 2P, 2P)
        x = x.reshape(len(x), math.prod(x.shape[1:]))  # (R, C P P)
        for layer in self.mask_head:
            x = F.relu(layer(x))  # (R, width)
        return self.mask_predictor(x).reshape(len(x), *self.shape)


@dataclass(frozen=True)
class SigmoidMasks:
    """K masks, each with a sigmoid of its own: they do not compete, the class branch decides (section 3).

    Parameters
    ----------
    class_agnostic : bool
        One mask for all classes, in channel 0, instead of one for each (section 4.2). If not, channel 0 is
        neither read nor trained, as in torchvision.
    """

    class_agnostic: bool = False

    def channels(self, num_classes: int) -> int:
        """Q, the number of masks the net must give; `num_classes` includes background."""
        return 1 if self.class_agnostic else num_classes

    def channel(self, labels):
        """(R,): the channel that each RoI's class reads."""
        return array_module(labels).zeros_like(labels) if self.class_agnostic else labels

    def loss(self, logits: Tensor, labels, targets) -> Tensor:
        """L_mask of logits (R, Q, M, M), labels (R,) from 1 up and targets (R, M, M)."""
        return F.mask_loss(logits, labels, targets, class_agnostic=self.class_agnostic)

    def probabilities(self, logits, labels):
        """(R, M, M): the masks of these classes, from the logits' array (R, Q, M, M)."""
        xp = array_module(logits)
        return sigmoid_array(logits[xp.arange(len(logits)), self.channel(labels)], xp)


@dataclass(frozen=True)
class SoftmaxMasks:
    """A softmax over all classes and background at each pixel, as in FCN: masks compete (Table 2b).

    Parameters
    ----------
    class_agnostic : bool
        Two channels, background and object, whatever the class. That equals
        `SigmoidMasks(class_agnostic=True)` on the difference of the two.
    """

    class_agnostic: bool = False

    def channels(self, num_classes: int) -> int:
        """Q, the number of channels the net must give; `num_classes` includes background, the first."""
        return 2 if self.class_agnostic else num_classes

    def channel(self, labels):
        """(R,): the channel that each RoI's class reads."""
        return array_module(labels).ones_like(labels) if self.class_agnostic else labels

    def loss(self, logits: Tensor, labels, targets) -> Tensor:
        """L_mask of logits (R, Q, M, M), labels (R,) from 1 up and targets (R, M, M)."""
        return F.softmax_mask_loss(logits, self.channel(labels), targets)

    def probabilities(self, logits, labels):
        """(R, M, M): the masks of these classes, from the logits' array (R, Q, M, M)."""
        xp = array_module(logits)
        return softmax_array(logits, 1, xp)[xp.arange(len(logits)), self.channel(labels)]


SIGMOIDS = SigmoidMasks()


class MaskHead(Module):
    """An m x m mask for each RoI and class, in parallel with class and box (section 3).

    Parameters
    ----------
    pooler : Pooler or Res5Pooler
    net : Module
        RoI features (R, C, P, P) -> logits (R, Q, M, M), such as `MaskFCN`; Q is K + 1 unless `mask_loss`
        says otherwise.
    convention : MaskConvention
        How targets are cropped, and detected masks pasted.
    threshold : float or None
        Makes targets binary: 1 from this value up; None leaves them soft.
    mask_loss : SigmoidMasks or SoftmaxMasks
        What the logits mean: their loss, and how they become probabilities.
    """

    paths = {"net": ""}  # torchvision's names in the state: roi_heads.mask_head and roi_heads.mask_predictor

    def __init__(
        self,
        pooler: Pooler | Res5Pooler,
        net: Module,
        convention: MaskConvention,
        threshold: float | None = None,
        mask_loss: SigmoidMasks | SoftmaxMasks = SIGMOIDS,
    ):
        self.pooler, self.net = pooler, net
        self.convention, self.threshold, self.mask_loss = convention, threshold, mask_loss

    def forward(self, levels, boxes, pooled=None) -> Tensor:  # P2..P5, (R, 5) -> (R, Q, M, M)
        x = self.pooler(levels, boxes) if pooled is None else pooled  # (R, C, 14, 14)
        return self.net(x)  # (R, Q, 28, 28)

    def pooled_by(self, box_head: BoxHead, out: BoxOutput, rois: RoIs) -> Tensor | None:
        """The positive RoIs' features (R+, C, P, P), if a box head with the same pooler has computed them."""
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
        """L_mask; with sigmoids, only the mask of each RoI's true class contributes."""
        channels = replace(rois, labels=self.mask_loss.channel(rois.labels))
        check_labels(channels, logits.shape[1], "the mask head's net")
        wanted = self.targets(rois, targets, logits.shape[-1])
        return {"loss_mask": self.mask_loss.loss(logits, rois.labels, wanted)}

    def predict(self, levels, detections: list[Detections]) -> list[np.ndarray]:
        """For each image, the probabilities (D, M, M) of the detected classes' masks; for inference."""
        return self.probabilities(self.logits(levels, detections), detections)

    def logits(self, levels, detections: list[Detections]) -> Tensor:
        """The logits (sum D, Q, M, M) of all images' detections."""
        return self.forward(levels, as_rois([d.boxes for d in detections]))

    def probabilities(self, logits: Tensor, detections: list[Detections]) -> list[np.ndarray]:
        """For each image, the probabilities (D, M, M) of the detected classes' masks, from their logits."""
        xp = array_module(*(d.boxes for d in detections))
        labels = xp.concatenate([d.labels for d in detections])
        probabilities = self.mask_loss.probabilities(logits.data, labels)
        ends = np.cumsum([len(d.labels) for d in detections])
        return [probabilities[end - len(d.labels) : end] for end, d in zip(ends, detections)]
