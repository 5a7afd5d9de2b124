"""Metrics that leave out what has a label to ignore, such as 255, -100 or -1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxkd.labels import leave_out
from jaxkd.types import Batch, Metric, Outputs


def ignoring(metrics: Mapping[str, Metric], ignore: float, *, label: str = "label") -> dict[str, Metric]:
    """Metrics of what has another label than the one to ignore.

    `metrics.ignoring(metrics.CLASSIFICATION, 255)`

    Args:
      metrics: Name -> metric.
      ignore: The label to ignore: an integer, or for regressions a number, such as NaN.
      label: Field of the batch with the labels.

    Returns:
      Name -> metric; the rows with that label count in none of them. Of several labels in a row, those alone do not.

    Raises:
      TypeError: If it is no set of metrics, such as a single one.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"ignoring takes a set of metrics, but was given a {type(metrics).__name__}: give metrics.CLASSIFICATION, "
            'or {"accuracy": metrics.accuracy}.'
        )
    return {name: _ignoring(metric, ignore, label) for name, metric in metrics.items()}


def _ignoring(metric: Metric, ignore: float, label: str) -> Metric:
    def measure(student: Outputs, teacher: Outputs, batch: Batch) -> Any:
        return metric(student, teacher, leave_out(batch, label, ignore, student.logits))

    return measure
