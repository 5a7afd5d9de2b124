"""Decoding and resizing."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxkd.data import images

GREY = np.arange(0, 240, 20, dtype=np.uint8).reshape(3, 4)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)


def file_of(pixels, form="PNG", mode=None):
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(file, form)
    return file.getvalue()


def test_decoding_gives_back_the_pixels():
    np.testing.assert_array_equal(images.decode(file_of(GREY), 1, None)[..., 0], GREY)
    np.testing.assert_array_equal(images.decode(file_of(GREY), None, None)[..., 0], GREY)
    np.testing.assert_array_equal(images.decode(file_of(COLOUR), 3, None), COLOUR)


@pytest.mark.parametrize(
    ("mode", "form"), [("L", "PNG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "PNG")]
)
def test_odd_files_among_colour_images_are_converted(mode, form):
    decoded = images.decode(file_of(COLOUR, form, mode), 3, None)
    assert decoded.shape == (3, 4, 3)
    assert decoded.dtype == np.uint8


def test_both_ways_to_resize_agree():
    size = (6, 2)
    np.testing.assert_array_equal(images.decode(file_of(COLOUR), 3, size), images.resize(COLOUR, size))
    floats = images.resize(COLOUR.astype(np.float64), size)
    assert floats.dtype == np.float64
    np.testing.assert_allclose(floats, images.resize(COLOUR, size), atol=1.01)
