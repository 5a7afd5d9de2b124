"""The one mean over examples that a term takes, with padding masks, weights and micro-batches.

Examples that do not count are taken out of a loss's arguments before it is called: left out afterwards, a NaN of theirs
would still be NaN in the gradient, as 0 * NaN.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import numerics
from jaxkd.objectives.paths import read_field
from jaxkd.types import WHOLE, Batch, PyTree, Whole


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
    _check_weights(like, batch, where)
    weight, whole = _weight(like, batch, where), batch.get(WHOLE)
    if weight is None or whole is None:
        return mean(weight)
    usual = jnp.mean(_weight(like, whole.batch, where))
    return mean(weight) * jnp.mean(weight) / jnp.where(usual > 0, usual, 1)


def counting(batch: Batch, where: str | None) -> jax.Array | None:
    """Booleans [B, ...] of the examples or tokens that count; None if there is neither a mask nor a weight.

    Args:
      batch: The batch; its field `mask`, if there is one, counts as a weight.
      where: Field of the batch with the term's own weights, over leading axes; none if None.

    Returns:
      True where all weights differ from 0.
    """
    fields = [jnp.asarray(m).astype(bool) for _, m in _weights(batch, where)]
    rank = max((m.ndim for m in fields), default=0)
    same_rank = [jnp.expand_dims(m, tuple(range(m.ndim, rank))) for m in fields]
    return functools.reduce(jnp.logical_and, same_rank) if fields else None


def only_counted(tree: PyTree, counts: jax.Array | None) -> PyTree:
    """Arguments of a loss in which those that do not count are replaced by the first that does; by 0 if none does.

    Like that no NaN and no label of a masked example reaches the loss, its gradient, a batch norm or a memory.

    Args:
      tree: Arrays [B, ...]; those of another leading axis are left as they are.
      counts: From `counting`.

    Returns:
      The same tree. Of tokens, when the weights are of tokens, only numbers that are not finite are replaced.
    """
    return tree if counts is None else jax.tree.map(functools.partial(_only_counted, counts=counts), tree)


def _only_counted(x: jax.Array, counts: jax.Array) -> jax.Array:
    x, shared = jnp.asarray(x), 0  # leading axes that both have
    while shared < min(x.ndim, counts.ndim) and counts.shape[shared] in (1, x.shape[shared]):
        shared += 1
    if x.ndim > counts.ndim + 1:
        shared = min(shared, 1)  # as attention [B, heads, L, L] under weights [B, L]: it has no axis of tokens there
    if not shared or jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return x
    kept = jnp.broadcast_to(jnp.any(counts, axis=tuple(range(shared, counts.ndim))), x.shape[:shared])
    first = (jnp.arange(kept.size) == jnp.argmax(kept)).reshape(kept.shape) & kept
    first, kept = (jnp.expand_dims(m, tuple(range(shared, x.ndim))) for m in (first, kept))
    stand_in = jnp.sum(jnp.where(first, x, 0), axis=tuple(range(shared)), keepdims=True).astype(x.dtype)
    if shared > 1 and x.ndim > shared:
        kept = kept | jnp.isfinite(x)
    return jnp.where(kept, x, stand_in)


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
    fields = _weights(batch, where)
    return math.prod(numerics.per_example(m, values) for _, m in fields) if fields else None


def _weights(batch: Batch, where: str | None) -> list[tuple[str, Any]]:
    """Names and arrays of the masks and weights that there are."""
    padding = [("mask", batch["mask"])] if "mask" in batch else []
    return padding + ([(where, read_field(batch, where))] if where else [])


def _check_weights(values: jax.Array, batch: Batch, where: str | None) -> None:
    for name, m in _weights(batch, where):
        if jnp.ndim(m) > values.ndim or any(a not in (1, b) for a, b in zip(jnp.shape(m), values.shape, strict=False)):
            raise ValueError(
                f"the field {name!r} has shape {jnp.shape(m)} but the loss gives values of shape {values.shape}: give "
                "weights over their leading axes, or the mask to the loss itself, as one of its arguments."
            )


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
