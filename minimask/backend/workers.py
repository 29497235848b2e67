"""The one pool of threads, in which BLAS has a single thread, and the buffers that each thread keeps."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from minimask.errors import InputError


@cache
def threads() -> int:
    """Number of threads that kernels use: MINIMASK_THREADS, or the processors this process may run on."""
    given = os.environ.get("MINIMASK_THREADS", "")
    if given:
        if not given.isdigit() or int(given) < 1:
            raise InputError(f"MINIMASK_THREADS: must be a whole number from 1 up, is {given!r}")
        return int(given)
    return len(processors())


def processors() -> set[int]:
    """The numbers of the processors that this process may run on."""
    has_affinity = hasattr(os, "sched_getaffinity")  # macOS and Windows have not
    return os.sched_getaffinity(0) if has_affinity else set(range(os.cpu_count() or 1))


def limit_threads(number: int) -> None:
    """Use so many threads, BLAS too, if MINIMASK_THREADS does not say how many."""
    os.environ["MINIMASK_THREADS"] = os.environ.get("MINIMASK_THREADS") or str(number)
    threads.cache_clear()
    for library in blas_libraries():
        library.set_num_threads(threads())


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, threads() - 1), thread_name_prefix="minimask")


@cache
def blas_libraries() -> list:
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
                self.before = [library.get_num_threads() for library in blas_libraries()]
                for library in blas_libraries():
                    library.set_num_threads(1)

    def __exit__(self, *exception):
        with self.lock:
            self.holders -= 1
            if self.holders == 0:
                for library, number in zip(blas_libraries(), self.before):
                    library.set_num_threads(number)


one_thread_blas = _OneThreadBlas()
_inside = threading.local()


FEW = 1 << 21  # multiplications that one thread has done before another would have woken up


def parallel(work: Callable, parts: int | None = None, operations: int | None = None) -> None:
    """Call ``work(part, parts)`` for every part, one thread each, and wait; the division is static.

    Parameters
    ----------
    work : callable (int, int) -> None
        Gets the part's number and how many there are. Its NumPy calls release the interpreter lock while they
        compute; parts must write to disjoint memory. The results then do not depend on timing.
    parts : int, optional
        `threads()` by default. With 1, inside another `parallel`, or where BLAS cannot be held to one thread,
        `work(0, 1)` runs here.
    operations : int, optional
        How many there are, about; fewer than `FEW` are not divided.
    """
    few = operations is not None and operations < FEW
    parts = 1 if few else parts or threads()
    if not blas_libraries():
        return work(0, 1)  # BLAS uses threads of its own
    if parts == 1 or getattr(_inside, "on", False):
        with one_thread_blas:  # OpenBLAS's threads would stay busy for 20 ms after each product, in our way
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
