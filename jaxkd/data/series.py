"""Sources of windows of series: past steps, the time of day, and the steps after them as labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxkd.data.checks import check_rows
from jaxkd.data.readers.series import Series
from jaxkd.data.source import Source

DAY = 24 * 60
"""Minutes of a day."""


class Windows(NamedTuple):
    """Windows of a series in three parts of the time, none of which shares a step with another.

    Attributes:
      train: The first part.
      validation: The part after it.
      test: The last part.
      mean: Mean of the training part's values.
      std: Their standard deviation.
    """

    train: Source
    validation: Source
    test: Source
    mean: float
    std: float


def cut_windows(
    series: Series,
    *,
    past: int = 12,
    horizons: int = 12,
    minutes: float = 5.0,
    validation: float = 0.1,
    test: float = 0.2,
) -> Windows:
    """Cuts a series into windows, in three parts of the time.

    Each window lies within its part, past and labels: no network sees a value in training that another part has as a
    label, and no label of the training part lies after its end. Mean and standard deviation are those of the training
    part, over all sensors and values that were not filled.

    Args:
      series: The series, [T, N].
      past: Number P of past steps that a window shows.
      horizons: Number H of steps after them that are to be forecast.
      minutes: Interval of the steps, in minutes.
      validation: Fraction of the steps in the validation part.
      test: Fraction of the steps in the test part.

    Returns:
      The windows. Sources of the task "regression", whose rows have `series` float32 [B, P, N], standardised; `time`
      [B, P, 2], sine and cosine of the time of day; `label` [B, H, N] in units of the data, NaN where a value was
      missing (`ignore` of the source); and `id`, the step in the series of the last past value.

    Raises:
      ValueError: If a part is shorter than a window, a number is none, or the training part does not vary.
    """
    if past < 1 or horizons < 1 or not 0 < minutes <= DAY:
        raise ValueError(f"past is {past}, horizons {horizons}, minutes {minutes}: give positive numbers.")
    if not (0 < validation < 1 and 0 < test < 1 and validation + test < 1):
        raise ValueError(
            f"validation is {validation} and test {test}: give fractions that leave a part of the steps for training."
        )
    T, needed = len(series.values), past + horizons
    ends = [0, round((1 - validation - test) * T), round((1 - test) * T), T]
    names = ("train", "validation", "test")
    for name, start, stop in zip(names, ends[:-1], ends[1:], strict=True):
        if stop - start < needed:
            raise ValueError(
                f"the part {name} of {series.name} has {stop - start} of its {T} steps, but a window has {needed}, "
                f"{past} past ones and {horizons} to forecast: give a longer series, other parts, or shorter windows."
            )
    seen = series.values[: ends[1]][~series.missing[: ends[1]]].astype(np.float64)
    mean, std = float(seen.mean()) if seen.size else 0.0, float(seen.std()) if seen.size else 0.0
    if std <= 1e-6 * abs(mean):
        raise ValueError(f"the training part of {series.name} has the same value everywhere: nothing can be learned.")
    train, tuned, tested = (
        _source(series, name, (start, stop), (past, horizons), minutes, (mean, std))
        for name, start, stop in zip(names, ends[:-1], ends[1:], strict=True)
    )
    return Windows(train, tuned, tested, mean, std)


def _source(
    series: Series,
    part: str,
    steps: tuple[int, int],
    lengths: tuple[int, int],
    minutes: float,
    statistics: tuple[float, float],
) -> Source:
    """Windows of one part."""
    (start, stop), (past, horizons), (mean, std) = steps, lengths, statistics
    standard = ((series.values - mean) / std).astype(np.float32)
    angle = 2 * np.pi * (np.arange(stop) * minutes % DAY) / DAY
    clock = np.stack([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)
    labels = np.where(series.missing, np.nan, series.values).astype(np.float32)
    first, size, name = start + past - 1, stop - start - past - horizons + 1, f"{series.name}[{part}]"
    before, after = np.arange(1 - past, 1), np.arange(1, horizons + 1)

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        last = first + check_rows(name, rows, size)
        seen = last[:, None] + before
        fields = {"series": standard[seen], "time": clock[seen], "label": labels[last[:, None] + after]}
        return fields | {"id": last.astype(np.int32)}

    ignore = float("nan") if series.missing.any() else None
    return Source(
        name, size, horizons * len(series.sensors), None, read, first, task="regression", ignore=ignore, class_names=()
    )
