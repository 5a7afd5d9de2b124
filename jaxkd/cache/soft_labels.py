"""Files of soft labels that somebody else made: CSV, TSV, Parquet and npz, joined to examples by their ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxkd.cache.foreign import fingerprint_file, open_file
from jaxkd.cache.outputs import LOGITS, Gives, by_class, spread_columns
from jaxkd.data.checks import is_text, listing
from jaxkd.data.readers import arrow, delimited, npz
from jaxkd.data.readers.columns import Columns, shortened
from jaxkd.data.source import Source
from jaxkd.data.splits import say

KINDS = ("csv", "tsv", "parquet", "npz")
"""Words before the colon of a file of soft labels."""

_WHOLE: Mapping[str, Gives] = {"probabilities": "probabilities", "logits": "logits", LOGITS: "logits"}
_TOP = re.compile(r"top_(id|probability|logprob)_?(\d+)")
_NUMBERED = re.compile(r"(?:(?:class|label|probability|prob|p|logit)_?)?(\d+)", re.IGNORECASE)


class SoftLabels(NamedTuple):
    """Soft labels of the rows of a source, in its order.

    Attributes:
      name: The file, for messages.
      fingerprint: SHA-256 of the file.
      gives: What `outputs` are.
      outputs: [N, K] or [N]; None if the file holds the likeliest classes alone.
      top: Classes and probabilities [N, k] of these; or None.
    """

    name: str
    fingerprint: str
    gives: Gives
    outputs: np.ndarray | None
    top: tuple[np.ndarray, np.ndarray] | None


def read_soft_labels(kind: str, place: str, source: Source, gives: Gives | None) -> SoftLabels:
    """Reads a file of soft labels, whose columns say what they are.

    `id` and one column for each class, named as the source's classes are or numbered (`3`, `class3`, `logit_3`); or
    `id` and `label`, a class or a number; or `id`, `top_id1`, `top_probability1` (or `top_logprob1`), `top_id2`, ...
    Columns of lists, and arrays of an npz file, are `probabilities` or `logits` [N, K], `top_ids` and
    `top_probabilities` (or `top_logprobs`) [N, k].

    Args:
      kind: "csv", "tsv", "parquet" or "npz".
      place: Path of the file.
      source: The students' source.
      gives: What the columns of classes hold: probabilities, if None.

    Returns:
      The soft labels.

    Raises:
      ValueError: If the file cannot be read, an id is missing or occurs twice, or columns are no soft labels.
      ImportError: If a Parquet file is given and the package `pyarrow` is missing.
    """
    path, name = open_file(place), f"{kind}:{place}"
    if kind == "npz":
        arrays = dict(npz.load_arrays(path))
    else:
        read = {"csv": delimited.read_csv, "tsv": delimited.read_tsv}
        columns = read[kind](path) if kind in read else arrow.read_files(name, [path])
        arrays = {field: _array(columns, field) for field in columns.values}
    ids = arrays.pop("id", None)
    if ids is None or not arrays:
        have = listing([*(["id"] if ids is not None else []), *arrays][:8])
        raise ValueError(
            f"{name} has {have}: give `id`, the number of each example in its split, and soft labels beside it."
        )
    if any(values.shape[:1] != ids.shape for values in arrays.values()):
        shapes = listing([f"`{field}` {list(values.shape)}" for field, values in {"id": ids, **arrays}.items()][:8])
        raise ValueError(f"the arrays of {name} have different lengths ({shapes}): give a row for each id.")
    rows = _rows(name, ids, source)
    found = _meaning(name, {field: values[rows] for field, values in arrays.items()}, source, gives)
    return found._replace(fingerprint=f"{kind} {fingerprint_file(path)}")


def _array(columns: Columns, field: str) -> np.ndarray:
    """A column as numbers, or as texts if it holds any."""
    values = columns.values[field]
    if isinstance(values[0], (list, tuple)):
        return _of_lists(columns, field, values)
    if field not in ("id", "label"):
        return np.asarray([_number(columns, field, row, value) for row, value in enumerate(values)])
    for row, value in enumerate(values):
        if value is None or value == "":
            raise ValueError(f"`{field}` is missing in {columns.place(row)}: give it in each row.")
    try:
        return np.asarray([float(value) for value in values])
    except (TypeError, ValueError):
        return np.asarray([str(value) for value in values])


def _of_lists(columns: Columns, field: str, values: Sequence[Any]) -> np.ndarray:
    """A column of lists of one length as an array [N, k]."""
    for row, value in enumerate(values):
        if not isinstance(value, (list, tuple)) or len(value) != len(values[0]):
            raise ValueError(
                f"`{field}` is {shortened(value)} in {columns.place(row)}, where a list of {len(values[0])} numbers is "
                "expected, as in the first row: fill up short lists, top_ids by -1 and probabilities by 0."
            )
    return np.asarray([[_number(columns, field, row, x) for x in value] for row, value in enumerate(values)])


def _number(columns: Columns, field: str, row: int, value: Any) -> float:
    """One value of a column as a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        what = "is missing" if value in (None, "") else f"is {shortened(value)}, which is no number,"
        raise ValueError(f"`{field}` {what} in {columns.place(row)}: correct that row.") from None


def _rows(name: str, ids: np.ndarray, source: Source) -> np.ndarray:
    """Row of the file for each row of the source."""
    if ids.ndim != 1 or is_text(ids) or not (np.isfinite(ids) & (ids == np.floor(ids))).all():
        raise ValueError(
            f"`id` of {name} does not hold whole numbers alone: give the number of each example in its split, as `id` "
            "of a batch says it."
        )
    numbers = ids.astype(np.int64)
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    if (twice := np.flatnonzero(ordered[1:] == ordered[:-1])).size:
        raise ValueError(
            f"{name} has soft labels of example {ordered[twice[0]]} twice (as of {twice.size} examples): keep one row "
            "for each."
        )
    places = np.minimum(np.searchsorted(ordered, source.ids), len(ordered) - 1)
    absent = ordered[places] != source.ids
    if absent.any():
        raise ValueError(
            f"{name} has no soft labels of example {source.ids[absent][0]} of {source.name} (as of {absent.sum()} of "
            f"its {source.size}): add them, or give a slice of the split that has them; ids count from 0."
        )
    if len(numbers) > source.size:
        extra = np.setdiff1d(numbers, source.ids)
        say(
            f"{name} has soft labels of {len(extra)} examples that {source.name} does not have, such as {extra[0]}: "
            "they are left out."
        )
    return order[places]


def _meaning(name: str, arrays: Mapping[str, np.ndarray], source: Source, gives: Gives | None) -> SoftLabels:
    """Soft labels of columns that are in the source's order."""
    arrays = _with_top_arrays(name, arrays)
    if source.task == "regression":
        return SoftLabels(name, "", "numbers", _side_by_side(name, arrays), None)
    if "top_ids" in arrays:
        given = [field for field in ("top_probabilities", "top_logprobs") if field in arrays]
        if len(given) != 1 or len(arrays) != 2:
            raise ValueError(
                f"{name} has {listing(list(arrays)[:8])}: give top_ids together with top_probabilities or top_logprobs."
            )
        p = arrays[given[0]] if given[0] == "top_probabilities" else np.exp(arrays[given[0]].astype(np.float64))
        return SoftLabels(name, "", "probabilities", None, (arrays["top_ids"].astype(np.int64), p))
    if set(arrays) == {"label"}:
        label = arrays["label"]
        if not is_text(label):
            return SoftLabels(name, "", "classes", label, None)
        names, places = np.unique(label, return_inverse=True)
        return SoftLabels(name, "", "classes", by_class(name, list(names), source)[places], None)
    whole = [field for field in arrays if field in _WHOLE]
    if whole and len(arrays) > 1:
        raise ValueError(f"{name} has {listing(list(arrays)[:8])}: keep `id` and one array of soft labels.")
    if whole:
        return SoftLabels(name, "", gives or _WHOLE[whole[0]], arrays[whole[0]], None)
    kind = gives or "probabilities"
    outputs, columns = _side_by_side(name, arrays), _classes(list(arrays), source)
    classes = by_class(name, columns, source)
    return SoftLabels(name, "", kind, spread_columns(name, outputs, classes, source.num_classes, kind), None)


def _classes(columns: Sequence[str], source: Source) -> list[str]:
    """Class that each column is named after."""
    if set(columns) <= set(source.class_names):
        return list(columns)
    numbers = [match[1] if (match := _NUMBERED.fullmatch(column)) else column for column in columns]
    return [str(int(n)) if n.isdigit() else n for n in numbers]


def _with_top_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns `top_id1`, `top_id2`, ... as one array [N, k]."""
    found = {field: match for field in arrays if (match := _TOP.fullmatch(field))}
    rest = {field: values for field, values in arrays.items() if field not in found}
    plural = {"id": "top_ids", "probability": "top_probabilities", "logprob": "top_logprobs"}
    for kind in {match[1] for match in found.values()}:
        own = sorted((int(match[2]), field) for field, match in found.items() if match[1] == kind)
        rest[plural[kind]] = np.stack([arrays[field] for _, field in own], axis=1)
    return rest


def _side_by_side(name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Columns as one array [N, C]."""
    for field, values in arrays.items():
        if is_text(values):
            raise ValueError(f"`{field}` of {name} holds texts where numbers are expected: leave that column out.")
    return np.concatenate([values.reshape(len(values), -1) for values in arrays.values()], axis=1)
