"""Optimizers that treat parameters by their path: frozen layers, rates of their own, weight decay on kernels alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxkd.patterns import matches
from jaxkd.train.by_term import TermError, TermGradients
from jaxkd.types import PyTree, leaf_name

LossAndGradient: TypeAlias = Callable[[PyTree], tuple[jax.Array, PyTree]]
"""Params -> (loss of the step's batch, its gradient)."""


def by_path(
    rules: Mapping[str, optax.GradientTransformation], default: optax.GradientTransformation
) -> optax.GradientTransformation:
    """An optax transformation that gives each parameter to the first rule whose pattern is found in its path.

    `by_path({r"student/(stem|stage1)": optax.set_to_zero(), r"term/": optax.adam(1e-2)}, optax.adam(1e-3))` freezes the
    student's first layers, and trains what terms own at a rate of their own. Frozen parameters carry no moments.

    Args:
      rules: Regular expression, searched in paths such as "student/stage1_conv1/kernel" -> transformation.
      default: The transformation of all other parameters.

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


def unfreezing(
    make: Callable[[optax.Schedule], optax.GradientTransformation],
    groups: Sequence[str],
    rate: float | optax.Schedule,
    *,
    decay: float = 1 / 2.6,
    every: int = 0,
) -> optax.GradientTransformation:
    """Gradual unfreezing with discriminative rates: deeper groups of layers learn first, and faster.

    rate_i(step) = rate(step) decay^i  if step >= i every,  0 before;  i = 0 for the deepest group

    `unfreezing(optax.sgd, [r"head|term/", "stage3", "stage2", "stage1|stem"], 0.1, every=500)`. What running statistics
    batch norms keep goes on moving in groups that are frozen.

    Args:
      make: Learning rate, a schedule -> transformation, such as `optax.adam`.
      groups: Regular expressions of paths as in `by_path`, deepest first; they must cover all parameters.
      rate: Of the deepest group.
      decay: Of the rate from one group to the next.
      every: Steps until the next group thaws; 0 trains all of them from the start.

    Returns:
      The transformation.

    Raises:
      ValueError: If there is no group; when initialised, if a pattern decides over no parameter or one has no group.

    Reference:
      Howard, Ruder, "Universal Language Model Fine-tuning for Text Classification", ACL 2018,
      https://arxiv.org/abs/1801.06146
    """
    if not groups:
        raise ValueError("there is no group of layers to unfreeze: give regular expressions, deepest first.")
    base = rate if callable(rate) else optax.constant_schedule(rate)

    def schedule(i: int) -> optax.Schedule:
        return lambda step: jnp.where(step >= i * every, base(step) * decay**i, 0.0)

    whole = by_path({pattern: make(schedule(i)) for i, pattern in enumerate(groups)}, optax.set_to_zero())

    def init(params: PyTree) -> optax.OptState:
        if left := [path for path in _paths(params) if not any(matches(group, path) for group in groups)]:
            raise ValueError(f"no group has {', '.join(left[:5])}: add a pattern for every parameter.")
        return whole.init(params)

    return optax.GradientTransformationExtraArgs(init, whole.update)


def path_mask(pattern: str) -> Callable[[PyTree], PyTree]:
    """A mask of the parameters whose path has a pattern, for optax's `mask` arguments.

    Args:
      pattern: Regular expression, searched in paths such as "student/head/kernel".

    Returns:
      Params -> tree of booleans.
    """
    return lambda params: _by_path(params, lambda path: matches(pattern, path))


def kernels_only(params: PyTree) -> PyTree:
    """The usual mask of weight decay: arrays of two axes or more, so no biases and no scales of norms.

    `optax.adamw(1e-3, weight_decay=1e-2, mask=kernels_only)`

    Args:
      params: Tree of arrays.

    Returns:
      Tree of booleans.
    """
    return jax.tree.map(lambda x: jnp.ndim(x) > 1, params)


def updates_of(
    optimizer: optax.GradientTransformation,
    grads: PyTree,
    opt_state: optax.OptState,
    params: PyTree,
    loss: jax.Array,
    again: LossAndGradient,
    term_gradients: TermGradients,
) -> tuple[PyTree, optax.OptState]:
    """The optimizer's update, with everything that transformations of optax may ask for besides the gradient.

    Those are the loss as `value`, the gradient as `grad`, and functions of the params: `value_fn` and `obj_fn` for
    line searches and curvatures, `grad_fn` for sharpness-aware minimisation; and `term_gradients`, for optimizers that
    treat the terms of the objective apart. They cost nothing unless they are called.

    Args:
      optimizer: The optax transformation.
      grads: The gradient.
      opt_state: Its state.
      params: The params.
      loss: The loss.
      again: Computes loss and gradient of the same batch, with the same randomness, for other params.
      term_gradients: Computes the gradient of each term, whose sum is `grads`.

    Returns:
      (updates, new state).

    Raises:
      ValueError: If the optimizer asks for something else, or does not fit the params.
    """

    @jax.custom_vjp
    def value_of(params: PyTree) -> jax.Array:
        return again(params)[0]

    value_of.defvjp(again, lambda gradient, scale: (jax.tree.map(lambda g: (scale * g).astype(g.dtype), gradient),))

    def value_fn(params: PyTree, obj_fn: Any = None, grad_fn: Any = None, term_gradients: Any = None) -> jax.Array:
        return value_of(params)  # line searches pass it what they do not know themselves, if it names it

    def grad_fn(params: PyTree, *_: Any) -> PyTree:
        return again(params)[1]

    extras = {"value": loss, "grad": grads, "value_fn": value_fn, "obj_fn": value_fn, "grad_fn": grad_fn}
    extras["term_gradients"] = term_gradients
    taken = inspect.signature(optimizer.update).parameters
    if not any(p.kind == p.VAR_KEYWORD for p in taken.values()):
        extras = {name: x for name, x in extras.items() if name in taken}
    try:
        return optimizer.update(grads, opt_state, params, **extras)
    except TermError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"the optimizer cannot make this update ({str(error).splitlines()[0].rstrip('.')}): a step gives it the "
            "gradient of the batch, the params, value, grad, value_fn, obj_fn, grad_fn and term_gradients; use another "
            "transformation, or wrap this one."
        ) from error


def begin_optimizer(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """Makes the optimizer's first state.

    Args:
      optimizer: The optax transformation.
      params: The params that a step trains, {"student", "term"}.

    Returns:
      Its state.

    Raises:
      ValueError: If it does not fit the params, as a mask or labels for the params of a network alone do not.
    """
    try:
        return optimizer.init(params)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"the optimizer cannot begin ({str(error).splitlines()[0].rstrip('.:')}): it updates a tree "
            '{"student": params, "term": params of the objective}, so give masks and labels of such a tree, or a '
            "function that makes them from it, as lambda params: jax.tree.map(lambda x: x.ndim > 1, params)."
        ) from error


def _first(path: str, rules: Mapping[str, object]) -> str:
    """Label of the first rule for a path."""
    return next((f"rule {i}" for i, pattern in enumerate(rules) if matches(pattern, path)), "default")


def _by_path(params: PyTree, of_path: Callable[[str], object]) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: of_path(leaf_name(path)), params)


def _paths(params: PyTree) -> list[str]:
    return [leaf_name(path) for path, _ in jax.tree.leaves_with_path(params)]
