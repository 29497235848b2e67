"""How often a training step calls the GPU, as the stand-in for CuPy counts it: no more often than it did."""

import numpy as np
import pytest

from minimask.lessons import cuda_on_cpu
from tests.benchmarks import launches
from tests.fake_cupy import installed
from tests.fake_cupy.counting import counted, stage

pytestmark = pytest.mark.skipif(
    cuda_on_cpu.compiler() is None, reason="no g++ on Linux to run CUDA kernels with"
)


def calls(function) -> dict:
    """What a function of CuPy and an array (2, 3) asks for: (kind, name) -> number."""
    with installed() as cupy:
        x = cupy.asarray(np.arange(6.0).reshape(2, 3))
        with counted() as found:
            function(cupy, x)
    return {(kind, name): n for (_, kind, name), n in found.items()}


@pytest.mark.parametrize(
    "function, expected",
    [
        (lambda cupy, x: x + 1, {("cupy", "add"): 1, ("allocation", ""): 1}),
        (lambda cupy, x: cupy.add(x, 1, out=x), {("cupy", "add"): 1}),
        (lambda cupy, x: x @ x.T, {("product", "matmul"): 1, ("allocation", ""): 1}),
        (lambda cupy, x: x.sum(axis=0), {("cupy", "sum"): 1, ("allocation", ""): 1}),
        (lambda cupy, x: x.reshape(3, 2)[1:].T, {}),
        (lambda cupy, x: x.T.reshape(-1), {("cupy", "reshape"): 1, ("allocation", ""): 1}),
        (lambda cupy, x: x[:, :0] + 1, {}),  # launches nothing
        (lambda cupy, x: cupy.empty(3), {("allocation", ""): 1}),
        (lambda cupy, x: cupy.zeros(3), {("cupy", "zeros"): 1, ("allocation", ""): 1}),
        (lambda cupy, x: cupy.concatenate([x, x, x]), {("cupy", "concatenate"): 3, ("allocation", ""): 1}),
        (lambda cupy, x: cupy.concatenate([x] * 9), {("cupy", "concatenate"): 1, ("allocation", ""): 1}),
        (lambda cupy, x: x[[1, 0]], {("cupy", "upload"): 1, ("cupy", "take"): 1, ("allocation", ""): 1}),
        (lambda cupy, x: x.__setitem__((slice(None), 1), 0), {("cupy", "assign"): 1}),
        (lambda cupy, x: x.get(), {("cupy", "get"): 1}),
        (lambda cupy, x: cupy.ascontiguousarray(x), {}),
        (lambda cupy, x: cupy.ascontiguousarray(x.T), {("cupy", "copy"): 1, ("allocation", ""): 1}),
    ],
)  # fmt: skip
def test_calls_are_counted_as_cupy_makes_them(function, expected):
    assert calls(function) == expected


def test_an_index_of_two_arrays_is_four_kernels():
    found = calls(lambda cupy, x: x[cupy.asarray([0, 1]), cupy.asarray([2, 0])])
    assert found["cupy", "take"] == 4


def test_calls_count_for_the_innermost_stage():
    with installed() as cupy, counted() as found, stage("outer"):
        x = cupy.zeros(2)
        with stage("inner"):
            x += 1
    assert found["outer", "cupy", "zeros"] == 1 and found["inner", "cupy", "add"] == 1


# ----------------------------------------------------------------------------------------- a training step

MOST = {  # launches of each stage; lower a number when its stage needs fewer
    "images and targets to the GPU": 23,
    "backbone": 69,
    "FPN": 31,
    "RPN": 6,
    "anchors' targets": 16,
    "proposals": 54,
    "RoIs' targets": 20,
    "box head": 15,
    "mask head": 26,
    "box head's loss": 22,
    "mask head's loss": 57,
    "RPN's loss": 13,
    "backbone: backward": 90,
    "FPN: backward": 52,
    "RPN: backward": 10,
    "box head: backward": 19,
    "mask head: backward": 43,
    "box head's loss: backward": 9,
    "mask head's loss: backward": 7,
    "RPN's loss: backward": 8,
    "clipping and update": 8,
    "rest": 37,
}


@pytest.fixture(scope="module")
def step():
    return launches.step_counts(size=64, objects=3)


@pytest.mark.slow
def test_no_stage_of_a_training_step_launches_more_than_it_did(step):
    found = {name: launches.launches(step, name) for name in {where for where, _, _ in step}}
    assert found.keys() == MOST.keys()
    assert {name: n for name, n in found.items() if n > MOST[name]} == {}


@pytest.mark.slow
def test_the_table_adds_up(step):
    *rows, last = [line.split(" | ") for line in launches.table(step).splitlines()[2:]]
    numbers = np.array([[int(cell.rstrip(" |")) for cell in row[1:]] for row in rows])
    assert numbers.sum(axis=0).tolist() == [int(cell.rstrip(" |")) for cell in last[1:]]
    assert numbers[:, :3].sum(axis=1).tolist() == numbers[:, 3].tolist()
