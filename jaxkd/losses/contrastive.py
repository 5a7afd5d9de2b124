"""Contrastive losses between student and teacher, and the memories that some of them keep as explicit state."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.losses.embeddings import promoted_embeddings
from jaxkd.testing import (
    BATCH_OF_ONE,
    COUPLED,
    FEATURES,
    JOINT_ROTATION_INVARIANT,
    NON_NEGATIVE,
    SCALE_INVARIANT,
    SYMMETRIC,
    Draw,
    declare,
)

__all__ = ["clip", "clip_affinity", "crd", "info_nce", "info_nce_queue", "queue_similarity"]


class CRDBank(NamedTuple):
    """Memory that CRD keeps between steps.

    Attributes:
      student: [N, D], a row of unit length for each example of the data set.
      teacher: [N, D], the teacher's rows.
      student_z: Scalar, the constant that normalises the student's scores; below 0 until the first update.
      teacher_z: Scalar, the same for the teacher.
    """

    student: jax.Array
    teacher: jax.Array
    student_z: jax.Array
    teacher_z: jax.Array


_POINTS = (*COUPLED, BATCH_OF_ONE, NON_NEGATIVE, SCALE_INVARIANT)


def _bank(draw: Draw) -> CRDBank:
    """A bank after the first batch, whose constants Z are set."""
    student, teacher = draw.normal(2, 8 * draw.sizes.batch, draw.sizes.width)
    return CRDBank(student, teacher, jnp.float32(7), jnp.float32(11))


def _images_and_texts(draw: Draw) -> tuple[np.ndarray, ...]:
    """Embeddings of images and of texts; the teacher's are wider."""
    wider = draw.sizes.width + 1
    return draw.vectors(), draw.vectors(), draw.examples(wider), draw.examples(wider)


def crd_init(key: jax.Array, *, examples: int, width: int) -> CRDBank:
    """A bank before the first step: rows uniform in +-sqrt(3 / D), whose expected squared length is 1.

    Args:
      key: Typed PRNG key.
      examples: N, the number of examples of the data set.
      width: D, the width of the embeddings.

    Returns:
      The bank, in float32.
    """
    bound = math.sqrt(3 / width)
    student, teacher = jax.random.uniform(key, (2, examples, width), jnp.float32, -bound, bound)
    return CRDBank(student, teacher, jnp.float32(-1), jnp.float32(-1))


def crd_indices(key: jax.Array, own: ArrayLike, *, examples: int, negatives: int) -> jax.Array:
    """Rows that each example is contrasted with: its own first, then others, uniform with replacement.

    Args:
      key: Typed PRNG key.
      own: [B] integers in 0..N-1, the examples' own rows.
      examples: N > 1, the number of rows of the bank.
      negatives: K; 16384 in the paper.

    Returns:
      [B, 1 + K] integers.
    """
    first = jnp.asarray(own)[:, None]
    steps = jax.random.randint(key, (len(first), negatives), 1, examples, first.dtype)
    return jnp.concatenate([first, (first + steps) % examples], axis=1)


@declare(
    lambda draw: (draw.vectors(), draw.vectors(), draw.integers(8 * draw.sizes.batch, 64)),
    (*FEATURES, NON_NEGATIVE, SCALE_INVARIANT),
    fixed=lambda draw: {"bank": _bank(draw)},
    kinds={"indices": "other"},
    own="two embeddings, memory bank as state: `objectives.crd`",
)
def crd(
    student_embedding: ArrayLike,
    teacher_embedding: ArrayLike,
    indices: ArrayLike,
    bank: CRDBank,
    *,
    temperature: ArrayLike = 0.07,
) -> jax.Array:
    """Contrastive representation distillation: finds an example's own row of the other side's bank among K others.

    L(o) = -log( o_0 / (o_0 + K/N + e) ) - sum_{k=1..K} log( (K/N) / (o_k + K/N + e) ),  L = L(o_s) + L(o_t),
    o_s,k = exp(<v_s, m_t,k> / T) / Z_s,  o_t,k = exp(<v_t, m_s,k> / T) / Z_t,  e = 1e-7

    v are the embeddings, made unit length, m the bank's rows. Z is N times the mean of exp(<v, m> / T) over the first
    batch, a constant from then on: in that one batch, where the bank has none yet, the examples depend on each other.

    Args:
      student_embedding: [B, D] floating, already projected to the bank's width.
      teacher_embedding: [B, D] floating, projected as well; the paper trains this projection too.
      indices: [B, 1 + K] integers, rows of the bank, the example's own first (see `crd_indices`).
      bank: The bank as it was before this step; `crd_update` makes the next one.
      temperature: T > 0.

    Returns:
      [B] in nats.

    Raises:
      ValueError: If the shapes do not fit together.

    Reference:
      Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, https://arxiv.org/abs/1910.10699
    """
    s, t, m_s, m_t = numerics.promote(student_embedding, teacher_embedding, bank.student, bank.teacher)
    rows = jnp.asarray(indices)
    _check_crd(s, t, rows, m_s, m_t)
    log_o_s, _ = _crd_log_scores(s, m_t, rows, bank.student_z, temperature)
    log_o_t, _ = _crd_log_scores(t, m_s, rows, bank.teacher_z, temperature)
    return _crd_nce(log_o_s, examples=len(m_t)) + _crd_nce(log_o_t, examples=len(m_s))


def crd_update(
    bank: CRDBank,
    student_embedding: ArrayLike,
    teacher_embedding: ArrayLike,
    indices: ArrayLike,
    *,
    momentum: ArrayLike = 0.5,
    temperature: ArrayLike = 0.07,
) -> CRDBank:
    """The bank after a step of `crd`: the examples' own rows move towards their embeddings, and Z is set if it was not.

    m <- w / ||w||,  w = momentum * m + (1 - momentum) * v

    Args:
      bank: The bank that the loss was given.
      student_embedding: [B, D], as the loss was given.
      teacher_embedding: [B, D], as the loss was given.
      indices: [B, 1 + K], as the loss was given; of rows that stand first twice, either may win.
      momentum: Weight of the old row.
      temperature: T, as the loss was given; below 0.012 the constants Z may overflow float32.

    Returns:
      The bank for the next step, in the dtypes of the old one.

    Raises:
      ValueError: If the shapes do not fit together.

    Reference:
      Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, https://arxiv.org/abs/1910.10699
    """
    s, t, m_s, m_t = numerics.promote(student_embedding, teacher_embedding, bank.student, bank.teacher)
    rows = jnp.asarray(indices)
    _check_crd(s, t, rows, m_s, m_t)
    own = rows[:, 0]

    def moved(memory: jax.Array, embedding: jax.Array) -> jax.Array:
        old = numerics.per_example(momentum, embedding)
        w = old * memory[own] + (1 - old) * numerics.unit(embedding)
        return memory.at[own].set(numerics.unit(w))

    _, log_z_s = _crd_log_scores(s, m_t, rows, bank.student_z, temperature)
    _, log_z_t = _crd_log_scores(t, m_s, rows, bank.teacher_z, temperature)
    new = CRDBank(moved(m_s, s), moved(m_t, t), jnp.exp(log_z_s), jnp.exp(log_z_t))
    return CRDBank(*(a.astype(jnp.asarray(b).dtype) for a, b in zip(new, bank, strict=True)))


@declare(
    lambda draw: (draw.vectors(), draw.vectors()),
    (*_POINTS, JOINT_ROTATION_INVARIANT),
    own="embeddings, if widths differ: `linear(width=...)` on both sides",
)
def info_nce(student_embedding: ArrayLike, teacher_embedding: ArrayLike, *, temperature: ArrayLike = 0.07) -> jax.Array:
    """InfoNCE within a batch: finds an example's teacher embedding among those of the batch; couples the batch.

    -(1/B) sum_i log( exp(c_ii / T) / sum_j exp(c_ij / T) ),  c_ij = cos(student_i, teacher_j)

    Args:
      student_embedding: [B, D] floating, already projected to the teacher's width.
      teacher_embedding: [B, D] floating.
      temperature: T > 0.

    Returns:
      Scalar in nats; 0 for a batch of one.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018,
      https://arxiv.org/abs/1807.03748
    """
    s, t = promoted_embeddings(student_embedding, teacher_embedding)
    return -jnp.mean(jnp.diagonal(numerics.log_softmax(_cosines(s, t), temperature)))


@declare(
    lambda draw: (draw.vectors(), draw.vectors()),
    (*FEATURES, NON_NEGATIVE, SCALE_INVARIANT),
    fixed=lambda draw: {"queue": draw.normal(16 * draw.sizes.batch, draw.sizes.width)},
    own="two embeddings, queue as state: `objectives.info_nce_queue`",
)
def info_nce_queue(
    student_embedding: ArrayLike, teacher_embedding: ArrayLike, queue: ArrayLike, *, temperature: ArrayLike = 0.07
) -> jax.Array:
    """InfoNCE with a queue: finds an example's teacher embedding among those of earlier batches.

    -log( exp(cos(s, t) / T) / (exp(cos(s, t) / T) + sum_q exp(cos(s, q) / T)) )

    Args:
      student_embedding: [B, D] floating, already projected to the teacher's width.
      teacher_embedding: [B, D] floating.
      queue: [Q, D], the teacher's embeddings of earlier examples (see `queue_push`).
      temperature: T > 0.

    Returns:
      [B] in nats.

    Raises:
      ValueError: If the shapes do not fit together.

    Reference:
      He et al., "Momentum Contrast for Unsupervised Visual Representation Learning" (the queue), CVPR 2020,
      https://arxiv.org/abs/1911.05722
    """
    s, t, q = numerics.promote(student_embedding, teacher_embedding, queue)
    s, t = promoted_embeddings(s, t)
    _check_queue(q, s)
    own = jnp.sum(numerics.unit(s) * numerics.unit(t), axis=1, keepdims=True)
    return -numerics.log_softmax(jnp.concatenate([own, _cosines(s, q)], axis=1), temperature)[:, 0]


@declare(
    lambda draw: (draw.vectors(), draw.vectors()),
    (*FEATURES, NON_NEGATIVE, SCALE_INVARIANT),
    fixed=lambda draw: {"queue": draw.normal(16 * draw.sizes.batch, draw.sizes.width)},
    own="two embeddings, queue as state: `objectives.queue_similarity`",
)
def queue_similarity(
    student_embedding: ArrayLike,
    teacher_embedding: ArrayLike,
    queue: ArrayLike,
    *,
    temperature: ArrayLike = 0.2,
    teacher_temperature: ArrayLike = 0.01,
) -> jax.Array:
    """SEED: both sides' similarities to the teacher's embedding of the example and to those of a queue, as KL.

    KL(p || q),  p = softmax(cos(t, a_j) / T_t),  q = softmax(cos(s, a_j) / T),  a = t, then the queue's rows;
    the paper has the cross-entropy, which is larger by the teacher's entropy

    Args:
      student_embedding: [B, D] floating, already projected to the teacher's width.
      teacher_embedding: [B, D] floating.
      queue: [Q, D], the teacher's embeddings of earlier examples (see `queue_push`).
      temperature: T > 0 of the student.
      teacher_temperature: T_t > 0 of the teacher.

    Returns:
      [B] in nats; 0 where the embeddings have one direction and the temperatures are equal.

    Raises:
      ValueError: If the shapes do not fit together.

    Reference:
      Fang et al., "SEED: Self-supervised Distillation For Visual Representation", ICLR 2021,
      https://arxiv.org/abs/2101.04731
    """
    s, t, q = numerics.promote(student_embedding, teacher_embedding, queue)
    s, t = promoted_embeddings(s, t)
    _check_queue(q, s)

    def log_similarities(x: jax.Array, temperature: ArrayLike) -> jax.Array:
        own = jnp.sum(numerics.unit(x) * numerics.unit(t), axis=1, keepdims=True)
        return numerics.log_softmax(jnp.concatenate([own, _cosines(x, q)], axis=1), temperature)

    return numerics.kl_divergence(log_similarities(t, teacher_temperature), log_similarities(s, temperature))


def _check_queue(queue: jax.Array, embedding: jax.Array) -> None:
    """Raises ValueError unless a queue has the embeddings' width."""
    if queue.ndim != 2 or queue.shape[1] != embedding.shape[1]:
        shapes = f"the queue has shape {queue.shape} but embeddings have shape {embedding.shape}"
        raise ValueError(f"{shapes}: give a queue of their width.")


def queue_init(key: jax.Array, *, size: int, width: int) -> jax.Array:
    """A queue before the first step: rows of unit length in random directions.

    Args:
      key: Typed PRNG key.
      size: Q.
      width: D.

    Returns:
      [Q, D] float32.
    """
    return numerics.unit(jax.random.normal(key, (size, width), jnp.float32))


def queue_push(queue: jax.Array, teacher_embedding: ArrayLike) -> jax.Array:
    """The queue after a step: the newest rows come in at the end, the oldest leave at the front.

    Args:
      queue: [Q, D].
      teacher_embedding: [B, D].

    Returns:
      [Q, D] in the queue's dtype.
    """
    (rows,) = numerics.promote(teacher_embedding)
    return jnp.concatenate([queue, numerics.unit(rows).astype(queue.dtype)])[-len(queue) :]


@declare(lambda draw: (draw.vectors(), draw.vectors()), (*_POINTS, JOINT_ROTATION_INVARIANT, SYMMETRIC))
def clip(student_embedding: ArrayLike, teacher_embedding: ArrayLike, *, temperature: ArrayLike = 0.07) -> jax.Array:
    """CLIP's symmetric InfoNCE, for two modalities or two models; couples the batch.

    ( info_nce(student, teacher) + info_nce(teacher, student) ) / 2

    Args:
      student_embedding: [B, D] floating, of the student's modality (images).
      teacher_embedding: [B, D] floating, of the teacher's modality (their texts).
      temperature: T > 0; CLIP learns its inverse and keeps that at most 100.

    Returns:
      Scalar in nats; 0 for a batch of one.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
      https://arxiv.org/abs/2103.00020
    """
    there = info_nce(student_embedding, teacher_embedding, temperature=temperature)
    back = info_nce(teacher_embedding, student_embedding, temperature=temperature)
    return (there + back) / 2


@declare(_images_and_texts, _POINTS, needs="images and texts")
def clip_affinity(
    student_image: ArrayLike,
    student_text: ArrayLike,
    teacher_image: ArrayLike,
    teacher_text: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    teacher_temperature: ArrayLike = 0.07,
) -> jax.Array:
    """Distils CLIP's image-text affinities: KL from the teacher's to the student's, both ways; couples the batch.

    (1/B) sum_i [ KL(p_t(text | image_i) || p_s(text | image_i)) + KL(p_t(image | text_i) || p_s(image | text_i)) ],
    p(text | image_i) = softmax_j( cos(image_i, text_j) / T )

    Args:
      student_image: [B, Ds] floating.
      student_text: [B, Ds] floating.
      teacher_image: [B, Dt] floating.
      teacher_text: [B, Dt] floating.
      temperature: T > 0 of the student.
      teacher_temperature: T > 0 of the teacher.

    Returns:
      Scalar in nats; 0 for a batch of one.

    Raises:
      ValueError: If the shapes do not fit together.

    Reference:
      Yang et al., "CLIP-KD: An Empirical Study of CLIP Model Distillation", CVPR 2024,
      https://arxiv.org/abs/2307.12732
    """
    s_image, s_text, t_image, t_text = numerics.promote(student_image, student_text, teacher_image, teacher_text)
    student, teacher = _cosines(*promoted_embeddings(s_image, s_text)), _cosines(*promoted_embeddings(t_image, t_text))
    numerics.check_same_shape(student, teacher, "affinities")

    def divergence(t: jax.Array, s: jax.Array) -> jax.Array:
        log_t, log_s = numerics.log_softmax(t, teacher_temperature), numerics.log_softmax(s, temperature)
        return jnp.mean(numerics.kl_divergence(log_t, log_s))

    return divergence(teacher, student) + divergence(teacher.T, student.T)


def _cosines(x: jax.Array, y: jax.Array) -> jax.Array:
    """Cosines of all rows of x with all rows of y."""
    return jnp.einsum("id,jd->ij", numerics.unit(x), numerics.unit(y), precision="highest")


def _check_crd(s: jax.Array, t: jax.Array, rows: jax.Array, m_s: jax.Array, m_t: jax.Array) -> None:
    """Raises a sentence unless embeddings, indices and bank fit together."""
    promoted_embeddings(s, t)
    if m_s.shape != m_t.shape or m_s.shape[1:] != s.shape[1:]:
        raise ValueError(
            f"the bank has shapes {m_s.shape} and {m_t.shape} but embeddings have shape {s.shape}: "
            "give a bank of their width, with the same rows on both sides."
        )
    if rows.ndim != 2 or len(rows) != len(s) or rows.shape[1] < 2:
        raise ValueError(
            f"indices have shape {rows.shape} but embeddings have shape {s.shape}: "
            "give [B, 1 + K] with the example's own row first and at least one negative."
        )


def _crd_log_scores(
    embedding: jax.Array, memory: jax.Array, rows: jax.Array, z: jax.Array, temperature: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """log o [B, 1 + K], and log Z, which is made from these scores if z < 0, as a constant."""
    products = jnp.einsum("bd,nd->bn", numerics.unit(embedding), memory, precision="highest")
    numerics.check_temperature(temperature)
    scores = jnp.take_along_axis(products, rows, axis=1) / numerics.per_example(temperature, products)
    batch_log_z = jax.nn.logsumexp(jax.lax.stop_gradient(scores)) + math.log(len(memory) / scores.size)
    z = jnp.asarray(z, scores.dtype)
    log_z = jnp.where(z < 0, batch_log_z, jnp.log(jnp.where(z < 0, 1, z)))
    return scores - log_z, log_z


def _crd_nce(log_o: jax.Array, *, examples: int) -> jax.Array:
    """Noise-contrastive loss [B] of log o [B, 1 + K], the positive first; softplus(a - b) = -log(e^b / (e^a + e^b))."""
    noise, eps = (log_o.shape[1] - 1) / examples, 1e-7
    positive = jax.nn.softplus(math.log(noise + eps) - log_o[:, 0])
    negatives = jax.nn.softplus(jnp.logaddexp(log_o[:, 1:], math.log(eps)) - math.log(noise))
    return positive + jnp.sum(negatives, axis=1)
