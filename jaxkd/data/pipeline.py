"""Batches of a source with random access, in which batch k is a pure function of (seed, k), and their prefetching.

Grain reads ahead in threads. It is imported when the first thread is needed; where it is not installed, batches are
read in the caller's thread.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import jax
import numpy as np

from jaxkd.data import buckets
from jaxkd.data.checks import is_text, is_whole
from jaxkd.data.source import Source
from jaxkd.data.tokens import Transform

HostBatch = Mapping[str, np.ndarray]
"""One process's rows of a batch, as NumPy arrays."""

Placed = TypeVar("Placed")

Operation: TypeAlias = Literal["read", "transform", "place"]
"""One of the pipeline's three operations on a batch: reading its rows, transforming them, placing them on a device."""

Measure: TypeAlias = Callable[[Operation], contextlib.AbstractContextManager[None]]
"""Operation -> context in which it runs and is timed, such as `jaxkd.runs.Clock.measure`."""


def _unmeasured(operation: str) -> contextlib.AbstractContextManager[None]:
    """Default `Measure`, which times nothing."""
    return contextlib.nullcontext()


class RandomAccess(Protocol):
    """Interface of host batches that pipelines take: `Batches`, a list, or a `grain.MapDataset`."""

    def __len__(self) -> int:
        """Number of batches."""

    def __getitem__(self, k: int, /) -> HostBatch:
        """Batch k."""


class Batches:
    """Host batches with random access: `batches[k]` for k in 0..len(batches)-1, each read when it is asked for.

    Args:
      size: Number of batches.
      read: Number of a batch -> the batch.
    """

    def __init__(self, size: int, read: Callable[[int], HostBatch]) -> None:
        self._size, self._read = size, read

    def __len__(self) -> int:
        """Number of batches."""
        return self._size

    def __getitem__(self, k: int) -> HostBatch:
        """Reads batch k.

        Raises:
          IndexError: If there is no such batch, which also ends an iteration.
        """
        if not 0 <= k < self._size:
            raise IndexError(f"batch {k} was asked for, but there are {self._size}: ask for 0..{self._size - 1}.")
        return self._read(k)

    def __iter__(self) -> Iterator[HostBatch]:
        """Reads the batches in order."""
        return map(self._read, range(self._size))


# Set by `prefetch` in its reading threads: sources and batches need not know that they are measured.
_MEASURE: contextvars.ContextVar[Measure] = contextvars.ContextVar("measure", default=_unmeasured)


def train_batches(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    transform: Transform | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
) -> Batches:
    """Endless shuffled batches with random access: `batches[k]` depends on (seed, k) alone.

    Each epoch has its own order and drops the rows that do not fill a batch. The batches of a source with length
    buckets have rows of one bucket each, but for what remains of shorter ones, and are cut to its length. All processes
    compute the same order, and each reads only its own rows: the batches of all processes, concatenated, are the batch
    that one process would read.

    Args:
      source: The source.
      batch_size: Rows of a batch over all processes, B.
      seed: Seed of the order, 0..2**32-1.
      transform: Applied to each host batch in the reading threads.
      process_index: Index of this process; `jax.process_index()` by default.
      process_count: Number of processes; `jax.process_count()` by default.

    Returns:
      Batches, of which number k is a mapping of arrays [B / process_count, ...]: the source's fields, and `view` int32,
      the epoch modulo the source's `views`. The triple (seed, `id`, `view`) identifies an example's augmentation.

    Raises:
      ValueError: If the batch is larger than the source, the processes do not divide it, or the seed is out of range.
    """
    own_rows = _own_rows(source, batch_size, process_index, process_count)
    if not is_whole(seed) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}: give an integer in 0..2**32-1.")
    return _Shuffled(source, batch_size, seed, transform, own_rows)


def bundles(batches: RandomAccess, spans: Sequence[range]) -> Batches:
    """Bundles, each of which stacks several batches, for `jaxkd.train.multistep.scan_steps`.

    Args:
      batches: Host batches with random access.
      spans: Indices of the batches of each bundle.

    Returns:
      One bundle for each span, whose arrays are [B, len(span), ...].
    """
    if isinstance(batches, _Shuffled):
        return Batches(len(spans), lambda i: batches.read_bundle(spans[i]))
    return Batches(len(spans), lambda i: _stacked([batches[k] for k in spans[i]]))


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Number of full batches in one pass over a source.

    Args:
      source: The source.
      batch_size: Rows of a batch over all processes.

    Returns:
      At least 1.

    Raises:
      ValueError: If the batch is larger than the source.
    """
    if not is_whole(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: give an integer of at least 1.")
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
) -> Batches:
    """Batches for evaluation: each row exactly once and in order, the last batch padded.

    Rows of a source with length buckets come bucket after bucket, each batch cut to the length of its bucket.

    Args:
      source: The source.
      batch_size: Rows of a batch over all processes, B.
      transform: Applied to each host batch in the reading threads.
      process_index: Index of this process; `jax.process_index()` by default.
      process_count: Number of processes; `jax.process_count()` by default.

    Returns:
      ceil(size / B) batches of arrays [B / process_count, ...]: the source's fields, `view` int32 zeros, and
      `mask` bool, false on padding (copies of the last row).

    Raises:
      ValueError: If the processes do not divide the batch.
    """
    own_rows = _own_rows(source, batch_size, process_index, process_count)
    order, lengths = buckets.in_order(source, batch_size) if source.buckets else (np.zeros(0, int), None)

    def read(k: int) -> HostBatch:
        places = np.arange(k * batch_size, (k + 1) * batch_size)[own_rows]
        rows, length = np.minimum(places, source.size - 1), None
        if lengths is not None:
            rows, length = order[rows], int(lengths[k])
        return _read(source, rows, transform, view=0, mask=places < source.size, length=length)

    return Batches(-(-source.size // batch_size), read)


def chosen_batches(source: Source, batch_size: int, choices: Sequence[tuple[range, int]]) -> Batches:
    """Batches of rows that the caller chooses for this process, such as those that a cache is written from.

    Args:
      source: The source, whose targets are left out.
      batch_size: Rows of this process in a batch, b.
      choices: (rows, view) of each batch: at least one and at most b consecutive rows, and the view of all of them.

    Returns:
      Batches of arrays [b, ...]: the source's fields and `view`. A choice of fewer than b rows repeats its last row.
    """

    def read(i: int) -> HostBatch:
        rows, view = choices[i]
        numbers = np.minimum(rows.start + np.arange(batch_size), rows.stop - 1)
        return _read(dataclasses.replace(source, targets=None), numbers, None, view=view)

    return Batches(len(choices), read)


def prefetch(
    batches: RandomAccess,
    place: Callable[[HostBatch], Placed],
    *,
    start: int = 0,
    stop: int | None = None,
    buffer_size: int = 2,
    num_threads: int | None = None,
    measure: Measure = _unmeasured,
) -> Generator[Placed, None, None]:
    """Reads batches start..stop-1 in Grain's threads and keeps some of them on the device ahead of the caller.

    Args:
      batches: Host batches with random access.
      place: Host batch -> device arrays. It is called in the caller's thread and should not wait for the transfer.
      start: Index of the first batch.
      stop: Index after the last batch; the number of batches if None.
      buffer_size: Number of placed batches that are kept ahead.
      num_threads: Number of reading threads; 0 reads in the caller's thread, without Grain. 4 if None, or 0 where Grain
        is not installed.
      measure: Times the operations on each batch: "read" and "transform" in the reading threads, "place" in the
        caller's thread. Nothing is timed by default.

    Returns:
      Generator of placed batches in order. Closing or dropping it ends the threads. An error in a thread is raised
      after the batches before it were given out.

    Raises:
      ValueError: If the range does not lie within the batches, or a count is negative.
    """
    stop = len(batches) if stop is None else stop
    if num_threads is None:
        num_threads = 4 if importlib.util.find_spec("grain") else 0
    if not is_whole(num_threads) or not is_whole(buffer_size) or min(num_threads, buffer_size) < 0:
        raise ValueError(f"num_threads is {num_threads} and buffer_size {buffer_size}: give integers of at least 0.")
    if not (is_whole(start) and is_whole(stop) and 0 <= start <= stop <= len(batches)):
        raise ValueError(f"batches {start}..{stop} were asked for, but there are 0..{len(batches)}: narrow the range.")

    def make(k: int) -> HostBatch:
        token = _MEASURE.set(measure)
        try:
            return batches[k]
        finally:
            _MEASURE.reset(token)

    def put(batch: HostBatch) -> Placed:
        with measure("place"):
            return place(batch)

    return _prefetched(range(start, stop), make, put, buffer_size, num_threads)


def _reader(numbers: range, make: Callable[[int], HostBatch], ahead: int, num_threads: int) -> Any:
    """Iterator of batches with `close()`; with threads, Grain's."""
    if num_threads == 0:
        return (make(k) for k in numbers)
    import grain

    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(num_threads, ahead))
    return iter(grain.MapDataset.source(numbers).map(make).to_iter_dataset(options))


def _prefetched(
    numbers: range,
    make: Callable[[int], HostBatch],
    place: Callable[[HostBatch], Placed],
    ahead: int,
    num_threads: int,
) -> Generator[Placed, None, None]:
    """Generator behind `prefetch`, whose threads start at its first batch and end with it."""
    if not numbers:
        return
    reader = _reader(numbers, make, ahead, num_threads)
    ready: collections.deque[Placed] = collections.deque()
    failure: Exception | None = None
    try:
        while failure is None:
            try:
                batch = next(reader)
            except StopIteration:
                break
            except Exception as error:  # raised below, after the batches that were read earlier
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


class _Shuffled(Batches):
    """Endless shuffled batches, one by one or in bundles."""

    def __init__(
        self, source: Source, batch_size: int, seed: int, transform: Transform | None, own_rows: slice
    ) -> None:
        super().__init__(sys.maxsize, self.read_batch)
        self._source, self._batch_size, self._transform, self._own_rows = source, batch_size, transform, own_rows
        self._steps = steps_per_epoch(source, batch_size)

        @functools.lru_cache(maxsize=2)  # threads that read ahead need two epochs where one ends
        def order(epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
            # RandomState's permutation is frozen for good. Grain's own shuffle takes 80 us of Python an index, this
            # 0.1 us.
            random = np.random.RandomState(np.random.Philox(key=[seed, epoch]))
            if source.buckets:
                return buckets.shuffled(source, batch_size, random)
            return random.permutation(source.size), None

        self._order = order

    def read_batch(self, k: int) -> HostBatch:
        """Batch k, whose arrays are [B / processes, ...]."""
        return self._read_cut(k, self._length([k]))

    def read_bundle(self, span: range) -> HostBatch:
        """Several batches, stacked along the second axis.

        Their rows are read in one call, unless targets or a transform depend on the single batches.
        """
        if self._source.targets is not None or self._transform is not None:
            return _stacked([self._read_cut(k, self._length(span)) for k in span])
        rows = np.stack([self._rows(k) for k in span], axis=1)
        views = np.broadcast_to(np.array([self._view(k) for k in span], np.int32), rows.shape)
        flat = {**_read(self._source, rows.ravel(), None, view=0, length=self._length(span)), "view": views.ravel()}
        return {field: values.reshape(*rows.shape, *values.shape[1:]) for field, values in flat.items()}

    def _read_cut(self, k: int, length: int | None) -> HostBatch:
        """Batch k, cut to a length."""
        return _read(self._source, self._rows(k), self._transform, view=self._view(k), length=length)

    def _length(self, numbers: Sequence[int]) -> int | None:
        """Length of the longest of some batches, the same in all processes; None without buckets."""
        lengths = [self._order(k // self._steps)[1] for k in numbers]
        return max(
            (int(x[k % self._steps]) for k, x in zip(numbers, lengths, strict=True) if x is not None), default=None
        )

    def _rows(self, k: int) -> np.ndarray:
        """This process's rows of batch k."""
        epoch, step = divmod(k, self._steps)
        return self._order(epoch)[0][step * self._batch_size : (step + 1) * self._batch_size][self._own_rows]

    def _view(self, k: int) -> int:
        """View of batch k: its epoch, modulo the number of views if that is limited."""
        epoch = k // self._steps
        return epoch % self._source.views if self._source.views else epoch


def _stacked(batches: Sequence[HostBatch]) -> HostBatch:
    """Batches stacked along a new second axis."""
    return {field: np.stack([batch[field] for batch in batches], axis=1) for field in batches[0]}


def _own_rows(source: Source, batch_size: int, index: int | None, count: int | None) -> slice:
    """Slice of the rows of a global batch that this process reads."""
    index = jax.process_index() if index is None else index
    count = jax.process_count() if count is None else count
    if not is_whole(batch_size) or batch_size < 1 or batch_size % count:
        raise ValueError(
            f"batch_size is {batch_size} but each batch of {source.name} is split over {count} process(es): give a "
            f"positive multiple of {count}."
        )
    if not is_whole(index) or not 0 <= index < count:
        raise ValueError(f"process_index is {index} but there are {count} process(es): give 0..{count - 1}.")
    shard_size = batch_size // count
    return slice(index * shard_size, (index + 1) * shard_size)


def _read(
    source: Source,
    rows: np.ndarray,
    transform: Transform | None,
    *,
    view: int,
    mask: np.ndarray | None = None,
    length: int | None = None,
) -> HostBatch:
    """Batch of some rows: reads them, cuts them, adds `view` and `mask`, applies the transform, refuses texts."""
    measure = _MEASURE.get()
    with measure("read"):
        targets = source.targets(rows, view) if source.targets is not None else {}
        batch: HostBatch = source.read(rows) | targets | {"view": np.full(len(rows), view, np.int32)}
        batch = batch if length is None else buckets.cut(batch, source.per_token, length)
    if mask is not None:
        batch = {**batch, "mask": mask}
    if transform is not None:
        ids = batch["id"]
        try:
            with measure("transform"):
                batch = transform(batch)
        except Exception as error:  # of any kind: the user's own code ran on rows that the traceback does not name
            error.add_note(f"This was the transform of the rows with ids {ids.tolist()} of {source.name}.")
            raise
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"the transform of {source.name} gave {type(batch).__name__}, but batches are mappings of arrays: return "
            "the batch that it was given with the changed fields."
        )
    if texts := [field for field, values in batch.items() if is_text(values)]:
        raise ValueError(
            f"`{texts[0]}` of {source.name} holds texts, which no device takes: give a transform such as "
            "jaxkd.data.encode_bytes(length) that turns them into tokens."
        )
    return batch
