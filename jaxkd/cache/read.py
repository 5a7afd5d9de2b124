"""A teacher's targets, computed once for each view of each example and read for every student: the reading side."""

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

    They are read in the pipeline's threads, beside the training, and each shard's checksum is compared before its
    first use. Shards are held in memory while a view takes up to 1 GiB.

    Args:
      source: What the targets were computed on, or a slice of it.
      path: Folder from `jaxkd.cache.write_targets`.
      made_with: The same entries that the targets were written with.
      prepare: What the student's batches go through on the device.
      views: How many views are used; all there are by default.

    Returns:
      A source with the fields of the targets added, and as many views.

    Raises:
      ValueError: In one sentence that names the difference, if the folder holds no targets, or those of another
        teacher, preparation or source, or not all the views, or a field exists already; by the returned source, if a
        file is broken.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(f"there are no targets in {folder}: write them first with jaxkd.cache.write_targets.")
    check_same(folder, manifest, made_with, source, prepare)
    views = views or manifest.views or 1
    if views > manifest.views:
        raise _without_view(folder, manifest, views - 1)
    if twice := sorted(set(manifest.fields) & set(source.read(np.zeros(1, np.int64)))):
        raise ValueError(f"{source.name} already has the field `{twice[0]}`: leave it out, or the targets.")
    made = {**source.made_with, **manifest.made_with, "views": str(views)}
    read = _reader(folder, manifest, source.start - manifest.start)
    return dataclasses.replace(source, made_with=made, views=views, targets=read)


def _reader(folder: Path, manifest: Manifest, offset: int) -> Callable[[np.ndarray, int], dict[str, np.ndarray]]:
    """What `Source.targets` is: it finds each row's shard and keeps those open that were used last."""
    files, record, lock = shards.find(folder), manifest.record, threading.Lock()
    whole = manifest.size * record.itemsize <= _IN_MEMORY

    @functools.lru_cache(maxsize=max(2 * -(-manifest.size // manifest.rows), 2) if whole else _OPEN)
    def opened(view: int, first: int) -> Callable[[np.ndarray], np.ndarray]:
        name = stem(view, first)
        if name not in files:
            raise ValueError(f"{folder / name}{shards.ENDING} is missing: start what wrote the targets again.")
        shard = shards.Shard(files[name], record, min(manifest.rows, manifest.size - first))
        return shard.read_all().__getitem__ if whole else shard.read

    def read(rows: np.ndarray, view: int) -> dict[str, np.ndarray]:
        if not 0 <= view < manifest.views:
            raise _without_view(folder, manifest, view)
        places = np.asarray(rows) + offset
        found = np.empty(len(places), record)
        for number in np.unique(places // manifest.rows):
            here, first = places // manifest.rows == number, int(number) * manifest.rows
            with lock:
                take = opened(view, first)
            found[here] = take(places[here] - first)
        if not (np.array_equal(found["id"], places + manifest.start) and np.all(found["view"] == view)):
            raise ValueError(f"targets of view {view} in {folder} belong to other examples: write them again.")
        fields = {name: np.ascontiguousarray(found[name]) for name in manifest.fields}
        return {
            name: values.astype(np.int32) if values.dtype.kind == "u" else values for name, values in fields.items()
        }

    return read


def _without_view(folder: Path, manifest: Manifest, view: int) -> ValueError:
    """The error for a view that was not written."""
    have = f"views 0..{manifest.views - 1}" if manifest.views else "no whole view"
    return ValueError(
        f"the targets in {folder} have no view {view}, they hold {have}: write more of them, or train with "
        f"{max(1, manifest.views)} views."
    )
