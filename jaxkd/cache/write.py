"""Computing and writing of a teacher's targets, once for each view of each example."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import data, models, parallel
from jaxkd.cache import fingerprints, shards
from jaxkd.cache.manifest import Manifest, check_same, read_manifest, stem, write_manifest
from jaxkd.data import buckets
from jaxkd.parallel import processes
from jaxkd.runs.progress import Progress
from jaxkd.types import RESERVED, Batch, Model, Prepare, Variables, as_variables

_AHEAD = 2  # batches that are computed while the results of another are fetched and written

Shard: TypeAlias = tuple[int, range]
"""(view, rows) of one shard of targets."""

Result: TypeAlias = tuple[str | None, int, range, dict[str, np.ndarray]]
"""(stem of the shard or None, view, rows, outputs) of one computed batch."""


def write_targets(
    path: str | os.PathLike[str],
    source: data.Source,
    teacher: Model,
    teacher_variables: Variables,
    *,
    plan: parallel.Plan,
    prepare: Prepare,
    views: int,
    batch_size: int,
    made_with: Mapping[str, str],
    top_k: int | None = None,
    features: Sequence[str] = (),
    rows: int = 8192,
) -> float | None:
    """Computes a teacher's outputs for views 0..views-1 of every example and writes those that are missing on disk.

    Each batch is split over the devices of the plan. Each process writes shards of its own, and all processes must see
    the same disk. Shards are written atomically: after a kill the same call goes on, and shards whose bytes have
    changed are written again. A later call may add views.

    Args:
      path: Folder of the targets; made if it is missing.
      source: Source of the examples.
      teacher: The teacher, applied in evaluation mode.
      teacher_variables: The teacher's variables.
      plan: The devices.
      prepare: Preparation of the student's batches: augmentation keyed by (id, view), normalisation.
      views: Number of views of each example.
      batch_size: Examples in a computed batch, over all processes. The batch size of the students' trainings gives
        targets that equal a live teacher's to the bit.
      made_with: Name -> value of everything that the targets depend on, such as
        {"teacher": cache.fingerprint_variables(teacher_variables)}.
      top_k: Number of classes that are kept, by `models.keep_top_k` and with log-probabilities in float16. None keeps
        all logits, in float32, under `teacher_logits`.
      features: Names of the teacher's features that are kept too.
      rows: Number of examples in a shard.

    Returns:
      Examples a second; None if nothing was missing.

    Raises:
      ValueError: In one sentence: the folder holds other targets (the message names the difference), the preparation
        mixes the examples of a batch, an output is NaN, a feature is missing, an output has a value for each token of
        a source with several length buckets, or a shard cannot be written.
      OSError: If the manifest cannot be written.
    """
    if views < 1:
        raise ValueError(f"views is {views}: give at least 1.")
    if rows < 1:
        raise ValueError(f"rows is {rows}: give at least 1 example to a shard.")
    teacher_variables = as_variables(teacher_variables)
    own_size = batch_size // jax.process_count()
    if own_size < 1 or batch_size % jax.process_count():
        raise ValueError(
            f"batch_size is {batch_size}: give a positive multiple of {jax.process_count()}, the number of processes."
        )
    outputs = functools.partial(_targets, teacher, prepare, top_k, tuple(features))
    folder, shapes = Path(path), jax.eval_shape(outputs, teacher_variables, _one(source))
    _check_lengths(source, shapes, functools.partial(jax.eval_shape, outputs, teacher_variables))
    manifest = begin(folder, source, prepare, shapes, made_with, rows)
    choices = list(_choices(missing_shards(folder, manifest, views), own_size))
    teacher_variables = plan.put(teacher_variables)
    plan = plan if plan.axis_name is None else parallel.with_jit(plan.mesh)
    step = plan.compile(lambda _, variables, batch: outputs(variables, batch), donate_state=False)
    batches = data.chosen_batches(source, own_size, [chosen for _, chosen in choices])
    with Progress("targets", len(choices), batch_size=batch_size) as progress:
        with contextlib.closing(data.prefetch(batches, plan.place)) as placed:
            compute = functools.partial(step, None, teacher_variables)
            _write(folder, manifest, _results(compute, choices, placed, own_size, progress))
        rate = progress.examples_per_second
    processes.barrier(f"targets in {path}")
    if processes.is_first() and views > manifest.views:
        write_manifest(folder, dataclasses.replace(manifest, views=views))
    processes.barrier(f"the manifest in {path}")
    return rate


def _targets(
    teacher: Model,
    prepare: Prepare,
    top_k: int | None,
    features: Sequence[str],
    teacher_variables: Variables,
    batch: Batch,
) -> dict[str, jax.Array]:
    """Targets of one batch: name -> array [B, ...]."""
    teacher_out = teacher.apply(teacher_variables, prepare(batch), None, False)[0]
    if teacher_out.logits is None:
        raise ValueError("there is no teacher whose targets could be written: give a network.")
    if absent := sorted(set(features) - set(teacher_out.features)):
        have = ", ".join(sorted(teacher_out.features)) or "none"
        raise ValueError(f"the teacher has no feature {absent[0]!r} to write, it has {have}: name one of them.")
    if taken := sorted(set(features) & {*RESERVED, *batch}):
        raise ValueError(f"the feature {taken[0]!r} has the name of a field of the batch: leave it out.")
    chosen = {name: teacher_out.features[name] for name in features}
    if top_k is None:
        return {"teacher_logits": teacher_out.logits.astype(jnp.float32), **chosen}
    ids, logprobs, tail = models.keep_top_k(teacher_out.logits, top_k).values()
    lowest = jnp.finfo(jnp.float16).min
    finite = jnp.where(jnp.isneginf(logprobs), -jnp.inf, jnp.maximum(logprobs, lowest)).astype(jnp.float16)
    small = jnp.uint16 if teacher_out.logits.shape[-1] <= 1 << 16 else jnp.int32
    return {**dict(zip(models.KEPT, (ids.astype(small), finite, tail), strict=True)), **chosen}


def _one(source: data.Source) -> Batch:
    """Batch of the source's first row."""
    return {**source.read(np.zeros(1, np.int64)), "view": np.zeros(1, np.int32)}


def _check_lengths(
    source: data.Source,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    shapes_of: Callable[[Batch], Mapping[str, jax.ShapeDtypeStruct]],
) -> None:
    """Refuses outputs of tokens where batches are cut to lengths, which no target follows."""
    if len(source.buckets) < 2:
        return
    shorter = shapes_of(buckets.cut(_one(source), source.per_token, source.buckets[0]))
    if varying := [name for name, x in shapes.items() if x.shape != shorter[name].shape]:
        raise ValueError(
            f"`{varying[0]}` of the teacher has a value for each token, but batches of {source.name} are cut to "
            f"{len(source.buckets)} lengths: make the source with one bucket (--buckets 1), or use the live teacher."
        )


def begin(
    folder: Path,
    source: data.Source,
    prepare: Prepare,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    made_with: Mapping[str, str],
    rows: int,
) -> Manifest:
    """Reads the manifest of a folder and checks that it fits, or writes a new one.

    Args:
      folder: Folder of the targets.
      source: Source of the examples.
      prepare: Preparation of the batches.
      shapes: Name -> shape [B, ...] and dtype of the targets of a batch.
      made_with: Name -> value of everything that the targets depend on.
      rows: Number of examples in a shard.

    Returns:
      The manifest.

    Raises:
      ValueError: As `write_targets` says.
    """
    fields = {name: (x.dtype.name, x.shape[1:]) for name, x in shapes.items()}
    found, own = read_manifest(folder), fingerprints.fingerprint_ids(source)
    processes.barrier(f"targets so far in {folder}")
    if found is not None:
        check_same(folder, found, made_with, source, prepare)
        have, want = (", ".join(f"{n} {list(s)} {d}" for n, (d, s) in f.items()) for f in (found.fields, fields))
        if (found.start, found.size, found.ids, have) != (source.start, source.size, own, want):
            raise ValueError(
                f"the targets in {folder} are {have} of {found.size} examples, not {want} of {source.size}: write the "
                "new ones to another folder."
            )
        return found
    ids = fingerprints.probe_ids(source)
    seen = fingerprints.probe(source, prepare, ids)
    if mixed := fingerprints.differences(seen, fingerprints.probe(source, prepare, ids, backwards=True)):
        raise ValueError(
            f"`{min(mixed)}` of an example depends on the others in its batch, as with mixup or cutmix: prepare "
            "without mixing, or use the live teacher."
        )
    probe = {"id": ids.tolist(), "seen": {field: projections.tolist() for field, projections in seen.items()}}
    manifest = Manifest(source.start, source.size, rows, 0, fields, dict(made_with), probe, own)
    if processes.is_first():
        write_manifest(folder, manifest)
    processes.barrier(f"a manifest in {folder}")
    return manifest


def missing_shards(folder: Path, manifest: Manifest, views: int) -> list[Shard]:
    """Finds the shards that are to be written; those whose bytes have changed are deleted first.

    Args:
      folder: Folder of the targets.
      manifest: Its manifest.
      views: Number of views that are wanted.

    Returns:
      The shards, the same in all processes.
    """
    if processes.is_first():
        shards.clear_parts(folder)
    processes.barrier(f"clearing of {folder}")
    wanted, files = manifest.shards(views), shards.find(folder)
    missing = np.zeros(len(wanted), bool)
    for i in range(jax.process_index(), len(wanted), jax.process_count()):
        view, rows = wanted[i]
        file = files.get(stem(view, rows.start))
        missing[i] = file is None or not shards.is_whole(file)
        if file is not None and missing[i]:
            file.unlink()
    return [wanted[i] for i in np.flatnonzero(processes.any_of(missing))]


def _choices(missing: Sequence[Shard], size: int) -> Generator[tuple[str | None, tuple[range, int]], None, None]:
    """Batches of this process, in rounds of one shard for each process: (stem of the shard, (rows, view)).

    All processes have the same number of batches, since they compute each batch together. A process with fewer rows
    fills up with batches that are not written, whose stem is None.
    """
    count = jax.process_count()
    for first in range(0, len(missing), count):
        group = missing[first : first + count]
        view, rows = group[min(jax.process_index(), len(group) - 1)]
        has_shard = jax.process_index() < len(group)
        for start in range(0, max(len(r) for _, r in group), size):
            chosen = rows[start : start + size]
            yield stem(view, rows.start) if has_shard and chosen else None, (chosen or rows[:1], view)


def _results(
    step: Callable[[Batch], Any],
    choices: Sequence[tuple[str | None, tuple[range, int]]],
    batches: Generator[Batch, None, None],
    size: int,
    progress: Progress,
) -> Generator[Result, None, None]:
    """Result of each batch, fetched to the host while the next batches are computed."""
    first, done = jax.process_index() * size, itertools.count(1)
    waiting: collections.deque[Any] = collections.deque()

    def fetched() -> Result:
        (name, (rows, view)), targets = waiting.popleft()
        own = {k: v[first : first + len(rows)] for k, v in jax.device_get(targets).items()}
        progress.update(next(done), {})
        return name, view, rows, own

    for choice, batch in zip(choices, batches, strict=True):
        waiting.append((choice, step(batch)))
        if len(waiting) > _AHEAD:
            yield fetched()
    while waiting:
        yield fetched()


def _write(folder: Path, manifest: Manifest, results: Generator[Result, None, None]) -> None:
    """Writes results to their shards."""
    for name, group in itertools.groupby(results, key=lambda result: result[0]):
        with shards.writing(folder, name) if name else contextlib.nullcontext() as append:
            for _, view, rows, targets in group:
                if append is not None:
                    append(to_records(folder, manifest, view, rows, targets))


def to_records(
    folder: Path, manifest: Manifest, view: int, rows: range, targets: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Makes records of a batch, which must not hold NaN; -inf stands for a masked class and is allowed.

    Args:
      folder: Folder of the targets.
      manifest: Its manifest.
      view: The view.
      rows: Rows of the examples.
      targets: Name -> array [B, ...].

    Returns:
      Structured array [B].

    Raises:
      ValueError: If a target is NaN.
    """
    records = np.empty(len(rows), manifest.record)
    records["id"], records["view"] = manifest.start + np.arange(rows.start, rows.stop), view
    for field, values in targets.items():
        if (
            jnp.issubdtype(values.dtype, jnp.floating)
            and (bad := np.isnan(values).any(axis=tuple(range(1, values.ndim)))).any()
        ):
            raise ValueError(
                f"`{field}` of example {records['id'][bad][0]} in view {view} is NaN, so its shard was not written to "
                f"{folder}: correct the teacher or its input."
            )
        records[field] = values
    return records
