"""Conversion of PyTorch's tensors to a model's variables and back, by a table of rules."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd.pytorch.adapt import adapted
from jaxkd.pytorch.files import as_arrays
from jaxkd.pytorch.names import Name, Rule, check_rules, name_of, names_of, place, prefixes
from jaxkd.types import Batch, Model, PyTree, Variables, leaf_name

_LOG = logging.getLogger(__name__)
_INTEGERS = "iub"
"""Kinds of numbers that only counters and indices have."""
SHOWN = 8
"""Number of names of each kind that an error lists; the rest is counted."""


class MisfitError(ValueError):
    """Tensors and a model that do not fit each other.

    Attributes:
      listed: The names and shapes of what is missing, has no place, or another shape.
    """

    def __init__(self, listed: str, advice: str) -> None:
        super().__init__(f"the tensors do not fit the model: {listed}; {advice}.")
        self.listed = listed


def import_weights(
    model: Model,
    rules: Sequence[Rule],
    tensors: Mapping[str, ArrayLike],
    batch: Batch,
    *,
    prefix: str | None = None,
    fresh: str | None = None,
    key: jax.Array | None = None,
    adapt: bool = False,
) -> Variables:
    """Variables of a model from the tensors of a PyTorch network of the same architecture.

    Kernels go from [O, I, height, width] to [height, width, I, O], and from [O, I] to [I, O]; integer counters and
    indices, such as `num_batches_tracked`, are left out.

    Args:
      model: The model, whose last layer has the classes of the tensors (see `num_classes`).
      rules: Names of the layers on both sides.
      tensors: Name -> array, as `read_tensors` gives them.
      batch: A batch that the model reads, or its shapes.
      prefix: The tensors below it, such as "student.backbone.", are taken without it, and all others left out. If None,
        it is the one below which the tensors fit, and there may be no others.
      fresh: Regular expression, searched in paths such as "head/kernel", of layers that are initialised instead; their
        tensors, if there are any, are left out. All else has to fit.
      key: PRNG key of the fresh layers.
      adapt: Whether the first kernel may take another number of channels (summed for grey images), and position
        embeddings another size of images (interpolated) or shorter sequences (cut).

    Returns:
      All params and running statistics, in float32, or float64 where tensors are and JAX is set to it.

    Raises:
      ValueError: If a tensor has no place in the model, a part of the model no tensor, or both differ in shape; the
        sentence lists their names and shapes. Also if numbers are not finite, tensors fit below several prefixes, two
        have one place, or `fresh` fits no path or lacks its key.
      TypeError: If the tensors are no arrays of numbers, or the rules no rules.
    """
    check_rules(rules)
    like = jax.eval_shape(model.init, jax.random.key(0), batch)
    wanted = {path: leaf.shape for path, leaf in _named(like).items()}
    anew = _fresh_paths(wanted, fresh, key)
    arrays, below = _below(rules, as_arrays(tensors), wanted, prefix)
    # What else PyTorch has in place of a fresh layer, such as a perceptron: fc.0.weight, fc.2.weight.
    names = [n.theirs for path in anew for n in names_of(rules, path)]
    stems = tuple(name.removesuffix("weight") for name in names if name.endswith(".weight"))
    found: dict[str, np.ndarray] = {}
    sources: dict[str, str] = {}
    unknown = []
    for name, array in arrays.items():
        parts = _parts(rules, name, array, wanted)
        for path in parts.keys() & found.keys():
            raise ValueError(f"both {sources[path]} and {name} have the place {path}: leave one of them out.")
        found |= parts
        sources |= dict.fromkeys(parts, name)
        unknown += [] if parts or name.startswith(stems) or array.dtype.kind in _INTEGERS else [f"{name} {array.shape}"]
    found = {path: x for path, x in found.items() if path not in anew}
    suited = _adapted(found, wanted, batch)
    found |= suited if adapt else {}
    _check_fit(rules, unknown, found, {path: s for path, s in wanted.items() if path not in anew}, suited, below)
    _check_finite(found, sources)
    found |= _initialised(model, key, batch, anew)
    return _map_named(lambda path, leaf: jnp.asarray(found[path]), like)


def export_weights(variables: Variables, rules: Sequence[Rule], *, names: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Tensors of a PyTorch state dict from a model's variables; the exact inverse of `import_weights`.

    PyTorch loads them with `load_state_dict`, which fills in `num_batches_tracked` itself.

    Args:
      variables: A model's variables.
      rules: Names of the layers on both sides.
      names: Names of the tensors that were read, if they are to stay: their prefix, and gamma or weight where both have
        a place.

    Returns:
      Name -> array.

    Raises:
      ValueError: If a param or running statistic has no name in the rules; the sentence lists paths and shapes.
      TypeError: If the variables are no variables, or the rules no rules.
    """
    check_rules(rules)
    if not isinstance(variables, Variables):
        raise TypeError(
            f"the variables are a {type(variables).__name__} and no jaxkd.types.Variables: pass Variables(params, "
            "state), with the state {'batch_stats': ...} or {}."
        )
    leaves = _named(variables)
    known = set(names)
    prefix = next(iter(prefixes(rules, known, leaves)))
    parts: dict[str, dict[int, np.ndarray]] = {}
    unknown = []
    for path, leaf in leaves.items():
        array = np.asarray(leaf)
        name = _chosen(names_of(rules, path), prefix, known)
        if name is None:
            unknown.append(f"{path} {array.shape}")
            continue
        array = _without_heads(path, array, leaves)
        array = array.transpose(-1, -2, *range(array.ndim - 2)) if _is_kernel(path, array) else array
        parts.setdefault(prefix + name.theirs, {})[name.part] = array.reshape(array.shape + (1,) * name.ones)
    if unknown:
        listed = _listed("parts of the model without a name in PyTorch", unknown)
        raise ValueError(f"there are {listed}; pass the rules of a network of this architecture.")
    return {name: np.concatenate([of[i] for i in sorted(of)]) if len(of) > 1 else of[0] for name, of in parts.items()}


def num_classes(rules: Sequence[Rule], tensors: Mapping[str, ArrayLike], *, prefix: str | None = None) -> int:
    """Number of classes of a PyTorch network.

    Args:
      rules: Names of its layers on both sides.
      tensors: Name -> array.
      prefix: As for `import_weights`.

    Returns:
      The outputs of its last layer.

    Raises:
      ValueError: If the tensors lack it, or last layers below several prefixes have different numbers of outputs.
      TypeError: If the rules are no rules.
    """
    check_rules(rules)
    tensors = as_arrays(tensors)
    found = [*prefixes(rules, tensors)] if prefix is None else [prefix]
    called = [n.theirs for n in names_of(rules, "head/kernel")]
    counts = {p: np.shape(tensors[p + n])[0] for p in found for n in called if np.ndim(tensors.get(p + n, 0)) == 2}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"the last layers of several networks have "
            f"{', '.join(f'{n} outputs below {p!r}' for p, n in counts.items())}: choose by prefix= one of them."
        )
    if not counts:
        name = f"the name {called[0]!r}" if called else "no name by these rules"
        known = _listed("tensors", [f"{n} {np.shape(x)}" for n, x in tensors.items()])
        raise ValueError(
            f"the last layer has {name} among {known}; pass the rules of where they come from, or, if it is not there, "
            "choose the classes yourself and pass fresh='^head/' to import_weights."
        )
    return next(iter(counts.values()))


def _fresh_paths(wanted: Collection[str], fresh: str | None, key: jax.Array | None) -> set[str]:
    """Paths of the layers that are initialised."""
    if fresh is None:
        return set()
    try:
        anew = {path for path in wanted if re.search(fresh, path)}
    except (TypeError, re.error) as error:
        raise ValueError(f"{fresh=} is no regular expression ({error}): pass one such as '^head/'.") from error
    if not anew:
        raise ValueError(f"no path has fresh={fresh!r}: choose among {_listed('paths', list(wanted)[::-1])}.")
    if not isinstance(key, jax.Array):
        raise ValueError(f"fresh={fresh!r} needs the PRNG key of the new values: pass key=jax.random.key(0).")
    return anew


def _below(
    rules: Sequence[Rule], arrays: dict[str, np.ndarray], wanted: Collection[str], prefix: str | None
) -> tuple[dict[str, np.ndarray], str]:
    """Tensors without the prefix below which they fit the model, and that prefix."""
    if prefix is not None:
        found = {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}
        if not found:
            raise ValueError(f"no tensor's name begins with prefix={prefix!r}: {_listed('they are', list(arrays))}.")
        return found, prefix
    (way, count), *others = prefixes(rules, arrays, wanted).items()
    if others and 2 * count > len(wanted):
        ways = ", ".join(repr(x) for x in (way, *dict(others)))
        raise ValueError(f"tensors fit the model below each of {ways}: choose by prefix= one of them.")
    if way:
        _LOG.info("the tensors are taken without their prefix %s", way)
    return {name.removeprefix(way): x for name, x in arrays.items()}, way


def _adapted(
    found: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]], batch: Batch
) -> dict[str, np.ndarray]:
    """Arrays of another shape than wanted that can be adapted to other inputs."""
    tokens = sum(shape[-2] for path, shape in wanted.items() if path.endswith("_token") and len(shape) > 1)
    image = np.shape(batch["image"]) if "image" in batch else None
    ways = {
        path: adapted(path, x, wanted[path], tokens=tokens, image=image)
        for path, x in found.items()
        if x.shape != wanted[path]
    }
    return {path: x for path, x in ways.items() if x is not None and x.shape == wanted[path]}


def _check_fit(
    rules: Sequence[Rule],
    unknown: list[str],
    found: Mapping[str, np.ndarray],
    wanted: Mapping[str, tuple[int, ...]],
    suited: Collection[str],
    prefix: str,
) -> None:
    """Raises ValueError, with all names and shapes and what to do, unless the tensors are those that are wanted."""
    missing = {path: f"{_described(rules, path)} {shape}" for path, shape in wanted.items() if path not in found}
    other = {
        path: f"{_described(rules, path)} {array.shape} instead of {wanted[path]}"
        for path, array in found.items()
        if array.shape != wanted[path]
    }
    if not (unknown or missing or other):
        return
    kinds = {
        "without a place in the model": unknown,
        "missing": list(missing.values()),
        "of another shape, in our layout": list(other.values()),
    }
    advice = "pass the rules of where they come from and a model of their architecture and classes"
    unfit = (missing.keys() | other.keys()) - set(suited)
    layers = sorted({path.rpartition("/")[0] or path for path in unfit})
    if 0 < len(layers) < 3 and all(p in unfit for p in wanted if (p.rpartition("/")[0] or p) in layers):
        ends = [f"{layer}{'$' if layer in wanted else '/'}" for layer in layers]
        pattern = ends[0] if len(ends) == 1 else f"({'|'.join(ends)})"
        advice += f"; to begin {' and '.join(layers)} anew, pass fresh='^{pattern}' and key=jax.random.key(0)"
    if other.keys() & set(suited):
        advice += "; for other channels or another size of the inputs, pass adapt=True"
    if unknown and (prefix or not unfit):
        advice += f"; to leave out what has no place, {f'pass {prefix=} or ' if prefix else ''}take it from the dict"
    raise MisfitError("; ".join(_listed(*kind) for kind in kinds.items() if kind[1]), advice)


def _check_finite(found: Mapping[str, np.ndarray], sources: Mapping[str, str]) -> None:
    """Raises ValueError if a number is none, or becomes infinite in the format of the model."""
    for path, x in found.items():
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            raise ValueError(f"{sources[path]} has complex numbers, but {path} has real ones: pass its real part.")
        with np.errstate(over="ignore"):
            finite = np.isfinite(x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False))
        if not finite.all():
            raise ValueError(
                f"{sources[path]} holds {int(np.sum(~finite))} values that are not finite in the model's format: "
                "take weights from before the training failed."
            )


def _initialised(model: Model, key: jax.Array | None, batch: Batch, paths: Collection[str]) -> dict[str, Any]:
    """Initial values of some paths; the others' are never computed."""
    dtypes = {n: jax.dtypes.canonicalize_dtype(x.dtype if hasattr(x, "dtype") else type(x)) for n, x in batch.items()}

    def init(key: Any) -> dict[str, Any]:
        own = _named(model.init(key, {name: jnp.zeros(np.shape(x), dtypes[name]) for name, x in batch.items()}))
        return {path: own[path] for path in paths}

    return jax.jit(init)(key) if paths else {}


def _chosen(found: Sequence[Name], prefix: str, known: Collection[str]) -> Name | None:
    """The name that was read, or else the usual one."""
    return next((n for n in found if prefix + n.theirs in known), found[0] if found else None)


def _parts(rules: Sequence[Rule], name: str, array: np.ndarray, wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parts of a tensor by path, in our layout; none if the model has no place for it."""
    for paths, ones in place(rules, name):
        if all(path in wanted for path in paths):
            if array.dtype.kind in _INTEGERS:
                raise ValueError(f"{name} is {array.dtype}, but {paths[0]} has floating-point numbers: pass those.")
            if ones and array.shape[-ones:] == (1,) * ones:
                array = array.reshape(array.shape[:-ones])
            array = array.astype(np.result_type(array.dtype, np.float32))
            parts = np.array_split(array, len(paths)) if len(paths) > 1 else [array]
            ours = {path: _from_theirs(path, part) for path, part in zip(paths, parts, strict=True)}
            return {path: _with_heads(path, x, wanted) for path, x in ours.items()}
    return {}


def _heads(path: str, shapes: Mapping[str, Any]) -> str:
    """Name of the layer of Flax's own attention, whose heads are an axis of their own, that a path belongs to."""
    layer, _, leaf = path.rpartition("/")
    parent, _, name = layer.rpartition("/")
    query = shapes.get(f"{parent}/query/kernel" if parent else "query/kernel")
    heads = query is not None and len(getattr(query, "shape", query)) == 3
    return name if heads and name in ("query", "key", "value", "out") and leaf in ("kernel", "bias") else ""


def _with_heads(path: str, array: np.ndarray, wanted: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    if not _heads(path, wanted):
        return array
    shape = wanted[path]
    fits = array.size == np.prod(shape) and (
        array.ndim == 1 or array.shape[0] == shape[0] or array.shape[-1] == shape[-1]
    )
    return array.reshape(shape) if fits else array


def _without_heads(path: str, array: np.ndarray, leaves: Mapping[str, Any]) -> np.ndarray:
    name = _heads(path, leaves)
    if not name or (name == "out" and array.ndim == 1):
        return array
    if array.ndim == 3:
        return array.reshape(-1, array.shape[-1]) if name == "out" else array.reshape(array.shape[0], -1)
    return array.ravel()


def _is_kernel(path: str, array: np.ndarray) -> bool:
    return path.rpartition("/")[2] == "kernel" and array.ndim >= 2


def _from_theirs(path: str, array: np.ndarray) -> np.ndarray:
    return array.transpose(*range(2, array.ndim), 1, 0) if _is_kernel(path, array) else array


def _map_named(change: Any, variables: PyTree) -> Any:
    """Tree of the same structure from change(path, leaf), where paths begin below params and collections of state."""

    modules = variables.params if isinstance(variables.params, Mapping) else ()

    def at(keys: Sequence[Any], leaf: Any) -> Any:
        kind, *parts = leaf_name(keys).split("/")
        # Linen's state has collections; NNX's has the modules themselves, as params do.
        collection = kind == "state" and len(parts) > 1 and parts[0] not in modules
        return change("/".join(parts[collection:]), leaf)

    return jax.tree.map_with_path(at, variables)


def _named(variables: PyTree) -> dict[str, Any]:
    """Path -> leaf of all params and state."""
    found: dict[str, Any] = {}
    _map_named(found.__setitem__, variables)
    return found


def _described(rules: Sequence[Rule], path: str) -> str:
    """Path with the name of its tensor in PyTorch, for messages."""
    name = name_of(rules, path)
    return path if name is None else f"{name.theirs} (our {path})"


def _listed(kind: str, names: Sequence[str]) -> str:
    """First few names, and the number of the others."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{kind}: {', '.join(names[:SHOWN])}{more}"
