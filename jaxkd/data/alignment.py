"""Two tokenisations of one text, aligned by characters: what a teacher says of its tokens, for a student's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

Pool: TypeAlias = Literal["first", "mean"]
"""Of the teacher's tokens that share characters with a student's token: the first alone, or the mean of their
probabilities, weighted by the number of shared characters."""

NO_LABEL = -100
"""Label of a token that no word begins with; losses and metrics leave it out by `ignore=`."""


class Carried(NamedTuple):
    """What a teacher says of a student's tokens.

    Attributes:
      logits: Log-probabilities of each token, a list of float32 [n_i, K]; those of a uniform distribution where the
        teacher says nothing.
      known: Whether the teacher says something of a token, a list of bool [n_i].
    """

    logits: list[np.ndarray]
    known: list[np.ndarray]


def shared_characters(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Number of characters that each token of one tokenisation shares with each one of another.

    Args:
      student: First character of each of the student's tokens and the one after its last, integers [n, 2]. Special
        tokens have none: both numbers are equal.
      teacher: The same of the teacher's tokens of the same text [m, 2].

    Returns:
      Integers [n, m], at least 0.

    Raises:
      ValueError: If an array has another shape, or a token ends before it begins.
    """
    (s, t) = (_spans(side, given) for side, given in (("student", student), ("teacher", teacher)))
    start, end = (choose(s[:, None, i], t[None, :, i]) for i, choose in enumerate((np.maximum, np.minimum)))
    return np.maximum(end - start, 0)


def pool_tokens(logits: np.ndarray, shared: np.ndarray, pool: Pool = "first") -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of a teacher's tokens, pooled over those that share characters with each student's token.

    p_i = sum_j w_ij softmax(z_j) / sum_j w_ij;  w_ij = shared_ij for the mean, 1 at the first j that shares any

    Args:
      logits: The teacher's logits [m, K], of a text that may be cut: only its first m tokens.
      shared: Shared characters [n, m], or [n, more than m] if the teacher's text was cut.
      pool: "first" or "mean".

    Returns:
      Log-probabilities float32 [n, K], and bool [n], false where no token shares a character.

    Raises:
      ValueError: If there are more logits than tokens, or there is no such pooling.
    """
    if pool not in ("first", "mean"):
        raise ValueError(f"there is no pooling {pool!r} of tokens: give 'first' or 'mean'.")
    z = np.asarray(logits, np.float64)
    if z.ndim != 2 or len(z) > shared.shape[1]:
        raise ValueError(
            f"logits have shape {z.shape} but the teacher has {shared.shape[1]} tokens: give one row [K] for each of "
            "its tokens, without padding."
        )
    n, K = len(shared), z.shape[1]
    weight = shared[:, : len(z)].astype(np.float64)
    known = np.asarray((weight > 0).any(axis=1))
    if not known.any():
        return np.full((n, K), -np.log(K), np.float32), known
    top = z.max(axis=1, keepdims=True)
    logp = z - top - np.log(np.exp(z - top).sum(axis=1, keepdims=True))
    if pool == "first":
        pooled = logp[np.argmax(weight > 0, axis=1)]
    else:
        weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1)
        with np.errstate(divide="ignore"):  # of a class that is impossible for all tokens
            pooled = np.log(weight @ np.exp(logp))
    return np.where(known[:, None], pooled, -np.log(K)).astype(np.float32), known


def carry_tokens(
    logits: Sequence[np.ndarray],
    student: Sequence[np.ndarray],
    teacher: Sequence[np.ndarray],
    *,
    pool: Pool = "first",
) -> Carried:
    """Carries a teacher's token distributions over to a student with other tokens, text by text.

    Args:
      logits: The teacher's logits of each text, [m_i, K]; rows behind its last token (padding) are left out.
      student: First and last characters of the student's tokens of each text, integers [n_i, 2], as
        `Encoded.offsets` has them.
      teacher: The same of the teacher's tokens [m_i, 2]. A text may be cut on either side.
      pool: "first" or "mean".

    Returns:
      The teacher's word on each of the student's tokens, for `from_tokens(..., per_token=...)`.

    Raises:
      ValueError: If there are not as many texts on all sides, or as the other functions here say.
    """
    if not len(logits) == len(student) == len(teacher):
        raise ValueError(
            f"there are logits of {len(logits)} texts, and tokens of {len(student)} (student) and {len(teacher)} "
            "(teacher): give the same texts in the same order."
        )
    carried = Carried([], [])
    for z, s, t in zip(logits, student, teacher, strict=True):
        pooled, known = pool_tokens(np.asarray(z)[: len(t)], shared_characters(s, t), pool)
        carried.logits.append(pooled)
        carried.known.append(known)
    return carried


def label_tokens(labels: Sequence[int] | np.ndarray, words: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Labels of words as labels of tokens: that of a word at its first token, and none elsewhere.

    Args:
      labels: Label of each word [W].
      words: First character of each word and the one after its last, integers [W, 2], in order.
      tokens: The same of the tokens [n, 2].

    Returns:
      int32 [n]: the label of the word that a token is the first of, else `NO_LABEL`. Of several words that begin
      in one token the first counts; a word behind the end of a cut text has no token.

    Raises:
      ValueError: If there is not one label for each word.
    """
    words = _spans("words", words)
    if len(labels) != len(words):
        raise ValueError(f"there are {len(labels)} labels of {len(words)} words: give one for each word.")
    shared = shared_characters(tokens, words) > 0
    found = np.full(len(tokens), NO_LABEL, np.int32)
    first = np.argmax(shared, axis=0) if len(tokens) else np.zeros(0, int)
    for word in reversed(range(len(words) if len(tokens) else 0)):
        if shared[first[word], word]:
            found[first[word]] = labels[word]
    return found


def _spans(what: str, given: np.ndarray) -> np.ndarray:
    """First and last characters, checked."""
    spans = np.asarray(given)
    if spans.size == 0:
        return np.zeros((0, 2), np.int64)
    if spans.ndim != 2 or spans.shape[1] != 2 or spans.dtype.kind not in "iu":
        raise ValueError(
            f"the tokens of the {what} have shape {spans.shape} and dtype {spans.dtype}: give integers [tokens, 2], "
            "the first character of each token and the one after its last."
        )
    if (spans[:, 1] < spans[:, 0]).any():
        wrong = spans[spans[:, 1] < spans[:, 0]][0]
        raise ValueError(f"a token of the {what} ends at {wrong[1]}, before it begins at {wrong[0]}: correct its span.")
    return spans
