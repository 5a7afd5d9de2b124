"""One training of an experiment from start to end: networks, state, step, batches, loop."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
import optax

from jaxkd import cache, data, metrics, parallel, train
from jaxkd.experiment.context import NO_VARIABLES, Context
from jaxkd.experiment.domains import MOST
from jaxkd.experiment.evaluator import Evaluator
from jaxkd.experiment.flags import StepOptions
from jaxkd.experiment.measures import BEST_OF_TASK, best_of, training_metrics
from jaxkd.experiment.trained import keep_network
from jaxkd.files import read_json, write_json
from jaxkd.parallel import processes
from jaxkd.runs.checkpoint import Checkpoints
from jaxkd.runs.loop import Batches, Every, fit
from jaxkd.runs.lost import LostStudents
from jaxkd.runs.progress import Progress
from jaxkd.runs.retention import Best
from jaxkd.runs.timing import Clock
from jaxkd.train import multistep, students
from jaxkd.types import Batch, Metric, Model, Schedule, StepFn, Term, TrainState, Variables

Make: TypeAlias = Callable[..., tuple[Term, optax.GradientTransformation]]
"""(**point) -> term and optimizer of one student of a sweep; called with traced numbers."""


def variables_of(state: TrainState) -> Variables:
    """The student of a state, for instance as the next phase's start or teacher.

    Args:
      state: The state.

    Returns:
      Its variables, stacked if the state is.
    """
    return Variables(state.params["student"], state.state["student"])


def train_phase(
    context: Context,
    name: str,
    source: data.Source,
    *,
    student: Model,
    objective: tuple[Term, optax.GradientTransformation] | Make,
    steps: int,
    key: jax.Array,
    points: Mapping[str, Any] | None = None,
    teacher: Model | None = None,
    teacher_variables: Variables = NO_VARIABLES,
    mean_teacher: float | Schedule | None = None,
    start: Variables | None = None,
    validation: tuple[Evaluator, data.Source] | None = None,
    every: int = 1000,
    log_every: int = 50,
    best: Best | None = BEST_OF_TASK,
    measured: Mapping[str, Metric] | None = None,
) -> TrainState:
    """Trains a student, or several together, going on from the phase's newest checkpoint.

    Args:
      context: The context of the experiment's trainings.
      name: The phase's name, in the metrics and among the checkpoints.
      source: The training data.
      student: The student.
      objective: Term and optax transformation; for a sweep a function that makes them from a point.
      steps: Updates.
      key: Typed PRNG key [], or [S] for S students that are trained together.
      points: Name -> [S] for a sweep of S students (`students.grid`); those that diverge are left behind, and listed
        in `context.run.lost`.
      teacher: The teacher, if any.
      teacher_variables: The teacher's variables.
      mean_teacher: Decay of the student's moving average, a number or a schedule of the step, if that average is the
        teacher; it stands in the state's `ema`. `teacher` is then the student itself if None, or a wrapper of it.
      start: The student's first variables; freshly initialised if None. Of several, one for all or a stack [S, ...].
      validation: Evaluator and split for evaluations during training.
      every: Interval of evaluations and checkpoints, in updates; the last step has both.
      log_every: Interval of logged training metrics, in updates.
      best: The checkpoint that is kept besides the newest two: by default the best one by the metric of the source's
        task, such as the largest accuracy or the least mean absolute error; none if None.
      measured: Name -> metric of each training batch; those of the source's task if None, and none if empty. The
        progress bar shows the first one.

    Returns:
      The state after the last step.

    Raises:
      ValueError: As the parts say, or the checkpoints: made with another teacher, or of another layout; if flags give
        the mean teacher another decay or format.
    """
    plan, options = context.plan, context.step_options
    measured = training_metrics(source) if measured is None else measured
    best = best_of(source) if best is BEST_OF_TASK else best
    context.run.best[name] = best or best_of(source)
    _check_sizes(context, name, source, steps)
    made_with = _made_with(source, teacher_variables, mean_teacher is not None)
    averaging = _averaging(options, mean_teacher)

    # 1. The networks as they are computed, the teacher's variables on the devices, the batches.
    networks, teacher_variables = _cast(options, student, teacher, teacher_variables, mean_teacher is not None)
    placed = plan.put(teacher_variables)
    batches = data.train_batches(source, context.batch_of(source), seed=context.seed)

    # 2. The state before the first step, and the compiled step.
    first = batches[0]
    state, step = _begin(context, networks, objective, points, key, first, placed, start, measured, averaging)
    state = plan.put(state)
    if points is not None or key.ndim:
        step = _stacked(context, name, step, state, placed, batches)
    compiled, inputs, batches = _compiled(context, source, step, placed, batches)

    # 3. The loop, which goes on from the newest checkpoint.
    clock, lost = Clock(context.batch_of(source)), LostStudents(context.run.path / "lost.json", name)
    checkpoints = Checkpoints(context.run.phase(name).checkpoints, best=best, fingerprint=made_with)
    try:
        with Progress(name, steps, batch_size=context.batch_size, shows=next(iter(measured), "")) as progress:
            state = fit(
                compiled,
                state,
                inputs,
                _stream(context, batches, every, clock),
                steps=steps,
                log=context.logger.phase(name, progress),
                log_every=log_every,
                hooks=[Every(every, "validation", _evaluation(*validation))] if validation else [],
                checkpoints=checkpoints,
                checkpoint_every=every,
                divergence=context.divergence,
                clock=clock,
                bundled=options.at_once > 1,
                lost=lost,
            )
        context.run.lost[name] = lost.numbers
        context.run.examples_per_second[name] = progress.examples_per_second
        keep_network(context, name, source, first, state, checkpoints)
        return state
    finally:
        checkpoints.close()


def _made_with(source: data.Source, teacher_variables: Variables, averaged: bool = False) -> dict[str, str]:
    """Fingerprint of what a phase depends on: the targets, the teacher, and the rows if they were drawn."""
    made_with = {f"{name} of the targets": value for name, value in source.made_with.items()}
    if rows := cache.fingerprint_ids(source):
        made_with["choice of training rows"] = rows
    of_average = "the moving average of the student"
    return made_with | {"teacher": of_average if averaged else cache.fingerprint_variables(teacher_variables)}


def _cast(
    options: StepOptions, student: Model, teacher: Model | None, teacher_variables: Variables, averaged: bool
) -> tuple[tuple[Model, Model], Variables]:
    """Student and teacher as they are computed, and the teacher's variables as they are kept."""
    if averaged:
        pair = (options.cast_student(student), options.cast_student(student if teacher is None else teacher))
        return pair, teacher_variables
    teacher, teacher_variables = options.cast_teacher(teacher, teacher_variables)
    return (options.cast_student(student), teacher), teacher_variables


def _check_sizes(context: Context, name: str, source: data.Source, steps: int) -> None:
    """Refuses numbers of steps and of micro-batches that cannot be."""
    if not 1 <= steps <= MOST:
        raise ValueError(
            f"the phase {name!r} has {steps} steps, but must have 1 to {MOST}: give another number, by fewer --epochs "
            "for instance."
        )
    batch, parts = context.batch_of(source), context.step_options.micro_batches
    if batch % parts:
        raise ValueError(
            f"--micro-batches is {parts}, but a batch of {source.name} has {batch} examples: give a divisor of {batch}."
        )


def _averaging(options: StepOptions, mean_teacher: float | Schedule | None) -> tuple[float | Schedule | None, bool]:
    """Decay of the moving average, if there is one, and whether the average is the teacher."""
    if mean_teacher is None:
        return options.ema_decay, False
    if options.ema_decay is not None:
        raise ValueError(
            f"--ema-decay is {options.ema_decay}, but the teacher of this phase is the moving average, with a decay of "
            "its own: leave --ema-decay out."
        )
    if options.teacher_weights != "float32":
        raise ValueError(
            f"--teacher-weights is {options.teacher_weights}, but this phase's teacher is the moving average of the "
            "student, which stays in float32: leave --teacher-weights out."
        )
    return mean_teacher, True


def _several(points: Mapping[str, Any] | None) -> bool:
    """True for a sweep of more than one student."""
    return points is not None and any(np.size(values) > 1 for values in points.values())


def _begin(
    context: Context,
    networks: tuple[Model, Model],
    objective: tuple[Term, optax.GradientTransformation] | Make,
    points: Mapping[str, Any] | None,
    key: jax.Array,
    batch: Batch,
    teacher_variables: Variables,
    start: Variables | None,
    measured: Mapping[str, Metric],
    averaging: tuple[float | Schedule | None, bool],
) -> tuple[TrainState, train.Step]:
    """The state before the first step, of one student or of a stack, and the step of one."""
    options, (decay, teaches) = context.step_options, averaging
    making: dict[str, Any] = {
        "prepare": context.train_prepare,
        "axis_name": context.plan.axis_name,
        "metrics": measured,
        "skip_nonfinite": options.skip_nonfinite or _several(points),  # one that is lost does not stop the others
        "ema_decay": decay,
        "teacher_from_average": teaches,
        "micro_batches": options.micro_batches,
    }
    beginning: dict[str, Any] = {
        "key": key,
        "batch": parallel.put_batch(batch, context.plan.mesh),
        "teacher_variables": teacher_variables,
        "prepare": context.train_prepare,
        "student_variables": start,
        "ema": decay is not None,
        "teacher_from_average": teaches,
    }

    def parts(term: Term, optimizer: optax.GradientTransformation) -> students.Parts:
        return *networks, term, options.clipped(optimizer)

    if callable(objective) != (points is not None):
        raise ValueError(
            "a sweep needs points and a function that makes term and optimizer of each; one training needs neither."
        )
    if not callable(objective):
        single = parts(*objective)
        return train.init_state(*single, **beginning), train.make_train_step(*single, **making)
    sweep = students.sweep(lambda **point: parts(*objective(**point)), points or {})
    return sweep.init(**beginning), sweep.make_step(**making)


def _stacked(
    context: Context, name: str, step: train.Step, state: TrainState, teacher_variables: Any, batches: Any
) -> train.Step:
    """The step of a stack of students, in the form that `step_options` names."""
    form = context.step_options.form
    if form == "fastest":
        first = data.prefetch(batches, context.plan.place, stop=1)
        form = _fastest(context, name, step, state, teacher_variables, first)
    return students.FORMS[form](step)


def _fastest(
    context: Context, name: str, step: train.Step, state: TrainState, teacher_variables: Any, batches: Iterable[Batch]
) -> Any:
    """The fastest form on this machine; it is measured once and kept in the run's folder, for exact resuming."""
    file = context.run.path / "forms.json"
    forms = read_json(file) if file.exists() else {}
    if name not in forms:
        found = students.fastest_form(step, context.plan.compile, state, teacher_variables, next(iter(batches)))
        forms[name] = processes.agree(found, list(students.FORMS))
        if processes.is_first():
            write_json(file, forms)
    if forms[name] not in students.FORMS:
        known = ", ".join(students.FORMS)
        raise ValueError(f"{file} names the form {forms[name]!r}, which is none of {known}: correct or delete it.")
    return forms[name]


def _compiled(
    context: Context, source: data.Source, step: train.Step, teacher_variables: Any, batches: Any
) -> tuple[StepFn, Any, Any]:
    """The compiled step, its second argument (the teacher's variables, with resident data also these), its batches."""
    plan, options = context.plan, context.step_options
    function: StepFn = multistep.scan_steps(step) if options.at_once > 1 else step
    if not options.resident:
        return plan.compile(function), teacher_variables, batches
    fields, rows = data.table(source)
    batches = data.train_batches(rows, context.batch_of(source), seed=context.seed)
    return plan.compile(multistep.from_table(function)), (teacher_variables, plan.put(fields)), batches


def _stream(context: Context, batches: Any, every: int, clock: Clock) -> Batches:
    """A function (first, last) -> batches of those steps on the devices, one by one or in bundles."""
    place, at_once = context.plan.place, context.step_options.at_once

    def stream(first: int, last: int) -> Generator[Batch, None, None]:
        if at_once == 1:
            return data.prefetch(batches, place, start=first, stop=last, measure=clock.measure)
        spans = multistep.spans(first, last, at_once, every)
        return data.prefetch(data.bundles(batches, spans), place, measure=clock.measure)

    return stream


def _evaluation(evaluator: Evaluator, split: data.Source) -> Callable[[TrainState], dict[str, Any]]:
    """A hook of the loop: the metrics of a state on a split, as numbers."""
    return lambda state: metrics.values(evaluator(state, split))
