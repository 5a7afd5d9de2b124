"""Losses on the teacher's top-k tokens.

The teacher's side has the form in which a cache keeps it: the ids of the K tokens that were kept, and their
log-probabilities over the whole vocabulary at temperature 1.

Rows may keep different numbers of tokens: an entry whose log-probability is -inf is padding, whatever its id. It counts
on neither side, so that the value is that of the row without it, and 0 for a row of padding alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.labels import check_classes, check_range
from jaxkd.testing import (
    BATCH_OF_ONE,
    COUPLED,
    EXTREME_LOGITS,
    LOGITS,
    NON_NEGATIVE,
    OF_PROBABILITIES,
    Draw,
    declare,
)

__all__ = ["ranking_hinge", "ranking_logistic", "topk_kl_both_renorm", "topk_kl_tail_bucket", "topk_kl_teacher_renorm"]

_TRUNCATED = (*LOGITS, *OF_PROBABILITIES, NON_NEGATIVE)
_RANKING = (*COUPLED, *OF_PROBABILITIES, EXTREME_LOGITS, BATCH_OF_ONE, NON_NEGATIVE)


def _ranked(draw: Draw) -> tuple[np.ndarray, ...]:
    """Kept classes with fewer pairs in the first row, so that the mean over pairs is not one over rows."""
    ids, log_p = draw.top_k()
    log_p[0, -1] = -30
    return draw.logits(), ids, log_p


@declare(lambda draw: (draw.logits(), *draw.top_k()), _TRUNCATED, kinds={"teacher_logprobs": "other"})
def topk_kl_teacher_renorm(
    student_logits: ArrayLike, teacher_ids: ArrayLike, teacher_logprobs: ArrayLike, *, temperature: ArrayLike = 1.0
) -> jax.Array:
    """Top-k KL, tail dropped: the teacher is renormalised on the kept tokens, the student on the whole vocabulary.

    T^2 * sum_k p_k (log p_k - log q_id(k)),  p = softmax(l / T) over the kept,  q = softmax(z_s / T) over all

    Not 0 at equality: the student learns to give all probability to the kept tokens.

    Args:
      student_logits: [..., V] floating.
      teacher_ids: [..., K] integers in 0..V-1, distinct.
      teacher_logprobs: [..., K] floating, l; they need not sum to one, logits do as well.
      temperature: T > 0, a scalar or an array over leading axes.

    Returns:
      [...] in nats, times T^2.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      No paper; the "zero" tail of arcee-ai/DistillKit, 2025, https://github.com/arcee-ai/DistillKit
    """
    s, ids, kept = _top_k(student_logits, teacher_ids, teacher_logprobs)
    log_p, log_q = numerics.log_softmax(kept, temperature), _at(numerics.log_softmax(s, temperature), ids, kept)
    present = ~jnp.isneginf(log_p)
    difference = jnp.where(present, log_p, 0) - jnp.where(present, log_q, 0)
    divergence = jnp.sum(jnp.exp(log_p) * difference, axis=-1)
    return numerics.per_example(temperature, divergence) ** 2 * divergence


@declare(lambda draw: (draw.logits(), *draw.top_k()), _TRUNCATED, kinds={"teacher_logits": "other"})
def topk_kl_both_renorm(
    student_logits: ArrayLike, teacher_ids: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike = 1.0
) -> jax.Array:
    """Top-k KL, tail dropped: both sides are renormalised on the kept tokens.

    T^2 * KL(softmax(z_t / T) || softmax(z_s,id / T)) over the K kept tokens

    0 at equality, but independent of the probability that the student gives to tokens that were not kept.

    Args:
      student_logits: [..., V] floating.
      teacher_ids: [..., K] integers in 0..V-1, distinct.
      teacher_logits: [..., K] floating, logits or log-probabilities of the kept tokens.
      temperature: T > 0, a scalar or an array over leading axes.

    Returns:
      [...] in nats, times T^2.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      No paper; as in AI-Hypercomputer/maxtext, 2025, https://github.com/AI-Hypercomputer/maxtext
    """
    s, ids, kept = _top_k(student_logits, teacher_ids, teacher_logits)
    log_q = numerics.log_softmax(_at(s, ids, kept), temperature)
    divergence = numerics.kl_divergence(numerics.log_softmax(kept, temperature), log_q)
    return numerics.per_example(temperature, divergence) ** 2 * divergence


@declare(lambda draw: (draw.logits(), *draw.top_k()), _TRUNCATED, kinds={"teacher_logprobs": "other"})
def topk_kl_tail_bucket(
    student_logits: ArrayLike,
    teacher_ids: ArrayLike,
    teacher_logprobs: ArrayLike,
    teacher_tail: ArrayLike | None = None,
    *,
    temperature: ArrayLike = 1.0,
) -> jax.Array:
    """Top-k KL over K + 1 outcomes: the kept tokens, and one bucket for all the others.

    T^2 * [ sum_k p_k (log p_k - log q_k) + p_tail (log p_tail - log q_tail) ]
    p = softmax(l / T) over the kept and the tail with l_tail = log(1 - sum_k exp l_k)
    q_k = softmax(z_s / T)_id(k),  q_tail = 1 - sum_k q_k;  both tails are kept in 1e-8 .. 1 - 1e-8

    At T = 1 a lower bound of the whole KL, and 0 at equality. At other T it is neither: the teacher's tail is tempered
    as one token, the student's token by token.

    Args:
      student_logits: [..., V] floating.
      teacher_ids: [..., K] integers in 0..V-1, distinct.
      teacher_logprobs: [..., K] floating, l, log-probabilities at T = 1 over the whole vocabulary.
      teacher_tail: [...] floating, l_tail, if it was stored; computed from l, which may be rounded, if None.
      temperature: T > 0, a scalar or an array over leading axes.

    Returns:
      [...] in nats, times T^2.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      No paper; the symmetric tail of arcee-ai/DistillKit, 2025, https://github.com/arcee-ai/DistillKit
    """
    s, ids, kept = _top_k(student_logits, teacher_ids, teacher_logprobs)
    log_q = numerics.log_softmax(s, temperature)
    tail = _log_complement(kept) if teacher_tail is None else _tail(teacher_tail, kept)
    log_p = numerics.log_softmax(jnp.concatenate([kept, tail], axis=-1), temperature)
    nowhere = jnp.where(jnp.isneginf(kept), s.shape[-1], ids)  # padding takes no token out of the tail
    rest = jnp.put_along_axis(log_q, nowhere, -jnp.inf, axis=-1, inplace=False, mode="drop")
    log_q = jnp.concatenate([_at(log_q, ids, kept), log_sum(rest)], axis=-1)
    divergence = numerics.kl_divergence(_floor_tail(log_p), _floor_tail(log_q))
    divergence = jnp.where(jnp.any(~jnp.isneginf(kept), axis=-1), divergence, 0)
    return numerics.per_example(temperature, divergence) ** 2 * divergence


@declare(_ranked, _RANKING, kinds={"teacher_logprobs": "other"})
def ranking_hinge(
    student_logits: ArrayLike,
    teacher_ids: ArrayLike,
    teacher_logprobs: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    margin: ArrayLike | None = None,
) -> jax.Array:
    """Hinge loss on the teacher's order of the kept tokens, averaged over pairs of tokens; couples the batch.

    sum_{t_k > t_l} max(0, M_kl - (q_k - q_l)) / number of such pairs,  M_kl = margin, or t_k - t_l if there is none
    t = exp(l),  q = softmax(z_s)_id over the whole vocabulary

    Pairs count where t_k > t_l + 1e-8 and both exceed 1e-8.

    Args:
      student_logits: [..., V] floating.
      teacher_ids: [..., K] integers in 0..V-1, distinct.
      teacher_logprobs: [..., K] floating, l, log-probabilities over the whole vocabulary.
      mask: [...] booleans, true where a row counts; all of them by default.
      margin: Least difference of the student's probabilities, a scalar, or None for the teacher's difference.

    Returns:
      Scalar in units of probability; 0 if there is no pair.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      No paper; as in arcee-ai/DistillKit, 2025, https://github.com/arcee-ai/DistillKit
    """
    s, ids, kept = _top_k(student_logits, teacher_ids, teacher_logprobs, mask)
    gap, valid = _teacher_pairs(kept, 1e-8)
    wanted = gap if margin is None else jnp.asarray(margin, gap.dtype)
    q = jnp.exp(_at(numerics.log_softmax(s), ids, kept))
    hinge = jax.nn.relu(wanted - (q[..., :, None] - q[..., None, :]))
    return jnp.sum(jnp.where(valid, hinge, 0)) / (jnp.sum(valid, dtype=hinge.dtype) + 1e-8)


@declare(_ranked, _RANKING, kinds={"teacher_logprobs": "other"})
def ranking_logistic(
    student_logits: ArrayLike, teacher_ids: ArrayLike, teacher_logprobs: ArrayLike, mask: ArrayLike | None = None
) -> jax.Array:
    """Logistic loss on the teacher's order of the kept tokens, averaged over pairs of tokens; couples the batch.

    sum_{t_k > t_l} log(1 + exp(-(z_k - z_l))) / number of such pairs,  t = exp(l),  z = z_s,id

    Pairs count where t_k > t_l + 1e-9 and both exceed 1e-9.

    Args:
      student_logits: [..., V] floating.
      teacher_ids: [..., K] integers in 0..V-1, distinct.
      teacher_logprobs: [..., K] floating, l, log-probabilities over the whole vocabulary.
      mask: [...] booleans, true where a row counts; all of them by default.

    Returns:
      Scalar in nats; 0 if there is no pair.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Burges et al., "Learning to Rank using Gradient Descent", ICML 2005, https://doi.org/10.1145/1102351.1102363; on a
      teacher's top k as in arcee-ai/DistillKit, 2025, https://github.com/arcee-ai/DistillKit
    """
    s, ids, kept = _top_k(student_logits, teacher_ids, teacher_logprobs, mask)
    _, valid = _teacher_pairs(kept, 1e-9)
    z = _at(s, ids, kept)
    difference = jnp.where(valid, z[..., :, None] - z[..., None, :], 0)
    logistic = jnp.where(valid, jax.nn.softplus(-difference), 0)
    return jnp.sum(logistic) / (jnp.sum(valid, dtype=logistic.dtype) + 1e-9)


def _top_k(
    student_logits: ArrayLike, teacher_ids: ArrayLike, teacher_values: ArrayLike, mask: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The student's logits, the kept ids and the teacher's values there, after the checks; a masked row is padding."""
    s, kept = numerics.promote(student_logits, teacher_values)
    check_range("teacher ids", teacher_ids)
    ids = jnp.asarray(teacher_ids)
    if ids.shape != kept.shape or ids.shape[:-1] != s.shape[:-1] or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"teacher ids have shape {ids.shape} and dtype {ids.dtype}, their values {kept.shape} and student logits "
            f"{s.shape}: give integers and values of shape {s.shape[:-1]} + (K,)."
        )
    check_classes(s)
    if mask is not None:
        if jnp.shape(mask) != kept.shape[:-1]:
            raise ValueError(
                f"the mask has shape {jnp.shape(mask)}, expected {kept.shape[:-1]}: give one boolean for each row."
            )
        kept = jnp.where(jnp.asarray(mask).astype(bool)[..., None], kept, -jnp.inf)
    (s,) = numerics.masked(jnp.any(~jnp.isneginf(kept), axis=-1), s)
    ids = ids if ids.dtype.itemsize >= 4 else ids.astype(jnp.int32)
    # An id that is no class, or would wrap to one, gives NaN as a label does.
    valid = jnp.all((ids >= 0) & (ids < s.shape[-1]) | jnp.isneginf(kept), axis=-1, keepdims=True)
    return s * jnp.where(valid, 1, jnp.nan).astype(s.dtype), ids, kept


def _at(x: jax.Array, ids: jax.Array, kept: jax.Array) -> jax.Array:
    """Entries of x [..., V] at the kept ids [..., K]: -inf at padding, and NaN at an id outside 0..V-1."""
    inside = (ids >= 0) & (ids < x.shape[-1])
    entries = jnp.take_along_axis(x, jnp.where(inside, ids, 0), axis=-1)
    return jnp.where(jnp.isneginf(kept), -jnp.inf, jnp.where(inside, entries, jnp.nan))


def _teacher_pairs(logprobs: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """t_k - t_l [..., K, K], and where the teacher ranks k before l."""
    t = jnp.exp(logprobs)
    supported = t > epsilon
    valid = (t[..., :, None] > t[..., None, :] + epsilon) & supported[..., :, None] & supported[..., None, :]
    return t[..., :, None] - t[..., None, :], valid


def log_sum(log_p: jax.Array) -> jax.Array:
    """log sum exp over the last axis; -inf without a gradient where nothing is left.

    Args:
      log_p: [..., K] floating, -inf where there is nothing.

    Returns:
      [..., 1].
    """
    left = jnp.any(~jnp.isneginf(log_p), axis=-1, keepdims=True)
    return jnp.where(left, jax.nn.logsumexp(jnp.where(left, log_p, 0), axis=-1, keepdims=True), -jnp.inf)


def _log_complement(log_p: jax.Array) -> jax.Array:
    """log(1 - sum exp) over the last axis, kept; -inf without a gradient where nothing is left."""
    left = 1 - jnp.sum(jnp.exp(log_p), axis=-1, keepdims=True)
    return jnp.where(left > 0, jnp.log(jnp.where(left > 0, left, 1)), -jnp.inf)


def _tail(log_p: ArrayLike, kept: jax.Array) -> jax.Array:
    """The given tail [..., 1], to be joined to the kept tokens."""
    if jnp.shape(log_p) != kept.shape[:-1]:
        raise ValueError(
            f"the teacher's tail has shape {jnp.shape(log_p)}, expected {kept.shape[:-1]}: give the logarithm of one "
            "mass for each row of kept tokens."
        )
    return numerics.masked(jnp.any(~jnp.isneginf(kept), axis=-1), jnp.asarray(log_p, kept.dtype)[..., None])[0]


def _floor_tail(log_p: jax.Array) -> jax.Array:
    """log_p with its last entry clipped to 1e-8 .. 1 - 1e-8."""
    tail = jnp.clip(log_p[..., -1:], jnp.log(1e-8), jnp.log1p(-1e-8))
    return jnp.concatenate([log_p[..., :-1], tail], axis=-1)
