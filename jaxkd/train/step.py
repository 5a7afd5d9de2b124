"""The distillation step: a pure function made from a student, a teacher, a term and an optax transformation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxkd.keys import fold_name
from jaxkd.train.accumulation import Gradients, TakeGradients, accumulated, check_micro_batches
from jaxkd.train.by_term import gradients_by_term, term_names
from jaxkd.train.checks import (
    check_average,
    check_decay,
    check_kinds,
    check_metrics,
    check_optimizer,
    check_rows,
    check_unused,
)
from jaxkd.train.devices import gathered, mean_over_devices, on_own_rows
from jaxkd.train.optimizers import updates_of
from jaxkd.train.state import unprepared, with_teacher
from jaxkd.types import (
    Batch,
    Metric,
    Metrics,
    Model,
    Outputs,
    Prepare,
    PyTree,
    Schedule,
    Term,
    TrainState,
    Variables,
    as_variables,
)


class StepInputs(NamedTuple):
    """Everything that a step computes without the student, so that many students can share it.

    Attributes:
      rows: The prepared rows that the student reads: under `pmap` those of one device, else the whole batch.
      teacher_out: The teacher's outputs for the whole batch; without any as long as the teacher is the moving average.
      batch: The whole prepared batch.
    """

    rows: Batch
    teacher_out: Outputs
    batch: Batch


Objective: TypeAlias = Callable[[PyTree, TrainState, StepInputs], tuple[jax.Array, Any]]
"""({"student", "term"} params, state, inputs) -> (value, (new state, the term's metrics, the student's outputs))."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A train or evaluation step, (state, teacher_variables, batch) -> results, in its two halves.

    Attributes:
      inputs: (teacher_variables, batch) -> `StepInputs`, computed once for many students.
      update: (state, inputs) -> results, computed for each student.
    """

    inputs: Callable[[Variables, Batch], Any]
    update: Callable[[TrainState, Any], Any]

    def __call__(self, state: TrainState, teacher_variables: Variables, batch: Batch) -> Any:
        """Runs the step for one student."""
        return self.update(state, self.inputs(teacher_variables, batch))


def make_inputs(
    teacher: Model | None,
    *,
    prepare: Prepare = unprepared,
    axis_name: str | None = None,
    student: Model | None = None,
) -> Callable[[Variables, Batch], StepInputs]:
    """Makes the half of a step that does not depend on a student: preparation and the teacher's forward pass.

    Args:
      teacher: The teacher, applied in evaluation mode; None if it is the student's moving average, which this half does
        not know.
      prepare: Augmentation and normalisation of a batch, on the device.
      axis_name: Axis of `parallel.compile_pmap`. The networks then see the rows of one device each; the term sees all
        of them, gathered, so that losses that couple the batch stay right. None under `jit`, which needs no gathering.
      student: The student that is trained, which may read the teacher's variables; None if none is.

    Returns:
      (teacher_variables, batch) -> inputs; no gradient passes into them.
    """

    def inputs(teacher_variables: Variables, batch: Batch) -> StepInputs:
        check_rows(batch)
        rows = _with_finite_padding(prepare(batch))
        known = as_variables(teacher_variables)
        if teacher is None:
            check_unused(known)
            return StepInputs(rows, Outputs(None, {}), gathered(jax.lax.stop_gradient(rows), axis_name))
        teacher_out, _ = teacher.apply(known, rows, None, False)
        own = rows if student is None else with_teacher(student, rows, known)
        return StepInputs(own, *gathered(jax.lax.stop_gradient((teacher_out, rows)), axis_name))

    return inputs


def _taught_by_average(
    student: Model, teacher: Model, state: TrainState, inputs: StepInputs, axis_name: str | None
) -> StepInputs:
    """The inputs with the outputs of the state's moving average as the teacher's; no gradient passes into them."""
    check_average(state.ema)
    teacher_out, _ = teacher.apply(state.ema, inputs.rows, None, False)
    own = with_teacher(student, inputs.rows, state.ema)
    return inputs._replace(rows=own, teacher_out=gathered(jax.lax.stop_gradient(teacher_out), axis_name))


def _with_finite_padding(batch: Batch) -> Batch:
    """The batch with 0 for NaN and Inf in rows that its mask leaves out: in a network's gradient 0 * NaN is NaN."""
    if "mask" not in batch:
        return batch
    mask = jnp.asarray(batch["mask"]).astype(bool)
    counts = jnp.any(mask, axis=tuple(range(1, mask.ndim)))

    def clean(x: Any) -> Any:
        if not isinstance(x, jax.Array) or not jnp.issubdtype(x.dtype, jnp.floating) or x.shape[:1] != counts.shape:
            return x
        return jnp.where(jnp.expand_dims(counts, tuple(range(1, x.ndim))) | jnp.isfinite(x), x, 0)

    return {name: clean(x) for name, x in batch.items()}


def make_objective(student: Model, term: Term) -> Objective:
    """Makes the function that a step minimises.

    term(student(rows), teacher_out, batch)

    Args:
      student: The student, applied in training mode.
      term: The objective.

    Returns:
      (params, state, inputs) -> (value, (new state of student and term, the term's metrics, the student's outputs)).
    """

    def objective(params: PyTree, state: TrainState, inputs: StepInputs) -> tuple[jax.Array, Any]:
        if jnp.ndim(state.key):
            raise ValueError(
                f"the state is of {state.key.shape[0]} students, since it was made with keys {state.key.shape}: make "
                "the step by train.students.vmap_students(step), or the state with one key."
            )
        key = jax.random.fold_in(state.key, state.step)
        variables = Variables(params["student"], state.state["student"])
        student_out, student_state = student.apply(variables, inputs.rows, fold_name(key, "student"), True)
        owned = Variables(params["term"], state.state["term"])
        value, term_state, metrics = term.apply(
            owned, student_out, inputs.teacher_out, inputs.batch, fold_name(key, "term"), state.step
        )
        return value, ({"student": student_state, "term": term_state}, metrics, student_out)

    return objective


def make_train_step(
    student: Model,
    teacher: Model,
    term: Term,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare = unprepared,
    metrics: Mapping[str, Metric] | None = None,
    ema_decay: float | Schedule | None = None,
    teacher_from_average: bool = False,
    axis_name: str | None = None,
    skip_nonfinite: bool = False,
    micro_batches: int = 1,
    approximate: bool = False,
) -> Step:
    """Makes one update of the student (and of what the term trains), as a pure function.

    params <- params + optimizer(d term(student(x), stop_gradient(teacher(x))) / d params)

    Args:
      student: The student, applied in training mode.
      teacher: The teacher, applied in evaluation mode; its variables are the step's second argument.
      term: The objective.
      optimizer: The optax transformation of {"student", "term"} params. One that reads the loss (optax's
        reduce_on_plateau, polyak_sgd, lbfgs with its line search) gets it, and functions that compute it again; one
        that treats the terms of a `weighted(...)` objective apart gets a function that takes their gradients.
      prepare: Augmentation and normalisation of a batch, on the device.
      metrics: Name -> metric of the training batch, such as `metrics.CLASSIFICATION`, reported with the loss.
      ema_decay: Decay of the moving average of the student, running statistics included: a number, or a schedule of the
        step such as `objectives.schedules.warm_decay`; None if the state has none.
      teacher_from_average: Whether that average is the teacher (mean teacher): `teacher` is then applied with
        `state.ema`, as it was before the update, and the step's second argument is None. It is the student's own model,
        or a wrapper that reads another view, such as `models.reading(student, image="teacher_image")`.
      axis_name: `parallel.DATA` for a step that `parallel.compile_pmap` compiles; None for `parallel.compile_jit`.
      skip_nonfinite: Whether an update with a loss or a gradient that is not finite is left out and counted, in
        `state.skipped` and the metric `skipped`. Else the update is made, and `runs.fit` stops at it.
      micro_batches: Parts that a batch is cut into, which pass through both networks one after the other: the memory of
        one part, the gradient of all. Exact, masks included, for losses that do not couple the batch; a batch norm in
        the student normalises each part by itself.
      approximate: Whether losses that couple the batch may see one part at a time, whose gradients are averaged.

    Returns:
      (state, teacher_variables, batch) -> (state, metrics), a `Step`; `loss` is the term's value. It knows nothing of
      devices: compile it with `jaxkd.parallel`.

    Raises:
      TypeError: If a part is of another kind, such as a module for a model or a loss for a term.
      ValueError: With several micro-batches: if the term couples the batch, or when traced, if a loss does or the rows
        cannot be cut evenly. With `teacher_from_average`: if there is no decay, or when traced, if the state has no
        average or a teacher's variables are given as well.

    Reference:
      Tarvainen, Valpola, "Mean teachers are better role models", NeurIPS 2017, https://arxiv.org/abs/1703.01780
    """
    check_kinds(student, teacher, term)
    check_optimizer(optimizer)
    measures = check_metrics(metrics)
    check_decay(ema_decay, needed=teacher_from_average)
    check_micro_batches(term, micro_batches, approximate)
    known = None if teacher_from_average else teacher
    inputs: Callable[[Variables, Batch], Any] = make_inputs(
        known, prepare=prepare, axis_name=axis_name, student=student
    )
    objective = make_objective(on_own_rows(student, axis_name), term)

    def gradients(state: TrainState, inputs: StepInputs, terms: Sequence[str] = ()) -> Gradients:
        if teacher_from_average:
            inputs = _taught_by_average(student, teacher, state, inputs, axis_name)
        if terms:
            grads, (loss, (new_state, parts, student_out)) = gradients_by_term(objective, state.params, state, inputs)
        else:
            value_and_grad = jax.value_and_grad(objective, has_aux=True)
            (loss, (new_state, parts, student_out)), grads = value_and_grad(state.params, state, inputs)
        sums = {name: metric(student_out, inputs.teacher_out, inputs.batch) for name, metric in measures.items()}
        return Gradients(loss, grads, new_state, dict(parts), sums)

    take: TakeGradients = gradients
    if micro_batches > 1:
        one = make_inputs(known, axis_name=axis_name, student=student)
        inputs, take = accumulated(prepare, one, gradients, micro_batches, approximate)

    def update(state: TrainState, inputs: Any) -> tuple[TrainState, Metrics]:
        loss, grads, new_state, parts, sums = take(state, inputs)
        grads, new_state["student"] = mean_over_devices((grads, new_state["student"]), axis_name)

        def again(params: PyTree) -> tuple[jax.Array, PyTree]:
            found = take(dataclasses.replace(state, params=params), inputs)
            return found.loss, mean_over_devices(found.grads, axis_name)

        def term_gradients() -> dict[str, PyTree]:
            return mean_over_devices(take(state, inputs, term_names(parts)).grads, axis_name)

        updates, opt_state = updates_of(optimizer, grads, state.opt_state, state.params, loss, again, term_gradients)
        params = optax.apply_updates(state.params, updates)
        new = dataclasses.replace(state, params=params, state=new_state, opt_state=opt_state)
        if ema_decay is not None:
            new = _with_average(new, ema_decay)
        if skip_nonfinite:
            new = _unless_broken(state, new, (loss, grads))
            parts["skipped"] = new.skipped
        measured = {name: _value(name, accumulator) for name, accumulator in sums.items()}
        return dataclasses.replace(new, step=state.step + 1), {"loss": loss, **parts, **measured}

    return Step(inputs, update)


def _with_average(state: TrainState, decay: float | Schedule) -> TrainState:
    """The state with its moving average of the student moved: of floating arrays; others (counters) are copied."""
    rate = decay(state.step) if callable(decay) else decay

    def move(x: jax.Array, average: jax.Array) -> jax.Array:
        return optax.incremental_update(x, average, 1 - rate) if jnp.issubdtype(x.dtype, jnp.floating) else x

    student = Variables(state.params["student"], state.state["student"])
    check_average(state.ema)
    return dataclasses.replace(state, ema=jax.tree.map(move, student, state.ema))


def _unless_broken(old: TrainState, new: TrainState, watched: PyTree) -> TrainState:
    """The new state if everything watched is finite, else the old one with one more skipped update."""
    fine = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(watched)]))
    kept = jax.tree.map(lambda a, b: b if a is b else jnp.where(fine, b, a), old, new)
    return dataclasses.replace(kept, skipped=old.skipped + jnp.where(fine, 0, 1))


def _value(name: str, accumulator: Any) -> jax.Array:
    """Value of one batch's accumulator, or of a pair (total, count)."""
    if not hasattr(accumulator, "value"):
        total, count = accumulator
        return total / jnp.where(count > 0, count, 1)
    try:
        return jnp.asarray(accumulator.value())
    except jax.errors.TracerArrayConversionError as error:
        raise ValueError(
            f"the metric {name!r} computes its value with NumPy, so that no step can report it: leave it to "
            "make_eval_step, or compute with jax.numpy."
        ) from error


def make_eval_step(
    student: Model,
    teacher: Model,
    metrics: Mapping[str, Metric],
    *,
    prepare: Prepare = unprepared,
    ema: bool = False,
    axis_name: str | None = None,
) -> Step:
    """Makes the measurement of one evaluation batch: accumulators, which are added over batches and divided once.

    Args:
      student: The network that is measured, applied in evaluation mode.
      teacher: The network that it is compared with.
      metrics: Name -> metric.
      prepare: Normalisation of a batch, on the device; no augmentation here.
      ema: Whether the moving average of the student is measured instead of the student.
      axis_name: `parallel.DATA` for `parallel.compile_pmap`; None for `parallel.compile_jit`.

    Returns:
      (state, teacher_variables, batch) -> name -> accumulator.
    """
    metrics = check_metrics(metrics)
    student = on_own_rows(student, axis_name)

    def measure(state: TrainState, inputs: StepInputs) -> dict[str, Any]:
        if ema:
            check_average(state.ema)
        variables = state.ema if ema else Variables(state.params["student"], state.state["student"])
        student_out, _ = student.apply(variables, inputs.rows, None, False)
        return {name: metric(student_out, inputs.teacher_out, inputs.batch) for name, metric in metrics.items()}

    return Step(make_inputs(teacher, prepare=prepare, axis_name=axis_name), measure)
