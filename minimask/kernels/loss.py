"""The terms of the losses on the GPU, in one launch each (loss.cu): their sum, and each input's derivative.

For CuPy arrays of one dtype (`backend.fit_kernels`). In NumPy, with derivations: `minimask.functions.loss`.
"""

from __future__ import annotations

import numpy as np

from minimask import backend

THREADS = 1024  # of the only block


def sigmoid_cross_entropy(x, t):
    """The sum, (), and the derivative, for logits and targets of one shape."""
    return _pointwise("sigmoid_cross_entropy", x, t)


def smooth_l1(x, t, beta: float):
    """The sum, (), and the derivative, for values and targets of one shape."""
    return _pointwise("smooth_l1", x, t, beta)


def softmax_cross_entropy(logits, labels):
    """The sum, (), and the derivative (R, K), for logits (R, K) and labels (R,), which may be NumPy's."""
    xp = backend.array_module(logits)
    logits, labels = xp.ascontiguousarray(logits), xp.ascontiguousarray(xp.asarray(labels, np.int64))
    slope, total = xp.empty(logits.shape, logits.dtype), xp.empty((), logits.dtype)
    _launch("softmax_cross_entropy", (logits, labels, slope, total, *logits.shape), logits.dtype)
    return total, slope


def _pointwise(kernel: str, x, t, *options):
    xp = backend.array_module(x)
    slope, total = xp.empty(x.shape, x.dtype), xp.empty((), x.dtype)
    args = xp.ascontiguousarray(x), xp.ascontiguousarray(t), *options, slope, total, x.size
    _launch(kernel, args, x.dtype)
    return total, slope


def _launch(kernel: str, args, dtype) -> None:
    backend.launch("loss", kernel, (1,), THREADS, args, dtype)
