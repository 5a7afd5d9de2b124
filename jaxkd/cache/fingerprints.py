"""Fingerprints of a network's variables, exact to the bit, and of prepared examples, equal up to rounding."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxkd.data.checks import is_text
from jaxkd.data.source import Source
from jaxkd.keys import is_key, plain_words
from jaxkd.parallel.mesh import fetch
from jaxkd.types import Prepare

_EXAMPLES = 32
_VIEWS = (0, 1)
_PROJECTIONS = 4
_NO_LABEL = 1234.5  # in place of missing labels, whose NaN is not equal to itself
_TOLERANCE = 1e-4
_SKIPPED = ("id", "view")


def fingerprint_variables(tree: Any) -> str:
    """SHA-256 over the paths, shapes, dtypes and bytes of all arrays in a tree.

    Args:
      tree: Pytree of arrays, typed PRNG keys or numbers.

    Returns:
      64 hexadecimal digits, equal for equal trees on any machine.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = fetch(plain_words(leaf))
        header = (jax.tree_util.keystr(path), str(leaf.dtype if is_key(leaf) else array.dtype), array.shape)
        digest.update(repr(header).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def fingerprint_ids(source: Source) -> str | None:
    """SHA-256 over the ids of a source's rows.

    Args:
      source: The source.

    Returns:
      64 hexadecimal digits; None if the ids are consecutive, since then the first and the number of them say all.
    """
    return None if source.drawn is None else hashlib.sha256(source.ids.astype("<i4").tobytes()).hexdigest()


def probe_ids(source: Source) -> np.ndarray:
    """Ids of the examples that a probe consists of, spread evenly over a source.

    Args:
      source: The source.

    Returns:
      int32 [n], n <= 32.
    """
    return source.ids[np.unique(np.linspace(0, source.size - 1, _EXAMPLES).astype(int))]


def probe(source: Source, prepare: Prepare, ids: np.ndarray, *, backwards: bool = False) -> dict[str, Any]:
    """Fingerprint of prepared examples: random projections of each field, in two views of each example.

    projection_j = sum_i sign_ij * value_i / sqrt(number of values), with fixed random signs

    A change of normalisation, augmentation, seed or data changes them, unless it affects none of these examples.
    Rounding on another device changes them less than `differences` tolerates.

    Args:
      source: Source of the examples.
      prepare: Preparation of a batch on the device.
      ids: Ids of the examples.
      backwards: True puts the examples into the batch in reverse order; the result is in the order of `ids` anyway.

    Returns:
      Field -> projections [2 views, n, 4], of about the magnitude of the field's values.
    """
    order = slice(None, None, -1) if backwards else slice(None)
    rows, prepared = np.searchsorted(source.ids, ids), jax.jit(prepare)
    projections: dict[str, list[np.ndarray]] = {}
    for view in _VIEWS:
        fields = {name: _without_texts(values) for name, values in source.read(rows[order]).items()}
        batch = dict(prepared({**fields, "view": np.full(len(rows), view, np.int32)}))
        for field in sorted(set(batch) - set(_SKIPPED)):
            values = np.asarray(batch[field], np.float64)
            if field == "label" and source.ignore is not None:
                values = np.where(np.isnan(values), _NO_LABEL, values)
            projections.setdefault(field, []).append(_project(values)[order])
    return {field: np.stack(views) for field, views in projections.items()}


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Differences beyond rounding between two probes of the same examples.

    Args:
      one: Field -> projections, as `probe` returns them.
      other: Field -> projections of the same examples.

    Returns:
      Field -> (view, position of the example) of the first difference; (0, 0) for fields that `other` lacks. Fields
      without a difference are left out.
    """
    found = {}
    for field, projections in one.items():
        if field not in other or np.shape(other[field]) != np.shape(projections):
            found[field] = (0, 0)
            continue
        size = np.sqrt(np.mean(np.square(projections)))
        far = ~(np.abs(np.asarray(projections) - other[field]) <= _TOLERANCE * size).all(axis=-1)  # so NaN is far
        if far.any():
            view, position = np.argwhere(far)[0]
            found[field] = (_VIEWS[view], int(position))
    return found


def _without_texts(values: np.ndarray) -> np.ndarray:
    """A field, with a checksum in place of each text, since no device takes texts."""
    if not is_text(values):
        return values
    sums = [zlib.crc32(value if isinstance(value, bytes) else str(value).encode()) for value in values.ravel()]
    return np.asarray(sums, np.uint32).reshape(values.shape)


def _project(values: np.ndarray) -> np.ndarray:
    """Random projections [n, 4] of the rows of an array [n, ...]."""
    flat = values.reshape(len(values), -1)
    signs = np.random.RandomState(0).choice([-1.0, 1.0], size=(flat.shape[1], _PROJECTIONS))
    return flat @ signs / np.sqrt(max(1, flat.shape[1]))
