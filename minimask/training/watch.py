"""What a run shows while it trains: validations, of which the best weights are kept, and its curves.

None of it affects the training: a run that is watched ends with the same weights as one that is not.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minimask.config import TrainConfig
from minimask.errors import InputError
from minimask.training.keeper import Keeper
from minimask.training.progress import Progress
from minimask.training.run_log import RunLog
from minimask.weights.checkpoint import CheckpointFile

GoOn = Callable[[int, int], bool]
"""Called with the number of images done and their total; returns False if validation is to be abandoned."""


@dataclass(frozen=True)
class Watch:
    """How a run is watched; whoever calls `train`, which can neither evaluate nor draw, provides both.

    Attributes
    ----------
    validate : callable (model, step, go_on) -> dict or None
        Evaluates a model. The dictionary is written to log.jsonl and has ``score``, the greater the better,
        and ``by``, its name. None if `go_on` returned False.
    draw : callable, optional
        Draws the curves from what the directory holds so far.
    command : str
        The command that started the run, for the log.
    enough : callable () -> bool, optional
        Asked after each step; once it is true, the run saves and stops, as for Ctrl-C.
    """

    validate: Callable[[Any, int, GoOn], dict[str, Any] | None] | None = None
    draw: Callable[[], None] | None = None
    command: str = ""
    enough: Callable[[], bool] | None = None


class Validations:
    """Validates after some steps, keeps the best weights, and knows when to stop waiting for better ones.

    A validation comes after its step's checkpoint, and its line in the log comes before best.npz. So after a
    kill at any moment, it is known what is missing, and that can be made up for from the checkpoint.

    Parameters
    ----------
    options : TrainConfig
    watch : Watch
    keeper : Keeper
        Holds the model; on process 0 it writes best.npz.
    log : RunLog
        With the steps so far.
    progress : Progress
    stopping : callable
        Whether the run is to stop.
    note : callable

    Attributes
    ----------
    best : dict or None
        The log's line for the best one; on process 0.
    lacking : bool
        Whether the last one due was abandoned because the run is to stop.
    """

    def __init__(
        self,
        options: TrainConfig,
        watch: Watch,
        keeper: Keeper,
        log: RunLog,
        progress: Progress,
        stopping: Callable[[], bool],
        note: Callable[[str], None],
    ):
        self.options, self.keeper, self.log, self.progress = options, keeper, log, progress
        self.validate = watch.validate if options.validate_every else None
        self.stopping, self.best, self.lacking = stopping, None, False
        asked = [name for name in ("validate_every", "patience") if getattr(options, name)]
        if asked and not self.validate:
            why = "train.validate_every is 0" if watch.validate else "there is no data.val to validate on"
            note(f"train.{asked[0]} does nothing: {why}")
        if self.validate and keeper.world.rank == 0:
            self._take_up(note)

    def _take_up(self, note: Callable[[str], None]) -> None:
        """Find the best validation so far, and check that best.npz belongs to it."""
        rows, kept, path = self.log.validations, self._kept(), self.keeper.best_path
        self.best = max(reversed(rows), key=_score, default=None)  # of equal scores, the latest
        if self.best is None:
            if kept is not None:
                note(f"{path} is of step {kept}, which is not in the log: the next validation replaces it")
        elif kept != self.best["step"]:
            if self.best["step"] == self.keeper.done:  # killed between writing the log's line and the file
                self.keeper.save_best()
                return
            note(
                f"{path} is not of step {self.best['step']}, after which validation was best; the best from "
                f"{'here' if kept is None else f'step {kept}'} on is kept instead"
            )
            self.best = next((row for row in rows if row["step"] == kept), None)

    def _kept(self) -> int | None:
        """The step of the weights in best.npz; None if there is no such file that can be read."""
        if not self.keeper.best_path.exists():
            return None
        try:
            with CheckpointFile(self.keeper.best_path) as file:
                return file.head.step
        except InputError:
            return None

    def are_due(self, step: int) -> bool:
        """Whether a validation belongs after this step."""
        options = self.options
        if not self.validate or step == 0:
            return False
        return step % options.validate_every == 0 or step == options.steps

    def after(self, step: int) -> bool:
        """Validate if that is due and not done yet; returns, on every process, whether training ends here."""
        if not self.are_due(step):
            return False
        ended = lacking = False
        if self.keeper.world.rank == 0:
            if self._is_lacking(step):
                self._run(step)
            ended, lacking = self._exhausted(), self._is_lacking(step)
        word = self.keeper.world.told(int(ended) + 2 * int(lacking))
        self.lacking = bool(word & 2)
        return bool(word & 1)

    def _is_lacking(self, step: int) -> bool:
        return all(row["step"] != step for row in self.log.validations)

    def _exhausted(self) -> bool:
        if not self.options.patience or self.best is None:
            return False
        since = sum(row["step"] > self.best["step"] for row in self.log.validations)
        return since >= self.options.patience

    def _run(self, step: int) -> None:
        began, model = time.monotonic(), self.keeper.model
        model.eval()
        try:
            found = self.validate(model, step, self._go_on)
        except InputError as error:
            raise InputError(f"in the validation after step {step}: {error}") from error
        finally:
            model.train()
        seconds = time.monotonic() - began
        self.progress.pause(seconds)
        if found is None:
            return
        self.log.write(step, {"validation": found | {"seconds": round(seconds, 3)}})
        self.log.sync()
        before, how = self.best, "the first"
        if before and found["score"] < _score(before):
            how = f"the best was {_score(before):.3f}, after step {before['step']}"
        else:
            how = "the best so far" if before else how
            self.best = self.log.validations[-1]
            self.keeper.save_best()
        self.progress.say(f"validation after step {step}: {found['by']} {found['score']:.3f}, {how}")

    def _go_on(self, done: int, total: int) -> bool:
        self.progress.show(f"validating {done}/{total}")
        return not self.stopping()


def _score(row: dict[str, Any]) -> float:
    return row["validation"]["score"]


class Rarely:
    """Calls something, but only so often that it takes less than a hundredth of the time.

    Parameters
    ----------
    call : callable, or None
    expected : float
        Seconds that the first call will take.
    """

    SHARE = 0.01

    def __init__(self, call: Callable[[], None] | None, expected: float = 1.0):
        self.call, self.cost, self.last = call, expected, time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if self.call and now - self.last >= self.cost / self.SHARE:
            self.call()
            self.last = time.monotonic()
            self.cost = self.last - now
