"""Which device to compute on, and a GPU's options; the machine may have CuPy but no GPU, or neither."""

from __future__ import annotations

import os

from minimask.errors import InputError


def device(name: str) -> str:
    """Resolve a ``--device`` choice to the device that will be used: "cpu" or "cuda".

    Parameters
    ----------
    name : "cpu", "cuda" or "auto"
        "auto" is the GPU if there is one that CuPy can use, else the CPU.

    Raises
    ------
    InputError
        For another name; and for "cuda" where no GPU can be used, saying what is missing.
    """
    if name not in ("cpu", "cuda", "auto"):
        raise InputError(f"--device {name}: unknown device; choose cpu, cuda or auto")
    missing = why_no_gpu() if name != "cpu" else ""
    if name == "cuda" and missing:
        raise InputError(f"--device cuda: {missing}; or use --device cpu")
    return "cpu" if name == "cpu" or missing else "cuda"


def why_no_gpu() -> str:
    """What is missing for computing on a GPU; empty if nothing is."""
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


def set_up_gpu(tf32: bool = False, memory_limit: float = 0) -> None:
    """Set options of the whole process; call it before the first matrix product, where CuPy reads CUPY_TF32.

    Parameters
    ----------
    tf32 : bool
        Multiply float32 matrices with 10 bits of mantissa instead of 23, on tensor cores. False leaves
        CUPY_TF32 as it is: off, unless somebody has set it.
    memory_limit : float
        GiB of the GPU's memory that arrays may take; 0 leaves CuPy's own limit: CUPY_GPU_MEMORY_LIMIT, or
        all of it.
    """
    import cupy

    if tf32:
        os.environ["CUPY_TF32"] = "1"
    if memory_limit:
        cupy.get_default_memory_pool().set_limit(size=int(memory_limit * 2**30))


def nccl(size: int, rank: int, number: int):
    """CuPy's communicator between the GPUs of `size` processes under MPI; this process takes GPU `number`.

    Raises
    ------
    InputError
        If this machine has no such GPU: NCCL wants one for each process.
    """
    import cupy
    import cupyx.distributed

    found = cupy.cuda.runtime.getDeviceCount()
    if number >= found:
        raise InputError(f"--device cuda: start one process for each GPU; this machine has {found}")
    cupy.cuda.Device(number).use()
    return cupyx.distributed.init_process_group(size, rank, use_mpi=True)
