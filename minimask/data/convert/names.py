"""Class names, from an option, a text file, YOLO's data.yaml or a COCO file; and tables of colours."""

import re
from dataclasses import dataclass
from pathlib import Path

from minimask.data.checks import read_categories, read_document, read_text
from minimask.data.fields import show
from minimask.errors import InputError, one_line

MOST = 2**16  # classes and colours


@dataclass(frozen=True)
class ClassNames:
    """The classes that the user names.

    Attributes
    ----------
    names : tuple of str
        In the order given.
    numbers : tuple of int, or None
        The number of each in the annotations, if given ("7=cat").
    ids : tuple of int, or None
        The category ids to write, if the classes come from a COCO file.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...] | None = None
    ids: tuple[int, ...] | None = None

    def numbered(self, first: int) -> dict[int, str]:
        """Number -> name; counted from `first` if no numbers were given."""
        numbers = self.numbers or range(first, first + len(self.names))
        return dict(zip(numbers, self.names))


def read_classes(text: str) -> ClassNames:
    """Class names from ``--classes``.

    Parameters
    ----------
    text : str
        A file (.txt or .names with one name per line; .yaml or .yml with ``names:``, like YOLO's data.yaml;
        .json, a COCO file whose classes and ids are taken), or names separated by commas, which may be
        numbered: ``7=cat,24=dog``.

    Raises
    ------
    InputError
        If the file cannot be read, or these are not names of different classes.
    """
    path = Path(text)
    suffix = path.suffix.lower()
    if suffix in (".txt", ".names", ".yaml", ".yml", ".json"):
        if suffix == ".json":
            categories = read_categories(read_document(path)["categories"], path)
            return ClassNames(tuple(categories.values()), ids=tuple(categories))
        if suffix in (".yaml", ".yml"):
            return read_yaml(path)
        return _checked(
            [line.strip() for line in read_text(path, "").splitlines() if line.strip()], str(path)
        )
    return _checked([name.strip() for name in text.split(",") if name.strip()], "--classes")


def _checked(entries: list[str], where: str) -> ClassNames:
    if not entries:
        raise InputError(f"{where}: names no class; give names, such as cat,dog")
    if len(entries) > MOST:
        raise InputError(
            f"{where}: names {len(entries)} classes, where {MOST} are possible; is it the right file?"
        )
    pairs = [re.fullmatch(r"(\d{1,9})\s*=\s*(.+)", entry) for entry in entries]
    if any(pairs) and not all(pairs):
        plain = entries[[bool(pair) for pair in pairs].index(False)]
        raise InputError(
            f"{where}: {show(plain)} has no number, while others have; number all classes or none"
        )
    numbers = tuple(int(pair[1]) for pair in pairs) if all(pairs) else None
    names = tuple(pair[2].strip() if pair else entry for pair, entry in zip(pairs, entries))
    for what, values in (("the class", names), ("the number", numbers or ())):
        twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
        if twice is not None:
            raise InputError(f"{where}: {what} {show(twice)} occurs twice; classes differ in name and number")
    odd = next((name for name in names if one_line(name) != name or len(name) > 200), None)
    if odd is not None:
        raise InputError(f"{where}: {show(odd)} is not a class name; names are short and on one line")
    return ClassNames(names, numbers)


def read_yaml(path: Path) -> ClassNames:
    """The ``names`` in YOLO's data.yaml: a list on one line or several, or numbers with names.

    Only this much of YAML is understood: an unindented key, with a list or mapping in brackets, or lines
    "- name" or "0: name" below it.

    Raises
    ------
    InputError
        If there is no such entry, or it is written in another way.
    """
    lines = [f" {line}".partition(" #")[0][1:].rstrip() for line in read_text(path, "").splitlines()]
    start = next((i for i, line in enumerate(lines) if re.match(r"names\s*:", line)), None)
    if start is None:
        raise InputError(f"{path}: has no entry 'names'; give the classes by --classes cat,dog")
    first = lines[start].partition(":")[2].strip()
    block = [first] if first else []
    for line in lines[start + 1 :]:
        if line and not re.match(r"[\s\-\]\}]", line) and not (first and not _closed(block)):
            break
        block += [line.strip()] if line.strip() else []
    entries = _entries(block)
    if entries is None:
        raise InputError(
            f"{path}: 'names' is not a list of names, such as [cat, dog], nor lines such as '0: cat'; "
            "give the classes by --classes cat,dog"
        )
    return _checked(entries, str(path))


def _closed(block: list[str]) -> bool:
    text = " ".join(block)
    return text.endswith(("]", "}"))


def _entries(block: list[str]) -> list[str] | None:
    """The entries of a YAML list or mapping, those of a mapping as "0=cat"; None if it is neither."""
    text = " ".join(block)
    if text[:1] in ("[", "{"):
        if not text.endswith({"[": "]", "{": "}"}[text[0]]):
            return None
        parts = [part.strip() for part in _split(text[1:-1]) if part.strip()]
        block = parts if text[0] == "{" else [f"- {part}" for part in parts]
    found = []
    for line in block:
        listed = re.fullmatch(r"-\s+(.+)", line.strip())
        numbered = re.fullmatch(r"['\"]?(\d{1,9})['\"]?\s*:\s*(.+)", line.strip())
        if not (listed or numbered):
            return None
        found.append(_unquoted(listed[1]) if listed else f"{numbered[1]}={_unquoted(numbered[2])}")
    return found


def _split(text: str) -> list[str]:
    """Split at commas outside quotes."""
    parts, quote = [""], ""
    for character in text:
        if character == "," and not quote:
            parts.append("")
            continue
        parts[-1] += character
        if character in "'\"":
            # An apostrophe inside a word does not open quotes.
            opens = not quote and not parts[-1][:-1].strip().rpartition(":")[2].strip()
            quote = character if opens else "" if character == quote else quote
    return parts


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def read_colours(path: Path) -> dict[tuple[int, int, int], str]:
    """A table of colours, one per line: three numbers from 0 to 255, or #rrggbb, and the class, in any order.

    They may be separated by commas, semicolons or spaces. Rows named background, void or ignore, and black,
    which needs no row, are background, with the name "". Lines that begin with "# " or "//" are comments, and
    a first line without a colour is taken for column names.

    Raises
    ------
    InputError
        If the table cannot be read; names the line.
    """
    colours: dict[tuple[int, int, int], str] = {(0, 0, 0): ""}
    for number, line in enumerate(read_text(path, "").splitlines(), start=1):
        line = line.strip()
        if len(line) > 1000:
            raise InputError(f"{path}: line {number} is {len(line)} characters long; is it the right file?")
        if not line or re.match(r"#(?![0-9a-fA-F]{6}\b)|//", line):
            continue
        found = re.search(r"#([0-9a-fA-F]{6})\b", line)
        numbers = re.search(r"(?<![\w.])(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})(?![\w.])", line)
        if found:
            colour = tuple(bytes.fromhex(found[1]))
        elif numbers and all(int(value) < 256 for value in numbers.groups()):
            colour = tuple(int(value) for value in numbers.groups())
        elif number == 1:
            continue
        else:
            raise InputError(
                f"{path}: line {number}: {show(line)} has no colour; write three numbers from 0 to 255, or "
                "#rrggbb, and the name of the class"
            )
        span = (found or numbers).span()
        name = f"{line[: span[0]]} {line[span[1] :]}".strip(" \t,;:='\"")
        if not name or one_line(name) != name:
            raise InputError(
                f"{path}: line {number}: {show(line)} names no class; write it beside the colour"
            )
        background = re.fullmatch(r"_*(back ?ground|void|ignored?|unlabell?ed)_*", name, re.IGNORECASE)
        if colour == (0, 0, 0) and not background:
            raise InputError(
                f"{path}: line {number}: black is background here; give {show(name)} another colour"
            )
        if colour in colours and colour != (0, 0, 0):
            raise InputError(
                f"{path}: line {number}: the colour {colour} occurs twice; remove one of the rows"
            )
        colours[colour] = "" if background else name
        if len(colours) > MOST:
            raise InputError(f"{path}: has more than {MOST} colours; is it the right file?")
    if not any(colours.values()):
        raise InputError(f"{path}: has no colour of a class; write rows such as '128,0,0 cat'")
    return colours
