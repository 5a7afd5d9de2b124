"""Gradients of a batch that passes through the models in parts, one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxkd.types import WHOLE, Batch, PyTree, Term, TrainState, Variables, Whole

Derived: TypeAlias = tuple[jax.Array, PyTree, dict[str, PyTree], dict[str, jax.Array], dict[str, Any]]
"""Value, gradients, new state, the term's metrics, accumulated metrics."""

Derive: TypeAlias = Callable[[TrainState, Any], Derived]
"""(state, what is shared) -> all that an update needs."""

Share: TypeAlias = Callable[[Variables, Batch], Any]
"""(teacher_variables, batch) -> what does not depend on the student."""


def check_micro_batches(term: Term, count: int, approximate: bool) -> None:
    """Refuses to cut batches that the term does not allow to be cut.

    Args:
      term: The objective.
      count: Number of parts.
      approximate: Whether the term may see one part at a time all the same.

    Raises:
      ValueError: If the count is not positive, or the term owns what couples the batch.
    """
    if count < 1:
        raise ValueError(f"micro_batches is {count}: give at least 1.")
    if count > 1 and term.couples and not approximate:
        raise ValueError(
            "a batch norm or a memory in the term couples the batch, so its gradient is not the mean of those of "
            "micro-batches: use micro_batches=1, or approximate=True to let the term see one micro-batch after the "
            "other."
        )


def accumulated(
    prepare: Callable[[Batch], Batch], share: Share, derive: Derive, count: int, approximate: bool
) -> tuple[Share, Derive]:
    """The halves of a step on a whole batch, of which no more than one part is in memory at a time.

    Args:
      prepare: What is done to the whole batch.
      share: The teacher on one prepared part.
      derive: Value and gradients of one part.
      count: Number of parts.
      approximate: Whether losses that couple the batch may see one part at a time.

    Returns:
      `share` and `derive` of whole batches. The teacher sees each part just before the student, within `derive`.
    """

    def hold(teacher_variables: Variables, batch: Batch) -> tuple[Variables, Batch]:
        return teacher_variables, prepare(batch)

    def derive_all(state: TrainState, shared: tuple[Variables, Batch]) -> Derived:
        teacher_variables, batch = shared
        whole = {WHOLE: Whole(batch, approximate)}

        def micro(carry: tuple[PyTree, PyTree], part: tuple[jax.Array, Batch]) -> tuple[Any, Any]:
            total, owned = carry
            number, rows = part
            now = dataclasses.replace(state, state=owned, key=jax.random.fold_in(state.key, number))
            loss, grads, owned, parts, sums = derive(now, share(teacher_variables, {**rows, **whole}))
            return (jax.tree.map(jnp.add, total, grads), owned), (loss, parts, sums)

        start = (jax.tree.map(jnp.zeros_like, state.params), state.state)
        rows = (jnp.arange(count), jax.tree.map(lambda x: _strided(x, count), dict(batch)))
        (total, owned), (losses, metrics, sums) = jax.lax.scan(micro, start, rows)
        grads = jax.tree.map(lambda g: g / count, total)
        metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
        return jnp.mean(losses), grads, owned, metrics, jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)

    return hold, derive_all


def _strided(x: jax.Array, count: int) -> jax.Array:
    """[B, ...] -> [count, B / count, ...], every count-th row together, so that each device keeps its own rows."""
    if x.shape[0] % count:
        raise ValueError(
            f"a batch of {x.shape[0]} rows cannot be cut into {count} micro-batches: choose a multiple of {count}."
        )
    return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)
