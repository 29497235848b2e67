"""SGD with momentum over all parameters at once: on the CPU in slices, in all threads; on a GPU by sgd.cu."""

from collections.abc import Sequence

import numpy as np

from minimask import backend

# To update: 1 MiB of each array; smaller slices wait too often for the interpreter's lock.
ELEMENTS_AT_ONCE = 1 << 18
GRID = 128  # blocks of threads that share a parameter on a GPU


def update(rows: Sequence[tuple], lr: float, momentum: float) -> list:
    """Take one step, and return the new weights.

    Parameters
    ----------
    rows : (weights, gradient, velocity, decay) of each parameter
        Three arrays of equal shape and dtype, and a float. The velocity must be C-contiguous and is updated
        in place. On the CPU the weights stay as they are, for whoever holds them; on a GPU they too are
        updated in place, since new ones would be a second copy of the model, allocated in every step.
    lr, momentum : float

    Returns
    -------
    The weights of each parameter after the step.
    """
    weights, gradients, velocities, decay = map(list, zip(*rows)) if rows else ([], [], [], [])
    if (xp := backend.array_module(*weights)) is not np:
        weights = [xp.ascontiguousarray(w) for w in weights]
        gradients = [xp.ascontiguousarray(g) for g in gradients]
        rates = xp.asarray(np.array(decay, dtype=_one_dtype(weights)))
        args = (_table(weights, gradients, velocities), rates, len(rows), lr, momentum)
        backend.launch("sgd", "sgd", (GRID, len(rows)), 256, args, rates.dtype)
        return weights
    new = [np.empty(w.shape, w.dtype) for w in weights]
    flat = [[a.reshape(-1) for a in arrays] for arrays in zip(weights, gradients, velocities, new)]

    def update_elements(share: slice):  # of all parameters laid end to end
        begin, end = share.start, share.stop
        for (w, g, v, w_new), rate in zip(flat, decay):  # begin and end count from this parameter's start
            for first in range(max(begin, 0), min(end, w.size), ELEMENTS_AT_ONCE):
                part = slice(first, min(first + ELEMENTS_AT_ONCE, end))
                _update_part(w[part], g[part], v[part], w_new[part], rate, lr, momentum)
            begin, end = begin - w.size, end - w.size

    total = sum(w.size for w in weights)
    backend.parallel_slices(total, update_elements, operations=total)
    return new


def _update_part(w, g, v, w_new, rate: float, lr: float, momentum: float) -> None:
    """v <- momentum v + g + rate w;  w_new = w - lr v."""
    v *= momentum
    v += g
    if rate:
        v += np.multiply(w, rate, out=w_new)
    np.subtract(w, np.multiply(v, lr, out=w_new), out=w_new)


def sum_of_squares(arrays: Sequence) -> float:
    """The sum of the squares of all elements of all arrays, added up in float64."""
    if (xp := backend.array_module(*arrays)) is np:
        return sum(float((a * a).sum(dtype=np.float64)) for a in arrays)
    arrays, sums = [xp.ascontiguousarray(a) for a in arrays], xp.empty((len(arrays), GRID), dtype=np.float64)
    args = (_table(arrays), len(arrays), sums)
    backend.launch("sgd", "squares", (GRID, len(arrays)), 256, args, _one_dtype(arrays))
    return float(sums.sum())  # sync: the norm is reported, and says whether to scale


def scaled(arrays: Sequence, factor: float) -> list:
    """All arrays times a number; on a GPU in place, in one launch."""
    if (xp := backend.array_module(*arrays)) is np:
        return [a * factor for a in arrays]
    arrays = [xp.ascontiguousarray(a) for a in arrays]
    args = _table(arrays), len(arrays), factor
    backend.launch("sgd", "scale", (GRID, len(arrays)), 256, args, _one_dtype(arrays))
    return arrays


def _one_dtype(arrays: Sequence) -> np.dtype:
    """The common dtype, as a kernel cannot see what the addresses point to; ValueError if they differ."""
    (dtype,) = {a.dtype for a in arrays}
    return dtype


def _table(*columns: Sequence):
    """The addresses of each row's arrays, and their size: (rows, columns + 1) uint64."""
    rows = [[*(a.data.ptr for a in row), row[0].size] for row in zip(*columns)]
    return backend.to_gpu(np.array(rows, np.uint64))
