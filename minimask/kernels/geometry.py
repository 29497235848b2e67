"""The sizes of a convolution or a pooling, which pixels each output reads, and blocks of outputs.

Shapes: N images, C channels in, O channels out, G groups, H x W in, P x Q out, kernel KH x KW.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import NamedTuple

import numpy as np

from minimask import backend
from minimask.errors import InputError

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
    def of(cls, x_shape, w_shape, stride, padding, dilation, groups: int, name: str = "conv2d") -> Geometry:
        """Check the sizes against each other; single numbers stand for pairs, errors begin with `name`."""
        stride, padding = as_pair(stride, "stride"), as_pair(padding, "padding")
        dilation = as_pair(dilation, "dilation")
        if len(x_shape) != 4 or len(w_shape) != 4:
            raise ValueError(f"{name}: x and weight must have 4 axes, not shapes {x_shape} and {w_shape}")
        if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0 or groups < 1:
            positive = f"stride {stride}, dilation {dilation} and groups {groups}"
            raise ValueError(f"{name}: {positive} must be positive, padding {padding} not negative")
        if x_shape[1] != w_shape[1] * groups or w_shape[0] % groups:
            raise ValueError(
                f"{name}: x has {x_shape[1]} channels; weight {w_shape} with groups={groups} reads "
                f"{w_shape[1] * groups} and must write a multiple of {groups}"
            )
        geometry = cls(tuple(x_shape), tuple(w_shape), stride, padding, dilation, groups)
        if min(geometry.out_size) < 1:
            raise ValueError(
                f"{name}: a {w_shape[2:]} kernel does not fit into {x_shape[2:]} padded by {padding}"
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
        """P Q: spelt out in reshapes, because NumPy cannot infer a -1 when the batch has no images."""
        return self.out_size[0] * self.out_size[1]

    @cached_property
    def patch_size(self) -> int:
        """Elements of one group's patch: C/G KH KW."""
        return self.w_shape[1] * self.w_shape[2] * self.w_shape[3]

    @cached_property
    def is_pointwise(self) -> bool:
        """Whether the kernel is 1x1 with stride 1: the image itself is the matrix of patches."""
        return self.w_shape[2:] == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)

    @cached_property
    def windows_tile(self) -> bool:
        """Whether windows lie side by side: from the first pixel on, with neither overlap nor gaps."""
        return self.stride == self.w_shape[2:] and self.padding == (0, 0) and self.dilation == (1, 1)

    @cached_property
    def struct(self) -> np.ndarray:
        """``struct Geometry`` of the CUDA sources: C, H, W, P, Q, KH, KW, stride, padding, dilation."""
        sizes = (*self.x_shape[1:], *self.out_size, *self.w_shape[2:], *self.stride, *self.padding)
        return np.array((*sizes, *self.dilation), _STRUCT)

    def transposed(self) -> Geometry:
        """For stride 1: the sizes of the convolution that turns gradients of y into gradients of x."""
        c = self.x_shape[1]
        o, _, kh, kw = self.w_shape
        padding = tuple(d * (k - 1) - p for d, k, p in zip(self.dilation, (kh, kw), self.padding))
        return Geometry(
            self.y_shape, (c, o // self.groups, kh, kw), (1, 1), padding, self.dilation, self.groups
        )


def as_pair(value, name: str = "a size") -> tuple[int, int]:
    """(vertical, horizontal): a single whole number stands for both; errors begin with `name`."""
    if isinstance(value, int):
        return value, value
    try:
        vertical, horizontal = map(index, value if np.ndim(value) else (value, value))
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a whole number or two of them, is {value!r}") from None
    return vertical, horizontal


def overlap(offset: int, stride: int, size: int, out: int) -> tuple[int, int]:
    """First output p of [0, out) whose input p stride + offset lies in [0, size), and one past the last."""
    begin = min(max(0, -(offset // stride)), out)
    end = min(max(begin, (size - 1 - offset) // stride + 1), out)
    return begin, end


def windows(g: Geometry, first: int = 0, rows: int | None = None):
    """For each element of the kernel: the outputs for which it is inside the image, and the pixels it covers.

    Parameters
    ----------
    first, rows : int
        Only output rows [first, first + rows) are looked at; by default all of them.

    Yields
    ------
    i, j : int
        The element's row and column in the kernel.
    out : (slice, slice)
        Rows (counted from `first`) and columns of the outputs; both empty if there are none.
    pixels : (slice, slice)
        Rows and columns of the pixels, one for each of these outputs and in their order.
    """
    rows = g.out_size[0] if rows is None else rows
    for i, j in np.ndindex(*g.w_shape[2:]):
        # output (p, q) of these rows reads pixel (p stride + down, q stride + right) here
        down = i * g.dilation[0] - g.padding[0] + first * g.stride[0]
        right = j * g.dilation[1] - g.padding[1]
        p0, p1 = overlap(down, g.stride[0], g.x_shape[2], rows)
        q0, q1 = overlap(right, g.stride[1], g.x_shape[3], g.out_size[1])
        if p0 == p1 or q0 == q1:
            yield i, j, (slice(0, 0), slice(0, 0)), (slice(0, 0), slice(0, 0))
            continue
        pixel_rows = slice(p0 * g.stride[0] + down, (p1 - 1) * g.stride[0] + down + 1, g.stride[0])
        pixel_columns = slice(q0 * g.stride[1] + right, (q1 - 1) * g.stride[1] + right + 1, g.stride[1])
        yield i, j, (slice(p0, p1), slice(q0, q1)), (pixel_rows, pixel_columns)


class Block(NamedTuple):
    """Rows [first, last) of the outputs of images [n0, n1): what is computed at once."""

    n0: int
    n1: int
    first: int
    last: int

    @property
    def images(self) -> slice:
        return slice(self.n0, self.n1)

    @property
    def rows(self) -> slice:
        return slice(self.first, self.last)

    @property
    def count(self) -> int:
        """Number of images."""
        return self.n1 - self.n0

    @property
    def height(self) -> int:
        """Number of rows of each image."""
        return self.last - self.first


def row_blocks(images: int, height: int, rows: int, part: int, parts: int) -> Iterator[Block]:
    """One part's share of all output rows of a batch, in blocks.

    A block has at most `rows` rows of a single image; or, where images are small and many, as the RoIs of the
    mask head are, several whole ones.
    """
    if rows >= 2 * height and images >= 2 * parts:
        begin, end = backend.share(images, part, parts)
        step = _even(end - begin, rows // height)
        for n in range(begin, end, step):
            yield Block(n, min(n + step, end), 0, height)
        return
    begin, end = backend.share(images * height, part, parts)
    rows = _even(end - begin, rows)
    while begin < end:
        n, first = divmod(begin, height)
        last = min(height, first + rows, first + end - begin)
        yield Block(n, n + 1, first, last)
        begin += last - first


def all_rows(images: int, height: int, rows: int) -> Iterator[Block]:
    """All output rows of a batch: in blocks of at most `rows` rows of an image, or of several whole ones."""
    step = max(1, rows // height)
    for n in range(0, images, step):
        for first in range(0, height, rows):
            yield Block(n, min(n + step, images), first, min(first + rows, height))


def _even(total: int, most: int) -> int:
    """The length of roughly equal pieces of at most `most`, rather than full ones and a small remainder."""
    pieces = max(1, -(-total // most))
    return max(1, -(-total // pieces))
