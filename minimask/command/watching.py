"""How ``minimask train`` watches a run: validation with a sheet of predictions, and curves."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from minimask.command.telling import drawing
from minimask.config import Config
from minimask.results.evaluate import Evaluation, evaluate
from minimask.results.validation import Part, save_sheet, sheet, spread
from minimask.results.visualize import loss_curves
from minimask.training.log import read_losses
from minimask.training.loop import LOG, LOSSES
from minimask.training.run_log import read_run_log
from minimask.training.watch import GoOn, Watch

CURVES, SHEETS = "curves.png", "validation"


class _Left(Exception):
    """The run is to stop in the middle of a validation."""


class Validator:
    """Evaluates a model in training and draws what it finds; `Watch` says how it is called.

    Attributes
    ----------
    best : (int, Evaluation) or None
        The step with the best score so far, and its evaluation; None also if only some images are evaluated.
    """

    def __init__(self, config: Config, dataset: Any, output: Path, note: Callable[[str], None]):
        indices = spread(len(dataset), config.train.validation_images)
        self.all = len(indices) == len(dataset)
        self.dataset = dataset if self.all else Part(dataset, indices)
        self.output, self.note = output, note
        self.best: tuple[int, Evaluation] | None = None

    def __call__(self, model: Any, step: int, go_on: GoOn) -> dict[str, Any] | None:
        try:
            evaluation = evaluate(model, self.dataset, progress=partial(_until, go_on))
        except _Left:
            return None
        by, score = ranked(evaluation)
        picture = self.output / SHEETS / f"step-{step:06}.png"
        with drawing(picture, self.note):
            title = f"after step {step}: {by} {score:.3f}; ground truth on the left, predictions on the right"
            document = self.dataset.coco_document()
            save_sheet(picture.parent, step, sheet(self.dataset, document, evaluation.detections, title))
        if self.all and (self.best is None or score >= ranked(self.best[1])[1]):
            self.best = step, evaluation
        counts = {name: getattr(evaluation, name) for name in ("images", "objects", "max_detections")}
        return {"by": by, "score": score, **counts, **evaluation.kinds}


def _until(go_on: GoOn, indices: Sequence[int]) -> Iterator[int]:
    for done, index in enumerate(indices):
        if not go_on(done, len(indices)):
            raise _Left
        yield index


def ranked(evaluation: Evaluation) -> tuple[str, float]:
    """The number by which evaluations are compared, and its name: AP of masks, of keypoints, or of boxes."""
    kind = next(kind for kind in ("mask", "keypoint", "box") if kind in evaluation.kinds)
    return f"{kind} AP", evaluation.kinds[kind]["AP"]


def draw_curves(output: Path) -> Path:
    """Draw the curves of what a run's directory holds."""
    picture, log = output / CURVES, output / LOG
    rows = read_run_log(log) if log.exists() else []
    loss_curves(read_losses(output / LOSSES), picture, [row for row in rows if "validation" in row])
    return picture


def watching(
    config: Config, validation: Any, output: Path, command: str, note: Callable[[str], None]
) -> Watch:
    """A `Watch` of a run; its `validate` is a `Validator`, or None without data to validate on."""

    def draw() -> None:
        with drawing(output / CURVES, lambda line: None):  # the last drawing says why
            draw_curves(output)

    validate = Validator(config, validation, output, note) if validation is not None else None
    return Watch(validate, draw, command)
