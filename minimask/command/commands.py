"""What each subcommand of ``minimask`` does with its arguments; each function returns the exit status.

The docstrings are the text of ``--help``. Heavy imports stand inside the functions, so that ``--help`` and a
wrong argument are answered at once.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from minimask import config as configuration
from minimask.errors import InputError

BUILT_IN = ("nuclei", "shapes")
SHOWN_ABOVE = 0.5


def demo(arguments: argparse.Namespace) -> int:
    """Train a small Mask R-CNN from random weights on 32 packaged images of cell nuclei, evaluate it on 10
    others, and write pictures, loss curves, the checkpoint and COCO results. What an earlier demo left in
    the output directory is replaced.
    """
    from minimask.command.demo import configuration as demo_configuration
    from minimask.command.demo import run
    from minimask.files import check_output_directory

    output = check_output_directory(arguments.output)
    config = demo_configuration(arguments.quick, arguments.seed)
    print(
        f"Training {config.model.name} from random weights on the packaged cell nuclei, {config.train.steps} "
        f"steps of {config.train.batch_size} images, on the {'CPU' if arguments.device == 'cpu' else 'GPU'}."
    )
    finished = run(config, output, _note, arguments.device)
    if finished.evaluation is None:
        return _stopped(finished.outcome, config, output)
    evaluation = finished.evaluation
    print(
        f"\n{evaluation.images} validation images with {evaluation.objects} nuclei:\n\n{evaluation.table()}\n"
    )
    print(f"box AP {evaluation.box['AP']:.3f}, mask AP {evaluation.mask['AP']:.3f}", end="")
    print(f" (AP50 {evaluation.mask['AP50']:.3f}), after {finished.seconds:.0f} seconds. Look at")
    for name, what in {
        "predictions.png": "ground truth beside predictions, on validation images",
        "losses.png": "how the losses fell",
        "checkpoint.npz": "the weights: minimask predict --weights ... IMAGE --output DIR",
        "detections.json": "the detections in COCO's results format",
    }.items():
        print(f"  {output / name!s:<32} {what}")
    return 0


def train(arguments: argparse.Namespace) -> int:
    """Train on images annotated in COCO's instance format. The output directory gets checkpoint.npz,
    config.toml, losses.csv, losses.png and, with --val, metrics.json and detections.json. Ctrl-C and
    SIGTERM finish the step, save, and say how to resume; a resumed run equals an unbroken one to the last
    bit, on the same machine with as many threads. Started by mpiexec -n N, N processes share each batch,
    on GPUs one a GPU (extra mpi).
    """
    from minimask.data import CocoDataset, shared_files
    from minimask.files import check_output_directory
    from minimask.results.visualize import loss_curves
    from minimask.training.distributed import world
    from minimask.training.log import read_losses
    from minimask.training.loop import LOSSES
    from minimask.training.loop import train as run

    output = check_output_directory(arguments.output)
    config = _train_config(arguments, output)
    data = config.data
    if not data.train:
        raise InputError("train: give --data FILE and --images DIR (or --data nuclei, --data shapes)")
    dataset = _open_dataset(data.train, data.images, "train", data.strict)
    validation = None
    if data.val:
        validation = _open_dataset(data.val, data.val_images or data.images, "val", data.strict)
        _same_classes(validation, dataset.class_names, f"{dataset.name} has")
        if isinstance(dataset, CocoDataset) and isinstance(validation, CocoDataset):
            shared = shared_files(dataset, validation)
            if shared:
                _note(shared)
    outcome = run(config, dataset, output, arguments.resume, note=_note, device=arguments.device)
    if outcome.stopped_by is not None:
        return _stopped(outcome, config, output)
    if world().rank:
        return 0  # process 0 draws and evaluates
    loss_curves(read_losses(output / LOSSES), output / "losses.png")
    print(f"{outcome.step} steps done: {outcome.checkpoint}, {output / 'losses.png'}")
    if validation is not None:
        most = config.evaluate.max_detections
        _evaluate_checkpoint(outcome.checkpoint, validation, most, output, arguments.device)
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Predict every image of a COCO instance file at its own size, and compare by pycocotools. The output
    directory gets detections.json (COCO results) and metrics.json.
    """
    from minimask.files import check_output_directory

    output = check_output_directory(arguments.output)
    dataset = _open_dataset(arguments.data, arguments.images, "val", arguments.strict)
    _evaluate_checkpoint(arguments.weights, dataset, arguments.max_detections, output, arguments.device)
    return 0


def predict(arguments: argparse.Namespace) -> int:
    """Write NAME-instances.png for each image: masks, boxes, class names and scores."""
    from minimask.files import check_output_directory
    from minimask.results.predict import check_images, predict_files
    from minimask.training.progress import each
    from minimask.weights.detector import load_detector

    output = check_output_directory(arguments.output)
    # Before the weights: a wrong name should not wait for them.
    for line in check_images(arguments.images, arguments.json or arguments.label_maps):
        _note(line)
    options = {"detections": arguments.max_detections, "score_threshold": arguments.score_threshold}
    detector = load_detector(arguments.weights, arguments.device, **options)
    also = arguments.json, arguments.label_maps
    progress = lambda paths: each(paths, "predicting")  # noqa: E731
    counts = predict_files(detector, arguments.images, output, *also, progress, _note)
    for path, count in zip(arguments.images, counts):
        print(f"{path}: {count} objects, {output / Path(path).stem}-instances.png")
    return 0


def gradcheck(arguments: argparse.Namespace) -> int:
    """Compare the backward pass of every Function (or of those named) with central differences in float64;
    print its cases, its worst relative error and where that is. The exit status is 1 if any fails.
    """
    from minimask.lessons.gradient_cases import run_table

    return 0 if run_table(arguments.names, out=print) else 1


def misalign(arguments: argparse.Namespace) -> int:
    """Measure RoIPool, RoIWarp and RoIAlign without training: the worst displacement of a bin's edge beside
    its derived bound, for strides 4, 8, 16 and 32; and, on a ramp and on an image, outputs and gradients of
    boxes moved over a stride, against the exact integral over each bin. Prints tables; writes misalign.json
    and figures for slides (SVG and PNG, described inside).
    """
    from minimask.files import check_output_directory, make_output_directory, write_json
    from minimask.lessons.misalign import IMAGE, image_map, measure, table
    from minimask.lessons.misalign_figures import draw

    output, image = check_output_directory(arguments.output), Path(arguments.image or IMAGE)
    x = image_map(image, arguments.stride)
    found = measure(x, arguments.stride, arguments.bins, arguments.boxes, arguments.seed, image.name)
    print(table(found))
    found["figures"] = draw(found, x, make_output_directory(output))
    write_json(output / "misalign.json", found, indent=1)
    print(f"\n{output / 'misalign.json'}; figures: {output / 'misalign-*.svg'} and .png")
    return 0


def info(arguments: argparse.Namespace) -> int:
    """Print versions, BLAS and its threads, the processor, and the GPU or why none is used: what a report
    of a problem should begin with.
    """
    from minimask.backend.machine import report

    print(report())
    return 0


def _train_config(arguments: argparse.Namespace, output: Path) -> configuration.Config:
    """The defaults, or the resumed run's configuration; under --config, --set and the data's flags."""
    from minimask.training.loop import CHECKPOINT, check_resume
    from minimask.weights.checkpoint import load_checkpoint

    check_resume(output, arguments.resume)
    config, path = configuration.Config(), output / CHECKPOINT
    if arguments.resume:
        config = configuration.from_dict(load_checkpoint(path).config, str(path))
    if arguments.config:
        config = configuration.read_config(arguments.config, config)
    config = configuration.with_settings(config, arguments.set)
    # Absolute, so that the run can be resumed from another directory.
    given = {name: getattr(arguments, name) for name in ("train", "images", "val", "val_images")}
    paths = {k: v if v in BUILT_IN else str(Path(v).absolute()) for k, v in given.items() if v}
    strict = {"strict": True} if arguments.strict else {}
    return replace(config, data=replace(config.data, **paths, **strict))


def _open_dataset(source: str, images: str | None, split: str, strict: bool) -> Any:
    """A COCO file with its images, or one of the built-in sets, whose `split` is then taken."""
    from minimask.data import Shapes, nuclei_sample, read_coco

    if source == "nuclei":
        dataset = nuclei_sample(split)
    elif source == "shapes":
        dataset = Shapes(200, seed=0) if split == "train" else Shapes(50, seed=1)
    elif images:
        dataset = read_coco(source, images, strict=strict, allow_empty=split != "train")
    else:
        raise InputError(f"--images: missing; give the folder with the images of {source}")
    for line in dataset.notes:
        _note(line)
    return dataset


def _same_classes(dataset: Any, class_names: Sequence[str], whose: str) -> None:
    if list(dataset.class_names) != list(class_names):
        ours, theirs = ", ".join(dataset.class_names), ", ".join(class_names)
        raise InputError(
            f"{dataset.name}: has the classes {ours}, while {whose} {theirs}; they must be the same"
        )


def _evaluate_checkpoint(weights: str | Path, dataset: Any, most: int, output: Path, device: str) -> None:
    from minimask.files import make_output_directory
    from minimask.results.evaluate import evaluate as run
    from minimask.training.progress import each
    from minimask.weights.detector import load_detector

    detector = load_detector(weights, device, detections=most)
    _same_classes(dataset, detector.class_names, f"{weights} was trained on")
    evaluation = run(detector.model, dataset, most, lambda indices: each(indices, "evaluating"))
    evaluation.write(make_output_directory(output))
    images, objects = evaluation.images, evaluation.objects
    print(f"{images} images, {objects} objects, {most} detections an image:\n")
    print(f"{evaluation.table()}\n\n{output / 'detections.json'}, {output / 'metrics.json'}")


def _stopped(outcome: Any, config: configuration.Config, output: Path) -> int:
    from minimask.training.keeper import resume_command

    done = f"stopped after step {outcome.step} of {config.train.steps}, saved"
    print(f"minimask: {done}; go on with: {resume_command(output)}", file=sys.stderr)
    return 128 + outcome.stopped_by


def _note(text: str) -> None:
    print(f"minimask: note: {text}", file=sys.stderr)
