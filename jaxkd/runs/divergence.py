"""Checks of a training's losses: values that are not finite, and finite losses that diverge."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.runs.checkpoint import Checkpoints
from jaxkd.runs.lost import LostStudents
from jaxkd.types import Metrics, PyTree, TrainState

_LOG = logging.getLogger(__name__)

MAX_SKIPPED = 100
"""Number of updates skipped in a row (see `train.make_train_step`) after which a training is given up."""

_MEMORY = 500  # losses that the usual level is computed from
_REFRESH = 20  # losses before there is a usual level, and between two computations of it
_FLOOR = 0.01  # minimal scale of a loss: one that is almost 0 may vary by a large factor


class NonFiniteError(ValueError):
    """Error for a loss or parameters that are no longer finite."""


class DivergenceError(ValueError):
    """Error for a loss that diverges although it is finite."""


class Divergence(NamedTuple):
    """Criterion of a diverging loss, for losses that are still finite.

    high(loss) = loss > m + factor * max(|m|, 2 (m - q), 0.01)

    with the median m and the lower quartile q of the last 500 losses that were not high themselves, for each student
    separately. A training that begins or resumes first collects 20 losses. While a loss is high no checkpoint is saved
    at the regular interval, so that the newest one is good. A loss that becomes ordinary again has no other effect.

    Attributes:
      factor: Distance from the usual level, relative to the scale, above which a loss is high.
      patience: Number of steps in a row with a high loss that end the training.
    """

    factor: float = 100.0
    patience: int = 50


USUAL = Divergence()
"""Default criterion, which no ordinary training meets."""


@dataclasses.dataclass(frozen=True)
class Done:
    """Finished dispatch of one step, or of a bundle of steps.

    Attributes:
      before: Number of steps done before it.
      metrics: Metrics of the step, on the device; those of a bundle have a first axis of steps.
      bundle: Number of steps in the bundle, or None for a single step.
    """

    before: int
    metrics: Metrics
    bundle: int | None = None

    @property
    def count(self) -> int:
        """Number of steps in the dispatch."""
        return self.bundle or 1

    @property
    def last(self) -> int:
        """Number of steps done after it."""
        return self.before + self.count

    @property
    def numbers(self) -> range:
        """Numbers of its steps, where the first step of a training is 1."""
        return range(self.before + 1, self.last + 1)

    def each(self) -> Iterator[tuple[int, Metrics]]:
        """Iterates over its steps.

        Yields:
          Number and metrics of each step, on the host.
        """
        found = jax.device_get(dict(self.metrics))
        for i, number in enumerate(self.numbers):
            yield number, found if self.bundle is None else {name: value[i] for name, value in found.items()}


class LossWatch:
    """Watch over the loss, which checks it one step late so that the device never waits for the host.

    With a step that skips updates that are not finite (`skip_nonfinite`), students of a stack are given up one by one,
    with a warning; the training ends when none is left.

    Args:
      checkpoints: Checkpoints that the errors refer to, if any.
      divergence: Criterion of a diverging loss; None checks for none.
      lost: Students of a stack that were given up before, to which others are added.
    """

    def __init__(
        self, checkpoints: Checkpoints | None, divergence: Divergence | None, lost: LostStudents | None = None
    ) -> None:
        self._checkpoints = checkpoints
        self._given_up = LostStudents() if lost is None else lost
        self._done: Done | None = None
        self._skipped: np.ndarray | None = None
        self._in_a_row = np.zeros((), int)
        self._guard = None if divergence is None else _Guard(divergence)

    def check_previous(self, done: Done) -> None:
        """Checks the losses of the previous dispatch.

        Args:
          done: The dispatch after it, which the next call checks.

        Raises:
          NonFiniteError: If a loss is not finite, or too many updates in a row were skipped.
          DivergenceError: If the loss diverges.
        """
        previous, self._done = self._done, done
        if previous is not None:
            self._check_all(previous)

    def check_state(self, number: int, state: TrainState) -> bool:
        """Checks the last loss and the parameters, before they are saved.

        Args:
          number: Number of the last step.
          state: The state after it.

        Returns:
          True if the loss is an ordinary one, so that the state should be saved.

        Raises:
          NonFiniteError: If the loss or a parameter is not finite.
          DivergenceError: If the loss diverges.
        """
        if self._done is not None:
            self._check_all(self._done)
            self._done = None
        finite = np.asarray(jax.device_get(_all_finite(state.params, state.step.ndim)))
        if self._skipped is not None and finite.ndim:
            finite = ~self._newly_lost(~finite, "has parameters that are not finite", number)
        if not np.all(finite):
            raise NonFiniteError(
                f"the parameters are no longer finite after step {number} although the loss still was: {self._advice()}"
            )
        return self._guard is None or not np.any(self._guard.in_a_row)

    def check_end(self, number: int) -> None:
        """Gives up students whose last update was skipped, as many before it, or 100 in a short training half of all.

        Args:
          number: Number of the last step.

        Raises:
          NonFiniteError: If no student is left.
        """
        if self._skipped is None:
            return
        gone = (self._in_a_row > 0) & (self._skipped >= min(MAX_SKIPPED, max(1, number // 2)))
        if np.any(self._newly_lost(gone, "had no finite update at the end", number) if gone.ndim else gone):
            raise NonFiniteError(f"updates were skipped until the end, step {number}: {self._advice()}")

    def _check_all(self, done: Done) -> None:
        """Checks the losses of a dispatch."""
        watched = {name: done.metrics[name] for name in ("loss", "skipped") if name in done.metrics}
        for i, (number, metrics) in enumerate(dataclasses.replace(done, metrics=watched).each()):
            self._check(number, metrics, done, i)

    def _check(self, number: int, metrics: Metrics, done: Done, place: int) -> None:
        """Checks the loss of one step, which has this place in its dispatch."""
        loss = np.asarray(metrics["loss"])
        broken = ~np.isfinite(loss)
        if "skipped" in metrics:
            broken = self._skipped_too_often(np.asarray(metrics["skipped"]))
            if loss.ndim:
                broken = self._newly_lost(broken, f"has had no finite update for {MAX_SKIPPED} steps", number)
        if np.any(broken):
            raise NonFiniteError(self._non_finite(number, loss, broken, list(done.each())[place][1]))
        if loss.ndim:
            loss = np.where(self._given_up.mask(loss.size), 0.0, loss)
        if self._guard is not None and (found := self._guard.update(loss)) is not None:
            gone = np.arange(loss.size).reshape(loss.shape) == found[0]
            if "skipped" not in metrics or not loss.ndim or np.any(self._newly_lost(gone, "has diverged", number)):
                raise DivergenceError(self._diverged(number, loss, found))

    def _newly_lost(self, gone: np.ndarray, what: str, number: int) -> np.ndarray:
        """Gives up single students of a stack; returns true for the given ones once none is left."""
        before = self._given_up.mask(gone.size)
        new = gone & ~before
        if not np.any(new) or np.all(gone | before):
            return new
        self._given_up.add(np.flatnonzero(new).tolist(), number)
        for student in np.flatnonzero(new):
            _LOG.warning("student %d %s at step %d: the others go on without it.", student, what, number)
        return np.zeros_like(new)

    def _skipped_too_often(self, skipped: np.ndarray) -> np.ndarray:
        """True for students that have skipped too many updates in a row."""
        before = skipped if self._skipped is None else self._skipped
        self._skipped, self._in_a_row = skipped, np.where(skipped > before, self._in_a_row + 1, 0)
        return self._in_a_row >= MAX_SKIPPED

    def _non_finite(self, number: int, loss: np.ndarray, broken: np.ndarray, metrics: Metrics) -> str:
        """Error message about a loss or gradients that are not finite."""
        values = {k: np.asarray(v) for k, v in metrics.items() if not k.endswith("_weighted")}
        terms = [k for k, v in values.items() if k != "loss" and not np.all(np.isfinite(v))]
        student = int(np.argmax(broken))
        who, worst = _who(loss, student), loss.ravel()[student]
        what = f"gradients{who} are not finite" if np.isfinite(worst) else f"loss{who} became {worst}"
        named = f" (term {', '.join(terms)})" if terms else ""
        many = f", where {MAX_SKIPPED} updates in a row were skipped" if "skipped" in metrics else ""
        return f"the {what} at step {number}{named}{many}: {self._advice()}"

    def _diverged(self, number: int, loss: np.ndarray, found: tuple[int, float, Divergence]) -> str:
        """Error message about a diverging loss."""
        student, usual, limits = found
        return (
            f"the loss{_who(loss, student)} diverges: it is {loss.ravel()[student]:.4g} at step {number} and has been "
            f"far above its usual {usual:.4g} for {limits.patience} steps in a row; if such a rise is intended, give a "
            f"Divergence with a factor above {limits.factor:g}, else {self._advice()}"
        )

    def _advice(self) -> str:
        """End of the error messages: what to do, and the last good checkpoint."""
        kept = ""
        if self._checkpoints and (last := self._checkpoints.latest()) is not None:
            kept = f"; the last good checkpoint is step {last} in {self._checkpoints.path}"
        return f"lower the learning rate, clip gradients, or check the data{kept}."


class _Guard:
    """Usual level of the loss, and number of steps in a row in which it was far above."""

    def __init__(self, limits: Divergence) -> None:
        self._limits = limits
        self._memory: np.ndarray | None = None  # a ring of the last losses, [500] or [500, S]
        self._count = 0
        self._usual = np.zeros(())
        self._ceiling = np.array(np.inf)
        self.in_a_row = np.zeros((), int)

    def update(self, loss: np.ndarray) -> tuple[int, float, Divergence] | None:
        """Takes in the losses of one step; returns a student whose loss diverges and its usual level, or None."""
        finite = np.isfinite(loss)  # updates with other losses were skipped
        high = finite & (loss > self._ceiling)
        self.in_a_row = np.where(high, self.in_a_row + 1, np.where(finite, 0, self.in_a_row))
        if high.any() or not finite.all():
            student = int(np.argmax(self.in_a_row))
            gone = self.in_a_row.ravel()[student] >= self._limits.patience
            return (student, float(self._usual.ravel()[student]), self._limits) if gone else None
        if self._memory is None:
            self._memory = np.empty((_MEMORY, *loss.shape))
        self._memory[self._count % _MEMORY] = loss
        self._count += 1
        if self._count % _REFRESH == 0:
            low, self._usual = np.percentile(self._memory[: self._count], [25, 50], axis=0)
            # The spread below the median: a loss that rises slowly must not widen it.
            scale = np.maximum(np.maximum(np.abs(self._usual), 2 * (self._usual - low)), _FLOOR)
            self._ceiling = self._usual + self._limits.factor * scale
        return None


def _who(loss: np.ndarray, student: int) -> str:
    """Name of a student for a message; empty if there is only one."""
    return f" of student {student}" if loss.ndim else ""


@functools.partial(jax.jit, static_argnums=1)
def _all_finite(tree: PyTree, axes: int) -> jax.Array:
    """True if all arrays of a tree are finite; for each student [S] if they are stacked along one first axis."""
    found = [jnp.all(jnp.isfinite(x), axis=tuple(range(axes, x.ndim))) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(found or [jnp.array(True)]), axis=0)
