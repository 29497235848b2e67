"""The device itself: `cupy.cuda`, `cupyx`, and kernels, which run by way of lessons.cuda_on_cpu."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np

from minimask.lessons import cuda_on_cpu
from tests.fake_cupy import memory
from tests.fake_cupy.arrays import UFUNCS, ndarray, unsupported
from tests.fake_cupy.counting import count
from tests.fake_cupy.memory import sync

# ------------------------------------------------------------------------------------------------ kernels


class RawModule:
    """CUDA source; compiled at the first `get_function`, once a process for the same text."""

    order = "shuffled"  # of threads and blocks, a new one in every launch: any order must do
    watch = False  # look for races

    def __init__(
        self,
        code=None,
        *,
        path=None,
        options=(),
        backend="nvrtc",
        name_expressions=None,
        jitify=None,
        **other,
    ):
        if code is None or path is not None or other or jitify is not None:
            raise NotImplementedError("tests/fake_cupy models RawModule(code=..., name_expressions=...) only")
        if not isinstance(options, tuple):
            raise TypeError(f"options must be a tuple, is {type(options)}")
        self.code, self.options, self.name_expressions = code, options, name_expressions

    def get_function(self, name: str) -> RawKernel:
        names = None if self.name_expressions is None else list(self.name_expressions)
        module = cuda_on_cpu.load(self.code, names, watch=self.watch)
        return RawKernel(module.get_function(name))


class RawKernel:
    """A function to launch on arrays of the device; takes NumPy's scalars and structures, as CuPy does."""

    def __init__(self, kernel):
        self._kernel, self.name = kernel, kernel.name

    def __call__(self, grid, block, args, *, shared_mem=0, stream=None):
        if not all(isinstance(x, tuple) for x in (grid, block, args)):
            raise TypeError("grid, block and args must be tuples")
        values = []
        for value, kind in zip(args, self._kernel.types):
            if isinstance(value, np.ndarray) and (kind.startswith("*") or value.dtype.kind != "V"):
                raise unsupported(value)
            if not isinstance(value, (ndarray, np.ndarray, np.generic)):
                raise unsupported(value)
            values.append(value._a if isinstance(value, ndarray) else value)
        values += args[len(values) :]
        count("kernel", self.name.partition("<")[0])
        seed = int(memory.generator().integers(2**32))
        self._kernel(grid, block, tuple(values), shared_mem, order=RawModule.order, seed=seed)


# ------------------------------------------------------------------------------------------------- device


class Device:
    """The one device; its properties are made up."""

    compute_capability = "80"

    def __init__(self, device=None):
        if device not in (None, 0):
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.id = 0

    mem_info = property(lambda self: (memory.DEVICE_MEMORY - memory.pool.total_bytes(), memory.DEVICE_MEMORY))

    def use(self):
        return self

    def synchronize(self) -> None:
        sync("Device.synchronize")

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        pass

    def __eq__(self, other) -> bool:
        return isinstance(other, Device)

    __hash__ = None


class Stream:
    """Work is done when it is given: there is nothing to wait for, but who waits is noted."""

    null: Stream

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.ptr, self.done = 0, True

    def synchronize(self) -> None:
        sync("Stream.synchronize")

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event) -> None:
        pass

    def use(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        pass


Stream.null = Stream(null=True)


class Event:
    """A moment."""

    done = True

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self._time = None

    def record(self, stream=None) -> None:
        self._time = time.perf_counter()

    def synchronize(self) -> None:
        sync("Event.synchronize")


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""


def _scatter(name: str):
    return lambda a, slices, value: UFUNCS[name].at(a, slices, value)


runtime = SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    deviceSynchronize=lambda: sync("deviceSynchronize"),
    driverGetVersion=lambda: 13000,
    getDevice=lambda: 0,
    getDeviceCount=lambda: 1,
    getDeviceProperties=lambda device: {
        "name": b"stand-in for a GPU",
        "multiProcessorCount": 4,
        "totalGlobalMem": memory.DEVICE_MEMORY,
        "major": 8,
        "minor": 0,
        "sharedMemPerBlock": 48 << 10,
        "warpSize": 32,
    },
    is_hip=False,
    memGetInfo=lambda: Device().mem_info,
    runtimeGetVersion=lambda: 12090,
)
CUDA = {
    "Device": Device,
    "Event": Event,
    "MemoryPool": memory.MemoryPool,
    "Stream": Stream,
    "get_current_stream": lambda device_id=-1: Stream.null,
    "get_elapsed_time": lambda start, end: 1e3 * (end._time - start._time),
    "is_available": lambda: True,
    "memory": SimpleNamespace(OutOfMemoryError=memory.OutOfMemoryError, MemoryPool=memory.MemoryPool),
    "nvtx": SimpleNamespace(RangePush=lambda message, id_color=-1: None, RangePop=lambda: None),
    "runtime": runtime,
}
CUPYX = {
    "errstate": np.errstate,
    "scatter_add": _scatter("add"),
    "scatter_max": _scatter("maximum"),
    "scatter_min": _scatter("minimum"),
}
