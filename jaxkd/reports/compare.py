"""Comparison of students and of runs: gains with their standard errors, last and best values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

if TYPE_CHECKING:
    pass


def by_point(
    values: Mapping[str, ArrayLike], points: Mapping[str, ArrayLike] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Splits the metrics of a sweep by what its students differ in besides the seed.

    Args:
      values: Metric -> [S].
      points: Name -> [S], as `students.grid` gives them; None where there is one student.

    Yields:
      " temperature=2" (nothing where only the seeds differ), and metric -> the values of those students.
    """
    if points is None:
        yield "", dict(values)
        return
    varied = [name for name in points if name != "seed"]
    columns = [np.asarray(points[name]) for name in varied]
    count = np.asarray(next(iter(points.values()))).size
    labels = ["".join(f" {n}={c[i]:g}" for n, c in zip(varied, columns, strict=True)) for i in range(count)]
    for label in dict.fromkeys(labels):
        mine = np.array([other == label for other in labels])
        yield label, {name: np.asarray(value)[mine] for name, value in values.items()}


def gain(before: ArrayLike, after: ArrayLike, *, unit: str = "points") -> tuple[float, float, str]:
    """How much better one kind of student is than another, and whether the seeds can tell.

    gain = mean(after) - mean(before);  error = sqrt(var(before) / S_before + var(after) / S_after)

    Args:
      before: [S], one value a student, at least two of them.
      after: [S].
      unit: Unit of the values.

    Returns:
      The gain, its standard error, and a sentence that claims a gain only above two standard errors.
    """
    b, a = np.asarray(before, np.float64), np.asarray(after, np.float64)
    difference = float(a.mean() - b.mean())
    error = float(np.sqrt(b.var(ddof=1) / b.size + a.var(ddof=1) / a.size))
    verdict = "more" if difference > 2 * error else "NOT more"
    return difference, error, f"{difference:+.2f} {unit}, {verdict} than two standard errors (of {error:.2f})"


def last_and_best(
    metrics: Iterable[Mapping[str, Any]], *, metric: str = "accuracy", split: str = "validation"
) -> dict[str, dict[str, Any]]:
    """Finds, for each phase, the last and the best value of a metric that is better when larger.

    The best is each student's own, as where others speak of the best epoch of a run.

    Args:
      metrics: Rows as `jaxkd.runs.read_metrics` gives them.
      metric: The metric's name.
      split: The split that was measured.

    Returns:
      Phase -> {"last": value or [S], "best": likewise, "best_step": the steps of the best, likewise}.
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
