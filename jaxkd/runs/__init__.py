"""Runs: the run directory with its logs and checkpoints, and the training loop that writes them.

`open_run` makes or resumes a directory and `fit` trains in it. `Logger`, `Progress`, `Checkpoints`, `Clock` and
`Divergence` are the loop's log, progress bar, checkpoints, time measurements and check of the loss.
"""

from jaxkd.runs.checkpoint import Checkpoints
from jaxkd.runs.directory import Phase, Run, open_run
from jaxkd.runs.divergence import USUAL, Divergence, DivergenceError, NonFiniteError
from jaxkd.runs.logger import Logger, read_metrics
from jaxkd.runs.loop import Every, evaluate, fit
from jaxkd.runs.progress import Progress
from jaxkd.runs.retention import Best
from jaxkd.runs.timing import Clock

__all__ = [
    "USUAL",
    "Best",
    "Checkpoints",
    "Clock",
    "Divergence",
    "DivergenceError",
    "Every",
    "Logger",
    "NonFiniteError",
    "Phase",
    "Progress",
    "Run",
    "evaluate",
    "fit",
    "open_run",
    "read_metrics",
]
