"""Evaluation metrics: pure functions (student, teacher, batch) -> accumulator.

Accumulators hold sums: they are added over the batches of a split and divided once, so that padding never counts.
"""

from jaxkd.metrics.accumulators import CKA, Calibration, Mean, PerClass, values
from jaxkd.metrics.classification import CLASSIFICATION, accuracy, brier, calibration, nll, per_class, top_k
from jaxkd.metrics.fidelity import DISTILLATION, agreement, agreement_at, kl_to_teacher, linear_cka, total_variation
from jaxkd.types import Metric

__all__ = [
    "CKA",
    "CLASSIFICATION",
    "DISTILLATION",
    "Calibration",
    "Mean",
    "Metric",
    "PerClass",
    "accuracy",
    "agreement",
    "agreement_at",
    "brier",
    "calibration",
    "kl_to_teacher",
    "linear_cka",
    "nll",
    "per_class",
    "top_k",
    "total_variation",
    "values",
]
