"""Running a reader's function, so that whatever it does comes back as a result or as words.

An exception, `sys.exit`, endless recursion, prints without end, warnings, a changed input: none of them
reaches the reader as a traceback.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PRINTED = 2000  # characters of a function's own prints that are shown: enough to look for a mistake with


@dataclass(frozen=True)
class Run:
    """What a call gave.

    Attributes
    ----------
    result : anything
        None where there is a problem.
    problem : str
        Why there is nothing to judge, in words; "" if there is.
    warned : tuple of str
        What NumPy and others warned of, each once, with its line.
    """

    result: Any = None
    problem: str = ""
    warned: tuple[str, ...] = field(default=())


def run(mine: Callable, parameters: list[str], inputs: tuple) -> Run:
    """Call the reader's function with copies of the inputs."""
    if not callable(mine):
        return Run(problem=f"give the function itself, of ({', '.join(parameters)}), not {a(mine)}")
    copies = [copied(x) for x in inputs]
    with warnings.catch_warnings(record=True) as caught, np.errstate(all="warn", under="ignore"):
        warnings.simplefilter("default")  # each place once: a loop may warn a million times
        try:
            result = mine(*copies)
        except BaseException as error:  # SystemExit and KeyboardInterrupt, too
            return Run(problem=_raised(error, mine, parameters), warned=_warned(caught, mine))
    if inspect.iscoroutine(result):
        result.close()  # else Python warns later that nobody waited for it
    for name, old, new in zip(parameters, inputs, copies):
        if _changed(old, new):
            return Run(problem=f"your function changes its input {name}, which others still read: copy it")
    return Run(result, warned=_warned(caught, mine))


def copied(x):
    """A copy of an input, or of a dict of inputs, that may be changed."""
    if isinstance(x, dict):
        return {name: copied(value) for name, value in x.items()}
    return x.copy() if isinstance(x, (np.ndarray, list)) else x


def _changed(old, new) -> bool:
    if isinstance(old, dict):
        return old.keys() != new.keys() or any(_changed(old[name], new[name]) for name in old)
    if isinstance(old, list):
        return len(old) != len(new) or any(one is not other for one, other in zip(old, new))
    return isinstance(old, np.ndarray) and not (
        old.shape == new.shape and np.array_equal(old, new, equal_nan=old.dtype.kind == "f")
    )


def a(thing) -> str:
    """A thing in words."""
    if thing is None:
        return "None"
    if inspect.isgenerator(thing):
        return "a generator (yield makes one; return gives a result)"
    if isinstance(thing, (dict, tuple, list)):
        what = ", ".join(map(str, thing)) if isinstance(thing, dict) else f"{len(thing)}"
        return f"a {type(thing).__name__} of {what or 'nothing'}"
    if isinstance(thing, np.ndarray):
        return f"an array {thing.shape}"
    hint = " (its array is .data)" if type(thing).__name__ == "Tensor" else ""
    kind = type(thing).__name__
    return f"{'an' if kind[:1].lower() in 'aeio' else 'a'} {kind}{hint}"


def one_line(text, limit: int = 200) -> str:
    """Other people's text on one line, cut off where it is long."""
    try:
        text = " ".join(str(text).split())
    except Exception:  # an exception's own __str__ may be what is wrong
        return "?"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _where(error: BaseException, mine: Callable) -> str:
    """The line of the reader's function that led to an exception; "" where it cannot be known."""
    path = getattr(getattr(mine, "__code__", None), "co_filename", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    if not frames:
        return ""
    return f" in line {frames[-1].lineno}" + (f": {frames[-1].line}" if frames[-1].line else "")


def _raised(error: BaseException, mine: Callable, parameters: list[str]) -> str:
    """An exception of the reader's function in words."""
    where = _where(error, mine)
    if isinstance(error, KeyboardInterrupt):
        return f"you stopped it{where} (does a loop never end?)"
    if isinstance(error, SystemExit):
        return f"your function ends the program (sys.exit or exit){where}; give the result with return"
    if isinstance(error, RecursionError):
        return f"your function calls itself without end{where}"
    if isinstance(error, TypeError) and error.__traceback__.tb_next is None:  # the call itself failed
        return f"give a function of ({', '.join(parameters)}): {one_line(error)}"
    said = one_line(error)
    return f"your function raises {type(error).__name__}{f' ({said})' if said else ''}{where}"


def _warned(caught: list, mine: Callable) -> tuple[str, ...]:
    path = getattr(getattr(mine, "__code__", None), "co_filename", None)
    lines = [f"{one_line(w.message)}{f' (line {w.lineno})' if w.filename == path else ''}" for w in caught]
    return tuple(dict.fromkeys(lines))


class _Limited(io.TextIOBase):
    """A stream that passes on the first `limit` characters, and counts the rest."""

    def __init__(self, stream, limit: int):
        super().__init__()
        self.stream, self.left, self.dropped = stream, limit, 0

    def write(self, text: str) -> int:
        shown = text[: self.left]
        self.left -= len(shown)
        self.dropped += len(text) - len(shown)
        if shown:
            self.stream.write(shown)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def close(self) -> None:
        """Stay open: the next case may print, too."""

    def writable(self) -> bool:
        return True


@contextlib.contextmanager
def limited_prints() -> Iterator[Callable[[], str]]:
    """Show the first prints of what runs inside, and say afterwards how many were left out."""
    out, err = _Limited(sys.stdout, PRINTED), _Limited(sys.stderr, PRINTED)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield lambda: _left_out(out, err)


def _left_out(out: _Limited, err: _Limited) -> str:
    if not out.dropped + err.dropped:
        return ""
    for stream in (out, err):
        if stream.dropped:
            stream.stream.write("...\n")
    return f"your function prints a lot: {out.dropped + err.dropped:,} more characters are not shown"
