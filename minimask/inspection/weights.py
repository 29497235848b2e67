"""The parameters of a model in numbers: which are dead, which explode, and how their values spread."""

import numpy as np

from minimask.backend import to_cpu
from minimask.inspection.records import Weights
from minimask.nn import Module

EXPLODED = 1000.0
"""A parameter with an element beyond this has diverged: He's initialisation begins far below 1."""

BINS = 40


def summarise(model: Module) -> list[Weights]:
    """Each parameter of a model, in the order of its state, without running means and variances."""
    return [_summary(name, to_cpu(p.data)) for name, p in model.named_parameters()]


def _summary(name: str, values: np.ndarray) -> Weights:
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        finite = np.zeros(1)
    counts, edges = np.histogram(finite, BINS)
    least, greatest = float(finite.min()), float(finite.max())
    exploding = bool(np.isfinite(values).sum() < values.size or max(-least, greatest) > EXPLODED)
    dead = values.size > 1 and least == greatest and not exploding
    numbers = (least, greatest, float(finite.mean()), float(finite.std()))
    return Weights(name, values.shape, *numbers, edges, counts, dead, exploding)


def dead_channels(activation: np.ndarray) -> np.ndarray:
    """(C,) bool: the channels of an activation (C, rows, columns) that are the same at every cell."""
    flat = activation.reshape(len(activation), -1)
    return (flat == flat[:, :1]).all(axis=1) if flat.shape[1] > 1 else np.zeros(len(flat), bool)
