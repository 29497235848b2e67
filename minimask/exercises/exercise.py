"""What an exercise is, and how a reader's function is judged: right, or wrong, where, and why."""

from __future__ import annotations

import inspect
import itertools
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minimask.autograd import Tensor

TOLERANCE = 1e-9  # of the largest right value: float64 leaves room for another order of summation


class Text(str):
    """A string that a notebook shows as it reads."""

    __repr__ = str.__str__


@dataclass(frozen=True)
class Verdict:
    """What `check` found; true where the function is right.

    Attributes
    ----------
    right : bool
    text : str
        What `check` printed.
    mistakes : tuple of str
        The usual mistakes that give what the function gave.
    """

    right: bool
    text: str
    mistakes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.right

    def _ipython_display_(self) -> None:
        """Nothing: `check` has printed the text."""


@dataclass(frozen=True)
class Pattern:
    """A usual mistake that is known by where the result is wrong: ``matches(mine, right, *inputs)``."""

    matches: Callable[..., bool]


@dataclass(frozen=True)
class Exercise:
    """A task, what solves it, and what people usually get wrong.

    Parameters
    ----------
    answer : callable
        Gives what is right. Its docstring is the task, its signature the reader's.
    cases : callable
        Generator -> {what is special: inputs}; the most telling first.
    mistakes : dict
        {what the reader did: Pattern, or a callable that does the same to the same inputs}.
    returns : tuple of str
        Names of the results; those of a dict are its keys.
    """

    answer: Callable
    cases: Callable[[np.random.Generator], dict[str, tuple]]
    mistakes: dict[str, Callable | Pattern]
    returns: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.answer.__name__

    def describe(self) -> Text:
        """The signature and the task."""
        task = inspect.getdoc(self.answer)
        return Text(f"def {self.name}{inspect.signature(self.answer)}:\n\n{task}")

    def check(self, mine: Callable) -> Verdict:
        """Run a reader's function on all cases, and stop at the first that is wrong."""
        if not callable(mine):
            return self._wrong(f"give the function itself, not {_a(mine)}: check({self.name!r}, mine)")
        cases = self.cases(np.random.default_rng(0))
        for case, inputs in cases.items():
            problem, mistakes = self._judge(mine, inputs)
            if problem:
                return self._wrong(f"case {case!r}: {problem}", mistakes)
        if self._widens(mine, next(iter(cases.values()))):
            return self._wrong(
                "the numbers are right, but float32 inputs give float64: np.zeros, for one, makes float64 "
                "unless told dtype="
            )
        return Verdict(True, f"{self.name}: right, in {len(cases)} cases ({'; '.join(cases)})")

    def _wrong(self, problem: str, mistakes: tuple[str, ...] = ()) -> Verdict:
        looks = "".join(f"\n  It looks like this usual mistake: {mistake}." for mistake in mistakes)
        return Verdict(False, f"{self.name}: not yet right; {problem}.{looks}", mistakes)

    def _judge(self, mine: Callable, inputs: tuple) -> tuple[str, tuple[str, ...]]:
        """What is wrong with the function on these inputs ("" if nothing), and which mistakes give that."""
        result, problem = self._run(mine, inputs)
        if problem:
            return problem, ()
        rights = self._parts(self.answer(*inputs))
        parts = self._parts(result)
        if parts.keys() != rights.keys() and not (isinstance(result, dict) and rights.keys() <= parts.keys()):
            wanted = ", ".join(rights)
            return f"your function gives {_a(result)}; wanted: {wanted}", self._mistakes(
                parts, rights, inputs
            )
        for name, right in rights.items():
            problem = _not_an_array(parts[name], np.asarray(right))
            if problem:
                return f"{name} is {problem}", ()
        for name, right in rights.items():
            if not same(parts[name], right):
                mistakes = self._mistakes({name: parts[name]}, {name: right}, inputs)
                return f"{name} {_difference(np.asarray(parts[name]), np.asarray(right))}", mistakes
        return "", ()

    def _run(self, mine: Callable, inputs: tuple) -> tuple[Any, str]:
        """What the function gives; or, in words, why there is nothing."""
        names = list(inspect.signature(self.answer).parameters)
        copies = [x.copy() if isinstance(x, np.ndarray) else x for x in inputs]
        if not _takes(mine, copies):
            return None, f"your function must take ({', '.join(names)})"
        try:
            result = mine(*copies)
        except Exception as error:
            return None, _raised(error, mine)
        for name, old, new in zip(names, inputs, copies):
            if isinstance(old, np.ndarray) and not np.array_equal(old, new, equal_nan=True):
                return (
                    None,
                    f"your function changes its input {name} in place; others still read it: work on a copy",
                )
        return result, ""

    def _parts(self, result) -> dict[str, Any]:
        """Results by name; of a wrong number of them, some names are missing or are numbers."""
        if isinstance(result, dict):
            return result
        if len(self.returns) > 1:
            result = result if isinstance(result, (tuple, list)) else [result]
            return dict(zip([*self.returns, *range(len(result))], result))
        return {self.returns[0]: result}

    def _mistakes(self, parts: dict, rights: dict, inputs: tuple) -> tuple[str, ...]:
        """The usual mistakes that give these results, and only then what any function may get wrong."""
        found = []
        for text, mistake in self.mistakes.items():
            if isinstance(mistake, Pattern):
                hit = all(np.shape(parts[n]) == np.shape(rights[n]) for n in rights) and all(
                    mistake.matches(parts[n], rights[n], *inputs) for n in rights
                )
            else:
                wrong = self._parts(mistake(*inputs))
                hit = all(same(parts.get(n), wrong.get(n)) for n in rights)
            found += [text] * hit
        return tuple(found) or _of_any_function(parts, rights)

    def _widens(self, mine: Callable, inputs: tuple) -> bool:
        """Whether float32 inputs give float64 where they need not."""
        is_float = [isinstance(x, np.ndarray) and x.dtype.kind == "f" for x in inputs]
        narrow = [x.astype(np.float32) if f else x for x, f in zip(inputs, is_float)]
        rights, parts = self._parts(self.answer(*narrow)), self._parts(mine(*narrow))
        return any(
            np.asarray(parts[n]).dtype.itemsize > np.asarray(y).dtype.itemsize for n, y in rights.items()
        )


def same(mine, right) -> bool:
    """Whether two results agree, in shape and to `TOLERANCE` of the largest element; two Nones do."""
    if mine is None or right is None:
        return mine is right
    mine, right = np.asarray(mine), np.asarray(right)
    return mine.shape == right.shape and not _differs(mine, right).any()


def _differs(mine, right):
    """Where two arrays of one shape differ; NaN does from all."""
    return ~(np.abs(mine - right) <= TOLERANCE * max(np.abs(right).max(initial=0), 1e-30))


def _a(thing) -> str:
    """A thing in words."""
    if thing is None:
        return "None (is a return missing?)"
    if isinstance(thing, np.ndarray):
        return f"an array {thing.shape}"
    if isinstance(thing, dict):
        return f"a dict of {', '.join(map(str, thing)) or 'nothing'}"
    if isinstance(thing, (tuple, list)):
        return f"a {type(thing).__name__} of {len(thing)}"
    return f"a {type(thing).__name__}"


def _not_an_array(mine, right: np.ndarray) -> str:
    """In words: why a result cannot be compared; "" if it can."""
    if isinstance(mine, Tensor):
        return "a Tensor: take and give plain arrays here"
    if not isinstance(mine, (np.ndarray, np.generic, int, float)):
        return f"{_a(mine)}, not an array"
    mine = np.asarray(mine)
    if right.dtype.kind == "f" and mine.dtype.kind != "f":
        return f"of {mine.dtype}, which cannot hold fractions: it should be of {right.dtype}"
    if right.dtype.kind == "i" and mine.dtype.kind not in "iu":
        return f"of {mine.dtype}; it holds indices, so it should be of {right.dtype}"
    return ""


def _takes(mine: Callable, inputs: list) -> bool:
    try:
        inspect.signature(mine).bind(*inputs)
    except TypeError:
        return False
    except ValueError:  # nothing known of its signature, as of some of NumPy's: the call will tell
        return True
    return True


def _raised(error: Exception, mine: Callable) -> str:
    """An exception of the reader's function in words, with the line of that function that led to it."""
    path = getattr(getattr(mine, "__code__", None), "co_filename", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    where = f" at line {frames[-1].lineno}, {frames[-1].line}" if frames else ""
    return f"your function raises {type(error).__name__} ({' '.join(str(error).split())}){where}"


def _difference(mine: np.ndarray, right: np.ndarray) -> str:
    """How many elements are wrong, where, and the worst."""
    if mine.shape != right.shape:
        return f"has the shape {mine.shape}, not {right.shape}"
    wrong = _differs(mine, right)
    error = np.where(wrong, np.nan_to_num(np.abs(mine - right), nan=np.inf), -1.0)
    worst = tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))
    where = _where(wrong) if wrong.ndim > 1 else ""
    return (
        f"has {wrong.sum()} of {wrong.size} elements wrong{where}; the worst at {list(worst)}: "
        f"yours {mine[worst]:.6g}, right {right[worst]:.6g}"
    )


def _where(wrong: np.ndarray) -> str:
    """Which image, row or column all wrong elements lie in, if one."""
    places = []
    for axis, length in enumerate(wrong.shape):
        hit = np.flatnonzero(wrong.any(axis=tuple(a for a in range(wrong.ndim) if a != axis)))
        places.append(str(hit[0]) if len(hit) == 1 < length else ":")
    return f", all in [{', '.join(places)}]" if set(places) != {":"} else ""


def _of_any_function(parts: dict, rights: dict) -> tuple[str, ...]:
    """Mistakes that any result may show: a factor, axes in another order."""
    if len(rights) != 1:
        return ()
    mine, right = (np.asarray(next(iter(p.values()), None)) for p in (parts, rights))
    if mine.dtype.kind != "f" or not right.size:
        return ()
    if mine.shape == right.shape:
        factor = float((mine * right).sum() / max((right * right).sum(), 1e-300))
        if same(mine, np.zeros_like(right)):
            return ("all zeros: nothing is ever written",)
        if same(mine, factor * right):
            return ("the sign",) if same(mine, -right) else (f"a factor of {factor:.6g} too much",)
    for axes in itertools.permutations(range(mine.ndim)):
        if list(axes) != sorted(axes) and same(mine.transpose(axes), right):
            return (f"axes swapped: your result's transpose{axes} is right",)
    return ()
