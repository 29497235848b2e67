"""Training in several processes: all ranks equal, equal to one process that averages, and none left hanging.

This file is also what mpiexec runs: ``mpiexec -n N python tests/test_distributed.py DIRECTORY ...``.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minimask.config import Config, with_settings
from minimask.data import Batches, Shapes
from minimask.errors import InputError
from minimask.models.networks import build_model, resolved
from minimask.randomness import Draws
from minimask.training import distributed
from minimask.training.log import read_losses
from minimask.training.loop import augmentation, learning_rate, train
from minimask.training.optim import SGD, clip_gradients
from minimask.training.run_log import read_run_log
from minimask.training.watch import Watch
from minimask.weights.checkpoint import load_checkpoint
from tests.cli_data import make_dataset

ROOT = Path(__file__).parent.parent
SHAPES = Shapes(8, seed=3, size=64)
SETTINGS = ["train.steps=3", "train.batch_size=4", "train.warmup_steps=1", "train.schedule=constant"]
SETTINGS += ["train.learning_rate=0.01", "train.save_every=2", "data.crop=48"]


def configuration(*settings: str) -> Config:
    return with_settings(Config(), [*SETTINGS, *settings])


class Interrupted:
    """A data set of which one rank's reading ends in a signal to that rank."""

    def __init__(self, dataset, rank: int, reads: int, number: int):
        self.dataset, self.reads, self.number = dataset, reads, number
        self.hit = distributed.world().rank == rank

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        self.reads -= 1
        if self.hit and self.reads == 0:
            os.kill(os.getpid(), self.number)
        return self.dataset[index]


def worker() -> None:
    """One rank: train, and leave what it then holds in rank-R.npz. Or the one process that averages."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--signal", type=int)
    parser.add_argument("--average", type=int, nargs="*")
    parser.add_argument("--validate", action="store_true")
    given = parser.parse_args()
    if given.average:
        np.savez(given.output / "average.npz", **averaging(given.average))
        return
    rank = distributed.world().rank
    dataset = Interrupted(SHAPES, 1, 9, given.signal) if given.signal else SHAPES
    if rank:  # weights of its own, which rank 0's are to replace
        sys.modules["minimask.training.loop"].build_model = lambda config, *rest: build_model(
            with_settings(config, [f"train.seed={rank}"]), *rest
        )
    watch = Watch(worse_and_worse) if given.validate else None
    outcome = train(configuration(*given.set), dataset, given.output, resume=given.resume, watch=watch)
    gradients = {f"gradient {name}": p.grad for name, p in outcome.model.named_parameters()}
    np.savez(given.output / f"rank-{rank}.npz", step=outcome.step, **outcome.model.state_dict(), **gradients)


def worse_and_worse(model, step, go_on) -> dict:
    """A validation, for which the other ranks wait."""
    assert distributed.world().rank == 0 and go_on(0, 1)
    time.sleep(0.5)
    return {"by": "mask AP", "score": -float(step)}


def averaging(sizes: list[int]) -> dict[str, np.ndarray]:
    """Weights, and the last gradients, of one process that averages groups' gradients, `sizes` a step."""
    config = resolved(configuration())
    model = build_model(config, len(SHAPES.class_names) + 1, "cpu")
    options = config.train
    optimizer = SGD(model.named_parameters(), options.learning_rate, options.momentum, options.weight_decay)
    for step, size in enumerate(sizes):
        sums = {name: 0 for name in optimizer.parameters}
        for rank in range(size):
            part = range(4 * rank // size, 4 * (rank + 1) // size)
            samples = Batches(SHAPES, 4, augmentation(config.data), 0, part)(step)
            optimizer.zero_grad()
            images, targets = [s.image for s in samples], [s.target() for s in samples]
            sum(model.loss(images, targets, Draws(0, step, part.start)).values()).backward()
            sums = {name: sums[name] + p.grad for name, p in optimizer.parameters.items()}
        for name, p in optimizer.parameters.items():
            p.grad = sums[name] / size
        clip_gradients(model.parameters(), options.clip_norm)
        optimizer.step(learning_rate(options)(step))
    gradients = {f"gradient {name}": p.grad for name, p in model.named_parameters()}
    return model.state_dict() | gradients


needs_mpi = pytest.mark.skipif(
    not shutil.which("mpiexec") or subprocess.run([sys.executable, "-c", "import mpi4py"]).returncode != 0,
    reason="mpiexec or mpi4py is not installed (extra mpi)",
)


def mpiexec(size: int, *arguments, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess:
    """Run Python with these arguments in `size` processes of one thread each."""
    command = ["mpiexec", "-n", str(size), sys.executable, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MINIMASK_THREADS": "1"} | environment
    environment["OPENBLAS_NUM_THREADS"] = "1"  # equal bits need equal threads
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


def equal_ranks(directory: Path, size: int) -> dict[str, np.ndarray]:
    """What rank 0 holds, after all have been seen to hold the same bits."""
    first, *others = [dict(np.load(directory / f"rank-{rank}.npz")) for rank in range(size)]
    for other in others:
        assert {k: v.tobytes() for k, v in first.items()} == {k: v.tobytes() for k, v in other.items()}
    return first


def one_line(text: str) -> str:
    """The only line of standard error, progress and notes aside."""
    aside = "training ", "minimask: note: "
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(aside)]
    assert len(lines) == 1 and lines[0].startswith("minimask: "), text
    return lines[0]


def average(directory: Path, *sizes: int) -> dict[str, np.ndarray]:
    done = mpiexec(1, __file__, directory, "--average", *sizes)
    assert done.returncode == 0, done.stderr
    return dict(np.load(directory / "average.npz"))


@pytest.mark.slow
@needs_mpi
def test_ranks_are_bitwise_equal_and_equal_one_process_that_averages_whatever_their_number(tmp_path):
    done = mpiexec(2, __file__, tmp_path, "--set", "train.steps=2")
    assert done.returncode == 0, done.stderr
    two, one = equal_ranks(tmp_path, 2), average(tmp_path, 2, 2)
    assert two.pop("step") == 2
    # The sum of two is the same in any order: here not even rounding differs.
    assert {k: v.tobytes() for k, v in two.items()} == {k: v.tobytes() for k, v in one.items()}

    done = mpiexec(4, __file__, tmp_path, "--resume")
    assert done.returncode == 0, done.stderr
    assert "train.steps is 3, was 2" in done.stderr
    four, one = equal_ranks(tmp_path, 4), average(tmp_path, 2, 2, 4)
    for name, value in one.items():
        difference = np.abs(four[name] - value).max()
        assert difference <= 1e-5 * np.abs(value).max(), name
    saved = load_checkpoint(tmp_path / "checkpoint.npz")
    assert saved.step == four["step"] == 3
    assert all(saved.parameters[name].tobytes() == four[name].tobytes() for name in saved.parameters)
    losses = read_losses(tmp_path / "losses.csv")
    assert losses["step"].tolist() == [1, 2, 3] and np.isfinite(losses["loss"]).all()


@needs_mpi
def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path):
    done = mpiexec(2, __file__, tmp_path, "--signal", str(int(signal.SIGTERM)), "--set", "train.steps=60")
    assert done.returncode == 0, done.stderr
    step = equal_ranks(tmp_path, 2)["step"]
    assert step == load_checkpoint(tmp_path / "checkpoint.npz").step and step < 60


@pytest.mark.slow
@needs_mpi
def test_rank_0_validates_and_all_end_early_at_the_same_step(tmp_path):
    settings = ["train.steps=9", "train.validate_every=1", "train.patience=2"]
    done = mpiexec(2, __file__, tmp_path, "--validate", "--set", *settings)
    assert done.returncode == 0, done.stderr
    assert equal_ranks(tmp_path, 2)["step"] == 3
    assert load_checkpoint(tmp_path / "best.npz").step == 1
    rows = read_run_log(tmp_path / "log.jsonl")
    assert [row["step"] for row in rows if "validation" in row] == [1, 2, 3]


@needs_mpi
def test_a_killed_rank_ends_the_others(tmp_path):
    settings = ["--signal", str(int(signal.SIGKILL)), "--set", "train.steps=1000"]
    assert mpiexec(2, __file__, tmp_path, *settings).returncode != 0
    assert load_checkpoint(tmp_path / "checkpoint.npz").step < 1000


@pytest.mark.slow
@needs_mpi
def test_an_error_in_one_rank_is_one_line_and_ends_the_others(tmp_path):
    make_dataset(tmp_path)
    settings = [part for setting in [*SETTINGS, "train.batch_size=2"] for part in ("--set", setting)]
    order = Batches(Shapes(4, seed=5, size=64), 2).indices(0)
    broken = sorted((tmp_path / "images").iterdir())[order[1]]  # the second of the batch is rank 1's
    broken.write_bytes(broken.read_bytes()[:200])
    command = ["-m", "minimask", "train", "--data", tmp_path / "train.json", "--images", tmp_path / "images"]
    done = mpiexec(2, *command, "--output", tmp_path / "run", *settings)
    assert done.returncode == 2
    assert broken.name in one_line(done.stderr)


@needs_mpi
def test_an_error_of_all_ranks_is_one_line(tmp_path):
    command = ["-m", "minimask", "train", "--data", "shapes", "--output", tmp_path]
    done = mpiexec(2, *command, "--set", "train.batch_size=3")
    assert done.returncode == 2
    assert "3, shared by 2 processes: choose a multiple of 2, such as 4" in one_line(done.stderr)
    done = mpiexec(2, "-m", "minimask", "demo", "--output", tmp_path)
    assert done.returncode == 2 and "mpiexec is only for 'minimask train'" in one_line(done.stderr)


@needs_mpi
@pytest.mark.parametrize(
    "arguments, words",
    [
        (["trian"], "invalid choice: 'trian'"),
        (["train"], "--output; see 'minimask train --help'"),
        (["train", "--data", "shapes", "--output", "x", "--stesp", "3"], "--stesp: no such option; see"),
    ],
)
def test_wrong_arguments_are_answered_once(arguments, words):
    done = mpiexec(2, "-m", "minimask", *arguments)
    assert done.returncode == 2 and words in one_line(done.stderr)


@needs_mpi
def test_help_and_what_the_environment_has_wrong_are_told_once():
    assert mpiexec(2, "-m", "minimask", "--version").stdout.count("minimask ") == 1
    done = mpiexec(2, "-m", "minimask", "train", "--data", "shapes", "--output", "x", MINIMASK_THREADS="none")
    assert done.returncode == 2 and "MINIMASK_THREADS: must be" in one_line(done.stderr)


@needs_mpi
def test_without_mpi4py_one_line_names_the_extra_and_nothing_is_trained(tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise ImportError('as if it were not installed')")
    command = ["-m", "minimask", "train", "--data", "shapes", "--output", tmp_path / "run"]
    done = mpiexec(2, *command, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 2
    assert "install minimask[mpi]" in one_line(done.stderr)
    assert not (tmp_path / "run").exists()


def test_without_mpiexec_there_is_one_process_and_no_mpi():
    code = "import sys; from minimask.training import distributed as d; assert d.world() is d.ALONE; "
    code += "assert 'mpi4py' not in sys.modules"
    clean = {name: value for name, value in os.environ.items() if name not in distributed.STARTED}
    subprocess.run([sys.executable, "-c", code], env=clean | {"PYTHONPATH": str(ROOT)}, check=True)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_the_parts_of_a_batch_are_the_whole_in_order(size):
    places = []
    for rank in range(size):
        world = distributed.World()
        world.rank, world.size = rank, size
        places += world.part(6)
    assert places == list(range(6))
    with pytest.raises(InputError, match=r"train\.batch_size is 7, shared by 4 .* such as 8"):
        world.size = 4
        world.part(7)


class TwoGpus:
    """Stands in for NCCL between two processes that hold the same: a sum is twice the array."""

    def all_reduce(self, source, target):
        assert source is target and target.flags.c_contiguous
        target *= 2

    def broadcast(self, array):
        array[...] = 7


def test_between_gpus_one_message_carries_all_gradients_and_a_missing_one_counts_as_zero(fake_cupy):
    class Parameter:
        def __init__(self, shape, grad):
            self.data, self.grad = fake_cupy.ones(shape, np.float32), grad

    world = object.__new__(distributed._Mpi)
    world.size, world.nccl, world.bucket = 2, TwoGpus(), None
    gradient = fake_cupy.arange(6, dtype=np.float32).reshape(2, 3)
    parameters = {"b": Parameter((2, 3), gradient), "a": Parameter((4,), None)}
    for _ in range(2):  # the second time, the gradients lie in the bucket already
        world.mean_(parameters)
        assert np.array_equal(parameters["b"].grad.get(), np.arange(6).reshape(2, 3))
        assert np.array_equal(parameters["a"].grad.get(), np.zeros(4))
        assert np.array_equal(world.bucket.get(), [0, 0, 0, 0, 0, 1, 2, 3, 4, 5])  # by name
    world.share_({name: p.data for name, p in parameters.items()})
    assert (parameters["a"].data.get() == 7).all() and (parameters["b"].data.get() == 7).all()


if __name__ == "__main__":
    worker()
