"""Sources of tokens: texts that are tokenised once, padded to one length, and batched by lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.data.checks import check_rows, is_whole
from jaxkd.data.labels import Task
from jaxkd.data.readers.columns import shortened
from jaxkd.data.source import Source
from jaxkd.data.splits import say
from jaxkd.data.texts import Texts
from jaxkd.data.tokenizer import Encoded, Tokenizer, TooLong


def tokenise(
    texts: Texts,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    too_long: TooLong = "cut",
    buckets: int | Sequence[int] | None = None,
    vocabulary: int | None = None,
) -> Source:
    """Tokenises texts and makes a source of them.

    Args:
      texts: The texts.
      tokenizer: The tokenizer.
      max_length: Most tokens of a text, special tokens included.
      too_long: "cut" cuts longer texts, which are counted and logged as a warning; "refuse" raises.
      buckets: Number of lengths that batches are cut to, or these lengths; one, that of the longest text, if None.
      vocabulary: Number of tokens that the network has embeddings of; that of the tokenizer if None.

    Returns:
      A source with `tokens` int32 [B, L], `token_mask` bool [B, L], true on tokens, and `segments` int32 [B, L] for
      pairs; `label` where the texts have labels.

    Raises:
      ValueError: As `Tokenizer.__call__` and `from_tokens` say.
    """
    encoded = tokenizer(texts.texts, texts.pairs, max_length=max_length, too_long=too_long, details=False)
    if encoded.cut:
        say(f"{encoded.cut} of the {len(texts)} texts of {texts.name} have more than {max_length} tokens and are cut.")
    if encoded.empty:
        say(f"{encoded.empty} of the {len(texts)} texts of {texts.name} have no tokens but the special ones.")
    return from_tokens(texts, encoded, pad=tokenizer.pad, vocabulary=vocabulary or tokenizer.size, buckets=buckets)


def from_tokens(
    texts: Texts,
    encoded: Encoded,
    *,
    pad: int,
    vocabulary: int,
    buckets: int | Sequence[int] | None = None,
    per_token: Mapping[str, tuple[Sequence[np.ndarray], Any]] | None = None,
    num_classes: int | None = None,
) -> Source:
    """Makes a source of texts whose tokens are known, such as with labels of single tokens.

    Args:
      texts: The texts.
      encoded: Their tokens.
      pad: Id that rows are padded with.
      vocabulary: Number of tokens V that the network has embeddings of.
      buckets: As `tokenise` takes them.
      per_token: Name -> (a list of arrays [L_i, ...], the value that pads them), such as
        {"label": (labels, -100)} for labels of tokens.
      num_classes: Number of classes; that of the texts' classes if None.

    Returns:
      The source, whose fields are padded to the length L of the longest bucket.

    Raises:
      ValueError: If an id lies outside 0..V-1, or an array has another length than its row of tokens.
    """
    check_ids(texts, encoded.tokens, vocabulary)
    lengths = np.array([len(row) for row in encoded.tokens], np.int32)
    bounds = (int(lengths.max()),)
    ragged: dict[str, tuple[Sequence[np.ndarray], Any]] = {"tokens": (encoded.tokens, pad)}
    if texts.pairs is not None:
        ragged["segments"] = (encoded.segments, 0)
    for field, (rows, fill) in (per_token or {}).items():
        _check_lengths(texts, field, rows, lengths)
        ragged[field] = (rows, fill)
    padded = {field: _padded(rows, fill, bounds[-1]) for field, (rows, fill) in ragged.items()}
    padded["token_mask"] = np.arange(bounds[-1]) < lengths[:, None]
    task: Task = texts.task
    own: dict[str, np.ndarray] = {"id": texts.ids}
    if "label" in padded:
        task = "classification"
    elif texts.labels is not None:
        own["label"] = texts.labels
    classes = len(texts.class_names) if num_classes is None else num_classes

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        chosen = check_rows(texts.name, rows, len(texts))
        return {field: values[chosen] for field, values in {**padded, **own}.items()}

    gaps = None if texts.ids[-1] - texts.ids[0] == len(texts) - 1 else texts.ids
    return Source(
        texts.name,
        len(texts),
        1 if task == "regression" else classes,
        None,
        read,
        int(texts.ids[0]),
        task=task,
        drawn=gaps,
        class_names=texts.class_names if len(texts.class_names) == classes else (),
    )


def check_ids(texts: Texts, tokens: Sequence[np.ndarray], vocabulary: int) -> None:
    """Refuses ids that no row of an embedding table belongs to; a device would clamp them to another token.

    Args:
      texts: The texts.
      tokens: Their ids, a list of int32 [L_i].
      vocabulary: Number of tokens V that the network has embeddings of.

    Raises:
      ValueError: If an id lies outside 0..V-1; the sentence names the row and its text.
    """
    if not is_whole(vocabulary) or vocabulary < 1:
        raise ValueError(f"vocabulary is {vocabulary}: give a number of tokens, at least 1.")
    for row, ids in enumerate(tokens):
        if ids.size and not (ids.min() >= 0 and ids.max() < vocabulary):
            wrong = ids[(ids < 0) | (ids >= vocabulary)][0]
            raise ValueError(
                f"row {texts.ids[row]} of {texts.name} ({shortened(texts.texts[row])}) has the token {wrong}, but the "
                f"network has embeddings of 0..{vocabulary - 1}: give the tokenizer that belongs to the network."
            )


def _check_lengths(texts: Texts, field: str, rows: Sequence[np.ndarray], lengths: np.ndarray) -> None:
    """Refuses values of tokens that do not go with the tokens."""
    if len(rows) != len(lengths):
        raise ValueError(f"`{field}` has {len(rows)} rows but {texts.name} has {len(lengths)}: give one for each text.")
    for row, (values, length) in enumerate(zip(rows, lengths, strict=True)):
        if len(values) != length:
            raise ValueError(
                f"`{field}` has {len(values)} values in row {texts.ids[row]} of {texts.name}, which has {length} "
                "tokens: give one for each token, those that are special included."
            )


def _padded(rows: Sequence[np.ndarray], fill: Any, length: int) -> np.ndarray:
    """Rows [L_i, ...] as one array [N, length, ...]."""
    first = np.asarray(rows[0])
    padded = np.full((len(rows), length, *first.shape[1:]), fill, first.dtype)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = values
    return padded
