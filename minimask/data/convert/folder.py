"""The files of a folder, and which annotation belongs to which image."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from minimask.errors import InputError

ENDINGS = frozenset(
    ".png .jpg .jpeg .jpe .jp2 .j2k .tif .tiff .bmp .gif .webp .avif .ppm .pgm .pbm .pcx .sgi .tga".split()
)
"""Of image files, in lower case; the header then says whether a file can be read."""

SPLITS = ("train", "val", "valid", "validation", "test")


class Folder:
    """What a folder of annotations holds, and the folder of its images, which may be the same.

    Parameters
    ----------
    source : Path
        The folder of the annotations, read with everything below it; hidden files are left out.
    images : Path, optional
        The folder of the images, if it is another one.
    split : str, optional
        Takes only files with a folder of this name above them (``images/train/a.jpg``).

    Attributes
    ----------
    files : list of str
        In `source`, relative to it, with / between the parts; sorted.
    pictures : list of str
        Files in `images` that are named like images, relative to it.

    Raises
    ------
    InputError
        If a folder, or the split in it, does not exist.
    """

    def __init__(self, source: Path, images: Path | None = None, split: str | None = None):
        self.source, self.images = source, images or source
        self.split = split
        self.files = self._within(_listed(source, "SOURCE"))
        inside = self.files if images is None else self._within(_listed(self.images, "--images"))
        self.pictures = [name for name in inside if ending(name) in ENDINGS]
        if self.apart and (below := _below(source, self.images)):  # what is there is not a photograph
            self.pictures = [name for name in self.pictures if not name.startswith(f"{below}/")]
        if split and not self.files:
            raise InputError(
                f"{source}: has no folder {split!r}; leave out --split, or name one that is there"
            )

    def _within(self, names: list[str]) -> list[str]:
        if not self.split:
            return names
        return [name for name in names if self.split in PurePosixPath(name).parts[:-1]]

    @property
    def apart(self) -> bool:
        """Whether the images have a folder of their own."""
        return self.images.resolve() != self.source.resolve()

    def own_pictures(self) -> set[str]:
        """The images' names in `source`, if the folder of images is inside it."""
        below = _below(self.images, self.source)
        return {f"{below}/{name}" for name in self.pictures} if below else set()

    def splits(self) -> list[str]:
        """Folders of images that are named like the parts of a split data set."""
        parts = {part for name in self.pictures for part in PurePosixPath(name).parts[:-1]}
        return [name for name in SPLITS if name in parts] if not self.split else []


def _listed(folder: Path, what: str) -> list[str]:
    if not folder.is_dir():
        why = "is a file, not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {why}; give the folder as {what}")
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(file.relative_to(folder).as_posix() for file in found)


def _below(inner: Path, outer: Path) -> str:
    """A folder's path inside another one; empty if it is not inside."""
    inner, outer = inner.resolve(), outer.resolve()
    return inner.relative_to(outer).as_posix() if inner != outer and inner.is_relative_to(outer) else ""


def ending(name: str) -> str:
    """ ".jpg" of "a/b.JPG"."""
    return PurePosixPath(name).suffix.lower()


def stem(name: str) -> str:
    """ "b" of "a/b.JPG"."""
    return PurePosixPath(name).stem


class Partners:
    """Finds the file that belongs to another one: with the same stem, in the most similar folder.

    Parameters
    ----------
    names : iterable of str
        Relative names to choose from.
    key : callable
        From a name to what must be equal; by default the stem.
    """

    def __init__(self, names: Iterable[str], key=stem):
        self._of_key: dict[str, list[str]] = defaultdict(list)
        for name in names:
            self._of_key[key(name)].append(name)

    def of(self, name: str, key: str | None = None) -> list[str]:
        """The names that fit best: none, one, or several that fit equally well."""
        found = self._of_key.get(stem(name) if key is None else key, [])
        likeness = [_likeness(name, other) for other in found]
        return [other for other, like in zip(found, likeness) if like == max(likeness)]


def _likeness(one: str, other: str) -> int:
    """How many folders two names share, counted from the top and from the bottom."""
    a, b = PurePosixPath(one).parts[:-1], PurePosixPath(other).parts[:-1]
    return _common(a, b) + _common(a[::-1], b[::-1]) - 10 * (abs(len(a) - len(b)) > 2)


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    count = 0
    for one, other in zip(a, b):
        if one != other:
            break
        count += 1
    return count


def some(names: Sequence[str]) -> str:
    """The first three names, for messages."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
