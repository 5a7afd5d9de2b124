"""Targets of a detector: which location has to find which box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import boxes as geometry
from jaxkd.models.detection.detector import locations


class Targets(NamedTuple):
    """Targets at the P locations of a detector.

    Attributes:
      label: int32 [B, P], the class; -1 where there is nothing.
      boxes: [B, P, 4], (x1, y1, x2, y2) in pixels; zeros where there is nothing.
      distances: [B, P, 4], from the location to the left, upper, right and lower edge, in pixels.
      centerness: [B, P] in 0..1.
      ignored: bool [B, P], locations in a crowd, of which nothing is asked.
      missed: bool [B, M], boxes that no location has to find, since smaller ones lie over them.
    """

    label: jax.Array
    boxes: jax.Array
    distances: jax.Array
    centerness: jax.Array
    ignored: jax.Array
    missed: jax.Array


def assign(
    boxes: jax.Array,
    label: jax.Array,
    *,
    image_shape: tuple[int, int],
    strides: Sequence[int],
    crowd: jax.Array | None = None,
    radius: float = 1.5,
    reach: float = 2.0,
) -> Targets:
    """Assigns boxes to locations as FCOS does, with centre sampling.

    A location of stride s may find a box if it lies in it, at most `radius` s from its centre. A box is found at the
    finest stride s for which half its longer side is at most `reach` s, or else at the coarsest. A box narrower than s
    counts as s wide, so that each has a location. Of several boxes a location finds the smallest.

    Args:
      boxes: [B, M, 4], (x1, y1, x2, y2) in pixels.
      label: int [B, M], -1 where there is no box.
      image_shape: (height, width) in pixels.
      strides: Strides of the detector, increasing.
      crowd: bool [B, M], boxes that stand for several objects, which are not searched; None if there are none.
      radius: See above, in strides.
      reach: See above, in strides.

    Returns:
      The targets.

    Reference:
      Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019,
      https://arxiv.org/abs/1904.01355
    """
    shapes = [(image_shape[0] // s, image_shape[1] // s) for s in strides]
    where, scale = locations(shapes, strides)
    points, s = (jnp.asarray(x, boxes.dtype)[None, :, None] for x in (where, scale))
    crowds = jnp.zeros(label.shape, bool) if crowd is None else crowd
    corners, real = boxes[:, None], ((label >= 0) & ~crowds)[:, None]
    centre = (corners[..., :2] + corners[..., 2:]) / 2
    half = jnp.maximum((corners[..., 2:] - corners[..., :2]) / 2, s[..., None] / 2)
    inside = jnp.all(jnp.abs(points - centre) <= jnp.minimum(half, radius * s[..., None]), axis=-1)
    distances = jnp.concatenate([points - corners[..., :2], corners[..., 2:] - points], axis=-1)
    longer = jnp.max(corners[..., 2:] - corners[..., :2], axis=-1) / 2
    order = sorted(strides)
    finer = np.array([-np.inf, *order[:-1]])[np.searchsorted(order, scale)]
    least, most = reach * finer, np.where(scale == order[-1], np.inf, reach * scale)
    fits = (longer > jnp.asarray(least, boxes.dtype)[None, :, None]) & (
        longer <= jnp.asarray(most, boxes.dtype)[None, :, None]
    )
    candidate = inside & fits & real
    area = geometry.area(corners[..., :2], corners[..., 2:])
    cost = jnp.where(candidate, jnp.broadcast_to(area, candidate.shape), jnp.inf)
    best = jnp.argmin(cost, axis=-1)
    positive = jnp.any(candidate, axis=-1)
    found = jnp.where(positive, jnp.take_along_axis(label, best, axis=1), -1)
    chosen = jnp.take_along_axis(boxes, best[..., None], axis=1)
    edges = jnp.take_along_axis(distances, best[..., None, None], axis=2)[:, :, 0]
    taken = jnp.any(positive[..., None] & (best[..., None] == jnp.arange(boxes.shape[1])[None, None]), axis=1)
    keep = positive[..., None]
    return Targets(
        found.astype(jnp.int32),
        jnp.where(keep, chosen, 0),
        jnp.where(keep, edges, 0),
        jnp.where(positive, centerness_of(edges), 0),
        jnp.any(jnp.all(distances > 0, axis=-1) & crowds[:, None], axis=-1) & ~positive,
        (label >= 0) & ~crowds & ~taken,
    )


def centerness_of(distances: jax.Array) -> jax.Array:
    """How central a location is in its box: 1 at the centre, 0 at an edge and beyond it.

    sqrt( min(l, r) / max(l, r) * min(t, b) / max(t, b) )

    Args:
      distances: To the left, upper, right and lower edge, [..., 4].

    Returns:
      [...] in 0..1.
    """
    near = jnp.maximum(jnp.minimum(distances[..., :2], distances[..., 2:]), 0)
    far = jnp.maximum(jnp.maximum(distances[..., :2], distances[..., 2:]), 1e-6)
    ratio = near / far
    return jnp.sqrt(ratio[..., 0] * ratio[..., 1])
