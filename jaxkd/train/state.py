"""The state before the first step, and the check that the parts of a step fit together."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd.kernels.eager import op_by_op
from jaxkd.keys import fold_name, is_key, typed_key
from jaxkd.labels import check_range
from jaxkd.train.checks import check_kinds, check_optimizer, check_outputs, check_rows, check_unused, explained
from jaxkd.train.optimizers import begin_optimizer
from jaxkd.types import TEACHER, Batch, Model, Prepare, PyTree, Term, TrainState, Variables, as_variables


def unprepared(batch: Batch) -> Batch:
    """The batch as it is: the preparation of batches that need none."""
    return batch


def with_teacher(student: Model, rows: Batch, teacher_variables: Variables) -> Batch:
    """The rows that a student is trained on, with the teacher's variables if it reads them.

    Args:
      student: The student.
      rows: The prepared rows.
      teacher_variables: The teacher's variables.

    Returns:
      The same rows, or the rows and the field `TEACHER`; no gradient passes into it.
    """
    return {**rows, TEACHER: jax.lax.stop_gradient(teacher_variables)} if student.reads_teacher else rows


def check_parts(
    student: Model,
    teacher: Model,
    term: Term,
    *,
    batch: Batch,
    teacher_variables: Variables,
    prepare: Prepare = unprepared,
    teacher_from_average: bool = False,
) -> None:
    """Runs student, teacher and term on shapes alone, so that what does not fit fails in a sentence before jit.

    Args:
      student: The student.
      teacher: The teacher.
      term: The objective.
      batch: A batch, or its shapes.
      teacher_variables: The teacher's variables, or their shapes.
      prepare: Augmentation and normalisation of a batch, on the device.
      teacher_from_average: Whether the teacher has the student's variables in place of its own.

    Raises:
      TypeError: If a part is of another kind: a module for a model, a loss for a term, a number for a key.
      ValueError: If the parts do not fit: a missing feature, different classes, an impossible projection, a softmax
        over one class, labels that a device cannot hold, variables of a teacher that is the average.
    """
    check_kinds(student, teacher, term)
    check_rows(batch)
    if teacher_from_average:
        check_unused(as_variables(teacher_variables))
    key = jax.random.key(0)
    for name, values in batch.items():
        check_range(f"the values of the batch's field {name!r}", values)

    def run(batch: Batch, teacher_variables: Variables) -> Any:
        ready = prepare(batch)
        rows = check_rows(ready)
        with explained("student"):
            own = student.init(key, ready)
            teacher_variables = own if teacher_from_average else teacher_variables
            student_out = check_outputs(
                student.apply(own, with_teacher(student, ready, teacher_variables), key, True), rows
            )
        with explained("teacher"):
            teacher_out = check_outputs(teacher.apply(teacher_variables, ready, None, False), rows)
        with explained("term", student_out, teacher_out):
            owned = term.init(key, *_shapes((student_out, teacher_out, ready)))
            value, _, _ = term.apply(owned, student_out, teacher_out, ready, key, jnp.zeros((), jnp.int32))
        if value.ndim:
            raise ValueError(f"a term must return a scalar but this one returned shape {value.shape}: take the mean.")
        return value

    jax.eval_shape(run, *_shapes((dict(batch), as_variables(teacher_variables))))


def _shapes(tree: PyTree) -> PyTree:
    def shape(x: Any) -> jax.ShapeDtypeStruct:
        dtype = x.dtype if is_key(x) else jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct(jnp.shape(x), dtype)

    return jax.tree.map(shape, tree)


def init_state(
    student: Model,
    teacher: Model,
    term: Term,
    optimizer: optax.GradientTransformation,
    *,
    key: jax.Array,
    batch: Batch,
    teacher_variables: Variables,
    prepare: Prepare = unprepared,
    student_variables: Variables | None = None,
    ema: bool = False,
    teacher_from_average: bool = False,
) -> TrainState:
    """The state before the first step, after checking on shapes alone that the parts fit together.

    Args:
      student: The student.
      teacher: The teacher.
      term: The objective.
      optimizer: The optax transformation.
      key: PRNG key [] of the run; or keys [S], which gives S students stacked on a leading axis.
      batch: A batch as the step will get it.
      teacher_variables: The teacher's variables.
      prepare: Augmentation and normalisation of a batch, on the device, as in the step.
      student_variables: The student's first variables; freshly initialised if None. Stacked [S, ...] if the keys are.
      ema: Whether to carry a moving average of the student.
      teacher_from_average: Whether that average, which is then carried, is the teacher; `teacher_variables` is None.

    Returns:
      The state.

    Raises:
      TypeError: If a part is of another kind: a module for a model, a loss for a term, a number for a key.
      ValueError: If the parts do not fit: a missing feature, different classes, an impossible projection.
    """
    check_optimizer(optimizer)
    key, teacher_variables = typed_key(key, stack=True), as_variables(teacher_variables)
    given: dict[str, Any] = {"batch": batch, "teacher_variables": teacher_variables, "prepare": prepare}
    check_parts(student, teacher, term, **given, teacher_from_average=teacher_from_average)
    start = None if student_variables is None else as_variables(student_variables)

    def init(key: jax.Array, start: Variables | None, batch: Batch, teacher_variables: Variables) -> TrainState:
        parts = student, teacher, term, optimizer, key, prepare(batch), teacher_variables
        averaged: dict[str, Any] = {"ema": ema, "teacher_from_average": teacher_from_average}
        return begin_state(*parts, student_variables=start, **averaged)

    if key.ndim:
        init = jax.vmap(init, in_axes=(0, None if start is None else 0, None, None))
    return op_by_op(init, key, start, batch, teacher_variables)


def begin_state(
    student: Model,
    teacher: Model,
    term: Term,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    batch: Batch,
    teacher_variables: Variables,
    *,
    student_variables: Variables | None = None,
    ema: bool = False,
    teacher_from_average: bool = False,
) -> TrainState:
    """Makes the state of one student without checks: a pure function for `jit` and `vmap`.

    Args:
      student: The student.
      teacher: The teacher.
      term: The objective.
      optimizer: The optax transformation.
      key: Typed PRNG key [].
      batch: A prepared batch.
      teacher_variables: The teacher's variables.
      student_variables: The student's first variables; freshly initialised if None.
      ema: Whether to carry a moving average of the student.
      teacher_from_average: Whether that average, which is then carried, is the teacher.

    Returns:
      The state before the first step.
    """
    start = None if student_variables is None else as_variables(student_variables)
    key, teacher_variables = typed_key(key), as_variables(teacher_variables)
    variables = student.init(fold_name(key, "student"), batch) if start is None else start
    if teacher_from_average:
        ema, teacher_variables = True, variables
    rows = with_teacher(student, batch, teacher_variables)
    student_out, _ = jax.eval_shape(lambda v: student.apply(v, rows, key, True), variables)
    teacher_out, _ = jax.eval_shape(lambda v: teacher.apply(v, batch, None, False), teacher_variables)
    owned = term.init(fold_name(key, "term"), student_out, teacher_out, _shapes(batch))
    params = {"student": variables.params, "term": owned.params}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        state={"student": variables.state, "term": owned.state},
        opt_state=begin_optimizer(optimizer, params),
        key=key,
        # A copy: the state is donated, and one buffer cannot be given away twice.
        ema=jax.tree.map(jnp.copy, variables) if ema else None,
        skipped=jnp.zeros((), jnp.int32),
    )
