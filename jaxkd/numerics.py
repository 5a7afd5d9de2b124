"""Safe primitives under every loss: finite values and gradients where the naive formula has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd.kernels.convolution import convolve
from jaxkd.labels import check_classes


def promote(*arrays: ArrayLike) -> tuple[jax.Array, ...]:
    """Casts floating arrays to one dtype of at least float32 (float64 stays float64).

    Args:
      *arrays: Arrays of any floating or integer dtype and any shape.

    Returns:
      The same arrays, in the order given, in float32 or, if any is float64, in float64.
    """
    converted = [jnp.asarray(a) for a in arrays]
    wide = any(a.dtype in (jnp.float64, jnp.complex128) for a in converted)
    return tuple(a.astype(jnp.float64 if wide else jnp.float32) for a in converted)


def check_same_shape(student: jax.Array, teacher: jax.Array, what: str) -> None:
    """Raises ValueError, naming both shapes, unless they are equal.

    Args:
      student: Array of the student's side.
      teacher: Array of the teacher's side.
      what: Name of the arrays for the message ("logits", "features"). "logits" go through a softmax, and need two
        classes; those that do not are "outputs".

    Raises:
      ValueError: If the shapes differ, or logits have one class.
    """
    if jnp.shape(student) == jnp.shape(teacher):
        if what == "logits":
            check_classes(student)
        return
    s, t = tuple(jnp.shape(student)), tuple(jnp.shape(teacher))
    if what in ("logits", "outputs") and s and t and s[:-1] == t[:-1]:
        raise ValueError(
            f"student and teacher have different numbers of classes ({s[-1]} and {t[-1]}, logits {s} and {t}): "
            "give both the same classes, or distil through features instead of logits."
        )
    hint = "project one side to the other" if what == "features" else "make both models see the same batch"
    raise ValueError(f"student {what} have shape {s} but teacher {what} have shape {t}: {hint}.")


def per_example(value: ArrayLike, like: jax.Array) -> jax.Array:
    """Casts a hyper-parameter to the dtype of `like` and appends axes until it broadcasts against it from the left.

    Args:
      value: A float, or an array whose axes are the leading axes of `like`.
      like: The array that it will be combined with.

    Returns:
      Array of `like`'s dtype, scalar or of `like`'s rank.
    """
    v = jnp.asarray(value, like.dtype)
    return v if v.ndim == 0 else v.reshape(v.shape + (1,) * (like.ndim - v.ndim))


def safe_sqrt(x: jax.Array) -> jax.Array:
    """Square root whose gradient at 0 is 0 instead of infinite.

    Args:
      x: Non-negative array.

    Returns:
      sqrt(x), same shape and dtype.
    """
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def safe_norm(x: jax.Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> jax.Array:
    """Euclidean norm whose gradient at the zero vector is 0 instead of NaN.

    Args:
      x: Array.
      axis: Axes that are reduced; all of them by default.
      keepdims: Whether the reduced axes stay, with length one.

    Returns:
      ||x||_2 along `axis`.
    """
    return safe_sqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=keepdims))


def xlogy(x: jax.Array, y: jax.Array) -> jax.Array:
    """Product x log(y), which is 0 with zero gradients where x is 0, whatever y is.

    Args:
      x: Array.
      y: Array that broadcasts against x.

    Returns:
      x * log(y).
    """
    nonzero = x != 0
    return jnp.where(nonzero, x * jnp.log(jnp.where(nonzero, y, 1)), 0)


def weighted_softplus(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Product weight * log(1 + exp(x)), which is 0 with zero gradients where the weight is 0 or x is -inf.

    Args:
      x: Array.
      weight: Array of the same shape, not negative.

    Returns:
      Array of that shape.
    """
    counts = (weight != 0) & ~jnp.isneginf(x)
    return jnp.where(counts, weight * jax.nn.softplus(jnp.where(counts, x, 0)), 0)


def check_temperature(temperature: Any, name: str = "temperature") -> None:
    """Raises ValueError for a temperature, known before it is traced, that is no positive number.

    Args:
      temperature: The temperature, or an array of them.
      name: Its name, for the message.
    """
    if isinstance(temperature, jax.core.Tracer) or (isinstance(temperature, float) and 0 < temperature < np.inf):
        return
    T = np.asarray(temperature)
    if T.dtype.kind in "OUSbc" or not np.all(np.isfinite(T) & (T > 0)):
        raise ValueError(f"{name} is {temperature!r}, which divides logits: give a positive number, such as 4.0.")


def log_softmax(logits: jax.Array, temperature: ArrayLike = 1.0) -> jax.Array:
    """Log-softmax of logits / T over the last axis; classes masked with -inf stay -inf and get zero gradients.

    A row whose classes are all masked has no distribution: it stays -inf, and a divergence of two such rows is 0.

    Args:
      logits: [..., K].
      temperature: T > 0, a scalar or an array over leading axes of `logits`.

    Returns:
      Log-probabilities [..., K].
    """
    check_temperature(temperature)
    masked = jnp.isneginf(logits)
    scaled = jnp.where(masked, 0, logits) / per_example(temperature, logits)
    empty = jnp.all(masked, axis=-1, keepdims=True)
    log_p = jax.nn.log_softmax(jnp.where(masked & ~empty, -jnp.inf, scaled), axis=-1)
    return jnp.where(empty, -jnp.inf, log_p)


def kl_divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """KL(p || q) over the last axis, from normalised log-probabilities; exactly 0 for p = q.

    KL = sum_k p_k d_k - q_k (exp(d_k) - 1),  d = log p - log q

    The second part sums to 0. It makes every addend second-order in d, so that the value of two close distributions
    does not drown in the rounding of their logarithms (at T = 20 the plain sum loses three more digits).

    Args:
      log_p: [..., K], may hold -inf.
      log_q: [..., K], may hold -inf; where q = 0 < p the divergence is infinite, as it should be.

    Returns:
      [...] in nats.
    """
    has_p, has_q = ~jnp.isneginf(log_p), ~jnp.isneginf(log_q)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    d = jnp.where(has_p & has_q, jnp.where(has_p, log_p, 0) - jnp.where(has_q, log_q, 0), 0)
    near = d < 1
    excess = jnp.where(near, q * jnp.expm1(jnp.where(near, d, 0)), p - q)
    addends = jnp.where(has_p, jnp.where(has_q, p * d - excess, jnp.inf), q)
    return jnp.sum(addends, axis=-1)


def masked(mask: ArrayLike | None, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays with zeros where a mask is 0, so that NaN or Inf there reaches no value and no gradient of a loss.

    It stands before the loss. Leaving out a loss's values afterwards leaves 0 * NaN, which is NaN, in its gradient.

    Args:
      mask: Booleans or non-negative weights over the leading axes of each array, or None, which changes nothing.
      *arrays: Arrays of any dtype.

    Returns:
      The same arrays, in the order given.
    """
    if mask is None:
        return arrays
    kept = jnp.asarray(mask).astype(bool)
    return tuple(jnp.where(jnp.expand_dims(kept, tuple(range(kept.ndim, x.ndim))), x, 0) for x in arrays)


def masked_mean(values: jax.Array, mask: ArrayLike | None = None) -> jax.Array:
    """Mean over all elements, weighted by a mask if there is one; 0 where nothing is left.

    sum(mask * values) / sum(mask), so that padding never changes the value. If what is masked may hold NaN, apply
    `masked` to the inputs of the loss too, whose gradient would be NaN.

    Args:
      values: [B, ...].
      mask: Booleans or non-negative weights over the leading axes of `values`, or None.

    Returns:
      Scalar.
    """
    if mask is None:
        return jnp.mean(values)
    w = jnp.broadcast_to(per_example(mask, values), values.shape)
    total = jnp.sum(w)
    # The inner where keeps a NaN of a padded row out of the sum and of its gradient.
    return jnp.sum(w * jnp.where(w > 0, values, 0)) / jnp.where(total > 0, total, 1)


def pairwise_squared_distances(x: jax.Array) -> jax.Array:
    """Squared Euclidean distances between the rows of x, exactly 0 on the diagonal and for rows equal to rounding.

    Args:
      x: [B, D].

    Returns:
      [B, B].
    """
    squared = jnp.sum(jnp.square(x[:, None, :] - x[None, :, :]), axis=-1)
    return jnp.where(_apart(squared, x), squared, 0)


def pairwise_directions(x: jax.Array) -> jax.Array:
    """Unit vectors from each row of x to each other: (x_j - x_i) / ||x_j - x_i||.

    Args:
      x: [B, D].

    Returns:
      [B, B, D]; 0 from a row to itself, and between rows equal to rounding.
    """
    difference = x[None, :, :] - x[:, None, :]
    squared = jnp.sum(jnp.square(difference), axis=-1)
    apart = _apart(squared, x)
    norm = jnp.sqrt(jnp.where(apart, squared, 1))
    return jnp.where(apart[..., None], difference, 0) / norm[..., None]


def _apart(squared: jax.Array, x: jax.Array) -> jax.Array:
    """Pairs of different rows of x [B, D], by their squared distances [B, B].

    A program may compute a row twice with different rounding, so that the difference of a row and itself, or of two
    equal rows, is a few roundings of the row's own size instead of 0. Rows that are not finite count as different, so
    that a NaN is seen in the result.
    """
    size = jnp.sum(jnp.square(x), axis=-1)
    equal = _is_rounding(jnp.sqrt(squared), jnp.sqrt(jnp.maximum(size[:, None], size[None, :])))
    return ~equal & ~jnp.eye(len(x), dtype=bool)


def difference(x: jax.Array, y: jax.Array, axis: int | tuple[int, ...] = -1) -> jax.Array:
    """Difference x - y along `axis`, or 0 with no gradient where x and y are equal to rounding.

    For norms and absolute values of a difference, whose gradient at equality would be the direction of a rounding
    error: a program may compute two equal arrays with different rounding.

    Args:
      x: Array.
      y: Array like x.
      axis: Axes that are taken together, over which the size of the rounding is measured.

    Returns:
      Array like x.
    """
    d = x - y
    largest, *sizes = (jnp.max(jnp.abs(a), axis=axis, keepdims=True) for a in (d, x, y))
    return jnp.where(_is_rounding(largest, jnp.maximum(*sizes)), 0, d)


def centred(x: jax.Array, axis: int | tuple[int, ...] = -1, where: jax.Array | None = None) -> jax.Array:
    """x less its mean along `axis`, or 0 with no gradient where x is constant to rounding.

    Args:
      x: Array.
      axis: Axes of the mean.
      where: Booleans like x of the entries that count; the others are 0 in the result. All of them if None.

    Returns:
      Array like x.
    """
    kept = jnp.ones(x.shape, bool) if where is None else where
    x = jnp.where(kept, x, 0)
    count = jnp.maximum(jnp.sum(kept, axis=axis, keepdims=True, dtype=x.dtype), 1)
    d = jnp.where(kept, x - jnp.sum(x, axis=axis, keepdims=True) / count, 0)
    largest, size = (jnp.max(jnp.abs(a), axis=axis, keepdims=True) for a in (d, x))
    return jnp.where(_is_rounding(largest, size), 0, d)


def _is_rounding(difference: jax.Array, size: jax.Array) -> jax.Array:
    """True where a difference of numbers of a given size is 0 up to rounding; false where either is not finite."""
    return (difference == 0) | (difference < 32 * jnp.finfo(difference.dtype).eps * size)


def unit(x: jax.Array, axis: int | tuple[int, ...] = -1, floor: float = 1e-12) -> jax.Array:
    """Vector of length one, x / max(||x||_2, floor); the zero vector stays, with a zero gradient instead of 1 / floor.

    Args:
      x: Array.
      axis: Axes that the norm is taken over.
      floor: Least divisor.

    Returns:
      Array like x.
    """
    norm = safe_norm(x, axis=axis, keepdims=True)
    return jnp.where(norm > 0, x, 0) / jnp.maximum(norm, floor)


def adaptive_average_pool(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Averages a map to a given size, as adaptive pooling in PyTorch.

    Window i of r covers rows floor(i H / r) .. ceil((i + 1) H / r) - 1.

    Args:
      x: [B, H, W, C].
      size: (h, w) of the result; may exceed (H, W), then rows are repeated.

    Returns:
      [B, h, w, C].
    """
    if x.shape[1:3] == tuple(size):
        return x
    rows, columns = (jnp.asarray(_windows(n, r), x.dtype) for n, r in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("bhwc,ih,jw->bijc", x, rows, columns, precision="highest")


def _windows(length: int, count: int) -> np.ndarray:
    """Averaging matrix [count, length] of adaptive pooling."""
    i, position = np.arange(count)[:, None], np.arange(length)[None]
    inside = (position >= i * length // count) & (position < -(-(i + 1) * length // count))
    return inside / inside.sum(axis=1, keepdims=True)


def conv2d(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *, stride: int = 1, padding: int | None = None
) -> jax.Array:
    """Convolution of images with a kernel, as a cross-correlation.

    Args:
      x: [B, H, W, C].
      kernel: [h, w, C, D].
      bias: [D], or None.
      stride: Along both axes.
      padding: Zeros on each side, or None for as many as keep the size at stride 1.

    Returns:
      [B, H', W', D].
    """
    y = convolve(x, kernel, (stride, stride), "SAME" if padding is None else [(padding, padding)] * 2)
    return y if bias is None else y + jnp.expand_dims(bias, (0, 1, 2))


def batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """Batch norm in training mode, which couples the batch: biased variance over all axes but the last.

    scale (x - mean) / sqrt(var + epsilon) + bias

    Args:
      x: [B, ..., C].
      scale: [C].
      bias: [C].
      epsilon: Added to the variance.

    Returns:
      Array like x.
    """
    axes = tuple(range(x.ndim - 1))
    centred = x - jnp.mean(x, axis=axes, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=axes, keepdims=True)
    return jnp.expand_dims(scale, axes) * centred * jax.lax.rsqrt(variance + epsilon) + jnp.expand_dims(bias, axes)


def pick(x: jax.Array, labels: jax.Array) -> jax.Array:
    """Entry of each row that its label selects.

    Args:
      x: [..., K].
      labels: [...] integers in 0..K-1.

    Returns:
      x[..., labels], [...].
    """
    return jnp.take_along_axis(x, labels[..., None], axis=-1)[..., 0]


def match_resolution(
    one: ArrayLike,
    other: ArrayLike,
    pool: Callable[[jax.Array, tuple[int, int]], jax.Array] = adaptive_average_pool,
) -> tuple[jax.Array, jax.Array]:
    """Pools two feature maps to the smaller height and the smaller width of the two.

    Args:
      one: [B, H, W, C] floating.
      other: [B, H', W', C'] floating.
      pool: (map, (h, w)) -> map of that size.

    Returns:
      Both, with height min(H, H') and width min(W, W').

    Raises:
      ValueError: If they are no maps, or of different batches.
    """
    x, y = promote(one, other)
    if x.ndim != 4 or y.ndim != 4 or len(x) != len(y):
        raise ValueError(
            f"feature maps have shapes {x.shape} and {y.shape}: give two of shape [B, H, W, C] from the same batch."
        )
    size = (min(x.shape[1], y.shape[1]), min(x.shape[2], y.shape[2]))
    return pool(x, size), pool(y, size)


def safe_abs(x: jax.Array) -> jax.Array:
    """Absolute value whose gradient at 0 is 0, where jnp.abs has 1.

    Args:
      x: Array.

    Returns:
      |x|, same shape and dtype.
    """
    return x * jnp.sign(x)


def reverse_gradient(x: jax.Array, strength: ArrayLike = 1.0) -> jax.Array:
    """Identity with the derivative -strength, so that minimising a loss of the result maximises it in x.

    Args:
      x: Array, floating.
      strength: lambda, a scalar or of the shape of x.

    Returns:
      x.
    """
    still = jax.lax.stop_gradient(x)
    return still - jnp.asarray(strength, x.dtype) * (x - still)
