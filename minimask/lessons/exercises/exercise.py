"""What an exercise is, and how a reader's function is judged: right, or wrong, where, and why.

`running` calls the function, `comparing` compares what it gives.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from minimask.autograd import Tensor
from minimask.lessons.exercises import comparing
from minimask.lessons.exercises.comparing import same
from minimask.lessons.exercises.running import Run, a, limited_prints, one_line, run

OVERWRITTEN = "overwritten instead of added: right where one contribution arrives, wrong where several meet"


@dataclass(frozen=True)
class Verdict:
    """What `check` found; truthy if the function is right.

    Attributes
    ----------
    right : bool
    text : str
        What `check` printed; there, long lines are wrapped.
    mistakes : tuple of str
        The common mistakes that would give what the function gave.
    notes : tuple of str
        Further remarks: on a right function, what it costs; on a wrong one, what NumPy warned of.
    inputs : tuple
        Those of the case that went wrong, to try the function on; empty if none did.
    """

    right: bool
    text: str
    mistakes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    inputs: tuple = field(default=(), repr=False, compare=False)

    def __bool__(self) -> bool:
        return self.right

    def _ipython_display_(self) -> None:
        """Show nothing: `check` has printed the text already."""


@dataclass(frozen=True)
class Finding:
    """What one case shows: what is wrong ("" if nothing), the mistakes that would give it, and remarks.

    A remark is a text, with {} for the results that it concerns, and the name of one of them.
    """

    problem: str = ""
    mistakes: tuple[str, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()


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
        {parameter: change}: `answer`, called with ``change(namespace of all inputs)`` for that parameter; or
        a list of these, where the same mistake can be made in several places.
    contributions : dict
        {result: callable that takes the inputs and counts the terms that add up to each of its elements}.
    """

    answer: Callable
    cases: Callable[[np.random.Generator], dict[str, tuple]]
    mistakes: dict[str, Callable | dict[str, Callable] | list]
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

    def all_cases(self) -> dict[str, tuple]:
        """The cases, and the first of them in float32."""
        cases = self.cases(np.random.default_rng(0))
        return cases | {"float32": tuple(map(_narrow, next(iter(cases.values()))))}

    def check(self, mine: Callable) -> Verdict:
        """Run a reader's function on all cases, then on the first in float32; stop where it is wrong."""
        name, cases, notes = self.answer.__name__, self.all_cases(), []
        suspects = list(self.variants())
        with limited_prints() as left_out:
            for case, inputs in cases.items():
                found = self._judge(mine, inputs, suspects)
                if found.problem:
                    said = f"{name}: not yet right. Case {case!r}: {found.problem}."
                    said += "".join(f"\n  It looks like a common mistake: {m}." for m in found.mistakes)
                    return _verdict(False, said, found.mistakes, [*found.notes, (left_out(), "")], inputs)
                notes += found.notes
                suspects = self._not_ruled_out(suspects, inputs)
            notes.append((left_out(), ""))
        said = f"{name}: right, in {len(cases)} cases ({'; '.join(cases)})"
        return _verdict(True, said, (), notes, ())

    def variants(self) -> dict[tuple[str, int], Callable | dict]:
        """Each mistake in each place where it can be made: {(mistake, number): what it gives}."""
        return {
            (mistake, i): wrong
            for mistake, places in self.mistakes.items()
            for i, wrong in enumerate(places if isinstance(places, list) else [places])
        }

    def mistaken(self, variant: tuple[str, int], inputs: tuple):
        """What a common mistake gives for these inputs."""
        wrong, given = self.variants()[variant], dict(zip(self.parameters, inputs))
        with np.errstate(all="ignore"):
            if callable(wrong):
                return wrong(*inputs)
            changed = {name: change(SimpleNamespace(**given)) for name, change in wrong.items()}
            return self.answer(**given | changed)

    def right_results(self, inputs: tuple) -> dict:
        """{name: what is right}, whatever the reader has told NumPy to do on overflow."""
        with np.errstate(all="ignore"):
            return self.by_name(self.answer(*inputs))

    def by_name(self, result) -> dict:
        """{name: result}; empty if their number is wrong."""
        if isinstance(result, dict):
            return result
        if len(self.results) == 1:
            return {self.results[0]: result}
        fits = isinstance(result, (tuple, list)) and len(result) == len(self.results)
        return dict(zip(self.results, result)) if fits else {}

    def _not_ruled_out(self, suspects: list, inputs: tuple) -> list:
        """The mistakes that a function that is right here may still make, as they change nothing here."""
        right = self.right_results(inputs)
        return [variant for variant in suspects if self._gives(variant, right, right, inputs)]

    def _judge(self, mine: Callable, inputs: tuple, suspects: list) -> Finding:
        """What there is to say about the function on these inputs."""
        ran = run(mine, self.parameters, inputs)
        warned = tuple((f"Python warns: {w}", "") for w in ran.warned)
        if ran.problem:
            return Finding(ran.problem, notes=warned)
        try:
            found = self._compare(ran, inputs, suspects)
        except Exception as error:  # a result that cannot be looked at without running the reader's code
            found = Finding(
                f"your function gives {a(ran.result)} that cannot be compared ({one_line(error)})"
            )
        return Finding(found.problem, found.mistakes, found.notes + warned)

    def _compare(self, ran: Run, inputs: tuple, suspects: list) -> Finding:
        wanted, given, notes = self.right_results(inputs), self.by_name(ran.result), ()
        if not wanted.keys() <= given.keys():
            hint = " (is a return missing?)" if ran.result is None else ""
            missing = f"your function gives {a(ran.result)}{hint}; wanted: {', '.join(wanted)}"
            return Finding(missing, self._named(suspects, given, wanted, inputs))
        if isinstance(ran.result, dict) and (more := [str(n) for n in given if n not in wanted]):
            return Finding(f"your function gives {one_line(', '.join(more))} as well, which is not wanted")
        for name, right in wanted.items():
            parts = [given] if isinstance(ran.result, dict) else [given, {name: given[name]}]  # a dict is one
            found = self._compare_result(name, parts, np.asarray(right), inputs, suspects)
            if found.problem:
                return Finding(f"{name} {found.problem}", found.mistakes)
            notes += found.notes
        return Finding(notes=notes)

    def _compare_result(self, name: str, parts: list, right: np.ndarray, inputs, suspects: list) -> Finding:
        """The same for one of the results. The mistakes named are those that give all of a part.

        That is the first part that any mistake gives. The parts begin with all results together, some of
        which may be right: they tell apart mistakes that a single result does not.
        """
        mine, problem = comparing.as_array(parts[0][name], right)
        if problem:
            return Finding(f"is {problem}")
        if problem := comparing.dtype_problem(mine, right):
            return Finding(
                f"is {problem}", () if same(mine, right) else self._named_by(parts, suspects, inputs)
            )
        if not (same(mine, right) or comparing.of_nothing(mine, right)):
            mistakes = self._named_by(parts, suspects, inputs) or self._overwritten(name, mine, right, inputs)
            return Finding(comparing.difference(mine, right), mistakes or comparing.of_any(mine, right))
        return Finding(notes=((comparing.note(parts[0][name], mine, right), name),))

    def _named(self, suspects: list, results: dict, names, inputs: tuple) -> tuple[str, ...]:
        """The mistakes that give these results, each once."""
        return tuple(dict.fromkeys(v[0] for v in suspects if self._gives(v, results, names, inputs)))

    def _named_by(self, parts: list[dict], suspects: list, inputs: tuple) -> tuple[str, ...]:
        """The mistakes that give the first of these results that any gives."""
        return next(filter(None, (self._named(suspects, part, part, inputs) for part in parts)), ())

    def _gives(self, variant: tuple[str, int], results: dict, names, inputs: tuple) -> bool:
        """Whether a common mistake gives those of the results that have these names."""
        try:
            wrong = self.by_name(self.mistaken(variant, inputs))
        except Exception:  # with these inputs, the mistake raises an exception
            return False
        return all(same(results.get(name), wrong.get(name)) for name in names)

    def _overwritten(self, name: str, mine, right, inputs: tuple) -> tuple[str, ...]:
        """`OVERWRITTEN`, if the result is wrong only where several terms meet."""
        if name not in self.contributions or mine.shape != right.shape:
            return ()
        counts = np.broadcast_to(self.contributions[name](*inputs), right.shape)
        return (OVERWRITTEN,) if (counts[comparing.differs(mine, right)] > 1).all() else ()


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


def _verdict(right: bool, said: str, mistakes: tuple, notes: list[tuple[str, str]], inputs: tuple) -> Verdict:
    """The verdict, with each note once, however many results it concerns."""
    of: dict[str, list[str]] = {}
    for text, name in notes:
        of.setdefault(text, []).append(name)
    of.pop("", None)
    lines = tuple(text.replace("{}", ", ".join(dict.fromkeys(names))) for text, names in of.items())
    return Verdict(right, said + "".join(f"\n  Note: {line}." for line in lines), mistakes, lines, inputs)


def _narrow(x):
    if isinstance(x, dict):
        return {name: _narrow(value) for name, value in x.items()}
    return x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x
