"""Tokenizers: published ones from their files by the package `tokenizers`, or trained on texts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from jaxkd.data.checks import is_whole, path_of
from jaxkd.data.readers.columns import read_lines, shortened
from jaxkd.files import prepare_file, write_atomically

TooLong: TypeAlias = Literal["cut", "refuse"]
"""What becomes of a text with more tokens than fit: it is cut, or the reading ends with a sentence."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Tokens 0 to 4 of trained tokenizers."""

_AT_ONCE = 4096  # texts that the package encodes in one call, since it keeps more of each than is read
_PADS = ("[PAD]", "<pad>", "<|padding|>", "<|pad|>", "<|endoftext|>", "</s>")


class Encoded(NamedTuple):
    """Tokens of some texts, a row each.

    Attributes:
      tokens: Ids with special tokens, a list of int32 [L_i].
      segments: 0 on tokens of the first text and 1 on those of the second, a list of int32 [L_i].
      words: Number of the word in its text that each token is of, -1 on special tokens, a list of int32 [L_i].
      offsets: First character of each token in its text and the one after its last, a list of int32 [L_i, 2]; some
        tokenizers count the space before a word to its first token.
      cut: Number of texts that were cut.
      empty: Number of texts without any token of their own.
    """

    tokens: list[np.ndarray]
    segments: list[np.ndarray]
    words: list[np.ndarray]
    offsets: list[np.ndarray]
    cut: int
    empty: int


class Tokenizer:
    """Texts to tokens, as published with a network or trained by `train_tokenizer`.

    Args:
      inner: A `tokenizers.Tokenizer`; its own settings of cutting and padding are switched off.
      name: Name for messages.
      pad: Id of padding; found by its usual names if None.
    """

    def __init__(self, inner: Any, name: str, pad: int | None = None) -> None:
        given = inner.padding
        inner.no_padding()
        inner.no_truncation()
        self._inner, self.name = inner, name
        vocabulary = inner.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise ValueError(f"{name} has no tokens: give a tokenizer with a vocabulary.")
        self.size = max(vocabulary.values()) + 1
        """Number of tokens V: ids lie in 0..V-1."""
        if pad is None:
            named = [vocabulary[token] for token in _PADS if token in vocabulary]
            pad = given["pad_id"] if given else (named[0] if named else 0)
        self.pad = int(pad)
        """Id that rows are padded with."""
        text = json.dumps([json.loads(inner.to_str()), self.pad], sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        """64 hexadecimal digits, equal for equal tokenizers."""

    def __call__(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int,
        too_long: TooLong = "cut",
        details: bool = True,
    ) -> Encoded:
        """Encodes texts, or pairs of texts, with the special tokens of the tokenizer.

        Args:
          texts: N texts, which may be empty.
          pairs: A second text for each of them, or None.
          max_length: Most tokens of a row, special tokens included. Of a pair the longer text is cut first.
          too_long: "cut" cuts longer texts and counts them; "refuse" raises.
          details: False leaves out `words` and `offsets`, which take most of the time.

        Returns:
          The tokens.

        Raises:
          ValueError: If `max_length` leaves no room for a text, if a text is too long and is to be refused, or if a
            value is no text.
        """
        inputs = self._inputs(texts, pairs)
        special = self._inner.num_special_tokens_to_add(pairs is not None)
        if not is_whole(max_length) or max_length <= special + (pairs is not None):
            raise ValueError(
                f"max_length is {max_length}, but {self.name} adds {special} special tokens to each row: give a larger "
                "number (--max-length)."
            )
        if too_long not in ("cut", "refuse"):
            raise ValueError(f"too_long is {too_long!r}: give 'cut' or 'refuse'.")
        found, cut, empty = Encoded([], [], [], [], 0, 0), 0, 0
        for first in range(0, len(inputs), _AT_ONCE):
            rows = self._encode(inputs[first : first + _AT_ONCE], first, int(max_length), too_long)
            found.tokens.extend(np.array(row.ids, np.int32) for row in rows)
            found.segments.extend(np.array(row.type_ids, np.int32) for row in rows)
            if details:
                found.words.extend(np.array([-1 if w is None else w for w in row.word_ids], np.int32) for row in rows)
                found.offsets.extend(np.array(row.offsets, np.int32).reshape(-1, 2) for row in rows)
            cut += sum(bool(row.overflowing) for row in rows)
            empty += sum(len(row) <= special for row in rows)
        return found._replace(cut=cut, empty=empty)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the tokenizer as a `tokenizer.json`, which `open_tokenizer` and other libraries read.

        Args:
          path: The file.

        Raises:
          OSError: If it cannot be written.
        """
        prepare_file(path)
        self._inner.enable_padding(pad_id=self.pad, pad_token=self._inner.id_to_token(self.pad) or "[PAD]")
        try:
            text = self._inner.to_str(pretty=True)
        finally:
            self._inner.no_padding()
        write_atomically(Path(path), text)

    def tokens_of(self, ids: Iterable[int]) -> list[str]:
        """The pieces of text that ids stand for.

        Args:
          ids: Ids in 0..V-1.

        Returns:
          A piece for each id; "" for an id that the vocabulary leaves out.
        """
        return [self._inner.id_to_token(int(k)) or "" for k in ids]

    def _inputs(self, texts: Sequence[str], pairs: Sequence[str] | None) -> list[Any]:
        """Texts or pairs of them, as the package takes them."""
        if isinstance(texts, str) or (pairs is not None and len(pairs) != len(texts)):
            what = "one text" if isinstance(texts, str) else f"{len(texts)} texts and {len(pairs or ())} pairs"
            raise ValueError(f"{what} were given to {self.name}: give a list of texts, and as many pairs or none.")
        for row, text in enumerate([*texts, *(pairs or ())]):
            if not isinstance(text, str):
                raise ValueError(f"row {row % len(texts)} is {shortened(text)}, which is no text: give str.")
        return list(texts) if pairs is None else list(zip(texts, pairs, strict=True))

    def _encode(self, inputs: list[Any], first: int, max_length: int, too_long: TooLong) -> list[Any]:
        """Encodings of some rows, of which the first has the number `first`."""
        self._inner.enable_truncation(max_length, strategy="longest_first")
        try:
            rows: list[Any] = self._inner.encode_batch(inputs)
        finally:
            self._inner.no_truncation()
        over = [row for row, encoding in enumerate(rows) if encoding.overflowing]
        if over and too_long == "refuse":
            needed = len(self._inner.encode_batch([inputs[over[0]]])[0])
            raise ValueError(
                f"row {first + over[0]} has {needed} tokens, but at most {max_length} are allowed: shorten it, give a "
                "larger --max-length, or --too-long cut."
            )
        return rows


def open_tokenizer(place: str | os.PathLike[str]) -> Tokenizer:
    """Opens a published tokenizer.

    Args:
      place: A folder with tokenizer.json, or with the vocab.txt of BERT; or one of these files.

    Returns:
      The tokenizer. Cutting and padding are switched off, since `Tokenizer.__call__` does them.

    Raises:
      ValueError: If there is no such file or it cannot be read.
      ImportError: If the package `tokenizers` is missing.
    """
    path = path_of(os.fspath(place))
    folder = path if path.is_dir() else path.parent
    file = next((f for f in (path / "tokenizer.json", path / "vocab.txt") if f.is_file()), path)
    if not file.is_file():
        raise ValueError(
            f"{path} has no tokenizer.json and no vocab.txt: give the folder of a published network, whose tokenizer "
            "is one of these files, or train one by data.train_tokenizer."
        )
    package, settings = _package(), _settings(folder)
    try:
        if file.suffix == ".txt":
            tokens = {token: number for number, token in enumerate(read_lines(file))}
            lower = bool(settings.get("do_lower_case", True))
            inner = package.implementations.BertWordPieceTokenizer(tokens, lowercase=lower)._tokenizer
        else:
            inner = package.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises bare Exception
        raise ValueError(f"{file} cannot be read as a tokenizer ({error}): copy or download it anew.") from error
    pad = settings.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    return Tokenizer(inner, str(file), None if pad is None else inner.token_to_id(pad))


def train_tokenizer(
    texts: Iterable[str], size: int, *, lowercase: bool = True, min_frequency: int = 2, name: str = "the tokenizer"
) -> Tokenizer:
    """Trains a tokenizer on texts by byte-pair encoding of their words, for students with tokens of their own.

    The same texts give the same tokenizer in every process.

    Args:
      texts: The texts.
      size: Most tokens of the vocabulary V, the five special ones and single characters included.
      lowercase: True for lower case without accents.
      min_frequency: Occurrences from which on two pieces are joined.
      name: Name for messages.

    Returns:
      The tokenizer, which puts [CLS] before and [SEP] after each text. "\u2581" begins the first piece of a word.

    Raises:
      ValueError: If the texts have more different characters than the size allows.
      ImportError: If the package `tokenizers` is missing.

    Reference:
      Sennrich, Haddow and Birch, Neural Machine Translation of Rare Words with Subword Units, 2016,
      https://arxiv.org/abs/1508.07909.
    """
    package = _package()
    inner = package.Tokenizer(package.models.BPE(unk_token="[UNK]"))
    inner.normalizer = package.normalizers.Sequence(
        [
            package.normalizers.BertNormalizer(lowercase=lowercase),
            package.normalizers.Replace(package.Regex(r"\s+"), " "),
            package.normalizers.Strip(),
        ]
    )
    # Not the "##" of BERT, in the order of whose pieces the package's training differs from process to process.
    inner.pre_tokenizer = package.pre_tokenizers.Sequence(
        [package.pre_tokenizers.Metaspace(), package.pre_tokenizers.Punctuation()]
    )
    inner.decoder = package.decoders.Metaspace()
    trainer = package.trainers.BpeTrainer(
        vocab_size=size if is_whole(size) else 0,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    if (needed := inner.get_vocab_size()) > size:
        raise ValueError(
            f"size is {size}, but {len(SPECIAL)} special tokens and the different characters of the texts are {needed} "
            "tokens already: give a larger number."
        )
    inner.post_processor = package.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, inner.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return Tokenizer(inner, name, pad=0)


def _package() -> Any:
    """The package `tokenizers`."""
    try:
        import tokenizers
        import tokenizers.implementations
    except ImportError as error:
        raise ImportError(
            'tokens of published networks need the package tokenizers: pip install "jaxkd[text]".'
        ) from error
    return tokenizers


def _settings(folder: Path) -> dict[str, Any]:
    """Contents of tokenizer_config.json, or nothing."""
    try:
        found = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # its absence is usual, and of its contents all is optional
        return {}
    return found if isinstance(found, dict) else {}
