"""Nearest neighbours: a measure of features that trains nothing."""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike

_ROWS = 1024
"""Rows that are compared with the bank at a time."""


def nearest_neighbours(
    features: ArrayLike,
    bank: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """Shares of the classes among the nearest neighbours by cosine, weighed by exp(cos / T), as DINO measures features.

    share[c] = sum_{j in N(i), y_j = c} exp(cos(x_i, b_j) / T) / sum_{j in N(i)} exp(cos(x_i, b_j) / T)

    Args:
      features: [N, D] of the examples to classify.
      bank: [M, D] of labelled examples.
      labels: [M] their classes, 0..K-1.
      num_classes: K.
      neighbours: Number of neighbours; all of the bank if it has fewer.
      temperature: T > 0.

    Returns:
      [N, K], float64, sums of 1.

    Raises:
      ValueError: If the shapes do not fit, a label is outside 0..K-1, or a number is not positive.

    Reference:
      Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018,
      https://arxiv.org/abs/1805.01978; Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV
      2021, https://arxiv.org/abs/2104.14294
    """
    x, b, y = np.asarray(features), np.asarray(bank), np.asarray(labels)
    if x.ndim != 2 or b.ndim != 2 or x.shape[1] != b.shape[1] or y.shape != b.shape[:1] or not len(b):
        raise ValueError(
            f"features have shape {x.shape}, the bank {b.shape} and its labels {y.shape}: give [N, D], [M, D] and [M] "
            "with at least one row in the bank."
        )
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= num_classes:
        raise ValueError(f"labels are {y.min()}..{y.max()} of {y.dtype}: give whole numbers in 0..{num_classes - 1}.")
    if neighbours < 1 or not temperature > 0:
        raise ValueError(f"neighbours={neighbours} and temperature={temperature}: give numbers above 0.")
    count, shares = min(neighbours, len(b)), np.zeros((len(x), num_classes))
    x, b = _unit(x), _unit(b)
    for start in range(0, len(x), _ROWS):
        cosines = x[start : start + _ROWS] @ b.T
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        near = np.take_along_axis(cosines, nearest, axis=1)
        weights = np.exp((near - near.max(axis=1, keepdims=True)) / temperature)
        rows = np.arange(start, start + len(near))[:, None]
        np.add.at(shares, (np.broadcast_to(rows, nearest.shape), y[nearest]), weights)
    return shares / shares.sum(axis=1, keepdims=True)


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1 in at least float32; rows of zeros stay."""
    x = x.astype(np.result_type(x.dtype, np.float32))
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
