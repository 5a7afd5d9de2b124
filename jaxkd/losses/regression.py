"""Losses of regressors, whose outputs are numbers: errors against labels, and against labels and a teacher."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.labels import check_numbers
from jaxkd.testing import (
    ALWAYS,
    BATCH_OF_ONE,
    CLASS_PERMUTATION_INVARIANT,
    DISTANCE,
    INDEPENDENT_ROWS,
    JOINT_SHIFT_INVARIANT,
    KEEPS_LEADING_AXES,
    LEADING_AXES,
    NON_NEGATIVE,
    SYMMETRIC,
    ZERO_AT_EQUALITY,
    declare,
)

__all__ = ["absolute_error", "huber", "squared_error", "teacher_bounded"]

_OF_NUMBERS = (
    *ALWAYS,
    KEEPS_LEADING_AXES,
    LEADING_AXES,
    INDEPENDENT_ROWS,
    BATCH_OF_ONE,
    JOINT_SHIFT_INVARIANT,
    CLASS_PERMUTATION_INVARIANT,
    NON_NEGATIVE,
)


@declare(lambda draw: (draw.vectors(), draw.vectors()), (*_OF_NUMBERS, *DISTANCE, SYMMETRIC), needs="numbers as labels")
def squared_error(outputs: ArrayLike, labels: ArrayLike, *, ignore: float | None = None) -> jax.Array:
    """Squared error of a regressor, averaged over its outputs.

    (1/D) sum_d (z_d - y_d)^2

    Against a teacher's outputs take `logits_mse`, of the same value.

    Args:
      outputs: [..., D] floating; or [B], of one output.
      labels: Numbers of the shape of the outputs. [B] goes with outputs [B, 1] too.
      ignore: Label that does not count, such as NaN: it is left out of the mean over the outputs. None for none.

    Returns:
      [...], or [B] for outputs [B], in squared units of the labels; 0 where every label is ignored.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      No paper.
    """
    return _mean_error(outputs, labels, ignore, jnp.square)


@declare(
    lambda draw: (draw.vectors(), draw.vectors()),
    (*_OF_NUMBERS, ZERO_AT_EQUALITY, SYMMETRIC),
    needs="numbers as labels",
)
def absolute_error(outputs: ArrayLike, labels: ArrayLike, *, ignore: float | None = None) -> jax.Array:
    """Absolute error of a regressor, averaged over its outputs.

    (1/D) sum_d |z_d - y_d|

    Args:
      outputs: [..., D] floating; or [B], of one output.
      labels: Numbers of the shape of the outputs. [B] goes with outputs [B, 1] too.
      ignore: Label that does not count, such as NaN: it is left out of the mean over the outputs. None for none.

    Returns:
      [...], or [B] for outputs [B], in units of the labels; 0 where every label is ignored.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      No paper.
    """
    return _mean_error(outputs, labels, ignore, numerics.safe_abs)


@declare(lambda draw: (draw.vectors(), draw.vectors()), (*_OF_NUMBERS, *DISTANCE, SYMMETRIC), needs="numbers as labels")
def huber(outputs: ArrayLike, labels: ArrayLike, *, delta: ArrayLike = 1.0, ignore: float | None = None) -> jax.Array:
    """Huber's error of a regressor, averaged over its outputs: squared where it is small, absolute where it is large.

    (1/D) sum_d h(z_d - y_d),  h(e) = e^2 / 2 for |e| <= delta, else delta (|e| - delta / 2)

    At delta = 1 this is the "smooth L1" of object detectors.

    Args:
      outputs: [..., D] floating; or [B], of one output.
      labels: Numbers of the shape of the outputs. [B] goes with outputs [B, 1] too.
      delta: delta > 0, in units of the labels, a scalar or an array over leading axes.
      ignore: Label that does not count, such as NaN: it is left out of the mean over the outputs. None for none.

    Returns:
      [...], or [B] for outputs [B]; 0 where every label is ignored.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics 1964,
      https://doi.org/10.1214/aoms/1177703732
    """

    def error(e: jax.Array) -> jax.Array:
        bound = numerics.per_example(delta, e)
        inner = jnp.clip(e, -bound, bound)
        return inner * (e - inner / 2)

    return _mean_error(outputs, labels, ignore, error)


@declare(
    lambda draw: (draw.vectors(), draw.vectors(scale=0.5), draw.vectors()),
    (*_OF_NUMBERS,),
    needs="numbers as labels",
)
def teacher_bounded(
    student_outputs: ArrayLike,
    teacher_outputs: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.0,
    ignore: float | None = None,
) -> jax.Array:
    """Teacher-bounded regression: the squared error of a student, as long as it is not better than its teacher's.

    ||z_s - y||^2 where ||z_s - y||^2 + m > ||z_t - y||^2, else 0

    The teacher's outputs are a bound and no target, for a regressor may be wrong in any direction. The paper adds this
    to the error against the labels (`huber`), with the weight 0.5.

    Args:
      student_outputs: [..., D] floating; or [B], of one output.
      teacher_outputs: Floating, of the same shape.
      labels: Numbers of the same shape. [B] goes with outputs [B, 1] too.
      margin: m >= 0, a scalar or an array over leading axes.
      ignore: Label that does not count, such as NaN: it is left out of the sums over the outputs. None for none.

    Returns:
      [...], or [B] for outputs [B], in squared units of the labels.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Chen, Choi, Yu, Han, Chandraker, "Learning Efficient Object Detection Models with Knowledge Distillation", NeurIPS
      2017, https://papers.nips.cc/paper/6676-learning-efficient-object-detection-models-with-knowledge-distillation
    """
    s, t = numerics.promote(student_outputs, teacher_outputs)
    numerics.check_same_shape(s, t, "outputs")
    y = check_numbers(s, labels, ignore)
    s, t = y.select(s, t)
    one, bound = (y.mark(jnp.square(x - y.values)) for x in (s, t))
    if s.ndim > 1:
        one, bound = (jnp.sum(x, axis=-1) for x in (one, bound))
    # Not "larger", so that a teacher that is NaN is seen.
    within = one + numerics.per_example(margin, one) <= bound
    return jnp.where(within, 0, one) + 0 * bound


def _mean_error(
    outputs: ArrayLike, labels: ArrayLike, ignore: float | None, error: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Mean over the last axis of an error of each output; errors [B] of one output stay."""
    floating = jnp.issubdtype(getattr(labels, "dtype", np.float32), jnp.floating)
    z = numerics.promote(outputs, labels)[0] if floating else numerics.promote(outputs)[0]
    y = check_numbers(z, labels, ignore)
    (z,) = y.select(z)
    values = y.mark(error(z - y.values))
    if values.ndim < 2:
        return values
    if y.ignored is None:
        return jnp.mean(values, axis=-1)
    return jnp.sum(values, axis=-1) / jnp.maximum(jnp.sum(y.counts, axis=-1, dtype=values.dtype), 1)
