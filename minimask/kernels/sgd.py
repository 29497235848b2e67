"""SGD with momentum over all parameters at once: on the CPU a piece at a time in all threads, and sgd.cu."""

from collections.abc import Sequence

import numpy as np

from minimask import backend

PIECE = 1 << 14  # elements updated at once: five arrays of 64 KiB stay in a core's own cache
GRID = 128  # blocks that share a parameter on a GPU


def update(
    weights: Sequence, gradients: Sequence, velocities: Sequence, decay: Sequence[float], lr, momentum
):
    """One step; gives the new weights. Shapes and dtypes of a parameter's three arrays are equal.

    Parameters
    ----------
    weights, gradients, velocities : arrays, one a parameter
        Velocities have to be C-contiguous and are updated in place. Weights stay as they are on the CPU, for
        whoever holds them; on a GPU they too are updated in place, since new ones would be a second copy of
        the model, allocated in every step.
    decay : one float a parameter
    lr, momentum : float
    """
    if weights and backend.array_module(*weights) is not np:
        return _update_on_gpu(weights, gradients, velocities, decay, lr, momentum)
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


def _update_on_gpu(weights, gradients, velocities, decay, lr, momentum):
    xp = backend.array_module(*weights)
    weights = [xp.ascontiguousarray(w) for w in weights]
    for dtype in {w.dtype for w in weights}:
        own = [k for k, w in enumerate(weights) if w.dtype == dtype]
        columns = [[arrays[k] for k in own] for arrays in (weights, gradients, velocities)]
        table, _alive = _table(*columns)
        rates = xp.asarray(np.array([decay[k] for k in own], dtype))
        grid = (GRID, min(len(own), 2**16 - 1))
        backend.launch("sgd", "sgd", grid, 256, (table, rates, len(own), lr, momentum), dtype)
    return weights


def sum_of_squares(arrays: Sequence) -> float:
    """The sum over all elements of all arrays, added up in float64."""
    xp, sums = backend.array_module(*arrays), [0.0] * len(arrays)
    if xp is np:

        def work(part, parts):
            for k in range(part, len(arrays), parts):
                sums[k] = float((arrays[k] * arrays[k]).sum(dtype=np.float64))

        backend.parallel(work)
        return sum(sums)
    sums = []
    for dtype in {a.dtype for a in arrays}:
        own = [a for a in arrays if a.dtype == dtype]
        table, _alive = _table(own)
        sums.append(xp.empty((len(own), GRID), dtype=np.float64))
        args = (table, len(own), sums[-1])
        backend.launch("sgd", "squares", (GRID, min(len(own), 2**16 - 1)), 256, args, dtype)
    return float(sum(s.sum() for s in sums))  # sync: the norm is reported, and says whether to scale


def _table(*columns: Sequence):
    """Addresses and size of each row's arrays, (rows, columns + 1) uint64, and what has to stay alive."""
    xp = backend.array_module(*columns[0])
    columns = [[xp.ascontiguousarray(a) for a in column] for column in columns]
    rows = [[*(a.data.ptr for a in row), row[0].size] for row in zip(*columns)]
    return xp.asarray(np.array(rows, np.uint64)), columns
