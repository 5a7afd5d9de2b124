"""Positions of patches: embeddings of another grid, and rotations of queries and keys by row and column."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.models.text.positions import rotate

Turn: TypeAlias = Callable[[jax.Array], jax.Array]
"""Queries or keys [B, A, L, d] -> the same, turned by the angles of their positions."""
Rotary: TypeAlias = Callable[[tuple[int, int], int, int], Turn]
"""(rows and columns of the patches, number of tokens before them, d) -> `Turn`; tokens before them are not turned."""


def resized_positions(positions: jax.Array, grid: tuple[int, int], first: int) -> jax.Array:
    """Position embeddings of a square grid of patches, interpolated (bicubic, antialiased) to another grid.

    Args:
      positions: [1, first + S * S, D].
      grid: Rows R and columns C wanted.
      first: Number of tokens before the patches, whose embeddings stay.

    Returns:
      [1, first + R * C, D].

    Raises:
      ValueError: If the embeddings are none of a square grid.
    """
    count = positions.shape[1] - first
    side = math.isqrt(max(count, 0))
    if side < 1 or side * side != count:
        raise ValueError(
            f"{positions.shape[1]} position embeddings, {first} of them before the patches, are none of a square grid "
            f"but the images have {grid[0]}x{grid[1]} patches: give images of the size that the network was trained "
            "with."
        )
    square = positions[:, first:].reshape(1, side, side, -1)
    resized = jax.image.resize(square, (1, *grid, positions.shape[-1]), "bicubic")
    return jnp.concatenate([positions[:, :first], resized.reshape(1, grid[0] * grid[1], -1)], axis=1)


def rotary_by_index(base: float = 10_000.0, *, trained: int | None = None) -> Rotary:
    """Rotary positions of EVA-02: a patch's row and column, measured in those of the size trained with.

    angle[(r, c), j] = t_r / base^(j / J) for j < J, t_c / base^((j - J) / J) for J <= j < 2 J,
    t_i = i * trained / size (i if None), J = d / 4; they turn channels 2 j and 2 j + 1

    Args:
      base: Base of the frequencies.
      trained: Rows and columns of the images that the network was trained with, 16 in EVA-02's; None for no measure.

    Returns:
      The rotary positions.

    Reference:
      Fang et al., "EVA-02: A Visual Representation for Neon Genesis", 2023, https://arxiv.org/abs/2303.11331
    """

    def made(grid: tuple[int, int], first: int, width: int) -> Turn:
        frequencies = np.float32(1) / np.power(np.float32(base), _exponents(width))
        places = [np.arange(size, dtype=np.float32) for size in grid]
        if trained is not None:
            places = [place / np.float32(len(place)) * np.float32(trained) for place in places]
        rows, columns = (place[:, None] * frequencies for place in places)
        cos, sin = _tables(rows, columns, first)
        return functools.partial(_rotate_pairs, tables=(cos.astype(np.float32), sin.astype(np.float32)))

    return made


def rotary_by_place(base: float = 100.0) -> Rotary:
    """Rotary positions of DINOv3: a patch's place between the edges of the image, from -1 to 1.

    angle as in `rotary_by_index` with t_i = 2 pi (2 (i + 1/2) / size - 1); they turn channels j and j + d / 2

    Args:
      base: Base of the frequencies.

    Returns:
      The rotary positions.

    Reference:
      Siméoni et al., "DINOv3", 2025, https://arxiv.org/abs/2508.10104
    """

    def made(grid: tuple[int, int], first: int, width: int) -> Turn:
        periods = np.power(np.float32(base), _exponents(width)).astype(np.float64)
        places = [(np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size) for size in grid]
        rows, columns = (2 * math.pi * (2 * place - 1).astype(np.float64)[:, None] / periods for place in places)
        return functools.partial(rotate, tables=_tables(rows, columns, first))

    return made


def _exponents(width: int) -> np.ndarray:
    """j / J for the J = d / 4 frequencies, float32 as published networks were trained."""
    if width % 4:
        raise ValueError(f"heads of width {width} do not divide into rows and columns: choose a multiple of 4.")
    return np.arange(width // 4, dtype=np.float32) / np.float32(width // 4)


def _tables(rows: np.ndarray, columns: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [L, 2 J] of the angles of rows [R, J] and columns [C, J]; the first tokens turn by nothing."""
    grid = (len(rows), len(columns), rows.shape[1])
    both = (np.broadcast_to(rows[:, None], grid), np.broadcast_to(columns[None], grid))
    angles = np.concatenate(both, axis=-1).reshape(-1, 2 * grid[2]).astype(np.float64)
    angles = np.pad(angles, ((first, 0), (0, 0)))
    return np.cos(angles), np.sin(angles)


def _rotate_pairs(x: jax.Array, tables: tuple[np.ndarray, np.ndarray]) -> jax.Array:
    """As `text.positions.rotate`, for channels 2 j and 2 j + 1."""
    halves = jnp.concatenate([x[..., ::2], x[..., 1::2]], axis=-1)
    return jnp.stack(jnp.split(rotate(halves, tables), 2, axis=-1), axis=-1).reshape(x.shape)
