"""Evaluate weights for a command: its files, its lines on the screen, and report.html with what was run."""

import datetime
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from minimask import backend
from minimask import config as configuration
from minimask._version import __version__
from minimask.command import sources
from minimask.command.own_data import tell_evaluation
from minimask.command.telling import drawing, note, tell
from minimask.files import output_directory
from minimask.models.detector import Detector, load_detector
from minimask.results.evaluate import FILES, Evaluation, beyond_limit, evaluate
from minimask.results.report import Story, write_report
from minimask.training.log import read_losses
from minimask.training.loop import BEST, LOG, LOSSES, Outcome
from minimask.training.progress import each
from minimask.training.run_log import read_run_log
from minimask.weights.checkpoint import CheckpointFile
from minimask.weights.published import PACKAGED

REPORT = "report.html"


def command_line(argv: Sequence[str]) -> str:
    """The command as it was typed."""
    return shlex.join(["minimask", *argv])


def evaluate_weights(
    weights: str | Path,
    dataset: Any,
    most: int | None,
    output: Path,
    device: str,
    story: Callable[[Detector], Story],
    per_class: bool = False,
    known: Evaluation | None = None,
) -> None:
    """Evaluate, write the files and print the results, the last even if nothing could be written.

    Parameters
    ----------
    most : int, optional
        As in `load_detector`.
    story : callable
        Gives what report.html tells besides the evaluation.
    known : Evaluation, optional
        An earlier evaluation of these weights on this data set, which saves another.
    """
    from minimask.command.demo import MARK

    detector = load_detector(weights, device, note, detections=most)
    most, ids = detector.detections, sources.category_ids(detector, dataset, weights)
    sources.check_keypoints(dataset, detector.skeleton, f"{weights} was trained on")
    if line := beyond_limit(dataset, most):
        note(line)
    with output_directory(output):
        (output / MARK).unlink(missing_ok=True)  # from here on not all in it is a demo's
        shown = lambda indices: each(indices, "evaluating")  # noqa: E731
        evaluation = known or evaluate(detector.model, dataset, most, shown, ids)
        try:
            evaluation.write(output, per_class)
        finally:
            tell_evaluation(dataset.coco_document(), evaluation, per_class)
    written = [output / name for name in FILES]
    with drawing(output / REPORT):
        write_report(output / REPORT, dataset, evaluation, story(detector))
        written.append(output / REPORT)
    tell(", ".join(map(str, written)))


def evaluated(weights: str | Path, dataset: Any, argv: Sequence[str], detector: Detector) -> Story:
    """What report.html tells besides the evaluation after ``minimask evaluate``."""
    facts = [("command", command_line(argv)), ("weights", str(weights))]
    path = Path(PACKAGED.get(str(weights), weights))
    if path.suffix == ".npz" and path.exists():  # a run's checkpoint on this disk
        with CheckpointFile(path) as file:
            facts.append(("trained", f"{file.head.step} steps, seed {file.head.seed}"))
    facts.append(("evaluated on", _size(dataset)))
    config = detector.config
    if config is not None:
        facts += _settings(config)
    text = configuration.to_toml(config) if config is not None else ""
    return Story(f"Evaluation of {path.name} on {dataset.name}", [*facts, *_here()], text)


def trained(
    output: Path, config: configuration.Config, outcome: Outcome, dataset: Any, validation: Any, device: str
) -> Story:
    """What report.html tells besides the evaluation after ``minimask train``: log, curves, data, options."""
    rows = read_run_log(output / LOG)
    batch = config.train.batch_size
    steps = f"{outcome.step} of {batch} image{'s' * (batch > 1)}, seed {config.train.seed}"
    if outcome.early:
        steps += f"; ended early (of {config.train.steps}): no validation was better"
    starts = [row for row in rows if isinstance(row.get("start"), dict)]
    typed = dict.fromkeys((row["step"], str(row["start"].get("command", ""))) for row in starts)
    facts = [(f"command, at step {step}" if step else "command", line) for step, line in typed if line]
    facts += [("trained on", _size(dataset)), ("evaluated on", _size(validation)), ("steps", steps)]
    if outcome.best:
        found = outcome.best["validation"]
        told = f"{BEST}, after step {outcome.best['step']}: {found.get('by', 'score')} {found['score']:.3f}"
        facts.append(("best in validation", told))
    validations = [row for row in rows if "validation" in row]
    spent = sum(row["seconds"] for row in rows if "seconds" in row)
    if spent:
        times = [f"{_duration(spent)} of training"]
        seconds = [row["validation"].get("seconds", 0) for row in validations]
        times += [f"{_duration(sum(seconds))} of {len(seconds)} validations"] if seconds else []
        facts.append(("time", ", ".join(times)))
    facts += [("device", device), *_settings(config)]
    return Story(
        f"Training of {config.model.name} on {dataset.name}",
        [*facts, *_here()],
        configuration.to_toml(config),
        read_losses(output / LOSSES),
        validations,
        outcome.best["step"] if outcome.best else None,
    )


def _size(dataset: Any) -> str:
    count = int(dataset.object_counts().sum()) if hasattr(dataset, "object_counts") else None
    objects = "" if count is None else f", {count} object{'s' * (count != 1)}"
    return f"{dataset.name}: {len(dataset)} image{'s' * (len(dataset) != 1)}{objects}"


def _settings(config: configuration.Config) -> list[tuple[str, str]]:
    """The options that differ from the defaults."""
    changed = []
    for key, entry in configuration.options():
        section, _, name = key.partition(".")
        value = getattr(getattr(config, section), name)
        if value != entry.default:
            changed.append(f"{key} = {configuration.shown(value)}")
    return [("options not the default", "; ".join(changed))] if changed else []


def _here() -> list[tuple[str, str]]:
    facts = backend.describe()
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] != '1')}"
    machine = ", ".join([*(facts[name] for name in ("processor", "blas") if name in facts), threads])
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return [("machine", machine), ("written", f"{now}, minimask {__version__}")]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
