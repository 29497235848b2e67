"""One training or validation image with its objects, and how a window is cut out of it.

Shapes: G objects, C crowd regions, K keypoints, an image of H x W, a window of h x w. Boxes are x1, y1, x2,
y2 in pixels; pixel i covers the interval [i, i + 1), so a mask's tight box ends one beyond its last pixel.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minimask.data.skeleton import Skeleton

MIN_SHARE = 0.1
"""Objects of which a cut leaves a smaller share are dropped: a sliver does not show what it belongs to."""


class PixelBox(NamedTuple):
    """A window on an image: a box of whole pixels inside it, ``image[y1:y2, x1:x2]``.

    x comes first, as in any box; `minimask.masks.Window` has the order of an array's axes.
    """

    x1: int
    y1: int
    x2: int
    y2: int


@dataclass(frozen=True, eq=False)
class Sample:
    """An image and its objects.

    Attributes
    ----------
    image : (3, H, W) float32
        RGB in 0..1.
    boxes : (G, 4) float32
    labels : (G,) int64
        1 is the first class; 0, the background, never occurs here.
    masks : (G, H, W) uint8
        0 or 1.
    crowd_boxes : (C, 4) float32
    crowd_masks : (C, H, W) uint8
        Regions of many objects that were not annotated one by one: neither objects nor background.
    image_id : int
    keypoints : (G, K, 3) float32, or None
        x, y and visibility: 0 is not labelled, 1 hidden, 2 visible. None for data without keypoints.
    skeleton : Skeleton, or None
        The keypoints' names.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    crowd_boxes: np.ndarray
    crowd_masks: np.ndarray
    image_id: int
    keypoints: np.ndarray | None = None
    skeleton: Skeleton | None = None

    def target(self) -> dict[str, np.ndarray]:
        """As a loss takes it: boxes, labels, masks, crowd_boxes, keypoints if any; it ignores crowd_masks."""
        keypoints = {} if self.keypoints is None else {"keypoints": self.keypoints}
        return keypoints | {
            "boxes": self.boxes,
            "labels": self.labels,
            "masks": self.masks,
            "crowd_boxes": self.crowd_boxes,
            "crowd_masks": self.crowd_masks,
        }


def tight_boxes(masks: np.ndarray) -> np.ndarray:
    """The smallest box around each mask, from the left edge of its first pixel to the right edge of its last.

    Parameters
    ----------
    masks : (G, H, W) bool or integer

    Returns
    -------
    (G, 4) float32
        x1, y1, x2, y2; all zeros for a mask without pixels. x2 and y2 are one more than those of
        ``torchvision.ops.masks_to_boxes``, which returns indices of pixels.
    """
    height, width = masks.shape[1:]
    columns, rows = masks.any(axis=1), masks.any(axis=2)  # (G, W), (G, H)
    if not columns.size or not rows.size:  # argmax refuses a dimension of length 0
        return np.zeros((len(masks), 4), np.float32)
    x1, x2 = columns.argmax(axis=1), width - columns[:, ::-1].argmax(axis=1)
    y1, y2 = rows.argmax(axis=1), height - rows[:, ::-1].argmax(axis=1)
    boxes = np.stack([x1, y1, x2, y2], axis=1).astype(np.float32)
    return boxes * columns.any(axis=1, keepdims=True)


def cut(
    boxes: np.ndarray, masks: np.ndarray, pixels: np.ndarray, window: PixelBox, min_share: float = MIN_SHARE
) -> tuple[np.ndarray, np.ndarray]:
    """What a window leaves of objects.

    Parameters
    ----------
    boxes : (G, 4) float
        In the image's coordinates.
    masks : (G, h, w) uint8
        The part of each mask inside the window.
    pixels : (G,) int
        How many pixels each mask has in the whole image.
    window : PixelBox
    min_share : float
        Objects of which a smaller share of pixels is left are dropped, as are those without any pixel left.

    Returns
    -------
    keep : (G,) bool
    boxes : (G, 4) float32
        In the window's coordinates, dropped objects included: the given box if it lies inside the window,
        otherwise the box around what the window leaves of the mask.
    """
    left = masks.sum(axis=(1, 2), dtype=np.int64)
    keep = (left > 0) & (left >= min_share * pixels)
    x1, y1, x2, y2 = window
    inside = (boxes[:, :2] >= (x1, y1)).all(axis=1) & (boxes[:, 2:] <= (x2, y2)).all(axis=1)
    moved = (boxes - (x1, y1, x1, y1)).astype(np.float32)
    moved[~inside] = tight_boxes(masks[~inside])
    return keep, moved


def cut_keypoints(keypoints: np.ndarray, window: PixelBox) -> np.ndarray:
    """(G, K, 3) float32 in the window's coordinates; keypoints outside become not labelled: 0, 0, 0."""
    inside = ((keypoints[..., :2] >= window[:2]) & (keypoints[..., :2] <= window[2:])).all(axis=2)
    moved = keypoints - (*window[:2], 0)
    return np.where((inside & (keypoints[..., 2] > 0))[..., None], moved, 0).astype(np.float32)


def crop(sample: Sample, window: PixelBox) -> Sample:
    """The part of a sample inside a window; objects are cut, dropped and boxed as described for `cut`."""
    x1, y1, x2, y2 = window

    def objects(boxes, masks, min_share):
        part = masks[:, y1:y2, x1:x2]
        keep, moved = cut(boxes, part, masks.sum(axis=(1, 2), dtype=np.int64), window, min_share)
        return keep, moved[keep], part[keep]

    keep, boxes, masks = objects(sample.boxes, sample.masks, MIN_SHARE)
    _, crowd_boxes, crowd_masks = objects(sample.crowd_boxes, sample.crowd_masks, 0.0)
    image = np.ascontiguousarray(sample.image[:, y1:y2, x1:x2])
    keypoints = sample.keypoints
    if keypoints is not None:
        keypoints = cut_keypoints(keypoints[keep], window)
    labels = sample.labels[keep]
    return Sample(
        image, boxes, labels, masks, crowd_boxes, crowd_masks, sample.image_id, keypoints, sample.skeleton
    )
