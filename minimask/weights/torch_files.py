"""What is in a ``.pth``: a pickle that describes the tensors, and beside it the storages with their numbers.

Since torch 1.6 it is a zip of stored entries: ``NAME/data.pkl`` is the pickle, ``NAME/data/KEY`` each
storage, ``NAME/byteorder`` the order of their bytes. A legacy file is five pickles in a row (a magic number,
a version, facts about the machine, the object, the storages' keys), and then, for each key, an int64 with the
count of numbers, and the numbers. From either, reading gives two things: the object, in which a tensor is a
`Strided`, and a function that reads a storage.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import numpy as np

from minimask.errors import one_line
from minimask.weights.archive import UNSOUND, InParts
from minimask.weights.calls import ROWS, Storage, raw_dtype, storage_of
from minimask.weights.pickles import Machine
from minimask.weights.raw import Refusal, damaged, fill, take

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a legacy file
_PROGRAM_MOST = 64 << 20  # bytes of data.pkl, in which a tensor takes some 200
_ENCRYPTED = 0x1 | 0x40 | 0x2000

ReadStorage = Callable[[Storage], np.ndarray]


class Entry(NamedTuple):
    """Where an entry's bytes are in the file, and what they should be."""

    start: int
    size: int
    crc: int
    compressed: bool


class StoredZip:
    """A zip, of which only entries that are stored uncompressed can be read; `entries` has all by name.

    Parameters
    ----------
    file : binary file
        Anything wrong with it ends in a Refusal.
    """

    def __init__(self, file: IO[bytes]):
        self.file = file
        try:
            archive = zipfile.ZipFile(InParts(file))
        except UNSOUND as error:
            reason = one_line(error or type(error).__name__, 100)
            raise Refusal(
                f"is cut short or damaged (a zip without its end: {reason}); get it again"
            ) from error
        infos, self.end = archive.infolist(), archive.start_dir
        self.entries = {info.filename: self._entry(info) for info in infos}
        if len(self.entries) < len(infos):
            raise damaged("it has an entry twice")
        position = 0
        for info in sorted(infos, key=lambda info: info.header_offset):
            if info.header_offset < position:
                raise damaged("its entries overlap")
            position = self.entries[info.filename].start + info.compress_size
        if position > self.end:
            raise damaged("its entries are larger than the file")

    def _entry(self, info: zipfile.ZipInfo) -> Entry:
        name = one_line(info.filename, 80)
        if info.flag_bits & _ENCRYPTED:
            raise Refusal(
                "is an encrypted zip; unpack it with its password, and give the file that was in it"
            )
        if not 0 <= info.header_offset <= self.end:
            raise damaged(f"entry {name} is not where the zip says")
        self.file.seek(info.header_offset)
        signature, *_, name_length, extra_length = struct.unpack("<4s22x2H", take(self.file, 30, self.end))
        if signature != b"PK\3\4":
            raise damaged(f"entry {name} is not where the zip says")
        written = self.file.read(name_length)
        if written.decode("utf-8" if info.flag_bits & 0x800 else "cp437", "replace") != info.orig_filename:
            raise damaged(f"entry {name} has another name inside the zip")
        start = info.header_offset + 30 + name_length + extra_length
        compressed = info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size
        return Entry(start, info.file_size, info.CRC, compressed)

    def size(self, name: str) -> int:
        """An entry's size in bytes; raises a Refusal if it is compressed."""
        if self.entries[name].compressed:
            raise Refusal(
                f"has the compressed entry {one_line(name, 80)}, but weights are stored as they are; unpack "
                "the zip and give the file in it or, if it was a .pth before, zip it again with 'zip -0 -r'"
            )
        return self.entries[name].size

    def read(self, name: str, most: int) -> bytes:
        """The content of an entry, which may have at most `most` bytes."""
        size = self.size(name)
        if size > most:
            raise damaged(f"{one_line(name, 80)} has {size:,} bytes, more than {most:,}")
        return self.fill(name, np.empty(size, np.uint8)).tobytes()

    def fill(self, name: str, array: np.ndarray) -> np.ndarray:
        """Read an entry into an array of its `size`, and check its checksum, unless torch omitted that."""
        entry = self.entries[name]
        return fill(self.file, entry.start, array, entry.crc or None)


def read_zip(archive: StoredZip) -> tuple[Any, ReadStorage]:
    """The object in a ``.pth``, and a function that reads its storages.

    Raises
    ------
    Refusal
        If it asks for something that weights never need, or contradicts itself.
    """
    programs = [name for name in archive.entries if name.rpartition("/")[2] == "data.pkl"]
    root = programs[0].removesuffix("data.pkl") if len(programs) == 1 else ""
    if any(name.startswith((f"{root}constants.pkl", f"{root}code/")) for name in archive.entries):
        raise Refusal(
            "is a TorchScript program; where torch is, save its weights alone: "
            'torch.save(torch.jit.load("FILE").state_dict(), "weights.pth")'
        )
    if len(programs) != 1:
        raise Refusal(
            f"is a zip with {len(programs)} entries data.pkl, not one; if weights are in it, unpack it first"
        )
    order = archive.read(f"{root}byteorder", 64) if f"{root}byteorder" in archive.entries else b"little"
    if order != b"little":
        raise Refusal(
            f"has the byte order {one_line(order.decode('latin-1'), 40)}; save it on a little-endian machine"
        )
    program = archive.read(programs[0], _PROGRAM_MOST)
    value = Machine(io.BytesIO(program), len(program), ROWS, storage_of).run()

    def read_storage(storage: Storage) -> np.ndarray:
        name = f"{root}data/{storage.key}"
        if name not in archive.entries:
            raise damaged(f"storage {one_line(storage.key, 80)} is not there")
        if archive.size(name) != storage.size:
            found = f"{archive.size(name):,} bytes, not {storage.size:,}"
            raise damaged(f"storage {one_line(storage.key, 80)} has {found}")
        return archive.fill(name, np.empty(storage.count, raw_dtype(storage.kind)))

    return value, read_storage


def read_legacy(file: IO[bytes], end: int) -> tuple[Any, ReadStorage]:
    """As `read_zip`, for a legacy file whose first pickle has been read."""
    used: dict[str, Storage] = {}

    def remembered(reference: Any) -> Storage:
        storage = storage_of(reference)
        if used.setdefault(storage.key, storage).size != storage.size:
            raise damaged(f"storage {one_line(storage.key, 80)} with two sizes")
        return storage

    version, machine = (Machine(file, end, ROWS).run() for _ in range(2))
    if version != 1001 or type(machine) is not dict:
        raise damaged("its second pickle is not the version of the format")
    if machine.get("little_endian") is not True:
        raise Refusal("is big-endian; save it on a little-endian machine")
    value = Machine(file, end, ROWS, remembered).run()
    keys = Machine(file, end, ROWS).run()
    if type(keys) is not list or not all(type(key) is str and key in used for key in keys):
        raise damaged("its last pickle does not list its storages")
    starts: dict[str, int] = {}
    for key in keys:
        (count,) = struct.unpack("<q", take(file, 8, end))
        if count != used[key].count or key in starts:
            raise damaged(f"storage {one_line(key, 80)} has {count:,} numbers, not {used[key].count:,}")
        starts[key] = file.tell()
        if used[key].size > end - starts[key]:
            raise Refusal("is cut short: its last storages are missing; get it again")
        file.seek(used[key].size, io.SEEK_CUR)

    def read_storage(storage: Storage) -> np.ndarray:
        if storage.key not in starts:
            raise damaged(f"storage {one_line(storage.key, 80)} is not there")
        return fill(file, starts[storage.key], np.empty(storage.count, raw_dtype(storage.kind)))

    return value, read_storage
