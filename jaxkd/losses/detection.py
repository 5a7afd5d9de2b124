"""Losses of object detectors: class scores and boxes at many locations, necks weighted by scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import boxes, numerics
from jaxkd.testing import (
    ALWAYS,
    CLASS_PERMUTATION_INVARIANT,
    DISTANCE,
    EXTREME_LOGITS,
    FEATURES,
    INDEPENDENT_ROWS,
    JOINT_ROTATION_INVARIANT,
    KEEPS_LEADING_AXES,
    LEADING_AXES,
    LOGITS,
    NON_NEGATIVE,
    ZERO_AT_EQUALITY,
    Draw,
    declare,
)

__all__ = ["distribution_focal", "focal", "giou", "quality_focal", "score_weighted"]


def _answers(draw: Draw) -> tuple[np.ndarray, ...]:
    """Logits, and 0 or 1 for each of them."""
    return draw.logits(), (draw.logits() > 0).astype(np.float64)


def _qualities(draw: Draw) -> tuple[np.ndarray, ...]:
    """Logits, and a number in 0..1 for each of them."""
    return draw.logits(), 1 / (1 + np.exp(-draw.logits()))


@declare(
    _answers,
    (*LOGITS, CLASS_PERMUTATION_INVARIANT, NON_NEGATIVE),
    kinds={"targets": "probabilities"},
    needs="boxes",
)
def focal(logits: ArrayLike, targets: ArrayLike, *, alpha: ArrayLike = 0.25, gamma: ArrayLike = 2.0) -> jax.Array:
    """Focal loss: binary cross-entropy of each class, less of it where the answer is already sure; summed over classes.

    sum_k - alpha y_k (1 - q_k)^gamma log q_k - (1 - alpha) (1 - y_k) q_k^gamma log(1 - q_k),  q = sigmoid(logits)

    Args:
      logits: [..., K] floating, one sigmoid for each class.
      targets: [..., K], 1 for the class of a location and 0 elsewhere; numbers between mix both parts.
      alpha: Weight of a yes, in 0..1.
      gamma: Exponent, 0 or more.

    Returns:
      [...] in nats.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017,
      https://arxiv.org/abs/1708.02002
    """
    z, y = numerics.promote(logits, targets)
    numerics.check_same_shape(z, y, "outputs")
    a, power = jnp.asarray(alpha, z.dtype), jnp.asarray(gamma, z.dtype)
    # q^gamma as exp(gamma log q), whose gradient is finite where q is 0.
    log_yes, log_no = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)
    yes = numerics.weighted_softplus(-z, a * y * jnp.exp(power * _floored(log_no)))
    no = numerics.weighted_softplus(z, (1 - a) * (1 - y) * jnp.exp(power * _floored(log_yes)))
    return jnp.sum(yes + no, axis=-1)


@declare(
    _qualities,
    (*LOGITS, CLASS_PERMUTATION_INVARIANT, NON_NEGATIVE),
    kinds={"targets": "probabilities"},
    needs="boxes",
)
def quality_focal(logits: ArrayLike, targets: ArrayLike, *, beta: ArrayLike = 2.0) -> jax.Array:
    """Quality focal loss: binary cross-entropy with soft targets, times their distance; summed over the classes.

    sum_k - |y_k - q_k|^beta (y_k log q_k + (1 - y_k) log(1 - q_k)),  q = sigmoid(logits)

    CrossKD takes the teacher's probabilities as targets, with beta = 1.

    Args:
      logits: [..., K] floating, one sigmoid for each class.
      targets: [..., K] in 0..1: the IoU of a location's box at its class and 0 elsewhere, or a teacher's probabilities.
      beta: Exponent, 1 or more.

    Returns:
      [...] in nats.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Li et al., "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense Object Detection",
      NeurIPS 2020, https://arxiv.org/abs/2006.04388
    """
    z, y = numerics.promote(logits, targets)
    numerics.check_same_shape(z, y, "outputs")
    apart = jnp.abs(numerics.difference(y, jax.nn.sigmoid(z)))
    power = jnp.where(apart > 0, jnp.where(apart > 0, apart, 1) ** jnp.asarray(beta, z.dtype), 0)
    return jnp.sum(power * (numerics.weighted_softplus(-z, y) + numerics.weighted_softplus(z, 1 - y)), axis=-1)


@declare(
    lambda draw: (draw.logits(), draw.normal(draw.sizes.batch) % (draw.sizes.classes - 1)),
    (*ALWAYS, KEEPS_LEADING_AXES, INDEPENDENT_ROWS, EXTREME_LOGITS, NON_NEGATIVE),
    kinds={"position": "other"},
    needs="boxes",
)
def distribution_focal(logits: ArrayLike, position: ArrayLike) -> jax.Array:
    """Distribution focal loss: cross-entropy with the two bins next to a position, weighted by nearness.

    - (i + 1 - y) log q_i - (y - i) log q_(i+1),  q = softmax(logits),  i = floor(y)

    Args:
      logits: [..., J] floating, over the bins of an edge.
      position: y, [...], where the edge is among the bins; moved into 0..J-1.

    Returns:
      [...] in nats.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Li et al., "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense Object Detection",
      NeurIPS 2020, https://arxiv.org/abs/2006.04388
    """
    z, y = numerics.promote(logits, position)
    if z.ndim < 1 or z.shape[:-1] != y.shape or z.shape[-1] < 2:
        raise ValueError(
            f"logits have shape {z.shape} and positions {y.shape}: give [..., J] over at least 2 bins, and [...]."
        )
    y = jnp.clip(y, 0, z.shape[-1] - 1)
    bins = jnp.arange(z.shape[-1], dtype=z.dtype).reshape((1,) * y.ndim + (-1,))
    weights = jnp.maximum(1 - jnp.abs(y[..., None] - bins), 0)
    log_q = numerics.log_softmax(z)
    return -jnp.sum(jnp.where(weights > 0, weights * jnp.where(weights > 0, log_q, 0), 0), axis=-1)


def _pairs(draw: Draw) -> tuple[np.ndarray, ...]:
    """Two boxes for each example, which overlap."""
    corners = [draw.examples(2) for _ in range(2)]
    sides = [1 + np.abs(draw.examples(2)) for _ in range(2)]
    return tuple(np.concatenate([c, c + s], axis=-1) for c, s in zip(corners, sides, strict=True))


@declare(
    _pairs,
    (*ALWAYS, KEEPS_LEADING_AXES, LEADING_AXES, INDEPENDENT_ROWS, NON_NEGATIVE, ZERO_AT_EQUALITY),
    needs="boxes",
)
def giou(student_boxes: ArrayLike, teacher_boxes: ArrayLike) -> jax.Array:
    """Generalised IoU loss of two boxes: 1 - IoU, and a penalty for what their hull holds besides.

    1 - |A n B| / |A u B| + (|C| - |A u B|) / |C|,  C = the smallest box around A and B

    Args:
      student_boxes: [..., 4] floating, (x1, y1, x2, y2); a side below 0 counts as 0.
      teacher_boxes: [..., 4] floating, those of the teacher or of the labels.

    Returns:
      [...] in 0..2; 0 for boxes that are equal. Two boxes that are points at one place give 1.

    Raises:
      ValueError: If the shapes differ or the last axis is not 4.

    Reference:
      Rezatofighi et al., "Generalized Intersection over Union: A Metric and A Loss for Bounding Box Regression",
      CVPR 2019, https://arxiv.org/abs/1902.09630
    """
    s, t = numerics.promote(student_boxes, teacher_boxes)
    if s.shape != t.shape or s.shape[-1:] != (4,):
        raise ValueError(f"boxes have shapes {s.shape} and {t.shape}: give two of one shape [..., 4].")
    intersection, union = boxes.overlap(s, t)
    low, high = jnp.minimum(s[..., :2], t[..., :2]), jnp.maximum(s[..., 2:], t[..., 2:])
    hull = boxes.area(low, high)
    iou = jnp.where(union > 0, intersection, 0) / jnp.where(union > 0, union, 1)
    beside = jnp.where(hull > 0, hull - union, 0) / jnp.where(hull > 0, hull, 1)
    return 1 - iou + jnp.maximum(beside, 0)


@declare(
    lambda draw: (draw.maps(), draw.maps(), np.abs(draw.examples(draw.sizes.rows, draw.sizes.columns))),
    (*FEATURES, *DISTANCE, JOINT_ROTATION_INVARIANT),
    kinds={"weights": "other"},
    needs="boxes",
)
def score_weighted(student_feature: ArrayLike, teacher_feature: ArrayLike, weights: ArrayLike) -> jax.Array:
    """Score-weighted neck distillation: squared error of two maps, more where the teacher sees objects.

    sum_i w_i ||s_i - t_i||^2 / (C sum_i w_i),  i = the H W positions

    Args:
      student_feature: [B, H, W, C] floating, already projected to the teacher's channels.
      teacher_feature: [B, H, W, C] floating.
      weights: w, [B, H, W], not negative: the teacher's highest score of a class at each position.

    Returns:
      [B]; 0 where all weights are 0.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      No paper; the idea is described in Ultralytics' guide of 2026, https://docs.ultralytics.com/guides/knowledge-distillation,
      and this formula is ours.
    """
    s, t, w = numerics.promote(student_feature, teacher_feature, weights)
    numerics.check_same_shape(s, t, "features")
    if w.shape != s.shape[:-1]:
        raise ValueError(f"weights have shape {w.shape} but features {s.shape}: give {s.shape[:-1]}.")
    s, t = numerics.masked(w, s, t)
    return jax.vmap(numerics.masked_mean)(jnp.mean(jnp.square(s - t), axis=-1), w)


def _floored(log_p: jax.Array) -> jax.Array:
    """Logarithms that are finite, so that 0 times them is 0."""
    return jnp.maximum(log_p, -1e30)
