"""Series of sensors and the graph between them, from CSV files that may be compressed by xz, gzip or bzip2."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from jaxkd.data.checks import first_of
from jaxkd.data.readers.columns import read_lines, shortened
from jaxkd.data.readers.delimited import read_csv
from jaxkd.data.splits import say

Missing: TypeAlias = Literal["refuse", "forward", "mask"]
"""Treatment of missing values: an error; the last value before them; or that, with no label where they are targets."""

_TIMES = ("", "time", "timestamp", "date", "datetime", "index")
_LARGEST = float(np.finfo(np.float32).max)
_NONE = ("", "nan", "na", "null", "none")


class Series(NamedTuple):
    """Values of sensors at equal intervals.

    Attributes:
      name: Name of the file, for messages.
      values: float32 [T, N], all finite.
      sensors: N names.
      missing: bool [T, N], true where a value was missing and is filled, and no target; all false if filled values
        count as targets.
    """

    name: str
    values: np.ndarray
    sensors: tuple[str, ...]
    missing: np.ndarray


def read_series(path: Path, *, missing: Missing = "refuse", missing_value: float | None = None) -> Series:
    """Reads a CSV file of one row a time step, whose first line names the sensors.

    A first column of times is left out, and said. An empty field, or NaN, is a missing value. Filled are those in the
    middle and at the end with the last value before them, those at the beginning with the sensor's first value.

    Args:
      path: The file.
      missing: Treatment of missing values, which are counted and said: "refuse", "forward" or "mask".
      missing_value: A number that stands for a missing value too, such as 0 in METR-LA; None if none does.

    Returns:
      The series.

    Raises:
      ValueError: If the file cannot be read, its first line names no sensors, a field is no finite number, values are
        missing that may not be, or a sensor has no value at all; the sentence names the line and the sensor.
    """
    columns = read_csv(path)
    names = list(columns.values)
    if names[0].lower() in (*_TIMES, "column1") and len(names) > 1:
        say(f"{path}: the first column, {names[0]!r}, is taken for times and left out; rows are at equal intervals.")
        names = names[1:]
    if all(_is_fraction(name) for name in names):
        raise ValueError(
            f"the first line of {path} holds numbers ({', '.join(names[:3])}, ...), not names of sensors: put a line "
            "of names, such as ids, above it."
        )
    values = np.stack([_numbers(columns.values[name], columns.lines, str(path), name) for name in names], axis=1)
    if missing_value is not None:
        values = np.where(values == missing_value, np.nan, values)
    gaps = np.isnan(values)
    if not gaps.any():
        return Series(str(path), values, tuple(names), gaps)
    row, sensor = first_of(gaps)
    where = f"{int(gaps.sum()):,} of the {gaps.size:,} values of {path} are missing"
    if missing == "refuse":
        raise ValueError(
            f"{where}, the first on line {columns.lines[row]} for the sensor {names[sensor]}: fill them, or give "
            "--missing forward or --missing mask."
        )
    if (empty := np.flatnonzero(gaps.all(axis=0))).size:
        raise ValueError(f"the sensor {names[empty[0]]} of {path} has no value at all: leave its column out.")
    how = "are no targets" if missing == "mask" else "count as targets too"
    say(f"{where}: inputs take the last value before them; they {how}.")
    return Series(str(path), _filled(values, gaps), tuple(names), gaps & (missing == "mask"))


def read_adjacency(path: Path, sensors: tuple[str, ...]) -> np.ndarray:
    """Reads a CSV file of the weights between sensors, [N, N], without a line of names.

    Args:
      path: The file.
      sensors: Names of the N sensors of the series, in the same order.

    Returns:
      float32 [N, N].

    Raises:
      ValueError: If the matrix is not square, not of the sensors' number, not symmetric, or holds a negative weight or
        no number.
    """
    rows = [line.split(",") for line in read_lines(path) if line.strip()]
    widths = {len(row) for row in rows}
    if widths != {len(rows)}:
        raise ValueError(
            f"{path} has {len(rows)} rows of {' or '.join(map(str, sorted(widths)))} weights: give a square matrix "
            "without a line of names."
        )
    if len(rows) != len(sensors):
        raise ValueError(
            f"{path} is of {len(rows)} sensors but the series has {len(sensors)}: give one row and column for each, in "
            "the order of the series."
        )
    lines = list(range(1, len(rows) + 1))
    weights = np.stack([_numbers(list(c), lines, str(path), str(i + 1)) for i, c in enumerate(zip(*rows, strict=True))])
    weights = weights.T
    if np.isnan(weights).any() or (weights < 0).any():
        row, column = first_of(np.isnan(weights) | (weights < 0))
        raise ValueError(
            f"row {row + 1}, column {column + 1} of {path} holds {weights[row, column]:g}: give weights that are not "
            "negative, 0 where two sensors are not connected."
        )
    wrong = np.abs(weights - weights.T) > 1e-4 * np.maximum(weights, weights.T)
    if wrong.any():
        row, column = first_of(wrong)
        raise ValueError(
            f"{path} is not symmetric: {weights[row, column]:g} in row {row + 1}, column {column + 1} but "
            f"{weights[column, row]:g} the other way: give the larger of both, or their mean."
        )
    return weights


def _numbers(texts: list[str], lines: object, name: str, column: str) -> np.ndarray:
    """float32 numbers of a column, NaN where a value is missing."""
    try:
        values = np.array(texts, np.float64)
    except ValueError:
        values = np.array([_number(text) for text in texts])
    texts_of_none = [i for i in np.flatnonzero(~(np.abs(values) <= _LARGEST)) if texts[i].strip().lower() not in _NONE]
    if texts_of_none:
        row = texts_of_none[0]
        raise ValueError(
            f"line {lines[row]} of {name} has {shortened(texts[row])} in column {column}, which is no finite number: "  # type: ignore[index]
            "correct it, or leave the field empty if the value is missing."
        )
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _number(text: str) -> float:
    """A number, or NaN."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _is_fraction(name: str) -> bool:
    """True for numbers that are no integers, which name no sensor."""
    try:
        float(name)
    except ValueError:
        return False
    return not name.strip().isdigit()


def _filled(values: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Values in whose gaps the last one before stands, or the first one of the sensor at its beginning."""
    known = np.where(gaps, -1, np.arange(len(values))[:, None])
    last = np.maximum.accumulate(known, axis=0)
    last = np.where(last < 0, np.argmin(gaps, axis=0)[None], last)
    return np.take_along_axis(values, last, axis=0)
