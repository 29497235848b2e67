"""COCO results that another program wrote: checked, and their ids matched with the data's.

pycocotools drops what it does not know without a word, such as detections with category ids that the data
lacks, so that a model with ids from 0 gets an AP of 0. Here each such mistake is found and named.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from minimask.data import rle
from minimask.data.box_checks import like_corners, nearly_all_corners
from minimask.data.checks import read_json
from minimask.data.fields import Fault, finite_numbers, integer, label, read_all, show, value
from minimask.data.mask_checks import check_mask
from minimask.errors import InputError

FAR = 1e6  # pixels; keypoints farther off are refused
IDS = ("as-given", "from-0", "from-1")
"""What category ids of results mean: the data's ids, or its classes in order, numbered from 0 or from 1."""


@dataclass(frozen=True)
class Results:
    """Detections with the data's image and category ids, and what they can be compared by.

    Attributes
    ----------
    detections : list of dict
        image_id, category_id, score, bbox (that of the mask or of the keypoints where there was none) and, if
        `kinds` names them, segmentation, an RLE, and keypoints.
    kinds : tuple of "bbox", "segm", "keypoints"
        What all results in the file have; keypoints only where the data have some.
    notes : list of str
        What was left out, and what may be a mistake.
    """

    detections: list[dict]
    kinds: tuple[str, ...]
    notes: list[str]


def read_results(path: str | Path, document: dict, ids: str | None = None) -> Results:
    """Read a results file.

    Parameters
    ----------
    path : str or Path
        A list of results, or a COCO document whose annotations have scores, as ``predict --json`` writes it;
        the images and categories of such a document are found in the data by their names.
    document : dict
        The data's COCO document: its images, with their sizes, and its categories.
    ids : one of `IDS`, optional
        What the category ids mean. By default the data's ids; a file whose ids look like others is refused.

    Raises
    ------
    InputError
        If the file is no such list, a result is unsound, or none has an image or a category of the data.
    """
    path = Path(path)
    content = read_json(path, "COCO results")
    names: dict[str, dict] = {}
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        names = {
            key: _named(content, key, name) for key, name in (("images", "file_name"), ("categories", "name"))
        }
        content = content["annotations"]
    if not isinstance(content, list):
        raise InputError(
            f"{path}: is {show(content)}, not COCO results: a list of objects with image_id, category_id, "
            "score, and bbox, segmentation or keypoints"
        )
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    images = _matched(names.get("images"), document["images"], "file_name")
    categories = _matched(names.get("categories"), document["categories"], "name")
    count = next((len(names) for c in document["categories"] if (names := c.get("keypoints"))), 0)
    kinds = _kinds(content, path, count)

    def read(index: int, entry: Any, needed: bool) -> dict | None:
        return _read(entry, label(path, "result", entry, index), sizes, images, kinds, count, needed)

    found = read_all(content, read, "results")
    known = [result for result in found if result is not None]
    notes = []
    unread = sum(isinstance(entry, dict) and bool(entry.get("keypoints")) for entry in content)
    if unread and "keypoints" not in kinds:
        why = f"only {unread} of {len(content)} results have some" if count else "the data have none"
        notes.append(f"{path}: keypoints are not compared: {why}")
    if len(known) < len(found):
        notes.append(
            f"{path}: {len(found) - len(known)} of {len(found)} results are of images that the data lacks"
        )
    if found and not known:
        raise InputError(
            f"{path}: none of its image_ids is in the data (first: {show(content[0].get('image_id'))}, where "
            f"the data has {show(sorted(sizes)[:4])} ...); give the data that was predicted, or write its "
            "image ids"
        )
    detections = _with_ids(known, path, document["categories"], categories, ids, notes)
    notes += _suspicions(detections, kinds, sizes, path)
    return Results(detections, kinds, notes)


def _kinds(content: list, path: Path, count: int) -> tuple[str, ...]:
    """What all results have; `count` is the number of the data's keypoints."""
    entries = [entry for entry in content if isinstance(entry, dict)]
    keys = {"bbox": "bbox", "segm": "segmentation"} | ({"keypoints": "keypoints"} if count else {})
    kinds = [kind for kind, key in keys.items() if all(entry.get(key) for entry in entries)]
    if not kinds and all(entry.get("keypoints") for entry in entries):
        raise InputError(
            f"{path}: its results have keypoints alone, and the data's categories name none: nothing can be "
            "compared; give the data that has the keypoints"
        )
    if not kinds:
        lacking = next(
            i for i, entry in enumerate(content) if isinstance(entry, dict) and not entry.get("bbox")
        )
        raise InputError(
            f"{path}: result number {lacking + 1} has no bbox, and not all have a segmentation: nothing can "
            "be compared; all results need one or the other"
        )
    return tuple(kinds)


def _read(
    entry: dict,
    place: str,
    sizes: dict[int, tuple[int, int]],
    images: Callable[[int], int],
    kinds: tuple[str, ...],
    count: int,
    needed: bool,
) -> dict | None:
    """One result, checked; None if it is of an image that the data lacks."""
    image_id = images(integer(entry, "image_id", place))
    if image_id not in sizes:
        return None
    place += f" (image {image_id})"
    category_id = integer(entry, "category_id", place)
    score = value(entry, "score", place)
    if not finite_numbers([score]):
        raise Fault(
            f"{place}: score must be a finite number, is {show(score)}; results need one each", "score"
        )
    result = {"image_id": image_id, "category_id": category_id, "score": float(score)}
    box, size = entry.get("bbox"), sizes[image_id]
    if box is not None and (not finite_numbers(box) or len(box) != 4):
        raise Fault(f"{place}: bbox {show(box)} must be four finite numbers: x, y, width, height", "bbox")
    if box and min(box[2:]) < 0:
        raise Fault(
            f"{place}: bbox {show(box)} has a negative width or height; write x, y of its upper left corner, "
            "then its size",
            "bbox size",
        )
    if "segm" in kinds:
        counts = check_mask(entry, place, *size).encode(*size)
        mask = {"size": list(size), "counts": counts}
        result["segmentation"] = {"size": list(size), "counts": counts.decode("ascii")}
        if not box and needed:
            _, extents = rle.measure([mask])
            x1, y1, x2, y2 = extents[0].tolist()
            box = [x1, y1, x2 - x1, y2 - y1]
    if "keypoints" in kinds:
        result["keypoints"] = _keypoints(entry["keypoints"], place, count)
        if not box:
            xy = np.reshape(result["keypoints"], (-1, 3))[:, :2]  # (K, 2)
            box = [*xy.min(axis=0), *np.ptp(xy, axis=0)]
    result["bbox"] = [float(number) for number in box] if box else [0.0] * 4
    return result


def _keypoints(values: Any, place: str, count: int) -> list[float]:
    if not finite_numbers(values) or len(values) != 3 * count:
        number = f"has {len(values)}" if isinstance(values, list) else f"is {show(values)}"
        raise Fault(
            f"{place}: keypoints must be {3 * count} finite numbers, x, y and visibility of each of the "
            f"data's {count}; it {number}",
            "keypoints",
        )
    if any(abs(value) > FAR for k, value in enumerate(values) if k % 3 < 2):
        raise Fault(f"{place}: keypoints lie more than {FAR:g} pixels off; correct or remove them", "far")
    return [float(value) for value in values]


def _named(content: dict, key: str, name: str) -> dict[int, str]:
    """Id -> name of a document's images or categories; entries without either are skipped."""
    entries = content.get(key) if isinstance(content.get(key), list) else []
    sound = (entry for entry in entries if isinstance(entry, dict) and type(entry.get("id")) is int)
    return {entry["id"]: entry[name] for entry in sound if isinstance(entry.get(name), str)}


def _matched(theirs: dict[int, str] | None, ours: Iterable[dict], name: str) -> Callable[[int], int]:
    """From an id of the results' document to the data's, by name; without names, ids stay as they are."""
    if not theirs:
        return lambda number: number

    def short(text: str) -> str:
        return PurePosixPath(text.replace("\\", "/")).name if name == "file_name" else text

    of_name = {short(str(entry.get(name))): entry["id"] for entry in ours}
    same = {number: of_name[short(text)] for number, text in theirs.items() if short(text) in of_name}
    return lambda number: same.get(number, -1 if number in theirs else number)


def _with_ids(
    results: list[dict],
    path: Path,
    categories: list[dict],
    matched: Callable[[int], int],
    ids: str | None,
    notes: list[str],
) -> list[dict]:
    """The results whose category the data has, under the data's id."""
    known = sorted(category["id"] for category in categories)
    names = {category["id"]: category["name"] for category in categories}
    if ids in ("from-0", "from-1"):
        first = int(ids[-1])
        of_place = dict(enumerate(known, start=first))
        results = [r | {"category_id": of_place.get(r["category_id"], -1)} for r in results]
    else:
        results = [result | {"category_id": matched(result["category_id"])} for result in results]
    given = {result["category_id"] for result in results}
    unknown = given - set(known)
    if unknown and ids is None:
        _refuse_other_ids(given, known, names, path)
    if given and given == unknown:
        raise InputError(
            f"{path}: no category id in common: the results have {show(sorted(given)[:8])}, the data "
            f"{show(known[:8])}; write the data's ids, or say with --category-ids from-0 or from-1 that they "
            "number its classes in order"
        )
    if unknown:
        count = sum(result["category_id"] in unknown for result in results)
        notes.append(
            f"{path}: {count} of {len(results)} results have category ids that the data lacks, and do not "
            f"count: {show(sorted(unknown)[:8])}"
        )
    return [result for result in results if result["category_id"] not in unknown]


def _refuse_other_ids(given: set[int], known: list[int], names: dict[int, str], path: Path) -> None:
    """Refuse ids that number the classes in order, where the data's do not, or from another number."""
    count, first = len(known), names[known[0]]
    if 0 in given and 0 not in known and max(given) < count and min(given) == 0:
        raise InputError(
            f"{path}: category ids count from 0 (to {max(given)}), while the data's begin at {known[0]} "
            f"({first}); --category-ids from-0 takes 0 for {first}"
        )
    if known != list(range(1, count + 1)) and min(given) >= 1 and max(given) <= count:
        gap = min(given - set(known))
        raise InputError(
            f"{path}: category ids lie between 1 and {count}, as if they numbered the classes, while the "
            f"data's {count} ids have gaps (there is no {gap}, and the last is {known[-1]}, "
            f"{names[known[-1]]}); --category-ids from-1 takes them in order"
        )


def _suspicions(detections: list[dict], kinds: tuple[str, ...], sizes: dict, path: Path) -> list[str]:
    """What may be a mistake although pycocotools accepts it."""
    notes = []
    if looks_like_corners(detections, kinds, sizes):
        notes.append(
            f"{path}: bbox {show(detections[0]['bbox'])} and most others read like x1, y1, x2, y2; COCO "
            "means x, y, width, height: convert them"
        )
    scores = {detection["score"] for detection in detections}
    if len(detections) > 1 and len(scores) == 1:
        notes.append(
            f"{path}: all {len(detections)} scores are {next(iter(scores)):g}: nothing ranks the detections, "
            "and AP depends on their order in the file"
        )
    return notes


def looks_like_corners(detections: list[dict], kinds: Iterable[str], sizes: dict) -> bool:
    """Whether nearly all boxes read like x1, y1, x2, y2; `sizes` is height and width by image id."""
    if not detections:
        return False
    boxes = np.array([detection["bbox"] for detection in detections])
    width_height = np.array([sizes[detection["image_id"]][::-1] for detection in detections])
    extents = np.zeros((len(boxes), 4), int)
    if "segm" in kinds:
        _, extents = rle.measure(
            [d["segmentation"] | {"counts": d["segmentation"]["counts"].encode("ascii")} for d in detections]
        )
    return nearly_all_corners(*like_corners(boxes, extents, width_height))
