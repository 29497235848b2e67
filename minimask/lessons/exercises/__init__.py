"""Exercises that check themselves: ``check("roi_align_backward", mine)``.

The reader writes a forward or backward pass. `check` says that it is right, or what is wrong: the worst
element, and which usual mistake it looks like. `names` lists the exercises, `describe` prints a task.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Callable

from minimask.errors import InputError
from minimask.lessons.exercises import (  # noqa: F401  (they fill EXERCISES)
    layers,
    regions,
    rois,
    selection,
    skeletons,
    training,
    transfer,
)
from minimask.lessons.exercises.exercise import EXERCISES, Exercise, Verdict

_WIDTH = 100  # characters a line, which a notebook shows without wrapping them

__all__ = ["check", "describe", "names"]


def names() -> list[str]:
    """The exercises, in the order of the notebooks."""
    return list(EXERCISES)


def describe(name: str) -> None:
    """Print the task: what the function takes and gives, with shapes.

    Raises
    ------
    InputError
        For an unknown name, naming the nearest.
    """
    print(_find(name).describe())


def check(name: str, mine: Callable) -> Verdict:
    """Say whether a function solves an exercise, or what is wrong with it.

    Parameters
    ----------
    name : str
        One of `names`.
    mine : callable
        The reader's function: NumPy arrays in, arrays out, as `describe` says.

    Returns
    -------
    Verdict
        Truthy if the function is right. Its text has been printed.

    Raises
    ------
    InputError
        For an unknown name. Whatever the function does wrong is printed, not raised.
    """
    verdict = _find(name).check(mine)
    for line in verdict.text.splitlines():
        print(textwrap.fill(line, _WIDTH, subsequent_indent=" " * 4, break_long_words=False))
    return verdict


def _find(name: str) -> Exercise:
    if name not in EXERCISES:
        near = difflib.get_close_matches(str(name), EXERCISES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(EXERCISES)}"
        raise InputError(f"exercises: no exercise is called {name!r}; {hint}")
    return EXERCISES[name]
