"""Other people's annotations as COCO instance JSON: label maps, labelme, YOLO's segmentation text.

`convert` does it; each format has a module of its own, which gives `document.Builder` the images and their
objects. Masks are checked there by `mask_checks`, as in COCO files, so that every file that is written can be
read. Begin with `document.py`.

Imports what `data` imports.
"""

from collections.abc import Callable, Iterable

from minimask.data.convert import label_maps, labelme, yolo
from minimask.data.convert.document import Builder, Options
from minimask.data.convert.folder import Folder
from minimask.errors import InputError

FORMATS = {
    "label-maps": ("label maps", label_maps),
    "labelme": ("labelme JSON", labelme),
    "yolo": ("YOLO segmentation text", yolo),
}
"""Name -> what the format is called in messages, and the module that finds and reads it."""


def find_format(folder: Folder) -> str:
    """The one of `FORMATS` that a folder holds.

    Raises
    ------
    InputError
        If it holds none of them, or several.
    """
    found = {name: module.count(folder) for name, (_, module) in FORMATS.items()}
    found = {name: count for name, count in found.items() if count}
    if len(found) == 1:
        return next(iter(found))
    if found:
        what = ", ".join(f"{FORMATS[name][0]} ({count} files)" for name, count in found.items())
        raise InputError(f"{folder.source}: holds {what}; say which by --format {' or '.join(found)}")
    count = len(folder.pictures)
    pictures = f"{count} image{'s' * (count != 1)}"
    raise InputError(
        f"{folder.source}: holds no annotations that are understood ({pictures}): neither labelme "
        "JSON, nor YOLO text, nor label maps named like their images (photo.jpg, photo.png or "
        "photo_mask.png, or images/a.png and masks/a.png); if the images lie elsewhere, give --images DIR"
    )


def convert(
    folder: Folder,
    name: str,
    options: Options,
    progress: Callable[[list], Iterable] = iter,
    note: Callable[[str], None] = lambda line: None,
) -> Builder:
    """Read all annotations of a folder.

    Parameters
    ----------
    folder : Folder
    name : str
        One of `FORMATS`.
    progress : callable
        Wraps the list of images, to show progress.
    note : callable
        Called with what the user should know, one line at a time.

    Returns
    -------
    Builder
        Whose ``document()`` is COCO instance JSON.

    Raises
    ------
    InputError
        At the first annotation that cannot be used: one line with the file, the field and how to mend it.
    """
    builder = Builder()
    FORMATS[name][1].read(folder, options, builder, progress, note)
    builder.finish(note)
    return builder
