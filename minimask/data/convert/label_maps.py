"""Label maps: pictures that belong to images, with pixel values that say which object or class a pixel is.

The masks become run lengths, exactly. A map belongs to the image with the same name: in a separate folder
(``images/a.jpg``, ``masks/a.png``), or beside it (``a.jpg`` and ``a.png``, ``a-ids.png`` or ``a_mask.png``).
Beside ``a-ids.png``, ``a-classes.png`` may give the class of each object, as `predict --label-maps` writes
them.

Shapes: a map of H x W.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from scipy import ndimage

from minimask.data import images, rle
from minimask.data.convert.document import Builder, Options, measured
from minimask.data.convert.folder import Folder, Partners, ending, some, stem
from minimask.data.convert.names import ClassNames
from minimask.errors import InputError

_LOSSLESS = (".png", ".tif", ".tiff", ".bmp", ".gif")
_WORD = (
    "ids?|masks?|labels?|seg|segmentations?|annotations?|annots?|gt|ground_?truths?|instances?|instance_?ids?|"
    "classes|class|label_?ids?|label_?maps?|colou?rs?"
)
_SUFFIX = re.compile(rf"(.*[^-_. ])[-_. ]+({_WORD})", re.IGNORECASE)  # "a_mask" -> a, mask
_FOLDER = re.compile(rf"(.*[-_. ])?({_WORD}|SegmentationObject|SegmentationClass)s?", re.IGNORECASE)
_OF_CLASSES = ("class", "classes", "labelids", "label_ids")
_VOID = 255  # what PASCAL VOC paints around its objects
_TOUCHING = np.ones((3, 3), int)  # pixels that touch at a corner are one region


@dataclass(frozen=True)
class _Pair:
    """The relative names of an image and its maps."""

    picture: str
    ids: str
    classes: str | None  # the class of each object of `ids`


def count(folder: Folder) -> int:
    """How many images have a map."""
    return len(_pairs(folder)[0])


def read(
    folder: Folder,
    options: Options,
    builder: Builder,
    progress: Callable[[list], Iterable],
    note: Callable[[str], None],
) -> None:
    """Read all maps into `builder`; parameters as in `convert`."""
    pairs, alone, without = _pairs(folder)
    if alone:
        raise InputError(
            f"{folder.source / alone[0]}: there is no image for this label map in {folder.images}; add it, "
            f"name them alike, or give the folder of images by --images ({len(alone)} such maps)"
        )
    if not pairs:
        raise InputError(f"{folder.source}: holds no label maps with images of the same names; see --images")
    if without:
        note(f"{len(without)} images have no label map and are left out: {some(without)}")
    values = options.values or _meaning(pairs, options)
    reader = _Reader(folder, options, values, _class_names(folder, pairs, options, values))
    builder.set_categories(reader.categories, options.classes.ids if options.classes else None)
    for pair in progress(pairs):
        reader.add(builder, pair)
    reader.tell(note)


def _meaning(pairs: list[_Pair], options: Options) -> str:
    """What values mean if no option says: classes if colours have names or the maps are called so."""
    called = all(_kind(pair.ids) in _OF_CLASSES for pair in pairs)
    return "classes" if options.colours or called else "instances"


def _kind(name: str) -> str:
    """ "ids" of "a-ids.png"; empty if the name does not tell."""
    found = _SUFFIX.fullmatch(stem(name))
    return found[2].lower() if found else ""


def _key(name: str) -> str:
    """ "a" of "masks/a_mask.png"."""
    found = _SUFFIX.fullmatch(stem(name))
    return found[1] if found else stem(name)


def _in_folder_of_maps(name: str) -> bool:
    return any(_FOLDER.fullmatch(part) for part in PurePosixPath(name).parts[:-1])


def _pairs(folder: Folder) -> tuple[list[_Pair], list[str], list[str]]:
    """Images with their maps, maps without an image, and images without a map."""
    maps = set(_maps(folder))
    pictures = folder.pictures if folder.apart else [name for name in folder.pictures if name not in maps]
    exact, loose = Partners(sorted(maps)), Partners(sorted(maps), _key)
    pairs, without, used = [], [], set()
    for picture in pictures:
        found = exact.of(picture) or loose.of(picture, stem(picture)) or loose.of(picture, _key(picture))
        of_classes = [name for name in found if _kind(name) in _OF_CLASSES]
        ids = [name for name in found if _kind(name) in ("id", "ids")]
        chosen = ids or [name for name in found if name not in of_classes] or of_classes
        if len(chosen) > 1:
            raise InputError(
                f"{folder.images / picture}: may belong to {' or to '.join(chosen[:2])}; leave one map for "
                "each image, or convert the folders one by one"
            )
        used |= set(found)
        if not chosen:
            without.append(picture)
            continue
        pairs.append(_Pair(picture, chosen[0], of_classes[0] if ids and of_classes else None))
    alone = sorted(maps - used) if pairs else []
    return pairs, alone, without


def _maps(folder: Folder) -> list[str]:
    """The files in the folder that are maps, judging by their names."""
    candidates = [name for name in folder.files if ending(name) in _LOSSLESS]
    if folder.apart:
        inside = folder.own_pictures()
        return [name for name in candidates if name not in inside]
    others = Counter(stem(name) for name in folder.pictures)
    plain = {stem(name) for name in folder.pictures if not _in_folder_of_maps(name)}
    photos = {stem(name) for name in folder.pictures if ending(name) not in _LOSSLESS}
    found = []
    for name in candidates:
        suffixed = _key(name) != stem(name) and others[_key(name)]
        in_folder = _in_folder_of_maps(name) and (stem(name) in plain or _key(name) in plain)
        if suffixed or in_folder or stem(name) in photos:
            found.append(name)
    return found


def _class_names(folder: Folder, pairs: list[_Pair], options: Options, values: str) -> dict[int, str] | None:
    """Value in a map of classes -> name; None if no map gives classes by number."""
    if options.colours:
        if options.classes:
            raise InputError("--classes: the table of --colours has the names; give one of the two")
        return None
    of_classes = [pair.classes or pair.ids for pair in pairs if pair.classes or values != "instances"]
    if not of_classes:
        return None
    if options.classes:
        return options.classes.numbered(1)
    found: set[int] = set()
    for name in of_classes:
        found |= set(np.unique(_single(images.decode_values(folder.source / name), folder, name)).tolist())
        if len(found) > 1000:
            raise InputError(
                f"{folder.source / name}: there are more than 1000 values so far, too many for classes; if "
                "each is an object, give --values instances"
            )
    numbers = sorted(found - {0} - set(options.ignored))
    return {number: f"class {number}" for number in numbers}


def _single(values: np.ndarray, folder: Folder, name: str) -> np.ndarray:
    """(H, W): the values of a map of numbers; grey that was saved as RGB counts as one."""
    if values.ndim == 2:
        return values
    if (values == values[..., :1]).all():
        return values[..., 0]
    raise InputError(
        f"{folder.source / name}: has colours; say which class each is by --colours TABLE (rows such as "
        "'128,0,0 cat'), or give --values instances where each colour is an object"
    )


class _Reader:
    """Reads one map after another into objects."""

    def __init__(self, folder: Folder, options: Options, values: str, names: dict[int, str] | None):
        self.folder, self.options, self.values, self.names = folder, options, values, names
        self.colours = None
        if options.colours:
            self.colours = {r << 16 | g << 8 | b: name for (r, g, b), name in options.colours.items()}
        self.categories = tuple(dict.fromkeys(filter(None, self._all_names())))
        self.seen: Counter[int] = Counter()  # value -> number of maps that have it
        self.maps, self.regions, self.objects = 0, 0, 0

    def _all_names(self) -> Iterable[str]:
        if self.colours is not None:
            return self.colours.values()
        if self.names is not None:
            return self.names.values()
        classes = self.options.classes or ClassNames(("object",))
        if len(classes.names) > 1:
            raise InputError(
                f"--classes: names {len(classes.names)} classes, but the values of these maps are objects, "
                "which tell no class; give one name, or --values classes"
            )
        return classes.names

    def add(self, builder: Builder, pair: _Pair) -> None:
        path = self.folder.source / pair.ids
        values = images.decode_values(path)
        drawn = values.shape[:2]
        picture = measured(self.folder.images / pair.picture, pair.picture, drawn, str(path))
        builder.add_picture(picture)
        named = None
        if pair.classes:
            named = _single(
                images.decode_values(self.folder.source / pair.classes), self.folder, pair.classes
            )
            if named.shape != drawn:
                raise InputError(
                    f"{self.folder.source / pair.classes}: is {named.shape[1]} x {named.shape[0]}, while "
                    f"{pair.ids} is {drawn[1]} x {drawn[0]}; both are maps of one image"
                )
        for name, value, mask in self._objects(values, named, pair):
            builder.add_object(name, [mask], f"{path}: value {value}")
            self.objects += 1

    def _objects(
        self, values: np.ndarray, named: np.ndarray | None, pair: _Pair
    ) -> Iterator[tuple[str, str, dict]]:
        """The class, the value as messages show it, and the RLE of each object in a map."""
        coded = values.ndim == 3 and (self.colours is not None or self.values == "instances")
        if self.colours is not None and values.ndim == 2:
            palette = images.palette_colours(self.folder.source / pair.ids)
            values = palette[values] if palette is not None else np.repeat(values[..., None], 3, axis=2)
            coded = True
        if coded and (self.colours is not None or (values != values[..., :1]).any()):
            red, green, blue = np.moveaxis(values.astype(np.int64), 2, 0)  # (H, W) each
            values = red << 16 | green << 8 | blue
        else:
            coded, values = False, _single(values, self.folder, pair.ids)
        if not coded and self.options.ignored:
            values = np.where(np.isin(values, self.options.ignored), 0, values)
        height = values.shape[0]
        distinct = np.unique(values)
        if distinct[0] < 0:
            raise InputError(
                f"{self.folder.source / pair.ids}: has the value {distinct[0]}; values count from 0, the "
                "background"
            )
        self.maps += 1
        self.seen.update(distinct[distinct != 0].tolist()[:300])
        numbers = None if named is None else _majority(values, named)
        names = {v: self._class_of(v, values, numbers, pair) for v in distinct.tolist() if v}
        parts = values
        if self.values == "classes":
            parts, names = _regions(values, names)
        for value, runs in runs_of_values(parts):
            if value and names[value]:
                counts = rle.encode_runs(runs, *values.shape).decode("ascii")
                yield names[value], str(value), {"size": [height, values.shape[1]], "counts": counts}

    def _class_of(self, value: int, values: np.ndarray, named: dict[int, int] | None, pair: _Pair) -> str:
        """The class of a value, whose number `named` may give; empty if it is background."""
        path = self.folder.source / pair.ids
        if self.colours is not None:
            if value in self.colours:
                return self.colours[value]
            shown, pixels = _place(values, value)
            colour = f"{value >> 16},{value >> 8 & 255},{value & 255}"
            raise InputError(
                f"{path}: colour {colour} ({pixels} pixels, the first at {shown}) is not in the table; add a "
                "row for it, or save the maps without smoothing their edges"
            )
        if named is not None:
            number = named[value]
            if number in self.names:
                return self.names[number]
            raise InputError(
                f"{self.folder.source / pair.classes}: has the class {number} where {pair.ids} has object "
                f"{value}, but {self._known()}"
            )
        if self.values == "instances":
            return self.categories[0]
        if value in self.names:
            return self.names[value]
        if len(self.names) == 1 and self.options.classes and not self.options.classes.numbers:
            single = np.unique(values[values != 0])
            if len(single) == 1:  # maps of a single class, painted white say
                return self.categories[0]
        shown, pixels = _place(values, value)
        void = f", or leave it out by --ignore {value}" if value == _VOID else ""
        raise InputError(
            f"{path}: class {value} ({pixels} pixels, the first at {shown}) has no name: "
            f"{self._known()}{void}"
        )

    def _known(self) -> str:
        known = ", ".join(map(str, list(self.names)[:5])) + (", ..." if len(self.names) > 5 else "")
        return f"there are {known}; name it by --classes, numbered where there are gaps (7=cat,24=dog)"

    def tell(self, note: Callable[[str], None]) -> None:
        """Note what may be a mistake."""
        if self.values == "instances" and self.colours is None and self.names is None and self.maps > 1:
            always = [value for value, maps in self.seen.items() if maps == self.maps]
            if len(self.seen) == 1:
                value = next(iter(self.seen))
                note(
                    f"all maps have the one value {value} and were taken for one object per image; if every "
                    "region is an object, give --values classes"
                )
            elif _VOID in always and max(self.seen) == _VOID and len(self.seen) < 100:
                note(f"{_VOID} is in every map: if it means 'no class', give --ignore {_VOID}")


def _majority(values: np.ndarray, classes: np.ndarray) -> dict[int, int]:
    """For each value, the class that most of its pixels have."""
    both, counts = np.unique(np.stack([values.ravel(), classes.ravel()]), axis=1, return_counts=True)
    rising = np.argsort(counts, kind="stable")
    return dict(zip(both[0, rising].tolist(), both[1, rising].tolist()))  # the last of a value stays


def _place(values: np.ndarray, value: int) -> tuple[str, int]:
    """Where a value first occurs, and in how many pixels it does."""
    found = np.flatnonzero(values == value)
    y, x = divmod(int(found[0]), values.shape[1])
    return f"x {x}, y {y}", len(found)


def _regions(values: np.ndarray, names: dict[int, str]) -> tuple[np.ndarray, dict[int, str]]:
    """A map in which each connected region of a value has its own value, and the names of these."""
    parts, of_part = np.zeros(values.shape, np.int64), {}
    for value, name in names.items():
        inside = values == value
        if not name:
            continue
        labels, found = ndimage.label(inside, _TOUCHING)
        parts[inside] = labels[inside] + len(of_part)
        of_part |= dict.fromkeys(range(len(of_part) + 1, len(of_part) + 1 + found), name)
    return parts, of_part


def runs_of_values(values: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """The run lengths of each value's mask, in one pass over the map.

    Parameters
    ----------
    values : (H, W) integer

    Yields
    ------
    value, and its run lengths as `rle.encode_runs` takes them: column by column, beginning with a
    run, perhaps empty, of what is outside the mask.
    """
    flat = values.T.ravel()  # column by column
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))  # (R,): where runs of one value begin
    lengths = np.diff(starts, append=len(flat))
    order = np.argsort(flat[starts], kind="stable")
    of_run = flat[starts][order]
    firsts = np.flatnonzero(np.diff(of_run, prepend=~of_run[:1]))
    for begin, end in zip(firsts, [*firsts[1:], len(of_run)]):
        mine = order[begin:end]
        ends = starts[mine] + lengths[mine]
        gaps = starts[mine] - np.concatenate([[0], ends[:-1]])
        runs = np.stack([gaps, lengths[mine]], axis=1).ravel()
        rest = len(flat) - int(ends[-1])
        yield int(of_run[begin]), [*runs.tolist(), *([rest] if rest else [])]
