"""Metrics of classifiers, which compare the student with the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import numerics
from jaxkd.labels import Labels, are_classes, check_labels, check_probabilities, label_field
from jaxkd.metrics.accumulators import (
    Calibration,
    Mean,
    PerClass,
    batch_mean,
    module_of,
    ratio,
    teacher_logits,
    weights_of,
    wide,
)
from jaxkd.types import Batch, Metric, Outputs


class Matthews(NamedTuple):
    """Accumulator of the Matthews correlation: a confusion matrix, whose entry (i, j) counts class i predicted as j.

    Attributes:
      confusion: Counts, [..., K, K].
    """

    confusion: jax.Array

    def value(self) -> Any:
        """Correlation of labels and predictions; 0 if all labels, or all predictions, are of one class.

        (c n - sum_k p_k t_k) / sqrt((n^2 - sum_k p_k^2) (n^2 - sum_k t_k^2))

        with n examples, c of them correct, t_k of class k, p_k predicted as k.

        Returns:
          Scalar in -1..1, or [S] for stacked students.
        """
        xp = module_of(self.confusion)
        (matrix,) = wide(self.confusion)
        labelled, predicted = matrix.sum(axis=-1), matrix.sum(axis=-2)
        total, correct = labelled.sum(axis=-1), xp.trace(matrix, axis1=-2, axis2=-1)
        spread = [total**2 - (counts**2).sum(axis=-1) for counts in (predicted, labelled)]
        covariance = correct * total - (labelled * predicted).sum(axis=-1)
        return ratio(covariance, xp.sqrt(spread[0]) * xp.sqrt(spread[1]))


class BalancedAccuracy(NamedTuple):
    """Accumulator of the balanced accuracy: a confusion matrix, whose entry (i, j) counts class i predicted as j.

    Attributes:
      confusion: Counts, [..., K, K].
    """

    confusion: jax.Array

    def value(self) -> Any:
        """Recall of each class, averaged over the classes that have examples; 0 if there are none.

        Returns:
          Scalar in 0..1, or [S] for stacked students.
        """
        xp = module_of(self.confusion)
        (matrix,) = wide(self.confusion)
        labelled = matrix.sum(axis=-1)
        recall = ratio(xp.diagonal(matrix, axis1=-2, axis2=-1), labelled)
        return ratio(recall.sum(axis=-1), (labelled != 0).sum(axis=-1))


def _classes(student: Outputs, batch: Batch) -> Labels:
    """Classes [B, ...]: the batch's integer labels, or the most probable classes of soft labels."""
    z, label = jnp.asarray(student.logits), label_field(batch)
    if are_classes(z, label):
        return check_labels(z, label)
    soft = check_probabilities(z, label)
    return soft._replace(values=jnp.argmax(soft.values, axis=-1))


def _hits(student: Outputs, batch: Batch) -> jax.Array:
    """Indicator [B, ...] of correct predictions, float32; NaN where the label is no class."""
    label = _classes(student, batch)
    return label.mark((jnp.argmax(student.logits, axis=-1) == label.values).astype(jnp.float32))


def accuracy(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """Accuracy: fraction of examples whose largest logit is that of the label.

    Args:
      student: Outputs with logits [B, ..., K].
      teacher: Not used.
      batch: Holds `label`, integers [B, ...] or probabilities [B, ..., K], of which the most probable class counts.

    Returns:
      Mean in 0..1.
    """
    return batch_mean(_hits(student, batch), batch)


def top_k(k: int) -> Metric:
    """Top-k accuracy: fraction of examples whose label is among the k largest logits.

    Args:
      k: Number of logits that count, at least 1.

    Returns:
      A metric, Mean in 0..1.

    Raises:
      ValueError: If k is no such number.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"the top {k!r} were asked for: give an integer of at least 1.")

    def top(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
        label = _classes(student, batch)
        _, best = jax.lax.top_k(student.logits, min(k, student.logits.shape[-1]))
        hits = jnp.any(best == label.values[..., None], axis=-1)
        return batch_mean(label.mark(hits.astype(jnp.float32)), batch)

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
    label = check_labels(z, label_field(batch))
    return batch_mean(label.mark(-numerics.pick(numerics.log_softmax(z), label.values)), batch)


def brier(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """Brier score: squared distance between the predicted probabilities and the label.

    sum_k (q_k - y_k)^2 with q = softmax(student) and y the label's distribution

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
    hard = are_classes(z, label_field(batch))
    label = check_labels(z, label_field(batch)) if hard else check_probabilities(z, label_field(batch))
    y = jax.nn.one_hot(label.values, z.shape[-1], dtype=z.dtype) if hard else label.values
    return batch_mean(label.mark(jnp.sum(jnp.square(jnp.exp(numerics.log_softmax(z)) - y), axis=-1)), batch)


def per_class(student: Outputs, teacher: Outputs, batch: Batch) -> PerClass:
    """Confusion matrices of student and teacher, whose `value()` is the student's accuracy on its worst class.

    Args:
      student: Outputs with logits [B, ..., K].
      teacher: Outputs with logits [B, ..., K].
      batch: Holds `label`, integers [B, ...] or probabilities [B, ..., K].

    Returns:
      Counts [K, K] of student and teacher.

    Raises:
      ValueError: If there is no teacher.
    """
    of_teacher = teacher_logits(teacher)
    return PerClass(_confusion(student.logits, student, batch), _confusion(of_teacher, student, batch))


def matthews(student: Outputs, teacher: Outputs, batch: Batch) -> Matthews:
    """Matthews correlation of the predictions with the labels, where classes are of unequal size, as in CoLA.

    Args:
      student: Outputs with logits [B, ..., K].
      teacher: Not used.
      batch: Holds `label`, integers [B, ...] or probabilities [B, ..., K], of which the most probable class counts.

    Returns:
      Counts, whose `value()` is 1 for perfect predictions, 0 for those of a constant, -1 for two classes swapped.

    Reference:
      Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", Computational Biology
      and Chemistry 2004, https://doi.org/10.1016/j.compbiolchem.2004.09.006
    """
    return Matthews(_confusion(student.logits, student, batch))


def balanced_accuracy(student: Outputs, teacher: Outputs, batch: Batch) -> BalancedAccuracy:
    """Balanced accuracy: the mean of the classes' recalls, where classes are of unequal size, as in medicine.

    Args:
      student: Outputs with logits [B, ..., K].
      teacher: Not used.
      batch: Holds `label`, integers [B, ...] or probabilities [B, ..., K], of which the most probable class counts.

    Returns:
      Counts, whose `value()` is 1 / K for the predictions of a constant.

    Reference:
      Brodersen, Ong, Stephan, Buhmann, "The Balanced Accuracy and Its Posterior Distribution", ICPR 2010,
      https://doi.org/10.1109/ICPR.2010.764
    """
    return BalancedAccuracy(_confusion(student.logits, student, batch))


def _confusion(logits: jax.Array, student: Outputs, batch: Batch) -> jax.Array:
    """Confusion matrix [K, K] of the predictions by some logits, under the batch's mask."""
    K = student.logits.shape[-1]
    label = _classes(student, batch)
    weight = weights_of(label.values.astype(jnp.float32), batch)
    weight = jnp.where(weight > 0, label.mark(weight), 0)
    rows = jax.nn.one_hot(label.values.ravel(), K) * weight.ravel()[:, None]
    called = jax.nn.one_hot(jnp.argmax(logits, axis=-1).ravel(), K)
    return jnp.einsum("ni,nj->ij", rows, called, precision="highest")


def calibration(bins: int = 15) -> Metric:
    """Reliability bins of the confidence (the largest probability), whose `value()` is the expected calibration error.

    Args:
      bins: Number of bins of equal width.

    Returns:
      A metric.

    Reference:
      Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, https://arxiv.org/abs/1706.04599
    """

    def measure(student: Outputs, teacher: Outputs, batch: Batch) -> Calibration:
        (z,) = numerics.promote(student.logits)
        confidence = jnp.exp(jnp.max(numerics.log_softmax(z), axis=-1))
        weight = weights_of(confidence, batch)
        confidence = jnp.where(weight > 0, confidence, 0)
        place = jnp.clip(jnp.ceil(confidence * bins) - 1, 0, bins - 1).astype(jnp.int32)
        member = jax.nn.one_hot(place.ravel(), bins, dtype=z.dtype) * weight.ravel()[:, None]
        # No matrix product, which accelerators would round to fewer digits.
        hits = jnp.where(weight > 0, _hits(student, batch), 0)
        total, hits = (jnp.sum(member * x.ravel()[:, None], axis=0) for x in (confidence, hits))
        return Calibration(total, hits, member.sum(axis=0))

    return measure


CLASSIFICATION: Mapping[str, Metric] = {"accuracy": accuracy, "nll": nll, "ece": calibration()}
"""Metrics of a classifier that need no teacher."""
