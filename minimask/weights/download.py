"""Weights by name or address: fetched once, checked if the file's name holds its hash, and kept."""

import hashlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from minimask.errors import InputError, one_line
from minimask.files import replacing
from minimask.weights.published import PACKAGED, published

_NAME = re.compile(r"(minimask|torchvision|detectron2):.*")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://.*", re.IGNORECASE | re.DOTALL)
_HASH = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+")  # as torch.hub has it: resnet50-0676ba61.pth
_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte


def local_weights(source: str | Path, note: Callable[[str], None] = lambda line: None) -> Path:
    """The file of weights that a path, a published name or an address stands for, fetched if need be.

    Parameters
    ----------
    source : str or Path
        A path; a name in `published.PACKAGED` or `published.PUBLISHED`; or ``https://...``.
    note : callable
        Is told the licence of published weights, and where a file is kept.

    Returns
    -------
    Path
        A path is returned as it is; the weights in this package need no fetching. What is fetched goes into
        ``MINIMASK_CACHE``, or into the user's cache.

    Raises
    ------
    InputError
        If the name is unknown, the package pooch is missing, or the file cannot be fetched or is not the one
        that its name promises. Nothing half-fetched is kept.
    """
    if is_path(source):
        return Path(source)
    url = text = str(source)
    if text in PACKAGED:
        return PACKAGED[text]
    if _NAME.fullmatch(text):
        entry = published(text)
        url = entry.url
        note(f"{text}: {entry.licence}")
    if urlsplit(url).scheme.lower() not in ("http", "https"):
        raise InputError(
            f"{text}: weights are fetched by http and https only; give a path, or such an address"
        )
    path = _cache() / _file_name(url)
    if not path.is_file():
        _fetch(url, path)
        note(f"kept as {path}")
    return path


def is_path(source: str | Path) -> bool:
    """Whether it is neither a published name nor an address."""
    return isinstance(source, Path) or not (_NAME.fullmatch(source) or _ADDRESS.fullmatch(source))


def _cache() -> Path:
    given = os.environ.get("MINIMASK_CACHE")
    return Path(given) if given else Path(_pooch().os_cache("minimask"))


def _pooch():
    try:
        import pooch
    except ImportError as error:
        raise InputError(
            "weights by name or address need the package pooch: pip install 'minimask[download]'; or "
            "download the file yourself and give its path"
        ) from error
    return pooch


def _file_name(url: str) -> str:
    """The last part of the path, preceded by a hash of the address if that part does not hold a hash."""
    name = Path(unquote(urlsplit(url).path)).name
    kept = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[-100:] or "weights"
    known = _HASH.search(kept)
    return kept if known else f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{kept}"


def _fetch(url: str, path: Path) -> None:
    pooch = _pooch()
    import requests  # pooch's own dependency

    shown = one_line(url, 200)
    # pooch's `retrieve` would print, and ask for a whole hash; its downloader just downloads.
    download = pooch.HTTPDownloader(
        progressbar=sys.stderr is not None and sys.stderr.isatty(), chunk_size=_CHUNK, timeout=_TIMEOUT
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot be made ({error.strerror}); set MINIMASK_CACHE to a folder that can"
        ) from error
    with replacing(path) as file:
        hashing = _Hashing(file)
        try:
            download(url, hashing, None)
        except requests.HTTPError as error:
            reason = f"{error.response.status_code} {error.response.reason}"
            raise InputError(f"{shown}: cannot be fetched ({reason}); check the address") from error
        except (requests.RequestException, UnicodeError) as error:
            reason = _reason(error, url)
            raise InputError(
                f"{shown}: cannot be fetched ({reason}). Check the network, or download the file elsewhere "
                "and give its path"
            ) from error
        digest, wanted = hashing.hash.hexdigest(), _HASH.search(path.name)
        if wanted and not digest.startswith(wanted[1]):
            raise InputError(
                f"{shown}: is not the file that its name promises (SHA-256 {digest[:12]}..., not "
                f"{wanted[1]}...); nothing was kept. Try again, or fetch it from elsewhere"
            )


def _reason(error: Exception, url: str) -> str:
    """Why there was no answer, in a few words: the error's own text names classes and memory addresses."""
    import requests

    host = urlsplit(url).hostname
    if isinstance(error, requests.Timeout):
        return f"{host} does not answer"
    if isinstance(error, requests.ConnectionError):
        return f"no connection to {host}"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    return one_line(error, 160)


class _Hashing:
    """A file being written, and the SHA-256 of what was written."""

    def __init__(self, file):
        self.file, self.hash = file, hashlib.sha256()

    def write(self, chunk: bytes) -> int:
        self.hash.update(chunk)
        return self.file.write(chunk)

    def flush(self) -> None:
        self.file.flush()
