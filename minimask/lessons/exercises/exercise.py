"""What an exercise is, and how a reader's function is judged: right, or wrong, where, and why."""

from __future__ import annotations

import inspect
import itertools
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from minimask.autograd import Tensor

OVERWRITTEN = "overwritten instead of added: right where one contribution arrives, wrong where several meet"


@dataclass(frozen=True)
class Verdict:
    """What `check` found; truthy if the function is right.

    Attributes
    ----------
    right : bool
    text : str
        What `check` printed.
    mistakes : tuple of str
        The usual mistakes that would give what the function gave.
    """

    right: bool
    text: str
    mistakes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.right

    def _ipython_display_(self) -> None:
        """Show nothing: `check` has printed the text already."""


@dataclass(frozen=True)
class Exercise:
    """A task, its solution, and what people usually get wrong.

    Parameters
    ----------
    answer : callable
        Gives what is right. It has the signature of the reader's function, and its docstring is the task. The
        words after "Give" in it name the results; where the result is a dict, its keys do.
    cases : callable
        Generator -> {what is special about the case: inputs}; the most telling case first.
    mistakes : dict
        {what the reader did: what that gives}. The latter is a callable like `answer`, or
        {parameter: change}: `answer`, called with ``change(namespace of all inputs)`` for that parameter.
    contributions : dict
        {result: callable that takes the inputs and counts the terms that add up to each of its elements}.
    """

    answer: Callable
    cases: Callable[[np.random.Generator], dict[str, tuple]]
    mistakes: dict[str, Callable | dict[str, Callable]]
    contributions: dict[str, Callable] = field(default_factory=dict)

    @property
    def parameters(self) -> list[str]:
        return list(inspect.signature(self.answer).parameters)

    @property
    def results(self) -> list[str]:
        return re.search(r"Give ([\w, ]+?) ?[:(]", self.answer.__doc__).group(1).split(", ")

    def describe(self) -> str:
        """The signature and the task, as text."""
        return f"{self.answer.__name__}({', '.join(self.parameters)})\n\n{inspect.getdoc(self.answer)}"

    def check(self, mine: Callable) -> Verdict:
        """Run a reader's function on all cases, then on the first in float32; stop where it is wrong."""
        name, cases = self.answer.__name__, self.cases(np.random.default_rng(0))
        cases["float32"] = tuple(map(_narrow, next(iter(cases.values()))))
        suspects = list(self.mistakes)
        for case, inputs in cases.items():
            problem, mistakes = self._judge(mine, inputs, suspects)
            if problem:
                looks = "".join(f"\n  It looks like a usual mistake: {mistake}." for mistake in mistakes)
                return Verdict(False, f"{name}: not yet right. Case {case!r}: {problem}.{looks}", mistakes)
            suspects = self._not_ruled_out(suspects, inputs)
        return Verdict(True, f"{name}: right, in {len(cases)} cases ({'; '.join(cases)})")

    def mistaken(self, mistake: str, inputs: tuple):
        """What a usual mistake gives for these inputs."""
        wrong, given = self.mistakes[mistake], dict(zip(self.parameters, inputs))
        with np.errstate(all="ignore"):
            if callable(wrong):
                return wrong(*inputs)
            changed = {name: change(SimpleNamespace(**given)) for name, change in wrong.items()}
            return self.answer(**given | changed)

    def _not_ruled_out(self, suspects: list[str], inputs: tuple) -> list[str]:
        """The mistakes that a function which is right here can still make: they make no difference here."""
        right = self._by_name(self.answer(*inputs))
        return [mistake for mistake in suspects if self._gives(mistake, right, right, inputs)]

    def _judge(self, mine: Callable, inputs: tuple, suspects: list[str]) -> tuple[str, tuple[str, ...]]:
        """What is wrong with the function on these inputs ("" if nothing), and which mistakes give that."""
        result, problem = self._run(mine, inputs)
        if problem:
            return problem, ()
        wanted, given = self._by_name(self.answer(*inputs)), self._by_name(result)
        if not wanted.keys() <= given.keys():
            missing = f"your function gives {_a(result)}; wanted: {', '.join(wanted)}"
            return missing, tuple(m for m in suspects if self._gives(m, given, wanted, inputs))
        for name, right in wanted.items():
            problem, mistakes = self._judge_result(name, given[name], np.asarray(right), inputs, suspects)
            if problem:
                return f"{name} {problem}", mistakes
        return "", ()

    def _judge_result(
        self, name: str, mine, right: np.ndarray, inputs: tuple, suspects: list[str]
    ) -> tuple[str, tuple[str, ...]]:
        """The same for one of the results."""
        if problem := _not_comparable(mine, right):
            return f"is {problem}", ()
        mine = np.asarray(mine)
        if not same(mine, right):
            mistakes = tuple(m for m in suspects if self._gives(m, {name: mine}, [name], inputs))
            mistakes = mistakes or self._overwritten(name, mine, right, inputs) or _of_any(mine, right)
            return _difference(mine, right), mistakes
        if mine.dtype.itemsize > right.dtype.itemsize == 4:
            return "is right, but float64: np.zeros, for one, makes that unless told dtype=", ()
        return "", ()

    def _run(self, mine: Callable, inputs: tuple) -> tuple[Any, str]:
        """What the function gives, and "" or, in words, why that is nothing to judge."""
        copies = [_each_array(np.copy, x) for x in inputs]
        try:
            result = mine(*copies)
        except Exception as error:
            if error.__traceback__.tb_next is None:  # raised by the call itself: the signature is wrong
                return None, f"give a function of ({', '.join(self.parameters)}): {error}"
            return None, _raised(error, mine)
        for name, old, new in zip(self.parameters, inputs, copies):
            if not _unchanged(old, new):
                return None, f"your function changes its input {name}, which others still read: copy it"
        return result, ""

    def _by_name(self, result) -> dict:
        """{name: result}; empty if their number is wrong."""
        if isinstance(result, dict) or len(self.results) == 1:
            return result if isinstance(result, dict) else {self.results[0]: result}
        fits = isinstance(result, (tuple, list)) and len(result) == len(self.results)
        return dict(zip(self.results, result)) if fits else {}

    def _gives(self, mistake: str, results: dict, names, inputs: tuple) -> bool:
        """Whether a usual mistake gives these results, as far as they have these names."""
        wrong = self._by_name(self.mistaken(mistake, inputs))
        return all(same(results.get(name), wrong.get(name)) for name in names)

    def _overwritten(self, name: str, mine, right, inputs: tuple) -> tuple[str, ...]:
        """`OVERWRITTEN`, if the result is wrong only where several terms meet."""
        if name not in self.contributions or mine.shape != right.shape:
            return ()
        counts = np.broadcast_to(self.contributions[name](*inputs), right.shape)
        return (OVERWRITTEN,) if (counts[_differs(mine, right)] > 1).all() else ()


EXERCISES: dict[str, Exercise] = {}


def exercise(cases: Callable, mistakes: dict, contributions: dict | None = None) -> Callable:
    """Decorate the answer to an exercise, which registers it: see `Exercise`."""

    def register(answer):
        EXERCISES[answer.__name__] = Exercise(answer, cases, mistakes, contributions or {})
        return answer

    return register


def gradients(function: Callable, gy, *inputs) -> tuple:
    """The gradients of the inputs, by minimask's own backward pass."""
    tensors = [Tensor(x, True) for x in inputs]
    function(*tensors).backward(gy)
    return tuple(x.grad for x in tensors)


def same(mine, right) -> bool:
    """Whether two results agree in shape and, as far as rounding lets them, in value; two Nones do."""
    if mine is None or right is None:
        return mine is right
    mine, right = np.asarray(mine), np.asarray(right)
    return mine.shape == right.shape and not _differs(mine, right).any()


def _differs(mine, right):
    """Where two arrays of the same shape differ; NaN differs from everything."""
    tolerance = 1e-4 if right.dtype == np.float32 else 1e-9  # leaves room for another order of summation
    return ~(np.abs(mine - right) <= tolerance * max(np.abs(right).max(initial=0), 1e-30))


def _each_array(change: Callable, x):
    """An input with its array, or each array of a dict, changed; other inputs as they are."""
    if isinstance(x, dict):
        return {name: _each_array(change, value) for name, value in x.items()}
    return change(x) if isinstance(x, np.ndarray) else x


def _unchanged(old, new) -> bool:
    if isinstance(old, dict):
        return old.keys() == new.keys() and all(_unchanged(old[name], new[name]) for name in old)
    return not isinstance(old, np.ndarray) or np.array_equal(old, new, equal_nan=True)


def _narrow(x):
    return _each_array(lambda a: a.astype(np.float32) if a.dtype.kind == "f" else a, x)


def _a(thing) -> str:
    """A thing in words."""
    if thing is None:
        return "None (is a return missing?)"
    if isinstance(thing, (dict, tuple, list)):
        what = ", ".join(map(str, thing)) if isinstance(thing, dict) else f"{len(thing)}"
        return f"a {type(thing).__name__} of {what}"
    return f"an array {thing.shape}" if isinstance(thing, np.ndarray) else f"a {type(thing).__name__}"


def _not_comparable(mine, right: np.ndarray) -> str:
    """Why a result cannot be compared, in words; "" if it can."""
    if not isinstance(mine, (np.ndarray, np.generic, int, float)):
        return f"{_a(mine)}, not an array"
    dtype = np.asarray(mine).dtype
    fits = dtype.kind == right.dtype.kind or (dtype.kind in "iu" and right.dtype.kind == "i")
    return "" if fits else f"of {dtype}, not of {right.dtype}"


def _raised(error: Exception, mine: Callable) -> str:
    """An exception of the reader's function in words, with the line of the function that led to it."""
    path = getattr(getattr(mine, "__code__", None), "co_filename", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    where = f" in line {frames[-1].lineno}: {frames[-1].line}" if frames else ""
    return f"your function raises {type(error).__name__} ({' '.join(str(error).split())}){where}"


def _difference(mine: np.ndarray, right: np.ndarray) -> str:
    """How many elements are wrong, the worst, and the image, row or column they all lie in, if one."""
    if mine.shape != right.shape:
        return f"has the shape {mine.shape}, not {right.shape}"
    wrong = _differs(mine, right)
    error = np.where(wrong, np.nan_to_num(np.abs(mine - right), nan=np.inf), -1.0)
    worst = tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))
    along_axes = wrong.nonzero() if wrong.ndim > 1 else ()
    affected = [np.unique(indices) for indices in along_axes]
    places = [str(hit[0]) if len(hit) == 1 < n else ":" for hit, n in zip(affected, wrong.shape)]
    where = f", all in [{', '.join(places)}]" if set(places) > {":"} else ""
    return (
        f"has {wrong.sum()} of {wrong.size} elements wrong{where}; the worst at {list(worst)}: "
        f"yours {mine[worst]:.6g}, right {right[worst]:.6g}"
    )


def _of_any(mine: np.ndarray, right: np.ndarray) -> tuple[str, ...]:
    """Mistakes that any result can show: a factor, or axes in another order."""
    if mine.shape == right.shape and right.dtype.kind == "f" and right.any():
        factor = float((mine * right).sum() / (right * right).sum())
        if same(mine, factor * right):
            return ({-1.0: "the sign", 0.0: "all zeros"}.get(round(factor, 9), f"a factor of {factor:.6g}"),)
    for axes in itertools.permutations(range(mine.ndim)):
        if right.size and list(axes) != sorted(axes) and same(mine.transpose(axes), right):
            return (f"axes swapped: your result's transpose{axes} is right",)
    return ()
