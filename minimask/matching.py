"""Which candidate box answers for which object: matching, crowds, sampling, pyramid levels.

A candidate is an anchor (in the RPN) or a proposal (in the heads). Its match is the index of a ground-truth
box, `BELOW_LOW` for background, or `BETWEEN` for neither, which is left out of the loss.
Shapes: G ground-truth boxes, A candidates, C crowd regions, N boxes.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import ClassVar

import numpy as np

from minimask.backend import array_module, fit_kernels, to_cpu, use_reference
from minimask.boxes import TINY, as_boxes, box_area, box_coverage, box_iou
from minimask.kernels import coding
from minimask.kernels.matching import match

BELOW_LOW = -1  # background: overlaps no object enough
BETWEEN = -2  # ignored: neither object nor background


@dataclass(frozen=True)
class Matcher:
    """Matches each candidate with the object it overlaps most, where it overlaps enough.

    Parameters
    ----------
    high_threshold : float
        A candidate with at least this IoU is matched.
    low_threshold : float, <= high_threshold
        A candidate below it is background; one between the two thresholds is ignored.
    allow_low_quality_matches : bool
        Also match, however low their IoU, the candidates that overlap an object the most (all that tie), so
        that no object is left without a candidate. They are matched with the object *they* overlap most,
        which may be another.
    untouched_matches_all : bool
        What such matches do with an object that no candidate touches. Its best IoU is 0, and all candidates
        have it, so in torchvision and detectron2 they all become matches (True). By default the object is
        left without a candidate.

    Notes
    -----
    0.7, 0.3 and True for the RPN (Ren et al. 2015, Faster R-CNN, section 3.1.2); 0.5, 0.5 and False for the
    heads (Mask R-CNN, section 3.1).
    """

    BELOW_LOW: ClassVar[int] = BELOW_LOW
    BETWEEN: ClassVar[int] = BETWEEN

    high_threshold: float
    low_threshold: float
    allow_low_quality_matches: bool = False
    untouched_matches_all: bool = False

    def __post_init__(self):
        if self.low_threshold > self.high_threshold:
            raise ValueError(
                f"Matcher: low_threshold {self.low_threshold} exceeds high_threshold {self.high_threshold}"
            )

    def __call__(self, iou):
        """Match each candidate.

        Parameters
        ----------
        iou : (G, A) array
            `box_iou` of ground truth and candidates.

        Returns
        -------
        (A,) int64 array: index of an object, `BELOW_LOW` or `BETWEEN`; all `BELOW_LOW` without objects.
        """
        xp = array_module(iou)
        if iou.size == 0:
            return xp.full(iou.shape[1], BELOW_LOW, dtype=np.int64)
        nearest = iou.argmax(axis=0)  # (A,); the first of equals
        best = iou.max(axis=0)
        matches = xp.where(best >= self.high_threshold, nearest, BETWEEN)
        matches = xp.where(best < self.low_threshold, BELOW_LOW, matches)
        if self.allow_low_quality_matches:
            best_of_object = iou.max(axis=1, keepdims=True)  # (G, 1)
            has_any = (best_of_object > 0) | self.untouched_matches_all
            rescued = ((iou == best_of_object) & has_any).any(axis=0)
            matches = xp.where(rescued, nearest, matches)
        return matches


def ignore_crowds(matches, candidates, crowd_boxes, threshold: float = 0.5):
    """Ignore the background candidates that a crowd region covers: there may well be objects in it.

    Parameters
    ----------
    matches : (A,) int64 array
        From a `Matcher` over the objects that are not crowds.
    candidates : (A, 4) array
    crowd_boxes : (C, 4) array
    threshold : float
        A candidate is ignored if one crowd region covers at least this share of the candidate's area.

    Returns
    -------
    (A,) int64 array: `matches`, with `BETWEEN` in place of `BELOW_LOW` where covered.
    """
    if not len(crowd_boxes):
        return matches
    xp = array_module(matches, candidates, crowd_boxes)
    covered = (box_coverage(candidates, crowd_boxes) >= threshold).any(axis=1)
    return xp.where(covered & (matches == BELOW_LOW), BETWEEN, matches)


def match_images(
    matcher: Matcher, candidates: Sequence, targets: Sequence, crowd_coverage: float
) -> list[np.ndarray]:
    """The matches of every image's candidates, on the CPU, where samples are drawn.

    Parameters
    ----------
    matcher : Matcher
    candidates : N arrays (A_n, 4)
    targets : N objects with ``boxes`` (G_n, 4) and ``crowd_boxes`` (C_n, 4)
    crowd_coverage : float
        See `ignore_crowds`.

    Returns
    -------
    N int64 NumPy arrays (A_n,).
    """
    if array_module(*candidates) is np or use_reference():
        matches = [
            ignore_crowds(matcher(box_iou(t.boxes, c)), c, t.crowd_boxes, crowd_coverage)
            for c, t in zip(candidates, targets)
        ]
        together = array_module(*matches).concatenate(matches)
    else:
        boxes = candidates, [t.boxes for t in targets], [t.crowd_boxes for t in targets]
        together = match(*boxes, *astuple(matcher), crowd_coverage)
    together = to_cpu(together)  # sync: keyed draws are made on the CPU
    return np.split(together, np.cumsum([len(c) for c in candidates])[:-1])


def sample_balanced(
    matches, batch_size: int, positive_fraction: float, rng: np.random.Generator | None = None
) -> tuple:
    """Draw the candidates that enter the loss: matched ones, and background for the rest.

    Parameters
    ----------
    matches : (A,) integer array
        From a `Matcher`; `BETWEEN` is never drawn.
    batch_size : int
        How many in all; fewer if there are not enough.
    positive_fraction : float in [0, 1]
        Matched candidates make up at most this share; background fills the rest.
    rng : numpy Generator, optional
        Needed only if some have to be left out. Draws the matched candidates first, then the background.

    Returns
    -------
    positives, negatives : int64 arrays of indices into `matches`, ascending.

    Raises
    ------
    ValueError
        If some have to be left out and there is no `rng`.
    """
    xp = array_module(matches)
    positives, negatives = xp.flatnonzero(matches >= 0), xp.flatnonzero(matches == BELOW_LOW)  # sync
    positives = _draw(positives, int(batch_size * positive_fraction), rng)
    return positives, _draw(negatives, batch_size - len(positives), rng)


def _draw(indices, count: int, rng: np.random.Generator | None):
    """All of the indices, or `count` of them, ascending."""
    if len(indices) <= count:
        return indices
    if rng is None:
        raise ValueError(
            f"sample_balanced: drawing {count} of {len(indices)} candidates needs rng=, a numpy Generator"
        )
    chosen = np.sort(rng.choice(len(indices), count, replace=False))
    return indices[array_module(indices).asarray(chosen)]


def assign_fpn_levels(
    boxes,
    k_min: int = 2,
    k_max: int = 5,
    canonical_scale: float = 224,
    canonical_level: int = 4,
    eps: float = 1e-6,
    side_eps: float = 0.0,
):
    """The pyramid level that each box is pooled from: P4 for 224 x 224 pixels, one lower for half that side.

    Parameters
    ----------
    boxes : (N, 4) array
        In pixels of the network's input image.
    k_min, k_max : int
        Finest and coarsest level available.
    canonical_scale, canonical_level
        A square box with a side of `canonical_scale` pixels belongs to `canonical_level`.
    eps : float
        Added before rounding down, so that a side of exactly 112 does not fall one level short (torchvision).
    side_eps : float
        Added to the side, as a fraction of `canonical_scale`, for the same reason (detectron2: 1e-8, which
        float32 rounds away for all but the smallest boxes).

    Returns
    -------
    (N,) int64 array in `k_min` ... `k_max`; boxes without area go to `k_min`.

    Notes
    -----
    Lin et al. 2017, FPN, equation 1: k = floor(k0 + log2(sqrt(w h) / 224)).
    """
    xp = array_module(boxes)
    if fit_kernels(boxes):
        args = k_min, k_max, canonical_scale, canonical_level, eps, side_eps
        return coding.fpn_levels(as_boxes(boxes, "assign_fpn_levels: boxes"), *args)
    side = xp.sqrt(xp.maximum(box_area(as_boxes(boxes, "assign_fpn_levels: boxes")), TINY))
    level = xp.floor(canonical_level + xp.log2(side / canonical_scale + side_eps) + eps)
    return xp.clip(level, k_min, k_max).astype(np.int64)
