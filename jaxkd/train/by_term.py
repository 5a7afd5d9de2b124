"""Gradients of the terms of an objective one by one, and as optimizers that treat the terms apart read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxkd import numerics
from jaxkd.types import Metrics, PyTree, TrainState

TermGradients: TypeAlias = Callable[[], Mapping[str, PyTree]]
"""() -> name of a term -> its gradient in {"student", "term"} params."""


class TermError(ValueError):
    """An optimizer asks for gradients of terms that there are not."""


def term_names(parts: Metrics) -> list[str]:
    """Names of the terms of which an objective is the sum.

    Args:
      parts: The metrics that the objective reports, as those of `weighted(...)` do.

    Returns:
      Names; those of sums within the sum are left out.

    Raises:
      TermError: If the objective is no sum of terms.
    """
    if names := [n for n in parts if f"{n}_weighted" in parts and "/" not in n]:
        return names
    raise TermError(
        "the objective reports no weighted terms, so there is no gradient of each: make it with `weighted(...)`."
    )


def gradients_by_term(
    objective: Callable[..., tuple[jax.Array, Any]], params: PyTree, state: TrainState, inputs: Any
) -> tuple[dict[str, PyTree], tuple[jax.Array, Any]]:
    """Gradients of the terms of an objective, one backward pass each; their sum is the objective's gradient.

    g_i = d (w_i term_i + r / n) / d params,  r = objective - sum_i w_i term_i

    The rest r is 0 for `weighted(...)`; for `uncertainty_weighted` it is the sum of s_i / 2, which no network sees.

    Args:
      objective: From `train.step.make_objective`, of a term made by `weighted(...)` or `uncertainty_weighted(...)`.
      params: {"student", "term"}.
      state: The state of the step.
      inputs: Its inputs.

    Returns:
      (name -> gradient in the params, what the objective returned).

    Raises:
      TermError: If the objective is no sum of terms.
    """

    def values(params: PyTree) -> tuple[dict[str, jax.Array], Any]:
        value, found = objective(params, state, inputs)
        parts = found[1]
        each = {name: parts[f"{name}_weighted"] for name in term_names(parts)}
        rest = (value - sum(each.values())) / len(each)
        return {name: part + rest for name, part in each.items()}, (value, found)

    each, pull, found = jax.vjp(values, params, has_aux=True)
    one = {name: {n: jnp.asarray(n == name, v.dtype) for n, v in each.items()} for name in each}
    return {name: pull(direction)[0] for name, direction in one.items()}, found


class TermUpdates(NamedTuple):
    """Gradients of the terms as an optimizer that stands in a chain, or sees some parameters only, has to use them.

    Attributes:
      each: Name of a term -> its gradient, for the parameters that the optimizer updates.
      rest: Tree of what transformations in front have added to the gradient, such as a weight decay; else 0.
    """

    each: dict[str, PyTree]
    rest: PyTree


def read_terms(updates: PyTree, extra: Mapping[str, Any]) -> TermUpdates:
    """Reads the gradients of the terms in an optimizer's `update`.

    u = a sum_i g_i + rest,  each_i = a g_i

    Where u is a multiple of the step's gradient, as behind `optax.clip_by_global_norm`, a is that multiple and the rest
    is 0; else a is 1. A weight decay therefore stands in front or behind, but not in front together with clipping.

    Args:
      updates: u, what the optimizer is given to update; `optax.MaskedNode` for parameters of other optimizers.
      extra: The optimizer's extra arguments, among them `grad` and `term_gradients`.

    Returns:
      The terms' gradients.

    Raises:
      TermError: If there are none, as outside a step or with an objective that is no sum of terms.
    """
    if "term_gradients" not in extra or "grad" not in extra:
        raise TermError(
            "this optimizer needs the gradient of each term: give it to train.make_train_step or "
            "experiment.train_phase, with an objective made by `weighted(...)`."
        )

    def own(tree: PyTree) -> PyTree:
        def masked(u: Any, x: PyTree) -> PyTree:
            return u if isinstance(u, optax.MaskedNode) else x

        return jax.tree.map(masked, updates, tree, is_leaf=lambda x: isinstance(x, optax.MaskedNode))

    each = {name: own(gradient) for name, gradient in extra["term_gradients"]().items()}
    whole = own(extra["grad"])
    if all(u is g for u, g in zip(jax.tree.leaves(updates), jax.tree.leaves(whole), strict=True)):
        return TermUpdates(each, jax.tree.map(jnp.zeros_like, updates))
    multiple = tree_dot(updates, whole) / _positive(tree_dot(whole, whole))
    away = jax.tree.map(lambda u, g: u - (multiple * g).astype(u.dtype), updates, whole)
    clipped = tree_dot(away, away) <= 1e-8 * tree_dot(updates, updates)
    scale = jnp.where(clipped, multiple, 1)
    rest = jax.tree.map(lambda u, g: jnp.where(clipped, 0, u - g), updates, whole)
    return TermUpdates(jax.tree.map(lambda g: (scale * g).astype(g.dtype), each), rest)


def tree_dot(a: PyTree, b: PyTree) -> jax.Array:
    """Sum of the products of two trees, in at least float32.

    Args:
      a: Arrays.
      b: Arrays of the same shapes.

    Returns:
      Scalar; 0 for trees without arrays.
    """
    products = jax.tree.map(lambda x, y: jnp.vdot(*numerics.promote(x, y)), a, b)
    return jax.tree.reduce(jnp.add, products, jnp.zeros(()))


def _positive(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 1)
