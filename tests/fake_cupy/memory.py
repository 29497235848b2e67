"""The device as far as its absence can be played: what is allocated, and where the host waits."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tests.fake_cupy.counting import count

PACKAGE = str(Path(__file__).resolve().parents[2] / "minimask") + "/"


class OutOfMemoryError(MemoryError):
    """As CuPy's, with its message."""

    def __init__(self, size: int, total: int, limit: int = 0):
        message = f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes"
        super().__init__(message + (f", limit set to: {limit:,} bytes)." if limit else ")."))


class MemoryPool:
    """Counts what arrays hold, in blocks of 512 bytes; keeps freed blocks until told to free them."""

    def __init__(self):
        self._used = self._total = self._limit = 0

    def used_bytes(self) -> int:
        return self._used

    def total_bytes(self) -> int:
        return self._total

    def free_bytes(self) -> int:
        return self._total - self._used

    def n_free_blocks(self) -> int:
        return int(self._total > self._used)

    def get_limit(self) -> int:
        return self._limit

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        if (size is None) == (fraction is None):
            raise ValueError("size and fraction must not be specified at one time")
        if size is None:
            if not 0 <= fraction <= 1:
                raise ValueError(f"memory limit fraction out of range: {fraction}")
            size = int(fraction * DEVICE_MEMORY)
        if size < 0:
            raise ValueError(f"memory limit size out of range: {size}")
        self._limit = size

    def free_all_blocks(self, stream=None) -> None:
        self._total = self._used

    def _allocate(self, size: int) -> int:
        size = -(-size // 512) * 512
        if self._limit and self._used + size > self._limit:
            raise OutOfMemoryError(size, self._used, self._limit)
        self._used += size
        self._total = max(self._total, self._used)
        return size

    def _free(self, size: int) -> None:
        self._used -= size


DEVICE_MEMORY = 16 << 30
pool = MemoryPool()


class Buffer:
    """Memory of the device: held by an array and by its views, given back with the last of them."""

    __slots__ = ("size",)

    def __init__(self, size: int):
        self.size = 0
        self.size = pool._allocate(size)
        count("allocation", times=int(size > 0))

    def __del__(self, pool=pool):  # the module's name may be gone when the interpreter ends
        pool._free(self.size)


syncs: list[
    tuple[str, int, str]
] = []  # file, line, what: the innermost line of minimask/ that made the host wait


def sync(what: str) -> None:
    """Note that the host waits for the device here: in the line that has the backend do so, not in it."""
    frame = sys._getframe(1)
    while frame is not None and not _is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is not None:
        syncs.append((frame.f_code.co_filename, frame.f_lineno, what))


def _is_ours(file: str) -> bool:
    return file.startswith(PACKAGE) and not file.startswith(f"{PACKAGE}backend/")


_seed = 0


def generator() -> np.random.Generator:
    """A new stream of random numbers each time, the same ones in every run."""
    global _seed
    _seed += 1
    return np.random.default_rng(_seed)


def reset() -> None:
    """Forget limits, counts, marks and random numbers; arrays that still live stay counted."""
    global _seed
    _seed = 0
    syncs.clear()
    pool.set_limit(size=0)
    pool.free_all_blocks()
