"""Metrics of regressors, whose outputs are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import numerics
from jaxkd.labels import check_numbers, label_field
from jaxkd.metrics.accumulators import Mean, as_matrix, batch_mean, module_of, ratio, weights_of, wide
from jaxkd.types import Batch, Metric, Outputs


class RootMean(NamedTuple):
    """Accumulator of the root of a mean.

    Attributes:
      total: Sum of the weighted values.
      count: Sum of the weights.
    """

    total: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, which is not needed here

    def value(self) -> Any:
        """Root of total / count; 0 if nothing was counted.

        Returns:
          Scalar, or [S] for stacked students.
        """
        return module_of(*self).sqrt(ratio(self.total, self.count))


class R2(NamedTuple):
    """Accumulator of the coefficient of determination: four sums for each output.

    Attributes:
      count: Sum of the weights, [..., D].
      label: Sum of the labels less the centre, [..., D].
      squared: Sum of their squares, [..., D].
      residual: Sum of the squared errors, [..., D].
    """

    count: jax.Array  # type: ignore[assignment]  # as above
    label: jax.Array
    squared: jax.Array
    residual: jax.Array

    def value(self) -> Any:
        """R^2 of each output, averaged over the outputs: 1 for a perfect regressor, 0 for the labels' mean.

        1 - residual / sum (y - mean(y))^2

        NaN where the labels do not vary, or so little against their distance from the centre (less than 1 %) that
        rounding decides.

        Returns:
          Scalar up to 1, or [S] for stacked students.
        """
        xp = module_of(*self)
        n, label, squared, residual = wide(*self)
        spread = squared - ratio(label**2, n)
        known = spread > 1e-4 * squared
        return xp.mean(xp.where(known, 1 - residual / xp.where(known, spread, 1), xp.nan), axis=-1)


def mae(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """Mean absolute error, in units of the labels.

    Args:
      student: Outputs with "logits" [B], [B, 1] or [B, ..., D], which are the predicted numbers.
      teacher: Not used.
      batch: Holds `label`, numbers of the same shape; or [B] for [B, 1].

    Returns:
      Mean.
    """
    return batch_mean(jnp.abs(_errors(student, batch)[0]), batch)


def rmse(student: Outputs, teacher: Outputs, batch: Batch) -> RootMean:
    """Root of the mean squared error, in units of the labels.

    Args:
      student: Outputs with "logits" [B], [B, 1] or [B, ..., D], which are the predicted numbers.
      teacher: Not used.
      batch: Holds `label`, numbers of the same shape; or [B] for [B, 1].

    Returns:
      Root of a mean.
    """
    return RootMean(*batch_mean(jnp.square(_errors(student, batch)[0]), batch))


def r2(centre: float = 0.0) -> Metric:
    """Coefficient of determination R^2: the part of the labels' variance that the predictions explain.

    Args:
      centre: A number near the labels' mean, if that is far from 0. Sums of squares are taken around it, so that
        float32 holds them; the value does not depend on it.

    Returns:
      A metric, R2 up to 1.
    """

    def measure(student: Outputs, teacher: Outputs, batch: Batch) -> R2:
        error, y = _errors(student, batch)
        weight = weights_of(error, batch)

        def total(values: jax.Array) -> jax.Array:
            return jnp.sum(as_matrix(jnp.where(weight > 0, values, 0) * weight), axis=0)

        moved = y - jnp.asarray(centre, y.dtype)
        return R2(total(jnp.ones_like(y)), total(moved), total(jnp.square(moved)), total(jnp.square(error)))

    return measure


def _errors(student: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Predictions less labels, and the labels; NaN where a label is no finite number."""
    (z,) = numerics.promote(student.logits)
    label = check_numbers(z, label_field(batch))
    return label.mark(z - label.values), label.values


REGRESSION: Mapping[str, Metric] = {"mae": mae, "rmse": rmse, "r2": r2()}
"""Metrics of a regressor that need no teacher."""
