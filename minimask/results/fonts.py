"""Fonts for names in any script: the one that comes with matplotlib, or one installed on this computer.

A script that needs shaping, as Arabic and Devanagari do, gets it if Pillow has libraqm.
"""

import importlib.util
import os
import sys
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import ImageFont

NO_CHARACTER = "\U0010ffff"  # no font has it: each draws its sign for a missing character
NOT_PLAIN = ("bold", "italic", "oblique", "light", "thin", "black", "mono", "condensed")


def font(size: int, text: str = "") -> "ImageFont.FreeTypeFont":
    """A font `size` display pixels high that has all letters of a text, if this computer has such a font."""
    return _face(_path_for(frozenset(filter(_has_shape, text))), size)


def missing_letters(texts: Iterable[str]) -> str:
    """The letters that would be drawn as boxes, in texts for which no font on this computer has them all."""
    lacking = {}
    for text in texts:
        letters = frozenset(filter(_has_shape, text))
        lacking |= dict.fromkeys(sorted(letters - _known(_path_for(letters), letters)))
    return "".join(lacking)


def _has_shape(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNPS"  # not marks, spaces and controls


@cache
def _face(path: Path | None, size: int) -> "ImageFont.FreeTypeFont":
    from PIL import ImageFont

    return ImageFont.load_default(size) if path is None else ImageFont.truetype(str(path), size)


@cache
def _path_for(letters: frozenset[str]) -> Path | None:
    """matplotlib's font if it has these letters, else the first font that has them, else matplotlib's."""
    usual = _usual()
    if _known(usual, letters) == letters:
        return usual
    return next((path for path in _installed() if _known(path, letters) == letters), usual)


@cache
def _usual() -> Path | None:
    """DejaVu Sans, which has Latin, Greek, Cyrillic and more; None where there is no matplotlib."""
    specification = importlib.util.find_spec("matplotlib")  # not imported: that takes longer than a picture
    if specification is None or not specification.submodule_search_locations:
        return None
    name = Path("fonts", "ttf", "DejaVuSans.ttf")
    path = Path(specification.submodule_search_locations[0], "mpl-data", name)
    if not path.is_file():  # some Linux distributions keep it elsewhere
        from minimask.results.plotting import load_matplotlib

        path = Path(load_matplotlib().get_data_path(), name)
    return path if path.is_file() else None


@cache
def _known(path: Path | None, letters: frozenset[str]) -> frozenset[str]:
    """Those of the letters that a font has; none if it cannot be read."""
    try:
        face = _face(path, 16)
        nothing = _drawn(face, NO_CHARACTER)
        return frozenset(letter for letter in letters if _drawn(face, letter) != nothing)
    except (OSError, ValueError):
        return frozenset()


def _drawn(face: "ImageFont.FreeTypeFont", letter: str) -> tuple:
    mask = face.getmask(letter)
    return mask.size, bytes(mask)


@cache
def _installed() -> list[Path]:
    """The font files on this computer, plain ones first."""
    found = {
        Path(folder, name)
        for root in _folders()
        for folder, _, names in os.walk(root)
        for name in names
        if name.lower().endswith((".ttf", ".otf", ".ttc"))
    }
    return sorted(found, key=lambda path: (any(word in path.name.lower() for word in NOT_PLAIN), path))


def _folders() -> list[Path]:
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 (Path.home raises where there is none)
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    if os.name == "nt":
        ours = os.environ.get("LOCALAPPDATA", home / "AppData/Local")
        return [Path(ours, "Microsoft/Windows/Fonts"), Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts")]
    return [
        home / ".local/share/fonts",
        home / ".fonts",
        Path("/usr/local/share/fonts"),
        Path("/usr/share/fonts"),
    ]
