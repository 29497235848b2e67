"""What results depend on besides the code: `minimask info` prints it, and every checkpoint records it."""

from __future__ import annotations

import platform
import re
import sys
from importlib import metadata
from pathlib import Path

import numpy as np

from minimask.backend.gpu import why_no_gpu
from minimask.backend.workers import blas_libraries, threads

PACKAGES = ("pillow", "matplotlib", "pycocotools", "tqdm", "threadpoolctl")


def describe() -> dict[str, str]:
    """Versions, BLAS and its kernel, number of threads, processor, and the GPU or why there is none."""
    import scipy

    from minimask._version import __version__

    libraries = _of_numpy(blas_libraries())
    blas = [f"{library.internal_api} {library.version}" for library in libraries]
    kernels = [getattr(library, "architecture", None) or "unknown" for library in libraries]
    return {
        "minimask": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "blas": ", ".join(sorted(set(blas))) or "unknown (threadpoolctl is missing or does not know it)",
        "blas_kernel": ", ".join(sorted(set(kernels))) or "unknown",
        "threads": str(threads()),
        "processor": _processor(),
        "gpu": _gpu(),
    }


def _of_numpy(libraries: list) -> list:
    """Those that NumPy computes with. SciPy's wheel brings its own, which may be loaded late or never."""
    own = [library for library in libraries if "numpy" in Path(library.filepath).parent.name]
    return own or libraries


def _gpu() -> str:
    missing = why_no_gpu()
    if missing:
        return f"none used: {missing}"
    import cupy

    runtime = cupy.cuda.runtime
    card = runtime.getDeviceProperties(cupy.cuda.Device().id)
    size = f"{card['totalGlobalMem'] / 2**30:.0f} GiB, sm_{card['major']}{card['minor']}"
    return f"{card['name'].decode()}, {size}, CuPy {cupy.__version__}, CUDA {runtime.runtimeGetVersion()}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def report() -> str:
    """`describe`, the versions of optional packages and BLAS's threads as text, one fact on each line."""
    from threadpoolctl import threadpool_info

    facts = describe()
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    pools = [f"{pool['internal_api']}: {pool['num_threads']}" for pool in threadpool_info()]
    facts["blas_threads"] = ", ".join(pools) or "unknown"
    return "\n".join(f"{name.replace('_', ' '):<14} {value}" for name, value in facts.items())


def peak_memory(device: str) -> int:
    """The most memory this process has taken so far, in bytes: on "cuda", the GPU's; 0 if it is unknown."""
    if device == "cuda":
        import cupy

        return cupy.get_default_memory_pool().total_bytes()
    status = Path("/proc/self/status")  # getrusage starts from our parent process's figure
    if status.is_file():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))[1])
    try:
        import resource
    except ImportError:  # Windows has none
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
