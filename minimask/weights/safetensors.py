"""safetensors: the length of a JSON text, the text, and the arrays' bytes one after the other.

For each name the text has ``{"dtype": "F32", "shape": [64, 3], "data_offsets": [begin, end]}``, with offsets
counted from the end of the text; it may also have ``__metadata__``, texts by name. Everything is
little-endian and in C order. https://github.com/huggingface/safetensors describes the format.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from minimask import backend
from minimask.errors import InputError, one_line
from minimask.files import replacing
from minimask.weights.calls import check_shape, decoded, decoded_size, raw_dtype
from minimask.weights.raw import Refusal, damaged, fill, little_endian_bytes, take

_HEADER_MOST = 4 << 20  # bytes of JSON; an array takes some 100
DTYPES = {
    "F32": "<f4",
    "F64": "<f8",
    "F16": "<f2",
    "BF16": "bfloat16",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "bool",
}
_NAMES = {np.dtype(kind): name for name, kind in DTYPES.items() if kind != "bfloat16"}


@dataclass(frozen=True)
class Stored:
    """An array in the file: where it begins, and what it is."""

    kind: str  # a value of DTYPES
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return decoded_size(self.kind, self.shape)

    def array(self, file: IO[bytes]) -> np.ndarray:
        return decoded(fill(file, self.start, np.empty(self.shape, raw_dtype(self.kind))), self.kind)


def read_header(file: IO[bytes], end: int) -> tuple[dict[str, Stored], dict[str, str]]:
    """The arrays by name, not yet read, and the metadata.

    Raises
    ------
    Refusal
        If the text does not follow the format, or the arrays do not fill the rest of the file exactly.
    """
    (length,) = struct.unpack("<Q", take(file, 8, end))
    if length > end - 8:
        raise Refusal(
            f"is cut short or damaged (a safetensors header of {length:,} bytes, a file of {end:,}); "
            "get it again"
        )
    if length > _HEADER_MOST:
        raise Refusal(f"has a header of {length:,} bytes, but a detector's has fewer; use another file")
    try:
        header = json.loads(
            take(file, length, end).decode("utf-8"),
            object_pairs_hook=_no_name_twice,
            parse_constant=_no_constant,
        )
    except Refusal:
        raise
    except (ValueError, RecursionError) as error:
        raise damaged(f"its header is not JSON: {one_line(error, 100)}") from error
    if type(header) is not dict:
        raise damaged("its header is not a table of arrays")
    metadata = header.pop("__metadata__", {})
    if type(metadata) is not dict or not all(type(text) is str for text in metadata.values()):
        raise damaged("its __metadata__ is not texts by name")
    begin, stored = 8 + length, {}
    for name, entry in sorted(header.items(), key=_offsets):
        stored[name] = _stored(name, entry, begin)
        size = math.prod(stored[name].shape) * raw_dtype(stored[name].kind).itemsize
        if entry["data_offsets"] != [begin - 8 - length, begin - 8 - length + size]:
            raise damaged(
                f"array {one_line(name, 80)} is not as large as its shape, or does not follow the one before"
            )
        begin += size
    if begin != end:
        raise damaged(f"its arrays end at byte {begin:,} of {end:,}")
    return {name: stored[name] for name in header}, metadata


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise damaged("its header has a name twice")
    return found


def _no_constant(text: str) -> None:
    raise damaged(f"{text} in its header")


def _offsets(item: tuple[str, Any]) -> list[int]:
    name, entry = item
    offsets = entry.get("data_offsets") if type(entry) is dict else None
    if type(offsets) is not list or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        raise damaged(f"array {one_line(name, 80)} has no data_offsets")
    return offsets


def _stored(name: str, entry: dict[str, Any], begin: int) -> Stored:
    kind = entry.get("dtype")
    if type(kind) is not str or kind not in DTYPES:
        known = ", ".join(DTYPES)
        raise Refusal(
            f"array {one_line(name, 80)} has dtype {one_line(kind, 40)}, not one of {known}; convert it"
        )
    return Stored(DTYPES[kind], check_shape(entry.get("shape")), begin)


def write_safetensors(
    path: str | Path, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays as a safetensors file; the same arrays give the same bytes.

    Parameters
    ----------
    path : str or Path
        At any moment, the file has either its old content or the new.
    arrays : mapping of str to array
        NumPy's or CuPy's, of floats, integers or bools, in any layout; such as ``model.state_dict()``.
    metadata : mapping of str to str, optional
        Written with them; ``{"format": "pt"}``, which some readers ask for, is added.

    Raises
    ------
    InputError
        If a dtype has no name in the format, or the file cannot be written.
    """
    begin, header = 0, {"__metadata__": {"format": "pt", **(metadata or {})}}
    arrays = {name: backend.to_cpu(array) for name, array in arrays.items()}  # sync: all that is written
    for name, array in arrays.items():
        kind = _NAMES.get(array.dtype.newbyteorder("<"))
        if kind is None or name == "__metadata__":
            raise InputError(f"{path}: safetensors has no array {one_line(name, 80)} of dtype {array.dtype}")
        end = begin + array.nbytes
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")
    text += b" " * (-len(text) % 8)  # so that the arrays begin at a multiple of 8
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(little_endian_bytes(array))
