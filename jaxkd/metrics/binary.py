"""Metrics of yes-or-no labels, one logit each: binary classifiers, and examples with any number of labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import numerics
from jaxkd.labels import Labels, check_binary, label_field
from jaxkd.metrics.accumulators import Mean, as_matrix, batch_mean, module_of, ratio, weights_of, wide
from jaxkd.types import Batch, Metric, Outputs

_LARGEST = float(np.arcsinh(1e4))


class F1(NamedTuple):
    """Accumulator of the F1 score: three counts for each label.

    Attributes:
      hits: Number of a yes that was predicted, [..., L].
      predicted: Number of predictions of yes, [..., L].
      labelled: Number of labels that are yes, [..., L].
    """

    hits: jax.Array
    predicted: jax.Array
    labelled: jax.Array

    def value(self) -> Any:
        """F1 of each label, averaged over the labels that occur or are predicted (macro); 0 if none is.

        2 hits / (predicted + labelled)

        Returns:
          Scalar in 0..1, or [S] for stacked students.
        """
        hits, predicted, labelled = map(module_of(*self).asarray, self)
        either = predicted + labelled
        each = ratio(2 * hits, either)
        return ratio(each.sum(axis=-1), (either > 0).sum(axis=-1))

    def micro(self) -> Any:
        """F1 of all labels together.

        Returns:
          Scalar in 0..1, or [S] for stacked students.
        """
        hits, predicted, labelled = (module_of(*self).sum(x, axis=-1) for x in self)
        return ratio(2 * hits, predicted + labelled)


class AUROC(NamedTuple):
    """Accumulator of the area under the receiver operating characteristic: two histograms of the logits of each label.

    Attributes:
      positive: Number of logits in each bin whose label is yes, [..., L, bins].
      negative: Number of logits in each bin whose label is no, [..., L, bins].
    """

    positive: jax.Array
    negative: jax.Array

    def value(self) -> Any:
        """Probability that a yes has a larger logit than a no, averaged over the labels that have both.

        Logits of one bin count as equal, which is half. NaN if no label has both.

        Returns:
          Scalar in 0..1, or [S] for stacked students.
        """
        positive, negative = wide(*self)
        below = negative.cumsum(axis=-1) - negative
        pairs = positive.sum(axis=-1) * negative.sum(axis=-1)
        return _mean_of_known((positive * (below + negative / 2)).sum(axis=-1), pairs)


class AveragePrecision(NamedTuple):
    """Accumulator of the average precision: two histograms of the logits of each label.

    Attributes:
      positive: Number of logits in each bin whose label is yes, [..., L, bins].
      negative: Number of logits in each bin whose label is no, [..., L, bins].
    """

    positive: jax.Array
    negative: jax.Array

    def value(self) -> Any:
        """Mean average precision (mAP): precision at each yes, averaged over them, then over the labels that have one.

        The precision at a bin counts all logits in it and above. NaN if no label has a yes.

        Returns:
          Scalar in 0..1, or [S] for stacked students.
        """
        positive, negative = wide(*self)
        hits, called = (x[..., ::-1].cumsum(axis=-1)[..., ::-1] for x in (positive, positive + negative))
        return _mean_of_known((positive * ratio(hits, called)).sum(axis=-1), positive.sum(axis=-1))


def binary_accuracy(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """Accuracy: fraction of the labels whose logit is above 0 for yes and not for no.

    Args:
      student: Outputs with logits [B], [B, 1] or [B, ..., L].
      teacher: Not used.
      batch: Holds `label`, 0 and 1 or probabilities of yes, of the logits' shape; or [B] for [B, 1].

    Returns:
      Mean in 0..1.
    """
    z, label = _checked(student, batch)
    return batch_mean(label.mark(((z > 0) == (label.values > 0.5)).astype(jnp.float32)), batch)


def binary_nll(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """Negative log-likelihood of a label, in nats: the binary cross-entropy.

    Args:
      student: Outputs with logits [B], [B, 1] or [B, ..., L].
      teacher: Not used.
      batch: Holds `label`, 0 and 1 or probabilities of yes, of the logits' shape; or [B] for [B, 1].

    Returns:
      Mean.
    """
    z, label = _checked(student, batch)
    yes, no = numerics.weighted_softplus(-z, label.values), numerics.weighted_softplus(z, 1 - label.values)
    return batch_mean(label.mark(yes + no), batch)


def f1(student: Outputs, teacher: Outputs, batch: Batch) -> F1:
    """F1 score: harmonic mean of precision and recall of a yes, which a logit above 0 predicts.

    Args:
      student: Outputs with logits [B], [B, 1] or [B, ..., L].
      teacher: Not used.
      batch: Holds `label`, 0 and 1 or probabilities of yes, of the logits' shape; or [B] for [B, 1].

    Returns:
      Counts, whose `value()` is the mean over the labels (macro) and whose `micro()` counts all labels together.
    """
    z, label = _checked(student, batch)
    weight = _weights(z, label, batch)
    predicted, labelled = z > 0, label.values > 0.5

    def count(where: jax.Array) -> jax.Array:
        return jnp.sum(as_matrix(jnp.where(where | jnp.isnan(weight), weight, 0)), axis=0)

    return F1(count(predicted & labelled), count(predicted), count(labelled))


def auroc(bins: int = 2048) -> Metric:
    """Area under the receiver operating characteristic, from histograms that add up exactly over batches and devices.

    The bins are of equal width in asinh(z) up to |z| = 1e4: about 0.01 wide around 0, 1 % of the logit far from it.

    Args:
      bins: Number of bins.

    Returns:
      A metric, AUROC in 0..1.

    Reference:
      Fawcett, "An Introduction to ROC Analysis", Pattern Recognition Letters 2006,
      https://doi.org/10.1016/j.patrec.2005.10.010
    """
    return lambda student, teacher, batch: AUROC(*_histograms(student, batch, bins))


def average_precision(bins: int = 2048) -> Metric:
    """Mean average precision (mAP), from the histograms of `auroc`.

    Args:
      bins: Number of bins.

    Returns:
      A metric, AveragePrecision in 0..1.
    """
    return lambda student, teacher, batch: AveragePrecision(*_histograms(student, batch, bins))


def _checked(student: Outputs, batch: Batch) -> tuple[jax.Array, Labels]:
    """Logits and labels of one shape."""
    (z,) = numerics.promote(student.logits)
    return z, check_binary(z, label_field(batch))


def _weights(z: jax.Array, label: Labels, batch: Batch) -> jax.Array:
    """Weight of each label, from the batch's mask; NaN where it counts but is none, or its logit is NaN."""
    weight = weights_of(z, batch)
    return jnp.where(weight > 0, label.mark(jnp.where(jnp.isnan(z), jnp.nan, weight)), 0)


def _histograms(student: Outputs, batch: Batch, bins: int) -> tuple[jax.Array, jax.Array]:
    """Weights of yes and of no in each bin, [L, bins]."""
    z, label = _checked(student, batch)
    weight = as_matrix(_weights(z, label, batch))
    yes, z = as_matrix(label.values) > 0.5, as_matrix(jnp.where(jnp.isnan(z), 0, z))
    place = jnp.clip(jnp.floor((jnp.arcsinh(z) / _LARGEST + 1) * (bins / 2)), 0, bins - 1).astype(jnp.int32)
    place = place + bins * jnp.arange(z.shape[1])[None]

    def histogram(chosen: jax.Array) -> jax.Array:
        empty = jnp.zeros(bins * z.shape[1], weight.dtype)
        return empty.at[place.ravel()].add(jnp.where(chosen, weight, 0).ravel()).reshape(-1, bins)

    return histogram(yes), histogram(~yes)


def _mean_of_known(total: Any, count: Any) -> Any:
    """Mean of total / count over the labels with a count; NaN if there are none, or if one of them is."""
    xp, known = module_of(total, count), count != 0
    each = xp.where(known, ratio(total, count), 0)
    return xp.where(known.any(axis=-1), ratio(each.sum(axis=-1), known.sum(axis=-1)), xp.nan)


BINARY: Mapping[str, Metric] = {"accuracy": binary_accuracy, "nll": binary_nll, "f1": f1, "auroc": auroc()}
"""Metrics of a classifier with one logit, for yes or no."""

MULTI_LABEL: Mapping[str, Metric] = {**BINARY, "map": average_precision()}
"""Metrics of a classifier with a logit for each of several labels, of which any number may be yes."""
