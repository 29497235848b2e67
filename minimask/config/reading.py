"""The options' values: read from TOML, JSON and ``--set``, checked, and written back as TOML."""

import difflib
import json
import math
import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import Field, fields, replace
from importlib import resources
from types import UnionType
from typing import Any, get_args, get_origin

from minimask.config import bounded_toml
from minimask.config.tree import ANCHOR_SIZES, RENAMED, Config, describe, options, shown, up_to_date
from minimask.errors import InputError, one_line
from minimask.files import open_regular


def from_dict(values: dict, where: str, base: Config | None = None) -> Config:
    """Check nested dictionaries against the tree and apply them on top of `base` (by default the defaults).

    Parameters
    ----------
    values : dict of dict
        Section name -> option name -> value, as TOML and JSON hold them.
    where : str
        The file or flag that the values come from; begins the error message.

    Raises
    ------
    InputError
        For an unknown option (naming the nearest one), a wrong type, or a value out of range.
    """
    known, sections = dict(options()), [section.name for section in fields(Config)]
    config = base or Config()
    for section, entries in up_to_date(values).items():
        if not isinstance(entries, dict):
            raise InputError(f"{where}: {_unknown(section, known)}")
        if section not in sections:
            near = difflib.get_close_matches(section, sections, 1) or sections
            name = one_line(section, 80)
            raise InputError(f"{where}: there is no section [{name}]; did you mean [{'], ['.join(near)}]?")
        changes = {}
        for name, value in entries.items():
            key = f"{section}.{name}"
            if key not in known:
                raise InputError(f"{where}: {_unknown(key, known)}")
            changes[name] = _checked(value, known[key], f"{where}: {key}")
        config = replace(config, **{section: replace(getattr(config, section), **changes)})
    _check_together(config, where)
    return config


def read_config(file_or_name: str, base: Config | None = None) -> Config:
    """Read a TOML file, or one of the package's configurations by its name (``"demo"``)."""
    text = _text_of(file_or_name)
    try:
        values = bounded_toml.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file_or_name}: not TOML: {one_line(error, 200)}") from error
    except bounded_toml.OutOfBounds as error:
        raise InputError(f"{file_or_name}: {error}, which no configuration needs") from error
    return from_dict(values, file_or_name, base)


def _text_of(file_or_name: str) -> str:
    if file_or_name in packaged_names() and not os.path.isfile(file_or_name):  # noqa: PTH113
        return (resources.files("minimask.config") / f"{file_or_name}.toml").read_text(encoding="utf-8")
    try:
        with open_regular(file_or_name) as file:
            content = file.read(bounded_toml.MOST + 1)
        # A longer text is refused for its length, and may be cut within a character.
        return content.decode("utf-8-sig", "strict" if len(content) <= bounded_toml.MOST else "replace")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text (save it as UTF-8)"
        names = ", ".join(packaged_names())
        raise InputError(
            f"--config {file_or_name}: {reason}; give a TOML file or one of the names {names} "
            "(in the command, also auto)"
        ) from error


def packaged_names() -> list[str]:
    """The names that `read_config` knows."""
    folder = resources.files("minimask.config")
    return sorted(entry.name[: -len(".toml")] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def with_settings(config: Config, settings: Sequence[str]) -> Config:
    """Apply ``--set`` arguments, ``"train.steps=200"`` each; values as in TOML, quotes optional."""
    known = dict(options())
    for setting in settings:
        key, equals, text = (part.strip() for part in setting.partition("="))
        where = f"--set {one_line(setting, 120)}"
        if not (equals and key):
            raise InputError(f"{where}: expected KEY=VALUE, such as train.steps=200")
        key = RENAMED.get(key, key)
        if key not in known:
            raise InputError(f"{where}: {_unknown(key, known)}")
        section, _, name = key.partition(".")
        try:
            value = _parse(text, known[key].type)
        except bounded_toml.OutOfBounds as error:
            raise InputError(f"{where}: the value {error}, which no option takes") from error
        config = from_dict({section: {name: value}}, where, config)
    return config


def set_by(settings: Sequence[str]) -> list[str]:
    """The options that ``--set`` arguments set, by their present names."""
    keys = (setting.partition("=")[0].strip() for setting in settings)
    return [RENAMED.get(key, key) for key in keys]


def to_toml(config: Config) -> str:
    """The tree as TOML, each option with its meaning beside it; `read_config` reads the same tree back."""
    lines = []
    for section in fields(config):
        lines += [f"[{section.name}]"]
        for entry in fields(section.type):
            value = getattr(getattr(config, section.name), entry.name)
            written = "" if value is None else _toml_value(value)
            setting = f"{entry.name} = {written if _is_unicode(written) else ascii(value)}"
            if value is None or not _is_unicode(written):
                # Unset, or a path that is not UTF-8, which TOML cannot hold. Checkpoints can tell which.
                setting = f"# {setting}"
            lines += [f"{setting:<32} # {describe(entry)}"]
        lines += [""]
    return "\n".join(lines)


def _checked(value: Any, entry: Field, where: str) -> Any:
    """`value` in the field's type; raises an InputError if it is not valid."""
    kind = next(kind for kind in _alternatives(entry.type) if kind is not type(None))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, list | tuple):
            raise InputError(f"{where} must be a list, is {shown(value)}")
        if kinds[-1] is not Ellipsis and len(value) != len(kinds):
            raise InputError(f"{where} must be a list of {len(kinds)} numbers, is {shown(list(value))}")
        return tuple(_checked_one(item, kinds[0], entry, where) for item in value)
    return _checked_one(value, kind, entry, where)


def _checked_one(value: Any, kind: type, entry: Field, where: str) -> Any:
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
    if not _fits(value, kind):
        raise InputError(f"{where} must be {names[kind]}, is {shown(value)}")
    if kind is int and not -(2**63) <= value < 2**63:
        raise InputError(f"{where} must be a whole number of 64 bits, is {shown(value)}")
    if kind is str and not _may_be_path(value):
        raise InputError(f"{where} must be text that can name a file, is {shown(value)}")
    value, limits = kind(value), entry.metadata
    if limits["choices"] and value not in limits["choices"]:
        near = difflib.get_close_matches(value, limits["choices"], 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else f"it can be {', '.join(limits['choices'])}"
        raise InputError(f"{where} cannot be {shown(value)}; {hint}")
    if limits["low"] is not None and value < limits["low"]:
        raise InputError(f"{where} must be at least {limits['low']}, is {shown(value)}")
    if limits["above"] is not None and value <= limits["above"]:
        raise InputError(f"{where} must be more than {limits['above']}, is {shown(value)}")
    if limits["high"] is not None and value > limits["high"]:
        raise InputError(f"{where} must be at most {limits['high']}, is {shown(value)}")
    return value


def _fits(value: Any, kind: type) -> bool:
    if isinstance(value, bool):  # a subclass of int in Python, but true is not a number of steps
        return kind is bool
    if kind is not float:
        return isinstance(value, kind)
    try:
        return isinstance(value, int | float) and math.isfinite(float(value))
    except OverflowError:  # an int that no float can hold
        return False


def _may_be_path(text: str) -> bool:
    """Whether it has no NUL, and no surrogates but those in which Python keeps bytes that are not UTF-8."""
    return "\0" not in text and not any(
        "\ud800" <= c <= "\udfff" and not "\udc80" <= c <= "\udcff" for c in text
    )


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _check_together(config: Config, where: str) -> None:
    low, high = config.data.scale
    if low > high:
        raise InputError(f"{where}: data.scale must be [least, greatest], is [{low}, {high}]")
    smallest, largest = config.model.min_size, config.model.max_size
    if smallest and largest and smallest > largest:
        raise InputError(f"{where}: model.min_size is {smallest}, more than model.max_size, {largest}")
    if smallest and config.model.magnification:
        raise InputError(f"{where}: model.min_size and model.magnification both scale images; give one")
    sizes = config.model.anchor_sizes
    if sizes is not None and (len(sizes) != ANCHOR_SIZES or list(sizes) != sorted(set(sizes))):
        raise InputError(
            f"{where}: model.anchor_sizes must be {ANCHOR_SIZES} rising numbers, is {shown(sizes)}"
        )
    if list(config.train.milestones) != sorted(set(config.train.milestones)):
        raise InputError(f"{where}: train.milestones must rise, is {shown(config.train.milestones)}")


def _unknown(key: str, known: dict) -> str:
    """The message for an option or section that does not exist: the nearest one, in any section."""
    section, _, name = key.rpartition(".")
    key = one_line(key, 80)
    siblings = [other for other in known if section and other.startswith(f"{section}.")]
    by_name = {other.rpartition(".")[2]: other for other in known}
    near = difflib.get_close_matches(key, known, 1, 0.75) or [
        by_name[match] for match in difflib.get_close_matches(name, by_name, 1, 0.7)
    ]
    if near:
        return f"there is no option {key}; did you mean {near[0]}?"
    sections = sorted({other.partition(".")[0] for other in known})
    return f"there is no option {key}; there are " + ", ".join(siblings or [f"{s}.*" for s in sections])


def _parse(text: str, kind: Any) -> Any:
    """A ``--set`` value as TOML would read it; text needs no quotes, a list no brackets."""
    alternatives = _alternatives(kind)
    if str in alternatives and not text.startswith(('"', "'")):
        return text
    if any(get_origin(kind) is tuple for kind in alternatives) and not text.startswith("["):
        text = f"[{text}]"
    if str not in alternatives:
        text = re.sub(r"(?<![\w.])\.(?=\d)", "0.", text)  # .02 and 1. are not TOML
        text = re.sub(r"(?<=\d)\.(?![\d.])", ".0", text)
    try:
        values = bounded_toml.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return values["value"] if len(values) == 1 else text  # a line break in it may begin another key


def _alternatives(kind: Any) -> tuple:
    return get_args(kind) if isinstance(kind, UnionType) else (kind,)


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    if isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
