"""From a checkpoint to a model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minimask.config import Config
from minimask.data.skeleton import Skeleton
from minimask.errors import InputError
from minimask.models.networks import build_model, checkpoint_config
from minimask.weights.checkpoint import Checkpoint, CheckpointFile, check_fit, fit


@dataclass(frozen=True)
class Detector:
    """A trained model with the names of its classes.

    Attributes
    ----------
    model
        Set to predict.
    class_names : list of str
        Of labels 1, 2, ...
    category_ids : list of int
        Their COCO ids.
    config : Config
        What it was trained with.
    skeleton : Skeleton or None
        The names of its keypoints.
    """

    model: Any
    class_names: list[str]
    category_ids: list[int]
    config: Config
    skeleton: Skeleton | None = None


def load_detector(path: str | Path, device: str = "cpu", **changes: Any) -> Detector:
    """Build the model of a checkpoint and load its weights.

    Parameters
    ----------
    device : "cpu" or "cuda"
        Where the model will be; checkpoints name no device.
    **changes
        Fields of `ModelConfig` to change from what they were in training; None leaves a field as it was.

    Raises
    ------
    InputError
        If the file is missing, damaged, or of another model.
    """
    given = {name: value for name, value in changes.items() if value is not None}
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
    return Detector(model, checkpoint.class_names, checkpoint.category_ids, config, skeleton)


def _build(head: Checkpoint, config: Config, path: str | Path, device: str) -> Any:
    """The model of a checkpoint whose arrays are not read yet, if it is as large as they are."""
    classes = len(head.class_names) + 1
    if classes not in {len(array) for array in head.parameters.values() if array.ndim}:
        # Seen before a model of a million classes is built, of which the file has but the names.
        raise InputError(
            f"{path}: the weights are of another model: none has the {classes} rows of {classes - 1} classes "
            "and the background"
        )
    model = build_model(config, classes, device, len(head.keypoint_names))
    check_fit(head, path, model)
    return model
