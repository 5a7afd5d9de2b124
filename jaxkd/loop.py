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

from jaxkd import processes
from jaxkd.checkpoint import Checkpoints
from jaxkd.types import Batch, EvalFn, Metrics, StepFn, TrainState, Variables

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
    """What `fit` needs of a logger; `jaxkd.log` has the real ones."""

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Records the metrics of one step."""

    def truncate(self, step: int) -> None:
        """Forgets what was recorded after this step."""


PATIENCE = 100
"""Updates skipped in a row (see `train.make_train_step`) after which a run is given up."""


class NonFiniteError(ValueError):
    """The loss or the parameters stopped being finite."""


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

    Returns:
      The state after the last step.

    Raises:
      NonFiniteError: If the loss or the parameters stop being finite; names the step and the term. A step that skips
        such updates is given up after 100 of them in a row.
      SystemExit: With code 130 (Ctrl-C) or 143 (SIGTERM), after a checkpoint was saved.
    """
    restored = checkpoints.restore(state) if checkpoints else None
    state = state if restored is None else restored
    start = int(np.max(jax.device_get(state.step)))
    if log:
        log.truncate(start)
    after = _AfterStep(steps, log, log_every, hooks, checkpoints, checkpoint_every, _Watch(start, checkpoints))
    with _stop_signals() as stopped, contextlib.closing(batches(start, steps)) as stream:
        try:
            for number, batch in enumerate(stream, start + 1):
                with jax.transfer_guard("disallow"):
                    state, metrics = step(state, teacher, batch)
                if processes.stop_agreed():
                    stopped.append(signal.SIGTERM)
                after(number, state, metrics, stopped)
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
    watch: _Watch

    def __call__(self, number: int, state: TrainState, metrics: Metrics, stopped: list[int]) -> None:
        last = number == self.steps
        self.watch.check_previous(number, metrics)
        if self.log and (last or number % self.log_every == 0):
            self.log.write(number, "train", jax.device_get(dict(metrics)))
        measured: dict[str, Any] = {}
        for hook in self.hooks:
            if last or number % hook.steps == 0:
                found = hook.run(state)
                measured |= {f"{hook.split}/{name}": value for name, value in found.items()}
                if self.log:
                    self.log.write(number, hook.split, found)
        if last or stopped or number % self.checkpoint_every == 0:
            self.watch.check_state(number, state)
            if self.checkpoints:
                self.checkpoints.save(number, state, measured)
        if stopped and not last:
            _leave(stopped[0], number, self.steps, self.checkpoints)


class _Watch:
    """Looks at the loss one step late, so that the device never waits for the host."""

    def __init__(self, start: int, checkpoints: Checkpoints | None) -> None:
        self._checkpoints = checkpoints
        self._number = start
        self._metrics: Metrics | None = None
        self._skipped: np.ndarray | None = None
        self._in_a_row = np.zeros((), int)

    def check_previous(self, number: int, metrics: Metrics) -> None:
        """Checks the step before this one."""
        previous, self._metrics = self._metrics, metrics
        before, self._number = self._number, number
        if previous is not None:
            self._check(before, previous)

    def check_state(self, number: int, state: TrainState) -> None:
        """Checks this step and the parameters, before they are kept."""
        if self._metrics is not None:
            self._check(self._number, self._metrics)
            self._metrics = None
        if not jax.device_get(_all_finite(state.params)):
            raise NonFiniteError(
                f"the parameters are no longer finite after step {number} although the loss still was: {self._advice()}"
            )

    def _check(self, number: int, metrics: Metrics) -> None:
        loss = np.asarray(jax.device_get(metrics["loss"]))
        if "skipped" in metrics:
            loss = self._forgiven(loss, np.asarray(jax.device_get(metrics["skipped"])))
        if np.all(np.isfinite(loss)):
            return
        values = {k: np.asarray(v) for k, v in jax.device_get(dict(metrics)).items() if not k.endswith("_weighted")}
        terms = [k for k, v in values.items() if k != "loss" and not np.all(np.isfinite(v))]
        who = f" of student {int(np.argmin(np.isfinite(loss)))}" if loss.ndim else ""
        worst = loss.ravel()[np.argmin(np.isfinite(loss.ravel()))]
        named = f" (term {', '.join(terms)})" if terms else ""
        raise NonFiniteError(f"the loss{who} became {worst} at step {number}{named}: {self._advice()}")

    def _forgiven(self, loss: np.ndarray, skipped: np.ndarray) -> np.ndarray:
        """The loss, with 0 where the update was skipped, unless too many were in a row."""
        before = skipped if self._skipped is None else self._skipped
        self._skipped, self._in_a_row = skipped, np.where(skipped > before, self._in_a_row + 1, 0)
        return np.where(self._in_a_row < PATIENCE, 0.0, np.nan)

    def _advice(self) -> str:
        kept = ""
        if self._checkpoints and (last := self._checkpoints.latest()) is not None:
            kept = f"; the last good checkpoint is step {last} in {self._checkpoints.path}"
        return f"lower the learning rate, clip gradients, or check the data{kept}."


_all_finite = jax.jit(
    lambda tree: jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)] or [jnp.array(True)]))
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
