"""Is this COCO instances JSON sound? Everything is checked here before pycocotools sees it.

pycocotools trusts its input: a NaN in a polygon fills the memory, a coordinate of 1e9 crashes Python, an RLE
of the wrong length decodes to garbage, and an annotation with the id 0 silently costs AP. Each function takes
a part of the document and returns it cleaned, or raises an InputError that names the file and the id and says
what to do. `image_entries` checks the images, `mask_checks` the masks, `box_checks` all boxes together.
"""

import codecs
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minimask.data import formats
from minimask.data.fields import Fault, Faults, finite_numbers, integer, label, read_all, refuse, show, value
from minimask.data.image_entries import ImageRecord
from minimask.data.keypoint_checks import check_keypoints
from minimask.data.mask_checks import check_mask
from minimask.errors import InputError, one_line
from minimask.files import is_address, open_regular


@dataclass(frozen=True)
class Annotation:
    """An entry of the JSON's `annotations`, checked; the mask is a compressed RLE, whatever it was before."""

    id: int  # 0 if the JSON has none
    has_id: bool
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]  # x, y, width, height
    area: float | None  # None if not given, or 0
    crowd: bool
    counts: bytes | None  # None if not read, since the box has no area inside the image
    # x1, y1, x2, y2 around the polygons' points; None for an RLE
    outline: tuple[float, float, float, float] | None
    label: str  # for messages: "annotation 17 (image 4)"
    keypoints: list[float] | None = None  # x, y, visibility, ... as in the JSON; None if there are none
    num_keypoints: float | None = None  # how many the JSON says are labelled
    unread_keypoints: bool = False  # it has some, but its category does not name them


def read_document(path: Path) -> dict:
    """The content of the JSON file: an object with the lists images, annotations and categories."""
    document = read_json(path)
    if isinstance(document, list):
        raise InputError(
            f"{path}: is a list (a results file?), not COCO instances, which is an object with the lists "
            "images, annotations and categories"
        )
    if not isinstance(document, dict):
        raise InputError(f"{path}: is {show(document)}, not COCO instances")
    for key in ("images", "annotations", "categories"):
        if key not in document:
            raise InputError(
                f"{path}: lacks the key '{key}': not COCO instances (it has {show(list(document))})"
            )
        if not isinstance(document[key], list):
            raise InputError(f"{path}: '{key}' must be a list, is {show(document[key])}")
    return document


def read_json(path: Path, instead: str = "COCO instances") -> Any:
    """The content of a JSON file, whatever it is; `instead` as in `read_text`.

    Raises
    ------
    InputError
        If the file cannot be read, or is not JSON.
    """
    text = read_text(path, instead)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if other := formats.instead(text[: formats.HEAD].encode(), path):
            raise InputError(f"{path}: {other}") from None
        end = "; the file seems cut off" if error.pos >= len(text.rstrip()) else ""
        raise InputError(f"{path}: is not JSON ({error.msg}, line {error.lineno}{end})") from None
    except RecursionError:
        raise InputError(
            f"{path}: is not JSON that can be read (thousands of brackets in brackets)"
        ) from None
    except ValueError:
        raise InputError(f"{path}: is not JSON that can be read (a number of thousands of digits)") from None


def read_text(path: Path, instead: str = "COCO instances") -> str:
    """The text of a UTF-8 file.

    Parameters
    ----------
    path : Path
    instead : str
        Which kind of JSON to ask for if the file is not even text; empty if it need not be JSON.

    Raises
    ------
    InputError
        If the file cannot be read, or is not UTF-8.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
    except FileNotFoundError:
        why = "; an address of the web is not read: download it" if is_address(path) else ""
        raise InputError(f"{path}: no such file{why}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory; give the file itself") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        if not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" not in content[:4]:
            return content.decode("utf-8-sig")  # some editors put a byte order mark in front
    except UnicodeDecodeError:
        pass
    if not instead:
        raise InputError(f"{path}: is not UTF-8 text; save it as UTF-8")
    raise InputError(f"{path}: {_of_another_encoding(content, path, instead)}")


def _of_another_encoding(content: bytes, path: Path, instead: str) -> str:
    """The message for a file that is not UTF-8: whether it is JSON in another encoding, or not JSON."""
    wide = json.detect_encoding(content)
    if wide != "utf-8" and content.decode(wide, "replace").lstrip("\ufeff \t\r\n").startswith(("{", "[")):
        return f"is {wide[:6].upper()} text; save it as UTF-8"
    try:
        json.loads(content.decode("latin-1"))
    except (ValueError, RecursionError):
        unknown = f"is not JSON (not even UTF-8 text); give a file of {instead}"
        return formats.instead(content[: formats.HEAD], path) or unknown
    return "is not UTF-8 text, but perhaps of Windows (cp1252); save it as UTF-8"


def read_categories(entries: list, path: Path, faults: Faults | None = None) -> dict[int, str]:
    """Id -> name, sorted by id. Names are stripped of spaces and can be printed on one line."""
    if not entries:
        raise InputError(f"{path}: 'categories' is empty; each class needs an id and a name")

    def read(index: int, entry: Any, _: bool) -> tuple[int, str]:
        place = label(path, "category", entry, index)
        return integer(entry, "id", place), _name(value(entry, "name", place), place)

    names: dict[int, str] = {}
    for category_id, name in read_all(entries, read, "categories", faults):
        if category_id in names:
            text = f"{path}: category {category_id} occurs twice; category ids must be unique"
            refuse(faults, Fault(text, "id twice"), total=len(entries), what="categories")
            continue
        if name in names.values():
            other = next(other for other, same in names.items() if same == name)
            text = (
                f"{path}: categories {other} and {category_id} are both named {show(name)}; rename one, or "
                "make them one category"
            )
            refuse(faults, Fault(text, "name twice"), total=len(entries), what="categories")
            continue
        names[category_id] = name
    return dict(sorted(names.items()))


def _name(name: Any, place: str) -> str:
    if not isinstance(name, str) or not name.strip():
        raise Fault(f"{place}: name must be a text, is {show(name)}", "name")
    name = name.strip()
    if one_line(name) != name:
        raise Fault(
            f"{place}: name {show(name)} has characters that cannot be shown in a line; remove them", "name"
        )
    return name


def read_annotations(
    entries: list,
    path: Path,
    records: Iterable[ImageRecord],
    category_ids: Iterable[int],
    keypoints: dict[int, int | None] | None = None,
    faults: Faults | None = None,
) -> list[Annotation]:
    """The annotations in the file's order, each checked by itself; `faults` collect what would be raised.

    `keypoints` has the number of keypoints for each category that has any, None where it is not known.
    """
    sizes = {record.id: (record.height, record.width) for record in records}
    categories = dict.fromkeys(category_ids, 0) | (keypoints or {})

    def read(index: int, entry: Any, needed: bool) -> Annotation | None:
        place = label(path, "annotation", entry, index)
        return _read_annotation(entry, place, path, sizes, categories, needed)

    rows = read_all(entries, read, "annotations", faults)
    numbered = [row for row in rows if row.has_id]
    seen: set[int] = set()
    for row in numbered:
        if row.id in seen:
            text = f"{path}: annotation {row.id} occurs twice; annotation ids must be unique"
            count = len(numbered) - len({row.id for row in numbered})
            refuse(faults, Fault(text, "id twice"), count, len(rows), "annotations")
            break
        seen.add(row.id)
    return rows


def _read_annotation(
    entry: dict,
    place: str,
    path: Path,
    sizes: dict[int, tuple[int, int]],
    categories: dict[int, int | None],
    needed: bool,
) -> Annotation | None:
    """One annotation, checked; None if it is not `needed`.

    `sizes` has the height and width of each image by id, and `categories` the number of keypoints of each
    category by id, None where that is not known.
    """
    number = integer(entry, "id", place) if "id" in entry else 0
    image_id = integer(entry, "image_id", place)
    if image_id not in sizes:
        raise Fault(
            f"{place}: image_id {image_id} is not among the images; remove it or add the image", "image_id"
        )
    place += f" (image {image_id})"
    category_id = integer(entry, "category_id", place)
    if category_id not in categories:
        known = show(sorted(categories))
        raise Fault(f"{place}: category_id {category_id} is not among the categories {known}", "category_id")
    bbox = value(entry, "bbox", place)
    if not finite_numbers(bbox) or len(bbox) != 4:
        raise Fault(f"{place}: bbox {show(bbox)} must be four finite numbers: x, y, width, height", "bbox")
    area = entry.get("area")
    if area is not None and not (finite_numbers([area]) and area >= 0):
        raise Fault(
            f"{place}: area must be a number of pixels, is {show(area)}; correct it or leave it out", "area"
        )
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise Fault(f"{place}: iscrowd must be 0 or 1, is {show(crowd)}", "iscrowd")
    height, width = sizes[image_id]
    keypoints = check_keypoints(entry, place, categories[category_id], height, width)
    mask = check_mask(entry, place, height, width) if _has_area(bbox, height, width) else None
    if not needed:
        return None
    return Annotation(
        id=number,
        has_id="id" in entry,
        image_id=image_id,
        category_id=category_id,
        bbox=tuple(map(float, bbox)),
        area=float(area) if area else None,
        crowd=bool(crowd),
        counts=mask and mask.encode(height, width),
        outline=mask and mask.outline,
        label=place.removeprefix(f"{path}: "),
        keypoints=keypoints,
        num_keypoints=entry.get("num_keypoints") if keypoints else None,
        unread_keypoints=bool(entry.get("keypoints")) and categories[category_id] == 0,
    )


def _has_area(bbox: list[float], height: int, width: int) -> bool:
    """Whether a box's sides inside the image are long enough for float32, also after scaling and moving.

    A float32 coordinate is exact to a 2^24th of the image's size at worst; a side must have 16 such steps.
    """
    x, y, w, h = bbox
    if min(w, h) <= 0:
        return False
    ends = ((x, width), (x + w, width), (y, height), (y + h, height))
    x1, x2, y1, y2 = (np.float32(min(max(end, 0), size)) for end, size in ends)  # as `corners_in_image`
    return bool(min(x2 - x1, y2 - y1) > max(height, width) * 2.0**-20)


def corners_in_image(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """(A, 4) float64 x, y, width, height -> float32 x1, y1, x2, y2 clipped to the image."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return np.clip(corners, 0, [width, height] * 2).astype(np.float32)
