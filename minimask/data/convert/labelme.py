"""labelme JSON: one file per image, with its shapes as lists of points.

Files of all versions are read: without shape_type, which the first ones did not have, everything is a
polygon; without imageHeight and imageWidth, the image decides; masks (from 5.3 on) are PNGs inside the JSON.
Shapes with the same class and group_id are parts of one object. An image that is only inside the JSON is
written to the folder of images.
"""

import base64
import binascii
import io
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minimask.data import images, rle
from minimask.data.checks import read_json
from minimask.data.convert.document import DECIMALS, Builder, Options, Picture, measured, named
from minimask.data.convert.folder import ENDINGS, Folder, Partners, ending, some
from minimask.data.fields import finite_numbers, show
from minimask.errors import InputError
from minimask.files import replacing

_LOOKED_AT = 50  # JSON files, to find out whether any are labelme's
_NO_AREA = ("line", "linestrip", "point", "points")
_FOUR_CORNERS = ("oriented_rectangle", "rotation")  # polygons, by another name
_GAP = 0.1  # pixels between a circle and the polygon that stands for it
_KINDS = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"BM": ".bmp",
    b"GIF8": ".gif",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


@dataclass(frozen=True)
class _File:
    """What is in a JSON file."""

    path: Path
    picture: str  # its image, relative to the folder of images
    shapes: list[tuple[str, dict]]  # what messages call each, and the shape
    size: tuple[int, int] | None  # height and width, where the file has them
    embedded: images.Header | None  # of an image that is only inside the file


def count(folder: Folder) -> int:
    """How many JSON files there are, if one of the first is labelme's."""
    names = [name for name in folder.files if ending(name) == ".json"]
    for name in names[:_LOOKED_AT]:
        try:
            document = read_json(folder.source / name, "labelme JSON")
        except InputError:
            continue
        if _is_labelme(document):
            return len(names)
    return 0


def _is_labelme(document: Any) -> bool:
    return isinstance(document, dict) and "shapes" in document


def read(
    folder: Folder,
    options: Options,
    builder: Builder,
    progress: Callable[[list], Iterable],
    note: Callable[[str], None],
) -> None:
    """Read all JSON files into `builder`; parameters as in `convert`."""
    reader = _Reader(folder)
    names = [name for name in folder.files if ending(name) == ".json"]
    for name in names:
        reader.look(folder.source / name)
    if not reader.files:
        raise InputError(
            f"{folder.source}: holds no labelme JSON (a file with the list 'shapes'); see --format"
        )
    classes = _classes(reader.files, options)
    builder.set_categories(classes, options.classes.ids if options.classes else None)
    for file in progress(reader.files):
        reader.add(builder, file, frozenset(classes))
    reader.write_embedded()
    used = {file.picture for file in reader.files}
    without = [picture for picture in folder.pictures if picture not in used]
    if without:
        note(f"{len(without)} images have no JSON and are left out: {some(without)}")
    reader.tell(note)


def _classes(files: list[_File], options: Options) -> tuple[str, ...]:
    """All labels in alphabetical order, or the names given, which labels must be among."""
    if options.classes:
        return options.classes.names
    found = {
        named(shape.get("label"), place) for file in files for place, shape in file.shapes if _has_area(shape)
    }
    return tuple(sorted(found))


def _has_area(shape: dict) -> bool:
    return shape.get("shape_type") not in _NO_AREA


class _Reader:
    """Reads one JSON file after another, and counts what is left out."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self.files: list[_File] = []
        self.known = frozenset(folder.pictures)
        self.by_name = Partners(folder.pictures, lambda name: Path(name).name)
        self.by_stem = Partners(folder.pictures)
        self.of_picture: dict[str, Path] = {}
        self.without_area: list[str] = []
        self.others: list[str] = []

    def look(self, path: Path) -> None:
        """Read a file's fields; any other kind of JSON is passed over."""
        document = read_json(path, "labelme JSON")
        if not _is_labelme(document):
            self.others.append(path.name)
            return
        if not isinstance(document["shapes"], list):
            raise InputError(
                f"{path}: shapes must be a list, is {show(document['shapes'])}; save it with labelme"
            )
        shapes = []
        for number, shape in enumerate(document["shapes"], start=1):
            if not isinstance(shape, dict):
                raise InputError(
                    f"{path}: shape {number} must be an object, is {show(shape)}; save it with labelme"
                )
            shapes.append((f"{path}: shape {number} ({show(shape.get('label'))})", shape))
        picture, embedded = self._picture(path, document)
        other = self.of_picture.setdefault(picture, path)
        if other != path:
            raise InputError(
                f"{path}: is of the image {picture}, and so is {other}; join them, or remove one"
            )
        size = [document.get(key) for key in ("imageHeight", "imageWidth")]
        if any(side is not None and (type(side) is not int or side < 1) for side in size):
            raise InputError(
                f"{path}: imageHeight and imageWidth must be numbers of pixels, are {show(size)}"
            )
        drawn = None if None in size else tuple(size)
        self.files.append(_File(path, picture, shapes, drawn, embedded))

    def _picture(self, path: Path, document: dict) -> tuple[str, images.Header | None]:
        """The image of a file, relative to the folder of images; its header if it is only inside the file."""
        said = document.get("imagePath")
        if said is not None and not isinstance(said, str):
            raise InputError(f"{path}: imagePath must be a name, is {show(said)}; name the image")
        said = (said or "").replace("\\", "/")
        if "\0" in said:
            raise InputError(f"{path}: imagePath {show(said)} is not a file name; name the image")
        beside = os.path.relpath(path.parent, self.folder.images) if said else ""
        direct = Path(os.path.normpath(Path(beside, said))).as_posix()
        if direct in self.known:
            return direct, None
        mine = path.relative_to(self.folder.source).as_posix()
        # The image was moved, named by its path on another computer, or renamed together with its JSON.
        found = self.by_name.of(mine, Path(said).name) or self.by_stem.of(mine)
        if len(found) == 1:
            return found[0], None
        if len(found) > 1:
            raise InputError(
                f"{path}: imagePath {show(said)} may be {found[0]} or {found[1]}; write which one"
            )
        if not document.get("imageData"):
            raise InputError(
                f"{path}: there is no image {show(said)} in {self.folder.images}, and imageData is empty; "
                "put the image there, or give its folder by --images"
            )
        return self._embedded(path, said, document["imageData"])

    def _embedded(self, path: Path, said: str, data: Any) -> tuple[str, images.Header]:
        """The name that an image inside a file will have, and its header."""
        content = _decoded(data, f"{path}: imageData")
        suffix = next((suffix for start, suffix in _KINDS.items() if content.startswith(start)), None)
        if suffix is None:
            raise InputError(
                f"{path}: imageData is not an image of a known kind; put the image itself beside the JSON"
            )
        header = images.examine(Path(f"{path}: imageData"), io.BytesIO(content))
        return f"{path.stem}{ending(said) if ending(said) in ENDINGS else suffix}", header

    def write_embedded(self) -> None:
        """Write the images that are only inside their JSON to the folder of images."""
        for file in self.files:
            if file.embedded:
                content = _decoded(read_json(file.path).get("imageData"), f"{file.path}: imageData")
                with replacing(self.folder.images / file.picture) as target:
                    target.write(content)

    def add(self, builder: Builder, file: _File, classes: frozenset[str]) -> None:
        """Add the objects of a file."""
        path, said = self.folder.images / file.picture, "imageWidth and imageHeight say it is drawn"
        picture = measured(path, file.picture, file.size, str(file.path), said, file.embedded)
        builder.add_picture(picture)
        objects: dict[tuple, tuple[str, list]] = {}
        for number, (place, shape) in enumerate(file.shapes):
            if not _has_area(shape):
                self.without_area.append(place)
                continue
            name = named(shape.get("label"), place)
            if name not in classes:
                raise InputError(
                    f"{place}: the label is not among the classes ({', '.join(sorted(classes)[:8])}); add it "
                    "to --classes, or correct it"
                )
            group = shape.get("group_id")
            key = (name, number) if group is None else (name, "group", str(group))
            objects.setdefault(key, (place, []))[1].append(_part(shape, place, picture))
        for (name, *_), (place, parts) in objects.items():
            builder.add_object(name, parts, place)

    def tell(self, note: Callable[[str], None]) -> None:
        """Note what was left out or written."""
        if self.without_area:
            note(
                f"{len(self.without_area)} points and lines have no area and are left out: "
                f"{some([place.removeprefix(f'{self.folder.source}/') for place in self.without_area])}"
            )
        written = [file.picture for file in self.files if file.embedded]
        if written:
            note(
                f"{len(written)} images were only inside their JSON, and now lie in {self.folder.images}: "
                f"{some(written)}"
            )
        if self.others:
            note(
                f"{len(self.others)} JSON files are not of labelme and were passed over: {some(self.others)}"
            )


def _part(shape: dict, place: str, picture: Picture) -> list | dict:
    """A shape as a flat polygon or an RLE."""
    kind = shape.get("shape_type") or "polygon"
    points = shape.get("points")
    sound = isinstance(points, list) and all(finite_numbers(point) and len(point) == 2 for point in points)
    if not sound:
        raise InputError(f"{place}: points must be a list of [x, y], is {show(points)}; draw it again")
    if kind == "mask":
        return _mask(shape, points, place, picture)
    if kind == "circle":
        return _circle(points, place)
    if kind == "rectangle" and len(points) == 2:
        (x1, y1), (x2, y2) = points
        return [x1, y1, x2, y1, x2, y2, x1, y2]
    if kind in ("polygon", "rectangle", *_FOUR_CORNERS):
        if len(points) < 3:
            raise InputError(
                f"{place}: {kind} has {len(points)} points, where an area has 3 at least; complete it"
            )
        return [value for point in points for value in point]
    raise InputError(
        f"{place}: shape_type {show(kind)} is unknown; polygon, rectangle, circle and mask are read. Draw it "
        "as a polygon"
    )


def _circle(points: list, place: str) -> list[float]:
    """A polygon with a circle's area, within `_GAP` of it; given are its centre and a point on its line."""
    if len(points) != 2:
        raise InputError(
            f"{place}: circle has {len(points)} points, but needs its centre and one on its line"
        )
    (x, y), edge = points
    radius = math.dist((x, y), edge)
    gap = min(max(_GAP / max(radius, 1e-6), 1e-7), 1)  # more for a circle larger than any image
    corners = max(12, math.ceil(math.pi / math.acos(1 - gap)))
    # The radius that makes the polygon's area the circle's.
    radius *= math.sqrt(2 * math.pi / corners / math.sin(2 * math.pi / corners))
    angles = 2 * np.pi * np.arange(corners) / corners
    circle = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)  # (corners, 2)
    return np.round(circle, DECIMALS).ravel().tolist()


def _mask(shape: dict, points: list, place: str, picture: Picture) -> dict:
    """The RLE of a PNG whose upper left corner lies at the first of two points."""
    if len(points) != 2:
        raise InputError(f"{place}: mask has {len(points)} points, but needs two corners; draw it again")
    content = _decoded(shape.get("mask"), f"{place}: mask")
    patch = images.decode_values(Path(f"{place}: mask"), io.BytesIO(content))
    patch = patch if patch.ndim == 2 else patch.any(axis=2)
    x, y = (int(value) for value in points[0])
    whole = np.zeros((picture.height, picture.width), np.uint8)
    low, high = (
        (max(y, 0), max(x, 0)),
        (min(y + patch.shape[0], picture.height), min(x + patch.shape[1], picture.width)),
    )
    if high[0] > low[0] and high[1] > low[1]:
        inside = patch[low[0] - y : high[0] - y, low[1] - x : high[1] - x]
        whole[low[0] : high[0], low[1] : high[1]] = inside != 0
    counts = rle.encode_mask(whole).decode("ascii")
    return {"size": [picture.height, picture.width], "counts": counts}


def _decoded(data: Any, place: str) -> bytes:
    """The bytes that base64 text stands for."""
    try:
        if not isinstance(data, str) or not data:
            raise ValueError
        return base64.b64decode(data.partition(",")[2] if data.startswith("data:") else data, validate=False)
    except (ValueError, binascii.Error):
        raise InputError(
            f"{place} must be a picture in base64, is {show(data)}; save the file with labelme"
        ) from None
