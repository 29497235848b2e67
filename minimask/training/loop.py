"""The training loop: a resumed run equals an unbroken one to the bit; what stops it is told in one line."""

import contextlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minimask import backend
from minimask.autograd import no_grad
from minimask.config import Config, DataConfig, TrainConfig, to_toml
from minimask.data import Augmentation, Batches, Loader, Sample
from minimask.errors import InputError, one_line
from minimask.files import make_output_directory, real_path, write_text
from minimask.models.networks import build_model, resolved
from minimask.models.starting import Start, fill
from minimask.randomness import Draws
from minimask.training import distributed
from minimask.training.keeper import Keeper, NotFinite
from minimask.training.lock import locked
from minimask.training.log import LossLog
from minimask.training.optim import SGD, LearningRate, clip_gradients, scaled_learning_rate
from minimask.training.progress import Progress
from minimask.training.stopping import StopSignals

CHECKPOINT, CONFIG, LOSSES = "checkpoint.npz", "config.toml", "losses.csv"


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
    note: Callable[[str], None] = lambda line: print(one_line(line), file=sys.stderr),
    device: str = "cpu",
    start: Start | None = None,
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
        Go on from its checkpoint, on either device. Everything random follows from seed and step, so on the
        same machine with as many threads, weights and losses equal those of an uninterrupted run bit for bit
        (on a GPU with ``train.deterministic``). If something on which that rests has changed, `note` says so.
    overwrite : bool
        Start anew in a directory that holds a run.
    note : callable
        Called with lines for the user to see.
    device : "cpu" or "cuda"
    start : Start, optional
        Weights to begin with (`minimask.models.starting.start_from`); not looked at when resuming.

    Raises
    ------
    InputError
        If the directory holds a run and neither `resume` nor `overwrite` is given; if there is nothing to
        resume, or the checkpoint is of another model; if a loss, the gradient or a weight is not finite
        (the last good checkpoint stays); if something cannot be written.
    """
    world, config = distributed.world(), resolved(config)
    check_resume(output, resume, overwrite)
    output = make_output_directory(output)
    note = note if world.rank == 0 else lambda line: None
    if line := without_a_fall(config.train):
        note(line)
    with locked(output) if world.rank == 0 else contextlib.nullcontext():
        return _train(config, dataset, output, resume, note, device, world, start)


def _train(
    config: Config,
    dataset: Any,
    output: Path,
    resume: bool,
    note: Callable[[str], None],
    device: str,
    world: distributed.World,
    start: Start | None,
) -> Outcome:
    options = config.train
    world.use(device)
    skeleton = getattr(dataset, "skeleton", None)
    keypoints = len(skeleton.names) if skeleton else 0
    model = build_model(config, len(dataset.class_names) + 1, device, keypoints)
    if start and not resume:
        fill(model, start, note)
    optimizer = make_optimizer(model, options)
    part = world.part(options.batch_size)
    batches = Batches(dataset, options.batch_size, augmentation(config.data), options.seed, part)
    keeper = Keeper(output / CHECKPOINT, config, dataset, model, optimizer, world)
    first = _begin(keeper, output / CONFIG, resume, note)
    rate, stopped_by = learning_rate(options), 0
    model.train()
    with (
        np.errstate(all="ignore"),  # overflow shows as a loss or gradient that is not finite, which stops us
        backend.deterministic(options.deterministic),
        StopSignals(tell=world.rank == 0) as stop,
        LossLog(output / LOSSES, first, world.rank == 0, note) as log,
        Progress(options.steps, "training", first, shown=world.rank == 0) as progress,
        keeper.rescuing(),
        Loader(batches, first, options.steps) as loader,
    ):
        for index, samples in loader:
            step, draws = index + 1, Draws(options.seed, index, part.start)  # steps done: counted from 1
            with keeper.explaining(partial(batches.describe, index)):
                row = training_step(model, optimizer, samples, draws, rate(index), options.clip_norm, world)
            keeper.advance(step, partial(gives_finite_loss, model, samples, draws))
            log.write(step, row)
            progress.update(options.batch_size, _shown(row))
            if index == first:
                _note_memory(note, device)
            stopped_by = world.highest(stop.signal or 0)  # one process's signal stops all, at the same step
            if step % options.save_every == 0 or step == options.steps or stopped_by:
                log.sync()
                keeper.save()
            if stopped_by:
                break
    finished = keeper.saved == options.steps  # a signal in the very last step stops nothing
    return Outcome(model, keeper.saved, None if finished else stopped_by, keeper.path)


def check_resume(output: str | Path, resume: bool, overwrite: bool = False) -> None:
    """See that there is a run to go on with, or none to be lost.

    Raises
    ------
    InputError
    """
    path = Path(output) / CHECKPOINT
    real_path(path)  # before `exists`, for which links in a circle are nothing
    if resume and not path.exists():
        raise InputError(f"{path}: there is no checkpoint to resume; leave out --resume to start")
    if path.exists() and not resume and not overwrite:
        raise InputError(f"{output}: holds a training run; go on with --resume, or choose another --output")


def _begin(keeper: Keeper, config_path: Path, resume: bool, note: Callable[[str], None]) -> int:
    """Restore the run or save a new one, and give every process the same weights; returns the steps done."""
    if resume:
        keeper.restore(note)
    keeper.world.share_(keeper.model.state_dict(), keeper.optimizer.state_dict())
    # Until here every process has read what there is; from here on process 0 may write.
    done = keeper.world.highest(keeper.saved)
    if keeper.world.rank == 0:
        write_text(config_path, to_toml(keeper.config))
    if not resume:
        keeper.save()  # a disk that is full, or may not be written to, is found now
    return done


def _note_memory(note: Callable[[str], None], device: str) -> None:
    peak = backend.peak_memory(device)
    if peak:
        note(f"the first step took memory up to {peak >> 20:,} MiB on {device}")


def training_step(
    model: Any,
    optimizer: SGD,
    samples: list[Sample],
    draws: Draws,
    rate: float,
    clip_norm: float,
    world: distributed.World = distributed.ALONE,
) -> dict[str, float]:
    """One step: losses, their gradients, and the update; losses and gradients are averaged over `world`.

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
    world.mean_(optimizer.trained())
    norm = clip_gradients(model.parameters(), clip_norm)  # sync: the norm, to stop at a NaN
    if not math.isfinite(norm):
        raise NotFinite(f"the gradient's norm is {norm}")
    optimizer.step(rate)
    row = world.mean({"loss": values.pop("loss"), **values})
    return {"learning_rate": rate, **row, "gradient_norm": norm}


def gives_finite_loss(model: Any, samples: list[Sample], draws: Draws) -> bool:
    """Whether the weights give a finite loss on some images, in inference mode: it changes no statistics."""
    model.eval()
    try:
        with no_grad():
            losses = model.loss([s.image for s in samples], [s.target() for s in samples], draws)
        return all(math.isfinite(loss.item()) for loss in losses.values())  # sync: before a save
    finally:
        model.train()


def make_optimizer(model: Any, options: TrainConfig) -> SGD:
    """SGD over a model's parameters, as configured."""
    return SGD(
        model.named_parameters(),
        options.learning_rate,
        options.momentum,
        options.weight_decay,
        options.decay_norms_and_biases,
    )


def without_a_fall(options: TrainConfig) -> str | None:
    """A line that says so if the schedule is one of steps and none of them comes; or None."""
    fall = [step for step in options.milestones if step < options.steps]
    if options.schedule != "step":
        unused = "train.milestones are for train.schedule 'step' alone"
        return f"{unused}; it is {options.schedule!r}" if options.milestones else None
    if fall:
        return None
    why = f"lie behind the last step, {options.steps}" if options.milestones else "is empty"
    return f"train.schedule is 'step', and train.milestones {why}: the learning rate never falls"


def learning_rate(options: TrainConfig) -> LearningRate:
    """The learning rate as a function of the step: linear in the batch size, warmed up, then falling.

    `options` are those of a `resolved` configuration, which has a learning rate.
    """
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


def _shown(row: dict[str, float]) -> str:
    """The losses in a few characters, for the progress bar: ``loss 1.84 = .61 cls + .32 box + ...``."""
    short = {
        "classifier": "cls",
        "box_reg": "box",
        "mask": "mask",
        "keypoint": "kpt",
        "objectness": "obj",
        "rpn_box_reg": "rpn",
    }
    values = {name: f"{row['loss_' + key]:.2f}" for key, name in short.items() if "loss_" + key in row}
    parts = [f"{value.lstrip('0')} {name}" for name, value in values.items()]
    return f"loss {row['loss']:.2f} = {' + '.join(parts)}"
