"""One network with last layers for several tasks."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd import numerics
from jaxkd.keys import fold_name
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables, as_variables

HEADS = "heads"
"""Entry of the params that holds the further last layers, by their names."""


def with_heads(model: Model, *, feature: str = "pooled", **classes: int) -> Model:
    """Model with further last layers, one for each other task, on one of its features.

    logits_<name> = feature W_name + b_name

    Its own logits stay as they are. A term reads the others as `student.logits_<name>`; `at_head` makes them the
    logits, to evaluate the other task. `models.inherit(models.init(model, key, batch), trained, fresh="^heads/new")`
    starts all but one head with trained variables.

    Args:
      model: Any model whose params are a dict, such as an encoder of sentences or a classifier of another task.
      feature: Name of the feature [B, ..., D] that all last layers read.
      **classes: Name of a task -> its number of classes K.

    Returns:
      A model whose params have a further entry `heads`, name -> {"kernel": [D, K], "bias": [K]}, and whose features
      have a further `logits_<name>` [B, ..., K] for each task.

    Raises:
      ValueError: If there is no task, or one has no class; by the model, if it has no such feature.
    """
    if not classes or min(classes.values()) < 1:
        raise ValueError(f"the further tasks are {classes}: give the number of classes of at least one, such as old=6.")

    def init(key: jax.Array, batch: Batch) -> Variables:
        own = as_variables(model.init(key, batch))
        width = jax.eval_shape(lambda own: _feature(model.apply(own, batch, None, False)[0], feature), own).shape[-1]
        heads = {
            name: {
                "kernel": 0.02 * jax.random.normal(fold_name(key, f"{HEADS}/{name}"), (width, K)),
                "bias": jnp.zeros(K),
            }
            for name, K in classes.items()
        }
        return own._replace(params={**own.params, HEADS: heads})

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        variables = as_variables(variables)
        own = {name: part for name, part in variables.params.items() if name != HEADS}
        outputs, state = model.apply(variables._replace(params=own), batch, key, train)
        x, heads = _feature(outputs, feature), variables.params.get(HEADS, {})
        if heads.keys() != classes.keys():
            raise ValueError(
                f"the params have last layers for {sorted(heads)} but the model for {sorted(classes)}: give the "
                "variables of models.with_heads with the same names."
            )
        further = {f"logits_{name}": _linear(x, **head) for name, head in heads.items()}
        return outputs._replace(features={**outputs.features, **further}), state

    return Model(init, apply)


def at_head(model: Model, name: str) -> Model:
    """Model whose logits are those of one of its further last layers, to evaluate or to teach that task.

    Args:
      model: A model made by `with_heads`.
      name: The task's name there.

    Returns:
      A model with the same variables and features.

    Raises:
      ValueError: By the model, if it has no such last layer.
    """

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        outputs, state = model.apply(variables, batch, key, train)
        return outputs._replace(logits=_feature(outputs, f"logits_{name}"), head=None), state

    return Model(model.init, apply)


def _feature(outputs: Outputs, name: str) -> jax.Array:
    """A feature by its name."""
    if name not in outputs.features:
        known = ", ".join(outputs.features) or "none"
        raise ValueError(f"the model has no feature {name!r} for last layers: it has {known}; name one of these.")
    return outputs.features[name]


def _linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """[B, ..., D] -> [B, ..., K], in at least float32."""
    x, kernel, bias = numerics.promote(x, kernel, bias)
    return x @ kernel + jnp.broadcast_to(bias, (*x.shape[:-1], bias.size))
