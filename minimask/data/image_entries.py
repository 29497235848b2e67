"""The `images` of a COCO file: each must name a file that exists, can be read, and has the annotated size."""

import html
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from minimask.data import images
from minimask.data.fields import Fault, Faults, Note, integer, label, read_all, refuse, show, value
from minimask.errors import InputError, one_line

_LOOKED_AT = 3  # 16-bit images that are decoded, to see how many of their bits are used


@dataclass(frozen=True)
class ImageRecord:
    """An entry of the JSON's `images`, with the file that it names."""

    id: int
    file_name: str
    path: Path
    height: int
    width: int


def read_images(
    entries: list, path: Path, images_dir: Path | None, notes: list[str], faults: Faults | None = None
) -> list[ImageRecord]:
    """The images sorted by id; every file exists inside `images_dir` and has the annotated size.

    If that is None, no files are looked for. If there are `faults`, they collect what would be raised, and
    the images at fault are left out.
    """
    if not entries:
        raise InputError(f"{path}: 'images' is empty; there is nothing to use")
    if images_dir is not None and not _holds(images_dir.is_dir):
        why = "is not a directory" if _holds(images_dir.exists) else "no such directory"
        raise InputError(f"{images_dir}: {why}; give the folder that the images of {path} are in")

    def read(index: int, entry: Any, _: bool) -> ImageRecord:
        return _read_image(entry, label(path, "image", entry, index), images_dir)

    records: dict[int, ImageRecord] = {}
    for record in read_all(entries, read, "images", faults):
        if record.id in records:
            text = f"{path}: image {record.id} occurs twice; image ids must be unique"
            refuse(faults, Fault(text, "id twice"), total=len(entries), what="images")
        records.setdefault(record.id, record)
    found = list(records.values())
    if images_dir is None:
        return sorted(found, key=lambda record: record.id)
    found = _check_files(found, path, images_dir, faults)
    headers = _examined(found, faults)
    found = [record for record in found if record.id in headers]
    found = _check_sizes(found, headers, path, notes, faults)
    headers = [headers[record.id] for record in found]
    _note_twice(found, path, notes)
    _note_later_pictures(found, headers, path, notes)
    _note_unused_bits(found, headers, path, notes)
    return sorted(found, key=lambda record: record.id)


def _examined(records: list[ImageRecord], faults: Faults | None) -> dict[int, images.Header]:
    """The headers of the files by image id; a file that is not an image is an error, or a fault."""
    headers = {}
    for record in records:
        try:
            headers[record.id] = images.examine(record.path)
        except InputError as error:
            if faults is None:
                raise
            faults.add(error, "no image", len(records), "images", examples=[f"image {record.id}"])
    return headers


def _read_image(entry: dict, name: str, images_dir: Path | None) -> ImageRecord:
    image_id = integer(entry, "id", name)
    if images_dir is None:
        entry, images_dir = {"file_name": f"image {image_id}"} | entry, Path()
    file_name = value(entry, "file_name", name)
    if not isinstance(file_name, str) or not file_name:
        raise Fault(f"{name}: file_name must be a name, is {show(file_name)}", "file_name")
    inside = Path(os.path.normpath(file_name))
    if inside.is_absolute() or inside.drive or ".." in inside.parts:
        raise Fault(f"{name}: file_name {show(file_name)} {_leads_out(inside, images_dir)}", "leads out")
    height, width = (integer(entry, key, name) for key in ("height", "width"))
    if height < 1 or width < 1:
        raise Fault(f"{name}: width {width} and height {height} must be at least 1 pixel", "size")
    return ImageRecord(image_id, file_name, images_dir / inside, height, width)


def _leads_out(inside: Path, images_dir: Path) -> str:
    """The message for an absolute name, or one with ``..``."""
    for folder in (images_dir.absolute(), images_dir.resolve()):
        if inside.is_absolute() and inside.is_relative_to(folder):
            name = show(inside.relative_to(folder).as_posix())
            return f"is absolute; write it relative to the images folder: {name}"
    if _holds((images_dir / inside.name).is_file):
        return f"leads out of the images folder; write {show(inside.name)}, the file that is in it"
    return "leads out of the images folder; put the file into it"


def _holds(test: Callable[[], bool]) -> bool:
    """The result of a path's test, such as ``path.is_file``; False if the path cannot even be looked up."""
    try:
        return test()
    except OSError:  # a name too long for the file system, or a folder that may not be entered
        return False


def _check_files(
    records: list[ImageRecord], path: Path, images_dir: Path, faults: Faults | None
) -> list[ImageRecord]:
    """The images whose files exist: all of them, unless `faults` collect the others."""
    # Keys, not a list: all of a large data set may be missing, and each image is looked up below.
    missing = dict.fromkeys(record for record in records if not _holds(record.path.is_file))
    if not missing:
        return records
    first = next(iter(missing))
    name = show(first.file_name)
    count = f"{len(missing)} of {len(records)} images are missing, " if len(missing) > 1 else ""
    what = "a directory, not a file, is" if _holds(first.path.is_dir) else "there is no file"
    there = _file_there(first.file_name, images_dir)
    mend = f"; {there}" if there else f" in {images_dir}; is it the right folder?"
    fault = Fault(f"{path}: {count}image {first.id}: {what} {name}{mend}", "missing")
    if faults is None:
        raise fault
    faults.add(fault, fault.kind, len(records), "images", len(missing), map(_called, missing))
    return [record for record in records if record not in missing]


def _called(record: ImageRecord) -> str:
    return one_line(f"image {record.id} ({record.file_name})")


_RESPELLED: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("has backslashes", lambda name: name.replace("\\", "/")),
    ("has %-codes", unquote),
    ("has HTML's codes", html.unescape),
    ("has spaces around it", str.strip),
)


def _file_there(file_name: str, images_dir: Path) -> str | None:
    """What is odd about a name for which there is no file, and which file was probably meant; or None."""
    odd = []
    for what, respell in _RESPELLED:
        name = respell(file_name)
        if name != file_name:
            odd, file_name = [*odd, what], name
            if _leads_inside(name) and _holds((images_dir / name).is_file):
                return f"it {' and '.join(odd)}: write {show(os.path.normpath(name))}, the file that is there"
    names = _files_below(images_dir)
    for what, key in (
        ("is spelled differently (upper and lower case, or accents)", _folded),
        ("is in another folder", lambda name: PurePosixPath(_folded(name)).name),
        ("has another ending", lambda name: PurePosixPath(_folded(name)).stem),
    ):
        alike = [name for name in names if key(name) == key(os.path.normpath(file_name))]
        if len(alike) == 1:
            return f"it {' and '.join([*odd, what])}: write {show(alike[0])}, the file that is there"
    return None


def _leads_inside(name: str) -> bool:
    return not (Path(name).is_absolute() or ".." in Path(name).parts)


def _folded(name: str) -> str:
    """Equal for names that differ in upper and lower case, or in how accents are composed."""
    return unicodedata.normalize("NFC", name).casefold()


def _files_below(folder: Path) -> list[str]:
    """Relative names of all files in a folder and below it, with / between their parts."""
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return [file.relative_to(folder).as_posix() for file in found]


def _check_sizes(
    records: list[ImageRecord],
    headers: dict[int, images.Header],
    path: Path,
    notes: list[str],
    faults: Faults | None,
) -> list[ImageRecord]:
    """The images that have the annotated size, upright or as stored, without EXIF's turn, which is noted."""
    as_stored, wrong = [], []
    for record in records:
        header = headers[record.id]
        upright = (header.width, header.height) if header.turned else (header.height, header.width)
        if (record.height, record.width) == upright:
            continue
        if (record.height, record.width) == (header.height, header.width):
            as_stored.append(record)
        else:
            wrong.append((record, header))
    if wrong:
        record, header = wrong[0]
        fault = Fault(wrong_size(path, record, header.height, header.width), "image size")
        refuse(faults, fault, len(wrong), len(records), "images", [_called(r) for r, _ in wrong])
    if as_stored:
        text = (
            f"{path}: {len(as_stored)} of {len(records)} images are annotated as stored, without their EXIF "
            f"rotation, and read so: image {_ids(as_stored)}"
        )
        notes.append(Note(text, "as stored", len(as_stored)))
    lost = {record.id for record, _ in wrong}
    return [record for record in records if record.id not in lost]


def wrong_size(path: Path, record: ImageRecord, height: int, width: int) -> InputError:
    """The error for an image file that does not have the size in the JSON."""
    mend = "annotate the file that is there, or restore the one annotated"
    if (record.height, record.width) == (width, height):
        mend = f"width and height are swapped: write width {width} and height {height}"
    return InputError(
        f"{path}: image {record.id}: {record.path} is {width} x {height}, annotated as {record.width} x "
        f"{record.height} (width x height); {mend}"
    )


def _note_twice(records: list[ImageRecord], path: Path, notes: list[str]) -> None:
    """Note entries for the same file: what only one of them has annotated is background in the other."""
    entries = defaultdict(list)
    for record in records:
        entries[os.path.realpath(record.path)].append(record)
    twice = [same for same in entries.values() if len(same) > 1]
    if twice:
        first, more = twice[0], f", and {len(twice) - 1} other files" if len(twice) > 1 else ""
        text = (
            f"{path}: images {_ids(first)} are one file, {one_line(first[0].file_name)}{more}; what only one "
            "entry has annotated counts as background in the other: give each file one entry"
        )
        notes.append(Note(text, "one file twice", len(twice)))


def _note_later_pictures(
    records: list[ImageRecord], headers: list[images.Header], path: Path, notes: list[str]
) -> None:
    several = [record for record, header in zip(records, headers) if header.several]
    if several:
        text = (
            f"{path}: {len(several)} of {len(records)} images are animations or have several pages, of which "
            f"the first alone is read: image {_ids(several)}; save the others as files of their own"
        )
        notes.append(Note(text, "several pages", len(several)))


def _note_unused_bits(
    records: list[ImageRecord], headers: list[images.Header], path: Path, notes: list[str]
) -> None:
    deep = [record for record, header in zip(records, headers) if header.sixteen_bits]
    greatest = 0
    for record in deep[:_LOOKED_AT]:
        try:
            greatest = max(greatest, int(images.decode(record.path).max()))
        except InputError:  # damaged beyond the header, which is reported when the image is used
            return
    note = unused_bits(greatest) if deep else None
    if note:
        notes.append(Note(f"{path}: image {_ids(deep)}: {note}", "unused bits", len(deep)))


def unused_bits(greatest: int) -> str | None:
    """The note on 16-bit images with this greatest value if they leave the uppermost bits unused, or None."""
    bits = max(greatest, 1).bit_length()
    if bits > 14:
        return None
    return (
        f"uses only {bits} of its 16 bits (the greatest value is {greatest}, white is 65535) and is read as "
        f"nearly black; multiply the values by {2 ** (16 - bits)}"
    )


def _ids(records: list[ImageRecord]) -> str:
    return show([record.id for record in records]).strip("[]")
