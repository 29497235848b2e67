"""losses.csv, the record of a run: a row for each step."""

import csv
import io
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from minimask.errors import InputError, one_line
from minimask.files import open_regular, write_text
from minimask.training.run_file import RunFile


class LossLog(RunFile):
    """losses.csv: a row per step, floats written exactly, so that two equal runs have equal files.

    Parameters
    ----------
    path : Path
    step : int
        Steps done. What an interrupted run wrote beyond them is cut off; it will be written again.
    writes : bool
        False: touch nothing, because another process writes.
    note : callable
        Called with a line if the file lacks steps that were done.

    Raises
    ------
    InputError
        If the rows of those steps cannot be read, and the file is then left as it was; or if it cannot be
        written.
    """

    def __init__(
        self, path: Path, step: int, writes: bool = True, note: Callable[[str], None] = lambda line: None
    ):
        super().__init__(path)
        self.columns: list[str] = []
        if writes:
            self._cut_back(step, note)
            self.open()

    def _cut_back(self, step: int, note: Callable[[str], None]) -> None:
        rows: list[list[str]] = []
        if step and os.path.lexists(self.path):
            self.columns, rows = _read(self.path, step)
        if len(rows) < step:
            note(f"{self.path} lacks the losses of {step - len(rows)} of the {step} steps done")
        self._replace(rows)

    def _replace(self, rows: list[list[str]]) -> None:
        """Write the columns' names and these rows; a row that is too short is filled up with empty cells."""
        filled = [row + [""] * (len(self.columns) - len(row)) for row in rows]
        write_text(self.path, "".join(map(_line, [self.columns, *filled] if self.columns else [])))

    def write(self, step: int, row: dict[str, float]) -> None:
        """Append a step's values, which readers see at once.

        A loss that no row has had so far gets a new column; one that this row lacks stays empty.
        """
        if not self.file:
            return
        new = [name for name in row if name not in self.columns[1:]]
        if new:
            self._add_columns(new)
        values = [repr(float(row[name])) if name in row else "" for name in self.columns[1:]]
        self.append(_line([str(step), *values]))

    def _add_columns(self, names: Sequence[str]) -> None:
        with self.writing():
            self.file.close()
        rows = _read(self.path)[1] if self.columns else []
        self.columns = [*(self.columns or ["step"]), *names]
        self._replace(rows)
        self.open()


def read_losses(path: str | Path) -> dict[str, np.ndarray]:
    """losses.csv as columns, for `visualize.loss_curves`; NaN where a step had no such loss.

    Raises
    ------
    InputError
        If there is no such file, or it is damaged.
    """
    columns, rows = _read(Path(path))
    values = np.array([[float(cell or "nan") for cell in row] for row in rows]).reshape(
        len(rows), len(columns)
    )
    return dict(zip(columns, values.T.copy())) if rows else {}


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _read(path: Path, step: int | None = None) -> tuple[list[str], list[list[str]]]:
    """The columns' names and the rows, up to a step; a last row that was cut off midway is left out.

    Raises
    ------
    InputError
        If it cannot be read; names the line that is damaged. Of lines beyond `step` only the step is read.
    """
    text = _text(path)
    whole, lines = text.endswith("\n"), csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        numbered = [(lines.line_num, row) for row in lines if row]
    except csv.Error as error:
        raise _damaged(path, lines.line_num, one_line(error, 80)) from error
    if not numbered:
        return [], []
    (_, columns), kept, last = numbered[0], [], 0
    if columns[0] != "step" or "" in columns or len(set(columns)) < len(columns):
        split = next(
            (name for mark, name in ((";", "semicolons"), ("\t", "tabs")) if mark in columns[0]), None
        )
        hint = f"they are separated by {split}, not commas" if split else f"it has {one_line(columns, 80)}"
        raise _damaged(path, 1, f"must name the columns, step first; {hint}")
    for number, row in numbered[1:]:
        done = int(row[0]) if row[0].isascii() and row[0].isdigit() and len(row[0]) < 17 else 0
        if step is not None and done > step:
            continue
        problem = _problem(row, columns, done, last)
        if problem is None:
            kept.append(row)
            last = done
        elif whole or number < numbered[-1][0]:
            raise _damaged(path, number, problem)
    return columns, kept


def _text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return file.read().decode("utf-8-sig")  # spreadsheets put a byte order mark first
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _damaged(path, line, "is not UTF-8 text") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); {_MEND}") from error


def _problem(row: list[str], columns: list[str], done: int, last: int) -> str | None:
    """What is wrong with a row, or None."""
    if len(row) != len(columns):
        return f"has {len(row)} values, for {len(columns)} columns"
    if done <= last:
        return f"has step {one_line(row[0], 40)} after step {last}"
    wrong = next((cell for cell in row[1:] if cell and not _is_number(cell)), None)
    return None if wrong is None else f"has {one_line(wrong, 40)!r}, which is not a finite number"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


_MEND = "put it right, or move it away: --resume then goes on without the losses of the steps done so far"


def _damaged(path: Path, line: int, what: str) -> InputError:
    return InputError(f"{path}: damaged (line {line} {what}); {_MEND}")
