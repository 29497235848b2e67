"""From a checkpoint to a model."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minimask.config import Config
from minimask.data.coco_names import PERSON
from minimask.data.skeleton import Skeleton
from minimask.errors import InputError, one_line
from minimask.models.networks import build_model, checkpoint_config
from minimask.models.pretrained import from_checkpoint
from minimask.weights.checkpoint import Checkpoint, CheckpointFile, check_fit, fit
from minimask.weights.download import local_weights


@dataclass(frozen=True)
class Detector:
    """A trained model with the names of its classes.

    Attributes
    ----------
    model
        In inference mode.
    class_names : list of str
        For labels 1, 2, ...
    category_ids : list of int
        Their COCO ids.
    config : Config or None
        What it was trained with, if that is known.
    skeleton : Skeleton or None
        The names of its keypoints and the lines between them.
    object_sides : list of float
        See `Checkpoint`; empty where they are not known.
    """

    model: Any
    class_names: list[str]
    category_ids: list[int]
    config: Config | None = None
    skeleton: Skeleton | None = None
    object_sides: list[float] = field(default_factory=list)

    @property
    def detections(self) -> int:
        """The largest number of objects that it reports in an image."""
        return self.model.box_head.options.detections_per_img


def load_detector(
    path: str | Path, device: str = "cpu", note: Callable[[str], None] = lambda line: None, **changes: Any
) -> Detector:
    """Build the model that these weights belong to, and load them.

    Parameters
    ----------
    path : str or Path
        A checkpoint that a run wrote; or a file, name or address that `from_checkpoint` takes.
    device : "cpu" or "cuda"
        Where the model will be; checkpoints name no device.
    note : callable
        Is told what was found out about weights from elsewhere, and their licence.
    **changes
        `detections` and `score_threshold`; besides, for a run's checkpoint, any field of `ModelConfig` that
        should differ from training, and for other weights the builders' arguments. None changes nothing.

    Raises
    ------
    InputError
        If the file is missing, damaged, or of another model.
    TypeError
        If there is no such field or argument.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    path = local_weights(path, note)
    if path.suffix != ".npz":
        return _from_elsewhere(path, device, note, given)
    with CheckpointFile(path) as file:
        checkpoint = file.head
        config = checkpoint_config(checkpoint, str(path))
        config = replace(config, model=replace(config.model, **given))
        model = _build(checkpoint, config, path, device)
        checkpoint = file.read()  # not before its shapes are known to be the model's
    fit(checkpoint, path, model)
    model.eval()
    names, edges = checkpoint.keypoint_names, checkpoint.skeleton
    skeleton = Skeleton(tuple(names), tuple((a, b) for a, b in edges)) if names else None
    of_classes = checkpoint.class_names, checkpoint.category_ids
    return Detector(model, *of_classes, config, skeleton, checkpoint.object_sides)


_LIMITS = {"detections": "box_detections_per_img", "score_threshold": "box_score_thresh"}


def _from_elsewhere(path: Path, device: str, note: Callable[[str], None], given: dict[str, Any]) -> Detector:
    model = from_checkpoint(path, **{_LIMITS.get(name, name): value for name, value in given.items()})
    origin = model.origin
    note(one_line(f"{path.name}: {origin.note}"))
    names, ids = origin.class_names, origin.category_ids
    if names is None:
        ids = list(range(1, origin.num_classes))
        names = [f"class {label}" for label in ids]
    skeleton = None
    if origin.num_keypoints:
        numbered = Skeleton(tuple(f"keypoint {k + 1}" for k in range(origin.num_keypoints)))
        skeleton = PERSON if origin.num_keypoints == len(PERSON.names) else numbered
    return Detector(model.to(device).eval(), names, ids, None, skeleton)


def _build(head: Checkpoint, config: Config, path: str | Path, device: str) -> Any:
    """The model of a checkpoint whose arrays are not read yet, if it is as large as they are."""
    classes = len(head.class_names) + 1
    if classes not in {len(array) for array in head.parameters.values() if array.ndim}:
        # Checked first: a file may name a million classes without their weights, and building that is costly.
        raise InputError(
            f"{path}: the weights are of another model: none has the {classes} rows of {classes - 1} classes "
            "and the background"
        )
    model = build_model(config, classes, device, len(head.keypoint_names))
    check_fit(head, path, model)
    return model
