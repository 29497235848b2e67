"""The backend by itself: how work is divided over threads, and which launches of CUDA kernels are refused."""

import numpy as np
import pytest

from minimask import backend
from tests import cuda_on_cpu


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("total, longest", [(0, None), (1, None), (7, None), (0, 4), (3, 4), (8, 4), (50, 4)])
def test_parallel_slices_cover_each_index_once_in_slices_no_longer_than_asked(
    total, longest, threads, monkeypatch
):
    monkeypatch.setattr(backend.workers, "threads", lambda: threads)
    visits, lengths = np.zeros(total, int), []

    def visit(indices: slice):
        visits[indices] += 1
        lengths.append(indices.stop - indices.start)

    backend.parallel_slices(total, visit, longest)
    assert (visits == 1).all() and min(lengths, default=1) > 0
    if longest is None:
        assert len(lengths) <= threads, "one slice for each thread"
    else:
        assert max(lengths, default=0) <= longest


def test_parallel_slices_leave_little_work_to_the_calling_thread(monkeypatch):
    monkeypatch.setattr(backend.workers, "threads", lambda: 3)
    for options in (dict(parts=1), dict(operations=backend.workers.FEW - 1)):
        slices = []
        backend.parallel_slices(9, slices.append, **options)
        assert slices == [slice(0, 9)]


@pytest.mark.skipif(cuda_on_cpu.compiler() is None, reason="no g++ to run CUDA sources with")
@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.complex64])
def test_a_kernel_of_another_dtype_than_float32_and_float64_is_refused(dtype, fake_cupy):
    arrays = [fake_cupy.zeros(4, dtype) for _ in range(3)]
    words = f"elementwise.cu has no kernel relu_gradient for {np.dtype(dtype)}: T is float32 or float64"
    with pytest.raises(TypeError, match=words):
        backend.launch("elementwise", "relu_gradient", (1,), 4, (*arrays, 4), dtype)
    with pytest.raises(TypeError, match="no kernel relu for float32"):
        backend.launch("elementwise", "relu", (1,), 4, (*arrays, 4), np.float32)
