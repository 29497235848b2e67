"""The exceptions that are no bug of ours, so that the command can tell: a mistake, and no more memory."""

import traceback
from pathlib import Path

_PACKAGE = Path(__file__).parent


class InputError(ValueError):
    """What the user gave cannot be used. The text is one line that names the file, the field and the mend.

    The command prints it after ``minimask: `` on standard error and exits with status 2; nothing is left
    half-written. From Python it is an ordinary ValueError.
    """


def memory_story(error: MemoryError) -> str:
    """How much was asked for, and by which of our functions if an `OutOfMemory` does not say by what."""
    ours = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(_PACKAGE)]
    place = f" in {Path(ours[-1].filename).stem}.{ours[-1].name}"
    return f"not enough memory: {error}{'' if isinstance(error, OutOfMemory) else place}"


class OutOfMemory(MemoryError):
    """The computer's or the GPU's memory is used up. The text says how much was asked for, and by what."""
