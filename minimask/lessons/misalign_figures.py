"""The figures of `minimask misalign`, for slides: SVG and PNG, with title and description inside the files.

The docstring of each figure's function is the figure's description, with numbers to be filled in: readers of
the source and people who cannot see the picture need to know the same. Each function takes what
`misalign.measure` found, the image's feature map (H, W) and the box (4,) that moves over it, in input pixels.
The colours are Okabe and Ito's; hatches and dashes repeat what they say, for prints in black and white.
"""

from __future__ import annotations

import io
from html import escape
from pathlib import Path

import numpy as np

from minimask.files import replacing
from minimask.lessons import misalign
from minimask.lessons.roi_integral import edges_of_bins, roi_integral, roi_integral_gradient
from minimask.results.plotting import load_matplotlib, new_figure
from minimask.results.visualize import PALETTE

COLOURS = {"RoIPool": PALETTE[4], "RoIWarp": PALETTE[0], "RoIAlign": PALETTE[6]}
HATCHES = {"RoIPool": "", "RoIWarp": "//", "RoIAlign": ".."}
STYLE = {"font.size": 20, "svg.hashsalt": "minimask", "axes.spines.top": False, "axes.spines.right": False}


def draw(found: dict, x, output: Path) -> dict[str, dict]:
    """Draw what was found on the map x into the folder `output`.

    Returns
    -------
    dict of figure's name to dict
        title; alt, the description; files, their names.
    """
    made = {}
    with load_matplotlib().rc_context(STYLE):
        for make in FIGURES:
            figure, facts = make(found, x, np.array(found["box"]))
            title = figure.get_suptitle()
            alt = " ".join((make.__doc__ or title).split()).format(**found["options"] | facts)
            files = _save(figure, output / f"misalign-{make.__name__}", title, alt)
            made[make.__name__] = dict(title=title, alt=alt, files=files)
    return made


def _save(figure, path: Path, title: str, alt: str) -> list[str]:
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.savefig(png, format="png", dpi=100, metadata={"Title": title, "Description": alt})
    before, metadata, after = svg.getvalue().replace("<svg ", '<svg role="img" ', 1).partition("<metadata>")
    texts = f"<title>{escape(title)}</title>\n <desc>{escape(alt)}</desc>\n "
    files = {".svg": (before + texts + metadata + after).encode(), ".png": png.getvalue()}
    for suffix, content in files.items():
        with replacing(path.with_suffix(suffix)) as file:
            file.write(content)
    return [path.with_suffix(suffix).name for suffix in files]


def _canvas(title: str, rows: int = 1, columns: int = 1, **options):
    figure = new_figure(figsize=(13.33, 7.5), layout="constrained")  # 16:9
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    figure.suptitle(title, fontsize=28)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def bins(found, x, box):
    """Bars for the {bins} bins of a box along one axis, over feature cells of 16 pixels. RoIAlign's lie
    exactly between the dotted lines that divide the box evenly. RoIWarp's are even too, but divide a box
    moved to whole cells. RoIPool's begin and end on whole cells and overlap; {text}.
    """
    count, stride = found["options"]["bins"], 16
    box_of = {(row["layer"], row["stride"], row["aligned"]): row["box"] for row in found["worst"]}
    boxes = np.array([box_of["RoIPool", stride, True]])
    displaced = misalign.displacements("RoIPool", boxes, count, stride, True)[0]  # (2, P, 2)
    axis, k, end = np.unravel_index(np.abs(displaced).argmax(), displaced.shape)  # the worst edge
    off = displaced[axis, k, end]
    ideal = edges_of_bins(boxes, count)[0, axis]  # (P + 1,)
    figure, ((axes,),) = _canvas(f"Where {count} bins lie, stride {stride}")
    low, high = (np.floor(ideal[0] / stride) - 2) * stride, (np.ceil(ideal[-1] / stride) + 2) * stride
    axes.vlines(np.arange(low, high + 1, stride), -1, 3, color="0.85", linewidth=1, zorder=0)
    axes.vlines(ideal, -1, 3, color="black", linewidth=1.5, linestyle=":", zorder=3)
    for lane, name in enumerate(misalign.GEOMETRIES):
        _bars(axes, lane, name, misalign.bin_edges(name, boxes, count, stride, True)[0, axis])
    arrow = dict(arrowstyle="-|>", linewidth=2.5, color="black", shrinkA=0, shrinkB=0)
    axes.annotate("", (ideal[k + end] + off, -0.47), (ideal[k + end], -0.47), arrowprops=arrow)
    text = f"bin {k + 1} {('begins', 'ends')[end]} {abs(off):.1f} pixels off"
    axes.text(ideal[k + end] + off / 2, -0.57, text, ha="center", backgroundcolor="white", zorder=4)
    axes.set(xlabel="input pixels; grey lines: feature cells; dotted: where the bins should be")
    axes.set(xlim=(low, high), ylim=(2.6, -0.9), yticks=range(3), yticklabels=[*misalign.GEOMETRIES])
    return figure, dict(text=text)


def _bars(axes, lane: int, name: str, bin_edges) -> None:
    """A numbered bar for each bin of a layer, alternately above and below the middle of its lane."""
    for number, (begin, end) in enumerate(bin_edges, 1):
        y = lane + (-0.18 if number % 2 else 0.18)
        axes.barh(y, end - begin, 0.34, begin, color=COLOURS[name], edgecolor="black")
        look = dict(color="white" if name == "RoIAlign" else "black", backgroundcolor=COLOURS[name])
        axes.text((begin + end) / 2, y, number, ha="center", va="center", zorder=4, **look)


def shift(found, x, box):
    """Two line charts of what the middle bin of a box reads while the box moves. Left, by how much the error
    of the place changes, in pixels: {text}; RoIPool's and RoIWarp's are saw teeth. Right, the brightness
    of an image: RoIAlign changes smoothly, its average close to the exact integral; RoIWarp and RoIPool stay
    as they are and then jump.
    """
    count, stride = found["options"]["bins"], found["options"]["stride"]
    boxes = misalign.moved(box, stride, 1 / 16)  # (S, 4), so close together that a jump looks like one
    middle, shifts = count // 2, boxes[:, 0] - box[0]
    spans = {}  # of what each layer reads of the ramp, beside what it should, in words
    figure, (panels,) = _canvas(f"What a bin reads while its box moves over a stride, {stride} pixels", 1, 2)
    for axes, values in zip(panels, (misalign.ramp_map(x.shape, stride), x)):
        exact = roi_integral(values, boxes / stride, count)[:, middle, middle]  # (S,)
        zero = 0.0 if values is x else exact  # of the ramp the error is drawn, of the image what is read
        axes.plot(shifts, exact - zero, color="0.75", linewidth=8, label="exact integral")
        for name, layer in misalign.LAYERS.items():
            read = misalign.reading(layer, values, boxes, stride, count)[:, middle, middle] - zero
            dash = "-" if "average" in name else "-." if name == "RoIPool" else "--"
            axes.plot(shifts, read, dash, color=COLOURS[name.split(",")[0]], linewidth=2.6, label=name)
            spans.setdefault(name, f"{name} {np.ptp(read):.1f}")  # the ramp comes first
        axes.set(xlabel="shift to the right and down, input pixels")
        axes.grid(alpha=0.25)
    panels[0].set(title="error of the place it reads (ramp)", ylabel="input pixels")
    panels[1].set(title="what it reads of the image", ylabel="brightness, standard deviations")
    legend = dict(loc="outside lower center", ncols=3, frameon=False)
    figure.legend(*panels[0].get_legend_handles_labels(), **legend)
    return figure, dict(text=", ".join(spans.values()))


def worst(found, x, box):
    """Bars of the largest displacement among {boxes} boxes, each under a line that is its derived bound. In
    pixels at stride 16, edges of boxes read as places: {text[0]}, {text[1]}, {text[2]}; as the original reads
    them: {text[3]}, {text[4]}, {text[5]}. All grow in proportion to the stride.
    """
    figure, (panels,) = _canvas("Worst displacement of a bin's edge", 1, 2, sharey=True)
    text = []
    for axes, aligned in zip(panels, (True, False)):
        for k, (name, colour) in enumerate(COLOURS.items()):
            rows = [row for row in found["worst"] if row["layer"] == name and row["aligned"] == aligned]
            middles, heights = np.arange(len(rows)) + 0.27 * (k - 1), [row["worst"] for row in rows]
            look = dict(color=colour, edgecolor="black", hatch=HATCHES[name])
            bars = axes.bar(middles, heights, 0.25, label=name, **look)
            axes.bar_label(bars, fmt="%.1f", padding=4, fontsize=13)
            bounds = [row["bound"] for row in rows]
            axes.hlines(bounds, middles - 0.125, middles + 0.125, color="black", linewidth=3.5)
            (at_16,) = (row for row in rows if row["stride"] == 16)
            text.append(f"{name} {at_16['worst']:.1f} of at most {at_16['bound']:.1f}")
        axes.set(title="box edges read as places" if aligned else "as the original reads them")
        axes.set(xlabel="stride", xticks=range(len(misalign.STRIDES)), xticklabels=misalign.STRIDES)
    panels[0].set(ylabel="input pixels")
    panels[0].margins(y=0.1)  # room for the number on the highest bar
    panels[0].plot([], [], color="black", linewidth=3.5, label="bound, derived")
    panels[0].legend(frameon=False)
    return figure, dict(text=text)


def gradient(found, x, box):
    """Six maps of the gradient that one box sends into the feature map, with the box outlined. That of the
    exact integral is even inside and fades at the rim, and the average of RoIAlign looks much the same. That
    of RoIWarp covers the box moved to whole cells. The maxima send more to some cells and less to others, and
    RoIPool picks single ones. Distance from the exact one, relative to its length: {text}.
    """
    stride, gy = found["options"]["stride"], np.ones((found["options"]["bins"],) * 2)
    exact = roi_integral_gradient(gy, box[None] / stride, x.shape)[0]  # (H, W)
    images, titles = {"exact integral": exact}, []
    for name, layer in reversed(misalign.LAYERS.items()):
        images[name] = misalign.gradient(layer, x, box[None], stride, gy)[0]
    figure, axes = _canvas("Where the gradient of a box goes", 2, 3)
    left, top, right, bottom = box / stride - 0.5  # imshow has cell 0's centre at 0
    outline = [left, right, right, left, left], [top, top, bottom, bottom, top]
    for panel, (name, image) in zip(axes.flat, images.items()):
        drawn = panel.imshow(image, cmap="cividis", vmin=0, vmax=2 * exact.max())
        panel.plot(*outline, "black", linewidth=4)
        panel.plot(*outline, "white", linewidth=2)
        off = np.linalg.norm(image - exact) / np.linalg.norm(exact)
        titles.append(f"{name}: off by {off:.0%}" if off else name)
        panel.set(title=titles[-1].replace(": ", "\n"), xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="gradient of a cell", extend="max")
    return figure, dict(text="; ".join(titles[1:]))


FIGURES = (bins, shift, worst, gradient)
FILES = tuple(f"misalign-{make.__name__}.{kind}" for make in FIGURES for kind in ("svg", "png"))
