"""What ``minimask convert`` and ``minimask check-data`` do, and ``minimask evaluate --results``."""

import argparse
import shlex
from pathlib import Path

from minimask.command.telling import drawing, note, tell
from minimask.errors import InputError


def convert(arguments: argparse.Namespace) -> int:
    """Make COCO instance JSON, which train reads, from a folder of images annotated in another format: label
    maps (pictures whose values or colours are objects or classes), labelme JSON, or YOLO segmentation text.
    The format is detected and printed. Images stay where they are; masks of label maps are exact.
    """
    from minimask.data.convert import FORMATS, Folder, Options, find_format
    from minimask.data.convert import convert as run
    from minimask.data.convert.names import read_classes, read_colours
    from minimask.files import check_inputs_are_kept, write_json
    from minimask.training.progress import each

    output = _output_file(arguments.output)
    folder = Folder(
        Path(arguments.source), Path(arguments.images) if arguments.images else None, arguments.split
    )
    sources = [*(folder.source / name for name in folder.files), *_files(folder)]
    tables = [Path(name) for name in (arguments.classes, arguments.colours) if name]
    options = Options(
        classes=read_classes(arguments.classes) if arguments.classes else None,
        values=arguments.values,
        colours=read_colours(Path(arguments.colours)) if arguments.colours else None,
        ignored=tuple(arguments.ignore or ()),
        boxes=arguments.boxes,
    )
    name = arguments.format or find_format(folder)
    if not _is_converted(output):
        check_inputs_are_kept([*sources, *tables], [output])
    how = "" if arguments.format else ", as found"
    tell(f"{folder.source}: {FORMATS[name][0]}{how}")
    if splits := folder.splits():
        note(
            f"{folder.images}: has the folders {', '.join(splits)}, which go into one file together; if they "
            f"divide the data, convert them one by one with --split {splits[0]} ..."
        )
    built = run(folder, name, options, lambda items: each(items, "converting"), note)
    write_json(output, built.document())
    tell(f"{output}: {built.summary()}")
    look = ["check-data", "--data", str(output), "--images", str(folder.images), "--output", "check"]
    tell(f"look at it with: minimask {shlex.join(look)}")
    return 0


def _files(folder) -> list[Path]:
    return [folder.images / name for name in folder.pictures]


def _output_file(name: str) -> Path:
    from minimask.files import check_output_directory

    path = Path(name)
    if path.is_dir():
        raise InputError(f"--output {path}: is a directory; name the JSON file to be written")
    check_output_directory(path.parent)
    if not path.parent.is_dir():
        raise InputError(f"--output {path}: there is no directory {path.parent}; make it, or name another")
    return path


def _is_converted(path: Path) -> bool:
    """Whether an earlier conversion wrote a file, which may then be replaced even among the sources."""
    from minimask.data.checks import read_json

    try:
        document = read_json(path)
    except InputError:
        return False
    return isinstance(document, dict) and document.get("info") == {"description": "converted by minimask"}


def check_data(arguments: argparse.Namespace) -> int:
    """Read a data set as training would, and list everything that would stop training or harm it, each with
    its mend: boxes, masks, classes, files, images that train and val share, and sizes of objects beside the
    network's anchors. The output directory gets report.json, sheet.png (images with their masks;
    with --val also val-sheet.png) and sizes.png. With --config auto it looks at the data for the recipe that
    train would choose, and prints each option with its reason. The exit status is 1 if training would refuse
    the data, else 0.
    """
    from minimask import config as configuration
    from minimask.command.fitting import fitted_to_files, is_auto
    from minimask.files import check_inputs_are_kept, check_output_directory, output_directory, write_json
    from minimask.results.survey import FILES, survey
    from minimask.training.progress import each

    output = check_output_directory(arguments.output)
    config, auto = configuration.Config(), is_auto(arguments.config)
    if arguments.config and not auto:
        config = configuration.read_config(arguments.config, config)
    config = configuration.with_settings(config, arguments.set)
    train = _data(arguments.data, arguments.images, "train")
    val = _data(arguments.val, arguments.val_images or arguments.images, "val") if arguments.val else None
    given = [
        train[0],
        *([val[0]] if val else []),
        *([] if auto or not arguments.config else [arguments.config]),
    ]
    check_inputs_are_kept(given, [output / name for name in FILES])
    with output_directory(output):
        recipe = fitted_to_files(config, train, arguments.set, note) if auto else None
        planned, document = recipe.config if recipe else config, {}
        surveyed = survey(planned, train, val, lambda items, title: each(items, title))
        if recipe:
            document = {"recipe": recipe.document()}
        try:
            write_json(output / "report.json", surveyed.report.document() | document, indent=2)
            written = ["report.json"]
            for name in FILES[1:]:
                with drawing(output / name):
                    written += [name] * surveyed.draw(output / name)
        finally:
            print(f"{surveyed.report.table()}\n")
            if recipe:
                print(f"a recipe for these, which train --config auto takes:\n{recipe.table()}\n")
    tell(", ".join(str(output / name) for name in written))
    return int(surveyed.report.refused)


def _data(source: str, images: str | None, split: str) -> tuple[Path, Path]:
    """The files of a data set, which may be nuclei: the other built-in ones have no files."""
    from minimask import data

    if source == "nuclei":
        folder = Path(data.__file__).parent / "nuclei"
        return folder / f"{split}.json", folder / "images"
    if source in ("shapes", "figures"):
        raise InputError(f"--data {source}: is generated, and sound; give a COCO file to look at")
    if not images:
        raise InputError(f"--images: missing; give the folder with the images of {source}")
    return Path(source), Path(images)


def check_evaluate(arguments: argparse.Namespace) -> None:
    """Check that ``evaluate`` has what it needs: an output directory for what weights find, or results."""
    if arguments.weights and arguments.results:
        raise InputError(
            "evaluate: give either --weights FILE, a checkpoint, or --results FILE, COCO results"
        )
    if not arguments.results and not arguments.output:
        raise InputError(
            "evaluate: --output is missing; name a directory for detections.json and metrics.json"
        )
    if not arguments.results and arguments.category_ids:
        raise InputError("--category-ids: is for --results; a checkpoint knows its classes")


def evaluate_results(arguments: argparse.Namespace) -> int:
    """Compare a results file with a data set, whose images need not be there."""
    from minimask.command import sources
    from minimask.data import read_coco
    from minimask.files import check_inputs_are_kept, check_output_directory, output_directory
    from minimask.results.elsewhere import read_results
    from minimask.results.evaluate import FILES, score

    output = check_output_directory(arguments.output) if arguments.output else None
    inputs = [arguments.data, arguments.results]
    check_inputs_are_kept(inputs, [output / name for name in FILES[1:]] if output else [])
    if arguments.images or arguments.data in sources.BUILT_IN:
        dataset = sources.open_dataset(arguments.data, arguments.images, "val", arguments.strict)
    else:
        dataset = read_coco(arguments.data, None, strict=arguments.strict)
    document = dataset.coco_document()
    results = read_results(arguments.results, document, arguments.category_ids)
    most = arguments.max_detections or 100
    for line in [*dataset.notes, *results.notes]:
        note(line)
    evaluation = score(document, results.detections, most, results.kinds, areas_of=results.kinds[0])
    if len(results.kinds) > 1:
        note(_by_which_areas(results.kinds))
    if output is None:
        tell_evaluation(document, evaluation, arguments.per_class)
        return 0
    with output_directory(output):
        try:
            evaluation.write(output, arguments.per_class, with_detections=False)
        finally:
            tell_evaluation(document, evaluation, arguments.per_class)
    tell(str(output / FILES[1]))
    return 0


def _by_which_areas(kinds: tuple[str, ...]) -> str:
    """The note on results of several kinds: whose areas decide what is small, medium or large."""
    names = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}
    first, *others = (names[kind] for kind in kinds)
    rest = " and ".join(others)
    return (
        f"the results have {', '.join([first, *others[:-1]])} and {others[-1]}; pycocotools then judges by "
        f"the {first} which {rest} are small or large. For their own areas, as in detectron2 and in "
        f"'evaluate --weights', give {rest} alone"
    )


def tell_evaluation(document: dict, evaluation, per_class: bool) -> None:
    """Print an evaluation, by class if asked for, and why an AP is -1 or 0."""
    from minimask.results.reasons import reasons

    images, objects = evaluation.images, evaluation.objects
    counts = f"{images} image{'s' * (images != 1)}, {objects} object{'s' * (objects != 1)}"
    print(f"{counts}, {evaluation.max_detections} detections an image:\n")
    print(f"{evaluation.table()}\n")
    if per_class:
        print(f"{evaluation.class_table()}\n")
    for line in reasons(document, evaluation):
        tell(line)
