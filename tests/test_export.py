"""`minimask export`: what it writes has the same bits, and torchvision detects the same with it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from minimask import models, nn, no_grad
from minimask.command import cli
from minimask.config import Config, to_dict
from minimask.weights import read_weights
from minimask.weights.checkpoint import Checkpoint, save_checkpoint

PAGE = (Path(__file__).parent.parent / "docs" / "weights.md").read_text(encoding="utf-8")


def saved(path: Path, model, name: str, **options) -> None:
    """A run's checkpoint with this model in it, of one class."""
    config = to_dict(Config())
    config["model"] |= {"name": name, **options}
    momentum = {key: np.ones_like(p.data) for key, p in model.named_parameters()}
    save_checkpoint(
        path, Checkpoint(model.state_dict(), momentum, config=config, class_names=["cell"], category_ids=[7])
    )


def spread(model, score: float = 30.0):
    """Random weights, with heads strong enough for scores and boxes to differ from one another."""
    strength = {"cls_logits.weight": 30, "cls_score.weight": score, "mask_fcn_logits.weight": 30}
    strength |= {"bbox_pred.weight": 5, "bn3.weight": 0.3}  # the last: 16 blocks must not add up
    for name, tensor in model._named((nn.Parameter, nn.Buffer)):
        factors = [factor for ending, factor in strength.items() if name.endswith(ending)]
        tensor.data = tensor.data * np.float32(factors[0] if factors else 1)
        if name.endswith("cls_score.weight"):  # features are positive: all scores would be high, or all low
            tensor.data = tensor.data - tensor.data.mean(axis=1, keepdims=True)
    return model.eval()


def image(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.uniform(size=(3, height // 8, width // 8))
    return np.kron(coarse, np.ones((1, 8, 8))).astype(np.float32)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A directory with checkpoint.npz of maskrcnn_small, in which the process stands; and the model."""
    model = spread(models.maskrcnn_small(2, seed=1))
    saved(tmp_path / "checkpoint.npz", model, "maskrcnn_small")
    monkeypatch.chdir(tmp_path)
    return model


@pytest.mark.parametrize("target", ["model.safetensors", "model.pth"])
def test_exported_weights_have_the_same_bits_and_torchvisions_names(run, target, capsys):
    assert cli.main(["export", "--weights", "checkpoint.npz", target]) == 0
    told = capsys.readouterr().out
    assert (
        told.startswith(f"{target}: 78 arrays of ") and "num_classes=2" in told and "load_state_dict" in told
    )
    weights, state = read_weights(target), run.state_dict()
    assert list(weights) == list(state) and "roi_heads.mask_predictor.conv5_mask.weight" in weights
    for name, array in weights.items():
        assert array.dtype == np.float32 and array.tobytes() == state[name].tobytes()
    with_classes = target == "model.safetensors"
    assert weights.class_names == (("cell",) if with_classes else ())
    assert with_classes or told.endswith("its classes, which a .pth does not hold: cell\n")


def test_safetensors_keep_the_classes_and_the_model_and_say_nothing_of_the_training_data(run):
    assert cli.main(["export", "--weights", "checkpoint.npz", "model.safetensors"]) == 0
    weights = read_weights("model.safetensors")
    assert weights.category_ids == (7,) and weights.metadata["model"] == "maskrcnn_small"
    assert json.loads(weights.metadata["config"]).keys() == {"model"}


def test_exporting_twice_gives_the_same_bytes_and_through_the_other_format_too(run):
    for source, target in [
        ("checkpoint.npz", "a.pth"),
        ("checkpoint.npz", "b.pth"),
        ("a.pth", "c.safetensors"),
        ("c.safetensors", "d.pt"),
    ]:
        assert cli.main(["export", "--weights", source, target]) == 0
    assert Path("a.pth").read_bytes() == Path("b.pth").read_bytes() == Path("d.pt").read_bytes()


@pytest.mark.parametrize(
    "target, says",
    [
        ("model.onnx", "model.onnx: has the ending .onnx; name a file that ends in .safetensors or .pth"),
        ("model", "model: has no ending; name a file that ends in .safetensors or .pth"),
        ("weights.pth", "weights.pth: would be overwritten by weights.pth; choose another name"),
        ("nowhere/model.pth", "cannot be written (No such file or directory)"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused_in_one_line(run, target, says, capsys):
    Path("checkpoint.npz").rename("weights.pth")
    before = Path("weights.pth").read_bytes()
    assert cli.main(["export", "--weights", "weights.pth", target]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert Path("weights.pth").read_bytes() == before and list(Path().iterdir()) == [Path("weights.pth")]


def blocks() -> dict[str, str]:
    """The page's Python, by what each begins with."""
    found = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    return {block.splitlines()[0]: block for block in found}


def load(beginning: str, *changed: tuple[str, str]) -> dict:
    """Run lines of the page that build a model, with some text changed."""
    namespace: dict = {}
    lines = blocks()[beginning]
    for old, new in changed:
        assert old in lines
        lines = lines.replace(old, new)
    exec(compile(lines, "docs/weights.md", "exec"), namespace)
    return namespace["model"].eval()


def compare(ours, theirs, size: tuple[int, int]) -> None:
    """Both find the same: scores to 1e-3, boxes to half a pixel, masks to 1e-2."""
    import torch

    photo = image(*size)
    with no_grad(), torch.no_grad():
        (got,) = ours([photo])
        (want,) = theirs([torch.from_numpy(photo)])
    want = {name: value.numpy() for name, value in want.items()}
    assert len(got["scores"]) == len(want["scores"]) >= 20 and np.ptp(got["scores"]) > 0.1
    np.testing.assert_allclose(got["scores"], want["scores"], rtol=0, atol=1e-3)
    np.testing.assert_array_equal(got["labels"], want["labels"])
    np.testing.assert_allclose(got["boxes"], want["boxes"], rtol=0, atol=0.5)
    assert np.ptp(want["masks"]) > 0.3
    np.testing.assert_allclose(np.asarray(got["masks"]), want["masks"], rtol=0, atol=1e-2)


def test_torchvisions_parts_as_the_page_puts_them_together_detect_what_maskrcnn_small_does(run):
    pytest.importorskip("torchvision")
    assert cli.main(["export", "--weights", "checkpoint.npz", "model.pth"]) == 0
    compare(run, load("from collections import OrderedDict"), (160, 200))


def test_the_same_lines_with_fine_detect_what_maskrcnn_fine_does(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.chdir(tmp_path)
    model = spread(models.maskrcnn_fine(2, seed=1))
    saved(tmp_path / "checkpoint.npz", model, "maskrcnn_fine")
    assert cli.main(["export", "--weights", "checkpoint.npz", "model.pth"]) == 0
    theirs = load("from collections import OrderedDict", ("(num_classes=2)", "(num_classes=2, fine=True)"))
    compare(model, theirs, (160, 200))


@pytest.mark.parametrize(
    "norm, beginning",
    [("frozen", "from torchvision.models import detection"), ("group", "from functools import partial")],
)
def test_maskrcnn_resnet50_fpn_as_the_page_builds_it_detects_the_same(tmp_path, norm, beginning):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    from minimask.models.networks import NORMS

    options = dict(min_size=128, max_size=160, norm=NORMS[norm], box_score_thresh=0.01)
    model = spread(models.maskrcnn_resnet50_fpn(2, **options), score=1.0 if norm == "frozen" else 30.0)
    saved(tmp_path / "checkpoint.npz", model, "maskrcnn_resnet50_fpn", norm=norm)
    path = tmp_path / "model.pth"
    assert cli.main(["export", "--weights", str(tmp_path / "checkpoint.npz"), str(path)]) == 0
    theirs = load(beginning)
    theirs.load_state_dict(torch.load(path, weights_only=True))
    theirs.transform.min_size, theirs.transform.max_size = (128,), 160
    theirs.roi_heads.score_thresh = 0.01
    compare(model, theirs, (128, 160))
