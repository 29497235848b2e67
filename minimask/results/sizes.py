"""A line for an image whose objects differ in size from those that the weights have learnt from."""

from pathlib import Path

import numpy as np

from minimask.models.detector import Detector

_MANY = 0.2  # share of the objects found; in training 0.01 were smaller, and 0.01 larger


def size_note(path: Path, shape: tuple[int, int], found: dict, detector: Detector) -> str | None:
    """What to know about an image whose objects may be smaller or larger than those in training.

    Parameters
    ----------
    path : Path
        Begins the line.
    shape : (height, width)
        Of the image, in pixels.
    found : dict
        Its prediction, with ``boxes`` (D, 4) in the image's pixels.
    detector : Detector

    Returns
    -------
    str or None
        None if there is nothing to say, or if the weights do not record what they have learnt from.
    """
    if not detector.object_sides:
        return None
    transform = detector.model.transform
    scale = transform.resized(shape, transform.min_sizes[-1])[0] / shape[0]
    least, _, most = (side / scale for side in detector.object_sides)  # in the image's pixels
    learnt = f"the weights have learnt objects of {least:.0f} to {most:.0f} pixels"
    learnt += f" at the {scale:.2g} of its size that the network sees" if scale < 0.995 else ""
    boxes = np.asarray(found["boxes"], np.float64)
    if not len(boxes):
        return f"{path}: nothing found; {learnt}: scale the image accordingly, or lower --score-threshold"
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    for share, word, mend in (
        ((sides < least).mean(), "smaller", "magnify it, or cut it into tiles"),
        ((sides > most).mean(), "larger", "shrink it"),
    ):
        if share > _MANY:
            return f"{path}: {share:.0%} of the objects found are {word} than in training: {learnt}; {mend}"
    # Shrunk by the limit on the longer side, which training's crops do not reach; not by a magnification.
    shrunk = transform.min_sizes[-1] is None and scale < 0.995 * transform.magnification
    return f"{path}: {learnt}; cut it into tiles to find smaller ones" if shrunk else None
