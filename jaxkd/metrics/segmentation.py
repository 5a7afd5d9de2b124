"""Metrics of segmentation, from one confusion matrix of pixels: intersection over union, accuracy of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.labels import check_labels, label_field
from jaxkd.metrics.accumulators import module_of, ratio, weights_of
from jaxkd.metrics.classification import accuracy
from jaxkd.types import Batch, Metric, Outputs


class IoU(NamedTuple):
    """Accumulator of a confusion matrix, whose entry (i, j) counts the pixels of class i predicted as j.

    Attributes:
      matrix: Counts [..., K, K], int32, exact up to 2^31 - 1 pixels of an entry.
      outside: Number of pixels [...] whose label is none of the classes, int32; one of them makes all values NaN.
    """

    matrix: jax.Array
    outside: jax.Array

    def value(self) -> Any:
        """Mean intersection over union of the classes that labels or predictions have; 0 if there are no pixels.

        Returns:
          Scalar in 0..1, or [S] for stacked students.
        """
        xp = module_of(*self)
        both, either = self._parts()
        present = either > 0
        mean = ratio(xp.where(present, ratio(both, either), 0).sum(axis=-1), present.sum(axis=-1))
        return xp.where(xp.asarray(self.outside) > 0, xp.nan, mean)

    def per_class(self) -> Any:
        """Intersection over union of each class, TP / (TP + FP + FN); NaN of a class that neither side has.

        Returns:
          Array [..., K] in 0..1.
        """
        xp = module_of(*self)
        both, either = self._parts()
        known = (either > 0) & (xp.asarray(self.outside)[..., None] == 0)
        return xp.where(known, ratio(both, either), xp.nan)

    def accuracy(self) -> Any:
        """Fraction of the pixels whose class is right; 0 if there are none.

        Returns:
          Scalar in 0..1, or [S] for stacked students.
        """
        xp = module_of(*self)
        matrix = xp.asarray(self.matrix)
        mean = ratio(xp.trace(matrix, axis1=-2, axis2=-1), matrix.sum(axis=(-2, -1)))
        return xp.where(xp.asarray(self.outside) > 0, xp.nan, mean)

    def _parts(self) -> tuple[Any, Any]:
        """Sizes [..., K] of the intersection and of the union of labels and predictions of each class."""
        xp = module_of(*self)
        # On the host sums of counts may exceed int32; inside a program there may be no wider type.
        matrix = xp.asarray(self.matrix, np.int64 if xp is np else None)
        both = xp.diagonal(matrix, axis1=-2, axis2=-1)
        return both, matrix.sum(axis=-1) + matrix.sum(axis=-2) - both


def miou(student: Outputs, teacher: Outputs, batch: Batch) -> IoU:
    """Mean intersection over union of the classes; `metrics.ignoring` leaves out the pixels of one label.

    Pixels count alike over all images of a split, as the field's benchmarks have it: it is no mean over images.

    Args:
      student: Outputs with logits [B, H, W, K].
      teacher: Not used.
      batch: Holds `label`, integers [B, H, W]; its `mask`, if it has one, [B] or [B, H, W], says which pixels count.

    Returns:
      Counts, whose `value()` is the mean, `per_class()` the same of each class.

    Raises:
      ValueError: If labels and logits do not fit together.

    Reference:
      Everingham et al., "The Pascal Visual Object Classes Challenge: A Retrospective", IJCV 2015,
      https://doi.org/10.1007/s11263-014-0733-5
    """
    label, K = check_labels(student.logits, label_field(batch, "label")), student.logits.shape[-1]
    counted = weights_of(label.values.astype(jnp.float32), batch) > 0
    places = label.values * K + jnp.argmax(student.logits, axis=-1)
    counts = jnp.zeros(K * K, jnp.int32).at[places.ravel()].add((counted & label.valid).ravel().astype(jnp.int32))
    return IoU(counts.reshape(K, K), jnp.sum(counted & ~label.valid, dtype=jnp.int32))


SEGMENTATION: Mapping[str, Metric] = {"miou": miou, "accuracy": accuracy}
"""Metrics of segmentation; `accuracy` is that of pixels."""
