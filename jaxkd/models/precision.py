"""Models in other number formats: bfloat16 compute over float32 parameters, and teachers with small weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxkd.models.frozen import FROZEN
from jaxkd.patterns import matches
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables, as_variables, leaf_name

HEAD = r"(^|/)head(s|_distillation)?(/|$)"
"""Pattern of the last layers' paths in the networks of this library."""


def in_dtype(model: Model, dtype: DTypeLike = jnp.bfloat16, *, keep: str = HEAD) -> Model:
    """Model that computes in another format, with params, running statistics and gradients in float32.

    Logits are float32 if the last layer is kept (the default); losses compute in float32 whatever the features' format.

    Args:
      model: Any model.
      dtype: Format of activations, and of weights where they are used.
      keep: Regular expression, searched in paths such as "head/kernel": these params, and
        computations with them, stay in their format.

    Returns:
      A model with the same variables.

    Raises:
      ValueError: If the format has no floating point.
    """
    _check_floating(dtype)

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        variables = as_variables(variables)
        low, state = _map_params(variables.params, lambda x: x.astype(dtype), keep), variables.state
        still = {FROZEN: state[FROZEN]} if isinstance(state, dict) and FROZEN in state else {}
        if still:  # params that are not trained are computed with as those that are, and stay as they are
            state = {**state, FROZEN: _map_params(still[FROZEN], lambda x: x.astype(dtype), keep)}
        fields = {name: _floating(x, lambda x: x.astype(dtype)) for name, x in batch.items()}
        outputs, state = model.apply(Variables(low, state), fields, key, train)
        state = {**state, **still} if still else state
        return outputs, jax.tree.map(lambda new, old: new.astype(old.dtype), state, variables.state)

    return model._replace(apply=apply)


def cast(variables: Variables, dtype: DTypeLike = jnp.bfloat16, *, keep: str = HEAD) -> Variables:
    """Variables of a teacher with params in a smaller format, for half the memory; use with `in_dtype(teacher)`.

    Args:
      variables: The model's variables.
      dtype: Format of the params.
      keep: Regular expression of paths that stay as they are.

    Returns:
      The variables; running statistics stay as they are.

    Raises:
      ValueError: If the format has no floating point, or a param is not finite in it (outside `jit`).
    """
    _check_floating(dtype)
    variables = as_variables(variables)
    low = Variables(_map_params(variables.params, lambda x: x.astype(dtype), keep), variables.state)
    _check_finite(variables, low)
    return low


@flax.struct.dataclass
class Int8:
    """Weights as integers with one scale for each output channel.

    w ~ values * scale

    Attributes:
      values: int8, the shape of the weights.
      scale: float32, [1, ..., 1, C].
    """

    values: jax.Array
    scale: jax.Array


def to_int8(variables: Variables, *, keep: str = HEAD) -> Variables:
    """Variables of a teacher with kernels of 8 bits, for a quarter of the memory; use with `from_int8(teacher)`.

    values = round(w / scale), scale = max |w| / 127 over all axes but the last, so |w - values * scale| <= scale / 2

    A channel with a value that is not finite is NaN as a whole.

    Args:
      variables: The model's variables.
      keep: Regular expression of paths that stay as they are; so do biases and scales of norms.

    Returns:
      The variables, with `Int8` in place of each kernel.

    Raises:
      ValueError: If a kernel holds a value that is not finite (outside `jit`).
    """

    variables = as_variables(variables)

    def quantize(w: jax.Array) -> Any:
        if w.ndim < 2:
            return w
        scale = jnp.max(jnp.abs(w), axis=tuple(range(w.ndim - 1)), keepdims=True).astype(jnp.float32) / 127
        scale = jnp.where(scale == 0, 1, scale)  # NaN stays NaN
        scale = jnp.where(jnp.isfinite(scale), scale, jnp.nan)
        return Int8(jnp.round(w / scale).astype(jnp.int8), scale)

    low = Variables(_map_params(variables.params, quantize, keep), variables.state)
    _check_finite(variables, low)
    return low


def from_integers(weights: Any) -> Any:
    """Weights of 8 bits as float32; others as they are.

    Args:
      weights: `Int8` or an array.

    Returns:
      An array.
    """
    return weights.values.astype(jnp.float32) * weights.scale if isinstance(weights, Int8) else weights


def from_int8(model: Model) -> Model:
    """Model that reads the variables of `to_int8`; weights become float32 where they are used.

    Args:
      model: Any model; `in_dtype(model)` computes in bfloat16 as well.

    Returns:
      A model of the quantised variables.
    """

    def init(key: jax.Array, batch: Batch) -> Variables:
        return to_int8(model.init(key, batch))

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        variables = as_variables(variables)
        params = jax.tree.map(from_integers, variables.params, is_leaf=lambda x: isinstance(x, Int8))
        return model.apply(Variables(params, variables.state), batch, key, train)

    return Model(init, apply)


def _check_floating(dtype: DTypeLike) -> None:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{jnp.dtype(dtype)} has no floating point: choose bfloat16, float16 or float32, or to_int8 for integers."
        )


def _check_finite(before: Variables, after: Variables) -> None:
    """Raises ValueError if a param is not finite in its new format; inside `jit` nothing is known of values."""
    leaves = jax.tree.leaves(after.params, is_leaf=lambda x: isinstance(x, Int8))
    for (path, old), new in zip(jax.tree.leaves_with_path(before.params), leaves, strict=True):
        numbers, kind = (new.scale, "int8") if isinstance(new, Int8) else (new, new.dtype)
        if isinstance(numbers, jax.core.Tracer) or kind == jnp.result_type(old) or bool(jnp.all(jnp.isfinite(numbers))):
            continue
        finite = jnp.isfinite(jnp.asarray(old))
        largest = float(jnp.max(jnp.where(finite, jnp.abs(old), 0)))
        raise ValueError(
            f"{kind} cannot hold {leaf_name(path)}: {int(jnp.sum(~finite))} of its values are not finite, and "
            f"the largest other one is {largest:.3g}; take weights from before the training failed, or a wider "
            "format."
        )


def _floating(x: Any, change: Callable[[jax.Array], Any]) -> Any:
    """Changes an array of floating numbers, also one of NumPy; leaves everything else alone."""
    if not isinstance(x, jax.Array | np.ndarray) or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return change(jnp.asarray(x))


def _map_params(params: PyTree, change: Callable[[jax.Array], Any], keep: str) -> PyTree:
    def at(path: Any, x: Any) -> Any:
        return x if matches(keep, leaf_name(path)) else _floating(jnp.asarray(x), change)

    return jax.tree_util.tree_map_with_path(at, params)
