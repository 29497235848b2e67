"""Whose arrays these are, NumPy's or CuPy's; copies between the two; which versions of the kernels run."""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Iterator

import numpy as np

_deterministic = contextvars.ContextVar("deterministic", default=False)
_reference_only = contextvars.ContextVar("reference_only", default=False)


def array_module(*arrays):
    """The module whose arrays these are: ``numpy``, or ``cupy`` when one of them is a CuPy array."""
    cupy = sys.modules.get("cupy")  # nobody can hold a CuPy array without having imported it
    return cupy if cupy is not None and any([isinstance(a, cupy.ndarray) for a in arrays]) else np


def to_cpu(array) -> np.ndarray:
    """The array as a NumPy array; a copy only when it lives on a GPU."""
    return array if isinstance(array, np.ndarray) else array_module(array).asnumpy(array)


def to_gpu(array):
    """The array as a CuPy array; a copy only when it lives on the CPU."""
    import cupy

    return cupy.asarray(array)


def to_device(array, name: str):
    """The array on "cpu" or "cuda"; the array itself if it is there already."""
    return to_gpu(array) if name == "cuda" else to_cpu(array)


def device_of(array) -> str:
    """Where an array lives: "cpu" or "cuda"."""
    return "cpu" if array_module(array) is np else "cuda"


def as_floating(values):
    """The array in a dtype in which areas and sums do not overflow: float16 as float32, integers as float64.

    Other floating point arrays come back as they are, sequences of numbers as arrays.

    Raises
    ------
    TypeError
        If these are not numbers.
    """
    array = values if hasattr(values, "dtype") else np.asarray(values)
    if array.dtype.kind in "biu":
        return array.astype(np.float64)
    if array.dtype.kind != "f":
        raise TypeError(f"numbers are needed, not {array.dtype}")
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def require_floating(name: str, **arrays) -> None:
    """Raise TypeError if the arguments of the function `name` are not floating point arrays of one dtype.

    Products of integers would wrap around, and their averages would be truncated. Of two dtypes the result
    has the wider one, which the gradient of the narrower input must not have. None is left out.
    """
    arrays = {argument: array for argument, array in arrays.items() if array is not None}
    for argument, array in arrays.items():
        if not hasattr(array, "dtype"):
            raise TypeError(f"{name}: {argument} must be an array, is a {type(array).__name__}")
        if array.dtype.kind != "f":
            raise TypeError(
                f"{name}: {argument} must be floating point, is {array.dtype}: {argument}.astype(np.float32)"
            )
    if len({array.dtype for array in arrays.values()}) > 1:
        (first, dtype), *others = ((argument, array.dtype) for argument, array in arrays.items())
        other, another = next(each for each in others if each[1] != dtype)
        raise TypeError(
            f"{name}: {first} is {dtype}, {other} {another}, and all must have one dtype; change that of the "
            "input or of the model by astype"
        )


@contextlib.contextmanager
def reference_only() -> Iterator[None]:
    """Inside, every kernel runs its plain reference version instead of its fast one."""
    token = _reference_only.set(True)
    try:
        yield
    finally:
        _reference_only.reset(token)


def use_reference() -> bool:
    """Whether `reference_only` is in force in this thread."""
    return _reference_only.get()


def fit_kernels(*arrays) -> bool:
    """Whether CUDA kernels take these: on a GPU, all float32 or all float64, and outside `reference_only`."""
    if array_module(*arrays) is np or use_reference():
        return False
    return {a.dtype for a in arrays} in ({np.dtype(np.float32)}, {np.dtype(np.float64)})


@contextlib.contextmanager
def deterministic(on: bool = True) -> Iterator[None]:
    """Inside, GPU kernels whose sums depend on the order of threads give way to ones whose sums do not.

    Two runs on the same machine are then equal to the bit; `docs/kernels.md` says what that costs. NumPy's
    kernels are always deterministic. With `on` False nothing changes.
    """
    token = _deterministic.set(on or is_deterministic())
    try:
        yield
    finally:
        _deterministic.reset(token)


def is_deterministic() -> bool:
    """Whether `deterministic` is in force in this thread."""
    return _deterministic.get()
