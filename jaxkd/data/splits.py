"""Rows of a slice of a split: drawn from all classes where the rows have no order of their own, and what is missing."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from jaxkd.data.checks import SPLIT, listing
from jaxkd.data.labels import Labels, Task

SPLITS = ("train", "val", "test")
"""Splits of pictures with boxes or masks."""

_LOG = logging.getLogger(__name__)
_SURE = 1e-3  # chance below which the absence of a class is no accident of a draw


def say(message: str) -> None:
    """Logs what a user should know about a data set that is usable anyway, as a warning.

    Args:
      message: One sentence.
    """
    _LOG.warning("%s", message)


def is_percentage(name: str, split: str) -> bool:
    """Tests if a slice is given by percentages.

    Args:
      name: Name of the data set, for the message.
      split: The split or a slice of it, which can be parsed.

    Returns:
      True for percentages, False for row numbers and whole splits.

    Raises:
      ValueError: If one bound is a percentage and the other a row.
    """
    match = SPLIT.fullmatch(split.strip())
    bounds = [match[end] for end in ("start", "stop") if match[end]] if match else []
    kinds = {bound.endswith("%") for bound in bounds}
    if len(kinds) > 1:
        raise ValueError(
            f"split {split!r} of {name} mixes a row and a percentage, but percentages are drawn from all classes and "
            "rows are counted: give both bounds as rows or both as percentages."
        )
    return kinds == {True}


def first_few(names: Sequence[str]) -> str:
    """Enumeration of at most three names for a sentence.

    Args:
      names: The names, at least one.

    Returns:
      Such as "cat and dog", or "cat, dog, emu, ..." if there are more.
    """
    return listing(list(names)) if len(names) <= 3 else f"{', '.join(names[:3])}, ..."


def draw(rank: np.ndarray, labels: np.ndarray | None, start: int, stop: int) -> np.ndarray:
    """Rows start..stop-1 of a fixed order in which each part holds all classes in proportion.

    The row that is number j of the n rows of its class, in the order of `rank`, stands at (j + 1/2) / n of the whole.
    So each class has its share of a part to within one row, and parts that do not overlap hold different rows.

    Args:
      rank: Each row's place in a shuffled order, integers [N].
      labels: Class numbers [N], or rows of labels [N, K] of which equal ones are a class; None for one class.
      start: First row of the part.
      stop: Row after its last one.

    Returns:
      Row numbers, increasing, int32 [stop - start].
    """
    place = np.zeros(len(rank))
    if labels is not None:
        _, group, counts = np.unique(
            labels, axis=0 if labels.ndim > 1 else None, return_inverse=True, return_counts=True
        )
        group = group.reshape(-1)
        by_class = np.lexsort((rank, group))
        first = np.cumsum(counts) - counts
        j = np.arange(len(rank)) - first[group[by_class]]
        place[by_class] = (2 * j + 1) / (2 * counts[group[by_class]])
    return np.sort(np.lexsort((rank, place))[start:stop]).astype(np.int32)


def say_missing(
    name: str,
    task: Task,
    whole: np.ndarray,
    rows: np.ndarray,
    *,
    drawn: bool,
    class_names: Sequence[str] = (),
    known: np.ndarray | None = None,
) -> None:
    """Says which classes a slice lacks though the split has them.

    Args:
      name: Name of the slice.
      task: Task of the labels. Of numbers it is said if they are sorted.
      whole: Labels of the whole split, [N] or [N, K].
      rows: Row numbers of the slice.
      drawn: True if the rows were drawn from all classes; rows in the file's order may lack classes of which they
        hold few rows by chance alone, and then nothing is said.
      class_names: Names of the classes, if they have any.
      known: Booleans of the shape of the labels, false where one is missing; None if none is.
    """
    if len(rows) == len(whole) or task == "unlabelled":
        return
    known = np.ones(whole.shape, bool) if known is None else known
    if task == "regression":
        steps = np.diff(whole[known] if whole.ndim == 1 else whole, axis=0)
        if not drawn and whole.size == len(whole) > 15 and steps.any() and ((steps >= 0).all() or (steps <= 0).all()):
            say(f"{name} is a slice of rows that are sorted by their labels: give percentages, which are drawn.")
        return
    if task == "classification":
        counts = np.bincount(whole[known])
        have = np.bincount(whole[rows][known[rows]], minlength=len(counts))
    else:
        yes = np.where(known, whole, 0)
        counts, have = yes.sum(axis=0), yes[rows].sum(axis=0)
    missing = (counts > 0) & (have == 0)
    if not drawn:
        missing &= (1 - len(rows) / len(whole)) ** counts < _SURE
    if missing.any():
        advice = (
            "these have too few examples for a part of this size"
            if drawn
            else "its rows are in the order of the file, so give percentages, which are drawn from all classes"
        )
        say(
            f"{name} has no example of {missing.sum()} of the {(counts > 0).sum()} classes of its split "
            f"({first_few(_named(np.flatnonzero(missing), class_names))}): {advice}."
        )


def say_unknown(name: str, labels: Labels, ignore: float | None) -> None:
    """Says how many labels are missing, and how a training leaves them out.

    Args:
      name: Name of the source.
      labels: Its labels.
      ignore: The label that says that there is none; none if None.
    """
    if missing := labels.known.size - int(np.count_nonzero(labels.known)):
        text = "float('nan')" if ignore != ignore else ignore
        say(
            f"{missing:,} of the {labels.known.size:,} labels of {name} are missing ({ignore}): metrics of its task "
            f"leave them out; give terms of labels ignore={text} too."
        )


def say_empty(name: str, splits: Sequence[np.ndarray], num_classes: int) -> None:
    """Says if classes up to the largest label have no example in any split, as where labels count from 1.

    Args:
      name: Name of the data set.
      splits: Class numbers of each split.
      num_classes: Number of classes.
    """
    found = np.concatenate([labels.ravel().astype(np.int64) for labels in splits])
    counts = np.bincount(found[found >= 0], minlength=num_classes)  # a split to predict on may have -1 alone
    if (largest := np.flatnonzero(counts)[-1]) and (empty := np.flatnonzero(counts[:largest] == 0)).size:
        say(
            f"{name} has no example of {empty.size} of the classes 0..{largest} ({first_few(_named(empty, ()))}): "
            "number the labels from 0 if they count from 1."
        )


def say_new(name: str, labels: np.ndarray, training: np.ndarray, class_names: Sequence[str] = ()) -> None:
    """Says which classes of a split do not occur in the training split.

    Args:
      name: Name of the split.
      labels: Its class numbers.
      training: Class numbers of the training split.
      class_names: Names of the classes, if they have any.
    """
    new = np.setdiff1d(labels, training)
    if new.size and training.size:
        say(
            f"{name} has {new.size} of its classes for itself ({first_few(_named(new, class_names))}), since the split "
            "train has no example of them: no training can learn these."
        )


def check_sorted(name: str, split: str, labels: np.ndarray) -> None:
    """Refuses percentages of a split that is sorted by class and whose rows cannot be drawn.

    Args:
      name: Name of the slice.
      split: The slice as it was asked for.
      labels: Class numbers of some rows spread over the whole split, in order.

    Raises:
      ValueError: If these are sorted and the slice is given by percentages; of rows it is said.
    """
    steps = np.diff(labels)
    if len(labels) < 16 or len(np.unique(labels)) < 2 or not ((steps >= 0).all() or (steps <= 0).all()):
        return
    found = f"{name} is a slice of a split whose rows are sorted by class, so it lacks some classes"
    if "%" in split:
        raise ValueError(
            f"{found}: prepare the set with shuffling, give its arrays as npz:PATH, of which percentages are drawn "
            "from all classes, or give row numbers if that is meant."
        )
    say(f"{found}: prepare the set with shuffling to have them.")


def _named(classes: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """First of some classes by name, or by number if they have none, as `first_few` needs them."""
    return [class_names[c] if class_names else str(c) for c in classes[:4]]
