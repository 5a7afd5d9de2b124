"""What one run writes and watches: its directory, logs, progress, checkpoints, loop, timing and divergence."""

from jaxkd.runs.checkpoint import Best, Checkpoints
from jaxkd.runs.directory import Phase, Run, open_run
from jaxkd.runs.divergence import USUAL, Divergence, DivergenceError, NonFiniteError
from jaxkd.runs.logger import Logger, read_metrics
from jaxkd.runs.loop import Every, evaluate, fit
from jaxkd.runs.progress import Progress
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
