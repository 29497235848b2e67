"""Files of weights built byte by byte, without torch: good ones, and those that an enemy would write."""

import io
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

FLOAT = b"ctorch\nFloatStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
ORDERED = b"ccollections\nOrderedDict\n)R"
EVIL = b"cposix\nsystem\nX\x0b\0\0\0touch PWNED\x85R"


def text(value: str) -> bytes:
    content = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def integer(value: int) -> bytes:
    if 0 <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def row(*values: int) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def storage(key: str, count: int, kind: bytes = FLOAT, legacy: bool = False) -> bytes:
    end = b"Nt" if legacy else b"t"
    return b"(" + text("storage") + kind + text(key) + text("cpu") + integer(count) + end + b"Q"


def tensor(stored: bytes, shape=(2, 3), strides=(3, 1), offset: int = 0) -> bytes:
    return REBUILD + b"(" + stored + integer(offset) + row(*shape) + row(*strides) + b"\x89" + ORDERED + b"tR"


def program(entries: Mapping[str, bytes]) -> bytes:
    """A pickle of protocol 2 of a dict of programs."""
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in entries.items()) + b"u."


def torch_zip(
    pickled: bytes, storages: Mapping[str, bytes], order: bytes = b"little", **more: bytes
) -> bytes:
    """What torch.save writes, around any pickle; an entry of `more` is added or takes another's place."""
    entries = {"data.pkl": pickled, "byteorder": order, "version": b"3\n"}
    entries |= {f"data/{key}": content for key, content in storages.items()} | more
    return zipped({f"name/{name}": content for name, content in entries.items()})


def zipped(entries: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def legacy(pickled: bytes, storages: Mapping[str, np.ndarray], little_endian: bytes = b"\x88") -> bytes:
    """What torch.save wrote before 1.6."""
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    machine = b"\x80\x02}" + text("little_endian") + little_endian + b"s."
    keys = b"\x80\x02](" + b"".join(map(text, storages)) + b"e."
    parts = [magic, b"\x80\x02" + integer(1001) + b".", machine, pickled, keys]
    for array in storages.values():
        parts += [struct.pack("<q", array.size), array.tobytes()]
    return b"".join(parts)


def plain_zip() -> bytes:
    """One tensor, "a" of 0 to 5 in shape (2, 3)."""
    return torch_zip(program({"a": tensor(storage("0", 6))}), {"0": np.arange(6, dtype="<f4").tobytes()})


def tensors(header: bytes, content: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file."""
    return struct.pack("<Q", len(header) if length is None else length) + header + content
