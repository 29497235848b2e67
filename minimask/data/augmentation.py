"""Random crops, scales, flips and colours, of image, boxes, masks and keypoints together.

What to do is drawn first (`draw_plan`) and carried out second, so that a dataset need only decode the window
that the plan asks for. Coordinates are those of `sample` throughout: pixel i covers [i, i + 1).
"""

from dataclasses import dataclass

import numpy as np

from minimask.data.sample import PixelBox, Sample, crop
from minimask.data.skeleton import Skeleton
from minimask.errors import InputError

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey value of a pixel (ITU-R BT.601)."""

CROP_TRIES = 10
PIXELS_MOST = 2**28
"""The most in an image after scaling: 3 GiB as float32."""


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image.

    Attributes
    ----------
    crop : int
        Side of a square crop in pixels, after scaling; 0 takes the whole image. Smaller images stay smaller:
        batching pads them. Crops that contain the middle of an object are preferred (10 draws).
    flip_horizontal, flip_vertical : bool
        Mirror an image with probability 1/2.
    rotate90 : bool
        Turn by 0, 90, 180 or 270 degrees.
    scale : (low, high)
        Range of a factor, drawn uniformly in its logarithm.
    brightness, contrast, saturation : float v in 0..1
        A factor from 1 - v to 1 + v, respectively for: all values; their distances to the image's mean grey;
        the distances of each pixel's channels to the pixel's grey.
    """

    crop: int = 0
    flip_horizontal: bool = False
    flip_vertical: bool = False
    rotate90: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self):
        if self.crop < 0:
            raise InputError(f"augmentation: crop must be a number of pixels, or 0 for none; is {self.crop}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < np.inf:
            raise InputError(f"augmentation: scale must be two factors, 0 < low <= high; is {self.scale}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"augmentation: {name} must be in 0..1; is {getattr(self, name)}")


@dataclass(frozen=True)
class Plan:
    """What happens to one image, in this order, except that saturation changes before contrast."""

    window: PixelBox  # cut out of the image
    height: int  # of the window after scaling
    width: int
    transpose: bool  # rows become columns; with the flips, this gives every turn by a multiple of 90 degrees
    flip_x: bool
    flip_y: bool
    brightness: float
    contrast: float
    saturation: float


def draw_plan(
    options: Augmentation, height: int, width: int, boxes: np.ndarray, rng: np.random.Generator
) -> Plan:
    """Draw what happens to an image of `height` x `width` with objects in `boxes`, (G, 4) x1, y1, x2, y2."""
    low, high = np.log(options.scale)
    factor = float(np.exp(rng.uniform(low, high)))
    side = max(1, round(options.crop / factor)) if options.crop else max(height, width)  # before scaling
    w, h = min(side, width), min(side, height)
    corners = rng.integers(0, [width - w, height - h], size=(CROP_TRIES, 2), endpoint=True)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 - corners[:, None]  # (CROP_TRIES, G, 2), in each crop
    shown = ((middle >= 0) & (middle < (w, h))).all(axis=2)  # (CROP_TRIES, G)
    x1, y1 = corners[shown.any(axis=1).argmax()].tolist()  # the first that shows an object, or else the first

    def scaled(size: int) -> int:
        return options.crop if size == side and options.crop else max(1, round(size * factor))

    turn = int(rng.integers(4)) if options.rotate90 else 0  # counter-clockwise quarters, as np.rot90
    mirror_x, mirror_y = rng.random(2) < 0.5
    brightness, contrast, saturation = rng.uniform(-1.0, 1.0, size=3).tolist()
    return Plan(
        window=PixelBox(x1, y1, x1 + w, y1 + h),
        height=scaled(h),
        width=scaled(w),
        transpose=turn in (1, 3),
        flip_x=(turn in (2, 3)) != (options.flip_horizontal and bool(mirror_x)),
        flip_y=(turn in (1, 2)) != (options.flip_vertical and bool(mirror_y)),
        brightness=1.0 + options.brightness * brightness,
        contrast=1.0 + options.contrast * contrast,
        saturation=1.0 + options.saturation * saturation,
    )


def carry_out(sample: Sample, plan: Plan) -> Sample:
    """Scale, turn, mirror and colour a sample that has already been cut to the plan's window."""
    image, masks, crowd_masks = sample.image, sample.masks, sample.crowd_masks
    boxes, crowd_boxes, keypoints = sample.boxes, sample.crowd_boxes, sample.keypoints
    height, width = image.shape[1:]
    if (plan.height, plan.width) != (height, width):
        if plan.height * plan.width > PIXELS_MOST:
            raise InputError(
                f"data.scale makes {plan.width} x {plan.height} pixels of {width} x {height}, where at most "
                f"{PIXELS_MOST:,} are taken; lower it, or set data.crop"
            )
        image = resize_image(image, plan.height, plan.width)
        masks, crowd_masks = (resize_masks(m, plan.height, plan.width) for m in (masks, crowd_masks))
        factor = np.array([plan.width / width, plan.height / height] * 2, np.float32)
        boxes, crowd_boxes = boxes * factor, crowd_boxes * factor
        if keypoints is not None:
            keypoints = keypoints * np.array([*factor[:2], 1], np.float32)

    def turned(array):  # (..., H, W)
        array = array.swapaxes(-1, -2) if plan.transpose else array
        array = array[..., ::-1] if plan.flip_x else array
        return np.ascontiguousarray(array[..., ::-1, :] if plan.flip_y else array)

    image, masks, crowd_masks = turned(image), turned(masks), turned(crowd_masks)
    height, width = image.shape[1:]

    def turned_boxes(boxes):  # (G, 4)
        x1, y1, x2, y2 = (boxes[:, [1, 0, 3, 2]] if plan.transpose else boxes).T
        x1, x2 = (width - x2, width - x1) if plan.flip_x else (x1, x2)
        y1, y2 = (height - y2, height - y1) if plan.flip_y else (y1, y2)
        # A side on the border may be rounded to just beyond it by scaling and mirroring.
        return np.clip(np.stack([x1, y1, x2, y2], axis=1), 0, np.array([width, height] * 2, boxes.dtype))

    boxes, crowd_boxes = turned_boxes(boxes), turned_boxes(crowd_boxes)
    if keypoints is not None:
        keypoints = turn_keypoints(keypoints, plan, height, width, sample.skeleton)
    keep, crowd_keep = masks.any(axis=(1, 2)), crowd_masks.any(axis=(1, 2))  # shrinking may leave no pixel
    return Sample(
        _coloured(image, plan),
        boxes[keep],
        sample.labels[keep],
        masks[keep],
        crowd_boxes[crowd_keep],
        crowd_masks[crowd_keep],
        sample.image_id,
        None if keypoints is None else keypoints[keep],
        sample.skeleton,
    )


def turn_keypoints(
    keypoints: np.ndarray, plan: Plan, height: int, width: int, skeleton: Skeleton | None
) -> np.ndarray:
    """Keypoints (G, K, 3) turned and mirrored with an image that is height x width afterwards.

    A left hand looks like a right one in a mirror, so the two change places. A transposition is a mirror,
    too, and a turn is two mirrors: they change places after an odd number of mirrors.
    """
    x, y, seen = (keypoints[..., i] for i in ((1, 0, 2) if plan.transpose else (0, 1, 2)))  # (G, K) each
    x = np.float32(width) - x if plan.flip_x else x
    y = np.float32(height) - y if plan.flip_y else y
    turned = np.where(seen[..., None] > 0, np.stack([x, y, seen], axis=2), np.float32(0))
    mirrors = plan.transpose + plan.flip_x + plan.flip_y
    return turned[:, skeleton.mirrored] if skeleton and mirrors % 2 else turned


def augment(sample: Sample, options: Augmentation, rng: np.random.Generator) -> Sample:
    """A randomly changed copy of a sample: image, boxes, masks and keypoints alike.

    Objects that the crop cuts get the box around what is left of them, and are dropped if that is a smaller
    share than `sample.MIN_SHARE`.
    """
    plan = draw_plan(options, *sample.image.shape[1:], sample.boxes, rng)
    return carry_out(crop(sample, plan.window), plan)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(3, H, W) float32 -> (3, height, width): bilinear between pixel centres; averages when it shrinks."""
    from PIL import Image

    bilinear = Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(c).resize((width, height), bilinear)) for c in image])


def resize_masks(masks: np.ndarray, height: int, width: int) -> np.ndarray:
    """(G, H, W) uint8 -> (G, height, width): each new pixel takes the pixel in which its centre lies."""
    rows = ((np.arange(height) + 0.5) * (masks.shape[1] / height)).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * (masks.shape[2] / width)).astype(np.int64)
    return masks[:, rows[:, None], columns]


def _coloured(image: np.ndarray, plan: Plan) -> np.ndarray:
    if (plan.brightness, plan.contrast, plan.saturation) == (1.0, 1.0, 1.0):
        return image
    image = image * np.float32(plan.brightness)
    grey = np.tensordot(np.array(LUMA, np.float32), image, axes=1)  # (H, W)
    image = grey + (image - grey) * np.float32(plan.saturation)
    mean = grey.mean()
    image = mean + (image - mean) * np.float32(plan.contrast)
    return np.clip(image, 0.0, 1.0)
