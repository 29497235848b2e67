"""Comparing two results: whether they agree up to rounding, and if not, where they differ, in words."""

from __future__ import annotations

import itertools

import numpy as np

from minimask.lessons.exercises.running import a

NEARLY = "nearly right: a part of it is computed in float32, or an eps stands where none is wanted"
TOLERANCE = {2: 1e-2, 4: 1e-4}  # by bytes per number: leaves room for sums in another order


def same(mine, right) -> bool:
    """Whether two results agree in shape and, up to rounding, in value; two Nones do."""
    if mine is None or right is None:
        return mine is right
    mine, right = np.asarray(mine), np.asarray(right)
    return mine.shape == right.shape and not differs(mine, right).any()


def differs(mine, right):
    """Where two arrays of the same shape differ; NaN agrees with NaN only."""
    size = min((x.dtype.itemsize for x in (mine, right) if x.dtype.kind == "f"), default=8)
    with np.errstate(all="ignore"):
        scale = np.abs(right, where=np.isfinite(right), out=np.zeros(right.shape)).max(initial=1e-30)
        close = np.abs(mine - right) <= TOLERANCE.get(size, 1e-9) * scale
        return ~(close | (mine == right) | (np.isnan(mine) & np.isnan(right)))


def as_array(mine, right: np.ndarray) -> tuple[np.ndarray | None, str]:
    """A result as an array to compare, and "" or, in words, why it is not one."""
    arrays = isinstance(mine, tuple) and any(isinstance(part, np.ndarray) and part.ndim for part in mine)
    if arrays and [len(mine), *np.shape(mine[0])] != [*right.shape]:  # else rows, as in a list
        index = " or the [0] after np.nonzero missing" if right.dtype.kind == "i" else ""
        hint = f" (a comma too many after return{index}?)" if len(mine) == 1 else ""
        return None, f"{a(mine)}{hint}, not an array"
    if not isinstance(mine, (np.ndarray, np.generic, int, float, list, tuple)):
        hint = " (is a return missing?)" if mine is None else ""
        return None, f"{a(mine)}{hint}, not an array"
    try:
        array = np.asarray(mine)  # a plain one, of whatever class it was
    except Exception:  # rows of different lengths, elements that NumPy cannot take
        return None, f"{a(mine)}, which does not make an array: are its rows equally long?"
    if array.dtype.kind not in "biuf":
        return None, f"{a(mine)} of {_kind(array)}, not of numbers"
    # True and False are as good as the ones and zeros of a mask; of indices or numbers they are a mistake.
    mask = right.dtype.kind == "i" and right.shape == array.shape and np.isin(right, (0, 1)).all()
    if array.dtype.kind == "b" != right.dtype.kind and array.size and not mask:
        hint = "; np.nonzero gives the indices" if right.dtype.kind == "i" else ""
        return None, f"of {array.dtype}, not of {right.dtype}{hint}"
    return array.view(np.int8) if array.dtype.kind == "b" else array, ""


def _kind(array: np.ndarray) -> str:
    return {"c": "complex numbers", "U": "text", "S": "text", "O": "objects"}.get(
        array.dtype.kind, "other things"
    )


def dtype_problem(mine: np.ndarray, right: np.ndarray) -> str:
    """Whether the result has another kind of numbers and, with it, other values; "" if not."""
    float_for_int = mine.dtype.kind == "f" and right.dtype.kind == "i" and mine.size
    int_for_float = mine.dtype.kind != "f" and right.dtype.kind == "f" and not same(mine, right)
    half = mine.dtype.kind == "f" and mine.dtype.itemsize < 4
    return f"of {mine.dtype}, not of {right.dtype}" if float_for_int or int_for_float or half else ""


def note(given, mine: np.ndarray, right: np.ndarray) -> str:
    """What a right result costs or lacks, with {} for its name; "" if nothing."""
    if mine.shape != right.shape:
        return (
            f"where nothing is found, {{}} has the shape {mine.shape}, not {right.shape}: code that reads a "
            f"column of it will fail. np.zeros({right.shape}) has the columns"
        )
    if not isinstance(given, np.ndarray) or not mine.ndim or {mine.dtype.kind, right.dtype.kind} != {"f"}:
        return ""  # a list has no precision to keep, and a single number's costs nothing
    what = f"{right.dtype} is wanted, {mine.dtype} comes out ({{}}): right, but "
    if mine.dtype.itemsize > right.dtype.itemsize:
        slow = "more memory, and all that is computed from it is slower"
        return f"{what}{slow}. np.zeros, for one, makes float64 unless told dtype="
    if mine.dtype.itemsize < right.dtype.itemsize:
        return f"{what}too few digits for a gradient check"
    return ""


def of_nothing(mine: np.ndarray, right: np.ndarray) -> bool:
    """Whether a result is an empty list's array where the right one is empty, too."""
    return mine.shape == (0,) and right.size == 0


def difference(mine: np.ndarray, right: np.ndarray) -> str:
    """How many elements are wrong, the worst, and the image, row or column they all lie in, if one."""
    if mine.shape != right.shape:
        return f"has the shape {mine.shape}, not {right.shape}"
    wrong = differs(mine, right)
    with np.errstate(all="ignore"):
        error = np.where(wrong, np.nan_to_num(np.abs(mine - right), nan=np.inf), -1.0)
    worst = tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))
    along_axes = wrong.nonzero() if wrong.ndim > 1 else ()
    affected = [np.unique(indices) for indices in along_axes]
    places = [str(hit[0]) if len(hit) == 1 < n else ":" for hit, n in zip(affected, wrong.shape)]
    where = f", all in [{', '.join(places)}]" if set(places) > {":"} else ""
    if wrong.ndim == 0:
        return f"is wrong: {_two(mine[()], right[()])}"
    return (
        f"has {wrong.sum()} of {wrong.size} elements wrong{where}; the worst at {list(worst)}: "
        f"{_two(mine[worst], right[worst])}"
    )


def _two(mine, right) -> str:
    """Both numbers, with as many digits as tell them apart."""
    digits = next((n for n in (6, 9, 12) if f"{mine:.{n}g}" != f"{right:.{n}g}"), 17)
    return f"yours {mine:.{digits}g}, right {right:.{digits}g}"


def _plain(factor: float) -> bool:
    """Whether a factor is worth naming where there is a single number: any two numbers differ by one."""
    each = [factor, 1 / factor] if factor else [0.0]
    return any(abs(f - round(f)) <= 1e-4 for f in each if abs(f) < 1000)


def of_any(mine: np.ndarray, right: np.ndarray) -> tuple[str, ...]:
    """Mistakes that any result can show: a factor, too few digits, axes in another order, a wrong side."""
    if mine.shape == right.shape and right.dtype.kind == "f" and right.any():
        with np.errstate(all="ignore"):
            factor = float((mine * right).sum() / (right * right).sum())
            if np.isfinite(factor) and same(mine, factor * right) and abs(factor - 1) > 1e-4:
                words = {-1.0: "the sign", 0.0: "all zeros"}
                if np.count_nonzero(right) > 1 or _plain(factor):
                    return (words.get(round(factor, 9), f"a factor of {factor:.6g}"),)
            if (np.abs(mine - right) <= 1e-5 * np.abs(right).max()).all():
                return (NEARLY,)
    reordered = sorted(mine.shape) == sorted(right.shape) and right.size
    for axes in itertools.permutations(range(mine.ndim)) if reordered else ():
        if list(axes) != sorted(axes) and same(mine.transpose(axes), right):
            return (f"axes swapped: your result's transpose{axes} is right",)
    if mine.ndim == right.ndim >= 2 and mine.shape[:-2] == right.shape[:-2]:
        height, width = right.shape[-2:]
        if height != width and mine.shape[-2:] in ((height, height), (width, width), (width, height)):
            return ("height and width taken for each other: they need not be equal",)
    return ()
