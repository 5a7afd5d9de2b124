"""Targets computed once, such as a teacher's logits: written beside the data and joined to a source by `id`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxkd import processes
from jaxkd.data.checks import RESERVED
from jaxkd.data.sources import Source
from jaxkd.meshes import fetch

_FINGERPRINT = "fingerprint"
_UNUSABLE = (*RESERVED, _FINGERPRINT, "file", "allow_pickle")  # the last two are parameters of np.savez


def write_targets(
    path: str | os.PathLike[str],
    ids: ArrayLike,
    arrays: Mapping[str, ArrayLike],
    fingerprint: Mapping[str, str],
) -> None:
    """Writes targets of examples to one .npz file, whole or not at all.

    Of several processes the first writes, the others wait; all must see the same disk.

    Args:
      path: The file; its folder is made if it is missing.
      ids: Integers [N], the examples' `id`, each once (leave out the padding of evaluation batches).
      arrays: Field -> values [N, ...], for instance {"teacher_logits": [N, K]}; float16 halves the file.
      fingerprint: What the targets depend on, for instance {"teacher": fingerprint_variables(...), "source": name}.

    Raises:
      ValueError: In one sentence, if ids repeat, rows differ in number, values are NaN, a name is reserved, or the file
        cannot be written.
    """
    numbers = np.asarray(ids)
    values = {field: np.asarray(array) for field, array in arrays.items()}
    if len(np.unique(numbers)) != len(numbers):
        raise ValueError(f"ids for {path} repeat: write each example once and leave out the rows whose mask is false.")
    for field, array in values.items():
        if field in _UNUSABLE:
            raise ValueError(f"targets cannot be named {field!r}, which is taken: choose another name.")
        if array.shape[:1] != numbers.shape:
            raise ValueError(
                f"targets `{field}` have shape {array.shape} but there are {len(numbers)} ids: give a row each."
            )
        # -inf is a masked class and allowed.
        bad = np.isnan(array).any(axis=tuple(range(1, array.ndim))) if array.dtype.kind == "f" else np.zeros(0, bool)
        if bad.any():
            raise ValueError(
                f"targets `{field}` of id {numbers[bad][0]} are NaN ({bad.sum()} rows are): mend what computed them."
            )
    entries: dict[str, Any] = {"id": numbers, _FINGERPRINT: np.array(json.dumps(dict(fingerprint))), **values}
    if processes.is_first():
        with _whole_file(Path(path)) as file:
            np.savez(file, **entries)
    processes.barrier(f"targets in {path}")


def with_targets(source: Source, path: str | os.PathLike[str], *, fingerprint: Mapping[str, str]) -> Source:
    """Joins targets to a source by `id`, so that its batches carry them.

    Args:
      source: What the targets were computed on.
      path: File from `write_targets`; it is held in memory.
      fingerprint: The same entries that the targets were written with.

    Returns:
      A source with the fields of the file added.

    Raises:
      ValueError: In one sentence, if the file cannot be read, the fingerprint differs, ids are missing, or a field
        exists already.
    """
    targets = _load(path)
    written = json.loads(str(targets.pop(_FINGERPRINT)))
    for key in sorted({*written, *fingerprint}):
        if written.get(key) != fingerprint.get(key):
            raise ValueError(
                f"the targets in {path} were made with {key} = {written.get(key)}, not {fingerprint.get(key)}: "
                "write them again, or use what they were made with."
            )
    ids = targets.pop("id")
    order = np.argsort(ids)
    places = np.searchsorted(ids, source.ids, sorter=order)
    rows = order[np.minimum(places, len(ids) - 1)] if len(ids) else np.zeros(0, np.int64)
    missing = np.flatnonzero(ids[rows] != source.ids) if len(ids) else np.arange(source.size)
    if missing.size:
        raise ValueError(
            f"the targets in {path} lack {missing.size} of the {source.size} rows of {source.name}, first id "
            f"{source.ids[missing[0]]}: write them for the whole split."
        )
    if twice := sorted(set(targets) & set(source.read(np.zeros(1, np.int64)))):
        raise ValueError(f"{source.name} already has the field `{twice[0]}`: write the targets under another name.")

    def read(numbers: np.ndarray) -> dict[str, np.ndarray]:
        chosen = rows[np.asarray(numbers)]
        return source.read(numbers) | {field: array[chosen] for field, array in targets.items()}

    return dataclasses.replace(source, read=read, made_with={**source.made_with, **written})


def fingerprint_variables(tree: Any) -> str:
    """SHA-256 over the names, shapes, dtypes and bytes of all arrays in a tree.

    Args:
      tree: Pytree of arrays, typed PRNG keys or numbers.

    Returns:
      64 hexadecimal digits: equal trees have equal ones, on any machine.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = fetch(jax.random.key_data(leaf) if is_key else leaf)
        header = (jax.tree_util.keystr(path), str(leaf.dtype if is_key else array.dtype), array.shape)
        digest.update(repr(header).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name only when it is complete."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror or error}): see that its folder can be written and has room."
        ) from error


def _load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a file of targets."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            loaded = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise ValueError(f"there are no targets in {path}: write them first with write_targets.") from None
    except Exception as error:  # torn files fail in many ways
        raise ValueError(
            f"the targets in {path} cannot be read ({error}): delete the file and write them again."
        ) from error
    if not {"id", _FINGERPRINT} <= set(loaded):
        raise ValueError(f"{path} holds no targets, it lacks `id` or a fingerprint: write them with write_targets.")
    return loaded
