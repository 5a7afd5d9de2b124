"""PRNG keys: streams by name, and the test that tells a key from other arrays."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import numpy as np


def is_key(x: Any) -> bool:
    """Tells whether a value is an array of typed PRNG keys, or its abstract shape.

    Args:
      x: Anything.

    Returns:
      True for keys.
    """
    return jax.dtypes.issubdtype(getattr(x, "dtype", np.dtype(bool)), jax.dtypes.prng_key)


def plain_words(x: Any) -> Any:
    """Integers that PRNG keys are made of; any other value as it is.

    Args:
      x: Anything.

    Returns:
      Unsigned integers with one axis more than the keys, or x.
    """
    return jax.random.key_data(x) if is_key(x) else x


def fold_name(key: jax.Array, name: str) -> jax.Array:
    """Folds a name into a PRNG key, so that every consumer of randomness has a stream of its own.

    Args:
      key: Typed PRNG key.
      name: Any string; the same name gives the same stream in every process and version of Python.

    Returns:
      Typed PRNG key.
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
