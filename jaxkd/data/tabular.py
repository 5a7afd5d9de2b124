"""Tables as sources: typed columns, standardised by the training rows alone, split at random in proportion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxkd.data.checks import is_whole, listing
from jaxkd.data.readers.tables import Kind, RawTable, categories_of, kind_of, numbers_of, read_table
from jaxkd.data.source import Source, with_fields
from jaxkd.data.splits import first_few, say

COLUMNS = "columns"
"""Field of a batch that holds the encoded columns, float32 [B, D]."""

SPLITS = ("train", "validation", "test")

_MANY = 20  # classes, above which whole numbers are rather numbers to regress on
_SAME = 1e-12  # standard deviation, relative to the values, below which a column is constant


class Encoding(NamedTuple):
    """One column as inputs of a network.

    Attributes:
      field: Name of the column.
      kind: Its type.
      center: Mean of a numeric column over the training rows.
      spread: Its standard deviation there.
      categories: Categories of the training rows, one input each; "" is that of missing values.
      indicator: True if a numeric column has a second input, 1 where a value is missing.
    """

    field: str
    kind: Kind
    center: float = 0.0
    spread: float = 1.0
    categories: tuple[str, ...] = ()
    indicator: bool = False

    @property
    def width(self) -> int:
        """Number of inputs."""
        return len(self.categories) if self.kind == "categorical" else 1 + self.indicator


class Table(NamedTuple):
    """A table in three sources with the fields `columns` float32 [B, D], `label` and `id`.

    Attributes:
      train: Training rows.
      validation: Rows to choose by.
      test: Rows that are evaluated once.
      encodings: How each column became inputs, in their order.
      center: Mean of the target over the training rows, of a regression; labels are (y - center) / spread.
      spread: Its standard deviation.
    """

    train: Source
    validation: Source
    test: Source
    encodings: tuple[Encoding, ...]
    center: float = 0.0
    spread: float = 1.0

    @property
    def width(self) -> int:
        """Number of inputs D."""
        return sum(encoding.width for encoding in self.encodings)


def open_table(
    spec: str,
    *,
    target: str | None = None,
    task: Literal["classification", "regression"] | None = None,
    categorical: Sequence[str] = (),
    ignored: Sequence[str] = (),
    fractions: tuple[float, float] = (0.2, 0.2),
    seed: int = 0,
) -> Table:
    """Opens a table as three sources.

    A numeric column is standardised; a missing value is the training rows' mean, with a further input that says so. A
    category is one-hot; a missing value is a category of its own. Means, deviations and categories are those of the
    training rows. What cannot be used is left out, counted and logged: rows without a target, constant columns,
    columns of texts that nearly all differ, categories that no training row has.

    Args:
      spec: As for `readers.tables.read_table`.
      target: Column to predict.
      task: Meaning of the target: by default classes if it holds texts or at most 20 different whole numbers.
      categorical: Columns of numbers that are categories.
      ignored: Columns to leave out, such as identifiers.
      fractions: Shares of validation and test rows.
      seed: Seed of the split.

    Returns:
      The table; `id` is the row's number in the file.

    Raises:
      ValueError: In one sentence: a column is unknown or holds texts among numbers, the target has one class, or a
        class with fewer than 3 rows, or there are no rows or columns left.
    """
    if not all(0 < share < 1 for share in fractions) or sum(fractions) >= 1:
        raise ValueError(f"the shares of validation and test rows are {fractions}: give two above 0 that leave some.")
    raw = read_table(spec, target)
    _check_names(raw, categorical, "--categorical")
    _check_names(raw, ignored, "--ignored")
    rows = np.flatnonzero([label is not None for label in raw.labels])
    if len(rows) < len(raw.labels):
        say(f"{len(raw.labels) - len(rows)} of {len(raw.labels)} rows of {spec} have no `{raw.target}`: left out.")
    if len(rows) < 10:
        raise ValueError(f"{spec} has {len(rows)} rows with a `{raw.target}`: give at least 10, for three splits.")
    labels, names = _labels(raw, rows, task)
    places = _places(len(rows), None if labels.dtype.kind == "f" else labels, fractions, seed)
    center, spread = 0.0, 1.0
    if labels.dtype.kind == "f":
        center, spread = float(labels[places[0]].mean()), float(labels[places[0]].std())
        if spread <= _SAME * max(1.0, abs(center)):
            raise ValueError(f"`{raw.target}` of {spec} is {center:g} in each training row: give one that varies.")
        labels = ((labels - center) / spread).astype(np.float32)
    kinds: dict[str, Kind] = {
        field: "categorical" if field in categorical else kind_of(raw.columns, field)
        for field in raw.columns.values
        if field not in ignored
    }
    values = {
        field: categories_of(raw.columns, field) if kind == "categorical" else numbers_of(raw.columns, field)
        for field, kind in kinds.items()
    }
    encodings = _encodings(spec, kinds, values, rows[places[0]])
    inputs = [
        _encode(f"{spec}[{split}]", encodings, values, rows[place]) for split, place in zip(SPLITS, places, strict=True)
    ]
    sources = [
        _source(f"{spec}[{split}]", x, labels[place], rows[place], names)
        for split, x, place in zip(SPLITS, inputs, places, strict=True)
    ]
    train, validation, test = sources
    return Table(train, validation, test, encodings, center, spread)


def _check_names(raw: RawTable, names: Sequence[str], flag: str) -> None:
    """Refuses names that are no columns."""
    if absent := [name for name in names if name not in raw.columns.values]:
        have = listing(list(raw.columns.values)[:20])
        raise ValueError(f"{raw.columns.name} has no column {absent[0]!r} to predict from ({flag}): it has {have}.")


def _labels(raw: RawTable, rows: np.ndarray, task: str | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers int32 [n] and names, or numbers float64 [n] and no names."""
    given = [raw.labels[row] for row in rows]
    try:
        numbers = np.asarray([float(value) for value in given])
    except (TypeError, ValueError):
        numbers = None
    name = f"`{raw.target}` of {raw.columns.name}"
    if task is None:
        whole = numbers is not None and (numbers == np.floor(numbers)).all() and len(np.unique(numbers)) <= _MANY
        task = "classification" if numbers is None or whole else "regression"
    if task == "regression":
        if numbers is None or not np.isfinite(numbers).all():
            row = next(i for i, v in enumerate(given) if not _is_finite(v))
            raise ValueError(
                f"{name} is {given[row]!r} in {raw.columns.place(int(rows[row]))}, where a finite number is expected "
                "for a regression: correct it, or say --task classification."
            )
        return numbers, ()
    texts = np.asarray([f"{n:g}" for n in numbers] if numbers is not None else [str(v).strip() for v in given])
    if numbers is not None:  # 2 before 10
        order, classes = np.unique(numbers, return_inverse=True)
        names = tuple(f"{n:g}" for n in order)
    else:
        found, classes = np.unique(texts, return_inverse=True)
        names = tuple(map(str, found))
    if raw.class_names and len(raw.class_names) == len(names):
        names = raw.class_names
    counts = np.bincount(classes)
    if len(names) < 2:
        raise ValueError(f"{name} has the class {names[0]!r} alone: give a table with at least two classes.")
    if counts.min() < 3:
        rare = [names[i] for i in np.flatnonzero(counts < 3)]
        raise ValueError(
            f"{name} has {len(rare)} class(es) with fewer than 3 rows ({first_few(rare)}), which three splits cannot "
            "share: leave these rows out, join classes, or say --task regression."
        )
    return classes.astype(np.int32), names


def _is_finite(value: object) -> bool:
    try:
        return bool(np.isfinite(float(value)))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def _places(count: int, classes: np.ndarray | None, fractions: tuple[float, float], seed: int) -> list[np.ndarray]:
    """Rows of the three splits, increasing; each split has its share of each class, and one row of it at least."""
    rng = np.random.RandomState(seed)
    parts: list[list[np.ndarray]] = [[], [], []]
    group = np.zeros(count, int) if classes is None else classes
    for k in np.unique(group):
        own = rng.permutation(np.flatnonzero(group == k))
        validation, test = (max(1, round(len(own) * share)) for share in fractions)
        stops = len(own) - validation - test, len(own) - test
        if stops[0] < 1:
            stops = 1, 1 + (len(own) - 1) // 2
        for part, rows in zip(parts, np.split(own, stops), strict=True):
            part.append(rows)
    return [np.sort(np.concatenate(part)) for part in parts]


def _encodings(
    spec: str, kinds: Mapping[str, Kind], values: Mapping[str, Any], rows: np.ndarray
) -> tuple[Encoding, ...]:
    """Encodings by the training rows; columns that say nothing are left out and named."""
    found, constant, texts = [], [], []
    for field, kind in kinds.items():
        if kind == "numeric":
            x = np.asarray(values[field], np.float64)[rows]
            known = x[~np.isnan(x)]
            missing = len(known) < len(x)
            center, spread = (float(known.mean()), float(known.std())) if len(known) else (0.0, 0.0)
            if spread <= _SAME * max(1.0, abs(center)):
                constant.append(field)
                continue
            found.append(Encoding(field, kind, center, spread, (), missing))
            continue
        given = [values[field][row] for row in rows]
        categories = tuple(sorted({"" if value is None else value for value in given}))
        if len(categories) < 2:
            constant.append(field)
        elif len(categories) > max(_MANY, len(rows) // 2):
            texts.append(field)
        else:
            found.append(Encoding(field, kind, categories=categories))
    if constant:
        say(f"{len(constant)} column(s) of {spec} are constant in the training rows ({first_few(constant)}): left out.")
    if texts:
        say(
            f"{len(texts)} column(s) of {spec} hold texts of which most differ ({first_few(texts)}): left out, as "
            "names or identifiers are."
        )
    if not found:
        raise ValueError(f"{spec} has no column left to predict from: give numbers or categories that vary.")
    return tuple(found)


def _encode(name: str, encodings: tuple[Encoding, ...], values: Mapping[str, Any], rows: np.ndarray) -> np.ndarray:
    """Inputs of some rows, float32 [n, D]; what the training rows did not have is counted and said."""
    parts: list[np.ndarray] = []
    for e in encodings:
        if e.kind == "numeric":
            x = np.asarray(values[e.field], np.float64)[rows]
            missing = np.isnan(x)
            parts.append(np.where(missing, 0, (x - e.center) / e.spread)[:, None])
            if e.indicator:
                parts.append(missing[:, None].astype(np.float64))
            elif missing.any():
                say(f"{missing.sum()} row(s) of {name} lack `{e.field}`, as no training row does: the mean is taken.")
            continue
        given = ["" if values[e.field][row] is None else values[e.field][row] for row in rows]
        hot = np.asarray([[value == category for category in e.categories] for value in given], np.float64)
        new = sorted({str(value) for value, one in zip(given, hot, strict=True) if not one.any()})
        if new:
            count = int((~hot.any(axis=1)).sum())
            what = first_few([repr(value) if value else "a missing value" for value in new])
            say(f"{count} row(s) of {name} have a `{e.field}` that no training row has ({what}): none is set.")
        parts.append(hot)
    return np.concatenate(parts, axis=1).astype(np.float32)


def _source(name: str, x: np.ndarray, labels: np.ndarray, ids: np.ndarray, names: tuple[str, ...]) -> Source:
    """Source of encoded rows."""
    numbers = ids.astype(np.int32)

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {COLUMNS: x[rows], "label": labels[rows], "id": numbers[rows]}

    return Source(
        name,
        len(x),
        len(names) or 1,
        None,
        read,
        start=int(numbers[0]),
        task="classification" if names else "regression",
        drawn=numbers,
        class_names=names,
    )


def munge(
    source: Source,
    encodings: Sequence[Encoding],
    count: int,
    *,
    swap: float = 0.5,
    sharpness: float = 1.0,
    seed: int = 0,
) -> Source:
    """Adds rows without labels that are mixed from neighbours, for a teacher to label (MUNGE).

    Each value of a copy of a row e is exchanged with probability p for that of its nearest neighbour e': categories as
    they are, a number by a draw from Normal(e'_a, |e_a - e'_a| / s). The paper exchanges both rows' values; here a copy
    of one of them is kept.

    Args:
      source: Training rows, as `open_table` gives them.
      encodings: Its columns.
      count: Number of rows to add.
      swap: p.
      sharpness: s > 0; greater values keep numbers nearer to the neighbour's.
      seed: Seed of the draws.

    Returns:
      Source of both, with a further field `labelled`, false for added rows, whose `label` is 0 and means nothing.

    Raises:
      ValueError: If there are fewer than two rows, or a number is out of range.

    Reference:
      Bucilă, Caruana, Niculescu-Mizil, "Model Compression", KDD 2006, https://doi.org/10.1145/1150402.1150464
    """
    if not is_whole(count) or count < 0 or not 0 <= swap <= 1 or not sharpness > 0 or source.size < 2:
        raise ValueError(
            f"{count} rows cannot be mixed of {source.size} with p = {swap} and s = {sharpness}: give two rows or "
            "more, p in 0..1 and s above 0."
        )
    own = source.read(np.arange(source.size))
    x = own[COLUMNS].astype(np.float64)
    rng = np.random.RandomState(seed)
    first = rng.randint(source.size, size=count)
    mixed, other = x[first].copy(), x[_neighbours(x, first)]
    at = 0
    for e in encodings:
        span = slice(at, at + e.width)
        at += e.width
        chosen = rng.random_sample(count) < swap
        drawn = other[:, span].copy()
        if e.kind == "numeric":
            drawn[:, 0] += rng.standard_normal(count) * np.abs(mixed[:, span][:, 0] - other[:, span][:, 0]) / sharpness
        mixed[:, span] = np.where(chosen[:, None], drawn, mixed[:, span])
    whole = np.concatenate([own[COLUMNS], mixed.astype(np.float32)])
    labels = np.concatenate([own["label"], np.zeros(count, own["label"].dtype)])
    ids = np.concatenate([source.ids, source.ids[-1] + 1 + np.arange(count)])
    union = _source(f"{source.name} and {count} mixed rows", whole, labels, ids, source.class_names)
    return with_fields(union, labelled=np.arange(len(whole)) < source.size)


def _neighbours(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The nearest other row of each of some rows."""
    squares, found = np.square(x).sum(axis=1), np.empty(len(rows), int)
    for at in range(0, len(rows), 512):
        own = rows[at : at + 512]
        distances = squares - 2 * x[own] @ x.T  # less the squares of the own rows, which do not matter
        distances[np.arange(len(own)), own] = np.inf
        found[at : at + 512] = distances.argmin(axis=1)
    return found
