"""Functions that an experiment file calls: command line, context, trainer, evaluator, teachers, and its end.

Each name is imported on first use, so that a benchmark, which needs `main` alone, runs where little is installed.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxkd.experiment.cli import main, parse
    from jaxkd.experiment.conclusion import conclude
    from jaxkd.experiment.config import Config, ImageConfig, SweepConfig, check_choice, check_file, parse_grid
    from jaxkd.experiment.context import NO_VARIABLES, Context
    from jaxkd.experiment.domains import check_domains
    from jaxkd.experiment.evaluator import Evaluator, predict
    from jaxkd.experiment.flags import DATA, DEVICES, NETWORKS, RUN, TRAINING, Devices, StepOptions, flag
    from jaxkd.experiment.launcher import keep_programs, launch
    from jaxkd.experiment.teachers import Keep, cached_teacher
    from jaxkd.experiment.texts import TextConfig
    from jaxkd.experiment.trained import Network, load_network
    from jaxkd.experiment.trainer import train_phase, variables_of

_FILES = {
    "cli": ("main", "parse"),
    "conclusion": ("conclude",),
    "config": ("Config", "ImageConfig", "SweepConfig", "check_choice", "check_file", "parse_grid"),
    "context": ("NO_VARIABLES", "Context"),
    "domains": ("check_domains",),
    "evaluator": ("Evaluator", "predict"),
    "flags": ("DATA", "DEVICES", "NETWORKS", "RUN", "TRAINING", "Devices", "StepOptions", "flag"),
    "launcher": ("keep_programs", "launch"),
    "teachers": ("Keep", "cached_teacher"),
    "texts": ("TextConfig",),
    "trained": ("Network", "load_network"),
    "trainer": ("train_phase", "variables_of"),
}

__all__ = [
    "DATA",
    "DEVICES",
    "NETWORKS",
    "NO_VARIABLES",
    "RUN",
    "TRAINING",
    "Config",
    "Context",
    "Devices",
    "Evaluator",
    "ImageConfig",
    "Keep",
    "Network",
    "StepOptions",
    "SweepConfig",
    "TextConfig",
    "cached_teacher",
    "check_choice",
    "check_domains",
    "check_file",
    "conclude",
    "flag",
    "keep_programs",
    "launch",
    "load_network",
    "main",
    "parse",
    "parse_grid",
    "predict",
    "train_phase",
    "variables_of",
]


def __getattr__(name: str) -> Any:
    """Imports the file of a name on first use."""
    for file, names in _FILES.items():
        if name in names:
            return getattr(importlib.import_module(f"jaxkd.experiment.{file}"), name)
    raise AttributeError(f"module 'jaxkd.experiment' has no attribute {name!r}: it has {', '.join(__all__)}.")
