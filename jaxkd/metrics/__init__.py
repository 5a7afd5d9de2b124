"""Evaluation metrics: pure functions (student, teacher, batch) -> accumulator.

Accumulators hold sums: they are added over the batches of a split and divided once, so that padding never counts.
"""

from jaxkd.metrics.accumulators import CKA, Accumulator, Calibration, Mean, PerClass, values
from jaxkd.metrics.binary import (
    AUROC,
    BINARY,
    F1,
    MULTI_LABEL,
    AveragePrecision,
    auroc,
    average_precision,
    binary_accuracy,
    binary_nll,
    f1,
)
from jaxkd.metrics.classification import (
    CLASSIFICATION,
    BalancedAccuracy,
    Matthews,
    accuracy,
    balanced_accuracy,
    brier,
    calibration,
    matthews,
    nll,
    per_class,
    top_k,
)
from jaxkd.metrics.ctc_decoding import Hypothesis, beam_search, greedy_ctc
from jaxkd.metrics.detection import DetectionAP, detection_ap
from jaxkd.metrics.edits import Edits, character_edits, word_edits
from jaxkd.metrics.fidelity import DISTILLATION, agreement, agreement_at, kl_to_teacher, linear_cka, total_variation
from jaxkd.metrics.ignored import ignoring
from jaxkd.metrics.neighbours import nearest_neighbours
from jaxkd.metrics.ranking import RANKING, hit_rate, mrr, ndcg, recall
from jaxkd.metrics.regression import R2, REGRESSION, RootMean, mae, r2, rmse
from jaxkd.metrics.roc import ROC, roc, sensitivity_at_specificity
from jaxkd.metrics.segmentation import SEGMENTATION, IoU, miou
from jaxkd.metrics.spans import SpanF1, span_f1
from jaxkd.metrics.verification import Pairs, pairs_of, rank_one
from jaxkd.types import Metric

__all__ = [
    "AUROC",
    "BINARY",
    "CKA",
    "CLASSIFICATION",
    "DISTILLATION",
    "F1",
    "MULTI_LABEL",
    "R2",
    "RANKING",
    "REGRESSION",
    "ROC",
    "SEGMENTATION",
    "Accumulator",
    "AveragePrecision",
    "BalancedAccuracy",
    "Calibration",
    "DetectionAP",
    "Edits",
    "Hypothesis",
    "IoU",
    "Matthews",
    "Mean",
    "Metric",
    "Pairs",
    "PerClass",
    "RootMean",
    "SpanF1",
    "accuracy",
    "agreement",
    "agreement_at",
    "auroc",
    "average_precision",
    "balanced_accuracy",
    "beam_search",
    "binary_accuracy",
    "binary_nll",
    "brier",
    "calibration",
    "character_edits",
    "detection_ap",
    "f1",
    "greedy_ctc",
    "hit_rate",
    "ignoring",
    "kl_to_teacher",
    "linear_cka",
    "mae",
    "matthews",
    "miou",
    "mrr",
    "ndcg",
    "nearest_neighbours",
    "nll",
    "pairs_of",
    "per_class",
    "r2",
    "rank_one",
    "recall",
    "rmse",
    "roc",
    "sensitivity_at_specificity",
    "span_f1",
    "top_k",
    "total_variation",
    "values",
    "word_edits",
]
