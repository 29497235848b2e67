"""losses.csv, the record of a run: a row for each step."""

import contextlib
import csv
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from minimask.errors import InputError
from minimask.files import write_text


class LossLog:
    """losses.csv: a row a step, floats written exactly, so that two equal runs have equal files.

    Parameters
    ----------
    path : Path
    step : int
        Steps done. What an interrupted run wrote beyond them is cut off; it will be written again.
    writes : bool
        False: touch nothing, while another process writes.
    """

    def __init__(self, path: Path, step: int, writes: bool = True):
        self.path, self.columns, self.file = path, [], None
        if writes:
            self._cut_back(step)
            self.file = path.open("a", encoding="utf-8", newline="")

    def _cut_back(self, step: int) -> None:
        path, kept = self.path, []
        if step and path.exists():
            kept, rows = (lines := path.read_text(encoding="utf-8").splitlines())[:1], lines[1:]
            # The last row may be cut off in its middle: without a comma its step is not to be trusted.
            parts = (row.partition(",") for row in rows)
            kept += [
                "".join(part) for part in parts if part[1] and part[0].isdigit() and int(part[0]) <= step
            ]
            self.columns = kept[0].split(",") if kept else []
        write_text(path, "".join(f"{line}\n" for line in kept))

    def __enter__(self) -> "LossLog":
        return self

    def __exit__(self, *exception) -> None:
        if self.file:
            with contextlib.suppress(OSError):  # told by `write` already
                self.file.close()

    def write(self, step: int, row: dict[str, float]) -> None:
        """Append a step's values, for all to see at once; the first row decides the columns."""
        if not self.file:
            return
        lines = [] if self.columns else [",".join(["step", *row])]
        self.columns = self.columns or ["step", *row]
        lines += [",".join([str(step), *(repr(row[name]) for name in self.columns[1:])])]
        with self._writing():
            self.file.write("".join(f"{line}\n" for line in lines))
            self.file.flush()

    def sync(self) -> None:
        """See that what was written is on the disk, before a checkpoint that rests on it."""
        if self.file:
            with self._writing():
                os.fsync(self.file.fileno())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}); make room, then go on with --resume"
            ) from error


def read_losses(path: str | Path) -> dict[str, np.ndarray]:
    """losses.csv as columns, for `visualize.loss_curves`."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in (rows[0] if rows else {})}
