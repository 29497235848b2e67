"""The exceptions that are no bug of ours, so that the command can tell: a mistake, and no more memory."""


class InputError(ValueError):
    """What the user gave cannot be used. The text is one line that names the file, the field and the mend.

    The command prints it after ``minimask: `` on standard error and exits with status 2; nothing is left
    half-written. From Python it is an ordinary ValueError.
    """


class OutOfMemory(MemoryError):
    """The computer's or the GPU's memory is used up. The text says how much was asked for, and by what."""
