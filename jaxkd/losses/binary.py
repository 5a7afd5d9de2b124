"""Losses of yes-or-no labels, one logit each: binary classification, and examples with any number of labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.labels import Labels, check_binary
from jaxkd.testing import CLASS_PERMUTATION_INVARIANT, DISTANCE, LOGITS, NON_NEGATIVE, Draw, declare

__all__ = ["binary_cross_entropy", "binary_kd"]


def _probabilities(draw: Draw) -> tuple[np.ndarray, ...]:
    """Logits, and the probability of yes for each of them."""
    return draw.logits(), 1 / (1 + np.exp(-draw.logits()))


@declare(
    _probabilities,
    (*LOGITS, CLASS_PERMUTATION_INVARIANT, NON_NEGATIVE),
    kinds={"labels": "probabilities"},
    needs="yes-or-no labels",
)
def binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    label_smoothing: ArrayLike = 0.0,
    pos_weight: ArrayLike = 1.0,
    ignore: float | None = None,
) -> jax.Array:
    """Binary cross-entropy with one sigmoid for each label, averaged over the labels of an example.

    (1/L) sum_l - w y_l log q_l - (1 - y_l) log(1 - q_l),  q = sigmoid(logits),  y smoothed to (1 - e) y + e / 2

    Args:
      logits: [..., L] floating, one for each label; or [B], of one label.
      labels: 0 and 1 (integers, booleans), or probabilities of yes in 0..1 (floats), of the shape of the logits. [B]
        goes with logits [B, 1] too.
      label_smoothing: e in [0, 1), a scalar or an array over leading axes.
      pos_weight: w > 0, weight of a yes: a scalar, or [L] with one for each label.
      ignore: Label that does not count, such as -1: it is left out of the mean over the labels. None for none.

    Returns:
      [...] in nats, or [B] for logits [B]; 0 where every label is ignored.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Good, "Rational Decisions", Journal of the Royal Statistical Society B 1952,
      https://doi.org/10.1111/j.2517-6161.1952.tb00104.x
    """
    (z,) = numerics.promote(logits)
    y = check_binary(z, labels, ignore)
    (z,) = y.select(z)
    smoothing, w = numerics.per_example(label_smoothing, z), jnp.asarray(pos_weight, z.dtype)
    if w.ndim and (z.ndim < 2 or w.shape != z.shape[-1:]):
        raise ValueError(
            f"pos_weight has shape {w.shape} but logits have shape {z.shape}: give one number, or one for each label."
        )
    p = (1 - smoothing) * y.values + smoothing / 2
    yes, no = numerics.weighted_softplus(-z, p), numerics.weighted_softplus(z, 1 - p)
    return _over_labels(y.mark(w.reshape((1,) * (z.ndim - w.ndim) + w.shape) * yes + no), y)


@declare(
    lambda draw: (draw.logits(), draw.logits()),
    (*LOGITS, *DISTANCE, CLASS_PERMUTATION_INVARIANT),
    needs="yes-or-no labels",
)
def binary_kd(student_logits: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike = 1.0) -> jax.Array:
    """Multi-label logits distillation: KL between the two sides' probabilities of yes, averaged over the labels.

    (T^2 / L) sum_l p_l log(p_l / q_l) + (1 - p_l) log((1 - p_l) / (1 - q_l)),  p, q = sigmoid(z / T)

    The paper has T = 1, and the sum over the labels: L times this. T^2 keeps the gradient's scale when T changes, as in
    `kd`.

    Args:
      student_logits: [..., L] floating, one for each label; or [B], of one label.
      teacher_logits: Floating, of the same shape.
      temperature: T > 0, a scalar or an array over leading axes.

    Returns:
      [...] in nats, times T^2; [B] for logits [B].

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Yang, Xie, Zong, Feng, Niu, Sugiyama, Huang, "Multi-Label Knowledge Distillation", ICCV 2023,
      https://arxiv.org/abs/2308.06453
    """
    s, t = numerics.promote(student_logits, teacher_logits)
    numerics.check_same_shape(s, t, "outputs")
    divergence = numerics.kl_divergence(_yes_and_no(t, temperature), _yes_and_no(s, temperature))
    scaled = numerics.per_example(temperature, divergence) ** 2 * divergence
    return jnp.mean(scaled, axis=-1) if scaled.ndim > 1 else scaled


def _over_labels(values: jax.Array, labels: Labels) -> jax.Array:
    """Mean over the last axis of what is not ignored; values [B] of one label stay."""
    if values.ndim < 2:
        return values
    if labels.ignored is None:
        return jnp.mean(values, axis=-1)
    count = jnp.sum(labels.counts, axis=-1, dtype=values.dtype)
    return jnp.sum(values, axis=-1) / jnp.maximum(count, 1)


def _yes_and_no(logits: jax.Array, temperature: ArrayLike) -> jax.Array:
    """Log-probabilities [..., 2] of yes and no; no is certain of a label masked with -inf, which gets no gradient."""
    masked = jnp.isneginf(logits)
    numerics.check_temperature(temperature)
    z = jnp.where(masked, 0, logits) / numerics.per_example(temperature, logits)
    yes, no = (jnp.where(masked, x, jax.nn.log_sigmoid(y)) for x, y in ((-jnp.inf, z), (0, -z)))
    return jnp.stack([yes, no], axis=-1)
