"""Labels of a source: what they mean, what they may be, and how many classes they have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from jaxkd.data.checks import check_finite, check_int32, check_labels, is_text

Task: TypeAlias = Literal["classification", "multi_label", "regression", "tokens", "boxes", "ranking", "unlabelled"]
"""Meaning of the field `label`: one class of several, any of several labels, numbers, a class of each token; boxes and
rankings, whose fields their readers name; or no such field."""

MEANING: dict[Task, str] = {
    "classification": "class numbers",
    "multi_label": "several labels at once, 0 or 1 each",
    "regression": "floating point numbers as labels",
    "tokens": "a class of each token",
    "boxes": "boxes in pictures",
    "ranking": "items to rank",
    "unlabelled": "no labels",
}
"""Task -> what the labels are, for a sentence."""

ADVICE: dict[Task, str] = {
    "classification": "losses.cross_entropy and losses.kd suit class numbers",
    "multi_label": "losses.binary_cross_entropy and losses.binary_kd suit such labels, in a training that is written "
    "with them",
    "regression": "give integers if they are classes, such as label.astype(int); the losses of jaxkd.losses.regression "
    "suit numbers, in a training that is written with them",
    "tokens": "losses.cross_entropy with ignore= suits classes of tokens, in a training that is written with it",
    "boxes": "the losses of jaxkd.losses.detection suit boxes, in a training that is written with them",
    "ranking": "the losses of jaxkd.losses.ranking suit rankings, in a training that is written with them",
    "unlabelled": "add labels, or write a training with terms that need none, such as "
    "objectives.from_logits(losses.kd)",
}
"""Task -> what to do where another one was needed, for a sentence."""


class Labels(NamedTuple):
    """Labels in their final dtype.

    Attributes:
      values: int32 [N] (classification), int32 [N, K] of 0 and 1 (multi-label), float32 [N] or [N, K] (regression).
        What is missing keeps the label that says so.
      task: The task.
      num_classes: K.
      known: Booleans of the shape of the values, false where a label is missing.
    """

    values: np.ndarray
    task: Task
    num_classes: int
    known: np.ndarray


def read_labels(
    name: str,
    given: Any,
    ids: np.ndarray,
    num_classes: int | None = None,
    others: Sequence[np.ndarray] = (),
    *,
    ignore: float | None = None,
) -> Labels:
    """Infers the task from labels and converts them.

    Args:
      name: Name of the source, for messages.
      given: Integers or booleans [N] or [N, 1] (classification); integers 0 and 1 or booleans [N, K] (multi-label);
        floating point numbers [N] or [N, K] (regression).
      ids: Row numbers [N].
      num_classes: K, or None to take it from the labels.
      others: Labels of the data set's other splits, which count for the number of classes.
      ignore: The label that says that there is none, such as -1, 255 or NaN; none if None.

    Returns:
      The labels.

    Raises:
      ValueError: If the labels are of no such kind, lie outside the classes, are NaN, exceed int32, or leave so many
        classes without an example that the number of classes must be given.
    """
    values, task, known = _read(name, np.asarray(given), ids, ignore)
    rest = [_read(f"another split of {name}", other, np.arange(len(other)), ignore) for other in others]
    if {kind for _, kind, _ in rest} - {task}:
        raise ValueError(
            f"`label` of {name} holds {MEANING[task]} but that of another split does not: give all splits the same "
            "kind of labels."
        )
    if task == "classification":
        if num_classes is None:
            num_classes = _count_classes(name, [values[known], *(other[valid] for other, _, valid in rest)])
        check_labels(name, values[known], ids[known], num_classes)
        return Labels(values.astype(np.int32), task, num_classes, known)
    width = values.shape[1] if values.ndim == 2 else 1
    if num_classes not in (None, width):
        kind = "outputs" if task == "regression" else "labels of 0 and 1"
        raise ValueError(
            f"`label` of {name} has {width} {kind} a row but num_classes is {num_classes}: leave num_classes out, or "
            f"{ADVICE['regression'].partition(';')[0]}."
        )
    return Labels(values, task, width, known)


def _read(name: str, values: np.ndarray, ids: np.ndarray, ignore: float | None) -> tuple[np.ndarray, Task, np.ndarray]:
    """Labels, their task and which are known; class numbers are checked to fit into int32, not yet against classes."""
    whole = values.dtype.kind in "biu"
    if values.ndim == 2 and values.shape[1] == 1 and whole:
        values = values[:, 0]
    if is_text(values):
        raise ValueError(
            f"`label` of {name} holds texts or objects: give class numbers, such as those that "
            "np.unique(label, return_inverse=True)[1] gives to names of classes."
        )
    known = _known(name, values, ignore)
    if values.ndim == 1 and whole:
        check_int32(name, "label", values, ids)
        return values.astype(np.int64), "classification", known
    if values.dtype.kind == "f" and values.ndim in (1, 2) and values.size:
        check_finite(name, "label", np.where(known, values, 0), ids)
        _refuse_one_hot(name, values)
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        check_finite(name, "label", np.where(known, values, 0), ids)
        return values, "regression", known
    if whole and values.ndim == 2 and values.shape[1] and ((values == 0) | (values == 1) | ~known).all():
        _refuse_one_hot(name, values)
        return values.astype(np.int32), "multi_label", known
    raise ValueError(
        f"`label` of {name} has shape {values.shape} and dtype {values.dtype}: give class numbers, integers of shape "
        f"({len(ids)},), or 0 and 1 for each of several labels, or floating point numbers; an array of another meaning "
        "may have any other name."
    )


def _known(name: str, values: np.ndarray, ignore: float | None) -> np.ndarray:
    """True where a label is not the one that says that there is none."""
    if ignore is None:
        return np.ones(values.shape, bool)
    if isinstance(ignore, bool) or not isinstance(ignore, (int, float, np.integer, np.floating)):
        raise ValueError(f"ignore is {ignore!r}: give the number that says that there is no label, such as -1 or NaN.")
    if values.dtype.kind in "biu" and ignore != np.floor(ignore):  # also of NaN
        raise ValueError(
            f"`label` of {name} holds integers but ignore is {ignore}: give the integer that says that there is no "
            "label, such as -1 or 255."
        )
    return ~np.isnan(values) if ignore != ignore else values != ignore


def _refuse_one_hot(name: str, values: np.ndarray) -> None:
    """Refuses class numbers as one-hot rows, which are neither several labels at once nor numbers."""
    binary = values.ndim == 2 and values.shape[1] > 1 and ((values == 0) | (values == 1)).all()
    if binary and (values.sum(axis=1) == 1).all():
        raise ValueError(
            f"`label` of {name} has shape {values.shape} and is one-hot, a single 1 in each row: give class numbers, "
            "label.argmax(axis=1)."
        )


def _count_classes(name: str, splits: list[np.ndarray]) -> int:
    """Largest label of all splits plus one, unless most numbers up to it do not occur."""
    found = np.unique(np.concatenate(splits))
    found = found[found >= 0]  # a negative label is refused with its row
    if not found.size:
        return 1
    largest = int(found[-1])
    if 2 * len(found) < largest + 1:
        raise ValueError(
            f"the largest label of {name} is {largest} but only {len(found)} different labels occur: give "
            f"num_classes={largest + 1} if there are that many classes, or number those that occur from 0, as "
            "np.unique(label, return_inverse=True)[1] does."
        )
    return largest + 1
