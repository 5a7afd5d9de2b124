"""The one mean over examples that a term takes, with padding masks, weights and micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import numerics
from jaxkd.objectives.paths import read_field
from jaxkd.types import WHOLE, Batch, Whole


def mean_of(values: jax.Array, batch: Batch, where: str | None) -> jax.Array:
    """Mean of a loss's values over examples, weighted by the batch's padding mask and the term's own weights.

    In a micro-batch it is scaled so that the mean over all micro-batches is that of the whole batch.

    Args:
      values: [B, ...], or the scalar of a loss that couples the batch, which is returned as it is.
      batch: The batch; its field `mask`, if there is one, counts as a weight.
      where: Field of the batch with the term's own weights, over leading axes; none if None.

    Returns:
      Scalar.

    Raises:
      ValueError: If a scalar comes with a mask, or from a micro-batch that is not marked as approximate.
    """
    if values.ndim == 0:
        _check_coupled(_weight(values, batch, where), batch.get(WHOLE))
        return values
    return mean_over(values, lambda weight: numerics.masked_mean(values, weight), batch, where)


def mean_over(like: jax.Array, mean: Callable[[Any], jax.Array], batch: Batch, where: str | None) -> jax.Array:
    """Weighted mean over examples or tokens, scaled in a micro-batch as in `mean_of`.

    Args:
      like: Array [B, ...] of the examples or tokens, for the shape of the weights.
      mean: (weights, whose axes broadcast against `like`, or None) -> scalar, sum(w v) / sum(w).
      batch: The batch; its field `mask`, if there is one, counts as a weight.
      where: Field of the batch with the term's own weights, over leading axes; none if None.

    Returns:
      Scalar.
    """
    weight, whole = _weight(like, batch, where), batch.get(WHOLE)
    if weight is None or whole is None:
        return mean(weight)
    usual = jnp.mean(_weight(like, whole.batch, where))
    return mean(weight) * jnp.mean(weight) / jnp.where(usual > 0, usual, 1)


def weighed(values: jax.Array, factor: jax.Array) -> jax.Array:
    """Values multiplied by a factor for each example.

    Args:
      values: [B, ...].
      factor: [B, ...], over leading axes of the values.

    Returns:
      [B, ...].

    Raises:
      ValueError: If the values are a scalar, as of a loss that couples the batch.
    """
    if values.ndim == 0:
        raise ValueError(
            "this loss couples the batch and returns a scalar, so its examples cannot be weighed: leave `weigh` out."
        )
    return values * numerics.per_example(factor.astype(values.dtype), values)


def _weight(values: jax.Array, batch: Batch, where: str | None) -> Any:
    """Product of the masks that there are, with axes appended to broadcast against the values; or None."""
    masks = [batch["mask"]] if "mask" in batch else []
    masks += [read_field(batch, where)] if where else []
    return math.prod(numerics.per_example(m, values) for m in masks) if masks else None


def _check_coupled(weight: Any, whole: Whole | None) -> None:
    if weight is not None:
        raise ValueError(
            "this loss couples the batch and returns a scalar, so a mask over examples cannot be applied to it: "
            "give it whole batches (drop the remainder) and no `where`."
        )
    if whole is not None and not whole.approximate:
        raise ValueError(
            "this loss couples the batch, so its gradient is not the mean of those of micro-batches: use "
            "micro_batches=1, or approximate=True for the loss within each micro-batch."
        )
