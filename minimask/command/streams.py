"""Standard output and error as the command writes to them: what cannot be shown never ends the work."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any


class UnfailingStream(io.TextIOBase):
    """A text stream whose `write` never raises: hours of training must not end because a terminal is gone.

    What the encoding lacks is written as its escape, ``\\u8bad``. After the first failure (a pipe without a
    reader, a full disk, a closed file) everything is dropped.

    Parameters
    ----------
    stream : text stream or None
        None, which Python has for a stream that was closed before it started, swallows everything.

    Attributes
    ----------
    error : OSError, ValueError or None
        The first failure.
    muted : bool
        Whether what is written is dropped.
    """

    def __init__(self, stream: Any):
        self.stream, self.error, self.muted = stream, None, False

    @property
    def encoding(self) -> str:
        return getattr(self.stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:
        return "backslashreplace"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:  # closed
            return False

    def fileno(self) -> int:
        if self.stream is None:
            raise io.UnsupportedOperation("fileno")
        return self.stream.fileno()

    def write(self, text: str) -> int:
        shown = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        if not self.muted:
            self._try(lambda stream: stream.write(shown))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def _try(self, action: Callable[[Any], object]) -> None:
        if self.stream is None or self.error is not None:
            return
        try:
            action(self.stream)
        except (OSError, ValueError) as error:
            self.error = error
            self._forget()

    def _forget(self) -> None:
        """Send what the broken stream still holds nowhere: the interpreter would complain at its exit."""
        try:
            handle = self.stream.fileno()
        except (OSError, ValueError):  # no file behind it, or one that is closed
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, handle)
        os.close(nowhere)


@contextmanager
def unfailing_streams() -> Iterator[tuple[UnfailingStream, UnfailingStream]]:
    """Within it, ``sys.stdout`` and ``sys.stderr`` are `UnfailingStream`; gives both, flushed at the end."""
    out, err = UnfailingStream(sys.stdout), UnfailingStream(sys.stderr)
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        try:
            yield out, err
        finally:
            out.flush()
            err.flush()
