"""Keyed randomness: a draw depends on what it is for, never on what was drawn before it.

``default_rng([seed, purpose, step, image])`` gives the same numbers in every thread, process and resumed run,
so checkpoints hold a seed and a step, but no generator's state.
"""

from dataclasses import dataclass
from enum import IntEnum
from numbers import Integral

import numpy as np

from minimask.errors import InputError


class Purpose(IntEnum):
    """What a draw is for: the second number of its key. Trained runs depend on it: never reuse a number."""

    WEIGHTS = 1
    ORDER = 2
    AUGMENT = 3
    SAMPLE_ANCHORS = 4
    SAMPLE_ROIS = 5
    SHAPES = 7  # 6 was dropout's
    IMAGE_SIZE = 8
    FIGURES = 9


@dataclass(frozen=True)
class Draws:
    """The draws of one training step: ``draws.rng(Purpose.SAMPLE_ROIS, image)``.

    Parameters
    ----------
    seed, step : int, >= 0
    first_image : int
        Added to each image index: with several processes, the number of images of the ranks before this one.
    """

    seed: int = 0
    step: int = 0
    first_image: int = 0

    def __post_init__(self):
        if not (isinstance(self.seed, Integral) and self.seed >= 0):
            raise InputError(f"seed must be a whole number from 0 up, is {self.seed!r}")

    def rng(self, purpose: Purpose, image: int = 0) -> np.random.Generator:
        """A generator for one purpose and one image (an index into the batch)."""
        return np.random.default_rng([self.seed, int(purpose), self.step, self.first_image + image])
