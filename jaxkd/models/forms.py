"""Forms in which networks return their outputs, and the `Outputs` that are made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.types import Outputs, leaf_name

_ADVICE = "return logits [B, ..., K], (logits, features), something with a field `logits`, or Outputs"


def outputs_of(returned: Any, whose: str) -> Outputs:
    """Outputs from what a network returns.

    Args:
      returned: Outputs; logits; a tuple or list of logits and further outputs; a mapping, dataclass or named tuple with
        the field `logits`.
      whose: Name of the network, for messages.

    Returns:
      Outputs. Further outputs are features: those in a mapping under their names, those of a dataclass or a named tuple
        under the names of its fields, others as "output1", "output2"; nested ones with slashes, "hidden_states/0".

    Raises:
      TypeError: If there are no logits in it, or they are no floats.
    """
    if isinstance(returned, Outputs):
        features = returned.features
        flat = features if _all_arrays(features) else _flat(dict(features))
        return _checked(returned._replace(features=flat), whose)
    if (fields := _fields(returned)) is not None:
        if fields.get("logits") is None:
            known = ", ".join(map(str, fields)) or "nothing"
            raise TypeError(f"{whose} returns a {type(returned).__name__} of {known}, without `logits`: {_ADVICE}.")
        rest = {str(name): x for name, x in fields.items() if name != "logits"}
        if isinstance(named := rest.get("features"), Mapping):
            rest = {**{n: x for n, x in rest.items() if n != "features"}, **named}
        return _checked(Outputs(fields["logits"], rest if _all_arrays(rest) else _flat(rest)), whose)
    if isinstance(returned, tuple | list) and returned and _is_array(returned[0]):
        first, *others = returned
        named = {f"output{i}": x for i, x in enumerate(others, 1) if not isinstance(x, Mapping)}
        for x in others:
            named |= dict(x) if isinstance(x, Mapping) else {}
        return _checked(Outputs(first, named if _all_arrays(named) else _flat(named)), whose)
    return _checked(Outputs(returned, {}), whose)


def _fields(returned: Any) -> dict[str, Any] | None:
    """Fields of a mapping, dataclass, named tuple or object with logits; None for anything else."""
    if isinstance(returned, Mapping):
        return dict(returned)
    if isinstance(returned, tuple) and hasattr(returned, "_fields"):
        return dict(zip(returned._fields, returned, strict=True))
    if dataclasses.is_dataclass(returned) and not isinstance(returned, type):
        return {field.name: getattr(returned, field.name) for field in dataclasses.fields(returned)}
    if hasattr(returned, "logits") and not _is_array(returned):
        return dict(vars(returned))
    return None


def _checked(outputs: Outputs, whose: str) -> Outputs:
    """The outputs, after a check that their logits are floats."""
    z = outputs.logits
    if not _is_array(z):
        raise TypeError(f"{whose} returns a {type(z).__name__} as its logits instead of one array: {_ADVICE}.")
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise TypeError(f"{whose} returns logits of dtype {z.dtype} instead of floats: {_ADVICE}.")
    return outputs


def _all_arrays(features: Mapping[str, Any]) -> bool:
    return all(_is_array(x) for x in features.values())


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def _flat(features: Mapping[str, Any]) -> dict[str, Any]:
    """Nested arrays by their paths; numbers are arrays, and everything else (None, texts) is left out."""
    leaves = jax.tree.leaves_with_path({str(name): _plain(x) for name, x in features.items()})
    return {
        leaf_name(path): x if _is_array(x) else jnp.asarray(x)
        for path, x in leaves
        if _is_array(x) or (isinstance(x, int | float) and not isinstance(x, bool))
    }


def _plain(x: Any) -> Any:
    """Containers as dicts, whose fields have names in paths."""
    if isinstance(x, list | tuple) and not hasattr(x, "_fields"):
        return {str(i): _plain(v) for i, v in enumerate(x)}
    fields = None if _is_array(x) else _fields(x)
    return x if fields is None else {str(n): _plain(v) for n, v in fields.items()}
