"""Losses on intermediate features: they reduce everything but the batch axis (the first)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import numerics


def hint(student_feature: ArrayLike, teacher_feature: ArrayLike) -> jax.Array:
    """FitNets' hint: mean squared difference between a (projected) student feature and the teacher's.

    (1/N) sum_i (f_s,i - f_t,i)^2 over the N elements of an example; the paper has half the sum.

    Args:
      student_feature: [B, ...] floating, already projected to the teacher's shape.
      teacher_feature: [B, ...] floating.

    Returns:
      [B].

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, https://arxiv.org/abs/1412.6550
    """
    s, t = numerics.promote(student_feature, teacher_feature)
    numerics.check_same_shape(s, t, "features")
    return jnp.mean(jnp.square(s - t), axis=tuple(range(1, s.ndim)))
