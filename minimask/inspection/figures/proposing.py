"""Figures of the first stage: anchors, which of them training takes as objects, and what is proposed."""

from __future__ import annotations

from typing import Any

import numpy as np

from minimask.inspection.figures import drawing
from minimask.inspection.figures.drawing import BLUE, GREEN, ORANGE, RED, WIDE, Layout
from minimask.inspection.records import Trace
from minimask.matching import BELOW_LOW, BETWEEN


def anchors(trace: Trace, layout: Layout = WIDE) -> Any:
    """Anchors, level by level

    The anchors of the middle cell of each level, brighter the later they come in the array, whose order is
    level by level, then row by row, column by column, then the shapes of one cell. Dots are the cells'
    centres, where they are few enough to tell apart.
    """
    a, (h, w) = trace.anchors, trace.input.size
    figure, axes = layout.panels(len(a.names), h / w, min(3, max(2, layout.columns)), title=0.45)
    for i, (panel, name, (rows, columns)) in enumerate(zip(axes, a.names, a.cells)):
        drawing.picture(panel, trace.input.seen, pale=0.5)
        drawing.bare(panel, f"{name}: {rows} × {columns} cells × {a.per_cell[i]} = {a.per_level[i]:,}")
        panel.title.set_fontsize(8)
        first = a.boxes[a.level(i)][:: a.per_cell[i]]
        if len(first) <= 1200:
            panel.plot(*((first[:, :2] + first[:, 2:]) / 2).T, ".", color="0.45", markersize=1.5)
        own = a.of_cell(i, rows // 2, columns // 2)
        order = np.linspace(0.15, 0.9, len(own))
        drawing.boxes(panel, own, [(v, v * 0.75, 0.1) for v in order], 1.6)
        panel.set(xlim=(min(0, own[:, 0].min()), max(w, own[:, 2].max())))
        panel.set(ylim=(max(h, own[:, 3].max()), min(0, own[:, 1].min())))
    return figure


def anchor_targets(trace: Trace, layout: Layout = WIDE) -> Any:
    """Which anchors are objects

    As a training step draws them. Positive ones (dashed) overlap an object enough, or more than any other
    anchor does; solid boxes are where their targets lead and, in the second panel, where the network's own
    deltas lead today. Negative ones are background. Neutral ones lie between, and are in no loss.
    """
    t, a, seen = trace.training, trace.anchors.boxes, trace.input.seen
    if t is None:
        return None
    figure, axes = layout.panels(4, drawing.aspect(seen), min(2, layout.columns), title=0.4)
    every = {name: int(which.sum()) for name, which in _kinds(t.matches).items()}
    chosen = drawing.some(len(t.positive), 40)
    for panel, after, what in zip(axes, (t.wanted, t.refined), ("targets", "own deltas")):
        title = (
            f"{len(t.positive)} drawn of {every['positive']} positive:\n{what}, {len(chosen)} of them shown"
        )
        drawing.picture(panel, seen, title, pale=0.4)
        drawing.boxes(panel, a[t.positive[chosen]], BLUE, 0.8, "--")
        drawing.boxes(panel, after[chosen], GREEN, 1.4)
        drawing.arrows(panel, a[t.positive[chosen]], after[chosen], "black")
    neutral = np.flatnonzero(t.matches == BETWEEN)
    kinds = (("negative", t.negative, RED), ("neutral", neutral, ORANGE))
    for panel, (name, which, colour) in zip(axes[2:], kinds):
        drawn = which[drawing.some(len(which))]
        drawing.picture(panel, seen, f"{name}: {len(drawn)} of {every[name]:,}", pale=0.4)
        drawing.boxes(panel, a[drawn], colour, 0.8)
    return figure


def _kinds(matches: np.ndarray) -> dict[str, np.ndarray]:
    return {"positive": matches >= 0, "negative": matches == BELOW_LOW, "neutral": matches == BETWEEN}


def proposals(trace: Trace, layout: Layout = WIDE) -> Any:
    """From the best anchors to proposals

    The anchors that score highest; the same, moved and stretched by the network's deltas; clipped to the
    image; and what non-maximum suppression leaves. 100 are drawn of the first, 50 of the others,
    in colours from pink to teal by their score.
    """
    ranked, seen = trace.proposing.ranked, trace.input.seen
    order = np.argsort(-ranked.scores, kind="stable")
    survivors, kept, best = ranked.survivors, ranked.kept, trace.anchors.boxes[ranked.anchors]
    anchors = f"best {len(order):,} of {len(trace.anchors.boxes):,} anchors"
    steps = (
        (anchors, best, order, 100),
        ("refined", ranked.refined, order, 50),
        ("clipped to the image", ranked.boxes, order, 50),
        (f"after NMS {len(survivors):,}, proposed {len(kept):,}", ranked.boxes, kept, 50),
    )
    figure, axes = layout.panels(len(steps), drawing.aspect(seen), min(2, layout.columns), title=0.4)
    for panel, (title, boxes, which, most) in zip(axes, steps):
        title += drawing.best_shown(len(which), most)
        which = which[:most][::-1]  # the best on top
        drawing.picture(panel, seen, title, pale=0.55)
        shades = [(0.9 - 0.9 * s, 0.45 + 0.25 * s, 0.55 + 0.15 * s) for s in ranked.scores[which].tolist()]
        drawing.boxes(panel, boxes[which], shades, 1.0)
        h, w = trace.input.size
        panel.set(xlim=(-0.06 * w, 1.06 * w), ylim=(1.06 * h, -0.06 * h))
    return figure


def recall(trace: Trace, layout: Layout = WIDE) -> Any:
    """What the first stage finds, and where it looks

    The share of the objects that some box overlaps with an IoU of at least 0.5 and 0.7, after each step: what
    is lost here, no later stage finds. Then the scores of all anchors, and the corners of the proposals,
    which should lie all over the image if its objects do.
    """
    stage, ranked = trace.proposing, trace.proposing.ranked
    figure, axes = layout.panels(2 + (stage.recall is not None), 0.8)
    if stage.recall is not None:
        panel = axes.pop(0)
        places = np.arange(len(stage.recall))
        for k, (threshold, colour) in enumerate(((0.5, BLUE), (0.7, ORANGE))):
            shares = [float((iou >= threshold).mean()) if len(iou) else 0.0 for iou in stage.recall.values()]
            bars = panel.barh(places + 0.4 * k - 0.2, shares, 0.38, color=colour, label=f"IoU {threshold}")
            panel.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
        drawing.plain(panel, title="recall after each step", xlim=(0, 1.18))
        panel.set_yticks(places, list(stage.recall))
        panel.invert_yaxis()
        panel.legend(fontsize=7, loc="upper center", ncols=2, bbox_to_anchor=(0.5, -0.1))
    axes[0].hist(stage.scores, np.linspace(0, 1, 41), color=BLUE)
    drawing.plain(axes[0], title="scores of all anchors", xlabel="probability of an object")
    axes[0].set_yscale("symlog", linthresh=1)
    boxes, (h, w) = ranked.proposals, trace.input.size
    axes[1].plot(*boxes[:, :2].T, ".", color=GREEN, markersize=2, label="top left")
    axes[1].plot(*boxes[:, 2:].T, ".", color=RED, markersize=2, label="bottom right")
    drawing.plain(axes[1], title="corners of the proposals", xlim=(0, w), ylim=(h, 0), aspect="equal")
    axes[1].legend(fontsize=7, markerscale=4, loc="upper center", ncols=2, bbox_to_anchor=(0.5, -0.1))
    return figure
