"""`read_weights`: from a file of weights, whatever wrote it, to arrays by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from minimask.config import Config
from minimask.errors import InputError, one_line
from minimask.files import open_regular
from minimask.weights.calls import ROWS, NumpyArray, Storage, Strided
from minimask.weights.checkpoint import CheckpointFile
from minimask.weights.pickles import Machine, not_in_the_table
from minimask.weights.raw import Refusal, damaged
from minimask.weights.safetensors import Stored, read_header
from minimask.weights.schema import FIELDS
from minimask.weights.torch_files import MAGIC, ReadStorage, StoredZip, read_legacy, read_zip

WRAPPERS = ("model", "state_dict", "model_state_dict", "blobs")  # under which checkpoints keep a state dict
PREFIXES = ("module.", "model.")  # of DataParallel, and of a model that is an attribute of another
_BESIDE_MOST = 100  # entries kept of those beside the weights
# An expanded tensor has one number and any shape. All arrays together may take `_FREE` bytes, plus
# `_TIMES_FILE` times the file's.
_FREE, _TIMES_FILE = 64 << 20, 4
_HEAD = 512

# What else people give instead of weights: how it begins, what it is, what to do.
_OTHERS = (
    ((b"<!doctype", b"<html", b"<?xml"), "is a web page, not weights", "download the file itself"),
    (
        (b"version https://git-lfs",),
        "is a pointer of Git LFS, not the weights",
        "fetch them with 'git lfs pull', or download the file itself",
    ),
    (
        (b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"7z\xbc\xaf", b"(\xb5/\xfd", b"rar!"),
        "is compressed",
        "unpack it first",
    ),
    (
        (b"\x89hdf",),
        "is HDF5, as Keras writes it",
        "only torch's, detectron2's and safetensors files are read",
    ),
    ((b"\x93numpy",), "is one NumPy array without a name", "give a file that has all arrays by name"),
    ((b"\x89png", b"\xff\xd8\xff", b"gif8", b"bm", b"riff"), "is a picture", "give the weights here"),
    ((b"%pdf",), "is a PDF", "give the weights here"),
    ((b'{"', b"[{", b'["'), "is JSON, not weights", "give the weights here"),
)
# A call at the very beginning, as protocol 0 writes it: c, or i after arguments; then module and name.
_OLD_PICKLE = re.compile(rb"\(*(?:[SVI][^\n]*\n)*[ci]([A-Za-z_][\w.]*)\n([A-Za-z_][\w.]*)\n")
_READ = ".pth, .pt, .pkl, .safetensors and minimask's .npz are read"


@dataclass(frozen=True, eq=False, repr=False)
class Weights(Mapping[str, np.ndarray]):
    """Arrays by name, as a read-only mapping, and what else the file says.

    Attributes
    ----------
    arrays : dict of str to array
        In C order, each in memory of its own. bfloat16 has become float32, which holds it exactly; all other
        dtypes are as in the file.
    path : Path
    format : str
        ``"torch"``, ``"torch legacy"``, ``"pickle"``, ``"safetensors"`` or ``"minimask"``.
    wrapper : str or None
        The entry of the file that held the arrays, such as ``"model"``, if they were not at its top level.
    prefix : str
        What was removed from the beginning of all names, such as ``"module."``.
    class_names : tuple of str
        Of labels 1, 2, ...; empty where the file has none.
    category_ids : tuple of int
        Their COCO ids, one for each.
    metadata : dict
        Texts and numbers that were beside the arrays: ``epoch``, detectron2's ``__author__``.
    """

    arrays: dict[str, np.ndarray]
    path: Path
    format: str
    wrapper: str | None = None
    prefix: str = ""
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    metadata: dict[str, str | int | float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __repr__(self) -> str:
        return f"<Weights: {len(self)} arrays of {self.path} ({self.format})>"


def read_weights(path: str | Path) -> Weights:
    """Read a file of weights that torch, detectron2, safetensors or minimask has written; runs no code in it.

    Parameters
    ----------
    path : str or Path
        Its first bytes tell what kind of file it is; the name does not matter. From a training checkpoint,
        the state dict under one of `WRAPPERS` is taken; prefixes of parallel training (`PREFIXES`) are
        removed.

    Returns
    -------
    Weights
        A mapping of name to array.

    Raises
    ------
    InputError
        In one line, if the file cannot be read, holds no weights, is damaged, or is a pickle that asks for
        something that weights never need: the message names that, and nothing has been run.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            return _read(path, file)
    except Refusal as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); give a file that can be"
        ) from error


def _read(path: Path, file: IO[bytes]) -> Weights:
    head, end = file.read(_HEAD), file.seek(0, 2)
    file.seek(0)
    if head[:4] == b"PK\3\4":
        archive = StoredZip(file)
        if all(name.endswith(".npy") for name in archive.entries):
            return _of_checkpoint(path)
        return _of_document(path, "torch", *read_zip(archive), end)
    if head[8:9] == b"{" and any(byte < 9 for byte in head[:8]):  # a length, most of whose bytes are 0
        return _of_safetensors(path, file, end)
    if head[:1] == b"\x80":
        value = Machine(file, end, ROWS).run()
        if value == MAGIC:
            return _of_document(path, "torch legacy", *read_legacy(file, end), end)
        return _of_document(path, "pickle", value, None, end)
    raise _other(head, end)


def _of_checkpoint(path: Path) -> Weights:
    with CheckpointFile(path) as file:
        found = file.read()
    names, ids = tuple(found.class_names), tuple(found.category_ids)
    model = {"name": Config().model.name} | found.config.get("model", {})  # defaults may be left out
    beside = {"model": model["name"], "config": json.dumps({"model": model}), "step": found.step}
    return Weights(found.parameters, path, "minimask", None, "", names, ids, beside)


def _of_safetensors(path: Path, file: IO[bytes], end: int) -> Weights:
    stored, metadata = read_header(file, end)
    if not stored:
        raise Refusal("holds no weights: no array is in it; use another file")
    names, prefix = _without_prefix(list(stored))
    _check_size(stored.values(), end)
    arrays = {name: array.array(file) for name, array in zip(names, stored.values())}
    classes, ids = (tuple(_list_in(metadata, name)) for name in ("class_names", "category_ids"))
    return Weights(arrays, path, "safetensors", None, prefix, classes, ids, metadata)


def _list_in(metadata: dict[str, str], name: str) -> list:
    """A list that `export` wrote into the metadata as JSON; empty if the entry is something else."""
    try:
        value = json.loads(metadata.get(name, "[]"))
    except (ValueError, RecursionError):
        return []
    return value if FIELDS[name].holds(value) else []


def _of_document(path: Path, form: str, value: Any, read_storage: ReadStorage | None, end: int) -> Weights:
    """The weights in the object that a pickle has made."""
    if type(value) is not dict:
        raise Refusal(f"holds {_told(value)}, not weights by name; save model.state_dict()")
    wrapper = next((key for key in WRAPPERS if _tensors(value.get(key))), None)
    found = _tensors(value if wrapper is None else value[wrapper])
    if wrapper == "blobs":  # Caffe2's, with the optimizer's state among them
        found = {name: tensor for name, tensor in found.items() if not name.endswith("_momentum")}
    if not found:
        entries = ", ".join(one_line(repr(key), 40) for key in list(value)[:5]) or "none"
        raise Refusal(f"holds no weights by name (its entries: {entries}); save model.state_dict()")
    names, prefix = _without_prefix(list(found))
    _check_size(found.values(), end)
    arrays = _made(dict(zip(names, found.values())), read_storage)
    beside = {k: v for k, v in value.items() if type(k) is str and type(v) in (str, int, float, bool)}
    beside = dict(list(beside.items())[:_BESIDE_MOST])
    return Weights(arrays, path, form, wrapper, prefix, metadata=beside)


def _tensors(value: Any) -> dict[str, Strided | NumpyArray]:
    """The entries of a dict that are tensors or arrays; none if it is not a dict."""
    items = value.items() if type(value) is dict else ()
    return {k: v for k, v in items if type(k) is str and isinstance(v, Strided | NumpyArray)}


def _told(value: Any) -> str:
    kinds = {
        Strided: "one tensor",
        NumpyArray: "one array",
        list: "a list",
        tuple: "a tuple",
        Storage: "a storage",
    }
    return kinds.get(type(value), f"an object of type {type(value).__name__}")


def _without_prefix(names: list[str]) -> tuple[list[str], str]:
    """The names without the prefixes that they all have, and what was removed."""
    taken = ""
    while prefix := next((p for p in PREFIXES if names and all(name.startswith(p) for name in names)), ""):
        names, taken = [name.removeprefix(prefix) for name in names], taken + prefix
    return names, taken


def _check_size(arrays: Iterable[Strided | NumpyArray | Stored], end: int) -> None:
    """Raise a Refusal before memory is taken for more than a file of `end` bytes can mean."""
    size = sum(array.size for array in arrays)
    if size > _FREE + _TIMES_FILE * end:
        raise damaged(f"its arrays would take {size:,} bytes, the file has {end:,}")


def _made(found: dict[str, Strided | NumpyArray], read_storage: ReadStorage | None) -> dict[str, np.ndarray]:
    """The arrays, made storage by storage, so that only one storage is in memory beside them."""
    arrays: dict[str, np.ndarray | None] = dict.fromkeys(found)
    by_storage: dict[Storage, list[str]] = {}
    for name, tensor in found.items():
        if isinstance(tensor, NumpyArray):
            arrays[name] = tensor.array()
        else:
            by_storage.setdefault(tensor.storage, []).append(name)
    for storage, names in by_storage.items():
        raw = read_storage(storage)
        for name in names:
            arrays[name] = found[name].array(raw, shared=len(names) > 1)
    return arrays


def _other(head: bytes, end: int) -> Refusal:
    """The refusal of a file that is not weights: what it is instead, and what to do."""
    if end == 0:
        return Refusal("is empty; get it again, or check whether the disk was full when it was written")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginnings, what, mend in _OTHERS:
        if start.startswith(beginnings):
            return Refusal(f"{what}; {mend}")
    if call := _OLD_PICKLE.match(head):
        return not_in_the_table(f"{call[1].decode()}.{call[2].decode()}")
    if head[:3] in (b"(dp", b"(lp"):
        return Refusal("is a pickle of protocol 0; save it again with protocol 2")
    if head[257:262] == b"ustar":
        return Refusal("is a tar, as torch wrote before 0.2; unpack it, or save it again with a newer torch")
    if end < 64:
        return Refusal(f"has only {end} bytes and is none of the kinds that are read ({_READ}); get it again")
    return Refusal(f"is none of the kinds that are read: {_READ}; give another file")
