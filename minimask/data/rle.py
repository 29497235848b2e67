"""Run-length encoded masks as COCO stores them: column by column, runs of 0 and of 1 by turns, 0 first.

pycocotools reads them faster, but trusts them: a damaged string makes it read beyond its buffer. So strings
are read here first; and a small window of a mask is decoded here without the rest.
"""

import numpy as np

from minimask.data.sample import Window


def read_runs(counts: bytes) -> np.ndarray:
    """The run lengths in a compressed string.

    Parameters
    ----------
    counts : bytes
        Each number in groups of five bits, the lowest first, one a character from '0' on. Bit 5 says that
        another group follows, bit 4 of the last group is the sign. From the fourth number on it is the
        difference to the number two before (rleFrString in pycocotools' maskApi.c).

    Returns
    -------
    (R,) int64, all >= 0

    Raises
    ------
    ValueError
        If the string is no such encoding.
    """
    groups = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(groups) or groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        raise ValueError("is cut off, or has characters that no RLE has")
    last = np.flatnonzero((groups & 32) == 0)  # (R,): where each number ends
    first = np.concatenate([[0], last[:-1] + 1])
    shift = 5 * (np.arange(len(groups)) - np.repeat(first, last - first + 1))
    if shift.max() > 30:
        raise ValueError("has a run longer than any image")
    runs = np.add.reduceat((groups & 31) << shift, first)
    runs -= np.where(
        groups[last] & 16, 32 << shift[last], 0
    )  # two's complement of as many bits as were given
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0:
        raise ValueError("has a run of negative length")
    return runs


def decode_runs(runs: np.ndarray, height: int, window: Window) -> np.ndarray:
    """A window of the mask, uint8 0 or 1, (y2 - y1, x2 - x1); only the window's columns are unrolled.

    Parameters
    ----------
    runs : (R,) int64
        As `read_runs` gives them.
    height : int
        The whole mask's.
    window : Window
        Inside the mask.
    """
    x1, y1, x2, y2 = window
    ends = np.clip(np.cumsum(runs), x1 * height, x2 * height)
    values = np.zeros(len(runs), np.uint8)
    values[1::2] = 1
    columns = np.repeat(values, np.diff(ends, prepend=x1 * height))  # ((x2 - x1) * height,)
    return columns.reshape(x2 - x1, height).T[y1:y2]


def measure(masks: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """How many pixels each mask has, and the smallest box around them.

    Without pycocotools, which evaluates but need not be there to train, the strings are unrolled here; that
    takes ten times as long.

    Parameters
    ----------
    masks : list of A dict
        "size", [H, W], and "counts", a checked compressed string.

    Returns
    -------
    (A,) int64, and (A, 4) int64 x1, y1, x2, y2; zeros for a mask without a pixel
    """
    try:
        from pycocotools import mask as coco_mask
    except ImportError:
        measured = np.array([_measure(mask) for mask in masks], np.int64).reshape(-1, 5)
        return measured[:, 0], measured[:, 1:]
    # one by one: pycocotools 2.0.11 under NumPy 2 refuses the area of more than 255 masks at once
    pixels = np.array([coco_mask.area(mask) for mask in masks], np.int64)
    extents = coco_mask.toBbox(masks).astype(np.int64) if masks else np.zeros((0, 4), np.int64)
    extents[:, 2:] += extents[:, :2]
    return pixels, extents


def _measure(mask: dict) -> tuple[int, ...]:
    """Pixels, x1, y1, x2, y2."""
    runs, height = read_runs(mask["counts"]), mask["size"][0]
    last = np.cumsum(runs)[1::2] - 1  # of each run of 1
    ones = runs[1::2]
    first, last, ones = (a[ones > 0] for a in (last - ones + 1, last, ones))
    if not len(ones):
        return 0, 0, 0, 0, 0
    wraps = (first // height != last // height).any()  # it reaches a column's lower end and the next's upper
    y1, y2 = (0, height - 1) if wraps else ((first % height).min(), (last % height).max())
    return ones.sum(), first[0] // height, y1, last[-1] // height + 1, y2 + 1


def encode_mask(mask: np.ndarray) -> bytes:
    """The compressed string of an (H, W) mask of 0 and 1."""
    from pycocotools import mask as coco_mask

    return coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]


def encode_polygons(polygons: list[list[float]], height: int, width: int) -> bytes:
    """The compressed string of the union of checked polygons, rasterised as in pycocotools' evaluation."""
    from pycocotools import mask as coco_mask

    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))["counts"]


def encode_runs(runs: list[int], height: int, width: int) -> bytes:
    """The compressed string of checked, uncompressed run lengths."""
    from pycocotools import mask as coco_mask

    return coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"]
