"""A strict stand-in for CuPy 14 on NumPy: the whole GPU path runs in the tests, on a machine without a GPU.

    with installed() as cupy:
        x = cupy.asarray(np.zeros(3))
        x + np.ones(3)  # TypeError: Unsupported type <class 'numpy.ndarray'>

Its arrays are NumPy's inside and as strict as CuPy's outside:

- no NumPy array or list beside one in operators and functions, no ``np.something`` or implicit copy of one;
- no function, method or keyword that CuPy lacks (`api.txt`, read from CuPy 14);
- an integer array as an index wraps around instead of raising; of duplicates in ``a[i] = v`` any one lasts;
- reductions and single elements are arrays of no dimensions; uninitialised memory is full of NaN;
- kernels run thread by thread in a random order (`minimask/lessons/cuda_on_cpu`);
- `syncs` lists where in minimask/ the host waited for the device;
- `cupy.get_default_memory_pool()` counts bytes, and its limit holds.

What it does not model raises NotImplementedError: add it with a look at CuPy's source.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator

from tests.fake_cupy import cuda, functions, memory
from tests.fake_cupy.api import api as listed
from tests.fake_cupy.memory import syncs

__all__ = ["installed", "syncs"]


def _module(name: str, contents: dict, known: set[str] | None = None) -> types.ModuleType:
    module = types.ModuleType(name, f"Stand-in for {name}, from tests/fake_cupy.")
    module.__dict__.update(contents)

    def missing(attribute: str):
        if known is None or attribute in known:
            raise NotImplementedError(f"tests/fake_cupy does not model {name}.{attribute}")
        raise AttributeError(f"module {name!r} has no attribute {attribute!r}")

    module.__getattr__ = lambda attribute: (
        missing(attribute) if not attribute.startswith("__") else _no_dunder(attribute)
    )
    return module


def _no_dunder(attribute: str):
    raise AttributeError(attribute)


def modules() -> dict[str, types.ModuleType]:
    """Name -> module, as sys.modules holds them."""
    pools = {
        "get_default_memory_pool": lambda: memory.pool,
        "get_default_pinned_memory_pool": lambda: memory.MemoryPool(),
        "is_available": lambda: True,
        "RawModule": cuda.RawModule,
    }
    known = {name for kind in ("function", "value", "ufunc", "module") for name in listed()[kind]}
    cupy = _module("cupy", functions.names() | pools | {"__version__": "14.0.0"}, known)
    found = {
        "cupy": cupy,
        "cupy.cuda": _module("cupy.cuda", cuda.CUDA),
        "cupy.linalg": _module("cupy.linalg", functions.linalg_names()),
        "cupyx": _module("cupyx", cuda.CUPYX),
    }
    cupy.cuda, cupy.linalg = found["cupy.cuda"], found["cupy.linalg"]
    return found


@contextlib.contextmanager
def installed(order: str = "shuffled", watch: bool = False) -> Iterator[types.ModuleType]:
    """Inside, ``import cupy`` gives the stand-in, and minimask finds a GPU.

    Parameters
    ----------
    order : "forward", "reverse" or "shuffled"
        Of a kernel's threads; shuffled differs from launch to launch.
    watch : bool
        Look for races in kernels; ten times slower.
    """
    from minimask import backend

    before = {
        name: sys.modules[name] for name in list(sys.modules) if name.split(".")[0] in ("cupy", "cupyx")
    }
    settings = cuda.RawModule.order, cuda.RawModule.watch
    for name in before:
        del sys.modules[name]
    memory.reset()
    backend.cuda._module.cache_clear()
    cuda.RawModule.order, cuda.RawModule.watch = order, watch
    sys.modules.update(modules())
    try:
        yield sys.modules["cupy"]
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] in ("cupy", "cupyx")]:
            del sys.modules[name]
        sys.modules.update(before)
        backend.cuda._module.cache_clear()
        memory.reset()
        cuda.RawModule.order, cuda.RawModule.watch = settings
