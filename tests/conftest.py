"""Fixtures that several files share, and the processors shared among the processes that run the tests."""

import os

import pytest

# Before NumPy is imported: if each process had as many threads as there are processors, all would wait.
if "PYTEST_XDIST_WORKER" in os.environ:
    share = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    for name in ("MINIMASK_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, str(share))

from minimask.lessons import cuda_on_cpu

LONGEST = ("test_training_learns.py", "test_notebooks.py", "test_roi_kernels.py", "test_docs_site.py")


def pytest_collection_modifyitems(items):
    """The longest files first: last, they would keep one processor busy and leave the others idle."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture
def fake_cupy():
    """A GPU that is none: `import cupy` gives the strict stand-in of tests/fake_cupy."""
    if cuda_on_cpu.compiler() is None:
        pytest.skip("no g++ on Linux to run CUDA kernels with")
    from tests.fake_cupy import installed

    with installed() as cupy:
        yield cupy
