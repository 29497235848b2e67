"""Configuration: one tree of frozen dataclasses, read from TOML and ``--set``, written back as TOML.

Each option states its default, its meaning and its range once, at its field; the checks, the help text and
the comments in the written file are made from that.
"""

import difflib
import json
import math
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from minimask.errors import InputError


def option(default: Any, text: str, low=None, high=None, above=None, choices: Sequence[str] = ()) -> Any:
    """A dataclass field with its meaning and range: low <= value <= high, value > above."""
    metadata = {"help": text, "low": low, "high": high, "above": above, "choices": tuple(choices)}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelConfig:
    """Which network, and what it reports. An unset size leaves the network's own."""

    name: str = option("maskrcnn_small", "the network", choices=("maskrcnn_small", "maskrcnn_resnet50_fpn"))
    score_threshold: float = option(0.05, "detections that score less are dropped", low=0, high=1)
    nms_threshold: float = option(
        0.5, "of two boxes of a class with more IoU than this, one goes", low=0, high=1
    )
    detections: int = option(100, "most detections an image", low=1)
    min_size: int | None = option(
        None, "images are scaled until the shorter side has this many pixels", low=32
    )
    max_size: int | None = option(None, "... unless the longer side would then exceed this", low=32)


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and what random changes training makes to them."""

    train: str = option("", "COCO instance file to train on, or 'nuclei' or 'shapes' (built in)")
    images: str = option("", "folder of its images")
    val: str = option("", "COCO instance file to evaluate on after training")
    val_images: str = option("", "folder of its images, if not the same")
    strict: bool = option(False, "whether annotations without area, or outside the image, are an error")
    crop: int = option(256, "side of the random square crop in pixels; 0 trains on whole images", low=0)
    scale: tuple[float, float] = option((1.0, 1.0), "least and greatest random magnification", above=0)
    flip_horizontal: bool = option(True, "mirror left to right, half of the time")
    flip_vertical: bool = option(False, "mirror top to bottom, half of the time")
    rotate90: bool = option(False, "turn by a random multiple of 90 degrees")
    brightness: float = option(0.0, "random change of all values, by up to this share", low=0, high=1)
    contrast: float = option(0.0, "random change of the distance to the mean grey", low=0, high=1)
    saturation: float = option(0.0, "random change of the distance to each pixel's grey", low=0, high=1)


@dataclass(frozen=True)
class TrainConfig:
    """The optimization."""

    steps: int = option(1500, "optimizer steps", low=1)
    batch_size: int = option(2, "images a step", low=1)
    learning_rate: float = option(
        0.02, "greatest learning rate, for a batch of reference_batch images", above=0
    )
    reference_batch: int = option(2, "the rate used is learning_rate * batch_size / reference_batch", low=1)
    warmup_steps: int = option(100, "steps over which the rate rises to its greatest, linearly", low=0)
    schedule: str = option("cosine", "how the rate falls afterwards", choices=("cosine", "step", "constant"))
    milestones: tuple[int, ...] = option((), "for 'step': the steps at which the rate falls", low=1)
    gamma: float = option(0.1, "for 'step': what it is multiplied by there", above=0, high=1)
    momentum: float = option(0.9, "of SGD", low=0, high=0.9999)
    weight_decay: float = option(1e-4, "of SGD", low=0)
    decay_norms_and_biases: bool = option(False, "whether weight decay reaches them too")
    clip_norm: float = option(10.0, "gradients with a greater norm are scaled down to it; 0: never", low=0)
    seed: int = option(0, "of the initial weights, the order of the images and all random changes", low=0)
    save_every: int = option(100, "steps between checkpoints", low=1)
    deterministic: bool = option(False, "on a GPU: the same bits in every run, a little slower")
    tf32: bool = option(False, "on a GPU: faster products of float32, with 10 bits of mantissa instead of 23")
    gpu_memory_limit: float = option(0.0, "GiB of the GPU's memory that may be used; 0: all", low=0)


@dataclass(frozen=True)
class EvaluateConfig:
    """The evaluation after training."""

    max_detections: int = option(100, "most detections an image, in the results and in the metrics", low=1)


@dataclass(frozen=True)
class Config:
    """Everything that decides a training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def options(tree: Any = Config) -> Iterator[tuple[str, Field]]:
    """Every option of the tree as (``"train.steps"``, its dataclass field)."""
    for section in fields(tree):
        for entry in fields(section.type):
            yield f"{section.name}.{entry.name}", entry


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
    for section, entries in values.items():
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
    packaged = resources.files("minimask") / "configs" / f"{file_or_name}.toml"
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
    folder = resources.files("minimask") / "configs"
    return sorted(entry.name[: -len(".toml")] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def with_settings(config: Config, settings: Sequence[str]) -> Config:
    """Apply ``--set`` arguments, ``"train.steps=200"`` each; values as in TOML, quotes optional."""
    known = dict(options())
    for setting in settings:
        key, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise InputError(f"--set {setting}: expected KEY=VALUE, such as train.steps=200")
        if key not in known:
            raise InputError(f"--set {setting}: {_unknown(key, known)}")
        section, _, name = key.partition(".")
        value = _parse(text, known[key].type)
        config = from_dict({section: {name: value}}, f"--set {setting}", config)
    return config


def to_dict(config: Config) -> dict[str, dict]:
    """The tree as nested dictionaries that JSON can hold; unset options are left out."""
    return {
        section: {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in entries.items()
            if value is not None
        }
        for section, entries in asdict(config).items()
    }


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


def describe(entry: Field) -> str:
    """An option's meaning and range in one line."""
    meaning = entry.metadata
    limits = [f"one of {', '.join(meaning['choices'])}"] if meaning["choices"] else []
    limits += [f"more than {meaning['above']}"] if meaning["above"] is not None else []
    limits += [f"at least {meaning['low']}"] if meaning["low"] not in (None, 0) else []
    limits += [f"at most {meaning['high']}"] if meaning["high"] is not None else []
    return meaning["help"] + (f" ({', '.join(limits)})" if limits else "")


def differences(old: Config, new: Config) -> list[str]:
    """One phrase an option that differs: ``"train.steps is 200, was 100"``."""
    phrases = []
    for key, _ in options():
        section, _, name = key.partition(".")
        before, after = getattr(getattr(old, section), name), getattr(getattr(new, section), name)
        if before != after:
            phrases.append(f"{key} is {shown(after)}, was {shown(before)}")
    return phrases


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


def shown(value: Any) -> str:
    """An option's value as a person writes it."""
    return (
        "unset"
        if value is None
        else json.dumps(list(value) if isinstance(value, tuple) else value, default=str)
    )
