"""Bottleneck adapters (Houlsby et al.) behind modules of a Flax Linen network, which is itself not trained."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxkd.keys import fold_name, typed_key
from jaxkd.models.frozen import FROZEN, set_apart, thaw
from jaxkd.patterns import matches
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables, as_variables

BOTTLENECKS = "bottlenecks"
"""Entry of the params that holds the adapters, by the paths of their modules."""


def with_bottlenecks(model: Model, rules: str | Sequence[str], width: int, *, trained: str | None = None) -> Model:
    """Model with a small trained network behind some of its modules, which are not trained.

    y' = y + relu(y D + b) U + c,  D [C, width],  U [width, C] = 0 and c = 0 at first

    The first outputs are the model's. Unlike adapters of low rank (`lora`), these are not linear, so that they stay in
    the network. `models.init` begins with random weights; `add_bottlenecks` with trained ones.

    Args:
      model: A model of Linen modules, params in nested dicts.
      rules: Regular expressions, searched in the paths of modules, such as r"block\\d+$": each module that is found
        returns one array [..., C].
      width: Numbers between the two layers of an adapter.
      trained: Regular expression of params that are trained as they are, such as "^head"; none if None.

    Returns:
      A model whose params are the adapters, under `BOTTLENECKS`, and what else is trained; the rest stands in its
      state, under `FROZEN`.

    Raises:
      ValueError: If the width is not positive; when initialised, as `add_bottlenecks` says; by the model, if it is
        given variables without adapters.

    Reference:
      Houlsby, Giurgiu, Jastrzebski, Morrone, de Laroussilhe, Gesmundo, Attariyan, Gelly, "Parameter-Efficient Transfer
      Learning for NLP", ICML 2019, https://arxiv.org/abs/1902.00751
    """

    def init(key: jax.Array, batch: Batch) -> Variables:
        return add_bottlenecks(key, model, model.init(key, batch), batch, rules, width, trained=trained)

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        variables = as_variables(variables)
        if BOTTLENECKS not in variables.params or FROZEN not in variables.state:
            raise ValueError(
                "the variables have no bottleneck adapters: make them by models.add_bottlenecks, or give the model "
                "without adapters."
            )
        own = {name: x for name, x in variables.params.items() if name != BOTTLENECKS}
        with _behind(functools.partial(_adapted, variables.params[BOTTLENECKS])):
            outputs, state = model.apply(thaw(Variables(own, variables.state)), batch, key, train)
        return outputs, {**state, FROZEN: variables.state[FROZEN]}

    _check_width(width)
    return Model(init, apply)


def add_bottlenecks(
    key: jax.Array,
    model: Model,
    variables: Variables,
    batch: Batch,
    rules: str | Sequence[str],
    width: int,
    *,
    trained: str | None = None,
) -> Variables:
    """Variables of `with_bottlenecks(model, rules, width)` from those of a trained model.

    Args:
      key: Typed PRNG key [], for D, which is normal with the variance 1 / C.
      model: The model.
      variables: Its variables.
      batch: A prepared batch, or its shapes.
      rules: As for `with_bottlenecks`.
      width: As for `with_bottlenecks`.
      trained: As for `with_bottlenecks`.

    Returns:
      The same arrays and those of the adapters.

    Raises:
      ValueError: If a rule is found in no path of a module, or in that of one that does not return one array; if
        `trained` is found in no path.
    """
    _check_width(width)
    base, patterns = thaw(variables), [rules] if isinstance(rules, str) else list(rules)
    shapes: dict[str, Any] = {}

    def note(path: str, y: Any) -> Any:
        shapes[path] = getattr(y, "shape", None)
        return y

    with _behind(note):
        jax.eval_shape(lambda v, b: model.apply(v, b, None, False)[0], base, dict(batch))
    for pattern in patterns:
        if not any(matches(pattern, path) for path in shapes):
            known = ", ".join(path for path in list(shapes)[:20] if path) or "none of Flax Linen"
            raise ValueError(f"`rules` has the pattern {pattern!r}, which no module has: they are {known}.")
    chosen = [path for path in shapes if path and any(matches(pattern, path) for pattern in patterns)]
    adapters = {path: _adapter(typed_key(key), path, shapes[path], width) for path in chosen}
    if not adapters:
        raise ValueError("there is no rule: give regular expressions of the paths of modules that get adapters.")
    flat = traverse_util.flatten_dict(base.params, sep="/")
    as_it_is = set() if trained is None else {path for path in flat if matches(trained, path)}
    if trained is not None and not as_it_is:
        raise ValueError(f"`trained` has the pattern {trained!r}, which no param has: they are {', '.join(flat)}.")
    params, state = set_apart(base, flat.keys() - as_it_is)
    return Variables({**params, BOTTLENECKS: adapters}, state)


def _adapter(key: jax.Array, path: str, shape: tuple[int, ...] | None, width: int) -> dict[str, dict[str, jax.Array]]:
    """The two layers behind a module."""
    if not shape:
        raise ValueError(f"the module {path!r} does not return one array [..., C]: give rules of modules that do.")
    C = shape[-1]
    down = jax.random.normal(fold_name(key, f"{BOTTLENECKS}/{path}"), (C, width)) * C**-0.5
    return {
        "down": {"kernel": down, "bias": jnp.zeros(width)},
        "up": {"kernel": jnp.zeros((width, C)), "bias": jnp.zeros(C)},
    }


def _adapted(adapters: Mapping[str, Any], path: str, y: Any) -> Any:
    """Output of a module and of its adapter, if it has one."""
    if path not in adapters:
        return y
    down, up = ({name: x.astype(y.dtype) for name, x in adapters[path][layer].items()} for layer in ("down", "up"))
    ones = (1,) * (y.ndim - 1)
    h = jax.nn.relu(y @ down["kernel"] + down["bias"].reshape(*ones, -1))
    return y + h @ up["kernel"] + up["bias"].reshape(*ones, -1)


@contextlib.contextmanager
def _behind(change: Callable[[str, Any], Any]) -> Iterator[None]:
    """Context in which outputs of Linen modules are changed by their paths."""

    def intercept(inside: Callable[..., Any], arguments: Any, keywords: Any, context: Any) -> Any:
        result = inside(*arguments, **keywords)
        return change("/".join(context.module.path), result) if context.method_name == "__call__" else result

    with nn.intercept_methods(intercept):
        yield


def _check_width(width: int) -> None:
    """Refuses a width that is no positive integer."""
    if isinstance(width, bool) or not isinstance(width, int | np.integer) or width < 1:
        raise ValueError(f"width is {width!r}: give an integer of at least 1.")
