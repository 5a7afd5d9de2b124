"""Losses on logits that also compare relations between the examples of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.testing import (
    BATCH_OF_ONE,
    COUPLED,
    EXTREME_LOGITS,
    FLAT_AT_EQUALITY,
    MASKED_CLASSES,
    NON_NEGATIVE,
    OF_PROBABILITIES,
    SYMMETRIC,
    ZERO_AT_EQUALITY,
    declare,
)

__all__ = ["dist", "mlkd"]

_RELATIONS = (*COUPLED, *OF_PROBABILITIES, BATCH_OF_ONE, EXTREME_LOGITS, MASKED_CLASSES, NON_NEGATIVE)


@declare(lambda draw: (draw.logits(), draw.logits()), (*_RELATIONS, SYMMETRIC))
def dist(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    beta: ArrayLike = 1.0,
    gamma: ArrayLike = 1.0,
    temperature: ArrayLike = 1.0,
) -> jax.Array:
    """DIST: Pearson correlation of the probabilities within each example and within each class; couples the batch.

    T^2 * [ beta * (1 - mean_b rho(q_b:, p_b:)) + gamma * (1 - mean_k rho(q_:k, p_:k)) ]
    p, q = softmax(z / T) as matrices [B, K],  rho(a, b) = <a', b'> / (||a'|| ||b'|| + 1e-8),  a' = a - mean(a)

    The 1e-8, which the released code adds, leaves the value slightly above 0 at equality.

    Args:
      student_logits: [..., K] floating; leading axes count as one batch.
      teacher_logits: [..., K] floating.
      beta: Weight of the relation between classes (inter).
      gamma: Weight of the relation between examples (intra), which is a constant for a batch of one.
      temperature: T > 0, the paper's tau.

    Returns:
      Scalar, times T^2.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022,
      https://arxiv.org/abs/2205.10536
    """
    s, t = _rows(student_logits, teacher_logits)
    numerics.check_temperature(temperature)
    T, beta, gamma = (jnp.asarray(h, s.dtype) for h in (temperature, beta, gamma))
    q, p = jnp.exp(numerics.log_softmax(s, T)), jnp.exp(numerics.log_softmax(t, T))
    inter = 1 - jnp.mean(_pearson(q, p, axis=1))
    intra = 1 - jnp.mean(_pearson(q, p, axis=0))
    return T**2 * (beta * inter + gamma * intra)


@declare(lambda draw: (draw.logits(), draw.logits()), (*_RELATIONS, ZERO_AT_EQUALITY, FLAT_AT_EQUALITY))
def mlkd(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperatures: Sequence[float] | ArrayLike = (2.0, 3.0, 4.0, 5.0, 6.0),
) -> jax.Array:
    """Multi-level logit distillation: instances, batch and classes at several temperatures; couples the batch.

    sum_T [ T^2 * mean_b KL(p_b || q_b) + (1/B) ||p p' - q q'||_F^2 + (1/K) ||p' p - q' q||_F^2 ]
    p, q = softmax(z / T) of teacher and student as matrices [B, K],  ' the transpose

    The confidence masks of the released trainer only rescale terms that are already reduced; they are left out.

    Args:
      student_logits: [..., K] floating; leading axes count as one batch.
      teacher_logits: [..., K] floating.
      temperatures: [n] values of T > 0.

    Returns:
      Scalar.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023,
      https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html
    """
    s, t = _rows(student_logits, teacher_logits)

    def at(T: jax.Array) -> jax.Array:
        log_q, log_p = numerics.log_softmax(s, T), numerics.log_softmax(t, T)
        q, p = jnp.exp(log_q), jnp.exp(log_p)
        instances = T**2 * jnp.mean(numerics.kl_divergence(log_p, log_q))
        return instances + _gram_distance(p, q) / len(s) + _gram_distance(p.T, q.T) / s.shape[-1]

    numerics.check_temperature(temperatures, "temperatures")
    return jnp.sum(jax.vmap(at)(jnp.asarray(temperatures, s.dtype)))


def _rows(student_logits: ArrayLike, teacher_logits: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Both sides, checked, as matrices of examples and classes."""
    s, t = numerics.promote(student_logits, teacher_logits)
    numerics.check_same_shape(s, t, "logits")
    return s.reshape(-1, s.shape[-1]), t.reshape(-1, t.shape[-1])


def _pearson(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    """Pearson correlation along an axis; 0 where a side is constant."""
    a, b = (numerics.centred(x, axis) for x in (a, b))
    return jnp.sum(a * b, axis=axis) / (numerics.safe_norm(a, axis) * numerics.safe_norm(b, axis) + 1e-8)


def _gram_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Squared Frobenius norm of the difference of the rows' inner products."""
    gram_a, gram_b = (jnp.matmul(x, x.T, precision="highest") for x in (a, b))
    return jnp.sum(jnp.square(gram_a - gram_b))
