"""Losses on logits: they reduce the class axis (the last) and keep every leading axis."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.labels import are_classes, check_classes, check_labels, check_probabilities
from jaxkd.testing import (
    ALWAYS,
    BATCH_OF_ONE,
    CLASS_PERMUTATION_INVARIANT,
    DISTANCE,
    DIVERGENCE,
    INDEPENDENT_ROWS,
    LEADING_AXES,
    LOGITS,
    NON_NEGATIVE,
    OF_PROBABILITIES,
    SHIFT_INVARIANT,
    SYMMETRIC,
    declare,
)

__all__ = ["cross_entropy", "kd", "logits_mse", "mft", "spherical_kd", "standardize_logits", "tfkd_reg", "ttm", "wttm"]


@declare(lambda draw: (draw.logits(), draw.labels()), (*LOGITS, *OF_PROBABILITIES, NON_NEGATIVE))
def cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, label_smoothing: ArrayLike = 0.0, ignore: int | None = None
) -> jax.Array:
    """Cross-entropy with hard labels (integers) or soft labels (probabilities).

    H(y, q) = -sum_k y_k log q_k,  q = softmax(logits),  y smoothed to (1 - e) y + e / K

    Args:
      logits: [..., K] floating, K >= 2.
      labels: Integers [...] in 0..K-1, or probabilities [..., K].
      label_smoothing: e in [0, 1); mass spread evenly over the K classes.
      ignore: Integer label of rows that do not count: their value is 0; none if None.

    Returns:
      [...] in nats.

    Raises:
      ValueError: If labels fit neither form.

    Reference:
      Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (label smoothing), CVPR 2016,
      https://arxiv.org/abs/1512.00567
    """
    (z,) = numerics.promote(logits)
    hard = are_classes(z, labels)
    if not hard and ignore is not None:
        raise ValueError(
            f"ignore={ignore} names an integer label, but the labels are probabilities of shape {jnp.shape(labels)}: "
            "leave rows out with `where=` of the term."
        )
    y = check_labels(z, labels, ignore) if hard else check_probabilities(z, labels)
    (z,) = y.select(z)
    if hard and isinstance(label_smoothing, (int, float)) and label_smoothing == 0:
        return y.mark(optax.softmax_cross_entropy_with_integer_labels(z, y.values))
    p = jax.nn.one_hot(y.values, z.shape[-1], dtype=z.dtype) if hard else y.values
    smoothing = numerics.per_example(label_smoothing, z)
    return y.mark(optax.safe_softmax_cross_entropy(z, (1 - smoothing) * p + smoothing / z.shape[-1]))


@declare(lambda draw: (draw.logits(), draw.logits()), DIVERGENCE)
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
    divergence = numerics.kl_divergence(numerics.log_softmax(t, temperature), numerics.log_softmax(s, temperature))
    return numerics.per_example(temperature, divergence) ** 2 * divergence


@declare(lambda draw: (draw.logits(), draw.logits()), (*LOGITS, *OF_PROBABILITIES, NON_NEGATIVE))
def ttm(student_logits: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike = 10.0) -> jax.Array:
    """Transformed teacher matching: KL from the tempered teacher to the student as it is, without T^2.

    KL(p^ || q),  p^_k = p_k^gamma / sum_j p_j^gamma = softmax(z_t / T)_k,  gamma = 1 / T
    p, q = softmax(z) of teacher and student

    Only the teacher is tempered: the loss is not 0 at equality, except for T = 1, where it is `kd`. The best gamma
    differs by pair of networks; the default is that of the authors' example for CIFAR-100, gamma = 0.1.

    Args:
      student_logits: [..., K] floating.
      teacher_logits: [..., K] floating.
      temperature: T > 0 of the teacher, a scalar or an array over leading axes.

    Returns:
      [...] in nats.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024,
      https://arxiv.org/abs/2402.11148
    """
    s, t = numerics.promote(student_logits, teacher_logits)
    numerics.check_same_shape(s, t, "logits")
    return numerics.kl_divergence(numerics.log_softmax(t, temperature), numerics.log_softmax(s))


@declare(lambda draw: (draw.logits(), draw.logits()), (*LOGITS, *OF_PROBABILITIES, NON_NEGATIVE))
def wttm(student_logits: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike = 5.0) -> jax.Array:
    """Weighted transformed teacher matching: `ttm`, with more weight on examples whose teacher is less certain.

    U KL(p^ || q),  U = sum_k p_k^gamma,  p^_k = p_k^gamma / U,  gamma = 1 / T
    p, q = softmax(z) of teacher and student

    For T > 1 the power sum U runs from 1 (one-hot teacher) to K^(1 - gamma) (uniform teacher). As in the authors' code,
    there is no T^2. The best gamma differs by pair of networks; the default is that of their example, gamma = 0.2.

    Args:
      student_logits: [..., K] floating.
      teacher_logits: [..., K] floating.
      temperature: T > 0 of the teacher, a scalar or an array over leading axes.

    Returns:
      [...] in nats, times U.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024,
      https://arxiv.org/abs/2402.11148
    """
    (t,) = numerics.promote(teacher_logits)
    divergence = ttm(student_logits, t, temperature=temperature)
    log_p = numerics.log_softmax(t)
    present = ~jnp.isneginf(log_p)
    powers = jnp.exp(jnp.where(present, log_p, 0) / numerics.per_example(temperature, log_p))
    return jnp.sum(jnp.where(present, powers, 0), axis=-1) * divergence


@declare(lambda draw: (draw.logits(), draw.logits()), (*LOGITS, *DISTANCE, SYMMETRIC, CLASS_PERMUTATION_INVARIANT))
def logits_mse(student_logits: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike = 1.0) -> jax.Array:
    """Mean squared difference of the (tempered) logits, averaged over the classes.

    (1/K) sum_k (z_s,k / T - z_t,k / T)^2; the paper has half the sum, common code has this mean.

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
    numerics.check_same_shape(s, t, "outputs")
    kept = ~(jnp.isneginf(s) & jnp.isneginf(t))
    numerics.check_temperature(temperature)
    T = numerics.per_example(temperature, s)
    difference = (jnp.where(kept, s, 0) - jnp.where(kept, t, 0)) / T
    return jnp.mean(jnp.square(difference), axis=-1)


@declare(lambda draw: (draw.logits(),), (*ALWAYS, INDEPENDENT_ROWS, LEADING_AXES, BATCH_OF_ONE, SHIFT_INVARIANT))
def standardize_logits(logits: ArrayLike, *, epsilon: float = 1e-7) -> jax.Array:
    """Logit standardisation, applied before a loss on logits: zero mean and unit standard deviation over the classes.

    Z(z) = (z - mean(z)) / (std(z) + epsilon), std with the divisor K - 1

    `kd(standardize_logits(s), standardize_logits(t), temperature=2.0)` is the paper's loss, with the base temperature.

    Args:
      logits: [..., K] floating; classes masked with -inf stay so and do not count.
      epsilon: Added to the standard deviation.

    Returns:
      [..., K], 0 for a row of equal logits.

    Reference:
      Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024,
      https://arxiv.org/abs/2403.01427
    """
    (z,) = numerics.promote(logits)
    check_classes(z)
    centred, count = _centred(z)
    deviation = numerics.safe_norm(centred, axis=-1, keepdims=True) / jnp.sqrt(jnp.maximum(count - 1, 1))
    return jnp.where(jnp.isneginf(z), -jnp.inf, centred / (deviation + epsilon))


@declare(lambda draw: (draw.logits(), draw.logits()), DIVERGENCE)
def spherical_kd(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    alpha: ArrayLike = 0.9,
    temperature: ArrayLike = 4.0,
    norm: ArrayLike | None = None,
) -> jax.Array:
    """Spherical KD: KD after both sides' centred logits are scaled to the same norm.

    alpha * T^2 * KL(softmax(r u_t / T) || softmax(r u_s / T)),  u = (z - mean(z)) / ||z - mean(z)||

    By default r is the norm of the teacher's centred logits in each row, as in the released code. The paper takes the
    average of that norm over the training set; give it as `norm`.

    Args:
      student_logits: [..., K] floating.
      teacher_logits: [..., K] floating.
      alpha: Weight, a scalar or an array over leading axes; the cross-entropy with the label has the weight 1 - alpha.
      temperature: T > 0, a scalar or an array over leading axes.
      norm: r > 0, a scalar or an array over leading axes, or None for the teacher's own.

    Returns:
      [...] in nats, times T^2.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Guo, Chen, Hu, Zhu, He, Cai, "Reducing the Teacher-Student Gap via Spherical Knowledge Distillation", 2020,
      https://arxiv.org/abs/2010.07485
    """
    s, t = numerics.promote(student_logits, teacher_logits)
    numerics.check_same_shape(s, t, "logits")
    r = numerics.safe_norm(_centred(t)[0], axis=-1, keepdims=True) if norm is None else numerics.per_example(norm, t)
    divergence = kd(_on_sphere(s, r), _on_sphere(t, r), temperature=temperature)
    return numerics.per_example(alpha, divergence) * divergence


@declare(lambda draw: (draw.logits(), draw.labels()), (*LOGITS, *OF_PROBABILITIES, NON_NEGATIVE))
def tfkd_reg(
    student_logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike = 0.1,
    temperature: ArrayLike = 20.0,
    multiplier: ArrayLike = 1.0,
    correct_probability: float = 0.99,
    released: bool = False,
    ignore: int | None = None,
) -> jax.Array:
    """Teacher-free KD: cross-entropy with the label, and KL from a virtual teacher that is made from the label.

    (1 - alpha) CE(y, softmax(z)) + alpha * multiplier * KL(softmax(u / T) || softmax(z / T))
    u = correct_probability at the label and (1 - correct_probability) / (K - 1) elsewhere

    The published numbers come from code in which the student is not tempered and the KL is divided by K, with a
    multiplier of 1, 50 or 100 to compensate. `released` computes the loss of that code.

    Args:
      student_logits: [..., K] floating, K >= 2.
      labels: [...] integers in 0..K-1.
      alpha: Weight of the regulariser, a scalar or an array over leading axes.
      temperature: T > 0, a scalar or an array over leading axes.
      multiplier: Factor on the KL, a scalar or an array over leading axes.
      correct_probability: Probability that the virtual teacher gives to the label, before it is tempered.
      released: Whether to compute the loss of the released code.
      ignore: Label of rows that do not count: their value is 0; none if None.

    Returns:
      [...] in nats: the whole objective, which needs no other term.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Yuan, Tay, Li, Wang, Feng, "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020,
      https://arxiv.org/abs/1909.11723
    """
    (s,) = numerics.promote(student_logits)
    y, K = check_labels(s, labels, ignore), s.shape[-1]
    (s,) = y.select(s)
    virtual = jnp.where(
        jax.nn.one_hot(y.values, K, dtype=bool), correct_probability, (1 - correct_probability) / (K - 1)
    )
    virtual = jnp.where(jnp.isneginf(s), -jnp.inf, virtual.astype(s.dtype))
    log_q = numerics.log_softmax(s, 1.0 if released else temperature)
    divergence = numerics.kl_divergence(numerics.log_softmax(virtual, temperature), log_q) / (K if released else 1)
    alpha, multiplier = (numerics.per_example(h, divergence) for h in (alpha, multiplier))
    return y.mark((1 - alpha) * cross_entropy(s, y.values) + alpha * multiplier * divergence)


@declare(lambda draw: (draw.logits(), draw.logits(), draw.labels()), (*LOGITS, *OF_PROBABILITIES, NON_NEGATIVE))
def mft(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    threshold: ArrayLike = 0.2,
    ignore: int | None = None,
) -> jax.Array:
    """Minifinetuning: KL from a teacher whose probabilities are moved towards the label, as little as necessary.

    T^2 * KL(p' || softmax(z_s / T)),  p' = (1 - f) p + f [k = y],  p = softmax(z_t / T),  a = argmax p
    f = (p_a - p_y + th) / (1 + p_a - p_y + 1e-7)        where the teacher is wrong, a != y
    f = (min(1, p_y + th) - p_y) / (1 - p_y + 1e-7)      where it is right

    so that p'_y exceeds the likeliest wrong class, or its own former value, by th.

    Args:
      student_logits: [..., K] floating.
      teacher_logits: [..., K] floating.
      labels: [...] integers in 0..K-1.
      temperature: T > 0, a scalar or an array over leading axes.
      threshold: th in 0..1, a scalar or an array over leading axes.
      ignore: Label of rows that do not count: their value is 0; none if None.

    Returns:
      [...] in nats, times T^2.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Belcak et al., "Minifinetuning: Low-Data Generation Domain Adaptation through Corrective Self-Distillation", 2025,
      https://arxiv.org/abs/2506.15702
    """
    s, t = numerics.promote(student_logits, teacher_logits)
    numerics.check_same_shape(s, t, "logits")
    y = check_labels(s, labels, ignore)
    s, t = y.select(s, t)
    p = _corrected(jnp.exp(numerics.log_softmax(t, temperature)), y.values, threshold)
    log_p = jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)), -jnp.inf)
    divergence = numerics.kl_divergence(log_p, numerics.log_softmax(s, temperature))
    return y.mark(numerics.per_example(temperature, divergence) ** 2 * divergence)


def _centred(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """z less its mean, 0 at masked classes, and the number of classes [..., 1] that are not masked."""
    kept = ~jnp.isneginf(z)
    return numerics.centred(z, where=kept), jnp.sum(kept, axis=-1, keepdims=True, dtype=z.dtype)


def _on_sphere(z: jax.Array, radius: jax.Array) -> jax.Array:
    """Centred logits scaled to the norm `radius`; a row of equal logits stays at 0, masked classes at -inf."""
    centred, _ = _centred(z)
    norm = numerics.safe_norm(centred, axis=-1, keepdims=True)
    return jnp.where(jnp.isneginf(z), -jnp.inf, centred * (radius / jnp.where(norm > 0, norm, 1)))


def _corrected(p: jax.Array, labels: jax.Array, threshold: ArrayLike) -> jax.Array:
    """Probabilities mixed with the label's one-hot ones by MFT's rule."""
    p_y, p_a = numerics.pick(p, labels)[..., None], jnp.max(p, axis=-1, keepdims=True)
    th = numerics.per_example(threshold, p)
    wrong = (jnp.argmax(p, axis=-1) != labels)[..., None]
    f = jnp.where(
        wrong,
        (p_a - p_y + th) / (1 + p_a - p_y + 1e-7),
        (jnp.minimum(1, p_y + th) - p_y) / (1 - p_y + 1e-7),
    )
    return (1 - f) * p + f * jax.nn.one_hot(labels, p.shape[-1], dtype=p.dtype)
