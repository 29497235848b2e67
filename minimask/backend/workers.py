"""The pool of threads that all kernels share, BLAS held to one thread in each, and each thread's buffers."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from minimask.errors import InputError

MOST = 1024  # threads
FEW = 1 << 21  # multiplications that one thread finishes before a second one would have woken up


@cache
def threads() -> int:
    """Number of threads that kernels use: MINIMASK_THREADS, or the processors this process may run on."""
    given = os.environ.get("MINIMASK_THREADS", "")
    if given:
        # The digits are checked first: int() refuses thousands of them, and accepts those of other scripts.
        plain = given.isascii() and given.isdigit() and len(given.lstrip("0")) <= len(str(MOST))
        if not plain or not 1 <= int(given) <= MOST:
            shown = given if len(given) <= 20 else f"{given[:20]}..."
            raise InputError(f"MINIMASK_THREADS: must be a whole number from 1 to {MOST}, is {shown!r}")
        return int(given)
    return len(processors())


def processors() -> set[int]:
    """The numbers of the processors that this process may run on."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    return os.sched_getaffinity(0) if has_affinity else set(range(os.cpu_count() or 1))


def limit_threads(number: int) -> None:
    """Use this many threads, in BLAS too, unless MINIMASK_THREADS already says how many."""
    os.environ["MINIMASK_THREADS"] = os.environ.get("MINIMASK_THREADS") or str(number)
    threads.cache_clear()
    for library in blas_libraries():
        library.set_num_threads(threads())


@cache
def blas_libraries() -> list:
    """The BLAS libraries whose number of threads can be set; empty without threadpoolctl."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return []
    return ThreadpoolController().select(user_api="blas").lib_controllers


class _OneThreadBlas:
    """Holds BLAS at one thread while any of our threads is at work, then restores what was set before.

    A fork waits until none is: OpenBLAS ends its own threads before a fork, and hangs if it is then in use.
    """

    def __init__(self):
        self.free, self.holders, self.before = threading.Condition(threading.Lock()), 0, []

    def __enter__(self):
        with self.free:
            self.holders += 1
            if self.holders == 1:
                self.before = [library.get_num_threads() for library in blas_libraries()]
                for library in blas_libraries():
                    library.set_num_threads(1)
        _this_thread.held += 1

    def __exit__(self, *exception):
        _this_thread.held -= 1
        with self.free:
            self.holders -= 1
            if self.holders == 0:
                for library, number in zip(blas_libraries(), self.before):
                    library.set_num_threads(number)
                self.free.notify_all()

    def before_fork(self) -> None:
        self.free.acquire()  # nobody begins until after the fork
        if not _this_thread.is_worker:  # a worker's caller holds BLAS too, and waits for the worker
            mine = _this_thread.held
            self.free.wait_for(lambda: self.holders <= mine)

    def after_fork_in_parent(self) -> None:
        self.free.release()

    def after_fork_in_child(self) -> None:
        """Only the thread that forked is left, with what it holds."""
        self.free = threading.Condition(threading.Lock())
        self.holders = _this_thread.held


one_thread_blas = _OneThreadBlas()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, threads() - 1), thread_name_prefix="minimask")


class _ThisThread(threading.local):
    """What each thread knows about itself."""

    def __init__(self):
        self.is_worker = False  # whether it is running a part of `parallel`
        self.held = 0  # how often it holds `one_thread_blas`
        self.buffers: dict[tuple, np.ndarray] = {}  # see `scratch`


_this_thread = _ThisThread()


def _after_fork_in_child() -> None:
    """A child has none of its parent's threads but the one that forked, so it starts a new pool."""
    _pool.cache_clear()
    one_thread_blas.after_fork_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(
        before=one_thread_blas.before_fork,
        after_in_parent=one_thread_blas.after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


def parallel(
    function: Callable[[int, int], None],
    parts: int | None = None,
    operations: int | None = None,
    calls_blas: bool = False,
) -> None:
    """Call ``function(part, parts)`` for every part, each in its own thread, and wait for all of them.

    The work is divided in advance, not handed out to whoever is idle, so results do not depend on timing.

    Parameters
    ----------
    function : callable (int, int) -> None
        Gets the number of its part, from 0, and how many there are. Its NumPy calls release the interpreter
        lock while they compute; parts must write to disjoint memory.
    parts : int, optional
        `threads()` by default. With 1, or inside another `parallel`, ``function(0, 1)`` runs in the calling
        thread.
    operations : int, optional
        Roughly how many multiplications there are in all, or elements to pass over; fewer than `FEW` are not
        divided.
    calls_blas : bool
        Whether the function multiplies matrices so large that BLAS would use threads of its own. Where BLAS
        cannot be held to one (threadpoolctl is not installed, or does not know it: Apple's Accelerate), such
        work is not divided.
    """
    few = operations is not None and operations < FEW
    parts = 1 if few else parts or threads()
    if calls_blas and not blas_libraries():
        return function(0, 1)
    if parts == 1 or _this_thread.is_worker:
        with one_thread_blas:  # OpenBLAS's threads would spin for 20 ms after each product and slow ours
            return function(0, 1)
    with one_thread_blas:
        waiting = [  # each in a copy of our context: np.errstate and `reference_only` hold there too
            _pool().submit(contextvars.copy_context().run, _run_part, function, part, parts)
            for part in range(1, parts)
        ]
        try:
            _run_part(function, 0, parts)
        finally:
            for future in waiting:
                future.exception()  # waits: nobody may write to the arrays after we return
        for future in waiting:
            future.result()  # raises what the part raised


def _run_part(function: Callable[[int, int], None], part: int, parts: int) -> None:
    _this_thread.is_worker = True
    try:
        function(part, parts)
    finally:
        _this_thread.is_worker = False


def parallel_slices(
    total: int,
    function: Callable[[slice], None],
    longest: int | None = None,
    parts: int | None = None,
    operations: int | None = None,
    calls_blas: bool = False,
) -> None:
    """Call ``function(slice)`` for slices that cover ``range(total)`` once, in all threads, and wait.

    Parameters
    ----------
    total : int
        Length of the axis to divide; with 0 nothing is called.
    function : callable (slice) -> None
        Must write only to its slice of the results.
    longest : int, optional
        The most elements in a slice, so that what one call reads and writes stays in cache from pass to pass.
        By default each thread gets its whole share as a single slice.
    parts, operations, calls_blas
        As for `parallel`, except that with parts=1 BLAS keeps its threads: nothing at all is set up.
    """

    def call_with_each_slice(part: int, parts: int) -> None:
        begin, end = share(total, part, parts)
        for first in range(begin, end, longest or max(total, 1)):
            function(slice(first, min(first + longest, end) if longest else end))

    if parts == 1:
        call_with_each_slice(0, 1)
    else:
        parallel(call_with_each_slice, parts, operations, calls_blas)


def share(total: int, part: int, parts: int) -> tuple[int, int]:
    """Begin and end of a part's share of ``range(total)``: contiguous, sizes differing by at most one."""
    return total * part // parts, total * (part + 1) // parts


def scratch(name: str, size: int, dtype) -> np.ndarray:
    """A flat buffer that belongs to the calling thread and is kept between calls.

    It holds whatever its last user left there.

    Parameters
    ----------
    name : str
        Who uses it: two buffers needed at the same time need two names.
    size : int
        Number of elements; the buffer grows to the largest asked for.
    """
    key = (name, np.dtype(dtype))
    buffers = _this_thread.buffers
    if key not in buffers or buffers[key].size < size:
        buffers[key] = np.empty(size, dtype)
    return buffers[key][:size]
