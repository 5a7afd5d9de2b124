"""Decoding and resizing of images with Pillow, for all readers."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxkd.data.checks import root_cause

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Pillow's names of the formats that are read, where this Pillow has them."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Orientation -> what makes the picture upright."""

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


class _DepthError(ValueError):
    """Error of a picture whose pixels have too many bits."""


class Picture(NamedTuple):
    """Decoded image.

    Attributes:
      pixels: Array [height, width, channels].
      aspect: Width over height before the image was resized.
    """

    pixels: np.ndarray
    aspect: float


def decode(encoded: bytes, channels: int | None, frame: Frame | None, *, upright: bool = False) -> Picture:
    """Decodes a picture's file to pixels.

    Channels of 16 bits are divided by 257. Transparency is dropped. Of several frames the first is read.

    Args:
      encoded: Contents of the file: a format of `FORMATS`, whatever the file's name says. No other is tried, since
        Pillow starts another program for some.
      channels: Number of channels that the image is converted to, 1 to 4; None gives 1 for grey images, else 3.
      frame: Size to which the image is resized, or None.
      upright: True turns a picture as the orientation in its EXIF data says, as viewers do.

    Returns:
      The picture, whose pixels are uint8.

    Raises:
      ValueError: If the picture has pixels of 32 bits. Pillow raises errors of any kind for files that it cannot
        decode.
    """
    with Image.open(io.BytesIO(encoded), formats=_formats()) as image:
        picture = _in_mode(image, channels)
        if upright and (turn := _TURNS.get(_orientation(image))) is not None:
            picture = picture.transpose(turn)
        pixels = np.array(picture if frame is None else frame.of(picture), dtype=np.uint8)
        return Picture(pixels if pixels.ndim == 3 else pixels[..., None], picture.width / picture.height)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow reads."""
    Image.init()
    return tuple(form for form in FORMATS if form in Image.OPEN)


def _in_mode(image: Image.Image, channels: int | None) -> Image.Image:
    """Image with 8 bits a channel, and a number of channels."""
    if (image.mode == "I" and image.format in ("PNG", "PPM")) or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide // 257).clip(0, 255).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise _DepthError(f"it has pixels of 32 bits, mode {image.mode}, whose white is unknown")
    elif image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of a direct conversion
    mode = _MODES[channels] if channels else ("L" if image.mode in ("1", "L", "LA") else "RGB")
    return image if image.mode == mode else image.convert(mode)


def _orientation(image: Image.Image) -> int:
    """Orientation in a picture's EXIF data, 1 where it is upright or the data cannot be read."""
    if "exif" not in image.info and image.format not in ("PNG", "MPO"):
        return 1  # Pillow turns TIFF files itself
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # of damaged EXIF data, without which the picture is whole
        return 1


def decode_or_explain(
    encoded: bytes | Path,
    channels: int | None,
    frame: Frame | None,
    *,
    name: str,
    advice: str,
    upright: bool = False,
) -> Picture:
    """Decodes an image file as `decode` does, with a readable error for files that are truncated or no images.

    Args:
      encoded: Contents of the file, or its path.
      channels: As in `decode`.
      frame: As in `decode`.
      name: Name of the image, for the error.
      advice: End of the error: what to do about it, without a full stop.
      upright: As in `decode`.

    Returns:
      The picture, whose pixels are uint8.

    Raises:
      ValueError: If the file cannot be read or decoded.
    """
    try:
        content = _content(encoded) if isinstance(encoded, Path) else encoded
        if not content:
            raise ValueError("it is empty")
        return decode(content, channels, frame, upright=upright)
    except Exception as error:  # Pillow's decoders raise errors of any kind
        reason = root_cause(error)
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is no whole file of {', '.join(_formats()[:-1])} or {_formats()[-1]}"
        elif isinstance(error, _DepthError):
            reason, advice = str(error), "save it with 8 or 16 bits a channel"
        elif isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
            advice = "make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        raise ValueError(f"{name} cannot be decoded ({reason}): {advice}.") from error


def _content(path: Path) -> bytes:
    """Contents of a file, but not of a pipe, which might never end."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    return path.read_bytes()


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
