"""Labels: one rule for all losses and metrics of what a label may be, and of what becomes of one that is none.

A label of K classes is an integer in 0..K-1. Any other integer gives NaN, as value and as gradient: never a class of
its own, and never a constant. The label that `ignore` names gives 0 without a gradient instead, and terms and metrics
leave it out of their means. Integers that a device cannot hold are refused on the host, before they wrap to others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

ONE_CLASS = (
    "a softmax over one class is always 1, so there is nothing to learn from it or to measure. Give at least two "
    "classes; for yes or no with one logit use losses.binary_cross_entropy, losses.binary_kd and metrics.BINARY, for a "
    "number losses.squared_error, losses.logits_mse and metrics.REGRESSION."
)


class Labels(NamedTuple):
    """Labels that were checked against the outputs that they belong to.

    Attributes:
      values: Classes [...] in 0..K-1, or numbers of the shape of the outputs; 0 where the label is none.
      valid: Booleans of the same shape, true where the label is one.
      ignored: Booleans of the same shape, true where the label is the one to ignore; or None if there is none.
    """

    values: jax.Array
    valid: jax.Array
    ignored: jax.Array | None

    @property
    def counts(self) -> jax.Array:
        """Booleans of the shape of the labels, true where the label is not ignored."""
        return jnp.ones(self.values.shape, bool) if self.ignored is None else ~self.ignored

    def select(self, *sides: jax.Array) -> tuple[jax.Array, ...]:
        """Outputs with 0 where the label is ignored, so that nothing that stands there reaches a value or a gradient.

        Args:
          *sides: Arrays of the labels' shape, or with the class axis behind it.

        Returns:
          The same arrays, in the order given.
        """
        if self.ignored is None:
            return sides
        return tuple(
            jnp.where(jnp.expand_dims(self.ignored, tuple(range(self.ignored.ndim, s.ndim))), 0, s) for s in sides
        )

    def mark(self, values: jax.Array) -> jax.Array:
        """Values of a loss or a metric, made NaN where the label is none, and 0 where it is ignored.

        Args:
          values: Array of the labels' shape, floating.

        Returns:
          Array like it.
        """
        fits = self.valid if self.ignored is None else self.valid | self.ignored
        # The product makes the gradient NaN; of values that were booleans a compiler makes it a choice without NaN.
        product = values * jnp.where(fits, 1, jnp.nan).astype(values.dtype)
        marked = jnp.where(fits, product, jnp.nan)
        return marked if self.ignored is None else jnp.where(self.ignored, 0, marked)


def check_range(what: str, values: Any) -> None:
    """Raises unless a device holds the same integers as an array on the host.

    Args:
      what: Name of the values, in the plural, for the message.
      values: Array; one that is on a device already, or is traced, passes.

    Raises:
      ValueError: If an integer would wrap to another one.
    """
    if not isinstance(values, (np.ndarray, np.generic)) or values.dtype.kind not in "iu" or not values.size:
        return
    held = np.iinfo(jax.dtypes.canonicalize_dtype(values.dtype))
    lowest, highest = int(values.min()), int(values.max())
    if lowest < held.min or highest > held.max:
        wrong = highest if highest > held.max else lowest
        raise ValueError(
            f"{what} hold {wrong}, which would become another number in {held.dtype} on a device: give integers in "
            f"{held.min}..{held.max}, and classes in 0..K-1."
        )


def check_classes(logits: Any) -> None:
    """Raises unless logits have at least two classes.

    Args:
      logits: [..., K].

    Raises:
      ValueError: If K is less than 2.
    """
    shape = tuple(jnp.shape(logits))
    if not shape or shape[-1] < 2:
        raise ValueError(f"logits have shape {shape}, with no second class: {ONE_CLASS}")


def check_labels(logits: jax.Array, labels: ArrayLike, ignore: int | None = None) -> Labels:
    """Checks class numbers against logits.

    Args:
      logits: [..., K].
      labels: Integers or booleans [...] or [..., 1], one for each row of logits.
      ignore: The label of rows that do not count; none if None.

    Returns:
      The labels.

    Raises:
      ValueError: If there are less than two classes, the shapes do not fit, or the labels are no integers.
    """
    check_classes(logits)
    y, rows = _array("labels", labels), tuple(logits.shape[:-1])
    integer = jnp.issubdtype(y.dtype, jnp.integer) or y.dtype == bool
    if integer and y.shape == (*rows, 1):
        y = y[..., 0]
    if not integer or y.shape != rows:
        raise ValueError(
            f"labels have shape {y.shape} and dtype {y.dtype} but logits have shape {tuple(logits.shape)}: give "
            f"integers of shape {rows}, the number of each row's class{_instead(y, logits)}."
        )
    return of_classes(y, logits.shape[-1], ignore)


def of_classes(labels: jax.Array, classes: int, ignore: int | None = None) -> Labels:
    """Applies the rule to integers.

    Args:
      labels: [...] integers or booleans.
      classes: K.
      ignore: The label that does not count; none if None.

    Returns:
      The labels.
    """
    # No fewer bits than the labels have: a cast must not wrap them either.
    y = labels.astype(jnp.int64 if labels.dtype.itemsize > 4 else jnp.int32)
    valid = (y >= 0) & (y < classes)
    return Labels(jnp.where(valid, y, 0), valid, None if ignore is None else is_label(y, ignore))


def check_probabilities(logits: jax.Array, labels: ArrayLike) -> Labels:
    """Checks soft labels against logits; a row that does not sum to 1 within 5 % is no distribution, and gives NaN.

    Args:
      logits: [..., K].
      labels: Probabilities [..., K], floating.

    Returns:
      The probabilities, whose `valid` has one entry for each row.

    Raises:
      ValueError: If there are less than two classes, the shapes differ, or the labels are several classes of a row.
    """
    check_classes(logits)
    y = _array("labels", labels)
    if y.shape != logits.shape or not jnp.issubdtype(y.dtype, jnp.floating):
        rows = tuple(logits.shape[:-1])
        raise ValueError(
            f"labels have shape {y.shape} and dtype {y.dtype} but logits have shape {tuple(logits.shape)}: give "
            f"integers of shape {rows} or probabilities of shape {tuple(logits.shape)}, which are floats"
            f"{_instead(y, logits)}."
        )
    p = y.astype(logits.dtype)
    valid = jnp.abs(jnp.sum(p, axis=-1) - 1) <= 0.05
    sums = np.asarray(labels).sum(-1, dtype=np.float64) if isinstance(labels, (np.ndarray, list, tuple)) else None
    if sums is not None and not (np.abs(sums - 1) <= 0.05).all():
        raise ValueError(
            f"soft labels are probabilities that sum to 1 in each row, but these sum to {sums.min():.3g} to "
            f"{sums.max():.3g}: for several labels of one example use losses.binary_cross_entropy."
        )
    return Labels(p, valid, None)


def check_binary(logits: jax.Array, labels: ArrayLike, ignore: float | None = None) -> Labels:
    """Checks yes-or-no labels against logits, one for each.

    Args:
      logits: [B] or [..., L].
      labels: Integers or booleans 0 and 1, or probabilities in 0..1, of the logits' shape; a last axis of one may be
        missing on either side.
      ignore: The label of entries that do not count, such as -1 or NaN; none if None.

    Returns:
      The labels in the dtype and shape of the logits.

    Raises:
      ValueError: If the shapes do not fit.
    """
    y = _like("logits", logits, labels, "class numbers belong to losses.cross_entropy, or as one-hot rows here")
    valid = (y >= 0) & (y <= 1)  # which integers and booleans are that are 0 or 1
    ignored = None if ignore is None else is_label(y, ignore)
    return Labels(jnp.where(valid, y.astype(logits.dtype), 0), valid, ignored)


def check_numbers(outputs: jax.Array, labels: ArrayLike, ignore: float | None = None) -> Labels:
    """Checks the numbers that a regression predicts, one for each output.

    Args:
      outputs: [B] or [..., D].
      labels: Floats or integers of the outputs' shape; a last axis of one may be missing on either side.
      ignore: The number of entries that do not count, such as NaN; none if None.

    Returns:
      The labels in the dtype and shape of the outputs; a number that is not finite is none.

    Raises:
      ValueError: If the shapes do not fit, or the labels are booleans.
    """
    y = _like("outputs", outputs, labels, "a regression needs one number for each output")
    if y.dtype == bool:
        raise ValueError(
            "labels of a regression are numbers, but these are booleans: use losses.binary_cross_entropy and "
            "metrics.BINARY, or cast them to float."
        )
    ignored = None if ignore is None else is_label(y, ignore)
    y = y.astype(outputs.dtype)
    valid = jnp.isfinite(y)
    return Labels(jnp.where(valid, y, 0), valid, ignored)


def label_field(batch: Mapping[str, Any], name: str = "label") -> Any:
    """Labels of a batch.

    Args:
      batch: The batch.
      name: Its field.

    Returns:
      The labels.

    Raises:
      ValueError: If the batch has no such field.
    """
    if name not in batch:
        has = ", ".join(sorted(map(str, batch))) or "nothing"
        raise ValueError(f"the batch has no field {name!r} to measure by: it has {has}; add it, or measure without it.")
    return batch[name]


def leave_out(batch: Mapping[str, Any], field: str, ignore: float, outputs: Any) -> dict[str, Any]:
    """A batch whose `mask` leaves out the labels to ignore, and whose label there is 0.

    Args:
      batch: The batch.
      field: Field with the labels.
      ignore: The label to ignore.
      outputs: Logits [B, ..., K] of which each row has a label, or [B, ..., L] of which each has one.

    Returns:
      The batch with other `mask` and label. The mask has an entry for each label.
    """
    y, shape = _array("labels", label_field(batch, field)), tuple(jnp.shape(outputs))
    ignored = is_label(y, ignore)
    counts = ~ignored
    if y.shape == (*shape[:-1], 1) and shape[-1] > 1:
        counts = counts[..., 0]
    elif (*y.shape, 1) == shape:
        counts = counts[..., None]
    return with_mask({**batch, field: jnp.where(ignored, 0, y).astype(y.dtype)}, counts)


def with_mask(batch: Mapping[str, Any], counts: jax.Array) -> dict[str, Any]:
    """A batch with a mask, or with what its own mask keeps of it.

    Args:
      batch: The batch; its field `mask`, if there is one, has leading axes of `counts`.
      counts: Booleans [B, ...].

    Returns:
      The batch with another `mask`.
    """
    if "mask" in batch:
        own = jnp.asarray(batch["mask"])
        own = jnp.expand_dims(own, tuple(range(own.ndim, counts.ndim)))
        counts = jnp.where(jnp.expand_dims(counts, tuple(range(counts.ndim, own.ndim))), own, jnp.zeros_like(own))
    return {**batch, "mask": counts}


def is_label(labels: jax.Array, ignore: float) -> jax.Array:
    """Compares labels with one of them.

    Args:
      labels: Array of integers, floats or booleans.
      ignore: The label; NaN is equal to NaN here.

    Returns:
      Booleans of the labels' shape.

    Raises:
      ValueError: If the labels are integers and the one is not.
    """
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return jnp.isnan(labels) if ignore != ignore else labels == ignore
    return labels.astype(jnp.int64 if labels.dtype.itemsize > 4 else jnp.int32) == _whole(ignore)


def are_classes(logits: jax.Array, labels: ArrayLike) -> bool:
    """True unless labels are probabilities: floats with an axis for the classes.

    Args:
      logits: [..., K].
      labels: Array, or numbers in lists.

    Returns:
      A static answer, from shape and dtype.
    """
    given: Any = labels if hasattr(labels, "dtype") else np.asarray(labels)
    return not jnp.issubdtype(given.dtype, jnp.floating) or given.ndim < logits.ndim


def _array(what: str, values: ArrayLike) -> jax.Array:
    """Labels as an array of JAX's; those of the host are checked first."""
    host = values if hasattr(values, "dtype") else np.asarray(values)
    check_range(what, host)
    if getattr(host.dtype, "kind", "") in "OSU":
        raise ValueError(f"{what} have dtype {host.dtype}, expected numbers: give each class a number in 0..K-1.")
    return jnp.asarray(host)


def _like(what: str, outputs: jax.Array, labels: ArrayLike, hint: str) -> jax.Array:
    """Labels of the outputs' shape: [B] and [B, 1] stand for each other."""
    y = _array("labels", labels)
    if outputs.shape == (*y.shape, 1):
        y = y[..., None]
    elif y.shape == (*outputs.shape, 1):
        y = y[..., 0]
    if y.shape != outputs.shape:
        raise ValueError(
            f"labels have shape {y.shape} but {what} have shape {tuple(outputs.shape)}: give one label for each of "
            f"them; {hint}."
        )
    return y


def _whole(ignore: Any) -> Any:
    """The label to ignore as an integer."""
    if isinstance(ignore, bool) or not isinstance(ignore, (int, float, np.integer)) or not _fits(ignore):
        raise ValueError(f"ignore={ignore!r} is no label: give one integer, such as 255, -1 or -100.")
    return int(ignore)


def _fits(number: Any) -> bool:
    return math.isfinite(number) and number == int(number) and -(2**31) <= number < 2**31


def _instead(y: jax.Array, logits: jax.Array) -> str:
    """Advice for labels of another kind."""
    if y.shape == logits.shape:
        if jnp.issubdtype(y.dtype, jnp.floating):
            return ", as argmax(labels, axis=-1) of probabilities"
        return (
            " (argmax(labels, axis=-1) of one-hot rows); several labels of a row belong to losses.binary_cross_entropy"
        )
    if jnp.issubdtype(y.dtype, jnp.floating) and y.shape in (logits.shape[:-1], (*logits.shape[:-1], 1)):
        return ", cast with astype(int); numbers to predict belong to losses.squared_error"
    return ""
