"""Matrix products on our own threads, each with single-threaded BLAS.

BLAS would use threads of its own, but OpenBLAS's keep a processor busy for some 20 ms after each product,
waiting for the next; meanwhile ours are slowed to half (docs/performance.md).
"""

from __future__ import annotations

import numpy as np

from minimask import backend


def product(a, b):
    """a @ b for two matrices, (M, K) and (K, N); what is longer, M or N, is divided over the threads."""
    if backend.array_module(a, b) is not np or backend.use_reference():
        return a @ b
    y = np.empty((a.shape[0], b.shape[1]), np.result_type(a, b))
    by_rows = y.shape[0] >= y.shape[1]

    def work(part, parts):
        own = slice(*backend.share(max(y.shape), part, parts))
        if by_rows:
            np.matmul(a[own], b, out=y[own])
        else:
            np.matmul(a, b[:, own], out=y[:, own])

    backend.parallel(work, operations=a.size * b.shape[1])
    return y
