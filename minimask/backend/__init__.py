"""Where arrays live and who computes on them: NumPy or CuPy, the threads, the CUDA kernels, this machine.

Imports `errors` alone. Only this room may import CuPy, and does so where it is used: ``import minimask``
works without a GPU. Begin with `arrays.py`, whose `array_module` every other room asks.
"""

from minimask.backend.arrays import (
    array_module,
    as_floating,
    deterministic,
    device_of,
    fit_kernels,
    is_deterministic,
    reference_only,
    require_floating,
    to_cpu,
    to_device,
    to_gpu,
    use_reference,
)
from minimask.backend.cuda import launch
from minimask.backend.gpu import device, nccl, set_up_gpu
from minimask.backend.machine import describe, peak_memory
from minimask.backend.workers import (
    limit_threads,
    parallel,
    parallel_slices,
    processors,
    scratch,
    share,
    threads,
)

__all__ = [
    "array_module",
    "as_floating",
    "describe",
    "deterministic",
    "device",
    "device_of",
    "fit_kernels",
    "is_deterministic",
    "launch",
    "limit_threads",
    "nccl",
    "parallel",
    "parallel_slices",
    "peak_memory",
    "processors",
    "reference_only",
    "require_floating",
    "scratch",
    "set_up_gpu",
    "share",
    "threads",
    "to_cpu",
    "to_device",
    "to_gpu",
    "use_reference",
]
