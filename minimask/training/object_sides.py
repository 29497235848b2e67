"""The sizes of the objects that a network learns from, as recorded in its checkpoint."""

from typing import Any

import numpy as np

PERCENT = (1, 50, 99)


def object_sides(dataset: Any, transform: Any, crop: int) -> list[float]:
    """The percentiles `PERCENT` of the square roots of the objects' box areas.

    Parameters
    ----------
    dataset
        With ``outline``, as in `CocoDataset`; of others nothing is known.
    transform : models.transform.Transform
        The pixels are those of the images that it makes.
    crop : int
        Side of the crops that it is given; 0 for none. Random magnification is ignored: it is 1 on average.

    Returns
    -------
    list of three floats, rounded to a tenth of a pixel; empty if there are no objects or nothing is known.
    """
    if not hasattr(dataset, "outline"):
        return []
    sides = [np.zeros(0)]
    for index in range(len(dataset)):
        height, width, boxes = dataset.outline(index)  # boxes (G, 4)
        seen = (min(height, crop), min(width, crop)) if crop else (height, width)
        scale = transform.resized(seen, transform.min_sizes[-1])[0] / seen[0]
        sides.append(scale * np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)))
    found = np.concatenate(sides)
    found = found[found > 0]
    return np.round(np.percentile(found, PERCENT), 1).clip(0.1).tolist() if len(found) else []
