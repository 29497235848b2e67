"""The table of gradient cases: for every Function, inputs to try it on and what it must equal there.

`minimask gradcheck`, the tests and the notebooks read the same table. A new Function needs a row here: a test
walks the package and fails for a Function that has none.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence

import numpy as np

import minimask
from minimask.autograd import Function
from minimask.errors import InputError
from minimask.gradient_check import GradientReport, gradcheck
from minimask.lessons.gradient_cases import array, layers, loss, roi
from minimask.lessons.gradient_cases.case import Case

__all__ = ["CASES", "Case", "all_functions", "check_function", "named_functions", "run_table"]

TOLERANCE = 1e-6  # of the relative error, in float64
ATTEMPTS = 6  # how often inputs are drawn, at most, if they happen to lie at a kink

CASES: dict[type[Function], list[Case]] = array.CASES | layers.CASES | roi.CASES | loss.CASES

_OTHER_NAMES = {"l1": "smoothl1", "take": "getitem"}  # functions whose class has another name


def all_functions() -> list[type[Function]]:
    """Every subclass of Function that the package defines, sorted by module and line."""
    for module in pkgutil.walk_packages(minimask.__path__, "minimask."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found = [
        cls
        for cls in _subclasses(Function)
        if cls.__module__.startswith("minimask.") and not cls.__name__.startswith("_")  # bases of others
    ]
    return sorted(set(found), key=lambda cls: (cls.__module__, cls.forward.__code__.co_firstlineno))


def _subclasses(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def named_functions(names: Sequence[str]) -> list[type[Function]]:
    """The Functions of these names; all of them if no names are given.

    Parameters
    ----------
    names : sequence of str
        Classes ("RoIAlign") or the functions people call ("roi_align").

    Raises
    ------
    InputError
        For a name that is neither; the message suggests the nearest one.
    """
    functions = {cls.__name__.lower(): cls for cls in all_functions()}
    chosen = []
    for name in names:
        key = name.lower().replace("_", "")
        key = _OTHER_NAMES.get(key, key)
        if key not in functions:
            near = difflib.get_close_matches(key, functions, n=1, cutoff=0.4)
            hint = f"did you mean {functions[near[0]].__name__}?" if near else "give none to see all names"
            raise InputError(f"gradcheck: no Function is called {name!r}; {hint}")
        chosen.append(functions[key])
    return chosen or list(functions.values())


def check_function(cls: type[Function], case: Case, seed: int = 0) -> GradientReport:
    """Check the gradient of one case. Inputs at a kink are drawn again, up to `ATTEMPTS` draws in all."""
    for attempt in range(ATTEMPTS):
        inputs = case.inputs(np.random.default_rng([seed, attempt]))
        report = gradcheck(
            lambda *xs: case.function(cls)(*xs),
            case.tensors(inputs),
            tolerance=TOLERANCE,
            seed=seed,
            raise_error=False,
        )
        if not report.kink:
            break
    return report


def run_table(names: Sequence[str] = (), out: Callable[[str], None] = print) -> bool:
    """Check the Functions of these names, or all of them, and print a line for each case.

    Parameters
    ----------
    names : sequence of str
        As for `named_functions`.
    out : callable
        Called with each line.

    Returns
    -------
    bool
        Whether every Function has cases and all of them agree.

    Raises
    ------
    InputError
        For an unknown name.
    """
    functions = named_functions(names)
    row = "{:<19} {:<30} {:>7}  {:<10} {}".format
    out(row("Function", "case", "error", "worst at", "verdict").rstrip())
    checked = failed = 0
    for cls in functions:
        for case in CASES.get(cls, ()):
            report = check_function(cls, case)
            checked, failed = checked + 1, failed + (not report)
            verdict = "ok" if report else "KINK" if report.kink else "WRONG"
            out(row(cls.__name__, case.name, f"{report.worst_error:.1e}", report.where, verdict))
            if not report:
                out(f"    {report.kink or report.mismatch}")
        if not CASES.get(cls):
            failed += 1
            out(row(cls.__name__, "none in gradient_cases", "", "", "UNCHECKED"))
    summary = f"{failed} failed" if failed else f"all below {TOLERANCE:g}"
    out(f"{checked} cases of {len(functions)} Function{'s' * (len(functions) != 1)}: {summary}")
    return not failed
