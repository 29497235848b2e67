"""SGD with momentum over all parameters at once: on the CPU a piece at a time in all threads, and sgd.cu."""

from collections.abc import Sequence

import numpy as np

from minimask import backend

PIECE = 1 << 14  # elements updated at once: five arrays of 64 KiB stay in a core's own cache
GRID = 128  # blocks that share a parameter on a GPU


def update(rows: Sequence[tuple], lr: float, momentum: float) -> list:
    """One step; gives the new weights.

    Parameters
    ----------
    rows : (weights, gradient, velocity, decay) of each parameter
        Three arrays of equal shape and dtype, and a float. The velocity has to be C-contiguous and is updated
        in place. The weights stay as they are on the CPU, for whoever holds them; on a GPU they too are
        updated in place, since new ones would be a second copy of the model, allocated in every step.
    lr, momentum : float
    """
    weights, gradients, velocities, decay = map(list, zip(*rows)) if rows else ([], [], [], [])
    if (xp := backend.array_module(*weights)) is not np:
        weights, gradients = ([xp.ascontiguousarray(a) for a in some] for some in (weights, gradients))
        rates = xp.asarray(np.array(decay, dtype=_one_dtype(weights)))
        args = (_table(weights, gradients, velocities), rates, len(rows), lr, momentum)
        backend.launch("sgd", "sgd", (GRID, len(rows)), 256, args, rates.dtype)
        return weights
    new = [np.empty(w.shape, w.dtype) for w in weights]
    flat = [[a.reshape(-1) for a in arrays] for arrays in zip(weights, gradients, velocities, new)]
    total = sum(w.size for w in weights)

    def work(part, parts):
        begin, end = backend.share(total, part, parts)  # of all parameters laid end to end
        for arrays, rate in zip(flat, decay):
            size = arrays[0].size
            for first in range(max(begin, 0), min(end, size), PIECE):
                w, g, v, out = (a[first : min(first + PIECE, end)] for a in arrays)
                v *= momentum
                v += g
                if rate:
                    v += np.multiply(w, rate, out=out)
                np.subtract(w, np.multiply(v, lr, out=out), out=out)
            begin, end = begin - size, end - size

    backend.parallel(work)
    return new


def sum_of_squares(arrays: Sequence) -> float:
    """The sum over all elements of all arrays, added up in float64."""
    if (xp := backend.array_module(*arrays)) is np:
        return sum(float((a * a).sum(dtype=np.float64)) for a in arrays)
    arrays, sums = [xp.ascontiguousarray(a) for a in arrays], xp.empty((len(arrays), GRID), dtype=np.float64)
    args = (_table(arrays), len(arrays), sums)
    backend.launch("sgd", "squares", (GRID, len(arrays)), 256, args, _one_dtype(arrays))
    return float(sums.sum())  # sync: the norm is reported, and says whether to scale


def _one_dtype(arrays: Sequence) -> np.dtype:
    (dtype,) = {a.dtype for a in arrays}  # a kernel cannot see what the addresses point to
    return dtype


def _table(*columns: Sequence):
    """Addresses and size of each row's arrays: (rows, columns + 1) uint64."""
    rows = [[*(a.data.ptr for a in row), row[0].size] for row in zip(*columns)]
    return backend.to_gpu(np.array(rows, np.uint64))
