"""YOLO's segmentation text: a line per object, ``class x1 y1 x2 y2 ...``, from 0 to 1 across the image.

Each text belongs to the image with the same name, in the same folder or in ``images/`` beside ``labels/``. An
image without a text has no objects. Class names are in data.yaml (``names``), classes.txt or obj.names.
"""

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from minimask.data.checks import read_text
from minimask.data.convert.document import DECIMALS, Builder, Options, measured
from minimask.data.convert.folder import Folder, Partners, ending, some, stem
from minimask.data.convert.names import ClassNames, read_classes, read_yaml
from minimask.data.fields import show
from minimask.errors import InputError

NAMES = ("data.yaml", "dataset.yaml", "classes.txt", "obj.names")
_SLACK = 0.05  # share of the image by which a coordinate may lie outside; it is moved to the border


def count(folder: Folder) -> int:
    """How many texts with an image hold what YOLO writes, or nothing; 0 if none has a line of YOLO's."""
    texts, _ = _paired(folder)
    looks = [_looks(folder.source / name) for name in texts.values()]
    return sum(look is not None for look in looks) if any(looks) else 0


def _looks(path: Path) -> bool | None:
    """True if the first line is one of YOLO's; False for an empty file, None for any other text."""
    try:
        line = next((line for line in read_text(path, "").splitlines() if line.strip()), None)
        fields = [] if line is None else [float(field) for field in line.split(None, 5)[:5]]
    except ValueError:  # not a number; an InputError is a ValueError, too
        return None
    return False if line is None else (True if len(fields) == 5 else None)


def _paired(folder: Folder) -> tuple[dict[str, str], list[str]]:
    """The text of each image, and the texts without an image."""
    texts = [name for name in folder.files if ending(name) == ".txt"]
    partners, pairs, used = Partners(texts), {}, {}
    for picture in folder.pictures:
        found = partners.of(picture)
        if len(found) > 1:
            raise InputError(
                f"{folder.images / picture}: may belong to {found[0]} or to {found[1]}, which are named "
                "alike; convert the folders one by one, or give --split"
            )
        if found:
            pairs[picture] = found[0]
            used.setdefault(found[0], picture)
            if used[found[0]] != picture:
                raise InputError(
                    f"{folder.source / found[0]}: belongs to {used[found[0]]} or to {picture}, which are "
                    "named alike; rename one of the images"
                )
    return pairs, [name for name in texts if name not in used]


def read(
    folder: Folder,
    options: Options,
    builder: Builder,
    progress: Callable[[list], Iterable],
    note: Callable[[str], None],
) -> None:
    """Read all texts into `builder`; parameters as in `convert`."""
    pairs, alone = _paired(folder)
    for name in alone:
        if name not in NAMES and _looks(folder.source / name):
            raise InputError(
                f"{folder.source / name}: there is no image named {stem(name)} in {folder.images}; add it, "
                "give the folder of images by --images, or remove the text"
            )
    classes = options.classes or _names(folder, note)
    lines = {picture: _lines(folder.source / text) for picture, text in pairs.items()}
    numbers = classes.numbered(0) if classes else _unnamed(lines, note)
    builder.set_categories(tuple(numbers.values()), classes.ids if classes else None)
    without = [picture for picture in folder.pictures if picture not in pairs]
    if without:
        note(f"{len(without)} of {len(folder.pictures)} images have no text, so no objects: {some(without)}")
    reader = _Reader(numbers, options.boxes)
    for picture in progress(folder.pictures):
        builder.add_picture(measured(folder.images / picture, picture))
        for place, fields in lines.get(picture, ()):
            reader.add(builder, place, fields)
    reader.tell(note)


def _names(folder: Folder, note: Callable[[str], None]) -> ClassNames | None:
    """Class names from one of the files `NAMES`: in the folder, in that of the images, or in the one above
    (for ``train/`` of a split set).
    """
    for place in (folder.source, folder.images, folder.source.absolute().parent):
        for name in NAMES:
            path = place / name
            if path.is_file():
                found = read_yaml(path) if path.suffix == ".yaml" else read_classes(str(path))
                note(f"classes from {path}")
                return found
    return None


def _lines(path: Path) -> list[tuple[str, list[str]]]:
    """What messages call each line, and its fields."""
    return [
        (f"{path}: line {number}", line.split())
        for number, line in enumerate(read_text(path, "").splitlines(), start=1)
        if line.strip()
    ]


def _unnamed(lines: dict[str, list], note: Callable[[str], None]) -> dict[int, str]:
    numbers = sorted({_class(fields[0], place) for found in lines.values() for place, fields in found})
    names = {number: f"class {number}" for number in numbers}
    if numbers:
        note(f"no data.yaml, classes.txt or --classes: the classes are called {some([*names.values()])}")
    return names


def _class(text: str, place: str) -> int:
    if not re.fullmatch(r"\d{1,9}(\.0*)?", text):
        raise InputError(
            f"{place}: class {show(text)} must be a whole number from 0; see YOLO's segmentation text"
        )
    return int(float(text))


class _Reader:
    """Reads lines into objects, and counts what was mended on the way."""

    def __init__(self, names: dict[int, str], boxes: bool):
        self.names, self.boxes = names, boxes
        self.rectangles, self.moved = 0, 0

    def add(self, builder: Builder, place: str, fields: list[str]) -> None:
        number = _class(fields[0], place)
        if number not in self.names:
            known = ", ".join(map(str, list(self.names)[:5]))
            raise InputError(
                f"{place}: class {number} has no name (there are {len(self.names)}: "
                f"{known}{', ...' * (len(self.names) > 5)}); name it by --classes or in data.yaml"
            )
        values = [_coordinate(text, place) for text in fields[1:]]
        width, height = builder.pictures[-1].width, builder.pictures[-1].height
        if len(values) == 4:
            values = self._rectangle(values, place)
        elif len(values) < 6 or len(values) % 2:
            raise InputError(f"{place}: {_uneven(len(values))}")
        low, high = min(values), max(values)
        if low < -_SLACK or high > 1 + _SLACK:
            far = low if low < -_SLACK else high
            raise InputError(
                f"{place}: coordinate {far:g} is not within 0..1; divide x by the image's width {width}, y "
                f"by its height {height}"
            )
        inside = [min(max(value, 0.0), 1.0) for value in values]
        self.moved += inside != values
        points = [round(v * (height if i % 2 else width), DECIMALS) for i, v in enumerate(inside)]
        builder.add_object(self.names[number], [points], place)

    def _rectangle(self, values: list[float], place: str) -> list[float]:
        if not self.boxes:
            raise InputError(
                f"{place}: is a box (x, y, width, height), not a polygon: it says nothing of the mask; label "
                "outlines, or take rectangles for masks by --boxes"
            )
        self.rectangles += 1
        x, y, w, h = values
        left, right, top, bottom = x - w / 2, x + w / 2, y - h / 2, y + h / 2
        return [left, top, right, top, right, bottom, left, bottom]

    def tell(self, note: Callable[[str], None]) -> None:
        """Note what was mended."""
        if self.rectangles:
            note(
                f"{self.rectangles} objects have boxes only: their masks are rectangles, and so will be what "
                "is learnt from them"
            )
        if self.moved:
            note(f"{self.moved} objects reached a little beyond their image: cut at its border")


def _coordinate(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{place}: {show(text)} is not a number; a line is: class x1 y1 x2 y2 ...")
    return value


def _uneven(count: int) -> str:
    """The message for a line with this number of coordinates."""
    if count < 6:
        mend = (
            "a box with its score? Remove the score, and see --boxes"
            if count == 5
            else "complete or remove it"
        )
        return f"has {count} numbers after the class, but an outline has at least 6 (three points); {mend}"
    return (
        f"has {count} numbers after the class, an odd number, but points have x and y; remove the score at "
        "its end, if it is a prediction"
    )
