"""log.jsonl, a run as it went: a line with a JSON object for each step, each validation and each start.

losses.csv, which is equal for equal runs, holds no times; this has the time, and the validations' results.
"""

import datetime
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minimask.errors import InputError, one_line
from minimask.files import open_regular, write_text
from minimask.training.run_file import RunFile

_MEND = "put it right, or move it away: --resume then goes on without its lines for the steps done so far"
_KINDS = ("validation", "start")  # a line with neither is a step's


class RunLog(RunFile):
    """Writes log.jsonl: each line has ``step`` and ``time``, and one of these.

    A step: ``seconds``, ``images_per_second``, the learning rate, the losses. A validation, made after that
    step: ``validation``, with ``score``, by which the best one is chosen. A start or resume: ``start``.

    Parameters
    ----------
    path : Path
    step : int
        Steps done. Lines beyond them are cut off, as in losses.csv.
    writes : bool
        False: touch nothing, because another process writes.
    note : callable
        Called with a line if the file lacks steps that were done.

    Attributes
    ----------
    validations : list of dict
        The lines of validations.

    Raises
    ------
    InputError
        If the lines of those steps cannot be read, and the file is then left as it was; or if it cannot be
        written.
    """

    def __init__(
        self, path: Path, step: int, writes: bool = True, note: Callable[[str], None] = lambda line: None
    ):
        super().__init__(path)
        self.validations: list[dict[str, Any]] = []
        if not writes:
            return
        rows = _read(path, step) if step and os.path.lexists(path) else []
        self.validations = [row for row in rows if "validation" in row]
        lacking = step - sum(not any(kind in row for kind in _KINDS) for row in rows)
        if lacking > 0:
            note(f"{path} lacks {lacking} of the {step} steps done, and the validations among them")
        write_text(path, "".join(map(_line, rows)))
        self.open()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append a line, which readers see at once."""
        if not self.file:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        row = {"step": step, "time": now, **values}
        if "validation" in values:
            self.validations.append(row)
        self.append(_line(row))


def read_run_log(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl; a last one that was cut off midway is left out.

    Raises
    ------
    InputError
        If there is no such file, or it is damaged.
    """
    return _read(Path(path))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _read(path: Path, step: int | None = None) -> list[dict[str, Any]]:
    """The lines up to a step."""
    try:
        with open_regular(path) as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); {_MEND}") from error
    rows, last = [], 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row, problem = _parsed(line, last)
        if problem and number == len(lines):  # without its end: the run was killed while it wrote
            break
        if problem:
            raise InputError(f"{path}: damaged (line {number} {one_line(problem, 120)}); {_MEND}")
        if step is None or row["step"] <= step:
            rows.append(row)
            last = row["step"]
    return rows


def _parsed(line: bytes, last: int) -> tuple[dict[str, Any], str | None]:
    """A line's object, and what is wrong with it, or None."""
    try:
        row = json.loads(line.decode("utf-8-sig"), parse_constant=_refused)
    except (ValueError, RecursionError):
        return {}, "is not a JSON object"
    if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 0:
        return {}, "is not a JSON object with a step"
    if row["step"] < last:
        return {}, f"has step {row['step']} after step {last}"
    found = row.get("validation", {"score": 0.0})
    if not (isinstance(found, dict) and _is_number(found.get("score"))):
        return {}, "has a validation whose score is not a number"
    wrong = [k for k in row if k in ("seconds", "loss") and not _is_number(row[k])]
    return row, f"has a {wrong[0]} that is not a number" if wrong else None


def _is_number(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")
