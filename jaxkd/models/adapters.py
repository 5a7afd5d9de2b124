"""Adapters that turn Linen and NNX modules into models, and the initialisation of models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxkd.kernels.eager import op_by_op
from jaxkd.keys import fold_name, is_key
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables

# Names that libraries give the flag that separates training from evaluation -> its value in training.
_MODE_NAMES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


def _mode(call: Callable[..., Any]) -> Callable[[bool], dict[str, Any]]:
    """Keyword arguments that put a module into training or evaluation mode, found by their names."""
    names = [n for n in inspect.signature(call).parameters if n in _MODE_NAMES]
    return lambda train: {n: _MODE_NAMES[n] == train for n in names}


def _inputs(batch: Batch, names: Sequence[str], option: str = "`inputs=`") -> list[Any]:
    for name in names:
        if name not in batch:
            raise ValueError(
                f"the model reads the batch's field {name!r} but the batch has {', '.join(sorted(batch))}: name the "
                f"fields it should read with {option}."
            )
    return [batch[name] for name in names]


def _outputs(returned: Any) -> Outputs:
    """Accepts Outputs, logits alone, or (logits, features)."""
    if isinstance(returned, Outputs):
        return returned
    if isinstance(returned, tuple) and len(returned) == 2:
        return Outputs(*returned)
    return Outputs(returned, {})


def bound(axis_name: str | None) -> str | None:
    """`axis_name` inside a `pmap` over it; None elsewhere, for example while a model is initialised.

    Args:
      axis_name: Name of the axis, or None.

    Returns:
      The name or None.
    """
    if axis_name is None:
        return None
    try:
        jax.lax.axis_index(axis_name)
    except NameError:
        return None
    return axis_name


def rematerialised(stage: Callable[..., Any], remat: bool) -> Callable[..., Any]:
    """Wraps a stage of a Linen network so that the backward pass computes its activations again.

    Args:
      stage: (module, *arrays) -> arrays, which calls submodules of the module; their names stay as they are.
      remat: Whether to wrap it at all.

    Returns:
      The wrapped function, or the same one.
    """
    return nn.remat(stage) if remat else stage


def init(model: Model, key: jax.Array, batch: Batch) -> Variables:
    """Initialises a model operation by operation, so that no program has to be compiled for it.

    Random numbers take seconds to compile on CPUs for each kernel of a network. One by one, those of each shape are
    compiled once, for all networks and seeds.

    Args:
      model: The model.
      key: Typed PRNG key [].
      batch: A prepared batch, of which the model reads the shapes.

    Returns:
      The variables that `model.init(key, batch)` gives.
    """
    return op_by_op(model.init, key, batch)


def from_linen(module: nn.Module, *, inputs: Sequence[str] = ("image",), capture: Sequence[str] = ()) -> Model:
    """Model from a Linen module.

    Args:
      module: Returns Outputs, logits [B, ..., K], or (logits, features). A flag called train, training, is_training,
        deterministic or use_running_average is set by the model; dropout draws from the "dropout" stream.
      inputs: Fields of the batch that are its positional arguments.
      capture: Paths of submodules ("block1/conv") whose outputs are added to the features under these names; for
        modules that do not return features themselves. Of a submodule called several times it is the last output.

    Returns:
      A model; its state holds every collection but "params".

    Raises:
      ValueError: If the batch lacks an input, or no submodule has a captured path (the sentence lists those there
        are), or it does not return one array.
    """
    mode = _mode(type(module).__call__)

    def init(key: jax.Array, batch: Batch) -> Variables:
        streams = {"params": fold_name(key, "params"), "dropout": fold_name(key, "dropout")}
        variables = dict(module.init(streams, *_inputs(batch, inputs), **mode(False)))
        return Variables(variables.pop("params", {}), variables)

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        called: set[str] = set()

        def wanted(submodule: nn.Module, method: str) -> bool:
            path = "/".join(submodule.path) if method == "__call__" else ""
            called.add(path)
            return path in capture

        returned, changed = module.apply(
            {"params": variables.params, **variables.state},
            *_inputs(batch, inputs),
            **mode(train),
            rngs=None if key is None else {"dropout": key},
            mutable=[*(variables.state if train else ()), *(("intermediates",) if capture else ())],
            capture_intermediates=wanted if capture else False,
        )
        outputs = _outputs(returned)
        if capture:
            changed = dict(changed)
            found = changed.pop("intermediates", {})
            captured = {name: _captured(found, name, called, type(module).__name__) for name in capture}
            outputs = outputs._replace(features={**outputs.features, **captured})
        return outputs, {**variables.state, **changed}

    return Model(init, apply)


def _captured(found: PyTree, name: str, called: set[str], whose: str) -> jax.Array:
    """Output of the last call of the submodule at a path."""
    for part in (*name.split("/"), "__call__"):
        found = found.get(part) if isinstance(found, Mapping) else None
    if found is None:
        known = ", ".join(sorted(called - {""})) or "none"
        raise ValueError(f"{whose} has no submodule {name!r} to capture: choose among those it calls: {known}.")
    if not isinstance(found[-1], jax.Array):
        raise ValueError(
            f"the submodule {name!r} of {whose} returns a {type(found[-1]).__name__} instead of one array: capture a "
            "submodule inside it."
        )
    return found[-1]


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module], *, inputs: Sequence[str] = ("image",)) -> Model:
    """Model from an NNX module.

    Args:
      make: Builds the module from its random streams, or returns an existing module, whose weights `init` then gives.
        It is called under `jax.eval_shape` once, then in `init`. The module returns Outputs, logits [B, ..., K], or
        (logits, features). Its `train()` and `eval()` set the mode, and a flag of its call, if it has one, named as
        for `from_linen`.
      inputs: Fields of the batch that are its positional arguments.

    Returns:
      A model with plain dicts of string keys as variables: `nnx.Param` are the params, everything else but random
      streams and intermediates is the state. Streams (dropout) are seeded anew from the step's key in every call, so
      nothing about them is carried.

    Raises:
      ValueError: If the batch lacks an input.
    """
    graph, params_of, streams_of, state_of = _split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(key: jax.Array, batch: Batch) -> Variables:
        _, params, _, state = _split(make(nnx.Rngs(key)))
        return Variables(_plain(params), _plain(state))

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        module = nnx.merge(
            graph,
            _filled(params_of, variables.params),
            _seeded(streams_of, jax.random.key(0) if key is None else key),
            _filled(state_of, variables.state),
        )
        if train:
            module.train()
        else:
            module.eval()
        outputs = _outputs(module(*_inputs(batch, inputs), **_mode(type(module).__call__)(train)))
        _, _, _, state = _split(module)
        return outputs, _plain(state) if train else variables.state

    return Model(init, apply)


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
