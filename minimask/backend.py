"""Where arrays live and who computes on them: NumPy or CuPy, and the one pool of threads.

The only module that may import CuPy, and it does so lazily: ``import minimask`` works without a GPU, and a
machine with CuPy but no GPU is told so in one line.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from minimask.errors import InputError

_reference_only = contextvars.ContextVar("reference_only", default=False)

# ------------------------------------------------------------------------------------------------ arrays


def array_module(*arrays):
    """The module whose arrays these are: ``numpy``, or ``cupy`` when one of them is a CuPy array."""
    cupy = sys.modules.get("cupy")  # nobody can hold a CuPy array without having imported it
    if cupy is not None and any(isinstance(a, cupy.ndarray) for a in arrays):
        return cupy
    return np


def to_cpu(array) -> np.ndarray:
    """The array as a NumPy array; a copy only when it lives on a GPU."""
    return array if isinstance(array, np.ndarray) else array_module(array).asnumpy(array)


@contextlib.contextmanager
def reference_only() -> Iterator[None]:
    """Inside, every kernel runs its plain reference version instead of its fast one."""
    token = _reference_only.set(True)
    try:
        yield
    finally:
        _reference_only.reset(token)


def use_reference() -> bool:
    """Whether `reference_only` is in force in this thread."""
    return _reference_only.get()


def device(name: str) -> str:
    """Resolve a ``--device`` choice to the device that will be used.

    Parameters
    ----------
    name : "cpu", "cuda" or "auto"

    Raises
    ------
    InputError
        For another name, and for "cuda": the models do not run on a GPU yet.
    """
    if name in ("cpu", "auto"):
        return "cpu"
    if name == "cuda":
        raise InputError(f"--device cuda: {_why_no_gpu()}; use --device cpu")
    raise InputError(f"--device {name}: unknown device; choose cpu, cuda or auto")


def _why_no_gpu() -> str:
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed, and this version of minimask does not run models on a GPU yet"
    if not cupy.cuda.is_available():
        return "CuPy is installed but finds no GPU"
    return "this version of minimask does not run models on a GPU yet"


# ----------------------------------------------------------------------------------------------- threads


@cache
def threads() -> int:
    """Number of threads that kernels use: MINIMASK_THREADS, or the processors this process may run on."""
    given = os.environ.get("MINIMASK_THREADS", "")
    if given:
        if not given.isdigit() or int(given) < 1:
            raise InputError(f"MINIMASK_THREADS: must be a whole number from 1 up, is {given!r}")
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, threads() - 1), thread_name_prefix="minimask")


@cache
def _blas_libraries() -> list:
    """The BLAS libraries whose number of threads can be set; empty without threadpoolctl."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return []
    return ThreadpoolController().select(user_api="blas").lib_controllers


class _OneThreadBlas:
    """Holds BLAS at one thread while any of our threads is at work, and gives back what was set before."""

    def __init__(self):
        self.lock, self.holders, self.before = threading.Lock(), 0, []

    def __enter__(self):
        with self.lock:
            self.holders += 1
            if self.holders == 1:
                self.before = [library.get_num_threads() for library in _blas_libraries()]
                for library in _blas_libraries():
                    library.set_num_threads(1)

    def __exit__(self, *exception):
        with self.lock:
            self.holders -= 1
            if self.holders == 0:
                for library, number in zip(_blas_libraries(), self.before):
                    library.set_num_threads(number)


one_thread_blas = _OneThreadBlas()
_inside = threading.local()


def parallel(work: Callable[[int, int], None], parts: int | None = None) -> None:
    """Call ``work(part, parts)`` for every part, one thread each, and wait; the division is static.

    Parameters
    ----------
    work : callable
        Gets the part's number and how many there are. Its NumPy calls release the interpreter lock while they
        compute; parts must write to disjoint memory. The results then do not depend on timing.
    parts : int, optional
        `threads()` by default. With 1, inside another `parallel`, or where BLAS cannot be held to one thread,
        `work(0, 1)` runs here and BLAS uses its own threads.
    """
    parts = parts or threads()
    if parts == 1 or getattr(_inside, "on", False) or not _blas_libraries():
        return work(0, 1)
    with one_thread_blas:
        waiting = [  # each in a copy of our context: np.errstate and `reference_only` hold there too
            _pool().submit(contextvars.copy_context().run, _run_inside, work, part, parts)
            for part in range(1, parts)
        ]
        try:
            _run_inside(work, 0, parts)
        finally:
            for future in waiting:
                future.exception()  # waits: nobody may write to the arrays after we return
        for future in waiting:
            future.result()


def _run_inside(work, part: int, parts: int) -> None:
    _inside.on = True
    try:
        work(part, parts)
    finally:
        _inside.on = False


def share(total: int, part: int, parts: int) -> tuple[int, int]:
    """Begin and end of a part's share of ``range(total)``: contiguous, sizes differing by at most one."""
    return total * part // parts, total * (part + 1) // parts


def scratch(name: str, size: int, dtype) -> np.ndarray:
    """A flat buffer of this thread, kept between calls; its contents are whatever the last user left.

    Parameters
    ----------
    name : str
        Who uses it: two users in one call need two names.
    size : int
        Number of elements; the buffer grows to the largest asked for.
    """
    key = (name, np.dtype(dtype))
    buffers = _inside.__dict__.setdefault("buffers", {})
    if key not in buffers or buffers[key].size < size:
        buffers[key] = np.empty(size, dtype)
    return buffers[key][:size]


# ------------------------------------------------------------------------------------------- description


def describe() -> dict[str, str]:
    """What the numbers depend on: versions, BLAS and its kernel, threads, processor, GPU or why none."""
    import scipy

    from minimask._version import __version__

    blas = [f"{library.internal_api} {library.version}" for library in _blas_libraries()]
    kernels = [getattr(library, "architecture", None) or "unknown" for library in _blas_libraries()]
    return {
        "minimask": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "blas": ", ".join(sorted(set(blas))) or "unknown (threadpoolctl is not installed)",
        "blas_kernel": ", ".join(sorted(set(kernels))) or "unknown",
        "threads": str(threads()),
        "processor": _processor(),
        "gpu": f"none used: {_why_no_gpu()}",
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
