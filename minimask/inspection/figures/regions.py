"""Figures of the second stage: RoIs as training samples them, where they are read, how they are filtered."""

from __future__ import annotations

from typing import Any

import numpy as np

from minimask.boxes import box_area, box_iou
from minimask.inspection.figures import drawing
from minimask.inspection.figures.drawing import BLUE, GREEN, ORANGE, RED, WIDE, Layout
from minimask.inspection.records import Reading, Trace


def rois(trace: Trace, layout: Layout = WIDE) -> Any:
    """RoIs as training samples them

    Proposals and true boxes; how many may have an object is limited. First all: those with an object in
    colour, background dotted. Then those with an object (dashed), and where the box head's deltas for the
    true class lead today (solid). Last, their number by class.
    """
    t, seen = trace.training, trace.input.seen
    if t is None:
        return None
    boxes, labels = t.rois.boxes[:, 1:], t.rois.labels
    positive, background = np.flatnonzero(labels), np.flatnonzero(labels == 0)
    figure, axes = layout.panels(3, drawing.aspect(seen), title=0.4)
    drawing.picture(axes[0], seen, f"{len(positive)} with an object, {len(background)} background", pale=0.5)
    drawing.boxes(axes[0], boxes[background[drawing.some(len(background))]], "0.35", 0.8, ":")
    drawing.boxes(axes[0], boxes[positive], drawing.colours(labels[positive]), 1.2)
    some = positive[drawing.some(len(positive), 30)]
    drawing.picture(axes[1], seen, f"{len(some)} of them, refined", pale=0.5)
    drawing.boxes(axes[1], boxes[some], BLUE, 0.8, "--")
    drawing.boxes(axes[1], t.roi_refined[some], GREEN, 1.4)
    drawing.arrows(axes[1], boxes[some], t.roi_refined[some], "black")
    counts = np.bincount(labels, minlength=len(trace.class_names) + 1)
    present = np.flatnonzero(counts)
    bars = axes[2].barh([trace.name(k)[:18] for k in present.tolist()], counts[present], color=BLUE)
    axes[2].bar_label(bars, fontsize=7, padding=2)
    unique = len(np.unique(t.rois.matches[positive]))
    title = f"by class; {unique} of\n{len(t.boxes)} objects have a RoI"
    drawing.plain(axes[2], title=title, xlim=(0, 1.2 * max(counts.max(initial=1), 1)))
    return figure


def reading(trace: Trace, index: int = 0, layout: Layout = WIDE) -> Any:
    """Where the RoI layer reads a detection

    The detection's proposal, which the box head reads, and its own box, which the mask head reads: level and
    sampling points. Grey lines are the cells of that level, dotted ones the bins. Last, the levels of all
    detections by the sides of their boxes: twice the side, one level up.
    """
    box_head, masking = trace.classifying, trace.masking
    if not box_head.readings:
        return None
    figure, axes = layout.panels(2 + (masking is not None), 1.0, title=0.4)
    proposals = trace.proposing.proposals[box_head.proposals]
    read = [("box head", proposals, box_head.readings)]
    if masking is not None:
        kept = box_head.candidates
        read.append(("mask head", kept.boxes[kept.kept], masking.readings))
    for panel, (who, boxes, readings) in zip(axes, read):
        _read(panel, trace, who, boxes[index], readings[index])
    _levels(axes[-1], trace, *read[-1][1:])
    return figure


def _read(axes: Any, trace: Trace, who: str, box: np.ndarray, at: Reading) -> None:
    x1, y1, x2, y2 = box.tolist()
    side = 1.5 * max(x2 - x1, y2 - y1, 2 * at.stride)
    left, top = (x1 + x2 - side) / 2, (y1 + y2 - side) / 2
    title = f"{who}: {at.level}, {at.bins[1]} × {at.bins[0]} bins,\n{len(at.columns)} × {len(at.rows)} points"
    drawing.picture(axes, trace.input.seen, title, pale=0.35)
    for lines, begin in ((axes.axvline, left), (axes.axhline, top)):
        for cell in np.arange(np.floor(begin / at.stride), (begin + side) / at.stride + 1)[:200]:
            lines(cell * at.stride, color="0.6", linewidth=0.5, zorder=1)
    for edge in np.linspace(x1, x2, at.bins[1] + 1):
        axes.plot([edge, edge], [y1, y2], ":", color=BLUE, linewidth=0.7)
    for edge in np.linspace(y1, y2, at.bins[0] + 1):
        axes.plot([x1, x2], [edge, edge], ":", color=BLUE, linewidth=0.7)
    drawing.boxes(axes, box[None], BLUE, 1.6)
    axes.plot(*(grid.ravel() for grid in np.meshgrid(at.columns, at.rows)), ".", color=RED, markersize=2)
    axes.set(xlim=(left, left + side), ylim=(top + side, top))


def _levels(axes: Any, trace: Trace, boxes: np.ndarray, readings: list[Reading]) -> None:
    names = sorted({at.level for at in readings} | {name for name in trace.anchors.names if name != "P6"})
    sides = np.sqrt(np.maximum(np.nan_to_num(box_area(boxes)), 1e-6))
    jitter = np.linspace(-0.2, 0.2, len(sides)) if len(sides) > 1 else np.zeros(1)
    axes.plot(
        sides, np.array([names.index(at.level) for at in readings]) + jitter, ".", color=BLUE, markersize=4
    )
    drawing.plain(
        axes, title="level by side of the box", xlabel="square root of the area, pixels", xscale="log"
    )
    low, high = np.log2(sides.min(initial=64)), np.log2(sides.max(initial=64))
    ticks = 2.0 ** np.arange(np.floor(low), np.ceil(high) + 1)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)


def filtering(trace: Trace, layout: Layout = WIDE) -> Any:
    """From proposals to detections

    Each class of each proposal that scores high enough is a candidate. Its class's deltas refine it;
    suppression, class by class, removes what overlaps a better one; of the rest, the best are kept, up to the
    limit. At most 100 are drawn, 50 of the candidates. `Trace.classifying` has the indices that are kept,
    and the page a table of them.
    """
    found, seen = trace.classifying.candidates, trace.input.seen
    before = trace.proposing.proposals[found.proposals]
    order = np.argsort(-found.scores, kind="stable")
    top = found.probabilities[:, 1:].max(axis=1, initial=0)
    figure, axes = layout.panels(6, drawing.aspect(seen), title=0.4)
    bins = np.linspace(0, 1, 41)
    axes[0].hist(top, bins, color=BLUE)
    least = found.scores.min(initial=1.0)
    title = f"best class score of {len(top):,} proposals;\nkept from {least:.2g}"
    drawing.plain(axes[0], title=title)
    axes[0].set_yscale("symlog", linthresh=1)
    steps = (
        (f"{len(order):,} candidates: proposals", before, order, 50),
        ("the same, refined", found.boxes, order, 50),
        (f"after NMS {len(found.survivors):,}", found.boxes, found.survivors, 100),
        (f"detections {len(found.kept):,}", found.boxes, found.kept, 100),
    )
    for panel, (title, boxes, which, most) in zip(axes[1:], steps):
        drawing.picture(panel, seen, title + drawing.best_shown(len(which), most), pale=0.5)
        which = which[:most]
        drawing.boxes(panel, boxes[which], drawing.colours(found.labels[which]), 1.0)
    moved = np.diag(box_iou(before, found.boxes)) if len(before) <= 2000 else _paired_iou(before, found.boxes)
    axes[5].hist(moved, bins, color=GREEN)
    drawing.plain(axes[5], title="IoU of candidates with their proposals")
    return figure


def _paired_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,): IoU of each box with the one in the same row, without a table of all pairs."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    inter = np.maximum(high - low, 0).prod(axis=1)
    return inter / np.maximum(box_area(a) + box_area(b) - inter, 1e-6)


def detections(trace: Trace, layout: Layout = WIDE) -> Any:
    """Detections beside the truth

    First the detections: thin and grey if they score less than 0.5, the best 12 with class and score. With
    annotations also the IoU of each object with each of the best detections, with a circle where it is at
    least 0.5 and the class is the same; and precision over recall of this image, at an IoU of 0.5.
    """
    result, target = trace.result, trace.target
    figure, axes = layout.panels(1 if target is None else 3, drawing.aspect(trace.image), title=0.4)
    drawing.picture(axes[0], trace.image, f"{len(result['labels'])} detections", pale=0.15)
    sure = np.asarray(result["scores"]) >= 0.5
    drawing.boxes(axes[0], result["boxes"][~sure], "0.5", 0.4)
    drawing.boxes(axes[0], result["boxes"][sure], drawing.colours(result["labels"][sure]), 1.4)
    for box, label, score in list(zip(result["boxes"], result["labels"].tolist(), result["scores"]))[:12]:
        words = dict(fontsize=6, color="white", verticalalignment="top", clip_on=True)
        words["bbox"] = dict(facecolor="black", alpha=0.6, linewidth=0, pad=0.6)
        axes[0].text(box[0], box[1], f"{trace.name(label)[:14]} {score:.2f}", **words)
    if target is not None:
        _overlaps(axes[1], trace)
        _precision(axes[2], trace)
    return figure


def _overlaps(axes: Any, trace: Trace) -> None:
    result, target = trace.result, trace.target
    most = 40
    boxes, labels = result["boxes"][:most], result["labels"][:most]
    iou = box_iou(target.boxes, boxes) if len(boxes) and len(target.boxes) else np.zeros((1, 1))
    axes.imshow(iou, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    if len(boxes) and len(target.boxes):
        rows, columns = np.nonzero((iou >= 0.5) & (target.labels[:, None] == labels))
        axes.plot(columns, rows, "o", markersize=3, markerfacecolor="none", color=ORANGE)
    drawing.bare(axes, f"IoU of {len(target.boxes)} objects (rows)\nand {len(boxes)} detections")
    axes.set_xlabel("detections by falling score; circles: IoU ≥ 0.5, same class", fontsize=7)


def _precision(axes: Any, trace: Trace) -> None:
    """Precision over recall of one image: the best score chooses first, within its class."""
    result, target = trace.result, trace.target
    free, hits = np.ones(len(target.labels), bool), []
    iou = box_iou(target.boxes, result["boxes"]) if len(target.boxes) and len(result["boxes"]) else None
    for d, label in enumerate(result["labels"].tolist()):
        mine = np.where(free & (target.labels == label), iou[:, d], 0) if iou is not None else np.zeros(1)
        g = int(mine.argmax())
        hits.append(bool(mine[g] >= 0.5))
        if hits[-1]:
            free[g] = False
    right = np.cumsum(hits) if hits else np.zeros(0)
    steps = right / max(len(target.labels), 1), right / np.arange(1, len(right) + 1)
    axes.plot(*steps, "-", color=BLUE, linewidth=1.6)
    drawing.plain(axes, title="precision over recall, IoU 0.5", xlabel="recall", ylabel="precision")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.05))
