"""Images of every kind come out as (3, H, W) float32 RGB in 0..1, upright."""

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from minimask.data import read_image
from minimask.data.images import PixelCache, decode, read_header, to_float
from minimask.errors import InputError

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
    image = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], np.uint8), "P")
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
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
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
