"""An explorer of RoI layers: where each one's bins lie for a box, which points it reads, what comes out.

Shapes: PH x PW bins, a feature map (H, W) of cells `stride` input pixels wide. A box is x1, y1, x2, y2 in
input pixels, read as places: cell i covers [i stride, (i + 1) stride).

`draw` makes the figure. `explore` adds sliders to it in a notebook. `write_page` is for readers who run no
Python: it writes frames of the figure along a path of boxes into one HTML file, from explorer.html.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from minimask import functions as F
from minimask.autograd import Tensor
from minimask.files import write_text
from minimask.kernels import roi_pool as pool
from minimask.kernels import roi_warp as warp
from minimask.kernels.roi_align import Sampling
from minimask.lessons import misalign
from minimask.results.plotting import new_figure
from minimask.results.visualize import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYERS = {"RoIPool": F.roi_pool, "RoIWarp": F.roi_warp, "RoIAlign": F.roi_align}
COLOURS = {"RoIPool": PALETTE[4], "RoIWarp": PALETTE[0], "RoIAlign": PALETTE[6]}
SAMPLING = Sampling((2, 2), ratio=2, aligned=True)
TITLE = "What a RoI layer reads while its box moves"


@dataclass(frozen=True)
class Reading:
    """What one layer reads of a map for one box. Positions are places in input pixels.

    Attributes
    ----------
    name : str
        Of the layer.
    columns, rows : (PW, 2) and (PH, 2) float
        Where the bins begin and end, along x and along y.
    ideal : (PW, 2) and (PH, 2) float
        Where they should begin and end: an even division of the box.
    points : (K, 2) float
        x, y of all sampling points; for RoIPool, the centres of the cells that are a maximum.
    values : (PH, PW) float
        What comes out.
    off : float
        The largest distance of a bin's edge from where it should be.
    bound : float or None
        The largest that `off` can be for a box of at least one cell; None for a smaller box.
    """

    name: str
    columns: np.ndarray
    rows: np.ndarray
    ideal: Sequence[np.ndarray]
    points: np.ndarray
    values: np.ndarray
    off: float
    bound: float | None


def reading(name: str, x, box, s: Sampling = SAMPLING, stride: int = 16) -> Reading:
    """Ask a layer for its values, and its kernels for the places that the values come from.

    Parameters
    ----------
    name : "RoIPool", "RoIWarp" or "RoIAlign"
    x : (H, W) float
    box : (4,) float
    s : Sampling
        RoIPool heeds only `output_size` and `aligned`.
    stride : int
        Input pixels per cell.

    Raises
    ------
    ValueError
        For a layer of another name.
    """
    if name not in LAYERS:
        raise ValueError(f"there is no layer {name!r} among {', '.join(LAYERS)}")
    x, rois = Tensor(np.asarray(x, float)[None, None], requires_grad=True), np.array([[0.0, *box]])
    options = dict(aligned=s.aligned)
    if name != "RoIPool":  # which has no points to choose
        options |= dict(sampling_ratio=s.ratio, sampling_points=s.points, aggregation=s.aggregation)
    y = LAYERS[name](x, rois, s.output_size, 1 / stride, **options)
    y.backward(np.ones(y.shape))
    if name == "RoIPool":
        edges = _edges_of_pool(rois, x.shape, s, stride)
        points = np.argwhere(x.grad[0, 0])[:, ::-1] + 0.5  # its gradient goes to the maxima
    else:
        edges = _divided(_cells_read(name, rois, s, stride), s)
        points = np.stack(np.meshgrid(*(_points(e, s) for e in edges)), axis=-1).reshape(-1, 2)
    columns, rows = (e * float(stride) for e in edges)
    ideal = _divided(box, s)
    off = max(float(np.abs(got - want).max()) for got, want in zip((columns, rows), ideal))
    has_a_cell = min(box[2] - box[0], box[3] - box[1]) >= stride
    bound = misalign.bound(name, max(s.output_size), s.aligned) * stride if has_a_cell else None
    return Reading(name, columns, rows, ideal, points * stride, y.numpy()[0, 0], off, bound)


def _edges_of_pool(rois, x_shape, s: Sampling, stride: int) -> list[np.ndarray]:
    """Columns (PW, 2) and rows (PH, 2) of RoIPool's bins, in cells."""
    (height, width), (ph, pw) = x_shape[2:], s.output_size
    x1, y1, x2, y2 = rois[:, 1:].T / stride  # (1,) each: there is one RoI
    columns = pool.bin_edges(x1, x2, pw, width, s.aligned)
    rows = pool.bin_edges(y1, y2, ph, height, s.aligned)
    return [np.stack(begins_and_ends, axis=-1)[0] for begins_and_ends in (columns, rows)]


def _cells_read(name: str, rois, s: Sampling, stride: int) -> np.ndarray:
    """(4,): the box that RoIWarp or RoIAlign divides into bins, in cells."""
    if name == "RoIWarp":
        return warp.quantised(rois, None, (1 / stride,), s.aligned)[0, 1:]
    cells = rois[0, 1:] / stride
    if s.aligned:
        return cells
    # A coordinate names a cell and is read at the cell's centre, half a cell further on.
    return np.concatenate([cells[:2], np.maximum(cells[2:], cells[:2] + 1)]) + 0.5


def _divided(box, s: Sampling) -> list[np.ndarray]:
    """Columns (PW, 2) and rows (PH, 2) that divide a box evenly."""
    edges = (np.linspace(box[k], box[k + 2], s.output_size[1 - k] + 1) for k in (0, 1))
    return [np.stack([e[:-1], e[1:]], axis=-1) for e in edges]


def _points(edges, s: Sampling) -> np.ndarray:  # (P, 2) -> (P n,)
    """Where the bins of an axis are read, at n points each."""
    begin, size = edges[:, :1], edges[:, 1:] - edges[:, :1]
    n = s.ratio if s.ratio > 0 else math.ceil(size[0, 0])
    return (begin + size * s.fractions(n)).ravel()


# ------------------------------------------------------------------------------------------------ the figure


def draw(x, box, s: Sampling = SAMPLING, stride: int = 16, layers: Sequence[str] = tuple(LAYERS)) -> Figure:
    """A row for each layer: on the left the map with the bins, on the right what comes out of them.

    Parameters
    ----------
    x : (H, W) float
        The figure is readable up to about 12 cells per side.
    box : (4,) float
    s : Sampling
    stride : int
        Input pixels per cell.
    layers : of "RoIPool", "RoIWarp", "RoIAlign"

    Returns
    -------
    matplotlib Figure
        Not registered with pyplot.

    Raises
    ------
    ValueError
        For a layer of another name.
    """
    return _figure(x, stride, [reading(name, x, box, s, stride) for name in layers])


def _figure(x, stride: int, readings: Sequence[Reading]) -> Figure:
    (height, width), low, high = np.shape(x), float(np.min(x)), float(np.max(x))
    shades = dict(cmap="gray", vmin=low - 0.4 * (high - low), vmax=high)  # light enough to draw on
    figure = new_figure(figsize=(5.4, len(readings) * (0.95 + 3.1 * height / width)), layout="constrained")
    grid = figure.subplots(len(readings), 2, squeeze=False, width_ratios=(1.7, 1))
    for read, (on_map, output) in zip(readings, grid):
        on_map.imshow(x, extent=(0, width * stride, height * stride, 0), **shades)
        _draw_cells(on_map, stride, np.shape(x))
        _draw_bins(on_map, read, stride)
        most = "" if read.bound is None else f"\n(at most {read.bound:.1f} for any box)"
        on_map.set_title(f"{read.name}: edges up to {read.off:.1f} px off{most}", fontsize=11)
        output.imshow(read.values, **shades)
        output.set(xticks=[], yticks=[])
        output.set_title("reads", fontsize=11)
        if max(read.values.shape) <= 4:
            _write_values(output, read.values)
    return figure


def _draw_cells(axes, stride: int, shape) -> None:
    """The grid of the map's cells, with axes in input pixels."""
    height, width = np.multiply(shape, stride)
    axes.vlines(np.arange(0, width, stride), 0, height, color="#ffffffb0", lw=0.5, zorder=0.5)
    axes.hlines(np.arange(0, height, stride), 0, width, color="#ffffffb0", lw=0.5, zorder=0.5)
    axes.set(xlim=(0, width), ylim=(height, 0), xlabel="input pixels")
    axes.set(xticks=np.arange(0, width + 1, 2 * stride), yticks=np.arange(0, height + 1, 2 * stride))
    axes.tick_params(labelsize=8)


def _draw_bins(axes, read: Reading, stride: int) -> None:
    """The bins in colour, dotted lines where they should be, and the points that are read."""
    from matplotlib.patches import Rectangle

    colour = COLOURS[read.name]
    for i, (top, bottom) in enumerate(read.rows):
        for j, (left, right) in enumerate(read.columns):
            inset = 0.06 * stride * ((i + j) % 2) * (read.name == "RoIPool")  # whose bins overlap
            size = right - left - 2 * inset, bottom - top - 2 * inset
            axes.add_patch(Rectangle((left + inset, top + inset), *size, fc=colour + "38", ec=colour, lw=1.8))
    columns, rows = read.ideal
    under = dict(color="white", lw=2.4, zorder=0.9)  # below the bins: where there are none, the dots are seen
    for look in (under, dict(color="black", ls=(0, (1.2, 1.6)), lw=1.5)):
        axes.vlines(columns, rows.min(), rows.max(), **look)
        axes.hlines(rows, columns.min(), columns.max(), **look)
    axes.plot(*read.points.T, "o", color=colour, mec="white", mew=0.6, ms=4.5)


def _write_values(axes, values) -> None:
    for (i, j), value in np.ndenumerate(values):
        look = dict(ha="center", va="center", fontsize=10, backgroundcolor="#ffffffb0")
        axes.text(j, i, f"{value:.2f}", **look)


def describe(read: Reading) -> str:
    """What a row of the figure shows, in words: the picture's alternative text."""
    columns, rows = (f"{edges.min():.1f} to {edges.max():.1f}" for edges in (read.columns, read.rows))
    off = f"up to {read.off:.1f} pixels from" if read.off > 1e-9 else "exactly"
    values = "; ".join(", ".join(f"{value:.2f}" for value in row) for row in read.values)
    return (
        f"{read.name}: {len(read.columns)} by {len(read.rows)} bins, x from {columns}, y from {rows}, their "
        f"edges {off} where they should be. Row by row, it reads {values}."
    )


# ----------------------------------------------------------------------------- sliders, and a page of frames


def explore(x, box, s: Sampling = SAMPLING, stride: int = 16, live: bool | None = None) -> Any:
    """The figure with sliders that move the box, if ipywidgets is installed and somebody is there to use it.

    Parameters
    ----------
    x, box, s, stride
        As for `draw`; they are where the sliders begin.
    live : bool, optional
        Whether to show sliders. By default, whether a person runs this notebook's cells: a program that
        executes notebooks tells the kernel that nobody is there to answer questions.

    Returns
    -------
    ipywidgets.interactive, or the Figure if nothing can be moved.
    """
    try:
        from ipywidgets import Dropdown, interactive
    except ImportError:
        return draw(x, box, s, stride)
    if not (_somebody_is_there() if live is None else live):
        return draw(x, box, s, stride)

    x1, y1, x2, y2 = map(float, box)

    def drawn(left=x1, top=y1, width=x2 - x1, height=y2 - y1, bins=s.output_size[0], ratio=s.ratio, **how):
        return draw(x, (left, top, left + width, top + height), Sampling((bins, bins), ratio, **how), stride)

    down, across = ((0.0, float(side * stride), stride / 16) for side in np.shape(x))  # from, to, step
    sliders = dict(left=across, top=down, width=across, height=down, bins=(1, 7), ratio=(0, 5))
    points = Dropdown(value=s.points, options=("centers", "crossings"))
    aggregation = Dropdown(value=s.aggregation, options=("average", "max"))
    shown = {"auto_display": True}  # by itself, `interactive` keeps what `drawn` returns and displays nothing
    return interactive(drawn, shown, **sliders, aligned=s.aligned, points=points, aggregation=aggregation)


def _somebody_is_there() -> bool:
    """Whether this is a notebook whose kernel was told that questions will be answered."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and kernel.get_parent("shell")["content"].get("allow_stdin", False)


def write_page(
    path: str | Path, x, boxes, s: Sampling = SAMPLING, stride: int = 16, title: str = TITLE
) -> Path:
    """Write the figure for each of many boxes as one HTML file with a slider, which the arrow keys move too.

    The frames are pictures inside the file, each with its description; nothing else is loaded. Without
    JavaScript, all frames stand below one another.

    Parameters
    ----------
    path
        The file to write; its directory must exist.
    x, s, stride
        As for `draw`.
    boxes : (F, 4) float
        A box for each frame, for instance from `misalign.moved`.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    frames = []
    for box in np.asarray(boxes, float):
        where = "box from ({:g}, {:g}) to ({:g}, {:g}) in input pixels".format(*box)
        pictures = "".join(_picture(x, stride, reading(name, x, box, s, stride)) for name in LAYERS)
        hidden = " hidden" if frames else ""
        frames.append(f'<div class="frame" role="group" aria-label="{where}"{hidden}>{pictures}</div>')
    page = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    parts = dict(title=escape(title), last=len(frames) - 1, frames="\n".join(frames))
    write_text(path, page.substitute(parts))
    return Path(path)


def _picture(x, stride: int, read: Reading) -> str:
    png = io.BytesIO()
    _figure(x, stride, [read]).savefig(png, format="png", dpi=130)
    source = base64.b64encode(png.getvalue()).decode()
    return f'<img decoding="sync" alt="{escape(describe(read))}" src="data:image/png;base64,{source}">'
