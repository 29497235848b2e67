"""A file that grows while a run trains, and is on the disk before a checkpoint rests on it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from minimask.errors import InputError


class RunFile:
    """What losses.csv and log.jsonl have in common; what cannot be written is told in one line.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    file : text file, or None
        None where another process writes: then nothing is touched.
    """

    def __init__(self, path: Path):
        self.path = path
        self.file: IO[str] | None = None

    def open(self) -> None:
        """Open the file to add to it.

        Raises
        ------
        InputError
            Here and in the methods below: if the file cannot be written.
        """
        with self.writing():
            self.file = self.path.open("a", encoding="utf-8", newline="")

    def append(self, text: str) -> None:
        """Add text, for all to see at once."""
        with self.writing():
            self.file.write(text)
            self.file.flush()

    def sync(self) -> None:
        """See that what was written is on the disk, before a checkpoint that rests on it."""
        if self.file:
            with self.writing():
                os.fsync(self.file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file:
            with contextlib.suppress(OSError):  # told by `append` already
                self.file.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around whatever writes: the system's error becomes a line with its mend."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}); make room, then go on with --resume"
            ) from error
