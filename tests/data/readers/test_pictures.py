"""Decoding and resizing."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxkd.data.readers import pictures

GREY = np.arange(0, 240, 20, dtype=np.uint8).reshape(3, 4)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)


def file_of(pixels, form="PNG", mode=None):
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(file, form)
    return file.getvalue()


def test_decoding_gives_back_the_pixels():
    np.testing.assert_array_equal(pictures.decode(file_of(GREY), 1, None).pixels[..., 0], GREY)
    np.testing.assert_array_equal(pictures.decode(file_of(GREY), None, None).pixels[..., 0], GREY)
    np.testing.assert_array_equal(pictures.decode(file_of(COLOUR), 3, None).pixels, COLOUR)


@pytest.mark.parametrize(
    ("mode", "form"), [("L", "PNG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "PNG")]
)
def test_odd_files_among_colour_images_are_converted(mode, form):
    decoded = pictures.decode(file_of(COLOUR, form, mode), 3, None).pixels
    assert decoded.shape == (3, 4, 3)
    assert decoded.dtype == np.uint8


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_both_ways_to_resize_agree(fit):
    frame = pictures.Frame(6, 2, fit)
    decoded = pictures.decode(file_of(COLOUR), 3, frame)
    np.testing.assert_array_equal(decoded.pixels, pictures.resize(COLOUR, frame).pixels)
    assert decoded.aspect == pictures.resize(COLOUR, frame).aspect == 4 / 3
    floats = pictures.resize(COLOUR.astype(np.float64), frame).pixels
    assert floats.dtype == np.float64
    np.testing.assert_allclose(floats, decoded.pixels, atol=1.01)


@pytest.mark.parametrize(("shape", "resized"), [((90, 60), (48, 32)), ((60, 81), (32, 43))])
def test_crops_are_the_middle_of_the_image_resized_by_its_shorter_side(shape, resized):
    rows, columns = np.meshgrid(*(np.linspace(0, 240, side) for side in shape), indexing="ij")
    smooth = np.stack([rows, columns, (rows + columns) / 2], axis=-1).astype(np.uint8)
    found = pictures.resize(smooth, pictures.Frame(32, 32, "crop")).pixels
    whole = pictures.resize(smooth, pictures.Frame(*resized)).pixels
    top, left = ((side - 32) // 2 for side in resized)
    # A width of 43 pixels stands for 43.2, and its middle lies half a pixel beside the image's.
    np.testing.assert_allclose(found, whole[top : top + 32, left : left + 32], atol=5)
    assert abs(pictures.resize(smooth, pictures.Frame(32, 32)).pixels.astype(int) - found).max() > 20


WIDE = (np.arange(12).reshape(3, 4) * 5957).astype(np.uint16)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "JPEG2000"])
@pytest.mark.parametrize("channels", [1, 3, None])
def test_grey_of_16_bits_keeps_its_contrast(form, channels):
    decoded = pictures.decode(file_of(WIDE, form), channels, None).pixels
    np.testing.assert_array_equal(decoded, np.broadcast_to((WIDE // 257)[..., None], (3, 4, channels or 1)))


def test_colour_of_16_bits_keeps_its_contrast():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    wide = np.stack([WIDE, WIDE[::-1], WIDE // 3], axis=-1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_allclose(pictures.decode(png, 3, None).pixels, wide // 257, atol=1)


def explained(encoded, **options):
    return pictures.decode_or_explain(encoded, 3, None, name="a.png", advice="copy it", **options)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_32_bits_get_a_sentence(dtype):
    with pytest.raises(
        ValueError, match=r"a.png cannot be decoded .*pixels of 32 bits, mode [IF], whose white is unkn"
    ):
        explained(file_of(WIDE.astype(dtype), "TIFF"))


def test_palettes_with_transparency_are_decoded():
    palette = Image.fromarray(COLOUR).convert("P")
    expected = np.asarray(palette.convert("RGB"))
    for transparency in (3, bytes(range(256))):
        file = io.BytesIO()
        palette.save(file, "PNG", transparency=transparency)
        np.testing.assert_array_equal(pictures.decode(file.getvalue(), 3, None).pixels, expected)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_pictures_are_turned_upright_as_viewers_turn_them_on_request(form):
    for orientation in range(1, 9):
        exif, file = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        Image.fromarray(COLOUR).save(file, form, exif=exif)
        with Image.open(file) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        found = pictures.decode(file.getvalue(), 3, None, upright=True)
        np.testing.assert_array_equal(found.pixels, expected)
        assert found.aspect == expected.shape[1] / expected.shape[0]
        if form != "TIFF":
            assert pictures.decode(file.getvalue(), 3, None).pixels.shape == (3, 4, 3)


def test_a_damaged_orientation_leaves_a_picture_as_it_is():
    file = io.BytesIO()
    Image.fromarray(COLOUR).save(file, "JPEG", exif=b"Exif\0\0of no kind")
    assert explained(file.getvalue(), upright=True).pixels.shape == (3, 4, 3)


def test_a_decompression_bomb_is_named(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(ValueError, match=r"a.png cannot be decoded \(DecompressionBombError: .*: make it smaller, or"):
        explained(file_of(COLOUR))


@pytest.mark.parametrize("form", ["ICO", "PCX", "SGI", "TGA", "PDF", "EPS"])
def test_other_formats_are_not_tried(form):
    with pytest.raises(ValueError, match=r"it is no whole file of JPEG, PNG, .* or AVIF"):
        explained(file_of(np.zeros((16, 16, 3), np.uint8), form))


def test_damage_anywhere_is_a_sentence():
    random = np.random.default_rng(0)
    for form in ("PNG", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000"):
        whole = file_of(COLOUR, form)
        for _ in range(8):
            torn = bytearray(whole)
            torn[random.integers(len(torn))] ^= 255
            said = ""
            try:
                explained(bytes(torn[: random.integers(len(torn) // 2, len(torn) + 1)]))
            except ValueError as error:
                said = str(error)
            assert re.fullmatch(r"(a\.png cannot be decoded .*: copy it\.)?", said)
