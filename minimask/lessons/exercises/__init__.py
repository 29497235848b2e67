"""Exercises that check themselves: ``check("roi_align_backward", mine)``.

The reader writes a forward or backward pass. `check` says that it is right, or what is wrong: the worst
element, and which usual mistake it looks like. `names` lists the exercises, `describe` prints a task.
"""

from __future__ import annotations

import difflib
import re
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

_WIDTH = 95  # characters a line, which JupyterLab shows without wrapping them
_PARAMETER = r"[\w, ]+ : "  # how the line of a parameter begins, or of several

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
    print(_narrow(_find(name).describe()))


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


def _narrow(task: str) -> str:
    """A task within `_WIDTH`: each paragraph, and in it each "name : what it is", is filled anew."""
    lines: list[str] = []
    for line in task.splitlines():
        if lines and lines[-1] and line and not re.match(_PARAMETER, line):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
    return "\n".join(map(_filled, lines))


def _filled(entry: str) -> str:
    indent = "" if entry.startswith("Give ") or not re.match(_PARAMETER, entry) else "    "
    whole = re.sub(
        r"\[[^]]*\]|\([^)]*\)", lambda bracket: bracket[0].replace(" ", "\N{NO-BREAK SPACE}"), entry
    )
    filled = textwrap.fill(whole, _WIDTH, subsequent_indent=indent, break_long_words=False)
    return filled.replace("\N{NO-BREAK SPACE}", " ")


def _find(name: str) -> Exercise:
    if name not in EXERCISES:
        near = difflib.get_close_matches(str(name), EXERCISES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(EXERCISES)}"
        raise InputError(f"exercises: no exercise is called {name!r}; {hint}")
    return EXERCISES[name]
