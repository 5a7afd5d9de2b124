"""Comparisons of students and of runs: gains with their standard errors, last and best values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from jaxkd.runs.retention import Best


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
    labels = ["".join(f" {n}={_text(c[i])}" for n, c in zip(varied, columns, strict=True)) for i in range(count)]
    for label in dict.fromkeys(labels):
        members = np.array([other == label for other in labels])
        yield label, {name: np.asarray(value)[members] for name, value in values.items()}


def _text(value: Any) -> str:
    """A value in six digits, or in as many as tell it from others."""
    short = f"{value:g}"
    return short if type(value)(short) == value else str(value)


def without_lost(values: Mapping[str, ArrayLike], lost: Sequence[int]) -> dict[str, Any]:
    """Metrics with NaN in place of those of students that diverged, which are no results.

    Args:
      values: Metric -> [S], one value for each student, or a number of a single one.
      lost: Numbers of the students that diverged, such as `jaxkd.runs.Run.lost` of a phase.

    Returns:
      Metric -> values.
    """

    def masked(value: Any) -> Any:
        array = np.array(value, np.float64)
        array[list(lost)] = np.nan
        return array

    return {name: masked(value) if len(lost) else value for name, value in values.items()}


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
    metrics: Iterable[Mapping[str, Any]],
    *,
    metric: str = "accuracy",
    split: str = "validation",
    lost: Mapping[str, Sequence[int]] | None = None,
    best: Mapping[str, Best | None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Last and best value of a metric in each phase.

    Each student has a best value of its own, at a step of its own: its best epoch, in the words of many papers.

    Args:
      metrics: Rows as `jaxkd.runs.read_metrics` returns them.
      metric: Name of the metric of phases that `best` has no criterion of; larger values are better.
      split: Split on which it was measured.
      lost: Phase -> students that diverged, whose values become NaN.
      best: Phase -> the criterion of its best checkpoint, such as `jaxkd.runs.Run.best`, which names the metric and
        says if small values are better; None for none.

    Returns:
      Phase -> {"last": value, "best": value, "best_step": step}, each a number, or a list [S] for several students;
      and "metric", its name, where that is another than `metric`.
    """
    found: dict[str, list[tuple[int, Any]]] = {}
    criteria = {phase: (one.metric.removeprefix(f"{split}/"), one.mode) for phase, one in (best or {}).items() if one}
    for row in metrics:
        name, _ = criteria.get(phase := row.get("phase", ""), (metric, "max"))
        if row["split"] == split and name in row:
            found.setdefault(phase, []).append((row["step"], row[name]))
    result: dict[str, dict[str, Any]] = {}
    for phase, rows in found.items():
        steps, values = np.asarray([step for step, _ in rows]), np.asarray([value for _, value in rows])
        name, mode = criteria.get(phase, (metric, "max"))
        place = (values if mode == "max" else -values).argmax(axis=0)
        each = {"last": values[-1], "best": np.take_along_axis(values, place[None], axis=0)[0]}
        found_values = without_lost(each, (lost or {}).get(phase, ()))
        result[phase] = {name: np.asarray(value).tolist() for name, value in found_values.items()}
        result[phase] |= {"best_step": steps[place].tolist(), **({} if name == metric else {"metric": name})}
    return result
