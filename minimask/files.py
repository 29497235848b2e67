"""Files that hold either the old content or the new, never half of it; output directories, checked early."""

import errno
import json
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from minimask.errors import InputError

try:
    import fcntl
except ImportError:  # Windows, where an open file can neither be renamed nor removed: it needs no lock
    fcntl = None

_TEMPORARY = re.compile(r"\.minimask-[0-9a-f]{16}\.tmp")
# The errors of an fsync of a directory where the file system does not support it.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES)


@contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the place of `path` only when it is complete and on the disk.

    The bytes go to a temporary file in the same directory, since a rename is atomic only within one file
    system. It is flushed to the disk and renamed, and then the directory is flushed, too. If the process is
    killed at any moment, `path` has its old or its new content, and perhaps the temporary file is left, which
    `remove_leftovers` finds; after an error, `path` has its old content.

    Raises
    ------
    InputError
        If the file cannot be written, for example because the disk is full; `path` is as it was before. Also
        if the disk does not confirm the rename; `path` has the new content, which a power failure may undo.
    """
    path = real_path(path)  # a link stays a link: the file it points to is replaced, not the link
    if path.exists() and not path.is_file():
        what = "a directory" if path.is_dir() else "not a regular file"
        raise InputError(f"{path}: is {what}, so no file can be written there; move it away")
    try:
        temporary, file = _create(path.parent)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if fcntl:  # before closing, which drops the lock: an unlocked file counts as a dead writer's
                    temporary.replace(path)
            if not fcntl:
                _replace_when_free(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        kept = "; the file there before is unchanged" if path.is_file() else ""
        reason = error.strerror or str(error)
        raise InputError(
            f"{path}: cannot be written ({reason}){kept}. Make room, or choose another directory"
        ) from error
    try:
        _sync_directory(path.parent)
    except OSError as error:
        raise InputError(
            f"{path}: is written, but the disk does not confirm it ({error.strerror or error}); it may be "
            "lost if power fails. Check the disk, or choose another directory"
        ) from error


def _replace_when_free(temporary: Path, path: Path) -> None:
    """On Windows, which replaces no file that is open: a virus scanner has each new one open for a moment."""
    for seconds in (0.01, 0.05, 0.2, 1.0):
        try:
            temporary.replace(path)
            return
        except PermissionError:
            time.sleep(seconds)
    temporary.replace(path)


def real_path(path: str | Path) -> Path:
    """Where a path's links lead, whether or not anything is there.

    Raises
    ------
    InputError
        If they lead in a circle, the path cannot be a file name, or nobody may look there.
    """
    try:
        real = Path(os.path.realpath(path))
        in_circle = stat.S_ISLNK(os.lstat(real).st_mode)  # every link is resolved by now, except in a circle
    except (FileNotFoundError, NotADirectoryError):
        return real
    except ValueError as error:  # NUL, or surrogates
        raise InputError(f"{path}: is not a file name ({error})") from error
    except OSError as error:  # too long, or in a directory that may not be entered
        raise InputError(
            f"{path}: cannot be used ({error.strerror}); choose another name or place"
        ) from error
    if in_circle:
        raise InputError(f"{path}: is a symbolic link that leads back to itself; remove it")
    return real


def _create(directory: Path) -> tuple[Path, IO[bytes]]:
    """A new temporary file, open for writing, whose lock tells others that its writer is alive."""
    for _ in range(100):
        temporary = directory / f".minimask-{os.urandom(8).hex()}.tmp"
        with suppress(FileExistsError):  # somebody else's; "x" does not follow a link either
            file = temporary.open("xb")
            if _locked(file.fileno()) is not False and _is_at(file, temporary):
                return temporary, file
            file.close()  # the next run's `remove_leftovers` came between open and lock
            temporary.unlink(missing_ok=True)
    raise OSError(errno.EEXIST, "found no free name for a temporary file")


def _locked(handle: int) -> bool | None:
    """Take an open file's lock; False if another handle has it, None where files cannot be locked."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks: nobody can tell whether a writer is alive, so nothing is removed.
        return None
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def remove_leftovers(directory: str | Path) -> None:
    """Remove the temporary files of `replacing` whose writers are dead; nothing else.

    A living writer holds its file's lock; the system releases the lock when the writer dies, on whichever
    machine that was.
    """
    # If it is not a directory, or cannot be listed, whoever uses it says so.
    with suppress(OSError):
        for entry in list(os.scandir(directory)):
            # Only a file of such a name, not a link or a folder.
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                _remove_if_dead(Path(entry.path))


def _remove_if_dead(temporary: Path) -> None:
    with suppress(OSError):  # another user's, or gone meanwhile; on Windows, in use
        if fcntl is None:
            return temporary.unlink()
        handle = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if _locked(handle):
                temporary.unlink()
        finally:
            os.close(handle)


def _sync_directory(directory: Path) -> None:
    if os.name == "nt":  # Windows cannot open directories, and journals renames
        return
    try:
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a regular file to read its bytes.

    Raises
    ------
    OSError
        If there is none, or it is a directory, a pipe or a device; pipes and devices could block forever.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:
        raise OSError(errno.EINVAL, f"not a file name: {error}") from error  # NUL, or surrogates
    except PermissionError as error:
        if not Path(path).is_dir():
            raise
        # Windows opens no directories, and reports that as a missing permission.
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path)) from error
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def is_address(path: str | Path) -> bool:
    """Whether it begins like a web address; of the two slashes a Path keeps one."""
    return re.match(r"(https?|ftp|s3|gs):/", str(path)) is not None


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, by `replacing`; what UTF-8 cannot hold is escaped as in JSON: ``\\udce9``.

    Such characters are how Python keeps the bytes of a file name that is not UTF-8; `json` reads them back.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Write JSON, by `replacing`; NaN and infinity, which JSON does not have, raise a ValueError."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


def check_output_directory(directory: str | Path) -> Path:
    """Check that `directory` can be made and written to, without making it, since the work may still fail.

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
    """Make `directory` and its parents, unless they exist; raises what `check_output_directory` raises.

    Of what is there, only the temporary files of dead processes are removed (`remove_leftovers`).
    """
    directory = check_output_directory(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--output {directory}: cannot be made ({error.strerror}); choose another directory"
        ) from error
    remove_leftovers(directory)
    return directory


@contextmanager
def output_directory(directory: str | Path) -> Iterator[Path]:
    """Make a directory and check that files can be written there, before the work whose results go there.

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
            file.write(b"minimask checks that it can write here\n")
        trial.unlink(missing_ok=True)
        yield directory
    except BaseException:
        with suppress(OSError):  # at the first that is not empty
            for parent in made:
                parent.rmdir()
        raise


def check_inputs_are_kept(inputs: Iterable[str | Path], outputs: Iterable[Path]) -> None:
    """Check that no output would take the place of a file that is read.

    Raises
    ------
    InputError
        For the first output that is an input, under whatever name.
    """
    theirs = {}
    for path in inputs:
        with suppress(OSError, ValueError):  # if it is not there, whoever reads it says so
            found = Path(path).stat()
            theirs[found.st_dev, found.st_ino] = path
    for output in filter(os.path.exists, outputs):
        found = output.stat()
        path = theirs.get((found.st_dev, found.st_ino))
        if path is not None:
            raise InputError(f"{path}: would be overwritten by {output}; choose another --output")
