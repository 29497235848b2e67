"""What a training run keeps on the disk to go on from: its checkpoint, saved and restored."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minimask import backend
from minimask.config import Config, differences, from_dict, to_dict
from minimask.errors import InputError, memory_story, one_line
from minimask.training.optim import SGD
from minimask.weights.checkpoint import (
    Checkpoint,
    CheckpointFile,
    all_finite,
    check_fit,
    environment_changes,
    fit,
    save_checkpoint,
)
from minimask.weights.schema import check_classes

_NEEDS_LESS = "a smaller train.batch_size, data.crop or model.max_size needs less"
_TAMER = "try a smaller train.learning_rate or train.clip_norm, or look at the images"


class NotFinite(ArithmeticError):
    """A loss or a gradient is NaN or infinite; the weights are those before the step."""


class Keeper:
    """Saves and restores what a run needs to go on, and knows the last step that was saved.

    Parameters
    ----------
    path : Path
        The checkpoint.
    config, dataset, model, optimizer
        The run's.
    writes : bool
        False: only keep count, while another process writes.
    """

    def __init__(
        self, path: Path, config: Config, dataset: Any, model: Any, optimizer: SGD, writes: bool = True
    ):
        # What a checkpoint could not be read back with is refused before anything is computed.
        from_dict(to_dict(config), "the configuration")
        check_classes(dataset.class_names, dataset.category_ids, dataset.name)
        self.path, self.config, self.dataset, self.writes = path, config, dataset, writes
        self.model, self.optimizer, self.saved = model, optimizer, 0
        images = "\n".join(dataset.describe(i) for i in range(len(dataset)))
        self.data = {"name": dataset.name, "images": hashlib.sha256(images.encode()).hexdigest()}

    def save(self, step: int) -> None:
        """Write the checkpoint of so many steps done.

        Raises
        ------
        InputError
            If a weight is not finite, or the file cannot be written; the one before stays.
        """
        if not all_finite(self.model.state_dict().values()):
            raise InputError(self.failure(step, "a weight is not finite after the update"))
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
        """Load the checkpoint, and tell of whatever makes this another run than the one that wrote it.

        Raises
        ------
        InputError
            If it is damaged, of other classes or another model, or has done more steps than are configured.
        """
        with CheckpointFile(self.path) as file:
            self._check_head(file.head)
            checkpoint = file.read()
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

    def _check_head(self, head: Checkpoint) -> None:
        """See that it is of the same classes and of this model, before its arrays are read."""
        if head.class_names != list(self.dataset.class_names):
            theirs, ours = (
                one_line(", ".join(names), 300) for names in (head.class_names, self.dataset.class_names)
            )
            raise InputError(
                f"{self.path}: was trained on the classes {theirs}; {self.dataset.name} has {ours}"
            )
        if "images" not in head.data:
            raise InputError(
                f"{self.path}: its metadata has no data.images, which tells the training images from others; "
                "predict and evaluate can use it, but it cannot be resumed"
            )
        check_fit(head, self.path, self.model)

    def _environment(self) -> dict[str, str]:
        facts = backend.describe()
        return facts | {"device": "cpu" if self.model.device == "cpu" else facts["gpu"]}

    @contextmanager
    def explaining(self, step: int, images: Callable[[], str]) -> Iterator[None]:
        """Around a step: what stops it becomes one line that says which step, and what is saved.

        Parameters
        ----------
        step : int
            Counted from 1.
        images : callable
            Gives the names of the step's images, which are needed only then.
        """
        try:
            yield
        except NotFinite as error:
            raise InputError(self.failure(step, f"{error} (images: {images()})")) from error
        except MemoryError as error:
            raise InputError(self.failure(step, memory_story(error), _NEEDS_LESS)) from error

    def failure(self, step: int, what: str, mend: str = _TAMER) -> str:
        """The line that ends a run: where it stopped, why, what is saved, and what may help."""
        return (
            f"training stopped at step {step}: {what}. {self.path} holds the last good state, of step "
            f"{self.saved}; {mend}"
        )
