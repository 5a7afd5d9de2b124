"""Entries of a training checkpoint: which of them hold weights, and the one that is asked for."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkd.pytorch.pickles import Numpy, Object, Tensor

_OTHERS = re.compile(
    r"optim|sched|scaler|criterion|loss|rng|metric|(^|_)meter|args|config|hyper|hparams|metadata|histor|result", re.I
)
"""Entries that hold tensors but no network."""
_DEEP = 4
"""Number of levels at which weights are looked for: {"callbacks": {"average": {"state": {"model": ...}}}}."""


def weights_of(root: Any, entry: str | None, path: pathlib.Path) -> Mapping[str, Any]:
    """Finds the weights of a network in a checkpoint.

    Args:
      root: The object that was saved, as `open_checkpoint` gives it.
      entry: Entry that holds them, such as "state_dict_ema", or "ema.model" for one within another; "" for the object
        itself; None if there is one alone.
      path: The file, for messages.

    Returns:
      Name -> `Tensor` or `Numpy`, and other values.

    Raises:
      ValueError: If there are no weights, none at that entry, or several and no entry is asked for; the sentence lists
        the entries that hold some.
    """
    found: dict[str, Mapping[str, Any]] = {}
    walked = list(_walk(root, "", 0))
    surely = any(sure for *_, sure in walked)
    for name, members, sure in walked:
        # One object under two names is one entry.
        if entry == name or (sure == surely and all(members != other for other in found.values())):
            found[name] = members
    shown = [f"{name!r} ({len(_arrays(members))} tensors)" for name, members in found.items()]
    listed = ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
    if not found:
        held = root.kind if isinstance(root, Object) else type(root).__name__
        inside = f" with {', '.join(map(repr, list(root)[:8]))}" if isinstance(root, Mapping) and root else ""
        raise ValueError(
            f"{path} holds a {held}{inside} but should hold a state dict of floating-point tensors: save "
            "model.state_dict()."
        )
    if entry is not None and entry not in found:
        raise ValueError(f"{path} has no weights at entry={entry!r}: choose one of {listed}.")
    if entry is None and len(found) > 1:
        raise ValueError(
            f"{path} holds several sets of weights, such as those of a moving average beside the trained ones: choose "
            f"by entry= one of {listed}."
        )
    return next(iter(found.values())) if entry is None else found[entry]


def is_array(value: Any) -> bool:
    """Checks for an array of a checkpoint.

    Args:
      value: A value in it.

    Returns:
      True for a `Tensor`, and for a `Numpy` of numbers.
    """
    return isinstance(value, Tensor) or (isinstance(value, Numpy) and value.dtype is not None)


def is_floating(dtype: Any) -> bool:
    """Checks for a format of real or complex floating-point numbers.

    Args:
      dtype: A NumPy format, or the name of one that NumPy lacks.

    Returns:
      True for those that weights may have.
    """
    return not isinstance(dtype, np.dtype) or jnp.issubdtype(dtype, jnp.inexact)


def _walk(value: Any, name: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Name and members of each entry that may hold weights, and whether it does by the names of its tensors."""
    members = _members(value)
    if members is None or depth > _DEEP:
        return
    arrays = _arrays(members)
    inner = [
        found
        for key, child in members.items()
        if isinstance(key, str) and not _OTHERS.search(key)
        for found in _walk(child, f"{name}.{key}" if name else key, depth + 1)
    ]
    if arrays:
        yield name, members, any(x.shape and re.search(r"\.|^(weight|bias|\d+)$", n) for n, x in arrays.items())
    yield from inner


def _arrays(members: Mapping[str, Any]) -> dict[str, Any]:
    """Floating-point arrays among the members."""
    return {n: x for n, x in members.items() if isinstance(n, str) and is_array(x) and is_floating(x.dtype)}


def _members(value: Any) -> Mapping[Any, Any] | None:
    """Members of a dict, a list, a whole network, or another object that was saved; None for what has none."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple):
        if all(isinstance(x, list | tuple) and len(x) == 2 and isinstance(x[0], str) for x in value):
            return dict(value)  # the list of a network's named parameters
        return {str(i): x for i, x in enumerate(value)}
    if not isinstance(value, Object) or isinstance(value, Numpy):
        return None
    if isinstance(value.state, Mapping):
        return dict(_of_module(value.state, "", 0)) if "_parameters" in value.state else value.state
    return value.items or None


def _of_module(state: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    """State dict of a network that was saved whole."""
    left_out = state.get("_non_persistent_buffers_set")
    names = left_out.args[0] if isinstance(left_out, Object) and left_out.args else ()
    for kind in ("_parameters", "_buffers"):
        yield from ((f"{prefix}{name}", x) for name, x in state[kind].items() if name not in names)
    for name, module in state["_modules"].items():
        if isinstance(module, Object) and isinstance(module.state, Mapping) and depth < 100:
            yield from _of_module(module.state, f"{prefix}{name}.", depth + 1)
