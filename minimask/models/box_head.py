"""The second stage's class and box branch: sampling of RoIs, its net, its losses, its detections.

Shapes: N images, R RoIs, P proposals per image, K classes and background, C channels, D detections.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from minimask import functions as F
from minimask.autograd import Tensor
from minimask.backend import array_module, to_cpu
from minimask.boxes import BoxCoder, batched_nms, clip_boxes_to_image, remove_small_boxes
from minimask.errors import InputError
from minimask.functions.activation import softmax_array
from minimask.functions.roi import as_rois
from minimask.matching import Matcher, assign_fpn_levels, match_images, sample_balanced
from minimask.models.options import check_numbers, check_whole
from minimask.models.transform import Batch, Target
from minimask.nn import ConvNorm, Linear, MakeNorm, Module, Sequential
from minimask.randomness import Draws, Purpose

RoILayer = Callable[..., Tensor]  # called as described in `Pooler`


@dataclass(frozen=True)
class BoxOptions:
    """The ``box_...`` numbers that torchvision's builders take, with torchvision's defaults.

    torchvision has no arguments for `crowd_coverage`, `min_size`, `min_size_last`, `beta` and
    `class_agnostic`.

    Attributes
    ----------
    fg_iou_thresh, bg_iou_thresh : float
        A proposal is positive if its best IoU with an object is at least `fg_iou_thresh`, and background if
        it is below `bg_iou_thresh`.
    batch_size_per_image, positive_fraction : int, float
        RoIs in an image's loss, and the share of them that may be positive.
    score_thresh, nms_thresh : float
        Detections must score more than `score_thresh`; if two of a class overlap by more than `nms_thresh`,
        the one that scores less is dropped.
    detections_per_img : int
        How many of an image's best are kept.
    crowd_coverage : float
        See `minimask.matching.ignore_crowds`.
    min_size, min_size_last : float, bool
        Detections with a side below `min_size`, in pixels of the batch, are dropped: before suppression, or
        as the last step.
    beta : float
        Of smooth L1.
    class_agnostic : bool
        One box per RoI instead of one for each class; the predictor must then give four deltas, too.
    """

    fg_iou_thresh: float = 0.5
    bg_iou_thresh: float = 0.5
    batch_size_per_image: int = 512
    positive_fraction: float = 0.25
    crowd_coverage: float = 0.5
    score_thresh: float = 0.05
    nms_thresh: float = 0.5
    detections_per_img: int = 100
    min_size: float = 1e-2
    min_size_last: bool = False
    beta: float = 1 / 9
    class_agnostic: bool = False

    def __post_init__(self):
        check_numbers(self, "box_")


@dataclass(frozen=True)
class RoIs:
    """Sampled regions and what they should become.

    Attributes
    ----------
    boxes : (R, 5)
        Image index, x1, y1, x2, y2 in the batch's pixels, on the network's device. The rest stays on the CPU,
        where it was drawn, so that counting RoIs or picking rows never waits for a GPU.
    labels : (R,)
        Class of the matched object; 0 is background.
    matches : (R,)
        Index of the object among those of its image; meaningless for background.
    images : (R,), optional
        The image index again.
    """

    boxes: np.ndarray
    labels: np.ndarray
    matches: np.ndarray
    images: np.ndarray | None = None

    def __post_init__(self):
        if self.images is None:
            images = to_cpu(self.boxes[:, 0])  # sync: not in training, which passes them in
            object.__setattr__(self, "images", images.astype(np.int64))

    @property
    def positive(self) -> RoIs:
        """The RoIs with an object; the mask branch sees no others."""
        keep = np.flatnonzero(self.labels)
        return RoIs(self.boxes[keep], self.labels[keep], self.matches[keep], self.images[keep])


def check_labels(rois: RoIs, channels: int, who: str) -> None:
    """Raise an InputError if a RoI's class has no output: a GPU would silently train another class's."""
    largest = int(rois.labels.max(initial=0))
    if largest >= channels:
        raise InputError(
            f"targets: label {largest}, but {who} has outputs for labels up to {channels - 1} only"
        )


@dataclass(frozen=True)
class BoxOutput:
    """Class logits (R, K+1), and class-specific deltas (R, 4(K+1)) or class-agnostic ones (R, 4).

    In training mode also the pooled features (R, C, S, S), for a mask head that shares the pooler.
    """

    logits: Tensor
    deltas: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True)
class Candidates:
    """An image's boxes that score high enough, each for one class, and which of them become detections.

    Attributes
    ----------
    probabilities : (P, K+1)
        Of each proposal's classes, background first.
    proposals, labels, scores : (B,)
        For each candidate: the index of its proposal, its class, and the probability of that class.
    refined, boxes : (B, 4)
        The proposal moved by its class's deltas, before and after clipping to the image.
    survivors, kept : (S,) and (D,) int64
        Indices among the B, by falling score: what suppression leaves, class by class; and the best of
        these, which are the detections.
    """

    probabilities: np.ndarray
    proposals: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    refined: np.ndarray
    boxes: np.ndarray
    survivors: np.ndarray
    kept: np.ndarray

    @property
    def detections(self) -> Detections:
        return Detections(self.boxes[self.kept], self.labels[self.kept], self.scores[self.kept])


@dataclass(frozen=True)
class Detections:
    """One image's results by falling score, in the batch's pixels: boxes (D, 4), labels (D,), scores (D,)."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Pooler:
    """The RoI layer over P2..P5: a box of 224 pixels reads P4, one of half that P3 (FPN, equation 1).

    Parameters
    ----------
    output_size : int
        S: bins along each side of a box.
    roi_layer : callable
        `functions.roi_align` or one of the others, with its own options bound by `functools.partial`. It is
        called as ``roi_layer(levels, rois, output_size, scales, levels=assigned)``.
    canonical_scale : float
        Side of a square box that reads P4, in pixels.
    strides : tuple of int
        Of the levels that it reads, from P2 on; just one where the backbone gives a single map, such as C4's
        16.
    level_eps, side_eps : float
        See `minimask.matching.assign_fpn_levels`.
    """

    output_size: int
    roi_layer: RoILayer
    canonical_scale: float = 224.0
    strides: tuple[int, ...] = (4, 8, 16, 32)
    level_eps: float = 1e-6
    side_eps: float = 0.0

    def assign(self, rois):  # (R, 5) -> (R,)
        """Index, from 0, of the level that each RoI reads."""
        to_level = dict(canonical_scale=self.canonical_scale, eps=self.level_eps, side_eps=self.side_eps)
        return assign_fpn_levels(rois[:, 1:], 2, 1 + len(self.strides), **to_level) - 2

    def __call__(self, levels, rois) -> Tensor:  # P2.., (R, 5) -> (R, C, S, S)
        scales = tuple(1.0 / s for s in self.strides)
        levels, assigned = levels[: len(scales)], self.assign(rois)
        return self.roi_layer(levels, rois, self.output_size, scales, levels=assigned)


class TwoMLPHead(Module):
    """Two fully connected layers with ReLU (FPN, section 4.2)."""

    def __init__(self, inputs: int, width: int, rng):
        self.fc6, self.fc7 = Linear(inputs, width, rng), Linear(width, width, rng)

    def forward(self, x):  # (R, C, S, S) -> (R, width)
        x = x.reshape(len(x), math.prod(x.shape[1:]))  # -1 would be ambiguous where there are no RoIs
        return F.relu(self.fc7(F.relu(self.fc6(x))))


class ConvFCHead(Sequential):
    """Convolutions with norm and ReLU, then one fully connected layer: the box head of torchvision's v2.

    Its layers are numbered as in torchvision, where the flattening counts as one.
    """

    def __init__(self, channels: int, side: int, convs: int, width: int, norm: MakeNorm | None, rng):
        super().__init__(*(ConvNorm(channels, channels, 3, rng, norm) for _ in range(convs)))
        setattr(self, str(convs + 1), Linear(channels * side**2, width, rng))

    def forward(self, x):  # (R, C, S, S) -> (R, width)
        *convs, fc = self
        for block in convs:
            x = block(x, True)
        return F.relu(fc(x.reshape(len(x), math.prod(x.shape[1:]))))


@dataclass(frozen=True)
class Res5Pooler:
    """The RoI layer followed by the last stage of the ResNet, for both heads (C4; figure 4, left).

    It is not a Module: the stage's parameters belong to the box head, though the mask head reads its map too.

    Parameters
    ----------
    pooler : Pooler
        For the single level.
    layer4 : Module
        (R, C4, S, S) -> (R, C5, S/2, S/2).
    """

    pooler: Pooler
    layer4: Module

    def __call__(self, levels, rois) -> Tensor:  # one level, (R, 5) -> (R, C5, S/2, S/2)
        return self.layer4(self.pooler(levels, rois))


class AveragingHead(Module):
    """The mean over each RoI's features from the ResNet's last stage, whose parameters this module holds."""

    def __init__(self, layer4: Module):
        self.layer4 = layer4  # applied in `Res5Pooler`

    def forward(self, x):  # (R, C, S, S) -> (R, C)
        return x.mean(axis=(2, 3))


class BoxPredictor(Module):
    """Class logits, and a box for each class or one for all."""

    def __init__(self, width: int, num_classes: int, rng, class_agnostic: bool = False):
        check_whole("num_classes", num_classes, 2, why=", one for the background included")
        boxes = 1 if class_agnostic else num_classes
        self.cls_score = Linear(width, num_classes, rng, gain=1e-4 * width)  # std 0.01
        self.bbox_pred = Linear(width, 4 * boxes, rng, gain=1e-6 * width)  # std 0.001

    @property
    def num_classes(self) -> int:
        """Background included."""
        return len(self.cls_score.bias)

    def forward(self, x) -> BoxOutput:  # (R, width) -> (R, K+1), (R, 4(K+1))
        return BoxOutput(self.cls_score(x), self.bbox_pred(x))


class BoxHead(Module):
    """What is in each RoI, and where exactly?

    Parameters
    ----------
    pooler : Pooler or Res5Pooler
    head : Module
        RoI features (R, C, S, S) -> (R, width), such as `TwoMLPHead`.
    predictor : Module
        (R, width) -> `BoxOutput`, such as `BoxPredictor`.
    options : BoxOptions
    """

    def __init__(self, pooler: Pooler | Res5Pooler, head: Module, predictor: Module, options: BoxOptions):
        self.box_head, self.box_predictor = head, predictor
        self.pooler, self.options = pooler, options
        self.coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
        self.matcher = Matcher(options.fg_iou_thresh, options.bg_iou_thresh, allow_low_quality_matches=False)

    @property
    def num_classes(self) -> int | None:
        """Background included; None where the predictor does not say."""
        return getattr(self.box_predictor, "num_classes", None)

    def sample(self, proposals: list[np.ndarray], targets: list[Target], draws: Draws) -> RoIs:
        """RoIs drawn from proposals and true boxes; by default at most a quarter positive (section 3.1)."""
        xp, o, parts = array_module(*proposals), self.options, []
        candidates = [xp.concatenate([boxes, t.boxes]) for boxes, t in zip(proposals, targets)]
        matched = match_images(self.matcher, candidates, targets, o.crowd_coverage)
        for n, (boxes, matches, target) in enumerate(zip(candidates, matched, targets)):
            # boxes (P + G, 4), matches (P + G,)
            rng = draws.rng(Purpose.SAMPLE_ROIS, n)
            positive, negative = sample_balanced(matches, o.batch_size_per_image, o.positive_fraction, rng)
            chosen = np.concatenate([positive, negative])
            labels = np.zeros(len(chosen), np.int64)
            labels[: len(positive)] = target.labels[matches[positive]]
            images = np.full(len(chosen), n)
            parts.append((boxes[chosen], labels, matches[chosen], images))
        boxes, *rest = zip(*parts)
        return RoIs(as_rois(boxes), *map(np.concatenate, rest))

    def forward(self, levels, boxes) -> BoxOutput:  # P2..P5, (R, 5)
        x = self.pooler(levels, boxes)  # (R, C, 7, 7)
        out = self.box_predictor(self.box_head(x))  # (R, K+1), (R, 4(K+1))
        return replace(out, pooled=x) if self.training else out

    def loss(self, out: BoxOutput, rois: RoIs, targets: list[Target]) -> dict[str, Tensor]:
        """L_cls and L_box."""
        check_labels(rois, out.logits.shape[1], "the box predictor")
        encoded = self.encoded(rois, targets)  # (R, 4)
        options = dict(beta=self.options.beta, class_agnostic=self.options.class_agnostic)
        classification, box = F.box_head_loss(out.logits, out.deltas, rois.labels, encoded, **options)
        return {"loss_classifier": classification, "loss_box_reg": box}

    def encoded(self, rois: RoIs, targets: list[Target]):
        """(R, 4): the deltas from each RoI to its object; 0 for background."""
        xp = array_module(rois.boxes)
        encoded = xp.zeros((len(rois.labels), 4), rois.boxes.dtype)
        rows = np.flatnonzero(rois.labels)
        first = np.cumsum([0] + [len(t.boxes) for t in targets])[rois.images[rows]]
        objects = xp.concatenate([t.boxes for t in targets])[first + rois.matches[rows]]
        encoded[rows] = self.coder.encode(objects, rois.boxes[rows, 1:])
        return encoded

    def detect(self, out: BoxOutput, proposals: list[np.ndarray], batch: Batch) -> list[Detections]:
        """Final boxes of each image: each class of each RoI that scores enough and survives suppression."""
        return [found.detections for found in self.filter(out, proposals, batch)]

    def filter(self, out: BoxOutput, proposals: list[np.ndarray], batch: Batch) -> list[Candidates]:
        """From each image's proposals to its detections, with all steps in between."""
        begin, results = 0, []
        for boxes, size in zip(proposals, batch.sizes):
            rows = slice(begin, begin + len(boxes))
            begin += len(boxes)
            results.append(self._filter(out.logits.data[rows], out.deltas.data[rows], boxes, size))
        return results

    def _filter(self, logits, deltas, proposals, size) -> Candidates:
        xp, o = array_module(logits), self.options
        probabilities = softmax_array(logits, xp=xp) if len(logits) else logits  # (P, K+1)
        likely = xp.flatnonzero(probabilities[:, 1:] > o.score_thresh)  # sync: how many there are
        roi, label = xp.divmod(likely, probabilities.shape[1] - 1)  # faster than two indices at once
        label = label + 1
        scores = probabilities[roi, label]  # (B,)
        box = xp.zeros_like(label) if o.class_agnostic else label
        deltas = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)[roi, box]  # (B, 4)
        refined = self.coder.decode(deltas, proposals[roi])[:, 0]
        boxes = clip_boxes_to_image(refined, size)
        if o.min_size_last:
            large = xp.arange(len(boxes))
        else:
            large = remove_small_boxes(boxes, o.min_size)  # sync: how many are left
        survivors = large[batched_nms(boxes[large], scores[large], label[large], o.nms_thresh)]  # sync: again
        kept = survivors[: o.detections_per_img]
        if o.min_size_last:
            kept = kept[remove_small_boxes(boxes[kept], o.min_size)]  # sync: instead of the one above
        return Candidates(probabilities, roi, label, scores, refined, boxes, survivors, kept)
