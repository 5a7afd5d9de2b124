"""Turns networks of any origin into `Model`: Linen and NNX modules, ensembles, cached outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxkd import numerics
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables

# How libraries call the flag that separates training from evaluation, and what it is while training.
_MODE_NAMES = {"train": True, "training": True, "is_training": True, "deterministic": False, "use_running_average": False}


def _mode(call: Callable[..., Any]) -> Callable[[bool], dict[str, bool]]:
    """Keyword arguments that put a module into training or evaluation mode, found by their names."""
    names = [n for n in inspect.signature(call).parameters if n in _MODE_NAMES]
    return lambda train: {n: _MODE_NAMES[n] == train for n in names}


def _inputs(batch: Batch, names: Sequence[str]) -> list[Any]:
    for name in names:
        if name not in batch:
            raise ValueError(
                f"the model reads the batch's field {name!r} but the batch has {', '.join(sorted(batch))}: name the "
                "fields it should read with `inputs=`."
            )
    return [batch[name] for name in names]


def _outputs(returned: Any) -> Outputs:
    """Accepts Outputs, logits alone, or (logits, features)."""
    if isinstance(returned, Outputs):
        return returned
    if isinstance(returned, tuple) and len(returned) == 2:
        return Outputs(*returned)
    return Outputs(returned, {})


def from_linen(module: nn.Module, *, inputs: Sequence[str] = ("image",), capture: Sequence[str] = ()) -> Model:
    """Model from a Linen module.

    Args:
      module: Returns Outputs, logits [B, ..., K], or (logits, features). A flag called train, training, is_training,
        deterministic or use_running_average is set as it should be; dropout draws from the "dropout" stream.
      inputs: Fields of the batch that are its positional arguments.
      capture: Paths of submodules ("block1/conv") whose outputs are added to the features under these names; for
        modules that do not return features themselves.

    Returns:
      A model; its state holds every collection but "params".

    Raises:
      ValueError: If the batch lacks an input, or no submodule has a captured path (the sentence lists those there are).
    """
    mode = _mode(type(module).__call__)

    def init(key: jax.Array, batch: Batch) -> Variables:
        streams = {"params": numerics.fold_name(key, "params"), "dropout": numerics.fold_name(key, "dropout")}
        variables = dict(module.init(streams, *_inputs(batch, inputs), **mode(False)))
        return Variables(variables.pop("params", {}), variables)

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        returned, changed = module.apply(
            {"params": variables.params, **variables.state},
            *_inputs(batch, inputs),
            **mode(train),
            rngs=None if key is None else {"dropout": key},
            mutable=[*(variables.state if train else ()), *(("intermediates",) if capture else ())],
            **({"capture_intermediates": lambda m, _: "/".join(m.path) in capture} if capture else {}),
        )
        outputs = _outputs(returned)
        if capture:
            changed = dict(changed)
            captured = _captured(module, variables, batch, inputs, changed.pop("intermediates", {}), capture)
            outputs = Outputs(outputs.logits, {**outputs.features, **captured})
        return outputs, ({**variables.state, **changed} if train else variables.state)

    return Model(init, apply)


def _captured(
    module: nn.Module, variables: Variables, batch: Batch, inputs: Sequence[str], found: PyTree, capture: Sequence[str]
) -> dict[str, jax.Array]:
    flat = {
        "/".join(p.key for p in path[:-2]): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(found, is_leaf=lambda x: isinstance(x, jax.Array))[0]
    }
    missing = [name for name in capture if name not in flat]
    if missing:
        known = sorted({"/".join(p.key for p in path[:-1]) for path, _ in jax.tree.leaves_with_path(variables.params)})
        raise ValueError(
            f"{type(module).__name__} has no submodule {missing[0]!r} to capture: choose among {', '.join(known)}."
        )
    return {name: flat[name] for name in capture}


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module], *, inputs: Sequence[str] = ("image",)) -> Model:
    """Model from an NNX module.

    Args:
      make: Builds the module from its random streams; called under `jax.eval_shape` once, then in `init`. The module
        returns Outputs, logits [B, ..., K], or (logits, features).
      inputs: Fields of the batch that are its positional arguments.

    Returns:
      A model with plain dicts as variables: `nnx.Param` are the params, everything else but random streams is the
      state. Streams (dropout) are seeded anew from the step's key in every call, so nothing about them is carried.

    Raises:
      ValueError: If the batch lacks an input.
    """
    graph, params_of, streams_of, state_of = nnx.split(
        nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, nnx.RngState, ...
    )

    def init(key: jax.Array, batch: Batch) -> Variables:
        _, params, _, state = nnx.split(make(nnx.Rngs(key)), nnx.Param, nnx.RngState, ...)
        return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(state))

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
        outputs = _outputs(module(*_inputs(batch, inputs)))
        _, _, _, state = nnx.split(module, nnx.Param, nnx.RngState, ...)
        return outputs, nnx.to_pure_dict(state) if train else variables.state

    return Model(init, apply)


def _filled(template: nnx.State, values: PyTree) -> nnx.State:
    state = jax.tree.map(lambda leaf: leaf, template)
    nnx.replace_by_pure_dict(state, values)
    return state


def _seeded(template: nnx.State, key: jax.Array) -> nnx.State:
    """A key of its own for every random stream, counters at zero."""
    leaves, treedef = jax.tree.flatten(template)
    filled = [
        jax.random.fold_in(key, i) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.zeros((), leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, filled)


def mean_logits(logits: Sequence[jax.Array]) -> jax.Array:
    """Mean of the members' logits: the geometric mean of their predictive distributions.

    Args:
      logits: One array [B, ..., K] a member.

    Returns:
      [B, ..., K].
    """
    return jnp.mean(jnp.stack(numerics.promote(*logits)), axis=0)


def mean_probabilities(logits: Sequence[jax.Array]) -> jax.Array:
    """Log of the mean of the members' probabilities, computed in log space.

    Args:
      logits: One array [B, ..., K] a member.

    Returns:
      [B, ..., K], normalised log-probabilities.
    """
    stacked = jnp.stack([numerics.log_softmax(z) for z in numerics.promote(*logits)])
    return jax.nn.logsumexp(stacked, axis=0) - jnp.log(jnp.asarray(len(logits), stacked.dtype))


def ensemble(*members: Model, combine: Callable[[Sequence[jax.Array]], jax.Array] = mean_logits) -> Model:
    """Several models as one teacher.

    Args:
      *members: Models that read the same batch and have the same classes.
      combine: The members' logits -> the ensemble's: `mean_logits` or `mean_probabilities`.

    Returns:
      A model whose variables are {"0": ..., "1": ...} and whose features are named "0/stage1", "1/stage1", ...

    Raises:
      ValueError: If there is no member, or their logits differ in shape.
    """
    if not members:
        raise ValueError("an ensemble needs at least one member: pass the models.")

    def init(key: jax.Array, batch: Batch) -> Variables:
        made = [m.init(jax.random.fold_in(key, i), batch) for i, m in enumerate(members)]
        return Variables({str(i): v.params for i, v in enumerate(made)}, {str(i): v.state for i, v in enumerate(made)})

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        logits, features, state = [], {}, {}
        for i, member in enumerate(members):
            own = Variables(variables.params[str(i)], variables.state[str(i)])
            out, state[str(i)] = member.apply(own, batch, None if key is None else jax.random.fold_in(key, i), train)
            logits.append(out.logits)
            features |= {f"{i}/{name}": f for name, f in out.features.items()}
        if len({z.shape for z in logits}) > 1:
            raise ValueError(
                f"the members of an ensemble have logits of shapes {', '.join(str(z.shape) for z in logits)}: give all "
                "of them the same classes."
            )
        return Outputs(combine(logits), features), state

    return Model(init, apply)


def join(*members: Variables) -> Variables:
    """Variables of `ensemble(...)` from those of its members, in the same order.

    Args:
      *members: Each member's trained variables.

    Returns:
      The ensemble's variables.
    """
    return Variables({str(i): v.params for i, v in enumerate(members)}, {str(i): v.state for i, v in enumerate(members)})


def cached(*, logits: str = "teacher_logits", features: Sequence[str] = ()) -> Model:
    """A teacher whose outputs were written earlier and are read from the batch; it has no variables.

    Args:
      logits: Field of the batch that holds the logits [B, ..., K].
      features: Fields that are features, under the same names.

    Returns:
      A model; `Variables({}, {})` are its variables.

    Raises:
      ValueError: If the batch lacks a field.
    """

    def init(key: jax.Array, batch: Batch) -> Variables:
        return Variables({}, {})

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        read = _inputs(batch, (logits, *features))
        return Outputs(read[0], dict(zip(features, read[1:], strict=True))), variables.state

    return Model(init, apply)


def no_teacher() -> Model:
    """Stands in for the teacher where a network learns from labels alone; it has no outputs and no variables.

    Returns:
      A model; `Variables({}, {})` are its variables, and terms that need a teacher refuse it.
    """

    def init(key: jax.Array, batch: Batch) -> Variables:
        return Variables({}, {})

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        return Outputs(None, {}), variables.state

    return Model(init, apply)


def count_parameters(variables: Variables) -> int:
    """Number of trained scalars.

    Args:
      variables: A model's variables, or their abstract shapes.

    Returns:
      The sum of the sizes of all params.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(variables.params))
