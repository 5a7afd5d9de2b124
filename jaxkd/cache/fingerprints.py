"""Fingerprints: of a network's variables, to the bit, and of how prepared examples look, in a few numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxkd.data.source import Source
from jaxkd.keys import is_key, plain_words
from jaxkd.parallel.mesh import fetch
from jaxkd.types import Prepare

_EXAMPLES = 32
_VIEWS = (0, 1)
_NUMBERS = 4
_TOLERANCE = 1e-4
_SKIPPED = ("id", "view")


def fingerprint_variables(tree: Any) -> str:
    """SHA-256 over the names, shapes, dtypes and bytes of all arrays in a tree.

    Args:
      tree: Pytree of arrays, typed PRNG keys or numbers.

    Returns:
      64 hexadecimal digits: equal trees have equal ones, on any machine.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = fetch(plain_words(leaf))
        header = (jax.tree_util.keystr(path), str(leaf.dtype if is_key(leaf) else array.dtype), array.shape)
        digest.update(repr(header).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def chosen_ids(source: Source) -> np.ndarray:
    """The ids of the examples that are looked at, spread over a source.

    Args:
      source: The source.

    Returns:
      int32 [n], n <= 32.
    """
    return source.ids[np.unique(np.linspace(0, source.size - 1, _EXAMPLES).astype(int))]


def look(source: Source, prepare: Prepare, ids: np.ndarray, *, backwards: bool = False) -> dict[str, Any]:
    """Prepares some examples in two views and takes a few sums over each field with fixed random signs.

    Any change of normalisation, augmentation, seed or data shows in them, unless it spares all these examples; rounding
    on another device does not.

    Args:
      source: Where the examples are.
      prepare: What is done to a batch on the device.
      ids: Which examples.
      backwards: Whether they stand in the batch the other way round; what comes back is in the order of `ids`.

    Returns:
      Field -> numbers [2 views, n, 4], each about as large as the field's values.
    """
    order = slice(None, None, -1) if backwards else slice(None)
    rows, prepared = ids - source.start, jax.jit(prepare)
    seen: dict[str, list[np.ndarray]] = {}
    for view in _VIEWS:
        batch = dict(prepared({**source.read(rows[order]), "view": np.full(len(rows), view, np.int32)}))
        for field in sorted(set(batch) - set(_SKIPPED)):
            seen.setdefault(field, []).append(_sums(np.asarray(batch[field], np.float64))[order])
    return {field: np.stack(views) for field, views in seen.items()}


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Where two looks at the same examples differ beyond rounding.

    Args:
      one: Field -> numbers.
      other: Likewise.

    Returns:
      Field -> (view, place of the example) of the first difference; fields that `other` lacks are at (0, 0).
    """
    found = {}
    for field, numbers in one.items():
        if field not in other or np.shape(other[field]) != np.shape(numbers):
            found[field] = (0, 0)
            continue
        size = np.sqrt(np.mean(np.square(numbers)))
        far = ~(np.abs(np.asarray(numbers) - other[field]) <= _TOLERANCE * size).all(axis=-1)  # so NaN is far
        if far.any():
            view, place = np.argwhere(far)[0]
            found[field] = (_VIEWS[view], int(place))
    return found


def _sums(values: np.ndarray) -> np.ndarray:
    """Sums of each row of [n, ...] with random signs, [n, 4]."""
    flat = values.reshape(len(values), -1)
    signs = np.random.RandomState(0).choice([-1.0, 1.0], size=(flat.shape[1], _NUMBERS))
    return flat @ signs / np.sqrt(max(1, flat.shape[1]))
