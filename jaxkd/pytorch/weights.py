"""Conversion of PyTorch's tensors to a model's variables and back, by a table of rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd.pytorch.names import Rule, name_of, place
from jaxkd.types import Batch, Model, Variables, leaf_name

SHOWN = 8
"""Number of names of each kind that an error lists; the rest is counted."""


def import_weights(model: Model, rules: Sequence[Rule], tensors: Mapping[str, ArrayLike], batch: Batch) -> Variables:
    """Variables of a model from the tensors of a PyTorch network of the same architecture.

    Kernels go from [O, I, height, width] to [height, width, I, O], and from [O, I] to [I, O]; `num_batches_tracked` is
    left out.

    Args:
      model: The model, whose last layer has the classes of the tensors (see `num_classes`).
      rules: Names of the layers on both sides.
      tensors: Name -> array, as `read_tensors` gives them.
      batch: A batch that the model reads, or its shapes.

    Returns:
      All params and running statistics, in float32, or float64 where tensors are and JAX is set to it.

    Raises:
      ValueError: If a tensor has no place in the model, a part of the model no tensor, or both differ in shape; the
        sentence lists their names and shapes.
    """
    like = jax.eval_shape(model.init, jax.random.key(0), batch)
    wanted = {_path(p): leaf.shape for p, leaf in jax.tree.leaves_with_path((like.params, *like.state.values()))}
    found: dict[str, np.ndarray] = {}
    unknown = []
    for name, tensor in tensors.items():
        if not name.endswith("num_batches_tracked"):
            parts = _parts(rules, name, np.asarray(tensor), wanted)
            found |= parts
            unknown += [] if parts else [f"{name} {np.shape(tensor)}"]
    missing = [f"{_described(rules, path)} {shape}" for path, shape in wanted.items() if path not in found]
    other = [
        f"{_described(rules, path)} {array.shape} instead of {wanted[path]}"
        for path, array in found.items()
        if array.shape != wanted[path]
    ]
    if unknown or missing or other:
        kinds = {"without a place in the model": unknown, "missing": missing, "of another shape, in our layout": other}
        raise ValueError(
            f"the tensors do not fit the model: {'; '.join(_listed(*kind) for kind in kinds.items() if kind[1])}; pass "
            "the rules of where they come from and a model of their architecture and classes."
        )
    return Variables(
        _filled(like.params, found), {collection: _filled(tree, found) for collection, tree in like.state.items()}
    )


def export_weights(variables: Variables, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """Tensors of a PyTorch state dict from a model's variables; the exact inverse of `import_weights`.

    PyTorch loads them with `load_state_dict`, which fills in `num_batches_tracked` itself.

    Args:
      variables: A model's variables.
      rules: Names of the layers on both sides.

    Returns:
      Name -> array.

    Raises:
      ValueError: If a param or running statistic has no name in the rules; the sentence lists paths and shapes.
    """
    parts: dict[str, dict[int, np.ndarray]] = {}
    unknown = []
    for keys, leaf in jax.tree.leaves_with_path((variables.params, *variables.state.values())):
        path, array = _path(keys), np.asarray(leaf)
        name = name_of(rules, path)
        if name is None:
            unknown.append(f"{path} {array.shape}")
            continue
        array = array.transpose(-1, -2, *range(array.ndim - 2)) if path.endswith("/kernel") else array
        parts.setdefault(name.theirs, {})[name.part] = array.reshape(*array.shape, *(1,) * name.ones)
    if unknown:
        listed = _listed("parts of the model without a name in PyTorch", unknown)
        raise ValueError(f"there are {listed}; pass the rules of a network of this architecture.")
    return {name: np.concatenate([of[i] for i in sorted(of)]) if len(of) > 1 else of[0] for name, of in parts.items()}


def num_classes(rules: Sequence[Rule], tensors: Mapping[str, ArrayLike]) -> int:
    """Number of classes of a PyTorch network.

    Args:
      rules: Names of its layers on both sides.
      tensors: Name -> array.

    Returns:
      The outputs of its last layer.

    Raises:
      ValueError: If the tensors lack it.
    """
    name = name_of(rules, "head/kernel")
    if name is None or name.theirs not in tensors:
        called = "no name by these rules" if name is None else f"the name {name.theirs!r}"
        known = _listed("tensors", [f"{n} {np.shape(x)}" for n, x in tensors.items()])
        raise ValueError(f"the last layer has {called} among {known}; pass the rules of where they come from.")
    return np.shape(tensors[name.theirs])[0]


def _parts(rules: Sequence[Rule], name: str, array: np.ndarray, wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parts of a tensor by path, in our layout; none if the model has no place for it."""
    for paths, ones in place(rules, name):
        if all(path in wanted for path in paths):
            if ones and array.shape[-ones:] == (1,) * ones:
                array = array.reshape(array.shape[:-ones])
            array = array.astype(np.result_type(array.dtype, np.float32))
            parts = np.array_split(array, len(paths)) if len(paths) > 1 else [array]
            return {path: _from_theirs(path, part) for path, part in zip(paths, parts, strict=True)}
    return {}


def _from_theirs(path: str, array: np.ndarray) -> np.ndarray:
    if path.endswith("/kernel") and array.ndim >= 2:
        return array.transpose(*range(2, array.ndim), 1, 0)
    return array


def _filled(like: Any, found: Mapping[str, np.ndarray]) -> Any:
    """Tree of the same structure with the arrays of its paths."""
    return jax.tree.map_with_path(lambda keys, _: jnp.asarray(found[_path(((), *keys))]), like)


def _path(keys: Sequence[Any]) -> str:
    """Path within a collection, whose own key comes first."""
    return leaf_name(keys[1:])


def _described(rules: Sequence[Rule], path: str) -> str:
    """Path with the name of its tensor in PyTorch, for messages."""
    name = name_of(rules, path)
    return path if name is None else f"{name.theirs} (our {path})"


def _listed(kind: str, names: Sequence[str]) -> str:
    """First few names, and the number of the others."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{kind}: {', '.join(names[:SHOWN])}{more}"
