"""Which image files are opened: an explicit list of formats, each recognised by its first bytes.

Pillow would find a file's format by itself, but some of its formats start a program (EPS: Ghostscript) or
read other files. None of those listed here does: each is decoded by Pillow's own code, from the file given.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from minimask.data.quiet import quiet_reader
from minimask.errors import InputError

READERS = {  # our name -> module and class of Pillow
    "PNG": ("PngImagePlugin", "PngImageFile"),
    "JPEG": ("JpegImagePlugin", "JpegImageFile"),
    "JPEG 2000": ("Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    "TIFF": ("TiffImagePlugin", "TiffImageFile"),
    "BMP": ("BmpImagePlugin", "BmpImageFile"),
    "GIF": ("GifImagePlugin", "GifImageFile"),
    "WebP": ("WebPImagePlugin", "WebPImageFile"),
    "AVIF": ("AvifImagePlugin", "AvifImageFile"),
    "PPM": ("PpmImagePlugin", "PpmImageFile"),
    "PCX": ("PcxImagePlugin", "PcxImageFile"),
    "SGI": ("SgiImagePlugin", "SgiImageFile"),
    "TGA": ("TgaImagePlugin", "TgaImageFile"),
}

_HELPERS = {  # other classes of these modules that warn
    "TIFF": ("ImageFileDirectory_v2", "ImageFileDirectory_v1"),
    "PNG": ("PngStream",),
}

_ORIENTATION = 0x0112  # the tag of EXIF and TIFF

_SIGNATURES = (  # of formats that are read, and of others that people try
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("JPEG", rb"\xff\xd8\xff"),
    ("JPEG 2000", rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"),
    ("OpenEXR", rb"v/1\x01"),
    ("camera raw (CR2)", rb"II\*\0.{4}CR"),
    ("TIFF", rb"II\*\0|MM\0\*|II\+\0|MM\0\+|MM\*\0|II\0\*"),
    ("GIF", rb"GIF8[79]a"),
    ("WebP", rb"RIFF.{4}WEBP"),
    ("AVIF", rb".{4}ftyp(avi[fs]|(mif1|msf1|miaf).{4,60}?avi[fs])"),
    ("HEIC", rb".{4}ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)"),
    ("video (MP4, MOV)", rb".{4}ftyp"),
    ("video (AVI)", rb"RIFF.{4}AVI "),
    ("camera raw (RAF)", rb"FUJIFILM"),
    ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("PostScript (EPS)", rb"\s*%!PS|\xc5\xd0\xd3\xc6"),
    ("PDF", rb"\s*%PDF"),
    ("Photoshop (PSD)", rb"8BPS"),
    (
        "a web page (HTML)",
        rb"(?i)(\xef\xbb\xbf)?(\s|<\?xml.*?\?>|<!--.*?-->)*<(!doctype html|html|head|body)",
    ),
    ("SVG, a drawing", rb"(?i)(\xef\xbb\xbf)?\s*<(svg|(\?xml|!--|!doctype svg).*?<svg)"),
    ("XML", rb"(\xef\xbb\xbf)?\s*<\?xml"),
    ("DICOM", rb".{128}DICM"),
    ("FITS", rb"SIMPLE  ="),
    ("HDF5", rb"\x89HDF\r\n\x1a\n"),
    ("an icon (ICO)", rb"\0\0[\1\2]\0"),
    ("an icon (ICNS)", rb"icns"),
    ("WMF or EMF", rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF"),
    ("DirectDraw (DDS)", rb"DDS "),
    ("Radiance (HDR)", rb"#\?(RADIANCE|RGBE)"),
    ("GIMP (XCF)", rb"gimp xcf"),
    ("a NumPy array", rb"\x93NUMPY"),
    ("a ZIP archive", rb"PK\x03\x04"),
    ("a 7z archive", rb"7z\xbc\xaf\x27\x1c"),
    ("a RAR archive", rb"Rar!\x1a\x07"),
    ("gzip", rb"\x1f\x8b"),
    ("a pointer of Git LFS", rb"version https://git-lfs"),
    ("a pointer of git-annex", rb"(\.\./)*(\.git)?/annex/objects/"),
    ("a note of macOS (AppleDouble)", rb"\0\x05\x16\x07"),
    ("JSON", rb"\s*[{\[]\s*[\"{\[\]}]"),
    ("BMP", rb"BM"),
    ("PPM", rb"P[0-6fy]\s"),
    ("SGI", rb"\x01\xda"),
    ("PCX", rb"\n[\0\2\3\5]"),
)
HEAD = 512  # bytes
_AGAIN = "copy or download it again"
_ERROR = "give an image; if this was downloaded, it may be a server's error: download it again"
_MENDS = {  # for what converting would not help
    "a web page (HTML)": "a page was saved in its place: download the file itself again",
    "a pointer of Git LFS": "run 'git lfs pull' in its repository",
    "a pointer of git-annex": "run 'git annex get' in its repository",
    "a note of macOS (AppleDouble)": "leave it out: the file itself has a name without '._'",
    "a ZIP archive": "unpack it",
    "a 7z archive": "unpack it",
    "a RAR archive": "unpack it",
    "gzip": "unpack it",
}
_IMAGE_MENDS = _MENDS | {
    "XML": _ERROR,
    "JSON": _ERROR,
    "video (MP4, MOV)": "save its frames as PNG or JPEG",
    "video (AVI)": "save its frames as PNG or JPEG",
}


def open_image(file: IO[bytes], path: Path) -> Any:
    """Pillow's image of an open file: the header is read, the pixels are not.

    Raises
    ------
    InputError
        If the file has another format; the line says which one, if that can be told.
    """
    head = file.read(HEAD)
    file.seek(0)
    name = _format(head, path)
    if name in READERS:
        return _reader(name)(file)
    if nothing := _nothing(head):
        raise InputError(f"{path}: is not an image, but {nothing}; {_AGAIN}")
    what = f"is {name}, which is not read" if name else "is not an image that can be read"
    raise InputError(f"{path}: {what}; {_IMAGE_MENDS.get(name, 'convert it to PNG or JPEG')}")


def instead(head: bytes, path: Path) -> str | None:
    """What a file is, by its first bytes, and what to do, if it is often given for another; or None."""
    name = _format(head, path)
    return f"is {name}; {_MENDS[name]}" if name in _MENDS else None


def _nothing(head: bytes) -> str | None:
    if not head:
        return "empty (0 bytes)"
    # A copy that was cut off, or a full disk, leaves such files.
    return None if head.strip(b"\0") else f"nothing but zeros in its first {len(head)} bytes"


def _format(head: bytes, path: Path) -> str | None:
    """The first format whose signature fits; the file may be truncated, or not really of that format."""
    known = (name for name, signature in _SIGNATURES if re.match(signature, head, re.DOTALL))
    name = next(known, None)
    # TGA files do not say what they are, and begin like nothing or like an icon.
    unknown = name is None or name == "an icon (ICO)"
    return "TGA" if path.suffix.lower() == ".tga" and unknown and head.strip(b"\0") else name


def _reader(name: str) -> Callable[[IO[bytes]], Any]:
    from PIL import Image

    module, kind = READERS[name]
    reader = quiet_reader(f"PIL.{module}", kind, _HELPERS.get(name, ()))

    if name not in ("JPEG", "TIFF"):
        return reader

    class Reader(reader):
        """Opens and loads without Pillow's search of the EXIF data, which warns of damage there."""

        def getexif(self) -> Image.Exif:
            exif, turn = Image.Exif(), None
            if name == "TIFF":  # Pillow turns these upright on loading
                turn = self.tag_v2.get(_ORIENTATION) or _orientation_in_xmp(self.info)
            if turn in range(2, 9):
                exif[_ORIENTATION] = turn
            return exif

    return Reader


def orientation(image: Any) -> int:
    """How an opened or loaded image must be turned to be upright, in EXIF's numbering: 1 is not at all.

    It is read here because Pillow reads all of the EXIF data and warns of any damage. Such warnings cannot be
    suppressed in a thread: warning filters belong to the process.
    """
    if image.format == "TIFF":
        return 1  # Pillow turns it on loading
    found = None
    exif = image.info.get("exif")
    if exif is None and "Raw profile type exif" in image.info:  # ImageMagick's way to put it into a PNG
        digits = "".join(str(image.info["Raw profile type exif"]).split("\n")[3:])
        exif = bytes.fromhex(digits) if re.fullmatch(r"\s*([0-9a-fA-F]{2}\s*)*", digits) else None
    if isinstance(exif, bytes):
        found = _orientation_tag(re.sub(rb"^(Exif\0\0){1,2}", b"", exif))
    if found is None:
        found = _orientation_in_xmp(image.info)
    return found if found in range(2, 9) else 1


def _orientation_in_xmp(info: dict) -> int | None:
    xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
    xmp = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else bytes(xmp)
    tag = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)
    return int(tag[1]) if tag else None


def _orientation_tag(exif: bytes) -> int | None:
    """The orientation tag in the first directory of EXIF data, which is laid out like a TIFF file."""
    order = {b"II": "little", b"MM": "big"}.get(exif[:2])
    if order is None:
        return None

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], order)

    start = number(4, 4)
    for at in range(start + 2, start + 2 + 12 * number(start, 2), 12):
        if len(exif) < at + 12:  # cut off
            return None
        if number(at, 2) == _ORIENTATION:
            size = {1: 1, 3: 2, 4: 4}.get(number(at + 2, 2))  # BYTE, SHORT, LONG
            return number(at + 8, size) if size and number(at + 4, 4) == 1 else None
    return None
