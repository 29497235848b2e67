"""Image files as (3, H, W) float32 RGB, or at their own bit depth; and a cache for decoded ones.

Nothing here touches what belongs to the whole process: no warning filter is set and no lock is held while
decoding, so that threads can decode in parallel.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from minimask.data.formats import open_image, orientation
from minimask.errors import InputError
from minimask.files import is_address, open_regular

MEMORY = 10**9
"""Most bytes that one image may take while it is decoded, or as (3, H, W) float32: a file of 20 kB can hold
an image of 13000 x 13000."""

_ROWS_AT_ONCE = 2**20  # pixels that are converted at once

# What decoders need besides the image, in bytes per pixel; the others go row by row.
_DECODER = {"JPEG2000": 12, "WEBP": 8, "AVIF": 8}

_UPRIGHT = {  # EXIF orientation -> the upright view of (H, W, ...)
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


class Header(NamedTuple):
    """What a file says about its image before the pixels are decoded."""

    height: int  # as stored
    width: int
    turned: bool  # whether EXIF turns the image on its side
    sixteen_bits: bool
    several: bool  # whether other pictures follow this one: an animation, or pages
    bytes_per_pixel: int  # of what `decode` returns

    @property
    def pixels(self) -> int:
        return self.height * self.width


@contextmanager
def _opened(path: Path, content: IO[bytes] | None = None) -> Iterator[Any]:
    """Pillow's image, not yet decoded; anything wrong with the file is raised as an InputError.

    If the `content` is given, `path` is only what messages call it.
    """
    from PIL import Image

    try:
        file = open_regular(path) if content is None else content
    except FileNotFoundError:
        why = "; your shell did not replace the *: name the files" if "*" in str(path) else ""
        why = "; an address of the web is not read: download it" if is_address(path) else why
        raise InputError(f"{path}: no such image file{why}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory; give an image file") from None
    except PermissionError:
        raise InputError(f"{path}: may not be read; check its permissions") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); give an image file") from None
    try:
        with file, open_image(file, path) as image:
            _check_memory(image, path)
            yield image
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: is too large to be decoded ({error}); cut it into tiles") from None
    except MemoryError:
        raise InputError(f"{path}: does not fit into memory; cut it into tiles") from None
    except Warning as warning:  # only if the user has warnings raised as errors
        raise InputError(
            f"{path}: Pillow warns: {warning}; save it anew, or do not raise PIL's warnings as errors"
        ) from None
    except Exception as error:  # each decoder raises what it likes: OSError, SyntaxError, struct.error, ...
        detail = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: damaged or truncated image ({detail}); replace the file") from error


def _check_memory(image: Any, path: Path) -> None:
    """Refuse, by its header, an image that cannot be decoded within `MEMORY`, or exceeds Pillow's limit."""
    from PIL import Image

    if image.width < 1 or image.height < 1:
        raise InputError(f"{path}: damaged image (it has {image.width} x {image.height} pixels)")
    size, pixels = f"{image.width} x {image.height} pixels", image.width * image.height
    most = Image.MAX_IMAGE_PIXELS
    if most and pixels > 2 * most:  # Pillow's own `open` refuses these, too
        raise InputError(
            f"{path}: is too large to be decoded ({size}, where {2 * most} are allowed); cut it into tiles"
        )
    needed = pixels * (_stored_bytes(image) + _decoder_bytes(image) + _result_bytes(image))
    if needed > MEMORY:
        raise too_large(path, image.height, image.width, needed, "to be decoded")


def too_large(path: Path, height: int, width: int, needed: int, purpose: str) -> InputError:
    """The error for an image that would take more than `MEMORY`."""
    return InputError(
        f"{path}: {width} x {height} pixels would take {needed / 1e9:.1f} GB {purpose}, more than the "
        f"{MEMORY / 1e9:.1f} GB that one image may take; scale it down or cut it into tiles"
    )


def _stored_bytes(image: Any) -> int:
    """Bytes per pixel in Pillow."""
    return {"1": 1, "L": 1, "P": 1}.get(image.mode, 2 if image.mode.startswith("I;16") else 4)


def _decoder_bytes(image: Any) -> int:
    return _DECODER.get(image.format, 6 if image.info.get("progressive") else 0)


def _result_bytes(image: Any) -> int:
    """Bytes per pixel of what `decode` returns."""
    if image.mode == "F":
        return 4
    if image.mode == "I" or image.mode.startswith("I;16"):
        return 2
    return 1 if _is_grey(image) else 3


def _is_grey(image: Any) -> bool:
    return image.mode in ("1", "L") and "transparency" not in image.info


def examine(path: Path, content: IO[bytes] | None = None) -> Header:
    """What an image file's header says; no pixels are decoded.

    If the file's `content` is given, `path` is only what messages call it.

    Raises
    ------
    InputError
        If the file is missing, not an image that can be read, or too large to be decoded.
    """
    with _opened(path, content) as image:
        return Header(
            height=image.height,
            width=image.width,
            turned=orientation(image) >= 5,
            sixteen_bits=image.mode == "I" or image.mode.startswith("I;16"),
            several=_has_several(image),
            bytes_per_pixel=_result_bytes(image),
        )


def _has_several(image: Any) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # what follows the first image is damaged, which does not matter: it is not read
        return True


def read_header(path: Path) -> tuple[int, int, bool]:
    """Height and width as stored, and whether EXIF turns the image on its side; from `examine`."""
    return examine(path)[:3]


def decode(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The pixels of an image file at its own bit depth.

    Parameters
    ----------
    path : Path
    size : (height, width), optional
        The annotated size. The EXIF orientation is applied, unless only the image as stored has this size:
        then it was annotated as stored.

    Returns
    -------
    (H, W) or (H, W, 3), uint8, uint16 or float32
        Grey or RGB. Transparent pixels are laid over white, as a viewer shows them. From an animation or a
        stack, the first image.

    Raises
    ------
    InputError
        If the file is missing, not a regular file, of a format that is not read (`formats.READERS`) or
        truncated, takes more than `MEMORY`, or has values beyond 16 bits.
    """
    with _opened(path) as image:
        image.load()
        turn = orientation(image)
        pixels = _pixels(image, path)
    if turn == 1:
        return pixels
    stored, upright = pixels.shape[:2], _UPRIGHT[turn](pixels)
    if size == stored and size != upright.shape[:2]:
        return pixels
    return np.ascontiguousarray(upright)


def decode_values(path: Path, content: IO[bytes] | None = None) -> np.ndarray:
    """The values that an image file stores, as needed for a label map.

    If the file's `content` is given, `path` is only what messages call it.

    Unlike in `decode`, they are not converted: an index into a palette stays that index, nothing transparent
    is laid over white, and EXIF's orientation is ignored.

    Returns
    -------
    (H, W) uint8, uint16 or int32, or (H, W, 3) uint8
        For images of 1 bit, 0 and 1.

    Raises
    ------
    InputError
        As `decode`; also for values that are not whole numbers, and for pixels that are not opaque.
    """
    with _opened(path, content) as image:
        image.load()
        if image.mode == "F":
            raise InputError(f"{path}: has fractions for values; save the label map as PNG of 8 or 16 bits")
        if image.mode in ("LA", "PA", "RGBA"):
            if np.asarray(image.getchannel("A")).min() < 255:
                raise InputError(f"{path}: has transparent pixels; save the label map without transparency")
            image = image.convert({"LA": "L", "PA": "P"}.get(image.mode, "RGB"))
        if image.mode in ("1", "L", "P", "I", "RGB") or image.mode.startswith("I;16"):
            values = np.asarray(image)
            if image.mode == "1":
                return values.astype(np.uint8)
            return values.astype(np.uint16) if image.mode.startswith("I;16") else values
        raise InputError(
            f"{path}: is of mode {image.mode}, not grey, palette or RGB; save the label map as PNG"
        )


def palette_colours(path: Path) -> np.ndarray | None:
    """The colours of an image with a palette, (N, 3) uint8; None for any other."""
    with _opened(path) as image:
        image.load()
        if image.mode != "P":
            return None
        return np.array(image.convert("P").getpalette("RGB"), np.uint8).reshape(-1, 3)


def _pixels(image: Any, path: Path) -> np.ndarray:
    """What `decode` returns, but not turned; converted some rows at a time, since Pillow's copies add up."""
    width, height = image.size
    dtype = {4: np.float32, 2: np.uint16}.get(_result_bytes(image), np.uint8)
    pixels = np.empty((height, width) if _result_bytes(image) != 3 else (height, width, 3), dtype)
    low, high = np.float64(np.inf), np.float64(-np.inf)
    rows = max(1, _ROWS_AT_ONCE // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        # Not cropping where one piece is enough saves a copy, and Pillow 12.0 warns of large crops.
        values = _rows(image if rows >= height else image.crop((0, top, width, bottom)))
        pixels[top:bottom] = values if values.dtype.kind == "u" else np.clip(values, 0, 65535)
        low, high = np.minimum(low, values.min()), np.maximum(high, values.max())  # NaN stays NaN
    most = 1 if dtype == np.float32 else 65535
    if not (low >= 0 and high <= most):
        raise InputError(
            f"{path}: has values from {low:g} to {high:g}, where 0 to {most} is understood; "
            "save it with 8 or 16 bits"
        )
    return pixels


def _rows(image: Any) -> np.ndarray:
    """Some rows of an image: (h, W) or (h, W, 3) uint8, uint16, int32 or float32."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)  # in the machine's byte order
    if image.mode in ("I", "F"):
        return np.asarray(image)
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def to_float(pixels: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) of any depth that `decode` returns -> (3, H, W) float32 in 0..1."""
    image = pixels if pixels.ndim == 3 else pixels[:, :, None]
    image = np.broadcast_to(image, (*pixels.shape[:2], 3)).transpose(2, 0, 1)  # (H, W, 3) -> (3, H, W)
    image = np.ascontiguousarray(image, np.float32)
    if pixels.dtype != np.float32:
        image /= np.iinfo(pixels.dtype).max
    return image


def to_float_within(pixels: np.ndarray, path: Path) -> np.ndarray:
    """`to_float`, or an InputError that names the file if that would take more than `MEMORY`."""
    needed = pixels.nbytes + 12 * pixels.shape[0] * pixels.shape[1]
    if needed > MEMORY:
        raise too_large(path, *pixels.shape[:2], needed, "as float32")
    return to_float(pixels)


def shrink(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What `decode` returns, resized to (h, w): (3, h, w) float32, without making all of it float32 first.

    Bilinear between the pixel centres on either side, like the network's own resizing
    (`kernels.resample.bilinear`).
    """

    def neighbours(length: int, out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        centre = np.clip((np.arange(out) + 0.5) * (length / out) - 0.5, 0, length - 1)
        low = np.floor(centre).astype(np.int64)
        return low, np.minimum(low + 1, length - 1), (centre - low).astype(np.float32)

    top, bottom, down = neighbours(pixels.shape[0], size[0])
    left, right, across = neighbours(pixels.shape[1], size[1])

    def row(rows: np.ndarray) -> np.ndarray:  # (3, h, w): some rows of the image, resized horizontally
        picked = pixels[rows]
        return (1 - across) * to_float(picked[:, left]) + across * to_float(picked[:, right])

    out = np.empty((3, *size), np.float32)
    at_once = max(1, _ROWS_AT_ONCE // pixels.shape[1])
    for first in range(0, size[0], at_once):
        part = slice(first, first + at_once)
        weight = down[part, None]
        out[:, part] = (1 - weight) * row(top[part]) + weight * row(bottom[part])
    return out


def read_image(path: str | Path) -> np.ndarray:
    """An image file as the model wants it.

    Parameters
    ----------
    path : str or Path
        PNG, JPEG, JPEG 2000, TIFF, BMP, GIF, WebP, AVIF, PPM, PCX, SGI or TGA, of any mode: grey, palette,
        1 bit, 16 bits (65535 is white), CMYK, with or without transparency (laid over white). The EXIF
        orientation is applied.

    Returns
    -------
    (3, H, W) float32
        RGB in 0..1.

    Raises
    ------
    InputError
        If the file is missing, not a regular file, not such an image, truncated, too large for `MEMORY`, or
        has values beyond 16 bits.
    """
    path = Path(path)
    return to_float_within(decode(path), path)


class PixelCache:
    """Keeps the most recently used arrays, up to a number of bytes; several threads may use it."""

    def __init__(self, limit: int):
        self.limit = limit
        self.size = 0
        self._arrays: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array for this key; made, outside the lock, if it is not there."""
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        array = make()
        with self._lock:
            if key not in self._arrays:  # another thread may have made it in the meantime
                self._arrays[key] = array
                self.size += array.nbytes
            while self.size > self.limit:
                self.size -= self._arrays.popitem(last=False)[1].nbytes
        return array
