"""Decoding and resizing."""

import io

import numpy as np
import pytest
from PIL import Image

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
