"""The one exception that a person's mistake raises, so that the command can tell it from a bug of ours."""


class InputError(ValueError):
    """What the user gave cannot be used. The text is one line that names the file, the field and the mend.

    The command prints it after ``minimask: `` on standard error and exits with status 2; nothing is left
    half-written. From Python it is an ordinary ValueError.
    """
