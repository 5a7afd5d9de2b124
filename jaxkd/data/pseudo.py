"""Pseudo-labels: the rows without labels of whose class a teacher is certain, as many of each class."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from jaxkd.data.checks import is_whole
from jaxkd.data.source import Source
from jaxkd.kernels.rows import take

Balance: TypeAlias = Literal["drop", "repeat", "none"]
"""What becomes of classes of which a teacher is certain of more rows than of others, or of fewer."""


class UncertainError(ValueError):
    """A teacher that is certain of no row of a class, so that there are no balanced pseudo-labels."""


def pseudo_labels(
    logits: ArrayLike, *, threshold: float, per_class: int | None = None, balance: Balance = "drop"
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses rows of whose class a teacher is certain, balanced over the classes, and labels them.

    label = argmax_k p_k,  certain if max_k p_k >= threshold,  p = softmax(logits)

    Of each class the most certain rows are taken; of equally certain ones those that come first. A row whose largest
    logits are equal has the first of these classes.

    Args:
      logits: The teacher's, [N, K].
      threshold: Least probability of the class, 0..1.
      per_class: Rows of each class; of the rarest class for "drop", and of the most common one for "repeat", if None.
      balance: "drop" leaves out the less certain rows of a class that has more than `per_class`; one that has fewer
        gives all of them. "repeat" also takes rows of such a class again, the most certain ones first, until all have
        exactly as many, as noisy students do with rows drawn by chance. "none" keeps all certain rows.

    Returns:
      Row numbers int64 [M] in ascending order, and their labels int32 [M].

    Raises:
      UncertainError: If the teacher is certain of no row of a class, or for "none" of no row at all.
      ValueError: If the logits are not [N, K] of at least two classes or not finite, or an option is out of range.

    Reference:
      Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks", ICML 2013
      workshop, http://deeplearning.net/wp-content/uploads/2013/03/pseudo_label_final.pdf;
      Xie, Luong, Hovy, Le, "Self-training with Noisy Student improves ImageNet classification", CVPR 2020,
      https://arxiv.org/abs/1911.04252
    """
    z = np.asarray(logits)
    _check(z, threshold, per_class, balance)
    z = z.astype(np.float64)
    labels = z.argmax(axis=1)
    likely = 1 / np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)
    found = [np.flatnonzero((labels == k) & (likely >= threshold)) for k in range(z.shape[1])]
    missing = [k for k, rows in enumerate(found) if not rows.size]
    if missing and (balance != "none" or len(missing) == len(found)):
        own = [likely[labels == k] for k in missing]
        best = [f"at most {rows.max():.3g}" if rows.size else "never the likeliest" for rows in own]
        raise UncertainError(
            f"the teacher gives no row of the classes {missing} a probability of at least {threshold} "
            f"({', '.join(best)}): lower the threshold or give more rows."
        )
    counts = [len(rows) for rows in found]
    usual = {"drop": min(counts), "repeat": max(counts), "none": max(counts)}[balance]
    most = usual if per_class is None else per_class
    kept = [rows[np.argsort(-likely[rows], kind="stable")][:most] for rows in found]
    if balance == "repeat":
        kept = [np.resize(rows, most) for rows in kept]
    chosen = np.sort(np.concatenate(kept))
    return chosen, labels[chosen].astype(np.int32)


def with_pseudo_labels(source: Source, rows: np.ndarray, labels: np.ndarray, num_classes: int) -> Source:
    """Rows of a source with pseudo-labels in the place of their own labels, if they have any.

    Args:
      source: The source, without targets.
      rows: Row numbers [M], some perhaps more than once, as `pseudo_labels` chooses them.
      labels: Their labels [M].
      num_classes: Number of classes K.

    Returns:
      A source of M rows, whose `id` is the row number in it.

    Raises:
      ValueError: If there are not as many rows as labels, none, or ones that the source does not have; if a label is
        none of 0..K-1; or if the source has targets.
    """
    rows, labels = np.asarray(rows), np.asarray(labels, np.int32)
    if rows.ndim != 1 or rows.shape != labels.shape or not rows.size:
        raise ValueError(f"there are {rows.shape} rows and {labels.shape} labels: give as many of both, at least one.")
    if rows.min() < 0 or rows.max() >= source.size:
        raise ValueError(f"the rows are {rows.min()}..{rows.max()}, but {source.name} has 0..{source.size - 1}.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"the labels are {labels.min()}..{labels.max()}: give ones from 0 to {num_classes - 1}.")
    if source.targets is not None:
        raise ValueError(f"{source.name} has targets, which belong to its own rows: choose rows before joining them.")

    def read(own: np.ndarray) -> dict[str, np.ndarray]:
        fields = source.read(rows[own])
        return fields | {"label": take(labels, own), "id": np.asarray(own, np.int32)}

    return dataclasses.replace(
        source,
        name=f"{source.name} ({len(rows)} pseudo-labels)",
        size=len(rows),
        num_classes=num_classes,
        read=read,
        start=0,
        task="classification",
        ignore=None,
        drawn=None,
        lengths=None if source.lengths is None else source.lengths[rows],
    )


def _check(logits: np.ndarray, threshold: float, per_class: int | None, balance: str) -> None:
    """Raises ValueError unless logits and options are as `pseudo_labels` wants them."""
    if logits.ndim != 2 or logits.shape[1] < 2 or logits.dtype.kind not in "fiu":
        raise ValueError(
            f"the teacher's logits have shape {logits.shape} and dtype {logits.dtype}: give numbers [N, K] of at least "
            "two classes."
        )
    if (broken := np.flatnonzero(~np.isfinite(logits).all(axis=1))).size:
        raise ValueError(f"the teacher's logits are not finite in {broken.size} rows, first in row {broken[0]}.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}: give a probability from 0 to 1.")
    if per_class is not None and not (is_whole(per_class) and per_class >= 1):
        raise ValueError(f"per_class is {per_class!r}: give an integer of at least 1, or None.")
    if balance not in get_args(Balance):
        raise ValueError(f"balance is {balance!r}: give one of {', '.join(get_args(Balance))}.")
    if balance == "none" and per_class is not None:
        raise ValueError("per_class is given, but balance is 'none', which keeps all certain rows: leave one out.")
