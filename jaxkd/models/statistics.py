"""Running statistics of batch norms: as PyTorch keeps them, and measured anew."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.types import Batch, Model, Outputs, PyTree, Variables, as_variables

_STATISTICS = "batch_stats"


def unbiased_variance(model: Model) -> Model:
    """Model whose batch norms keep the unbiased variance as their running one, as PyTorch's do.

    running <- m running + (1 - m) variance n / (n - 1)

    Flax keeps the variance of the n numbers that a channel of the batch has, PyTorch the estimate for all data, which
    is larger by 1 / (n - 1). Training is the same in both; outputs in evaluation mode differ, the more the smaller
    maps and batches are.

    Args:
      model: A model of Flax Linen modules.

    Returns:
      A model with the same variables.

    Raises:
      ValueError: When applied in training mode, if the model has a state but no batch norm of Flax Linen moves it.
    """

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        seen: list[nn.BatchNorm] = []
        with nn.intercept_methods(functools.partial(_correct, seen)):
            result = model.apply(variables, batch, key, train)
        if train and not seen and jax.tree.leaves(variables.state):
            raise ValueError(
                "unbiased_variance found no batch norm of Flax Linen that moves the model's state: give a model of "
                "Linen modules, or leave unbiased_variance out."
            )
        return result

    return Model(model.init, apply)


def _correct(seen: list[nn.BatchNorm], call: Callable[..., Any], args: Any, options: Any, context: Any) -> Any:
    """Calls a module's method; after a batch norm that moved its statistics, makes their variance the unbiased one."""
    norm = context.module
    if not isinstance(norm, nn.BatchNorm) or context.method_name != "__call__":
        return call(*args, **options)
    seen.append(norm)
    before: Any = norm.get_variable("batch_stats", "var")
    result = call(*args, **options)
    after: Any = norm.get_variable("batch_stats", "var")
    if before is None or after is before:  # of an initialisation, or in evaluation mode
        return result
    x = args[0]
    n = x.size // after.size
    if norm.axis_name is not None:
        n = n * jax.lax.psum(1, norm.axis_name, axis_index_groups=norm.axis_index_groups)
    if n > 1:
        moved = after - norm.momentum * before  # (1 - m) variance
        norm.put_variable("batch_stats", "var", after + moved / (n - 1))
    return result


def reestimate_statistics(
    model: Model, variables: Variables, batches: Iterable[Batch], *, key: jax.Array | None = None
) -> Variables:
    """Variables with the running statistics of batch norms measured anew, and all else as it is.

    mean = mean of m_b,  variance = mean of (v_b + m_b^2) - mean^2   over batches b of one size

    Networks that were averaged, fused or selected need it: their statistics are those of other activations. Each batch
    runs in training mode, so that later layers see what norms make of it. Dropout acts if there is a key.

    Args:
      model: The network.
      variables: Its variables, whose statistics stand in the state's `batch_stats`, as Flax Linen keeps them.
      batches: Prepared batches of one size.
      key: Typed PRNG key [] of dropout and the like.

    Returns:
      The variables; those that were given if they have no statistics.

    Raises:
      ValueError: If there is no batch.

    Reference:
      Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018,
      https://arxiv.org/abs/1803.05407
    """
    params, state = as_variables(variables)
    if not isinstance(state, Mapping) or _STATISTICS not in state:
        return Variables(params, state)

    def measure(params: PyTree, state: PyTree, batch: Batch) -> tuple[PyTree, PyTree]:
        """Mean and mean square of one batch: statistics move by (1 - m) of the difference, so two moves tell both."""

        def moved(start: float) -> PyTree:
            begun = jax.tree.map(lambda x: jnp.full_like(x, start), state[_STATISTICS])
            return model.apply(Variables(params, {**state, _STATISTICS: begun}), batch, key, True)[1][_STATISTICS]

        zero, one = moved(0.0), moved(1.0)
        found = jax.tree.map(lambda at_0, at_1: at_0 / (1 - (at_1 - at_0)), zero, one)
        return found, _squares(found)

    program = jax.jit(measure)
    seen = [jax.device_get(program(params, state, dict(batch))) for batch in batches]
    if not seen:
        raise ValueError("there is no batch to measure running statistics on: give one or more.")
    means, squares = (
        jax.tree.map(lambda *x: np.mean(x, axis=0, dtype=np.float64), *side) for side in zip(*seen, strict=True)
    )
    found = _variances(means, squares)
    return Variables(
        params,
        {**state, _STATISTICS: jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), found, state[_STATISTICS])},
    )


def _squares(tree: PyTree) -> PyTree:
    """Norms' means and variances -> the same means, and mean squares in place of variances."""
    if isinstance(tree, Mapping) and tree.keys() == {"mean", "var"}:
        return {"mean": tree["mean"], "var": tree["var"] + tree["mean"] ** 2}
    return {name: _squares(x) for name, x in tree.items()}


def _variances(means: PyTree, squares: PyTree) -> PyTree:
    """The way back, once both were averaged."""
    if isinstance(means, Mapping) and means.keys() == {"mean", "var"}:
        return {"mean": means["mean"], "var": np.maximum(squares["var"] - means["mean"] ** 2, 0)}
    return {name: _variances(x, squares[name]) for name, x in means.items()}
