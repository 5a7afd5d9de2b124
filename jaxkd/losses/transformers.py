"""Losses on inner values of transformers: hidden states, attention scores, relations of queries, keys and values.

Losses on tokens give one value for each token; the mask of real tokens is the weight of the mean taken afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.testing import (
    ACCUMULATION,
    ALWAYS,
    BATCH_OF_ONE,
    CLASS_PERMUTATION_INVARIANT,
    DISTANCE,
    EXTREME_LOGITS,
    FEATURES,
    INDEPENDENT_ROWS,
    JOINT_ROTATION_INVARIANT,
    JOINT_SHIFT_INVARIANT,
    KEEPS_LEADING_AXES,
    LEADING_AXES,
    NON_NEGATIVE,
    OF_DIFFERENCES,
    SCALE_INVARIANT,
    SYMMETRIC,
    declare,
)

__all__ = ["attention_mse", "cosine", "hidden_mse", "minilm", "minilmv2", "pkd", "tinybert", "vitkd"]

_TOKENS = (*ALWAYS, *DISTANCE, SYMMETRIC, LEADING_AXES, INDEPENDENT_ROWS, ACCUMULATION, BATCH_OF_ONE, EXTREME_LOGITS)
_OF_DIRECTIONS = (SCALE_INVARIANT, JOINT_ROTATION_INVARIANT, CLASS_PERMUTATION_INVARIANT)
_RELATIONS = (*FEATURES, *DISTANCE, EXTREME_LOGITS)


@declare(
    lambda draw: (draw.tokens(), draw.tokens()),
    (*_TOKENS, KEEPS_LEADING_AXES, *OF_DIFFERENCES),
    own="projection, if widths differ: `linear`",
    needs="texts",
)
def hidden_mse(student_hidden: ArrayLike, teacher_hidden: ArrayLike) -> jax.Array:
    """TinyBERT's hidden-state loss: mean squared difference of each token's vectors.

    (1/D) ||h_s - h_t||^2

    Args:
      student_hidden: [B, L, D] floating, already projected to the teacher's width; any leading axes.
      teacher_hidden: [B, L, D] floating.

    Returns:
      [B, L]; the mean over real tokens is `numerics.masked_mean(value, mask)`.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of EMNLP 2020,
      https://arxiv.org/abs/1909.10351
    """
    s, t = numerics.promote(student_hidden, teacher_hidden)
    numerics.check_same_shape(s, t, "features")
    return jnp.mean(jnp.square(s - t), axis=-1)


@declare(lambda draw: (draw.attention(), draw.attention()), (*_TOKENS, JOINT_SHIFT_INVARIANT), needs="texts")
def attention_mse(
    student_attention: ArrayLike, teacher_attention: ArrayLike, *, padding_score: ArrayLike = -jnp.inf
) -> jax.Array:
    """TinyBERT's attention loss: squared difference of attention scores (before the softmax), averaged over heads.

    (1/A) sum_a (S_s - S_t)^2

    Args:
      student_attention: [B, A, L, L] floating; any leading axes.
      teacher_attention: [B, A, L, L] floating.
      padding_score: Scores at or below it are padding and count 0, on each side by itself; TinyBERT's code has -100.

    Returns:
      [B, L, L]; the mean over real tokens is `numerics.masked_mean(value, pair_mask(mask))`.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of EMNLP 2020,
      https://arxiv.org/abs/1909.10351
    """
    s, t = numerics.promote(student_attention, teacher_attention)
    numerics.check_same_shape(s, t, "attention scores")
    threshold = jnp.asarray(padding_score, s.dtype)
    s, t = (jnp.where(x <= threshold, 0, x) for x in (s, t))
    return jnp.mean(jnp.square(s - t), axis=-3)


def pair_mask(mask: ArrayLike) -> jax.Array:
    """Mask of the pairs (row, column) of tokens that are both real.

    Args:
      mask: [..., L], 1 (or True) for real tokens.

    Returns:
      Booleans [..., L, L].
    """
    m = jnp.asarray(mask).astype(bool)
    return m[..., :, None] & m[..., None, :]


@declare(
    lambda draw: (draw.attention(2), draw.attention(2), draw.tokens(3), draw.tokens(3)),
    (*FEATURES, NON_NEGATIVE, EXTREME_LOGITS, JOINT_SHIFT_INVARIANT, JOINT_ROTATION_INVARIANT),
    own="projection: `objectives.tinybert`",
    needs="texts",
)
def tinybert(
    student_attention: ArrayLike,
    teacher_attention: ArrayLike,
    student_hidden: ArrayLike,
    teacher_hidden: ArrayLike,
    mask: ArrayLike | None = None,
) -> jax.Array:
    """TinyBERT's loss over all layers: attention scores and hidden states of every g-th teacher layer, g = N / S.

    sum_{i=1..S} mean (A_s,i - A_t,ig)^2 + sum_{i=0..S} mean (H_s,i - H_t,ig)^2, layer 0 of H being the embeddings;
    scores at or below -100, which a padding bias makes, count as 0, as in the released code

    Args:
      student_attention: [B, S, A, L, L] floating, before the softmax.
      teacher_attention: [B, N, A, L, L] floating.
      student_hidden: [B, S + 1, L, D] floating, embeddings first, already projected to the teacher's width.
      teacher_hidden: [B, N + 1, L, D] floating.
      mask: [B, L], 1 (or True) for real tokens, over which (and over whose pairs) the means are then taken, so that
        padding never changes the value; all of them if None, as in the released code.

    Returns:
      [B]; 0 where no token is real.

    Raises:
      ValueError: If shapes do not fit, or S does not divide N.

    Reference:
      Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of EMNLP 2020,
      https://arxiv.org/abs/1909.10351
    """
    a_s, a_t, h_s, h_t = numerics.promote(student_attention, teacher_attention, student_hidden, teacher_hidden)
    S, N = a_s.shape[1], a_t.shape[1]
    if N % S or (h_s.shape[1], h_t.shape[1]) != (S + 1, N + 1):
        raise ValueError(
            f"layers do not match (attention {a_s.shape} and {a_t.shape}, hidden {h_s.shape} and {h_t.shape}): the "
            "teacher needs a multiple of the student's layers, and hidden states one layer more than attention."
        )
    g = N // S
    a_t, h_t = a_t[:, g - 1 :: g], h_t[:, ::g]
    if mask is None:
        attention = jnp.mean(attention_mse(a_s, a_t, padding_score=-100.0), axis=(2, 3))
        return jnp.sum(attention, axis=1) + jnp.sum(jnp.mean(hidden_mse(h_s, h_t), axis=2), axis=1)
    real, pairs = jnp.asarray(mask).astype(bool)[:, None, :, None], pair_mask(mask)[:, None, None]
    h_s, h_t = (jnp.where(real, x, 0) for x in (h_s, h_t))
    a_s, a_t = (jnp.where(pairs, x, 0) for x in (a_s, a_t))
    count = jnp.maximum(jnp.sum(real, axis=(1, 2, 3), dtype=h_s.dtype), 1)
    attention = jnp.sum(attention_mse(a_s, a_t, padding_score=-100.0), axis=(1, 2, 3))
    return attention / jnp.square(count) + jnp.sum(hidden_mse(h_s, h_t), axis=(1, 2)) / count


@declare(lambda draw: (draw.tokens(), draw.tokens()), (*_TOKENS, KEEPS_LEADING_AXES, *_OF_DIRECTIONS))
def cosine(student_hidden: ArrayLike, teacher_hidden: ArrayLike) -> jax.Array:
    """DistilBERT's cosine loss: one minus the cosine between each token's vectors.

    1 - <h_s, h_t> / sqrt((|h_s|^2 + 1e-12) (|h_t|^2 + 1e-12))

    Args:
      student_hidden: [B, L, D] floating; any leading axes.
      teacher_hidden: [B, L, D] floating.

    Returns:
      [B, L], in [0, 2]; the mean over real tokens is `numerics.masked_mean(value, mask)`.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Sanh et al., "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter", NeurIPS 2019
      EMC2 workshop, https://arxiv.org/abs/1910.01108
    """
    s, t = numerics.promote(student_hidden, teacher_hidden)
    numerics.check_same_shape(s, t, "features")
    s, t = (x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12) for x in (s, t))
    return 1 - jnp.sum(s * t, axis=-1)


@declare(
    lambda draw: (draw.examples(2, draw.sizes.width), draw.examples(2, draw.sizes.width)),
    (*FEATURES, *DISTANCE, SYMMETRIC, *_OF_DIRECTIONS),
    needs="texts",
)
def pkd(student_hidden: ArrayLike, teacher_hidden: ArrayLike, *, normalized: bool = True) -> jax.Array:
    """Patient KD: mean squared difference of (normalised) first-token states of the matched layers.

    mean (h_s / ||h_s|| - h_t / ||h_t||)^2 over layers and width; the paper has the sum.

    Args:
      student_hidden: [B, layers, D] floating, the first token's state in each matched layer.
      teacher_hidden: [B, layers, D] floating.
      normalized: Whether vectors are divided by their L2 norm.

    Returns:
      [B].

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Sun et al., "Patient Knowledge Distillation for BERT Model Compression", EMNLP 2019,
      https://arxiv.org/abs/1908.09355
    """
    s, t = numerics.promote(student_hidden, teacher_hidden)
    numerics.check_same_shape(s, t, "features")
    s, t = (numerics.unit(x) for x in (s, t)) if normalized else (s, t)
    return jnp.mean(jnp.square(s - t), axis=tuple(range(1, s.ndim)))


@declare(
    lambda draw: (draw.qkv(), draw.qkv(), draw.mask()),
    _RELATIONS,
    fixed=lambda draw: {"relation_heads": draw.sizes.heads},
    kinds={"mask": "other"},
    needs="texts",
)
def minilmv2(
    student_qkv: ArrayLike,
    teacher_qkv: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    relations: Sequence[tuple[int, int, float]] = ((1, 1, 1 / 3), (2, 2, 1 / 3), (3, 3, 1 / 3)),
    relation_heads: int = 48,
) -> jax.Array:
    """MiniLMv2: KL between self-attention relations of queries, keys and values in one layer of each side.

    sum_mn w_mn (1 / (A |x|)) sum_{a,i} KL(R^t_mn,ai || R^s_mn,ai),  R_mn,a = softmax(X_m,a X_n,a^T / sqrt(d)),
    over the A relation heads of width d = D / A and the |x| real tokens of an example

    Args:
      student_qkv: [B, 3, L, Ds] floating: queries, keys and values with all heads concatenated.
      teacher_qkv: [B, 3, L, Dt] floating.
      mask: [B, L], 1 (or True) for real tokens; all of them if None.
      relations: (m, n, weight) with 1 for queries, 2 for keys and 3 for values.
      relation_heads: A, divides both widths; 48 in the paper for teachers of base size, 64 for large.

    Returns:
      [B] in nats; 0 where no token is real.

    Raises:
      ValueError: If shapes do not fit.

    Reference:
      Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers",
      Findings of ACL 2021, https://arxiv.org/abs/2012.15828
    """
    s, t = numerics.promote(student_qkv, teacher_qkv)
    _check_qkv(s, t, relation_heads)
    real = jnp.ones(s.shape[::2], bool) if mask is None else jnp.asarray(mask).astype(bool)
    count = jnp.maximum(jnp.sum(real, axis=-1, dtype=s.dtype), 1)
    s, t = (jnp.where(real[:, None, :, None], x, 0) for x in (s, t))  # whatever stands at padding, NaN included
    log_p, log_q = (_log_relations(x, relations, relation_heads, real) for x in (t, s))
    kl = jnp.where(real[:, None, None], numerics.kl_divergence(log_p, log_q), 0)
    each = jnp.sum(kl, axis=(2, 3)) / (relation_heads * count)[:, None]
    return jnp.sum(each * jnp.asarray([weight for *_, weight in relations], s.dtype)[None], axis=1)


@declare(
    lambda draw: (draw.qkv(), draw.qkv(), draw.mask()),
    _RELATIONS,
    fixed=lambda draw: {"attention_heads": draw.sizes.heads},
    kinds={"mask": "other"},
    needs="texts",
)
def minilm(
    student_qkv: ArrayLike, teacher_qkv: ArrayLike, mask: ArrayLike | None = None, *, attention_heads: int = 12
) -> jax.Array:
    """MiniLM: KL between the attention distributions, and between the value relations, of the last layers.

    (1 / (A |x|)) sum_{a,i} KL(R^t_qk || R^s_qk) + KL(R^t_vv || R^s_vv), R as in `minilmv2`

    Args:
      student_qkv: [B, 3, L, Ds] floating: queries, keys and values with all heads concatenated.
      teacher_qkv: [B, 3, L, Dt] floating.
      mask: [B, L], 1 (or True) for real tokens; all of them if None.
      attention_heads: A, the attention heads, of which both sides have the same number.

    Returns:
      [B] in nats.

    Raises:
      ValueError: If shapes do not fit.

    Reference:
      Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers",
      NeurIPS 2020, https://arxiv.org/abs/2002.10957
    """
    terms = ((1, 2, 1.0), (3, 3, 1.0))
    return minilmv2(student_qkv, teacher_qkv, mask, relations=terms, relation_heads=attention_heads)


@declare(
    lambda draw: (draw.tokens(2), draw.tokens(2), draw.tokens(), draw.tokens(), draw.mask()),
    (*FEATURES, NON_NEGATIVE, *OF_DIFFERENCES),
    kinds={"mask": "other"},
    own="projections, generator: `objectives.vitkd`",
    needs="patches as tokens",
)
def vitkd(
    student_low: ArrayLike,
    teacher_low: ArrayLike,
    student_high: ArrayLike,
    teacher_high: ArrayLike,
    mask: ArrayLike,
    *,
    alpha: ArrayLike = 3e-5,
    beta: ArrayLike = 3e-6,
    lam: ArrayLike = 0.5,
) -> jax.Array:
    """ViTKD: distance of the first two blocks' tokens, and of the last block's hidden tokens from generated ones.

    alpha ||F_s,low - F_t,low||^2 + (beta / lam) sum_{masked tokens} ||G(F_s,high) - F_t,high||^2

    Args:
      student_low: [B, 2, N, D] floating, tokens of the first two blocks, projected to the teacher's width.
      teacher_low: [B, 2, N, D] floating.
      student_high: G(F_s,high) [B, N, D] floating, made by `networks.token_generator`.
      teacher_high: [B, N, D] floating, tokens of the last block.
      mask: [B, N], 1 (or True) where a token was hidden.
      alpha: Weight of the first part.
      beta: Weight of the second part.
      lam: Fraction of tokens that is hidden, in (0, 1].

    Returns:
      [B]; sums over elements, so they grow with N and D.

    Raises:
      ValueError: If shapes do not fit.

    Reference:
      Yang et al., "ViTKD: Practical Guidelines for ViT feature knowledge distillation", 2022,
      https://arxiv.org/abs/2209.02432
    """
    low_s, low_t, high_s, high_t = numerics.promote(student_low, teacher_low, student_high, teacher_high)
    numerics.check_same_shape(low_s, low_t, "features")
    numerics.check_same_shape(high_s, high_t, "features")
    hidden = jnp.asarray(mask).astype(bool)
    if hidden.shape != high_s.shape[:2]:
        raise ValueError(f"mask has shape {hidden.shape} but tokens have shape {high_s.shape}: give [B, N].")
    mimic = jnp.sum(jnp.square(low_s - low_t), axis=tuple(range(1, low_s.ndim)))
    high_s, high_t = numerics.masked(hidden, high_s, high_t)
    generate = jnp.sum(jnp.square(high_s - high_t), axis=(1, 2))
    alpha, beta, lam = (jnp.asarray(x, mimic.dtype) for x in (alpha, beta, lam))
    return alpha * mimic + beta / lam * generate


def _check_qkv(student: jax.Array, teacher: jax.Array, heads: int) -> None:
    """Raises unless both are [B, 3, L, D] with one B and L, and the heads divide each D."""
    s, t = student.shape, teacher.shape
    if len(s) != 4 or len(t) != 4 or s[:-1] != t[:-1] or s[1] != 3:
        raise ValueError(f"queries, keys and values have shapes {s} and {t}: stack them to [B, 3, L, D] on each side.")
    if s[-1] % heads or t[-1] % heads:
        raise ValueError(
            f"{heads} relation heads do not divide the widths of shapes {s} and {t}: choose a common divisor."
        )


def _log_relations(
    qkv: jax.Array, relations: Sequence[tuple[int, int, float]], heads: int, real: jax.Array
) -> jax.Array:
    """log R [B, relations, A, L, L] of [B, 3, L, D]; no row has weight on padding."""
    x = qkv.reshape(*qkv.shape[:3], heads, -1)
    rows, columns = (x[:, np.array([r[side] - 1 for r in relations])] for side in (0, 1))
    scores = jnp.einsum("briad,brjad->braij", rows, columns, precision="highest") / x.shape[-1] ** 0.5
    return numerics.log_softmax(jnp.where(real[:, None, None, None, :], scores, -jnp.inf))
