"""One training in several processes, started by ``mpiexec -n N minimask train ...``.

As in torch's DistributedDataParallel, all processes hold the same weights, each computes the loss of its
share of the batch, and the gradients are averaged, so that all make the same update. Gradients travel by MPI
(mpi4py), or between GPUs by NCCL (CuPy), with one process for each GPU. Without mpiexec, neither MPI nor NCCL
is imported.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from minimask import backend
from minimask.errors import InputError

STARTED = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")  # how many; set by the mpiexec of MPICH and of Open MPI
RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")  # which of them this is
LOCAL = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")


class World:
    """The processes that train together; in this class a single one, which exchanges nothing.

    `rank` is this process's number, `size` how many there are. Process 0 saves, logs and prints.
    """

    rank, size = 0, 1

    def part(self, batch_size: int) -> range:
        """The positions in a batch that are this process's; however many share it, a step sees one batch.

        Raises InputError if the shares would differ in size: the mean of their gradients assumes equal ones.
        """
        if batch_size % self.size:
            what = f"train.batch_size is {batch_size}, shared by {self.size} processes: choose a multiple of"
            raise InputError(f"{what} {self.size}, such as {-(-batch_size // self.size) * self.size}")
        return range(*backend.share(batch_size, self.rank, self.size))

    def use(self, device: str) -> None:
        """On "cuda", choose this process's GPU; must be called before any array is put there."""

    def share_(self, *states: dict[str, Any]) -> None:
        """Overwrite every process's arrays with those of process 0."""

    def mean_(self, parameters: dict[str, Any]) -> None:
        """Replace each parameter's gradient by its mean over the processes, the same to the bit on all."""

    def mean(self, row: dict[str, float]) -> dict[str, float]:
        """Each value's mean over the processes."""
        return row

    def highest(self, number: int) -> int:
        """The highest number that any process gives; all wait for each other here."""
        return number

    def told(self, number: int) -> int:
        """The number that process 0 gives, however long that takes; the others' are ignored."""
        return number


ALONE = World()


class _Mpi(World):
    def __init__(self, mpi):
        self.mpi, self.comm = mpi, mpi.COMM_WORLD
        self.rank, self.size = self.comm.rank, self.comm.size
        self.local = self.comm.Split_type(mpi.COMM_TYPE_SHARED)  # those on this machine
        self.nccl = self.bucket = None

    def use(self, device):
        if device == "cuda":
            self.nccl = backend.nccl(self.size, self.rank, self.local.rank)

    def share_(self, *states):
        for array in (a for state in states for a in state.values()):
            self.comm.Bcast(array) if isinstance(array, np.ndarray) else self.nccl.broadcast(array)

    def mean_(self, parameters):
        ordered, begin = [parameters[name] for name in sorted(parameters)], 0
        size = sum(p.data.size for p in ordered)
        if self.bucket is None or self.bucket.size != size:  # one message is faster than one per parameter
            self.bucket = backend.array_module(ordered[0].data).empty(size, ordered[0].data.dtype)
        for p in ordered:
            part = self.bucket[begin : begin + p.data.size].reshape(p.data.shape)
            part[...] = 0 if p.grad is None else p.grad
            p.grad, begin = part, begin + part.size
        if self.nccl:
            self.nccl.all_reduce(self.bucket, self.bucket)
        else:  # not Allreduce, in which each process may add in a different order
            source = self.mpi.IN_PLACE if self.rank == 0 else self.bucket
            self.comm.Reduce(source, self.bucket if self.rank == 0 else None)
            self.comm.Bcast(self.bucket)
        self.bucket /= self.size

    def mean(self, row):
        return dict(zip(row, (self.comm.allreduce(np.array([*row.values()])) / self.size).tolist()))

    def highest(self, number):
        return self.comm.allreduce(number, self.mpi.MAX)

    def told(self, number):
        word = np.array([number], np.int64)
        request = self.comm.Ibcast(word)
        while not request.Test():  # Bcast would keep a processor busy that process 0 may need to evaluate
            time.sleep(0.01)
        return int(word[0])


@cache
def world() -> World:
    """The processes that mpiexec started, or this one alone; InputError if mpi4py cannot reach the others."""
    if all(int(os.environ.get(name, "1")) == 1 for name in STARTED):
        return ALONE
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, but no MPI library
        if any(os.environ.get(name, "0") != "0" for name in LOCAL):
            raise SystemExit(2) from error  # one line per machine is enough
        raise InputError("processes of mpiexec need mpi4py: install minimask[mpi]") from error
    joined = _Mpi(MPI)
    if joined.size == 1:
        raise InputError("mpiexec is of another MPI than mpi4py: use the one that minimask[mpi] installs")
    # The processes on a machine share its processors, whether or not mpiexec bound each to some of them.
    processors = set().union(*joined.local.allgather(backend.processors()))
    backend.limit_threads(max(1, len(processors) // joined.local.size))
    return joined


def is_first() -> bool:
    """Whether this is process 0, or the only one, as mpiexec says: known before the processes connect."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def _status(error: BaseException) -> int:
    """The command's exit status for an error."""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    statuses = {KeyboardInterrupt: 130, InputError: 2, MemoryError: 2, OSError: 2}
    return next((status for kind, status in statuses.items() if isinstance(error, kind)), 1)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Wraps what the processes do together. May be nested.

    After an error, which whoever catches it reports, the end of this process ends all others; without an
    error, each waits here for the rest.
    """
    joined = world()
    if joined.size == 1:
        yield
        return
    try:
        yield
    except BaseException as error:
        if joined.rank:
            time.sleep(1)  # if the error stops all of them, process 0 reports it and then ends the others
        atexit.register(joined.comm.Abort, _status(error))
        atexit.register(os.dup2, os.open(os.devnull, os.O_WRONLY), 2)  # runs before it: MPI would add a line
        atexit.register(time.sleep, 0.3)  # runs before that: mpiexec drops what it has not read by the end
        raise
    end = joined.comm.Ibarrier()
    while not end.Test():  # Barrier would keep a processor busy that process 0 may need to evaluate
        time.sleep(0.01)
