"""The training loop: exact to the bit across interruptions, and plain about what stops it."""

import contextlib
import csv
import hashlib
import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from minimask import backend
from minimask.config import Config, DataConfig, TrainConfig, differences, from_dict, to_dict, to_toml
from minimask.data import Augmentation, Batches, Loader, Sample
from minimask.errors import InputError, memory_story
from minimask.files import make_output_directory, write_text
from minimask.randomness import Draws
from minimask.training import distributed
from minimask.training.memory import training_memory
from minimask.training.optim import SGD, LearningRate, clip_gradients, scaled_learning_rate
from minimask.training.progress import Progress
from minimask.weights.checkpoint import (
    Checkpoint,
    all_finite,
    environment_changes,
    fit,
    load_checkpoint,
    save_checkpoint,
)
from minimask.weights.detector import build_model

CHECKPOINT, CONFIG, LOSSES = "checkpoint.npz", "config.toml", "losses.csv"
_LESS = "a smaller train.batch_size, data.crop or model.max_size needs less"
_TAMER = "try a smaller train.learning_rate or train.clip_norm, or look at the images"


@dataclass(frozen=True)
class Outcome:
    """How a training run ended.

    Attributes
    ----------
    model
        With the last weights.
    step : int
        Steps done; fewer than configured when it was stopped.
    stopped_by : int or None
        The signal that stopped it.
    checkpoint : Path
    """

    model: Any
    step: int
    stopped_by: int | None
    checkpoint: Path


@distributed.together()
def train(
    config: Config,
    dataset: Any,
    output: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    device: str = "cpu",
) -> Outcome:
    """Train a model, leaving checkpoint.npz, config.toml and losses.csv in a directory.

    Parameters
    ----------
    config : Config
    dataset
        As `minimask.data` makes them.
    output : str or Path
        Made where it does not exist.
    resume : bool
        Go on from its checkpoint, on either device. All that is random follows from seed and step, so on the
        same machine with the same threads the weights and losses equal those of an uninterrupted run bit for
        bit (on a GPU with ``train.deterministic``); where something differs on which that rests, `note` says
        so.
    overwrite : bool
        Start anew in a directory that holds a run.
    note : callable
        Gets lines for the person.
    device : "cpu" or "cuda"

    Raises
    ------
    InputError
        If the directory holds a run and neither `resume` nor `overwrite` is given; if there is nothing to
        resume, or the checkpoint is of another model; if a loss, the gradient or a weight is not finite
        (the last good checkpoint stays); if something cannot be written.
    """
    world = distributed.world()
    check_resume(output, resume, overwrite)
    output = make_output_directory(output)
    options = config.train
    world.use(device)
    model = build_model(config, len(dataset.class_names) + 1, device)
    decay = options.weight_decay, options.decay_norms_and_biases
    optimizer = SGD(model.named_parameters(), options.learning_rate, options.momentum, *decay)
    part = world.part(options.batch_size)
    batches = Batches(dataset, options.batch_size, augmentation(config.data), options.seed, part)
    keeper = _Keeper(output / CHECKPOINT, config, dataset, model, optimizer, world.rank == 0)
    if resume:
        keeper.restore(note)
    world.share_(model.state_dict(), optimizer.state_dict())
    first = world.highest(keeper.saved)  # beyond this all have seen what there is, and process 0 may write
    if world.rank == 0:
        write_text(output / CONFIG, to_toml(config))
    if not resume:
        keeper.save(0)  # a disk that is full, or may not be written to, is found now
    rate, stopped_by = learning_rate(options), 0
    model.train()
    with (
        warnings.catch_warnings(),
        backend.deterministic(options.deterministic),
        StopSignals(tell=world.rank == 0) as stop,
        LossLog(output / LOSSES, first) if world.rank == 0 else contextlib.nullcontext() as log,
        Progress(options.steps, "training", first) as progress,
        Loader(batches, first, options.steps) as loader,
    ):
        # Overflow shows as a loss or a gradient that is not finite, which stops the run and names it; NumPy's
        # warnings on the way there would only name lines of ours.
        warnings.simplefilter("ignore", RuntimeWarning)
        for index, samples in loader:
            if index == first and world.rank == 0:
                sizes = [sample.image.shape[1:] for sample in samples]
                needed = training_memory(model, len(samples), *model.transform.padded(sizes))
                note(f"a step takes about {max(needed, 1 << 20) >> 20:,} MiB of memory on {device}")
            step, draws = index + 1, Draws(options.seed, index, part.start)  # steps done: counted from 1
            try:
                row = training_step(model, optimizer, samples, draws, rate(index), options.clip_norm, world)
            except NotFinite as error:
                images = ", ".join(dataset.describe(i) for i in batches.indices(index))
                raise InputError(keeper.failure(step, f"{error} (images: {images})")) from error
            except MemoryError as error:
                raise InputError(keeper.failure(step, memory_story(error), _LESS)) from error
            if log:
                log.write(step, row)
            progress.update(options.batch_size, _shown(row))
            stopped_by = world.highest(stop.signal or 0)  # of one is of all, so that all stop at one step
            if step % options.save_every == 0 or step == options.steps or stopped_by:
                if not all_finite(model.state_dict().values()):
                    raise InputError(keeper.failure(step, "a weight is not finite after the update"))
                if log:
                    log.sync()
                keeper.save(step)
            if stopped_by:
                break
    return Outcome(model, keeper.saved, stopped_by or None, keeper.path)


def check_resume(output: str | Path, resume: bool, overwrite: bool = False) -> None:
    """See that there is a run to go on with, or none to be lost.

    Raises
    ------
    InputError
    """
    path = Path(output) / CHECKPOINT
    if resume and not path.exists():
        raise InputError(f"{path}: there is no checkpoint to resume; leave out --resume to start")
    if path.exists() and not resume and not overwrite:
        raise InputError(f"{output}: holds a training run; go on with --resume, or choose another --output")


class NotFinite(ArithmeticError):
    """A loss or a gradient is NaN or infinite; the weights are those before the step."""


def training_step(
    model: Any,
    optimizer: SGD,
    samples: list[Sample],
    draws: Draws,
    rate: float,
    clip_norm: float,
    world: distributed.World = distributed.ALONE,
) -> dict[str, float]:
    """One step: losses, their gradients, and the update; both are means over the processes of `world`.

    Returns
    -------
    dict of str to float
        learning_rate, loss (the sum), each loss, and gradient_norm before clipping.

    Raises
    ------
    NotFinite
    """
    optimizer.zero_grad()
    losses = model.loss([sample.image for sample in samples], [sample.target() for sample in samples], draws)
    losses["loss"] = sum(losses.values())
    losses["loss"].backward()
    numbers = backend.array_module(losses["loss"].data).stack([loss.data for loss in losses.values()])
    values = dict(zip(losses, backend.to_cpu(numbers).tolist()))  # sync: all losses at once, to stop at a NaN
    for name, value in values.items():
        if not math.isfinite(value):
            raise NotFinite(f"{name} is {value}")
    world.mean_(optimizer.parameters)
    norm = clip_gradients(model.parameters(), clip_norm)  # sync: the norm, to stop at a NaN
    if not math.isfinite(norm):
        raise NotFinite(f"the gradient's norm is {norm}")
    optimizer.step(rate)
    row = world.mean({"loss": values.pop("loss"), **values})
    return {"learning_rate": rate, **row, "gradient_norm": norm}


def learning_rate(options: TrainConfig) -> LearningRate:
    """The learning rate as a function of the step: linear in the batch size, warmed up, then falling."""
    return LearningRate(
        scaled_learning_rate(options.learning_rate, options.batch_size, options.reference_batch),
        warmup_steps=options.warmup_steps,
        total_steps=options.steps,
        kind=options.schedule,
        milestones=options.milestones,
        gamma=options.gamma,
    )


def augmentation(options: DataConfig) -> Augmentation:
    """The random changes of images that a configuration asks for."""
    return Augmentation(**{entry.name: getattr(options, entry.name) for entry in fields(Augmentation)})


class _Keeper:
    """Saves and restores what a run needs to go on, and knows the last step that was saved."""

    def __init__(
        self, path: Path, config: Config, dataset: Any, model: Any, optimizer: SGD, writes: bool = True
    ):
        self.path, self.config, self.dataset, self.writes = path, config, dataset, writes
        self.model, self.optimizer, self.saved = model, optimizer, 0
        images = "\n".join(dataset.describe(i) for i in range(len(dataset)))
        self.data = {"name": dataset.name, "images": hashlib.sha256(images.encode()).hexdigest()}

    def save(self, step: int) -> None:
        checkpoint = Checkpoint(
            parameters=self.model.state_dict(),
            momentum=self.optimizer.state_dict(),
            step=step,
            seed=self.config.train.seed,
            config=to_dict(self.config),
            class_names=list(self.dataset.class_names),
            category_ids=list(self.dataset.category_ids),
            data=self.data,
            environment=self._environment(),
        )
        if self.writes:
            save_checkpoint(self.path, checkpoint)
        self.saved = step

    def restore(self, note: Callable[[str], None]) -> None:
        """Load the checkpoint, and tell of whatever makes this another run than the one it is of."""
        checkpoint = load_checkpoint(self.path)
        if checkpoint.class_names != list(self.dataset.class_names):
            theirs, ours = ", ".join(checkpoint.class_names), ", ".join(self.dataset.class_names)
            raise InputError(
                f"{self.path}: was trained on the classes {theirs}; {self.dataset.name} has {ours}"
            )
        fit(checkpoint, self.path, self.model, self.optimizer)
        self.saved = checkpoint.step
        if self.saved > self.config.train.steps:
            raise InputError(
                f"{self.path}: has done {self.saved} steps, more than train.steps, {self.config.train.steps}"
            )
        changes = differences(from_dict(checkpoint.config, str(self.path)), self.config)
        if checkpoint.data["images"] != self.data["images"]:
            changes.append("the training images are others")
        if changes:
            note(f"from here on this is another run than the one begun: {'; '.join(changes)}")
        environment = environment_changes(checkpoint.environment, self._environment())
        if environment:
            note(f"the last bits of the results may differ from an unbroken run's: {'; '.join(environment)}")

    def _environment(self) -> dict[str, str]:
        facts = backend.describe()
        return facts | {"device": "cpu" if self.model.device == "cpu" else facts["gpu"]}

    def failure(self, step: int, what: str, mend: str = _TAMER) -> str:
        return (
            f"training stopped at step {step}: {what}. {self.path} holds the last good state, of step "
            f"{self.saved}; {mend}"
        )


class StopSignals:
    """Turns the first Ctrl-C or SIGTERM into a wish, ``signal``, to be granted between two steps.

    The second one ends the program at once. Outside the main thread, where Python delivers no signals,
    nothing is caught.
    """

    def __init__(self, tell: bool = True):
        self.signal: int | None = None
        self.tell = tell
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._caught) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, frame) -> None:
        if self.signal is None:
            self.signal = number
            # print() may be what was interrupted, and cannot be entered twice.
            if self.tell:
                os.write(2, b"\nminimask: finishing the step and saving; once more to stop at once\n")
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + number)


class LossLog:
    """losses.csv: a row a step, floats written exactly, so that two equal runs have equal files.

    Parameters
    ----------
    path : Path
    step : int
        Steps done. What an interrupted run wrote beyond them is cut off; it will be written again.
    """

    def __init__(self, path: Path, step: int):
        self.path, self.columns = path, []
        kept = []
        if step and path.exists():
            kept, rows = (lines := path.read_text(encoding="utf-8").splitlines())[:1], lines[1:]
            # The last row may be cut off in its middle: without a comma its step is not to be trusted.
            parts = (row.partition(",") for row in rows)
            kept += [
                "".join(part) for part in parts if part[1] and part[0].isdigit() and int(part[0]) <= step
            ]
            self.columns = kept[0].split(",") if kept else []
        write_text(path, "".join(f"{line}\n" for line in kept))

    def __enter__(self) -> "LossLog":
        self.file = self.path.open("a", encoding="utf-8", newline="")
        return self

    def __exit__(self, *exception) -> None:
        with contextlib.suppress(OSError):  # told by `write` already
            self.file.close()

    def write(self, step: int, row: dict[str, float]) -> None:
        """Append a step's values, for all to see at once; the first row decides the columns."""
        lines = [] if self.columns else [",".join(["step", *row])]
        self.columns = self.columns or ["step", *row]
        lines += [",".join([str(step), *(repr(row[name]) for name in self.columns[1:])])]
        with self._writing():
            self.file.write("".join(f"{line}\n" for line in lines))
            self.file.flush()

    def sync(self) -> None:
        """See that what was written is on the disk, before a checkpoint that rests on it."""
        with self._writing():
            os.fsync(self.file.fileno())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}); make room, then go on with --resume"
            ) from error


def read_losses(path: str | Path) -> dict[str, np.ndarray]:
    """losses.csv as columns, for `visualize.loss_curves`."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in (rows[0] if rows else {})}


def _shown(row: dict[str, float]) -> str:
    """The losses in a few characters, for the progress bar: ``loss 1.84 = .61 cls + .32 box + ...``."""
    short = {"classifier": "cls", "box_reg": "box", "mask": "mask", "objectness": "obj", "rpn_box_reg": "rpn"}
    values = {name: f"{row['loss_' + key]:.2f}" for key, name in short.items() if "loss_" + key in row}
    parts = [f"{value.lstrip('0')} {name}" for name, value in values.items()]
    return f"loss {row['loss']:.2f} = {' + '.join(parts)}"
