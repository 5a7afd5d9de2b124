"""Average precision of object detectors, as the COCO benchmark computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""IoU from which a box counts as found: 0.5, 0.55, .., 0.95."""

_RECALLS = np.linspace(0, 1, 101)


class DetectionAP(NamedTuple):
    """Average precision of each threshold and class.

    Attributes:
      each: float64 [T, K] in 0..1; NaN for classes of which no picture has a box that counts.
      thresholds: The T IoUs from which a box counts as found.
    """

    each: np.ndarray
    thresholds: Sequence[float]

    def value(self) -> float:
        """Mean over thresholds and classes, "mAP@[.5:.95]"; NaN if there is no box at all."""
        return _mean(self.each)

    def at(self, threshold: float) -> float:
        """Mean over the classes at one threshold, such as 0.5 for "mAP@50"; NaN if there is no box at all.

        Args:
          threshold: One of the thresholds.

        Returns:
          A number in 0..1.
        """
        return _mean(self.each[self._row(threshold)])

    def per_class(self, threshold: float | None = None) -> np.ndarray:
        """Each class's mean over the thresholds, or its value at one of them.

        Args:
          threshold: One of the thresholds, or None for the mean over them.

        Returns:
          [K] in 0..1; NaN for classes without boxes.
        """
        return self.each.mean(axis=0) if threshold is None else self.each[self._row(threshold)]

    def _row(self, threshold: float) -> int:
        near = np.flatnonzero(np.isclose(self.thresholds, threshold))
        if not near.size:
            raise ValueError(f"the threshold {threshold} is none of {tuple(self.thresholds)}: choose one of these.")
        return int(near[0])


def detection_ap(
    boxes: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    true_boxes: ArrayLike,
    true_labels: ArrayLike,
    *,
    num_classes: int,
    crowd: ArrayLike | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    limit: int = 100,
) -> DetectionAP:
    """Average precision of found boxes: the mean of the precision at 101 recalls, of objects of all sizes.

    In each picture, the found boxes of a class take, the surest first, the true box of the largest IoU that is not
    taken. At a recall r the precision is the best one at any recall from r on. A box that matches a crowd counts
    neither as right nor as wrong, and any number may match it, by intersection over the found box's own area.

    Args:
      boxes: Found boxes, [N, D, 4], (x1, y1, x2, y2); N pictures.
      scores: [N, D].
      labels: Classes, int [N, D]; -1 where there are fewer than D.
      true_boxes: [N, M, 4].
      true_labels: int [N, M]; -1 where there are fewer than M.
      num_classes: K.
      crowd: bool [N, M], or None if there are none.
      thresholds: IoUs.
      limit: Found boxes of a class that count in a picture.

    Returns:
      The average precision of each threshold and class.

    Raises:
      ValueError: If the shapes do not fit together, a class is none of K, or a score is NaN.

    Reference:
      Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, https://arxiv.org/abs/1405.0312
    """
    found, truth = np.asarray(boxes, np.float64), np.asarray(true_boxes, np.float64)
    score, label, true_label = np.asarray(scores, np.float64), np.asarray(labels), np.asarray(true_labels)
    crowds = np.zeros(true_label.shape, bool) if crowd is None else np.asarray(crowd, bool)
    fits = found.shape == (*label.shape, 4) and score.shape == label.shape and label.ndim == 2
    fits &= truth.shape == (*true_label.shape, 4) and crowds.shape == true_label.shape
    if not fits or len(found) != len(truth):
        raise ValueError(
            f"found boxes have shape {found.shape}, scores {score.shape}, classes {label.shape}; true boxes "
            f"{truth.shape}, classes {true_label.shape} and crowds {crowds.shape}: give [N, D, 4] and twice [N, D], "
            "[N, M, 4] and twice [N, M]."
        )
    if (label >= num_classes).any() or (true_label >= num_classes).any():
        raise ValueError(f"a class is {num_classes} or more: give 0..{num_classes - 1}, or -1 where there is no box.")
    if np.isnan(score[label >= 0]).any():
        raise ValueError("a score of a found box is NaN: leave such boxes out, or see why the network gives it.")
    levels = np.asarray(thresholds, np.float64)
    each = np.full((len(levels), num_classes), np.nan)
    for k in range(num_classes):
        parts, count = [], 0
        for n in range(len(found)):
            mine, real = np.flatnonzero(label[n] == k), np.flatnonzero(true_label[n] == k)
            mine = mine[np.argsort(-score[n, mine], kind="stable")][:limit]
            real = real[np.argsort(crowds[n, real], kind="stable")]  # those that count come first
            count += int((~crowds[n, real]).sum())
            if mine.size:
                parts.append((score[n, mine], *_matched(found[n, mine], truth[n, real], crowds[n, real], levels)))
        if count:
            each[:, k] = _precision(parts, count, len(levels))
    return DetectionAP(each, tuple(thresholds))


def _matched(
    found: np.ndarray, truth: np.ndarray, crowd: np.ndarray, levels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of found boxes [D, 4] in the order of their scores: which match a true box, and which a crowd, each [T, D]."""
    right, ignored = np.zeros((2, len(levels), len(found)), bool)
    if not len(truth):
        return right, ignored
    iou = _iou(found, truth, crowd)
    free = np.ones((len(levels), len(truth)), bool)
    every = np.arange(len(levels))
    for d in range(len(found)):
        near = free & (iou[d] >= np.minimum(levels, 1 - 1e-10)[:, None])
        counts = near & ~crowd
        some = counts.any(axis=1)
        # Of equal IoUs the last one is taken, as the benchmark's program does.
        best = len(truth) - 1 - np.argmax(np.where(counts, iou[d], -1)[:, ::-1], axis=1)
        right[:, d] = some
        free[every[some], best[some]] = False
        ignored[:, d] = ~some & near.any(axis=1)
    return right, ignored


def _iou(found: np.ndarray, truth: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU [D, M]; with a crowd the intersection over the found box's area."""
    sides = np.minimum(found[:, None, 2:], truth[None, :, 2:]) - np.maximum(found[:, None, :2], truth[None, :, :2])
    intersection = np.prod(np.maximum(sides, 0), axis=-1)
    own, its = (np.prod(box[:, 2:] - box[:, :2], axis=-1) for box in (found, truth))
    union = np.where(crowd[None], own[:, None], own[:, None] + its[None] - intersection)
    return np.where(intersection > 0, intersection, 0) / np.where(union > 0, union, 1)


def _precision(parts: Sequence[tuple[np.ndarray, ...]], count: int, levels: int) -> np.ndarray:
    """Mean precision [T] at all recalls, from the boxes found in each picture and the number of true ones."""
    if not parts:
        return np.zeros(levels)
    score = np.concatenate([part[0] for part in parts])
    right, ignored = (np.concatenate([part[i] for part in parts], axis=1) for i in (1, 2))
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(right[:, order], axis=1, dtype=np.float64)
    misses = np.cumsum(~right[:, order] & ~ignored[:, order], axis=1, dtype=np.float64)
    precision = hits / (hits + misses + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    means = []
    for recall, best in zip(hits / count, precision, strict=True):
        place = np.searchsorted(recall, _RECALLS, side="left")
        means.append(np.where(place < len(best), best[np.minimum(place, len(best) - 1)], 0).mean())
    return np.asarray(means)


def _mean(values: np.ndarray) -> float:
    """Mean of what is not NaN; NaN if all is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
