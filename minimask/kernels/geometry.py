"""The sizes of a convolution or a pooling, and which outputs meet which pixels.

Shapes: N images, C channels in, O channels out, G groups, H x W in, P x Q out, kernel KH x KW.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minimask import backend

_STRUCT = np.dtype([(f"size{i}", "i4") for i in range(13)])


@dataclass(frozen=True)
class Geometry:
    """All sizes of one convolution; pairs are (vertical, horizontal)."""

    x_shape: tuple[int, int, int, int]
    w_shape: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, x_shape, w_shape, stride, padding, dilation, groups: int) -> Geometry:
        """Check the sizes against each other; single numbers stand for pairs."""
        stride, padding, dilation = pair(stride), pair(padding), pair(dilation)
        if len(x_shape) != 4 or len(w_shape) != 4:
            raise ValueError(f"conv2d: x and weight must have 4 axes, not shapes {x_shape} and {w_shape}")
        if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0 or groups < 1:
            raise ValueError(
                f"conv2d: stride {stride}, padding {padding}, dilation {dilation}, groups {groups}"
            )
        if x_shape[1] != w_shape[1] * groups or w_shape[0] % groups:
            raise ValueError(
                f"conv2d: x has {x_shape[1]} channels; weight {w_shape} with groups={groups} reads "
                f"{w_shape[1] * groups} and must write a multiple of {groups}"
            )
        geometry = cls(tuple(x_shape), tuple(w_shape), stride, padding, dilation, groups)
        if min(geometry.out_size) < 1:
            raise ValueError(
                f"conv2d: a {w_shape[2:]} kernel does not fit into {x_shape[2:]} padded by {padding}"
            )
        return geometry

    @cached_property
    def out_size(self) -> tuple[int, int]:
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                self.x_shape[2:], self.w_shape[2:], self.stride, self.padding, self.dilation
            )
        )

    @cached_property
    def y_shape(self) -> tuple[int, int, int, int]:
        return (self.x_shape[0], self.w_shape[0], *self.out_size)

    @property
    def out_pixels(self) -> int:
        """P Q: spelt out in reshapes, where a -1 could not be resolved for a batch of no images."""
        return self.out_size[0] * self.out_size[1]

    @cached_property
    def patch_size(self) -> int:
        """Elements of one group's patch: C/G KH KW."""
        return self.w_shape[1] * self.w_shape[2] * self.w_shape[3]

    @cached_property
    def is_pointwise(self) -> bool:
        """A 1x1 kernel of stride 1: the image itself is the matrix of patches."""
        return self.w_shape[2:] == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)

    @cached_property
    def struct(self) -> np.ndarray:
        """``struct Geometry`` of the CUDA sources: C, H, W, P, Q, KH, KW, stride, padding, dilation."""
        sizes = (*self.x_shape[1:], *self.out_size, *self.w_shape[2:], *self.stride, *self.padding)
        return np.array((*sizes, *self.dilation), _STRUCT)

    def transposed(self) -> Geometry:
        """The convolution, of stride 1, that takes gradients of y to gradients of x."""
        c = self.x_shape[1]
        o, _, kh, kw = self.w_shape
        padding = tuple(d * (k - 1) - p for d, k, p in zip(self.dilation, (kh, kw), self.padding))
        return Geometry(
            self.y_shape, (c, o // self.groups, kh, kw), (1, 1), padding, self.dilation, self.groups
        )


def pair(value) -> tuple[int, int]:
    """A number for both directions, or one for each."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def overlap(offset: int, stride: int, size: int, out: int) -> tuple[int, int]:
    """The outputs p in [0, out) for which the input p stride + offset lies in [0, size)."""
    begin = min(max(0, -(offset // stride)), out)
    end = min(max(begin, (size - 1 - offset) // stride + 1), out)
    return begin, end


def windows(g: Geometry, first: int = 0, rows: int | None = None):
    """For each kernel element: which outputs meet the image there, and which pixels they read; maybe none.

    Of output rows from `first` on, counted from there; of all by default.
    """
    rows = g.out_size[0] if rows is None else rows
    for i, j in np.ndindex(*g.w_shape[2:]):
        v, h = i * g.dilation[0] - g.padding[0] + first * g.stride[0], j * g.dilation[1] - g.padding[1]
        top, bottom = overlap(v, g.stride[0], g.x_shape[2], rows)
        left, right = overlap(h, g.stride[1], g.x_shape[3], g.out_size[1])
        across = slice(top * g.stride[0] + v, (bottom - 1) * g.stride[0] + v + 1, g.stride[0])
        along = slice(left * g.stride[1] + h, (right - 1) * g.stride[1] + h + 1, g.stride[1])
        if bottom == top or right == left:
            top = bottom = left = right = 0
            across = along = slice(0, 0)
        yield i, j, (slice(top, bottom), slice(left, right)), (across, along)


def row_blocks(images: int, height: int, rows: int, part: int, parts: int):
    """This part's share of all rows of a batch, in blocks: (first image, past it, first row, past it).

    A block has at most so many rows of one image; or several whole images, where they are small and many, as
    the RoIs of the mask head.
    """
    if rows >= 2 * height and images >= 2 * parts:
        begin, end = backend.share(images, part, parts)
        step = _even(end - begin, rows // height)
        for n in range(begin, end, step):
            yield n, min(n + step, end), 0, height
        return
    begin, end = backend.share(images * height, part, parts)
    rows = _even(end - begin, rows)
    while begin < end:
        n, first = divmod(begin, height)
        last = min(height, first + rows, first + end - begin)
        yield n, n + 1, first, last
        begin += last - first


def _even(total: int, most: int) -> int:
    """The size of equal pieces of at most `most`, rather than full ones and a small rest."""
    pieces = max(1, -(-total // most))
    return max(1, -(-total // pieces))
