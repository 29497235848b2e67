"""Figures of the mask branch, and of the objects that were not found."""

from __future__ import annotations

from typing import Any

import numpy as np

from minimask.boxes import scale_boxes
from minimask.inspection.failures import CAUSES
from minimask.inspection.figures import drawing
from minimask.inspection.figures.drawing import BLUE, GREEN, ORANGE, PINK, RED, SKY, WIDE, YELLOW, Layout
from minimask.inspection.records import Trace

OF_CAUSE = dict(zip(CAUSES, (GREEN, YELLOW, PINK, SKY, ORANGE, "#AA7744", BLUE, RED)))
"""The colour of each cause of failure."""


def mask_targets(trace: Trace, count: int = 8, layout: Layout = WIDE) -> Any:
    """Mask targets beside what the network says

    For RoIs with an object, as training samples them: what the RoI holds; the part of the object's mask in
    it, which is wanted; and the mask that the branch gives for the true class. Both masks are as coarse as
    the branch, usually 28 x 28 cells, whatever the size of the RoI.
    """
    t = trace.training
    if t is None or t.mask_targets is None or not len(t.mask_targets):
        return None
    rows = np.flatnonzero(t.rois.labels)
    some = drawing.some(len(rows), count)
    columns = 12 if layout.columns > 1 else 6
    figure, axes = layout.panels(3 * len(some), 1.0, columns)
    scale = np.array(trace.input.scale) / t.scale  # where training draws another size
    for i, k in enumerate(some.tolist()):
        box = scale_boxes(t.rois.boxes[rows[k], 1:], scale)
        label = trace.name(int(t.rois.labels[rows[k]]))[:12]
        panels = axes[3 * i : 3 * i + 3]
        _crop(panels[0], trace.input.seen, box, label)
        for panel, values, title in zip(
            panels[1:], (t.mask_targets[k], t.mask_probabilities[k]), ("wanted", "given")
        ):
            panel.imshow(values, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
            drawing.bare(panel, title)
            panel.title.set_fontsize(7)
    return figure


def _crop(axes: Any, image: np.ndarray, box: np.ndarray, title: str) -> None:
    """What lies in a box, stretched to a square as the RoI layer does."""
    x1, y1, x2, y2 = np.rint(box).astype(int).tolist()
    height, width = image.shape[1:]
    x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    part = image[:, y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
    axes.imshow(drawing.shown(part), aspect="auto", interpolation="nearest")
    drawing.bare(axes, title)
    axes.title.set_fontsize(7)
    axes.set_box_aspect(1)


def masks(trace: Trace, count: int = 6, layout: Layout = WIDE) -> Any:
    """Predicted masks, pasted

    For the most confident detections: the logits, the probabilities of the same cells, and the mask pasted
    into the image, with its outline at one half. Each detection uses the channel of its class; the others
    are not read.
    """
    stage = trace.masking
    if stage is None or not len(stage.logits):
        return None
    some = range(min(count, len(stage.logits)))
    columns = 9 if layout.columns > 1 else 3
    figure, axes = layout.panels(3 * len(some), 1.0, columns)
    for d in some:
        panels, result = axes[3 * d : 3 * d + 3], trace.result
        logits = stage.logits[d, stage.channels[d]]
        limit = max(float(np.abs(logits).max()), 1e-6)
        panels[0].imshow(logits, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        drawing.bare(panels[0], f"logits to ±{limit:.1f}")
        panels[1].imshow(stage.probabilities[d], cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
        drawing.bare(panels[1], f"{trace.name(int(result['labels'][d]))[:10]} {result['scores'][d]:.2f}")
        _pasted(panels[2], trace, d)
        for panel in panels:
            panel.title.set_fontsize(7)
    return figure


def _pasted(axes: Any, trace: Trace, d: int) -> None:
    """Detection d in its surroundings, with the outline of its mask."""
    x1, y1, x2, y2 = trace.result["boxes"][d].tolist()
    (top, bottom, left, right), patch = trace.result["masks"].window(d)
    side = 1.3 * max(x2 - x1, y2 - y1, 2)
    drawing.picture(axes, trace.image, "pasted")
    step = max(1, max(patch.shape, default=1) // 400)
    if min(patch.shape) >= 2 and patch.max(initial=0) > 0.5 > patch.min(initial=1):
        xs, ys = np.arange(left, right)[::step] + 0.5, np.arange(top, bottom)[::step] + 0.5
        axes.contour(xs, ys, patch[::step, ::step], [0.5], colors=[GREEN], linewidths=1.4)
    drawing.boxes(axes, np.array([[x1, y1, x2, y2]]), ORANGE, 1.0)
    middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
    axes.set(xlim=(middle_x - side / 2, middle_x + side / 2), ylim=(middle_y + side / 2, middle_y - side / 2))


def failures(trace: Trace, layout: Layout = WIDE) -> Any:
    """Failures by cause

    Each annotated object in the colour of its cause: found, or the last stage at which it was still there. An
    object counts as there if a box overlaps it with an IoU of at least 0.5. Dotted: confident detections
    that match no object of their class.
    """
    judged, target = trace.failures, trace.target
    if judged is None:
        return None
    figure, axes = layout.panels(2, drawing.aspect(trace.image), min(2, layout.columns))
    drawing.picture(axes[0], trace.image, "objects by cause", pale=0.3)
    drawing.boxes(axes[0], target.boxes, [OF_CAUSE[cause] for cause in judged.causes] or "black", 1.6)
    drawing.boxes(axes[0], trace.result["boxes"][judged.invented], "black", 1.0, ":")
    counts = [judged.causes.count(cause) for cause in CAUSES] + [len(judged.invented)]
    names = [*CAUSES, "detected, but no object"]
    bars = axes[1].barh(names, counts, color=[*OF_CAUSE.values(), "0.5"])
    axes[1].bar_label(bars, fontsize=8, padding=2)
    axes[1].invert_yaxis()
    drawing.plain(axes[1], title=f"objects: {len(target.labels)}", xlim=(0, 1.15 * max(*counts, 1)))
    return figure
