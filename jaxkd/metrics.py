"""Evaluation metrics that accumulate as sums over batches and are divided once, so padding never counts.

A metric is a pure function (student, teacher, batch) -> accumulator; accumulators are added leaf by leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.types import Batch, Outputs


class Mean(NamedTuple):
    """A mean on its way: `total` / `count`."""

    total: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, which nobody needs here

    def value(self) -> Any:
        """The mean; 0 where nothing was counted."""
        return _ratio(self.total, self.count)


class Calibration(NamedTuple):
    """Reliability bins on their way: sums of confidence and of hits, and counts, each [..., bins]."""

    confidence: jax.Array
    correct: jax.Array
    count: jax.Array  # type: ignore[assignment]  # as above

    def value(self) -> Any:
        """Expected calibration error: sum_bins (count / N) |accuracy - confidence|."""
        gap = np.abs(np.asarray(self.confidence) - np.asarray(self.correct))
        return _ratio(gap.sum(axis=-1), np.asarray(self.count).sum(axis=-1))

    def bins(self) -> dict[str, np.ndarray]:
        """Counts, mean confidences and accuracies [bins], over all students, for a reliability diagram."""
        confidence, correct, count = (np.asarray(a).reshape(-1, np.shape(a)[-1]).sum(axis=0) for a in self)
        return {"count": count, "confidence": _ratio(confidence, count), "accuracy": _ratio(correct, count)}


class PerClass(NamedTuple):
    """Confusion counts on their way: examples of class i that student and teacher called j, each [..., K, K]."""

    student: jax.Array
    teacher: jax.Array

    def value(self) -> Any:
        """The student's accuracy on its worst class, among those that there are examples of."""
        matrix = np.asarray(self.student)
        present = matrix.sum(axis=-1) > 0
        return np.min(np.where(present, self.accuracy(), 1.0), axis=-1)

    def accuracy(self) -> np.ndarray:
        """The student's accuracy on each class [..., K]; 0 where there is no example."""
        matrix = np.asarray(self.student)
        return _ratio(np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(axis=-1))

    def confusion_difference(self) -> np.ndarray:
        """Share of each class's examples [..., K] whose predictions would have to move to become the teacher's."""
        student, teacher = np.asarray(self.student), np.asarray(self.teacher)
        return _ratio(np.abs(student - teacher).sum(axis=-1) / 2, student.sum(axis=-1))


class CKA(NamedTuple):
    """Linear centred kernel alignment on its way: sums and products of student's and teacher's features."""

    count: jax.Array  # type: ignore[assignment]  # as above
    student: jax.Array
    teacher: jax.Array
    student_student: jax.Array
    teacher_teacher: jax.Array
    student_teacher: jax.Array

    def value(self) -> Any:
        """||S^T T||_F^2 / (||S^T S||_F ||T^T T||_F) of the centred features, 0..1; 0 where one side never varies."""
        n, s, t, ss, tt, st = (np.asarray(a, np.float64) for a in self)
        n = np.maximum(n, 1)[..., None, None]

        def squared(products: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
            centred = products - one[..., :, None] * other[..., None, :] / n
            return np.sum(centred**2, axis=(-2, -1))

        scale = np.sqrt(squared(ss, s, s) * squared(tt, t, t))
        return _ratio(squared(st, s, t), scale)


Metric: TypeAlias = Callable[[Outputs, Outputs, Batch], Mean | Calibration | PerClass | CKA]


def _ratio(total: ArrayLike, count: ArrayLike) -> np.ndarray:
    """total / count, 0 where nothing was counted."""
    total, count = np.asarray(total), np.asarray(count)
    return total / np.where(count > 0, count, 1)


def _weights(values: jax.Array, batch: Batch) -> jax.Array:
    """The batch's mask as weights of the shape of the values [B, ...]; ones without a mask."""
    return jnp.broadcast_to(numerics.per_example(batch.get("mask", 1), values), values.shape)


def _mean(values: jax.Array, batch: Batch) -> Mean:
    weight = _weights(values, batch)
    return Mean(jnp.sum(jnp.where(weight > 0, values, 0) * weight), jnp.sum(weight))


def _classes(student: Outputs, batch: Batch) -> jax.Array:
    """Labels as integers [B, ...]: those of the batch, or the largest entry of soft ones."""
    label = jnp.asarray(batch["label"])
    return label if label.ndim < student.logits.ndim else jnp.argmax(label, axis=-1)


def _hits(student: Outputs, batch: Batch) -> jax.Array:
    """1.0 where the largest logit is the label's, else 0.0: [B, ...]."""
    return (jnp.argmax(student.logits, axis=-1) == _classes(student, batch)).astype(jnp.float32)


def accuracy(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """Share of examples whose largest logit is the label's.

    Args:
      student: Outputs with logits [B, ..., K].
      teacher: Not used.
      batch: Holds `label`, integers [B, ...] or probabilities [B, ..., K] (their largest entry counts).

    Returns:
      Mean in 0..1.
    """
    return _mean(_hits(student, batch), batch)


def top_k(k: int) -> Metric:
    """Share of examples whose label is among the k largest logits.

    Args:
      k: How many logits count, at least 1.

    Returns:
      A metric, Mean in 0..1.
    """

    def top(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
        _, best = jax.lax.top_k(student.logits, min(k, student.logits.shape[-1]))
        hits = jnp.any(best == _classes(student, batch)[..., None], axis=-1)
        return _mean(hits.astype(jnp.float32), batch)

    return top


def nll(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """Negative log-likelihood of integer labels, in nats.

    Args:
      student: Outputs with logits [B, ..., K].
      teacher: Not used.
      batch: Holds `label`, integers [B, ...].

    Returns:
      Mean.

    Raises:
      ValueError: If the labels are not integers, one for each row of logits.
    """
    (z,) = numerics.promote(student.logits)
    return _mean(-numerics.pick(numerics.log_softmax(z), numerics.check_labels(z, batch["label"])), batch)


def agreement(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """Share of examples on which student and teacher predict the same class.

    Args:
      student: Outputs with logits [B, ..., K].
      teacher: Outputs with logits [B, ..., K].
      batch: Its `mask`, if any, leaves padding out.

    Returns:
      Mean in 0..1.

    Raises:
      ValueError: If there is no teacher.
    """
    same = jnp.argmax(student.logits, axis=-1) == jnp.argmax(_logits_of(teacher), axis=-1)
    return _mean(same.astype(jnp.float32), batch)


def kl_to_teacher(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """KL(teacher || student) at temperature 1, in nats: how faithful the student is.

    Args:
      student: Outputs with logits [B, ..., K].
      teacher: Outputs with logits [B, ..., K].
      batch: Its `mask`, if any, leaves padding out.

    Returns:
      Mean.

    Raises:
      ValueError: If there is no teacher.
    """
    s, t = numerics.promote(student.logits, _logits_of(teacher))
    return _mean(numerics.kl_divergence(numerics.log_softmax(t), numerics.log_softmax(s)), batch)


def total_variation(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """Total variation between the teacher's and the student's distributions at temperature 1.

    sum_k |p_k - q_k| / 2

    Args:
      student: Outputs with logits [B, ..., K].
      teacher: Outputs with logits [B, ..., K].
      batch: Its `mask`, if any, leaves padding out.

    Returns:
      Mean in 0..1.

    Raises:
      ValueError: If there is no teacher.
    """
    s, t = numerics.promote(student.logits, _logits_of(teacher))
    q, p = (jnp.exp(numerics.log_softmax(z)) for z in (s, t))
    return _mean(jnp.sum(jnp.abs(p - q), axis=-1) / 2, batch)


def agreement_at(k: int) -> Metric:
    """Share of the teacher's k likeliest classes that are among the student's k likeliest.

    Args:
      k: How many classes count, at least 1; `agreement` is k = 1.

    Returns:
      A metric, Mean in 0..1.
    """

    def agree(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
        best = [jax.lax.top_k(z, min(k, z.shape[-1]))[1] for z in (student.logits, _logits_of(teacher))]
        shared = jnp.any(best[0][..., :, None] == best[1][..., None, :], axis=-1)
        return _mean(jnp.mean(shared.astype(jnp.float32), axis=-1), batch)

    return agree


def brier(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """Brier score: squared distance of the probabilities to the label.

    sum_k (q_k - y_k)^2

    Args:
      student: Outputs with logits [B, ..., K].
      teacher: Not used.
      batch: Holds `label`, integers [B, ...] or probabilities [B, ..., K].

    Returns:
      Mean in 0..2.

    Reference:
      Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review 1950,
      https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2
    """
    (z,) = numerics.promote(student.logits)
    label = jnp.asarray(batch["label"])
    y = label if label.ndim == z.ndim else jax.nn.one_hot(label, z.shape[-1], dtype=z.dtype)
    return _mean(jnp.sum(jnp.square(jnp.exp(numerics.log_softmax(z)) - y.astype(z.dtype)), axis=-1), batch)


def per_class(student: Outputs, teacher: Outputs, batch: Batch) -> PerClass:
    """Confusion counts of student and teacher; their `value()` is the student's accuracy on its worst class.

    Args:
      student: Outputs with logits [B, ..., K].
      teacher: Outputs with logits [B, ..., K].
      batch: Holds `label`, integers [B, ...] or probabilities [B, ..., K].

    Returns:
      Counts [K, K] of both.

    Raises:
      ValueError: If there is no teacher.
    """
    K = student.logits.shape[-1]
    label = _classes(student, batch)
    rows = jax.nn.one_hot(label.ravel(), K) * _weights(label.astype(jnp.float32), batch).ravel()[:, None]

    def confusion(logits: jax.Array) -> jax.Array:
        called = jax.nn.one_hot(jnp.argmax(logits, axis=-1).ravel(), K)
        return jnp.einsum("ni,nj->ij", rows, called, precision="highest")

    return PerClass(confusion(student.logits), confusion(_logits_of(teacher)))


def linear_cka(student: str, teacher: str) -> Metric:
    """Similarity of two features over a whole split, whatever their widths: linear centred kernel alignment.

    Args:
      student: Name of the student's feature, [B, C]; of maps and tokens [B, ..., C] the mean over positions counts.
      teacher: Name of the teacher's feature, likewise.

    Returns:
      A metric, CKA in 0..1.

    Reference:
      Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019,
      https://arxiv.org/abs/1905.00414
    """

    def compare(one: Outputs, other: Outputs, batch: Batch) -> CKA:
        s, t = numerics.promote(one.features[student], other.features[teacher])
        s, t = (jnp.mean(x, axis=tuple(range(1, x.ndim - 1))) for x in (s, t))
        weight = _weights(s[:, 0], batch).astype(s.dtype)
        s, t = (jnp.where(weight[:, None] > 0, x, 0) for x in (s, t))

        def product(x: jax.Array, y: jax.Array) -> jax.Array:
            return jnp.einsum("n,ni,nj->ij", weight, x, y, precision="highest")

        sums = jnp.sum(weight), weight @ s, weight @ t
        return CKA(*sums, product(s, s), product(t, t), product(s, t))

    return compare


def calibration(bins: int = 15) -> Metric:
    """Reliability bins of the top-class confidence; their `value()` is the expected calibration error.

    Args:
      bins: Number of equal-width bins of the confidence.

    Returns:
      A metric.

    Reference:
      Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, https://arxiv.org/abs/1706.04599
    """

    def measure(student: Outputs, teacher: Outputs, batch: Batch) -> Calibration:
        (z,) = numerics.promote(student.logits)
        confidence = jnp.exp(jnp.max(numerics.log_softmax(z), axis=-1))
        weight = _weights(confidence, batch)
        confidence = jnp.where(weight > 0, confidence, 0)
        place = jnp.clip(jnp.ceil(confidence * bins) - 1, 0, bins - 1).astype(jnp.int32)
        member = jax.nn.one_hot(place.ravel(), bins, dtype=z.dtype) * weight.ravel()[:, None]
        # Sums, not a matrix product, which accelerators would round to fewer digits.
        total, hits = (jnp.sum(member * x.ravel()[:, None], axis=0) for x in (confidence, _hits(student, batch)))
        return Calibration(total, hits, member.sum(axis=0))

    return measure


def _logits_of(teacher: Outputs) -> Any:
    if teacher.logits is None:
        raise ValueError(
            "this metric compares the student with a teacher, but there is none: measure CLASSIFICATION alone, or give "
            "the step a teacher."
        )
    return teacher.logits


def values(accumulated: Mapping[str, Mean | Calibration | PerClass | CKA]) -> dict[str, Any]:
    """Values of accumulators.

    Args:
      accumulated: Name -> accumulator, of one student or stacked [S, ...].

    Returns:
      Name -> float or array [S].
    """
    return {name: a.value() for name, a in accumulated.items()}


CLASSIFICATION: Mapping[str, Metric] = {"accuracy": accuracy, "nll": nll, "ece": calibration()}
"""What can be said of a classifier without a teacher."""

DISTILLATION: Mapping[str, Metric] = {**CLASSIFICATION, "agreement": agreement, "kl": kl_to_teacher}
"""The same, and how close the student is to its teacher."""
