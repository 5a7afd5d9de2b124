"""One training of an experiment from start to end, and its measurement: the makers called in their usual order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxkd import data, metrics, models, parallel, processes, students, train
from jaxkd.checkpoint import Best, Checkpoints
from jaxkd.cli import main, parse_beside
from jaxkd.clock import Clock
from jaxkd.devices import Devices
from jaxkd.log import Logger, Progress
from jaxkd.loop import Every, evaluate, fit
from jaxkd.run import Run, open_run
from jaxkd.types import Batch, Model, Term, TrainState, Variables
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
      options: Further options of `train.make_train_step`, such as `ema_decay` or `skip_nonfinite`.
      divergence: What counts as an exploding loss, at which a training stops; None for nothing.
    """

    run: Run
    logger: Logger
    plan: parallel.Plan
    seed: int
    batch_size: int
    train_prepare: train.Prepare
    eval_prepare: train.Prepare
    options: Mapping[str, Any] = MappingProxyType({})
    divergence: Divergence | None = USUAL


def train_stage(
    setting: Setting,
    name: str,
    source: data.Source,
    *,
    student: Model,
    term: Term,
    optimizer: optax.GradientTransformation,
    steps: int,
    key: jax.Array,
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
      term: The objective.
      optimizer: The optax transformation.
      steps: Updates.
      key: Typed PRNG key [], or [S] for S students at once.
      teacher: The model that it learns from, if any.
      teacher_variables: The teacher's variables.
      start: Where the student starts; freshly initialised if None.
      validation: What to measure during training, and on which split.
      every: Interval of validations and checkpoints, in updates; the last step has both.
      log_every: Interval of logged training metrics, in updates.
      best: Which checkpoint is kept besides the newest two, if any.

    Returns:
      The state after the last step.

    Raises:
      ValueError: Whatever the parts say, or the checkpoints: made with another teacher, or of another layout.
    """
    parts = (student, models.no_teacher() if teacher is None else teacher, term, optimizer)
    size = min(setting.batch_size, source.size)
    batches = data.train_batches(source, size, seed=setting.seed)
    plan = setting.plan
    example = parallel.put_batch(batches[0], plan.mesh)
    known = plan.put(teacher_variables)
    state = train.init_state(
        *parts,
        key=key,
        batch=example,
        teacher_variables=known,
        prepare=setting.train_prepare,
        student_variables=start,
        ema=setting.options.get("ema_decay") is not None,
    )
    given: dict[str, Any] = {"prepare": setting.train_prepare, "axis_name": plan.axis_name, **setting.options}
    single = train.make_train_step(*parts, metrics={"accuracy": metrics.accuracy}, **given)
    step = plan.compile(students.vmap_students(single) if key.ndim else single)
    made_with = {f"{name} of the targets": value for name, value in source.made_with.items()}
    made_with["teacher"] = data.fingerprint_variables(teacher_variables)
    checkpoints = Checkpoints(setting.run.stage(name).checkpoints, best=best, fingerprint=made_with)
    clock = Clock(size)

    def hook(state: TrainState) -> dict[str, Any]:
        measure, split = validation or (None, None)
        return metrics.values(measure(state, split)) if measure and split else {}

    try:
        with Progress(name, steps, batch_size=setting.batch_size) as progress:
            state = fit(
                step,
                plan.put(state),
                known,
                lambda first, last: data.prefetch(batches, plan.place, start=first, stop=last, measure=clock.measure),
                steps=steps,
                log=setting.logger.stage(name, progress),
                log_every=log_every,
                hooks=[Every(every, "validation", hook)] if validation else [],
                checkpoints=checkpoints,
                checkpoint_every=every,
                divergence=setting.divergence,
                clock=clock,
            )
        setting.run.examples_per_second[name] = progress.examples_per_second
        return state
    finally:
        checkpoints.close()


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
        plan, pair = setting.plan, (student, teacher or models.no_teacher())

        def compiled(ema: bool) -> Any:
            options: dict[str, Any] = {"prepare": setting.eval_prepare, "axis_name": plan.axis_name}
            step = train.make_eval_step(*pair, chosen, ema=ema, **options)
            return plan.compile(students.vmap_students(step) if stacked else step, donate_state=False)

        self._steps = {"": compiled(ema=False), "ema_": compiled(ema=True)}
        self._known, self._place = plan.put(teacher_variables), plan.place
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
