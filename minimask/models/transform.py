"""From images and targets to a batch: normalise, resize, pad.

Shapes: N images (3, H_n, W_n) in, a batch (N, 3, H', W') out; G objects an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minimask.backend import array_module, to_device
from minimask.boxes import scale_boxes
from minimask.errors import InputError
from minimask.kernels import resample
from minimask.models.conventions import Conventions


@dataclass(frozen=True)
class Batch:
    """Images as the network sees them, on its device.

    Attributes
    ----------
    images : (N, 3, H', W') float
        Normalised, resized, padded with zeros at the right and at the bottom.
    sizes : N of (h, w)
        The part of `images` that each image fills.
    original_sizes : N of (H, W)
    """

    images: np.ndarray
    sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]

    @property
    def padded_size(self) -> tuple[int, int]:
        return self.images.shape[2:]

    def scale(self, n: int) -> tuple[float, float]:
        """Pixels of the batch per pixel of the original image n, vertically and horizontally."""
        (h, w), (height, width) = self.sizes[n], self.original_sizes[n]
        return h / height, w / width


@dataclass(frozen=True)
class Target:
    """One image's objects, in pixels of the batch, on the network's device.

    Attributes
    ----------
    boxes : (G, 4) float32
    labels : (G,) int64
        On the CPU, where RoIs are drawn.
    masks : (G, H, W) uint8
    mask_scale : (y, x)
        Pixels of `masks` per pixel of `boxes`.
    crowd_boxes : (C, 4) float32
        Regions where objects are not annotated one by one.
    """

    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    mask_scale: tuple[float, float]
    crowd_boxes: np.ndarray


class Transform:
    """Brings images, and with them their targets, to the size and range of values that the network expects.

    Parameters
    ----------
    conventions : Conventions
        Its mean, std and `resize_masks` are used.
    min_size : int or None
        The shorter side is scaled to this; None keeps the size.
    max_size : int
        The longer side does not exceed this.
    size_divisible : int
        The batch's height and width are padded to multiples of this.
    """

    def __init__(
        self, conventions: Conventions, min_size: int | None, max_size: int, size_divisible: int = 32
    ):
        self.conventions, self.min_size, self.max_size = conventions, min_size, max_size
        self.size_divisible = size_divisible

    def __call__(self, images: Sequence, dtype=np.float32, device: str = "cpu") -> Batch:
        """A `Batch` on `device` of N arrays (3, H_n, W_n), float RGB in 0..1, on either device.

        Raises
        ------
        InputError
            If an image has another shape, or a dtype that is not floating point.
        """
        if not len(images):
            raise InputError("no images: give a list of at least one array (3, H, W)")
        for n, image in enumerate(images):
            if getattr(image, "ndim", 0) != 3 or image.shape[0] != 3 or image.dtype.kind != "f":
                got = f"{getattr(image, 'shape', type(image).__name__)} {getattr(image, 'dtype', '')}".strip()
                raise InputError(f"images[{n}]: must be (3, H, W) floating point RGB in 0..1, is {got}")
        on_device = (to_device(image, device).astype(dtype, copy=False) for image in images)
        resized = [self._resize(self._normalize(image)) for image in on_device]
        height, width = self.padded([image.shape[1:] for image in images])
        batch = array_module(*resized).zeros((len(resized), 3, height, width), dtype)
        for n, image in enumerate(resized):
            batch[n, :, : image.shape[1], : image.shape[2]] = image
        return Batch(batch, [r.shape[1:] for r in resized], [tuple(i.shape[1:]) for i in images])

    def _normalize(self, image):
        xp, of_channels = array_module(image), (self.conventions.mean, self.conventions.std)
        mean, std = (xp.asarray(values, image.dtype)[:, None, None] for values in of_channels)  # (3, 1, 1)
        return (image - mean) / std

    def _resize(self, image):
        size = self.resized(image.shape[1:])
        return image if size == image.shape[1:] else resample.bilinear(image, size)

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) that an image of this size is scaled to; at least 1 pixel, however thin."""
        scale = self.max_size / max(size)
        scale = min(scale, 1.0 if self.min_size is None else self.min_size / min(size))
        return max(1, math.floor(size[0] * scale)), max(1, math.floor(size[1] * scale))

    def padded(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """(H', W') of a batch of images of these sizes."""
        largest = (max(sides) for sides in zip(*map(self.resized, sizes)))
        return tuple(-(-side // self.size_divisible) * self.size_divisible for side in largest)

    def targets(self, targets: Sequence[dict], batch: Batch) -> list[Target]:
        """Boxes and masks of the batch's images, checked and scaled with the images.

        Parameters
        ----------
        targets : N of dict
            ``boxes`` (G, 4) x1, y1, x2, y2 in pixels of the original image, ``labels`` (G,) from 1 up,
            ``masks`` (G, H, W), and optionally ``crowd_boxes`` (C, 4).

        Raises
        ------
        InputError
            If something has the wrong shape, a box has no area, or a label is 0.
        """
        if len(targets) != len(batch.sizes):
            raise InputError(f"targets: {len(targets)} for {len(batch.sizes)} images; give one dict an image")
        return [self._target(t, n, batch) for n, t in enumerate(targets)]

    def _target(self, target: dict, n: int, batch: Batch) -> Target:
        dtype, on_device = batch.images.dtype, array_module(batch.images).asarray
        boxes = np.asarray(target["boxes"], dtype).reshape(-1, 4)
        labels = np.asarray(target["labels"], np.int64).reshape(-1)
        masks = np.asarray(target["masks"])
        size = batch.original_sizes[n]
        if masks.size == 0 and not len(boxes):
            masks = np.zeros((0, *size), np.uint8)
        _check(boxes, labels, masks, n, size)
        scale = batch.scale(n)
        masks, mask_scale = on_device(masks), (1 / scale[0], 1 / scale[1])
        if self.conventions.resize_masks and batch.sizes[n] != size:
            masks, mask_scale = resample.nearest(masks, batch.sizes[n]), (1.0, 1.0)
        crowd_boxes = np.asarray(target.get("crowd_boxes", np.zeros((0, 4))), dtype).reshape(-1, 4)
        boxes, crowd_boxes = (on_device(scale_boxes(b, scale)) for b in (boxes, crowd_boxes))
        return Target(boxes, labels, masks, mask_scale, crowd_boxes)


def _check(boxes, labels, masks, n: int, size: tuple[int, int]) -> None:
    """Raise an InputError if the targets of image n, of (H, W), are wrong."""
    if len(labels) != len(boxes) or masks.shape != (len(boxes), *size):
        raise InputError(
            f"targets[{n}]: {len(boxes)} boxes, {len(labels)} labels and masks {masks.shape} do not belong "
            f"together; for an image of {size} masks must be {(len(boxes), *size)}"
        )
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    bad = np.flatnonzero(~(np.isfinite(boxes).all(axis=1) & has_area))
    if len(bad):
        raise InputError(
            f"targets[{n}]: box {bad[0]} is {boxes[bad[0]].tolist()}; boxes are x1, y1, x2, y2 with "
            "x1 < x2, y1 < y2 (x, y, width, height must be converted)"
        )
    if len(labels) and labels.min() < 1:
        raise InputError(f"targets[{n}]: label {labels.min()}; classes are numbered from 1, 0 is background")
