"""Adapter that turns NNX modules into models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxkd.keys import is_key, typed_key
from jaxkd.models import modes
from jaxkd.models.adapters import read_inputs
from jaxkd.models.forms import outputs_of
from jaxkd.models.misfits import misfit_of, told, unmoved
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables, as_variables


def from_nnx(
    make: nnx.Module | Callable[..., nnx.Module],
    *,
    inputs: Sequence[str] = ("image",),
    training: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> Model:
    """Model from an NNX module.

    Args:
      make: An existing module, whose weights `init` then gives, copied; or a function or class that builds one from
        its random streams. It is called under `jax.eval_shape` once, then in `init`. The module returns what a Linen
        module may return, see `from_linen`. Its `train()` and `eval()` set the mode, and so do flags of its call and
        attributes of modules, named as for `from_linen`.
      inputs: Fields of the batch that are its positional arguments.
      training: As for `from_linen`.
      evaluation: As for `from_linen`.

    Returns:
      A model with plain dicts of string keys as variables: `nnx.Param` are the params, everything else but random
      streams and what is sown is the state; an `nnx.State` of both is accepted as variables. Streams (dropout) are
      seeded anew from the step's key in every call, so nothing about them is carried.

    Raises:
      TypeError: If it makes no NNX module, or the module returns no logits.
      ValueError: If the batch lacks an input or the variables do not fit; if batch norms are never in training mode.
    """
    build = _builder(make)
    example = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    if not isinstance(example, nnx.Module):
        raise TypeError(f"from_nnx takes an NNX module or what makes one, but this made a {type(example).__name__}.")
    nnx.pop(example, nnx.Intermediate)
    nnx.pop(example, lambda path, x: isinstance(x, nnx.Variable) and isinstance(x.get_raw_value(), tuple))  # sown too
    name, found = type(example).__name__, modes.find(example, len(inputs), training, evaluation)
    graph, params_of, streams_of, state_of = _split(example)
    statistics = _plain(nnx.filter_state(state_of, nnx.BatchStat))

    def init(key: jax.Array, batch: Batch) -> Variables:
        _, params, _, state = _split(build(nnx.Rngs(typed_key(key))))
        made = _only(_plain(params), _plain(params_of)), _only(_plain(state), _plain(state_of))
        # An existing module's arrays stay its own, whatever becomes of these.
        copied = jax.tree.map(lambda x: x if isinstance(x, jax.core.Tracer) else jnp.copy(x), made)
        return Variables(*copied)

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        variables = _sorted_out(as_variables(variables), params_of, state_of)
        arrays, mode = read_inputs(batch, inputs), found.train if train else found.evaluate
        misfit = lambda: misfit_of(variables, lambda: Variables(_plain(params_of), _plain(state_of)))  # noqa: E731
        if (why := misfit()) is not None:
            raise ValueError(f"{name} cannot be applied: {why}.")
        module = nnx.merge(
            graph,
            _filled(params_of, variables.params),
            _seeded(streams_of, jax.random.key(0) if key is None else typed_key(key)),
            _filled(state_of, variables.state),
        )
        modes.set_modes(module, found, train)
        with told(name, batch, inputs, train=train, has_key=key is not None, misfit=misfit):
            returned = module(*arrays, **mode.call)
        outputs = outputs_of(returned, name)
        if not train:
            return outputs, variables.state
        _, _, _, state = _split(module)
        state = _only(_plain(state), variables.state)
        if not found.stated:
            _check_moves(example, *(jax.tree.leaves(_only(x, statistics)) for x in (variables.state, state)))
        return outputs, state

    return Model(init, apply)


def _builder(make: Any) -> Callable[[nnx.Rngs], Any]:
    """Function of the random streams, whichever way the module is made."""
    if isinstance(make, nnx.Module):
        return lambda rngs: make
    if isinstance(make, nn.Module) or not callable(make):
        how = (
            "use models.from_linen for Linen"
            if isinstance(make, nn.Module)
            else "give lambda rngs: Net(..., rngs=rngs)"
        )
        raise TypeError(
            f"from_nnx takes an NNX module or what makes one, but was given a {type(make).__name__}: {how}."
        )
    call = getattr(make, "__init__", make) if isinstance(make, type) else make
    parameters = list(inspect.signature(call).parameters.values())[isinstance(make, type) :]
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    name = getattr(make, "__name__", "Net")
    if len(needed) > 1:
        others = ", ".join(p.name for p in needed if p.name != "rngs")
        raise TypeError(f"{name} needs {others} besides its random streams: give lambda rngs: {name}(..., rngs=rngs).")
    by_name = any(p.name == "rngs" and p.kind == p.KEYWORD_ONLY for p in parameters)
    return (lambda rngs: make(rngs=rngs)) if by_name else make


def _sorted_out(variables: Variables, params_of: nnx.State, state_of: nnx.State) -> Variables:
    """Variables as plain dicts; an `nnx.State`, or a dict of one, is taken apart into params and state."""
    params, state = (_plain(x) for x in (params_of, state_of))
    given = Variables(*(_unboxed(x) for x in variables))
    if jax.tree.leaves(state) and not jax.tree.leaves(given.state):
        given = Variables(given.params, _only(given.params, state))
    return Variables(_only(given.params, params), _only(given.state, state))


def _unboxed(tree: PyTree) -> PyTree:
    """Arrays of a tree of NNX variables, under keys that are strings."""
    if isinstance(tree, Mapping):
        return {str(name): _unboxed(x) for name, x in tree.items()}
    return tree[...] if isinstance(tree, nnx.Variable) else tree


def _only(tree: PyTree, wanted: PyTree) -> PyTree:
    """Entries of nested dicts that another one has too."""
    if not isinstance(wanted, Mapping) or not isinstance(tree, Mapping):
        return tree
    return {name: _only(tree[name], x) for name, x in wanted.items() if name in tree}


def _check_moves(module: nnx.Module, before: list[Any], after: list[Any]) -> None:
    """Raises ValueError if the running statistics are the same arrays after a step of training."""
    if before and all(a is b for a, b in zip(before, after, strict=True)):
        kept = modes.attributes_of(module)
        what = "its batch norms keep their running statistics"
        raise unmoved(type(module).__name__, what, modes.arguments_of(type(module)), kept)


def _split(module: nnx.Module) -> tuple[Any, nnx.State, nnx.State, nnx.State]:
    """Graph, parameters, random streams and all other state of a module, without its intermediates."""
    graph, *states = nnx.split(module, nnx.Param, nnx.RngState, nnx.Intermediate, ...)
    params, streams, _, state = states
    return graph, params, streams, state


def _plain(state: nnx.State) -> PyTree:
    """State as dicts with string keys, as checkpoints restore them (keys of lists would be numbers)."""

    def named(tree: PyTree) -> PyTree:
        return {str(name): named(x) for name, x in tree.items()} if isinstance(tree, dict) else tree

    return named(nnx.to_pure_dict(state))


def _filled(template: nnx.State, values: PyTree) -> nnx.State:
    state = jax.tree.map(lambda leaf: leaf, template)
    nnx.replace_by_pure_dict(state, values)
    return state


def _seeded(template: nnx.State, key: jax.Array) -> nnx.State:
    """State of the random streams: a key of its own for each, counters at zero."""
    leaves, treedef = jax.tree.flatten(template)
    filled = [
        jax.random.fold_in(key, i) if is_key(leaf) else jnp.zeros((), leaf.dtype) for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, filled)
