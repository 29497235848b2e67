"""Checkpoints: one ``.npz`` without pickle that holds all that a run needs to go on and a model to be used.

Inside are ``parameters/NAME`` and ``momentum/NAME`` for each parameter, and ``metadata``, a JSON text with
the step, seed, configuration, class names and the machine. ``numpy.load`` opens it; the zip's checksums find
damage. The same content gives the same bytes. A file from elsewhere is checked before anything in it is used:
its form in `archive.py`, its metadata in `schema.py`, and here whether its arrays agree with each other.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from minimask import backend
from minimask.errors import InputError, one_line
from minimask.files import remove_leftovers, replacing
from minimask.weights.archive import Archive
from minimask.weights.schema import FIELDS, FORMAT, OPTIONAL, read_metadata

_TOP = "metadata"
_TOP_MOST = 2 << 20  # characters; a large model's metadata has some 50,000
_GREATEST = float(np.finfo(np.float32).max)
# What must not change for a run to continue bit by bit; see `environment_changes`.
_DECIDES_BITS = ("device", "processor", "blas", "blas_kernel", "threads", "processes", "numpy", "scipy")
_DECIDES_BITS += ("minimask",)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes
    ----------
    parameters : dict of str to array
        The model's state, by name.
    momentum : dict of str to array
        The optimizer's state, by the parameters' names; empty where it is not kept.
    step : int
        Number of optimizer steps taken.
    seed : int
        All random draws follow from it and the step; no generator state is needed.
    config : dict of dict
        The resolved configuration.
    class_names : list of str
        Of labels 1, 2, ... (0 is background).
    category_ids : list of int
        The same classes' ids in the COCO file trained on.
    data : dict of str to str
        Identifies the training images.
    environment : dict of str to str
        What `backend.describe` says (versions, BLAS, its kernel, threads), and the device: "cpu" or the GPU.
    keypoint_names : list of str
        Empty without keypoints.
    skeleton : list of [int, int]
        Pairs of their indices, to be joined by lines.
    object_sides : list of float
        What the network has seen: the square roots of the objects' box areas, in its pixels, at the 1st,
        50th and 99th percentile. Empty where there were no objects, and in older checkpoints.
    """

    parameters: dict[str, np.ndarray]
    momentum: dict[str, np.ndarray] = field(default_factory=dict)
    step: int = 0
    seed: int = 0
    config: dict[str, dict] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    category_ids: list[int] = field(default_factory=list)
    data: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    keypoint_names: list[str] = field(default_factory=list)
    skeleton: list[list[int]] = field(default_factory=list)
    object_sides: list[float] = field(default_factory=list)


_ARRAYS = ("parameters", "momentum")


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; a kill at any moment leaves the old file or the new one.

    Raises
    ------
    InputError
        If it cannot be written (because the disk is full, say); the old file is then unchanged.
    """
    arrays = {
        f"{group}/{name}": backend.to_cpu(array)  # sync: all that is saved
        for group in _ARRAYS
        for name, array in getattr(checkpoint, group).items()
    }
    metadata = {"format": FORMAT, "arrays": list(arrays)} | {
        name: getattr(checkpoint, name) for name in FIELDS
    }
    metadata |= {name: getattr(checkpoint, name) for name in OPTIONAL if getattr(checkpoint, name)}
    arrays[_TOP] = np.array(json.dumps(metadata, allow_nan=False))
    remove_leftovers(Path(path).parent)
    with replacing(path) as file:
        # Not compressed: weights do not shrink, and a save should be short.
        np.savez(file, **arrays)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint, checking every byte of content.

    Raises
    ------
    InputError
        If the file is missing, damaged or not a checkpoint of this package, or holds what no run writes.
    """
    with CheckpointFile(path) as file:
        return file.read()


class CheckpointFile:
    """A checkpoint of which all but the arrays' values is known: to see whether it fits before it is read.

    A context manager, as it holds the file open.

    Attributes
    ----------
    head : Checkpoint
        Its arrays have the shapes and dtypes of those in the file, take no memory, and are zero.

    Raises
    ------
    InputError
        As `load_checkpoint`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._archive = Archive(self.path)
        try:
            self.head = self._check()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "CheckpointFile":
        return self

    def __exit__(self, *exception) -> None:
        self._archive.__exit__()

    def read(self) -> Checkpoint:
        """The checkpoint, with its arrays.

        Raises
        ------
        InputError
            If the content does not match its checksums, or an array holds values not finite in float32.
        """
        groups: dict[str, dict[str, np.ndarray]] = {group: {} for group in _ARRAYS}
        for key in self._names():
            array = self._archive.array(key)
            if not _finite(array):
                raise InputError(
                    f"{self.path}: {one_line(key, 80)} holds numbers that are not finite; use an earlier copy"
                )
            group, _, name = key.partition("/")
            groups[group][name] = array
        return replace(self.head, **groups)

    def _names(self) -> list[str]:
        return [name for name in self._archive.entries if name != _TOP]

    def _check(self) -> Checkpoint:
        path, archive = self.path, self._archive
        if _TOP not in archive.entries:
            raise InputError(f"{path}: not a checkpoint of minimask (no readable entry 'metadata')")
        values = read_metadata(archive.text(_TOP, _TOP_MOST), path)
        # The checksums cover each array, not the zip's table of contents: a bit lost there can drop entries.
        if values.pop("arrays") != self._names():
            raise InputError(f"{path}: damaged (entries are missing); use another copy of it")
        groups: dict[str, dict[str, np.ndarray]] = {group: {} for group in _ARRAYS}
        for key in self._names():
            group, _, name = key.partition("/")
            if group not in groups or not name:
                raise archive.damaged(f"entry {key!r} is neither a parameter nor its momentum")
            zero = np.zeros((), archive.floats(key))
            groups[group][name] = np.broadcast_to(zero, archive.entries[key].shape)
        for name, array in groups["momentum"].items():
            if name not in groups["parameters"] or groups["parameters"][name].shape != array.shape:
                what = f"the momentum of {one_line(name, 80)} is of another model than the parameters"
                raise InputError(f"{path}: {what}; use another copy of it")
        return Checkpoint(**groups, **values)


def _finite(array: np.ndarray) -> bool:
    """Whether no value is NaN, infinite or beyond float32, the dtype of models; makes no copy."""
    with np.errstate(all="ignore"):
        # With a NaN, the least and the greatest are NaN, and no comparison with that holds.
        return array.size == 0 or bool(-_GREATEST <= array.min() and array.max() <= _GREATEST)


def fit(checkpoint: Checkpoint, path: str | Path, model: Any, optimizer: Any = None) -> None:
    """Load a checkpoint's parameters into a model, and its momentum into an optimizer.

    Raises
    ------
    InputError
        If it belongs to another model; names the first entry that differs, and changes nothing.
    """
    check_fit(checkpoint, path, model)
    try:
        if optimizer is not None:
            optimizer.load_state_dict(checkpoint.momentum)  # checks before it changes anything
    except InputError as error:
        raise InputError(f"{path}: {one_line(error, 300)}") from error
    model.load_state_dict(checkpoint.parameters)


def check_fit(checkpoint: Checkpoint, path: str | Path, model: Any) -> None:
    """Check that the parameters, or those of a `CheckpointFile.head`, have a model's names and shapes.

    Raises
    ------
    InputError
        If it belongs to another model; names the first entry that differs.
    """
    try:
        model.check_state_dict(checkpoint.parameters)
    except InputError as error:
        raise InputError(f"{path}: {one_line(error, 300)}") from error


def environment_changes(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """A phrase for each thing that has changed and on which the last bits of a sum depend."""

    def told(environment: dict[str, str], name: str) -> str:
        return one_line(environment.get(name, "unknown"), 100)

    return [
        f"{name} {told(then, name)} then, {told(now, name)} now"
        for name in _DECIDES_BITS
        if then.get(name) != now.get(name)
    ]


def all_finite(arrays: Iterable[np.ndarray]) -> bool:
    """Whether no array holds NaN or infinity."""
    return all(bool(np.isfinite(backend.to_cpu(array)).all()) for array in arrays)  # sync: before a save
