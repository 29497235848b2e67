"""Pictures as data URLs inside a page, each of limited size, so that the page's is limited, too."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np


def figure_uri(figure: Any, dpi: int, most: int) -> tuple[str, int, int]:
    """A matplotlib figure as a data URL, and its width and height in pixels."""
    from PIL import Image

    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, facecolor="white")
    picture = Image.open(content).convert("RGB")
    return picture_uri(picture, most), *picture.size


def picture_uri(picture: Any, most: int) -> str:
    """A PIL image as a data URL, made coarser until it has at most `most` bytes: WebP, or JPEG without it."""
    from PIL import features

    kind = "webp" if features.check("webp") else "jpeg"
    size = picture.size
    while True:
        for quality in (84, 65, 40, 20):
            content = io.BytesIO()
            picture.save(content, kind, quality=quality)
            if 4 * content.tell() <= 3 * most:
                return f"data:image/{kind};base64,{_base64(content.getvalue())}"
        size = tuple(max(1, side * 3 // 4) for side in size)
        picture = picture.resize(size)


def stencil_uri(mask: np.ndarray, colour: tuple[int, int, int]) -> str:
    """A mask (H, W) of bool as a PNG of one colour, transparent where it is False."""
    from PIL import Image

    picture = Image.fromarray(mask.astype(np.uint8)).convert("P")
    picture.putpalette([0, 0, 0, *colour])
    content = io.BytesIO()
    picture.save(content, "PNG", transparency=0, bits=1)
    return "data:image/png;base64," + _base64(content.getvalue())


def cells(values: np.ndarray) -> str:
    """Values (M, M) from 0 to 1 as base64 of one byte each, row by row."""
    return _base64(np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8).tobytes())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
