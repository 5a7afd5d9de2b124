"""The distillation step: a pure function made from a student, a teacher, one term and one optax transformation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxkd import numerics
from jaxkd.types import (
    WHOLE,
    Batch,
    EvalFn,
    Metrics,
    Model,
    Outputs,
    PyTree,
    StepFn,
    Term,
    TrainState,
    Variables,
    Whole,
)

Prepare: TypeAlias = Callable[[Batch], Batch]
"""Pure function of a batch, on the device: augmentation and normalisation."""

Objective: TypeAlias = Callable[[PyTree], tuple[jax.Array, Any]]
"""{"student", "term"} params -> (value, (new state, metrics, student's outputs))."""

Metric: TypeAlias = Callable[[Outputs, Outputs, Batch], Any]


def _same(batch: Batch) -> Batch:
    return batch


def check_parts(
    student: Model, teacher: Model, term: Term, *, batch: Batch, teacher_variables: Variables, prepare: Prepare = _same
) -> None:
    """Runs student, teacher and term on shapes alone, so that what does not fit fails in a sentence before jit.

    Args:
      student: The model that learns.
      teacher: The model that it learns from.
      term: The objective.
      batch: A batch, or its shapes.
      teacher_variables: The teacher's variables, or their shapes.
      prepare: What is done to a batch on the device.

    Raises:
      ValueError: Whatever the parts say: a missing feature, classes that differ, an impossible projection.
    """
    key = jax.random.key(0)

    def run(batch: Batch, teacher_variables: Variables) -> Any:
        ready = prepare(batch)
        variables = student.init(key, ready)
        student_out, _ = student.apply(variables, ready, key, True)
        teacher_out, _ = teacher.apply(teacher_variables, ready, None, False)
        owned = term.init(key, *_shapes((student_out, teacher_out, ready)))
        value, _, _ = term.apply(owned, student_out, teacher_out, ready, key, jnp.zeros((), jnp.int32))
        if value.ndim:
            raise ValueError(f"a term must return a scalar but this one returned shape {value.shape}: take the mean.")
        return value

    jax.eval_shape(run, *_shapes((batch, teacher_variables)))


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jax.dtypes.canonicalize_dtype(x.dtype)), tree)


def init_state(
    student: Model,
    teacher: Model,
    term: Term,
    optimizer: optax.GradientTransformation,
    *,
    key: jax.Array,
    batch: Batch,
    teacher_variables: Variables,
    prepare: Prepare = _same,
    student_variables: Variables | None = None,
    ema: bool = False,
) -> TrainState:
    """The state before the first step, after checking on shapes alone that the parts fit together.

    Args:
      student: The model that learns.
      teacher: The model that it learns from.
      term: The objective.
      optimizer: The optax transformation.
      key: Typed PRNG key [] of the run; or keys [S], which gives S students stacked on a leading axis.
      batch: A batch as the step will get it.
      teacher_variables: The teacher's variables.
      prepare: What the step does to a batch on the device.
      student_variables: Where the student starts; freshly initialised if None. Stacked [S, ...] if the keys are.
      ema: Whether to carry a moving average of the student.

    Returns:
      The state.

    Raises:
      ValueError: Whatever the parts say: a missing feature, classes that differ, an impossible projection.
    """
    check_parts(student, teacher, term, batch=batch, teacher_variables=teacher_variables, prepare=prepare)
    start = student_variables

    def init(key: jax.Array, start: Variables | None, batch: Batch, teacher_variables: Variables) -> TrainState:
        ready = prepare(batch)
        variables = student.init(numerics.fold_name(key, "student"), ready) if start is None else start
        student_out, _ = jax.eval_shape(lambda v: student.apply(v, ready, key, True), variables)
        teacher_out, _ = jax.eval_shape(lambda v: teacher.apply(v, ready, None, False), teacher_variables)
        owned = term.init(numerics.fold_name(key, "term"), student_out, teacher_out, _shapes(ready))
        params = {"student": variables.params, "term": owned.params}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            state={"student": variables.state, "term": owned.state},
            opt_state=optimizer.init(params),
            key=key,
            # A copy: the state is donated, and one buffer cannot be given away twice.
            ema=jax.tree.map(jnp.copy, variables) if ema else None,
            skipped=jnp.zeros((), jnp.int32),
        )

    if key.ndim:
        init = jax.vmap(init, in_axes=(0, None if start is None else 0, None, None))
    return jax.jit(init)(key, start, batch, teacher_variables)


def make_objective(
    student: Model, teacher: Model, term: Term, *, prepare: Prepare = _same, axis_name: str | None = None
) -> Callable[[TrainState, Variables, Batch], tuple[Objective, Outputs, Batch]]:
    """What a step minimises, as a function of the params alone.

    Args:
      student: The model that learns, applied in training mode.
      teacher: The model that it learns from, applied in evaluation mode.
      term: The objective.
      prepare: What is done to a batch on the device.
      axis_name: Axis of `parallel.compile_pmap`: the models see one device's share of the batch each, the term sees
        all of it, gathered, so that losses that couple the batch stay right. None under `jit`, which needs none.

    Returns:
      (state, teacher_variables, batch) -> (objective, teacher's outputs, prepared batch), where the objective is
      params -> (value, (new state of student and term, the term's metrics, student's outputs)).
    """

    def begin(state: TrainState, teacher_variables: Variables, batch: Batch) -> tuple[Objective, Outputs, Batch]:
        key = jax.random.fold_in(state.key, state.step)
        ready = prepare(batch)
        teacher_out, _ = teacher.apply(teacher_variables, ready, None, False)
        teacher_out, whole = _gathered(jax.lax.stop_gradient((teacher_out, ready)), axis_name)
        student_key = numerics.fold_name(key, "student")
        if axis_name is not None:  # so that no two devices drop out the same units
            student_key = jax.random.fold_in(student_key, jax.lax.axis_index(axis_name))

        def objective(params: PyTree) -> tuple[jax.Array, Any]:
            variables = Variables(params["student"], state.state["student"])
            student_out, student_state = student.apply(variables, ready, student_key, True)
            student_out = _gathered(student_out, axis_name)
            owned = Variables(params["term"], state.state["term"])
            value, term_state, parts = term.apply(
                owned, student_out, teacher_out, whole, numerics.fold_name(key, "term"), state.step
            )
            return value, ({"student": student_state, "term": term_state}, parts, student_out)

        return objective, teacher_out, whole

    return begin


def _gathered(tree: PyTree, axis_name: str | None) -> PyTree:
    """The whole batch on every device, in the devices' order; XLA drops what nobody reads."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), tree)


def _averaged(tree: PyTree, axis_name: str | None) -> PyTree:
    """The mean over the devices of what is floating; the rest is the same on all of them."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.pmean(x, axis_name) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


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
) -> StepFn:
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
      (state, teacher_variables, batch) -> (state, metrics); `loss` is the term's value. It knows nothing of devices:
      compile it with `jaxkd.parallel`.

    Raises:
      ValueError: With several micro-batches: if the term couples the batch, or when traced, if a loss does or the rows
        cannot be cut evenly.
    """
    _check_micro_batches(term, micro_batches, approximate)
    derive = _make_derive(make_objective(student, teacher, term, axis_name=axis_name), metrics or {})
    if micro_batches > 1:
        derive = _accumulated(derive, micro_batches, approximate)

    def step(state: TrainState, teacher_variables: Variables, batch: Batch) -> tuple[TrainState, Metrics]:
        loss, grads, new_state, parts, sums = derive(state, teacher_variables, prepare(batch))
        # Each device has the derivative of all devices' (equal) losses in its own copy: their mean is the gradient.
        grads, new_state["student"] = _averaged((grads, new_state["student"]), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            ema = _average(Variables(params["student"], new_state["student"]), ema, ema_decay)
        measured = {name: _value(accumulated) for name, accumulated in sums.items()}
        new = dataclasses.replace(state, params=params, state=new_state, opt_state=opt_state, ema=ema)
        if skip_nonfinite:
            new = _unless_broken(state, new, (loss, grads))
            measured["skipped"] = new.skipped
        return dataclasses.replace(new, step=state.step + 1), {"loss": loss, **parts, **measured}

    return step


Derived: TypeAlias = tuple[jax.Array, PyTree, dict[str, PyTree], dict[str, jax.Array], dict[str, Any]]
"""Value, gradients, new state, the term's metrics, accumulated metrics."""

Derive: TypeAlias = Callable[[TrainState, Variables, Batch], Derived]


def _make_derive(begin: Callable[..., tuple[Objective, Outputs, Batch]], metrics: Mapping[str, Metric]) -> Derive:
    """Value and gradients of one prepared batch."""

    def derive(state: TrainState, teacher_variables: Variables, batch: Batch) -> Derived:
        objective, teacher_out, ready = begin(state, teacher_variables, batch)
        (loss, (new_state, parts, student_out)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        sums = {name: metric(student_out, teacher_out, ready) for name, metric in metrics.items()}
        return loss, grads, new_state, dict(parts), sums

    return derive


def _check_micro_batches(term: Term, micro_batches: int, approximate: bool) -> None:
    if micro_batches < 1:
        raise ValueError(f"micro_batches is {micro_batches}: give at least 1.")
    if micro_batches > 1 and term.couples and not approximate:
        raise ValueError(
            "a batch norm or a memory in the term couples the batch, so its gradient is not the mean of those of "
            "micro-batches: use micro_batches=1, or approximate=True to let the term see one micro-batch after the "
            "other."
        )


def _accumulated(derive: Derive, count: int, approximate: bool) -> Derive:
    """The same of a whole batch, of which no more than one part is in memory at a time."""

    def accumulated(state: TrainState, teacher_variables: Variables, batch: Batch) -> Derived:
        whole = {WHOLE: Whole(batch, approximate)}
        params = state.params

        def micro(carry: tuple[PyTree, PyTree], part: tuple[jax.Array, Batch]) -> tuple[Any, Any]:
            total, owned = carry
            number, rows = part
            key = jax.random.fold_in(state.key, number)
            now = dataclasses.replace(state, state=owned, key=key)
            loss, grads, owned, parts, sums = derive(now, teacher_variables, {**rows, **whole})
            return (jax.tree.map(jnp.add, total, grads), owned), (loss, parts, sums)

        start = (jax.tree.map(jnp.zeros_like, params), state.state)
        parts = (jnp.arange(count), jax.tree.map(lambda x: _strided(x, count), dict(batch)))
        (total, owned), (losses, metrics, sums) = jax.lax.scan(micro, start, parts)
        grads = jax.tree.map(lambda g: g / count, total)
        metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
        return jnp.mean(losses), grads, owned, metrics, jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)

    return accumulated


def _strided(x: jax.Array, count: int) -> jax.Array:
    """[B, ...] -> [count, B / count, ...], every count-th row together, so that each device keeps its own rows."""
    if x.shape[0] % count:
        raise ValueError(
            f"a batch of {x.shape[0]} rows cannot be cut into {count} micro-batches: choose a multiple of {count}."
        )
    return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)


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
) -> EvalFn:
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

    def step(state: TrainState, teacher_variables: Variables, batch: Batch) -> dict[str, Any]:
        ready = prepare(batch)
        measured = state.ema if ema else Variables(state.params["student"], state.state["student"])
        student_out, _ = student.apply(measured, ready, None, False)
        teacher_out, _ = teacher.apply(teacher_variables, ready, None, False)
        whole = _gathered((student_out, teacher_out, ready), axis_name)
        return {name: metric(*whole) for name, metric in metrics.items()}

    return step
