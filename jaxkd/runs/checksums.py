"""Inventory of a checkpoint's arrays: paths, shapes, dtypes, and checksums that do not depend on the sharding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.keys import plain_words
from jaxkd.types import PyTree, leaf_name

SHOWN = 3
"""Number of differences of each kind that are named; the others are counted."""


class Entry(NamedTuple):
    """Entry of an inventory, which describes one array.

    Attributes:
      array: Dtype and shape, such as "float32[3,4]".
      checksum: Checksum of the bits, or None for an abstract array.
    """

    array: str
    checksum: int | None


def inventory(tree: PyTree) -> dict[str, Entry]:
    """Lists the arrays of a tree.

    checksum = sum_i word_i * (2 i + 1) mod 2^32

    over the array's 32-bit words, where i is the position of the word in the whole array. It does not depend on how the
    array is split over devices, and a change of any one word changes it.

    Args:
      tree: Arrays or typed PRNG keys, of any sharding; or their abstract shapes, which have no checksums.

    Returns:
      Path, such as "params/student/w" -> entry.
    """
    leaves = {leaf_name(path): x for path, x in jax.tree.leaves_with_path(tree)}
    sums = {path: _checksum(x) for path, x in leaves.items() if isinstance(x, jax.Array)}
    checksums = {path: int(value) for path, value in jax.device_get(sums).items()}
    return {path: Entry(f"{x.dtype}[{','.join(map(str, x.shape))}]", checksums.get(path)) for path, x in leaves.items()}


def differences(there: Mapping[str, Entry], here: Mapping[str, Entry]) -> list[str]:
    """Differences between the arrays of a checkpoint and those of a state.

    Args:
      there: Inventory of the checkpoint.
      here: Inventory of the state. Without checksums, only paths, shapes and dtypes are compared.

    Returns:
      Predicates of a sentence about the checkpoint, such as "lacks step"; empty if the two agree.
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
        "also holds": [path for path in there if path not in here],
        "holds in another shape or dtype": [f"{path} ({there[path].array}, not {here[path].array})" for path in other],
        "differs from the saved bits in": damaged,
    }
    return [f"{kind} {_some(names)}" for kind, names in kinds.items() if names]


def _some(names: Iterable[str]) -> str:
    """First names, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@jax.jit
def _checksum(x: Any) -> jax.Array:
    """Checksum of one array, computed without a reshape, which would gather a sharded array."""
    x = plain_words(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    if x.dtype.itemsize >= 4:
        words = jax.lax.bitcast_convert_type(x, jnp.uint32)  # of eight bytes: two words on an axis of their own
    elif jnp.issubdtype(x.dtype, jnp.floating):
        words = jax.lax.bitcast_convert_type(x, jnp.uint16 if x.dtype.itemsize == 2 else jnp.uint8).astype(jnp.uint32)
    else:
        words = x.astype(jnp.uint32)
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        stride = math.prod(words.shape[axis + 1 :]) % 2**32
        if size > 1:
            position = position + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride)
    return jnp.sum(words * (2 * position + 1), dtype=jnp.uint32)
