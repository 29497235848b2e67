"""Writing a ``.pth`` without torch, as `torch_files` describes it: the pickle by hand, opcode by opcode."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minimask import backend
from minimask.errors import InputError, one_line
from minimask.files import replacing
from minimask.weights.calls import STORAGES
from minimask.weights.raw import little_endian_bytes

_ROOT = "archive"
_ALIGNMENT = 64  # bytes, of each storage in the file: torch can then map it into memory
_TYPES = {np.dtype(kind): name for name, kind in STORAGES.items() if kind != "bfloat16"}
_LOCAL_HEADER = 30


def write_pth(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays as a state dict that ``torch.load(path, weights_only=True)`` opens; needs no torch.

    Parameters
    ----------
    path : str or Path
        At any moment, the file has either its old content or the new; the same arrays give the same bytes.
    arrays : mapping of str to array
        NumPy's or CuPy's, of the dtypes that torch has long had: float16 to float64, signed integers, uint8
        and bool, in any layout; such as ``model.state_dict()``.

    Raises
    ------
    InputError
        If an array has another dtype, or the file cannot be written.
    """
    arrays = {name: backend.to_cpu(array) for name, array in arrays.items()}  # sync: all that is written
    for name, array in arrays.items():
        if array.dtype.newbyteorder("<") not in _TYPES:
            raise InputError(f"{path}: a .pth has no tensor {one_line(name, 80)} of dtype {array.dtype}")
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _write_entry(archive, "data.pkl", np.frombuffer(_program(arrays), np.uint8))
        _write_entry(archive, "byteorder", np.frombuffer(b"little", np.uint8))
        for key, array in enumerate(arrays.values()):
            _write_entry(archive, f"data/{key}", little_endian_bytes(array))
        _write_entry(archive, "version", np.frombuffer(b"3\n", np.uint8))


def _write_entry(archive: zipfile.ZipFile, name: str, content: np.ndarray) -> None:
    info = zipfile.ZipInfo(f"{_ROOT}/{name}")  # dated 1980: the real time would change the bytes
    info.create_system, info.external_attr = 3, 0o600 << 16  # the same on every system
    info.file_size = len(content)
    begins = archive.fp.tell() + _LOCAL_HEADER + len(info.filename) + 4
    padding = -begins % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding  # as torch pads
    with archive.open(info, "w") as entry:
        entry.write(content)


def _program(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A pickle of protocol 2 that makes the OrderedDict of tensors the way torch's own does."""
    program = b"\x80\x02" + _global("collections.OrderedDict") + b")R("  # call it with (), and mark
    for key, (name, array) in enumerate(arrays.items()):
        strides, step = [], 1
        for length in reversed(array.shape):
            strides, step = [step, *strides], step * length
        kind = _global(_TYPES[array.dtype.newbyteorder("<")])
        storage = (
            b"(" + _text("storage") + kind + _text(str(key)) + _text("cpu") + _integer(array.size) + b"tQ"
        )
        hooks = _global("collections.OrderedDict") + b")R"
        program += (
            _text(name)
            + _global("torch._utils._rebuild_tensor_v2")
            + b"("  # its arguments: storage, offset, shape, strides, requires_grad, hooks
            + (storage + _integer(0) + _tuple(array.shape) + _tuple(strides) + b"\x89" + hooks)
            + b"tR"  # make them a tuple, and call
        )
    return program + b"u."  # SETITEMS, STOP


def _global(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def _text(text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _tuple(values: Any) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"
