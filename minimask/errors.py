"""The exceptions that do not point to a bug in minimask: the user's mistakes, and memory that ran out."""

import traceback
from pathlib import Path

_PACKAGE = Path(__file__).parent


class InputError(ValueError):
    """The user's input cannot be used. The message is one line: which file, which field, and what to do.

    The command prints it after ``minimask: `` on standard error and exits with status 2; no file is left half
    written. In Python it is an ordinary ValueError.
    """


def memory_story(error: MemoryError) -> str:
    """How much memory was asked for, and by which function of minimask (an `OutOfMemory` says it itself)."""
    if isinstance(error, OutOfMemory):
        return f"not enough memory: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    last = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)][-1]
    return f"not enough memory: {error} in {Path(last.filename).stem}.{last.name}"


class OutOfMemory(MemoryError):
    """The computer's or the GPU's memory is used up. The message says how much was asked for, and by what."""
