"""Geometry of boxes (x1, y1, x2, y2): overlaps, and boxes around locations."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def overlap(one: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Areas of the intersection and of the union of boxes.

    Args:
      one: [..., 4], (x1, y1, x2, y2); a side below 0 counts as 0.
      other: [..., 4], with as many axes, which broadcast.

    Returns:
      Intersection and union, each [...].
    """
    areas = [area(box[..., :2], box[..., 2:]) for box in (one, other)]
    high, low = jnp.minimum(one[..., 2:], other[..., 2:]), jnp.maximum(one[..., :2], other[..., :2])
    intersection = area(low, high)
    return intersection, areas[0] + areas[1] - intersection


def area(low: jax.Array, high: jax.Array) -> jax.Array:
    """Areas of boxes.

    Args:
      low: (x1, y1), [..., 2].
      high: (x2, y2), [..., 2]; a side below 0 counts as 0.

    Returns:
      [...].
    """
    sides = jnp.maximum(high - low, 0)
    return sides[..., 0] * sides[..., 1]  # `jnp.prod` has a gradient that takes long to trace and to compile


def around(points: jax.Array, distances: jax.Array) -> jax.Array:
    """Boxes around locations.

    Args:
      points: (x, y), [..., 2] in pixels.
      distances: To the left, upper, right and lower edge, [..., 4] in pixels.

    Returns:
      (x1, y1, x2, y2), [..., 4].
    """
    points = jnp.broadcast_to(points, (*distances.shape[:-1], 2))
    return jnp.concatenate([points - distances[..., :2], points + distances[..., 2:]], axis=-1)
