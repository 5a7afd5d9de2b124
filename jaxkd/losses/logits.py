"""Losses on logits: they reduce the class axis (the last) and keep every leading axis."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxkd import numerics


def cross_entropy(logits: ArrayLike, labels: ArrayLike, *, label_smoothing: ArrayLike = 0.0) -> jax.Array:
    """Cross-entropy with hard labels (integers) or soft labels (probabilities).

    H(y, q) = -sum_k y_k log q_k,  q = softmax(logits),  y smoothed to (1 - e) y + e / K

    Args:
      logits: [..., K] floating.
      labels: Integers [...] in 0..K-1, or probabilities [..., K].
      label_smoothing: e in [0, 1); mass spread evenly over the K classes.

    Returns:
      [...] in nats.

    Raises:
      ValueError: If labels fit neither form.

    Reference:
      Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (label smoothing), CVPR 2016,
      https://arxiv.org/abs/1512.00567
    """
    (z,) = numerics.promote(logits)
    y = jnp.asarray(labels)
    hard = jnp.issubdtype(y.dtype, jnp.integer)
    if y.shape != (z.shape[:-1] if hard else z.shape):
        raise ValueError(
            f"labels have shape {y.shape} and dtype {y.dtype} but logits have shape {z.shape}: give integers of shape "
            f"{z.shape[:-1]} or probabilities of shape {z.shape}."
        )
    if hard and isinstance(label_smoothing, (int, float)) and label_smoothing == 0:
        return optax.softmax_cross_entropy_with_integer_labels(z, y)
    y = jax.nn.one_hot(y, z.shape[-1], dtype=z.dtype) if hard else y.astype(z.dtype)
    smoothing = numerics.per_example(label_smoothing, z)
    return optax.safe_softmax_cross_entropy(z, (1 - smoothing) * y + smoothing / z.shape[-1])


def kd(student_logits: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike = 4.0) -> jax.Array:
    """Knowledge distillation: KL from the tempered teacher to the tempered student, times T^2.

    T^2 * KL(softmax(z_t / T) || softmax(z_s / T)); T^2, which the paper states in words, keeps the gradient's scale
    when T changes.

    Args:
      student_logits: [..., K] floating.
      teacher_logits: [..., K] floating.
      temperature: T > 0, a scalar or an array over leading axes.

    Returns:
      [...] in nats, times T^2.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", NeurIPS 2014 Deep Learning Workshop,
      https://arxiv.org/abs/1503.02531
    """
    s, t = numerics.promote(student_logits, teacher_logits)
    numerics.check_same_shape(s, t, "logits")
    T = jnp.asarray(temperature, s.dtype)
    return T**2 * numerics.kl_divergence(numerics.log_softmax(t, T), numerics.log_softmax(s, T))


def logits_mse(student_logits: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike = 1.0) -> jax.Array:
    """Mean squared difference of the (tempered) logits, averaged over the classes.

    (1/K) sum_k (z_s,k / T - z_t,k / T)^2; the paper sums and halves, this is the element mean that is in common use.

    Args:
      student_logits: [..., K] floating.
      teacher_logits: [..., K] floating.
      temperature: T > 0, a scalar or an array over leading axes; no T^2 is applied.

    Returns:
      [...], classes masked with -inf on both sides count 0.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, https://arxiv.org/abs/1312.6184
    """
    s, t = numerics.promote(student_logits, teacher_logits)
    numerics.check_same_shape(s, t, "logits")
    kept = ~(jnp.isneginf(s) & jnp.isneginf(t))
    T = numerics.per_example(temperature, s)
    difference = (jnp.where(kept, s, 0) - jnp.where(kept, t, 0)) / T
    return jnp.mean(jnp.square(difference), axis=-1)
