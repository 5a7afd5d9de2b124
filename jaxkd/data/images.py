"""Decoding and resizing of images with Pillow."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from jaxkd.data.preparing import first_line

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def decode(encoded: bytes, channels: int | None, size: tuple[int, int] | None) -> np.ndarray:
    """Decodes a PNG, JPEG, GIF, BMP or WebP file to pixels.

    Args:
      encoded: The file's bytes.
      channels: 1, 2, 3 or 4, to which the image is converted; None takes grey for grey images and else RGB.
      size: (height, width) to which the image is resized, or None.

    Returns:
      uint8 [height, width, channels].
    """
    with Image.open(io.BytesIO(encoded)) as image:
        mode = _MODES[channels] if channels else ("L" if image.mode in ("1", "L") else "RGB")
        picture = image if image.mode == mode else image.convert(mode)
        if size is not None and picture.size != (size[1], size[0]):
            picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        pixels = np.array(picture, dtype=np.uint8)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def decode_or_say(
    encoded: bytes | Path, channels: int | None, size: tuple[int, int] | None, *, what: str, advice: str
) -> np.ndarray:
    """As `decode`, with a sentence for files that are cut off or foreign.

    Args:
      encoded: The file's bytes, or its path.
      channels: As in `decode`.
      size: As in `decode`.
      what: Which picture it is, for the sentence.
      advice: What to do about it, without a full stop.

    Returns:
      As `decode`.

    Raises:
      ValueError: If the file cannot be read or decoded.
    """
    try:
        return decode(encoded.read_bytes() if isinstance(encoded, Path) else encoded, channels, size)
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for them
        raise ValueError(f"{what} cannot be decoded ({first_line(error)}): {advice}.") from error


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes one image, bilinear with antialiasing.

    Args:
      pixels: uint8 or floating [height, width, channels].
      size: (height, width).

    Returns:
      Array of the same dtype, [size[0], size[1], channels].
    """
    if pixels.shape[:2] == size:
        return pixels
    mode = np.uint8 if pixels.dtype == np.uint8 else np.float32
    # One channel at a time: Pillow has no floating images of several channels.
    planes = [
        Image.fromarray(np.ascontiguousarray(pixels[..., c], dtype=mode)).resize(
            (size[1], size[0]), Image.Resampling.BILINEAR
        )
        for c in range(pixels.shape[-1])
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1).astype(pixels.dtype)
