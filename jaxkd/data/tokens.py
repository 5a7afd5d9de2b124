"""Byte-level tokens of texts, computed on the host: the vocabulary is fixed, so nothing is trained or downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxkd.data.checks import is_text, is_whole

SEPARATOR = 257
"""Token between two sentences. Token 0 is padding, and the tokens 1..256 are the bytes 0..255."""

VOCABULARY = 258
"""Number of different tokens."""

Transform = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""Function of one host batch, which runs in the pipeline's reading threads."""

_LEADING = ("title", "premise")


def encode_bytes(length: int, fields: Sequence[str] | None = None) -> Transform:
    """Makes a transform that replaces the text fields of a batch by `tokens` and `token_mask`.

    token = byte of UTF-8 + 1

    Rows are padded with 0 and two sentences are joined by `SEPARATOR`. Where the tokens of a row do not fit, the longer
    of its sentences is cut first.

    Args:
      length: Number of tokens in a row, L.
      fields: One or two text fields, in order. By default all text fields of the batch in the order of their names,
        `premise` and `title` first.

    Returns:
      Transform: batch -> the batch without texts, with `tokens` int32 [B, L] and `token_mask` bool [B, L], true on
      tokens.

    Raises:
      ValueError: If the length is below 3. The transform raises one unless there are one or two text fields.
    """
    if not is_whole(length) or length < 3:
        raise ValueError(f"encode_bytes got length {length}: give at least 3 tokens per row.")

    def transform(batch: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        texts = sorted((k for k, v in batch.items() if is_text(v)), key=lambda k: (k not in _LEADING, k))
        chosen = texts if fields is None else list(fields)
        if not 1 <= len(chosen) <= 2 or not set(chosen) <= set(texts):
            raise ValueError(
                f"encode_bytes takes one or two text fields but got {chosen} where the batch has the text fields "
                f"{texts}: name them with fields=."
            )
        for field in chosen:
            if other := [text for text in batch[field] if not isinstance(text, (str, bytes))]:
                raise ValueError(f"`{field}` holds {other[0]!r}, which is no text: give str or bytes in every row.")
        rows = zip(*(batch[field] for field in chosen), strict=True)
        tokens = np.stack([_join([_to_bytes(text) for text in row], length) for row in rows])
        rest = {k: v for k, v in batch.items() if k not in texts}
        return rest | {"tokens": tokens, "token_mask": tokens != 0}

    return transform


def _to_bytes(text: str | bytes) -> np.ndarray:
    """Tokens of one text: its bytes, each plus one."""
    raw = text.encode(errors="surrogatepass") if isinstance(text, str) else bytes(text)
    return np.frombuffer(raw, np.uint8).astype(np.int32) + 1


def _join(sentences: Sequence[np.ndarray], length: int) -> np.ndarray:
    """One or two sentences as one row of tokens, int32 [length], cut and padded."""
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
