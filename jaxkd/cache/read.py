"""Reading of cached targets, which a source then carries as further fields of its batches."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jaxkd.cache import shards
from jaxkd.cache.manifest import (
    Manifest,
    check_same,
    read_manifest,
    stem,
)
from jaxkd.data.source import Source
from jaxkd.types import Prepare

_IN_MEMORY = 1 << 30  # bytes of one view, up to which its shards are read whole
_OPEN = 400  # shards, fewer than the files that a process may usually have open


def with_targets(
    source: Source,
    path: str | os.PathLike[str],
    *,
    made_with: Mapping[str, str],
    prepare: Prepare,
    views: int | None = None,
) -> Source:
    """Joins targets to a source by `id` and `view`, so that its training batches carry them.

    The pipeline's threads read the targets during the training. Each shard's checksum is verified before its first use.
    Shards are kept in memory if one view takes at most 1 GiB.

    Args:
      source: The source that the targets were computed on, or a slice of it.
      path: Folder that `jaxkd.cache.write_targets` has written.
      made_with: The same entries that the targets were written with.
      prepare: Preparation of the student's batches on the device.
      views: Number of views that are used; all of them by default.

    Returns:
      The source with the fields of the targets added and with this number of views.

    Raises:
      ValueError: In one sentence that names the difference: the folder holds no targets, or those of another teacher,
        preparation or source, or fewer views, or the source already has one of the fields. The returned source raises
        one when it reads a damaged file.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(f"there are no targets in {folder}: write them first with jaxkd.cache.write_targets.")
    check_same(folder, manifest, made_with, source, prepare)
    views = max(manifest.views, 1) if views is None else views
    if views > manifest.views:
        raise _without_view(folder, manifest, views - 1)
    if twice := sorted(set(manifest.fields) & set(source.read(np.zeros(1, np.int64)))):
        raise ValueError(
            f"{source.name} already has the field `{twice[0]}`, which the targets in {folder} have too: leave out one "
            "of the two."
        )
    made = {**source.made_with, **manifest.made_with, "views": str(views)}
    # Rows of the folder: those of the source itself, or of a whole split that the source is a part of.
    positions = np.arange(source.size) if manifest.ids is not None else source.ids - manifest.start
    read = _reader(folder, manifest, positions)
    return dataclasses.replace(source, made_with=made, views=views, targets=read)


def _reader(folder: Path, manifest: Manifest, places: np.ndarray) -> Callable[[np.ndarray, int], dict[str, np.ndarray]]:
    """Function for `Source.targets`, which reads each row from its shard and keeps the last used shards open."""
    files, record, lock = shards.find(folder), manifest.record, threading.Lock()
    whole = manifest.size * record.itemsize <= _IN_MEMORY

    @functools.lru_cache(maxsize=max(2 * -(-manifest.size // manifest.rows), 2) if whole else _OPEN)
    def opened(view: int, first: int) -> Callable[[np.ndarray], np.ndarray]:
        name = stem(view, first)
        if name not in files:
            raise ValueError(
                f"{folder / name}{shards.ENDING} is missing: run the command that wrote the targets again, which "
                "writes it."
            )
        shard = shards.Shard(files[name], record, min(manifest.rows, manifest.size - first))
        return shard.read_all().__getitem__ if whole else shard.read

    def read(rows: np.ndarray, view: int) -> dict[str, np.ndarray]:
        if not 0 <= view < manifest.views:
            raise _without_view(folder, manifest, view)
        positions = places[rows]
        found = np.empty(len(positions), record)
        for number in np.unique(positions // manifest.rows):
            here, first = positions // manifest.rows == number, int(number) * manifest.rows
            with lock:
                take = opened(view, first)
            found[here] = take(positions[here] - first)
        if not (np.array_equal(found["id"], positions + manifest.start) and np.all(found["view"] == view)):
            raise ValueError(
                f"targets of view {view} in {folder} belong to other examples: delete the folder and write them again."
            )
        fields = {name: np.ascontiguousarray(found[name]) for name in manifest.fields}
        return {
            name: values.astype(np.int32) if values.dtype.kind == "u" else values for name, values in fields.items()
        }

    return read


def _without_view(folder: Path, manifest: Manifest, view: int) -> ValueError:
    """Error about a view that was not written."""
    have = f"views 0..{manifest.views - 1}" if manifest.views else "no whole view"
    return ValueError(
        f"the targets in {folder} have no view {view}, they hold {have}: write more of them, or train with "
        f"{max(1, manifest.views)} views."
    )
