"""A teacher's targets, computed once for each view of each example and read for every student: the writing side."""

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
from jaxkd.parallel import processes
from jaxkd.runs.progress import Progress
from jaxkd.types import RESERVED, Batch, Model, Prepare, Variables

_AHEAD = 2  # batches that are computed while the results of another are fetched and written

Shard: TypeAlias = tuple[int, range]
"""View and rows."""


def write_targets(
    path: str | os.PathLike[str],
    source: data.Source,
    model: Model,
    variables: Variables,
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
    """Computes a teacher's outputs for views 0..views-1 of every example and writes those that are not there yet.

    Each batch is spread over the devices of the plan; each process writes shards of its own, and all must see the same
    disk. A shard appears whole or not at all: after a kill the same call goes on, and shards whose bytes have changed
    are written again. More views may be added later.

    Args:
      path: Folder; made if it is missing.
      source: The examples.
      model: The teacher, applied in evaluation mode.
      variables: Its variables.
      plan: The devices.
      prepare: What the student's batches go through: augmentation keyed by (id, view), normalisation.
      views: How many views of each example.
      batch_size: Examples that are computed at once, over all processes; that of the students gives their bits.
      made_with: What the targets depend on, such as {"teacher": cache.fingerprint_variables(variables)}.
      top_k: How many classes are kept, as `models.keep_top_k` does, log-probabilities in float16; all logits, in
        float32 and under `teacher_logits`, if None.
      features: Names of features that are kept too.
      rows: Examples in a shard.

    Returns:
      Examples a second; None if nothing was missing.

    Raises:
      ValueError: In one sentence, if other targets are there (it names the difference), the preparation mixes the
        examples of a batch, an output is NaN, a feature is missing, or the folder cannot be written.
    """
    if views < 1:
        raise ValueError(f"views is {views}: give at least 1.")
    share = batch_size // jax.process_count()
    if share < 1 or batch_size % jax.process_count():
        raise ValueError(f"batch_size is {batch_size}: give a positive multiple of {jax.process_count()} processes.")
    outputs = functools.partial(_targets, model, prepare, top_k, tuple(features))
    folder = Path(path)
    manifest = _begin(folder, source, prepare, jax.eval_shape(outputs, variables, _one(source)), made_with, rows)
    choices = list(_choices(_missing(folder, manifest, views), share))
    plan, known = plan if plan.axis_name is None else parallel.with_jit(plan.mesh), plan.put(variables)
    step = plan.compile(lambda _, variables, batch: outputs(variables, batch), donate_state=False)
    batches = data.chosen_batches(source, share, [chosen for _, chosen in choices])
    with Progress("targets", len(choices), batch_size=batch_size) as progress:
        with contextlib.closing(data.prefetch(batches, plan.place)) as placed:
            results = _results(lambda batch: step(None, known, batch), choices, placed, share, progress)
            _write(folder, manifest, results)
        rate = progress.examples_per_second
    processes.barrier(f"targets in {path}")
    if processes.is_first() and views > manifest.views:
        write_manifest(folder, dataclasses.replace(manifest, views=views))
    processes.barrier(f"the manifest in {path}")
    return rate


def _targets(
    model: Model, prepare: Prepare, top_k: int | None, features: Sequence[str], variables: Variables, batch: Batch
) -> dict[str, jax.Array]:
    """What is written of a batch."""
    outputs = model.apply(variables, prepare(batch), None, False)[0]
    if absent := sorted(set(features) - set(outputs.features)):
        have = ", ".join(sorted(outputs.features)) or "none"
        raise ValueError(f"the teacher has no feature {absent[0]!r} to write, it has {have}: name one of them.")
    if taken := sorted(set(features) & {*RESERVED, *batch}):
        raise ValueError(f"the feature {taken[0]!r} is named like a field of the batch: leave it out.")
    chosen = {name: outputs.features[name] for name in features}
    if top_k is None:
        return {"teacher_logits": outputs.logits.astype(jnp.float32), **chosen}
    ids, logprobs, tail = models.keep_top_k(outputs.logits, top_k).values()
    lowest = jnp.finfo(jnp.float16).min
    finite = jnp.where(jnp.isneginf(logprobs), -jnp.inf, jnp.maximum(logprobs, lowest)).astype(jnp.float16)
    small = jnp.uint16 if outputs.logits.shape[-1] <= 1 << 16 else jnp.int32
    return {**dict(zip(models.KEPT, (ids.astype(small), finite, tail), strict=True)), **chosen}


def _one(source: data.Source) -> Batch:
    """A batch of one row."""
    return {**source.read(np.zeros(1, np.int64)), "view": np.zeros(1, np.int32)}


def _begin(
    folder: Path,
    source: data.Source,
    prepare: Prepare,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    made_with: Mapping[str, str],
    rows: int,
) -> Manifest:
    """The manifest that is there, once it is known to fit, or a new one."""
    fields = {name: (x.dtype.name, x.shape[1:]) for name, x in shapes.items()}
    found = read_manifest(folder)
    processes.barrier(f"targets so far in {folder}")
    if found is not None:
        check_same(folder, found, made_with, source, prepare)
        have, want = (", ".join(f"{n} {list(s)} {d}" for n, (d, s) in f.items()) for f in (found.fields, fields))
        if (found.start, found.size, have) != (source.start, source.size, want):
            raise ValueError(
                f"the targets in {folder} are {have} of {found.size} examples, not {want} of {source.size}: write them "
                "elsewhere."
            )
        return found
    ids = fingerprints.chosen_ids(source)
    seen = fingerprints.look(source, prepare, ids)
    if mixed := fingerprints.differences(seen, fingerprints.look(source, prepare, ids, backwards=True)):
        raise ValueError(
            f"`{min(mixed)}` of an example depends on the others in its batch, as with mixup or cutmix: leave "
            "that out, or use the live teacher."
        )
    probe = {"id": ids.tolist(), "seen": {field: numbers.tolist() for field, numbers in seen.items()}}
    manifest = Manifest(source.start, source.size, rows, 0, fields, dict(made_with), probe)
    if processes.is_first():
        write_manifest(folder, manifest)
    processes.barrier(f"a manifest in {folder}")
    return manifest


def _missing(folder: Path, manifest: Manifest, views: int) -> list[Shard]:
    """The shards that are to be written; those whose bytes have changed are deleted."""
    if processes.is_first():
        shards.clear_parts(folder)
    processes.barrier(f"clearing of {folder}")
    wanted, files = manifest.shards(views), shards.find(folder)
    missing = np.zeros(len(wanted), bool)
    for place in range(jax.process_index(), len(wanted), jax.process_count()):
        view, rows = wanted[place]
        file = files.get(stem(view, rows.start))
        missing[place] = file is None or not shards.is_whole(file)
        if file is not None and missing[place]:
            file.unlink()
    return [wanted[place] for place in np.flatnonzero(processes.any_of(missing))]


def _choices(missing: Sequence[Shard], size: int) -> Generator[tuple[str | None, tuple[range, int]], None, None]:
    """This process's batches, in rounds of one shard a process: (name of the shard, (rows, view)).

    All processes have the same number of batches, as they compute them together; those that fill up have no name.
    """
    count = jax.process_count()
    for first in range(0, len(missing), count):
        together = missing[first : first + count]
        view, rows = together[min(jax.process_index(), len(together) - 1)]
        mine = jax.process_index() < len(together)
        for start in range(0, max(len(r) for _, r in together), size):
            part = rows[start : start + size]
            yield stem(view, rows.start) if mine and part else None, (part or rows[:1], view)


def _results(
    step: Callable[[Batch], Any],
    choices: Sequence[tuple[str | None, tuple[range, int]]],
    batches: Generator[Batch, None, None],
    size: int,
    progress: Progress,
) -> Generator[tuple[str | None, int, range, dict[str, np.ndarray]], None, None]:
    """Shard, view, rows and outputs of each batch, on the host while the next ones are computed."""
    first, done = jax.process_index() * size, itertools.count(1)
    waiting: collections.deque[Any] = collections.deque()

    def fetched() -> tuple[str | None, int, range, dict[str, np.ndarray]]:
        (name, (rows, view)), outputs = waiting.popleft()
        found = {k: v[first : first + len(rows)] for k, v in jax.device_get(outputs).items()}
        progress.update(next(done), {})
        return name, view, rows, found

    for choice, batch in zip(choices, batches, strict=True):
        waiting.append((choice, step(batch)))
        if len(waiting) > _AHEAD:
            yield fetched()
    while waiting:
        yield fetched()


def _write(
    folder: Path,
    manifest: Manifest,
    results: Generator[tuple[str | None, int, range, dict[str, np.ndarray]], None, None],
) -> None:
    """Writes results to their shards."""
    for name, parts in itertools.groupby(results, key=lambda result: result[0]):
        with shards.writing(folder, name) if name else contextlib.nullcontext() as append:
            for _, view, rows, outputs in parts:
                if append is not None:
                    append(_records(folder, manifest, view, rows, outputs))


def _records(folder: Path, manifest: Manifest, view: int, rows: range, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Records of a batch, after a look for NaN; -inf is a masked class and allowed."""
    records = np.empty(len(rows), manifest.record)
    records["id"], records["view"] = manifest.start + np.arange(rows.start, rows.stop), view
    for field, values in outputs.items():
        if (
            jnp.issubdtype(values.dtype, jnp.floating)
            and (bad := np.isnan(values).any(axis=tuple(range(1, values.ndim)))).any()
        ):
            raise ValueError(
                f"`{field}` of example {records['id'][bad][0]} in view {view} is NaN, so its shard was not written to "
                f"{folder}: mend the teacher or its input."
            )
        records[field] = values
    return records
