"""Pseudo-labels: the rows without labels of whose class a teacher is certain, as many of each class."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from jaxkd.data.checks import is_whole


def pseudo_labels(
    logits: ArrayLike, *, threshold: float, per_class: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses rows of whose class a teacher is certain, balanced over the classes, and labels them.

    label = argmax_k p_k,  certain if max_k p_k >= threshold,  p = softmax(logits)

    Of each class the most certain rows are taken; of equally certain ones those that come first. A row whose largest
    logits are equal has the first of these classes.

    Args:
      logits: The teacher's, [N, K].
      threshold: Least probability of the class, 0..1.
      per_class: Rows of each class, at most: a class with fewer certain rows gives all of them. As many as the rarest
        class has if None, so that all have the same number.

    Returns:
      Row numbers int64 [M] in ascending order, and their labels int32 [M].

    Raises:
      ValueError: If the logits are not [N, K] of at least two classes or not finite, an option is out of range, or the
        teacher is certain of no row of a class.

    Reference:
      Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks", ICML 2013
      workshop, http://deeplearning.net/wp-content/uploads/2013/03/pseudo_label_final.pdf;
      Xie, Luong, Hovy, Le, "Self-training with Noisy Student improves ImageNet classification", CVPR 2020,
      https://arxiv.org/abs/1911.04252
    """
    z = np.asarray(logits)
    _check(z, threshold, per_class)
    z = z.astype(np.float64)
    labels = z.argmax(axis=1)
    likely = 1 / np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)
    found = [np.flatnonzero((labels == k) & (likely >= threshold)) for k in range(z.shape[1])]
    if missing := [k for k, rows in enumerate(found) if not rows.size]:
        own = [likely[labels == k] for k in missing]
        best = [f"at most {rows.max():.3g}" if rows.size else "never the likeliest" for rows in own]
        raise ValueError(
            f"the teacher gives no row of the classes {missing} a probability of at least {threshold} "
            f"({', '.join(best)}): lower the threshold or give more rows."
        )
    most = min(len(rows) for rows in found) if per_class is None else per_class
    kept = [rows[np.argsort(-likely[rows], kind="stable")][:most] for rows in found]
    chosen = np.sort(np.concatenate(kept))
    return chosen, labels[chosen].astype(np.int32)


def _check(logits: np.ndarray, threshold: float, per_class: int | None) -> None:
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
