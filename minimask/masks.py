"""Masks: cropping ground truth to what the mask head is trained on, pasting what it predicts into the image.

Both are separable: along y and along x each output value is a weighted sum of input values, so a whole crop
or paste is ``rows @ values @ columns.T``, two small matrix products over nothing but the box's own window.
Pixel i has its centre at i + 0.5.

Two conventions:

``"float"``
    No quantisation: boxes are used as they are. Crops are RoIAlign with ``aligned=True``, pasting puts the
    centre of mask cell j at (j + 0.5) / M of the box. detectron2's, and our own.
``"torchvision"``
    What torchvision does and its checkpoints expect. Crops are RoIAlign with ``aligned=False`` (half a pixel
    off), pasting truncates the box, expanded by one mask cell, to whole pixels.

Shapes: N predicted masks of M x M cells; G ground-truth masks of H x W pixels; R RoIs; a window is
(y0, y1, x0, x1), the pixels from y0 up to, not including, y1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from minimask.backend import array_module, launch, parallel, to_cpu, to_device

Window = tuple[int, int, int, int]


def _of(convention: str, choices: dict):
    if convention not in choices:
        raise ValueError(f"convention must be one of {', '.join(choices)}, is {convention!r}")
    return choices[convention]


# ---------------------------------------------------------------------------------------------- pasting


def _sides(boxes):  # (N, 4) -> low and high (N, 2) of y, x
    sides = boxes.reshape(-1, 2, 2)[:, :, ::-1]
    return sides[:, 0], sides[:, 1]


def _paste_float(low, high, cells: int):
    """The outermost cells fade out over the half cell around the box: the window is that much larger."""
    xp = array_module(low)
    low, high = low.astype(np.float64), high.astype(np.float64)
    extent = xp.where(high > low, high - low, 1)
    fade = extent / (2 * cells)
    stop = xp.where(high > low, xp.ceil(high + fade - 0.5), 0)
    return low, cells / extent, 0.5, xp.floor(low - fade + 0.5), stop


def _paste_torchvision(low, high, cells: int):
    """The same for a mask with a cell of zeros on each side, in a box grown to match, in whole pixels."""
    xp = array_module(low)
    half = (high - low) * 0.5 * ((cells + 2) / cells)  # in the boxes' dtype: truncation sees each rounding
    middle = (high + low) * 0.5
    low, high = (xp.trunc(v).astype(np.float64) for v in (middle - half, middle + half))
    return low, (cells + 2) / xp.maximum(high - low + 1, 1), 1.5, low, high + 1


_PASTE = {"float": _paste_float, "torchvision": _paste_torchvision}


def _windows(boxes, cells: int, image_size, convention: str):
    """Where masks lie, for y and x: (N, 2, 4) float64 of a, b, first, stop, in whole pixels.

    Pixel p from `first` up to, not including, `stop` reads a mask at ``a p + b``, the centre of cell j at j.
    """
    xp = array_module(boxes)
    origin, scale, shift, first, stop = _of(convention, _PASTE)(*_sides(boxes), cells)
    limit = xp.asarray(image_size, dtype=np.float64)
    first = xp.minimum(xp.maximum(first, 0), limit)
    stop = xp.minimum(xp.maximum(stop, first), limit)
    return xp.stack((scale, (0.5 - origin) * scale - shift, first, stop), axis=-1)


def _paste(mask, window) -> tuple[Window, np.ndarray]:  # (M, M), (2, 4)
    rows, columns = (
        # a tent around each cell's centre is linear interpolation that fades to 0 outside
        np.maximum(1 - abs((np.arange(first, stop) * a + b)[:, None] - np.arange(len(mask))), 0)
        for a, b, first, stop in window.tolist()
    )
    corners = tuple(window[:, 2:].astype(int).ravel().tolist())
    return corners, rows.astype(mask.dtype) @ mask @ columns.T.astype(mask.dtype)


def paste_mask(
    mask, box, image_size: tuple[int, int], convention: str = "float"
) -> tuple[Window, np.ndarray]:
    """One predicted mask at the size it has in the image, without the rest of the image.

    Parameters
    ----------
    mask : (M, M) float array
        Probabilities. Outside the mask they count as 0.
    box : (4,) float array
        In pixels of the image; it may reach beyond it.
    image_size : (H, W)
    convention : "float" or "torchvision"

    Returns
    -------
    (y0, y1, x0, x1), patch : window and (y1 - y0, x1 - x0) array of the mask's dtype
        Every pixel outside the window is exactly 0. The window may be empty.

    Notes
    -----
    Bilinear. Mask R-CNN, section 3.1: "the m x m floating-number mask output is then resized to the RoI size,
    and binarized at a threshold of 0.5".
    """
    mask, box = to_cpu(mask), to_cpu(box)  # sync: the window is an index on the host
    return _paste(mask, _windows(box[None], len(mask), image_size, convention)[0])


def paste_masks(
    masks, boxes, image_size: tuple[int, int], convention: str = "torchvision", threshold: float | None = None
):
    """All masks pasted into images of their own: dense, so for few or small ones (see `Masks`).

    Parameters
    ----------
    masks : (N, 1, M, M) or (N, M, M) float array
        Probabilities.
    boxes : (N, 4) float array
    image_size : (H, W)
    convention : "torchvision" or "float"
    threshold : float, optional
        Tell only where the masks are above it.

    Returns
    -------
    (N, 1, H, W) array of the masks' dtype, or bool where there is a threshold; where the masks live.
    """
    xp, (height, width) = array_module(masks), image_size
    masks = xp.ascontiguousarray(masks).reshape(-1, *masks.shape[-2:])
    windows = _windows(boxes, masks.shape[-1], image_size, convention)
    dtype = masks.dtype if threshold is None else bool
    if xp is not np:
        out = xp.empty((len(masks), 1, height, width), dtype=dtype)
        images = (out, None) if threshold is None else (None, out)
        args = (masks, windows, *masks.shape[:2], height, width, threshold or 0, *images)
        launch("masks", "paste_masks", (-(-height * width // 1024), len(masks)), 256, args, masks.dtype)
        return out
    out = np.zeros((len(masks), 1, height, width), dtype)

    def work(part, parts):
        for image, mask, window in zip(out[part::parts, 0], masks[part::parts], windows[part::parts]):
            (y0, y1, x0, x1), patch = _paste(mask, window)
            image[y0:y1, x0:x1] = patch if threshold is None else patch > threshold

    parallel(work)
    return out


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks of one image's detections, kept small until one is asked for.

    375 nuclei on an image of 1388 x 1040 are 1 MB so, and 2.2 GB pasted. ``masks[i]`` and iteration paste
    one, ``masks[keep]`` is a selection, `numpy` pastes all, `window` and `rle` never make a whole image.

    Parameters
    ----------
    probabilities : (N, M, M) float array
    boxes : (N, 4) float array
        In pixels of the image.
    image_size : (H, W)
    convention : "float" or "torchvision"
        How to paste: see `paste_mask`.
    """

    probabilities: np.ndarray
    boxes: np.ndarray
    image_size: tuple[int, int]
    convention: str = "float"

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape that `numpy` will have: (N, 1, H, W)."""
        return len(self), 1, *self.image_size

    def window(self, i: int) -> tuple[Window, np.ndarray]:
        """Mask i pasted, without the zeros around it: (y0, y1, x0, x1) and the (y1 - y0, x1 - x0) patch."""
        return paste_mask(self.probabilities[i], self.boxes[i], self.image_size, self.convention)

    def __getitem__(self, index):
        """An int pastes that mask, (H, W) float; a slice, index array or bool array selects, as `Masks`."""
        if not isinstance(index, int | np.integer):
            return Masks(self.probabilities[index], self.boxes[index], self.image_size, self.convention)
        mask, box = self.probabilities[index][None], self.boxes[index][None]
        return paste_masks(mask, box, self.image_size, self.convention)[0, 0]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def numpy(self) -> np.ndarray:
        """All masks pasted: (N, 1, H, W), on the CPU; N H W floats."""
        if array_module(self.probabilities) is np:
            return paste_masks(self.probabilities, self.boxes, self.image_size, self.convention)
        out = np.empty(self.shape, self.probabilities.dtype)
        for image, mask in zip(out[:, 0], self):
            image[:] = to_cpu(mask)  # sync: one at a time, all together may not fit there
        return out

    def to(self, device: str) -> "Masks":
        """The same masks with probabilities and boxes on "cpu" or "cuda"."""
        arrays = (to_device(a, device) for a in (self.probabilities, self.boxes))  # sync: to the host
        return Masks(*arrays, self.image_size, self.convention)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.numpy().astype(dtype or self.probabilities.dtype, copy=False)

    def rle(self, threshold: float = 0.5) -> list[dict]:
        """Where each mask is above the threshold, as COCO's run lengths: see `encode_window`."""
        masks = self.to("cpu")  # small, where patches are not
        patches = (masks.window(i) for i in range(len(masks)))
        return [encode_window(window, patch > threshold, self.image_size) for window, patch in patches]


def encode_window(window: Window, patch: np.ndarray, image_size: tuple[int, int]) -> dict:
    """COCO's compressed run lengths of a mask that is given by its window alone.

    Parameters
    ----------
    window : (y0, y1, x0, x1)
    patch : (y1 - y0, x1 - x0) bool array
        The mask inside the window; outside it is False.
    image_size : (H, W)

    Returns
    -------
    dict with "size", [H, W], and "counts", a str: ready for JSON and for pycocotools, equal to what
    ``pycocotools.mask.encode`` gives for the whole mask.
    """
    from pycocotools import mask as coco_mask

    y0, _, x0, _ = window
    height, width = (int(v) for v in image_size)
    # Run lengths go down the columns, the first one, maybe of no pixels, being background. (h, w) -> (w, h)
    columns = np.pad(patch.T, ((0, 0), (1, 1))).astype(np.int8)
    steps = np.diff(columns, axis=1)  # 1 where a run begins, -1 just after its end
    begin, end = ((x + x0) * height + y + y0 for x, y in (np.nonzero(steps == 1), np.nonzero(steps == -1)))
    bounds = np.stack((begin, end), axis=1).ravel()
    # a run at the bottom of a column goes on at the top of the next one: those two bounds are equal
    joined = np.flatnonzero(bounds[1:] == bounds[:-1])
    bounds = np.delete(bounds, np.concatenate((joined, joined + 1)))
    counts = np.diff(bounds, prepend=0, append=height * width)
    if len(counts) > 1 and counts[-1] == 0:  # the mask goes on to the last pixel: no background after it
        counts = counts[:-1]
    size = [height, width]
    rle = coco_mask.frPyObjects({"size": size, "counts": counts.tolist()}, height, width)
    return {"size": size, "counts": rle["counts"].decode("ascii")}


def mask_to_box(masks):
    """The tightest box around each mask.

    Parameters
    ----------
    masks : (N, H, W) bool or integer array

    Returns
    -------
    (N, 4) float32 array, x1, y1, x2, y2: from the left edge of the first pixel to the right edge of the last
    (x2, y2 are one more than those of ``torchvision.ops.masks_to_boxes``, which gives pixel indices);
    0, 0, 0, 0 for an empty mask.
    """
    xp = array_module(masks)
    boxes = xp.zeros((len(masks), 4), dtype=np.float32)
    for side, across in ((0, 1), (1, 2)):  # x: any over rows; y: any over columns
        hit = masks.any(axis=across)  # (N, W), then (N, H)
        last = hit.shape[1] - hit[:, ::-1].argmax(axis=1)
        boxes[:, side] = xp.where(hit.any(axis=1), hit.argmax(axis=1), 0)
        boxes[:, side + 2] = xp.where(hit.any(axis=1), last, 0)
    return boxes


# --------------------------------------------------------------------------------------------- cropping

_ALIGNED = {"float": True, "torchvision": False}


def _samples(boxes, bins: int, convention: str):
    """Where RoIAlign samples, for y and x: (R, 2, 3) float64 of start, step, count.

    Sample s lies at ``start + (s + 0.5) step``, in pixels counted from the centre of pixel 0; a bin has
    `count` samples, as many as it has pixels, rounded up.
    """
    xp = array_module(boxes)
    low, high = _sides(boxes)
    if _of(convention, _ALIGNED):
        low, high = low - 0.5, high - 0.5
        extent = high - low
    else:
        extent = xp.maximum(high - low, 1)
    count = xp.maximum(xp.ceil(extent / bins), 0).astype(np.float64)  # in the boxes' dtype, as kernels round
    step = extent.astype(np.float64) / xp.maximum(bins * count, 1)
    return xp.stack((low.astype(np.float64), step, count), axis=-1)


def _crop_axis(start: float, step: float, count: float, bins: int, length: int) -> tuple[int, np.ndarray]:
    """Along one axis: the first pixel read, and the weights (bins, pixels read) of RoIAlign's bins.

    Each bin is the mean of its samples; a sample interpolates between the two pixel centres around it, stays
    at the edge pixel up to one pixel outside, and is 0 beyond.
    """
    samples = int(count)
    position = start + (np.arange(bins * samples) + 0.5) * step
    inside = np.flatnonzero((position >= -1) & (position <= length))
    if len(inside) == 0:
        return 0, np.zeros((bins, 0))
    position = np.clip(position[inside], 0, length - 1)
    before = position.astype(np.int64)
    after = np.minimum(before + 1, length - 1)
    first, pixels = int(before[0]), int(after[-1] - before[0]) + 1
    cell = inside // samples * pixels - first  # the bin's row in the flattened (bins, pixels)
    share = position - before
    weights = np.bincount(
        np.concatenate((cell + before, cell + after)),
        np.concatenate((1 - share, share)) / samples,
        minlength=bins * pixels,
    )
    return first, weights.reshape(bins, pixels)


def crop_mask(mask, box, size: int, convention: str = "float", dtype=np.float32):
    """What a box sees of one mask, at the resolution of the mask head: RoIAlign of the bitmap.

    Parameters
    ----------
    mask : (H, W) bool or integer array
    box : (4,) float array
        In pixels of the mask; it may reach beyond it.
    size : int
        M.
    convention : "float" or "torchvision"
        RoIAlign with or without ``aligned``; both take as many samples a bin as it has pixels, rounded up.
    dtype : float dtype
        Of the result.

    Returns
    -------
    (M, M) array in [0, 1]: the share of each bin that the mask fills.
    """
    return _crop(mask, _samples(to_cpu(box)[None], size, convention)[0], size, dtype)


def _crop(mask, samples, size: int, dtype) -> np.ndarray:  # (H, W), (2, 3) -> (M, M)
    (y0, rows), (x0, columns) = (  # (M, h), (M, w)
        _crop_axis(*axis, size, length) for axis, length in zip(samples.tolist(), mask.shape)
    )
    window = to_cpu(mask[y0 : y0 + rows.shape[1], x0 : x0 + columns.shape[1]]).astype(dtype)
    return rows.astype(dtype) @ window @ columns.astype(dtype).T


def crop_masks(
    masks: Sequence, boxes, matches, size: int, convention: str = "float", threshold: float | None = None
):
    """The mask head's targets: for each RoI, its object's mask within its box.

    Parameters
    ----------
    masks : (G, H, W) bool or integer array, or on the CPU any sequence of (H, W) arrays
        Each is looked up once, so a sequence may decode its masks only then.
    boxes : (R, 4) float array
        The RoIs.
    matches : (R,) integer array
        Index of each RoI's object. On a GPU one that does not exist gives NaN: to raise, the host would wait.
    size : int
        M.
    convention : "float" or "torchvision"
        See `crop_mask`.
    threshold : float, optional
        Binary targets, 1 from this value on (detectron2: 0.5); by default they stay soft (torchvision).

    Returns
    -------
    (R, M, M) array of the boxes' dtype, in [0, 1].
    """
    xp, samples = array_module(boxes), _samples(boxes, size, convention)
    out = xp.zeros((len(boxes), size, size), dtype=boxes.dtype)
    if xp is not np:
        masks, matches = xp.ascontiguousarray(masks, np.uint8), xp.ascontiguousarray(matches, np.int64)
        args = (masks, matches, samples, len(boxes), *masks.shape, size, out)
        launch("masks", "crop_masks", (-(-out.size // 256),), 256, args, out.dtype)
    else:
        needed = {match: masks[match] for match in set(matches.tolist())}

        def work(part, parts):
            for r in range(part, len(out), parts):
                out[r] = _crop(needed[int(matches[r])], samples[r], size, boxes.dtype)

        parallel(work)
    return out if threshold is None else (out >= threshold).astype(boxes.dtype)
