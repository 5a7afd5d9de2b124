"""The one Python loop: steps, logging, evaluation, checkpoints, stopping signals."""

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
from jaxkd.runs.timing import Clock
from jaxkd.types import Batch, EvalFn, StepFn, TrainState, Variables

Batches: TypeAlias = Callable[[int, int], Generator[Batch, None, None]]
"""(start, stop) -> device batches start..stop-1, as `functools.partial(prefetch, batches, place)` is."""


class Every(NamedTuple):
    """Something done every `steps` updates and after the last one.

    Attributes:
      steps: The interval.
      split: Name under which the returned metrics are logged.
      run: (state) -> name -> float or array [S].
    """

    steps: int
    split: str
    run: Callable[[TrainState], Mapping[str, Any]]


class Log(Protocol):
    """What `fit` needs of a logger; `jaxkd.runs.logger` has the real ones."""

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Records the metrics of one step."""

    def truncate(self, step: int) -> None:
        """Forgets what was recorded after this step."""


def evaluate(step: EvalFn, state: TrainState, teacher: Variables, batches: Iterable[Batch]) -> dict[str, Any]:
    """Metrics over a whole split, each example counted once.

    Args:
      step: The compiled evaluation step.
      state: The state, of one student or stacked.
      teacher: The teacher's variables.
      batches: Device batches of the split; a `mask` marks padding.

    Returns:
      Name -> accumulator on the host; `metrics.values` turns them into numbers.

    Raises:
      ValueError: If there is no batch.
    """
    total: Any = None
    for batch in batches:
        sums = step(state, teacher, batch)
        total = sums if total is None else _add(total, sums)
    if total is None:
        raise ValueError("there is nothing to evaluate on: the split has no batch; choose a split that has examples.")
    return jax.device_get(total)


_add = jax.jit(lambda total, sums: jax.tree.map(jnp.add, total, sums))


def fit(
    step: StepFn,
    state: TrainState,
    teacher: Variables,
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
) -> TrainState:
    """Trains up to a number of updates, going on from the newest checkpoint if there is one.

    Args:
      step: The compiled train step.
      state: The state before the first step, placed on the devices; it is donated.
      teacher: The teacher's variables, placed on the devices.
      batches: (start, stop) -> device batches; batch k belongs to step k.
      steps: Updates in all.
      log: Where metrics go, if anywhere.
      log_every: Interval of logged training metrics, in updates.
      hooks: Evaluations and the like.
      checkpoints: Where states go, if anywhere.
      checkpoint_every: Interval of checkpoints, in updates; the last step always gets one. What hooks measured at the
        same step, as "split/name", goes with it, so that the best can be kept.
      divergence: What counts as an exploding loss; None for nothing.
      clock: Measures steps, input and memory, if anything does: its figures are logged beside each training line under
        the split "system", and a batch that does not come is reported. A new one; give its `measure` to
        `data.prefetch`.
      bundled: Whether the step is one of `multistep.scan_steps` and batches are bundles, cut by `multistep.spans` at
        the intervals of hooks and checkpoints.

    Returns:
      The state after the last step.

    Raises:
      watch.NonFiniteError: If the loss or the parameters stop being finite; names the step and the term. A step that
        skips such updates is given up after 100 of them in a row.
      watch.DivergenceError: If the loss explodes, as `divergence` says; names step, value and usual level.
      SystemExit: With code 130 (Ctrl-C) or 143 (SIGTERM), after a checkpoint was saved.
    """
    restored = checkpoints.restore(state) if checkpoints else None
    state = state if restored is None else restored
    start = int(np.max(jax.device_get(state.step)))
    if log:
        log.truncate(start)
    watch = LossWatch(checkpoints, divergence)
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
                    state, metrics = step(state, teacher, batch)
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
    """What is due after an update: a look at the loss, a log line, evaluations, a checkpoint, leaving."""

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
            if self.checkpoints and (last or stopped or ordinary):
                self.checkpoints.save(number, state, measured)
        if stopped and not last:
            _leave(stopped[0], number, self.steps, self.checkpoints)

    def _check_cut(self, done: Done) -> None:
        """Refuses a bundle that goes past a step after which something else is due."""
        intervals = [*(hook.steps for hook in self.hooks), *([self.checkpoint_every] if self.checkpoints else [])]
        for number in done.numbers[:-1]:
            if missed := [n for n in intervals if number % n == 0]:
                raise ValueError(
                    f"a bundle of steps {done.numbers[0]}..{done.last} goes past step {number}, after which an "
                    f"evaluation or a checkpoint is due (every {missed[0]}): cut bundles with multistep.spans."
                )


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list instead of dying between two steps; a second SIGINT dies at once.

    Several processes must stop after the same step, on which JAX lets them agree once SIGTERM comes to one of them: its
    own handler is left in place, and SIGINT is turned into SIGTERM.
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
    kept = "; nothing is kept since there is no checkpoint folder."
    if checkpoints:
        checkpoints.wait()
        kept = ", checkpoint saved: run the same command to go on."
    if processes.is_first():
        print(f"stopped after step {step} of {steps}{kept}", flush=True)
    raise SystemExit(128 + number)
