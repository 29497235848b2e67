"""From files to what `trace` takes: an image at a size that fits in memory, and its objects at that size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minimask.data import CocoDataset, rle
from minimask.data import images as files
from minimask.data.checks import corners_in_image
from minimask.data.sample import PixelBox
from minimask.errors import InputError
from minimask.results.large import LARGE, size_as_seen

MASKS_MOST = 2**28
"""Pixels of all masks of an image; beyond it, image and masks are shrunk to the size the model sees."""


@dataclass(frozen=True, eq=False)
class Source:
    """An image with its objects.

    Attributes
    ----------
    image : (3, H, W) float32
    target : dict or None
        As `MaskRCNN.loss` takes it; None without annotations.
    size : (H, W)
        Of the file, which may be larger.
    """

    image: np.ndarray
    target: dict[str, np.ndarray] | None
    size: tuple[int, int]


def index_of(dataset: CocoDataset, path: Path) -> int:
    """Which image of a data set a file is, by its name; if several have that name, by their folders, too.

    Raises
    ------
    InputError
        If the data set has no image of that name, or several.
    """
    names = [Path(record.file_name.replace("\\", "/")) for record in dataset.records]
    same = [i for i, name in enumerate(names) if name.name == path.name]
    if len(same) > 1:
        same = [i for i in same if path.absolute().parts[-len(names[i].parts) :] == names[i].parts]
    if len(same) != 1:
        what = f"has {len(same)} images" if same else "has no image"
        raise InputError(
            f"{dataset.path}: {what} with the file_name {path.name}; give the annotations that it is in, or "
            "leave --annotations out"
        )
    return same[0]


def read_source(
    model: Any, path: Path, dataset: CocoDataset | None = None, labels: Sequence[int] = ()
) -> Source:
    """Read an image file and, from a data set, the objects in it.

    Parameters
    ----------
    model : MaskRCNN
        The model that is to see it.
    labels : sequence of int
        The model's label for each class of the data set, 0 where it has none.

    Raises
    ------
    InputError
        If the file is no image, or does not have the annotated size.
    """
    pixels = files.decode(path)
    size = height, width = pixels.shape[:2]
    table = None
    if dataset is not None:
        index = index_of(dataset, path)
        record = dataset.records[index]
        if (record.height, record.width) != size:
            raise InputError(
                f"{dataset.path}: image {record.id} is {record.width} x {record.height} there, while {path} "
                f"has {width} x {height} pixels; give the image that was annotated"
            )
        table = dataset.table.select(dataset.table.images == index)
        table = table.select(np.array([labels[label - 1] > 0 for label in table.labels], bool))
    objects = 0 if table is None else int((~table.crowd).sum())
    if height * width > LARGE or height * width * objects > MASKS_MOST:
        height, width = size_as_seen(model, size)
        image = files.shrink(pixels, (height, width))
    else:
        image = files.to_float(pixels)
    target = None if table is None else _target(table, size, (height, width), labels)
    return Source(image, target, size)


def _target(table: Any, size: tuple[int, int], seen: tuple[int, int], labels: Sequence[int]) -> dict:
    """The objects of a table at the size `seen` of an image that has `size`; masks one at a time."""
    factor = np.array([seen[1] / size[1], seen[0] / size[0]] * 2, np.float32)
    boxes = corners_in_image(table.boxes, *size) * factor
    objects = np.flatnonzero(~table.crowd & (boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    masks = np.zeros((len(objects), *seen), np.uint8)  # filled in place: they take most of the memory
    for mask, i in zip(masks, objects):
        _fill(mask, table.counts[i], table.extents[i], size)
    scale = np.array([*factor[:2], 1], np.float32)
    return {
        "boxes": boxes[objects],
        "labels": np.array([labels[label - 1] for label in table.labels[objects]], np.int64),
        "masks": masks,
        "keypoints": table.keypoints[objects].astype(np.float32) * scale,
        "crowd_boxes": boxes[table.crowd],
    }


def _fill(mask: np.ndarray, counts: bytes, extent: np.ndarray, size: tuple[int, int]) -> None:
    """Write a mask of (H, W) at another size: each new pixel is the one under its middle."""
    x1, y1, x2, y2 = extent.tolist()
    patch = rle.decode_runs(rle.read_runs(counts), size[0], PixelBox(x1, y1, x2, y2))
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * (old / new)).astype(int), old - 1)
        for old, new in zip(size, mask.shape)
    )
    inside_y, inside_x = (rows >= y1) & (rows < y2), (columns >= x1) & (columns < x2)
    mask[np.ix_(inside_y, inside_x)] = patch[np.ix_(rows[inside_y] - y1, columns[inside_x] - x1)]
