"""Matrix products on our own threads, each with single-threaded BLAS.

BLAS has threads of its own, but OpenBLAS's keep a processor busy for some 20 ms after each product, waiting
for the next one, and meanwhile slow ours to half their speed (docs/performance.md).
"""

from __future__ import annotations

import numpy as np

from minimask import backend


def product(a, b):
    """a @ b for two matrices, (M, K) and (K, N); the longer of M and N is divided over the threads."""
    if backend.array_module(a, b) is not np or backend.use_reference():
        return a @ b
    y = np.empty((a.shape[0], b.shape[1]), np.result_type(a, b))

    def multiply_rows(rows: slice):
        np.matmul(a[rows], b, out=y[rows])

    def multiply_columns(columns: slice):
        np.matmul(a, b[:, columns], out=y[:, columns])

    multiply = multiply_rows if y.shape[0] >= y.shape[1] else multiply_columns
    backend.parallel_slices(max(y.shape), multiply, operations=a.size * b.shape[1], calls_blas=True)
    return y
