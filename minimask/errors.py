"""The exceptions that do not point to a bug in minimask: the user's mistakes, and memory that ran out.

Also `one_line`, through which everything is printed that we did not write: names, paths, messages.
"""

import traceback
import unicodedata
from pathlib import Path

_PACKAGE = Path(__file__).parent

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# The characters of category Cf that reorder stretches of text, so that one name could look like another. Its
# others, such as the joiners of Indic scripts and emoji, are needed in the words that have them.
_REORDERS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def one_line(text: object, most: int | None = None) -> str:
    r"""Any text as one line that a terminal shows as it is: control characters become ``\n``, ``\x1b``.

    Parameters
    ----------
    text : object
        Taken as ``str(text)``. Bytes of a file name that is not UTF-8, which Python keeps as the surrogates
        U+DC80 to U+DCFF, are written like ``\xe9``; other surrogates, line separators and marks that reorder
        text, like ``\u2028``.
    most : int, optional
        The greatest length; a longer text has its middle replaced by an ellipsis.

    Returns
    -------
    str
        Equal to `text` where there was nothing to change, so that a second pass changes nothing.
    """
    text = str(text)
    if most is not None and len(text) > most:
        head = (most - 3) // 2
        text = f"{text[:head]}...{text[len(text) - (most - 3 - head) :]}"
    if text.isprintable():  # nearly always
        return text
    shown = "".join(_escaped(character) for character in text)
    return shown if most is None or len(shown) <= most else one_line(shown, most)


def _escaped(character: str) -> str:
    code = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _REORDERS:
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character


class InputError(ValueError):
    """The user's input cannot be used. The message is one line: which file, which field, and what to do.

    The command prints it after "minimask: " on standard error and exits with status 2; no file is left half
    written. In Python it is an ordinary ValueError. Control characters in the text, which a file name or a
    field may have brought along, are escaped (`one_line`).
    """

    def __init__(self, text: object = ""):
        super().__init__(one_line(text))


def memory_story(error: MemoryError) -> str:
    """How much memory was asked for, and by which function of minimask (an `OutOfMemory` already says so)."""
    if isinstance(error, OutOfMemory):
        return f"not enough memory: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    last = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)][-1]
    return f"not enough memory: {error} in {Path(last.filename).stem}.{last.name}"


class OutOfMemory(MemoryError):
    """The computer's or the GPU's memory is used up. The message says how much was asked for, and by what."""
