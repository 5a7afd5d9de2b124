"""Numbers for labels that are words or numbers in a file: classes are numbered, other numbers stay numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxkd.data.checks import listing
from jaxkd.data.readers.columns import Columns, shortened
from jaxkd.data.splits import first_few, say

_WHOLE = re.compile(r"[+-]?\d{1,18}")
_FLOAT = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?")
_FEW = 50  # classes, up to which even a file of as many rows is taken for one of classes
_KINDS = {"whole": "whole numbers", "float": "numbers", "word": "words", "bool": "booleans"}


def number_labels(
    columns: Columns,
    field: str,
    class_names: Sequence[str] | None = None,
    relabel: Callable[[Any], Any] | None = None,
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Numbers the labels of a file.

    Args:
      columns: The file's columns.
      field: The field of the labels: words, whole numbers, booleans, or numbers to regress on.
      class_names: Names of the classes in their order; those that occur if None. Empty if the labels are numbers to
        regress on, even if they are whole.
      relabel: Label as it stands in the file -> the label to use.

    Returns:
      Class numbers int32 [N] and the names of the classes; or numbers float32 [N] and no names; or None and
      `class_names` if no row has a label.

    Raises:
      ValueError: If some rows have no label, labels are of several kinds, or one is none of `class_names`; the sentence
        names the line.
    """
    values = columns.values[field]
    if relabel is not None:
        values = [_relabelled(columns, field, row, relabel) for row in range(len(values))]
    values = [value.strip() if isinstance(value, str) else value for value in values]
    missing = [row for row, value in enumerate(values) if _is_missing(value)]
    names = None if class_names is None else tuple(map(str, class_names))
    if names and len(set(names)) < len(names):
        raise ValueError(f"the class names are {listing([shortened(n) for n in names])}: name each class once.")
    declared = () if relabel else columns.classes.get(field, ())
    if declared:
        missing = [row for row, value in enumerate(values) if _is_missing(value) or value == -1]
    if len(missing) == len(values):
        say(f"`{field}` of {columns.name} is empty or -1 in every row: these texts have no labels.")
        return None, names or declared
    if missing:
        raise ValueError(
            f"`{field}` is missing in {columns.place(missing[0], field)} (and in {len(missing)} of {len(values)} "
            "rows): give a label in every row, or keep the rows without one in a file of their own."
        )
    if declared:
        values = [_declared(columns, field, row, value, declared) for row, value in enumerate(values)]
        names = names or declared
    kind = _kind_of(columns, field, values)
    if kind == "float" or (kind == "whole" and names == ()):
        return _numbers(columns, field, values, names), ()
    words = [str(int(value)) if kind == "whole" else str(value) for value in values]
    if names is None:
        distinct = set(words)
        names = tuple(sorted(distinct, key=int) if kind == "whole" else sorted(distinct))
        if len(names) > max(_FEW, len(words) / 2):
            raise ValueError(
                f"`{field}` of {columns.name} has {len(names)} different values in {len(words)} rows, such as "
                f"{shortened(words[0])}: name the field of the labels by label= (--label-field)."
            )
    number = {name: k for k, name in enumerate(names)}
    for row, word in enumerate(words):
        if word not in number:
            raise ValueError(
                f"the label {shortened(word)} in {columns.place(row, field)} is none of the {len(names)} classes of "
                f"the training split ({first_few(names)}): correct it, or give a training split with examples of it."
            )
    return np.array([number[word] for word in words], np.int32), names


def _relabelled(columns: Columns, field: str, row: int, relabel: Callable[[Any], Any]) -> Any:
    """A label as the user's function gives it."""
    value = columns.values[field][row]
    try:
        return relabel(value)
    except Exception as error:
        error.add_note(f"This was relabel({shortened(value)}) of `{field}` in {columns.place(row, field)}.")
        raise


def _is_missing(value: Any) -> bool:
    """True for a label that is not there: nothing, an empty text, or a float that is NaN."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _declared(columns: Columns, field: str, row: int, value: Any, names: Sequence[str]) -> Any:
    """Name of a class that the file's own list of names numbers."""
    if isinstance(value, int) and not 0 <= value < len(names):
        raise ValueError(
            f"the label {value} in {columns.place(row, field)} is none of the {len(names)} classes that `{field}` "
            f"declares ({first_few(names)}): correct it."
        )
    return names[value] if isinstance(value, int) else value


def _kind_of(columns: Columns, field: str, values: Sequence[Any]) -> str:
    """The kind of all labels: "whole", "float", "bool" or "word"."""
    kinds = [_kind(value) for value in values]
    found = set(kinds)
    if "other" in found:
        row = kinds.index("other")
        raise ValueError(
            f"`{field}` in {columns.place(row, field)} is {shortened(values[row])}: give a word or a number as each "
            "label, or name another field by label= (--label-field)."
        )
    if found == {"whole", "float"}:
        return "float"
    if len(found) > 1:
        common = max(sorted(found), key=kinds.count)
        row = next(r for r, kind in enumerate(kinds) if kind != common)
        raise ValueError(
            f"`{field}` is {shortened(values[row])} in {columns.place(row, field)}, but the labels of most rows are "
            f"{_KINDS[common]}: give labels of one kind."
        )
    return kinds[0]


def _kind(value: Any) -> str:
    """The kind of one label."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "whole" if isinstance(value, int) else "float"
    if not isinstance(value, str):
        return "other"
    if _WHOLE.fullmatch(value):
        return "whole"
    return "float" if _FLOAT.fullmatch(value) else "word"


def _numbers(columns: Columns, field: str, values: Sequence[Any], names: Sequence[str] | None) -> np.ndarray:
    """Labels that are numbers to regress on."""
    if names:
        raise ValueError(
            f"`{field}` of {columns.name} holds numbers such as {values[0]}, but the training split has the classes "
            f"{listing(list(names[:5]))}: give splits with labels of one kind."
        )
    found = np.array([float(value) for value in values])
    with np.errstate(over="ignore"):
        small = found.astype(np.float32)
    if not np.isfinite(small).all():
        row = int(np.flatnonzero(~np.isfinite(small))[0])
        raise ValueError(f"`{field}` is {values[row]} in {columns.place(row, field)}: give a finite number.")
    if names is None and (found == np.round(found)).all():
        say(
            f"`{field}` of {columns.name} holds whole numbers with a fraction, such as {values[0]}, which are taken as "
            "numbers to regress on: write them without it if they are classes."
        )
    return small
