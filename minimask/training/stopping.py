"""Ctrl-C and SIGTERM during training: the first one takes effect between two steps, the second at once."""

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any


class StopSignals:
    """Turns the first Ctrl-C or SIGTERM into a request, ``signal``, to be met between two steps.

    The second one ends the program at once. Outside the main thread, to which Python delivers signals,
    nothing is caught, nor is a signal whose handler was not set from Python, but by a program that embeds it:
    that handler could not be put back. If one is nested in another, it passes on what it caught when it ends,
    so that the work around it stops, too.
    """

    def __init__(self, tell: bool = True):
        self.signal: int | None = None
        self.tell = tell
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            ours = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not None]
            self._before = {n: signal.signal(n, self._caught) for n in ours}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
            around = getattr(handler, "__self__", None)
            if isinstance(around, StopSignals):
                around.signal = around.signal or self.signal

    def _caught(self, number: int, frame) -> None:
        if self.signal is None:
            self.signal = number
            if self.tell:
                _tell("\nminimask: finishing the step and saving; once more to stop at once\n")
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + number)


def _tell(text: str) -> None:
    """Write to standard error; not by print(), which may have been interrupted, and cannot be nested."""
    try:
        number = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or something without a file behind it
        number = 2
    with suppress(OSError):  # nobody there to be told
        os.write(number, text.encode())
