"""Subsets of a source: some of its classes, or a few examples of each class; and its rows several times."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxkd.data.checks import is_whole
from jaxkd.data.source import Source, labels_of
from jaxkd.data.suitability import check_task


def of_classes(source: Source, classes: Sequence[int]) -> Source:
    """Subset of all examples of some classes, which are renumbered in the order given.

    Args:
      source: A source with integer labels and without targets.
      classes: Class numbers, each once.

    Returns:
      Source of `len(classes)` classes, whose `id` is the row number in the subset.

    Raises:
      ValueError: If a class is named twice, does not exist or has no example, or if the source has targets.
    """
    check_task(source, "classification")
    classes = list(classes)
    whole = all(is_whole(c) and 0 <= c < source.num_classes for c in classes)
    if not whole or not classes or len(set(classes)) != len(classes):
        raise ValueError(
            f"the classes asked for are {list(classes)} but {source.name} has 0..{source.num_classes - 1}: name some, "
            "each once."
        )
    labels = _known(source)
    if empty := sorted(set(classes) - set(labels.tolist())):
        raise ValueError(f"{source.name} has no example of the classes {empty}: leave them out.")
    number = np.full(source.num_classes + 1, -1, np.int32)  # the last one is of missing labels, -1
    number[list(classes)] = np.arange(len(classes))
    return _rows(source, np.flatnonzero(number[labels] >= 0), number, len(classes), f"{len(classes)} classes")


def few_labels(source: Source, per_class: int, *, seed: int = 0) -> Source:
    """Subset with the same number of examples of each class, drawn without replacement.

    Args:
      source: A source with integer labels and without targets.
      per_class: Number of examples of each class.
      seed: Seed of the draw.

    Returns:
      Source of `per_class * num_classes` rows, whose `id` is the row number in the subset.

    Raises:
      ValueError: If a class has fewer examples, or if the source has targets.
    """
    check_task(source, "classification")
    if not is_whole(seed) or seed < 0:
        raise ValueError(f"seed is {seed}: give an integer of at least 0.")
    labels, random = _known(source), np.random.default_rng(seed)
    counts = np.bincount(labels[labels >= 0], minlength=source.num_classes)
    if not is_whole(per_class) or not 1 <= per_class <= counts.min():
        raise ValueError(
            f"{per_class} examples of each class were asked for, but class {counts.argmin()} of {source.name} has "
            f"{counts.min()}: give 1..{counts.min()}."
        )
    rows = [random.permutation(np.flatnonzero(labels == c))[:per_class] for c in range(source.num_classes)]
    number = np.arange(source.num_classes, dtype=np.int32)
    return _rows(source, np.sort(np.concatenate(rows)), number, source.num_classes, f"{per_class} a class")


def repeated(source: Source, times: int) -> Source:
    """Source whose rows all come several times in each epoch, such as few labelled ones beside many without a label.

    Args:
      source: A source without targets.
      times: How many times each row comes.

    Returns:
      Source of `times * source.size` rows, whose `id` is the row number here: each copy is augmented on its own.

    Raises:
      ValueError: If there is no copy, or if the source has targets.
    """
    if not is_whole(times) or times < 1:
        raise ValueError(f"rows cannot be repeated {times!r} times: give an integer of at least 1.")
    if source.targets is not None:
        raise ValueError(f"{source.name} has targets, which belong to its own rows: repeat rows before joining them.")

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        return source.read(np.asarray(rows) % source.size) | {"id": np.asarray(rows, np.int32)}

    lengths = None if source.lengths is None else np.tile(source.lengths, times)
    name = f"{source.name} ({times} times)"
    return dataclasses.replace(
        source, name=name, size=times * source.size, read=read, start=0, drawn=None, lengths=lengths
    )


def _known(source: Source) -> np.ndarray:
    """Labels of all rows, -1 where one is missing."""
    labels = labels_of(source)
    return labels if source.ignore is None else np.where(labels == source.ignore, -1, labels)


def _rows(source: Source, rows: np.ndarray, number: np.ndarray, num_classes: int, subset: str) -> Source:
    """Source of some rows, whose label k becomes `number[k]`."""
    if source.targets is not None:
        raise ValueError(f"{source.name} has targets, which belong to its own rows: choose rows before joining them.")

    def read(own: np.ndarray) -> dict[str, np.ndarray]:
        fields = source.read(rows[own])
        return fields | {"label": number[fields["label"]], "id": np.asarray(own, np.int32)}

    kept = np.flatnonzero(number >= 0)
    names = [source.class_names[c] for c in kept[np.argsort(number[kept])]] if source.class_names else []
    return dataclasses.replace(
        source,
        name=f"{source.name} ({subset})",
        size=len(rows),
        num_classes=num_classes,
        read=read,
        start=0,
        drawn=None,
        class_names=tuple(names),
        lengths=None if source.lengths is None else source.lengths[rows],
    )
