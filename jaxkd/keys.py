"""PRNG keys: streams by name, keys of the old form, and the test that tells a key from other arrays."""

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
    if not isinstance(x, jax.Array) and not hasattr(type(x), "dtype"):  # objects may answer to any name
        return False
    return jax.dtypes.issubdtype(getattr(x, "dtype", np.dtype(bool)), jax.dtypes.prng_key)


def plain_words(x: Any) -> Any:
    """Integers that PRNG keys are made of; any other value as it is.

    Args:
      x: Anything.

    Returns:
      Unsigned integers with one axis more than the keys, or x.
    """
    return jax.random.key_data(x) if is_key(x) else x


def typed_key(key: Any, *, stack: bool = False) -> jax.Array:
    """Typed PRNG key from a typed one or from the raw integers that `jax.random.PRNGKey` gives.

    Args:
      key: Typed PRNG key [], or uint32 words of one.
      stack: Whether keys [S] are allowed as well.

    Returns:
      Typed PRNG key [], or keys [S].

    Raises:
      TypeError: If it is no key: a number, None, an array of something else.
      ValueError: If it is an array of keys where one is expected.
    """
    if not is_key(key):
        known = isinstance(key, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)
        shape, dtype = np.shape(key) if known else (), key.dtype if known else None
        if dtype != np.uint32 or shape[-1:] != _words():
            found = _shown(key) if dtype is None else f"an array of shape {shape} and dtype {dtype}"
            raise TypeError(f"the key is {found}, but must be a PRNG key: give jax.random.key(0), with any seed.")
        key = jax.random.wrap_key_data(key)
    if key.ndim > int(stack):
        one = "one key, or keys [S] of S students" if stack else "one key"
        raise ValueError(f"the keys have shape {key.shape}, but {one} is expected: give jax.random.key(0), or keys[0].")
    return key


def _shown(x: Any) -> str:
    """A number or text as it is, of anything else the type."""
    return repr(x) if x is None or isinstance(x, int | float | str) else f"a {type(x).__name__}"


def _words() -> tuple[int, ...]:
    """Shape of the words of one key of the default implementation."""
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape


def fold_name(key: jax.Array, name: str) -> jax.Array:
    """Folds a name into a PRNG key, so that every consumer of randomness has a stream of its own.

    Args:
      key: Typed PRNG key.
      name: Any string; the same name gives the same stream in every process and version of Python.

    Returns:
      Typed PRNG key.
    """
    return jax.random.fold_in(typed_key(key), zlib.crc32(name.encode()))
