"""What the figures share: panels that fit a page or a telephone, pictures, many boxes at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minimask.results.plotting import new_figure
from minimask.results.visualize import PALETTE

ORANGE, SKY, GREEN, YELLOW, RED, PINK, BLUE = PALETTE
GREY = "#666666"
MOST_PIXELS = 800  # along a picture's longer side; more would not be seen
MOST_BOXES = 100  # in one panel


@dataclass(frozen=True)
class Layout:
    """How wide a figure is, in inches, and how many panels stand side by side at most."""

    width: float
    columns: int

    def panels(self, count: int, aspect: float = 1.0, most: int | None = None, title: float = 0.3, **options):
        """A figure of `count` panels, `aspect` times as high as wide.

        Parameters
        ----------
        most : int, optional
            Panels side by side, in place of the layout's number; small ones may be more.
        title : float
            Inches above each panel.

        Returns
        -------
        figure, list of `count` axes
        """
        columns = min(count, self.columns if most is None else most)
        rows = math.ceil(count / columns)
        width = self.width / columns
        height = rows * (min(max(aspect, 0.35), 1.8) * width + title)
        figure = new_figure(figsize=(self.width, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04)
        axes = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
        for spare in axes[count:]:
            spare.set_axis_off()
        return figure, axes[:count]


WIDE, NARROW = Layout(10.0, 3), Layout(4.4, 1)


def shown(image: np.ndarray, most: int = MOST_PIXELS) -> np.ndarray:
    """(3, H, W) in 0..1 -> (h, w, 3) uint8: at most `most` wide and high; dark ones brightened."""
    from PIL import Image

    step = max(1, -(-max(image.shape[1:]) // (2 * most)))  # a large image is thinned before it is copied
    image = image[:, ::step, ::step]
    gain = float(np.clip(0.9 / max(np.quantile(image, 0.995), 1e-6), 1, 8))  # as in `results.visualize`
    pixels = np.clip(image.transpose(1, 2, 0) * (255 * gain) + 0.5, 0, 255).astype(np.uint8)
    scale = min(1.0, most / max(pixels.shape[:2]))
    if scale == 1.0:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))


def aspect(image: np.ndarray) -> float:
    """Height over width of an image (..., H, W)."""
    return image.shape[-2] / image.shape[-1]


def picture(axes: Any, image: np.ndarray, title: str = "", pale: float = 0.0) -> None:
    """An image (3, H, W) without ticks, in its own pixels; `pale` from 0 to 1 fades it behind lines."""
    height, width = image.shape[1:]
    pixels = shown(image)
    if pale:
        pixels = (pixels * (1 - pale) + 255 * pale).astype(np.uint8)
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="nearest")
    bare(axes, title)


def bare(axes: Any, title: str = "") -> None:
    """Remove the ticks, and set a title in small print."""
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)


def boxes(
    axes: Any, values: np.ndarray, colour: Any, width: float = 1.2, style: str = "-", **options
) -> None:
    """The outlines of boxes (N, 4), in one colour or N."""
    from matplotlib.collections import LineCollection

    x1, y1, x2, y2 = np.asarray(values, np.float64).reshape(-1, 4).T
    outlines = np.stack([[x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1]], axis=2).transpose(1, 0, 2)  # (N, 5, 2)
    options = dict(colors=colour, linewidths=width, linestyles=style) | options
    axes.add_collection(LineCollection(outlines, **options), autolim=False)


def arrows(axes: Any, before: np.ndarray, after: np.ndarray, colour: str) -> None:
    """Lines from the middle of each box to that of its counterpart."""
    from matplotlib.collections import LineCollection

    middles = [(b[:, :2] + b[:, 2:]) / 2 for b in (before, after)]
    axes.add_collection(
        LineCollection(np.stack(middles, axis=1), colors=colour, linewidths=0.8), autolim=False
    )


def some(count: int, most: int = MOST_BOXES) -> np.ndarray:
    """At most `most` indices out of `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)) if count else np.zeros(0, int)


def best_shown(count: int, most: int) -> str:
    """A second line for the title of a picture with the best `most` of `count` boxes."""
    return f"\nthe best {most} shown" if count > most else ""


def plain(axes: Any, **labels: str) -> None:
    """A chart's axes: no box around it, small print."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8)
    title = labels.pop("title", "")
    axes.set_title(title, fontsize=9)
    axes.set(**labels)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(8)


def short(name: str) -> str:
    """A loss's name without the prefix that all have."""
    return name.removeprefix("loss_").replace("_", " ")


def colours(labels: Sequence[int]) -> list[str]:
    """The colour of each class; the first seven are the same as in pictures of results."""
    return [PALETTE[(int(label) - 1) % len(PALETTE)] for label in labels]
