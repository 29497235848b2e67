"""The COCO document that a conversion makes: images, categories, and objects whose masks are checked."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minimask.data import images, rle
from minimask.data.convert.folder import some
from minimask.data.fields import show
from minimask.data.mask_checks import check_mask
from minimask.errors import InputError, one_line

VALUES = ("instances", "classes", "classes-whole")
DECIMALS = 3  # of a pixel, in computed coordinates


@dataclass(frozen=True)
class Options:
    """How annotations are to be understood.

    Attributes
    ----------
    classes : ClassNames or None
        See `names.read_classes`.
    values : one of `VALUES`, or None
        What the values of label maps are: objects; classes, each connected region of which is an object; or
        classes with one object per image. None: to be told from the names of the maps.
    colours : dict of (r, g, b) to str, or None
        The class of each colour, see `names.read_colours`.
    ignored : tuple of int
        Values of label maps that are background, besides 0.
    boxes : bool
        Whether YOLO's boxes are taken as rectangular masks.
    """

    classes: Any = None
    values: str | None = None
    colours: dict[tuple[int, int, int], str] | None = None
    ignored: tuple[int, ...] = ()
    boxes: bool = False


@dataclass(frozen=True)
class Picture:
    """An image file, and the size at which its objects are drawn."""

    path: Path
    file_name: str  # relative to the folder of images, with / between its parts
    height: int
    width: int


def measured(
    path: Path,
    file_name: str,
    drawn: tuple[int, int] | None = None,
    whose: str = "",
    sized: str = "is drawn",
    header: images.Header | None = None,
) -> Picture:
    """A `Picture` of the size in its header, upright according to its EXIF orientation.

    Parameters
    ----------
    drawn : (height, width), optional
        The size at which the annotation was drawn; the image must have it, upright or as stored.
    whose, sized : str
        The annotation's file, and the words in which it gives its size; for the message.
    header : Header, optional
        The image's, if it is not a file yet.

    Raises
    ------
    InputError
        If the file is not an image that can be read, or has another size.
    """
    header = header or images.examine(path)
    stored = header.height, header.width
    upright = stored[::-1] if header.turned else stored
    if drawn is not None and drawn not in (upright, stored):
        turned = "; it seems turned on its side: turn one of them" if drawn == upright[::-1] else ""
        mend = turned or "; draw it on the image that is there, or restore the image that was annotated"
        raise InputError(
            f"{whose}: {sized} at {drawn[1]} x {drawn[0]} pixels (width x height), but {path} has "
            f"{upright[1]} x {upright[0]}{mend}"
        )
    return Picture(path, file_name, *(drawn or upright))


class Builder:
    """Collects images and objects; ``document()`` makes COCO instance JSON of them."""

    def __init__(self):
        self.pictures: list[Picture] = []
        self.categories: dict[int, str] = {}  # id -> name
        self._objects: list[dict] = []
        self._counts: list[bytes] = []
        self._empty: list[str] = []

    def set_categories(self, names: Sequence[str], ids: Sequence[int] | None = None) -> None:
        """The names of the classes, numbered from 1 unless `ids` are given."""
        self.categories = dict(zip(ids or range(1, len(names) + 1), names))
        self._ids = {name: number for number, name in self.categories.items()}

    def add_picture(self, picture: Picture) -> None:
        """Begin an image; the objects that follow belong to it."""
        self.pictures.append(picture)

    def add_object(self, name: str, parts: list[list | dict], place: str) -> None:
        """An object of the current image.

        Parameters
        ----------
        name : str
            Of its class.
        parts : list
            Polygons, each flat [x1, y1, x2, y2, ...], and RLEs {"size", "counts"}; the object is their union.
        place : str
            What messages call it, beginning with its file.

        Raises
        ------
        InputError
            If a part is not a mask in the image, or reaches far outside (see `mask_checks`).
        """
        picture = self.pictures[-1]
        size = picture.height, picture.width
        polygons = [part for part in parts if isinstance(part, list)]
        masks = [part for part in parts if isinstance(part, dict)]
        pieces = ([polygons] if polygons else []) + masks
        checked = [check_mask({"segmentation": piece}, place, *size) for piece in pieces]
        counts = rle.union([mask.encode(*size) for mask in checked], *size)
        outline = checked[0].outline if not masks else None
        segmentation = polygons if not masks else {"size": list(size), "counts": counts.decode("ascii")}
        self._counts.append(counts)
        self._objects.append(
            {
                "image_id": len(self.pictures),
                "category_id": self._ids[name],
                "segmentation": segmentation,
                "outline": outline,
                "place": place,
            }
        )

    def finish(self, note: Callable[[str], None]) -> None:
        """Measure all objects; those without a single pixel are dropped, and `note` says so.

        Raises
        ------
        InputError
            If no object is left.
        """
        sizes = [[p.height, p.width] for p in self.pictures]
        masks = [
            {"size": sizes[entry["image_id"] - 1], "counts": counts}
            for entry, counts in zip(self._objects, self._counts)
        ]
        pixels, extents = rle.measure(masks)
        kept = []
        for entry, count, extent in zip(self._objects, pixels.tolist(), extents.tolist()):
            place, outline = entry.pop("place"), entry.pop("outline")
            if not count:
                self._empty.append(place)
                continue
            height, width = sizes[entry["image_id"] - 1]
            box = _box(outline, extent, height, width)
            kept.append({"id": len(kept) + 1, **entry, "area": count, "bbox": box, "iscrowd": 0})
        self._objects = kept
        if self._empty:
            places = [one_line(place) for place in self._empty]
            note(f"{len(places)} objects cover no pixel and are left out: {some(places)}")
        if not kept:
            raise InputError(
                f"no object in {len(self.pictures)} image{'s' * (len(self.pictures) != 1)}; annotate some, "
                "or make sure that they are in this folder"
            )

    def document(self) -> dict:
        """COCO instance JSON, after `finish`."""
        return {
            "info": {"description": "converted by minimask"},
            "images": [
                {"id": i, "file_name": p.file_name, "height": p.height, "width": p.width}
                for i, p in enumerate(self.pictures, start=1)
            ],
            "categories": [{"id": number, "name": name} for number, name in self.categories.items()],
            "annotations": self._objects,
        }

    def summary(self) -> str:
        """How much there is: "20 images, 431 objects (cat 400, dog 31)"."""
        counts = Counter(entry["category_id"] for entry in self._objects)
        classes = [f"{name} {counts[number]}" for number, name in self.categories.items()]
        more = f", and {len(classes) - 12} more classes" if len(classes) > 12 else ""
        images, objects = len(self.pictures), len(self._objects)
        counts = f"{images} image{'s' * (images != 1)}, {objects} object{'s' * (objects != 1)}"
        return f"{counts} ({', '.join(classes[:12])}{more})"


def _box(outline: tuple | None, extent: list[int], height: int, width: int) -> list[float]:
    """x, y, width, height: of the part of the polygons' outline in the image or, if none, of the pixels."""
    if outline is not None:
        low, high = np.array(outline[:2]), np.array(outline[2:])
        low, high = np.clip(low, 0, (width, height)), np.clip(high, 0, (width, height))
        if (high - low > 0).all():
            return [round(float(value), DECIMALS) for value in (*low, *(high - low))]
    x1, y1, x2, y2 = extent
    return [x1, y1, x2 - x1, y2 - y1]


def named(name: Any, place: str) -> str:
    """A class's name, stripped.

    Raises
    ------
    InputError
        If it is not a text that can be shown on one line.
    """
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{place}: label must be a name, is {show(name)}; give the object a class")
    name = name.strip()
    if one_line(name) != name:
        raise InputError(
            f"{place}: label {show(name)} has characters that cannot be shown in a line; remove them"
        )
    return name
