"""Accumulators of metrics: sums that are added over batches and divided once, so that padding never counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.types import Batch, Outputs


class Accumulator(Protocol):
    """Sums of a metric, which are added over batches, in fields that are arrays."""

    def value(self) -> Any:
        """The metric, a scalar, or [S] for stacked students."""


class Mean(NamedTuple):
    """Accumulator of a mean.

    Attributes:
      total: Sum of the weighted values.
      count: Sum of the weights.
    """

    total: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, which is not needed here

    def value(self) -> Any:
        """Mean, total / count; 0 if nothing was counted.

        Returns:
          Scalar, or [S] for stacked students.
        """
        return ratio(self.total, self.count)


class Calibration(NamedTuple):
    """Accumulator of reliability bins.

    Attributes:
      confidence: Sum of the confidences in each bin, [..., bins].
      correct: Number of correct predictions in each bin, [..., bins].
      count: Number of examples in each bin, [..., bins].
    """

    confidence: jax.Array
    correct: jax.Array
    count: jax.Array  # type: ignore[assignment]  # as above

    def value(self) -> Any:
        """Expected calibration error.

        ECE = sum_b (count_b / N) |accuracy_b - confidence_b|

        Returns:
          Scalar in 0..1, or [S] for stacked students.
        """
        xp = module_of(*self)
        gap = xp.abs(xp.asarray(self.confidence) - xp.asarray(self.correct))
        return ratio(gap.sum(axis=-1), xp.asarray(self.count).sum(axis=-1))

    def bins(self) -> dict[str, np.ndarray]:
        """Bins of a reliability diagram, pooled over all students.

        Returns:
          `count`, mean `confidence` and `accuracy`, each [bins], as `jaxkd.reports.plot_reliability` takes them.
        """
        confidence, correct, count = (np.asarray(a).reshape(-1, np.shape(a)[-1]).sum(axis=0) for a in self)
        return {"count": count, "confidence": ratio(confidence, count), "accuracy": ratio(correct, count)}


class PerClass(NamedTuple):
    """Accumulator of two confusion matrices, whose entry (i, j) counts the examples of class i predicted as j.

    Attributes:
      student: Counts of the student's predictions, [..., K, K].
      teacher: Counts of the teacher's predictions, [..., K, K].
    """

    student: jax.Array
    teacher: jax.Array

    def value(self) -> Any:
        """Accuracy of the student on its worst class, among the classes that have examples.

        Returns:
          Scalar in 0..1, or [S] for stacked students.
        """
        xp = module_of(self.student)
        matrix = xp.asarray(self.student)
        present = matrix.sum(axis=-1) != 0
        return xp.min(xp.where(present, self.accuracy(), 1.0), axis=-1)

    def accuracy(self) -> Any:
        """Accuracy of the student on each class; 0 for classes without examples.

        Returns:
          Array [..., K] in 0..1.
        """
        xp = module_of(self.student)
        matrix = xp.asarray(self.student)
        return ratio(xp.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(axis=-1))

    def confusion_difference(self) -> np.ndarray:
        """Total variation between the student's and the teacher's predictions on the examples of each class.

        d_i = sum_j |student_ij - teacher_ij| / (2 N_i)

        Returns:
          Array [..., K] in 0..1.
        """
        student, teacher = np.asarray(self.student), np.asarray(self.teacher)
        return ratio(np.abs(student - teacher).sum(axis=-1) / 2, student.sum(axis=-1))


class CKA(NamedTuple):
    """Accumulator of linear centred kernel alignment: sums of the features of both sides and of their products.

    Attributes:
      count: Sum of the weights.
      student: Sum of the student's features s, [..., C].
      teacher: Sum of the teacher's features t, [..., D].
      student_student: Sum of s s^T, [..., C, C].
      teacher_teacher: Sum of t t^T, [..., D, D].
      student_teacher: Sum of s t^T, [..., C, D].
    """

    count: jax.Array  # type: ignore[assignment]  # as above
    student: jax.Array
    teacher: jax.Array
    student_student: jax.Array
    teacher_teacher: jax.Array
    student_teacher: jax.Array

    def value(self) -> Any:
        """Linear CKA of the centred features S [N, C] and T [N, D]; 0 if one side is constant.

        CKA = ||S^T T||_F^2 / (||S^T S||_F ||T^T T||_F)

        Returns:
          Scalar in 0..1, or [S] for stacked students.
        """
        xp = module_of(*self)
        n, s, t, ss, tt, st = (xp.asarray(a, np.float64 if xp is np else a.dtype) for a in self)
        n = xp.maximum(n, 1)[..., None, None]

        def squared(products: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
            centred = products - one[..., :, None] * other[..., None, :] / n
            rounding = 32 * np.finfo(np.float32).eps * xp.max(xp.abs(products), axis=(-2, -1))  # of the sums
            total = xp.sum(centred**2, axis=(-2, -1))
            return xp.where(xp.max(xp.abs(centred), axis=(-2, -1)) <= rounding, 0, total)

        scale = xp.sqrt(squared(ss, s, s) * squared(tt, t, t))
        return ratio(squared(st, s, t), scale)


def module_of(*arrays: Any) -> Any:
    """Module that computes with arrays: NumPy on the host, JAX inside a program, such as a step that reports metrics.

    Args:
      *arrays: Arrays, or numbers.

    Returns:
      `jax.numpy` if one of them is traced, else `numpy`.
    """
    return jnp if any(isinstance(x, jax.core.Tracer) for x in arrays) else np


def as_matrix(values: jax.Array) -> jax.Array:
    """Values of one label or output, or of several, as a matrix with one column for each.

    Args:
      values: [B], or [B, ..., L].

    Returns:
      [N, 1], or [N, L].
    """
    return values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)


def wide(*arrays: Any) -> tuple[Any, ...]:
    """Sums in float64 on the host; inside a program, where there may be none, as they are.

    Args:
      *arrays: Arrays.

    Returns:
      The same, in the order given.
    """
    xp = module_of(*arrays)
    return tuple(xp.asarray(x, np.float64 if xp is np else x.dtype) for x in arrays)


def ratio(total: ArrayLike, count: ArrayLike) -> Any:
    """Ratio total / count, and 0 where the count is 0.

    Args:
      total: Any shape.
      count: Not negative, of a shape that broadcasts to it.

    Returns:
      Array of the shape of `total`.
    """
    xp = module_of(total, count)
    counted = xp.asarray(count)
    return xp.asarray(total) / xp.where(counted == 0, 1, counted)  # and a count that is NaN is seen


def weights_of(values: jax.Array, batch: Batch) -> jax.Array:
    """Weights of the values of a batch: its mask, or ones if it has none.

    Args:
      values: Array [B, ...].
      batch: The batch; `mask` is [B] or has further axes of the values.

    Returns:
      Array of the shape of `values`.
    """
    return jnp.broadcast_to(numerics.per_example(batch.get("mask", 1), values), values.shape)


def batch_mean(values: jax.Array, batch: Batch) -> Mean:
    """Accumulates the mean of values over the examples that the batch's mask keeps.

    Args:
      values: Array [B, ...].
      batch: The batch.

    Returns:
      The accumulator.
    """
    weight = weights_of(values, batch)
    return Mean(jnp.sum(jnp.where(weight > 0, values, 0) * weight), jnp.sum(weight))


def teacher_logits(teacher: Outputs) -> Any:
    """Logits of the teacher, for metrics that need one.

    Args:
      teacher: Outputs of the teacher.

    Returns:
      Logits [B, ..., K].

    Raises:
      ValueError: If there is no teacher.
    """
    if teacher.logits is None:
        raise ValueError(
            "this metric compares the student with a teacher, but there is none: measure CLASSIFICATION alone, or give "
            "the step a teacher."
        )
    return teacher.logits


def values(accumulated: Mapping[str, Accumulator]) -> dict[str, Any]:
    """Computes the values of accumulators.

    Args:
      accumulated: Name -> accumulator, of one student or of stacked students [S, ...].

    Returns:
      Name -> float or array [S].
    """
    return {name: a.value() for name, a in accumulated.items()}
