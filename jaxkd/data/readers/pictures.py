"""Decoding and resizing of images with Pillow."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from jaxkd.data.readers.preparing import first_line

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}

Fit: TypeAlias = Literal["stretch", "crop"]
"""How an image of another shape comes to a size: as it is, or without what its longer side has too much."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """What images are resized to.

    Attributes:
      height: In pixels.
      width: In pixels.
      fit: How other shapes are treated.
    """

    height: int
    width: int
    fit: Fit = "stretch"

    def of(self, image: Image.Image) -> Image.Image:
        """The image in this size, bilinear with antialiasing."""
        size, bilinear = (self.width, self.height), Image.Resampling.BILINEAR
        if image.size == size:
            return image
        return image.resize(size, bilinear) if self.fit == "stretch" else ImageOps.fit(image, size, bilinear)


class Picture(NamedTuple):
    """Pixels [height, width, channels], and the width over the height that the image had before it was resized."""

    pixels: np.ndarray
    aspect: float


def decode(encoded: bytes, channels: int | None, frame: Frame | None) -> Picture:
    """Decodes a PNG, JPEG, GIF, BMP or WebP file to pixels.

    Args:
      encoded: The file's bytes.
      channels: 1, 2, 3 or 4, to which the image is converted; None takes grey for grey images and else RGB.
      frame: What the image is resized to, or None.

    Returns:
      uint8 [height, width, channels], and what shape it had.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        mode = _MODES[channels] if channels else ("L" if image.mode in ("1", "L") else "RGB")
        picture = image if image.mode == mode else image.convert(mode)
        pixels = np.array(picture if frame is None else frame.of(picture), dtype=np.uint8)
        return Picture(pixels if pixels.ndim == 3 else pixels[..., None], image.width / image.height)


def decode_or_say(
    encoded: bytes | Path, channels: int | None, frame: Frame | None, *, what: str, advice: str
) -> Picture:
    """As `decode`, with a sentence for files that are cut off or foreign.

    Args:
      encoded: The file's bytes, or its path.
      channels: As in `decode`.
      frame: As in `decode`.
      what: Which picture it is, for the sentence.
      advice: What to do about it, without a full stop.

    Returns:
      As `decode`.

    Raises:
      ValueError: If the file cannot be read or decoded.
    """
    try:
        return decode(encoded.read_bytes() if isinstance(encoded, Path) else encoded, channels, frame)
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for them
        raise ValueError(f"{what} cannot be decoded ({first_line(error)}): {advice}.") from error


def resize(pixels: np.ndarray, frame: Frame) -> Picture:
    """Resizes one image, bilinear with antialiasing.

    Args:
      pixels: uint8 or floating [height, width, channels].
      frame: What to.

    Returns:
      Array of the same dtype, [frame.height, frame.width, channels], and what shape it had.
    """
    height, width = pixels.shape[:2]
    if (height, width) == (frame.height, frame.width):
        return Picture(pixels, width / height)
    mode = np.uint8 if pixels.dtype == np.uint8 else np.float32
    # One channel at a time: Pillow has no floating images of several channels.
    planes = [
        frame.of(Image.fromarray(np.ascontiguousarray(pixels[..., c], dtype=mode))) for c in range(pixels.shape[-1])
    ]
    return Picture(np.stack([np.asarray(plane) for plane in planes], axis=-1).astype(pixels.dtype), width / height)


def stack(pictures: Sequence[Picture], frame: Frame | None) -> dict[str, np.ndarray]:
    """The fields of a batch of images.

    Args:
      pictures: B of one shape.
      frame: What they were resized to, or None.

    Returns:
      `image` [B, height, width, channels] and, if they were stretched, `aspect` float32 [B], their width over their
      height before.
    """
    fields = {"image": np.stack([picture.pixels for picture in pictures])}
    if frame is not None and frame.fit == "stretch":
        fields["aspect"] = np.array([picture.aspect for picture in pictures], np.float32)
    return fields
