"""Devices and memory, as far as they show on a machine without a GPU: what is said, and what stays intact."""

import re
import sys
import types

import numpy as np
import pytest

from minimask import InputError, Tensor, backend, models
from minimask import functions as F
from minimask.autograd import Function
from minimask.checkpoint import load_checkpoint
from minimask.config import Config, with_settings
from minimask.data import Shapes
from minimask.errors import OutOfMemory
from minimask.train import train

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


def test_a_training_that_runs_out_of_memory_keeps_its_checkpoint_and_names_what_needs_less(
    tmp_path, monkeypatch
):
    steps, rpn_loss = [], F.rpn_loss

    def growing(*arguments, **options):
        steps.append(1)
        return (
            Hungry.apply(*arguments[:2], forward=True) if len(steps) == 3 else rpn_loss(*arguments, **options)
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
