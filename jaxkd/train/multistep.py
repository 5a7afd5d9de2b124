"""Many steps in one dispatch: a scan over batches, and data that stay on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp

from jaxkd.types import BY_TOKEN, BY_VIEW, ROW, TOKEN_MASK, Batch, Metrics, StepFn, TrainState

Table: TypeAlias = Mapping[str, Any]
"""Fields of all rows of a source, on the device: name -> [N, ...], under `BY_VIEW` name -> [N, V, ...], and under
`BY_TOKEN` name -> [N, L, ...]."""

Results = TypeVar("Results")


def spans(start: int, stop: int, at_once: int, *intervals: int) -> list[range]:
    """Groups steps into dispatches, none across a multiple of an interval, where something else is due.

    Wherever a run was stopped, the same steps go together afterwards.

    Args:
      start: First step.
      stop: Step after the last.
      at_once: Most steps in one dispatch.
      *intervals: Of evaluations and checkpoints, in steps.

    Returns:
      Consecutive ranges from start to stop.

    Raises:
      ValueError: If `at_once` or an interval is not positive.
    """
    every = (at_once, *intervals)
    if min(every) < 1:
        raise ValueError(f"steps at once and intervals are {every}: give positive numbers.")
    cuts = sorted({stop, *(k for n in every for k in range((start // n + 1) * n, stop, n))} if start < stop else ())
    return [range(first, last) for first, last in zip([start, *cuts], cuts, strict=False)]


def scan_steps(step: StepFn) -> StepFn:
    """Joins several steps into one program, so that the host dispatches once for all of them.

    Args:
      step: The step, (state, teacher, batch) -> (state, metrics), of one student or of a stack.

    Returns:
      (state, teacher, batches) -> (state, metrics): the batches have a second axis of K steps, [B, K, ...], so that
      they are split over devices as one batch is; the metrics a first one, [K, ...].
    """

    def run(state: TrainState, teacher: Any, batches: Batch) -> tuple[TrainState, Metrics]:
        in_turn = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), dict(batches))
        return jax.lax.scan(lambda state, batch: step(state, teacher, batch), state, in_turn)

    return run


def from_table(step: Callable[[Any, Any, Batch], Results]) -> Callable[[Any, tuple[Any, Table], Batch], Results]:
    """Makes a step that reads its batch from a table on the device, so that only row numbers come from the host.

    It goes around everything else, `scan_steps` too: rows that are looked up within a loop take longer, since what
    augments them is compiled into the same code as looking them up.

    Args:
      step: The step of one student, of a stack, or several steps of `scan_steps`, for training or evaluation.

    Returns:
      The step whose second argument is (teacher_variables, table) and whose batch has `row` in place of the table's
      fields; whatever else it has (`view`, `mask`) is passed on.
    """

    def run(state: Any, known: tuple[Any, Table], batch: Batch) -> Results:
        teacher_variables, table = known
        rows, rest = batch[ROW], {name: value for name, value in batch.items() if name != ROW}
        fields = {name: values[rows] for name, values in table.items() if name not in (BY_VIEW, BY_TOKEN)}
        for name, values in table.get(BY_TOKEN, {}).items():
            fields[name] = jax.lax.slice_in_dim(values[rows], 0, batch[TOKEN_MASK].shape[-1], axis=rows.ndim)
        of_views = {name: values[rows, batch["view"]] for name, values in table.get(BY_VIEW, {}).items()}
        return step(state, teacher_variables, {**fields, **of_views, **rest})

    return run
