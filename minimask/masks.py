"""Masks: cropping ground truth to what the mask head is trained on, pasting what it predicts into the image.

Both are separable: along y and along x each output value is a weighted sum of input values, so a whole crop
or paste is ``rows @ values @ columns.T``, two small matrix products over only the pixels that the box covers.
Pixel i has its centre at i + 0.5.

Systems disagree on the details, so each function here takes a `MaskConvention`:

`TORCHVISION`, the default
    What torchvision does and its checkpoints expect. Crops are RoIAlign with ``aligned=False`` (half a pixel
    off); pasting truncates the box, expanded by one mask cell, to whole pixels.
`FLOAT`
    No rounding: boxes are used as they are. Crops are RoIAlign with ``aligned=True``; pasting puts the centre
    of mask cell j at (j + 0.5) / M of the box. The convention of detectron2 and of `maskrcnn_small`.

Shapes: N predicted masks of M x M cells; G ground-truth masks of H x W pixels; R RoIs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from minimask.backend import array_module, as_floating, launch, parallel, to_cpu, to_device
from minimask.boxes import as_boxes, as_image_size
from minimask.errors import InputError

BAND = 2**22
"""Pixels of a mask that are pasted at once to be encoded: 16 MiB as float32."""


class Window(NamedTuple):
    """A rectangle of whole pixels, in the order in which an array is indexed: ``image[y0:y1, x0:x1]``.

    Rows come first, unlike in a box (x1, y1, x2, y2) or in a `minimask.data.sample.PixelBox`.
    """

    y0: int
    y1: int
    x0: int
    x1: int


class Placement(NamedTuple):
    """Where masks lie in their images: pixel p of an axis reads its mask at ``scale * p + shift``.

    Each field is a float64 array (N, 2), for N masks along y and x; or a float, for one mask along one axis.

    Attributes
    ----------
    scale : cells per pixel
    shift : cells
        Where pixel 0 reads the mask; the centre of cell j lies at j.
    first, stop : whole pixels
        The mask is 0 at every pixel before `first`, at `stop` and beyond.
    """

    scale: Any
    shift: Any
    first: Any
    stop: Any


class Samples(NamedTuple):
    """Where RoIAlign samples masks: sample s of an axis lies at ``start + (s + 0.5) * step``.

    Each field is a float64 array (R, 2), for R RoIs along y and x; or a float, for one RoI along one axis.

    Attributes
    ----------
    start, step : pixels
        Counted from the centre of pixel 0.
    count : whole number
        Samples per bin: as many as the bin has pixels, rounded up.
    """

    start: Any
    step: Any
    count: Any


@dataclass(frozen=True)
class MaskConvention:
    """How masks and boxes relate to pixels.

    Parameters
    ----------
    aligned : bool
        Whether crops are RoIAlign with ``aligned``, that is, without a shift of half a pixel.
    place : callable
        ``place(low, high, cells)`` is the `Placement` of N masks of `cells` x `cells` in boxes from `low` to
        `high`, both (N, 2) in the order y, x. It may reach beyond the image.
    """

    aligned: bool
    place: Callable[[Any, Any, int], Placement]


def _place_without_rounding(low, high, cells: int) -> Placement:
    xp = array_module(low)
    low, high = low.astype(np.float64), high.astype(np.float64)
    extent = xp.where(high > low, high - low, 1)
    fade = extent / (2 * cells)  # the outermost cells fade to 0 over the half cell around the box
    scale = cells / extent
    stop = xp.where(high > low, xp.ceil(high + fade - 0.5), 0)  # a box without area: nowhere
    return Placement(scale, (0.5 - low) * scale - 0.5, xp.floor(low - fade + 0.5), stop)


def _place_in_whole_pixels(low, high, cells: int) -> Placement:
    """The mask gets a border of one cell of zeros, the box grows to match and is cut to whole pixels."""
    xp = array_module(low)
    half = (high - low) * 0.5 * ((cells + 2) / cells)  # in the boxes' dtype: truncation sees every rounding
    middle = (high + low) * 0.5
    low, high = (xp.trunc(v).astype(np.float64) for v in (middle - half, middle + half))
    scale = (cells + 2) / xp.maximum(high - low + 1, 1)
    return Placement(scale, (0.5 - low) * scale - 1.5, low, high + 1)


FLOAT = MaskConvention(aligned=True, place=_place_without_rounding)
TORCHVISION = MaskConvention(aligned=False, place=_place_in_whole_pixels)


def _dtype_of(values) -> np.dtype:
    """The dtype of results between 0 and 1: that of the values, or float64 if they are integers."""
    return values.dtype if values.dtype.kind == "f" else np.dtype(np.float64)


def _sides(boxes):
    """Lower and upper edges of boxes (N, 4): each (N, 2), in the order y, x."""
    sides = as_floating(boxes).reshape(-1, 2, 2)[:, :, ::-1]
    return sides[:, 0], sides[:, 1]


# ---------------------------------------------------------------------------------------------- pasting


def _placements(boxes, cells: int, image_size, convention: MaskConvention):
    """The `Placement` of masks in boxes (N, 4), clipped to the image; its fields stacked: (N, 2, 4)."""
    xp = array_module(boxes)
    placement = convention.place(*_sides(boxes), cells)
    limit = xp.asarray(image_size, dtype=np.float64)
    first = xp.minimum(xp.maximum(placement.first, 0), limit)
    stop = xp.minimum(xp.maximum(placement.stop, first), limit)
    return xp.stack([placement.scale, placement.shift, first, stop], axis=-1)


def _cell_weights(axis: Placement, cells: int) -> np.ndarray:
    """The weight of each cell in each pixel from `first` to `stop`: (pixels, cells) float64.

    A tent around each cell's centre: linear interpolation that fades to 0 outside the mask.
    """
    position = np.arange(axis.first, axis.stop) * axis.scale + axis.shift  # (pixels,), in cells
    return np.maximum(1 - abs(position[:, None] - np.arange(cells)), 0)


def _paste(mask, placement) -> tuple[Window, np.ndarray]:
    """A mask (M, M) in its window of the image; `placement` (2, 4) is its row of `_placements`."""
    y, x = (Placement(*axis) for axis in placement.tolist())
    rows, columns = (_cell_weights(axis, len(mask)).astype(mask.dtype) for axis in (y, x))
    return Window(*map(int, (y.first, y.stop, x.first, x.stop))), rows @ mask @ columns.T


def _in_bands(placement) -> Iterator[np.ndarray]:
    """A placement (2, 4) cut into ranges of columns, left to right; a single one if it is small."""
    y, x = (Placement(*axis) for axis in placement.tolist())
    columns = max(1, int(BAND // max(y.stop - y.first, 1)))
    for first in range(int(x.first), max(int(x.stop), int(x.first) + 1), columns):
        yield np.array([y, x._replace(first=first, stop=min(first + columns, x.stop))])


def paste_mask(
    mask, box, image_size: tuple[int, int], convention: MaskConvention = TORCHVISION
) -> tuple[Window, np.ndarray]:
    """One predicted mask at the size it has in the image, without the rest of the image.

    Parameters
    ----------
    mask : (M, M) float array
        Probabilities. Outside the mask they count as 0.
    box : (4,) float array
        In pixels of the image; it may reach beyond it.
    image_size : (H, W)
    convention : MaskConvention

    Returns
    -------
    window, patch : Window and (y1 - y0, x1 - x0) array of the mask's dtype
        Every pixel outside the window is exactly 0. The window may be empty.

    Notes
    -----
    Bilinear. Mask R-CNN, section 3.1: "the m x m floating-number mask output is then resized to the RoI size,
    and binarized at a threshold of 0.5".
    """
    mask, box = to_cpu(mask), to_cpu(box)  # sync: the window is an index on the host
    placement = _placements(box[None], len(mask), image_size, convention)[0]
    window, patch = _paste(as_floating(mask), placement)
    return window, patch.astype(_dtype_of(mask), copy=False)


def paste_masks(
    masks,
    boxes,
    image_size: tuple[int, int],
    convention: MaskConvention = TORCHVISION,
    threshold: float | None = None,
):
    """Each mask in an image of its own: N whole images, so only for a few or small ones; see `Masks`.

    Parameters
    ----------
    masks : (N, 1, M, M) or (N, M, M) float array
        Probabilities.
    boxes : (N, 4) float array
    image_size : (H, W)
    convention : MaskConvention
    threshold : float, optional
        Return only whether each pixel is above it.

    Returns
    -------
    (N, 1, H, W) array
        Of the masks' dtype (float64 for integers), or of bool if there is a threshold; on the masks' device.
    """
    xp, boxes = array_module(masks), as_boxes(boxes, "paste_masks: boxes")
    height, width = image_size = tuple(int(side) for side in as_image_size(image_size, "paste_masks"))
    _check_predicted(masks, len(boxes))
    dtype = np.dtype(bool) if threshold is not None else _dtype_of(masks)
    masks = xp.ascontiguousarray(as_floating(masks)).reshape(-1, *masks.shape[-2:])
    placements = _placements(boxes, masks.shape[-1], image_size, convention)
    if xp is not np:
        out = xp.empty((len(masks), 1, height, width), masks.dtype if threshold is None else dtype)
        images = (out, None) if threshold is None else (None, out)
        args = (masks, placements, *masks.shape[:2], height, width, threshold or 0, *images)
        launch("masks", "paste_masks", (-(-height * width // 1024), len(masks)), 256, args, masks.dtype)
        return out.astype(dtype, copy=False)
    beyond = 0 if threshold is None else 0 > threshold  # outside its window a mask is 0
    out = np.full((len(masks), 1, height, width), beyond, dtype)

    def work(part, parts):
        share = slice(part, None, parts)
        for image, mask, placement in zip(out[share, 0], masks[share], placements[share]):
            (y0, y1, x0, x1), patch = _paste(mask, placement)
            image[y0:y1, x0:x1] = patch if threshold is None else patch > threshold

    parallel(work)
    return out


def _check_predicted(masks, count: int) -> None:
    shape = masks.shape
    if (
        len(shape) not in (3, 4)
        or shape[0] != count
        or shape[-1] != shape[-2]
        or shape[1:-2] not in ((), (1,))
    ):
        raise InputError(
            f"paste_masks: masks must be ({count}, 1, M, M), one for each box; the shape is {shape}"
        )


@dataclass(frozen=True, eq=False)
class Masks(NDArrayOperatorsMixin):
    """The masks of one image's detections, kept small and pasted only when asked for.

    375 nuclei on an image of 1388 x 1040 take 1 MB this way, and 2.2 GB pasted. It reads like the
    (N, 1, H, W) array that `numpy` returns: ``masks[i, 0]`` is one mask, ``masks > 0.5`` says where each one
    is, and ``masks[keep]`` are some of them, still small. `window` and `rle` never make a whole image.

    Parameters
    ----------
    probabilities : (N, M, M) float array
    boxes : (N, 4) float array
        In pixels of the image.
    image_size : (H, W)
    convention : MaskConvention
        How to paste.
    """

    probabilities: np.ndarray
    boxes: np.ndarray
    image_size: tuple[int, int]
    convention: MaskConvention = TORCHVISION

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of what `numpy` returns: (N, 1, H, W)."""
        return len(self), 1, *self.image_size

    @property
    def ndim(self) -> int:
        return 4

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """The probabilities' dtype, float64 if they are integers: what pasting gives."""
        return _dtype_of(self.probabilities)

    def __getattr__(self, name: str):
        raise AttributeError(f"Masks has no {name!r}: ask np.asarray(masks), the (N, 1, H, W) array")

    def window(self, i: int) -> tuple[Window, np.ndarray]:
        """Mask i pasted, without the zeros around it: its window and the (y1 - y0, x1 - x0) patch."""
        return paste_mask(self.probabilities[i], self.boxes[i], self.image_size, self.convention)

    def bands(self, i: int) -> Iterator[tuple[Window, np.ndarray]]:
        """As `window`, in bands of whole columns of at most `BAND` pixels: a mask may fill a large image."""
        placement = _placements(
            to_cpu(self.boxes[i])[None], len(self.probabilities[i]), self.image_size, self.convention
        )
        mask = to_cpu(self.probabilities[i])  # sync: the windows are indices on the host
        for band in _in_bands(placement[0]):
            window, patch = _paste(as_floating(mask), band)
            yield window, patch.astype(self.dtype, copy=False)

    def __getitem__(self, index):
        """What the (N, 1, H, W) array has at an index; a mask that is not asked for is not pasted.

        A slice, an index array or a bool array along the first axis alone selects `Masks`. All else gives an
        array on the masks' device: ``masks[i]`` (1, H, W), ``masks[i, 0]`` (H, W), ``masks[:, 0]`` (N, H, W).

        Raises
        ------
        IndexError
            With NumPy's message, if the array has no such index.
        """
        first, rest = _first_axis(index)
        # It has the array's shape and no memory: what is wrong with an index shows before anything is pasted.
        array = np.broadcast_to(np.False_, self.shape)
        if _takes_several(first) and all(_is_all(part) for part in rest):
            array[(slice(None), *rest)]
            return Masks(self.probabilities[first], self.boxes[first], self.image_size, self.convention)
        parts = first if isinstance(first, tuple) else (first, *rest)
        shape = array[parts].shape
        if parts is first:
            return self._paste()[parts]
        numbers = np.arange(len(self))[first]  # of the masks asked for: (), (n,), or the shape of `first`
        if numbers.ndim == 0:
            return self._paste_one(int(numbers))[0, *rest]
        if all(_is_basic(part) for part in rest):
            return self._paste_parts(numbers, rest, shape)
        if isinstance(first, slice):
            return self[first]._paste()[:, *rest]
        needed, places = np.unique(numbers, return_inverse=True)
        return self[needed]._paste()[places.reshape(numbers.shape), *rest]

    def _paste_parts(self, numbers: np.ndarray, rest: tuple, shape: tuple[int, ...]):
        """``array[numbers, *rest]``, of this shape, one mask at a time: whole images may not fit."""
        out = array_module(self.probabilities).empty(shape, self.dtype)
        parts = out.reshape(numbers.size, *shape[numbers.ndim :])
        for place, i in enumerate(numbers.ravel().tolist()):
            parts[place] = self._paste_one(i)[0, *rest]
        return out

    def __iter__(self) -> Iterator[np.ndarray]:
        """Each mask pasted, (1, H, W), one at a time."""
        return (self[i] for i in range(len(self)))

    def _paste(self, threshold: float | None = None):
        """All masks as one array (N, 1, H, W) on their device, or whether each pixel is above a threshold."""
        return paste_masks(self.probabilities, self.boxes, self.image_size, self.convention, threshold)

    def _paste_one(self, i: int):
        """Mask i as an array (1, 1, H, W) on its device."""
        return self[i : i + 1]._paste()

    def numpy(self) -> np.ndarray:
        """All masks pasted: (N, 1, H, W), on the CPU; N H W floats."""
        if array_module(self.probabilities) is np:
            return self._paste()
        out = np.empty(self.shape, self.dtype)
        for image, mask in zip(out, self):
            image[:] = to_cpu(mask)  # sync: one at a time, since all together may not fit on the GPU
        return out

    def to(self, device: str) -> "Masks":
        """The same masks with probabilities and boxes on "cpu" or "cuda"."""
        arrays = (to_device(a, device) for a in (self.probabilities, self.boxes))  # sync: to the host
        return Masks(*arrays, self.image_size, self.convention)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if copy is False:
            raise ValueError("masks are pasted into a new array, so copy=False is impossible")
        return self.numpy().astype(dtype or self.dtype, copy=False)

    def __array_ufunc__(self, ufunc, method: str, *inputs, **options):
        """Comparisons and arithmetic are the pasted array's, on the masks' device."""
        if ufunc is np.greater and method == "__call__" and isinstance(inputs[1], Real) and not options:
            return self._paste(inputs[1])  # the usual question: its answer needs no floats of whole images
        if any(isinstance(target, Masks) for target in options.get("out", ())):
            raise TypeError("masks cannot be written to: use np.asarray(masks), a separate array")
        arrays = [x._paste() if isinstance(x, Masks) else x for x in inputs]
        xp = array_module(*arrays)
        ufunc = ufunc if xp is np else getattr(xp, ufunc.__name__)
        return getattr(ufunc, method)(*arrays, **options)

    def rle(self, threshold: float = 0.5) -> list[dict]:
        """Where each mask is above the threshold, as COCO's run lengths: see `encode_window`."""
        masks, height = self.to("cpu"), int(self.image_size[0])  # the probabilities are small
        return [
            _run_lengths(
                [_bounds(window, patch > threshold, height) for window, patch in masks.bands(i)],
                self.image_size,
            )
            for i in range(len(masks))
        ]


def _first_axis(index) -> tuple[Any, tuple]:
    """An index of an array (N, 1, H, W), split into its part for the first axis and those for the others.

    Lists and CuPy arrays become NumPy arrays. An index that begins with something else (a new axis, a bool
    array of several axes) is not split: it comes back whole, as a tuple, with nothing for the others.
    """
    parts = [_index_part(part) for part in (index if isinstance(index, tuple) else (index,))]
    named = sum(_axes(part) for part in parts)
    if not parts or (parts[0] is Ellipsis and named < 4):  # the ellipsis covers the first axis, too
        parts = [slice(None), *parts]
    if _axes(parts[0]) != 1:
        return tuple(parts), ()
    return parts[0], tuple(parts[1:])


def _index_part(part):
    if isinstance(part, list):
        array = np.asarray(part)
        return array if array.size else array.astype(np.intp)
    return to_cpu(part) if hasattr(part, "get") else part  # sync: an index on a GPU, to see how much it takes


def _axes(part) -> int:
    """How many axes a part of an index names."""
    if part is None or part is Ellipsis:
        return 0
    return np.ndim(part) if isinstance(part, bool) or getattr(part, "dtype", None) == np.bool_ else 1


def _takes_several(part) -> bool:
    """Whether a part of an index keeps its axis: a slice, or an array of one axis."""
    is_row = isinstance(part, np.ndarray) and part.ndim == 1 and part.dtype.kind in "biu"
    return is_row or isinstance(part, slice)


def _is_basic(part) -> bool:
    is_number = isinstance(part, int | np.integer) and not isinstance(part, bool)
    return part is None or part is Ellipsis or is_number or isinstance(part, slice)


def _is_all(part) -> bool:
    return part is Ellipsis or (isinstance(part, slice) and part == slice(None))


def encode_window(window: Window, patch: np.ndarray, image_size: tuple[int, int]) -> dict:
    """COCO's compressed run lengths of a whole mask, given only the window that holds it.

    Parameters
    ----------
    window : Window
    patch : (y1 - y0, x1 - x0) bool array
        The mask inside the window; outside it is False.
    image_size : (H, W)

    Returns
    -------
    dict with "size", [H, W], and "counts", a str
        Ready for JSON and for pycocotools, equal to what ``pycocotools.mask.encode`` gives for the whole
        mask.
    """
    return _run_lengths([_bounds(window, patch, int(image_size[0]))], image_size)


def _bounds(window: Window, patch: np.ndarray, height: int) -> np.ndarray:
    """Where runs begin and where they end, in turn, counted down the columns of an image of this height."""
    y0, _, x0, _ = window
    # Run lengths go down the columns and begin with background, possibly of length 0. (h, w) -> (w, h)
    columns = np.pad(patch.T, ((0, 0), (1, 1))).astype(np.int8)
    steps = np.diff(columns, axis=1)  # 1 where a run begins, -1 just after its end
    begin, end = ((x + x0) * height + y + y0 for x, y in (np.nonzero(steps == 1), np.nonzero(steps == -1)))
    return np.stack((begin, end), axis=1).ravel()


def _run_lengths(bounds: list[np.ndarray], image_size: tuple[int, int]) -> dict:
    """What `encode_window` returns, from the `_bounds` of adjacent windows, left to right."""
    from pycocotools import mask as coco_mask

    height, width = (int(v) for v in image_size)
    bounds = np.concatenate(bounds)
    # a run that goes on from the bottom of a column to the top of the next has two equal bounds there
    joined = np.flatnonzero(bounds[1:] == bounds[:-1])
    bounds = np.delete(bounds, np.concatenate((joined, joined + 1)))
    counts = np.diff(bounds, prepend=0, append=height * width)
    if len(counts) > 1 and counts[-1] == 0:  # the mask reaches the last pixel: no background after it
        counts = counts[:-1]
    size = [height, width]
    rle = coco_mask.frPyObjects({"size": size, "counts": counts.tolist()}, height, width)
    return {"size": size, "counts": rle["counts"].decode("ascii")}


# --------------------------------------------------------------------------------------------- cropping


def _samples(boxes, bins: int, convention: MaskConvention):
    """The `Samples` of RoIs with these boxes (R, 4); its fields stacked: (R, 2, 3) float64."""
    xp = array_module(boxes)
    low, high = _sides(boxes)
    if convention.aligned:
        low, high = low - 0.5, high - 0.5
        extent = high - low
    else:
        extent = xp.maximum(high - low, 1)
    count = xp.maximum(xp.ceil(extent / bins), 0).astype(np.float64)  # in the boxes' dtype, as kernels round
    step = extent.astype(np.float64) / xp.maximum(bins * count, 1)
    return xp.stack([low.astype(np.float64), step, count], axis=-1)


def _bin_weights(axis: Samples, bins: int, length: int) -> tuple[int, np.ndarray]:
    """Along one axis of `length` pixels: the first pixel read, and RoIAlign's weights (bins, pixels read).

    Each bin is the mean of its samples; a sample interpolates between the two pixel centres around it, takes
    the edge pixel's value up to one pixel outside, and is 0 beyond.
    """
    count = int(axis.count)
    position = axis.start + (np.arange(bins * count) + 0.5) * axis.step
    inside = np.flatnonzero((position >= -1) & (position <= length))
    if len(inside) == 0:
        return 0, np.zeros((bins, 0))
    position = np.clip(position[inside], 0, length - 1)
    before = position.astype(np.int64)
    after = np.minimum(before + 1, length - 1)
    first, pixels = int(before[0]), int(after[-1] - before[0]) + 1
    row = inside // count * pixels - first  # where its bin's row begins in the flattened (bins, pixels)
    share = position - before
    weights = np.bincount(
        np.concatenate((row + before, row + after)),
        np.concatenate((1 - share, share)) / count,
        minlength=bins * pixels,
    )
    return first, weights.reshape(bins, pixels)


def _crop(mask, samples, size: int, dtype) -> np.ndarray:
    """What one RoI sees of a mask (H, W): (size, size); `samples` (2, 3) is its row of `_samples`."""
    y, x = (Samples(*axis) for axis in samples.tolist())
    y0, rows = _bin_weights(y, size, mask.shape[0])  # (size, h)
    x0, columns = _bin_weights(x, size, mask.shape[1])  # (size, w)
    window = to_cpu(mask[y0 : y0 + rows.shape[1], x0 : x0 + columns.shape[1]]).astype(dtype)  # (h, w)
    return rows.astype(dtype) @ window @ columns.astype(dtype).T


def crop_masks(
    masks: Sequence,
    boxes,
    matches,
    size: int,
    convention: MaskConvention = TORCHVISION,
    threshold: float | None = None,
):
    """The mask head's targets: for each RoI, its object's mask within its box, by RoIAlign of the bitmap.

    Parameters
    ----------
    masks : (G, H, W) bool or integer array, or on the CPU any sequence of (H, W) arrays
        Each is looked up only once, so a sequence may decode its masks on demand.
    boxes : (R, 4) float array
        The RoIs, in pixels of the masks; they may reach beyond them.
    matches : (R,) integer array
        Index of each RoI's object. An index that does not exist gives NaN on a GPU: to raise, the host would
        have to wait for it.
    size : int
        M.
    convention : MaskConvention
        With either one, RoIAlign takes as many samples per bin as the bin has pixels, rounded up.
    threshold : float, optional
        Makes the targets binary: 1 at this value and above (detectron2: 0.5). By default they stay soft
        (torchvision).

    Returns
    -------
    (R, M, M) array of the boxes' dtype (float64 for integers)
        In [0, 1]: the share of each bin that the mask fills.
    """
    xp, samples, dtype = array_module(boxes), _samples(boxes, size, convention), _dtype_of(boxes)
    out = xp.zeros((len(boxes), size, size), dtype=as_floating(boxes[:0]).dtype)
    if xp is not np:
        masks, matches = xp.ascontiguousarray(masks, np.uint8), xp.ascontiguousarray(matches, np.int64)
        args = (masks, matches, samples, len(boxes), *masks.shape, size, out)
        launch("masks", "crop_masks", (-(-out.size // 256),), 256, args, out.dtype)
    else:
        needed = {match: masks[match] for match in set(matches.tolist())}

        def work(part, parts):
            for r in range(part, len(out), parts):
                out[r] = _crop(needed[int(matches[r])], samples[r], size, out.dtype)

        parallel(work)
    return (out if threshold is None else out >= threshold).astype(dtype, copy=False)
