"""Retention of checkpoints: the newest ones stay, and the best one by a metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np


class Best(NamedTuple):
    """Criterion of the best checkpoint.

    Attributes:
      metric: Name of a metric that `Checkpoints.save` is given, such as "validation/accuracy". Of several students,
        their mean counts.
      mode: "max" if a high value is better, "min" if a low one is.
    """

    metric: str
    mode: Literal["max", "min"] = "max"


class Retention:
    """Orbax's preservation policy: keeps the newest checkpoints and, in addition, the best one.

    Args:
      newest: Number of the newest checkpoints that stay.
      best: Criterion of the best one; None keeps the newest alone.

    Raises:
      ValueError: If the mode of `best` is neither "max" nor "min".
    """

    def __init__(self, newest: int, best: Best | None) -> None:
        if best and best.mode not in ("max", "min"):
            raise ValueError(f'the mode of the best checkpoint is {best.mode!r}: choose "max" or "min".')
        self._newest, self._best = newest, best
        self._scores: dict[int, float] = {}  # step -> the metric, higher is better

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Ranks a checkpoint by the metric, if it has a finite value of it.

        Args:
          step: Step of the checkpoint.
          metrics: Name -> number or numbers [S].
        """
        self._scores.pop(step, None)
        if self._best and self._best.metric in metrics:
            value = float(np.mean(metrics[self._best.metric]))
            if math.isfinite(value):
                self._scores[step] = value if self._best.mode == "max" else -value

    def ranked(self, steps: Sequence[int]) -> list[int]:
        """Checkpoints that have the metric, the best first; the earliest first among equal ones.

        Args:
          steps: Steps of the checkpoints.

        Returns:
          The steps in this order.
        """
        return sorted((step for step in steps if step in self._scores), key=lambda step: (-self._scores[step], step))

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Decides which checkpoints stay; Orbax calls it.

        Args:
          checkpoints: Orbax's information about each checkpoint, the oldest first.
          context: Not used.

        Returns:
          True for each checkpoint that stays.
        """
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self._newest :], *self.ranked(steps)[:1]}
        return [step in kept for step in steps]
