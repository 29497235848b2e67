"""What a training run keeps on the disk to go on from: its checkpoint, saved and restored."""

import hashlib
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from minimask import backend
from minimask.config import Config, differences, from_dict, to_dict
from minimask.errors import InputError, memory_story, one_line
from minimask.models.networks import checkpoint_config, has_keypoints
from minimask.training.distributed import World
from minimask.training.object_sides import object_sides
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

_NEEDS_LESS = "take a smaller train.batch_size, data.crop or model.max_size, which need less"
_TAMER = "try a smaller train.learning_rate or train.clip_norm, or look at the images"
_MEND = "mend that"
_DATA = {  # what a checkpoint records about the data, and what is said if that has changed
    "images": "the training images are others",
    "annotations": "the annotations are others",
    "files": "the image files have changed",
}


class NotFinite(ArithmeticError):
    """A loss or a gradient is NaN or infinite; the weights are those before the step."""


class TrainingStopped(InputError):
    """Its message, one line, says at which step training stopped and why, what is saved, and how to go on."""


class Keeper:
    """Saves and restores what a run needs to go on, and knows the last step done and the last one saved.

    A state is good, and only then saved, if its weights are finite and give a finite loss.

    Parameters
    ----------
    path : Path
        The checkpoint.
    config, dataset, model, optimizer
        The run's.
    world : World
        Process 0 writes; the others only keep count.
    """

    def __init__(self, path: Path, config: Config, dataset: Any, model: Any, optimizer: SGD, world: World):
        # Refuse, before anything is computed, what would make the checkpoint unreadable.
        from_dict(to_dict(config), "the configuration")
        check_classes(dataset.class_names, dataset.category_ids, dataset.name)
        self.path, self.config, self.dataset, self.world = path, config, dataset, world
        self.model, self.optimizer, self.done, self.saved = model, optimizer, 0, 0
        self.before: Config | None = None  # what a resumed run was trained with before
        self._gives_finite_loss: Callable[[], bool] = lambda: True
        images = "\n".join(dataset.describe(i) for i in range(len(dataset)))
        names = hashlib.sha256(images.encode("utf-8", "surrogatepass"))
        self.data = {"name": dataset.name, "images": names.hexdigest()}
        if hasattr(dataset, "digests"):
            self.data |= dataset.digests()
        self.object_sides = object_sides(dataset, model.transform, config.data.crop)

    def advance(self, step: int, gives_finite_loss: Callable[[], bool]) -> None:
        """Record that a step is done, and how to find out whether its weights give a finite loss."""
        self.done, self._gives_finite_loss = step, gives_finite_loss

    def save(self) -> None:
        """Write the checkpoint of the steps done.

        Raises
        ------
        InputError
            If the state is not good, or the file cannot be written; the previous checkpoint stays.
        """
        if not all_finite(self.model.state_dict().values()):
            raise TrainingStopped(self.failure(self.done, "a weight is not finite after the update"))
        if not self._gives_finite_loss():
            raise TrainingStopped(self.failure(self.done, "after the update the loss is not finite"))
        if self.world.rank == 0:
            save_checkpoint(self.path, self._checkpoint())
        self.saved = self.done

    @property
    def best_path(self) -> Path:
        """The file beside the checkpoint that holds the weights that did best in validation."""
        return self.path.with_name("best.npz")

    def save_best(self) -> None:
        """Write the current weights as the best ones: to be used, not to resume from."""
        save_checkpoint(self.best_path, replace(self._checkpoint(), momentum={}))

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            parameters=self.model.state_dict(),
            momentum=self.optimizer.state_dict(),
            step=self.done,
            seed=self.config.train.seed,
            config=to_dict(self.config),
            class_names=list(self.dataset.class_names),
            category_ids=list(self.dataset.category_ids),
            data=self.data,
            environment=self._environment(),
            object_sides=self.object_sides,
            **self._skeleton(),
        )

    def _skeleton(self) -> dict[str, list]:
        """The checkpoint's fields about the data's keypoints, if the network finds keypoints."""
        skeleton = getattr(self.dataset, "skeleton", None)
        if skeleton is None or not has_keypoints(self.config):
            return {}
        return {"keypoint_names": list(skeleton.names), "skeleton": [list(edge) for edge in skeleton.edges]}

    def restore(self, note: Callable[[str], None]) -> None:
        """Load the checkpoint, and report whatever makes this a different run from the one that wrote it.

        Raises
        ------
        InputError
            If it is damaged, has other classes or another model, or more steps than are configured.
        """
        with CheckpointFile(self.path) as file:
            self._check_head(file.head)
            checkpoint = file.read()
        fit(checkpoint, self.path, self.model, self.optimizer)
        self.done = self.saved = checkpoint.step
        self.before = checkpoint_config(checkpoint, str(self.path))
        if self.saved > self.config.train.steps:
            raise InputError(
                f"{self.path}: has done {self.saved} steps, more than train.steps, {self.config.train.steps}"
            )
        changes = differences(self.before, self.config)
        changes += [what for key, what in _DATA.items() if self._has_changed(checkpoint.data, key)]
        if changes:
            note(f"from here on this is a different run from the one begun: {'; '.join(changes)}")
        environment = environment_changes(checkpoint.environment, self._environment())
        if environment:
            note(f"the last bits of the results may differ from an unbroken run's: {'; '.join(environment)}")

    def _check_head(self, head: Checkpoint) -> None:
        """Check that it has the same classes and is of this model, before its arrays are read."""
        if head.class_names != list(self.dataset.class_names):
            theirs, ours = (
                one_line(", ".join(names), 300) for names in (head.class_names, self.dataset.class_names)
            )
            raise InputError(
                f"{self.path}: was trained on the classes {theirs}; {self.dataset.name} has {ours}"
            )
        names = self._skeleton().get("keypoint_names", [])
        if head.keypoint_names != names:
            theirs, ours = (one_line(", ".join(n), 300) for n in (head.keypoint_names, names))
            raise InputError(
                f"{self.path}: was trained on the keypoints {theirs}; {self.dataset.name} has {ours}"
            )
        if "images" not in head.data:
            raise InputError(
                f"{self.path}: its metadata has no data.images, which identifies the training images; "
                "predict and evaluate can use it, but it cannot be resumed"
            )
        check_fit(head, self.path, self.model)
        if self.optimizer.velocity and not head.momentum:
            raise InputError(
                f"{self.path}: holds weights without momentum, as best.npz does, and cannot be resumed; "
                "begin another run with --weights"
            )

    def _has_changed(self, then: dict[str, str], key: str) -> bool:
        """Whether the data have changed since; False where that was not recorded, or cannot be known."""
        return key in then and key in self.data and then[key] != self.data[key]

    def _environment(self) -> dict[str, str]:
        facts = backend.describe() | {"processes": str(self.world.size)}
        return facts | {"device": "cpu" if self.model.device == "cpu" else facts["gpu"]}

    @contextmanager
    def explaining(self, images: Callable[[], str]) -> Iterator[None]:
        """Wraps a step: what stops it becomes one line that says which step it was, and what is saved.

        Parameters
        ----------
        images : callable
            Gives the names of the step's images; called only after an error.
        """
        try:
            yield
        except NotFinite as error:  # perhaps because of the last update, so this state is not saved
            what = f"{error} (images: {images()})"
            raise TrainingStopped(self.failure(self.done + 1, what)) from error
        except InputError as error:  # it names an image or a target by its number in the batch
            raise InputError(f"{error} (images: {images()})") from error
        except MemoryError as error:
            self._rescue()
            what = memory_story(error)
            raise TrainingStopped(self.failure(self.done + 1, what, _NEEDS_LESS)) from error

    @contextmanager
    def rescuing(self) -> Iterator[None]:
        """Wraps all steps: after an error, the last good state is saved if possible, and the error says so.

        Not if memory ran out outside of a step, nor after a second Ctrl-C, which ends the run at once.
        """
        try:
            yield
        except TrainingStopped:
            raise
        except (InputError, OSError) as error:
            self._rescue()
            raise TrainingStopped(self.failure(self.done + 1, str(error), _MEND)) from error
        except MemoryError as error:  # in loading images, or in trying the loss before a save
            raise TrainingStopped(self.failure(self.done + 1, memory_story(error), _NEEDS_LESS)) from error
        except Exception:
            self._rescue()
            raise

    def _rescue(self) -> None:
        """Save the steps done if that is possible; `failure` says what is saved."""
        if self.done > self.saved:
            with suppress(InputError, MemoryError):
                self.save()

    def failure(self, step: int, what: str, mend: str = _TAMER) -> str:
        """The line that ends a run: where it stopped, why, what is saved, and how to go on."""
        return (
            f"training stopped at step {step}: {what}. {self.path} holds the last good state, of step "
            f"{self.saved}; {mend}, then go on with: {resume_command(self.path.parent)}"
        )


def resume_command(output: Path) -> str:
    """What to type to resume the run in a directory."""
    return f"minimask train --resume --output {shlex.quote(str(output))}"
