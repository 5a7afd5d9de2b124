"""Many students of one teacher in one program: stacked states, and sweeps over seeds and hyper-parameters."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jaxkd.kernels.eager import op_by_op
from jaxkd.keys import typed_key
from jaxkd.train.checks import check_optimizer
from jaxkd.train.state import begin_state, check_parts, unprepared
from jaxkd.train.step import Step, make_train_step
from jaxkd.types import Batch, Model, Prepare, PyTree, Term, TrainState, Variables, as_variables

Parts: TypeAlias = tuple[Model, Model, Term, optax.GradientTransformation]
"""Student, teacher, term, optimizer."""

Form: TypeAlias = Callable[[Step], Step]
"""Function that turns the step of one student into that of a stack; one of `FORMS`."""

MOST_UNROLLED = 16
"""Largest stack that `fastest_form` unrolls: compiling a larger one would take longer than it saves."""

SEED = "seed"
"""Name in a grid of the seed of a student's own randomness."""


def vmap_students(step: Step) -> Step:
    """Trains (or measures) students stacked on a leading axis in one batch; teacher and batch are computed once.

    Args:
      step: The step of one student.

    Returns:
      The step of stacked states [S, ...]; its results have the same leading axis.
    """
    return Step(step.inputs, jax.vmap(step.update, in_axes=(0, None)))


def map_students(step: Step, *, at_once: int = 1) -> Step:
    """Trains (or measures) stacked students one after the other in one program; teacher and batch are computed once.

    Faster than `vmap_students` where a batch of networks is slow, as grouped convolutions are on CPUs.

    Args:
      step: The step of one student.
      at_once: Students that are computed in one batch.

    Returns:
      The step of stacked states [S, ...]; its results have the same leading axis.
    """

    def each(states: TrainState, inputs: Any) -> Any:
        return jax.lax.map(
            lambda state: step.update(state, inputs), states, batch_size=at_once if at_once > 1 else None
        )

    return Step(step.inputs, each)


def unroll_students(step: Step) -> Step:
    """Trains (or measures) stacked students side by side in one program; teacher and batch are computed once.

    Faster than `map_students` where a loop's body is compiled less well; the program, and the time to compile it, grow
    with the number of students.

    Args:
      step: The step of one student.

    Returns:
      The step of stacked states [S, ...]; its results have the same leading axis.
    """

    def each(states: TrainState, inputs: Any) -> Any:
        one = jax.jit(step.update)  # traced once
        results = [one(pick_student(states, index), inputs) for index in range(states.step.shape[0])]
        return jax.tree.map(lambda *found: jnp.stack(found), *results)

    return Step(step.inputs, each)


FORMS: Mapping[str, Form] = {"vmap": vmap_students, "map": map_students, "unroll": unroll_students}


def pick_student(tree: PyTree, index: int) -> PyTree:
    """One student of a stack.

    Args:
      tree: Arrays [S, ...]: a state, variables, metrics.
      index: Which one.

    Returns:
      The same tree without the leading axis.
    """
    return jax.tree.map(lambda x: x[index], tree)


def grid(**values: Sequence[float]) -> dict[str, np.ndarray]:
    """All combinations of values, the last name varying fastest.

    `grid(temperature=(1, 2, 4), seed=range(5))` has fifteen points.

    Args:
      **values: Name -> its values.

    Returns:
      Name -> [S], int32 for "seed" and float32 for the others.

    Raises:
      ValueError: If a name has no value, the same one twice, or one that is not finite; or if a seed is no whole number
        from 0 to 2^31 - 1.
    """
    for name, given in values.items():
        _check_values(name, list(given) if isinstance(given, Iterable) else [])
    points = list(itertools.product(*values.values()))
    columns = zip(*points, strict=True) if values else ()
    return {
        name: np.asarray(column, np.int32 if name == SEED else np.float32)
        for name, column in zip(values, columns, strict=True)
    }


def _check_values(name: str, given: list[Any]) -> None:
    """Refuses values of a grid that are missing, repeated, or no numbers that an array holds."""
    if not given:
        raise ValueError(f"the grid has no value for {name}: give at least one.")
    for value in given:
        number = np.asarray(value)
        if number.ndim or number.dtype.kind not in "iuf" or not abs(number) <= np.finfo(np.float32).max:
            raise ValueError(f"the grid has {name}={value!r}: give finite numbers.")
        if name == SEED and not (number == np.floor(number) and 0 <= number < 2**31):
            raise ValueError(f"the grid has {SEED}={value!r}: give whole numbers from 0 to {2**31 - 1}.")
    kept = np.asarray(given, np.int64 if name == SEED else np.float32)
    if np.unique(kept).size < kept.size:
        raise ValueError(f"the grid has a value of {name} twice among {given}: give each once, or it counts double.")


class Sweep(NamedTuple):
    """Students that differ in seeds and hyper-parameters, in one stack.

    Attributes:
      init: (key=, batch=, teacher_variables=, prepare=, student_variables=, ema=, teacher_from_average=) -> stacked
        state. What students start from may be the same for all, or a stack [S, ...] of as many.
      make_step: (**options of `train.make_train_step`) -> the step of one student, for a function of `FORMS`.
    """

    init: Callable[..., TrainState]
    make_step: Callable[..., Step]


def sweep(make_parts: Callable[..., Parts], points: Mapping[str, ArrayLike]) -> Sweep:
    """Trains one student for each point, all in one program with one teacher; the points are traced values.

    Args:
      make_parts: (**point without its seed) -> (student, teacher, term, optimizer); called with traced scalars, so that
        networks may not depend on them, but losses, weights, schedules and rates may.
      points: Name -> [S], as `grid` gives them. "seed" is folded into the key; the rest goes to `make_parts`.

    Returns:
      The functions that make the first state and the step. The points stand in the state's `hyper`, so other points
      recompile nothing.

    Raises:
      ValueError: If there is no point, or the names have different numbers of values.
    """
    columns = {name: np.asarray(values) for name, values in points.items()}
    sizes = {values.shape for values in columns.values()}
    if len(sizes) != 1 or not all(len(size) == 1 and size[0] for size in sizes):
        shapes = ", ".join(f"{name} {values.shape}" for name, values in columns.items()) or "none"
        raise ValueError(f"a sweep needs as many values of each name, [S], and at least one, but was given {shapes}.")
    first = {name: values[0].item() for name, values in columns.items() if name != SEED}

    def init(
        *,
        key: jax.Array,
        batch: Batch,
        teacher_variables: Variables,
        prepare: Prepare = unprepared,
        student_variables: Variables | None = None,
        ema: bool = False,
        teacher_from_average: bool = False,
    ) -> TrainState:
        student, teacher, term, optimizer = make_parts(**first)
        check_optimizer(optimizer)
        key, teacher_variables = typed_key(key), as_variables(teacher_variables)
        student_variables = None if student_variables is None else as_variables(student_variables)
        given: dict[str, Any] = {"batch": batch, "teacher_variables": teacher_variables, "prepare": prepare}
        check_parts(student, teacher, term, **given, teacher_from_average=teacher_from_average)
        averaged: dict[str, Any] = {"ema": ema, "teacher_from_average": teacher_from_average}

        def one(point: dict[str, jax.Array], batch: Batch, known: Variables, start: Variables | None) -> TrainState:
            hyper = {name: value for name, value in point.items() if name != SEED}
            own = jax.random.fold_in(key, point[SEED]) if SEED in point else key
            parts = make_parts(**hyper)
            state = begin_state(*parts, own, prepare(batch), known, student_variables=start, **averaged)
            return dataclasses.replace(state, hyper=hyper)

        start_axis = 0 if _is_stack(student_variables, student, prepare, batch) else None
        stacked = jax.vmap(one, in_axes=(0, None, None, start_axis))
        return op_by_op(stacked, columns, batch, teacher_variables, student_variables)

    def make_step(**options: Any) -> Step:
        def each(state: TrainState, inputs: Any) -> Any:
            return make_train_step(*make_parts(**state.hyper), **options).update(state, inputs)

        return Step(make_train_step(*make_parts(**first), **options).inputs, each)

    return Sweep(init, make_step)


def _is_stack(start: Variables | None, student: Model, prepare: Prepare, batch: Batch) -> bool:
    """True if there is one start for each student: it has one axis more than the network's own variables."""
    if start is None:
        return False
    own = jax.eval_shape(lambda batch: student.init(jax.random.key(0), prepare(batch)), batch)
    return [x.ndim for x in jax.tree.leaves(start)] == [x.ndim + 1 for x in jax.tree.leaves(own)]


def fastest_form(
    step: Step,
    compile: Callable[..., Callable[..., Any]],
    state: TrainState,
    teacher_variables: Variables,
    batch: Batch,
    *,
    rounds: int = 5,
) -> str:
    """Measures which form of a stack is fastest here, in alternating rounds, since no rule holds for all networks.

    Args:
      step: The step of one student.
      compile: `parallel.Plan.compile`.
      state: Stacked states, placed; they are left as they are.
      teacher_variables: The teacher's variables, placed.
      batch: A batch, placed.
      rounds: Timed calls of each form, after one that compiles.

    Returns:
      A name in `FORMS`; "unroll" only for stacks of up to `MOST_UNROLLED` students.
    """
    forms = {name: form for name, form in FORMS.items() if name != "unroll" or state.step.shape[0] <= MOST_UNROLLED}
    compiled = {name: compile(form(step), donate_state=False) for name, form in forms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in compiled}
    for number in range(rounds + 1):
        for name, run in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready(run(state, teacher_variables, batch))
            if number:
                seconds[name].append(time.perf_counter() - began)
    return min(seconds, key=lambda name: float(np.median(seconds[name])))
