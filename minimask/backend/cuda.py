"""CUDA sources: read, compiled when first needed, and launched with every argument checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

import numpy as np

_KERNEL = re.compile(r"(template\s*<typename T>\s*)?__global__\s+void\s+(\w+)\s*\(([^)]*)\)\s*\{")
_C_TYPES = {"float": "f4", "double": "f8", "int": "i4", "long long": "i8", "unsigned char": "u1", "bool": "?"}
_C_TYPES |= {"unsigned long long": "u8", "unsigned int": "u4"}
_NULL = np.uintp(0)


@cache
def _source(name: str) -> tuple[str, dict[str, tuple[bool, list[str]]]]:
    """Text of NAME.cu and its kernels: whether each is a template, and its parameters' types."""
    kernels = resources.files("minimask") / "kernels"
    beside, inside = kernels / f"{name}.cu", kernels / name / f"{name}.cu"  # beside NAME.py, or in its folder
    text = (beside if beside.is_file() else inside).read_text(encoding="utf-8")
    found = {}
    for template, kernel, parameters in _KERNEL.findall(text):
        types = [" ".join(p.replace("*", " * ").split()[:-1]) for p in parameters.split(",")]
        types = [t.removeprefix("const ").replace(" __restrict__", "") for t in types]
        found[kernel] = bool(template), types
    return text, found


@cache
def _module(name: str) -> dict[tuple, tuple]:
    """NAME.cu, compiled: kernel and T -> the function, and what each of its parameters takes.

    That is the dtype of a pointer and None, None and the type of a number, or twice None for a structure.
    """
    import cupy

    (text, kernels), scalar, found = _source(name), {c: np.dtype(code) for c, code in _C_TYPES.items()}, {}
    names = {(k, t): f"{k}<{t}>" if of[0] else k for k, of in kernels.items() for t in ("float", "double")}
    module = cupy.RawModule(code=text, name_expressions=list(dict.fromkeys(names.values())))
    for (kernel, t), expression in names.items():
        types = [re.sub(r"\bT\b", t, kind) for kind in kernels[kernel][1]]
        targets = [(scalar.get(kind.removesuffix("*").strip()), "*" in kind) for kind in types]
        takes = [(to, None) if pointer else (None, to and to.type) for to, pointer in targets]
        found[kernel, scalar[t]] = module.get_function(expression), takes
    return found


def launch(source: str, kernel: str, grid: tuple, block: int | tuple, args: Sequence, dtype=None) -> None:
    """Run a kernel of SOURCE.cu, which stands in `kernels` or in a folder of its own there, on the GPU.

    Parameters
    ----------
    kernel : str
        Name of a ``__global__`` function; of a template of one type T, that for `dtype`.
    grid, block : tuple of int
        Blocks, and threads a block; nothing is run when one of them is 0.
    args : sequence
        In the order of the source, and checked against it. For a pointer a C-contiguous CuPy array of its
        type, or None for a null pointer; for a number a number; for a structure a NumPy array of one element.
    dtype : float32 or float64, for a template

    Raises
    ------
    TypeError, ValueError
        If number, dtype or layout of the arguments are not what the source says: a kernel cannot see strides,
        and would read other memory in silence.
    """
    block = (block,) if isinstance(block, int) else block
    if 0 in grid or 0 in block:
        return  # CUDA calls an empty launch an error
    function, takes = _module(source)[kernel, np.dtype(dtype)]
    if len(args) != len(takes):
        raise TypeError(f"{kernel}: {len(args)} arguments for {len(takes)} parameters")
    function(grid, block, tuple([_argument(kernel, i, a, *t) for i, (a, t) in enumerate(zip(args, takes))]))


def _argument(kernel: str, i: int, value, dtype, number):
    """A value as a kernel's parameter takes it: a pointer to `dtype`, a `number`, or a structure."""
    if number is not None:
        return number(value)
    if dtype is not None:
        if value is None:
            return _NULL
        if isinstance(value, np.ndarray) or getattr(value, "dtype", None) != dtype:
            raise TypeError(f"{kernel}: argument {i} must be a CuPy array of {dtype}, is {_kind(value)}")
        if not value.flags.c_contiguous:
            raise ValueError(f"{kernel}: argument {i} is a view with gaps; pass a contiguous copy")
        return value
    if not isinstance(value, np.ndarray) or value.dtype.fields is None or value.size != 1:
        raise TypeError(f"{kernel}: argument {i} must be a structure, as a NumPy array of one element")
    return value.view(f"V{value.itemsize}")  # plain bytes: CuPy would describe every field of it, in Python


def _kind(value) -> str:
    return f"{type(value).__module__}.{type(value).__name__} of {getattr(value, 'dtype', 'no dtype')}"
