"""The region proposal network (Faster R-CNN, section 3; FPN, section 4.1): net, proposals, losses.

Shapes: N images, A anchors per image over all levels, P proposals, G objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from minimask import functions as F
from minimask.anchors import AnchorGenerator
from minimask.autograd import Tensor
from minimask.backend import array_module
from minimask.boxes import BoxCoder, batched_nms, by_falling, clip_boxes_to_image
from minimask.functions.activation import sigmoid_array
from minimask.matching import Matcher, match_images, sample_balanced
from minimask.models.options import check_numbers
from minimask.models.transform import Batch, Target
from minimask.nn import Conv2d, Module, Sequential
from minimask.randomness import Draws, Purpose


@dataclass(frozen=True)
class RPNOptions:
    """The ``rpn_...`` numbers that torchvision's builders take, with torchvision's defaults.

    torchvision has no arguments for `min_size`, `crowd_coverage`, `beta` and the three flags.

    Attributes
    ----------
    pre_nms_top_n_train, pre_nms_top_n_test : int
        How many of each level's best anchors go into suppression, for a loss and for results.
    post_nms_top_n_train, post_nms_top_n_test : int
        How many of an image's best proposals are kept after suppression.
    nms_thresh, score_thresh : float
        If two proposals of a level overlap by more than `nms_thresh`, the one that scores less is dropped;
        so is any that scores less than `score_thresh`.
    fg_iou_thresh, bg_iou_thresh : float
        An anchor is positive if its best IoU with an object is at least `fg_iou_thresh`, and negative if it
        is below `bg_iou_thresh`.
    batch_size_per_image, positive_fraction : int, float
        Anchors in an image's loss, and the share of them that may be positive.
    min_size : float
        Proposals with a side below this, in pixels of the batch, are dropped.
    crowd_coverage : float
        See `minimask.matching.ignore_crowds`.
    beta : float
        Of smooth L1.
    fixed_normalizer, ranks_logits, untouched_matches_all : bool
        See ``rpn_...`` and `untouched_matches_all` in `minimask.models.conventions.Conventions`.
    """

    pre_nms_top_n_train: int = 2000
    pre_nms_top_n_test: int = 1000
    post_nms_top_n_train: int = 2000
    post_nms_top_n_test: int = 1000
    nms_thresh: float = 0.7
    score_thresh: float = 0.0
    fg_iou_thresh: float = 0.7
    bg_iou_thresh: float = 0.3
    batch_size_per_image: int = 256
    positive_fraction: float = 0.5
    min_size: float = 1e-3
    crowd_coverage: float = 0.5
    beta: float = 1 / 9
    fixed_normalizer: bool = False
    ranks_logits: bool = False
    untouched_matches_all: bool = False

    def __post_init__(self):
        check_numbers(self, "rpn_")


@dataclass(frozen=True)
class RPNOutput:
    """Logits (N, A), deltas (N, A, 4), anchors (A, 4), and each level's number of anchors."""

    logits: Tensor
    deltas: Tensor
    anchors: np.ndarray
    per_level: list[int]


@dataclass(frozen=True)
class RankedAnchors:
    """What becomes of an image's best anchors on their way to proposals.

    Attributes
    ----------
    anchors, levels : (B,) int64
        The best of each level, by falling score in each: indices among all A, and their levels.
    scores : (B,)
        Probabilities of an object.
    refined, boxes : (B, 4)
        Each anchor moved by its deltas, before and after clipping to the image.
    survivors, kept : (S,) and (P,) int64
        Indices among the B, by falling score: those that are large enough and not suppressed; and the first
        of these, which become proposals.
    """

    anchors: np.ndarray
    levels: np.ndarray
    scores: np.ndarray
    refined: np.ndarray
    boxes: np.ndarray
    survivors: np.ndarray
    kept: np.ndarray

    @property
    def proposals(self) -> np.ndarray:
        """(P, 4)."""
        return self.boxes[self.kept]


@dataclass(frozen=True)
class RPNSamples:
    """Which anchors the loss sees: flat indices into (N A), on the CPU, where they were drawn; and the
    encoded boxes (R+, 4) of the positive ones.
    """

    positive: np.ndarray
    negative: np.ndarray
    targets: np.ndarray


class RPNHeadNet(Module):
    """The weights of the explicit Function `rpn_head`, shared by all levels.

    All are drawn with a standard deviation of 0.01 (Ren et al. 2015, Faster R-CNN, section 3.1.3).

    Parameters
    ----------
    channels, anchors_per_position : int
    rng : numpy.random.Generator
    convs : int
        Number of 3x3 convolutions before the predictors: one, as published; two in torchvision's v2.
    """

    def __init__(self, channels: int, anchors_per_position: int, rng, convs: int = 1):
        gain = 9e-4 * channels
        self.conv = Sequential(
            *(Sequential(Conv2d(channels, channels, 3, rng, gain=gain)) for _ in range(convs))
        )
        self.cls_logits = Conv2d(channels, anchors_per_position, 1, rng, gain=1e-4 * channels)
        self.bbox_pred = Conv2d(channels, 4 * anchors_per_position, 1, rng, gain=1e-4 * channels)

    def forward(self, levels):  # L of (N, C, H_l, W_l) -> (N, A), (N, A, 4)
        *before, (last,) = self.conv
        for (conv,) in before:
            levels = [F.relu(conv(x)) for x in levels]
        return F.rpn_head(
            levels, last.weight_and_bias, self.cls_logits.weight_and_bias, self.bbox_pred.weight_and_bias
        )


class RPN(Module):
    """Where might objects be? Class-agnostic scores and boxes at every anchor.

    Parameters
    ----------
    head : Module
        L levels (N, C, H_l, W_l) -> logits (N, A), deltas (N, A, 4), such as `RPNHeadNet`.
    anchors : AnchorGenerator
    options : RPNOptions
    """

    def __init__(self, head: Module, anchors: AnchorGenerator, options: RPNOptions):
        self.head, self.anchors, self.options = head, anchors, options
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.matcher = Matcher(
            options.fg_iou_thresh,
            options.bg_iou_thresh,
            allow_low_quality_matches=True,
            untouched_matches_all=options.untouched_matches_all,
        )

    def forward(self, levels, batch: Batch) -> RPNOutput:  # P2..P6, each (N, C, H_l, W_l)
        logits, deltas = self.head(levels)  # (N, A), (N, A, 4)
        sizes, images = tuple(x.shape[2:] for x in levels), batch.images
        key = self.anchors, batch.padded_size, sizes, images.dtype, array_module(images)
        return RPNOutput(logits, deltas, *_anchors(*key))

    def propose(self, out: RPNOutput, batch: Batch, for_loss: bool = False) -> list[np.ndarray]:
        """The best boxes of each image, (P, 4), by falling score; no gradient flows through them."""
        return [self.rank(out, batch, n, for_loss).proposals for n in range(len(batch.sizes))]

    def rank(self, out: RPNOutput, batch: Batch, n: int, for_loss: bool = False) -> RankedAnchors:
        """From the anchors of image n to its proposals, with all steps in between.

        How many there are depends on what they are for (the options' ``..._train`` for a loss, otherwise
        ``..._test``), not on whether the module is in training mode.
        """
        xp, o = array_module(out.anchors), self.options
        before = o.pre_nms_top_n_train if for_loss else o.pre_nms_top_n_test
        after = o.post_nms_top_n_train if for_loss else o.post_nms_top_n_test
        logits, deltas = out.logits.data[n], out.deltas.data[n]  # (A,), (A, 4)
        best, levels = top_of_each_level(logits, out.per_level, before, xp)  # (B,) twice
        refined = self.coder.decode(deltas[best], out.anchors[best])[:, 0]  # (B, 4)
        boxes = clip_boxes_to_image(refined, batch.sizes[n])
        scores = sigmoid_array(logits[best], xp)  # (B,)
        large = (boxes[:, 2:] - boxes[:, :2] >= o.min_size).all(axis=1)
        keep = xp.flatnonzero(large & (scores >= o.score_thresh))  # sync: how many there are
        ranks = logits[best] if o.ranks_logits else scores
        survivors = keep[batched_nms(boxes[keep], ranks[keep], levels[keep], o.nms_thresh)]  # sync: how many
        return RankedAnchors(best, levels, scores, refined, boxes, survivors, survivors[:after])

    def match(self, out: RPNOutput, targets: list[Target]) -> list[np.ndarray]:
        """The object of each anchor, (A,) for each image, numbered as in `matching`; on the CPU."""
        anchors = [out.anchors] * len(targets)
        return match_images(self.matcher, anchors, targets, self.options.crowd_coverage)

    def sample(self, out: RPNOutput, targets: list[Target], draws: Draws) -> RPNSamples:
        """Match anchors with objects and draw those the loss will see; by default at most half positive."""
        xp, count, o = array_module(out.anchors), len(out.anchors), self.options
        positive, negative, encoded = [], [], []
        for n, (matches, target) in enumerate(zip(self.match(out, targets), targets)):  # (A,)
            rng = draws.rng(Purpose.SAMPLE_ANCHORS, n)
            pos, neg = sample_balanced(matches, o.batch_size_per_image, o.positive_fraction, rng)
            positive.append(n * count + pos)
            negative.append(n * count + neg)
            encoded.append(self.coder.encode(target.boxes[matches[pos]], out.anchors[pos]))
        return RPNSamples(np.concatenate(positive), np.concatenate(negative), xp.concatenate(encoded))

    def loss(self, out: RPNOutput, samples: RPNSamples) -> dict[str, Tensor]:
        """Objectness and box loss over the sampled anchors of all images."""
        args = (out.logits, out.deltas, samples.positive, samples.negative, samples.targets)
        o, images = self.options, len(out.logits)
        normalizer = o.batch_size_per_image * images if o.fixed_normalizer else None
        objectness, box = F.rpn_loss(*args, beta=o.beta, normalizer=normalizer)
        return {"loss_objectness": objectness, "loss_rpn_box_reg": box}


@lru_cache(maxsize=4)  # making them takes many small steps, during which a GPU would wait
def _anchors(generator: AnchorGenerator, image_size, feature_sizes, dtype, xp) -> tuple:
    """All anchors (A, 4), and how many each level has."""
    levels = generator.levels(image_size, feature_sizes, xp)
    return xp.concatenate(levels).astype(dtype, copy=False), [len(level) for level in levels]


def top_of_each_level(logits, per_level: list[int], k: int, xp=np) -> tuple:
    """The k best anchors of each level: their indices among all A, and their levels, (B,) each."""
    if xp is not np:
        return _top_of_each_level_by_sorting(logits, tuple(per_level), k, xp)
    chosen, begin = [], 0
    for count in per_level:
        chosen.append(begin + top_k(logits[begin : begin + count], k))
        begin += count
    return np.concatenate(chosen), np.repeat(np.arange(len(chosen)), [len(c) for c in chosen])


def _top_of_each_level_by_sorting(logits, per_level: tuple[int, ...], k: int, xp) -> tuple:
    """The same for all levels at once: sorted by falling logit, then, in that order, by level."""
    level_of, first, levels = _places_of_levels(per_level, k, xp)
    order = by_falling(logits)  # (A,)
    order = order[xp.argsort(level_of[order], kind="stable")]
    return order[first], levels


@lru_cache(maxsize=4)
def _places_of_levels(per_level: tuple[int, ...], k: int, xp) -> tuple:
    """The level of each anchor; where each level's first k are once sorted by level; the levels of these."""
    level_of, begins = np.repeat(np.arange(len(per_level)), per_level), np.cumsum((0, *per_level))
    first = np.concatenate([begin + np.arange(min(k, n)) for begin, n in zip(begins, per_level)])
    return xp.asarray(level_of), xp.asarray(first), xp.asarray(level_of[first])


def top_k(values, k: int, xp=np):
    """Indices of the k largest, by falling value; of equal ones, the first in the input comes first."""
    if xp is np and 0 < k < len(values):  # a GPU sorts all of them as fast
        least = np.partition(values, len(values) - k)[len(values) - k]
        candidates = np.flatnonzero(values >= least)
        return candidates[by_falling(values[candidates])][:k]
    return by_falling(values)[:k]
