"""The receiver operating characteristic of scores on the host: all its points, and what is read off them.

`jaxkd.metrics.auroc` gives the area alone, from sums that add up over batches; here all scores are at hand.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

_ROUNDING = 1e-9
"""Slack of a rate that is compared with one that was asked for, as 1 - 0.95 is a little above 0.05."""


class ROC(NamedTuple):
    """Receiver operating characteristic: the rates at all thresholds, where a score says yes from the threshold on.

    Attributes:
      false_positive_rate: Fraction of the no that are called yes, [n], increasing from 0 to 1.
      true_positive_rate: Fraction of the yes that are called yes, the sensitivity, [n], increasing from 0 to 1.
      thresholds: [n], decreasing from infinity to the least score.
    """

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    thresholds: np.ndarray

    def auc(self) -> float:
        """Area under the curve: probability that a yes has a larger score than a no, where equal ones are half.

        Returns:
          A number in 0..1.
        """
        heights = self.true_positive_rate[1:] + self.true_positive_rate[:-1]
        return float(np.sum(np.diff(self.false_positive_rate) * heights) / 2)

    def sensitivity(self, specificity: float) -> float:
        """Largest sensitivity among the thresholds whose specificity is at least the one asked for.

        It is reached by a threshold; nothing is interpolated.

        Args:
          specificity: Least fraction of the no that are called no, in 0..1.

        Returns:
          A number in 0..1.

        Raises:
          ValueError: If the specificity is no such fraction.
        """
        return float(self.true_positive_rate[self._place(specificity)])

    def threshold(self, specificity: float) -> float:
        """Threshold of `sensitivity`: the lowest whose specificity is at least the one asked for.

        Args:
          specificity: Least fraction of the no that are called no, in 0..1.

        Returns:
          A score, or infinity.

        Raises:
          ValueError: If the specificity is no such fraction.
        """
        return float(self.thresholds[self._place(specificity)])

    def balanced_threshold(self) -> float:
        """Threshold with the best balanced accuracy, the mean of sensitivity and specificity; the highest of several.

        Returns:
          A score, or infinity if no threshold is better than to call everything no.

        Reference:
          Youden, "Index for rating diagnostic tests", Cancer 1950,
          https://doi.org/10.1002/1097-0142(1950)3:1%3C32::AID-CNCR2820030106%3E3.0.CO;2-3
        """
        gain = self.true_positive_rate - self.false_positive_rate
        return float(self.thresholds[np.argmax(gain > gain.max() - _ROUNDING)])

    def equal_error_rate(self) -> float:
        """Rate at which as many no are called yes as yes are called no, by linear interpolation between two points.

        Returns:
          A number in 0..1; 0 if a threshold separates the two.
        """
        gap = self.false_positive_rate - (1 - self.true_positive_rate)  # rises from -1 to 1
        after = int(np.argmax(gap >= 0))
        part = -gap[after - 1] / (gap[after] - gap[after - 1])
        one, other = self.false_positive_rate[after - 1 : after + 1]
        return float(one + part * (other - one))

    def _place(self, specificity: float) -> int:
        """Number of the last point whose specificity is large enough."""
        if not 0 <= specificity <= 1:
            raise ValueError(f"the specificity is {specificity}: give a fraction from 0 to 1.")
        return int(np.flatnonzero(self.false_positive_rate <= 1 - specificity + _ROUNDING)[-1])


def roc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> ROC:
    """Receiver operating characteristic of scores, with one point for each different score.

    Args:
      scores: [N], larger for a yes.
      labels: [N], 1 or True for yes, 0 or False for no.
      weights: [N], at least 0, what each counts; 1 if None.

    Returns:
      The curve.

    Raises:
      ValueError: If the shapes differ, a label is neither, a score is NaN, a weight is negative, or there is no yes or
        no no that counts.

    Reference:
      Fawcett, "An Introduction to ROC Analysis", Pattern Recognition Letters 2006,
      https://doi.org/10.1016/j.patrec.2005.10.010
    """
    z, y = np.asarray(scores, np.float64), np.asarray(labels)
    w = np.ones(z.shape) if weights is None else np.asarray(weights, np.float64)
    if z.ndim != 1 or not z.shape == y.shape == w.shape:
        raise ValueError(
            f"scores have shape {z.shape}, labels {y.shape} and weights {w.shape}: give all of them one shape [N]."
        )
    if not np.isin(y, (0, 1)).all():
        raise ValueError("a label is neither 0 nor 1: give 1 for yes and 0 for no.")
    if np.isnan(z).any() or not np.isfinite(w).all() or (w < 0).any():
        raise ValueError("a score is NaN, or a weight negative or not finite: give numbers, and weights of 0 or more.")
    yes = y.astype(bool)
    if not w[yes].sum() > 0 or not w[~yes].sum() > 0:
        which = "positive" if not w[yes].sum() > 0 else "negative"
        raise ValueError(f"none of {z.size} examples is {which}, so there is no curve: give examples of both kinds.")
    order = np.argsort(-z, kind="stable")
    z, hits, alarms = z[order], np.cumsum((w * yes)[order]), np.cumsum((w * ~yes)[order])
    last = np.append(np.flatnonzero(z[1:] != z[:-1]), z.size - 1)  # of each run of equal scores
    start = np.zeros(1)
    return ROC(
        np.concatenate([start, alarms[last] / alarms[-1]]),
        np.concatenate([start, hits[last] / hits[-1]]),
        np.concatenate([[np.inf], z[last]]),
    )


def sensitivity_at_specificity(
    scores: ArrayLike, labels: ArrayLike, *, specificity: float = 0.95, weights: ArrayLike | None = None
) -> float:
    """Largest sensitivity that a threshold has whose specificity is at least the one asked for.

    The threshold is found on these scores. One that is found on other examples is `ROC.threshold`.

    Args:
      scores: [N], larger for a yes.
      labels: [N], 1 or True for yes, 0 or False for no.
      specificity: Least fraction of the no that are called no, in 0..1.
      weights: [N], at least 0, what each counts; 1 if None.

    Returns:
      A number in 0..1.

    Raises:
      ValueError: As `roc` and `ROC.sensitivity` say.
    """
    return roc(scores, labels, weights).sensitivity(specificity)
