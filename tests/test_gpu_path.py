"""The whole of minimask on the stand-in for a GPU, beside the CPU: train, resume, evaluate, predict.

Nothing is left out for lack of a GPU: arrays are as strict as CuPy's, and every kernel runs, its threads in a
random order (tests/fake_cupy).
"""

import ast
import gc
import json
import linecache
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from minimask import backend
from minimask.command.cli import main
from minimask.config import Config, with_settings
from minimask.data import Shapes
from minimask.lessons import cuda_on_cpu
from minimask.models.detector import load_detector
from minimask.randomness import Draws
from minimask.results.evaluate import evaluate
from minimask.training.log import read_losses
from minimask.training.loop import train, training_step
from minimask.training.optim import SGD
from minimask.weights.checkpoint import load_checkpoint
from tests.fake_cupy import installed, memory, syncs
from tests.model_data import discs, fill, tiny_model

pytestmark = pytest.mark.skipif(
    cuda_on_cpu.compiler() is None, reason="no g++ on Linux to run CUDA kernels with"
)

SHAPES = Shapes(4, seed=3, size=64)
SETTINGS = ["train.save_every=1", "train.warmup_steps=2", "data.crop=48", "train.batch_size=2"]
SETTINGS += ["train.deterministic=true", "train.schedule=constant", "train.steps=3"]
KERNELS = {  # of a training step
    "im2col", "col2im", "finish_block", "relu_gradient", "max_pool", "max_pool_gradient", "nearest_gradient",
    "row_moments", "group_norm", "row_gradients", "group_norm_gradient", "nms_matrix", "nms_greedy",
    "roi_align_forward_by_bin", "squares", "sgd",
}  # fmt: skip


@pytest.fixture(scope="module")
def cupy():
    with installed() as module:
        yield module


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that are launched."""
    names, launch = set(), backend.launch

    def note(source, kernel, *args, **options):
        names.add(kernel)
        return launch(source, kernel, *args, **options)

    monkeypatch.setattr(backend, "launch", note)
    return names


# ------------------------------------------------------------------------------------------ marks of waiting


@cache
def _marked(text: str) -> set[int]:
    """Lines of statements (without their bodies) in which a comment says `# sync`."""
    lines, found = text.splitlines(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt):
            end = node.body[0].lineno - 1 if getattr(node, "body", None) else node.end_lineno
            own = range(node.lineno, end + 1)
            if any("# sync" in lines[i - 1] for i in own):
                found |= set(own)
    return found


def unmarked(read=lambda file: Path(file).read_text(encoding="utf-8")) -> set[str]:
    """Lines in which the host waited for the device, and which do not say so."""
    return {
        f"{Path(file).relative_to(memory.PACKAGE)}:{line}: {linecache.getline(file, line).strip()}"
        for file, line, _ in syncs
        if line not in _marked(read(file))
    }


# -------------------------------------------------------------------------------------------- in float64


def three_steps(device: str, dtype=np.float64):
    """Losses and norms of three training steps, the weights after them, and what is then predicted."""
    model = fill(tiny_model()).astype(dtype).to(device)
    optimizer = SGD(list(model.named_parameters()), 0.02, 0.9, 1e-4)
    rng, rows = np.random.default_rng(0), []
    model.train()
    for step in range(3):
        pairs = [discs(rng, count) for count in (3, step)]  # also an image without objects
        samples = [as_sample(*pair) for pair in pairs]
        rows.append(training_step(model, optimizer, samples, Draws(1, step, 0), 0.02, 5.0))
    model.eval()
    (found,) = model.predict([pairs[0][0]])
    found = {name: backend.to_cpu(found[name]) for name in ("boxes", "scores", "labels")} | {
        "masks": found["masks"].numpy()
    }
    return rows, {name: backend.to_cpu(value) for name, value in model.state_dict().items()}, found


def as_sample(image, target):
    """What `training_step` asks of a sample."""
    from types import SimpleNamespace

    return SimpleNamespace(image=image, target=lambda: target)


@pytest.fixture(scope="module")
def cpu_steps():
    return three_steps("cpu")


def compare(ours, theirs, tolerance: float) -> None:
    for mine, other in zip(ours[0], theirs[0], strict=True):
        for name in other:
            np.testing.assert_allclose(mine[name], other[name], rtol=tolerance, err_msg=name)
    for group in (1, 2):
        assert ours[group].keys() == theirs[group].keys()
        for name, array in theirs[group].items():
            assert ours[group][name].dtype == array.dtype, name
            size = max(np.abs(array).max(initial=0), 1e-3)
            np.testing.assert_allclose(ours[group][name], array, rtol=0, atol=tolerance * size, err_msg=name)


@pytest.mark.slow
def test_three_steps_in_float64_equal_the_cpus_and_wait_only_where_they_say(cupy, launched, cpu_steps):
    syncs.clear()
    found = three_steps("cuda")
    assert unmarked() == set() and syncs
    assert launched >= KERNELS
    compare(found, cpu_steps, 1e-10)
    assert len(cpu_steps[2]["scores"]) > 0


@pytest.mark.slow
def test_three_deterministic_steps_in_float64_equal_the_cpus(cupy, cpu_steps):
    with backend.deterministic():
        compare(three_steps("cuda"), cpu_steps, 1e-10)


# --------------------------------------------------------------------------------------------- the product


def run(directory: Path, device: str, *settings: str, **options):
    """Train, and give the losses."""
    config = with_settings(Config(), [*SETTINGS, *settings])
    train(config, SHAPES, directory, device=device, note=lambda line: None, **options)
    return read_losses(directory / "losses.csv")


@pytest.fixture(scope="module")
def runs(cupy, tmp_path_factory):
    """A directory with a run of three steps on each device, and their losses."""
    directory = tmp_path_factory.mktemp("runs")
    syncs.clear()
    losses = {device: run(directory / device, device) for device in ("cpu", "cuda")}
    return directory, losses, unmarked()


def assert_equal_losses(ours, theirs, tolerance=2e-5) -> None:
    for name, column in theirs.items():
        np.testing.assert_allclose(ours[name], column, rtol=tolerance, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_training_in_float32_has_the_cpus_losses_and_says_where_it_waits(runs):
    _, losses, waits = runs
    assert len(losses["cuda"]["loss"]) == 3 and waits == set()
    assert_equal_losses(losses["cuda"], losses["cpu"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "first, second", [("cpu", "cuda"), ("cuda", "cpu"), pytest.param("cuda", "cuda", marks=pytest.mark.slow)]
)
def test_a_run_goes_on_on_either_device(first, second, runs, tmp_path):
    run(tmp_path, first, "train.steps=1")
    losses = run(tmp_path, second, resume=True)
    assert_equal_losses(losses, runs[1]["cpu"])
    if first == second:  # deterministic: the same bits, whatever the order of the threads
        assert (tmp_path / "losses.csv").read_bytes() == (runs[0] / first / "losses.csv").read_bytes()
        ours, theirs = (load_checkpoint(d / "checkpoint.npz") for d in (tmp_path, runs[0] / first))
        for group in ("parameters", "momentum"):
            for name, array in getattr(theirs, group).items():
                assert getattr(ours, group)[name].tobytes() == array.tobytes(), name


@pytest.mark.slow
def test_evaluation_gives_the_cpus_numbers_and_says_where_it_waits(runs):
    found = {}
    syncs.clear()
    for device in ("cpu", "cuda"):
        detector = load_detector(runs[0] / "cuda/checkpoint.npz", device, detections=5, score_threshold=0.0)
        found[device] = evaluate(detector.model, SHAPES, 5)
    assert syncs and unmarked() == set()
    ours, theirs = found["cuda"], found["cpu"]
    assert ours.box == pytest.approx(theirs.box, abs=1e-6) and ours.mask == pytest.approx(
        theirs.mask, abs=1e-6
    )
    assert len(ours.detections) == len(theirs.detections) == 5 * len(SHAPES)
    for mine, other in zip(ours.detections, theirs.detections):
        assert mine["image_id"] == other["image_id"]
        assert mine["score"] == pytest.approx(other["score"], rel=1e-5)


@pytest.mark.slow
def test_the_commands_predict_and_evaluate_run_on_the_gpu(runs, tmp_path, capsys):
    from PIL import Image

    picture = tmp_path / "one.png"
    Image.fromarray((SHAPES[0].image.transpose(1, 2, 0) * 255).astype(np.uint8)).save(picture)
    documents = {}
    for device in ("cpu", "cuda"):
        command = [
            "predict",
            str(picture),
            "--weights",
            str(runs[0] / "cpu/checkpoint.npz"),
            "--device",
            device,
        ]
        command += ["--output", str(tmp_path / device), "--score-threshold", "0", "--json"]
        assert main(command) == 0, capsys.readouterr().err
        documents[device] = json.loads((tmp_path / device / "predictions.json").read_text())["annotations"]
    scores = [[found["score"] for found in documents[device]] for device in ("cuda", "cpu")]
    assert len(scores[1]) > 0
    np.testing.assert_allclose(*scores, rtol=1e-5)


def test_out_of_memory_is_one_line_and_the_checkpoint_stays(cupy, tmp_path):
    from minimask.errors import InputError

    gc.collect()
    pool = cupy.get_default_memory_pool()
    try:
        with pytest.raises(InputError, match="not enough memory") as caught:
            run(tmp_path, "cuda", f"train.gpu_memory_limit={(pool.used_bytes() + 40e6) / 2**30}")
    finally:
        pool.set_limit(size=0)
    for setting in ("train.batch_size", "data.crop", "model.max_size"):
        assert setting in str(caught.value)
    assert "\n" not in str(caught.value) and load_checkpoint(tmp_path / "checkpoint.npz").step == 0
