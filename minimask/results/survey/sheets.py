"""Pictures of a survey: a sheet of images with their masks, and the sizes of objects beside the anchors."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minimask.data import rle
from minimask.data.coco import CocoDataset
from minimask.data.images import shrink
from minimask.data.sample import PixelBox
from minimask.errors import InputError, one_line
from minimask.files import replacing
from minimask.masks import Window
from minimask.results.fonts import font
from minimask.results.plotting import new_figure
from minimask.results.visualize import PALETTE, draw_instances

if TYPE_CHECKING:
    from PIL import Image

_SIDE, _COLUMNS, _GAP, _LINE = 380, 4, 12, 20  # display pixels, of which a line of text takes _LINE
_BACKGROUND, _INK = (250, 250, 250), (30, 30, 30)


class _Masks:
    """Masks that are decoded one at a time, each in its window; scaled by two factors."""

    def __init__(self, dataset: CocoDataset, rows: np.ndarray, scale: tuple[float, float]):
        self.dataset, self.rows, self.scale = dataset, rows, scale

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: slice) -> "_Masks":
        return _Masks(self.dataset, self.rows[key], self.scale)

    def window(self, index: int) -> tuple[Window, np.ndarray]:
        table, row = self.dataset.table, self.rows[index]
        height = self.dataset.records[table.images[row]].height
        x1, y1, x2, y2 = table.extents[row].tolist()
        patch = rle.decode_runs(rle.read_runs(table.counts[row]), height, PixelBox(x1, y1, x2, y2))
        top, left = (int(start * scale) for start, scale in zip((y1, x1), self.scale))
        bottom, right = (
            max(int(np.ceil(e * s)), b + 1) for e, s, b in zip((y2, x2), self.scale, (top, left))
        )
        if (bottom - top, right - left) == patch.shape:
            return Window(top, bottom, left, right), patch
        rows = np.clip((np.arange(top, bottom) + 0.5) / self.scale[0] - y1, 0, y2 - y1 - 1).astype(int)
        columns = np.clip((np.arange(left, right) + 0.5) / self.scale[1] - x1, 0, x2 - x1 - 1).astype(int)
        return Window(top, bottom, left, right), patch[rows[:, None], columns]


def contact_sheet(dataset: CocoDataset, most: int = 20) -> "Image.Image":
    """Images of a data set with boxes, masks and classes: evenly spaced ones, and the one with most objects.

    Images that cannot be decoded are left out. Dark ones are shown brighter; crowd regions are labelled.
    """
    from PIL import Image, ImageDraw

    counts = dataset.object_counts()
    chosen = sorted({int(counts.argmax()), *np.linspace(0, len(dataset) - 1, most - 1).astype(int).tolist()})
    cells = []
    for index in chosen:
        try:
            name, picture = one_line(dataset.records[index].file_name, 48), _cell(dataset, index)
        except InputError:  # a finding of its own
            continue
        cells.append((name, picture, _counted(dataset, index)))
    columns = max(1, min(_COLUMNS, len(cells)))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [2 * _LINE + _GAP + max(picture.height for _, picture, _ in row) for row in rows]
    sheet = Image.new("RGB", (columns * (_SIDE + _GAP) + _GAP, sum(heights) + _GAP), _BACKGROUND)
    pen, y = ImageDraw.Draw(sheet), _GAP
    for row, height in zip(rows, heights):
        for column, (name, picture, counted) in enumerate(row):
            x = _GAP + column * (_SIDE + _GAP)
            _write(pen, (x, y), name)
            sheet.paste(picture, (x, y + _LINE))
            _write(pen, (x, y + _LINE + picture.height + 2), counted)
        y += height
    return sheet


def _write(pen: Any, place: tuple[int, int], text: str) -> None:
    """Write a line of text, cut to the width of a cell."""
    face, shown = font(13, text), text
    while pen.textlength(shown, face) > _SIDE:
        text = text[:-1]
        shown = f"{text} ..."
    pen.text(place, shown, _INK, face)


def _counted(dataset: CocoDataset, index: int) -> str:
    """The objects of an image by class: "13 bowl, 12 carrot"."""
    table = dataset.table
    mine = table.images == index
    counts = Counter(dataset.class_names[label - 1] for label in table.labels[mine & ~table.crowd])
    words = [f"{count} {one_line(name)}" for name, count in counts.most_common()]
    crowds = int((mine & table.crowd).sum())
    return ", ".join(words + [f"{crowds} crowd"] * (crowds > 0)) or "no objects"


def _cell(dataset: CocoDataset, index: int) -> "Image.Image":
    """One image, `_SIDE` pixels along its longer side."""
    record, table = dataset.records[index], dataset.table
    zoom = _SIDE / max(record.height, record.width)
    size = max(1, round(record.height * zoom)), max(1, round(record.width * zoom))
    scale = size[0] / record.height, size[1] / record.width
    image = shrink(dataset.pixels(index), size)
    gain = float(np.clip(0.9 / max(np.quantile(image, 0.995), 1e-6), 1, 8))
    rows = np.flatnonzero(table.images == index)
    corners = np.concatenate([table.boxes[rows, :2], table.boxes[rows, :2] + table.boxes[rows, 2:]], axis=1)
    labels = np.where(table.crowd[rows], len(dataset.class_names) + 1, table.labels[rows])
    names = [*dataset.class_names, "crowd"]
    masks = _Masks(dataset, rows, scale)
    boxes = corners * np.array([scale[1], scale[0]] * 2)
    several = len(dataset.class_names) > 1
    picture = draw_instances(gain * image, boxes, labels, masks, names, zoom=1.0, names=several)
    # Without its caption, which is as narrow as the image.
    return picture.crop((0, 0, picture.width, size[0]))


def size_histogram(sizes: Sequence[float], facts: dict[str, Any], name: str, path: Path) -> None:
    """Draw the square roots of objects' areas, in pixels of the network's input, beside the anchors' sizes.

    Parameters
    ----------
    sizes : (G,) float
    facts : dict
        As `anchors.of_sizes` returns them.
    name : str
        Of the data set.
    """
    figure = new_figure(figsize=(9, 4.2), layout="constrained")
    from matplotlib.ticker import LogLocator, NullLocator

    axes = figure.subplots()
    anchors = [size for level in facts["anchor_sizes"] for size in level]
    low, high = min(*anchors, np.min(sizes)) / 2**0.75, max(*anchors, np.max(sizes)) * 2**0.75
    bins = np.geomspace(max(low, 0.5), high, 49)
    axes.hist(sizes, bins, color=PALETTE[1], edgecolor="white", linewidth=0.4)
    for size in anchors:
        axes.axvline(size, color=PALETTE[4], linewidth=1.8)
        axes.annotate(
            f"{size:g}",
            (size, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            color=PALETTE[4],
        )
    half, much = (100 * facts["missed"][threshold] for threshold in ("0.5", "0.7"))
    axes.set(
        xscale="log",
        xlabel="square root of an object's area, pixels of the network's input",
        ylabel="objects",
    )
    axes.set_xlim(max(low, 0.5), high)
    axes.xaxis.set_major_locator(LogLocator(base=2))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    title = (
        f"{one_line(name, 40)} ({len(sizes)} objects) and the anchors' sizes (lines) of {facts['network']}\n"
    )
    title += f"no anchor reaches {half:.1f} % of the objects at IoU 0.5, {much:.1f} % at 0.7"
    axes.set_title(title, fontsize=10, pad=18)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
