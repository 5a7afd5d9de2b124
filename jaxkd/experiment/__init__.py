"""What an experiment file calls: the command line, the context of its trainings, trainer, evaluator and teachers."""

from jaxkd.experiment.cli import check_positive, main, parse, parse_grid
from jaxkd.experiment.context import NO_VARIABLES, Context
from jaxkd.experiment.evaluator import Evaluator, predict
from jaxkd.experiment.flags import Devices, StepOptions
from jaxkd.experiment.launch import keep_programs, launch
from jaxkd.experiment.teachers import Keep, cached_teacher
from jaxkd.experiment.trainer import train_phase, variables_of

__all__ = [
    "NO_VARIABLES",
    "Context",
    "Devices",
    "Evaluator",
    "Keep",
    "StepOptions",
    "cached_teacher",
    "check_positive",
    "keep_programs",
    "launch",
    "main",
    "parse",
    "parse_grid",
    "predict",
    "train_phase",
    "variables_of",
]
