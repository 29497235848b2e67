"""Checks of the builders' arguments: one rule for each kind of number, and errors that name the argument."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from minimask.errors import InputError

OF_TORCHVISION = ("weights", "weights_backbone", "pretrained", "pretrained_backbone", "progress")
"""Arguments of torchvision's builders that have to do with its downloads."""

_FROM_ZERO = ("min_size", "beta")  # pixels, and of smooth L1: unbounded; every other float is a share


def unknown_argument(name: str, known: Sequence[str]) -> str:
    """The message for an argument that no builder has."""
    if name in OF_TORCHVISION:
        return (
            f"there is no argument {name!r}: nothing is downloaded, and a builder's weights are random; "
            "leave it out. models.from_checkpoint(FILE) builds a model with the weights of a file, "
            "torchvision's included"
        )
    near = difflib.get_close_matches(name, ["num_classes", *known], 1, 0.75)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"there is no argument {name!r}; {hint}"


def check_numbers(options: Any, prefix: str) -> None:
    """Check a record of options: ints are counts, floats are shares from 0 to 1 except for `_FROM_ZERO`.

    Parameters
    ----------
    options : dataclass instance
        With types as text, as ``from __future__ import annotations`` leaves them.
    prefix : str
        Of the builders' arguments, such as ``"rpn_"``.
    """
    for field in fields(options):
        name, value = prefix + field.name, getattr(options, field.name)
        if field.type == "int":
            check_whole(name, value, 1 if field.name.startswith("batch_size") else 0)
        elif field.type == "float":
            check_number(name, value, high=None if field.name in _FROM_ZERO else 1)
    low, high = options.bg_iou_thresh, options.fg_iou_thresh
    if low > high:
        raise InputError(f"{prefix}bg_iou_thresh is {low}, more than {prefix}fg_iou_thresh, {high}")


def check_whole(name: str, value: Any, low: int, high: int | None = None, why: str = "") -> None:
    """Raise an InputError unless `value` is a whole number from `low` to `high`."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < low or (high is not None and value > high):
        most = "up" if high is None else f"to {high}"
        raise InputError(f"{name} must be a whole number from {low} {most}{why}, is {value!r}")


def check_number(name: str, value: Any, low: float = 0, high: float | None = None) -> None:
    """Raise an InputError unless `value` is a finite number from `low` to `high`."""
    most = float("inf") if high is None else high
    if (
        not isinstance(value, Real)
        or isinstance(value, bool)
        or not low <= value <= most
        or value == float("inf")
    ):
        limits = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise InputError(f"{name} must be a number {limits}, is {value!r}")
