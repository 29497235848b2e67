"""Files that hold the old or the new content, never half of either; output directories checked up front."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from minimask.errors import InputError


@contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes `path`'s place only when it is complete and on the disk.

    The bytes go to a temporary file in the same directory (a rename is atomic only within one file system),
    which is flushed to the disk and then renamed, and so is the directory's entry. A kill at any moment
    leaves the old file or the new one; an error leaves the old one.

    Raises
    ------
    InputError
        If the file cannot be written, a full disk among the reasons. `path` is as it was before.
    """
    # A link stays a link: the file it points to is replaced, not the link.
    path = Path(path).resolve()
    # One name a target, so that what a kill left behind is overwritten by the next save instead of piling up.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        kept = "; the file there before is unchanged" if path.is_file() else ""
        reason = error.strerror or str(error)
        raise InputError(
            f"{path}: cannot be written ({reason}){kept}. Make room, or choose another directory"
        ) from error


def _sync_directory(directory: Path) -> None:
    if os.name == "nt":  # Windows cannot open directories, and renames are journalled there
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text by `replacing`."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Write JSON by `replacing`; NaN and infinity are refused (ValueError), since JSON has neither."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


def check_output_directory(directory: str | Path) -> Path:
    """See that `directory` can be made and written to, without making it: the work may still fail.

    Raises
    ------
    InputError
        If it, or what stands where a parent should be, is a file, or may not be written to.
    """
    directory = Path(directory)
    nearest = directory
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InputError(
            f"--output {directory}: {nearest} is a file, not a directory; choose another name or move it away"
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(
            f"--output {directory}: {nearest} may not be written to; choose a directory of your own"
        )
    return directory


def make_output_directory(directory: str | Path) -> Path:
    """Make `directory` and its parents where they are missing, else as `check_output_directory`."""
    directory = check_output_directory(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--output {directory}: cannot be made ({error.strerror}); choose another directory"
        ) from error
    return directory
