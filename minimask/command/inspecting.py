"""What `minimask inspect` does."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from minimask.command import sources
from minimask.command.telling import note, tell
from minimask.errors import InputError

SHOWN_ABOVE = 0.5


def inspect(arguments: argparse.Namespace) -> int:
    """Show what each stage of a model makes of one image, on one page of HTML that loads nothing: anchors,
    proposals, RoIs, sampling points, masks, activations, weights. With --annotations also what a training
    step makes of it, the gradient of each loss, and why each missed object was missed.
    """
    from minimask.files import check_inputs_are_kept
    from minimask.inspection.page import write_page
    from minimask.inspection.source import index_of, read_source
    from minimask.inspection.tracing import trace
    from minimask.models.detector import load_detector
    from minimask.results.predict import check_images
    from minimask.training.progress import each

    image, output = Path(arguments.image), _page_file(arguments.output)
    given = [image, *filter(None, (arguments.annotations, arguments.weights))]
    check_inputs_are_kept(given, [output])
    for line in check_images([image], output.parent):  # before the weights: a wrong name should not wait
        note(line)
    dataset = _annotations(arguments.annotations)
    if dataset is not None:
        index_of(dataset, image)
    weights = sources.weights_or_default(arguments, note)
    detector = load_detector(weights, arguments.device, note)
    labels = _labels(dataset, detector, weights)
    source = read_source(detector.model, image, dataset, labels)
    if source.image.shape[1:] != source.size:
        sizes = [f"{width} x {height}" for height, width in (source.size, source.image.shape[1:])]
        note(f"{image}: has {sizes[0]} pixels, and is inspected at {sizes[1]}, as large as the model sees it")
    found = trace(detector.model, source.image, source.target, None, detector.class_names, SHOWN_ABOVE)
    varied = None
    if detector.config is not None and source.target is not None:
        from minimask.training.loop import augmentation

        varied = augmentation(detector.config.data)
    facts = _facts(arguments, weights, source, found)
    title, progress = f"Inside a model: {image.name}", partial(each, title="drawing", unit="figures")
    figures = write_page(output, found, title, facts, varied, SHOWN_ABOVE, progress)
    count = len(found.result["labels"])
    tell(f"{output}: {figures} figures, {count} detection{'s' * (count != 1)}; open it in a browser")
    return 0


def _page_file(name: str) -> Path:
    from minimask.files import check_output_directory

    path = Path(name)
    if path.is_dir():
        raise InputError(f"--output {path}: is a directory; name the HTML file to be written")
    check_output_directory(path.parent)
    if not path.parent.is_dir():
        raise InputError(f"--output {path}: there is no directory {path.parent}; make it, or name another")
    return path


def _annotations(name: str | None) -> Any:
    """The COCO file, or None; its images need not be there."""
    from minimask.data import read_coco

    if name is None:
        return None
    dataset = read_coco(name, None)
    for line in dataset.notes:
        note(line)
    return dataset


def _labels(dataset: Any, detector: Any, weights: str) -> list[int]:
    """The model's label for each class of the data set."""
    if dataset is None:
        return []
    sources.check_keypoints(dataset, detector.skeleton, f"{weights} was trained on")
    if detector.skeleton and not dataset.skeleton:
        raise InputError(
            f"{dataset.path}: has no keypoints, which this model learns; leave --annotations out, or give a "
            "file that has them"
        )
    ids = sources.category_ids(detector, dataset, weights)
    if ids is None:
        return list(range(1, len(dataset.class_names) + 1))
    return [ids.index(number) + 1 if number in ids else 0 for number in dataset.category_ids]


def _facts(arguments: argparse.Namespace, weights: str, source: Any, found: Any) -> list[tuple[str, str]]:
    from minimask.command.reporting import command_line

    height, width = source.size
    seen = found.input.size
    facts = [("command", command_line(arguments.argv)), ("weights", weights)]
    facts.append(("image", f"{width} × {height} pixels; the network sees {seen[1]} × {seen[0]}"))
    if source.target is not None:
        count = len(source.target["labels"])
        facts.append(("annotated", f"{count} object{'s' * (count != 1)}"))
    sure = int((found.result["scores"] >= SHOWN_ABOVE).sum())
    facts.append(("detected", f"{len(found.result['labels'])}, of which {sure} score {SHOWN_ABOVE} or more"))
    if found.failures is not None:
        causes = found.failures.causes
        counts = [f"{causes.count(cause)} {cause}" for cause in dict.fromkeys(causes)]
        facts.append(("objects", "; ".join(counts) or "none"))
        told = [f"{name.removeprefix('loss_')} {float(v):.3g}" for name, v in found.training.losses.items()]
        facts.append(("losses", ", ".join(told)))
    return facts
