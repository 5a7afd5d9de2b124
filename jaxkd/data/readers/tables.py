"""Tables: columns of a file, or of a set that comes with scikit-learn, typed as numbers or categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from jaxkd.data.checks import listing, path_of
from jaxkd.data.readers import arrow, delimited
from jaxkd.data.readers.columns import Columns, shortened
from jaxkd.data.splits import say

Kind: TypeAlias = Literal["numeric", "categorical"]

MISSING = ("", "na", "n/a", "nan", "null", "?")
"""Texts that stand for a missing value, in small letters."""

SETS = ("breast_cancer", "diabetes", "iris", "wine")
"""Sets that come with scikit-learn."""

_LABELS = ("target", "label", "class", "y", "outcome")
_FEW_WORDS = 0.1  # share of texts among numbers, up to which they are taken for mistakes


class RawTable(NamedTuple):
    """Columns of a table and the one that is to be predicted.

    Attributes:
      columns: The columns as they stand in their file, without the target.
      target: Name of the target column.
      labels: Its values, as texts or numbers [N]; None where one is missing.
      class_names: Names of the classes that integers of the target number, or empty.
    """

    columns: Columns
    target: str
    labels: Sequence[Any]
    class_names: tuple[str, ...] = ()


def read_table(spec: str, target: str | None = None) -> RawTable:
    """Reads a table.

    Args:
      spec: "sklearn:breast_cancer" (diabetes, iris, wine), "csv:PATH", "tsv:PATH" or "parquet:PATH".
      target: Column to predict; None for the only one with a usual name, such as target, or else the last.

    Returns:
      The table.

    Raises:
      ValueError: If there is no such set or file, or the target is no column.
      ImportError: If a Parquet file is given and the package `pyarrow` is missing.
    """
    kind, _, place = spec.partition(":")
    if kind == "sklearn":
        return _bundled(spec, place, target)
    read = {
        "csv": delimited.read_csv,
        "tsv": delimited.read_tsv,
        "parquet": lambda path: arrow.read_files(spec, [path]),
    }
    if kind not in read or not place:
        raise ValueError(
            f"the table {spec!r} is not understood: write sklearn:NAME ({listing(SETS)}), csv:PATH, tsv:PATH or "
            "parquet:PATH."
        )
    columns = read[kind](path_of(place))
    have = list(columns.values)
    if target is None:
        usual = [name for name in have if name.lower() in _LABELS]
        target = usual[0] if len(usual) == 1 else have[-1]
        say(f"`{target}` of {columns.name} is taken for what is to be predicted: name another column by --target.")
    if target not in have:
        raise ValueError(f"{columns.name} has no column {target!r} (--target): it has {listing(have)}.")
    if len(have) < 2:
        raise ValueError(f"{columns.name} has the column {target!r} alone: give columns to predict it from.")
    rest = {name: values for name, values in columns.values.items() if name != target}
    labels = [None if is_missing(value) else value for value in columns.values[target]]
    return RawTable(columns._replace(values=rest), target, labels, columns.classes.get(target, ()))


def is_missing(value: Any) -> bool:
    """Tells if a value of a column is missing.

    Args:
      value: The value.

    Returns:
      True for None, NaN, and texts of `MISSING`.
    """
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (isinstance(value, float) and np.isnan(value))


def kind_of(columns: Columns, field: str) -> Kind:
    """Type of a column: numeric if each value is a number or missing, else categorical.

    Args:
      columns: The columns.
      field: One of them.

    Returns:
      Its type.

    Raises:
      ValueError: If fewer than a tenth of its values are texts among numbers; the sentence names the first one's line.
    """
    values = columns.values[field]
    known = [row for row, value in enumerate(values) if not is_missing(value)]
    texts = [row for row in known if _number(values[row]) is None]
    if not texts:
        return "numeric"
    if len(texts) < _FEW_WORDS * len(known):
        raise ValueError(
            f"`{field}` is {shortened(values[texts[0]])} in {columns.place(texts[0])}, among numbers elsewhere "
            f"({len(texts)} of {len(known)} values are texts): correct or empty these, or name the column by "
            "--categorical if its values are names."
        )
    return "categorical"


def numbers_of(columns: Columns, field: str) -> np.ndarray:
    """Values of a numeric column.

    Args:
      columns: The columns.
      field: One of them.

    Returns:
      float64 [N], NaN where a value is missing.

    Raises:
      ValueError: If a value is a text, or infinite; the sentence names its line.
    """
    found = np.full(len(columns.values[field]), np.nan)
    for row, value in enumerate(columns.values[field]):
        if is_missing(value):
            continue
        number = _number(value)
        if number is None or not np.isfinite(number):
            raise ValueError(
                f"`{field}` is {shortened(value)} in {columns.place(row)}, where a finite number is expected: correct "
                "or empty it."
            )
        found[row] = number
    return found


def categories_of(columns: Columns, field: str) -> list[str | None]:
    """Values of a categorical column.

    Args:
      columns: The columns.
      field: One of them.

    Returns:
      Texts, None where a value is missing.
    """
    return [None if is_missing(value) else str(value).strip() for value in columns.values[field]]


def _number(value: Any) -> float | None:
    """A value as a number, or None."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _bundled(spec: str, name: str, target: str | None) -> RawTable:
    """A set that comes with scikit-learn."""
    from sklearn import datasets

    if name not in SETS:
        raise ValueError(f"there is no table {spec!r}: write sklearn: and one of {listing(SETS)}.")
    if target is not None:
        raise ValueError(f"{spec} has a target of its own: leave --target out.")
    found = getattr(datasets, f"load_{name}")()
    columns = Columns(spec, {str(f): found.data[:, i].tolist() for i, f in enumerate(found.feature_names)})
    names = tuple(str(text) for text in found.get("target_names", ()))
    return RawTable(columns, "target", found.target.tolist(), names)
