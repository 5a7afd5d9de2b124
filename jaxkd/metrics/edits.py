"""Edits of texts: word and character error rates, with the substitutions, deletions and insertions that they count."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxkd.metrics.accumulators import ratio


class Edits(NamedTuple):
    """Accumulator of an error rate: least edits that turn the references into the hypotheses.

    Attributes:
      substitutions: Number of units that another one stands for.
      deletions: Number of units of the references that the hypotheses lack.
      insertions: Number of units that the hypotheses have besides.
      length: Number of units of the references.
    """

    substitutions: Any
    deletions: Any
    insertions: Any
    length: Any

    def value(self) -> Any:
        """Error rate, (S + D + I) / N; it may exceed 1.

        Returns:
          Scalar of at least 0; the number of insertions if the references are empty.
        """
        return ratio(np.add(self.substitutions, self.deletions) + self.insertions, self.length)


def word_edits(references: Sequence[str], hypotheses: Sequence[str]) -> Edits:
    """Edits of words, which spaces separate; the value is the word error rate (WER).

    The counts are those of `jiwer.process_words`: of several ways with the fewest edits it is the same one. As there,
    any two or more characters of white space count as a space, and a single tab or line break is part of a word.

    Args:
      references: True texts.
      hypotheses: Texts that a network wrote, one for each.

    Returns:
      The edits of all texts together, so that long texts count more than short ones.

    Raises:
      ValueError: If there are more texts of one kind than of the other.
    """
    return _sum([_words(text) for text in references], [_words(text) for text in hypotheses])


def character_edits(references: Sequence[str], hypotheses: Sequence[str]) -> Edits:
    """Edits of characters, white space within a text included; the value is the character error rate (CER).

    The counts are those of `jiwer.process_characters`.

    Args:
      references: True texts.
      hypotheses: Texts that a network wrote, one for each.

    Returns:
      The edits of all texts together.

    Raises:
      ValueError: If there are more texts of one kind than of the other.
    """
    return _sum([text.strip() for text in references], [text.strip() for text in hypotheses])


def count_edits(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> Edits:
    """Least substitutions, deletions and insertions that turn one sequence into another.

    Args:
      reference: Units, such as words or characters.
      hypothesis: Units.

    Returns:
      The edits.

    Reference:
      Levenshtein, "Binary Codes Capable of Correcting Deletions, Insertions, and Reversals", Soviet Physics Doklady
      1966. Where several ways have the fewest edits, this is that of RapidFuzz 3, which jiwer counts by.
    """
    numbers: dict[Hashable, int] = {}
    x, y = (np.array([numbers.setdefault(u, len(numbers)) for u in side], int) for side in (reference, hypothesis))
    begin = _common(x, y)
    x, y = x[begin:], y[begin:]
    end = _common(x[::-1], y[::-1])
    x, y = x[: len(x) - end], y[: len(y) - end]
    cost = _table(x, y)
    i, j, substitutions, deletions, insertions = len(x), len(y), 0, 0, 0
    while i and j:
        if cost[i, j] == cost[i - 1, j] + 1:
            i, deletions = i - 1, deletions + 1
        elif j > 1 and cost[i, j - 1] == cost[i - 1, j - 1] - 1:
            j, insertions = j - 1, insertions + 1
        else:
            i, j = i - 1, j - 1
            substitutions += int(x[i] != y[j])
    return Edits(substitutions, deletions + i, insertions + j, len(reference))


def _words(text: str) -> list[str]:
    """Words of a text."""
    return [word for word in re.sub(r"\s\s+", " ", text).strip().split(" ") if word]


def _sum(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> Edits:
    """Edits of all texts together."""
    if len(references) != len(hypotheses):
        raise ValueError(f"there are {len(references)} references but {len(hypotheses)} hypotheses: give one for each.")
    each = [count_edits(x, y) for x, y in zip(references, hypotheses, strict=True)]
    return Edits(*np.sum(each, axis=0)) if each else Edits(0, 0, 0, 0)


def _common(x: np.ndarray, y: np.ndarray) -> int:
    """Number of units that two sequences begin with alike."""
    n = min(len(x), len(y))
    return int(np.argmin(np.append(x[:n] == y[:n], False)))


def _table(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least edits between the beginnings of two sequences, [len(x) + 1, len(y) + 1]."""
    place = np.arange(len(y) + 1)
    cost = np.empty((len(x) + 1, len(y) + 1), int)
    cost[0] = place
    for i, unit in enumerate(x):
        # The best without an insertion at the end; then any number of insertions after it.
        without = np.append(i + 1, np.minimum(cost[i, :-1] + (y != unit), cost[i, 1:] + 1))
        cost[i + 1] = np.minimum.accumulate(without - place) + place
    return cost
