"""Pillow's readers without their warnings of damaged metadata, which is nothing to act on.

Warning filters belong to the process, and a thread cannot change them for just a while: a reader that warns
would write to the program's standard error, or raise if warnings are errors. So we make a class of our own
from the reader, whose methods find another `warnings` in their globals.
"""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from types import FunctionType, SimpleNamespace

_SILENT = SimpleNamespace(warn=lambda *arguments, **options: None)


@cache
def quiet_reader(module: str, kind: str, helpers: Sequence[str] = ()) -> type:
    """A class of one of Pillow's modules, changed so that it does not warn.

    Parameters
    ----------
    module, kind : str
        ``"PIL.TiffImagePlugin"``, ``"TiffImageFile"``.
    helpers : tuple of str
        Classes of the same module whose methods warn, and of which `kind` makes instances.
    """
    original, image = import_module(module), import_module("PIL.Image")
    names = vars(original) | {"warnings": _SILENT}
    names["Image"] = SimpleNamespace(**(vars(image) | {"_decompression_bomb_check": _refuse_bombs}))
    for name in helpers:
        names[name] = _with_globals(vars(original)[name], names)
    return _with_globals(vars(original)[kind], names)


def _refuse_bombs(size: tuple[int, int], error_only: bool = True) -> None:
    """Pillow's check of an image's size, without the warning that it gives from half that size up."""
    from PIL import Image

    most = Image.MAX_IMAGE_PIXELS
    if most and size[0] * size[1] > 2 * most:
        raise Image.DecompressionBombError(f"{size[0]} x {size[1]} pixels, where {2 * most} are allowed")


def _with_globals(kind: type, names: dict) -> type:
    """A subclass with the methods of `kind`, but with these globals."""
    methods = {}
    for name, function in vars(kind).items():
        if isinstance(function, FunctionType):
            parts = function.__code__, names, name, function.__defaults__, function.__closure__
            methods[name] = FunctionType(*parts)
            methods[name].__kwdefaults__ = function.__kwdefaults__
    return type(kind.__name__, (kind,), methods)
