"""Bugs planted in kernels, in their launches and in the code around them: the named check must notice each.

A case computes the same on a device; what the CPU gives is kept before the bug is planted. docs/kernels.md
has the bugs as a table.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

from minimask import Tensor, backend, boxes
from minimask import functions as F
from minimask.functions import activation, array, loss
from minimask.kernels import convolution_gpu
from minimask.kernels.roi_align import OnDevice
from minimask.lessons import cuda_on_cpu
from tests.fake_cupy import cuda, syncs
from tests.test_gpu_path import unmarked

needs_gpp = pytest.mark.skipif(cuda_on_cpu.compiler() is None, reason="no g++ to run CUDA sources with")

# ------------------------------------------------------------------------------------------- what is computed


def gradients(function, device: str, *inputs):
    """Output and gradients, as NumPy arrays, for an upstream gradient that tells its elements apart."""
    tensors = [Tensor(backend.to_device(x, device), requires_grad=True) for x in inputs]
    y = function(*tensors)
    gy = np.random.default_rng(9).normal(size=y.shape).astype(y.dtype)
    y.backward(backend.to_device(gy, device))
    return [backend.to_cpu(a) for a in (y.data, *(t.grad for t in tensors))]


def rng():
    return np.random.default_rng(3)


def suppress(device: str):
    """NMS of 100 boxes: two words of bits, the second not full."""
    corners = rng().uniform(0, 30, (100, 2))
    found = np.concatenate([corners, corners + rng().uniform(5, 20, (100, 2))], axis=1)
    found, scores = (backend.to_device(a, device) for a in (found, rng().permutation(100) / 100.0))
    return [backend.to_cpu(boxes.nms(found, scores, 0.5))]


def convolve(device: str, dtype=np.float64):
    x, w = rng().normal(size=(2, 3, 6, 6)).astype(dtype), rng().normal(size=(4, 3, 3, 3)).astype(dtype)
    return gradients(lambda x, w: F.conv2d(F.transpose(x, (0, 1, 3, 2)), w, padding=1), device, x, w)


def align(device: str, dtype=np.float64, rois: int = 20):
    """RoIAlign of overlapping boxes; 0.3 is no float."""
    low = rng().uniform(0, 20, (rois, 2))
    corners = np.concatenate([low, low + rng().uniform(2, 20, (rois, 2))], axis=1)
    rows = np.concatenate([rng().integers(0, 2, (rois, 1)), corners], axis=1).astype(dtype)
    rows, x = backend.to_device(rows, device), rng().normal(size=(2, 3, 12, 12)).astype(dtype)
    return gradients(lambda x: F.roi_align(x, rows, 3, 0.3, 2, aligned=True), device, x)


def align_nothing(device: str):
    return align(device, rois=0)


def align_twice(device: str):
    """Whether the float32 gradient has the same bits when the threads run in another order."""
    with backend.deterministic():
        first, second = (align(device, np.float32)[1] for _ in range(2))
    return [np.asarray(float(first.tobytes() == second.tobytes()))]


def take_again(device: str):
    """Rows of which some are taken more than once."""
    index = backend.to_device(np.array([0, 2, 2, 1, 2]), device)
    return gradients(lambda x: x[index], device, rng().normal(size=(3, 4)))


def squash(device: str):
    return gradients(F.softmax, device, rng().normal(size=(3, 4)))


def box_losses(device: str):
    """The loss of 6 RoIs, one of the last class."""
    logits, deltas = rng().normal(size=(6, 3)), rng().normal(size=(6, 12))
    labels, targets = np.array([0, 2, 1, 0, 2, 1]), rng().normal(size=(6, 4))
    targets = backend.to_device(targets, device)
    return gradients(lambda x, d: sum(F.box_head_loss(x, d, labels, targets)), device, logits, deltas)


def drop_small(device: str):
    return [backend.to_cpu(boxes.remove_small_boxes(backend.to_device(np.eye(4), device), 0.5))]


# ----------------------------------------------------------------------------------------------- how to plant


def in_kernel(source: str, old: str, new: str):
    def plant(monkeypatch):
        real = backend.cuda._source

        def changed(name: str):
            text, kernels = real(name)
            if name == source:
                assert text.count(old) == 1, f"{source}.cu has {text.count(old)} of: {old}"
                text = text.replace(old, new)
            return text, kernels

        monkeypatch.setattr(backend.cuda, "_source", changed)
        backend.cuda._module.cache_clear()

    return plant


def in_function(owner, name: str, old: str, new: str):
    def plant(monkeypatch):
        original = getattr(owner, name)
        text = textwrap.dedent(inspect.getsource(original))
        assert text.count(old) == 1, f"{name} has {text.count(old)} of: {old}"
        names: dict = {}
        code = compile(text.replace(old, new), inspect.getsourcefile(original), "exec")
        exec(code, original.__globals__, names)
        monkeypatch.setattr(owner, name, names[name])

    return plant


def nothing(monkeypatch) -> None:
    pass


# --------------------------------------------------------------------------------------------- who finds what


def numbers(case, expected) -> str:
    for ours, theirs in zip(case("cuda"), expected, strict=True):
        if ours.shape != theirs.shape or not np.abs(ours - theirs).max(initial=0) < 1e-10:  # also where NaN
            return "differs from the CPU"
    return ""


def refusal(case, expected) -> str:
    try:
        case("cuda")
    except (TypeError, ValueError, cuda_on_cpu.KernelError) as error:
        return str(error)
    return ""


def races(case, expected) -> str:
    cuda.RawModule.watch = True  # the fixture sets it back
    return refusal(case, expected)


def marks(case, expected) -> str:
    """As if `# sync` were missing in boxes.py; `case` waits in a line of it."""
    syncs.clear()
    case("cuda")
    assert syncs and unmarked() == set()
    missing = unmarked(lambda file: Path(file).read_text(encoding="utf-8").replace("# sync", "#"))
    return ", ".join(missing)


BARRIER = "    __syncthreads();\n    if (i >= N) return;"
MUTANTS = {  # what is wrong: (case, plant, who finds it, what it says)
    "a barrier is missing": (
        suppress, in_kernel("nms", BARRIER, "    if (i >= N) return;"), numbers, "differs",
    ),
    "some threads return before a barrier": (
        suppress, in_kernel("nms", BARRIER, "    if (i >= N) return;\n    __syncthreads();"),
        refusal, "divergent barrier",
    ),
    "row and column are swapped": (
        convolve, in_kernel("im2col", "image[u * g.width + v]", "image[v * g.width + u]"), numbers, "differs",
    ),
    "an atomicAdd is left out": (
        align, in_kernel("roi_align", "atomicAdd(global(gx), sum);", "*gx += sum;"), races, "race: ",
    ),
    "a constant is float in double": (
        align, in_kernel("roi_align", "const T scale = xs.scale", "const T scale = (float)xs.scale"),
        numbers, "differs",
    ),
    "a launch of nothing": (
        align_nothing, in_function(backend, "launch", "if 0 in grid or 0 in block:", "if False:"),
        refusal, "wants one to three numbers, from 1",
    ),
    "a view is passed": (
        convolve, in_function(convolution_gpu, "forward", "x, y = xp.ascontiguousarray(x),", "x, y = x,"),
        refusal, "is a view with gaps",
    ),
    "indices of the wrong type": (
        suppress, in_function(boxes, "suppress", "(order, dtype=np.int64)", "(order, dtype=np.int32)"),
        refusal, "must be a CuPy array of int64",
    ),
    "NumPy's function of a device array": (
        squash, in_function(activation.Softmax, "forward", "self.axis, self.xp)", "self.axis)"),
        refusal, r"np\.exp of a CuPy array",
    ),
    "duplicates are written instead of added": (
        take_again, in_function(
            array.GetItem, "backward", "self.xp.add.at(gx, self.index, gy)", "gx[self.index] = gy"
        ), numbers, "differs",
    ),
    "an index beyond the end wraps around": (
        box_losses, in_function(loss.BoxHeadLoss, "forward", "else labels[rows]", "else labels[rows] + 1"),
        numbers, "differs",
    ),
    "sums begin with what memory held": (
        align, in_function(OnDevice, "backward", "xp.empty if ordered else xp.zeros", "xp.empty"),
        numbers, "differs",
    ),
    "deterministic() is not asked": (
        align_twice, in_function(OnDevice, "backward", "backend.is_deterministic()", "False"),
        numbers, "differs",
    ),
    "a wait is not marked": (drop_small, nothing, marks, r"boxes\.py:\d+: return array_module\(boxes\)"),
}  # fmt: skip


@pytest.mark.slow
@needs_gpp
@pytest.mark.parametrize("name", MUTANTS)
def test_the_named_check_finds_the_planted_bug(name, fake_cupy, monkeypatch):
    case, plant, check, words = MUTANTS[name]
    expected = case("cpu")
    if check is not marks:
        assert check(case, expected) == "", "found without the bug"
    backend.cuda._module.cache_clear()
    plant(monkeypatch)
    assert re.search(words, check(case, expected))


def test_the_table_of_planted_bugs_is_complete():
    page = (Path(__file__).parent.parent / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert [name for name in MUTANTS if f"| {name} |" not in page] == []
