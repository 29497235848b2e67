"""The keypoint branch (section 5): one position out of m x m for each keypoint; its net, loss, decoding.

Shapes: R RoIs, K keypoints, C channels, M x M heat map cells, G objects per image, D detections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minimask import functions as F
from minimask.autograd import Tensor
from minimask.backend import array_module, to_cpu
from minimask.functions.roi import as_rois
from minimask.keypoints import Peaks, heatmaps_to_keypoints, keypoints_to_heatmap
from minimask.models.box_head import Detections, Pooler, RoIs
from minimask.models.transform import Target
from minimask.nn import Conv2d, ConvTranspose2d, MakeNorm, Module, Sequential


@dataclass(frozen=True)
class KeypointOptions:
    """How L_keypoint is normalised.

    Attributes
    ----------
    normalizer_per_image : float or None
        None divides by the number of valid keypoints in the batch, as do torchvision and, by default,
        detectron2. A number is multiplied by the number of images in the batch: detectron2, with
        NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS off, takes
        ``num_keypoints * box_batch_size_per_image * box_positive_fraction``, so that few visible keypoints
        weigh little.
    weight : float
        Multiplies the loss.
    """

    normalizer_per_image: float | None = None
    weight: float = 1.0

    def normalizer(self, images: int) -> float | None:
        """What the sum of the keypoints' losses is divided by; None for their number."""
        return None if self.normalizer_per_image is None else images * self.normalizer_per_image


class KeypointConvs(Module):
    """The 3 x 3 convolutions, under torchvision's names 0, 2, 4, ...: ReLUs have the odd numbers there."""

    def __init__(self, channels_in: int, width: int, convs: int, rng):
        for i in range(convs):
            setattr(self, str(2 * i), Conv2d(width if i else channels_in, width, 3, rng))

    def __iter__(self):
        return (m for m in vars(self).values() if isinstance(m, Module))


class KeypointPredictor(Module):
    """Deconvolution to twice the side, and a map of logits for each keypoint."""

    def __init__(self, width: int, num_keypoints: int, rng):
        self.kps_score_lowres = ConvTranspose2d(width, num_keypoints, 4, rng, stride=2, padding=1, gain=0.5)


class KeypointNet(Module):
    """Eight convolutions, a deconvolution, and bilinear doubling: a side of 14 becomes 56 (section 5).

    Parameters
    ----------
    channels : int
        Of the RoI features.
    num_keypoints : int
        K.
    rng : numpy.random.Generator
    width, convs : int
        Channels of the convolutions, and how many there are.
    """

    def __init__(self, channels: int, num_keypoints: int, rng, width: int = 512, convs: int = 8):
        self.keypoint_head = KeypointConvs(channels, width, convs, rng)
        self.keypoint_predictor = KeypointPredictor(width, num_keypoints, rng)

    @property
    def num_keypoints(self) -> int:
        """K."""
        return len(self.keypoint_predictor.kps_score_lowres.bias)

    def forward(self, x) -> Tensor:  # (R, C, P, P) -> (R, K, 4P, 4P)
        convs = [conv.weight_and_bias for conv in self.keypoint_head]
        return F.keypoint_head(x, convs, self.keypoint_predictor.kps_score_lowres.weight_and_bias)


class NormedKeypointNet(Module):
    """`KeypointNet` with a norm after each convolution: it learns from random weights and few images.

    On the generated figures, with true boxes and four images a step, the loss falls from log M^2 = 8.05 to
    6.2 in 150 steps; without norms to 7.5.

    Parameters
    ----------
    channels, num_keypoints, rng, width, convs
        As for `KeypointNet`.
    norm : callable
        Makes the norm, given the number of channels.
    """

    def __init__(self, channels: int, num_keypoints: int, rng, width: int, convs: int, norm: MakeNorm):
        inputs = [channels, *[width] * convs]
        self.keypoint_head = Sequential(
            *(Sequential(Conv2d(inputs[i], width, 3, rng, bias=False), norm(width)) for i in range(convs))
        )
        self.keypoint_predictor = KeypointPredictor(inputs[-1], num_keypoints, rng)

    @property
    def num_keypoints(self) -> int:
        """K."""
        return len(self.keypoint_predictor.kps_score_lowres.bias)

    def forward(self, x) -> Tensor:  # (R, C, P, P) -> (R, K, 4P, 4P)
        for conv, norm in self.keypoint_head:
            x = norm.after(conv, x)  # (R, width, P, P)
        return F.upsample_bilinear(self.keypoint_predictor.kps_score_lowres(x))


class KeypointHead(Module):
    """Where is each keypoint? One of m x m positions, for all classes alike.

    Parameters
    ----------
    pooler : Pooler
    net : Module
        RoI features (R, C, P, P) -> logits (R, K, M, M), with a `num_keypoints`, such as `KeypointNet`.
    options : KeypointOptions
    """

    # torchvision's names in the state: roi_heads.keypoint_head and roi_heads.keypoint_predictor
    paths = {"net": ""}

    def __init__(self, pooler: Pooler, net: Module, options: KeypointOptions | None = None):
        self.pooler, self.net, self.options = pooler, net, options or KeypointOptions()

    @property
    def num_keypoints(self) -> int:
        """K."""
        return self.net.num_keypoints

    def select(self, positive: RoIs, targets: list[Target]) -> RoIs:
        """Positive RoIs whose object has a labelled keypoint; the others would add nothing to the loss."""
        if not len(positive.labels):
            return positive
        first = np.cumsum([0] + [len(t.boxes) for t in targets])[positive.images]
        keep = np.flatnonzero(np.concatenate([t.has_keypoints for t in targets])[first + positive.matches])
        rois = positive
        return RoIs(rois.boxes[keep], rois.labels[keep], rois.matches[keep], rois.images[keep])

    def forward(self, levels, boxes) -> Tensor:  # P2..P5, (R, 5) -> (R, K, M, M)
        x = self.pooler(levels, boxes)  # (R, C, 14, 14)
        return self.net(x)  # (R, K, 56, 56)

    def targets(self, rois: RoIs, targets: list[Target], size: int):
        """The true cell (R, K) of each RoI's keypoints; which are labelled and in the RoI, (R, K) bool."""
        xp = array_module(rois.boxes)
        first = np.cumsum([0] + [len(t.boxes) for t in targets])[rois.images]
        keypoints = xp.concatenate([t.keypoints for t in targets])[first + rois.matches]  # (R, K, 3)
        return keypoints_to_heatmap(keypoints, rois.boxes[:, 1:], size)

    def loss(self, logits: Tensor, rois: RoIs, targets: list[Target]) -> dict[str, Tensor]:
        """L_keypoint: a softmax over all positions, for each keypoint that is labelled and in its RoI."""
        cells, valid = self.targets(rois, targets, logits.shape[-1])
        loss = F.keypoint_loss(logits, cells, valid, self.options.normalizer(len(targets)))
        return {"loss_keypoint": loss if self.options.weight == 1 else loss * self.options.weight}

    def predict(self, levels, detections: list[Detections]) -> list[Peaks]:
        """For each image, the keypoints of its detections, on the CPU, in pixels of the batch."""
        logits = self.forward(levels, as_rois([d.boxes for d in detections])).data  # (sum D, K, M, M)
        maps = to_cpu(logits)  # sync: results are decoded on the CPU, where they end
        boxes = to_cpu(array_module(logits).concatenate([d.boxes for d in detections]))  # sync: theirs
        peaks = heatmaps_to_keypoints(maps, boxes)
        ends = np.cumsum([len(d.labels) for d in detections])
        rows = [slice(end - len(d.labels), end) for end, d in zip(ends, detections)]
        return [Peaks(*(column[part] for column in peaks)) for part in rows]
