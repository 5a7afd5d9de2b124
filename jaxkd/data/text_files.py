"""Places of texts: which reader a place needs, which splits it has, and the columns of one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from jaxkd.data import checks
from jaxkd.data.readers import arrow, conll, delimited, lines, tfds
from jaxkd.data.readers.columns import Columns

WHOLE = "all"
"""Name of the only split of a file that is not one of several."""

TextSpec: TypeAlias = "str | Mapping[str, Sequence[Any]] | Mapping[str, Mapping[str, Sequence[Any]]]"
"""Place, columns, or splits of columns of texts, as `open_texts` takes them."""

READERS: Mapping[str, Callable[[Path], Columns]] = {
    "tsv": delimited.read_tsv,
    "csv": delimited.read_csv,
    "jsonl": lines.read_jsonl,
    "lines": lines.read_plain,
    "parquet": arrow.read_parquet,
    "conll": conll.read_conll,
}
"""Kind of a single file -> its reader."""

SETS = ("hf", "tfds")
"""Kinds of places that have splits of their own."""

_EXAMPLE = "such as tsv:PATH of a file whose first line is label<TAB>sentence"
_LINES = "lines:"
_COMPRESSED = (".xz", ".gz", ".bz2")


def read_split(spec: TextSpec, split: str, data_dir: str | None = None) -> tuple[Columns, str, str]:
    """Reads the whole split that a slice is of.

    Args:
      spec: Place or columns, as `open_texts` takes them.
      split: The split or a slice of it.
      data_dir: Folder in which TFDS keeps its data.

    Returns:
      Its columns, the name of the set, and the name of the split.

    Raises:
      ValueError: If the place is of no known kind, has no such split, or cannot be read.
      ImportError: If a package is missing.
    """
    if (match := checks.SPLIT.fullmatch(split.strip())) is None:
        checks.split_rows("the set", split, {})  # raises
    base = match["name"].strip() if match else split
    if isinstance(spec, Mapping):
        sets = _sets(spec)
        if base not in sets:
            raise ValueError(f"the texts given have no split {base!r}: they have {checks.listing(sets)}.")
        return _in_memory(sets[base]), "texts", base
    kind, place = _parts(spec)
    if kind == "tfds":
        return _from_tfds(place, base, data_dir), place, base
    if kind == "hf":
        splits = arrow.splits_of_folder(place)
        if base not in splits:
            raise ValueError(f"{place} has no split {base!r}: it has {checks.listing(splits)}, choose one of these.")
        return arrow.read_files(f"{place}[{base}]", splits[base]), Path(place).name, base
    path = checks.path_of(place.replace("{split}", base))
    if "{split}" in place and not path.is_file() and (names := splits_of_texts(spec)):
        raise ValueError(f"{place} has no split {base!r}, no file {path}: it has {checks.listing(names)}.")
    return READERS[kind](path), Path(place).name, base if "{split}" in place else WHOLE


def with_file(columns: Columns, field: str | None, split: str) -> Columns:
    """Adds the lines of another file as a field, such as labels that stand in a file of their own.

    Args:
      columns: Columns of the texts.
      field: "lines:PATH", in which "{split}" stands for the split's name; of anything else nothing is added.
      split: The split or a slice of it.

    Returns:
      The columns, with one of the name `field`.

    Raises:
      ValueError: If the file cannot be read, or has more or fewer lines than there are texts.
    """
    if field is None or not field.startswith(_LINES) or field in columns.values:
        return columns
    base = split.partition("[")[0].strip()
    found = lines.read_plain(checks.path_of(field.removeprefix(_LINES).replace("{split}", base)))
    own, size = found.values["text"], len(next(iter(columns.values.values())))
    if len(own) != size:
        last = min(len(own), size)
        more = found.place(last) if len(own) > size else columns.place(last)
        raise ValueError(
            f"{found.name} has {len(own)} lines but {columns.name} has {size} texts, so {more} has no partner, and "
            "lines before it may be out of step: give one line for each text."
        )
    return columns._replace(values={**columns.values, field: own}, files={**columns.files, field: found})


def splits_of_texts(spec: TextSpec, data_dir: str | None = None) -> list[str]:
    """Lists the splits of a set of texts.

    Args:
      spec: As `open_texts` takes it.
      data_dir: Folder in which TFDS keeps its data.

    Returns:
      Their names: "all" for a single file, and for a path with {split} what stands in its place in files that exist.

    Raises:
      ValueError: If the place is of no known kind, or there is nothing.
    """
    if isinstance(spec, Mapping):
        return list(_sets(spec))
    kind, place = _parts(spec)
    if kind == "hf":
        return list(arrow.splits_of_folder(place))
    if kind == "tfds":
        return tfds.splits_of_name(place, data_dir)
    if "{split}" not in place:
        return [WHOLE]
    before, _, after = place.partition("{split}")
    folder, head = os.path.split(before)
    tail = after.replace("{split}", "").partition("/")[0]
    found = checks.path_of(folder or ".")
    names = sorted(
        p.name[len(head) : len(p.name) - len(tail)]
        for p in (found.iterdir() if found.is_dir() else ())
        if p.name.startswith(head) and p.name.endswith(tail) and len(p.name) > len(head) + len(tail)
    )
    names = [name for name in names if Path(place.replace("{split}", name)).expanduser().is_file()]
    if not names:
        raise ValueError(f"there is no file {place}: give a path in which {{split}} stands for train, dev, test, ...")
    return names


def _parts(spec: Any) -> tuple[str, str]:
    """Kind and place."""
    if not isinstance(spec, (str, os.PathLike)):
        raise ValueError(f"texts were given as {type(spec).__name__}: give a text, {_EXAMPLE}, or a dict of columns.")
    text = os.fspath(spec)
    kind, colon, place = text.partition(":")
    if colon and place and (kind in READERS or kind in SETS):
        return kind, place
    suffix = Path(text.removesuffix(next((end for end in _COMPRESSED if text.endswith(end)), ""))).suffix[1:]
    known = checks.listing([f"{kind}:" for kind in (*READERS, *SETS)])
    hint = f"write {suffix}:{text}" if suffix in READERS else f"begin it with one of {known}, {_EXAMPLE}"
    raise ValueError(f"{text!r} does not say what kind of texts it holds: {hint}.")


def _sets(given: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Split -> columns that are given."""
    nested = bool(given) and all(isinstance(one, Mapping) for one in given.values())
    return given if nested else {WHOLE: given}


def _in_memory(given: Mapping[str, Sequence[Any]]) -> Columns:
    """Columns that are given as lists or arrays."""
    values = {str(field): (x.tolist() if isinstance(x, np.ndarray) else list(x)) for field, x in given.items()}
    lengths = {field: len(column) for field, column in values.items()}
    if not values or not any(lengths.values()):
        raise ValueError("the columns given are empty: give at least one text.")
    if len(set(lengths.values())) > 1:
        pairs = checks.listing([f"`{field}` {length}" for field, length in lengths.items()])
        raise ValueError(f"the columns given have different numbers of rows ({pairs}): give one value a row.")
    return Columns("the mapping given", values)


def _from_tfds(place: str, split: str, data_dir: str | None) -> Columns:
    """Columns of a TFDS set of texts."""
    source = tfds.from_name(place, split, data_dir, None, None)
    batch, values = source.read(np.arange(source.size)), {}
    for field in [name for name in batch if name != "id"]:
        try:
            values[field] = [x.decode() if isinstance(x, bytes) else x for x in batch[field].tolist()]
        except UnicodeDecodeError as error:
            raise ValueError(f"`{field}` of {source.name} is not UTF-8 ({error}): prepare the set anew.") from error
    return Columns(source.name, values, (), {"label": source.class_names} if source.class_names else {})
