"""The training loop: a resumed run equals an unbroken one bit for bit; one line says what stopped a run."""

import contextlib
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minimask import backend
from minimask._version import __version__
from minimask.autograd import no_grad
from minimask.config import Config, DataConfig, TrainConfig, to_toml
from minimask.data import Augmentation, Batches, Loader, Sample, repeats_by_size
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
from minimask.training.run_log import RunLog
from minimask.training.stopping import StopSignals
from minimask.training.watch import Rarely, Validations, Watch

CHECKPOINT, CONFIG, LOSSES = "checkpoint.npz", "config.toml", "losses.csv"
BEST, LOG = "best.npz", "log.jsonl"


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
        The signal that stopped it, 0 if the watch had enough (`Watch.enough`), None if it finished.
    checkpoint : Path
    early : bool
        Whether it ended because validations no longer improved (``train.patience``).
    best : dict or None
        The line in log.jsonl for the validation whose weights are in best.npz; on process 0.
    """

    model: Any
    step: int
    stopped_by: int | None
    checkpoint: Path
    early: bool = False
    best: dict[str, Any] | None = None


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
    watch: Watch | None = None,
    build: Callable[..., Any] = build_model,
) -> Outcome:
    """Train a model, leaving checkpoint.npz, config.toml, losses.csv and log.jsonl in a directory.

    Parameters
    ----------
    config : Config
    dataset
        Such as `minimask.data` makes.
    output : str or Path
        The directory, made if it does not exist.
    resume : bool
        Go on from its checkpoint, on either device. Everything random follows from seed and step, so on the
        same machine with as many threads, weights and losses equal those of an uninterrupted run bit for bit
        (on a GPU with ``train.deterministic``). If something that this depends on has changed, `note` says
        so.
    overwrite : bool
        Start anew in a directory that holds a run.
    note : callable
        Called with lines for the user to see.
    device : "cpu" or "cuda"
    start : Start, optional
        Weights to begin with (`minimask.models.starting.start_from`); ignored when resuming.
    watch : Watch, optional
        Validates and draws on the way, without any effect on the weights; leaves best.npz.
    build : callable (config, num_classes, device, num_keypoints) -> model
        Makes the model with its random weights; by default the one that the configuration names. Programs
        that read checkpoints (`minimask predict`) know no others.

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
        prepared = _prepared(config, dataset, output, None if resume else start, note, device, world, build)
        return _train(config, output, resume, note, device, world, watch or Watch(), *prepared)


def _train(
    config: Config,
    output: Path,
    resume: bool,
    note: Callable[[str], None],
    device: str,
    world: distributed.World,
    watch: Watch,
    keeper: Keeper,
    batches: Batches,
) -> Outcome:
    options = config.train
    model, optimizer, part = keeper.model, keeper.optimizer, batches.part
    first = _begin(keeper, output / CONFIG, resume, note)
    rate, stopped_by, early, left = learning_rate(options), 0, False, False
    model.train()
    with (
        np.errstate(all="ignore"),  # overflow makes a loss or gradient that is not finite, which stops us
        backend.deterministic(options.deterministic),
        StopSignals(tell=world.rank == 0) as stop,
        LossLog(output / LOSSES, first, world.rank == 0, note) as losses,
        RunLog(output / LOG, first, world.rank == 0, note) as log,
        Progress(options.steps, "training", first, shown=world.rank == 0) as progress,
        keeper.rescuing(),
        Loader(batches, first, options.steps) as loader,
    ):
        log.write(first, {"start": _start(keeper, device, watch)})
        draw = Rarely(watch.draw if world.rank == 0 else None)
        validations = Validations(options, watch, keeper, log, progress, lambda: bool(stop.signal), note)
        early, began = validations.after(first), time.monotonic()
        for index, samples in () if early else loader:
            step, draws = index + 1, Draws(options.seed, index, part.start)  # step counts from 1
            with keeper.explaining(partial(batches.describe, index)):
                row = training_step(model, optimizer, samples, draws, rate(index), options.clip_norm, world)
            keeper.advance(step, partial(gives_finite_loss, model, samples, draws))
            losses.write(step, row)
            log.write(step, _timed(row, options.batch_size, time.monotonic() - began))
            progress.update(options.batch_size, _shown(row))
            if index == first:
                _note_memory(note, device)
            stopped_by = world.highest(stop.signal or 0)  # one process's signal stops all, at the same step
            left = bool(watch.enough) and bool(world.highest(int(watch.enough())))
            due = validations.are_due(step)
            if step % options.save_every == 0 or step == options.steps or stopped_by or left or due:
                losses.sync()
                log.sync()
                keeper.save()
                draw()
            if due:  # abandoned at once if the run is to stop; a resumed run makes up for it
                early = validations.after(step)
                stopped_by = world.highest(stop.signal or 0)
            if stopped_by or left or early:
                break
            began = time.monotonic()
    # A signal in the very last step stops only the validation after it.
    finished = early or (keeper.saved == options.steps and not validations.lacking)
    ended = None if finished else stopped_by
    return Outcome(model, keeper.saved, ended, keeper.path, early, validations.best)


def _prepared(
    config: Config,
    dataset: Any,
    output: Path,
    start: Start | None,
    note: Callable[[str], None],
    device: str,
    world: distributed.World,
    build: Callable[..., Any],
) -> tuple[Keeper, Batches]:
    """The model and its optimizer, in a keeper, and the batches."""
    world.use(device)
    skeleton = getattr(dataset, "skeleton", None)
    keypoints = len(skeleton.names) if skeleton else 0
    model = build(config, len(dataset.class_names) + 1, device, keypoints)
    if start:
        fill(model, start, note, dataset.class_names)
    options, changes = config.train, augmentation(config.data)
    optimizer, part = make_optimizer(model, options), world.part(options.batch_size)
    by_aspect = config.data.group_by_aspect
    if by_aspect and (config.data.crop or config.data.rotate90):
        note("data.group_by_aspect does nothing for images that are cropped (data.crop) or turned (rotate90)")
        by_aspect = False
    repeats = repeats_by_size(dataset, config.data.crop) if config.data.repeat_by_size else None
    batches = Batches(dataset, options.batch_size, changes, options.seed, part, by_aspect, repeats)
    return Keeper(output / CHECKPOINT, config, dataset, model, optimizer, world), batches


def _start(keeper: Keeper, device: str, watch: Watch) -> dict[str, Any]:
    """What the log says about a start: what was typed, and what runs."""
    about = {"minimask": __version__, "device": device, "images": len(keeper.dataset)}
    return about | ({"command": watch.command} if watch.command else {})


def _timed(row: dict[str, float], images: int, seconds: float) -> dict[str, float]:
    """A step's values for the log, with the time that it took, including the wait for images."""
    speed = {"seconds": round(seconds, 4), "images_per_second": round(images / max(seconds, 1e-4), 2)}
    return speed | row


def check_resume(output: str | Path, resume: bool, overwrite: bool = False) -> None:
    """Check that there is a run to resume, or none that would be lost.

    Raises
    ------
    InputError
        If not.
    """
    path = Path(output) / CHECKPOINT
    real_path(path)  # first, since `exists` ignores links in a circle
    if resume and not path.exists():
        raise InputError(f"{path}: there is no checkpoint to resume; leave out --resume to start")
    if path.exists() and not resume and not overwrite:
        raise InputError(f"{output}: holds a training run; go on with --resume, or choose another --output")


def _begin(keeper: Keeper, config_path: Path, resume: bool, note: Callable[[str], None]) -> int:
    """Restore the run or save a new one, and give every process the same weights; returns the steps done."""
    if resume:
        keeper.restore(note)
        if line := goes_on(keeper.before.train, keeper.config.train, keeper.done):
            note(line)
    keeper.world.share_(keeper.model.state_dict(), keeper.optimizer.state_dict())
    # Every process has now read what there was; from here on process 0 may write.
    done = keeper.world.highest(keeper.saved)
    if keeper.world.rank == 0:
        write_text(config_path, to_toml(keeper.config))
    if not resume:
        keeper.save()  # finds out now if the disk is full or cannot be written to
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
        If a loss or the gradient is not finite; the weights have not changed.
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
    """Whether the weights give a finite loss on some images; in inference mode, so no statistics change."""
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
    """A line that warns if the learning rate never falls, or the milestones are not used; or None."""
    fall = [step for step in options.milestones if step < options.steps]
    if options.schedule != "step":
        unused = "train.milestones are only for train.schedule 'step'"
        return f"{unused}; it is {options.schedule!r}" if options.milestones else None
    if fall:
        return None
    why = f"lie beyond the last step, {options.steps}" if options.milestones else "is empty"
    return f"train.schedule is 'step', and train.milestones {why}: the learning rate never falls"


def goes_on(before: TrainConfig, now: TrainConfig, done: int) -> str | None:
    """A line that says what a changed number of steps does to the learning rate after `done`; or None."""
    if before.steps == now.steps or not 0 < done < now.steps:
        return None
    last, following = learning_rate(before)(done - 1), learning_rate(now)(done)
    told = (
        f"train.steps is {now.steps}, was {before.steps}: the learning rate was {last:.3g} in step {done}, "
    )
    if math.isclose(last, following, rel_tol=0.01):
        return f"{told}and is {following:.3g} in step {done + 1}"
    told += f"and {'rises' if following > last else 'falls'} to {following:.3g} in step {done + 1}"
    return told + (f", to fall to 0 by step {now.steps}" if now.schedule == "cosine" else "")


def learning_rate(options: TrainConfig) -> LearningRate:
    """The learning rate as a function of the step: linear in the batch size, warmed up, then falling.

    `options` must come from a `resolved` configuration, which has a learning rate.
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
    """The random changes to images that a configuration asks for."""
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
