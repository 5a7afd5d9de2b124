"""Losses on sequences of tokens, under masks of the tokens that count."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.labels import check_labels, check_range, is_label
from jaxkd.losses.logits import kd
from jaxkd.testing import (
    COUPLED,
    DISTANCE,
    EXTREME_LOGITS,
    FEATURES,
    MASKED_CLASSES,
    NON_NEGATIVE,
    OF_PROBABILITIES,
    Draw,
    declare,
)

__all__ = ["masked_token_kl", "sequence_kd", "token_level"]

LogitsLoss: TypeAlias = Callable[..., jax.Array]
"""(student_logits [..., K], teacher_logits [..., K], **hyper) -> [...]; a loss that keeps leading axes."""

_OF_LOGITS = (*OF_PROBABILITIES, EXTREME_LOGITS)


def _sentences(draw: Draw) -> tuple[np.ndarray, ...]:
    """The student's logits, the tokens that the teacher wrote, and the mask of both."""
    return draw.token_logits(), draw.integers(draw.sizes.vocabulary, draw.sizes.length), draw.mask()


@declare(
    lambda draw: (draw.token_logits(), draw.token_logits(), draw.mask()),
    (*FEATURES, *_OF_LOGITS, *DISTANCE, MASKED_CLASSES),
    kinds={"mask": "other"},
    needs="texts",
    example_of=lambda turn: turn(kd),
)
def token_level(loss: LogitsLoss) -> LogitsLoss:
    """Turns a loss on logits into one on sequences: its mean over the valid tokens of each sequence.

    sum_s mask_bs loss_bs / sum_s mask_bs

    Every sequence has the same weight. For the same weight of every token of the batch, as in `masked_token_kl`, take
    `numerics.masked_mean(loss(*numerics.masked(mask, student, teacher)), mask)`. What stands at tokens that do not
    count, NaN included, never reaches the loss.

    Args:
      loss: (student_logits [B, S, K], teacher [B, S, ...], **hyper) -> [B, S], any loss that keeps leading axes.

    Returns:
      (student_logits, teacher, mask [B, S] | None, **hyper) -> [B]; 0 for a sequence without a valid token. A token
      with the label `ignore`, of losses that take one, is not valid.

    Reference:
      No paper.
    """

    @functools.wraps(loss)
    def on_sequences(student_logits: ArrayLike, teacher: ArrayLike, mask: ArrayLike | None, **hyper: Any) -> jax.Array:
        if hyper.get("ignore") is not None:  # of losses on labels
            counts = ~is_label(jnp.asarray(teacher), hyper["ignore"])
            mask = counts if mask is None else jnp.where(counts, mask, 0)
        if mask is None:
            return jnp.mean(loss(student_logits, teacher, **hyper), axis=-1)
        check_mask(mask, jnp.shape(student_logits)[:-1])
        values = loss(*numerics.masked(mask, jnp.asarray(student_logits), jnp.asarray(teacher)), **hyper)
        check_mask(mask, values.shape)
        return jax.vmap(numerics.masked_mean)(values, jnp.asarray(mask))

    return on_sequences


@declare(
    lambda draw: (draw.token_logits(), draw.token_logits(), draw.mask()),
    (*COUPLED, *_OF_LOGITS, *DISTANCE, MASKED_CLASSES),
    kinds={"mask": "other"},
    needs="texts",
)
def masked_token_kl(
    student_logits: ArrayLike, teacher_logits: ArrayLike, mask: ArrayLike, *, temperature: ArrayLike = 1.0
) -> jax.Array:
    """Token-level knowledge distillation: mean KL over all valid tokens, whose number couples the batch.

    T^2 * sum_bs mask_bs KL(softmax(z_t / T) || softmax(z_s / T))_bs / sum_bs mask_bs

    Args:
      student_logits: [B, S, K] floating.
      teacher_logits: [B, S, K] floating.
      mask: [B, S], true on tokens that count, or non-negative weights.
      temperature: T > 0, a scalar or an array over leading axes.

    Returns:
      Scalar in nats, times T^2; 0 where no token is valid.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", NeurIPS 2014 Deep Learning Workshop,
      https://arxiv.org/abs/1503.02531
    """
    s, t = numerics.promote(student_logits, teacher_logits)
    numerics.check_same_shape(s, t, "logits")
    check_mask(mask, s.shape[:-1])
    return numerics.masked_mean(kd(*numerics.masked(mask, s, t), temperature=temperature), mask)


@declare(_sentences, (*FEATURES, *_OF_LOGITS, NON_NEGATIVE), kinds={"mask": "other"}, needs="texts")
def sequence_kd(
    student_logits: ArrayLike, teacher_tokens: ArrayLike, mask: ArrayLike | None = None, *, ignore: int | None = None
) -> jax.Array:
    """Sequence-level knowledge distillation: the student's negative log-likelihood of what the teacher wrote.

    -sum_s mask_bs log softmax(z_bs)[y_bs],  y = output of the teacher's beam search

    Position s of the logits predicts y_bs. For a causal language model take y from `next_tokens`.

    Args:
      student_logits: [B, S, K] floating.
      teacher_tokens: Integers [B, S] in 0..K-1; any value where the mask is false.
      mask: [B, S], true on tokens that count, or None.
      ignore: Token of positions that do not count, such as -100; none if None.

    Returns:
      [B] in nats, summed over tokens as in the paper.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Kim, Rush, "Sequence-Level Knowledge Distillation", EMNLP 2016, https://arxiv.org/abs/1606.07947
    """
    (z,) = numerics.promote(student_logits)
    if z.ndim != 3 or jnp.shape(teacher_tokens) != z.shape[:-1]:
        raise ValueError(
            f"student logits have shape {z.shape} and teacher tokens have shape {jnp.shape(teacher_tokens)}: give "
            "logits [B, S, K] and integers [B, S]."
        )
    y = check_labels(z, teacher_tokens, ignore)
    weight = y.counts.astype(z.dtype)
    if mask is not None:
        check_mask(mask, weight.shape)
        weight = weight * jnp.asarray(mask).astype(z.dtype)
    z = jnp.where(weight[..., None] > 0, z, 0)
    surprise = y.mark(optax.softmax_cross_entropy_with_integer_labels(z, y.values))
    return jnp.sum(jnp.where(weight > 0, weight * surprise, 0), axis=-1)


def next_tokens(tokens: ArrayLike, mask: ArrayLike | None = None) -> tuple[jax.Array, jax.Array]:
    """Labels of a causal language model: the next token of each position, and the mask of positions that have one.

    Args:
      tokens: Integers [B, S].
      mask: [B, S], true on tokens that are no padding, or None.

    Returns:
      Labels [B, S], labels[:, s] = tokens[:, s + 1], and booleans [B, S], true where both tokens are valid, false at
      the last position.

    Raises:
      ValueError: If the mask has another shape.
    """
    check_range("tokens", tokens)
    y = jnp.asarray(tokens)
    valid = jnp.ones(y.shape, bool) if mask is None else jnp.asarray(mask).astype(bool)
    check_mask(valid, y.shape)
    return jnp.roll(y, -1, axis=-1), (valid & jnp.roll(valid, -1, axis=-1)).at[..., -1].set(False)


def check_mask(mask: ArrayLike, shape: tuple[int, ...]) -> None:
    """Raises unless a mask has one entry for each token.

    Args:
      mask: Array.
      shape: Shape of the tokens.

    Raises:
      ValueError: If the shapes differ.
    """
    if jnp.shape(mask) != shape:
        raise ValueError(f"mask has shape {jnp.shape(mask)} but the tokens have shape {shape}: give one entry a token.")
