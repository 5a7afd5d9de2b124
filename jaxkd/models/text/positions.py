"""Positions of tokens: numbers that skip padding, tables of sinusoids, rotations, and windows of local attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def numbers_after(pad: int, tokens: jax.Array) -> jax.Array:
    """Positions that begin after the padding token's number, as in RoBERTa: pad + 1, pad + 2, ...; pad for padding.

    Args:
      pad: Number of the padding token.
      tokens: Integers [B, L].

    Returns:
      int32 [B, L].
    """
    real = (tokens != pad).astype(jnp.int32)
    return jnp.cumsum(real, axis=1, dtype=jnp.int32) * real + pad


def sinusoids(length: int, width: int) -> np.ndarray:
    """Table of sines and cosines of positions.

    p[i, 2 j] = sin(i / 10000^(2 j / D)),  p[i, 2 j + 1] = cos(i / 10000^(2 j / D))

    Args:
      length: L.
      width: D.

    Returns:
      float32 [L, D].

    Reference:
      Vaswani et al., "Attention Is All You Need", NeurIPS 2017, https://arxiv.org/abs/1706.03762
    """
    angles = np.arange(length)[:, None] / np.power(10000, 2 * (np.arange(width) // 2) / width)
    return np.where(np.arange(width) % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def rotary_tables(length: int, width: int, base: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the angles by which rotary positions turn pairs of channels.

    angle[i, j] = i / base^(2 j / d), in float32, as published networks were trained

    Args:
      length: L.
      width: d of one head.
      base: Base of the frequencies.

    Returns:
      Cosines and sines, float32 [L, d / 2].

    Reference:
      Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021,
      https://arxiv.org/abs/2104.09864
    """
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    frequencies = np.float32(1) / np.power(np.float32(base), exponents)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies
    # Rounded once from float64, as PyTorch's are nearly always: NumPy's of float32 depend on the machine.
    wide = angles.astype(np.float64)
    return np.cos(wide).astype(np.float32), np.sin(wide).astype(np.float32)


def rotate(x: jax.Array, tables: tuple[np.ndarray, np.ndarray]) -> jax.Array:
    """Turns channels j and j + d / 2 of queries or keys by the angle of their position.

    Args:
      x: [B, A, L, d].
      tables: Cosines and sines [L, d / 2].

    Returns:
      [B, A, L, d], of x's dtype; computed in at least float32.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    cos, sin = (jnp.asarray(table, dtype)[None, None] for table in tables)
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def allowed_pairs(mask: jax.Array, *, causal: bool = False, window: int | None = None) -> jax.Array:
    """Pairs of tokens (who looks, who is seen) of an attention.

    Args:
      mask: [B, L], true on real tokens; nobody looks at the others.
      causal: Whether a token sees none of those after it.
      window: Largest distance |i - j| at which tokens see each other; any if None.

    Returns:
      Booleans [B, 1, L, L], or [B, 1, 1, L] if all tokens see the same ones.
    """
    L = mask.shape[1]
    allowed = mask.astype(bool)[:, None, None, :]
    if causal:
        allowed = allowed & np.tril(np.ones((L, L), bool))[None, None]
    if window is not None and window < L - 1:
        distance = np.abs(np.arange(L)[:, None] - np.arange(L)[None])
        allowed = allowed & (distance <= window)[None, None]
    return allowed


def distance_buckets(length: int) -> np.ndarray:
    """Numbers of the distances between tokens, as in MPNet and T5: 32, half of them for tokens that come after.

    Of 16 numbers the first 8 are single distances, the others grow with the logarithm up to 128 and beyond.

    Args:
      length: L.

    Returns:
      int32 [L, L], (who looks, who is seen) -> 0..31.

    Reference:
      Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR 2020,
      https://arxiv.org/abs/1910.10683
    """
    ahead = np.arange(length)[None] - np.arange(length)[:, None]
    distance = np.abs(ahead)
    # In float32, in which powers of two fall on the side where published networks were trained.
    logarithm = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(8)) / np.float32(np.log(16))
    large = np.minimum(8 + (logarithm * np.float32(8)).astype(np.int32), 15)
    return (np.where(ahead > 0, 16, 0) + np.where(distance < 8, distance, large)).astype(np.int32)
