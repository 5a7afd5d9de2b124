"""Comparisons of students and of runs: gains with their standard errors, last and best values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jax.typing import ArrayLike


def by_point(
    values: Mapping[str, ArrayLike], points: Mapping[str, ArrayLike] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Groups the metrics of a sweep by the hyper-parameters of its students, the seed excepted.

    Args:
      values: Metric -> [S], one value for each student.
      points: Hyper-parameter -> [S], as `jaxkd.train.students.grid` returns them; None for a single student.

    Yields:
      Label such as " temperature=2" ("" if only the seeds differ), and metric -> values of the students of the group.
    """
    if points is None:
        yield "", dict(values)
        return
    varied = [name for name in points if name != "seed"]
    columns = [np.asarray(points[name]) for name in varied]
    count = np.asarray(next(iter(points.values()))).size
    labels = ["".join(f" {n}={c[i]:g}" for n, c in zip(varied, columns, strict=True)) for i in range(count)]
    for label in dict.fromkeys(labels):
        members = np.array([other == label for other in labels])
        yield label, {name: np.asarray(value)[members] for name, value in values.items()}


def gain(before: ArrayLike, after: ArrayLike, *, unit: str = "points") -> tuple[float, float, str]:
    """Gain of one group of students over another, with its standard error over seeds.

    gain = mean(after) - mean(before)
    error = sqrt(var(before) / S_before + var(after) / S_after)

    Args:
      before: Values [S_before] of the first group, one for each student, at least two.
      after: Values [S_after] of the second group, at least two.
      unit: Unit of the values.

    Returns:
      (gain, standard error, sentence); the sentence claims a gain only above two standard errors.

    Raises:
      ValueError: If a group has fewer than two students.
    """
    b, a = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if b.size < 2 or a.size < 2:
        raise ValueError(f"the groups have {b.size} and {a.size} students: give at least 2 each, for a standard error.")
    difference = float(a.mean() - b.mean())
    error = float(np.sqrt(b.var(ddof=1) / b.size + a.var(ddof=1) / a.size))
    verdict = "more" if difference > 2 * error else "NOT more"
    return difference, error, f"{difference:+.2f} {unit}, {verdict} than two standard errors (of {error:.2f})"


def last_and_best(
    metrics: Iterable[Mapping[str, Any]], *, metric: str = "accuracy", split: str = "validation"
) -> dict[str, dict[str, Any]]:
    """Last and best value of a metric in each phase, for metrics of which larger values are better.

    Each student has a best value of its own, at a step of its own: its best epoch, in the words of many papers.

    Args:
      metrics: Rows as `jaxkd.runs.read_metrics` returns them.
      metric: Name of the metric.
      split: Split on which it was measured.

    Returns:
      Phase -> {"last": value, "best": value, "best_step": step}, each a number, or a list [S] for several students.
    """
    found: dict[str, list[tuple[int, Any]]] = {}
    for row in metrics:
        if row["split"] == split and metric in row:
            found.setdefault(row.get("phase", ""), []).append((row["step"], row[metric]))
    result = {}
    for phase, rows in found.items():
        steps, values = np.asarray([step for step, _ in rows]), np.asarray([value for _, value in rows])
        best = {"best": values.max(axis=0).tolist(), "best_step": steps[values.argmax(axis=0)].tolist()}
        result[phase] = {"last": rows[-1][1], **best}
    return result
