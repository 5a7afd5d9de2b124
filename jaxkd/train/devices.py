"""Steps whose devices hold some rows of the batch each, as under `pmap`: outputs gathered, gradients averaged."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.types import Batch, Model, Outputs, PyTree, Variables


def on_own_rows(model: Model, axis_name: str | None) -> Model:
    """The same network, applied to the rows of one device, with outputs for the rows of all devices.

    Args:
      model: The network.
      axis_name: Axis of the devices, or None, which leaves the model as it is.

    Returns:
      A model with the same variables. Each device draws randomness of its own, so that no two drop out the same units.
    """
    if axis_name is None:
        return model

    def apply(variables: Variables, rows: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        own = None if key is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        outputs, state = model.apply(variables, rows, own, train)
        return gathered(outputs, axis_name), state

    return Model(model.init, apply)


def gathered(tree: PyTree, axis_name: str | None) -> PyTree:
    """The rows of all devices on every device, in the devices' order; XLA drops those that nobody reads.

    Args:
      tree: Arrays [B / devices, ...] and `Outputs`, whose head is whole on every device and stays as it is.
      axis_name: Axis of the devices, or None, which leaves the tree as it is.

    Returns:
      Arrays [B, ...]; of numbers without rows, such as a balance loss among the features, the mean.
    """
    if axis_name is None:
        return tree

    def gather(x: Any) -> Any:
        if isinstance(x, Outputs):
            logits, features = jax.tree.map(gather, (x.logits, dict(x.features)))
            return Outputs(logits, features, x.head)
        return jax.lax.all_gather(x, axis_name, tiled=True) if jnp.ndim(x) else jax.lax.pmean(x, axis_name)

    return jax.tree.map(gather, tree, is_leaf=lambda x: isinstance(x, Outputs))


def mean_over_devices(tree: PyTree, axis_name: str | None) -> PyTree:
    """Averages floating arrays over the devices; other arrays, equal on all devices, are kept.

    Each device has the derivative of all devices' (equal) losses with respect to its own copy of the params: their mean
    is the gradient.

    Args:
      tree: Arrays.
      axis_name: Axis of the devices, or None, which leaves the tree as it is.

    Returns:
      The same tree.
    """
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.pmean(x, axis_name) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
