"""Floors under tables: logistic regression on vectors, such as those of a frozen encoder, and on counts of words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxkd.data.checks import is_whole
from jaxkd.data.tags import WORD

STRENGTHS = (1.0, 10.0, 100.0)
"""Inverse strengths C of the regularisation that are tried."""

_ABSENT = -1e4
"""Logit of a class of which no text was seen."""


class Baseline(NamedTuple):
    """A trained baseline.

    Attributes:
      logits: Inputs, N texts or vectors [N, D] -> log-probabilities float32 [N, K].
      C: Inverse strength of the regularisation, the one with the best accuracy on the validation split.
      parameters: Trained scalars.
      bytes: Bytes of all that it needs, in float32, without its words.
    """

    logits: Callable[[Any], np.ndarray]
    C: float
    parameters: int
    bytes: int


def tf_idf(
    texts: Sequence[str],
    labels: np.ndarray,
    validation: tuple[Sequence[str], np.ndarray],
    num_classes: int,
    *,
    ngrams: tuple[int, int] = (1, 2),
    strengths: Sequence[float] = STRENGTHS,
) -> Baseline:
    """Trains logistic regression on tf-idf weights of words and of pairs of words.

    Args:
      texts: Training texts.
      labels: Their classes [N], whole numbers from 0.
      validation: Texts and labels on which C is chosen.
      num_classes: K.
      ngrams: Shortest and longest run of words that is counted.
      strengths: Values of C to choose from.

    Returns:
      The baseline, which takes texts.

    Raises:
      ValueError: If there are fewer than two classes among the labels, or the texts have no word.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Single letters and signs are words too: "i", "a", "!" and "?" tell feelings.
    weights = TfidfVectorizer(ngram_range=ngrams, sublinear_tf=True, token_pattern=WORD.pattern)
    try:
        features = weights.fit_transform(texts)
    except ValueError as error:
        raise ValueError(
            f"no tf-idf weights can be made of {len(texts)} texts ({error}): give texts with words."
        ) from None
    found = logistic_regression(
        features, labels, (weights.transform(validation[0]), validation[1]), num_classes, strengths=strengths
    )
    return found._replace(
        logits=lambda given: found.logits(weights.transform(given)), bytes=found.bytes + 4 * features.shape[1]
    )


def logistic_regression(
    features: Any,
    labels: np.ndarray,
    validation: tuple[Any, np.ndarray],
    num_classes: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
) -> Baseline:
    """Trains logistic regression on vectors, such as the sentence embeddings of a frozen encoder.

    min_W  C sum_i -log softmax(W x_i + b)[y_i] + |W|^2 / 2

    Args:
      features: Training vectors [N, D], an array or a sparse matrix.
      labels: Their classes [N], whole numbers from 0.
      validation: Vectors and labels on which C is chosen; the smallest C wins where two are as good.
      num_classes: K.
      strengths: Values of C to choose from.

    Returns:
      The baseline, which takes vectors.

    Raises:
      ValueError: If there are fewer than two classes among the labels, or a label is outside 0..K-1.
    """
    from sklearn.linear_model import LogisticRegression

    labels, seen = np.asarray(labels), np.unique(labels)
    if not is_whole(num_classes) or len(seen) < 2 or seen[0] < 0 or seen[-1] >= num_classes:
        raise ValueError(
            f"logistic regression got labels of the classes {seen.tolist()[:10]} of {num_classes}: give labels of at "
            "least two classes, numbered from 0."
        )
    best: Any = None
    most = -1.0
    for C in strengths:
        model = LogisticRegression(C=C, max_iter=5000).fit(features, labels)
        accuracy = float(np.mean(model.predict(validation[0]) == validation[1]))
        if accuracy > most:
            best, most = model, accuracy

    def logits(given: Any) -> np.ndarray:
        found = np.full((given.shape[0], num_classes), _ABSENT, np.float32)
        z = np.asarray(best.decision_function(given), np.float64)  # log(predict_proba) is -inf far from the boundary
        z = np.stack([np.zeros_like(z), z], axis=1) if z.ndim == 1 else z
        found[:, best.classes_] = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
        return found

    parameters = best.coef_.size + best.intercept_.size
    return Baseline(logits, best.C, parameters, 4 * parameters)
