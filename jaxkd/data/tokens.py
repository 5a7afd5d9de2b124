"""Texts to tokens on the host: the bytes of UTF-8 are the vocabulary, so nothing is learned or downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

SEPARATOR = 257
"""The token between two sentences; 0 pads and 1..256 are the bytes."""

VOCABULARY = 258
"""Number of different tokens."""

Transform = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""A function of one host batch, run in the reading threads."""

_LEADING = ("title", "premise")


def is_text(values: np.ndarray) -> bool:
    """Whether an array holds texts (str, bytes or objects), which no device takes."""
    return np.asarray(values).dtype.kind in "OSU"


def encode_bytes(length: int, fields: Sequence[str] | None = None) -> Transform:
    """Makes a transform that replaces the text fields of a batch by `tokens` and `token_mask`.

    token = byte of UTF-8 + 1; 0 pads; two sentences are joined by SEPARATOR. Of texts that are too long the longer
    sentence is cut first.

    Args:
      length: Number of tokens in a row, L.
      fields: One or two text fields in order; by default those of the batch by name, `premise` and `title` first.

    Returns:
      Transform: batch -> batch with `tokens` int32 [B, L] and `token_mask` bool [B, L] (true on tokens), no texts.

    Raises:
      ValueError: If length is below 3; and, from the transform, unless there are one or two text fields.
    """
    if length < 3:
        raise ValueError(f"encode_bytes got length {length}: give at least 3 tokens a row.")

    def transform(batch: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        texts = sorted((k for k, v in batch.items() if is_text(v)), key=lambda k: (k not in _LEADING, k))
        chosen = texts if fields is None else list(fields)
        if not 1 <= len(chosen) <= 2 or not set(chosen) <= set(texts):
            raise ValueError(
                f"encode_bytes takes one or two text fields but got {chosen} where the batch has the text fields "
                f"{texts}: name them with fields=."
            )
        rows = zip(*(batch[field] for field in chosen), strict=True)
        tokens = np.stack([_join([_to_bytes(text) for text in row], length) for row in rows])
        rest = {k: v for k, v in batch.items() if k not in texts}
        return rest | {"tokens": tokens, "token_mask": tokens != 0}

    return transform


def _to_bytes(text: str | bytes) -> np.ndarray:
    """The bytes of one text, each plus one."""
    raw = text.encode() if isinstance(text, str) else bytes(text)
    return np.frombuffer(raw, np.uint8).astype(np.int32) + 1


def _join(sentences: Sequence[np.ndarray], length: int) -> np.ndarray:
    """One or two sentences as int32 [length], cut and padded."""
    row = np.zeros(length, np.int32)
    if len(sentences) == 1:
        kept = sentences[0][:length]
    else:
        first, second = sentences
        room = length - 1
        head = min(len(first), max(room - room // 2, room - len(second)))
        kept = np.concatenate([first[:head], [SEPARATOR], second[: room - head]])
    row[: len(kept)] = kept
    return row
