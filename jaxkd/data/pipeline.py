"""Grain pipelines over a source: random access to batches, in which batch k is a pure function of (seed, k)."""

from __future__ import annotations

import collections
import contextlib
import contextvars
import dataclasses
import functools
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import grain
import jax
import numpy as np

from jaxkd.data.source import Source
from jaxkd.data.tokens import Transform, is_text

HostBatch = Mapping[str, np.ndarray]
"""One process's rows of a batch, as NumPy arrays."""

Placed = TypeVar("Placed")

MeasurePart: TypeAlias = Callable[[Literal["read", "transform", "place"]], contextlib.AbstractContextManager[None]]
"""Part of the work on one batch -> what it runs in, as `jaxkd.runs.timing.Clock.measure` gives it."""


def _unmeasured(part: str) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


# Set by `prefetch` in its reading threads: sources and batches need not know that they are measured.
_MEASURE: contextvars.ContextVar[MeasurePart] = contextvars.ContextVar("measure", default=_unmeasured)


def train_batches(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    transform: Transform | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
) -> grain.MapDataset[HostBatch]:
    """Endless shuffled batches with random access: `batches[k]` depends on (seed, k) alone.

    Every epoch has its own order and drops the rows that do not fill a batch. All processes compute the same order and
    each reads only its own rows, so their batches side by side are the batch of one process.

    Args:
      source: What to read.
      batch_size: Rows of a batch over all processes, B.
      seed: 0..2**32-1.
      transform: Applied to each host batch in the reading threads.
      process_index: This process's number; JAX's by default.
      process_count: Number of processes; JAX's by default.

    Returns:
      Dataset whose element k is a mapping of arrays [B / process_count, ...]: the source's fields and `view` int32, the
      epoch (modulo the source's `views`), so that (seed, `id`, `view`) is the key of an example's augmentation.

    Raises:
      ValueError: If the batch is larger than the source or cannot be divided by the processes, or the seed is no seed.
    """
    mine = _own_rows(source, batch_size, process_index, process_count)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}: give an integer in 0..2**32-1.")
    return _Shuffled(source, batch_size, seed, transform, mine)


def bundles(batches: grain.MapDataset[HostBatch], spans: Sequence[range]) -> grain.MapDataset[HostBatch]:
    """Several batches as one element, for `jaxkd.train.multistep.scan_steps`.

    Args:
      batches: Dataset of host batches.
      spans: Which batches stand in each element.

    Returns:
      Dataset of as many elements as there are spans, of arrays [B, len(span), ...].
    """
    if isinstance(batches, _Shuffled):
        return grain.MapDataset.source(spans).map(batches.together)
    return grain.MapDataset.source(spans).map(lambda span: _side_by_side([batches[k] for k in span]))


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Number of full batches in one pass over a source.

    Args:
      source: What is read.
      batch_size: Rows of a batch over all processes.

    Returns:
      At least 1.

    Raises:
      ValueError: If the batch is larger than the source.
    """
    if batch_size > source.size:
        raise ValueError(
            f"batch_size is {batch_size} but {source.name} has {source.size} rows: give at most {source.size}, or a "
            "larger split."
        )
    return source.size // batch_size


def eval_batches(
    source: Source,
    batch_size: int,
    *,
    transform: Transform | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
) -> grain.MapDataset[HostBatch]:
    """Batches that hold every row exactly once and in order, the last one padded.

    Args:
      source: What to read.
      batch_size: Rows of a batch over all processes, B.
      transform: Applied to each host batch in the reading threads.
      process_index: This process's number; JAX's by default.
      process_count: Number of processes; JAX's by default.

    Returns:
      Dataset of ceil(size / B) batches of arrays [B / process_count, ...]: the source's fields, `view` int32 zeros, and
      `mask` bool, false on padding (copies of the last row).

    Raises:
      ValueError: If the batch cannot be divided by the processes.
    """
    mine = _own_rows(source, batch_size, process_index, process_count)

    def read(k: int) -> HostBatch:
        rows = np.arange(k * batch_size, (k + 1) * batch_size)[mine]
        return _read(source, np.minimum(rows, source.size - 1), transform, view=0, mask=rows < source.size)

    return grain.MapDataset.range(-(-source.size // batch_size)).map(read)


def chosen_batches(
    source: Source, batch_size: int, choices: Sequence[tuple[range, int]]
) -> grain.MapDataset[HostBatch]:
    """Batches of this process's own choice, as a cache is written from.

    Args:
      source: What to read.
      batch_size: Rows of this process in a batch, b.
      choices: Rows, at least one and at most b, and their view, for each batch.

    Returns:
      Dataset of arrays [b, ...]: the source's fields and `view`; where there are fewer rows the last is repeated.
    """

    def read(choice: tuple[range, int]) -> HostBatch:
        rows, view = choice
        numbers = np.minimum(rows.start + np.arange(batch_size), rows.stop - 1)
        return _read(dataclasses.replace(source, targets=None), numbers, None, view=view)

    return grain.MapDataset.source(choices).map(read)


def prefetch(
    batches: grain.MapDataset[HostBatch],
    place: Callable[[HostBatch], Placed],
    *,
    start: int = 0,
    stop: int | None = None,
    buffer_size: int = 2,
    num_threads: int = 4,
    measure: MeasurePart = _unmeasured,
) -> Generator[Placed, None, None]:
    """Reads batches start..stop-1 in Grain's threads and keeps some on the device ahead of the caller.

    Args:
      batches: Dataset of host batches with random access.
      place: Host batch -> device arrays; called in the caller's thread, should not wait for the transfer.
      start: First batch.
      stop: Batch after the last; all of them if None.
      buffer_size: How many placed batches are kept ahead.
      num_threads: Threads that read; 0 reads in the caller's thread.
      measure: What the parts of a batch run in: "read" and "transform" in the threads, "place" in the caller's.

    Returns:
      Generator of placed batches in order; closing it, or dropping it, ends the threads. An error that a thread meets
      is raised after the batches before it.

    Raises:
      ValueError: If the range does not lie within the batches.
    """
    stop = len(batches) if stop is None else stop
    if not 0 <= start <= stop <= len(batches):
        raise ValueError(f"batches {start}..{stop} were asked for, but there are 0..{len(batches)}: narrow the range.")
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(num_threads, buffer_size))

    def make(k: int) -> HostBatch:
        token = _MEASURE.set(measure)
        try:
            return batches[k]
        finally:
            _MEASURE.reset(token)

    def put(batch: HostBatch) -> Placed:
        with measure("place"):
            return place(batch)

    return _prefetched(grain.MapDataset.range(start, stop).map(make), put, buffer_size, options)


def _prefetched(
    part: grain.MapDataset[HostBatch], place: Callable[[HostBatch], Placed], ahead: int, options: grain.ReadOptions
) -> Generator[Placed, None, None]:
    """The generator behind `prefetch`; threads start at the first batch and end with it."""
    if not len(part):
        return
    reader: Any = iter(part.to_iter_dataset(options))
    ready: collections.deque[Placed] = collections.deque()
    failure: Exception | None = None
    try:
        while failure is None:
            try:
                batch = next(reader)
            except StopIteration:
                break
            except Exception as error:  # raised below, after the batches that were read before it
                failure = error
                break
            ready.append(place(batch))
            if len(ready) > ahead:
                yield ready.popleft()
        while ready:
            yield ready.popleft()
    finally:
        reader.close()
    if failure is not None:
        # Grain adds a note about its hidden frames, after which the sentence would no longer be the last line.
        failure.__notes__ = [note for note in getattr(failure, "__notes__", []) if "Grain" not in note]
        raise failure


class _Shuffled(grain.MapDataset[HostBatch]):
    """Endless shuffled batches, one by one or several side by side."""

    def __init__(self, source: Source, batch_size: int, seed: int, transform: Transform | None, mine: slice) -> None:
        super().__init__()
        self._source, self._batch_size, self._transform, self._mine = source, batch_size, transform, mine
        self._steps = steps_per_epoch(source, batch_size)

        @functools.lru_cache(maxsize=2)  # threads that read ahead need two epochs where one ends
        def order(epoch: int) -> np.ndarray:
            # RandomState's permutation is frozen for good. Grain's own shuffle takes 80 us of Python an index, this
            # 0.1 us.
            return np.random.RandomState(np.random.Philox(key=[seed, epoch])).permutation(source.size)

        self._order = order

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return self.slice(k)
        return _read(self._source, self._rows(k), self._transform, view=self._view(k))

    def together(self, span: range) -> HostBatch:
        """The batches side by side, their rows read at once unless targets or a transform belong to single batches."""
        if self._source.targets is not None or self._transform is not None:
            return _side_by_side([self[k] for k in span])
        rows = np.stack([self._rows(k) for k in span], axis=1)
        views = np.broadcast_to(np.array([self._view(k) for k in span], np.int32), rows.shape)
        whole = {**_read(self._source, rows.ravel(), None, view=0), "view": views.ravel()}
        return {field: values.reshape(*rows.shape, *values.shape[1:]) for field, values in whole.items()}

    def _rows(self, k: int) -> np.ndarray:
        """This process's rows of batch k."""
        epoch, step = divmod(k, self._steps)
        return self._order(epoch)[step * self._batch_size : (step + 1) * self._batch_size][self._mine]

    def _view(self, k: int) -> int:
        """Batch k's view: its epoch, modulo the views there are."""
        epoch = k // self._steps
        return epoch % self._source.views if self._source.views else epoch


def _side_by_side(parts: Sequence[HostBatch]) -> HostBatch:
    """Batches with a second axis that counts them."""
    return {field: np.stack([part[field] for part in parts], axis=1) for field in parts[0]}


def _own_rows(source: Source, batch_size: int, index: int | None, count: int | None) -> slice:
    """Which rows of a global batch this process reads."""
    index = jax.process_index() if index is None else index
    count = jax.process_count() if count is None else count
    if batch_size < 1 or batch_size % count:
        raise ValueError(
            f"batch_size is {batch_size} but the rows of {source.name} are shared by {count} process(es): give a "
            f"positive multiple of {count}."
        )
    if not 0 <= index < count:
        raise ValueError(f"process_index is {index} but there are {count} process(es): give 0..{count - 1}.")
    share = batch_size // count
    return slice(index * share, (index + 1) * share)


def _read(
    source: Source, rows: np.ndarray, transform: Transform | None, *, view: int, mask: np.ndarray | None = None
) -> HostBatch:
    """Reads rows, adds `view` and `mask`, transforms, and checks that a device can take the result."""
    measure = _MEASURE.get()
    with measure("read"):
        targets = source.targets(rows, view) if source.targets is not None else {}
        batch: HostBatch = source.read(rows) | targets | {"view": np.full(len(rows), view, np.int32)}
    if mask is not None:
        batch = {**batch, "mask": mask}
    if transform is not None:
        ids = batch["id"]
        try:
            with measure("transform"):
                batch = transform(batch)
        except Exception as error:  # of whatever kind: the user's own code ran on data that the traceback does not name
            error.add_note(f"This was the transform of the rows with ids {ids.tolist()} of {source.name}.")
            raise
    if texts := [field for field, values in batch.items() if is_text(values)]:
        raise ValueError(
            f"`{texts[0]}` of {source.name} holds texts, which no device takes: give a transform such as "
            "jaxkd.data.encode_bytes(length)."
        )
    return batch
