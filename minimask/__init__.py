"""Mask R-CNN from scratch on NumPy and CuPy: every forward beside its hand-derived backward."""

import os
import signal
import sys
import threading
from pathlib import Path


def _is_the_command() -> bool:
    """Whether this process is the command: ``minimask ...`` or ``python -m minimask ...``."""
    if sys.argv[:1] == ["-m"]:  # as long as Python looks for the module to run
        return sys.orig_argv[-len(sys.argv)].removeprefix("-m") == "minimask"
    return bool(sys.argv) and Path(sys.argv[0]).stem == "minimask"


def _interrupted(number: int, frame: object) -> None:
    os.write(2, b"minimask: interrupted\n")
    os._exit(130)


if (
    _is_the_command()
    and threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    # Until `minimask.command.process` takes over: the imports below take long enough to be interrupted.
    signal.signal(signal.SIGINT, _interrupted)

from minimask import functions, models, nn, ops  # noqa: E402
from minimask._version import __version__  # noqa: E402
from minimask.autograd import Function, Tensor, no_grad  # noqa: E402
from minimask.errors import InputError  # noqa: E402
from minimask.gradient_check import GradientError, GradientReport, gradcheck  # noqa: E402

__all__ = [
    "Function",
    "GradientError",
    "GradientReport",
    "InputError",
    "Tensor",
    "__version__",
    "functions",
    "gradcheck",
    "models",
    "nn",
    "no_grad",
    "ops",
]
