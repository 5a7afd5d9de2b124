"""Verification: is it the same person, animal or thing? Metrics of embeddings, from the cosines of all pairs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from jaxkd.metrics.roc import ROC, roc


class Pairs(NamedTuple):
    """All pairs of different examples.

    Attributes:
      scores: Cosine of the two embeddings of each pair, [P].
      same: True where both are of one identity, [P].
    """

    scores: np.ndarray
    same: np.ndarray

    def roc(self) -> ROC:
        """Receiver operating characteristic: false acceptance rate (FAR) and true acceptance rate (TAR).

        Its `equal_error_rate()` is the EER, and `sensitivity(1 - far)` the TAR at a FAR, without interpolation.

        Returns:
          The curve.

        Raises:
          ValueError: If there is no pair of one identity, or none of two.
        """
        if not self.same.any() or self.same.all():
            kind = "one identity" if not self.same.any() else "different identities"
            raise ValueError(
                f"there is no pair of {kind} among {self.same.size}: give at least two identities, one of them with "
                "two examples."
            )
        return roc(_tied(self.scores), self.same)

    def accuracy(self, threshold: float) -> float:
        """Accuracy at a threshold, both kinds of pairs counted alike: the mean of TAR and 1 - FAR.

        Pairs of two identities are far more; were each pair counted alike, "never the same" would be nearly perfect.

        Args:
          threshold: Cosine from which on a pair is taken for one identity; of other examples, such as
            `validation.roc().balanced_threshold()`.

        Returns:
          A number in 0..1.
        """
        accepted = _tied(self.scores) >= threshold
        return float((accepted[self.same].mean() + 1 - accepted[~self.same].mean()) / 2)


def pairs_of(embeddings: ArrayLike, identities: ArrayLike) -> Pairs:
    """Cosines of all pairs of different examples.

    Args:
      embeddings: [N, D] finite, of any length; that of a zero vector with anything is 0.
      identities: [N], a number for each identity.

    Returns:
      N (N - 1) / 2 pairs.

    Raises:
      ValueError: If the shapes do not fit, or an embedding is not finite.
    """
    x, who = _checked(embeddings, identities)
    one, other = np.triu_indices(len(x), 1)
    return Pairs((x @ x.T)[one, other], who[one] == who[other])


def rank_one(embeddings: ArrayLike, identities: ArrayLike) -> float:
    """Rank-1 identification: fraction of the examples whose nearest other example, by cosine, is of their identity.

    Of examples that are equally near, one of another identity is taken, so that a constant embedding earns nothing.

    Args:
      embeddings: [N, D] finite.
      identities: [N], a number for each identity; those with one example are candidates, and not asked for.

    Returns:
      A number in 0..1.

    Raises:
      ValueError: If the shapes do not fit, an embedding is not finite, or no identity has two examples.
    """
    x, who = _checked(embeddings, identities)
    same = who[:, None] == who[None]
    asked = same.sum(axis=1) > 1
    if not asked.any():
        raise ValueError("no identity has two examples, so none can be found again: give more of one at least.")
    cosines = _tied(x @ x.T)
    np.fill_diagonal(cosines, -np.inf)
    its = np.where(same, cosines, -np.inf).max(axis=1)
    return float(np.mean((its > np.where(same, -np.inf, cosines).max(axis=1))[asked]))


def _checked(embeddings: ArrayLike, identities: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of length one in float64, and identities."""
    x, who = np.asarray(embeddings, np.float64), np.asarray(identities)
    if x.ndim != 2 or who.shape != x.shape[:1]:
        raise ValueError(
            f"embeddings have shape {x.shape} but identities {who.shape}: give [N, D] and one identity for each, [N]."
        )
    if not np.isfinite(x).all():
        raise ValueError("an embedding is NaN or infinite: give finite numbers.")
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1), who


def _tied(cosines: np.ndarray) -> np.ndarray:
    """Cosines without their last digits, which rounding decides: equal angles are to be equal scores."""
    return np.round(cosines, 12)
