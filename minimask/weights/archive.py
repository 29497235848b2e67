"""The file under a checkpoint, an uncompressed ``.npz``, read as if an enemy had written it.

Everything is decided from the zip's table of contents and the arrays' headers, which are small: no array is
read, and no memory taken, before its dtype, shape and size are known to agree with the bytes that are there.
Entries are stored, never compressed, so that what is read is no larger than the file. Anything wrong with a
file ends in an InputError that names it.
"""

import math
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from minimask.errors import InputError, one_line
from minimask.files import open_regular

_PART = 2 << 20  # bytes read at once, and the most a table of contents may have: enough for 10,000 arrays
_HEADER_MOST = 10_000  # bytes; also NumPy's own bound
_DIMENSIONS_MOST = 8
# What NumPy writes, and nothing else. Its own reader takes any Python literal, and chokes on some of them.
_HEADER = re.compile(
    r"\{'descr': (?P<dtype>[^\n]{1,2000}?), 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>\d{1,19},|(?:\d{1,19}(?:, \d{1,19})+)?)\), \} *\n"
)
_DTYPE = re.compile(r"'[<>](f[248]|U\d{1,9})'")  # of parameters, and of the metadata
# What `zipfile` raises for files that are not sound zips.
UNSOUND = (
    zipfile.BadZipFile,
    EOFError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True)
class Entry:
    """What the header of an array says, before the array is read."""

    dtype: str  # as in the file: "<f4"
    fortran: bool
    shape: tuple[int, ...]
    start: int  # bytes of the header
    size: int  # bytes of the array
    info: zipfile.ZipInfo

    def fits(self, itemsize: int) -> bool:
        """Whether there are as many bytes as elements of this size need, and NumPy accepts the shape."""
        none_of_them_zero = math.prod(max(length, 1) for length in self.shape) * itemsize
        sound = len(self.shape) <= _DIMENSIONS_MOST and none_of_them_zero < 2**62
        return sound and math.prod(self.shape) * itemsize == self.size


class Archive:
    """The arrays of an ``.npz``; a context manager, as it holds the file open.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    entries : dict of str to Entry
        By name, without the ending ``.npy``.

    Raises
    ------
    InputError
        If the file cannot be read, is not a zip, or has an entry that is compressed, encrypted or not an
        array.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = open_regular(path)
        except OSError as error:
            why = error.strerror or error
            raise InputError(
                f"{path}: cannot be read ({why}); give a checkpoint or file of weights"
            ) from error
        try:
            self._zip = self._guarded(lambda: zipfile.ZipFile(InParts(self._file)))
            self._check_contents()
            self.entries = {
                info.filename.removesuffix(".npy"): self._guarded(lambda info=info: self._entry(info))
                for info in self._zip.infolist()
            }
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()

    def damaged(self, reason: object) -> InputError:
        """The error for a file no part of which can be trusted."""
        # The reason may quote the file, whose names can have 64 kB.
        reason = one_line(reason, 200)
        return InputError(f"{self.path}: damaged or not a checkpoint ({reason}); use another copy of it")

    def text(self, name: str, most: int) -> str:
        """An entry that is a single text, of at most `most` characters."""
        entry = self.entries[name]
        characters = int(entry.dtype[2:]) if entry.dtype[1] == "U" else -1
        if entry.shape or not entry.fits(4 * characters):
            raise self.damaged(f"entry {name!r} is not a text")
        if characters > most:
            raise self.damaged(f"entry {name!r} has more than {most:,} characters")
        content = self._guarded(lambda: self._read(entry))
        order = {"<": "le", ">": "be"}[entry.dtype[0]]
        return self._guarded(lambda: content.tobytes().decode(f"utf-32-{order}")).rstrip("\0")

    def array(self, name: str) -> np.ndarray:
        """An entry that is a floating-point array; see `floats`."""
        entry = self.entries[name]
        array = self._guarded(lambda: self._read(entry)).view(self.floats(name))
        return array.reshape(entry.shape[::-1]).T if entry.fortran else array.reshape(entry.shape)

    def floats(self, name: str) -> np.dtype:
        """The dtype of an entry, which must be a floating-point array as large as its header says.

        Raises
        ------
        InputError
            If it is not; nothing but the header is read.
        """
        entry = self.entries[name]
        dtype = np.dtype(entry.dtype)
        if dtype.kind != "f":
            raise self.damaged(f"entry {name!r} is not an array of floats, but of dtype {dtype}")
        if not entry.fits(dtype.itemsize):
            raise self.damaged(f"entry {name!r} has {entry.size:,} bytes, not those of shape {entry.shape}")
        return dtype

    def _guarded(self, work):
        try:
            return work()
        except InputError:  # a ValueError, which already says everything
            raise
        except UNSOUND as error:
            raise self.damaged(error or type(error).__name__) from error
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    def _check_contents(self) -> None:
        infos, names = self._zip.infolist(), self._zip.namelist()
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise self.damaged(f"entry {info.filename!r} is compressed, and no checkpoint is")
        if len(set(names)) < len(names):
            raise self.damaged("it has an entry twice")
        # Entries that share bytes could add up to any size.
        if sum(info.file_size for info in infos) > self._file.seek(0, 2):
            raise self.damaged("its entries are larger than the file")

    def _entry(self, info: zipfile.ZipInfo) -> Entry:
        """Read an array's header."""
        with self._zip.open(info) as member:
            magic = member.read(8)
            count, kind = {b"\1\0": (2, "<H"), b"\2\0": (4, "<I"), b"\3\0": (4, "<I")}.get(magic[6:], (0, ""))
            length = (
                struct.unpack(kind, member.read(count))[0] if magic[:6] == b"\x93NUMPY" and kind else None
            )
            header = None
            if length is not None and length <= _HEADER_MOST:
                header = _HEADER.fullmatch(member.read(length).decode("latin-1"))
        if header is None:
            raise self.damaged(f"entry {info.filename!r} is not an array")
        if not _DTYPE.fullmatch(header["dtype"]):
            dtype = one_line(header["dtype"], 80)
            raise self.damaged(f"entry {info.filename!r} is not an array of floats, but of dtype {dtype}")
        shape = tuple(int(part) for part in header["shape"].split(",") if part)
        start = 8 + count + length
        fortran = header["fortran"] == "True"
        return Entry(header["dtype"].strip("'"), fortran, shape, start, info.file_size - start, info)

    def _read(self, entry: Entry) -> np.ndarray:
        """An array's bytes, checked against the zip's checksum; (size,) uint8."""
        content, done = np.empty(entry.size, np.uint8), 0
        with self._zip.open(entry.info) as member:
            member.read(entry.start)
            while done < entry.size:
                part = member.read(min(_PART, entry.size - done))
                if not part:
                    raise EOFError("the file ends early")
                content[done : done + len(part)] = np.frombuffer(part, np.uint8)
                done += len(part)
        return content


class InParts:
    """A file that refuses `zipfile` more than `_PART` bytes at a time.

    `zipfile` would read a table of contents of any size, and make objects of it that take ten times as much.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(_PART + 1 if size < 0 else min(size, _PART + 1))
        if len(content) > _PART:
            raise zipfile.BadZipFile("its table of contents is too large")
        return content
