"""Generated pictures of figures with named corners: data with keypoints that needs no download."""

import numpy as np

from minimask.data.sample import Sample, tight_boxes
from minimask.data.shapes import MIN_PIXELS, NOISE, Shapes
from minimask.data.skeleton import Skeleton
from minimask.randomness import Draws, Purpose

SKELETON = Skeleton(("tip", "right_corner", "tail", "left_corner"), ((0, 1), (1, 2), (2, 3), (3, 0)))

# Corners x, y with the tip upwards, in the skeleton's order. Each figure is symmetric, so that its mirror
# image is a figure of the same class; left and right are those of someone inside who looks at the tip.
CORNERS = {
    "triangle": ((0.0, -1.0), (0.7, 0.8), (0.0, 0.8), (-0.7, 0.8)),  # the tail, no corner, is not labelled
    "kite": ((0.0, -1.2), (0.65, 0.3), (0.0, 0.8), (-0.65, 0.3)),
    "arrow": ((0.0, -1.0), (0.75, 0.8), (0.0, 0.25), (-0.75, 0.8)),
}

INSET = 0.8
"""Where a corner's keypoint lies between the figure's middle, 0, and the corner itself, 1.

At 1, two thirds of them would be outside the figure's box, which is that of the pixels whose centres the
figure covers; and a keypoint outside its RoI has no cell. A body's joints, too, lie inside the outline.
"""

MIN_VISIBLE = 0.5
"""A figure is not placed where it would leave a smaller share of another one visible."""


class Figures(Shapes):
    """A dataset of `count` pictures: triangles, kites and arrows of any colour, turned and overlapping.

    A picture depends only on the seed and its number. The keypoints lie just inside the corners (`INSET`).
    One that another figure covers is labelled and hidden (visibility 1); one outside the picture is not
    labelled, nor is the tail of a triangle, which has three corners. Which corner is the left one follows
    from where the tip is, not from colour or place.

    Parameters
    ----------
    count, seed, size
        As for `Shapes`.
    objects : (int, int)
        Fewest and most figures to try.
    """

    class_names = tuple(CORNERS)
    category_ids = tuple(range(1, len(CORNERS) + 1))
    skeleton = SKELETON
    kind = "figures"

    def __init__(self, count: int, seed: int, size: int = 128, objects: tuple[int, int] = (1, 4)):
        super().__init__(count, seed, size, objects)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]  # takes negative indices, raises IndexError
        rng = Draws(self.seed).rng(Purpose.FIGURES, index)
        image = self._background(rng)
        labels: list[int] = []
        named: list[np.ndarray] = []  # points of the figures placed so far, each (4, 3)
        whole: list[np.ndarray] = []  # their masks, each (size, size) bool
        visible: list[np.ndarray] = []  # what later figures leave of them
        for _ in range(rng.integers(*self.objects, endpoint=True)):
            label = int(rng.integers(len(CORNERS))) + 1
            corners, points = self._corners(self.class_names[label - 1], rng)  # (4, 2) each
            figure = self._figure(corners)
            rest = [mask & ~figure for mask in visible]
            hides = any(after.sum() < MIN_VISIBLE * before.sum() for after, before in zip(rest, whole))
            if hides or figure.sum() < MIN_PIXELS:
                continue
            image[:, figure] = self._colour(rng)
            named = [self._hidden(known, corners) for known in named]
            named.append(self._labelled(points, self.class_names[label - 1]))
            labels.append(label)
            whole.append(figure)
            visible = [*rest, figure]
        image = np.clip(image + rng.normal(0.0, NOISE, image.shape), 0.0, 1.0).astype(np.float32)
        masks = np.array(visible, np.uint8).reshape(-1, self.size, self.size)
        nothing = np.zeros((0, 4), np.float32), np.zeros((0, self.size, self.size), np.uint8)
        keypoints = np.array(named, np.float32).reshape(-1, len(SKELETON.names), 3)
        boxes, numbers = tight_boxes(masks), np.array(labels, np.int64)
        return Sample(image, boxes, numbers, masks, *nothing, self.image_ids[index], keypoints, SKELETON)

    def _corners(self, name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A figure of random size, proportions, turn and place: its corners and keypoints, (4, 2) each."""
        points = np.array(CORNERS[name]) * (rng.uniform(0.75, 1.1), 1.0)
        turn = rng.uniform(0.0, 2.0 * np.pi)
        cos, sin = np.cos(turn), np.sin(turn)
        radius = rng.uniform(1 / 9, 1 / 4) * self.size
        arms = points @ [[cos, sin], [-sin, cos]] * radius
        middle = rng.uniform(0.1, 0.9, 2) * self.size
        return middle + arms, middle + INSET * arms

    def _figure(self, corners: np.ndarray) -> np.ndarray:
        """(size, size) bool: pixels whose centre is in one of the triangles on either side of the axis."""
        tip, right, tail, left = corners
        y, x = np.mgrid[: self.size, : self.size] + 0.5
        return inside_triangle(x, y, tip, right, tail) | inside_triangle(x, y, tip, tail, left)

    def _labelled(self, points: np.ndarray, name: str) -> np.ndarray:
        """(4, 3): visible if in the picture; otherwise not labelled: 0, 0, 0."""
        known = ((points >= 0) & (points <= self.size)).all(axis=1)
        known[SKELETON.names.index("tail")] &= name != "triangle"
        return np.where(known[:, None], np.column_stack([points, np.full(len(points), 2)]), 0)

    def _hidden(self, known: np.ndarray, corners: np.ndarray) -> np.ndarray:
        """Points (4, 3), those covered by a figure with corners (4, 2) marked as hidden."""
        tip, right, tail, left = corners
        x, y, seen = known.T
        covered = inside_triangle(x, y, tip, right, tail) | inside_triangle(x, y, tip, tail, left)
        return np.column_stack([x, y, np.where(covered, np.minimum(seen, 1), seen)])


def inside_triangle(x: np.ndarray, y: np.ndarray, *corners: np.ndarray) -> np.ndarray:
    """Whether points lie in a triangle: on the same side of all its edges."""
    sides = []
    for (ax, ay), (bx, by) in zip(corners, (*corners[1:], corners[0])):
        sides.append((bx - ax) * (y - ay) - (by - ay) * (x - ax))
    return np.all([side >= 0 for side in sides], axis=0) | np.all([side <= 0 for side in sides], axis=0)
