"""Launchers of masks.cu: cropping and pasting masks on a GPU. On the CPU `minimask.masks` does it itself."""

import numpy as np

from minimask.backend import array_module, launch

THREADS = 256  # a block


def crop(masks, matches, low, step, samples, size: int, dtype):
    """What RoIs see of their objects' masks: (R, M, M) of `dtype`.

    Parameters
    ----------
    masks : (G, H, W) bool or integer CuPy array
    matches : (R,) integer CuPy array
        A RoI whose object does not exist gets NaN: to raise, the host would have to wait for the GPU.
    low, step : (R, 2) float64 CuPy arrays
    samples : (R, 2) int32 CuPy array
        Of each RoI's bins along y and x: the first edge, the distance of samples, how many a bin.
    size : int
        M.
    """
    xp = array_module(masks)
    masks, matches = xp.ascontiguousarray(masks, np.uint8), xp.ascontiguousarray(matches, np.int64)
    low, step, samples = map(xp.ascontiguousarray, (low, step, samples))
    targets = xp.empty((len(low), size, size), dtype=dtype)
    args = (masks, matches, low, step, samples, len(low), *masks.shape, size, targets)
    launch("masks", "crop_masks", (-(-targets.size // THREADS),), THREADS, args, dtype)
    return targets


def paste(masks, origin, scale, first, stop, shift: float, image_size, threshold: float | None = None):
    """Masks in images of their own: (N, H, W) of the masks' dtype, or bool where there is a threshold.

    Parameters
    ----------
    masks : (N, M, M) float CuPy array
    origin, scale : (N, 2) float64 CuPy arrays
    first, stop : (N, 2) int32 CuPy arrays
        Of each mask along y and x: pixel p, within [first, stop), reads cell
        ``(p + 0.5 - origin) * scale - shift``, counted from the centre of cell 0.
    image_size : (H, W)
    threshold : float, optional
    """
    xp, shape = array_module(masks), (len(masks), *image_size)
    images = xp.empty(shape, dtype=masks.dtype if threshold is None else np.uint8)
    out = (images, None) if threshold is None else (None, images)
    sizes = (len(masks), masks.shape[-1], *image_size)
    arrays = map(xp.ascontiguousarray, (masks, origin, scale, first, stop))
    args = (*arrays, shift, *sizes, threshold or 0.0, *out)
    grid = (min(-(-image_size[0] * image_size[1] // THREADS), 2**16), min(len(masks), 2**16 - 1))
    launch("masks", "paste_masks", grid, THREADS, args, masks.dtype)
    return images if threshold is None else images.view(bool)
