"""Optimizers that treat parameters by their path: frozen layers, rates of their own, weight decay on kernels alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from jaxkd.types import PyTree


def by_path(
    rules: Mapping[str, optax.GradientTransformation], default: optax.GradientTransformation
) -> optax.GradientTransformation:
    """An optax transformation that gives each parameter to the first rule whose pattern is found in its path.

    `by_path({r"student/(stem|stage1)": optax.set_to_zero(), r"term/": optax.adam(1e-2)}, optax.adam(1e-3))` freezes the
    student's first layers, and trains what terms own at a rate of their own. Frozen parameters carry no moments.

    Args:
      rules: Regular expression, searched in paths such as "student/stage1_conv1/kernel" -> transformation.
      default: What all other parameters get.

    Returns:
      The transformation.

    Raises:
      ValueError: When initialised, if a pattern decides over no parameter: none has it, or earlier rules took them all.
    """
    transforms = {f"rule {i}": transform for i, transform in enumerate(rules.values())}

    def labels(params: PyTree) -> PyTree:
        return _by_path(params, lambda path: _first(path, rules))

    def check(params: PyTree) -> None:
        paths = _paths(params)
        taken = {_first(path, rules) for path in paths}
        for i, pattern in enumerate(rules):
            if f"rule {i}" not in taken:
                raise ValueError(
                    f"the pattern {pattern!r} decides over no parameter: check its spelling and the rules before it; "
                    f"the parameters are {', '.join(paths[:20])}{', ...' if len(paths) > 20 else ''}."
                )

    inner = optax.partition({**transforms, "default": default}, labels)

    def init(params: PyTree) -> optax.OptState:
        check(params)
        return inner.init(params)

    return optax.GradientTransformationExtraArgs(init, inner.update)


def path_mask(pattern: str) -> Callable[[PyTree], PyTree]:
    """A mask of the parameters whose path has a pattern, for optax's `mask` arguments.

    Args:
      pattern: Regular expression, searched in paths such as "student/head/kernel".

    Returns:
      Params -> tree of booleans.
    """
    return lambda params: _by_path(params, lambda path: re.search(pattern, path) is not None)


def kernels_only(params: PyTree) -> PyTree:
    """The usual mask of weight decay: arrays of two axes or more, so no biases and no scales of norms.

    `optax.adamw(1e-3, weight_decay=1e-2, mask=kernels_only)`

    Args:
      params: Tree of arrays.

    Returns:
      Tree of booleans.
    """
    return jax.tree.map(lambda x: jnp.ndim(x) > 1, params)


def _first(path: str, rules: Mapping[str, object]) -> str:
    """Label of the first rule for a path."""
    return next((f"rule {i}" for i, pattern in enumerate(rules) if re.search(pattern, path)), "default")


def _by_path(params: PyTree, of_path: Callable[[str], object]) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: of_path(_name(path)), params)


def _paths(params: PyTree) -> list[str]:
    return [_name(path) for path, _ in jax.tree.leaves_with_path(params)]


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
