"""The command as a process of its own, whose signals, streams and warnings are ours to set.

None of this is done in `cli.main`, which other programs may call, or anywhere else in the library.
"""

import atexit
import faulthandler
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from minimask.training.distributed import STARTED

INTERRUPTED = 130
BY_A_SIGNAL = 128  # exit statuses above this, as shells have it


def run(main: Callable[[], int]) -> NoReturn:
    """Call `main` and end the process with the status that it returns.

    Ctrl-C raises KeyboardInterrupt in `main` and nowhere else: before it, while NumPy is imported (see
    ``minimask/__init__.py``), and after it, while the interpreter ends, it ends the process at once.
    """
    status = INTERRUPTED
    try:
        _open_standard_files()
        if "--debug" not in sys.argv:
            _silence_libraries()
        if callable(signal.getsignal(signal.SIGINT)):  # if ignored, as in a background job, it stays so
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = main()
        _end_at_interrupt(status)
    except KeyboardInterrupt:  # a second one, while the first is being answered
        _end_at_interrupt(status)
    if status <= BY_A_SIGNAL:
        sys.exit(status)
    # The interpreter would wait for a thread that still decodes an image; whoever asked us to stop need not.
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _end_at_interrupt(status: int) -> None:
    if callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, lambda *_: os._exit(status or INTERRUPTED))


def _open_standard_files() -> None:
    """Open the null device where a standard stream was closed (``>&-``): else the next file that we open, a
    checkpoint say, gets its number, and whatever a library writes to standard error goes into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def _silence_libraries() -> None:
    """Let nobody but us write to standard error: libtiff, for one, repeats there what our own line says.

    Not under mpiexec, whose libraries say there why they could not start, nor if Python was asked to report
    crashes.
    """
    logging.disable(logging.CRITICAL)  # matplotlib's, that it cannot write to the home directory
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    ours = sys.stderr
    if ours is None or faulthandler.is_enabled() or any(name in os.environ for name in STARTED):
        return
    handle = os.dup(2)
    sys.stderr = open(handle, "w", 1, ours.encoding, "backslashreplace")  # noqa: PTH123
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
