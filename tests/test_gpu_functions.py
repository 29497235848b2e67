"""Every Function on the GPU: forward and backward of each gradient case equal the CPU's, and nobody waits.

Without a GPU on the strict stand-in for CuPy, with one (-m gpu) on CuPy itself.
"""

import importlib

import numpy as np
import pytest

from minimask import backend
from minimask.autograd import Tensor, no_grad
from minimask.functions import array, conv, explicit_rpn_head, loss
from minimask.functions.conv_norm import ConvFrozenNorm
from minimask.kernels import convolution_gpu
from minimask.lessons import cuda_on_cpu
from minimask.lessons.gradient_cases import CASES
from minimask.lessons.gradient_cases.case import Case, normal
from tests.fake_cupy import installed, syncs
from tests.test_functions import ROUNDING, ROWS, as_tuple, assert_close, run, some_inputs, upstream

AT_ONCE = [  # its fast version on a GPU, which `rpn_head` takes there
    pytest.param(explicit_rpn_head._RPNHeadAtOnce, case, id=f"RPN head at once: {case.name}")
    for case in CASES[explicit_rpn_head.RPNHead]
]
each_case = pytest.mark.parametrize("cls, case", [*ROWS, *AT_ONCE])
MUST_WAIT = {  # for the size of the result; labels are drawn on the CPU, and a test below has them there
    (array.GetItem, "a mask"),
    *((loss.BoxHeadLoss, case.name) for case in CASES[loss.BoxHeadLoss]),
}


@pytest.fixture(params=["stand-in", pytest.param("cupy", marks=pytest.mark.gpu)])
def cupy(request):
    """The stand-in for CuPy, and CuPy."""
    if request.param == "stand-in":
        if cuda_on_cpu.compiler() is None:
            pytest.skip("no g++ on Linux to run CUDA kernels with")
        with installed() as module:
            yield module
    else:
        if backend.gpu.why_no_gpu():
            pytest.skip(backend.gpu.why_no_gpu())
        yield importlib.import_module("cupy")


def on_gpu(cupy, cls, case, inputs, layout=lambda x: x, host=()):
    """Outputs and gradients as NumPy arrays, from inputs copied to the GPU, but for those in `host`."""
    variables = case.variables(inputs)
    moved = [
        layout(cupy.asarray(x)) if isinstance(x, np.ndarray) and i not in host else x
        for i, x in enumerate(inputs)
    ]
    tensors = [Tensor(x, i in variables) if isinstance(x, cupy.ndarray) else x for i, x in enumerate(moved)]
    function = case.function(cls)
    syncs.clear()
    outputs = [y.data for y in as_tuple(function(*tensors))]
    weights = [layout(cupy.asarray(u)) for u in upstream([np.empty(y.shape, y.dtype) for y in outputs])]
    gradients = list(as_tuple(function.backward(*weights)))
    waited = list(syncs)
    assert all(isinstance(y, cupy.ndarray) for y in outputs)
    assert all(isinstance(gradients[i], cupy.ndarray) for i in variables)
    for i in variables:
        assert gradients[i].dtype == inputs[i].dtype
    assert {y.dtype for y in outputs} == {inputs[variables[0]].dtype}
    return [y.get() for y in outputs], [None if g is None else g.get() for g in gradients], waited


def assert_equal_to_the_cpu(cupy, cls, case, dtype=np.float64, tolerance=ROUNDING, **options):
    inputs = some_inputs(case, dtype)
    want = run(cls, case, inputs)
    outputs, gradients, waited = on_gpu(cupy, cls, case, inputs, **options)
    for got, expected in zip(outputs, want.outputs, strict=True):
        assert_close(got, expected, tolerance)
    for i in case.variables(inputs):
        assert_close(gradients[i], want.gradients[i], tolerance)
    return waited


@each_case
def test_forward_and_backward_equal_the_cpus_and_the_host_does_not_wait(cls, case, cupy):
    waited = assert_equal_to_the_cpu(cupy, cls, case)
    assert waited == [] or (cls, case.name) in MUST_WAIT


@each_case
def test_float32_stays_float32_and_near_the_cpus(cls, case, cupy):
    assert_equal_to_the_cpu(cupy, cls, case, np.float32, 2e-5)


@pytest.mark.slow
@each_case
def test_the_plain_version_runs_on_the_gpu_too(cls, case, cupy):
    with backend.reference_only():
        assert_equal_to_the_cpu(cupy, cls, case)


@pytest.mark.slow
@each_case
def test_the_layout_in_memory_changes_nothing(cls, case, cupy):
    """A kernel cannot see strides: whoever launches it must."""

    def every_second(x):
        return cupy.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x

    assert_equal_to_the_cpu(cupy, cls, case, layout=every_second)


@each_case
def test_nothing_is_kept_when_no_gradient_can_come(cls, case, cupy):
    inputs = some_inputs(case)
    function = case.function(cls)
    with no_grad():
        function(*(cupy.asarray(x) if isinstance(x, np.ndarray) else x for x in inputs))
    assert function.saved == ()


@pytest.mark.parametrize("cls, case", [row for row in ROWS if row.values[0].__module__ == loss.__name__])
def test_losses_take_labels_from_the_cpu(cls, case, cupy):
    labels = [i for i, x in enumerate(some_inputs(case)) if isinstance(x, np.ndarray) and x.dtype.kind == "i"]
    assert assert_equal_to_the_cpu(cupy, cls, case, host=labels) == []


CONVOLUTIONS = [row for row in ROWS if row.values[0] in (conv.Conv2d, conv.ConvTranspose2d, ConvFrozenNorm)]


@pytest.mark.parametrize("workspace", [1, 1500])
@pytest.mark.parametrize("cls, case", CONVOLUTIONS)
def test_a_convolution_in_many_blocks_is_the_same(cls, case, workspace, cupy, monkeypatch):
    monkeypatch.setattr(convolution_gpu, "WORKSPACE", workspace)
    monkeypatch.setattr(convolution_gpu, "LARGE", 1)
    assert_equal_to_the_cpu(cupy, cls, case)


@pytest.mark.gpu
@pytest.mark.parametrize("cupy", ["cupy"], indirect=True)  # the stand-in passes, too, in minutes
@pytest.mark.parametrize("workspace", [4 << 20, convolution_gpu.WORKSPACE])
@pytest.mark.parametrize(
    "x, w, options",
    [
        ((2, 64, 100, 90), (64, 64, 3, 3), dict(padding=1)),
        ((1, 96, 77, 90), (64, 96, 3, 3), dict(padding=1, stride=2)),
        ((2, 3, 200, 180), (64, 3, 7, 7), dict(padding=3, stride=2)),
        ((2, 128, 50, 40), (256, 128, 1, 1), {}),
        ((100, 128, 14, 14), (128, 128, 3, 3), dict(padding=1)),
        ((100, 128, 28, 28), (9, 128, 1, 1), {}),
        ((2, 64, 40, 40), (64, 2, 3, 3), dict(padding=1, groups=32)),
    ],
)
def test_convolutions_of_the_sizes_of_a_network(x, w, options, workspace, cupy, monkeypatch):
    """Threads and blocks as many as a GPU really runs; in float64, where all digits must agree."""
    monkeypatch.setattr(convolution_gpu, "WORKSPACE", workspace)
    case = Case("large", normal(x, w, w[:1]), options)
    assert_equal_to_the_cpu(cupy, conv.Conv2d, case)


@pytest.mark.slow
@each_case
def test_no_kernel_of_a_function_has_a_race(cls, case):
    if cuda_on_cpu.compiler() is None:
        pytest.skip("no g++ on Linux to run CUDA kernels with")
    with installed(watch=True) as cupy:
        assert_equal_to_the_cpu(cupy, cls, case)
