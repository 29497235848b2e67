"""``minimask demo``: train on the packaged nuclei, evaluate, and leave pictures to look at."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

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

PICTURES = 4  # validation images in the comparison
LOSSES_DRAWN, PREDICTIONS = "losses.png", "predictions.png"
FILES = (CHECKPOINT, CONFIG, LOSSES, LOG, "metrics.json", "detections.json", LOSSES_DRAWN, PREDICTIONS)
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
        Of wall clock, for everything.
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
    """Whether it has the name of a checkpoint and is none: nothing is lost with it."""
    return path.name == CHECKPOINT and path.is_file() and path.read_bytes()[:2] != b"PK"


def run(
    config: Config,
    output: str | Path,
    note: Callable[[str], None],
    device: str = "cpu",
    tell: Callable[[Evaluation], None] = lambda evaluation: None,
) -> Finished:
    """Train, evaluate and draw; what an earlier demo left in `output` is replaced.

    Parameters
    ----------
    note : callable
        Called with lines for the user to see.
    tell : callable
        Called with the evaluation as soon as it is written, or could not be.

    Raises
    ------
    InputError
        If `output` cannot be written to or holds what no demo has made, or training stops at a loss that is
        not finite.
    """
    began = time.monotonic()
    check_output(output)
    output = make_output_directory(output)
    write_text(output / MARK, "What stands here a demo has made, and the next one replaces it.\n")
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
        # Sorted by name, bright and dark images stand apart: evenly spaced ones show both kinds.
        shown = [validation[i * len(validation) // PICTURES] for i in range(PICTURES)]
        found = [confident(model.predict([sample.image])[0], SHOWN_ABOVE) for sample in shown]
        save_picture(output / PREDICTIONS, comparison(shown, found, validation.class_names))
    return Finished(outcome, evaluation, time.monotonic() - began)
