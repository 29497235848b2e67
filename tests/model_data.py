"""Small models and targets that several test files share."""

import zlib

import numpy as np

from minimask import models
from minimask.data.sample import tight_boxes


def tiny_model(num_classes: int = 3, **options):
    """A Mask R-CNN of some 20,000 parameters, in float64, for finite differences."""
    sizes = dict(channels=(8, 8, 16, 16), fpn_channels=8, box_width=16)
    counts = dict(rpn_post_nms_top_n_train=40, box_batch_size_per_image=24, rpn_batch_size_per_image=48)
    return models.maskrcnn_small(num_classes, **(sizes | counts | options)).astype(np.float64)


def discs(rng: np.random.Generator, count: int, size: int = 64, classes: int = 2) -> tuple[np.ndarray, dict]:
    """A noisy image of bright discs, float64, and its target."""
    yy, xx = np.mgrid[:size, :size] + 0.5
    centres, radii = rng.uniform(10, size - 10, (count, 2)), rng.uniform(5, 10, count)
    masks = [(xx - x) ** 2 + (yy - y) ** 2 < r**2 for (x, y), r in zip(centres, radii)]
    masks = np.array(masks, np.uint8).reshape(count, size, size)
    image = 0.1 * rng.random((3, size, size)) + 0.7 * masks.any(axis=0)
    return image, dict(boxes=tight_boxes(masks), labels=rng.integers(1, classes + 1, count), masks=masks)


def fill(model):
    """Weights as a function of each parameter's name: the rule of the reference vectors."""
    state = {}
    for name, value in model.state_dict().items():
        rng, shape = np.random.default_rng(zlib.crc32(name.encode())), value.shape
        if name.endswith("running_var"):
            w = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("running_mean"):
            w = rng.normal(0, 0.1, shape)
        elif len(shape) == 1:
            is_norm = name.endswith("weight") and (".bn" in name or "downsample.1" in name)
            w = rng.uniform(0.5, 1.0, shape) if is_norm else rng.normal(0, 0.1, shape)
        else:
            w = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
            w *= 0.3 if "bbox_pred" in name or "cls_score" in name else 1.0
        state[name] = w.astype(np.float32)
    model.load_state_dict(state)
    return model
