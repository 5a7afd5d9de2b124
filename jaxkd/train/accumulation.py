"""Gradients of a batch that passes through the networks in micro-batches, one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.types import WHOLE, Batch, PyTree, Term, TrainState, Variables, Whole


class Gradients(NamedTuple):
    """Everything that an update needs.

    Attributes:
      loss: The term's value, a scalar.
      grads: Its gradient, {"student", "term"}; name -> the gradient of a term, where those were asked for.
      state: The new state of student and term.
      metrics: Name -> metric of the term.
      sums: Name -> accumulator of a metric.
    """

    loss: jax.Array
    grads: PyTree
    state: dict[str, PyTree]
    metrics: dict[str, jax.Array]
    sums: dict[str, Any]


MakeInputs: TypeAlias = Callable[[Variables, Batch], Any]
"""(teacher_variables, batch) -> inputs of a step: the half that does not depend on a student."""

TakeGradients: TypeAlias = Callable[..., Gradients]
"""(state, inputs, names of terms = ()) -> gradients of the objective, or of each of its terms if they are named."""


def check_micro_batches(term: Term, count: int, approximate: bool) -> None:
    """Refuses to cut batches that the term does not allow to be cut.

    Args:
      term: The objective.
      count: Number of micro-batches.
      approximate: Whether the term may see one micro-batch at a time all the same.

    Raises:
      ValueError: If the count is not positive, or the term owns something that couples the batch.
    """
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"micro_batches is {count!r}: give an integer of at least 1.")
    if count > 1 and term.couples and not approximate:
        raise ValueError(
            "a batch norm or a memory in the term couples the batch, so its gradient is not the mean of those of "
            "micro-batches: use micro_batches=1, or approximate=True to let the term see one micro-batch after the "
            "other."
        )


def accumulated(
    prepare: Callable[[Batch], Batch], inputs: MakeInputs, gradients: TakeGradients, count: int, approximate: bool
) -> tuple[MakeInputs, TakeGradients]:
    """Turns the two functions of one micro-batch into those of a whole batch, one micro-batch in memory at a time.

    Args:
      prepare: Augmentation and normalisation of the whole batch.
      inputs: Makes the inputs of one prepared micro-batch.
      gradients: Takes the gradients of one micro-batch.
      count: Number of micro-batches.
      approximate: Whether losses that couple the batch may see one micro-batch at a time.

    Returns:
      The same two functions for whole batches. The teacher sees each micro-batch just before the student does, within
      the second of them.
    """

    def hold(teacher_variables: Variables, batch: Batch) -> tuple[Variables, Batch]:
        return teacher_variables, prepare(batch)

    def gradients_of_all(state: TrainState, given: tuple[Variables, Batch], terms: Sequence[str] = ()) -> Gradients:
        teacher_variables, batch = given
        whole = {WHOLE: Whole(batch, approximate)}

        def micro(carry: tuple[PyTree, PyTree], part: tuple[jax.Array, Batch]) -> tuple[Any, Any]:
            total, carried = carry
            number, rows = part
            now = dataclasses.replace(state, state=carried, key=jax.random.fold_in(state.key, number))
            found = gradients(now, inputs(teacher_variables, {**rows, **whole}), terms)
            return (jax.tree.map(jnp.add, total, found.grads), found.state), (found.loss, found.metrics, found.sums)

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        start = (dict.fromkeys(terms, zeros) if terms else zeros, state.state)
        rows = (jnp.arange(count), jax.tree.map(lambda x: _strided(x, count), dict(batch)))
        (total, carried), (losses, metrics, sums) = jax.lax.scan(micro, start, rows)
        return Gradients(
            loss=jnp.mean(losses),
            grads=jax.tree.map(lambda g: g / count, total),
            state=carried,
            metrics=jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics),
            sums=jax.tree.map(lambda x: jnp.sum(x, axis=0), sums),
        )

    return hold, gradients_of_all


def _strided(x: jax.Array, count: int) -> jax.Array:
    """[B, ...] -> [count, B / count, ...], every count-th row together, so that each device keeps its own rows."""
    if x.shape[0] % count:
        raise ValueError(
            f"a batch of {x.shape[0]} rows cannot be cut into {count} micro-batches: choose a multiple of {count}."
        )
    return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)
