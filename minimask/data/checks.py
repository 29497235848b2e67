"""Is this COCO instances JSON sound? Everything is checked here before pycocotools sees it.

pycocotools trusts its input: a NaN in a polygon fills the memory, a coordinate of 1e9 crashes Python, an RLE
of the wrong length decodes to garbage, and an annotation with the id 0 silently costs AP. Each function takes
a part of the document and returns it cleaned, or raises an InputError that names the file and the id and says
what to do.
"""

import json
import math
import os
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minimask.data import images, rle
from minimask.errors import InputError

_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = 80


@dataclass(frozen=True)
class ImageRecord:
    """An entry of the JSON's `images`, with the file that it names."""

    id: int
    file_name: str
    path: Path
    height: int
    width: int


@dataclass(frozen=True)
class Annotation:
    """An entry of the JSON's `annotations`, checked; the mask is a compressed RLE, whatever it was before."""

    id: int  # 0 if the JSON has none
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]  # x, y, width, height
    area: float | None  # None if not given
    crowd: bool
    counts: bytes | None  # None if not read, since the box has no area inside the image
    label: str  # for messages: "annotation 17 (image 4)"


def read_document(path: Path) -> dict:
    """The content of the JSON file: an object with the lists images, annotations and categories."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a byte order mark in front
        document = json.loads(text)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory; give the JSON file itself") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not JSON (not even UTF-8 text); give a COCO instances file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except json.JSONDecodeError as error:
        end = "; the file seems cut off" if error.pos >= len(text.rstrip()) else ""
        raise InputError(f"{path}: is not JSON ({error.msg}, line {error.lineno}{end})") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise InputError(f"{path}: is not JSON that can be read ({error})") from None
    if isinstance(document, list):
        raise InputError(
            f"{path}: is a list (a results file?), not COCO instances, which is an object with the lists "
            "images, annotations and categories"
        )
    if not isinstance(document, dict):
        raise InputError(f"{path}: is {_show(document)}, not COCO instances")
    for key in ("images", "annotations", "categories"):
        if key not in document:
            raise InputError(
                f"{path}: lacks the key '{key}': not COCO instances (it has {_show(list(document))})"
            )
        if not isinstance(document[key], list):
            raise InputError(f"{path}: '{key}' must be a list, is {_show(document[key])}")
    return document


def read_images(entries: list, path: Path, images_dir: Path, notes: list[str]) -> list[ImageRecord]:
    """The images sorted by id; every file exists inside `images_dir` and has the annotated size."""
    if not entries:
        raise InputError(f"{path}: 'images' is empty; there is nothing to use")
    if not images_dir.is_dir():
        why = "is not a directory" if images_dir.exists() else "no such directory"
        raise InputError(f"{images_dir}: {why}; give the folder that the images of {path} are in")
    records: dict[int, ImageRecord] = {}
    for index, entry in enumerate(entries):
        record = _read_image(entry, _label(path, "image", entry, index), images_dir)
        if record.id in records:
            raise InputError(f"{path}: image {record.id} occurs twice; image ids must be unique")
        records[record.id] = record
    _check_files(list(records.values()), path, images_dir)
    _check_sizes(list(records.values()), path, notes)
    return sorted(records.values(), key=lambda record: record.id)


def _read_image(entry: dict, label: str, images_dir: Path) -> ImageRecord:
    image_id = _integer(entry, "id", label)
    name = _value(entry, "file_name", label)
    if not isinstance(name, str) or not name:
        raise InputError(f"{label}: file_name must be a name, is {_show(name)}")
    inside = Path(os.path.normpath(name))
    if inside.is_absolute() or inside.drive or ".." in inside.parts:
        raise InputError(
            f"{label}: file_name {_show(name)} leads out of the images folder; put the file into it"
        )
    height, width = (_integer(entry, key, label) for key in ("height", "width"))
    if height < 1 or width < 1:
        raise InputError(f"{label}: width {width} and height {height} must be at least 1 pixel")
    return ImageRecord(image_id, name, images_dir / inside, height, width)


def _check_files(records: list[ImageRecord], path: Path, images_dir: Path) -> None:
    """Every image is a file; whether Pillow can read it is another question."""
    missing = [record for record in records if not record.path.is_file()]
    if missing:
        first = missing[0]
        count = f"{len(missing)} of {len(records)} images are missing, " if len(missing) > 1 else ""
        what = "a directory, not a file, is" if first.path.is_dir() else "there is no file"
        raise InputError(
            f"{path}: {count}image {first.id}: {what} {_show(first.file_name)} in {images_dir}; "
            "is it the right folder?"
        )


def _check_sizes(records: list[ImageRecord], path: Path, notes: list[str]) -> None:
    """Every image has the annotated size, upright or, which is noted, as stored without its EXIF rotation."""
    as_stored = []
    for record in records:
        height, width, turned = images.read_header(record.path)
        if (record.height, record.width) == ((width, height) if turned else (height, width)):
            continue
        if (record.height, record.width) != (height, width):
            raise wrong_size(path, record, height, width)
        as_stored.append(record.id)
    if as_stored:
        notes.append(
            f"{path}: {len(as_stored)} of {len(records)} images are annotated as stored, without their EXIF "
            f"rotation, and read so: image {_show(as_stored).strip('[]')}"
        )


def wrong_size(path: Path, record: ImageRecord, height: int, width: int) -> InputError:
    """The error for an image file that does not have the size in the JSON."""
    return InputError(
        f"{path}: image {record.id}: {record.path} is {width} x {height}, annotated as {record.width} x "
        f"{record.height} (width x height); annotate the file that is there, or restore the one annotated"
    )


def read_categories(entries: list, path: Path) -> dict[int, str]:
    """Id -> name, sorted by id."""
    if not entries:
        raise InputError(f"{path}: 'categories' is empty; each class needs an id and a name")
    names: dict[int, str] = {}
    for index, entry in enumerate(entries):
        label = _label(path, "category", entry, index)
        category_id, name = _integer(entry, "id", label), _value(entry, "name", label)
        if category_id in names:
            raise InputError(f"{path}: category {category_id} occurs twice; category ids must be unique")
        if not isinstance(name, str) or not name:
            raise InputError(f"{label}: name must be a text, is {_show(name)}")
        names[category_id] = name
    return dict(sorted(names.items()))


def read_annotations(
    entries: list, path: Path, records: Iterable[ImageRecord], category_ids: Iterable[int]
) -> list[Annotation]:
    """The annotations in the order of the file, each checked by itself."""
    sizes = {record.id: (record.height, record.width) for record in records}
    categories = set(category_ids)
    seen: set[int] = set()
    rows = []
    for index, entry in enumerate(entries):
        label = _label(path, "annotation", entry, index)
        number = _integer(entry, "id", label) if "id" in entry else 0
        if "id" in entry and number in seen:
            raise InputError(f"{path}: annotation {number} occurs twice; annotation ids must be unique")
        seen.add(number)
        rows.append(_read_annotation(entry, number, label, path, sizes, categories))
    return rows


def _read_annotation(
    entry: dict,
    number: int,
    label: str,
    path: Path,
    sizes: dict[int, tuple[int, int]],
    categories: set[int],
) -> Annotation:
    """One annotation; `sizes` has height and width of the images by id."""
    image_id = _integer(entry, "image_id", label)
    if image_id not in sizes:
        raise InputError(f"{label}: image_id {image_id} is not among the images; remove it or add the image")
    label += f" (image {image_id})"
    category_id = _integer(entry, "category_id", label)
    if category_id not in categories:
        raise InputError(
            f"{label}: category_id {category_id} is not among the categories {_show(sorted(categories))}"
        )
    bbox = _value(entry, "bbox", label)
    if not _finite_numbers(bbox) or len(bbox) != 4:
        raise InputError(f"{label}: bbox {_show(bbox)} must be four finite numbers: x, y, width, height")
    area = entry.get("area")
    if area is not None and not (_finite_numbers([area]) and area >= 0):
        raise InputError(
            f"{label}: area must be a number of pixels, is {_show(area)}; correct it or leave it out"
        )
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise InputError(f"{label}: iscrowd must be 0 or 1, is {_show(crowd)}")
    height, width = sizes[image_id]
    x, y, w, h = bbox
    in_image = w > 0 and h > 0 and x < width and y < height and x + w > 0 and y + h > 0
    return Annotation(
        id=number,
        image_id=image_id,
        category_id=category_id,
        bbox=tuple(map(float, bbox)),
        area=None if area is None else float(area),
        crowd=bool(crowd),
        counts=_read_mask(entry, label, height, width) if in_image else None,
        label=label.removeprefix(f"{path}: "),
    )


def check_corner_boxes(
    path: Path, rows: list[Annotation], boxes: np.ndarray, extents: np.ndarray, sizes: np.ndarray
) -> None:
    """Refuse boxes given as x1, y1, x2, y2 where COCO means x, y, width, height.

    Such a box is wrong when read as x, y, w, h and right when read as corners: judged by its mask or, if the
    mask fits neither reading, because only the former sticks out of the image.

    Parameters
    ----------
    path : Path
    rows : list of A Annotation
    boxes : (A, 4) float64
        bbox as given.
    extents : (A, 4) int
        The tight boxes of the masks, x1, y1, x2, y2; zeros where a mask is empty.
    sizes : (A, 2) int
        Width and height of each annotation's image.
    """
    a, b = boxes[:, :2], boxes[:, 2:]
    slack = np.maximum(2.0, 0.1 * (extents[:, 2:] - extents[:, :2]))  # (A, 2): boxes are drawn by hand

    def fits(x1y1, x2y2):
        near = (abs(x1y1 - extents[:, :2]) <= slack) & (abs(x2y2 - extents[:, 2:]) <= slack)
        return near.all(axis=1)

    sticks_out = (a + b > sizes + slack).any(axis=1)
    possible = (b > a).all(axis=1) & (b <= sizes + 1).all(axis=1) & (a >= 0).all(axis=1)
    as_meant = fits(np.clip(a, 0, sizes), np.clip(a + b, 0, sizes))  # a box may extend beyond the border
    wrong = possible & ~as_meant & (fits(a, b) | sticks_out)
    if wrong.any():
        row = rows[int(wrong.argmax())]
        x1, y1, x2, y2 = row.bbox
        count = f" (and {wrong.sum() - 1} more)" if wrong.sum() > 1 else ""
        raise InputError(
            f"{path}: {row.label}: bbox {_numbers(row.bbox)} reads like x1, y1, x2, y2; COCO means "
            f"x, y, width, height: write {_numbers((x1, y1, x2 - x1, y2 - y1))}{count}"
        )


def _read_mask(entry: dict, label: str, height: int, width: int) -> bytes:
    """The annotation's mask as a compressed RLE string of the image's size."""
    mask = _value(entry, "segmentation", label)
    if isinstance(mask, dict):
        return _read_rle(mask, label, height, width)
    if not isinstance(mask, list):
        raise InputError(f"{label}: segmentation must be polygons or an RLE, is {_show(mask)}")
    if not mask:
        raise InputError(f"{label}: segmentation is empty; draw the object's mask or remove the annotation")
    for polygon in mask:
        if not isinstance(polygon, list):
            raise InputError(
                f"{label}: segmentation must be a list of polygons [[x, y, ...], ...], is {_show(mask)}"
            )
        _check_polygon(polygon, label, height, width)
    return rle.encode_polygons(mask, height, width)


def _check_polygon(polygon: list, label: str, height: int, width: int) -> None:
    """Three points or more, x, y, x, y, ..., in the image or not far outside."""
    if not _finite_numbers(polygon):
        raise InputError(f"{label}: polygon {_show(polygon)} has a coordinate that is no finite number")
    if len(polygon) % 2:
        raise InputError(
            f"{label}: polygon has an odd number of coordinates ({len(polygon)}); it needs x, y pairs"
        )
    if len(polygon) < 6:
        raise InputError(
            f"{label}: polygon {_show(polygon)} has fewer than three points; remove or complete it"
        )
    for values, size, axis in ((polygon[0::2], width, "x"), (polygon[1::2], height, "y")):
        if min(values) < -size or max(values) > 2 * size:
            raise InputError(
                f"{label}: polygon has {axis} from {min(values):g} to {max(values):g}, far outside the "
                f"image of {width} x {height} pixels; give its coordinates in pixels of this image"
            )


def _read_rle(mask: dict, label: str, height: int, width: int) -> bytes:
    """The same for run lengths, as a list or as a compressed string."""
    size, counts = (_value(mask, key, f"{label}: segmentation") for key in ("size", "counts"))
    if size != [height, width]:
        turned = "; an RLE's size is [height, width]" if size == [width, height] else ""
        raise InputError(f"{label}: mask of size {_show(size)}, but the image is [{height}, {width}]{turned}")
    if isinstance(counts, str):
        try:
            runs = rle.read_runs(counts.encode("ascii"))
        except ValueError as error:  # UnicodeEncodeError is one
            why = "has characters that no RLE has" if isinstance(error, UnicodeError) else error
            raise InputError(f"{label}: the mask's compressed RLE {why}; encode it again") from None
    elif isinstance(counts, list) and all(type(run) is int and 0 <= run <= height * width for run in counts):
        runs = np.array(counts, np.int64)
    else:
        raise InputError(
            f"{label}: the RLE's counts must be a string or whole numbers >= 0, are {_show(counts)}"
        )
    if runs.sum() != height * width:
        raise InputError(
            f"{label}: the RLE's counts add up to {runs.sum()} pixels, the image has {height} x {width} = "
            f"{height * width}; encode the mask again"
        )
    return counts.encode("ascii") if isinstance(counts, str) else rle.encode_runs(counts, height, width)


def _label(path: Path, kind: str, entry, index: int) -> str:
    """What messages call an entry: "train.json: image 17", or its place in the list if it has no id."""
    if not isinstance(entry, dict):
        raise InputError(f"{path}: {kind} number {index + 1} must be an object, is {_show(entry)}")
    number = entry.get("id")
    return f"{path}: {kind} {_show(number)}" if number is not None else f"{path}: {kind} number {index + 1}"


def _show(value) -> str:
    """A value of the JSON on one line, shortened if need be."""
    text = _shortener.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _value(entry: dict, key: str, label: str):
    if entry.get(key) is None:
        raise InputError(f"{label}: lacks the key '{key}'; COCO instances need it")
    return entry[key]


def _integer(entry: dict, key: str, label: str) -> int:
    """A whole number that fits into int64; 4.0 counts, since some tools write ids that way."""
    value = _value(entry, key, label)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or abs(value) >= 2**63:  # bool is a subclass of int
        raise InputError(f"{label}: {key} must be a whole number, is {_show(value)}")
    return value


def _finite_numbers(values) -> bool:
    """Is it a list of finite numbers? An integer beyond the range of float is not one: C does not take it."""
    if not isinstance(values, list):
        return False
    return all(type(v) in (int, float) and -1e300 < v < 1e300 and math.isfinite(v) for v in values)


def _numbers(values: Iterable[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"
