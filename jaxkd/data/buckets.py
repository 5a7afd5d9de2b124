"""Length buckets: batches of rows of about one length, so that short rows are not padded to the longest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxkd.data.checks import is_whole

if TYPE_CHECKING:
    from jaxkd.data.source import Source

_CHOICES = 512  # lengths among which buckets are chosen, at a cost of their square
_STEP = 8  # lengths are rounded up to multiples of it, which devices compute faster


def choose_buckets(lengths: np.ndarray, count: int, most: int | None = None) -> tuple[int, ...]:
    """Chooses the lengths that batches are padded to, so that the padding of all rows together is least.

    Args:
      lengths: Length of each row, integers [N].
      count: Number of buckets at most.
      most: Length that no bucket exceeds, at least that of the longest row; this if None.

    Returns:
      Increasing lengths, multiples of 8 but for `most`. There are fewer than `count` where rows are of few lengths.

    Raises:
      ValueError: If the number is not positive.
    """
    if not is_whole(count) or count < 1:
        raise ValueError(f"buckets is {count}: give a number of at least 1 (--buckets).")
    longest = int(lengths.max())
    step = _STEP * -(-longest // (_STEP * _CHOICES))
    rounded = np.minimum(-(-lengths // step) * step, longest if most is None else most)
    ends, counts = np.unique(rounded, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    # best[j] = least number of padded tokens of the rows in the first j lengths, with the buckets so far.
    best, choices = np.where(before > 0, np.inf, 0.0), []
    for _ in range(min(count, len(ends))):
        cost = best[:, None] + (before[None, 1:] - before[:, None]) * ends[None, :]
        cost[np.tril_indices(len(ends) + 1, -1, len(ends))] = np.inf
        choices.append(cost.argmin(axis=0))
        best = np.concatenate([[0.0], cost.min(axis=0)])
    found, j = [], len(ends)
    for choice in reversed(choices):
        if j:
            found.append(int(ends[j - 1]))
            j = int(choice[j - 1])
    return tuple(reversed(found))


def bucket_of(lengths: np.ndarray, buckets: Sequence[int]) -> np.ndarray:
    """Number of the shortest bucket that each row fits into.

    Args:
      lengths: Length of each row, integers [N].
      buckets: Increasing lengths, the last of which is at least that of every row.

    Returns:
      int64 [N].
    """
    return np.searchsorted(np.asarray(buckets), lengths)


def schedule(order: np.ndarray, bucket: np.ndarray, count: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorts rows into batches of one bucket each.

    Rows of a bucket that fill no batch go into the next longer one, so that only the last batch can be incomplete.

    Args:
      order: Row numbers [M] in the order in which each bucket takes them.
      bucket: Number of each row's bucket, [N], by row number.
      count: Number of buckets.
      batch_size: Rows of a batch B.

    Returns:
      The same rows [M], batch after batch, and the number of the bucket of each batch [ceil(M / B)].
    """
    own, left = bucket[order], order[:0]
    parts, numbers = [], []
    for number in range(count):
        rows = np.concatenate([left, order[own == number]])
        full = len(rows) // batch_size
        parts.append(rows[: full * batch_size])
        numbers.append(np.full(full, number))
        left = rows[full * batch_size :]
    parts.append(left)
    numbers.append(np.full(int(len(left) > 0), bucket[left].max() if len(left) else 0))
    return np.concatenate(parts), np.concatenate(numbers)


def shuffled(source: Source, batch_size: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one epoch, batch after batch, each batch of one bucket and the batches in random order.

    Args:
      source: A source with buckets.
      batch_size: Rows of a batch B.
      random: The epoch's random numbers.

    Returns:
      Row numbers [steps * B], each at most once, and the length of each batch [steps].
    """
    steps = source.size // batch_size
    # The rows of no batch are drawn first, or they would be the longest ones in every epoch.
    order = random.permutation(source.size)[: steps * batch_size]
    bucket = bucket_of(lengths_of(source), source.buckets)
    rows, numbers = schedule(order, bucket, len(source.buckets), batch_size)
    turn = random.permutation(steps)
    return rows.reshape(steps, batch_size)[turn].ravel(), np.asarray(source.buckets)[numbers[turn]]


def in_order(source: Source, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for an evaluation, bucket after bucket.

    Args:
      source: A source with buckets.
      batch_size: Rows of a batch B.

    Returns:
      Row numbers [size], and the length of each batch [ceil(size / B)].
    """
    bucket = bucket_of(lengths_of(source), source.buckets)
    rows, numbers = schedule(np.arange(source.size), bucket, len(source.buckets), batch_size)
    return rows, np.asarray(source.buckets)[numbers]


def lengths_of(source: Source) -> np.ndarray:
    """Length of each row of a source with buckets.

    Args:
      source: The source.

    Returns:
      int32 [size].

    Raises:
      ValueError: If its lengths do not fit its rows or its buckets.
    """
    lengths = source.lengths
    if lengths is None or len(lengths) != source.size or int(lengths.max()) > source.buckets[-1]:
        raise ValueError(
            f"{source.name} has buckets of {list(source.buckets)} tokens but no length for each row that fits: give "
            "lengths with one number a row, up to the last bucket."
        )
    return lengths


def cut(batch: Mapping[str, np.ndarray], per_token: Sequence[str], length: int) -> dict[str, np.ndarray]:
    """Cuts the padding of a batch.

    Args:
      batch: Fields [B, ...].
      per_token: Names of fields [B, L, ...] with a value for each token.
      length: Length that they are cut to.

    Returns:
      The batch, with these fields [B, length, ...].
    """
    return {field: values[:, :length] if field in per_token else values for field, values in batch.items()}
