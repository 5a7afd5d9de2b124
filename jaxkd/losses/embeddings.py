"""Losses on embeddings that are searched: scores of candidates, and prefixes of an embedding.

For one embedding against another there are `cosine` and `hint`; for pairs of a query and its own candidate,
`clip_affinity`. The losses here on embeddings alone allow different widths.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.losses.transformers import cosine
from jaxkd.testing import (
    ALWAYS,
    BATCH_OF_ONE,
    COUPLED,
    DISTANCE,
    FEATURES,
    INDEPENDENT_ROWS,
    JOINT_SHIFT_INVARIANT,
    KEEPS_LEADING_AXES,
    LEADING_AXES,
    ROTATION_INVARIANT,
    SCALE_INVARIANT,
    SHIFT_INVARIANT,
    SYMMETRIC,
    Draw,
    declare,
)

__all__ = ["candidates_kl", "candidates_margin_mse", "margin_mse", "matryoshka"]

EmbeddingLoss: TypeAlias = Callable[..., jax.Array]
"""(student_embedding [B, Ds], teacher_embedding [B, Dt], *others, **hyper) -> [B] or a scalar."""

_PER_QUERY = (*ALWAYS, *DISTANCE, KEEPS_LEADING_AXES, LEADING_AXES, INDEPENDENT_ROWS, BATCH_OF_ONE)
_OF_CANDIDATES = (*COUPLED, BATCH_OF_ONE, *DISTANCE, ROTATION_INVARIANT, SCALE_INVARIANT)


def _embeddings(draw: Draw) -> tuple[np.ndarray, ...]:
    """Both sides' embeddings, and a mask that leaves out the second example."""
    return draw.vectors(), draw.vectors(), (np.arange(draw.sizes.batch) != 1).astype(np.int32)


def _scores(draw: Draw) -> tuple[np.ndarray, ...]:
    """Both sides' scores of L candidates, and a mask under which a row has 1 to L of them."""
    length = draw.sizes.length
    return draw.examples(length), draw.examples(length), draw.mask()


@declare(
    _scores,
    (*_PER_QUERY, SHIFT_INVARIANT, JOINT_SHIFT_INVARIANT, SYMMETRIC),
    kinds={"mask": "other"},
    needs="texts",
)
def margin_mse(student_scores: ArrayLike, teacher_scores: ArrayLike, mask: ArrayLike | None = None) -> jax.Array:
    """MarginMSE: mean squared difference of the margins by which a positive candidate is ahead of the negatives.

    (1/N) sum_{j=1..N} ( (s_0 - s_j) - (t_0 - t_j) )^2,  s_0 the positive's score, s_1..s_N the negatives'

    The paper has N = 1. Only margins are compared, so a student may score on a scale that starts elsewhere.

    Args:
      student_scores: [..., 1 + N] floating, scores of one query's candidates, the positive first.
      teacher_scores: [..., 1 + N] floating, the teacher's scores of the same candidates.
      mask: [..., 1 + N], 1 (or True) for candidates that are there; all of them if None. What stands at the others,
        NaN included, reaches neither the value nor the gradient.

    Returns:
      [...]; 0 for a query without its positive or without a negative.

    Raises:
      ValueError: If the shapes differ, or there is no axis of candidates.

    Reference:
      Hofstätter, Althammer, Schröder, Sertkan, Hanbury, "Improving Efficient Neural Ranking Models with
      Cross-Architecture Knowledge Distillation", 2020, https://arxiv.org/abs/2010.02666
    """
    s, t = numerics.promote(student_scores, teacher_scores)
    numerics.check_same_shape(s, t, "scores")
    if not s.ndim:
        raise ValueError("scores have no axis of candidates: give [B, 1 + N], the positive's score first.")
    real = jnp.ones(s.shape, bool) if mask is None else _mask(mask, s.shape, "scores")
    s, t = numerics.masked(real, s, t)
    difference = s - t
    squared = jnp.square(difference[..., :1] - difference[..., 1:])
    counts = (real[..., :1] & real[..., 1:]).astype(s.dtype)
    return jnp.sum(counts * squared, axis=-1) / jnp.maximum(jnp.sum(counts, axis=-1), 1)


@declare(_embeddings, _OF_CANDIDATES, kinds={"mask": "other"})
def candidates_kl(
    student_embedding: ArrayLike,
    teacher_embedding: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    temperature: ArrayLike = 0.05,
    teacher_temperature: ArrayLike = 0.05,
) -> jax.Array:
    """KL between the distributions of an example over the other ones, by their cosines; couples the batch.

    (1/B) sum_i KL( p_t(j | i) || p_s(j | i) ),  p(j | i) = softmax_{j != i}( cos(x_i, x_j) / T )

    Args:
      student_embedding: [B, ...] floating.
      teacher_embedding: [B, ...] floating, any width.
      mask: [B], 1 (or True) for examples that are there, as queries and as candidates; all of them if None.
      temperature: T > 0 of the student.
      teacher_temperature: T > 0 of the teacher; smaller, and only its nearest candidates count.

    Returns:
      Scalar in nats; 0 for a batch of one.

    Raises:
      ValueError: If the batches differ.

    Reference:
      Lin, Yang, Lin, "In-Batch Negatives for Knowledge Distillation with Tightly-Coupled Teachers for Dense
      Retrieval", RepL4NLP 2021, https://aclanthology.org/2021.repl4nlp-1.17
    """
    numerics.check_temperature(teacher_temperature, "teacher_temperature")
    s, t, real = _candidates(student_embedding, teacher_embedding, mask)
    others = _others(real)
    log_s = numerics.log_softmax(jnp.where(others, _cosines(s), -jnp.inf), temperature)
    log_t = numerics.log_softmax(jnp.where(others, _cosines(t), -jnp.inf), teacher_temperature)
    return numerics.masked_mean(numerics.kl_divergence(log_t, log_s), real)


@declare(_embeddings, _OF_CANDIDATES, kinds={"mask": "other"}, needs="texts")
def candidates_margin_mse(
    student_embedding: ArrayLike, teacher_embedding: ArrayLike, mask: ArrayLike | None = None
) -> jax.Array:
    """MarginMSE over the cosines within a batch, the teacher's nearest example as the positive; couples the batch.

    (1/B) sum_i (1/(B-2)) sum_{j != i, p} ( (s_ip - s_ij) - (t_ip - t_ij) )^2,  p = argmax_{j != i} t_ij

    where s and t are the cosines of student and teacher. It needs no queries, and no labels.

    Args:
      student_embedding: [B, ...] floating.
      teacher_embedding: [B, ...] floating, any width.
      mask: [B], 1 (or True) for examples that are there; all of them if None.

    Returns:
      Scalar; 0 for fewer than three examples.

    Raises:
      ValueError: If the batches differ.

    Reference:
      Hofstätter, Althammer, Schröder, Sertkan, Hanbury, "Improving Efficient Neural Ranking Models with
      Cross-Architecture Knowledge Distillation" (the loss on a query's candidates), 2020,
      https://arxiv.org/abs/2010.02666
    """
    s, t, real = _candidates(student_embedding, teacher_embedding, mask)
    others, student, teacher = _others(real), _cosines(s), _cosines(t)
    positive = jnp.argmax(jnp.where(others, teacher, -jnp.inf), axis=1)[:, None]

    def positive_first(x: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.take_along_axis(x, positive, axis=1), x], axis=1)

    negatives = others & (jnp.arange(len(s))[None] != positive)
    there = jnp.concatenate([jnp.take_along_axis(others, positive, axis=1), negatives], axis=1)
    return numerics.masked_mean(margin_mse(positive_first(student), positive_first(teacher), there), real)


@declare(
    lambda draw: (draw.vectors(), draw.vectors()),
    (*FEATURES, *DISTANCE, SYMMETRIC),
    needs="texts",
    example_of=lambda turn: turn(cosine, widths=(2, 5), weights=(0.5, 1.0), both=True),
)
def matryoshka(
    loss: EmbeddingLoss, *, widths: Sequence[int], weights: Sequence[float] | None = None, both: bool = False
) -> EmbeddingLoss:
    """Turns a loss on embeddings into its sum over prefixes of the embedding, each of which then serves alone.

    sum_m c_m loss(x_s[:m], x_t)

    Args:
      loss: (student_embedding [B, Ds], teacher_embedding [B, Dt], *others, **hyper) -> [B] or a scalar, such as
        `candidates_kl`, `rkd` or `cosine`; one that normalises its embeddings normalises each prefix.
      widths: Widths m of the prefixes, Ds among them if the whole embedding is to be used too.
      weights: c_m > 0, one for each width; 1 if None, as in the paper.
      both: Whether the teacher's embedding is cut as well, for losses that want equal widths. Its axes must be
        ordered then, as those of a PCA are.

    Returns:
      (student_embedding, teacher_embedding, *others, **hyper) -> [B] or a scalar, as the loss gives.

    Raises:
      ValueError: If a width or a weight is not positive, or their numbers differ; and, when it is called, if an
        embedding is narrower than a prefix.

    Reference:
      Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022, https://arxiv.org/abs/2205.13147
    """
    factors = [1.0] * len(widths) if weights is None else list(weights)
    if not widths or min(widths) < 1 or len(factors) != len(widths) or min(factors) <= 0:
        raise ValueError(
            f"widths are {tuple(widths)} and weights {tuple(factors)}: give at least one positive width, and one "
            "positive weight for each."
        )

    @functools.wraps(loss)
    def on_prefixes(
        student_embedding: ArrayLike, teacher_embedding: ArrayLike, *others: Any, **hyper: Any
    ) -> jax.Array:
        s, t = jnp.asarray(student_embedding), jnp.asarray(teacher_embedding)
        for x, side in ((s, "student"), (t, "teacher"))[: 1 + both]:
            if x.ndim < 2 or x.shape[-1] < max(widths):
                raise ValueError(
                    f"the {side}'s embedding has shape {x.shape}, but a prefix has width {max(widths)}: leave that "
                    "width out, or give wider embeddings [B, D]."
                )
        values = [loss(s[..., :m], t[..., :m] if both else t, *others, **hyper) for m in widths]
        return functools.reduce(jnp.add, (jnp.asarray(c, v.dtype) * v for c, v in zip(factors, values, strict=True)))

    return on_prefixes


def _candidates(
    student: ArrayLike, teacher: ArrayLike, mask: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Both sides promoted and flattened to [B, D], with zeros where the mask [B] is 0; and the mask as booleans."""
    s, t = numerics.promote(student, teacher)
    if min(s.ndim, t.ndim) < 2 or len(s) != len(t):
        raise ValueError(
            f"student embeddings have shape {s.shape} but teacher embeddings have shape {t.shape}: give both [B, D] "
            "of the same batch, of any widths D."
        )
    real = jnp.ones(len(s), bool) if mask is None else _mask(mask, s.shape[:1], "examples")
    s, t = numerics.masked(real, s.reshape(len(s), -1), t.reshape(len(t), -1))
    return s, t, real


def _mask(mask: ArrayLike, shape: tuple[int, ...], what: str) -> jax.Array:
    """A mask as booleans; raises unless it has the shape."""
    real = jnp.asarray(mask).astype(bool)
    if real.shape != shape:
        raise ValueError(f"the mask has shape {real.shape} but there are {what} of shape {shape}: give one for each.")
    return real


def _others(real: jax.Array) -> jax.Array:
    """Mask [B, B] of the candidates j of each query i: all that are there, but itself."""
    return real[:, None] & real[None] & ~jnp.eye(len(real), dtype=bool)


def _cosines(x: jax.Array) -> jax.Array:
    """Cosines of all pairs of rows, [B, B]."""
    unit = numerics.unit(x)
    return jnp.einsum("id,jd->ij", unit, unit, precision="highest")


def promoted_embeddings(*given: ArrayLike) -> tuple[jax.Array, ...]:
    """Embeddings in one format, after a check that all are of one shape.

    Args:
      *given: Arrays [B, D].

    Returns:
      As many arrays [B, D].

    Raises:
      ValueError: If they differ in shape, or have other axes.
    """
    arrays = numerics.promote(*given)
    for other in arrays[1:]:
        numerics.check_same_shape(arrays[0], other, "features")
    shape = arrays[0].shape
    if len(shape) != 2:
        raise ValueError(f"embeddings have shape {shape}, expected [B, D]: flatten or pool the other axes first.")
    return arrays
