"""Run-length encoded masks as COCO stores them: column by column, alternating runs of 0 and 1, 0 first.

pycocotools reads them faster, but trusts them: a damaged string makes it read beyond its buffer. So every
string is read here first. A small window of a mask is decoded here, too, without decoding the rest.
"""

import numpy as np

from minimask.data.sample import PixelBox


def read_runs(counts: bytes, pixels: int | None = None) -> np.ndarray:
    """The run lengths in a compressed string.

    Parameters
    ----------
    counts : bytes
        Each number is written in groups of five bits, the lowest first, each group as one character counted
        from '0'. Bit 5 says that another group follows; bit 4 of the last group is the sign. From the fourth
        number on, what is written is the difference from the number two before (rleFrString in pycocotools'
        maskApi.c).
    pixels : int, optional
        The image's number of pixels; no run may be longer, so that sums of runs do not overflow.

    Returns
    -------
    (R,) int64, all >= 0

    Raises
    ------
    ValueError
        If the string is not such an encoding.
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
    negative = (groups[last] & 16) != 0
    runs -= np.where(negative, 32 << shift[last], 0)  # two's complement, with as many bits as were given
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0:
        raise ValueError("has a run of negative length")
    if pixels is not None and runs.max() > pixels:
        raise ValueError("has a run longer than the image")
    return runs


def without_empty_runs(runs: np.ndarray) -> np.ndarray:
    """The same mask without runs of length 0 except the first, since pycocotools measures such masks wrongly.

    Parameters
    ----------
    runs : (R,) int64
    """
    values = np.arange(len(runs)) % 2  # 0 or 1: what each run consists of
    kept = runs > 0
    runs, values = runs[kept], values[kept]
    first = np.flatnonzero(np.diff(values, prepend=-1))  # of each group of neighbours that are now alike
    merged = np.add.reduceat(runs, first)
    return np.concatenate([[0], merged]) if values[0] else merged


def decode_runs(runs: np.ndarray, height: int, window: PixelBox) -> np.ndarray:
    """A window of the mask, (y2 - y1, x2 - x1) uint8, 0 or 1; only the window's columns are unrolled.

    Parameters
    ----------
    runs : (R,) int64
        As `read_runs` returns them.
    height : int
        Of the whole mask.
    window : PixelBox
        Inside the mask.
    """
    x1, y1, x2, y2 = window
    ends = np.clip(np.cumsum(runs), x1 * height, x2 * height)
    values = np.zeros(len(runs), np.uint8)
    values[1::2] = 1
    columns = np.repeat(values, np.diff(ends, prepend=x1 * height))  # ((x2 - x1) * height,)
    return columns.reshape(x2 - x1, height).T[y1:y2]


def measure(masks: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """How many pixels each mask has, and the smallest box around it.

    Parameters
    ----------
    masks : list of A dict
        "size", [H, W], and "counts", a checked compressed string.

    Returns
    -------
    (A,) int64, and (A, 4) int64 x1, y1, x2, y2; zeros for a mask without a pixel
    """
    from pycocotools import mask as coco_mask

    # one by one: pycocotools 2.0.11 under NumPy 2 refuses the area of more than 255 masks at once
    pixels = np.array([coco_mask.area(mask) for mask in masks], np.int64)
    extents = coco_mask.toBbox(masks).astype(np.int64) if masks else np.zeros((0, 4), np.int64)
    extents[:, 2:] += extents[:, :2]
    return pixels, extents


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


def union(counts: list[bytes], height: int, width: int) -> bytes:
    """The compressed string of the union of masks of one size; there must be at least one."""
    from pycocotools import mask as coco_mask

    if len(counts) == 1:
        return counts[0]
    return coco_mask.merge([{"size": [height, width], "counts": text} for text in counts])["counts"]
