"""Reading the fields of a JSON document's entries, each of which may hold anything.

A `Fault` is what is wrong with one entry; `read_all` counts how many others share it.
"""

import math
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimask.errors import InputError

_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = 80


class Fault(InputError):
    """An entry that cannot be used; faults of one `kind` are counted together."""

    def __init__(self, text: str, kind: str):
        super().__init__(text)
        self.kind = kind


class Note(str):
    """A line about something that reading dropped or changed, or that may surprise.

    Attributes
    ----------
    kind : str
    count : int
        Number of entries that it is about.
    """

    def __new__(cls, text: str, kind: str, count: int = 1):
        note = super().__new__(cls, text)
        note.kind, note.count = kind, count
        return note


@dataclass
class Found:
    """Faults of one kind in a file."""

    kind: str
    text: str  # the first one's line
    count: int
    total: int  # entries, with and without the fault
    what: str  # what the entries are called
    examples: list[str]


class Faults:
    """Collects faults that would otherwise be raised; reading goes on without the entries that have them."""

    MOST = 5  # examples of a kind

    def __init__(self):
        self._of_kind: dict[str, Found] = {}

    @property
    def found(self) -> list[Found]:
        """The faults by kind, in the order in which the kinds were met."""
        return list(self._of_kind.values())

    def add(
        self,
        fault: InputError,
        kind: str,
        total: int,
        what: str,
        count: int = 1,
        examples: Iterable[str] = (),
    ) -> None:
        found = self._of_kind.setdefault(kind, Found(kind, str(fault), 0, total, what, []))
        found.count += count
        found.examples += list(examples)[: self.MOST - len(found.examples)]


def refuse(
    faults: Faults | None,
    fault: Fault,
    count: int = 1,
    total: int = 1,
    what: str = "entries",
    examples: Iterable[str] = (),
) -> None:
    """Raise an InputError that says how many of `total` entries have the fault; or add it to `faults`."""
    if faults is None:
        raise InputError(f"{fault}{of_all(count, total, what)}")
    faults.add(fault, fault.kind, total, what, count, examples)


def read_all(
    entries: list, read: Callable[[int, Any, bool], Any], what: str, faults: Faults | None = None
) -> list:
    """``[read(index, entry, True) for ...]``; at the first `Fault`, an InputError that counts its kind.

    Parameters
    ----------
    read : callable
        Takes index, entry, and whether the result is needed: entries after a fault are only checked for it.
    what : str
        The entries' name in the plural.
    faults : Faults, optional
        Collects all faults instead; the result then lacks the entries that have them.
    """
    rows = []
    for index, entry in enumerate(entries):
        try:
            rows.append(read(index, entry, True))
        except Fault as fault:
            if faults is not None:
                faults.add(
                    fault, fault.kind, len(entries), what, examples=[_place(fault, entry, index, what)]
                )
                continue
            later = range(index + 1, len(entries))
            count = 1 + sum(_shares(lambda i=i: read(i, entries[i], False), fault.kind) for i in later)
            raise InputError(f"{fault}{of_all(count, len(entries), what)}") from None
    return rows


def _place(fault: Fault, entry: Any, index: int, what: str) -> str:
    """What an example is called: "annotation 17 (image 4)"."""
    kind = {"categories": "category"}.get(what, what.removesuffix("s"))
    if not isinstance(entry, dict) or entry.get("id") is None:
        return f"{kind} number {index + 1}"
    image = f" (image {show(entry['image_id'])})" if "image_id" in entry else ""
    return f"{kind} {show(entry['id'])}{image}"


def _shares(read: Callable[[], Any], kind: str) -> bool:
    try:
        read()
    except Fault as fault:
        return fault.kind == kind
    return False


def of_all(count: int, total: int, what: str) -> str:
    """What follows a fault that several entries share: " (so it is in 3 of 8 annotations)"."""
    return f" (so it is in {count} of {total} {what})" if count > 1 else ""


def label(path: Path, kind: str, entry: Any, index: int) -> str:
    """What messages call an entry: "train.json: image 17", or by its place in the list if it has no id."""
    if not isinstance(entry, dict):
        raise Fault(f"{path}: {kind} number {index + 1} must be an object, is {show(entry)}", "entry")
    number = entry.get("id")
    return f"{path}: {kind} {show(number)}" if number is not None else f"{path}: {kind} number {index + 1}"


def show(value: Any) -> str:
    """A value of the JSON on one line, shortened if need be."""
    text = _shortener.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def value(entry: dict, key: str, name: str) -> Any:
    """The value of a required key; `name` is what messages call the entry."""
    if entry.get(key) is None:
        raise Fault(f"{name}: lacks the key '{key}'; COCO instances need it", f"no {key}")
    return entry[key]


def integer(entry: dict, key: str, name: str) -> int:
    """The whole number of a key, within int64; 4.0 is accepted, since some tools write ids that way."""
    number = value(entry, key, name)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if type(number) is not int or abs(number) >= 2**63:  # bool is a subclass of int
        raise Fault(f"{name}: {key} must be a whole number, is {show(number)}", key)
    return number


def finite_numbers(values: Any) -> bool:
    """Whether it is a list of finite numbers. An integer beyond float's range is not: C cannot take it."""
    if not isinstance(values, list):
        return False
    return all(type(v) in (int, float) and -1e300 < v < 1e300 and math.isfinite(v) for v in values)


def numbers(values: Iterable[float]) -> str:
    """Numbers as a JSON list."""
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"
