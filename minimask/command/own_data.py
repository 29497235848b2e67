"""What ``minimask convert`` and ``minimask check-data`` do, and ``minimask evaluate --results``."""

import argparse
from pathlib import Path

from minimask.command.telling import note, tell
from minimask.errors import InputError


def convert(arguments: argparse.Namespace) -> int:
    """Make COCO instance JSON, which train reads, of a folder of images annotated otherwise: label maps
    (pictures whose values or colours are objects or classes), labelme JSON, or YOLO segmentation text. Which
    of them it holds is found out and printed. Images stay where they are; masks of label maps are exact.
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
    tell(f"look at it with: minimask check-data --data {output} --images {folder.images} --output check")
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
    """Whether a file is of an earlier conversion, which may be replaced though it lies among the sources."""
    from minimask.data.checks import read_json

    try:
        document = read_json(path)
    except InputError:
        return False
    return isinstance(document, dict) and document.get("info") == {"description": "converted by minimask"}
