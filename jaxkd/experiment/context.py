"""The context that all trainings of an experiment share."""

from __future__ import annotations

from typing import NamedTuple

from jaxkd import data, parallel
from jaxkd.experiment.flags import StepOptions
from jaxkd.runs.directory import Run
from jaxkd.runs.divergence import USUAL, Divergence
from jaxkd.runs.logger import Logger
from jaxkd.types import Prepare, Variables

NO_VARIABLES = Variables({}, {})
"""Variables of `models.no_teacher()` and `models.cached()`."""


class Context(NamedTuple):
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
    train_prepare: Prepare
    eval_prepare: Prepare
    training: StepOptions = StepOptions()
    divergence: Divergence | None = USUAL

    def batch_of(self, source: data.Source) -> int:
        """Examples a step takes from a source: all of one smaller than a batch.

        Args:
          source: The source.

        Returns:
          Their number, over all devices and processes.
        """
        return min(self.batch_size, source.size)
