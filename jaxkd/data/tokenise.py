"""Sources of tokens: texts that are tokenised once, padded to one length, and batched by lengths."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.data.buckets import choose_buckets
from jaxkd.data.checks import check_rows, is_whole
from jaxkd.data.labels import Task
from jaxkd.data.readers.columns import shortened
from jaxkd.data.source import Source
from jaxkd.data.splits import say
from jaxkd.data.texts import Texts
from jaxkd.data.token_cache import encode
from jaxkd.data.tokenizer import Encoded, Tokenizer, TooLong


def tokenise(
    texts: Texts,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    too_long: TooLong = "cut",
    buckets: int | Sequence[int] | None = None,
    vocabulary: int | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Source:
    """Tokenises texts and makes a source of them.

    Args:
      texts: The texts.
      tokenizer: The tokenizer.
      max_length: Most tokens of a text, special tokens included.
      too_long: "cut" cuts longer texts, which are counted and logged as a warning; "refuse" raises.
      buckets: Number of lengths that batches are cut to, or these lengths; one, that of the longest text, if None.
      vocabulary: Number of tokens that the network has embeddings of; that of the tokenizer if None.
      folder: Folder in which tokens are kept, so that the same texts are tokenised once; nothing is kept if None.

    Returns:
      A source with `tokens` int32 [B, L], `token_mask` bool [B, L], true on tokens, and `segments` int32 [B, L] for
      pairs; `label` where the texts have labels.

    Raises:
      ValueError: As `Tokenizer.__call__` and `from_tokens` say.
    """
    encoded = encode_texts(texts, tokenizer, max_length=max_length, too_long=too_long, folder=folder)
    if buckets is None or is_whole(buckets):
        lengths = np.array([len(row) for row in encoded.tokens])
        buckets = choose_buckets(lengths, 1 if buckets is None else buckets, max_length)  # type: ignore[arg-type]
    return from_tokens(texts, encoded, pad=tokenizer.pad, vocabulary=vocabulary or tokenizer.size, buckets=buckets)


def encode_texts(
    texts: Texts,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    too_long: TooLong = "cut",
    folder: str | os.PathLike[str] | None = None,
) -> Encoded:
    """Tokenises texts and logs, as warnings, how many were cut and how many are empty.

    Args:
      texts: The texts.
      tokenizer: The tokenizer.
      max_length: As for `tokenise`.
      too_long: As for `tokenise`.
      folder: As for `tokenise`.

    Returns:
      The tokens, without `words` and `offsets`.

    Raises:
      ValueError: As `Tokenizer.__call__` says.
    """
    try:
        encoded = encode(tokenizer, texts.texts, texts.pairs, max_length=max_length, too_long=too_long, folder=folder)
    except ValueError as error:
        raise ValueError(f"{texts.name}: {error}") from error
    if encoded.cut:
        say(f"{encoded.cut} of the {len(texts)} texts of {texts.name} have more than {max_length} tokens and are cut.")
    if encoded.empty:
        say(f"{encoded.empty} of the {len(texts)} texts of {texts.name} have no tokens but the special ones.")
    return encoded


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
      The source, whose fields are padded to the length L of the longest bucket; the pipeline cuts them.

    Raises:
      ValueError: If an id lies outside 0..V-1, or an array has another length than its row of tokens.
    """
    check_ids(texts, encoded.tokens, vocabulary)
    lengths = np.array([len(row) for row in encoded.tokens], np.int32)
    bounds = _bounds(texts, lengths, buckets)
    ragged = {"tokens": Ragged(encoded.tokens, pad)}
    if texts.pairs is not None:
        ragged["segments"] = Ragged(encoded.segments, 0)
    for field, (rows, fill) in (per_token or {}).items():
        _check_lengths(texts, field, rows, lengths)
        ragged[field] = Ragged(rows, fill)
    own: dict[str, np.ndarray] = {"id": texts.ids}
    if texts.labels is not None and "label" not in ragged:
        own["label"] = texts.labels
    task: Task = "tokens" if "label" in ragged else texts.task
    classes = len(texts.class_names) if num_classes is None else num_classes

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        chosen = check_rows(texts.name, rows, len(texts))
        mask = np.arange(bounds[-1])[None, :] < lengths[chosen, None]
        padded = {field: values.padded(chosen, mask) for field, values in ragged.items()}
        return {**padded, "token_mask": mask, **{field: values[chosen] for field, values in own.items()}}

    return Source(
        texts.name,
        len(texts),
        1 if task == "regression" else classes,
        None,
        read,
        int(texts.ids[0]),
        task=task,
        ignore=(per_token or {})["label"][1] if task == "tokens" else None,
        drawn=None if texts.ids[-1] - texts.ids[0] == len(texts) - 1 else texts.ids,
        class_names=texts.class_names if len(texts.class_names) == classes else (),
        lengths=lengths,
        buckets=bounds,
        per_token=(*ragged, "token_mask"),
    )


class Ragged:
    """Rows of different lengths, kept one behind the other.

    Args:
      rows: Arrays [L_i, ...], which are alike but for L_i.
      fill: The value that pads them.
    """

    def __init__(self, rows: Sequence[np.ndarray], fill: Any) -> None:
        self._flat = np.concatenate([np.asarray(row) for row in rows])
        lengths = np.array([len(row) for row in rows])
        self._starts, self._fill = np.cumsum(lengths) - lengths, fill

    def padded(self, rows: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Some rows, padded to one length.

        Args:
          rows: Their numbers [B].
          mask: True where a row has a value, bool [B, L].

        Returns:
          Array [B, L, ...].
        """
        found = np.full((*mask.shape, *self._flat.shape[1:]), self._fill, self._flat.dtype)
        places = self._starts[rows][:, None] + np.arange(mask.shape[1])[None, :]
        found[mask] = self._flat[places[mask]]
        return found


def _bounds(texts: Texts, lengths: np.ndarray, buckets: int | Sequence[int] | None) -> tuple[int, ...]:
    """Lengths that batches are cut to."""
    if buckets is None or is_whole(buckets):
        return choose_buckets(lengths, 1 if buckets is None else buckets)  # type: ignore[arg-type]
    bounds = tuple(int(bound) for bound in buckets)  # type: ignore[union-attr]
    if not bounds or list(bounds) != sorted(set(bounds)) or bounds[0] < 1 or bounds[-1] < lengths.max():
        raise ValueError(
            f"buckets are {list(bounds)} but the longest text of {texts.name} has {lengths.max()} tokens: give "
            "increasing lengths, of which the last is at least that."
        )
    return bounds


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
