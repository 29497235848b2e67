"""Files that hold either the old content or the new, never half of it; output directories, checked early."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
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


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, by `replacing`; of what UTF-8 cannot hold, the escape that JSON has: ``\\udce9``.

    That is how Python keeps the bytes of a file name that is no UTF-8, and how `json` reads them back.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Write JSON, by `replacing`; NaN and infinity, which JSON does not have, raise a ValueError."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


def check_output_directory(directory: str | Path) -> Path:
    """Check that `directory` can be made and written to, without making it: the work may still fail.

    Raises
    ------
    InputError
        If no name is given, or the directory, or the nearest parent that exists, is a file or may not be
        written to.
    """
    if not os.fspath(directory):  # Path("") is the current directory, which nobody has named
        raise InputError("--output: is empty; name a directory ('.' is the current one)")
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


@contextmanager
def output_directory(directory: str | Path) -> Iterator[Path]:
    """Make a directory and try whether files can be written there, before the work whose results go there.

    If that work then fails, those directories that were made for it and are still empty are removed.

    Raises
    ------
    InputError
        As `make_output_directory`; or if no file can be written there, because the disk is full, say.
    """
    directory = check_output_directory(directory)
    made = [parent for parent in (directory, *directory.parents) if not parent.exists()]
    try:
        trial = make_output_directory(directory) / f".minimask-{os.urandom(8).hex()}.tmp"
        with replacing(trial) as file:
            file.write(b"minimask tries whether it can write here\n")
        trial.unlink(missing_ok=True)
        yield directory
    except BaseException:
        with suppress(OSError):  # the first that is not empty
            for parent in made:
                parent.rmdir()
        raise


def check_inputs_are_kept(inputs: Iterable[str | Path], outputs: Iterable[Path]) -> None:
    """Check that no output would take the place of a file that is read.

    Raises
    ------
    InputError
        For the first output that is an input, by whatever name.
    """
    theirs = {}
    for path in inputs:
        with suppress(OSError, ValueError):  # what is not there is told by whoever reads it
            found = Path(path).stat()
            theirs[found.st_dev, found.st_ino] = path
    for output in filter(os.path.exists, outputs):
        found = output.stat()
        path = theirs.get((found.st_dev, found.st_ino))
        if path is not None:
            raise InputError(f"{path}: would be overwritten by {output}; choose another --output")
