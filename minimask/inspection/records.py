"""What `trace` returns: a record for each stage of an image's way through a model, all arrays on the CPU.

Shapes: an image of H x W, seen by the network as h x w inside a batch of H' x W'; A anchors, B best of them,
P proposals, D detections, A+ positive anchors and R RoIs in the losses (R+ with an object), G objects,
K classes, M x M masks.
Boxes are in pixels of the batch, unless it says "of the image".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minimask.masks import MaskConvention
from minimask.models.box_head import Candidates, RoIs
from minimask.models.inputs import Objects
from minimask.models.rpn import RankedAnchors


@dataclass(frozen=True, eq=False)
class NetworkInput:
    """The image as the network gets it, and what comes back when that is undone.

    Attributes
    ----------
    pixels : (3, H', W')
        Normalised, resized, padded.
    size : (h, w)
        The part of it that the image fills.
    scale : (y, x)
        Pixels of the batch per pixel of the image.
    seen : (3, h, w)
        `pixels` without padding and normalisation, in 0..1.
    restored : (3, H, W)
        `seen`, scaled back to the image's size.
    box_error : float
        The largest distance, in pixels of the image, between a coordinate of a box (of the objects, else of
        the detections) and the same scaled to the batch and back.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    scale: tuple[float, float]
    seen: np.ndarray
    restored: np.ndarray
    box_error: float


@dataclass(frozen=True, eq=False)
class Anchors:
    """All anchors, and where each level's are among them.

    Attributes
    ----------
    boxes : (A, 4)
        Level by level; by row, then by column of the feature map, then anchor of the cell.
    names : L of str
        Of the levels: P2 and so on.
    cells : L of (rows, columns)
    per_cell : L of int
    """

    boxes: np.ndarray
    names: list[str]
    cells: list[tuple[int, int]]
    per_cell: list[int]

    @property
    def per_level(self) -> list[int]:
        return [rows * columns * k for (rows, columns), k in zip(self.cells, self.per_cell)]

    def level(self, index: int) -> slice:
        """Where a level's anchors are in `boxes`."""
        begin = sum(self.per_level[:index])
        return slice(begin, begin + self.per_level[index])

    def of_cell(self, index: int, row: int, column: int) -> np.ndarray:
        """The anchors (K, 4) of one cell of a level, in their order."""
        (_, columns), k = self.cells[index], self.per_cell[index]
        begin = self.level(index).start + (row * columns + column) * k
        return self.boxes[begin : begin + k]


@dataclass(frozen=True, eq=False)
class Proposing:
    """The RPN's outputs and the way from anchors to proposals.

    Attributes
    ----------
    scores : (A,)
        Probability of an object at each anchor.
    deltas : (A, 4)
    ranked : RankedAnchors
        The best of each level: refined, clipped, suppressed.
    recall : dict of str to (G,), or None
        For each step, the greatest IoU of each object with a box of that step; None without targets.
    """

    scores: np.ndarray
    deltas: np.ndarray
    ranked: RankedAnchors
    recall: dict[str, np.ndarray] | None

    @property
    def proposals(self) -> np.ndarray:
        """(P, 4)."""
        return self.ranked.proposals


@dataclass(frozen=True, eq=False)
class Reading:
    """Where the RoI layer reads one RoI.

    Attributes
    ----------
    level : str
        Its name.
    stride : float
        Pixels of the batch per cell of that level.
    bins : (PH, PW)
    columns, rows : (PW n,) and (PH n',)
        x and y of the sampling points, a grid, as places in the batch: cell i has its centre at
        (i + 1/2) stride. For RoIPool, the centres of the cells that the bins cover.
    """

    level: str
    stride: float
    bins: tuple[int, int]
    columns: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class Classifying:
    """The box head's outputs for all proposals, and the way from them to the detections.

    Attributes
    ----------
    deltas : (P, 4 (K+1)) or (P, 4)
        Class-specific or class-agnostic.
    candidates : Candidates
        Scores, boxes of each class that scores, and which of them suppression and the limit leave.
    readings : D of Reading
        Where the box head read the proposal of each detection.
    """

    deltas: np.ndarray
    candidates: Candidates
    readings: list[Reading]

    @property
    def proposals(self) -> np.ndarray:
        """(D,): which proposal each detection was."""
        return self.candidates.proposals[self.candidates.kept]


@dataclass(frozen=True, eq=False)
class Masking:
    """The mask head's outputs for the detections.

    Attributes
    ----------
    logits : (D, Q, M, M)
    channels : (D,)
        Which of the Q is read for each detection.
    probabilities : (D, M, M)
    readings : D of Reading
        Where the mask head read each detection's box.
    """

    logits: np.ndarray
    channels: np.ndarray
    probabilities: np.ndarray
    readings: list[Reading]


@dataclass(frozen=True, eq=False)
class Training:
    """What a training step makes of the image: what it draws, its targets and its losses.

    Attributes
    ----------
    losses : dict of str to () array
        As `MaskRCNN.loss` gives them for the same draws.
    boxes : (G, 4)
        Of the objects.
    scale : (y, x)
        Pixels of the batch per pixel of the image, which may differ from inference.
    matches : (A,) int
        Of each anchor: an object's index, `matching.BELOW_LOW` for negative ones, `matching.BETWEEN` for
        neutral ones.
    positive, negative : (A+,) int and (A-,) int
        The anchors that were drawn for the loss.
    anchor_targets : (A+, 4)
        Encoded boxes of the positive ones.
    wanted, refined : (A+, 4)
        Where those lead from the anchors, and where the RPN's own deltas do.
    rois : RoIs
        Sampled proposals and true boxes.
    roi_targets : (R, 4)
        Encoded; 0 for background.
    roi_refined : (R, 4)
        Where the box head's deltas for the true class lead; the RoI itself for background.
    mask_targets, mask_probabilities : (R+, M, M) or None
        Of the RoIs with an object, in their order.
    image_gradients : dict of str to (3, H', W')
        d loss / d pixels of the batch, of each loss.
    round_trip : (G,) or None
        IoU of each object's mask with what remains of it after cropping to M x M and pasting.
    """

    losses: dict[str, np.ndarray]
    boxes: np.ndarray
    scale: tuple[float, float]
    matches: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    anchor_targets: np.ndarray
    wanted: np.ndarray
    refined: np.ndarray
    rois: RoIs
    roi_targets: np.ndarray
    roi_refined: np.ndarray
    mask_targets: np.ndarray | None
    mask_probabilities: np.ndarray | None
    image_gradients: dict[str, np.ndarray]
    round_trip: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Failures:
    """Which objects were found, and why the others were not.

    Attributes
    ----------
    causes : G of str
        One of `failures.CAUSES` for each object.
    detections : (G,) int
        The detection that found it, or one of another class in its place; -1 without one.
    box_iou, mask_iou : (G,)
        With that detection; NaN without one, or without masks.
    proposal_iou : (G,)
        The greatest with a proposal.
    invented : list of int
        Confident detections that match no object of their class.
    """

    causes: list[str]
    detections: np.ndarray
    box_iou: np.ndarray
    mask_iou: np.ndarray
    proposal_iou: np.ndarray
    invented: list[int]


@dataclass(frozen=True, eq=False)
class Weights:
    """One parameter of the model, in numbers.

    Attributes
    ----------
    name : str
    shape : tuple of int
    least, greatest, mean, deviation : float
        Of its finite elements.
    edges, counts : (B + 1,) and (B,)
        Their histogram.
    dead : bool
        Its elements (more than one) are all the same: it cannot tell its inputs apart.
    exploding : bool
        It holds NaN, infinity, or an element beyond `weights.EXPLODED`.
    """

    name: str
    shape: tuple[int, ...]
    least: float
    greatest: float
    mean: float
    deviation: float
    edges: np.ndarray
    counts: np.ndarray
    dead: bool
    exploding: bool


@dataclass(frozen=True, eq=False)
class Trace:
    """One image's way through a model.

    Attributes
    ----------
    image : (3, H, W)
    class_names : tuple of str
        Of labels 1, 2, ...
    target : Objects or None
        The annotated objects, in pixels of the image.
    input : NetworkInput
    activations : dict of str to (C, rows, columns)
        C2 and so on of the body, P2 and so on of the pyramid.
    anchors : Anchors
    proposing : Proposing
    classifying : Classifying
    masking : Masking or None
        None for a model without a mask head.
    result : dict
        What ``model.predict`` gives, in pixels of the image.
    training : Training or None
        None without targets, as is `failures`.
    failures : Failures or None
    weights : list of Weights
    mask_convention : MaskConvention or None
    """

    image: np.ndarray
    class_names: tuple[str, ...]
    target: Objects | None
    input: NetworkInput
    activations: dict[str, np.ndarray]
    anchors: Anchors
    proposing: Proposing
    classifying: Classifying
    masking: Masking | None
    result: dict
    training: Training | None
    failures: Failures | None
    weights: list[Weights]
    mask_convention: MaskConvention | None

    def name(self, label: int) -> str:
        """The name of a label's class; 0 is the background."""
        return self.class_names[label - 1] if label else "background"
