"""Figures of what comes first: the image and its objects, what the network gets, and its features."""

from __future__ import annotations

from typing import Any

import numpy as np

from minimask.data.augmentation import Augmentation, augment
from minimask.data.sample import Sample
from minimask.inspection.figures import drawing
from minimask.inspection.figures.drawing import WIDE, Layout
from minimask.inspection.records import Trace
from minimask.inspection.weights import dead_channels


def image(trace: Trace, layout: Layout = WIDE) -> Any:
    """The image and its objects

    The annotated objects with their boxes, and all masks of each of the four most frequent classes. Without
    annotations, what the model found.
    """
    source = trace.target
    labels = trace.result["labels"] if source is None else source.labels
    boxes = trace.result["boxes"] if source is None else source.boxes
    masks = trace.result.get("masks") if source is None else source.masks
    classes, counts = np.unique(labels, return_counts=True)
    top = classes[np.argsort(-counts, kind="stable")][:4] if masks is not None else []
    figure, axes = layout.panels(1 + len(top), drawing.aspect(trace.image))
    what = "found" if source is None else "annotated"
    drawing.picture(axes[0], trace.image, f"{what}: {len(labels)}")
    drawing.boxes(axes[0], boxes, drawing.colours(labels))
    for panel, label in zip(axes[1:], top):
        members = np.flatnonzero(labels == label)
        drawing.picture(panel, trace.image, f"{len(members)} × {trace.name(int(label))}", pale=0.6)
        _label_map(panel, masks, members)
    return figure


def _label_map(axes: Any, masks: Any, members: np.ndarray) -> None:
    """Each mask in a colour of its own over the picture, thinned like the picture."""
    height, width = masks.shape[-2:]
    step = max(1, -(-max(height, width) // drawing.MOST_PIXELS))
    canvas = np.zeros((-(-height // step), -(-width // step), 4))
    for place, index in enumerate(members.tolist()):
        if hasattr(masks, "window"):
            (y0, _, x0, _), patch = masks.window(index)
            rows, columns = np.nonzero(patch > 0.5)
            rows, columns = (rows + y0) // step, (columns + x0) // step
        else:
            rows, columns = np.nonzero(masks[index][::step, ::step])
        colour = drawing.PALETTE[place % len(drawing.PALETTE)]
        rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        canvas[rows, columns] = (*rgb, 0.85)
    axes.imshow(canvas, extent=(0, width, height, 0), interpolation="nearest")


def augmentations(trace: Trace, options: Augmentation, seed: int = 0, layout: Layout = WIDE) -> Any:
    """The image as training varies it

    Crops, scales, flips and colours, drawn at random, of image, boxes and masks together: an outline that has
    left its object here would be taught to the network.
    """
    if trace.target is None or trace.target.masks is None:
        return None
    t = trace.target
    none = np.zeros((0, *trace.image.shape[1:]), np.uint8)
    crowds = np.zeros((0, 4), np.float32)
    sample = Sample(
        trace.image.astype(np.float32), t.boxes.astype(np.float32), t.labels, t.masks, crowds, none, 0
    )
    figure, axes = layout.panels(3, 1.0)
    for k, panel in enumerate(axes):
        varied = augment(sample, options, np.random.default_rng([seed, k]))
        drawing.picture(panel, varied.image, f"draw {k + 1}: {len(varied.boxes)} objects", pale=0.3)
        _label_map(panel, varied.masks, np.arange(len(varied.masks)))
        drawing.boxes(panel, varied.boxes, "black", 0.8)
    return figure


def network_input(trace: Trace, layout: Layout = WIDE) -> Any:
    """What the network gets

    First the tensor: normalised, resized, and for a pyramid padded with zeros (grey) at the right and at the
    bottom, to multiples of 32 pixels. Then the same with padding and normalisation undone, scaled back. Last,
    how far that is from the image: what resizing has cost, mostly at edges.
    """
    given = trace.input
    limit = max(float(np.abs(given.pixels).max(initial=0)), 1e-6)
    figure, axes = layout.panels(3, max(drawing.aspect(given.pixels), drawing.aspect(trace.image)), title=0.5)
    _, height, width = given.pixels.shape
    drawing.picture(
        axes[0],
        given.pixels / (2 * limit) + 0.5,
        f"{width} × {height}, values {given.pixels.min():.2f} to {given.pixels.max():.2f}",
    )
    h, w = given.size
    drawing.boxes(axes[0], np.array([[0, 0, w, h]]), drawing.RED, 1.5)
    drawing.picture(axes[1], given.restored, f"{w} × {h}, scaled back")
    off = np.abs(given.restored - trace.image).mean(axis=0)
    step = max(1, max(off.shape) // drawing.MOST_PIXELS)
    drawn = axes[2].imshow(off[::step, ::step], cmap="cividis", vmin=0, vmax=max(float(off.max()), 1e-3))
    drawing.bare(axes[2], f"difference: mean {off.mean():.1g}, most {off.max():.1g} of 1")
    figure.colorbar(drawn, ax=axes[2], shrink=0.7).ax.tick_params(labelsize=7)
    return figure


def activations(trace: Trace, layout: Layout = WIDE) -> Any:
    """What each stage sees

    The three channels that vary most, of each stage of the body (C2 to C5) and of each level of the pyramid
    (P2 to P6). A channel that is the same at every cell is dead for this image: it tells nothing about it.
    """
    stages = list(trace.activations.items())
    figure, axes = layout.panels(
        3 * len(stages), drawing.aspect(trace.input.pixels), 3 * min(2, layout.columns)
    )
    for i, (name, x) in enumerate(stages):
        spread = x.reshape(len(x), -1).std(axis=1)
        dead = int(dead_channels(x).sum())
        for k, panel in enumerate(axes[3 * i : 3 * i + 3]):
            if k >= len(x):
                panel.set_axis_off()
                continue
            channel = int(np.argsort(-spread, kind="stable")[k])
            panel.imshow(x[channel], cmap="cividis")
            drawing.bare(panel, f"{name} {channel}" if k else f"{name}: {len(x)} channels, {dead} dead")
            panel.title.set_fontsize(7)
    return figure
