"""Image files of any kind that Pillow reads, as (3, H, W) float32 RGB, and a cache for decoded ones."""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from minimask.errors import InputError

EXIF_ORIENTATION = 0x0112

_quiet = threading.Lock()  # warning filters belong to the process: two threads must not swap them


@contextmanager
def _opened(path: Path) -> Iterator:
    """Pillow's image, not yet decoded; whatever is wrong with the file is raised as an InputError."""
    from PIL import Image, UnidentifiedImageError

    if path.is_dir():
        raise InputError(f"{path}: is a directory; give an image file")
    try:
        with _quiet, warnings.catch_warnings():
            # Large images, damaged EXIF: nothing to act on. By module, so that other threads miss no warning.
            warnings.filterwarnings("ignore", module=r"PIL\.|minimask\.data\.images$")
            with Image.open(path) as image:
                yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such image file") from None
    except PermissionError:
        raise InputError(f"{path}: may not be read; check its permissions") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: is not an image that Pillow can read; convert it to PNG or JPEG") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: is too large to be decoded ({error}); cut it into tiles") from None
    except MemoryError:
        raise InputError(f"{path}: does not fit into memory; cut it into tiles") from None
    except Exception as error:  # forty decoders raise what they like: OSError, SyntaxError, struct.error, ...
        detail = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: damaged or truncated image ({detail}); replace the file") from error


def read_header(path: Path) -> tuple[int, int, bool]:
    """Height and width as stored, and whether EXIF turns the image on its side; no pixels are decoded.

    Raises
    ------
    InputError
        If the file is missing or is not an image.
    """
    with _opened(path) as image:
        # A PNG may have its EXIF after the pixels, and Pillow would decode them all to look for it.
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
        return image.height, image.width, exif.get(EXIF_ORIENTATION) in (5, 6, 7, 8)


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
        Grey or RGB. Transparent pixels are laid over white, as a viewer shows them. Of an animation or a
        stack, the first picture.

    Raises
    ------
    InputError
        If the file is missing, a directory, not an image, truncated, or has values beyond 16 bits.
    """
    from PIL import ImageOps

    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        fits, fits_upright = (size == (view.height, view.width) for view in (image, upright))
        return _pixels(image if fits and not fits_upright else upright, path)


def _pixels(image, path: Path) -> np.ndarray:
    """As `decode`; `path` is for the message."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)  # in the machine's byte order
    if image.mode in ("I", "F"):
        values, top = np.asarray(image), 65535 if image.mode == "I" else 1
        if not (values.min() >= 0 and values.max() <= top):
            raise InputError(
                f"{path}: has values from {values.min()} to {values.max()}, where 0 to {top} is understood; "
                "save it with 8 or 16 bits"
            )
        return values.astype(np.uint16 if image.mode == "I" else np.float32)
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


def read_image(path: str | Path) -> np.ndarray:
    """An image file as the model wants it.

    Parameters
    ----------
    path : str or Path
        Any format and mode that Pillow reads: grey, palette, 1 bit, 16 bits (65535 is white), CMYK, with or
        without transparency (laid over white). The EXIF orientation is applied.

    Returns
    -------
    (3, H, W) float32
        RGB in 0..1.

    Raises
    ------
    InputError
        If the file is missing, a directory, not an image, truncated, too large, or has values beyond 16 bits.
    """
    return to_float(decode(Path(path)))


class PixelCache:
    """Keeps the most recently used arrays, up to a number of bytes; several threads may use it."""

    def __init__(self, limit: int):
        self.limit = limit
        self.size = 0
        self._arrays: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of this key; made, outside the lock, if it is not there."""
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        array = make()
        with self._lock:
            if key not in self._arrays:  # another thread may have made it meanwhile
                self._arrays[key] = array
                self.size += array.nbytes
            while self.size > self.limit:
                self.size -= self._arrays.popitem(last=False)[1].nbytes
        return array
