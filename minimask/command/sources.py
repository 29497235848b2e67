"""Where a command's data and configuration come from: flags, files, and the run that is resumed."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from minimask import config as configuration
from minimask.command.fitting import is_auto
from minimask.errors import InputError

BUILT_IN = ("nuclei", "shapes", "figures")


def train_config(arguments: argparse.Namespace, output: Path) -> configuration.Config:
    """The defaults, or the resumed run's configuration, overridden by --config, --set and the data's flags.

    Raises
    ------
    InputError
        Also if a file that is given would be overwritten by the run.
    """
    from minimask.files import check_inputs_are_kept
    from minimask.models.networks import checkpoint_config
    from minimask.training.loop import BEST, CHECKPOINT, CONFIG, LOG, LOSSES, check_resume
    from minimask.weights.checkpoint import CheckpointFile

    check_resume(output, arguments.resume)
    auto = is_auto(arguments.config)
    if auto and arguments.resume:
        raise InputError(
            "--config auto: a resumed run keeps the recipe it has; leave it out, or change options by --set"
        )
    config, path = configuration.Config(), output / CHECKPOINT
    if arguments.resume:
        with CheckpointFile(path) as file:
            config = checkpoint_config(file.head, str(path))
    if arguments.config and not auto:
        config = configuration.read_config(arguments.config, config)
    config = configuration.with_settings(config, arguments.set)
    # Absolute, so that the run can be resumed from another directory.
    given = {name: getattr(arguments, name) for name in ("train", "images", "val", "val_images")}
    paths = {k: v if v in BUILT_IN else str(Path(v).absolute()) for k, v in given.items() if v}
    strict = {"strict": True} if arguments.strict else {}
    weights = {name: getattr(arguments, name) for name in ("weights", "backbone_weights")}
    weights = {name: _absolute_weights(source) for name, source in weights.items() if source}
    data, train = replace(config.data, **paths, **strict), replace(config.train, **weights)
    config = replace(config, data=data, train=train)
    # A resumed run writes its configuration anew, as it was or as it was changed: that is no loss.
    read = [config.data.train, config.data.val, *([] if arguments.resume or auto else [arguments.config])]
    written = (CHECKPOINT, BEST, CONFIG, LOSSES, LOG, "curves.png")
    written += ("detections.json", "metrics.json", "report.html")
    check_inputs_are_kept(filter(None, read), [output / name for name in written])
    return config


def weights_or_default(arguments: argparse.Namespace, note: Callable[[str], None]) -> str:
    """The weights that --weights names, or the packaged ones, which are then announced by `note`."""
    from minimask.weights.published import DEFAULT

    if arguments.weights:
        return arguments.weights
    note(
        f"{DEFAULT}, as no --weights were given: they find cell nuclei in microscope images and nothing else"
    )
    return DEFAULT


def _absolute_weights(source: str) -> str:
    """A path as an absolute one; names and addresses as they are."""
    from minimask.weights.download import is_path

    return str(Path(source).absolute()) if is_path(source) else source


def training_data(
    arguments: argparse.Namespace, config: configuration.Config, note: Callable[[str], None]
) -> tuple[Any, Any]:
    """The data set to train on, and the one to evaluate on or None; `note` gets what the user should know.

    Raises
    ------
    InputError
        If one cannot be read, or their classes differ. If a path is not from the command line, the message
        says where it comes from.
    """
    from minimask.data import shared_files

    data, whence = config.data, "of the resumed run" if arguments.resume else "of the configuration"
    if not data.train:
        raise InputError("train: give --data FILE and --images DIR (or --data nuclei, shapes or figures)")

    def opened(name: str, images: str, split: str, flag: str) -> Any:
        source = getattr(data, name)
        try:
            dataset = open_dataset(source, images, split, data.strict)
        except InputError as error:
            if getattr(arguments, name):
                raise
            raise InputError(f"data.{name} {whence}: {error}. Or give another file with {flag}") from error
        for line in dataset.notes:
            note(line)
        return dataset

    dataset, validation = opened("train", data.images, "train", "--data"), None
    if data.val:
        validation = opened("val", data.val_images or data.images, "val", "--val")
        check_classes(validation, dataset.class_names, f"{dataset.name} has")
        check_keypoints(validation, getattr(dataset, "skeleton", None), f"{dataset.name} has")
        if line := shared_files(dataset, validation):
            note(line)
    return dataset, validation


def beyond_limits(config: configuration.Config, *datasets: Any) -> Iterator[str]:
    """A line for each data set (None is skipped) that has more objects in an image than can be found."""
    from minimask.results.evaluate import beyond_limit

    for dataset in datasets:
        if dataset is not None and (line := beyond_limit(dataset, config.model.detections)):
            yield line


def open_dataset(source: str, images: str | None, split: str, strict: bool) -> Any:
    """A COCO file with its images, or one of the built-in sets, whose `split` is then taken."""
    from minimask.data import Figures, Shapes, nuclei_sample, read_coco

    if source == "nuclei":
        return nuclei_sample(split)
    if source == "shapes":
        return Shapes(200, seed=0) if split == "train" else Shapes(50, seed=1)
    if source == "figures":
        # Pictures cost nothing, and a step learns more from pictures with more figures.
        return Figures(2000, seed=0, objects=(2, 6)) if split == "train" else Figures(100, seed=1)
    if images:
        return read_coco(source, images, strict=strict, allow_empty=split != "train")
    raise InputError(f"--images: missing; give the folder with the images of {source}")


def check_classes(dataset: Any, class_names: Sequence[str], whose: str) -> None:
    """Check that a data set has these classes; `whose` begins the message's second half: "A has"."""
    if list(dataset.class_names) != list(class_names):
        ours, theirs = ", ".join(dataset.class_names), ", ".join(class_names)
        raise InputError(
            f"{dataset.name}: has the classes {ours}, while {whose} {theirs}; they must be the same"
        )


def category_ids(detector: Any, dataset: Any, weights: str | Path) -> list[int] | None:
    """The ids that a data set has for a detector's labels, matched by class name.

    Returns
    -------
    list of int or None
        -1 for classes that the data set does not have; None if it was trained on just these, in this order.

    Raises
    ------
    InputError
        If the data set has a class that the detector does not know.
    """
    if detector.config is not None:
        return check_classes(dataset, detector.class_names, f"{weights} was trained on")
    ids = dict(zip(dataset.class_names, dataset.category_ids))
    unknown = [name for name in ids if name not in detector.class_names]
    if len(unknown) == len(ids) == len(detector.class_names) and detector.class_names[0] == "class 1":
        return None  # nothing is known of the weights' classes but their number, which is right
    if unknown:
        names = ", ".join(unknown[:5])
        raise InputError(
            f"{dataset.name}: has classes that {weights} does not know ({names}); give weights that do"
        )
    return [ids.get(name, -1) for name in detector.class_names]


def check_keypoints(dataset: Any, skeleton: Any, whose: str) -> None:
    """Check that a data set has the keypoints of a `skeleton`, if both have any; `whose` as above."""
    ours = getattr(dataset, "skeleton", None)
    if ours and skeleton and ours.names != skeleton.names:
        lists = [", ".join(names) for names in (ours.names, skeleton.names)]
        raise InputError(
            f"{dataset.name}: has the keypoints {lists[0]}, while {whose} {lists[1]}; they must be the same"
        )
