"""CUDA sources: read, compiled when first needed, and launched with every argument checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np

_KERNEL = re.compile(r"(template\s*<typename T>\s*)?__global__\s+void\s+(\w+)\s*\(([^)]*)\)\s*\{")
_C_TYPES = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "int": np.dtype(np.int32),
    "unsigned int": np.dtype(np.uint32),
    "long long": np.dtype(np.int64),
    "unsigned long long": np.dtype(np.uint64),
    "unsigned char": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
_INSTANCES = ("float", "double")  # what the T of a template may be
_NULL = np.uintp(0)  # a null pointer


class _Declaration(NamedTuple):
    """A kernel as its source declares it; types are C's, without const and __restrict__, such as "T *"."""

    is_template: bool
    types: list[str]


class _Parameter(NamedTuple):
    """What a parameter takes: arrays of one dtype, or a number of one type; with neither, a structure."""

    array: np.dtype | None
    number: type[np.generic] | None


@cache
def _source(name: str) -> tuple[str, dict[str, _Declaration]]:
    """The text of NAME.cu, beside NAME.py or in a folder NAME there, and its kernels by name."""
    kernels = resources.files("minimask") / "kernels"
    beside, inside = kernels / f"{name}.cu", kernels / name / f"{name}.cu"
    text = (beside if beside.is_file() else inside).read_text(encoding="utf-8")
    found = {}
    for template, kernel, parameters in _KERNEL.findall(text):
        types = [" ".join(p.replace("*", " * ").split()[:-1]) for p in parameters.split(",")]
        types = [t.removeprefix("const ").replace(" __restrict__", "") for t in types]
        found[kernel] = _Declaration(bool(template), types)
    return text, found


@cache
def _module(name: str) -> dict[tuple[str, np.dtype], tuple]:
    """NAME.cu compiled: by kernel and dtype of T, the function to launch and its parameters.

    A kernel that is not a template is listed under each dtype, so that a launcher need not ask.
    """
    import cupy

    text, kernels = _source(name)
    names = {
        (kernel, t): f"{kernel}<{t}>" if declared.is_template else kernel
        for kernel, declared in kernels.items()
        for t in _INSTANCES
    }
    module = cupy.RawModule(code=text, name_expressions=list(dict.fromkeys(names.values())))
    return {
        (kernel, _C_TYPES[t]): (
            module.get_function(expression),
            [_parameter(re.sub(r"\bT\b", t, c_type)) for c_type in kernels[kernel].types],
        )
        for (kernel, t), expression in names.items()
    }


def _parameter(c_type: str) -> _Parameter:
    dtype = _C_TYPES.get(c_type.removesuffix("*").strip())  # None: a structure's name
    if "*" in c_type:
        return _Parameter(dtype, None)
    return _Parameter(None, None if dtype is None else dtype.type)


def launch(source: str, kernel: str, grid: tuple, block: int | tuple, args: Sequence, dtype=None) -> None:
    """Run a kernel of SOURCE.cu on the GPU.

    Parameters
    ----------
    source : str
        The file's name without ``.cu``; it lies in `minimask.kernels` or in a folder of its own there.
    kernel : str
        Name of a ``__global__`` function.
    grid : tuple of int
        Blocks along each axis; if one of the numbers is 0, nothing is run.
    block : int or tuple of int
        Threads in a block; the same holds.
    args : sequence
        In the order of the source, and checked against it: a C-contiguous CuPy array of its type for a
        pointer, or None for a null pointer; a number for a number; a NumPy array of one element for a
        structure.
    dtype : float32 or float64
        What T is, if the kernel is a template.

    Raises
    ------
    TypeError, ValueError
        If `dtype`, or the number, dtypes or layout of the arguments are not what the source says. A kernel
        cannot see strides, and would silently read other memory.
    """
    block = (block,) if isinstance(block, int) else block
    if 0 in grid or 0 in block:
        return  # CUDA calls an empty launch an error
    found = _module(source).get((kernel, np.dtype(dtype)))
    if found is None:
        raise TypeError(f"{source}.cu has no kernel {kernel} for {np.dtype(dtype)}: T is float32 or float64")
    function, parameters = found
    if len(args) != len(parameters):
        raise TypeError(f"{kernel}: {len(args)} arguments for {len(parameters)} parameters")
    checked = [_argument(kernel, i, a, p) for i, (a, p) in enumerate(zip(args, parameters))]
    function(grid, block, tuple(checked))


def _argument(kernel: str, i: int, value, parameter: _Parameter):
    """Argument `i` of a kernel, checked, in the form in which CuPy passes it on."""
    if parameter.number is not None:
        return parameter.number(value)
    if parameter.array is not None:
        if value is None:
            return _NULL
        if isinstance(value, np.ndarray) or getattr(value, "dtype", None) != parameter.array:
            raise TypeError(
                f"{kernel}: argument {i} must be a CuPy array of {parameter.array}, is {_what(value)}"
            )
        if not value.flags.c_contiguous:
            raise ValueError(f"{kernel}: argument {i} is a view with gaps; pass a contiguous copy")
        return value
    if not isinstance(value, np.ndarray) or value.dtype.fields is None or value.size != 1:
        raise TypeError(f"{kernel}: argument {i} must be a structure, as a NumPy array of one element")
    return value.view(f"V{value.itemsize}")  # plain bytes: CuPy would describe every field of it, in Python


def _what(value) -> str:
    return f"{type(value).__module__}.{type(value).__name__} of {getattr(value, 'dtype', 'no dtype')}"
