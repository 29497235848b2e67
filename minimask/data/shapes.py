"""Generated pictures of coloured, overlapping shapes with exact masks: data that needs no download."""

import numpy as np

from minimask.data import rle
from minimask.data.keypoint_checks import coco_entries
from minimask.data.sample import Sample, tight_boxes
from minimask.data.skeleton import Skeleton
from minimask.randomness import Draws, Purpose

CORNERS = {"circle": 0, "square": 4, "triangle": 3}

NOISE = 0.03
"""Standard deviation of the noise in every pixel, on a scale where white is 1."""

MIN_VISIBLE = 0.3
"""A shape is not placed where it would leave a smaller share of another one visible."""

MIN_PIXELS = 16
"""A shape with fewer pixels in the image is not drawn."""


class Shapes:
    """A dataset of `count` pictures: circles, squares and triangles of any colour, turned and overlapping.

    A picture depends only on the seed and its number, so asking for more never changes the first ones. Colour
    and class are independent: it is the shape that must be learnt. A mask is exactly the visible part of its
    shape: a pixel belongs to it if the pixel's centre does.

    Parameters
    ----------
    count : int
    seed : int, >= 0
    size : int
        Height and width in pixels.
    objects : (int, int)
        Fewest and most shapes to try; those that would hide another, or be hardly visible, are not placed.
    radius : (float, float)
        Least and greatest radius of the circle with a shape's area, in pixels; by default 1/14 and 1/5 of
        `size`.
    """

    class_names = tuple(CORNERS)
    category_ids = tuple(range(1, len(CORNERS) + 1))
    skeleton: Skeleton | None = None
    kind = "shapes"

    def __init__(
        self,
        count: int,
        seed: int,
        size: int = 128,
        objects: tuple[int, int] = (1, 8),
        radius: tuple[float, float] | None = None,
    ):
        self.seed = seed
        self.size = size
        self.objects = objects
        self.radius = radius
        self.image_ids = tuple(range(1, count + 1))
        self.name = f"{self.kind} (seed {seed})"
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self.image_ids)

    def describe(self, index: int) -> str:
        """The image's name for messages: 'shapes (seed 3): image 17'."""
        return f"{self.name}: image {self.image_ids[index]}"

    def image(self, index: int) -> np.ndarray:
        """The image alone, (3, size, size) float32."""
        return self[index].image

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]  # takes negative indices, raises IndexError
        rng = Draws(self.seed).rng(Purpose.SHAPES, index)
        image = self._background(rng)
        labels: list[int] = []
        whole: list[np.ndarray] = []  # masks of the shapes placed so far, each (size, size) bool
        visible: list[np.ndarray] = []  # what later shapes leave of them
        for _ in range(rng.integers(*self.objects, endpoint=True)):
            label = int(rng.integers(len(self.class_names))) + 1
            shape = self._shape(self.class_names[label - 1], rng)
            rest = [mask & ~shape for mask in visible]
            hides = any(after.sum() < MIN_VISIBLE * before.sum() for after, before in zip(rest, whole))
            if hides or shape.sum() < MIN_PIXELS:
                continue
            image[:, shape] = self._colour(rng)
            labels.append(label)
            whole.append(shape)
            visible = [*rest, shape]
        image = np.clip(image + rng.normal(0.0, NOISE, image.shape), 0.0, 1.0).astype(np.float32)
        masks = np.array(visible, np.uint8).reshape(-1, self.size, self.size)
        nothing = np.zeros((0, 4), np.float32), np.zeros((0, self.size, self.size), np.uint8)
        return Sample(
            image, tight_boxes(masks), np.array(labels, np.int64), masks, *nothing, self.image_ids[index]
        )

    def coco_document(self) -> dict:
        """The ground truth of all pictures for pycocotools; draws every one of them."""
        annotations = []
        for sample in self:
            for i, (box, label, mask) in enumerate(
                zip(sample.boxes.tolist(), sample.labels.tolist(), sample.masks)
            ):
                x1, y1, x2, y2 = box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": sample.image_id,
                        "category_id": self.category_ids[label - 1],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": float(mask.sum()),
                        "iscrowd": 0,
                        "segmentation": {
                            "size": list(mask.shape),
                            "counts": rle.encode_mask(mask).decode("ascii"),
                        },
                    }
                    | ({} if sample.keypoints is None else coco_entries(sample.keypoints[i]))
                )
        names = self.skeleton.category() if self.skeleton else {}
        return {
            "info": {"description": self.name},
            "images": [
                {"id": i, "file_name": f"{i}.png", "height": self.size, "width": self.size}
                for i in self.image_ids
            ],
            "categories": [
                {"id": i, "name": name} | names for i, name in zip(self.category_ids, self.class_names)
            ],
            "annotations": annotations,
        }

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        """(3, size, size): a dark colour with a gradient across the picture."""
        across = np.linspace(-0.5, 0.5, self.size)
        slope_x, slope_y = rng.uniform(-0.15, 0.15, (2, 3, 1, 1))
        return rng.uniform(0.1, 0.35, (3, 1, 1)) + slope_x * across + slope_y * across[:, None]

    def _colour(self, rng: np.random.Generator) -> np.ndarray:
        """(3, 1): a colour with one channel brighter than any background's."""
        return rng.permuted([rng.uniform(0.7, 1.0), rng.uniform(0.0, 1.0), rng.uniform(0.0, 0.6)])[:, None]

    def _shape(self, name: str, rng: np.random.Generator) -> np.ndarray:
        """(size, size) bool: pixels whose centre lies in a regular polygon, or in a circle for 0 corners."""
        corners = CORNERS[name]
        # of the circle with the same area
        radius = rng.uniform(*self.radius) if self.radius else rng.uniform(1 / 14, 1 / 5) * self.size
        middle = rng.uniform(0.0, self.size, (2, 1))
        x, y = np.arange(self.size) + 0.5 - middle  # (size,) each
        turn = rng.uniform(0.0, 2.0 * np.pi)
        if not corners:
            return x**2 + y[:, None] ** 2 <= radius**2
        # a regular n-gon with apothem a (the distance from middle to side) has the area n a^2 tan(pi / n)
        apothem = radius * np.sqrt(np.pi / (corners * np.tan(np.pi / corners)))
        normals = turn + 2.0 * np.pi * np.arange(corners)[:, None, None] / corners
        return (np.cos(normals) * x + np.sin(normals) * y[:, None] <= apothem).all(axis=0)
