"""Training loop: steps, logging, evaluation, checkpoints, stopping signals."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.parallel import processes
from jaxkd.runs.checkpoint import Checkpoints
from jaxkd.runs.divergence import USUAL, Divergence, Done, LossWatch
from jaxkd.runs.lost import LostStudents
from jaxkd.runs.timing import Clock
from jaxkd.types import Batch, EvalFn, StepFn, TrainState, Variables

Batches: TypeAlias = Callable[[int, int], Generator[Batch, None, None]]
"""(start, stop) -> device batches start..stop-1, such as a function that calls `jaxkd.data.prefetch`."""


class Every(NamedTuple):
    """Hook that runs every `steps` updates and after the last one, such as an evaluation.

    Attributes:
      steps: Interval in updates.
      split: Split under which the returned metrics are logged.
      run: (state) -> name -> float or array [S].
    """

    steps: int
    split: str
    run: Callable[[TrainState], Mapping[str, Any]]


class Log(Protocol):
    """Interface of the logger that `fit` takes; `jaxkd.runs.Logger.phase` returns one."""

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Records metrics.

        Args:
          step: Number of updates done.
          split: Split that they were measured on, or "system".
          metrics: Name -> scalar, or [S] with one value for each student.
        """

    def truncate(self, step: int) -> None:
        """Removes the metrics that were recorded after a step.

        Args:
          step: Step that the training resumes from.
        """


def evaluate(step: EvalFn, state: TrainState, teacher_variables: Variables, batches: Iterable[Batch]) -> dict[str, Any]:
    """Metrics over a whole split, in which each example counts once.

    Args:
      step: The compiled evaluation step.
      state: The state, of one student or stacked.
      teacher_variables: The teacher's variables.
      batches: Device batches of the split; a false `mask` marks padding.

    Returns:
      Name -> accumulator on the host, which `metrics.values` converts to numbers.

    Raises:
      ValueError: If there is no batch.
    """
    total: Any = None
    for batch in batches:
        sums = step(state, teacher_variables, batch)
        total = sums if total is None else _add(total, sums)
    if total is None:
        raise ValueError("there is nothing to evaluate on, the split has no batch: choose a split that has examples.")
    return jax.device_get(total)


_add = jax.jit(lambda total, sums: jax.tree.map(jnp.add, total, sums))


def fit(
    step: StepFn,
    state: TrainState,
    teacher_variables: Variables,
    batches: Batches,
    *,
    steps: int,
    log: Log | None = None,
    log_every: int = 50,
    hooks: Sequence[Every] = (),
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 1000,
    divergence: Divergence | None = USUAL,
    clock: Clock | None = None,
    bundled: bool = False,
    lost: LostStudents | None = None,
) -> TrainState:
    """Trains a student for a number of updates, resuming from the newest checkpoint if there is one.

    Args:
      step: The compiled train step.
      state: The state before the first step, placed on the devices; it is donated.
      teacher_variables: The teacher's variables, placed on the devices.
      batches: (start, stop) -> device batches; batch k belongs to step k.
      steps: Number of updates in all, those before a resume included.
      log: Logger of the metrics, if any.
      log_every: Interval of logged training metrics, in updates.
      hooks: Evaluations and other functions that run at intervals.
      checkpoints: Checkpoints that states are saved to and resumed from, if any.
      checkpoint_every: Interval of checkpoints, in updates; the last step always gets one. Metrics that hooks have
        returned at the same step are saved with it as "split/name", so that the best checkpoint can be kept.
      divergence: Criterion of a diverging loss; None checks for none.
      clock: A new clock, which measures steps, input and memory; give its `measure` to `data.prefetch`. Its
        measurements are logged with each training line under the split "system". None measures nothing.
      bundled: True if the step was made by `train.multistep.scan_steps` and the batches are bundles, which
        `train.multistep.spans` has cut at the intervals of hooks and checkpoints.
      lost: Students of a stack that were given up, to which this training adds; kept nowhere if None.

    Returns:
      The state after the last step.

    Raises:
      NonFiniteError: If the loss or the parameters are no longer finite; names the step and the term. With a step that
        skips such updates, only after 100 skipped ones in a row.
      DivergenceError: If the loss diverges by the criterion `divergence`; names the step, the loss and its usual level.
      SystemExit: With code 130 (Ctrl-C) or 143 (SIGTERM), after a checkpoint was saved.
    """
    restored = checkpoints.restore(state) if checkpoints else None
    state = state if restored is None else restored
    start = int(np.max(jax.device_get(state.step)))
    if log:
        log.truncate(start)
    if lost is not None:
        lost.resume(start)
    watch = LossWatch(checkpoints, divergence, lost)
    after = _AfterStep(steps, log, log_every, hooks, checkpoints, checkpoint_every, watch, clock)
    with (
        _stop_signals() as stopped,
        contextlib.closing(batches(start, steps)) as source,
        clock.watching(source, start) if clock else contextlib.nullcontext(source) as stream,
    ):
        try:
            number = start
            for batch in stream:
                with jax.transfer_guard("disallow"):
                    state, metrics = step(state, teacher_variables, batch)
                if processes.stop_agreed():
                    stopped.append(signal.SIGTERM)
                done = Done(number, metrics, len(metrics["loss"]) if bundled else None)
                number = done.last
                after(done, state, stopped)
        finally:
            if checkpoints:
                checkpoints.wait()
    return state


@dataclasses.dataclass(frozen=True)
class _AfterStep:
    """Actions after an update: checks the loss, logs, runs hooks, saves a checkpoint, leaves after a signal."""

    steps: int
    log: Log | None
    log_every: int
    hooks: Sequence[Every]
    checkpoints: Checkpoints | None
    checkpoint_every: int
    watch: LossWatch
    clock: Clock | None

    def __call__(self, done: Done, state: TrainState, stopped: list[int]) -> None:
        number, last = done.last, done.last == self.steps
        self._check_cut(done)
        self.watch.check_previous(done)
        if self.clock:
            self.clock.stepped(done.metrics["loss"], done.count)
        due = [n for n in done.numbers if n == self.steps or n % self.log_every == 0]
        if self.log and due:
            for n, metrics in done.each():
                if n in due:
                    self.log.write(n, "train", metrics)
            if self.clock:
                self.log.write(due[-1], "system", self.clock.figures())
        measured: dict[str, Any] = {}
        for hook in self.hooks:
            if last or number % hook.steps == 0:
                found = hook.run(state)
                measured |= {f"{hook.split}/{name}": value for name, value in found.items()}
                if self.log:
                    self.log.write(number, hook.split, found)
        if last or stopped or number % self.checkpoint_every == 0:
            ordinary = self.watch.check_state(number, state)
            if last:
                self.watch.check_end(number)
            if self.checkpoints and (last or stopped or ordinary):
                self.checkpoints.save(number, state, measured)
        if stopped and not last:
            _leave(stopped[0], number, self.steps, self.checkpoints)

    def _check_cut(self, done: Done) -> None:
        """Checks that a bundle does not go past a step after which a hook or a checkpoint is due."""
        intervals = [*(hook.steps for hook in self.hooks), *([self.checkpoint_every] if self.checkpoints else [])]
        for number in done.numbers[:-1]:
            if missed := [n for n in intervals if number % n == 0]:
                raise ValueError(
                    f"a bundle of steps {done.numbers[0]}..{done.last} goes past step {number}, after which an "
                    f"evaluation or a checkpoint is due (every {missed[0]}): cut bundles with multistep.spans."
                )


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Context manager that collects SIGINT and SIGTERM in a list, so that the loop stops between two steps.

    A second SIGINT raises KeyboardInterrupt at once. Several processes must stop after the same step, on which JAX lets
    them agree once SIGTERM comes to one of them: JAX's own handler stays in place, and SIGINT is passed on as SIGTERM.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    def pass_on(number: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGTERM)

    handlers: dict[int, Any] = {signal.SIGINT: note, signal.SIGTERM: note}
    if jax.process_count() > 1:
        handlers = {signal.SIGINT: pass_on}
    before = {s: signal.signal(s, handler) for s, handler in handlers.items()}
    try:
        yield received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _leave(number: int, step: int, steps: int, checkpoints: Checkpoints | None) -> None:
    """Leaves the program after a signal, with the exit code that shells give it."""
    kept = "; nothing is kept since there is no checkpoint folder."
    if checkpoints:
        checkpoints.wait()
        kept = ", checkpoint saved: run the same command to go on."
    if processes.is_first():
        print(f"stopped after step {step} of {steps}{kept}", flush=True)
    raise SystemExit(128 + number)
