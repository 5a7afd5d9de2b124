"""The context that all trainings of an experiment share: run, logger, devices, batches, options."""

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
    """Parts that all trainings of an experiment share.

    Attributes:
      run: The run's folder, for checkpoints.
      logger: The logger, for metrics.
      plan: The plan that spreads steps over devices.
      seed: Seed of the order of the examples.
      batch_size: Examples a step, over all devices and processes.
      train_prepare: Augmentation and normalisation of training batches, on the device.
      eval_prepare: Normalisation of evaluation batches, on the device.
      step_options: Options of the train step; an experiment's configuration holds them.
      divergence: Thresholds of an exploding loss, at which a training stops; None for no such stop.
    """

    run: Run
    logger: Logger
    plan: parallel.Plan
    seed: int
    batch_size: int
    train_prepare: Prepare
    eval_prepare: Prepare
    step_options: StepOptions = StepOptions()
    divergence: Divergence | None = USUAL

    def batch_of(self, source: data.Source) -> int:
        """Examples that a step takes from a source: all of one that is smaller than a batch.

        Args:
          source: The source.

        Returns:
          Their number, over all devices and processes.
        """
        return min(self.batch_size, source.size)
