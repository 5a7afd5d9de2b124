"""Decoding and resizing of images with Pillow, for all readers."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from jaxkd.data.checks import root_cause

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}

Fit: TypeAlias = Literal["stretch", "crop"]
"""Resizing of images of another shape: "stretch" resizes both sides, "crop" keeps the aspect ratio and crops one."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """Size to which images are resized.

    Attributes:
      height: Height in pixels.
      width: Width in pixels.
      fit: "stretch" or "crop", for images of another aspect ratio.
    """

    height: int
    width: int
    fit: Fit = "stretch"

    def of(self, image: Image.Image) -> Image.Image:
        """Resizes an image bilinearly with antialiasing.

        Args:
          image: An image of any size.

        Returns:
          The image in this size.
        """
        size, bilinear = (self.width, self.height), Image.Resampling.BILINEAR
        if image.size == size:
            return image
        return image.resize(size, bilinear) if self.fit == "stretch" else ImageOps.fit(image, size, bilinear)


class Picture(NamedTuple):
    """Decoded image.

    Attributes:
      pixels: Array [height, width, channels].
      aspect: Width over height before the image was resized.
    """

    pixels: np.ndarray
    aspect: float


def decode(encoded: bytes, channels: int | None, frame: Frame | None) -> Picture:
    """Decodes a PNG, JPEG, GIF, BMP or WebP file to pixels.

    Args:
      encoded: Contents of the file.
      channels: Number of channels that the image is converted to, 1 to 4; None gives 1 for grey images, else 3.
      frame: Size to which the image is resized, or None.

    Returns:
      The picture, whose pixels are uint8.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        mode = _MODES[channels] if channels else ("L" if image.mode in ("1", "L") else "RGB")
        picture = image if image.mode == mode else image.convert(mode)
        pixels = np.array(picture if frame is None else frame.of(picture), dtype=np.uint8)
        return Picture(pixels if pixels.ndim == 3 else pixels[..., None], image.width / image.height)


def decode_or_explain(
    encoded: bytes | Path, channels: int | None, frame: Frame | None, *, name: str, advice: str
) -> Picture:
    """Decodes an image file as `decode` does, with a readable error for files that are truncated or no images.

    Args:
      encoded: Contents of the file, or its path.
      channels: As in `decode`.
      frame: As in `decode`.
      name: Name of the image, for the error.
      advice: End of the error: what to do about it, without a full stop.

    Returns:
      The picture, whose pixels are uint8.

    Raises:
      ValueError: If the file cannot be read or decoded.
    """
    try:
        return decode(encoded.read_bytes() if isinstance(encoded, Path) else encoded, channels, frame)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises any of them
        raise ValueError(f"{name} cannot be decoded ({root_cause(error)}): {advice}.") from error


def resize(pixels: np.ndarray, frame: Frame) -> Picture:
    """Resizes an array of pixels bilinearly with antialiasing.

    Args:
      pixels: uint8 or floating [height, width, channels].
      frame: The size.

    Returns:
      The picture, whose pixels are [frame.height, frame.width, channels] of the same dtype.
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
    """Fields of a batch of pictures.

    Args:
      pictures: B pictures of one shape.
      frame: Size to which they were resized, or None.

    Returns:
      `image` [B, height, width, channels] and, if they were stretched, `aspect` float32 [B], the width over the height
      before.
    """
    fields = {"image": np.stack([picture.pixels for picture in pictures])}
    if frame is not None and frame.fit == "stretch":
        fields["aspect"] = np.array([picture.aspect for picture in pictures], np.float32)
    return fields
