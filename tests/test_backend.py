"""The backend by itself: how work is divided over threads, and which launches of CUDA kernels are refused."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minimask import backend
from minimask import functions as F
from minimask.autograd import Tensor
from minimask.backend import machine
from minimask.boxes import nms
from minimask.errors import InputError
from minimask.kernels import nms as nms_kernel
from minimask.lessons import cuda_on_cpu
from minimask.masks import paste_masks


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


@pytest.mark.parametrize("given", ["0", "-1", "2.5", "1025", "100000", "9" * 5000, "²", "٣", " 4", "many"])
def test_a_number_of_threads_that_no_computer_has_is_refused(given, monkeypatch):
    monkeypatch.setenv("MINIMASK_THREADS", given)
    with pytest.raises(
        InputError, match=r"MINIMASK_THREADS: must be a whole number from 1 to 1024, is '"
    ) as e:
        backend.workers.threads.__wrapped__()
    assert len(str(e.value)) < 120


def test_the_number_of_threads_is_taken_from_the_environment(monkeypatch):
    for given, number in (("1", 1), ("0007", 7), ("1024", 1024)):
        monkeypatch.setenv("MINIMASK_THREADS", given)
        assert backend.workers.threads.__wrapped__() == number


CHILDREN = """
import multiprocessing, os, sys, threading
import numpy as np
from minimask import backend, functions as F

def work(_=None):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(1, 16, 64, 64)), rng.normal(size=(16, 16, 3, 3))
    return float(F.conv2d(x, w, padding=1).data.sum())

def forked():
    pid = os.fork()
    if pid == 0:
        os._exit(0 if work() == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

if __name__ == "__main__":
    expected = work()
    numbers = [library.get_num_threads() for library in backend.workers.blas_libraries()]
    if sys.argv[1] == "while at work":
        done = threading.Event()
        def others():
            while not done.is_set():
                work()
        thread = threading.Thread(target=others)
        thread.start()
        for _ in range(5):
            forked()
        done.set()
        thread.join()
        with backend.workers.one_thread_blas:
            forked()
        assert numbers == [library.get_num_threads() for library in backend.workers.blas_libraries()]
    else:
        with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
            assert pool.map(work, range(4)) == [expected] * 4
    assert work() == expected
    print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.parametrize("start", ["fork", "spawn", "while at work"])
def test_child_processes_compute_as_their_parent_does(start, tmp_path):
    (tmp_path / "children.py").write_text(CHILDREN)
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, tmp_path / "children.py", start],
        env=os.environ | {"MINIMASK_THREADS": "3", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_where_blas_cannot_be_held_to_one_thread_only_work_without_it_is_divided(monkeypatch):
    monkeypatch.setattr(backend.workers, "threads", lambda: 3)
    monkeypatch.setattr(backend.workers, "FEW", 0)
    monkeypatch.setattr(backend.workers, "blas_libraries", list)
    monkeypatch.setattr(nms_kernel, "COMPARED_AT_ONCE", 1024)
    parts_of, run_part = [], backend.workers._run_part
    monkeypatch.setattr(
        backend.workers, "_run_part", lambda *call: parts_of.append(call[2]) or run_part(*call)
    )

    def divided(work) -> bool:
        parts_of.clear()
        work()
        return parts_of.count(3) >= 3

    rng = np.random.default_rng(0)
    x, w = Tensor(rng.normal(size=(1, 8, 64, 64)), requires_grad=True), rng.normal(size=(8, 8, 3, 3))
    rois = np.array([[0, 3.0, 4, 50, 40], [0, 10, 10, 30, 60]])
    boxes = rng.uniform(0, 50, (9000, 4))
    boxes[:, 2:] += boxes[:, :2]
    masks = rng.random((6, 28, 28))
    assert not divided(lambda: F.conv2d(x, w, padding=1))
    assert not divided(lambda: F.linear(np.ones((64, 64)), np.ones((64, 64)), np.ones(64)))
    assert divided(lambda: F.roi_align(x, rois, 7))
    assert divided(lambda: F.roi_align(x, rois, 7).sum().backward())
    assert divided(lambda: nms(boxes, np.arange(9000.0), 0.5))
    assert divided(lambda: paste_masks(masks, boxes[:6], (120, 120)))
    assert divided(lambda: F.relu(np.ones(1 << 21)))
    assert divided(lambda: F.max_pool2d(x, 2))


def test_the_blas_that_is_told_is_numpys_whether_or_not_scipys_has_been_loaded(monkeypatch):
    def library(path: str, version: str) -> SimpleNamespace:
        return SimpleNamespace(filepath=path, version=version, internal_api="openblas", architecture="Zen")

    numpys = library("/env/lib/numpy.libs/libopenblas-64.so", "0.3.31")
    scipys = library("/env/lib/scipy.libs/libopenblas.so", "0.3.30")
    shared = library("/usr/lib/libopenblas.so.0", "0.3.21")
    for loaded, told in (
        ([numpys], "openblas 0.3.31"),
        ([scipys, numpys], "openblas 0.3.31"),
        ([shared], "openblas 0.3.21"),
    ):
        monkeypatch.setattr(machine, "blas_libraries", lambda loaded=loaded: loaded)
        assert machine.describe()["blas"] == told
