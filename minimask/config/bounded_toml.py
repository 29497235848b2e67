"""TOML within bounds: refuses first what would make `tomllib` take gigabytes, or recurse without end.

Options are two deep (``train.steps``), and a file with all of them has 6 kB. `tomllib` stores every prefix of
a dotted key, so that a key of 100 kB takes 10 GB, and recurses into each bracket.
"""

import itertools
import re
import tomllib
from typing import Any

MOST = 1 << 18  # characters
_DEEPEST = 16  # brackets in brackets, and parts of a dotted key
# Strings and comments, whether or not they are closed, so that no character is scanned twice.
_QUOTED = re.compile(
    r'''
      """ (?: [^"\\] | \\. | "(?!"") )*+ "{0,5}
    | \'\'\' (?: [^'] | '(?!\'\') )*+ '{0,5}
    | " (?: [^"\\\n] | \\[^\n] )*+ "?
    | ' [^'\n]*+ '?
    | \# [^\n]*+
    ''',
    re.VERBOSE | re.DOTALL,
)
_LONG_KEY = re.compile(
    r'(?<![\w-])(?:[\w-]++|"")(?:[ \t]*+\.[ \t]*+(?:[\w-]++|"")){%d}' % _DEEPEST  # noqa: UP031
)


class OutOfBounds(ValueError):
    """The text may be TOML, but exceeds what any configuration needs; the message says in what."""


def loads(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises
    ------
    tomllib.TOMLDecodeError
        If it is not TOML.
    OutOfBounds
        If it is too long, too deep, or has a number with too many digits.
    """
    if len(text) > MOST:
        raise OutOfBounds(f"has more than {MOST:,} characters")
    plain = _QUOTED.sub('""', text)
    steps = (1 if bracket in "[{" else -1 for bracket in re.findall(r"[][{}]", plain))
    if max(itertools.accumulate(steps), default=0) > _DEEPEST:
        raise OutOfBounds(f"has brackets within brackets, more than {_DEEPEST} deep")
    if _LONG_KEY.search(plain):
        raise OutOfBounds(f"has a dotted key of more than {_DEEPEST} parts")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # from int()
        raise OutOfBounds("has a number with too many digits") from error
