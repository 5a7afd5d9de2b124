"""Search among texts as a measure of their embeddings: tasks made of texts, the ranking of candidates, a floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from jaxkd.data import Texts
from jaxkd.data.tags import WORD

Embed: TypeAlias = Callable[[Sequence[str]], np.ndarray]
"""Texts [N] -> vectors float32 [N, D]."""

Similarities: TypeAlias = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""(queries [Q], candidates [C]) -> similarities [Q, C]."""


class Task(NamedTuple):
    """A search: queries, what is searched, and which of it is right.

    Attributes:
      queries: Texts [Q].
      candidates: Texts [C].
      right: [Q, C], true where a candidate is right for a query.
      both_ways: Whether the candidates are searched with and the queries found as well.
    """

    queries: list[str]
    candidates: list[str]
    right: np.ndarray
    both_ways: bool


def halves(texts: Texts) -> Task:
    """Cuts each text in two; one half has to find the other among those of all texts, both ways (inverse cloze).

    Of n words the first (n + 1) // 2 are the first half. Texts of fewer than four words are left out.

    Args:
      texts: The texts.

    Returns:
      The task.

    Raises:
      ValueError: If fewer than two texts are left.

    Reference:
      Lee, Chang, Toutanova, "Latent Retrieval for Weakly Supervised Open Domain Question Answering", ACL 2019,
      https://arxiv.org/abs/1906.00300
    """
    words = [text.split() for text in dict.fromkeys(texts.texts)]
    words = [one for one in words if len(one) >= 4]
    if len(words) < 2:
        raise ValueError(f"{texts.name} has {len(words)} different texts of at least four words: give at least two.")
    cut = [(len(one) + 1) // 2 for one in words]
    queries = [" ".join(one[:k]) for one, k in zip(words, cut, strict=True)]
    candidates = [" ".join(one[k:]) for one, k in zip(words, cut, strict=True)]
    return Task(queries, candidates, np.eye(len(words), dtype=bool), both_ways=True)


def same_label(queries: Texts, candidates: Texts) -> Task:
    """A text has to find those with the same label; texts that stand in both splits are left out of the queries.

    Args:
      queries: Texts with labels.
      candidates: Others.

    Returns:
      The task.

    Raises:
      ValueError: If they have no classes.
    """
    if queries.task != "classification" or candidates.task != "classification":
        raise ValueError(f"{queries.name} or {candidates.name} has no classes: use --task halves.")
    known = set(candidates.texts)
    rows = [row for row, text in enumerate(queries.texts) if text not in known]
    labels = np.asarray(queries.labels)[rows]
    texts = [queries.texts[row] for row in rows]
    return Task(texts, candidates.texts, labels[:, None] == np.asarray(candidates.labels)[None], both_ways=False)


class Found(NamedTuple):
    """Measures of a search, means over queries for which a candidate is right.

    Attributes:
      precision: Mean average precision; with one right candidate for each query the mean reciprocal rank.
      recall: Part of the queries with a right candidate among the first ten.
    """

    precision: float
    recall: float


def search(task: Task, similarities: Similarities) -> Found:
    """Ranks candidates by their similarity to each query.

    Args:
      task: The task.
      similarities: (queries, candidates) -> [Q, C]; of equally similar candidates the first one comes first.

    Returns:
      The measures; their means over both directions, if the task has two.
    """
    similar = similarities(task.queries, task.candidates)
    ways = [(similar, task.right), (similar.T, task.right.T)][: 1 + task.both_ways]
    return Found(*np.mean([_measures(*way) for way in ways], axis=0).tolist())


def _measures(similar: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Mean average precision, and recall among the first ten."""
    order = np.argsort(-similar, axis=1, kind="stable")
    hits = np.take_along_axis(right, order, axis=1)[right.any(axis=1)]
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    average = np.sum(precision * hits, axis=1) / np.sum(hits, axis=1)
    return float(average.mean()), float(hits[:, :10].any(axis=1).mean())


def by_cosine(embed: Embed) -> Similarities:
    """Cosines of embeddings as similarities, for `search`.

    Args:
      embed: The embedder.

    Returns:
      (queries, candidates) -> [Q, C]; 0 for a text whose vector is 0.
    """

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    return lambda queries, candidates: unit(embed(queries)) @ unit(embed(candidates)).T


def by_words(texts: Sequence[str]) -> Similarities:
    """Cosines of tf-idf weights of words as similarities, for `search`: the floor that knows no meaning.

    Args:
      texts: Texts whose words are counted.

    Returns:
      (queries, candidates) -> [Q, C].
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    weights = TfidfVectorizer(sublinear_tf=True, token_pattern=WORD.pattern).fit(texts)
    return lambda queries, candidates: (weights.transform(queries) @ weights.transform(candidates).T).toarray()
