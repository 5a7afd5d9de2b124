"""What a run watches its losses for: values that are not finite, and a loss that explodes while it still is."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.runs.checkpoint import Checkpoints
from jaxkd.types import Metrics, TrainState

_LOG = logging.getLogger(__name__)

PATIENCE = 100
"""Updates skipped in a row (see `train.make_train_step`) after which a run is given up."""

_MEMORY = 500  # looks that the usual level is taken from
_REFRESH = 20  # looks before there is a usual level, and between two computations of it
_FLOOR = 0.01  # least scale of a loss: one that has come down to nothing may wander


class NonFiniteError(ValueError):
    """The loss or the parameters stopped being finite."""


class DivergenceError(ValueError):
    """The loss exploded, although it was still finite."""


class Divergence(NamedTuple):
    """When a loss that is still finite counts as exploding.

    high(loss) = loss > m + factor * max(|m|, 2 (m - q), 0.01)

    with the median m and the lower quartile q of the last 500 losses that were not high themselves, of each student by
    itself. A run that begins or resumes first sees 20 losses. While a loss is high no checkpoint is due, so that the
    newest one is good; a loss that comes down again changes nothing else.

    Attributes:
      factor: How far above the usual level a loss is high.
      looks: How many steps in a row end the run.
    """

    factor: float = 100.0
    looks: int = 50


USUAL = Divergence()
"""What ordinary training never does."""


@dataclasses.dataclass(frozen=True)
class Done:
    """One dispatch: a step, or a bundle of them.

    Attributes:
      before: Steps done before.
      metrics: Of the step, on the device; of a bundle, with a first axis of steps.
      bundle: Number of steps in the bundle, or None.
    """

    before: int
    metrics: Metrics
    bundle: int | None = None

    @property
    def count(self) -> int:
        """Number of steps."""
        return self.bundle or 1

    @property
    def last(self) -> int:
        """Steps done afterwards."""
        return self.before + self.count

    @property
    def numbers(self) -> range:
        """Numbers of its steps, counted from 1."""
        return range(self.before + 1, self.last + 1)

    def each(self) -> Iterator[tuple[int, Metrics]]:
        """Number and metrics of each step, on the host."""
        found = jax.device_get(dict(self.metrics))
        for i, number in enumerate(self.numbers):
            yield number, found if self.bundle is None else {name: value[i] for name, value in found.items()}


class LossWatch:
    """Looks at the loss one step late, so that the device never waits for the host.

    Students of a stack whose step leaves out broken updates (`skip_nonfinite`) are given up one by one, with a warning;
    the run ends when none is left.

    Args:
      checkpoints: Named in the errors, if there are any.
      divergence: What counts as exploding; None for nothing.
    """

    def __init__(self, checkpoints: Checkpoints | None, divergence: Divergence | None) -> None:
        self._checkpoints = checkpoints
        self._done: Done | None = None
        self._skipped: np.ndarray | None = None
        self._in_a_row = np.zeros((), int)
        self._lost = np.zeros((), bool)  # students of a stack that were given up
        self._guard = None if divergence is None else _Guard(divergence)

    def check_previous(self, done: Done) -> None:
        """Checks the steps before these.

        Args:
          done: These.

        Raises:
          NonFiniteError: If the loss is not finite, or too many updates in a row were skipped.
          DivergenceError: If the loss has been exploding for too long.
        """
        previous, self._done = self._done, done
        if previous is not None:
            self._check_all(previous)

    def check_state(self, number: int, state: TrainState) -> bool:
        """Checks this step and the parameters, before they are kept.

        Args:
          number: This step.
          state: The state after it.

        Returns:
          Whether the loss is an ordinary one, so that the state is worth keeping.

        Raises:
          NonFiniteError: If the loss or a parameter is not finite.
          DivergenceError: If the loss has been exploding for too long.
        """
        if self._done is not None:
            self._check_all(self._done)
            self._done = None
        if not jax.device_get(_all_finite(state.params)):
            raise NonFiniteError(
                f"the parameters are no longer finite after step {number} although the loss still was: {self._advice()}"
            )
        return self._guard is None or not np.any(self._guard.in_a_row)

    def _check_all(self, done: Done) -> None:
        watched = {name: done.metrics[name] for name in ("loss", "skipped") if name in done.metrics}
        for i, (number, metrics) in enumerate(dataclasses.replace(done, metrics=watched).each()):
            self._check(number, metrics, done, i)

    def _check(self, number: int, metrics: Metrics, done: Done, place: int) -> None:
        loss = np.asarray(metrics["loss"])
        broken = ~np.isfinite(loss)
        if "skipped" in metrics:
            broken = self._skipped_too_often(np.asarray(metrics["skipped"]))
            if loss.ndim:
                broken = self._newly_lost(broken, f"has had no finite update for {PATIENCE} steps", number)
        if np.any(broken):
            raise NonFiniteError(self._non_finite(number, loss, broken, list(done.each())[place][1]))
        loss = np.where(self._lost, 0.0, loss)
        if self._guard is not None and (found := self._guard.look(loss)) is not None:
            gone = np.arange(loss.size).reshape(loss.shape) == found[0]
            if "skipped" not in metrics or not loss.ndim or np.any(self._newly_lost(gone, "has diverged", number)):
                raise DivergenceError(self._diverged(number, loss, found))

    def _newly_lost(self, gone: np.ndarray, what: str, number: int) -> np.ndarray:
        """Gives up single students of a stack; gives them back as broken once none is left."""
        new = gone & ~self._lost
        self._lost = self._lost | gone
        if np.all(self._lost):
            return new
        for student in np.flatnonzero(new):
            _LOG.warning("student %d %s at step %d: the others go on without it.", student, what, number)
        return np.zeros_like(new)

    def _skipped_too_often(self, skipped: np.ndarray) -> np.ndarray:
        """Which students have left out too many updates in a row."""
        before = skipped if self._skipped is None else self._skipped
        self._skipped, self._in_a_row = skipped, np.where(skipped > before, self._in_a_row + 1, 0)
        return self._in_a_row >= PATIENCE

    def _non_finite(self, number: int, loss: np.ndarray, broken: np.ndarray, metrics: Metrics) -> str:
        """The sentence on a loss, or on gradients, that are not finite."""
        values = {k: np.asarray(v) for k, v in metrics.items() if not k.endswith("_weighted")}
        terms = [k for k, v in values.items() if k != "loss" and not np.all(np.isfinite(v))]
        student = int(np.argmax(broken))
        who, worst = _who(loss, student), loss.ravel()[student]
        what = f"gradients{who} are not finite" if np.isfinite(worst) else f"loss{who} became {worst}"
        named = f" (term {', '.join(terms)})" if terms else ""
        many = f", where {PATIENCE} updates in a row were skipped" if "skipped" in metrics else ""
        return f"the {what} at step {number}{named}{many}: {self._advice()}"

    def _diverged(self, number: int, loss: np.ndarray, found: tuple[int, float, Divergence]) -> str:
        """The sentence on a loss that explodes."""
        student, usual, limits = found
        return (
            f"the loss{_who(loss, student)} explodes: it is {loss.ravel()[student]:.4g} at step {number} and has been "
            f"far above its usual {usual:.4g} for {limits.looks} steps in a row; if it is meant to rise like that, "
            f"give a Divergence with a factor above {limits.factor:g}, else {self._advice()}"
        )

    def _advice(self) -> str:
        kept = ""
        if self._checkpoints and (last := self._checkpoints.latest()) is not None:
            kept = f"; the last good checkpoint is step {last} in {self._checkpoints.path}"
        return f"lower the learning rate, clip gradients, or check the data{kept}."


class _Guard:
    """Remembers the usual level of the loss and counts how often in a row it was far above."""

    def __init__(self, limits: Divergence) -> None:
        self._limits = limits
        self._memory: np.ndarray | None = None  # a ring of the last losses, [500] or [500, S]
        self._count = 0
        self._usual = np.zeros(())
        self._ceiling = np.array(np.inf)
        self.in_a_row = np.zeros((), int)

    def look(self, loss: np.ndarray) -> tuple[int, float, Divergence] | None:
        """Takes in one step's losses; gives the student that has exploded and its usual level, if one has."""
        known = np.isfinite(loss)  # others were skipped
        high = known & (loss > self._ceiling)
        self.in_a_row = np.where(high, self.in_a_row + 1, np.where(known, 0, self.in_a_row))
        if high.any() or not known.all():
            student = int(np.argmax(self.in_a_row))
            gone = self.in_a_row.ravel()[student] >= self._limits.looks
            return (student, float(self._usual.ravel()[student]), self._limits) if gone else None
        if self._memory is None:
            self._memory = np.empty((_MEMORY, *loss.shape))
        self._memory[self._count % _MEMORY] = loss
        self._count += 1
        if self._count % _REFRESH == 0:
            low, self._usual = np.percentile(self._memory[: self._count], [25, 50], axis=0)
            # The spread below: a loss that rises slowly must not widen it.
            scale = np.maximum(np.maximum(np.abs(self._usual), 2 * (self._usual - low)), _FLOOR)
            self._ceiling = self._usual + self._limits.factor * scale
        return None


def _who(loss: np.ndarray, student: int) -> str:
    return f" of student {student}" if loss.ndim else ""


_all_finite = jax.jit(
    lambda tree: jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)] or [jnp.array(True)]))
)
