"""Networks of which a part is never trained: its params stand in the state, where no optimizer reaches them."""

from __future__ import annotations

from collections.abc import Collection

import jax
from flax import traverse_util

from jaxkd.patterns import matches
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables, as_variables, leaf_name

FROZEN = "frozen"
"""Entry of the state that holds the params that are not trained."""


def frozen(model: Model, pattern: str) -> Model:
    """Model some of whose params are not trained, and cost neither gradients nor an optimizer's memory.

    `frozen(teacher, r"encoder/(token|position|block[01]/)")` trains the deeper layers alone; nothing is computed
    backward through those below. Its variables are those that `freeze` makes.

    Args:
      model: Any model.
      pattern: Regular expression, searched in paths such as "encoder/block0/mlp1/kernel": these params are frozen.

    Returns:
      A model of the same outputs, with its frozen params in the state under `FROZEN`.

    Raises:
      ValueError: By the model, if it is given variables without frozen params.
    """

    def init(key: jax.Array, batch: Batch) -> Variables:
        return freeze(model.init(key, batch), pattern)

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        variables = as_variables(variables)
        if FROZEN not in variables.state:
            raise ValueError(
                f"the variables have no frozen params: make them by models.freeze(variables, {pattern!r}), or give the "
                "model that is not frozen."
            )
        outputs, state = model.apply(thaw(variables), batch, key, train)
        return outputs, {**state, FROZEN: variables.state[FROZEN]}

    return Model(init, apply)


def freeze(variables: Variables, pattern: str) -> Variables:
    """Variables of `frozen(model, pattern)` from those of the model.

    Args:
      variables: The model's variables, params in nested dicts.
      pattern: As for `frozen`.

    Returns:
      The same arrays, some of them in the state.

    Raises:
      ValueError: If the pattern is found in no path, or in all of them.
    """
    variables = as_variables(variables)
    paths = [leaf_name(path) for path, _ in jax.tree.leaves_with_path(variables.params)]
    chosen = {path for path in paths if matches(pattern, path)}
    if not chosen or len(chosen) == len(paths):
        which = "no param" if not chosen else "all params"
        raise ValueError(
            f"the pattern {pattern!r} freezes {which}: give one that is found in some of the paths, which are "
            f"{', '.join(paths[:10])}{', ...' if len(paths) > 10 else ''}."
        )
    return set_apart(variables, chosen)


def set_apart(variables: Variables, chosen: Collection[str]) -> Variables:
    """Variables with the params at some paths in the state, under `FROZEN`.

    Args:
      variables: Variables, params in nested dicts.
      chosen: Paths, with slashes.

    Returns:
      The same arrays.
    """
    flat = traverse_util.flatten_dict(variables.params, sep="/")
    params, kept = (
        traverse_util.unflatten_dict({path: x for path, x in flat.items() if (path in chosen) == inside}, sep="/")
        for inside in (False, True)
    )
    return Variables(params, {**variables.state, FROZEN: kept})


def thaw(variables: Variables) -> Variables:
    """Variables of a model from those of `frozen(model, pattern)`: the way back from `freeze`.

    Args:
      variables: Variables with frozen params, or without any.

    Returns:
      The same arrays, all params among the params.
    """
    variables = as_variables(variables)
    if FROZEN not in variables.state:
        return variables
    rest = {name: x for name, x in variables.state.items() if name != FROZEN}
    flat = {**traverse_util.flatten_dict(variables.params), **traverse_util.flatten_dict(variables.state[FROZEN])}
    return Variables(traverse_util.unflatten_dict(flat), rest)
