"""What Python asks of the device, each call a launch: our kernels, products, and what CuPy has of its own.

    with counted() as calls:
        with stage("forward"):
            x + y
    calls  # {("forward", "cupy", "add"): 1, ("forward", "allocation", ""): 1}

CuPy's functions count as in their source (14.0): an array of no elements launches nothing, `concatenate`
copies up to eight arrays one by one, an index of k arrays is k + 2 kernels, NumPy's as an index an upload.
All else counts once, even if it is several kernels (a sort, `flatnonzero`): Python's calls take the time.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

KINDS = "kernel", "product", "cupy", "allocation"
AT_ONCE = 8  # arrays: `concatenate` takes more than that in one kernel
_counters: list[Counter] = []
_stages: list[str] = ["rest"]


@contextlib.contextmanager
def counted() -> Iterator[Counter]:
    """Inside, what the device is asked for is added to this: (stage, kind, name) -> number."""
    _counters.append(Counter())
    try:
        yield _counters[-1]
    finally:
        _counters.pop()


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Inside, calls count for this stage."""
    _stages.append(name)
    try:
        yield
    finally:
        _stages.pop()


def current_stage() -> str:
    """The innermost `stage`."""
    return _stages[-1]


def count(kind: str, name: str = "", times: int = 1) -> None:
    """A call of the device, one of `KINDS`; nothing happens outside `counted`."""
    if times:
        for counter in _counters:
            counter[_stages[-1], kind, name] += times
