"""Figures of numbers: deltas, weights, and the gradient that each loss sends back to the image."""

from __future__ import annotations

from typing import Any

import numpy as np

from minimask.inspection.figures import drawing
from minimask.inspection.figures.drawing import BLUE, GREY, ORANGE, RED, WIDE, Layout
from minimask.inspection.records import Trace, Weights


def deltas(trace: Trace, layout: Layout = WIDE) -> Any:
    """Histograms of deltas

    dx, dy, dw and dh: of the RPN at its best anchors, and of the box head for each candidate's class. With
    annotations, in orange, the targets of the training step's positives: what is given should become about
    as wide as what is wanted. (The box head's spike at 0 comes from the true boxes among the RoIs.)
    """
    found, ranked, t = trace.classifying.candidates, trace.proposing.ranked, trace.training
    table = trace.classifying.deltas
    table = table.reshape(len(table), table.shape[1] // 4, 4)
    which = found.labels if table.shape[1] > 1 else np.zeros_like(found.labels)
    given = {
        "RPN": (trace.proposing.deltas[ranked.anchors], None if t is None else t.anchor_targets),
        "box head": (table[found.proposals, which], None if t is None else t.roi_targets[t.rois.labels > 0]),
    }
    figure, axes = layout.panels(8, 0.7, 4 if layout.columns > 1 else 2)
    for row, (who, (values, wanted)) in enumerate(given.items()):
        for k, axis in enumerate(("dx", "dy", "dw", "dh")):
            panel = axes[4 * row + k]
            together = np.concatenate([values[:, k], [] if wanted is None else wanted[:, k]])
            low, high = (float(v) for v in np.quantile(together, (0.005, 0.995))) if len(together) else (0, 1)
            edges = np.linspace(low, max(high, low + 1e-3), 41)
            panel.hist(values[:, k], edges, weights=_shares(values), color=BLUE)
            if wanted is not None:
                look = dict(histtype="step", color=ORANGE, linewidth=1.4)
                panel.hist(wanted[:, k], edges, weights=_shares(wanted), **look)
            drawing.plain(panel, title=f"{who} {axis}")
            panel.set_yticks([])
    return figure


def _shares(values: np.ndarray) -> np.ndarray:
    """Weights that make a histogram count shares, since the two sets differ in size."""
    return np.full(len(values), 1 / max(len(values), 1))


def weights(trace: Trace, layout: Layout = WIDE) -> Any:
    """The weights

    Each parameter's spread, from the first layer on the left to the last. A dead tensor has one value
    throughout; an exploding one holds NaN, infinity or an element beyond 1000.
    """
    table = [w for w in trace.weights if np.prod(w.shape) > 1]
    strange = [w for w in table if w.dead or w.exploding]
    figure, (panel,) = layout.panels(1, 0.45)
    places = np.arange(len(table))
    panel.vlines(places, [w.least for w in table], [w.greatest for w in table], color="0.75", linewidth=1)
    low, high = ([w.mean + sign * w.deviation for w in table] for sign in (-1, 1))
    panel.vlines(places, low, high, color=BLUE, linewidth=2.5, label="mean ± standard deviation")
    if strange:
        x = [table.index(w) for w in strange]
        panel.plot(x, [w.greatest for w in strange], "x", color=RED, label="dead or exploding")
    panel.set_yscale("symlog", linthresh=0.1)
    dead, exploding = sum(w.dead for w in table), sum(w.exploding for w in table)
    title = f"{len(table)} tensors: {dead} dead, {exploding} exploding"
    drawing.plain(
        panel, title=title, xlabel="tensors in the order of the state; grey: from least to greatest"
    )
    panel.legend(fontsize=7)
    return figure


def weight_histograms(trace: Trace, layout: Layout = WIDE) -> Any:
    """Histograms of the weights

    All elements of up to 12 convolution and linear layers, spread over the network. A spike at 0 with long
    tails is a layer that few inputs drive; a flat one has hardly learnt.
    """
    chosen = _representative([w for w in trace.weights if len(w.shape) > 1])
    figure, axes = layout.panels(len(chosen), 0.6, 4 if layout.columns > 1 else 2, title=0.4)
    for panel, w in zip(axes, chosen):
        panel.stairs(w.counts, w.edges, fill=True, color=RED if w.dead or w.exploding else GREY)
        name = ".".join(w.name.removesuffix(".weight").split(".")[-3:])
        drawing.plain(panel, title=f"{name}\n{' × '.join(map(str, w.shape))}, sd {w.deviation:.2g}")
        panel.title.set_fontsize(7)
        panel.set_yticks([])
    return figure


def _representative(weights: list[Weights], most: int = 12) -> list[Weights]:
    """Evenly spread over the network, but those that are dead or explode come first."""
    strange = [w for w in weights if w.dead or w.exploding][:most]
    others = [w for w in weights if w not in strange]
    chosen = [others[i] for i in drawing.some(len(others), most - len(strange)).tolist()]
    return [w for w in weights if w in strange or w in chosen]


def gradients(trace: Trace, layout: Layout = WIDE) -> Any:
    """The gradient of each loss in the image

    How much each loss would change with each pixel: the absolute value, the greatest of the colours', each
    picture scaled by itself. It shows which pixels a loss looks at. Losses of objects look at the objects and
    around them; the RPN's objectness looks at the background, too.
    """
    t = trace.training
    if t is None:
        return None
    shape = next(iter(t.image_gradients.values())).shape
    figure, axes = layout.panels(len(t.losses), drawing.aspect(np.zeros(shape[1:])), title=0.4)
    for panel, (name, gradient) in zip(axes, t.image_gradients.items()):
        strength = np.abs(gradient).max(axis=0)
        limit = max(float(np.quantile(strength, 0.998)), 1e-30)
        step = max(1, max(strength.shape) // drawing.MOST_PIXELS)
        panel.imshow(strength[::step, ::step], cmap="inferno", vmin=0, vmax=limit, interpolation="nearest")
        drawing.bare(panel, f"{drawing.short(name)}: {float(t.losses[name]):.3g}\nbrightest {limit:.1g}")
    return figure
