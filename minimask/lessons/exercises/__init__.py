"""Exercises that check themselves: ``check("roi_align_backward", mine)``.

The reader writes a forward or backward pass. `check` says that it is right, or what is wrong: the worst
element, and which common mistake it looks like. `names` lists the exercises, `describe` prints a task, and
`mark` checks what a whole class hands in.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

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
from minimask.lessons.exercises.marking import Marked, mark_files

_WIDTH = 95  # characters per line, which JupyterLab shows without wrapping them
_PARAMETER = r"[\w, ]+ : "  # how the line of one or several parameters begins

__all__ = ["check", "describe", "mark", "names"]


def names() -> list[str]:
    """The names of the exercises, subject by subject."""
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


def mark(
    folder: str | Path, *names: str, seconds: float = 20.0, table: str | Path | None = None
) -> list[Marked]:
    """Check the exercises in each file of a folder, print a table, and say what is wrong with each wrong one.

    A file is a module (.py) or a notebook (.ipynb). Only its imports, functions, classes and constants are
    run; a function belongs to an exercise if ``exercises.check("NAME", function)`` stands in the file, or if
    it is called ``NAME`` or ``my_NAME``. The files run with your rights: this is no sandbox.

    Parameters
    ----------
    folder : str or Path
        Holds the files, one for each student.
    *names : str
        The exercises that were set; by default those that any of the files has.
    seconds : float
        An exercise that takes longer is wrong.
    table : str or Path, optional
        A CSV file to be written, with a row for each file and exercise.

    Returns
    -------
    list of Marked
        In the order of the files' names, each with its ``verdicts`` by exercise.

    Raises
    ------
    InputError
        For an unknown name, a folder without such files, or a table that cannot be written. Whatever the
        files do wrong is printed, not raised.

    Examples
    --------
    >>> exercises.mark("hand-ins", "nms", "box_iou", table="marks.csv")  # doctest: +SKIP
    """
    for name in names:
        _find(name)
    return mark_files(folder, names, seconds, table)


def _narrow(task: str) -> str:
    """A task within `_WIDTH`: each paragraph, and in it each "name : what it is", is rewrapped."""
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
