"""Metrics of fidelity, which compare the student with its teacher."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxkd import numerics
from jaxkd.metrics.accumulators import CKA, Mean, batch_mean, teacher_logits, weights_of
from jaxkd.metrics.classification import CLASSIFICATION
from jaxkd.types import Batch, Metric, Outputs


def agreement(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """Agreement: fraction of examples on which student and teacher predict the same class.

    Args:
      student: Outputs with logits [B, ..., K].
      teacher: Outputs with logits [B, ..., K].
      batch: The batch, whose `mask` excludes padding.

    Returns:
      Mean in 0..1.

    Raises:
      ValueError: If there is no teacher.
    """
    s, t = _of_one_shape(student, teacher)
    same = jnp.argmax(s, axis=-1) == jnp.argmax(t, axis=-1)
    return batch_mean(same.astype(jnp.float32), batch)


def kl_to_teacher(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """Divergence of the student from its teacher, KL(teacher || student), at temperature 1, in nats.

    sum_k p_k log(p_k / q_k) with p = softmax(teacher) and q = softmax(student)

    Args:
      student: Outputs with logits [B, ..., K].
      teacher: Outputs with logits [B, ..., K].
      batch: The batch, whose `mask` excludes padding.

    Returns:
      Mean.

    Raises:
      ValueError: If there is no teacher.
    """
    s, t = numerics.promote(*_of_one_shape(student, teacher))
    return batch_mean(numerics.kl_divergence(numerics.log_softmax(t), numerics.log_softmax(s)), batch)


def total_variation(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """Total variation between the teacher's and the student's distributions at temperature 1.

    sum_k |p_k - q_k| / 2 with p = softmax(teacher) and q = softmax(student)

    Args:
      student: Outputs with logits [B, ..., K].
      teacher: Outputs with logits [B, ..., K].
      batch: The batch, whose `mask` excludes padding.

    Returns:
      Mean in 0..1.

    Raises:
      ValueError: If there is no teacher.
    """
    s, t = numerics.promote(*_of_one_shape(student, teacher))
    q, p = (jnp.exp(numerics.log_softmax(z)) for z in (s, t))
    return batch_mean(jnp.sum(jnp.abs(p - q), axis=-1) / 2, batch)


def agreement_at(k: int) -> Metric:
    """Top-k agreement: fraction of the teacher's k most probable classes that are among the student's k.

    Args:
      k: Number of classes that count, at least 1; k = 1 is `agreement`.

    Returns:
      A metric, Mean in 0..1.
    """

    def agree(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
        best = [jax.lax.top_k(z, min(k, z.shape[-1]))[1] for z in _of_one_shape(student, teacher)]
        shared = jnp.any(best[0][..., :, None] == best[1][..., None, :], axis=-1)
        return batch_mean(jnp.mean(shared.astype(jnp.float32), axis=-1), batch)

    return agree


def _of_one_shape(student: Outputs, teacher: Outputs) -> tuple[jax.Array, jax.Array]:
    """Logits of both sides, of the same two classes or more."""
    s, t = student.logits, teacher_logits(teacher)
    numerics.check_same_shape(s, t, "logits")
    return s, t


def linear_cka(student: str, teacher: str) -> Metric:
    """Linear centred kernel alignment (CKA): similarity of two features, of any widths, over a whole split.

    Args:
      student: Name of the student's feature, [B, C] or [B, ..., C], of which the mean over positions is taken.
      teacher: Name of the teacher's feature, [B, D] or [B, ..., D], of which the mean over positions is taken.

    Returns:
      A metric, CKA in 0..1.

    Reference:
      Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019,
      https://arxiv.org/abs/1905.00414
    """

    def compare(one: Outputs, other: Outputs, batch: Batch) -> CKA:
        s, t = numerics.promote(one.features[student], other.features[teacher])
        s, t = (jnp.mean(x, axis=tuple(range(1, x.ndim - 1))) for x in (s, t))
        weight = weights_of(s[:, 0], batch).astype(s.dtype)
        s, t = (jnp.where(weight[:, None] > 0, x, 0) for x in (s, t))

        def product(x: jax.Array, y: jax.Array) -> jax.Array:
            return jnp.einsum("n,ni,nj->ij", weight, x, y, precision="highest")

        sums = jnp.sum(weight), weight @ s, weight @ t
        return CKA(*sums, product(s, s), product(t, t), product(s, t))

    return compare


DISTILLATION: Mapping[str, Metric] = {**CLASSIFICATION, "agreement": agreement, "kl": kl_to_teacher}
"""Metrics of a classifier and of its fidelity to the teacher."""
