"""The options' values: read from TOML, JSON and ``--set``, checked, and written back as TOML."""

import difflib
import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import Field, fields, replace
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from minimask.config.tree import RENAMED, Config, describe, options, shown, up_to_date
from minimask.errors import InputError


def from_dict(values: dict, where: str, base: Config | None = None) -> Config:
    """Check nested dictionaries against the tree and put them over `base` (the defaults).

    Parameters
    ----------
    values : dict of dict
        Section name -> option name -> value, as TOML and JSON hold them.
    where : str
        The file or flag the values come from; begins the error.

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
            raise InputError(f"{where}: there is no section [{section}]; did you mean [{'], ['.join(near)}]?")
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
    path = Path(file_or_name)
    packaged = resources.files("minimask.config") / f"{file_or_name}.toml"
    if not path.is_file() and path.name == file_or_name and packaged.is_file():
        text = packaged.read_text(encoding="utf-8")
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            names = ", ".join(packaged_names())
            raise InputError(
                f"--config {file_or_name}: {reason}; give a TOML file or one of the names {names}"
            ) from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file_or_name}: not TOML: {error}") from error
    return from_dict(values, file_or_name, base)


def packaged_names() -> list[str]:
    """The names that `read_config` knows."""
    folder = resources.files("minimask.config")
    return sorted(entry.name[: -len(".toml")] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def with_settings(config: Config, settings: Sequence[str]) -> Config:
    """Apply ``--set`` arguments, ``"train.steps=200"`` each; values as in TOML, quotes optional."""
    known = dict(options())
    for setting in settings:
        key, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise InputError(f"--set {setting}: expected KEY=VALUE, such as train.steps=200")
        key = RENAMED.get(key, key)
        if key not in known:
            raise InputError(f"--set {setting}: {_unknown(key, known)}")
        section, _, name = key.partition(".")
        value = _parse(text, known[key].type)
        config = from_dict({section: {name: value}}, f"--set {setting}", config)
    return config


def to_toml(config: Config) -> str:
    """The tree as TOML, each option with its meaning beside it; `read_config` reads it back the same."""
    lines = []
    for section in fields(config):
        lines += [f"[{section.name}]"]
        for entry in fields(section.type):
            value = getattr(getattr(config, section.name), entry.name)
            unset = value is None
            setting = f"{'# ' if unset else ''}{entry.name} = {'' if unset else _toml_value(value)}"
            lines += [f"{setting:<32} # {describe(entry)}"]
        lines += [""]
    return "\n".join(lines)


def _checked(value: Any, entry: Field, where: str) -> Any:
    """`value` in the field's type, or InputError."""
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
    # bool is a subclass of int in Python; true is no number of steps.
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
        str: isinstance(value, str),
    }
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
    if not fits[kind]:
        raise InputError(f"{where} must be {names[kind]}, is {shown(value)}")
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


def _check_together(config: Config, where: str) -> None:
    low, high = config.data.scale
    if low > high:
        raise InputError(f"{where}: data.scale must be [least, greatest], is [{low}, {high}]")
    smallest, largest = config.model.min_size, config.model.max_size
    if smallest and largest and smallest > largest:
        raise InputError(f"{where}: model.min_size is {smallest}, more than model.max_size, {largest}")
    if list(config.train.milestones) != sorted(set(config.train.milestones)):
        raise InputError(f"{where}: train.milestones must rise, is {list(config.train.milestones)}")


def _unknown(key: str, known: dict) -> str:
    """What to say of an option or section that does not exist: the nearest one, in whichever section."""
    section, _, name = key.rpartition(".")
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
    if any(get_origin(kind) is tuple for kind in alternatives) and not text.startswith("["):
        text = f"[{text}]"
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return text
    return text if str in alternatives and not isinstance(value, str) else value


def _alternatives(kind: Any) -> tuple:
    return get_args(kind) if isinstance(kind, UnionType) else (kind,)


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    if isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
