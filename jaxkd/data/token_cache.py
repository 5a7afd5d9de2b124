"""Tokens on disk, so that texts are tokenised once: one file for each set of texts, tokenizer and length."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxkd.data.splits import say
from jaxkd.data.tokenizer import Encoded, Tokenizer, TooLong
from jaxkd.files import prepare_file, replacing

_FORMAT = 1


def encode(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    max_length: int,
    too_long: TooLong = "cut",
    folder: str | os.PathLike[str] | None = None,
) -> Encoded:
    """Tokenises texts, or reads their tokens if they are in a folder already.

    Args:
      tokenizer: The tokenizer.
      texts: N texts.
      pairs: A second text for each of them, or None.
      max_length: As for `Tokenizer.__call__`.
      too_long: As for `Tokenizer.__call__`.
      folder: Folder of the tokens, made if it is missing; None keeps nothing.

    Returns:
      The tokens, without `words` and `offsets`.

    Raises:
      ValueError: As `Tokenizer.__call__` says.
      OSError: If the folder cannot be written to.
    """
    file = None if folder is None else Path(folder) / f"{_fingerprint(tokenizer, texts, pairs, max_length)}.npz"
    found = None if file is None else _read(file, len(texts))
    if found is not None and not (found.cut and too_long == "refuse"):
        return found
    found = tokenizer(texts, pairs, max_length=max_length, too_long=too_long, details=False)
    if file is not None:
        prepare_file(file)
        with replacing(file) as stream:
            np.savez(
                stream,
                tokens=np.concatenate(found.tokens),
                segments=np.concatenate(found.segments).astype(np.uint8),
                lengths=np.array([len(row) for row in found.tokens], np.int32),
                counts=np.array([found.cut, found.empty]),
            )
    return found


def _fingerprint(tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> str:
    """Digits that stand for all that the tokens depend on."""
    digest = hashlib.sha256(repr((_FORMAT, tokenizer.fingerprint, max_length, len(texts), pairs is None)).encode())
    for text in (*texts, *(pairs or ())):
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()[:32]


def _read(file: Path, size: int) -> Encoded | None:
    """Tokens in a file; None if there is none, or it is damaged."""
    if not file.exists():
        return None
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            lengths, (cut, empty) = arrays["lengths"], arrays["counts"]
            ends = np.cumsum(lengths)
            flat = (arrays["tokens"].astype(np.int32), arrays["segments"].astype(np.int32))
            if len(lengths) != size or any(len(values) != ends[-1] for values in flat):
                raise ValueError("its arrays do not fit each other")
            tokens, segments = (np.split(values, ends[:-1]) for values in flat)
            return Encoded(tokens, segments, [], [], int(cut), int(empty))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        say(f"{file} is damaged ({error}): its texts are tokenised again.")
        return None
