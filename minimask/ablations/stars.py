"""Pictures for ablations: small stars, with tips that a misplaced mask misses."""

import numpy as np

from minimask.data.shapes import Shapes

STARS = {"two": (2, 0.45), "three": (3, 0.5), "four": (4, 0.6)}
"""How many tips, and the distance from the middle to a notch between two, as a share of that to a tip."""

RADIUS = (0.16, 0.25)
"""Least and greatest distance from a star's middle to its tips, as a share of the picture's side."""


class Stars(Shapes):
    """A dataset of `count` pictures: stars with two, three or four tips, turned, overlapping, of any colour.

    In a picture of 128 pixels they are some 20 to 60 pixels wide: half a cell of a map at stride 16, by which
    RoIPool may misplace an edge, is a fifth of 40 pixels. The class is the number of tips, and nothing else
    reveals it. Parameters, seeds and masks are as in `Shapes`.
    """

    class_names = tuple(STARS)
    category_ids = tuple(range(1, len(STARS) + 1))
    kind = "stars"

    def _shape(self, name: str, rng: np.random.Generator) -> np.ndarray:
        """(size, size) bool: pixels whose centre lies in a star."""
        (tips, notch), radius = STARS[name], rng.uniform(*RADIUS) * self.size
        margin = min(0.8 * radius, self.size / 2)  # most stars are whole
        middle = rng.uniform(margin, self.size - margin, (2, 1))
        turn = rng.uniform(0.0, 2.0 * np.pi)
        first = np.floor(np.maximum(middle - radius, 0)).astype(int).ravel()
        last = np.ceil(np.minimum(middle + radius, self.size)).astype(int).ravel()
        columns, rows = map(slice, first, last)  # the part of the picture that the star may reach
        x = np.arange(self.size)[columns] + 0.5 - middle[0]  # (W,)
        y = (np.arange(self.size)[rows] + 0.5 - middle[1])[:, None]  # (H, 1)
        half = np.pi / tips  # from a tip to the notch beside it
        fold = np.abs((np.arctan2(y, x) - turn + half) % (2 * half) - half)  # 0 at a tip, `half` at a notch
        along, across = np.hypot(y, x) * (np.cos(fold), np.sin(fold))  # (H, W) each
        # The edge from the tip at (radius, 0) to the notch, which is at the angle `half`, notch * radius away
        dx, dy = radius * (notch * np.cos(half) - 1), radius * notch * np.sin(half)
        star = np.zeros((self.size, self.size), bool)
        star[rows, columns] = (along - radius) * dy - across * dx <= 0
        return star
