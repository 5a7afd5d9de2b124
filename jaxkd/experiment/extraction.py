"""Extraction: summaries that choose sentences of a document; documents of users' files, labels, floors and scores."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from jaxkd.data.checks import path_of
from jaxkd.data.readers.columns import Columns
from jaxkd.data.readers.lines import read_jsonl
from jaxkd.data.texts import Texts
from jaxkd.experiment.texts import Splits
from jaxkd.experiment.tiny import sentences

CLASSES = ("left out", "chosen")
"""Classes of a sentence."""

_WORD, _END = re.compile(r"\w+"), re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])")
_FORMS = '{"document": "...", "summary": "..."} or {"sentences": ["...", "..."], "chosen": [0, 2]}'


class Document(NamedTuple):
    """A document and its summary.

    Attributes:
      sentences: Its sentences in their order.
      chosen: Numbers of the sentences that a summary should have, increasing.
      summary: The summary that others are compared with.
    """

    sentences: list[str]
    chosen: list[int]
    summary: str


def split_sentences(text: str) -> list[str]:
    """Splits a text where a full stop, an exclamation or a question mark is followed by a capital or a digit.

    Args:
      text: The text.

    Returns:
      Its sentences, without empty ones.
    """
    return [part for line in text.splitlines() for part in map(str.strip, _END.split(line)) if part]


def rouge_1(candidate: str, reference: str) -> float:
    """ROUGE-1: harmonic mean of precision and recall of the words that a summary shares with a reference.

    Words are runs of letters and digits in lower case, counted as often as they occur; there is no stemming.

    Args:
      candidate: The summary.
      reference: The reference.

    Returns:
      F1 in 0..1; 0 if nothing is shared.

    Reference:
      Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, https://aclanthology.org/W04-1013
    """
    one, other = (Counter(_WORD.findall(text.lower())) for text in (candidate, reference))
    return 2 * (one & other).total() / max(1, one.total() + other.total())


def oracle(sentences: Sequence[str], summary: str, count: int) -> list[int]:
    """Labels of a document's sentences: those that together are most like its summary, added one by one.

    Args:
      sentences: The sentences.
      summary: The summary, in words of its own.
      count: Sentences to choose at most; it ends earlier where no sentence makes ROUGE-1 larger.

    Returns:
      Their numbers, increasing.

    Reference:
      Nallapati, Zhai, Zhou, "SummaRuNNer: A Recurrent Neural Network Based Sequence Model for Extractive Summarization
      of Documents", AAAI 2017, https://arxiv.org/abs/1611.04230
    """
    chosen: list[int] = []
    best = 0.0
    while len(chosen) < count:
        rest = [i for i in range(len(sentences)) if i not in chosen]
        scores = [rouge_1(" ".join(sentences[j] for j in (*chosen, i)), summary) for i in rest]
        if not rest or max(scores) <= best:
            break
        best, number = max(scores), rest[int(np.argmax(scores))]
        chosen.append(number)
    return sorted(chosen)


def open_documents(spec: str, count: int) -> dict[str, list[Document]]:
    """Opens documents of a user's files, or the small set of a smoke run.

    Args:
      spec: jsonl:PATH, one object a line: a `document` and its `summary`, of which labels are made by `oracle`; or its
        `sentences` and the numbers of those `chosen`. "{split}" in PATH stands for train, validation and test; a file
        without it is split at random, 80, 10 and 10 %. Or "sentences".
      count: Sentences of a summary at most.

    Returns:
      "train", "validation" and "test" -> documents; those with one sentence or none that is chosen are left out.

    Raises:
      ValueError: If a file cannot be read, a line is of neither form, or a split has no document; the sentence names
        the line.
    """
    if spec == "sentences":
        return {split: _made(columns) for split, columns in sentences().items()}
    kind, _, place = spec.partition(":")
    if kind != "jsonl" or not place:
        raise ValueError(f"--documents is {spec!r}: write jsonl:PATH of lines such as {_FORMS}.")
    names = ("train", "validation", "test")
    if "{split}" in place:
        opened = {split: _read(path_of(place.replace("{split}", split)), count) for split in names}
    else:
        whole = _read(path_of(place), count)
        order = np.random.RandomState(0).permutation(len(whole))  # its stream is frozen for good
        bounds = [0, round(0.8 * len(whole)), round(0.9 * len(whole)), len(whole)]
        parts = [sorted(order[i:j]) for i, j in itertools.pairwise(bounds)]
        opened = {split: [whole[i] for i in rows] for split, rows in zip(names, parts, strict=True)}
    if empty := [split for split, documents in opened.items() if not documents]:
        raise ValueError(f"{place} has no document for the {empty[0]} split: give at least ten documents.")
    return opened


def as_texts(name: str, documents: Mapping[str, Sequence[Document]]) -> Splits:
    """Sentences of documents as labelled texts, one document after the other.

    Args:
      name: Name for messages.
      documents: "train", "validation" and "test" -> documents.

    Returns:
      The texts, of the classes "left out" and "chosen".
    """
    splits = []
    for split in Splits._fields:
        texts = [sentence for document in documents[split] for sentence in document.sentences]
        labels = [int(i in one.chosen) for one in documents[split] for i in range(len(one.sentences))]
        ids = np.arange(len(texts), dtype=np.int32)
        splits.append(Texts(f"{name}[{split}]", texts, ids, labels=np.array(labels, np.int32), class_names=CLASSES))
    return Splits(*splits)


def evaluate(documents: Sequence[Document], scores: Sequence[np.ndarray], count: int) -> dict[str, float]:
    """Evaluates summaries of the sentences with the largest scores.

    Args:
      documents: The documents.
      scores: For each of them, [sentences].
      count: Sentences of a summary, k; fewer of a document that has fewer.

    Returns:
      `precision`, the fraction of the k sentences that should be chosen, and `rouge_1` to the summary; means.
    """
    precision, overlap = [], []
    for document, score in zip(documents, scores, strict=True):
        best = sorted(np.argsort(-np.asarray(score, np.float64), kind="stable")[:count])
        precision.append(np.mean([i in document.chosen for i in best]))
        overlap.append(rouge_1(" ".join(document.sentences[i] for i in best), document.summary))
    return {"precision": float(np.mean(precision)), "rouge_1": float(np.mean(overlap))}


def lead(document: Document) -> np.ndarray:
    """Scores of a floor: the first sentences are best."""
    return -np.arange(len(document.sentences), dtype=np.float64)


def at_random(document: Document) -> np.ndarray:
    """Scores of a floor: random ones, the same for a document in every call."""
    seed = sum(map(len, document.sentences))
    return np.random.RandomState(seed).random_sample(len(document.sentences))  # its stream is frozen for good


def centroid(training: Sequence[Document]) -> Callable[[Document], np.ndarray]:
    """Makes the scores of a floor: cosine of a sentence's tf-idf weights with the mean of its document's.

    Args:
      training: Documents whose sentences the weights of words are counted on.

    Returns:
      Document -> scores [sentences].

    Reference:
      Radev, Jing, Stys, Tam, "Centroid-based summarization of multiple documents", 2004,
      https://doi.org/10.1016/j.ipm.2003.10.006
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    weights = TfidfVectorizer(token_pattern=_WORD.pattern).fit([s for one in training for s in one.sentences])

    def scores(document: Document) -> np.ndarray:
        rows = weights.transform(document.sentences)  # of length one, or zero
        return np.asarray(rows @ np.asarray(rows.mean(axis=0)).ravel())

    return scores


def _made(columns: Mapping[str, Sequence[str]]) -> list[Document]:
    """Documents of six made sentences, of which the positive ones are to be chosen."""
    texts, labels, documents = columns["sentence"], columns["label"], []
    for first in range(0, len(texts) - 5, 6):
        rows = np.random.RandomState(first).permutation(np.arange(first, first + 6))
        chosen = [i for i, row in enumerate(rows) if labels[row] == "positive"]
        own = [texts[row] for row in rows]
        documents.append(Document(own, chosen, " ".join(own[i] for i in chosen)))
    return documents


def _read(path: Path, count: int) -> list[Document]:
    """Documents of one file that have something to choose from."""
    columns = read_jsonl(path)
    size = len(next(iter(columns.values.values())))
    found = [_document(columns, row, count) for row in range(size)]
    return [one for one in found if len(one.sentences) > 1 and one.chosen]


def _document(columns: Columns, row: int, count: int) -> Document:
    """The document of one line."""
    line = {name: values[row] for name, values in columns.values.items()}
    text, summary, given, chosen = (line.get(name) for name in ("document", "summary", "sentences", "chosen"))
    if isinstance(text, str) and isinstance(summary, str):
        own = split_sentences(text)
        return Document(own, oracle(own, summary, count), summary)
    if not (_are(given, str) and _are(chosen, int) and all(0 <= i < len(given) for i in chosen)):
        raise ValueError(f"{columns.place(row)} is no document with a summary: write {_FORMS}.")
    numbers = sorted(set(chosen))
    return Document(given, numbers, " ".join(given[i] for i in numbers))


def _are(values: Any, kind: type) -> TypeGuard[list[Any]]:
    """True for a list of values of one kind."""
    return isinstance(values, list) and all(isinstance(x, kind) and not isinstance(x, bool) for x in values)
