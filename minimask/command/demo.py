"""``minimask demo``: train on the packaged nuclei, evaluate, and leave pictures to look at."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from minimask.config import Config, from_dict, read_config
from minimask.data import nuclei_sample
from minimask.results.evaluate import Evaluation, evaluate
from minimask.results.predict import confident
from minimask.results.visualize import comparison, loss_curves, save_picture
from minimask.training.log import read_losses
from minimask.training.loop import LOSSES, Outcome, train
from minimask.training.progress import each
from minimask.weights.detector import load_detector

PICTURES = 4  # validation images in the comparison
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


def run(config: Config, output: str | Path, note: Callable[[str], None], device: str = "cpu") -> Finished:
    """Train, evaluate and draw; what an earlier demo left in `output` is replaced.

    Raises
    ------
    InputError
        If `output` cannot be written to, or training stops at a loss that is not finite.
    """
    began, output = time.monotonic(), Path(output)
    outcome = train(config, nuclei_sample("train"), output, overwrite=True, note=note, device=device)
    if outcome.stopped_by is not None:
        return Finished(outcome, None, time.monotonic() - began)
    loss_curves(read_losses(output / LOSSES), output / "losses.png")
    validation, most = nuclei_sample("val"), config.evaluate.max_detections
    model = load_detector(outcome.checkpoint, device, detections=most).model
    evaluation = evaluate(model, validation, most, lambda indices: each(indices, "evaluating"))
    evaluation.write(output)
    # Sorted by name, bright and dark images stand apart: evenly spaced ones show both kinds.
    shown = [validation[i * len(validation) // PICTURES] for i in range(PICTURES)]
    found = [confident(model.predict([sample.image])[0], SHOWN_ABOVE) for sample in shown]
    save_picture(output / "predictions.png", comparison(shown, found, validation.class_names))
    return Finished(outcome, evaluation, time.monotonic() - began)
