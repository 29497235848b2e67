"""What a recipe is chosen by: numbers of a data set, and of the network that is to be trained on it.

Shapes: N images, G objects, M images that were looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minimask.anchors import AnchorGenerator
from minimask.config import Config
from minimask.models.networks import NETWORKS, build_model
from minimask.models.transform import Transform
from minimask.results.survey.anchors import View, strides_of

LOOKED_AT = 32  # images, evenly spaced, whose pixels are read
COUNTED = 400  # generated pictures, the first ones, that stand for all
MEASURED = 4000  # objects, evenly spaced, whose overlaps with anchors are computed
_SHOWN = 256  # rows and columns of an image that are looked at, evenly spaced


@dataclass(frozen=True, eq=False)
class Pixels:
    """What the pixels of some images show; (M,) each.

    Attributes
    ----------
    grey : bool
        No pixel has a colour.
    brightness : float
        The mean, where white is 1.
    fall : float
        By how much the upper half is brighter than the lower one.
    """

    grey: np.ndarray
    brightness: np.ndarray
    fall: np.ndarray


@dataclass(frozen=True, eq=False)
class Statistics:
    """Numbers of a data set, crowd regions aside.

    Attributes
    ----------
    class_names : tuple of str
    keypoints : int
        Of an object.
    sizes : (N, 2) int
        Height and width of the images.
    images : (G,) int
        The image that each object is in.
    boxes : (G, 4) float64
        x1, y1, x2, y2 in pixels of the image.
    pixels : Pixels
    total : int
        Images of the data set; more than N if it is a long generated one.
    """

    class_names: tuple[str, ...]
    keypoints: int
    sizes: np.ndarray
    images: np.ndarray
    boxes: np.ndarray
    pixels: Pixels
    total: int

    @property
    def sides(self) -> np.ndarray:
        """(G,): the square roots of the boxes' areas."""
        return np.sqrt((self.boxes[:, 2:] - self.boxes[:, :2]).prod(axis=1))

    @property
    def longest(self) -> np.ndarray:
        """(G,): the longer sides of the boxes."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]).max(axis=1, initial=0)

    @property
    def counts(self) -> np.ndarray:
        """(N,): the objects of each image."""
        return np.bincount(self.images, minlength=len(self.sizes))


@dataclass(frozen=True)
class Network:
    """What the rules must know of a network.

    Attributes
    ----------
    anchors : AnchorGenerator
    strides : tuple of int
        Pixels per cell of each level that has anchors.
    transform : Transform
        How it scales images.
    canonical_scale : float or None
        Of its RoI pooling; None if it has only one level.
    rois : int
        Per image, in the losses of its heads.
    learning_rate : float
        At its greatest, for a batch of `batch_size` images.
    batch_size : int
    """

    anchors: AnchorGenerator
    strides: tuple[int, ...]
    transform: Transform
    canonical_scale: float | None
    rois: int
    learning_rate: float
    batch_size: int

    @property
    def anchor_sizes(self) -> tuple[float, ...]:
        """The sizes of all levels, rising."""
        return tuple(float(size) for level in self.anchors.sizes for size in level)

    @property
    def scales_itself(self) -> bool:
        """Whether it scales every image to its own size, whatever the image's was."""
        return self.transform.min_sizes[-1] is not None

    def with_sizes(self, sizes: Sequence[float]) -> AnchorGenerator:
        """Its anchors with other sizes: one per level, or all on its only level."""
        one_level = len(self.anchors.sizes) == 1
        levels = (tuple(sizes),) if one_level else tuple((size,) for size in sizes)
        return replace(self.anchors, sizes=levels)


def network_of(config: Config, data: Statistics) -> Network:
    """The network that a configuration names, as it is built for these data.

    Raises
    ------
    InputError
        If it does not suit the data or the options.
    """
    model = build_model(config, len(data.class_names) + 1, "cpu", data.keypoints)
    recipe, pooler = NETWORKS[config.model.name].recipe, model.box_head.pooler
    return Network(
        model.rpn.anchors,
        strides_of(model),
        model.transform,
        getattr(pooler, "canonical_scale", None),
        model.box_head.options.batch_size_per_image,
        recipe.learning_rate,
        recipe.batch_size,
    )


def statistics_of(dataset: Any) -> Statistics:
    """Measure a data set; of its pixels, `LOOKED_AT` images.

    Raises
    ------
    InputError
        If one of these images cannot be read.
    """
    if hasattr(dataset, "table"):
        table = dataset.table.select(~dataset.table.crowd)
        corners = np.concatenate([table.boxes[:, :2], table.boxes[:, :2] + table.boxes[:, 2:]], axis=1)
        sizes = np.array([(record.height, record.width) for record in dataset.records], np.int64)
        images = table.images
    else:
        samples = [dataset[index] for index in range(min(len(dataset), COUNTED))]
        corners = np.concatenate([sample.boxes for sample in samples]).astype(np.float64)
        sizes = np.array([sample.image.shape[1:] for sample in samples], np.int64)
        images = np.repeat(np.arange(len(samples)), [len(sample.boxes) for sample in samples])
    skeleton = getattr(dataset, "skeleton", None)
    return Statistics(
        tuple(dataset.class_names),
        len(skeleton.names) if skeleton else 0,
        sizes,
        images,
        np.clip(corners, 0, sizes[images][:, [1, 0, 1, 0]]),
        _look_at(dataset),
        len(dataset),
    )


def _look_at(dataset: Any) -> Pixels:
    rows = []
    for index in np.unique(np.linspace(0, len(dataset) - 1, LOOKED_AT).astype(int)).tolist():
        image = _thinned(dataset, index)  # (H', W', 3)
        upper, lower = np.array_split(image, 2) if len(image) > 1 else (image, image)
        rows.append((bool((image == image[..., :1]).all()), image.mean(), upper.mean() - lower.mean()))
    grey, brightness, fall = zip(*rows)
    return Pixels(np.array(grey), np.array(brightness), np.array(fall))


def _thinned(dataset: Any, index: int) -> np.ndarray:
    """Some rows and columns of an image: (H', W', 3) float64, white 1; the rest is never made float."""
    pixels = dataset.pixels(index) if hasattr(dataset, "pixels") else dataset.image(index).transpose(1, 2, 0)
    rows, columns = (np.linspace(0, n - 1, min(n, _SHOWN)).astype(int) for n in pixels.shape[:2])
    few = pixels[rows[:, None], columns]
    few = few if few.ndim == 3 else few[..., None].repeat(3, axis=2)
    return few / (np.iinfo(few.dtype).max if few.dtype.kind in "ui" else 1.0)


def input_factors(data: Statistics, config: Config, network: Network) -> np.ndarray:
    """Pixels of the network's input per pixel of each image, in prediction: (N,) float64."""
    own, model = network.transform, config.model
    transform = Transform(
        own.conventions,
        own.min_sizes,
        model.max_size or own.max_size,
        own.size_divisible,
        model.magnification or own.magnification,
    )
    sizes, which = np.unique(data.sizes, axis=0, return_inverse=True)
    scaled = [transform.resized(tuple(size), own.min_sizes[-1]) for size in sizes.tolist()]
    return np.array(scaled)[which.reshape(-1), 0] / data.sizes[:, 0]  # NumPy 2.0 gives (N, 1)


def seen(data: Statistics, factors: np.ndarray, divisible: int) -> View:
    """Objects as a network sees them in whole images scaled by (N,) `factors`; at most `MEASURED`."""
    rows = np.unique(np.linspace(0, len(data.images) - 1, MEASURED).astype(int)) if len(data.images) else []
    factor = factors[data.images[rows]]
    boxes = data.boxes[rows] * factor[:, None]
    sizes = np.ceil(data.sizes[data.images[rows]] * factor[:, None] / divisible).astype(int) * divisible
    return View(boxes, (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), sizes, factor)
