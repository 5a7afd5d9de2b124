"""Source: the type of a readable split, and functions that derive one source from another or summarise it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxkd.data.checks import check_int32, is_whole
from jaxkd.data.labels import ADVICE, Task, read_labels
from jaxkd.kernels.rows import take
from jaxkd.types import BY_TOKEN, BY_VIEW, TOKEN_MASK

_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Source:
    """Rows of one split, read in batches by their numbers.

    Attributes:
      name: Name for messages, such as "fashion_mnist[train]".
      size: Number of rows.
      num_classes: Number of classes K, whose labels lie in 0..K-1; of the labels of a multi-label source; of the
        outputs of a regression. 0 if a source without labels was opened without `num_classes`.
      image_shape: [height, width, channels] of `image`, or None for texts.
      read: Row numbers [B] in 0..size-1 -> fields stacked along B: `image` uint8 or float32, or texts; `label`,
        whose shape depends on `task`; `id` int32 [B], the row number in the whole split, of which the source may be a
        slice; `aspect` float32 [B] if images were stretched; and any further fields.
      start: `id` of the first row, if the ids are consecutive.
      made_with: Name -> fingerprint of everything that the joined targets depend on (`jaxkd.cache.with_targets`).
      views: Number of views of each example: epoch e shows view e % views. None for a new view in every epoch.
      targets: (row numbers [B], view) -> fields that belong to one view of an example, such as a teacher's logits. The
        pipelines add them to batches. None if there are none.
      task: "classification": `label` is int32 [B], or [B, L] if it is of tokens. "multi_label": int32 [B, K], 0 or 1.
        "regression": float32 [B] or [B, ..., K]. "tokens": int32 [B, L], a class of each token. "boxes": int32
        [B, M], the class of each of the field `boxes` [B, M, 4], -1 where there is none. "ranking": int32 [B, H],
        items, -1 where there is none. "unlabelled": there is no `label`.
      ignore: The label that says that there is none, such as -1 or NaN; None if no label is missing.
      drawn: `id` of each row, increasing, int32 [size], if they are not consecutive; None if they are.
      class_names: Name of each class, [num_classes], or empty if they have none.
      lengths: Number of tokens of each row, int32 [size], if batches are to be cut to lengths; else None.
      buckets: Increasing lengths that batches are cut to, of which the last is that of the fields; empty for no cut.
      per_token: Names of the fields [B, L, ...] that have a value for each token.
    """

    name: str
    size: int
    num_classes: int
    image_shape: tuple[int, ...] | None
    read: Callable[[np.ndarray], dict[str, np.ndarray]]
    start: int = 0
    made_with: Mapping[str, str] = dataclasses.field(default_factory=dict)
    views: int | None = None
    targets: Callable[[np.ndarray, int], dict[str, np.ndarray]] | None = None
    task: Task = "classification"
    ignore: float | None = dataclasses.field(default=None, compare=False)
    drawn: np.ndarray | None = dataclasses.field(default=None, compare=False)
    class_names: tuple[str, ...] = ()
    lengths: np.ndarray | None = dataclasses.field(default=None, compare=False)
    buckets: tuple[int, ...] = ()
    per_token: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.views is not None and self.views < 1:
            raise ValueError(f"views is {self.views}: give at least 1, or None for a new view in every epoch.")

    def __len__(self) -> int:
        """Number of rows."""
        return self.size

    @property
    def ids(self) -> np.ndarray:
        """Each row's `id`, int32 [size], increasing."""
        if self.drawn is not None:
            return self.drawn
        return np.arange(self.start, self.start + self.size, dtype=np.int32)


def table(source: Source) -> tuple[dict[str, Any], Source]:
    """Splits a source into a table of all its fields, for the device, and a source of row numbers, for the pipeline.

    Args:
      source: A source whose fields fit into the memory of a device.

    Returns:
      The table, name -> array [size, ...] in the source's order, with the source's targets, if it has any, as arrays
      [size, views, ...] under `jaxkd.types.BY_VIEW`; and a source with the same rows in the same order, whose only
      field is `row`, int32 indices into the table. If the source has length buckets, its fields of tokens stand under
      `jaxkd.types.BY_TOKEN`, and the other source has `token_mask` too, whose length is that of the batch.
    """
    fields: dict[str, Any] = _fields(source)
    if source.targets is not None:
        rows = np.arange(source.size)
        views = [source.targets(rows, view) for view in range(source.views or 1)]
        fields[BY_VIEW] = {field: np.stack([view[field] for view in views], axis=1) for field in views[0]}
    if len(source.buckets) < 2 or TOKEN_MASK not in source.per_token:
        rows_alone = dataclasses.replace(source, read=_row, targets=None, lengths=None, buckets=(), per_token=())
        return fields, rows_alone
    mask = fields.pop(TOKEN_MASK)
    fields[BY_TOKEN] = {field: fields.pop(field) for field in source.per_token if field != TOKEN_MASK}

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {**_row(rows), TOKEN_MASK: take(mask, rows)}

    return fields, dataclasses.replace(source, read=read, targets=None, per_token=(TOKEN_MASK,))


def _row(rows: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers of rows as a field."""
    return {"row": np.asarray(rows, np.int32)}


def in_memory(source: Source) -> Source:
    """Reads a source once and keeps its rows in memory, for data sets that fit and are read in many epochs.

    Args:
      source: Any source; its targets are not read.

    Returns:
      Source of the same rows, already decoded and checked, with the same targets.
    """
    return with_fields(dataclasses.replace(source, read=lambda rows: {}), **_fields(source))


def with_fields(source: Source, **fields: np.ndarray) -> Source:
    """Adds fields to a source, such as flags of some examples.

    Args:
      source: The source.
      **fields: Name -> array [size, ...] in the source's order.

    Returns:
      Source of the same rows with these fields added.

    Raises:
      ValueError: If an array has another length, or the source has the field already.
    """
    source, labels = _with_task(source, fields.get("label"))
    fields |= labels
    have = source.read(np.zeros(1, np.int64))
    for field, given in fields.items():
        if field in ("view", "mask"):
            raise ValueError(f"`{field}` is a name that the pipeline gives itself: give another name.")
        if field in have:
            raise ValueError(f"{source.name} already has the field `{field}`: give another name.")
        try:
            values = np.asarray(given)
        except ValueError as error:
            raise ValueError(f"`{field}` is ragged: give rows that all have the same shape.") from error
        if values.ndim == 0 or len(values) != source.size:
            raise ValueError(
                f"`{field}` has shape {values.shape} but {source.name} has {source.size} rows: give one value for each "
                "row."
            )
        check_int32(source.name, field, values, source.ids)
        fields[field] = values

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        return source.read(rows) | {field: take(values, rows) for field, values in fields.items()}

    return dataclasses.replace(source, read=read)


def _with_task(source: Source, labels: Any) -> tuple[Source, dict[str, np.ndarray]]:
    """An unlabelled source and the labels that it gets, as one that has a task."""
    if labels is None or source.task != "unlabelled":
        return source, {}
    found = read_labels(source.name, labels, source.ids, source.num_classes or None, ignore=source.ignore)
    return dataclasses.replace(source, task=found.task, num_classes=found.num_classes), {"label": found.values}


def statistics(source: Source, limit: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel; uint8 images are scaled to [0, 1] first.

    Args:
      source: A source of images.
      limit: Number of rows that are read at most; if there are more, it is a sample from all parts of the source, the
        same one in every call.

    Returns:
      (mean, std), both float32 [channels], computed in float64. A constant channel gets std 1, so std is never 0.

    Raises:
      ValueError: If the source has no images, or the limit is no positive integer.
    """
    if not is_whole(limit) or limit < 1:
        raise ValueError(f"limit is {limit}: give a number of rows, at least 1.")
    if source.image_shape is None:
        raise ValueError(f"{source.name} has no images, which statistics are of: give a source of images.")
    count, total, squares = 0, np.zeros(source.image_shape[-1]), np.zeros(source.image_shape[-1])
    origin: np.ndarray | None = None
    for chunk in _chunks(source, sample_rows(source, limit)):
        pixels = chunk["image"].reshape(-1, source.image_shape[-1])
        values = pixels / 255.0 if pixels.dtype == np.uint8 else pixels.astype(np.float64)
        # Sums around a typical value, since E[x^2] - E[x]^2 cancels when the mean is large.
        origin = values.mean(axis=0) if origin is None else origin
        count += len(values)
        total += (values - origin).sum(axis=0)
        squares += np.square(values - origin).sum(axis=0)
    assert origin is not None, "limit is at least one row"
    std = np.sqrt(np.maximum(squares / count - np.square(total / count), 0))
    constant = std <= 1e-6 * np.abs(origin)
    return (origin + total / count).astype(np.float32), np.where(constant, 1.0, std).astype(np.float32)


def labels_of(source: Source) -> np.ndarray:
    """Labels of all rows, in the source's order.

    Args:
      source: The source.

    Returns:
      int32 [size], or [size, ...] of the dtype that the source's labels have.

    Raises:
      ValueError: If the source has no labels.
    """
    if source.task == "unlabelled":
        raise ValueError(f"{source.name} has no labels, which were asked for: {ADVICE['unlabelled']}.")
    return np.concatenate([chunk["label"] for chunk in _chunks(source, np.arange(source.size))])


def sample_rows(source: Source, limit: int) -> np.ndarray:
    """Numbers of some rows, one at a random place in each of equal parts of the source, the same in every call.

    Args:
      source: The source.
      limit: Number of rows at most.

    Returns:
      Increasing row numbers, int64 [n], n <= limit; all rows if there are no more.
    """
    size = source.size
    if limit >= size:
        return np.arange(size)
    # Not a fixed step, which could meet the same class each time where classes alternate. RandomState is frozen for
    # good.
    places = (np.arange(limit) + np.random.RandomState(0).random_sample(limit)) * (size / limit)
    return np.unique(places.astype(np.int64))


def _fields(source: Source) -> dict[str, np.ndarray]:
    """Name -> array [size, ...] of each field."""
    chunks = list(_chunks(source, np.arange(source.size)))
    return {field: np.concatenate([chunk[field] for chunk in chunks]) for field in chunks[0]}


def _chunks(source: Source, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Some rows in the order given, up to 512 at a time."""
    if not len(rows):
        raise ValueError(f"no rows of {source.name} were asked for: ask for at least 1.")
    for first in range(0, len(rows), _CHUNK):
        yield source.read(rows[first : first + _CHUNK])
