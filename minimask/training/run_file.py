"""A file that grows while a run trains, and is on the disk before a checkpoint relies on it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from minimask.errors import InputError


class RunFile:
    """What losses.csv and log.jsonl have in common; a failure to write becomes a message of one line.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    file : text file, or None
        None if another process writes it: then nothing is touched.
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
        """Add text, which readers see at once."""
        with self.writing():
            self.file.write(text)
            self.file.flush()

    def sync(self) -> None:
        """Make sure that what was written is on the disk, before a checkpoint that relies on it."""
        if self.file:
            with self.writing():
                os.fsync(self.file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file:
            with contextlib.suppress(OSError):  # `append` has reported it already
                self.file.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Wraps whatever writes: the system's error becomes a line that says how to mend it."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}); make room, then go on with --resume"
            ) from error
