"""matplotlib for drawing into files: without pyplot, whatever backend the environment names."""

import os
import sys
from contextlib import suppress
from types import ModuleType
from typing import Any


def load_matplotlib() -> ModuleType:
    """Import matplotlib, even if ``MPLBACKEND`` names a backend that is not there.

    A shell started from a notebook inherits the notebook's, perhaps without the package that has it. The
    import would fail, and could not be tried again; yet drawing into a file needs no backend. A valid name
    is set afterwards, as matplotlib would have done, for those who also use pyplot.
    """
    name = os.environ.get("MPLBACKEND")
    if not name or "matplotlib" in sys.modules:
        import matplotlib

        return matplotlib
    del os.environ["MPLBACKEND"]
    try:
        import matplotlib
    finally:
        os.environ["MPLBACKEND"] = name
    with suppress(ValueError):
        matplotlib.rcParams["backend"] = name
    return matplotlib


def new_figure(**options: Any) -> Any:
    """A matplotlib Figure that belongs to no window; the options are its own."""
    load_matplotlib()
    from matplotlib.figure import Figure

    return Figure(**options)
