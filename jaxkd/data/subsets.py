"""Parts of a source: some of its classes, or a few examples of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxkd.data.source import Source, labels_of


def of_classes(source: Source, classes: Sequence[int]) -> Source:
    """The examples of some classes, which are numbered anew in the order given.

    Args:
      source: A source whose labels are integers, without targets.
      classes: Which classes, each once.

    Returns:
      A source of `len(classes)` classes; `id` is the row in it.

    Raises:
      ValueError: If a class is named twice, does not exist or has no example, or the source has targets.
    """
    if len(set(classes)) != len(classes) or not classes or not all(0 <= c < source.num_classes for c in classes):
        raise ValueError(
            f"the classes are {list(classes)} but {source.name} has 0..{source.num_classes - 1}: name some, each once."
        )
    labels = labels_of(source)
    if empty := sorted(set(classes) - set(labels.tolist())):
        raise ValueError(f"{source.name} has no example of the classes {empty}: leave them out.")
    number = np.full(source.num_classes, -1, np.int32)
    number[list(classes)] = np.arange(len(classes))
    return _rows(source, np.flatnonzero(number[labels] >= 0), number, len(classes), f"{len(classes)} classes")


def few_labels(source: Source, per_class: int, *, seed: int = 0) -> Source:
    """As many examples of each class, drawn without replacement.

    Args:
      source: A source whose labels are integers, without targets.
      per_class: Examples of each class.
      seed: Of the draw.

    Returns:
      A source of `per_class * num_classes` rows; `id` is the row in it.

    Raises:
      ValueError: If a class has fewer examples, or the source has targets.
    """
    labels, random = labels_of(source), np.random.default_rng(seed)
    counts = np.bincount(labels, minlength=source.num_classes)
    if not 1 <= per_class <= counts.min():
        raise ValueError(
            f"{per_class} examples of each class were asked for, but class {counts.argmin()} of {source.name} has "
            f"{counts.min()}: give 1..{counts.min()}."
        )
    rows = [random.permutation(np.flatnonzero(labels == c))[:per_class] for c in range(source.num_classes)]
    number = np.arange(source.num_classes, dtype=np.int32)
    return _rows(source, np.sort(np.concatenate(rows)), number, source.num_classes, f"{per_class} a class")


def _rows(source: Source, rows: np.ndarray, number: np.ndarray, num_classes: int, what: str) -> Source:
    """Those rows, with other labels."""
    if source.targets is not None:
        raise ValueError(f"{source.name} has targets, which belong to its own rows: choose rows before joining them.")

    def read(own: np.ndarray) -> dict[str, np.ndarray]:
        fields = source.read(rows[own])
        return fields | {"label": number[fields["label"]], "id": np.asarray(own, np.int32)}

    name = f"{source.name} ({what})"
    return dataclasses.replace(source, name=name, size=len(rows), num_classes=num_classes, read=read, start=0)
