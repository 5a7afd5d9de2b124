"""Evaluation metrics that accumulate as sums over batches and are divided once, so padding never counts.

A metric is a pure function (student, teacher, batch) -> accumulator; accumulators are added leaf by leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import numerics
from jaxkd.types import Batch, Outputs


class Mean(NamedTuple):
    """A mean on its way: `total` / `count`."""

    total: jax.Array
    count: jax.Array

    def value(self) -> Any:
        """The mean; 0 where nothing was counted."""
        return np.asarray(self.total) / np.maximum(np.asarray(self.count), 1)


class Calibration(NamedTuple):
    """Reliability bins on their way: sums of confidence and of hits, and counts, each [..., bins]."""

    confidence: jax.Array
    correct: jax.Array
    count: jax.Array

    def value(self) -> Any:
        """Expected calibration error: sum_bins (count / N) |accuracy - confidence|."""
        gap = np.abs(np.asarray(self.confidence) - np.asarray(self.correct))
        return gap.sum(axis=-1) / np.maximum(np.asarray(self.count).sum(axis=-1), 1)

    def bins(self) -> dict[str, np.ndarray]:
        """Counts, mean confidences and accuracies [bins], over all students, for a reliability diagram."""
        sums = [np.asarray(a).reshape(-1, np.shape(a)[-1]).sum(axis=0) for a in self]
        count = np.maximum(sums[2], 1)
        return {"count": sums[2], "confidence": sums[0] / count, "accuracy": sums[1] / count}


Metric: TypeAlias = Callable[[Outputs, Outputs, Batch], Mean | Calibration]


def _mean(values: jax.Array, batch: Batch) -> Mean:
    weight = jnp.ones(values.shape) if "mask" not in batch else numerics.per_example(batch["mask"], values * 1.0)
    weight = jnp.broadcast_to(weight, values.shape).astype(jnp.float32)
    return Mean(jnp.sum(jnp.where(weight > 0, values * weight, 0)), jnp.sum(weight))


def accuracy(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """Share of examples whose largest logit is the label's.

    Args:
      student: Outputs with logits [B, ..., K].
      teacher: Not used.
      batch: Holds `label`, integers [B, ...] or probabilities [B, ..., K] (their largest entry counts).

    Returns:
      Mean in 0..1.
    """
    label = batch["label"]
    hard = label if label.ndim < student.logits.ndim else jnp.argmax(label, axis=-1)
    return _mean((jnp.argmax(student.logits, axis=-1) == hard).astype(jnp.float32), batch)


def top_k(k: int) -> Metric:
    """Share of examples whose label is among the k largest logits.

    Args:
      k: How many logits count, at least 1.

    Returns:
      A metric, Mean in 0..1.
    """

    def top(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
        _, best = jax.lax.top_k(student.logits, min(k, student.logits.shape[-1]))
        return _mean(jnp.any(best == batch["label"][..., None], axis=-1).astype(jnp.float32), batch)

    return top


def nll(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """Negative log-likelihood of integer labels, in nats.

    Args:
      student: Outputs with logits [B, ..., K].
      teacher: Not used.
      batch: Holds `label`, integers [B, ...].

    Returns:
      Mean.
    """
    (z,) = numerics.promote(student.logits)
    log_q = jnp.take_along_axis(numerics.log_softmax(z), batch["label"][..., None], axis=-1)[..., 0]
    return _mean(-log_q, batch)


def agreement(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """Share of examples on which student and teacher predict the same class.

    Args:
      student: Outputs with logits [B, ..., K].
      teacher: Outputs with logits [B, ..., K].
      batch: Its `mask`, if any, leaves padding out.

    Returns:
      Mean in 0..1.
    """
    same = jnp.argmax(student.logits, axis=-1) == jnp.argmax(teacher.logits, axis=-1)
    return _mean(same.astype(jnp.float32), batch)


def kl_to_teacher(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """KL(teacher || student) at temperature 1, in nats: how faithful the student is.

    Args:
      student: Outputs with logits [B, ..., K].
      teacher: Outputs with logits [B, ..., K].
      batch: Its `mask`, if any, leaves padding out.

    Returns:
      Mean.
    """
    s, t = numerics.promote(student.logits, teacher.logits)
    return _mean(numerics.kl_divergence(numerics.log_softmax(t), numerics.log_softmax(s)), batch)


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
        correct = (jnp.argmax(z, axis=-1) == batch["label"]).astype(z.dtype)
        weight = jnp.broadcast_to(numerics.per_example(batch.get("mask", 1), confidence), confidence.shape)
        place = jnp.clip(jnp.ceil(confidence * bins) - 1, 0, bins - 1).astype(jnp.int32)
        member = jax.nn.one_hot(place.ravel(), bins, dtype=z.dtype) * weight.ravel()[:, None]
        return Calibration(confidence.ravel() @ member, correct.ravel() @ member, member.sum(axis=0))

    return measure


CLASSIFICATION: Mapping[str, Metric] = {"accuracy": accuracy, "nll": nll, "ece": calibration()}
"""What can be said of a classifier without a teacher."""

DISTILLATION: Mapping[str, Metric] = {**CLASSIFICATION, "agreement": agreement, "kl": kl_to_teacher}
"""The same, and how close the student is to its teacher."""
