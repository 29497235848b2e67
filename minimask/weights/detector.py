"""From a checkpoint to a model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minimask.config import Config
from minimask.weights.checkpoint import fit, load_checkpoint
from minimask.weights.networks import build_model, checkpoint_config


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
    """

    model: Any
    class_names: list[str]
    category_ids: list[int]
    config: Config


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
    checkpoint = load_checkpoint(path)
    config = checkpoint_config(checkpoint, str(path))
    given = {name: value for name, value in changes.items() if value is not None}
    config = replace(config, model=replace(config.model, **given))
    model = build_model(config, len(checkpoint.class_names) + 1, device)
    fit(checkpoint, path, model)
    model.eval()
    return Detector(model, checkpoint.class_names, checkpoint.category_ids, config)
