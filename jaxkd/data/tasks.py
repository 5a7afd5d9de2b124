"""One source of the rows of several tasks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxkd.data.buckets import choose_buckets, lengths_of
from jaxkd.data.checks import check_rows, is_text
from jaxkd.data.source import Source
from jaxkd.data.suitability import check_task


def join_tasks(**sources: Source) -> Source:
    """Joins the rows of several tasks, for a network that learns them together.

    Shuffled batches hold rows of each task in proportion to their numbers. A term of one task leaves out the rows of
    the others: `objectives.from_outputs(losses.cross_entropy, "student.logits_old", "batch.label", where="is_old")`.

    Args:
      **sources: Name of a task -> its source, with integer labels and without targets. All have the same fields; a
        field that is longer in one of them, such as `tokens`, is padded with zeros in the others. If one has length
        buckets, all have.

    Returns:
      A source of all their rows, one task after the other. Each row has its source's fields, `id`, the number of the
      row here, and for each task `is_<name>`, bool, true on its rows. Labels are numbered by each task on its own.

    Raises:
      ValueError: If there are fewer than two tasks, or one has other fields, another kind of labels, or targets.
    """
    if len(sources) < 2:
        raise ValueError(f"the tasks are {list(sources)}: give at least two sources, such as old=source, new=target.")
    examples = {name: _example(source) for name, source in sources.items()}
    first, *rest = examples
    for name in rest:
        _check_alike(sources[first], examples[first], sources[name], examples[name])
    shapes = {
        field: tuple(max(sizes) for sizes in zip(*(x[field].shape[1:] for x in examples.values()), strict=True))
        for field in examples[first]
    }
    dtypes = {field: np.result_type(*(x[field].dtype for x in examples.values())) for field in shapes}
    joined, parts = " + ".join(source.name for source in sources.values()), list(sources.values())
    bounds = np.cumsum([0, *(source.size for source in parts)])

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        rows = np.asarray(check_rows(joined, rows, int(bounds[-1])))
        task = np.searchsorted(bounds[1:], rows, side="right")
        fields = {field: np.zeros((len(rows), *shape), dtypes[field]) for field, shape in shapes.items()}
        for number in np.unique(task):
            own = np.flatnonzero(task == number)
            for field, values in parts[number].read(rows[own] - bounds[number]).items():
                fields[field][own] = np.pad(values, _gaps(values.shape, shapes[field]))
        fields |= {f"is_{name}": task == number for number, name in enumerate(sources)}
        return fields | {"id": rows.astype(np.int32)}

    return dataclasses.replace(
        parts[0],
        name=joined,
        size=int(bounds[-1]),
        num_classes=max(source.num_classes for source in parts),
        read=read,
        start=0,
        drawn=None,
        class_names=(),
        **_cuts(parts),
    )


def _cuts(parts: list[Source]) -> dict[str, Any]:
    """Lengths and buckets of the joined rows; as many buckets as the source with most of them."""
    if not any(source.buckets for source in parts):
        return {}
    lengths = np.concatenate([lengths_of(source) for source in parts])
    most, count = max(source.buckets[-1] for source in parts), max(len(source.buckets) for source in parts)
    return {"lengths": lengths, "buckets": choose_buckets(lengths, count, most)}


def _gaps(shape: tuple[int, ...], wanted: tuple[int, ...]) -> list[tuple[int, int]]:
    """Numbers of entries to append along each axis but the first."""
    return [(0, 0), *((0, size - have) for have, size in zip(shape[1:], wanted, strict=True))]


def _example(source: Source) -> dict[str, np.ndarray]:
    """The first row of a source, after a check of what it is."""
    check_task(source, "classification", "tokens")
    if source.targets is not None:
        raise ValueError(f"{source.name} has targets, which belong to its own rows: join the tasks before the targets.")
    row = source.read(np.zeros(1, np.int64))
    if texts := [field for field, values in row.items() if is_text(values)]:
        raise ValueError(f"`{texts[0]}` of {source.name} holds texts: tokenise the texts before the tasks are joined.")
    return row


def _check_alike(one: Source, fields: dict[str, np.ndarray], other: Source, others: dict[str, np.ndarray]) -> None:
    """Refuses two tasks that no network can read alike."""
    if different := sorted(fields.keys() ^ others.keys()):
        has, lacks = (one, other) if different[0] in fields else (other, one)
        raise ValueError(f"{has.name} has the field `{different[0]}` but {lacks.name} has not: give the same fields.")
    if bool(one.buckets) != bool(other.buckets):
        has, lacks = (one, other) if one.buckets else (other, one)
        raise ValueError(f"{has.name} has buckets of lengths but {lacks.name} has not: tokenise both alike.")
    if one.ignore != other.ignore:
        raise ValueError(
            f"{one.name} ignores the label {one.ignore} but {other.name} ignores {other.ignore}: give the same one."
        )
    for field, values in fields.items():
        if values.ndim != others[field].ndim:
            raise ValueError(
                f"`{field}` has rows of shape {values.shape[1:]} in {one.name} but {others[field].shape[1:]} in "
                f"{other.name}: give the same number of axes."
            )
