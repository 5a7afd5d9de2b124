"""Accumulators: sums over batches that are divided once, so that padding never counts."""

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
        return ratio(self.total, self.count)


class Calibration(NamedTuple):
    """Reliability bins on their way: sums of confidence and of hits, and counts, each [..., bins]."""

    confidence: jax.Array
    correct: jax.Array
    count: jax.Array  # type: ignore[assignment]  # as above

    def value(self) -> Any:
        """Expected calibration error: sum_bins (count / N) |accuracy - confidence|."""
        gap = np.abs(np.asarray(self.confidence) - np.asarray(self.correct))
        return ratio(gap.sum(axis=-1), np.asarray(self.count).sum(axis=-1))

    def bins(self) -> dict[str, np.ndarray]:
        """Counts, mean confidences and accuracies [bins], over all students, for a reliability diagram."""
        confidence, correct, count = (np.asarray(a).reshape(-1, np.shape(a)[-1]).sum(axis=0) for a in self)
        return {"count": count, "confidence": ratio(confidence, count), "accuracy": ratio(correct, count)}


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
        return ratio(np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(axis=-1))

    def confusion_difference(self) -> np.ndarray:
        """Share of each class's examples [..., K] whose predictions would have to move to become the teacher's."""
        student, teacher = np.asarray(self.student), np.asarray(self.teacher)
        return ratio(np.abs(student - teacher).sum(axis=-1) / 2, student.sum(axis=-1))


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
        return ratio(squared(st, s, t), scale)


Metric: TypeAlias = Callable[[Outputs, Outputs, Batch], Mean | Calibration | PerClass | CKA]


def ratio(total: ArrayLike, count: ArrayLike) -> np.ndarray:
    """total / count, 0 where nothing was counted."""
    total, count = np.asarray(total), np.asarray(count)
    return total / np.where(count > 0, count, 1)


def weights_of(values: jax.Array, batch: Batch) -> jax.Array:
    """The batch's mask as weights of the shape of the values [B, ...]; ones without a mask."""
    return jnp.broadcast_to(numerics.per_example(batch.get("mask", 1), values), values.shape)


def batch_mean(values: jax.Array, batch: Batch) -> Mean:
    """Accumulates the mean of values [B, ...] over the examples that the batch's mask keeps."""
    weight = weights_of(values, batch)
    return Mean(jnp.sum(jnp.where(weight > 0, values, 0) * weight), jnp.sum(weight))


def teacher_logits(teacher: Outputs) -> Any:
    """The teacher's logits, or a sentence where there is no teacher."""
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
