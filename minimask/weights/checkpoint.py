"""Checkpoints: one ``.npz`` without pickle that holds all a run needs to go on, and a model to be used.

Inside are ``parameters/NAME`` and ``momentum/NAME`` for each parameter, and ``metadata``, a JSON text with
the step, seed, configuration, class names and the machine. ``numpy.load`` opens it; the zip's checksums find
damage. The same content gives the same bytes.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minimask import backend
from minimask.errors import InputError
from minimask.files import replacing

FORMAT = 1
_TOP = "metadata"
# What a bitwise equal continuation rests on; see `environment_changes`.
_DECIDES_BITS = ("device", "processor", "blas", "blas_kernel", "threads", "processes", "numpy", "scipy")
_DECIDES_BITS += ("minimask",)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes
    ----------
    parameters : dict of str to array
        The model's state, by its names.
    momentum : dict of str to array
        The optimizer's state, by the parameters' names; empty where it is not kept.
    step : int
        Optimizer steps done.
    seed : int
        All random draws follow from it and the step; no generator state is needed.
    config : dict of dict
        The resolved configuration.
    class_names : list of str
        Of labels 1, 2, ... (0 is background).
    category_ids : list of int
        The same classes' ids in the COCO file trained on.
    data : dict of str to str
        Tells the training images from others.
    environment : dict of str to str
        What `backend.describe` says (versions, BLAS, its kernel, threads), and the device: "cpu" or the GPU.
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


_ARRAYS = ("parameters", "momentum")
_KINDS = {
    "step": int,
    "seed": int,
    "config": dict,
    "class_names": list,
    "category_ids": list,
    "data": dict,
    "environment": dict,
}


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; a kill at any moment leaves the old file or the new one.

    Raises
    ------
    InputError
        If it cannot be written (the disk is full, say); the old file is then unchanged.
    """
    arrays = {
        f"{group}/{name}": backend.to_cpu(array)  # sync: all that is saved
        for group in _ARRAYS
        for name, array in getattr(checkpoint, group).items()
    }
    metadata = {"format": FORMAT, "arrays": list(arrays)} | {
        name: getattr(checkpoint, name) for name in _KINDS
    }
    arrays[_TOP] = np.array(json.dumps(metadata, allow_nan=False))
    with replacing(path) as file:
        # Not compressed: weights do not shrink, and a save should be short.
        np.savez(file, **arrays)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint, checking every byte of content.

    Raises
    ------
    InputError
        If the file is missing, is no checkpoint of this package, or is damaged.
    """
    path = Path(path)
    arrays = _read_arrays(path)
    try:
        metadata = json.loads(str(arrays.pop(_TOP)))
        version = metadata.pop("format")
        values = {name: kind(metadata[name]) for name, kind in _KINDS.items() if version == FORMAT}
        names = list(metadata["arrays"]) if version == FORMAT else []
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a checkpoint of minimask (no readable entry 'metadata')") from error
    if version != FORMAT:
        raise InputError(f"{path}: has checkpoint format {version}, this minimask reads {FORMAT}; update it")
    # The checksums cover each array, not the zip's table of contents: a bit lost there can drop entries.
    if list(arrays) != names:
        raise InputError(f"{path}: damaged (entries are missing); use another copy of it")
    groups: dict[str, dict[str, np.ndarray]] = {group: {} for group in _ARRAYS}
    for key, array in arrays.items():
        group, _, name = key.partition("/")
        groups[group][name] = array
    return Checkpoint(**groups, **values)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of an .npz; each is read whole before it is parsed, so that its checksum comes first."""
    damaged = f"{path}: damaged or not a checkpoint"
    try:
        with zipfile.ZipFile(path) as archive:
            contents = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{damaged} ({error or type(error).__name__}); use another copy of it") from error
    arrays = {}
    for name, content in contents.items():
        try:
            array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError, SyntaxError) as error:
            raise InputError(f"{damaged} (entry {name!r} is no array)") from error
        arrays[name.removesuffix(".npy")] = array
    return arrays


def fit(checkpoint: Checkpoint, path: str | Path, model: Any, optimizer: Any = None) -> None:
    """Load a checkpoint's parameters into a model, and its momentum into an optimizer.

    Raises
    ------
    InputError
        If it is of another model; names the first entry that differs, and changes nothing.
    """
    try:
        model.check_state_dict(checkpoint.parameters)
        if optimizer is not None:
            optimizer.load_state_dict(checkpoint.momentum)  # checks before it changes anything
        model.load_state_dict(checkpoint.parameters)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def environment_changes(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """Phrases for what differs among the things on which the last bits of a sum depend."""
    return [
        f"{name} {then.get(name, 'unknown')} then, {now.get(name, 'unknown')} now"
        for name in _DECIDES_BITS
        if then.get(name) != now.get(name)
    ]


def all_finite(arrays: Iterable[np.ndarray]) -> bool:
    """Whether no array holds NaN or infinity."""
    return all(bool(np.isfinite(backend.to_cpu(array)).all()) for array in arrays)  # sync: before a save
