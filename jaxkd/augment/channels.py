"""Pictures in grey and in colour."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.augment.core import Augmentation, on_image

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


def to_channels(image: jax.Array, channels: int) -> jax.Array:
    """Turns grey pictures into RGB, or RGB into grey.

    Args:
      image: [..., H, W, 1 or 3], floating or integers.
      channels: 1 or 3.

    Returns:
      [..., H, W, channels] of the same dtype; the picture itself if it has that many. Grey integers are rounded.

    Raises:
      ValueError: If the picture has another number of channels.
    """
    have = image.shape[-1] if image.ndim else 0
    if image.ndim < 3 or have not in (1, 3):
        raise ValueError(
            f"pictures have shape {image.shape}, but [..., H, W, C] with 1 or 3 channels was expected: add the axis of "
            "channels to grey ones, cut off an alpha channel, and put channels last."
        )
    if have == channels:
        return image
    if channels == 3:
        return jnp.repeat(image, 3, axis=-1)
    floating = jnp.issubdtype(image.dtype, jnp.floating)
    dtype = image.dtype if floating else jnp.float32
    weights = jnp.asarray(LUMINANCE, dtype).reshape(*[1] * (image.ndim - 1), 3)
    grey = jnp.sum(image.astype(dtype) * weights, axis=-1, keepdims=True)
    return grey if floating else jnp.round(grey).astype(image.dtype)


def grey_to_rgb() -> Augmentation:
    """Gives grey pictures three equal channels, such as for a network that was trained on RGB.

    Returns:
      An augmentation of images [H, W, 1] or [H, W, 3], which uses no randomness; RGB is left as it is.
    """
    return on_image(lambda key, image: to_channels(image, 3))


def rgb_to_grey() -> Augmentation:
    """Turns colour into grey by its luminance, 0.299 R + 0.587 G + 0.114 B.

    Returns:
      An augmentation of images [H, W, 3] or [H, W, 1], which uses no randomness; grey is left as it is.
    """
    return on_image(lambda key, image: to_channels(image, 1))
