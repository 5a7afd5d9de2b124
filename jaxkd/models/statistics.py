"""Running statistics of batch norms as PyTorch keeps them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from jaxkd.types import Batch, Model, Outputs, PyTree, Variables


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
