"""``minimask demo``: what trained weights find, at once; then a training from scratch, and its pictures."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minimask.command.telling import drawing
from minimask.config import Config, from_dict, read_config
from minimask.data import nuclei_sample
from minimask.errors import InputError
from minimask.files import make_output_directory, write_text
from minimask.models.detector import load_detector
from minimask.results.evaluate import Evaluation, evaluate
from minimask.results.predict import confident
from minimask.results.visualize import comparison, loss_curves, save_picture
from minimask.training.log import read_losses
from minimask.training.loop import CHECKPOINT, CONFIG, LOG, LOSSES, Outcome, train
from minimask.training.progress import each
from minimask.weights.published import DEFAULT

PICTURES = 4  # validation images in the comparison
AT_ONCE, LOSSES_DRAWN, PREDICTIONS = "at-once.png", "losses.png", "predictions.png"
FILES = (CHECKPOINT, CONFIG, LOSSES, LOG, "metrics.json", "detections.json")
FILES += (AT_ONCE, LOSSES_DRAWN, PREDICTIONS)
MARK = ".minimask-demo"  # the file that tells a demo's directory from others; a training there removes it
SHOWN_ABOVE = 0.5  # the score of what is drawn; the metrics take all


@dataclass(frozen=True)
class Finished:
    """What came of a demo.

    Attributes
    ----------
    outcome : Outcome
    evaluation : Evaluation or None
        None when training was stopped.
    seconds : float
        Wall-clock time of the whole demo.
    """

    outcome: Outcome
    evaluation: Evaluation | None
    seconds: float


def configuration(quick: bool = False, seed: int = 0) -> Config:
    """The demo's configuration, `config/demo.toml` or `config/quick.toml`."""
    config = read_config("quick" if quick else "demo")
    seed = from_dict({"train": {"seed": seed}}, "--seed").train.seed
    return replace(config, train=replace(config.train, seed=seed))


def check_output(output: str | Path) -> None:
    """Check that a directory holds nothing that a demo would replace and no demo has made.

    Raises
    ------
    InputError
        Naming the first such file.
    """
    output = Path(output)
    if (output / MARK).is_file():
        return
    for name in FILES:
        if os.path.lexists(output / name) and not _is_no_checkpoint(output / name):
            raise InputError(
                f"{output}: holds {name}, which no demo has made; choose another --output, or move it away"
            )


def _is_no_checkpoint(path: Path) -> bool:
    """Whether it is named like a checkpoint but is none, so that nothing is lost by replacing it."""
    return path.name == CHECKPOINT and path.is_file() and path.read_bytes()[:2] != b"PK"


def run(
    config: Config,
    output: str | Path,
    note: Callable[[str], None],
    device: str = "cpu",
    tell: Callable[[Evaluation], None] = lambda evaluation: None,
    tell_first: Callable[[Path, float], None] = lambda path, seconds: None,
) -> Finished:
    """Draw what the packaged weights find; train, evaluate and draw again. What an earlier demo left in
    `output` is replaced.

    Parameters
    ----------
    note : callable
        Called with lines for the user to see.
    tell : callable
        Called with the evaluation as soon as it is written, or could not be.
    tell_first : callable
        Called with the first picture's path and the seconds that it took, before training begins.

    Raises
    ------
    InputError
        If `output` cannot be written to or holds what no demo has made, or training stops at a loss that is
        not finite.
    """
    began = time.monotonic()
    check_output(output)
    output = make_output_directory(output)
    write_text(output / MARK, "A demo made these files, and the next demo replaces them.\n")
    with drawing(output / AT_ONCE, note):
        shipped = load_detector(DEFAULT, device)
        _draw(shipped.model, nuclei_sample("val"), output / AT_ONCE)
        tell_first(output / AT_ONCE, time.monotonic() - began)
    outcome = train(config, nuclei_sample("train"), output, overwrite=True, note=note, device=device)
    if outcome.stopped_by is not None:
        return Finished(outcome, None, time.monotonic() - began)
    validation, model = nuclei_sample("val"), load_detector(outcome.checkpoint, device).model
    evaluation = evaluate(model, validation, progress=lambda indices: each(indices, "evaluating"))
    try:
        evaluation.write(output)
    finally:
        tell(evaluation)
    with drawing(output / LOSSES_DRAWN, note):
        loss_curves(read_losses(output / LOSSES), output / LOSSES_DRAWN)
    with drawing(output / PREDICTIONS, note):
        _draw(model, validation, output / PREDICTIONS)
    return Finished(outcome, evaluation, time.monotonic() - began)


def _draw(model: Any, validation: Any, path: Path) -> None:
    """Some validation images, their ground truth, and what a model finds in them."""
    # Sorted by name, bright and dark images stand apart: evenly spaced ones show both kinds.
    shown = [validation[i * len(validation) // PICTURES] for i in range(PICTURES)]
    found = [confident(model.predict([sample.image])[0], SHOWN_ABOVE) for sample in shown]
    save_picture(path, comparison(shown, found, validation.class_names))
