"""Where arrays live and who computes on them: NumPy or CuPy, and the one pool of threads.

The only module that may import CuPy, and it does so lazily: ``import minimask`` works without a GPU, and a
machine with CuPy but no GPU is told so in one line.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import platform
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import resources

import numpy as np

from minimask.errors import InputError

_deterministic = contextvars.ContextVar("deterministic", default=False)
_reference_only = contextvars.ContextVar("reference_only", default=False)

# ------------------------------------------------------------------------------------------------ arrays


def array_module(*arrays):
    """The module whose arrays these are: ``numpy``, or ``cupy`` when one of them is a CuPy array."""
    cupy = sys.modules.get("cupy")  # nobody can hold a CuPy array without having imported it
    return cupy if cupy is not None and any([isinstance(a, cupy.ndarray) for a in arrays]) else np


def to_cpu(array) -> np.ndarray:
    """The array as a NumPy array; a copy only when it lives on a GPU."""
    return array if isinstance(array, np.ndarray) else array_module(array).asnumpy(array)


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


@contextlib.contextmanager
def deterministic(on: bool = True) -> Iterator[None]:
    """Inside, GPU kernels whose sums depend on the order of threads give way to ones that do not.

    Two runs on the same machine are then equal to the bit; `docs/kernels.md` says what it costs. NumPy's
    kernels always are so. With `on` False all stays as it is.
    """
    token = _deterministic.set(on or is_deterministic())
    try:
        yield
    finally:
        _deterministic.reset(token)


def is_deterministic() -> bool:
    """Whether `deterministic` is in force in this thread."""
    return _deterministic.get()


# --------------------------------------------------------------------------------------------------- GPU


def device(name: str) -> str:
    """Resolve a ``--device`` choice to the device that will be used: "cpu" or "cuda".

    Parameters
    ----------
    name : "cpu", "cuda" or "auto"
        "auto" is the GPU where there is one that CuPy can use.

    Raises
    ------
    InputError
        For another name, and for "cuda" where there is none, saying what is missing.
    """
    if name not in ("cpu", "cuda", "auto"):
        raise InputError(f"--device {name}: unknown device; choose cpu, cuda or auto")
    missing = _why_no_gpu() if name != "cpu" else ""
    if name == "cuda" and missing:
        raise InputError(f"--device cuda: {missing}; or use --device cpu")
    return "cpu" if name == "cpu" or missing else "cuda"


def _why_no_gpu() -> str:
    """What is missing to compute on a GPU; empty if nothing is."""
    try:
        import cupy
    except ImportError:
        return (
            "CuPy is not installed; install minimask[cuda12] or minimask[cuda13], "
            "whichever version of CUDA your driver supports (nvidia-smi shows it)"
        )
    if not cupy.cuda.is_available():  # importing CuPy proves nothing: it imports everywhere
        return "CuPy is installed but finds no GPU (does nvidia-smi show one?)"
    return ""


def to_gpu(array):
    """The array as a CuPy array; a copy only when it lives on the CPU."""
    import cupy

    return cupy.asarray(array)


def to_device(array, name: str):
    """The array on "cpu" or "cuda"; itself where it is there already."""
    return to_gpu(array) if name == "cuda" else to_cpu(array)


def device_of(array) -> str:
    """Where an array lives: "cpu" or "cuda"."""
    return "cpu" if array_module(array) is np else "cuda"


def set_up_gpu(tf32: bool = False, memory_limit: float = 0) -> None:
    """Options of the whole process, to be set before the first product: CuPy reads CUPY_TF32 there, once.

    Parameters
    ----------
    tf32 : bool
        Multiply float32 matrices with 10 bits of mantissa instead of 23, on tensor cores. False leaves
        CUPY_TF32 as it is, and that is off where nobody set it.
    memory_limit : float
        GiB of the GPU's memory that arrays may take; 0 leaves CuPy's own, CUPY_GPU_MEMORY_LIMIT or all.
    """
    import cupy

    if tf32:
        os.environ["CUPY_TF32"] = "1"
    if memory_limit:
        cupy.get_default_memory_pool().set_limit(size=int(memory_limit * 2**30))


def nccl(size: int, rank: int, number: int):
    """CuPy's communicator between the GPUs of `size` processes under MPI; GPU `number` becomes this one's.

    Raises
    ------
    InputError
        If this machine has no such GPU: NCCL wants one a process.
    """
    import cupy
    import cupyx.distributed

    found = cupy.cuda.runtime.getDeviceCount()
    if number >= found:
        raise InputError(f"--device cuda: start one process a GPU, of which this machine has {found}")
    cupy.cuda.Device(number).use()
    return cupyx.distributed.init_process_group(size, rank, use_mpi=True)


_KERNEL = re.compile(r"(template\s*<typename T>\s*)?__global__\s+void\s+(\w+)\s*\(([^)]*)\)\s*\{")
_C_TYPES = {"float": "f4", "double": "f8", "int": "i4", "long long": "i8", "unsigned char": "u1", "bool": "?"}
_C_TYPES |= {"unsigned long long": "u8", "unsigned int": "u4"}
_NULL = np.uintp(0)


@cache
def _source(name: str) -> tuple[str, dict[str, tuple[bool, list[str]]]]:
    """Text of kernels/NAME.cu and its kernels: whether each is a template, and its parameters' types."""
    text = (resources.files("minimask") / "kernels" / f"{name}.cu").read_text(encoding="utf-8")
    found = {}
    for template, kernel, parameters in _KERNEL.findall(text):
        types = [" ".join(p.replace("*", " * ").split()[:-1]) for p in parameters.split(",")]
        types = [t.removeprefix("const ").replace(" __restrict__", "") for t in types]
        found[kernel] = bool(template), types
    return text, found


@cache
def _module(name: str) -> dict[tuple, tuple]:
    """kernels/NAME.cu, compiled: kernel and T -> the function, and what each of its parameters takes.

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
    """Run a kernel of kernels/SOURCE.cu on the GPU.

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


# ----------------------------------------------------------------------------------------------- threads


@cache
def threads() -> int:
    """Number of threads that kernels use: MINIMASK_THREADS, or the processors this process may run on."""
    given = os.environ.get("MINIMASK_THREADS", "")
    if given:
        if not given.isdigit() or int(given) < 1:
            raise InputError(f"MINIMASK_THREADS: must be a whole number from 1 up, is {given!r}")
        return int(given)
    return len(processors())


def processors() -> set[int]:
    """The numbers of the processors that this process may run on."""
    has_affinity = hasattr(os, "sched_getaffinity")  # macOS and Windows have not
    return os.sched_getaffinity(0) if has_affinity else set(range(os.cpu_count() or 1))


def limit_threads(number: int) -> None:
    """Use so many threads, BLAS too, if MINIMASK_THREADS does not say how many."""
    os.environ["MINIMASK_THREADS"] = os.environ.get("MINIMASK_THREADS") or str(number)
    threads.cache_clear()
    for library in _blas_libraries():
        library.set_num_threads(threads())


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, threads() - 1), thread_name_prefix="minimask")


@cache
def _blas_libraries() -> list:
    """The BLAS libraries whose number of threads can be set; empty without threadpoolctl."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return []
    return ThreadpoolController().select(user_api="blas").lib_controllers


class _OneThreadBlas:
    """Holds BLAS at one thread while any of our threads is at work, and gives back what was set before."""

    def __init__(self):
        self.lock, self.holders, self.before = threading.Lock(), 0, []

    def __enter__(self):
        with self.lock:
            self.holders += 1
            if self.holders == 1:
                self.before = [library.get_num_threads() for library in _blas_libraries()]
                for library in _blas_libraries():
                    library.set_num_threads(1)

    def __exit__(self, *exception):
        with self.lock:
            self.holders -= 1
            if self.holders == 0:
                for library, number in zip(_blas_libraries(), self.before):
                    library.set_num_threads(number)


one_thread_blas = _OneThreadBlas()
_inside = threading.local()


FEW = 1 << 21  # multiplications that one thread has done before another would have woken up


def parallel(work: Callable, parts: int | None = None, operations: int | None = None) -> None:
    """Call ``work(part, parts)`` for every part, one thread each, and wait; the division is static.

    Parameters
    ----------
    work : callable (int, int) -> None
        Gets the part's number and how many there are. Its NumPy calls release the interpreter lock while they
        compute; parts must write to disjoint memory. The results then do not depend on timing.
    parts : int, optional
        `threads()` by default. With 1, inside another `parallel`, or where BLAS cannot be held to one thread,
        `work(0, 1)` runs here.
    operations : int, optional
        How many there are, about; fewer than `FEW` are not divided.
    """
    few = operations is not None and operations < FEW
    parts = 1 if few else parts or threads()
    if not _blas_libraries():
        return work(0, 1)  # BLAS uses threads of its own
    if parts == 1 or getattr(_inside, "on", False):
        with one_thread_blas:  # OpenBLAS's threads would stay busy for 20 ms after each product, in our way
            return work(0, 1)
    with one_thread_blas:
        waiting = [  # each in a copy of our context: np.errstate and `reference_only` hold there too
            _pool().submit(contextvars.copy_context().run, _run_inside, work, part, parts)
            for part in range(1, parts)
        ]
        try:
            _run_inside(work, 0, parts)
        finally:
            for future in waiting:
                future.exception()  # waits: nobody may write to the arrays after we return
        for future in waiting:
            future.result()


def _run_inside(work, part: int, parts: int) -> None:
    _inside.on = True
    try:
        work(part, parts)
    finally:
        _inside.on = False


def share(total: int, part: int, parts: int) -> tuple[int, int]:
    """Begin and end of a part's share of ``range(total)``: contiguous, sizes differing by at most one."""
    return total * part // parts, total * (part + 1) // parts


def scratch(name: str, size: int, dtype) -> np.ndarray:
    """A flat buffer of this thread, kept between calls; its contents are whatever the last user left.

    Parameters
    ----------
    name : str
        Who uses it: two users in one call need two names.
    size : int
        Number of elements; the buffer grows to the largest asked for.
    """
    key = (name, np.dtype(dtype))
    buffers = _inside.__dict__.setdefault("buffers", {})
    if key not in buffers or buffers[key].size < size:
        buffers[key] = np.empty(size, dtype)
    return buffers[key][:size]


# ------------------------------------------------------------------------------------------- description


def describe() -> dict[str, str]:
    """What the numbers depend on: versions, BLAS and its kernel, threads, processor, GPU or why none."""
    import scipy

    from minimask._version import __version__

    blas = [f"{library.internal_api} {library.version}" for library in _blas_libraries()]
    kernels = [getattr(library, "architecture", None) or "unknown" for library in _blas_libraries()]
    return {
        "minimask": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "blas": ", ".join(sorted(set(blas))) or "unknown (threadpoolctl is not installed)",
        "blas_kernel": ", ".join(sorted(set(kernels))) or "unknown",
        "threads": str(threads()),
        "processor": _processor(),
        "gpu": _gpu(),
    }


def _gpu() -> str:
    missing = _why_no_gpu()
    if missing:
        return f"none used: {missing}"
    import cupy

    runtime = cupy.cuda.runtime
    card = runtime.getDeviceProperties(cupy.cuda.Device().id)
    size = f"{card['totalGlobalMem'] / 2**30:.0f} GiB, sm_{card['major']}{card['minor']}"
    return f"{card['name'].decode()}, {size}, CuPy {cupy.__version__}, CUDA {runtime.runtimeGetVersion()}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
