"""Divergences between the distributions of two logits; they reduce the class axis and keep every leading axis.

p is the teacher's distribution and q the student's, both softmax(z / T). None of these multiplies by T^2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.testing import (
    DIVERGENCE,
    SYMMETRIC,
    declare,
)

__all__ = ["jeffreys", "jsd", "reverse_kl", "skew_kl", "skew_reverse_kl", "tvd"]


@declare(lambda draw: (draw.logits(), draw.logits()), DIVERGENCE)
def reverse_kl(student_logits: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike = 1.0) -> jax.Array:
    """Reverse KL: from the student's distribution to the teacher's, which leads the student to one mode of the teacher.

    KL(q || p) = sum_k q_k (log q_k - log p_k)

    This is MiniLLM's objective for one token; over sequences MiniLLM takes a policy gradient.

    Args:
      student_logits: [..., K] floating.
      teacher_logits: [..., K] floating.
      temperature: T > 0, a scalar or an array over leading axes.

    Returns:
      [...] in nats.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Gu, Dong, Wei, Huang, "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024,
      https://arxiv.org/abs/2306.08543
    """
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    return numerics.kl_divergence(log_q, log_p)


@declare(lambda draw: (draw.logits(), draw.logits()), (*DIVERGENCE, SYMMETRIC))
def jeffreys(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    lam: ArrayLike = 0.5,
    temperature: ArrayLike = 1.0,
    keep_teacher_entropy: bool = False,
) -> jax.Array:
    """Weighted sum of the KL divergences in both directions; Jeffreys' own divergence is twice that of lam = 1/2.

    (1 - lam) KL(p || q) + lam KL(q || p)

    Args:
      student_logits: [..., K] floating.
      teacher_logits: [..., K] floating.
      lam: Weight of the reverse direction, in [0, 1], a scalar or an array over leading axes.
      temperature: T > 0, a scalar or an array over leading axes.
      keep_teacher_entropy: Whether the forward part is a cross-entropy, as in DistiLLM's released code: the same
        gradient in the student, but not 0 at equality.

    Returns:
      [...] in nats.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Jeffreys, "An Invariant Form for the Prior Probability in Estimation Problems", Proc. R. Soc. A 1946,
      https://doi.org/10.1098/rspa.1946.0056; weighted as in Ko, Kim, Chen, Yun, "DistiLLM: Towards Streamlined
      Distillation for Large Language Models", ICML 2024, https://arxiv.org/abs/2402.03898
    """
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    forward = numerics.kl_divergence(log_p, log_q) + (_entropy(log_p) if keep_teacher_entropy else 0)
    lam = numerics.per_example(lam, forward)
    return (1 - lam) * forward + lam * numerics.kl_divergence(log_q, log_p)


@declare(lambda draw: (draw.logits(), draw.logits()), (*DIVERGENCE, SYMMETRIC))
def jsd(
    student_logits: ArrayLike, teacher_logits: ArrayLike, *, beta: ArrayLike = 0.5, temperature: ArrayLike = 1.0
) -> jax.Array:
    """Generalised Jensen-Shannon divergence of GKD; beta = 1/2 is the Jensen-Shannon divergence, at most log 2.

    beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q,  0 < beta < 1
    KL(p || q) for beta = 0 and KL(q || p) for beta = 1

    The end points are whole divergences, as GKD uses them, although the formula tends to 0 there.
    DistiLLM's skewed Jensen-Shannon divergence with lam is this one with beta = 1 - lam.

    Args:
      student_logits: [..., K] floating.
      teacher_logits: [..., K] floating.
      beta: Weight of the teacher in the mixture, in [0, 1], a scalar or an array over leading axes.
      temperature: T > 0, a scalar or an array over leading axes.

    Returns:
      [...] in nats.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Agarwal, Vieillard, Zhou, Stanczyk, Ramos, Geist, Bachem, "On-Policy Distillation of Language Models: Learning
      from Self-Generated Mistakes", ICLR 2024, https://arxiv.org/abs/2306.13649
    """
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    log_m = _log_mixture(log_p, log_q, beta)
    of_teacher, of_student = numerics.kl_divergence(log_p, log_m), numerics.kl_divergence(log_q, log_m)
    b = numerics.per_example(beta, of_teacher)
    # At an end point the mixture is one of the sides: one divergence is 0 and the other one is the whole.
    return jnp.where(b == 0, 1, b) * of_teacher + jnp.where(b == 1, 1, 1 - b) * of_student


@declare(lambda draw: (draw.logits(), draw.logits()), (*DIVERGENCE, SYMMETRIC))
def tvd(student_logits: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike = 1.0) -> jax.Array:
    """Total variation distance: the probability mass in which the two distributions differ.

    (1/2) sum_k |p_k - q_k|

    Args:
      student_logits: [..., K] floating.
      teacher_logits: [..., K] floating.
      temperature: T > 0, a scalar or an array over leading axes.

    Returns:
      [...] in 0..1.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Wen, Li, Du, Mou, "f-Divergence Minimization for Sequence-Level Knowledge Distillation", ACL 2023,
      https://arxiv.org/abs/2307.15190
    """
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    return jnp.sum(jnp.abs(numerics.difference(jnp.exp(log_p), jnp.exp(log_q))), axis=-1) / 2


@declare(lambda draw: (draw.logits(), draw.logits()), DIVERGENCE)
def skew_kl(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    alpha: ArrayLike = 0.1,
    temperature: ArrayLike = 1.0,
    keep_teacher_entropy: bool = False,
) -> jax.Array:
    """Skew KL of DistiLLM: from the teacher to the student with some of the teacher mixed in; alpha = 0 is the KL.

    KL(p || alpha p + (1 - alpha) q)

    Args:
      student_logits: [..., K] floating.
      teacher_logits: [..., K] floating.
      alpha: Weight of the teacher in the mixture, in [0, 1), a scalar or an array over leading axes.
      temperature: T > 0, a scalar or an array over leading axes.
      keep_teacher_entropy: Whether it is a cross-entropy, as in the released code: the same gradient in the student,
        but not 0 at equality.

    Returns:
      [...] in nats.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Ko, Kim, Chen, Yun, "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024,
      https://arxiv.org/abs/2402.03898
    """
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    divergence = numerics.kl_divergence(log_p, _log_mixture(log_p, log_q, alpha))
    return divergence + _entropy(log_p) if keep_teacher_entropy else divergence


@declare(lambda draw: (draw.logits(), draw.logits()), DIVERGENCE)
def skew_reverse_kl(
    student_logits: ArrayLike, teacher_logits: ArrayLike, *, alpha: ArrayLike = 0.1, temperature: ArrayLike = 1.0
) -> jax.Array:
    """Skew reverse KL of DistiLLM: from the student to the teacher with some of the student mixed in.

    KL(q || (1 - alpha) p + alpha q)

    Args:
      student_logits: [..., K] floating.
      teacher_logits: [..., K] floating.
      alpha: Weight of the student in the mixture, in [0, 1), a scalar or an array over leading axes; 0 is reverse KL.
      temperature: T > 0, a scalar or an array over leading axes.

    Returns:
      [...] in nats.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Ko, Kim, Chen, Yun, "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024,
      https://arxiv.org/abs/2402.03898
    """
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    return numerics.kl_divergence(log_q, _log_mixture(log_q, log_p, alpha))


def _log_probabilities(
    student_logits: ArrayLike, teacher_logits: ArrayLike, temperature: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the student and of the teacher, after the checks."""
    s, t = numerics.promote(student_logits, teacher_logits)
    numerics.check_same_shape(s, t, "logits")
    return numerics.log_softmax(s, temperature), numerics.log_softmax(t, temperature)


def _log_mixture(log_a: jax.Array, log_b: jax.Array, weight: ArrayLike) -> jax.Array:
    """log(weight a + (1 - weight) b), which is exactly log a or log b for a weight of 1 or 0."""
    if not isinstance(weight, jax.core.Tracer) and not np.all((np.asarray(weight) >= 0) & (np.asarray(weight) <= 1)):
        raise ValueError(f"the weight of a mixture is {weight!r}: give a number from 0 to 1 (alpha, beta).")
    w = numerics.per_example(weight, log_a)
    a, b = (jnp.where(u > 0, jnp.log(jnp.where(u > 0, u, 1)) + x, -jnp.inf) for u, x in ((w, log_a), (1 - w, log_b)))
    absent = jnp.isneginf(a) & jnp.isneginf(b)
    return jnp.where(absent, -jnp.inf, jnp.logaddexp(jnp.where(absent, 0, a), jnp.where(absent, 0, b)))


def _entropy(log_p: jax.Array) -> jax.Array:
    """- sum_k p_k log p_k."""
    return -jnp.sum(jnp.exp(log_p) * jnp.where(jnp.isneginf(log_p), 0, log_p), axis=-1)
