"""What the command tells: lines on standard output, notes on standard error, names in them escaped."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minimask.errors import one_line


def tell(text: str) -> None:
    """Print a line on standard output, whatever characters the names in it have."""
    print(one_line(text))


def note(text: str) -> None:
    """Print on standard error something that the user should know and that stops nothing."""
    print(f"minimask: note: {one_line(text)}", file=sys.stderr)


@contextmanager
def drawing(path: Path, note: Callable[[str], None] = note) -> Iterator[None]:
    """For drawing a picture of work that is done: if it fails, for whatever reason, a note says so.

    matplotlib may find no directory for its cache, or be half installed; that must not undo the work.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        note(f"{path.name} is not drawn ({reason}); everything else is done")
