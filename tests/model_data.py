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
    model.load_state_dict(weights_by_name({k: v.shape for k, v in model.state_dict().items()}))
    return model


def weights_by_name(
    shapes: dict[str, tuple[int, ...]], stem: float = 1.0, small: bool = False
) -> dict[str, np.ndarray]:
    """The same rule, of entries by name and shape.

    With `small` as for torchvision's v2 and detectron2, whose last norm of each block is less; `stem`
    multiplies detectron2's first convolution, where pixels are not divided by their deviation.
    """
    state = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("running_var"):
            w = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("running_mean"):
            w = rng.normal(0, 0.1, shape)
        elif len(shape) == 1:
            marks = (".bn", "downsample.1") + ((".norm.",) if small else ())
            is_norm = any(mark in name for mark in marks) or name.endswith(".1.weight")
            w = (
                rng.uniform(0.5, 1.0, shape)
                if is_norm and name.endswith("weight")
                else rng.normal(0, 0.1, shape)
            )
        else:
            w = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
            w *= 0.3 if "bbox_pred" in name or "cls_score" in name else 1.0
        if small and name.endswith(("conv3.norm.weight", "bn3.weight")):
            w *= 0.3
        state[name] = (w * (stem if "stem.conv1.weight" in name else 1.0)).astype(np.float32)
    return state
