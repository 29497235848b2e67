"""What the readers and writers of files share: refusals, and bytes to numbers and back."""

from __future__ import annotations

import zlib
from typing import IO

import numpy as np

_PART = 1 << 20  # bytes read and then checked at a time, while they are still in the processor's cache


class Refusal(ValueError):
    """Why a file is not read and what to do, in one line, to which `read_weights` adds the file's name."""


def damaged(reason: str) -> Refusal:
    """The refusal of a file that contradicts itself."""
    return Refusal(f"damaged ({reason}); use another copy of it")


def take(file: IO[bytes], count: int, end: int) -> bytes:
    """The next `count` bytes; refuses, before it takes memory for them, if fewer are left before `end`."""
    if count > 64 and count > end - file.tell():
        raise damaged(f"a length of {count:,} bytes where {max(end - file.tell(), 0):,} follow")
    content = file.read(count)
    if len(content) < count:
        raise damaged("it ends early")
    return content


def fill(file: IO[bytes], start: int, array: np.ndarray, crc: int | None = None) -> np.ndarray:
    """Fill an array with bytes from position `start`; `crc` is the CRC-32 that they should have."""
    file.seek(start)
    content, found = memoryview(array.reshape(-1).view(np.uint8)), 0
    for begin in range(0, len(content), _PART):
        part = content[begin : begin + _PART]
        if file.readinto(part) < len(part):
            raise damaged("it ends early")
        if crc is not None:
            found = zlib.crc32(part, found)
    if crc is not None and found != crc:
        raise damaged("its content does not match its checksum")
    return array


def little_endian_bytes(array: np.ndarray) -> np.ndarray:
    """An array's numbers in C order, as (bytes,) uint8; a copy only where the layout differs."""
    ordered = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return ordered.reshape(-1).view(np.uint8)
