"""The figures of a trace, stage by stage; each takes the trace, and returns None if that lacks what it shows.

A figure's docstring is its title and, below it, what the figure shows: readers of the source, of the page and
of a notebook need to know the same.
"""

from minimask.inspection.figures.drawing import NARROW, WIDE, Layout
from minimask.inspection.figures.first import activations, augmentations, image, network_input
from minimask.inspection.figures.masks import failures, mask_targets, masks
from minimask.inspection.figures.numbers import deltas, gradients, weight_histograms, weights
from minimask.inspection.figures.proposing import anchor_targets, anchors, proposals, recall
from minimask.inspection.figures.regions import detections, filtering, reading, rois

FIGURES = (
    image,
    network_input,
    activations,
    anchors,
    anchor_targets,
    proposals,
    recall,
    rois,
    reading,
    filtering,
    detections,
    mask_targets,
    masks,
    failures,
    deltas,
    weights,
    weight_histograms,
    gradients,
)
"""All that need only a trace, in the order of the stages; `augmentations` also needs its options."""

__all__ = ["FIGURES", "NARROW", "WIDE", "Layout", "augmentations", *(make.__name__ for make in FIGURES)]
