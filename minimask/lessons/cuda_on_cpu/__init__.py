"""CUDA kernels on the CPU: the same .cu source, compiled by g++ and run thread by thread, in any order.

    module = load(Path("minimask/kernels/roi_pool.cu"))
    kernel = module.get_function("roi_pool_forward<float>")
    kernel(grid, block, arguments, order="reverse")

It is used as CuPy's RawModule would be, but on NumPy arrays. What it is for, and what it cannot find:
docs/kernels.md.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ORDERS = ("forward", "reverse", "shuffled")
FLAGS = (  # no fused multiply-add, as in NumPy; CUDA's indices are unsigned and meet int everywhere
    "-std=c++17 -O1 -g -fPIC -fvisibility=hidden -ffp-contract=off"
    " -fstack-clash-protection -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-sign-compare"
)
SANITIZE = "MINIMASK_CUDA_SANITIZE"  # environment variable: "address,undefined", where libasan is preloaded


class KernelError(RuntimeError):
    """A kernel that does not compile, or that did what no kernel may do."""


def compiler() -> str | None:
    """Path of g++; None without one, or outside Linux: the runtime has been tried nowhere else."""
    return shutil.which("g++") if sys.platform == "linux" else None


# ----------------------------------------------------------------------------------------- reading the source

COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
KERNEL = re.compile(
    r'(?:template\s*<(?P<template>[^{};()]*)>\s*)?(?:extern\s+"C"\s+)?__global__\s+'
    r"void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(?P<name>\w+)\s*\((?P<parameters>[^)]*)\)\s*\{"
)
SHARED = re.compile(r"(?P<extern>\bextern\s+)?\b__shared__\b(?P<declaration>[^;]*);")
CAST_TO_POINTER = re.compile(r"\(\s*(?:const\s+)?\w+\s*(?:const\s*)?\*\s*(?:const\s*)?\)")
DECLARATION = re.compile(r"\s*(?P<type>\S.*?)\s*\b(?P<name>\w+)\s*(?P<size>(?:\[[^\]]*\]\s*)*)", re.DOTALL)


def without_comments(source: str) -> str:
    """The source with comments blanked out: every other character stays in its place."""

    def blank(match):
        text = match.group()
        return text if text.startswith('"') else re.sub(r"[^\n]", " ", text)

    return COMMENT_OR_STRING.sub(blank, source)


def kernels(source: str) -> dict[str, tuple[str | None, list[str]]]:
    """Of each ``__global__`` function: its template's parameters, if it is one, and its parameters' names."""
    found = {}
    for match in KERNEL.finditer(without_comments(source)):
        parameters = [p.split("=")[0].strip() for p in _split(match["parameters"])]
        names = [re.search(r"(\w+)\s*(?:\[\s*\])?$", p).group(1) for p in parameters if p]
        found[match["name"]] = (match["template"], names)
    return found


def instances(source: str) -> list[str]:
    """Names of all kernels, as CuPy writes them; templates of one type for float and for double."""
    names = []
    for name, (template, _) in kernels(source).items():
        if template is None:
            names.append(name)
        elif re.fullmatch(r"\s*(typename|class)\s+\w+\s*", template):
            names += [f"{name}<float>", f"{name}<double>"]
    return names


def _split(text: str) -> list[str]:
    """Split at the commas that are not inside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "<[(") - (character in ">])")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _with_shared_memory(source: str) -> str:
    """Shared memory is taken from the runtime, which fills it with NaN for every block.

    ``__shared__ T tile[8][8];`` becomes ``auto& tile = shared<T[8][8]>(1);`` and
    ``extern __shared__ T all[];`` becomes ``auto* all = static_cast<T*>(dynamic_shared());``, line by line.
    """
    pieces, end, number = [], 0, 0
    for match in SHARED.finditer(without_comments(source)):
        kind, new = None, ""
        for declared in _split(match["declaration"]):
            parts = DECLARATION.fullmatch(declared if kind is None else f"{kind} {declared}")
            if parts is None:
                raise KernelError(f"cannot read the declaration: {match.group().strip()}")
            kind, name, size = parts["type"], parts["name"], parts["size"].strip()
            if match["extern"]:
                new += f"auto* {name} = static_cast<{kind}*>(cuda_on_cpu::dynamic_shared()); "
            else:
                number += 1
                new += f"auto& {name} = cuda_on_cpu::shared<{kind}{size}>({number}); "
        pieces += [source[end : match.start()], new.strip(), "\n" * match.group().count("\n")]
        end = match.end()
    return "".join(pieces) + source[end:]


# -------------------------------------------------------------------------------------------------- compiling


@cache
def _directory() -> Path:
    """Where this process keeps what it has compiled; removed when it ends."""
    directory = Path(tempfile.mkdtemp(prefix="cuda-on-cpu-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _call(*command: str | Path) -> str:
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if result.returncode:
        raise KernelError(f"{' '.join(map(str, command))}:\n{result.stderr}")
    return result.stdout


@cache
def _object(text: str, flags: str) -> Path:
    """Compile C++ text; the same text with the same flags only once per process."""
    path = _directory() / f"{len(list(_directory().glob('*.cpp')))}.cpp"
    path.write_text(text, encoding="utf-8")
    _call(compiler(), *flags.split(), "-c", path, "-o", path.with_suffix(".o"))
    return path.with_suffix(".o")


@cache
def _library(text: str, watch: bool) -> Path:
    flags, sanitize = FLAGS, os.environ.get(SANITIZE)
    if sanitize and not watch:
        flags += f" -fsanitize={sanitize},float-cast-overflow -fno-sanitize-recover=all"
    kernel = _object(text, f"{flags} -fsanitize=thread -DCUDA_ON_CPU_WATCH" if watch else flags)
    runtime = _object(f'#include "{HERE / "runtime.cpp"}"\n', flags)
    path = kernel.with_suffix(".so")
    _call(compiler(), *flags.split(), "-shared", kernel, runtime, "-o", path, "-ldl")
    return path


def load(source: Path | str, names: Sequence[str] | None = None, *, watch: bool = False) -> Module:
    """Compile a CUDA source for the CPU.

    Parameters
    ----------
    source : Path or str
        A file, or the text itself.
    names : sequence of str, optional
        The kernels wanted, as CuPy's `name_expressions`: "scale", "roi_pool_forward<float>". By default all,
        templates of one type for float and double.
    watch : bool
        Watch every access to memory: kernels raise on a race, and can be traced. Ten times slower.

    Raises
    ------
    KernelError
        If there is no g++, or it reports an error or a warning.
    """
    if compiler() is None:
        raise KernelError("there is no g++ to compile CUDA sources for the CPU with")
    name = str(source) if isinstance(source, Path) else "kernel.cu"
    text = source.read_text("utf-8") if isinstance(source, Path) else source
    names = instances(text) if names is None else list(names)
    whole = [f'#include "{HERE / "cuda_on_cpu.h"}"', f'#line 1 "{name}"', _with_shared_memory(text)]
    whole += ['#line 1 "launchers"', *(f"CUDA_ON_CPU_KERNEL({i}, {n})" for i, n in enumerate(names))]
    path = _library("\n".join(whole) + "\n", watch)
    follows_addresses = bool(CAST_TO_POINTER.search(without_comments(text)))
    # PyDLL keeps the interpreter lock: the runtime has one set of thread indices
    return Module(name, path, ctypes.PyDLL(str(path)), kernels(text), names, watch, follows_addresses)


# -------------------------------------------------------------------------------------------------- launching


class _Launch(ctypes.Structure):  # the same fields as Launch in cuda_on_cpu.h
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_ulonglong),
        ("seed", ctypes.c_ulonglong),
        ("order", ctypes.c_int),
        ("traced_block", ctypes.c_longlong),
        ("traced_thread", ctypes.c_longlong),
        ("pc", ctypes.c_ulonglong * 2),
        ("bounds", ctypes.POINTER(ctypes.c_ulonglong * 2)),
        ("arrays", ctypes.c_ulonglong),
        ("outside", ctypes.c_void_p),
        ("message", ctypes.c_char * 512),
    ]


TRACED = np.dtype([("address", "u8"), ("offset", "i8"), ("size", "i4"), ("kind", "i4")])


@dataclass(frozen=True)
class Access:
    """One access of a thread to an array."""

    line: int
    kind: str  # "read", "write", "add" (atomicAdd)
    array: str
    index: tuple[int, ...]


@dataclass(frozen=True)
class Module:
    """A compiled source."""

    name: str
    path: Path
    library: ctypes.PyDLL
    declared: Mapping
    names: list[str]
    watch: bool
    follows_addresses: bool  # found in an array: what its kernels may touch is not known

    def get_function(self, name: str) -> Kernel:
        """The kernel of that name, spelled as in `names`."""
        if name not in self.names:
            raise KeyError(f"{self.name}: no kernel {name!r} among {', '.join(self.names)}")
        index = self.names.index(name)
        signature = getattr(self.library, f"signature_{index}")
        signature.restype = ctypes.c_char_p
        return Kernel(
            self,
            name,
            getattr(self.library, f"launch_{index}"),
            self.declared[name.split("<")[0]][1],
            signature().decode().split(),
        )

    def lines(self, offsets: Sequence[int]) -> list[int]:
        """Source lines of instructions, given by their place in the library; 0 where unknown."""
        if not len(offsets) or not shutil.which("addr2line"):
            return [0] * len(offsets)
        places = _call("addr2line", "-e", self.path, *(hex(o) for o in offsets)).splitlines()
        return [int(m.group(1)) if (m := re.search(r":(\d+)", place)) else 0 for place in places]


@dataclass(frozen=True)
class Kernel:
    """A function to launch, with the checks that a GPU does not make."""

    module: Module
    name: str
    function: object
    parameters: list[str]
    types: list[str]  # as `describe` in cuda_on_cpu.h writes them

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence,
        shared_mem: int = 0,
        *,
        order: str = "forward",
        seed: int = 0,
    ) -> None:
        """Run all threads and wait.

        Parameters
        ----------
        grid, block : one to three int
        args : sequence
            A C-contiguous NumPy array of its type for a pointer, or ``numpy.uintp(0)`` for null; a NumPy
            scalar of its type for a value; a structured array of one element, of its size, for a structure.
        shared_mem : int
            Bytes of ``extern __shared__`` memory.
        order : "forward", "reverse" or "shuffled"
            Of the blocks, and of a block's threads from one barrier to the next.
        seed : int
            Of the shuffling.

        Raises
        ------
        ValueError, TypeError
            For a grid that CUDA would refuse, and for arguments that do not fit the kernel.
        KernelError
            For a barrier that not all threads of a block reach, and, where accesses are watched, for a race
            and for an access outside of the arrays (but not in a kernel that a structure is passed to, nor
            in a source that casts to a pointer: they may know of other arrays).
        """
        self._launch(grid, block, args, shared_mem, order, seed)

    def trace(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence,
        shared_mem: int = 0,
        *,
        block_index: Sequence[int] = (0, 0, 0),
        thread_index: Sequence[int] = (0, 0, 0),
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> list[Access]:
        """Run all threads in forward order, and list what one of them does to arrays; in a watched module.

        Parameters
        ----------
        block_index, thread_index : one to three int
        arrays : mapping, optional
            Arrays that are not arguments themselves, because a structure points to them.
        """
        if not self.module.watch:
            raise ValueError(f"{self.name}: only a module loaded with watch=True can be traced")
        traced = tuple(
            int(np.ravel_multi_index((tuple(i) + (0, 0))[:3], _three(size), order="F"))
            for i, size in ((block_index, grid), (thread_index, block))
        )
        named = self._launch(grid, block, args, shared_mem, "forward", 0, traced) | dict(arrays or {})
        first, count = ctypes.c_void_p(), self.module.library.traced_accesses
        count.restype = ctypes.c_size_t
        size = count(ctypes.byref(first)) * TRACED.itemsize
        found = np.frombuffer(ctypes.string_at(first, size) if size else b"", TRACED)
        offsets = sorted(set(found["offset"].tolist()))
        line = dict(zip(offsets, self.module.lines(offsets)))
        accesses = []
        for address, offset, _, kind in found.tolist():
            for name, array in named.items():
                place = address - array.ctypes.data
                if 0 <= place < array.nbytes:
                    index = tuple(map(int, np.unravel_index(place // array.itemsize, array.shape)))
                    accesses.append(Access(line[offset], ("read", "write", "add")[kind], name, index))
        return accesses

    def _launch(self, grid, block, args, shared_mem, order, seed, traced=(-1, -1)) -> dict:  # arrays by name
        _check_size(grid, block, shared_mem)
        if order not in ORDERS:
            raise ValueError(f"order {order!r}: must be one of {', '.join(ORDERS)}")
        if len(args) != len(self.types):
            raise TypeError(f"{self.name}: {len(args)} arguments for {len(self.types)} parameters")
        values = [self._value(*pair) for pair in zip(self.parameters, self.types, args)]
        pointers = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))
        launch = _Launch(_three(grid), _three(block), shared_mem, seed, ORDERS.index(order), *traced)
        arrays = {n: a for n, a in zip(self.parameters, args) if isinstance(a, np.ndarray)}
        if not self.module.follows_addresses and not any(t.startswith("V") for t in self.types):
            bounds = [(a.ctypes.data, a.ctypes.data + a.nbytes) for a in arrays.values()]
            launch.bounds = (ctypes.c_ulonglong * 2 * max(len(bounds), 1))(*bounds)
            launch.arrays = len(bounds)
        if self.function(ctypes.byref(launch), pointers):
            lines = self.module.lines(list(launch.pc)) if launch.pc[0] else []
            text = launch.message.decode().format(*lines, outside=_nearest(launch.outside or 0, arrays))
            raise KernelError(f"{self.module.name}: {self.name}: {text}")
        return arrays

    def _value(self, name: str, wanted: str, value) -> np.ndarray:
        """The bytes that the kernel gets for one parameter."""
        pointer = wanted.startswith("*")
        code = wanted.removeprefix("*").removeprefix("c")

        def refuse(why: str):
            return TypeError(f"{self.name}: parameter {name} ({wanted}): {why}")

        if not isinstance(value, (np.ndarray, np.generic)):
            raise refuse(f"{type(value).__name__} has no size in C; pass a NumPy array or scalar")
        if pointer and isinstance(value, np.uintp) and value == 0:
            return np.asarray(value)
        if value.dtype.str[1:] != code or not value.dtype.isnative:
            raise refuse(f"got {value.dtype}")
        if not pointer:
            if value.size != 1:
                raise refuse(f"got an array of shape {value.shape}")
            return np.ascontiguousarray(value)
        if not isinstance(value, np.ndarray) or not value.flags.c_contiguous or not value.flags.aligned:
            raise refuse("must be a C-contiguous array")
        if not wanted.startswith("*c") and not value.flags.writeable:
            raise refuse("the kernel may write to it, and the array is read-only")
        return np.uintp(value.ctypes.data).reshape(1)


def _nearest(address: int, arrays: Mapping[str, np.ndarray]) -> str:
    """An address outside of all arrays: ``y[64]``, if it is near to y."""

    def distance(name: str) -> int:
        place = address - arrays[name].ctypes.data
        return max(-place, place - arrays[name].nbytes)

    near = [name for name in arrays if distance(name) <= 4096]
    if not near:
        return "by a null pointer" if address < 4096 else "far from all of them"
    name = min(near, key=distance)
    index = (address - arrays[name].ctypes.data) // arrays[name].itemsize
    return f"{name}[{index}], and {name} has {arrays[name].size} elements"


def _three(size: Sequence[int]) -> tuple[int, int, int]:
    return (tuple(map(int, size)) + (1, 1))[:3]


def _check_size(grid, block, shared_mem: int) -> None:
    """What every GPU since compute capability 3.0 allows."""
    limits = ((grid, (2**31 - 1, 65535, 65535), "grid"), (block, (1024, 1024, 64), "block"))
    for size, most, what in limits:
        if not 1 <= len(size) <= 3 or not all(1 <= s <= m for s, m in zip(size, most)):
            raise ValueError(f"{what} {tuple(size)}: wants one to three numbers, from 1 to {most}")
    if np.prod(_three(block)) > 1024:
        raise ValueError(f"block {tuple(block)}: has more than 1024 threads")
    if not 0 <= shared_mem <= 48 << 10:
        raise ValueError(f"shared_mem {shared_mem}: a block has 48 KiB")


def libasan() -> str:
    """Path of AddressSanitizer's library, for LD_PRELOAD of a Python that loads sanitized kernels."""
    return _call(compiler(), "-print-file-name=libasan.so").strip()
