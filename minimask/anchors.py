"""Anchors: boxes of fixed sizes and shapes at every cell of every pyramid level, which the RPN judges.

Shapes: h x w cells per level, K anchors per cell; A is the sum of h w K over the levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from minimask.errors import InputError


@dataclass(frozen=True)
class AnchorGenerator:
    """Anchors of every level: ``generator(image_size, feature_sizes)``. The defaults are torchvision's.

    Parameters
    ----------
    sizes : one tuple per level
        Square roots of the anchors' areas, in pixels of the network's input image. A single number counts as
        a tuple of one.
    aspect_ratios : one tuple per level, or one for all levels
        Height over width. Every size comes with every ratio.
    rounded : bool
        Round the corners of the anchors around the origin to whole pixels, as torchvision does (size 32 at
        ratio 1/2: 46 x 22) and detectron2 does not (45.25 x 22.63).
    offset : float
        Where in a cell its anchors are centred, in strides: 0 at its corner (torchvision, detectron2), 0.5 at
        its middle, where `aligned` RoI layers read the cell. (The receptive field of cell i lies around pixel
        i times the stride, its corner: notebook 03 measures it. The deltas learn the difference.)
    size_major : bool
        Order within a cell: False runs through the sizes for each ratio (torchvision), True through the
        ratios for each size (detectron2). It makes no difference where each level has one size.
    strides : one int per level, optional
        Pixels per cell; by default image size // feature size, separately along y and x (torchvision).

    Notes
    -----
    Ren et al. 2015, Faster R-CNN, section 3.1.1; one size per level as in Lin et al. 2017, FPN, section 4.1.
    """

    sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    aspect_ratios: tuple[tuple[float, ...], ...] = ((0.5, 1.0, 2.0),) * 5
    rounded: bool = True
    offset: float = 0.0
    size_major: bool = False
    strides: tuple[int, ...] | None = None

    def __post_init__(self):
        sizes = tuple((size,) if np.ndim(size) == 0 else tuple(size) for size in self.sizes)
        ratios = self.aspect_ratios
        if np.ndim(ratios[0]) == 0:
            ratios = (ratios,) * len(sizes)
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "aspect_ratios", tuple(map(tuple, ratios)))
        for name, values in (("sizes", sizes), ("aspect_ratios", self.aspect_ratios)):
            if not all(isinstance(value, Real) and value > 0 for level in values for value in level):
                raise InputError(f"AnchorGenerator: {name} must be positive numbers, are {values}")
        self._check_levels("aspect_ratios", self.aspect_ratios)
        if self.strides is not None:
            self._check_levels("strides", self.strides)

    def _check_levels(self, name: str, values: Sequence) -> None:
        if len(values) != len(self.sizes):
            raise ValueError(f"AnchorGenerator: sizes has {len(self.sizes)} levels, {name} has {len(values)}")

    def num_anchors_per_location(self) -> list[int]:
        """K of each level."""
        return [len(sizes) * len(ratios) for sizes, ratios in zip(self.sizes, self.aspect_ratios)]

    def cell_anchors(self, level: int) -> np.ndarray:
        """The anchors (K, 4) float32 of one cell of a level, around the origin."""
        sizes = np.array(self.sizes[level], np.float32)
        root = np.sqrt(np.array(self.aspect_ratios[level], np.float32))  # sqrt(h / w)
        widths, heights = np.outer(1 / root, sizes), np.outer(root, sizes)  # (ratios, sizes)
        if self.size_major:
            widths, heights = widths.T, heights.T
        half = np.stack((widths.ravel(), heights.ravel()), axis=1) / 2  # (K, 2)
        corners = np.concatenate((-half, half), axis=1)
        return np.rint(corners) if self.rounded else corners

    def levels(
        self, image_size: tuple[int, int], feature_sizes: Sequence[tuple[int, int]], xp=np
    ) -> list[np.ndarray]:
        """The anchors level by level; parameters as in `__call__`.

        Returns
        -------
        list of (h w K, 4) float32 arrays: by row, then column of the feature map, then anchor of the cell.
        """
        self._check_levels("feature_sizes", feature_sizes)
        return [self._level(level, image_size, size, xp) for level, size in enumerate(feature_sizes)]

    def _level(self, level: int, image_size: tuple[int, int], feature_size: tuple[int, int], xp):
        if self.strides is None:
            strides = [pixels // cells for pixels, cells in zip(image_size, feature_size)]
        else:
            strides = [self.strides[level]] * 2
        y, x = ((xp.arange(n, dtype=np.float32) + self.offset) * s for n, s in zip(feature_size, strides))
        centers = xp.empty((len(y), len(x), 1, 4), dtype=np.float32)
        centers[..., 0::2] = x[:, None, None]
        centers[..., 1::2] = y[:, None, None, None]
        anchors = centers + xp.asarray(self.cell_anchors(level))
        return anchors.reshape(-1, 4)  # (h, w, K, 4) -> (h w K, 4)

    def __call__(
        self, image_size: tuple[int, int], feature_sizes: Sequence[tuple[int, int]], xp=np
    ) -> np.ndarray:
        """The anchors of all levels, one after the other.

        Parameters
        ----------
        image_size : (height, width)
            Of the network's input, which is the padded batch if there is one.
        feature_sizes : one (h, w) per level
        xp : module
            ``numpy`` or ``cupy``: where to make the arrays.

        Returns
        -------
        (A, 4) float32 array, in pixels of the input; not clipped to it.

        Raises
        ------
        ValueError
            If there are not as many feature sizes as levels.
        """
        return xp.concatenate(self.levels(image_size, feature_sizes, xp))
