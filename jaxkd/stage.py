"""One training of an experiment from start to end, and its measurement: the makers called in their usual order."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
import optax

from jaxkd import data, dispatch, metrics, models, parallel, processes, students, train
from jaxkd.checkpoint import Best, Checkpoints
from jaxkd.cli import main, parse_beside
from jaxkd.clock import Clock
from jaxkd.devices import Devices, keep_programs
from jaxkd.log import Logger, Progress
from jaxkd.loop import Batches, Every, evaluate, fit
from jaxkd.run import Run, open_run, write_atomically
from jaxkd.types import Batch, Model, StepFn, Term, TrainState, Variables
from jaxkd.watch import USUAL, Divergence

NOTHING = Variables({}, {})
"""Variables of `models.no_teacher()` and `models.cached()`."""

MOST_ACCURATE = Best("validation/accuracy")
"""The checkpoint that a stage keeps besides the newest."""


def launch(
    config_class: type[Any],
    procedure: Callable[[Any, Run, Logger, parallel.Plan], None],
    *,
    description: str,
    smoke: Mapping[str, Any],
    ignore: Sequence[str] = ("root", "data_dir", "wandb"),
) -> None:
    """Runs an experiment: command line, run directory, logs; a finished run says so, a user's error is one line.

    Args:
      config_class: A frozen dataclass with the fields `name`, `root` and `wandb`, among others.
      procedure: The experiment, (config, run, logger, plan) -> None; it ends with `run.finish(summary)`.
      description: Shown by `--help`.
      smoke: Field -> the default that `--smoke` puts in place of the usual one.
      ignore: Fields that may change between two starts of one run.

    Raises:
      SystemExit: As `jaxkd.cli.main` says.
    """

    @functools.wraps(procedure)
    def start() -> None:
        config, devices = parse_beside(config_class, Devices, description=description, smoke=smoke)
        keep_programs()
        devices.start()
        plan = devices.plan()
        with open_run(config, root=config.root, ignore=ignore) as run:
            if run.finished:
                if processes.is_first():
                    print(run.notice)
                return
            with Logger(run.path, wandb=config.wandb, config=config) as logger:
                procedure(config, run, logger, plan)

    processes.run(lambda: main(start))


def variables_of(state: TrainState) -> Variables:
    """The student of a state, for instance to make it the next stage's start or teacher.

    Args:
      state: The state.

    Returns:
      Its variables, stacked if the state is.
    """
    return Variables(state.params["student"], state.state["student"])


@dataclasses.dataclass(frozen=True)
class Training:
    """How steps are made, as flags that every experiment can have: none of them changes what is trained for."""

    precision: Literal["float32", "bfloat16"] = "float32"  # of what is computed; params and losses stay in float32
    teacher_weights: Literal["float32", "bfloat16", "int8"] = "float32"  # how the teacher is held
    micro_batches: int = 1  # parts of a batch that pass through the networks one after the other
    clip: float | None = None  # longest gradient
    ema_decay: float | None = None  # of a moving average of the student, measured beside it
    skip_nonfinite: bool = False  # leave updates with a NaN or an infinity out and count them, instead of stopping
    at_once: int = 1  # steps in one dispatch
    resident: bool = False  # keep the training data on the devices
    form: Literal["vmap", "map", "unroll", "fastest"] = "vmap"  # how a stack of students is computed; fastest measures

    def student(self, model: Model) -> Model:
        """The model as it is computed.

        Args:
          model: The model.

        Returns:
          A model with the same variables.
        """
        return model if self.precision == "float32" else models.in_dtype(model)

    def teacher(self, model: Model | None, variables: Variables) -> tuple[Model, Variables]:
        """A teacher as it is computed and held.

        Args:
          model: The model, if there is one.
          variables: Its variables.

        Returns:
          Model and variables.
        """
        if model is None:
            return models.no_teacher(), variables
        if not jax.tree.leaves(variables.params):  # its outputs are cached
            return model, variables
        computed = self.student(model)
        if self.teacher_weights == "int8":
            return models.from_int8(computed), models.to_int8(variables)
        return computed, variables if self.teacher_weights == "float32" else models.cast(variables)

    def optimizer(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """An optimizer of clipped gradients.

        Args:
          optimizer: The optax transformation.

        Returns:
          An optax transformation.
        """
        return optimizer if self.clip is None else optax.chain(optax.clip_by_global_norm(self.clip), optimizer)


class Setting(NamedTuple):
    """What all trainings of an experiment share.

    Attributes:
      run: Where checkpoints go.
      logger: Where metrics go.
      plan: How steps are spread over devices.
      seed: Seed of the order of the examples.
      batch_size: Examples a step, over all devices and processes.
      train_prepare: Augmentation and normalisation of training batches, on the device.
      eval_prepare: Normalisation of evaluation batches, on the device.
      training: How steps are made.
      divergence: What counts as an exploding loss, at which a training stops; None for nothing.
    """

    run: Run
    logger: Logger
    plan: parallel.Plan
    seed: int
    batch_size: int
    train_prepare: train.Prepare
    eval_prepare: train.Prepare
    training: Training = Training()
    divergence: Divergence | None = USUAL

    def batch_of(self, source: data.Source) -> int:
        """Examples a step takes from a source: all of one smaller than a batch.

        Args:
          source: The source.

        Returns:
          Their number, over all devices and processes.
        """
        return min(self.batch_size, source.size)


Make: TypeAlias = Callable[..., tuple[Term, optax.GradientTransformation]]
"""(**point) -> term and optimizer of one student of a sweep; called with traced numbers."""


def train_stage(
    setting: Setting,
    name: str,
    source: data.Source,
    *,
    student: Model,
    objective: tuple[Term, optax.GradientTransformation] | Make,
    steps: int,
    key: jax.Array,
    points: Mapping[str, Any] | None = None,
    teacher: Model | None = None,
    teacher_variables: Variables = NOTHING,
    start: Variables | None = None,
    validation: tuple[Measure, data.Source] | None = None,
    every: int = 1000,
    log_every: int = 50,
    best: Best | None = MOST_ACCURATE,
) -> TrainState:
    """Trains a student, or several at once, going on from the stage's newest checkpoint.

    Args:
      setting: What all trainings share.
      name: The stage's name, in the metrics and among the checkpoints.
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
    made_with["teacher"] = data.fingerprint_variables(teacher_variables)
    taught, held = setting.training.teacher(teacher, teacher_variables)
    networks = (setting.training.student(student), taught)
    step, state, known, batches = _compiled(setting, name, source, networks, held, objective, points, key, start)
    clock = Clock(setting.batch_of(source))

    def hook(state: TrainState) -> dict[str, Any]:
        measure, split = validation or (None, None)
        return metrics.values(measure(state, split)) if measure and split else {}

    checkpoints = Checkpoints(setting.run.stage(name).checkpoints, best=best, fingerprint=made_with)
    try:
        with Progress(name, steps, batch_size=setting.batch_size) as progress:
            state = fit(
                step,
                state,
                known,
                _feed(setting, batches, every, clock),
                steps=steps,
                log=setting.logger.stage(name, progress),
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
    setting: Setting,
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
    step: StepFn = dispatch.scan_steps(single) if setting.training.at_once > 1 else single
    if setting.training.resident:
        fields, rows = data.table(source)
        batches = data.train_batches(rows, size, seed=setting.seed)
        return plan.compile(dispatch.from_table(step)), state, (known, plan.put(fields)), batches
    return plan.compile(step), state, known, batches


def _begin(
    setting: Setting,
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


def _feed(setting: Setting, batches: Any, every: int, clock: Clock) -> Batches:
    """What `fit` asks for the batches of some steps, one by one or in bundles."""
    place = setting.plan.place

    def feed(first: int, last: int) -> Generator[Batch, None, None]:
        if setting.training.at_once == 1:
            return data.prefetch(batches, place, start=first, stop=last, measure=clock.measure)
        spans = dispatch.spans(first, last, setting.training.at_once, every)
        return data.prefetch(data.bundles(batches, spans), place, measure=clock.measure)

    return feed


def _form(
    setting: Setting, name: str, step: train.Step, state: TrainState, known: Any, batches: Iterable[Batch]
) -> str:
    """How this stage computes its stack; what was measured is kept in the run's folder, as exact resuming needs."""
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


class Measure:
    """Compiles the evaluation of a student once, for use during and after training.

    Args:
      setting: What all trainings share.
      student: The model that is measured.
      chosen: Name -> metric.
      stacked: Whether states hold several students.
      teacher: The model that it is compared with, if any.
      teacher_variables: The teacher's variables.
    """

    def __init__(
        self,
        setting: Setting,
        student: Model,
        chosen: Mapping[str, metrics.Metric],
        *,
        stacked: bool = False,
        teacher: Model | None = None,
        teacher_variables: Variables = NOTHING,
    ) -> None:
        plan = setting.plan
        taught, held = setting.training.teacher(teacher, teacher_variables)
        pair = (setting.training.student(student), taught)

        def compiled(ema: bool) -> Any:
            options: dict[str, Any] = {"prepare": setting.eval_prepare, "axis_name": plan.axis_name}
            step = train.make_eval_step(*pair, chosen, ema=ema, **options)
            form = students.FORMS["map" if setting.training.form == "fastest" else setting.training.form]
            return plan.compile(form(step) if stacked else step, donate_state=False)

        self._steps = {"": compiled(ema=False), "ema_": compiled(ema=True)}
        self._known, self._place = plan.put(held), plan.place
        self._size = 256 * plan.mesh.size

    def __call__(self, state: TrainState, source: data.Source) -> dict[str, Any]:
        """Metrics of a state over a whole split.

        Args:
          state: The state.
          source: The split.

        Returns:
          Name -> accumulator on the host; `metrics.values` turns them into numbers. Where the state carries a moving
          average of the student, its metrics stand beside the student's under `ema_<name>`.
        """
        batches = data.eval_batches(source, self._size)
        found: dict[str, Any] = {}
        for prefix in ("", "ema_") if state.ema is not None else ("",):
            sums = evaluate(self._steps[prefix], state, self._known, data.prefetch(batches, self._place))
            found |= {f"{prefix}{name}": value for name, value in sums.items()}
        return found


def predict(setting: Setting, model: Model, variables: Variables, source: data.Source) -> tuple[Any, Any]:
    """A model's logits for every row of a source, in evaluation mode, as a teacher's soft labels.

    Args:
      setting: What all trainings share.
      model: The model.
      variables: Its variables.
      source: The rows.

    Returns:
      ids int32 [N] and logits [N, ..., K], NumPy arrays in the source's order.
    """

    def logits(state: Any, variables: Variables, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        found = model.apply(variables, setting.eval_prepare(batch), None, False)[0].logits
        return found, batch["id"], batch["mask"]

    plan = parallel.with_jit(setting.plan.mesh)
    step, known = plan.compile(logits, donate_state=False), plan.put(variables)
    rows = [
        jax.device_get(step(None, known, batch))
        for batch in data.prefetch(data.eval_batches(source, 256 * plan.mesh.size), plan.place)
    ]
    return (
        np.concatenate([ids[mask] for _, ids, mask in rows]),
        np.concatenate([values[mask] for values, _, mask in rows]),
    )
