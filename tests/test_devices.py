"""Devices and memory: what is said without a GPU, what moves between the two, and what stays intact."""

import os
import re
import sys
import types

import numpy as np
import pytest

from minimask import InputError, Tensor, backend, models
from minimask import functions as F
from minimask.autograd import Function
from minimask.command import cli
from minimask.config import Config, with_settings
from minimask.data import Shapes
from minimask.errors import OutOfMemory
from minimask.training.loop import train
from minimask.weights.checkpoint import load_checkpoint
from tests.fake_cupy import installed

PEBIBYTE = 2**50  # more than any machine has: NumPy refuses at once


def hide(monkeypatch, cupy):
    """Let `import cupy` find this; None: nothing is installed."""
    monkeypatch.setitem(sys.modules, "cupy", cupy)


def cupy_without_a_gpu():
    cupy = types.ModuleType("cupy")
    cupy.ndarray, cupy.cuda = type("ndarray", (), {}), types.SimpleNamespace(is_available=lambda: False)
    return cupy


@pytest.mark.parametrize(
    "cupy, words",
    [
        (None, "CuPy is not installed; install minimask[cuda12]"),
        (cupy_without_a_gpu(), "CuPy is installed but finds no GPU"),
    ],
    ids=["no CuPy", "no GPU"],
)
def test_a_device_that_is_missing_is_named_and_auto_is_the_cpu(cupy, words, monkeypatch):
    hide(monkeypatch, cupy)
    assert backend.device("auto") == backend.device("cpu") == "cpu"
    for ask in (backend.device, Tensor([1.0]).to, models.maskrcnn_small(2).to):
        with pytest.raises(InputError, match=f"--device cuda: {re.escape(words)}.*or use --device cpu"):
            ask("cuda")
    assert backend.describe()["gpu"].startswith(f"none used: {words}")


def test_what_is_there_already_is_not_copied():
    x, model = Tensor(np.ones(3), requires_grad=True), models.maskrcnn_small(2)
    y = x * 2
    assert x.device == y.device == model.device == "cpu"
    assert x.to("cpu") is x and y.to("cpu") is y and y.to("auto").device == "cpu"
    before = {name: id(array) for name, array in model.state_dict().items()}
    assert model.to("cpu") is model
    assert {name: id(array) for name, array in model.state_dict().items()} == before


@pytest.fixture
def cupy():
    """A GPU that the CPU plays."""
    with installed() as module:
        yield module


def test_a_model_moves_with_its_gradients_and_takes_weights_of_either_device(cupy):
    here, there = models.maskrcnn_small(2, seed=1), models.maskrcnn_small(2, seed=2)
    state = here.state_dict()
    for p in there.parameters():
        p.grad = np.ones(p.shape, p.dtype)
    assert there.to("auto") is there and there.device == "cuda"
    assert all(isinstance(a, cupy.ndarray) for p in there.parameters() for a in (p.data, p.grad))
    there.load_state_dict(state)  # of the CPU
    assert all(isinstance(array, cupy.ndarray) for array in there.state_dict().values())
    again = models.maskrcnn_small(2, seed=3)
    again.load_state_dict(there.state_dict())  # of the GPU
    assert again.device == "cpu" and here.device == "cpu"
    for name, array in again.state_dict().items():
        assert array.tobytes() == state[name].tobytes(), name
    assert there.to("cpu").device == "cpu"
    assert all(isinstance(a, np.ndarray) for p in there.parameters() for a in (p.data, p.grad))


def test_a_tensor_moves_as_a_new_leaf_unless_it_was_computed(cupy):
    x = Tensor(np.arange(3.0), requires_grad=True)
    y = x.to("cuda")
    assert y.device == "cuda" and y.requires_grad and isinstance(y.data, cupy.ndarray)
    z = (y * y).sum()
    z.backward()
    assert x.grad is None and backend.to_cpu(y.grad).tolist() == [0.0, 2.0, 4.0]
    assert float(z) == 5.0 and y.numpy().tolist() == y.to("cpu").data.tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(RuntimeError, match="was computed; move what it came from, or detach"):
        z.to("cpu")
    assert z.detach().to("cpu").data == 5.0


def test_options_of_the_gpu_are_set_and_shown(cupy, monkeypatch, capsys):
    monkeypatch.delenv("CUPY_TF32", raising=False)
    backend.set_up_gpu()
    assert "CUPY_TF32" not in os.environ and cupy.get_default_memory_pool().get_limit() == 0
    monkeypatch.setenv("CUPY_TF32", "0")  # so that it is put back
    backend.set_up_gpu(tf32=True, memory_limit=0.5)
    assert os.environ["CUPY_TF32"] == "1" and cupy.get_default_memory_pool().get_limit() == 2**29
    assert cli.main(["info"]) == 0
    assert (
        "gpu            stand-in for a GPU, 16 GiB, sm_80, CuPy 14.0.0, CUDA 12090" in capsys.readouterr().out
    )


def test_deterministic_may_be_nested():
    assert not backend.is_deterministic()
    with backend.deterministic(False):
        assert not backend.is_deterministic()
    with backend.deterministic(), backend.deterministic(False):
        assert backend.is_deterministic()  # an option that is off does not undo what stands around it
    assert not backend.is_deterministic()


# ------------------------------------------------------------------------------------------------ memory


class Hungry(Function):
    """Asks for too much, in one of its two passes."""

    def __init__(self, forward: bool):
        self.in_forward = forward

    def forward(self, x, w):
        return np.empty((PEBIBYTE, 2), np.uint8) if self.in_forward else x + w

    def backward(self, gy):
        return np.empty((PEBIBYTE, 2), np.uint8), None


def test_memory_that_runs_out_is_told_with_how_much_by_what_and_for_which_shapes():
    x, w = Tensor(np.ones((2, 3)), requires_grad=True), np.ones((1, 3))
    with pytest.raises(OutOfMemory, match=r"2\.00 PiB.* in Hungry\.forward of \(2, 3\), \(1, 3\)$"):
        Hungry.apply(x, w, forward=True)
    y = Hungry.apply(x, w, forward=False)
    with pytest.raises(OutOfMemory, match=r"2\.00 PiB.* in Hungry\.backward of \(2, 3\)$"):
        y.backward(np.ones((2, 3)))
    assert issubclass(OutOfMemory, MemoryError)


def test_memory_of_the_gpu_that_runs_out_is_told_likewise(cupy):
    x = Tensor(cupy.ones((1024, 1024), np.float32), requires_grad=True)
    backend.set_up_gpu(memory_limit=7 / 1024)  # 7 MiB: x and what it is multiplied by take 4 each
    with pytest.raises(OutOfMemory, match=r"allocating 4,194,304 bytes .* in Exp\.forward of \(1024, 1024\)"):
        F.exp(x)


def test_a_training_that_runs_out_of_memory_keeps_its_checkpoint_and_names_what_needs_less(
    tmp_path, monkeypatch
):
    steps, rpn_loss = [], F.rpn_loss

    def growing(*arguments, **options):
        steps.append(1)  # two a step: its own, and one that tries the weights before they are saved
        return (
            Hungry.apply(*arguments[:2], forward=True) if len(steps) == 5 else rpn_loss(*arguments, **options)
        )

    monkeypatch.setattr(F, "rpn_loss", growing)
    settings = ["train.steps=5", "train.save_every=1", "data.crop=32", "train.batch_size=1"]
    with pytest.raises(InputError) as caught:
        train(with_settings(Config(), settings), Shapes(4, seed=3, size=64), tmp_path)
    line = str(caught.value)
    assert "\n" not in line and "stopped at step 3: not enough memory: Unable to allocate 2.00 PiB" in line
    assert re.search(r"in Hungry\.forward of \(1, (\d+)\), \(1, \1, 4\)\. ", line)
    assert "of step 2;" in line and all(
        name in line for name in ("train.batch_size", "data.crop", "model.max_size")
    )
    assert load_checkpoint(tmp_path / "checkpoint.npz").step == 2
