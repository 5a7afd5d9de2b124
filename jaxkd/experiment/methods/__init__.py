"""Distillation methods by name, for a pair of image classifiers: `table` holds term, weight and source of each."""

from jaxkd.experiment.methods.checks import check_methods, misfit
from jaxkd.experiment.methods.makers import EPOCHS, Method, scaled
from jaxkd.experiment.methods.objective import applies, objective, pretrain
from jaxkd.experiment.methods.pair import Pair, describe, matching_stages
from jaxkd.experiment.methods.table import ALONE, FEATURES, LOGITS, METHODS

__all__ = [
    "ALONE",
    "EPOCHS",
    "FEATURES",
    "LOGITS",
    "METHODS",
    "Method",
    "Pair",
    "applies",
    "check_methods",
    "describe",
    "matching_stages",
    "misfit",
    "objective",
    "pretrain",
    "scaled",
]
