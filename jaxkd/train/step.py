"""The distillation step: a pure function made from a student, a teacher, one term and one optax transformation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxkd.keys import fold_name
from jaxkd.train.accumulation import Derive, Derived, accumulated, check_micro_batches
from jaxkd.train.state import _same
from jaxkd.types import Batch, Metric, Metrics, Model, Outputs, Prepare, PyTree, Term, TrainState, Variables

Objective: TypeAlias = Callable[[PyTree], tuple[jax.Array, Any]]
"""{"student", "term"} params -> (value, (new state, metrics, student's outputs))."""


class Shared(NamedTuple):
    """What all students of a batch share.

    Attributes:
      batch: The prepared rows that the student reads: under `pmap`, those of one device.
      teacher: The teacher's outputs for all rows.
      whole: All rows.
    """

    batch: Batch
    teacher: Outputs
    whole: Batch


def make_share(
    teacher: Model, *, prepare: Prepare = _same, axis_name: str | None = None
) -> Callable[[Variables, Batch], Shared]:
    """What does not depend on a student: the prepared batch and the teacher's outputs.

    Args:
      teacher: The model that is learnt from, applied in evaluation mode.
      prepare: What is done to a batch on the device.
      axis_name: Axis of `parallel.compile_pmap`: the models see one device's share of the batch each, the term sees
        all of it, gathered, so that losses that couple the batch stay right. None under `jit`, which needs none.

    Returns:
      (teacher_variables, batch) -> Shared; no gradient passes into it.
    """

    def share(teacher_variables: Variables, batch: Batch) -> Shared:
        ready = prepare(batch)
        teacher_out, _ = teacher.apply(teacher_variables, ready, None, False)
        return Shared(ready, *_gathered(jax.lax.stop_gradient((teacher_out, ready)), axis_name))

    return share


def make_objective(
    student: Model, term: Term, *, axis_name: str | None = None
) -> Callable[[TrainState, Shared], Objective]:
    """What a step minimises, as a function of the params alone.

    Args:
      student: The model that learns, applied in training mode.
      term: The objective.
      axis_name: As in `make_share`.

    Returns:
      (state, shared) -> objective, where the objective is params -> (value, (new state of student and term, the term's
      metrics, student's outputs)).
    """

    def begin(state: TrainState, shared: Shared) -> Objective:
        key = jax.random.fold_in(state.key, state.step)
        student_key = fold_name(key, "student")
        if axis_name is not None:  # so that no two devices drop out the same units
            student_key = jax.random.fold_in(student_key, jax.lax.axis_index(axis_name))

        def objective(params: PyTree) -> tuple[jax.Array, Any]:
            variables = Variables(params["student"], state.state["student"])
            student_out, student_state = student.apply(variables, shared.batch, student_key, True)
            student_out = _gathered(student_out, axis_name)
            owned = Variables(params["term"], state.state["term"])
            value, term_state, parts = term.apply(
                owned, student_out, shared.teacher, shared.whole, fold_name(key, "term"), state.step
            )
            return value, ({"student": student_state, "term": term_state}, parts, student_out)

        return objective

    return begin


def _gathered(tree: PyTree, axis_name: str | None) -> PyTree:
    """The whole batch on every device, in the devices' order; XLA drops what nobody reads."""
    if axis_name is None:
        return tree

    def gather(x: Any) -> Any:
        if isinstance(x, Outputs):  # whose head is whole on every device
            logits, features = jax.tree.map(gather, (x.logits, dict(x.features)))
            return Outputs(logits, features, x.head)
        return jax.lax.all_gather(x, axis_name, tiled=True)

    return jax.tree.map(gather, tree, is_leaf=lambda x: isinstance(x, Outputs))


def _averaged(tree: PyTree, axis_name: str | None) -> PyTree:
    """The mean over the devices of what is floating; the rest is the same on all of them."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.pmean(x, axis_name) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


@dataclasses.dataclass(frozen=True)
class Step:
    """A train or evaluation step, (state, teacher_variables, batch) -> results, in the two halves that it is made of.

    Attributes:
      share: (teacher_variables, batch) -> what does not depend on the student, computed once for many students.
      each: (state, that) -> results.
    """

    share: Callable[[Variables, Batch], Any]
    each: Callable[[TrainState, Any], Any]

    def __call__(self, state: TrainState, teacher_variables: Variables, batch: Batch) -> Any:
        """The step of one student."""
        return self.each(state, self.share(teacher_variables, batch))


def make_train_step(
    student: Model,
    teacher: Model,
    term: Term,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare = _same,
    metrics: Mapping[str, Metric] | None = None,
    ema_decay: float | None = None,
    axis_name: str | None = None,
    skip_nonfinite: bool = False,
    micro_batches: int = 1,
    approximate: bool = False,
) -> Step:
    """One update of the student (and of what the term trains), as a pure function.

    params <- params + optimizer(d term(student(x), stop_gradient(teacher(x))) / d params)

    Args:
      student: The model that learns, applied in training mode.
      teacher: The model that it learns from, applied in evaluation mode; its variables are the step's second argument.
      term: The objective.
      optimizer: The optax transformation of {"student", "term"} params.
      prepare: What is done to a batch on the device: augmentation, normalisation.
      metrics: Name -> metric of the training batch, reported beside the loss.
      ema_decay: Decay of the moving average of the student, running statistics included; None if the state has none.
      axis_name: `parallel.DATA` for a step that `parallel.compile_pmap` compiles; None for `parallel.compile_jit`.
      skip_nonfinite: Whether an update with a loss or a gradient that is not finite is left out and counted, in
        `state.skipped` and the metric `skipped`; else it is made, and `loop.fit` stops at it.
      micro_batches: Parts that a batch is cut into, one after the other through both models: memory for one part, the
        gradient of all. Exact, masks included, for losses that do not couple the batch; a batch norm in the student
        normalises each part by itself.
      approximate: Whether losses that couple the batch may see one part at a time, whose gradients are averaged.

    Returns:
      (state, teacher_variables, batch) -> (state, metrics), a `Step`; `loss` is the term's value. It knows nothing of
      devices: compile it with `jaxkd.parallel`.

    Raises:
      ValueError: With several micro-batches: if the term couples the batch, or when traced, if a loss does or the rows
        cannot be cut evenly.
    """
    check_micro_batches(term, micro_batches, approximate)
    share = make_share(teacher, prepare=prepare, axis_name=axis_name)
    derive = _make_derive(make_objective(student, term, axis_name=axis_name), metrics or {})
    if micro_batches > 1:
        each = make_share(teacher, axis_name=axis_name)
        share, derive = accumulated(prepare, each, derive, micro_batches, approximate)

    def update(state: TrainState, shared: Any) -> tuple[TrainState, Metrics]:
        loss, grads, new_state, parts, sums = derive(state, shared)
        # Each device has the derivative of all devices' (equal) losses in its own copy: their mean is the gradient.
        grads, new_state["student"] = _averaged((grads, new_state["student"]), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            ema = _average(Variables(params["student"], new_state["student"]), ema, ema_decay)
        measured = {name: _value(sum_and_count) for name, sum_and_count in sums.items()}
        new = dataclasses.replace(state, params=params, state=new_state, opt_state=opt_state, ema=ema)
        if skip_nonfinite:
            new = _unless_broken(state, new, (loss, grads))
            measured["skipped"] = new.skipped
        return dataclasses.replace(new, step=state.step + 1), {"loss": loss, **parts, **measured}

    return Step(share, update)


def _make_derive(begin: Callable[[TrainState, Shared], Objective], metrics: Mapping[str, Metric]) -> Derive:
    """Value and gradients of one prepared batch."""

    def derive(state: TrainState, shared: Shared) -> Derived:
        objective = begin(state, shared)
        (loss, (new_state, parts, student_out)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        sums = {name: metric(student_out, shared.teacher, shared.whole) for name, metric in metrics.items()}
        return loss, grads, new_state, dict(parts), sums

    return derive


def _average(new: Variables, old: Variables, decay: float) -> Variables:
    """Moves the average of what is floating; the rest (counters) is taken as it is."""

    def move(x: jax.Array, average: jax.Array) -> jax.Array:
        return optax.incremental_update(x, average, 1 - decay) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(move, new, old)


def _unless_broken(old: TrainState, new: TrainState, watched: PyTree) -> TrainState:
    """The new state if all that is watched is finite, else the old one with one more skipped update."""
    fine = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(watched)]))
    kept = jax.tree.map(lambda a, b: b if a is b else jnp.where(fine, b, a), old, new)
    return dataclasses.replace(kept, skipped=old.skipped + jnp.where(fine, 0, 1))


def _value(accumulated: Any) -> jax.Array:
    """Value of one batch's (total, count)."""
    total, count = accumulated
    return total / jnp.where(count > 0, count, 1)


def make_eval_step(
    student: Model,
    teacher: Model,
    metrics: Mapping[str, Metric],
    *,
    prepare: Prepare = _same,
    ema: bool = False,
    axis_name: str | None = None,
) -> Step:
    """Metrics of one evaluation batch as accumulators, which are added over batches and divided once.

    Args:
      student: The model that is measured, applied in evaluation mode.
      teacher: The model that it is compared with.
      metrics: Name -> metric.
      prepare: What is done to a batch on the device; no augmentation here.
      ema: Whether the moving average of the student is measured instead of the student.
      axis_name: `parallel.DATA` for `parallel.compile_pmap`; None for `parallel.compile_jit`.

    Returns:
      (state, teacher_variables, batch) -> name -> accumulator.
    """

    def measure(state: TrainState, shared: Shared) -> dict[str, Any]:
        measured = state.ema if ema else Variables(state.params["student"], state.state["student"])
        student_out, _ = student.apply(measured, shared.batch, None, False)
        return {
            n: metric(_gathered(student_out, axis_name), shared.teacher, shared.whole) for n, metric in metrics.items()
        }

    return Step(make_share(teacher, prepare=prepare, axis_name=axis_name), measure)
