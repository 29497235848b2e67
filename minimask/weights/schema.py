"""What a checkpoint's metadata may say: every field with its type and range, checked before it is used."""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from minimask.config import from_dict, shown
from minimask.errors import InputError, one_line

FORMAT = 1
STEPS_MOST = 2**53  # up to here a float holds every whole number, as other readers of the JSON need


class Rule(NamedTuple):
    """What a field must be, as a test and in words."""

    holds: Callable[[Any], bool]
    words: str


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high  # bool is a subclass of int


def _list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _texts_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _names(value: Any) -> bool:
    plain = _list_of(str, value) and all(name and one_line(name) == name for name in value)
    return plain and len(set(value)) == len(value)


def _ids(value: Any) -> bool:
    return _list_of(int, value) and all(abs(i) < 2**63 for i in value) and len(set(value)) == len(value)


def _pairs(value: Any) -> bool:
    return isinstance(value, list) and all(
        _list_of(int, pair) and len(pair) == 2 and min(pair) >= 0 for pair in value
    )


def _rising(value: Any) -> bool:
    numbers = isinstance(value, list) and all(type(x) in (int, float) for x in value)
    return numbers and len(value) in (0, 3) and all(0 < x < 1e9 for x in value) and value == sorted(value)


FIELDS = {
    "step": Rule(_whole(0, STEPS_MOST), "a whole number from 0 to 2^53"),
    "seed": Rule(_whole(0, 2**63 - 1), "a whole number from 0 to 2^63 - 1"),
    "config": Rule(lambda value: isinstance(value, dict), "the sections of a configuration"),
    "class_names": Rule(_names, "a list of different names without control characters"),
    "category_ids": Rule(_ids, "a list of different whole numbers"),
    "data": Rule(_texts_by_name, "texts by name"),
    "environment": Rule(_texts_by_name, "texts by name"),
}

# Written unless empty; absent from older checkpoints.
OPTIONAL = {
    "keypoint_names": Rule(_names, FIELDS["class_names"].words),
    "skeleton": Rule(_pairs, "a list of pairs of whole numbers from 0"),
    "object_sides": Rule(_rising, "three rising numbers above 0"),
}


def read_metadata(text: str, path: Any) -> dict[str, Any]:
    """Parse and check the metadata of a checkpoint.

    Parameters
    ----------
    text : str
        JSON.
    path : str or Path
        Named at the beginning of the error.

    Returns
    -------
    dict
        `FIELDS`, `OPTIONAL` (empty lists where absent), and ``arrays``, the list of the entries' names.

    Raises
    ------
    InputError
        If it is not JSON, has another format, lacks a field, or has one with a wrong value.
    """
    try:
        values = json.loads(text)
        version = values.pop("format")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a checkpoint of minimask (no readable entry 'metadata')") from error
    if type(version) is int and version > FORMAT:
        raise InputError(
            f"{path}: has checkpoint format {shown(version)}, this minimask reads {FORMAT}; update it"
        )
    for name in OPTIONAL:
        values.setdefault(name, [])
    wanted = {**FIELDS, **OPTIONAL, "arrays": Rule(lambda value: _list_of(str, value), "a list of names")}
    if type(version) is not int or version != FORMAT or values.keys() != wanted.keys():
        names = ", ".join(["format", *(name for name in wanted if name not in OPTIONAL)])
        raise InputError(
            f"{path}: damaged (its metadata does not have exactly the fields {names}); use another copy of it"
        )
    for name, rule in wanted.items():
        if not rule.holds(values[name]):
            raise _wrong(path, name, f"must be {rule.words}, is {shown(values[name])}")
    if len(values["category_ids"]) != len(values["class_names"]):
        counts = f"{len(values['category_ids'])} ids for {len(values['class_names'])} class names"
        raise _wrong(path, "category_ids", f"has {counts}")
    keypoints = len(values["keypoint_names"])
    if any(k >= keypoints for pair in values["skeleton"] for k in pair):
        raise _wrong(path, "skeleton", f"joins keypoints beyond the {keypoints} there are")
    from_dict(values["config"], str(path))
    return values


def check_classes(class_names: Sequence[str], category_ids: Sequence[int], whose: object) -> None:
    """Check that a checkpoint can hold a data set's classes, before a model is trained for them.

    Raises
    ------
    InputError
        If names or ids break the rules in `FIELDS`, or their numbers differ.
    """
    found = {"class_names": list(class_names), "category_ids": list(category_ids)}
    for name, value in found.items():
        if not FIELDS[name].holds(value):
            raise InputError(f"{whose}: {name} must be {FIELDS[name].words}, is {shown(value)}; change them")
    if len(found["class_names"]) != len(found["category_ids"]):
        raise InputError(f"{whose}: class_names and category_ids differ in number; give each class one id")


def _wrong(path: Any, name: str, what: str) -> InputError:
    return InputError(f"{path}: damaged or edited (metadata: {name} {what}); use another copy of it")
