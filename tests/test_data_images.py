"""Images of every kind come out as (3, H, W) float32 RGB in 0..1, upright."""

import os
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from minimask.data import images, read_image
from minimask.data.formats import READERS
from minimask.data.images import PixelCache, decode, examine, read_header, shrink, to_float
from minimask.errors import InputError
from minimask.kernels import resample
from minimask.masks import Masks
from minimask.results import large

GREY = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)  # 2 x 3
RGB = np.stack([GREY, 255 - GREY, np.full_like(GREY, 51)], axis=2)


def read(tmp_path, image, name="a.png", **options):
    image.save(tmp_path / name, **options)
    result = read_image(tmp_path / name)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    return result


def as_rgb(grey):
    return np.broadcast_to(np.asarray(grey, np.float32), (3, *np.shape(grey)))


def test_colour_is_divided_by_255_and_put_channels_first(tmp_path):
    np.testing.assert_array_equal(
        read(tmp_path, Image.fromarray(RGB)), RGB.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    )


def test_grey_becomes_three_equal_channels(tmp_path):
    np.testing.assert_array_equal(read(tmp_path, Image.fromarray(GREY)), as_rgb(GREY) / np.float32(255))


def test_one_bit_is_black_and_white(tmp_path):
    bits = GREY > 100
    np.testing.assert_array_equal(read(tmp_path, Image.fromarray(bits)), as_rgb(bits))


def test_a_palette_is_looked_up(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 51])
    result = read(tmp_path, image)
    np.testing.assert_array_equal(result[:, 0], np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 0.2]]))
    np.testing.assert_array_equal(result[:, 1], result[:, 0, ::-1])


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_sixteen_bits_keep_their_depth(tmp_path, suffix, byte_order):
    values = np.array([[0, 1, 256], [32768, 65534, 65535]], byte_order)
    result = read(tmp_path, Image.fromarray(values), f"a.{suffix}")
    np.testing.assert_array_equal(result, as_rgb(values.astype(np.float32) / np.float32(65535)))


def test_thirty_two_bits_are_taken_up_to_16_and_refused_beyond(tmp_path):
    values = np.array([[0, 5], [700, 65535]], np.int32)
    np.testing.assert_array_equal(
        read(tmp_path, Image.fromarray(values), "a.tif"),
        as_rgb(values.astype(np.float32) / np.float32(65535)),
    )
    for wrong in (-1, 65536):
        with pytest.raises(InputError, match=r"a\.tif: has values from .* save it with 8 or 16 bits"):
            read(tmp_path, Image.fromarray(np.array([[0, wrong]], np.int32)), "a.tif")


def test_floats_are_taken_in_0_to_1_and_refused_beyond(tmp_path):
    values = np.array([[0.0, 0.25], [0.5, 1.0]], np.float32)
    np.testing.assert_array_equal(read(tmp_path, Image.fromarray(values), "a.tif"), as_rgb(values))
    for wrong in (-0.1, 1.5, np.nan):
        with pytest.raises(InputError, match=r"a\.tif: has values from"):
            read(tmp_path, Image.fromarray(np.array([[0, wrong]], np.float32)), "a.tif")


@pytest.mark.parametrize("alpha, expected", [(255, 0.2), (0, 1.0), (128, 1 - 0.8 * 128 / 255)])
def test_transparent_pixels_are_laid_over_white(tmp_path, alpha, expected):
    for image in (
        Image.new("RGBA", (3, 2), (51, 51, 51, alpha)),
        Image.new("LA", (3, 2), (51, alpha)),
    ):
        np.testing.assert_allclose(read(tmp_path, image), expected, atol=0.5 / 255 + 1e-6)


def test_transparency_in_a_palette_or_a_colour_key_is_laid_over_white_without_a_warning(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([0, 0, 0, 255, 0, 0])
    for transparency in (0, bytes([0, 255])):
        result = read(tmp_path, image, transparency=transparency)
        np.testing.assert_array_equal(result[:, 0], np.float32([[1, 1], [1, 0], [1, 0]]))
    result = read(tmp_path, Image.fromarray(RGB), transparency=(0, 255, 51))
    np.testing.assert_array_equal(result[:, 0, 0], [1, 1, 1])
    np.testing.assert_array_equal(result[:, 1, 2], np.float32([1, 0, 0.2]))


def test_cmyk_and_ycbcr_become_rgb(tmp_path):
    image = Image.new("CMYK", (3, 2), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    np.testing.assert_allclose(read(tmp_path, image, "a.tif")[:, 0, 0], [1, 0, 0], atol=0.01)
    np.testing.assert_allclose(read(tmp_path, image, "a.jpg")[:, 0, 0], [1, 0, 0], atol=0.02)


def test_a_stack_gives_its_first_picture(tmp_path):
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    result = read(tmp_path, first, "a.tif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(result, as_rgb(GREY) / np.float32(255))


STORED = {  # EXIF orientation -> what a camera stored, given the upright picture
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(tmp_path, orientation, dtype):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](GREY.astype(dtype)))
    result = read(tmp_path, Image.fromarray(stored), exif=exif)
    np.testing.assert_array_equal(result, as_rgb(GREY) / np.float32(np.iinfo(dtype).max))
    assert read_header(tmp_path / "a.png") == (*stored.shape, orientation >= 5)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("orientation", STORED)
def test_the_orientation_of_a_tiff_is_applied_once(tmp_path, orientation, compression):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](GREY))
    result = read(tmp_path, Image.fromarray(stored), "a.tif", exif=exif, compression=compression)
    np.testing.assert_array_equal(result, as_rgb(GREY) / np.float32(255))
    assert read_header(tmp_path / "a.tif") == (2, 3, False)  # Pillow has turned it


@pytest.mark.parametrize("suffix", ["jpg", "webp", "png"])
def test_the_orientation_is_read_from_exif_of_either_byte_order_and_from_xmp(tmp_path, suffix):
    picture = Image.new("L", (3, 2))
    little = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    big = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    for exif in (little, big):
        assert read(tmp_path, picture, f"a.{suffix}", exif=exif).shape == (3, 3, 2)
        for cut in range(6, len(exif) - 8):
            read(tmp_path, picture, f"a.{suffix}", exif=exif[:cut])
    if suffix != "png":
        xmp = b'<x:xmpmeta tiff:Orientation="6"/>'
        assert read(tmp_path, picture, f"a.{suffix}", xmp=xmp).shape == (3, 3, 2)


def test_exif_rotation_is_left_out_where_only_the_stored_size_was_annotated(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.rot90(GREY)  # 3 x 2
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(decode(tmp_path / "a.png", (3, 2)), stored)
    np.testing.assert_array_equal(decode(tmp_path / "a.png", (2, 3)), GREY)
    np.testing.assert_array_equal(decode(tmp_path / "a.png", (7, 7)), GREY)


def test_an_upside_down_picture_is_turned_though_both_sizes_agree(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.ascontiguousarray(GREY[::-1, ::-1])).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(decode(tmp_path / "a.png", (2, 3)), GREY)


def test_a_decompression_bomb_is_refused_and_a_large_image_raises_no_warning(tmp_path, monkeypatch):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)  # Pillow warns above this and refuses above twice this
    assert read_image(tmp_path / "a.png").shape == (3, 2, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(InputError, match=r"a\.png: is too large to be decoded .*tiles"):
        read_image(tmp_path / "a.png")


def test_every_cut_of_a_png_is_an_input_error_or_the_whole_picture(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    whole, errors = read_image(tmp_path / "a.png"), 0
    for length in range(len(data)):
        (tmp_path / "a.png").write_bytes(data[:length])
        try:
            np.testing.assert_array_equal(read_image(tmp_path / "a.png"), whole)
        except InputError:
            errors += 1
    assert errors >= len(data) - 24  # the last bytes are checksums and the end marker


def test_damaged_metadata_is_no_obstacle(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", "nonsense")
    np.testing.assert_array_equal(
        read(tmp_path, Image.fromarray(GREY), pnginfo=info), as_rgb(GREY) / np.float32(255)
    )


def test_float_pixels_are_passed_on_as_they_are():
    np.testing.assert_array_equal(to_float(np.float32([[0.25, 1.0]])), as_rgb([[0.25, 1.0]]))


def test_the_cache_keeps_the_latest_used_arrays_within_its_limit():
    cache = PixelCache(limit=250)
    made = []

    def get(key):
        return cache.get(key, lambda: made.append(key) or np.full(100, key, np.uint8))

    get(1), get(2), get(1)
    assert made == [1, 2]
    get(3)  # drops 2, the longest unused
    assert get(1)[0] == 1
    assert made == [1, 2, 3]
    assert get(2)[0] == 2
    assert made == [1, 2, 3, 2]
    assert cache.size == 200
    assert (
        len(cache.get(9, lambda: np.zeros(1000, np.uint8))) == 1000
    )  # larger than the limit: given, not kept
    assert cache.size == 0


# ---------------------------------------------------------------- which files are opened


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A program named gs, first in the PATH; returns the file that it leaves when it is started."""
    trace = tmp_path / "started"
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return trace


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n4 4 scale\nshowpage\n%%EOF\n"


@pytest.mark.skipif(os.name == "nt", reason="the program is a shell script")
@pytest.mark.parametrize("name", ["photo.png", "photo.eps", "photo.ps", "photo"])
@pytest.mark.parametrize("head", [b"", b"\xc5\xd0\xd3\xc6\x1e\0\0\0" + b"\0" * 22])
def test_a_picture_that_is_a_program_is_not_run(tmp_path, ghostscript, name, head):
    (tmp_path / name).write_bytes(head + POSTSCRIPT)
    for look in (read_image, examine, decode):
        with pytest.raises(InputError, match=r"photo.*: is PostScript .EPS., which is not read; convert it"):
            look(tmp_path / name)
    assert not ghostscript.exists()


@pytest.mark.parametrize("pillows", ["DDS", "DIB", "EPS", "ICNS", "ICO", "PDF", "TGA"])
def test_formats_that_are_not_of_the_list_are_refused_though_pillow_knows_them(tmp_path, pillows):
    Image.new("L", (32, 32)).save(tmp_path / "a.png", pillows)
    with pytest.raises(InputError, match=r"a\.png: is .*; convert it to PNG or JPEG"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"%PDF-1.7\n", "PDF"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\0" * 128 + b"DICM", "DICOM"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x93NUMPY\x01\0", "a NumPy array"),
    ],
)
def test_what_a_file_is_instead_is_named(tmp_path, content, what):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(
        InputError, match=rf"a\.png: is {what}.*, which is not read; convert it to PNG or JPEG"
    ):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.tga"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"is not an image, but empty \(0 bytes\); copy or download it again"),
        (
            bytes(5000),
            "is not an image, but nothing but zeros in its first 512 bytes; copy or download it again",
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS, .*run 'git lfs pull'"),
        (b"../../.git/annex/objects/x", "is a pointer of git-annex, .*run 'git annex get'"),
        (b"<!DOCTYPE html><html>", r"is a web page \(HTML\), .*: download the file itself again"),
        (b"\n<!-- saved from url=(0022)x -->\n<HTML>", r"is a web page \(HTML\), .*download the file itself"),
        (b"<?xml version='1.0'?>\n<!DOCTYPE html>", r"is a web page \(HTML\), .*download the file itself"),
        (b"<?xml version='1.0'?><Error><Code>Denied", "is XML, .*may be a server's error: download it again"),
        (b'{"message": "Not Found"}', "is JSON, .*may be a server's error: download it again"),
        (b"\0\x05\x16\x07\0\2\0\0", "is a note of macOS .*leave it out"),
        (b"PK\x03\x04", "is a ZIP archive, .*unpack it"),
        (b"\0\0\0\x20ftypisom", "is video .*save its frames as PNG or JPEG"),
    ],
)
def test_what_no_conversion_would_make_an_image_is_named_with_its_own_mend(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_image(tmp_path / name)
    assert "convert" not in str(caught.value)


SUFFIXES = {"JPEG 2000": "jp2", "TIFF": "tif", "JPEG": "jpg"}


@pytest.mark.parametrize("name", READERS)
def test_every_format_of_the_list_is_read_under_any_name(tmp_path, name):
    suffix = SUFFIXES.get(name, name.lower())
    options = {"lossless": True} if suffix == "webp" else {}
    picture = Image.fromarray(np.tile(RGB, (8, 8, 1)))
    picture = picture.quantize(16) if suffix == "gif" else picture
    picture.save(tmp_path / f"a.{suffix}", **options)
    with Image.open(tmp_path / f"a.{suffix}") as opened:
        expected = np.asarray(opened.convert("RGB"))
    if suffix != "tga":  # which alone is known by its name
        (tmp_path / f"a.{suffix}").rename(tmp_path / "a.dat")
        suffix = "dat"
    np.testing.assert_array_equal(decode(tmp_path / f"a.{suffix}"), expected)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device here")
def test_a_device_is_no_image():
    with pytest.raises(InputError, match=r"/dev/zero: cannot be read .not a regular file."):
        read_image("/dev/zero")


def test_a_pattern_that_the_shell_left_is_explained(tmp_path):
    with pytest.raises(InputError, match=r"\*\.png: no such image file; your shell did not replace the \*"):
        read_image(tmp_path / "*.png")


# ---------------------------------------------------------------- warnings, threads


def warned_about(directory):
    """Images of which Pillow's own `open`, or its EXIF, warns."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8769] = 6, "a maker " * 9, {0x9286: b"x" * 50}
    cut = exif.tobytes()[:-60]
    picture = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], np.uint8))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 51])
    picture.save(directory / "palette.png", transparency=bytes([0, 255, 9]))
    Image.new("L", (3, 2)).save(directory / "exif.jpg", exif=cut)
    Image.new("L", (3, 2)).save(directory / "exif.png", exif=cut)
    plain = (directory / "exif.jpg").read_bytes()
    mpo = b"MPF\0II*\0\x08\0\0\0\xff\xff"
    (directory / "mpo.jpg").write_bytes(plain[:2] + b"\xff\xe2" + bytes([0, len(mpo) + 2]) + mpo + plain[2:])
    for tag, count in ((282, 10**6), (284, 2)):  # data larger than the file; more entries than one
        Image.new("L", (3, 2)).save(directory / f"{tag}.tif", resolution=72, tiffinfo={270: "x"})
        content = bytearray((directory / f"{tag}.tif").read_bytes())
        at = content.index(tag.to_bytes(2, "little"), 8) + 4
        content[at : at + 4] = count.to_bytes(4, "little")
        (directory / f"{tag}.tif").write_bytes(content)
    frames = b"acTL" + bytes(8)  # an animation of no pictures
    plain = (directory / "palette.png").read_bytes()
    chunk = (8).to_bytes(4, "big") + frames + zlib.crc32(frames).to_bytes(4, "big")
    (directory / "animated.png").write_bytes(plain[:33] + chunk + plain[33:])
    return sorted(directory.iterdir())


def test_the_damaged_files_are_such_that_pillow_warns_of_them(tmp_path):
    for path in warned_about(tmp_path):
        with pytest.warns(UserWarning), Image.open(path) as image:
            image.load()
            image.convert("RGB")
            image.getexif().get_ifd(0x8769)


def test_pillows_warnings_neither_show_nor_raise_though_no_filter_is_set(tmp_path, monkeypatch):
    paths = warned_about(tmp_path)

    def forbidden(*_, **__):
        raise AssertionError("filters of warnings belong to the process")

    with monkeypatch.context() as patch:  # pytest sets filters, too
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 5)  # Pillow's own `open` would warn
        for name in ("catch_warnings", "filterwarnings", "simplefilter", "showwarning"):
            patch.setattr(warnings, name, forbidden)
        for path in paths:  # under pytest a warning is an error
            assert read_image(path).shape in ((3, 2, 3), (3, 3, 2))
            examine(path)


def test_two_threads_decode_beside_each_other(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    both, pixels = threading.Barrier(2, timeout=20), images._pixels
    monkeypatch.setattr(images, "_pixels", lambda *of: (both.wait(), pixels(*of))[1])
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(decode, [tmp_path / "a.png"] * 2):
            np.testing.assert_array_equal(found, RGB)


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("mode", "each"), [("1", 2), ("L", 2), ("P", 4), ("RGB", 7), ("RGBA", 7), ("I;16", 4)]
)
def test_an_image_that_takes_too_much_memory_is_refused_by_its_header(tmp_path, monkeypatch, mode, each):
    Image.new(mode, (40, 25)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MEMORY", 1000 * each)
    assert decode(tmp_path / "a.png").shape[:2] == (25, 40)
    monkeypatch.setattr(images, "MEMORY", 1000 * each - 1)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)
    with pytest.raises(
        InputError, match=r"a\.png: 40 x 25 pixels would take .* to be decoded, more than the "
    ):
        examine(tmp_path / "a.png")


def test_the_largest_images_that_fit_as_float32_are_told_from_those_that_do_not(tmp_path, monkeypatch):
    Image.new("L", (40, 25)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MEMORY", 13_000)
    assert read_image(tmp_path / "a.png").shape == (3, 25, 40)
    monkeypatch.setattr(images, "MEMORY", 12_999)
    with pytest.raises(InputError, match=r"a\.png: 40 x 25 pixels would take .* as float32"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(40, 61), (40, 61, 3), (1, 300), (300, 1, 3)])
@pytest.mark.parametrize("size", [(13, 20), (1, 1), (40, 61), (1, 33)])
def test_shrinking_pixels_is_the_networks_resizing(monkeypatch, dtype, shape, size):
    monkeypatch.setattr(images, "_ROWS_AT_ONCE", 3 * 61)  # several blocks
    rng = np.random.default_rng(0)
    pixels = (
        rng.random(shape).astype(dtype) if dtype == np.float32 else rng.integers(0, 255, shape).astype(dtype)
    )
    expected = resample.bilinear(to_float(pixels), size)
    np.testing.assert_allclose(shrink(pixels, size), expected, rtol=0, atol=1e-6)


class Sees:
    """A model that finds the left half of whatever it gets, and scales images to 20 pixels."""

    class transform:
        min_sizes = (10,)
        resized = staticmethod(lambda size, min_size: (max(1, size[0] // 5), size[1] // 5))

    def predict(self, batch):
        (self.image,) = batch
        height, width = self.image.shape[1:]
        boxes = np.float32([[0, 0, width / 2, height]])
        masks = Masks(np.ones((1, 28, 28), np.float32), boxes, (height, width))
        return [{"boxes": boxes, "labels": np.array([1]), "scores": np.float32([0.9]), "masks": masks}]


def test_a_large_image_is_resized_before_the_model_and_found_at_its_own_size(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 255, (50, 100, 3), dtype=np.uint8)
    model = Sees()
    found, image, seen = large.predict_pixels(model, pixels)
    assert found is seen and image is model.image and image.shape == (3, 50, 100)
    monkeypatch.setattr(large, "LARGE", 4999)
    found, image, seen = large.predict_pixels(model, pixels)
    assert image is model.image and image.shape == (3, 10, 20)
    assert seen["boxes"].tolist() == [[0, 0, 10, 10]] and found["boxes"].tolist() == [[0, 0, 50, 50]]
    assert found["masks"].shape == (1, 1, 50, 100)
    assert found["masks"].boxes.tolist() == [[0, 0, 50, 50]]
    np.testing.assert_array_equal(found["scores"], seen["scores"])


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no resource module on Windows")
def test_a_small_file_of_a_gigantic_picture_is_decoded_and_shrunk_in_little_memory(tmp_path):
    program = (
        "import sys; from pathlib import Path; from minimask.data.images import decode, shrink;"
        "pixels = decode(Path(sys.argv[1])); print(pixels.shape, shrink(pixels, (800, 800)).shape);"
        "from tests.data_fuzz import peak_memory; print(peak_memory())"
    )
    Image.new("1", (9000, 9000)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 50_000
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a.png"], capture_output=True, text=True
    )
    assert result.stdout.startswith("(9000, 9000) (3, 800, 800)\n"), result.stderr
    assert int(result.stdout.split()[-1]) < 490  # MiB; 4.1 GB when the whole image became float32
