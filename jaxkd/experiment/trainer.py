"""One training of an experiment from start to end, and its measurement: the makers called in their usual order."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import optax

from jaxkd import cache, data, metrics, parallel, train
from jaxkd.experiment.context import NO_VARIABLES, Context
from jaxkd.experiment.evaluator import Evaluator
from jaxkd.files import write_atomically
from jaxkd.parallel import processes
from jaxkd.runs.checkpoint import Best, Checkpoints
from jaxkd.runs.loop import Batches, Every, fit
from jaxkd.runs.progress import Progress
from jaxkd.runs.timing import Clock
from jaxkd.train import multistep, students
from jaxkd.types import Batch, Model, StepFn, Term, TrainState, Variables

MOST_ACCURATE = Best("validation/accuracy")
"""The checkpoint that a phase keeps besides the newest."""


def variables_of(state: TrainState) -> Variables:
    """The student of a state, for instance to make it the next phase's start or teacher.

    Args:
      state: The state.

    Returns:
      Its variables, stacked if the state is.
    """
    return Variables(state.params["student"], state.state["student"])


Make: TypeAlias = Callable[..., tuple[Term, optax.GradientTransformation]]
"""(**point) -> term and optimizer of one student of a sweep; called with traced numbers."""


def train_phase(
    setting: Context,
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
    start: Variables | None = None,
    validation: tuple[Evaluator, data.Source] | None = None,
    every: int = 1000,
    log_every: int = 50,
    best: Best | None = MOST_ACCURATE,
) -> TrainState:
    """Trains a student, or several at once, going on from the phase's newest checkpoint.

    Args:
      setting: What all trainings share.
      name: The phase's name, in the metrics and among the checkpoints.
      source: What it learns from.
      student: The model that learns.
      objective: Term and optax transformation; for a sweep a function that makes them from a point.
      steps: Updates.
      key: Typed PRNG key [], or [S] for S students at once.
      points: Name -> [S] for a sweep of S students (`students.grid`); those that diverge are left behind.
      teacher: The model that it learns from, if any.
      teacher_variables: The teacher's variables.
      start: Where the student starts; freshly initialised if None. Of several, one for all or a stack [S, ...].
      validation: What to measure during training, and on which split.
      every: Interval of validations and checkpoints, in updates; the last step has both.
      log_every: Interval of logged training metrics, in updates.
      best: Which checkpoint is kept besides the newest two, if any.

    Returns:
      The state after the last step.

    Raises:
      ValueError: Whatever the parts say, or the checkpoints: made with another teacher, or of another layout.
    """
    made_with = {f"{name} of the targets": value for name, value in source.made_with.items()}
    made_with["teacher"] = cache.fingerprint_variables(teacher_variables)
    taught, held = setting.training.teacher(teacher, teacher_variables)
    networks = (setting.training.student(student), taught)
    step, state, known, batches = _compiled(setting, name, source, networks, held, objective, points, key, start)
    clock = Clock(setting.batch_of(source))

    def hook(state: TrainState) -> dict[str, Any]:
        measure, split = validation or (None, None)
        return metrics.values(measure(state, split)) if measure and split else {}

    checkpoints = Checkpoints(setting.run.phase(name).checkpoints, best=best, fingerprint=made_with)
    try:
        with Progress(name, steps, batch_size=setting.batch_size) as progress:
            state = fit(
                step,
                state,
                known,
                _feed(setting, batches, every, clock),
                steps=steps,
                log=setting.logger.phase(name, progress),
                log_every=log_every,
                hooks=[Every(every, "validation", hook)] if validation else [],
                checkpoints=checkpoints,
                checkpoint_every=every,
                divergence=setting.divergence,
                clock=clock,
                bundled=setting.training.at_once > 1,
            )
        setting.run.examples_per_second[name] = progress.examples_per_second
        return state
    finally:
        checkpoints.close()


def _compiled(
    setting: Context,
    name: str,
    source: data.Source,
    networks: tuple[Model, Model],
    held: Variables,
    objective: tuple[Term, optax.GradientTransformation] | Make,
    points: Mapping[str, Any] | None,
    key: jax.Array,
    start: Variables | None,
) -> tuple[StepFn, TrainState, Any, Any]:
    """The compiled step; the state before the first one, and the teacher, on the devices; the batches."""
    plan, size = setting.plan, setting.batch_of(source)
    batches = data.train_batches(source, size, seed=setting.seed)
    example = parallel.put_batch(batches[0], plan.mesh)
    known = plan.put(held)
    state, single = _begin(setting, networks, objective, points, key, example, known, start)
    state = plan.put(state)
    if points is not None or key.ndim:
        first = data.prefetch(batches, plan.place, stop=1)
        single = students.FORMS[_form(setting, name, single, state, known, first)](single)
    step: StepFn = multistep.scan_steps(single) if setting.training.at_once > 1 else single
    if setting.training.resident:
        fields, rows = data.table(source)
        batches = data.train_batches(rows, size, seed=setting.seed)
        return plan.compile(multistep.from_table(step)), state, (known, plan.put(fields)), batches
    return plan.compile(step), state, known, batches


def _begin(
    setting: Context,
    networks: tuple[Model, Model],
    objective: tuple[Term, optax.GradientTransformation] | Make,
    points: Mapping[str, Any] | None,
    key: jax.Array,
    batch: Batch,
    known: Variables,
    start: Variables | None,
) -> tuple[TrainState, train.Step]:
    """The state before the first step, of one student or of a stack, and the step of one."""
    given = setting.training
    options: dict[str, Any] = {"prepare": setting.train_prepare, "axis_name": setting.plan.axis_name}
    options |= {"metrics": {"accuracy": metrics.accuracy}, "skip_nonfinite": given.skip_nonfinite or points is not None}
    options |= {"ema_decay": given.ema_decay, "micro_batches": given.micro_batches}
    begin: dict[str, Any] = {"key": key, "batch": batch, "teacher_variables": known, "prepare": setting.train_prepare}
    begin |= {"student_variables": start, "ema": given.ema_decay is not None}

    def parts(term: Term, optimizer: optax.GradientTransformation) -> students.Parts:
        return *networks, term, given.optimizer(optimizer)

    if callable(objective) != (points is not None):
        raise ValueError(
            "a sweep needs points and a function that makes term and optimizer of each; one training needs neither."
        )
    if not callable(objective):
        chosen = parts(*objective)
        return train.init_state(*chosen, **begin), train.make_train_step(*chosen, **options)
    swept = students.sweep(lambda **point: parts(*objective(**point)), points or {})
    return swept.init(**begin), swept.make_step(**options)


def _feed(setting: Context, batches: Any, every: int, clock: Clock) -> Batches:
    """What `fit` asks for the batches of some steps, one by one or in bundles."""
    place = setting.plan.place

    def feed(first: int, last: int) -> Generator[Batch, None, None]:
        if setting.training.at_once == 1:
            return data.prefetch(batches, place, start=first, stop=last, measure=clock.measure)
        spans = multistep.spans(first, last, setting.training.at_once, every)
        return data.prefetch(data.bundles(batches, spans), place, measure=clock.measure)

    return feed


def _form(
    setting: Context, name: str, step: train.Step, state: TrainState, known: Any, batches: Iterable[Batch]
) -> str:
    """How this phase computes its stack; what was measured is kept in the run's folder, as exact resuming needs."""
    if setting.training.form != "fastest":
        return setting.training.form
    file = setting.run.path / "forms.json"
    chosen = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if name not in chosen:
        found = students.fastest_form(step, setting.plan.compile, state, known, next(iter(batches)))
        chosen[name] = processes.agree(found, list(students.FORMS))
        if processes.is_first():
            write_atomically(file, json.dumps(chosen, indent=2) + "\n")
    return chosen[name]
