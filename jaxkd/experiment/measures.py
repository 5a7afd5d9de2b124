"""Metrics of a source's task: those that trainings and evaluations report, and the checkpoint that they keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxkd import data, metrics
from jaxkd.runs.retention import Best
from jaxkd.types import Batch, Metric, Outputs

BEST_OF_TASK = Best("of the source's task")
"""Stands for the best checkpoint by the task's own metric: accuracy, NLL of several labels, or mean absolute error."""

_ERRORS: Mapping[str, Metric] = {"mae": metrics.mae, "rmse": metrics.rmse}
_BEST: Mapping[data.Task, Best] = {
    "classification": Best("validation/accuracy"),
    "tokens": Best("validation/accuracy"),
    "multi_label": Best("validation/nll", "min"),
    "regression": Best("validation/mae", "min"),
}


def training_metrics(source: data.Source) -> dict[str, Metric]:
    """Metrics of training batches, by the source's task.

    Args:
      source: The training data, whose labels may be missing.

    Returns:
      Name -> metric: accuracy of classes, also of tokens; MAE and RMSE of numbers; `metrics.BINARY` of several labels;
      nothing of other tasks, nor of a single class.
    """
    return _of_task(source, {"accuracy": metrics.accuracy})


def evaluation_metrics(source: data.Source) -> dict[str, Metric]:
    """Metrics of a split, by the source's task.

    Args:
      source: The split, whose labels may be missing.

    Returns:
      Name -> metric: `metrics.CLASSIFICATION` of classes, also of tokens; MAE and RMSE of numbers; `metrics.BINARY` of
      several labels; nothing of other tasks.
    """
    return _of_task(source, metrics.CLASSIFICATION)


def best_of(source: data.Source) -> Best | None:
    """Criterion of the best checkpoint, by the source's task.

    Args:
      source: The training data.

    Returns:
      The criterion, or None for a task without metrics.
    """
    return None if _is_dummy(source) else _BEST.get(source.task)


def _is_dummy(source: data.Source) -> bool:
    """True if all labels are the same class, as those that stand in for other targets."""
    return source.task == "classification" and source.num_classes == 1


def _of_task(source: data.Source, of_classes: Mapping[str, Metric]) -> dict[str, Metric]:
    """Metrics of a source's task, given those of classes; missing labels count in none of them."""
    found: Mapping[str, Metric] = {}
    if source.task in ("classification", "tokens") and not _is_dummy(source):
        found = {name: _of_one_logit_too(metric) for name, metric in of_classes.items()}
    elif source.task == "multi_label":
        found = metrics.BINARY
    elif source.task == "regression":
        found = _ERRORS
    if source.ignore is not None:
        found = metrics.ignoring(found, source.ignore)
    return {name: _with_logits(metric) for name, metric in found.items()}


def _of_one_logit_too(metric: Metric) -> Metric:
    """A metric of classes that takes one logit, of yes, for the two logits (0, z) of the same probabilities."""

    def two(outputs: Outputs) -> Outputs:
        if outputs.logits is None or outputs.logits.shape[-1] != 1:
            return outputs
        return outputs._replace(logits=jnp.concatenate([jnp.zeros_like(outputs.logits), outputs.logits], axis=-1))

    def measure(student: Outputs, teacher: Outputs, batch: Batch) -> Any:
        return metric(two(student), two(teacher), batch)

    return measure


def _with_logits(metric: Metric) -> Metric:
    """A metric that says so if a student has no logits to measure."""

    def measure(student: Outputs, teacher: Outputs, batch: Batch) -> Any:
        if student.logits is None:
            raise ValueError(
                "the student has no logits, which the metrics of its source's task need: give `measured={}` to "
                "train_phase, or an Evaluator metrics that need none."
            )
        return metric(student, teacher, batch)

    return measure
