"""Losses on rankings of items: pairs of what was chosen and what was not, and a teacher's order of items.

The logits of a row are its scores of all items. The teacher's side is its ranking: the numbers of its best items among
those that may be recommended, the best first. Of these numbers -1 is padding and counts nowhere; any other number that
is no item gives NaN, as a label does. Only the order of the teacher counts, so it may be any rule that ranks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.labels import check_classes, check_range
from jaxkd.losses.top_k import log_sum
from jaxkd.testing import LOGITS, NON_NEGATIVE, SHIFT_INVARIANT, Draw, declare

__all__ = ["bpr", "ranking_distillation", "relaxed_ranking_distillation"]

_PADDING = -1
_PAIR = {"positive": "other", "negatives": "other"}
_RANKING = {"teacher_ranking": "other"}


def _items(draw: Draw, count: int) -> np.ndarray:
    """Numbers of different items without item 1, which `MASKED_CLASSES` masks in the student's logits alone."""
    scores = np.where(np.arange(draw.sizes.classes) == 1, -np.inf, draw.logits())
    return np.argsort(-scores, axis=-1)[:, :count].astype(np.int32)


def _pairs(draw: Draw) -> tuple[np.ndarray, ...]:
    """Logits, a positive item and two negative ones, of which the last row has one."""
    ids = _items(draw, 3)
    ids[-1, 2] = _PADDING
    return draw.logits(), ids[:, 0], ids[:, 1:]


def _ranked(draw: Draw) -> tuple[np.ndarray, ...]:
    """Logits and the teacher's ranking, of which the last row has one item less."""
    ids = _items(draw, min(draw.sizes.classes // 2, 8))
    ids[-1, -1] = _PADDING
    return draw.logits(), ids


def _relaxed(draw: Draw) -> tuple[np.ndarray, ...]:
    """The same, and the items that are below them in no order: all others but the last one."""
    logits, ids = _ranked(draw)
    below = np.ones(logits.shape, np.int32)
    np.put_along_axis(below, np.where(ids < 0, ids[:, :1], ids), 0, axis=-1)
    below[:, -1] = 0
    return logits, ids, below


@declare(_pairs, (*LOGITS, SHIFT_INVARIANT, NON_NEGATIVE), kinds=_PAIR, needs="interactions")
def bpr(student_logits: ArrayLike, positive: ArrayLike, negatives: ArrayLike) -> jax.Array:
    """Bayesian personalised ranking: an item that was chosen is to stand above items that were not.

    (1/N) sum_{j=1..N} -log sigmoid( z_i - z_j ),  i the positive item, j the negative ones

    The paper has N = 1, and draws both anew in each step.

    Args:
      student_logits: [..., I] floating, scores of all items.
      positive: [...] integers, the number of an item that was chosen.
      negatives: [..., N] integers, numbers of items that were not.

    Returns:
      [...] in nats; 0 for a row without a positive or without negatives.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Rendle, Freudenthaler, Gantner, Schmidt-Thieme, "BPR: Bayesian Personalized Ranking from Implicit Feedback",
      UAI 2009, https://arxiv.org/abs/1205.2618
    """
    if jnp.ndim(positive) + 1 != jnp.ndim(student_logits):
        raise ValueError(
            f"the positive items have shape {jnp.shape(positive)} but student logits {jnp.shape(student_logits)}: give "
            "one item for each row of logits."
        )
    s, chosen, there = _scores(student_logits, jnp.asarray(positive)[..., None], "the positive item")
    _, others, real = _scores(student_logits, negatives, "the array of negative items")
    counts = there & real
    difference = jnp.where(counts, chosen - jnp.where(counts, others, 0), 0)
    each = jnp.where(counts & ~jnp.isneginf(others), jax.nn.softplus(-difference), 0)
    return jnp.sum(each, axis=-1) / jnp.maximum(jnp.sum(counts, axis=-1), 1).astype(s.dtype)


@declare(_ranked, (*LOGITS, NON_NEGATIVE), kinds=_RANKING, needs="a teacher's ranking")
def ranking_distillation(
    student_logits: ArrayLike,
    teacher_ranking: ArrayLike,
    *,
    decay: ArrayLike = 1.0,
    mu: ArrayLike | None = None,
    candidates: ArrayLike | None = None,
) -> jax.Array:
    """RD: the teacher's best items are to have high scores, the first ones most of all.

    - sum_{r=1..K} w_r log sigmoid( z_{pi_r} ),  w_r = a_r b_r / sum_k a_k b_k
    a_r = exp(-r / decay),  b_r = tanh( max( mu (rank_r - r), 0 ) )  or 1 without mu

    where pi is the teacher's ranking and rank_r the place of pi_r in the student's, counted from 0 as in the authors'
    code. The weights a are those of a position's importance, b those of a discrepancy: what the student ranks as high
    as the teacher already counts no more. No gradient passes through b. The paper estimates a rank from a sample of
    items; here it is counted.

    Args:
      student_logits: [..., I] floating, scores of all items.
      teacher_ranking: [..., K] integers, the teacher's best items among those not chosen yet, the best first.
      decay: Lambda of the paper, > 0, a scalar or an array over leading axes: larger, and later places count more.
      mu: Sharpness of the discrepancy, > 0, after some epochs as in the paper; None for the position's weights alone.
      candidates: [..., I], 1 (or True) for items that count in the student's ranking; all of them if None.

    Returns:
      [...] in nats; 0 for a row without a ranking, or whose items all rank high enough.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Tang, Wang, "Ranking Distillation: Learning Compact Ranking Models With High Performance for Recommender System",
      KDD 2018, https://arxiv.org/abs/1809.07428
    """
    s, z, real = _scores(student_logits, teacher_ranking, "the teacher's ranking")
    numerics.check_temperature(decay, "decay")
    place = jnp.arange(1, z.shape[-1] + 1, dtype=s.dtype).reshape((1,) * (z.ndim - 1) + (-1,))
    weight = jnp.where(real, jnp.exp(-(place - 1) / numerics.per_example(decay, z)), 0)  # as a_r, but for a factor
    if mu is not None:
        _check_mask(candidates, s, "candidates")
        others = s if candidates is None else jnp.where(jnp.asarray(candidates).astype(bool), s, -jnp.inf)
        above = jnp.sum(others[..., None, :] > z[..., None], axis=-1).astype(s.dtype)
        weight = jax.lax.stop_gradient(weight * jnp.tanh(jnp.maximum(mu * (above - place), 0)))
    total = jnp.sum(weight, axis=-1, keepdims=True)
    weight = weight / jnp.where(total > 0, total, 1)
    return jnp.sum(numerics.weighted_softplus(-z, weight), axis=-1)


@declare(
    _relaxed,
    (*LOGITS, SHIFT_INVARIANT, NON_NEGATIVE),
    kinds=_RANKING | {"unranked": "other"},
    needs="a teacher's ranking",
)
def relaxed_ranking_distillation(
    student_logits: ArrayLike, teacher_ranking: ArrayLike, unranked: ArrayLike
) -> jax.Array:
    """RRD: likelihood of the teacher's order of interesting items, above uninteresting ones in no order.

    - sum_{k=1..K} log( exp z_{pi_k} / ( sum_{i=k..K} exp z_{pi_i} + sum_{j unranked} exp z_j ) )

    The paper draws the K interesting items from the teacher's best ones in each epoch, the first ones more often, and
    a sample of the uninteresting ones; `objectives.rrd` draws. All other items may be unranked as well.

    Args:
      student_logits: [..., I] floating, scores of all items.
      teacher_ranking: [..., K] integers, interesting items in the teacher's order, the best first.
      unranked: [..., I], 1 (or True) for the uninteresting items; an interesting item among them does not count twice.

    Returns:
      [...] in nats, a sum over the K places; 0 for a row without a ranking.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Kang, Hwang, Kweon, Yu, "DE-RRD: A Knowledge Distillation Framework for Recommender System", CIKM 2020,
      https://arxiv.org/abs/2012.04357
    """
    s, z, real = _scores(student_logits, teacher_ranking, "the teacher's ranking")
    _check_mask(unranked, s, "unranked")
    present = real & ~jnp.isneginf(z)
    nowhere = jnp.where(real, jnp.asarray(teacher_ranking), s.shape[-1])
    below = jnp.put_along_axis(jnp.asarray(unranked).astype(bool), nowhere, False, axis=-1, inplace=False, mode="drop")
    below = below & jnp.any(real, axis=-1, keepdims=True) & ~jnp.isneginf(s)
    rest = log_sum(jnp.where(below, s, -jnp.inf))
    after = jax.lax.cumlogsumexp(jnp.where(present, z, jnp.finfo(z.dtype).min), axis=z.ndim - 1, reverse=True)
    # What stands in the sum at a place itself is subtracted from a sum that holds it, so no value is below 0.
    whole = jnp.logaddexp(after, jnp.where(jnp.isneginf(rest), jnp.finfo(z.dtype).min, rest))
    return jnp.sum(jnp.where(present, jnp.maximum(whole - jnp.where(present, z, 0), 0), 0), axis=-1)


def _scores(student_logits: ArrayLike, ids: ArrayLike, what: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The logits [..., I], those of some items [..., K], and which of these there are; after the checks."""
    (s,) = numerics.promote(student_logits)
    check_classes(s)
    check_range(what, ids)
    numbers = jnp.asarray(ids)
    if numbers.shape[:-1] != s.shape[:-1] or numbers.ndim != s.ndim or not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise ValueError(
            f"{what} has shape {numbers.shape} and dtype {numbers.dtype} but student logits {s.shape}: give integers "
            f"of shape {s.shape[:-1]} + (K,)."
        )
    numbers = numbers if numbers.dtype.itemsize >= 4 else numbers.astype(jnp.int32)
    real, inside = numbers != _PADDING, (numbers >= 0) & (numbers < s.shape[-1])
    # An id that is no item gives NaN as value and as gradient; a product keeps both.
    valid = jnp.all(inside | ~real, axis=-1, keepdims=True)
    (s,) = numerics.masked(jnp.any(real, axis=-1), s)
    s = s * jnp.where(valid, 1, jnp.nan).astype(s.dtype)
    at = jnp.take_along_axis(s, jnp.where(inside, numbers, 0), axis=-1)
    return s, jnp.where(real, at, 0), real


def _check_mask(mask: ArrayLike | None, s: jax.Array, what: str) -> None:
    if mask is not None and jnp.shape(mask) != s.shape:
        raise ValueError(f"`{what}` has shape {jnp.shape(mask)} but student logits {s.shape}: give one for each logit.")
