"""Weights for other inputs: kernels for other channels of an image, and position embeddings for other sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxkd.models.vision.positions import resized_positions


def adapted(
    path: str, array: np.ndarray, shape: tuple[int, ...], *, tokens: int, image: Sequence[int] | None
) -> np.ndarray | None:
    """A parameter for inputs of another size.

    - Kernels [H, W, C, O] for one channel are the sum over C, so that a grey image gives what its three equal channels
      gave; for more channels they are repeated, times C / C'.
    - Position embeddings [1, N + tokens, D] of a square grid of patches are interpolated (bicubic).
    - Position embeddings [L, D] of sequences are cut.

    Args:
      path: Its path in the model.
      array: The parameter, in the layout of the model.
      shape: Its wanted shape.
      tokens: Number of tokens before those of the patches, where their positions are among these; else 0, 1 or 2.
      image: Shape [B, H, W, C] of the images that the model reads, if it reads some.

    Returns:
      The parameter of that shape, None if the two differ in something else.
    """
    before, after = array.shape, shape
    if len(before) == len(after) == 4 and path.endswith("kernel") and before[:2] + before[3:] == after[:2] + after[3:]:
        return _channels(array, after[2])
    if "pos" not in path or len(before) != len(after) or before[-1] != after[-1]:
        return None
    if len(before) == 2 and after[0] < before[0]:
        return array[: after[0]]
    if len(before) == 3 and before[0] == after[0] == 1:
        ways = (_positions(array, after[1], count, image) for count in (tokens, 0, 1, 2))
        return next((x for x in ways if x is not None), None)
    return None


def _channels(kernel: np.ndarray, count: int) -> np.ndarray:
    if count == 1:
        return kernel.sum(axis=2, keepdims=True)
    own = kernel.shape[2]
    return kernel[:, :, np.arange(count) % own] * np.asarray(own / count, kernel.dtype)


def _positions(array: np.ndarray, length: int, tokens: int, image: Sequence[int] | None) -> np.ndarray | None:
    old, new = array.shape[1] - tokens, length - tokens
    height, width = image[1:3] if image is not None and len(image) == 4 else (1, 1)
    rows = round(math.sqrt(max(new, 0) * height / width))
    if old < 1 or math.isqrt(old) ** 2 != old or rows < 1 or rows * rows * width != new * height:
        return None
    return np.asarray(resized_positions(jnp.asarray(array), (rows, new // rows), tokens))
