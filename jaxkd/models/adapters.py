"""Adapters that turn Linen modules into models, and the initialisation of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import DenyList
from flax.errors import FlaxError

from jaxkd.kernels.eager import op_by_op
from jaxkd.keys import fold_name, typed_key
from jaxkd.models import modes
from jaxkd.models.forms import outputs_of
from jaxkd.models.misfits import misfit_of, told, unmoved
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables, as_variables

_STATISTICS = "batch_stats"
_SOWN = ("intermediates", "perturbations")  # collections of Flax that are made anew in each call


def read_inputs(batch: Batch, names: Sequence[str], option: str = "`inputs=`") -> list[Any]:
    """Fields of a batch that a network reads.

    Args:
      batch: The batch.
      names: The fields' names.
      option: Option that names them, for the message.

    Returns:
      Their arrays, in order.

    Raises:
      ValueError: If the batch lacks one.
    """
    for name in names:
        if name not in batch:
            raise ValueError(
                f"the model reads the batch's field {name!r} but the batch has {', '.join(sorted(batch))}: name the "
                f"fields it should read with {option}."
            )
    return [batch[name] for name in names]


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
      batch: A prepared batch, or its shapes; values that a model reads where there are shapes alone are zeros.

    Returns:
      The variables that `model.init(key, batch)` gives.
    """
    key = typed_key(key)
    empty = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x, dict(batch)
    )
    return op_by_op(model.init, key, empty)


def from_linen(
    module: nn.Module,
    *,
    inputs: Sequence[str] = ("image",),
    capture: Sequence[str] = (),
    training: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> Model:
    """Model from a Linen module.

    Flags of training, which are arguments of the module's call or attributes, are found by their names: train,
    training, is_training, deterministic, use_running_average, eval, inference, test and the like. So are those that
    layers inside leave open. Dropout and other layers draw from streams of the model's key. Values that modules sow
    are no state.

    Args:
      module: Returns Outputs, logits [B, ..., K], (logits, features), or a mapping, dataclass or named tuple with the
        field `logits`, as `jaxkd.models.forms.outputs_of` describes.
      inputs: Fields of the batch that are its positional arguments.
      capture: Paths of submodules ("block1/conv") whose outputs are added to the features under these names; or of
        sown values, with their collection ("losses/block1/balance"). The last one counts if there are several.
      training: Name -> value in training of flags that have other names; {} if nothing is to be set.
      evaluation: Name -> value in evaluation; the opposite of `training` if None.

    Returns:
      A model; its state holds every collection but "params" and sown ones.

    Raises:
      TypeError: If it is no Linen module, or returns no logits.
      ValueError: If the batch lacks an input, the variables do not fit, no submodule has a captured path (the sentence
        lists those there are), or it does not return one array; if a batch norm or dropout is never in training mode.
    """
    _check_linen(module)
    name, found = type(module).__name__, modes.find(module, len(inputs), training, evaluation)
    of_mode = {train: modes.with_attributes(module, found, train) for train in (True, False)}
    known = found.stated or bool(found.train.call) or of_mode[True] is not of_mode[False]
    start = _Start(of_mode[False], inputs, found.evaluate.call)

    def init(key: jax.Array, batch: Batch) -> Variables:
        key = typed_key(key)
        with told(name, batch, inputs, train=False, has_key=True, misfit=lambda: None):
            made = start(key, batch)
        state = {c: x for c, x in made.items() if c == _STATISTICS or (c != "params" and not start.is_sown(c, batch))}
        return Variables(made.get("params", {}), state)

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        variables, called = as_variables(variables), set[str]()
        carried = [c for c in variables.state if train and (c == _STATISTICS or not start.is_sown(c, batch))]

        def wanted(submodule: nn.Module, method: str) -> bool:
            path = "/".join(submodule.path) if method == "__call__" else ""
            called.add(path)
            return path in capture

        watch, arrays = modes.Watch(train), read_inputs(batch, inputs)
        misfit = lambda: misfit_of(variables, lambda: jax.eval_shape(init, jax.random.key(0), batch))  # noqa: E731
        with (
            told(name, batch, inputs, train=train, has_key=key is not None, misfit=misfit),
            nn.intercept_methods(watch),
        ):
            returned, changed = of_mode[train].apply(
                {"params": variables.params, **variables.state},
                *arrays,
                **(found.train if train else found.evaluate).call,
                rngs=None if key is None else {"dropout": typed_key(key), "params": fold_name(key, "params")},
                mutable=[*carried, *(("intermediates", *{c.split("/")[0] for c in capture}) if capture else ())],
                capture_intermediates=wanted if capture else False,
            )
        if train and not found.stated:
            _check_moves(module, known, watch, variables.state.get(_STATISTICS), changed.get(_STATISTICS))
        outputs = outputs_of(returned, name)
        if capture:
            captured = {path: _captured(dict(changed), path, called, name) for path in capture}
            outputs = outputs._replace(features={**outputs.features, **captured})
        return outputs, {**variables.state, **{c: changed[c] for c in carried if c in changed}}

    return Model(init, apply)


class _Start:
    """The collections that a Linen module starts with.

    Args:
      module: The module in evaluation mode.
      inputs: Fields of the batch that it reads.
      flags: Arguments of its call in evaluation.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[str], flags: Mapping[str, Any]) -> None:
        self._module, self._inputs, self._flags = module, inputs, flags
        self._sown: dict[str, bool] = {}

    def __call__(self, key: jax.Array, batch: Batch, mutable: Any = True) -> dict[str, Any]:
        """Initialises the collections that may be made."""
        streams = {"params": fold_name(key, "params"), "dropout": fold_name(key, "dropout")}
        with nn.intercept_methods(modes.Watch(False)):
            return dict(self._module.init(streams, *read_inputs(batch, self._inputs), mutable=mutable, **self._flags))

    def is_sown(self, collection: str, batch: Batch) -> bool:
        """Tells whether modules sow the collection: they can be initialised without it."""
        if collection not in self._sown:
            without = DenyList(collection)
            self._sown[collection] = collection in _SOWN or _exists(lambda: self(jax.random.key(0), batch, without))
        return self._sown[collection]


def _check_linen(module: Any) -> None:
    """Raises TypeError unless it is a Linen module."""
    if not isinstance(module, nn.Module):
        a_class = isinstance(module, type) and issubclass(module, nn.Module)
        found = f"the class {module.__name__}" if a_class else f"a {type(module).__name__}"
        how = (
            "make one, with `()`"
            if a_class
            else "use models.from_nnx for NNX, or Model(init, apply) of your own functions"
        )
        raise TypeError(f"from_linen takes a Linen module, but was given {found}: {how}.")


def _exists(make: Callable[[], Any]) -> bool:
    """Whether something can be made, by its shapes alone."""
    try:
        jax.eval_shape(make)
    except FlaxError:
        return False
    return True


def _check_moves(module: nn.Module, known: bool, watch: modes.Watch, old: PyTree, new: PyTree) -> None:
    """Raises ValueError if the running statistics are the same arrays after a training step, or all dropout is off."""
    before, after = jax.tree.leaves(old), jax.tree.leaves(new)
    what = ""
    if before and len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True)):
        what = "its batch norms keep their running statistics"
    elif watch.kept and not watch.dropped and not known:
        what = f"its dropout ({watch.kept}) is off"
    if what:
        arguments, attributes = modes.arguments_of(type(module)), modes.attributes_of(module)
        raise unmoved(type(module).__name__, what, arguments, attributes)


def _captured(found: PyTree, name: str, called: set[str], whose: str) -> jax.Array:
    """Output of the last call of the submodule at a path, or the last value sown there."""
    sown, output = _at(found, name.split("/")), _at(found, ("intermediates", *name.split("/"), "__call__"))
    values = output if sown is None or isinstance(sown, Mapping) else sown
    if values is None:
        known = ", ".join(sorted(called - {""})) or "none"
        raise ValueError(
            f"{whose} has no submodule {name!r} to capture and sows no value of that name, such as 'losses/balance': "
            f"choose among the submodules that it calls: {known}."
        )
    value = values[-1] if isinstance(values, tuple) else values
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        raise ValueError(
            f"the submodule {name!r} of {whose} returns a {type(value).__name__} instead of one array: capture a "
            "submodule inside it."
        )
    return jnp.asarray(value)


def _at(tree: PyTree, path: Sequence[str]) -> Any:
    """Entry of nested mappings, or None."""
    for part in path:
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree
