"""Losses on logits that treat the labelled (target) class and the other classes separately."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.labels import check_labels
from jaxkd.testing import (
    BATCH_OF_ONE,
    COUPLED,
    DIVERGENCE,
    EXTREME_LOGITS,
    GRADIENT,
    LOGITS,
    MASKED_CLASSES,
    NON_NEGATIVE,
    OF_PROBABILITIES,
    SCALE_INVARIANT,
    Property,
    declare,
)

__all__ = ["dkd", "dlr", "nkd", "uskd", "wsld"]


def _without_gradient(properties: Sequence[Property]) -> tuple[Property, ...]:
    """Properties of a loss with a weight that counts as constant, which finite differences would move."""
    return tuple(one for one in properties if one is not GRADIENT)


@declare(lambda draw: (draw.logits(), draw.logits(), draw.labels()), DIVERGENCE)
def dkd(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike = 1.0,
    beta: ArrayLike = 8.0,
    temperature: ArrayLike = 4.0,
    ignore: int | None = None,
) -> jax.Array:
    """Decoupled knowledge distillation: weighted sum of KL on target against other classes, and KL among the others.

    T^2 * (alpha * TCKD + beta * NCKD)
    TCKD = KL(b_t || b_s),  b = (p_y, 1 - p_y),  p = softmax(z / T)
    NCKD = KL(p~_t || p~_s),  p~ = softmax(z / T) over the K - 1 classes other than y

    With alpha = 1 and beta = 1 - p_y of the teacher this is `kd`. The released trainer also multiplies by a warm-up of
    the epoch, which is a schedule of the term's weight.

    Args:
      student_logits: [..., K] floating, K >= 2; for K = 2 NCKD is 0.
      teacher_logits: [..., K] floating.
      labels: [...] integers in 0..K-1.
      alpha: Weight of TCKD, a scalar or an array over leading axes.
      beta: Weight of NCKD, a scalar or an array over leading axes; the paper tunes it between 1 and 10 by pair.
      temperature: T > 0, a scalar or an array over leading axes.
      ignore: Label of rows that do not count: their value is 0; none if None.

    Returns:
      [...] in nats, times T^2.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, https://arxiv.org/abs/2203.08679
    """
    s, t = numerics.promote(student_logits, teacher_logits)
    numerics.check_same_shape(s, t, "logits")
    y = check_labels(s, labels, ignore)
    s, t = y.select(s, t)
    c = y.values
    tckd = numerics.kl_divergence(_target_or_rest(t, c, temperature), _target_or_rest(s, c, temperature))
    nckd = numerics.kl_divergence(_within_rest(t, c, temperature), _within_rest(s, c, temperature))
    T, alpha, beta = (numerics.per_example(h, tckd) for h in (temperature, alpha, beta))
    return y.mark(T**2 * (alpha * tckd + beta * nckd))


@declare(
    lambda draw: (draw.logits(), draw.labels()),
    (*LOGITS, *OF_PROBABILITIES, SCALE_INVARIANT),
    needs="an attack",
)
def dlr(logits: ArrayLike, labels: ArrayLike, *, ignore: int | None = None) -> jax.Array:
    """Difference of logits ratio, which attacks make large: above 0 where the network is wrong, and free of any scale.

    -(z_y - max_{k != y} z_k) / (z_(1) - z_(3)),  z_(1) >= z_(2) >= z_(3) the largest logits

    Unlike the cross-entropy's, its gradient does not vanish where a network is certain: it ignores a shift and a scale
    of the logits. 0 without a gradient where the three largest are equal, or all but two classes are masked.

    Args:
      logits: [..., K] floating, K >= 3.
      labels: [...] integers in 0..K-1.
      ignore: Label of rows that do not count: their value is 0; none if None.

    Returns:
      [...], at least -1.

    Raises:
      ValueError: If the shapes do not fit, or there are fewer than three classes.

    Reference:
      Croce, Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
      ICML 2020, https://arxiv.org/abs/2003.01690
    """
    (z,) = numerics.promote(logits)
    y = check_labels(z, labels, ignore)
    if z.shape[-1] < 3:
        raise ValueError(f"logits have shape {z.shape}, but the third largest is needed: give at least three classes.")
    (z,) = y.select(z)
    z = jnp.maximum(z, jnp.finfo(z.dtype).min / 4)  # masked classes
    others = jnp.where(jax.nn.one_hot(y.values, z.shape[-1], dtype=bool), -jnp.inf, z)
    margin = jnp.max(others, axis=-1) - numerics.pick(z, y.values)
    largest = jax.lax.top_k(z, 3)[0]
    span = largest[..., 0] - largest[..., 2]
    apart = (span > 0) & (span < -jnp.finfo(z.dtype).min / 8)
    return y.mark(jnp.where(apart, margin / jnp.where(apart, span, 1), 0))


@declare(lambda draw: (draw.logits(), draw.logits(), draw.labels()), (*LOGITS, *OF_PROBABILITIES, NON_NEGATIVE))
def nkd(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: ArrayLike = 1.5,
    temperature: ArrayLike = 1.0,
    ignore: int | None = None,
) -> jax.Array:
    """Normalised KD: cross-entropy with the teacher's target probability, and with its normalised other classes.

    - p_y log q_y - gamma * T^2 * sum_{c != y} p~_c log q~_c
    p, q = softmax of the teacher's and student's logits,  p~, q~ = softmax(z / T) over the classes other than y

    A cross-entropy: not 0 at equality. T acts on the second part only.

    Args:
      student_logits: [..., K] floating, K >= 2.
      teacher_logits: [..., K] floating.
      labels: [...] integers in 0..K-1.
      gamma: Weight of the second part, a scalar or an array over leading axes.
      temperature: T > 0, a scalar or an array over leading axes.
      ignore: Label of rows that do not count: their value is 0; none if None.

    Returns:
      [...] in nats.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach
      with Normalized Loss and Customized Soft Labels", ICCV 2023, https://arxiv.org/abs/2303.13005
    """
    s, t = numerics.promote(student_logits, teacher_logits)
    numerics.check_same_shape(s, t, "logits")
    y = check_labels(s, labels, ignore)
    s, t = y.select(s, t)
    p_y = jnp.exp(numerics.pick(numerics.log_softmax(t), y.values))
    target = -p_y * numerics.pick(numerics.log_softmax(s), y.values)
    rest = _cross_entropy(jnp.exp(_within_rest(t, y.values, temperature)), _within_rest(s, y.values, temperature))
    T, gamma = (numerics.per_example(h, rest) for h in (temperature, gamma))
    return y.mark(target + gamma * T**2 * rest)


@declare(
    lambda draw: (draw.logits(), draw.logits(), draw.labels()),
    (*_without_gradient(COUPLED), *OF_PROBABILITIES, BATCH_OF_ONE, EXTREME_LOGITS, MASKED_CLASSES, NON_NEGATIVE),
    own="weak head: `objectives.uskd`",
)
def uskd(
    student_logits: ArrayLike,
    weak_logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike = 1.0,
    beta: ArrayLike = 0.1,
    mu: ArrayLike = 0.005,
    log_ranking: bool = False,
    ignore: int | None = None,
) -> jax.Array:
    """Universal self-distillation: soft labels made from the student's own outputs; couples the batch.

    mean_b [ - alpha * P log q_y - beta * sum_{c != y} z_c log q~_c - mu * sum_c y'_c log w_c ]
    q = softmax(student),  w = softmax(weak),  q~ = softmax(student) over the classes other than y
    P = q_y^2 + 1 - mean_b(q_y^2),  y' = 0.9 [c = y] + 0.1 / K
    z_c = 1 / rank_c (Zipf), normalised over c != y; ranks by w_c / (1 - w_y) + q_c / (1 - q_y), the largest first

    P and z are constants. In the released code the student's part of the ranking uses log q in the place of q, which
    `log_ranking` reproduces.

    Args:
      student_logits: [..., K] floating, K >= 2.
      weak_logits: [..., K] floating, of a linear head on an intermediate feature, which this loss trains.
      labels: [...] integers in 0..K-1.
      alpha: Weight of the target class.
      beta: Weight of the other classes.
      mu: Weight of the weak head's own labels.
      log_ranking: Whether classes are ranked as in the released code.
      ignore: Label of rows that do not count, in no mean; none if None.

    Returns:
      Scalar, in nats: the mean over all leading axes; 0 where every row is ignored.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach
      with Normalized Loss and Customized Soft Labels", ICCV 2023, https://arxiv.org/abs/2303.13005
    """
    s, w = numerics.promote(student_logits, weak_logits)
    numerics.check_same_shape(s, w, "logits")
    labelled = check_labels(s, labels, ignore)
    s, w = labelled.select(s, w)
    y, counts = labelled.values, None if ignore is None else labelled.counts
    log_q, log_w = numerics.log_softmax(s), numerics.log_softmax(w)
    log_q_y = numerics.pick(log_q, y)
    P = jnp.square(jnp.exp(log_q_y))
    P = jax.lax.stop_gradient(P + 1 - numerics.masked_mean(P, counts))
    z = jax.lax.stop_gradient(
        _zipf_labels(log_q if log_ranking else jnp.exp(log_q), jnp.exp(log_w), y, jnp.isneginf(s))
    )
    smooth = 0.9 * jax.nn.one_hot(y, s.shape[-1], dtype=s.dtype) + jnp.where(jnp.isneginf(w), 0, 0.1 / s.shape[-1])
    alpha, beta, mu = (jnp.asarray(h, s.dtype) for h in (alpha, beta, mu))
    rest, weak = _cross_entropy(z, _within_rest(s, y)), _cross_entropy(smooth, log_w)
    return numerics.masked_mean(labelled.mark(-alpha * P * log_q_y + beta * rest + mu * weak), counts)


@declare(
    lambda draw: (draw.logits(), draw.logits(), draw.labels()),
    (*_without_gradient(LOGITS), *OF_PROBABILITIES, NON_NEGATIVE),
)
def wsld(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike = 2.25,
    temperature: ArrayLike = 4.0,
    ignore: int | None = None,
) -> jax.Array:
    """Weighted soft labels: tempered cross-entropy, with less weight where the student fits the label better.

    - alpha * T^2 * w * sum_k p_k log q_k,  p, q = softmax(z / T) of teacher and student
    w = 1 - exp(- CE_s / (CE_t + 1e-7)),  CE = - log softmax(z)_y

    w is a constant. A cross-entropy: not 0 at equality.

    Args:
      student_logits: [..., K] floating.
      teacher_logits: [..., K] floating.
      labels: [...] integers in 0..K-1.
      alpha: Weight, a scalar or an array over leading axes; the cross-entropy with the label has the weight 1.
      temperature: T > 0, a scalar or an array over leading axes.
      ignore: Label of rows that do not count: their value is 0; none if None.

    Returns:
      [...] in nats, times T^2.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang, "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance
      Tradeoff Perspective", ICLR 2021, https://arxiv.org/abs/2102.00650
    """
    s, t = numerics.promote(student_logits, teacher_logits)
    numerics.check_same_shape(s, t, "logits")
    y = check_labels(s, labels, ignore)
    s, t = y.select(s, t)
    ce_s, ce_t = (-numerics.pick(numerics.log_softmax(z), y.values) for z in (s, t))
    w = jax.lax.stop_gradient(-jnp.expm1(-ce_s / (ce_t + 1e-7)))
    soft = _cross_entropy(jnp.exp(numerics.log_softmax(t, temperature)), numerics.log_softmax(s, temperature))
    T, alpha = (numerics.per_example(h, soft) for h in (temperature, alpha))
    return y.mark(alpha * T**2 * w * soft)


def _target_or_rest(logits: jax.Array, labels: jax.Array, temperature: ArrayLike) -> jax.Array:
    """Log-probabilities [..., 2] of the target class and of all the others together."""
    log_p = numerics.log_softmax(logits, temperature)
    rest = jax.nn.logsumexp(_without_target(log_p, labels), axis=-1)
    return jnp.stack([numerics.pick(log_p, labels), rest], axis=-1)


def _within_rest(logits: jax.Array, labels: jax.Array, temperature: ArrayLike = 1.0) -> jax.Array:
    """Log-probabilities [..., K] among the classes other than the target, -inf at the target."""
    return numerics.log_softmax(_without_target(logits, labels), temperature)


def _without_target(x: jax.Array, labels: jax.Array) -> jax.Array:
    """x with -inf at the target class."""
    return jnp.where(jax.nn.one_hot(labels, x.shape[-1], dtype=bool), -jnp.inf, x)


def _cross_entropy(p: jax.Array, log_q: jax.Array) -> jax.Array:
    """- sum_k p_k log q_k, where 0 * -inf is 0."""
    present = p > 0
    return -jnp.sum(jnp.where(present, p * jnp.where(present, log_q, 0), 0), axis=-1)


def _zipf_labels(q: jax.Array, w: jax.Array, labels: jax.Array, masked: jax.Array) -> jax.Array:
    """1 / rank of each class but the target, normalised; ranks are over all classes, by the sum of both scores."""
    score = sum(x / (1 - numerics.pick(x, labels)[..., None] + 1e-6) for x in (w, q))
    rank = jnp.argsort(jnp.argsort(-score, axis=-1), axis=-1) + 1
    absent = masked | jax.nn.one_hot(labels, q.shape[-1], dtype=bool)
    z = jnp.where(absent, 0, 1 / rank.astype(q.dtype))
    return z / jnp.sum(z, axis=-1, keepdims=True)
