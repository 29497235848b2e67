"""Mask R-CNN from scratch on NumPy and CuPy: every forward beside its hand-derived backward."""

import _signal  # `signal` would import enum first, which takes long enough to be interrupted
import os
import sys


def _is_the_command() -> bool:
    """Whether this process is the command: ``minimask ...`` or ``python -m minimask ...``."""
    if sys.argv[:1] == ["-m"]:  # while Python is still looking for the module to run
        return sys.orig_argv[-len(sys.argv)].removeprefix("-m") == "minimask"
    return bool(sys.argv) and os.path.splitext(os.path.basename(sys.argv[0]))[0] == "minimask"  # noqa: PTH119, PTH122


def _is_main_thread() -> bool:
    threading = sys.modules.get("threading")  # if it is not even imported, there are no others
    return threading is None or threading.current_thread() is threading.main_thread()


def _interrupted(number: int, frame: object) -> None:
    os.write(2, b"minimask: interrupted\n")
    os._exit(130)


# Until `minimask.command.process` takes over, because the imports below take long enough to be interrupted.
# Python's own start with `site`, some 20 ms, comes before us: Ctrl-C during it shows Python's traceback. To
# add nothing to that time, only modules that Python has already loaded are imported above.
if (
    _is_the_command()
    and _is_main_thread()
    and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
):
    _signal.signal(_signal.SIGINT, _interrupted)

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
