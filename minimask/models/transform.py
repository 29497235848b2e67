"""From images and targets to a batch: normalise, resize, pad.

Shapes: N images (3, H_n, W_n) in, a batch (N, 3, H', W') out; G objects per image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np

from minimask.backend import array_module, device_of, to_cpu, to_device
from minimask.boxes import scale_boxes
from minimask.errors import InputError
from minimask.kernels import resample
from minimask.models.conventions import Conventions
from minimask.models.inputs import Objects, check_images, check_targets
from minimask.models.options import check_number
from minimask.randomness import Draws, Purpose

PIXELS_MOST = 2**30
"""Of a batch: 12 GiB as float32, and the network takes many times as much."""


@dataclass(frozen=True)
class Batch:
    """Images as the network sees them, on its device.

    Attributes
    ----------
    images : (N, 3, H', W') float
        Normalised, resized, padded with zeros on the right and at the bottom.
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
    boxes : (G, 4) float
        Of the batch's dtype, as are crowd boxes and keypoints.
    labels : (G,) int64
        On the CPU, where RoIs are drawn.
    masks : (G, H, W) uint8, or None
        None where no mask head needs them.
    mask_scale : (y, x)
        Pixels of `masks` per pixel of `boxes`.
    crowd_boxes : (C, 4) float
        Regions where objects are not annotated one by one.
    keypoints : (G, K, 3) float, or None
        x, y, visibility: 0 not labelled, 1 hidden, 2 visible.
    has_keypoints : (G,) bool, or None
        Whether an object has a labelled keypoint; on the CPU, like the labels.
    """

    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    mask_scale: tuple[float, float]
    crowd_boxes: np.ndarray
    keypoints: np.ndarray | None = None
    has_keypoints: np.ndarray | None = None


class Transform:
    """Brings images, and their targets with them, to the size and range of values that the network expects.

    Parameters
    ----------
    conventions : Conventions
        Its mean, std, `resize_masks` and `sizes_rounded` are used.
    min_size : int, sequence of int, or None
        The shorter side is scaled to this. If there are several, a loss draws one for each image, and results
        take the last. None scales by `magnification` instead.
    max_size : int
        The longer side does not exceed this.
    size_divisible : int
        The batch's height and width are padded to multiples of this.
    magnification : float
        The scale where `min_size` is None: 1 keeps the size.
    """

    def __init__(
        self,
        conventions: Conventions,
        min_size: int | Sequence[int] | None,
        max_size: int,
        size_divisible: int = 32,
        magnification: float = 1.0,
    ):
        check_number("magnification", magnification, low=2**-16)
        self.magnification = magnification
        self.conventions, self.max_size, self.size_divisible = conventions, max_size, size_divisible
        self.min_sizes = tuple(min_size) if isinstance(min_size, Sequence) else (min_size,)
        sizes = [max_size, *(size for size in self.min_sizes if size is not None)]
        if not self.min_sizes or not all(isinstance(size, Real) and 1 <= size < math.inf for size in sizes):
            raise InputError(f"min_size and max_size must be at least 1, are {min_size!r} and {max_size!r}")
        mean, std = conventions.mean, conventions.std
        if not (len(mean) == len(std) == 3 and np.isfinite([mean, std]).all() and min(std) > 0):
            raise InputError(
                f"image_mean and image_std must be three numbers each, std above 0: {mean}, {std}"
            )

    def __call__(self, images, dtype=np.float32, device: str = "cpu", draws: Draws | None = None) -> Batch:
        """A `Batch` on `device` of N arrays (3, H_n, W_n), float RGB in 0..1, on either device.

        With `draws`, as for a loss, one of several `min_size` is drawn for each image; without, all take the
        last.

        Raises
        ------
        InputError
            If an image has the wrong form (see `inputs.check_images`), or the batch too many pixels.
        """
        return self.batch(check_images(images), dtype, device, draws)

    def batch(
        self, images: Sequence, dtype=np.float32, device: str = "cpu", draws: Draws | None = None
    ) -> Batch:
        """As ``__call__``, for images that have been checked."""
        original = [tuple(image.shape[1:]) for image in images]
        sizes = [self.resized(size, self._min_size(n, draws)) for n, size in enumerate(original)]
        self._check_memory(sizes)
        on_device = (to_device(image, device).astype(dtype, copy=False) for image in images)
        resized = [self._resize(self._normalize(image), size) for image, size in zip(on_device, sizes)]
        batch = array_module(*resized).zeros((len(resized), 3, *self.padded(sizes)), dtype)
        for n, image in enumerate(resized):
            batch[n, :, : image.shape[1], : image.shape[2]] = image
        return Batch(batch, sizes, original)

    def _check_memory(self, sizes: Sequence[tuple[int, int]]) -> None:
        height, width = self.padded(sizes)
        if len(sizes) * height * width > PIXELS_MOST:
            raise InputError(
                f"a batch of {len(sizes)} x {width} x {height} pixels has more than {PIXELS_MOST:,}; scale "
                "images down by min_size and max_size, cut them into tiles, or give fewer at a time"
            )

    def _normalize(self, image):
        xp, of_channels = array_module(image), (self.conventions.mean, self.conventions.std)
        mean, std = (xp.asarray(values, image.dtype)[:, None, None] for values in of_channels)  # (3, 1, 1)
        return (image - mean) / std

    def _resize(self, image, size: tuple[int, int]):
        return image if size == image.shape[1:] else resample.bilinear(image, size)

    def _min_size(self, n: int, draws: Draws | None) -> int | None:
        """The `min_size` of image n."""
        if draws is None or len(self.min_sizes) == 1:
            return self.min_sizes[-1]
        return self.min_sizes[draws.rng(Purpose.IMAGE_SIZE, n).integers(len(self.min_sizes))]

    def resized(self, size: tuple[int, int], min_size: int | None) -> tuple[int, int]:
        """The (height, width), at least 1, that an image of this size is scaled to with this `min_size`."""
        scale = self.max_size / max(size)
        scale = min(scale, self.magnification if min_size is None else min_size / min(size))
        half = 0.5 if self.conventions.sizes_rounded else 0.0
        height, width = (max(1, math.floor(side * scale + half)) for side in size)
        return height, width

    def padded(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """(H', W') of a batch of images that were scaled to these sizes."""
        largest = (max(sides) for sides in zip(*sizes))
        return tuple(-(-side // self.size_divisible) * self.size_divisible for side in largest)

    def targets(self, targets: Sequence[dict], batch: Batch, **annotations) -> list[Target]:
        """Boxes, masks and keypoints of the batch's images, checked and scaled with the images.

        Raises
        ------
        InputError
            If a target has the wrong form (see `inputs.check_targets`).
        """
        checked = check_targets(targets, batch.original_sizes, batch.images.dtype, **annotations)
        return self.scaled(checked, batch)

    def scaled(self, targets: Sequence[Objects], batch: Batch) -> list[Target]:
        """As `targets`, for targets that have been checked."""
        return [self._scaled(t, n, batch) for n, t in enumerate(targets)]

    def _scaled(self, target: Objects, n: int, batch: Batch) -> Target:
        device, scale = device_of(batch.images), batch.scale(n)
        masks, mask_scale = target.masks, (1 / scale[0], 1 / scale[1])
        if masks is not None:
            masks = to_device(masks, device)
            if self.conventions.resize_masks and batch.sizes[n] != batch.original_sizes[n]:
                masks, mask_scale = resample.nearest(masks, batch.sizes[n]), (1.0, 1.0)
        boxes, crowd_boxes = (
            scale_boxes(to_device(b, device), scale) for b in (target.boxes, target.crowd_boxes)
        )
        found = Target(boxes, target.labels, masks, mask_scale, crowd_boxes)
        return found if target.keypoints is None else self._with_keypoints(found, target.keypoints, scale)

    def _with_keypoints(self, target: Target, keypoints, scale: tuple[float, float]) -> Target:
        labelled = (keypoints[..., 2] > 0).any(axis=1)
        labelled = to_cpu(labelled)  # sync: only for keypoints that are on a GPU; a data set's never are
        keypoints = to_device(keypoints, device_of(target.boxes))
        factors = array_module(keypoints).asarray([scale[1], scale[0], 1.0], keypoints.dtype)  # of x, y, v
        return replace(target, keypoints=keypoints * factors, has_keypoints=labelled)
