"""Files that hold either the old content or the new, never half of it; output directories, checked early."""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from minimask.errors import InputError


@contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the place of `path` only when it is complete and on the disk.

    The bytes go to a temporary file in the same directory, since a rename is atomic only within one file
    system. It is flushed to the disk and renamed, and then the directory is flushed, too. If the process is
    killed at any moment, `path` has its old or its new content; after an error, the old.

    Raises
    ------
    InputError
        If the file cannot be written, for example because the disk is full. `path` is as it was before.
    """
    # A link stays a link: the file it points to is replaced, not the link.
    path = Path(path).resolve()
    # The same name each time, so that what a killed process left behind is overwritten and does not pile up.
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
    if os.name == "nt":  # Windows cannot open directories, and journals renames
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a regular file to read its bytes.

    Raises
    ------
    OSError
        If there is none, or it is a directory, a pipe or a device, which could keep us waiting for ever.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:
        raise OSError(errno.EINVAL, f"not a file name: {error}") from error  # NUL, or surrogates
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, by `replacing`."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Write JSON, by `replacing`; NaN and infinity, which JSON does not have, raise a ValueError."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


def check_output_directory(directory: str | Path) -> Path:
    """Check that `directory` can be made and written to, without making it: the work may still fail.

    Raises
    ------
    InputError
        If the directory, or the nearest parent that exists, is a file or may not be written to.
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
    """Make `directory` and its parents, unless they exist; raises what `check_output_directory` raises."""
    directory = check_output_directory(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--output {directory}: cannot be made ({error.strerror}); choose another directory"
        ) from error
    return directory
