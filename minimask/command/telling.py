"""What the command tells: lines on standard output, notes on standard error, names in them escaped."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minimask.errors import one_line


def tell(text: str) -> None:
    """A line on standard output, whatever the names in it are made of."""
    print(one_line(text))


def note(text: str) -> None:
    """Something that the user should know and that stops nothing, on standard error."""
    print(f"minimask: note: {one_line(text)}", file=sys.stderr)


@contextmanager
def drawing(path: Path, note: Callable[[str], None] = note) -> Iterator[None]:
    """Around the drawing of a picture that sums up work: if it fails, for whatever reason, a note says so.

    matplotlib may find no directory for its cache, or be half installed; the work is done all the same.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        note(f"{path.name} is not drawn ({reason}); all else is done")
