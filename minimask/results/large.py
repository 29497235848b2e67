"""Prediction on images that keep their own bit depth until they are as small as the network sees them.

An image of 13000 x 13000 takes 2 GB as float32, and 6 while it is normalised; its file may have 20 kB.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from minimask.boxes import scale_boxes
from minimask.data.images import shrink, to_float

LARGE = 2**24
"""Pixels above which an image is resized before the model gets it, and drawn at that size."""


def predict_pixels(model: Any, pixels: np.ndarray) -> tuple[dict, np.ndarray, dict]:
    """What a model finds in an image as `data.images.decode` returns it.

    Up to `LARGE` pixels this is ``model.predict``. A larger image is resized first, which changes the
    results only by rounding.

    Returns
    -------
    found : dict
        As ``model.predict`` returns it, in pixels of the image.
    image : (3, h, w) float32
        To draw on; smaller than the image if that is large.
    seen : dict
        The same as `found`, in pixels of `image`.
    """
    height, width = pixels.shape[:2]
    image = to_float(pixels) if height * width <= LARGE else _as_seen(model, pixels)
    (seen,) = model.predict([image])
    h, w = image.shape[1:]
    if (h, w) == (height, width):
        return seen, image, seen
    scale = height / h, width / w
    found = seen | {"boxes": scale_boxes(seen["boxes"], scale)}
    if "masks" in seen:
        boxes = scale_boxes(seen["masks"].boxes, scale)
        found["masks"] = replace(seen["masks"], boxes=boxes, image_size=(height, width))
    if "keypoints" in seen:
        found["keypoints"] = seen["keypoints"] * np.array([scale[1], scale[0], 1], seen["keypoints"].dtype)
    return found, image, seen


def predict_at(model: Any, dataset: Any, index: int) -> dict:
    """What a model finds in an image of a data set, in pixels of that image."""
    if hasattr(dataset, "pixels"):
        return predict_pixels(model, dataset.pixels(index))[0]
    return model.predict([dataset.image(index)])[0]


def size_as_seen(model: Any, size: tuple[int, int]) -> tuple[int, int]:
    """The (h, w) to which the model would scale an image of (H, W); never larger than that.

    A magnification below 1 is left out, since the model still applies it.
    """
    transform = model.transform
    height, width = transform.resized(size, transform.min_sizes[-1])
    if transform.min_sizes[-1] is None and transform.magnification < 1:
        height, width = (round(side / transform.magnification) for side in (height, width))
    return min(height, size[0]), min(width, size[1])


def _as_seen(model: Any, pixels: np.ndarray) -> np.ndarray:
    """(3, h, w) float32, of the size `size_as_seen`."""
    return shrink(pixels, size_as_seen(model, pixels.shape[:2]))
