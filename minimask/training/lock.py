"""A lock on a run's directory: two trainings must not take turns writing one checkpoint and losses.csv."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from minimask.errors import InputError

NAME = ".minimask.lock"


class Busy(InputError):
    """Another living process holds the lock."""


@contextmanager
def locked(directory: Path, name: str = NAME) -> Iterator[None]:
    """Hold the directory for this process; the system releases it when the process ends, however it ends.

    With another `name` of the lock's file, what is held is whatever the callers agree on.

    Raises
    ------
    Busy
        If another living process holds it.
    InputError
        If the lock file cannot be written.
    """
    path = directory / name
    file = _acquire(path)
    try:
        yield
    finally:
        if os.name == "nt":  # which does not remove an open file, whether ours or the next holder's
            file.close()
        with suppress(OSError):  # a lock file left behind locks nothing
            path.unlink()
        file.close()


def _acquire(path: Path) -> IO[bytes]:
    while True:
        try:
            file = path.open("ab")
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror}); choose another --output"
            ) from error
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            file.close()
            raise Busy(
                f"{path.parent}: another training is writing into this directory; wait for its end, or "
                "choose another --output"
            ) from None
        except OSError:
            return file  # a file system without locks, such as some network drives: better than not to train
        if _is_still_there(path, file):
            return file
        file.close()  # its last holder removed it between our two calls: lock the one that is there now


def _lock(file: IO[bytes]) -> None:
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_still_there(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
