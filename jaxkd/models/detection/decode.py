"""Objects that a detector has found: scores, boxes, and non-maximum suppression, at fixed shapes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import boxes as geometry
from jaxkd import numerics
from jaxkd.types import Outputs


class Detections(NamedTuple):
    """Objects found in pictures, the best first.

    Attributes:
      boxes: [B, D, 4], (x1, y1, x2, y2) in pixels; zeros where there are fewer than D.
      scores: [B, D] in 0..1.
      label: int32 [B, D], the class; -1 where there are fewer.
    """

    boxes: Any
    scores: Any
    label: Any


def scores_of(outputs: Outputs) -> jax.Array:
    """Scores of a detector: sqrt(p c), the probability of a class and the centre-ness at each location.

    Args:
      outputs: Outputs of a detector.

    Returns:
      [B, P, K] in 0..1.
    """
    centre = jax.nn.sigmoid(outputs.features["centerness"])
    return numerics.safe_sqrt(jax.nn.sigmoid(outputs.logits) * centre[..., None])


def detect(
    outputs: Outputs,
    *,
    image_shape: tuple[int, int],
    limit: int = 100,
    candidates: int = 300,
    threshold: ArrayLike = 0.02,
    overlap: ArrayLike = 0.6,
) -> Detections:
    """Objects that a detector has found, after non-maximum suppression within each class.

    Args:
      outputs: Outputs of a detector.
      image_shape: (height, width) of the pictures in pixels, to which boxes are cut.
      limit: D, objects of a picture at most.
      candidates: Pairs of location and class with the highest scores, among which it looks.
      threshold: Least score.
      overlap: IoU above which the lesser of two boxes of one class is dropped.

    Returns:
      The objects.
    """
    scores, boxes = scores_of(outputs), outputs.features["found_boxes"]
    B, P, K = scores.shape
    best, place = jax.lax.top_k(scores.reshape(B, P * K), min(candidates, P * K))
    height, width = image_shape
    bound = jnp.asarray([width, height, width, height], boxes.dtype)
    corners = jnp.clip(jnp.take_along_axis(boxes, (place // K)[..., None], axis=1), 0, bound[None, None])
    label = (place % K).astype(jnp.int32)
    solid = jnp.all(corners[..., 2:] > corners[..., :2], axis=-1)
    best = jnp.where((best >= jnp.asarray(threshold, best.dtype)) & solid, best, 0)
    return jax.vmap(lambda b, s, c: suppress(b, s, c, limit=limit, overlap=overlap))(corners, best, label)


def suppress(
    boxes: jax.Array, scores: jax.Array, label: jax.Array, *, limit: int, overlap: ArrayLike = 0.6
) -> Detections:
    """Greedy non-maximum suppression within each class, for one picture.

    Args:
      boxes: [N, 4], (x1, y1, x2, y2).
      scores: [N]; a box of score 0 does not count.
      label: int [N].
      limit: D, boxes that are kept at most.
      overlap: IoU above which the lesser of two boxes of one class is dropped.

    Returns:
      The boxes that are kept, with D rows instead of N.
    """
    most = jnp.asarray(overlap, boxes.dtype)

    def step(left: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        i = jnp.argmax(left)
        intersection, union = geometry.overlap(boxes[i][None], boxes)
        gone = (intersection > most * union) & (label == label[i])
        gone = gone | (jnp.arange(len(boxes)) == i)
        some = left[i] > 0
        kept = (jnp.where(some, boxes[i], 0), left[i], jnp.where(some, label[i], -1))
        return jnp.where(gone, 0, left), kept

    _, (kept, best, classes) = jax.lax.scan(step, scores, None, length=limit)
    return Detections(kept, best, classes.astype(jnp.int32))
