"""Losses between two vocabularies that differ in size and order."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.labels import check_classes
from jaxkd.testing import (
    ALWAYS,
    BATCH_OF_ONE,
    DIVERGENCE,
    EXTREME_LOGITS,
    INDEPENDENT_ROWS,
    NON_NEGATIVE,
    SHIFT_INVARIANT,
    SYMMETRIC,
    Draw,
    declare,
)

__all__ = ["uld", "uld_answers"]


def _answers(draw: Draw) -> tuple[np.ndarray, ...]:
    """Texts of two tokenizers: another number of tokens and a larger vocabulary on the teacher's side."""
    B, L, V = draw.sizes.batch, draw.sizes.length, draw.sizes.vocabulary
    student, teacher = draw.examples(L + 1, V, scale=2), draw.examples(L + 2, V + 2, scale=2)
    start, length = np.arange(B) % 3, np.array([L - 1, L + 1, 2, 0, L, 1])[np.arange(B) % 6]
    return student, teacher, start, length, (start + 1) % 4, length[::-1].copy()


@declare(lambda draw: (draw.logits(), draw.logits()), (*DIVERGENCE, SYMMETRIC))
def uld(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    student_temperature: ArrayLike = 1.0,
    teacher_temperature: ArrayLike = 1.0,
) -> jax.Array:
    """Universal logit distillation: L1 between the sorted probabilities, for vocabularies that differ.

    sum_i |q_(i) - p_(i)|,  probabilities in descending order, the smaller vocabulary padded with zeros

    Args:
      student_logits: [..., V_s] floating.
      teacher_logits: [..., V_t] floating, the same positions as the student's; see `uld_answers` where they differ.
      student_temperature: T_s > 0, a scalar or an array over leading axes.
      teacher_temperature: T_t > 0, a scalar or an array over leading axes.

    Returns:
      [...] in 0..2.

    Raises:
      ValueError: If the leading axes differ.

    Reference:
      Boizard, El Haddad, Hudelot, Colombo, "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss
      for LLMs", TMLR 2025, https://arxiv.org/abs/2402.12030
    """
    s, t = numerics.promote(student_logits, teacher_logits)
    if s.shape[:-1] != t.shape[:-1]:
        raise ValueError(
            f"student logits have shape {s.shape} but teacher logits have shape {t.shape}: give both the same leading "
            "axes; only the vocabularies may differ."
        )
    check_classes(s)
    check_classes(t)
    size = max(s.shape[-1], t.shape[-1])
    q = _sorted_probabilities(numerics.log_softmax(s, student_temperature), size)
    p = _sorted_probabilities(numerics.log_softmax(t, teacher_temperature), size)
    return jnp.sum(jnp.abs(numerics.difference(q, p)), axis=-1)


@declare(
    _answers,
    (*ALWAYS, INDEPENDENT_ROWS, BATCH_OF_ONE, EXTREME_LOGITS, SHIFT_INVARIANT, NON_NEGATIVE),
    kinds={f"{side}_{what}": "other" for side in ("student", "teacher") for what in ("start", "length")},
    needs="texts",
)
def uld_answers(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    student_start: ArrayLike,
    student_length: ArrayLike,
    teacher_start: ArrayLike,
    teacher_length: ArrayLike,
    *,
    student_temperature: ArrayLike = 1.0,
    teacher_temperature: ArrayLike = 1.0,
    weight: ArrayLike = 1.0,
) -> jax.Array:
    """Universal logit distillation of answers whose positions and lengths differ between student and teacher.

    weight * (1/n) sum_{i < n} uld(student at student_start + i, teacher at teacher_start + i),  n the shorter length

    Args:
      student_logits: [B, S_s, V_s] floating.
      teacher_logits: [B, S_t, V_t] floating.
      student_start: [B] integers, the answer's first position.
      student_length: [B] integers, the answer's number of positions.
      teacher_start: [B] integers.
      teacher_length: [B] integers.
      student_temperature: T_s > 0, a scalar.
      teacher_temperature: T_t > 0, a scalar.
      weight: Factor on the value; the paper adds this loss to the cross-entropy with weight 1.5.

    Returns:
      [B]; 0 where an answer is empty.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Boizard, El Haddad, Hudelot, Colombo, "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss
      for LLMs", TMLR 2025, https://arxiv.org/abs/2402.12030
    """
    s, t = numerics.promote(student_logits, teacher_logits)
    spans = [jnp.asarray(a) for a in (student_start, student_length, teacher_start, teacher_length)]
    if s.ndim != 3 or t.ndim != 3 or any(a.shape != s.shape[:1] for a in [*spans, t[:, 0, 0]]):
        raise ValueError(
            f"student logits have shape {s.shape}, teacher logits {t.shape} and the spans {[a.shape for a in spans]}: "
            "give [B, S, V] on both sides and four [B]."
        )
    count = min(s.shape[1], t.shape[1])
    n = jnp.minimum(spans[1], spans[3])[:, None]
    inside = jnp.arange(count)[None] < n
    each = uld(
        *numerics.masked(inside, _from(s, spans[0], count), _from(t, spans[2], count)),
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
    )
    mean = jnp.sum(jnp.where(inside, each, 0), axis=-1) / jnp.maximum(n[:, 0], 1).astype(each.dtype)
    return numerics.per_example(weight, mean) * mean


def _sorted_probabilities(log_p: jax.Array, size: int) -> jax.Array:
    """Probabilities in descending order, padded with zeros to `size`."""
    descending = jnp.sort(jnp.exp(log_p), axis=-1, descending=True)
    return jnp.pad(descending, [(0, 0)] * (log_p.ndim - 1) + [(0, size - log_p.shape[-1])])


def _from(logits: jax.Array, start: jax.Array, count: int) -> jax.Array:
    """`count` positions from each row's start on; positions past the end repeat the last one."""
    position = jnp.minimum(start[:, None] + jnp.arange(count)[None], logits.shape[1] - 1)
    return jnp.take_along_axis(logits, position[..., None], axis=1)
