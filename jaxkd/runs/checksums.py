"""What a checkpoint says of the arrays in it: paths, shapes, dtypes, and checksums that no sharding changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.keys import plain_words
from jaxkd.types import PyTree, leaf_name

SHOWN = 3
"""How many differences of each kind are named; the rest is counted."""


class Entry(NamedTuple):
    """One array of a tree.

    Attributes:
      array: Its dtype and shape, as "float32[3,4]".
      checksum: Sum over its bits, or None where only shapes are known.
    """

    array: str
    checksum: int | None


def inventory(tree: PyTree) -> dict[str, Entry]:
    """Lists the arrays of a tree.

    The checksum is a sum of 32-bit words modulo 2^32, each times an odd number that depends on its place: equal however
    the array is split over devices, and different as soon as one word is.

    Args:
      tree: Arrays or typed PRNG keys, of any sharding; or their shapes, which have no checksums.

    Returns:
      Path, as "params/student/w" -> entry.
    """
    leaves = {leaf_name(path): x for path, x in jax.tree.leaves_with_path(tree)}
    sums = {path: _checksum(x) for path, x in leaves.items() if isinstance(x, jax.Array)}
    known = {path: int(value) for path, value in jax.device_get(sums).items()}
    return {path: Entry(f"{x.dtype}[{','.join(map(str, x.shape))}]", known.get(path)) for path, x in leaves.items()}


def differences(there: Mapping[str, Entry], here: Mapping[str, Entry]) -> list[str]:
    """Says in which arrays a checkpoint and a state differ.

    Args:
      there: The checkpoint's inventory.
      here: The state's; without checksums, only paths, shapes and dtypes count.

    Returns:
      Parts of a sentence about the checkpoint, none if they agree.
    """
    both = [path for path in here if path in there]
    other = [path for path in both if here[path].array != there[path].array]
    damaged = [
        path
        for path in both
        if path not in other and here[path].checksum is not None and here[path].checksum != there[path].checksum
    ]
    kinds = {
        "lacks": [path for path in here if path not in there],
        "has too much": [path for path in there if path not in here],
        "holds in another form": [f"{path} ({there[path].array}, not {here[path].array})" for path in other],
        "has other bits than were saved in": damaged,
    }
    return [f"{kind} {_some(names)}" for kind, names in kinds.items() if names]


def _some(names: Iterable[str]) -> str:
    """The first names, and how many there are besides."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@jax.jit
def _checksum(x: Any) -> jax.Array:
    """Sum of an array's words, each weighed by its place; no reshape, which would gather a sharded array."""
    x = plain_words(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    if x.dtype.itemsize >= 4:
        words = jax.lax.bitcast_convert_type(x, jnp.uint32)  # of eight bytes: two words on an axis of their own
    elif jnp.issubdtype(x.dtype, jnp.floating):
        words = jax.lax.bitcast_convert_type(x, jnp.uint16 if x.dtype.itemsize == 2 else jnp.uint8).astype(jnp.uint32)
    else:
        words = x.astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        stride = math.prod(words.shape[axis + 1 :]) % 2**32
        if size > 1:
            place = place + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride)
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)
