"""About how much memory a training step will take: the graph of a small step is walked, and scaled up."""

from __future__ import annotations

import numpy as np

from minimask import backend
from minimask.kernels.convolution import BLOCK_ELEMENTS
from minimask.models.mask_rcnn import MaskRCNN
from minimask.nn import Buffer
from minimask.randomness import Draws

SIDE = 128  # pixels of the small step's image


def training_memory(model: MaskRCNN, batch_size: int, height: int, width: int) -> int:
    """Bytes that a step on so many images of (height, width), as the network sees them, needs at its peak.

    What is saved for the backward pass grows with the pixels in backbone and RPN, with the sampled RoIs in
    the heads. To that come the weights with gradients and momentum, the maps' own gradients, and the buffers
    of the kernels. tests/test_memory.py compares it with what a step takes.
    """
    record = _small_step(model)
    options = model.box_head.options
    pixels, rois = batch_size * height * width / SIDE**2, batch_size * options.batch_size_per_image
    maps, rpn = _saved(record.levels), _saved([record.rpn.logits, record.rpn.deltas])
    box, mask = _saved([record.box.logits, record.box.deltas]), _saved([record.mask])
    parameters = model.parameters()
    for p in parameters:
        for arrays in (maps, rpn, box, mask):
            arrays.pop(id(p.data), None)
    per_roi = _size(box, maps) / max(len(record.rois.boxes), 1)
    per_mask = _size(mask, maps) / max(len(record.rois.positive.boxes), 1)
    heads = rois * (per_roi + options.positive_fraction * per_mask)
    levels = sum(level.data.nbytes for level in record.levels)
    state = sum(p.data.nbytes * (3 if p.requires_grad else 1) for p in parameters)
    buffers = 4 * BLOCK_ELEMENTS * backend.threads()
    return int(state + pixels * (_size(maps | rpn) + 2 * levels) + heads + buffers)


def _size(arrays: dict, without=()) -> int:
    return sum(array.nbytes for key, array in arrays.items() if key not in without)


def _small_step(model: MaskRCNN):
    """The record of a step on one image, not resized, with one object."""
    rng, half = np.random.default_rng(0), SIDE // 2
    mask = np.zeros((1, SIDE, SIDE), np.uint8)
    mask[:, half:, half:] = 1
    target = {"boxes": np.array([[half, half, SIDE, SIDE]]), "labels": np.ones(1, int), "masks": mask}
    min_size, model.transform.min_size = model.transform.min_size, None
    buffers = [(b, b.data) for _, b in model._named(Buffer)]  # running statistics, which a step replaces
    try:
        return model.training_record([rng.random((3, SIDE, SIDE), np.float32)], [target], Draws())
    finally:
        model.transform.min_size = min_size
        for buffer, before in buffers:
            buffer.data = before


def _saved(outputs) -> dict[int, np.ndarray]:
    """All arrays that the graph behind some Tensors keeps, by identity; of views, what they are views of."""
    found, seen, waiting = {}, set(), [y.creator for y in outputs]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found |= {id(array): array for array in _arrays(node.saved)}
            waiting += [edge[0] for edge in node.edges if isinstance(edge, tuple)]
    return found


def _arrays(value):
    if hasattr(value, "nbytes"):
        while getattr(value, "base", None) is not None and hasattr(value.base, "nbytes"):
            value = value.base
        yield value
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _arrays(entry)
    elif hasattr(value, "__dict__"):  # a sparse matrix, or one of our records
        yield from _arrays(list(vars(value).values()))
