"""Fixtures that several files share."""

import pytest

from minimask.lessons import cuda_on_cpu


@pytest.fixture
def fake_cupy():
    """A GPU that is none: `import cupy` gives the strict stand-in of tests/fake_cupy."""
    if cuda_on_cpu.compiler() is None:
        pytest.skip("no g++ on Linux to run CUDA kernels with")
    from tests.fake_cupy import installed

    with installed() as cupy:
        yield cupy
