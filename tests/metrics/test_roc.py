"""ROC curves, balanced accuracy and verification against scikit-learn: ties, weights, absent classes."""

import jax.numpy as jnp
import numpy as np
import pytest
from metrics.twins import add
from scipy.optimize import brentq
from sklearn import metrics as reference

from jaxkd import metrics
from jaxkd.types import Outputs


def case(seed, size=60):
    """Scores with ties, labels of which a fifth is yes, and weights of which some are 0."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(size) % 5 == 0)
    return np.round(rng.standard_normal(size) + labels, 1), labels, rng.integers(0, 4, size).astype(float)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("seed", range(4))
def test_curves_equal_the_reference(seed, weighted):
    scores, labels, weights = case(seed)
    weights = weights if weighted else None
    found = metrics.roc(scores, labels, weights)
    false, true, thresholds = reference.roc_curve(labels, scores, sample_weight=weights, drop_intermediate=False)
    if weighted:  # the reference leaves scores out that only examples of weight 0 have
        kept = np.isin(found.thresholds, thresholds)
        found_points = [np.asarray(x)[kept] for x in found]
    else:
        found_points = list(found)
    for ours, theirs in zip(found_points, (false, true, thresholds), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.auc(), reference.roc_auc_score(labels, scores, sample_weight=weights), rtol=1e-12)
    for specificity in (0.0, 0.5, 0.9, 0.95, 1.0):
        expected = true[false <= 1 - specificity + 1e-9].max()
        assert metrics.sensitivity_at_specificity(
            scores, labels, specificity=specificity, weights=weights
        ) == pytest.approx(expected)
        called = scores >= found.threshold(specificity)
        w = np.ones(len(scores)) if weights is None else weights
        assert np.average(~called[~labels], weights=w[~labels]) >= specificity - 1e-9
        assert np.average(called[labels], weights=w[labels]) == pytest.approx(expected)
    crossing = brentq(lambda x: np.interp(x, false, true) + x - 1, 0, 1)
    assert found.equal_error_rate() == pytest.approx(crossing, abs=1e-9)


def test_the_balanced_threshold_has_the_best_balanced_accuracy():
    scores, labels, _ = case(7)
    best = metrics.roc(scores, labels).balanced_threshold()
    each = [reference.balanced_accuracy_score(labels, scores >= t) for t in [*np.unique(scores), np.inf]]
    assert reference.balanced_accuracy_score(labels, scores >= best) == pytest.approx(max(each))


def test_separated_and_constant_scores():
    perfect = metrics.roc([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])
    assert (perfect.auc(), perfect.equal_error_rate(), perfect.sensitivity(1.0)) == (1, 0, 1)
    assert perfect.threshold(1.0) == perfect.balanced_threshold() == 0.8
    same = metrics.roc(np.zeros(4), [0, 1, 0, 1])
    assert (same.auc(), same.equal_error_rate(), same.sensitivity(0.95), same.threshold(0.95)) == (0.5, 0.5, 0, np.inf)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([1.0, 2.0], [1, 1]), "none of 2 examples is negative"),
        (([1.0, 2.0], [1, 0], [0.0, 1.0]), "none of 2 examples is positive"),
        (([1.0, 2.0], [1, 2]), "a label is neither 0 nor 1"),
        (([1.0, np.nan], [1, 0]), "a score is NaN"),
        (([1.0, 2.0], [1, 0], [1.0, -1.0]), "a weight negative"),
        (([1.0, 2.0], [1]), r"scores have shape \(2,\), labels \(1,\)"),
    ],
)
def test_curves_of_what_is_none_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        metrics.roc(*given)
    with pytest.raises(ValueError, match="the specificity is 95"):
        metrics.sensitivity_at_specificity([0.0, 1.0], [0, 1], specificity=95)


@pytest.mark.parametrize("classes", [range(4), (0, 2, 3)], ids=["all classes", "one absent"])
def test_balanced_accuracy_equals_the_reference(classes):
    rng = np.random.default_rng(1)
    labels = rng.choice(list(classes), 50).astype(np.int32)
    logits = np.round(rng.standard_normal((50, 4)) + 2 * np.eye(4)[labels] * rng.integers(0, 2, (50, 1)), 1)
    logits[:, 1] -= 9 * (len(classes) < 4)  # the reference warns of a class that is only predicted
    mask = rng.random(50) < 0.8
    parts = []
    for rows in np.split(np.arange(50), 2):
        batch, z = {"label": labels[rows], "mask": mask[rows]}, jnp.asarray(logits[rows], jnp.float32)
        parts.append({"balanced": metrics.balanced_accuracy(Outputs(z), Outputs(None), batch)})
    expected = reference.balanced_accuracy_score(labels[mask], logits.argmax(axis=1)[mask])
    assert metrics.values(add(parts))["balanced"] == pytest.approx(expected)


def test_verification_equals_the_reference():
    rng = np.random.default_rng(2)
    who = np.repeat([3, 8, 9, 20], [4, 1, 5, 3])
    x = 1.5 * rng.standard_normal((21, 6))[who] + rng.standard_normal((13, 6))
    pairs = metrics.pairs_of(x, who)
    cosines = reference.pairwise.cosine_similarity(x)
    expected = [(cosines[i, j], who[i] == who[j]) for i in range(13) for j in range(i + 1, 13)]
    np.testing.assert_allclose(pairs.scores, [score for score, _ in expected], rtol=1e-12)
    np.testing.assert_array_equal(pairs.same, [same for _, same in expected])
    curve = pairs.roc()
    false, true, _ = reference.roc_curve(pairs.same, pairs.scores)
    assert curve.auc() == pytest.approx(reference.auc(false, true))
    assert curve.equal_error_rate() == pytest.approx(brentq(lambda f: np.interp(f, false, true) + f - 1, 0, 1))
    assert curve.sensitivity(0.9) == pytest.approx(true[false <= 0.1].max())
    assert pairs.accuracy(0.3) == pytest.approx(reference.balanced_accuracy_score(pairs.same, pairs.scores >= 0.3))
    np.fill_diagonal(cosines, -2)
    right = who[cosines.argmax(axis=1)] == who
    assert metrics.rank_one(x, who) == pytest.approx(right[who != 8].mean())


def test_embeddings_that_cannot_be_verified_are_refused():
    with pytest.raises(ValueError, match="no pair of one identity among 3"):
        metrics.pairs_of(np.eye(3), [0, 1, 2]).roc()
    with pytest.raises(ValueError, match="no pair of different identities among 3"):
        metrics.pairs_of(np.eye(3), [1, 1, 1]).roc()
    with pytest.raises(ValueError, match="no identity has two examples"):
        metrics.rank_one(np.eye(3), [0, 1, 2])
    with pytest.raises(ValueError, match=r"embeddings have shape \(3, 3\) but identities \(2,\)"):
        metrics.pairs_of(np.eye(3), [0, 1])
    with pytest.raises(ValueError, match="an embedding is NaN or infinite"):
        metrics.pairs_of(np.full((2, 2), np.nan), [0, 0])
    assert metrics.pairs_of(np.zeros((2, 2)), [0, 0]).scores.tolist() == [0]


def test_infinite_scores_tie_as_others_do():
    found = metrics.roc([np.inf, np.inf, 0.0, -np.inf, -np.inf], [1, 0, 1, 1, 0])
    assert found.thresholds.tolist() == [np.inf, np.inf, 0, -np.inf]
    assert found.auc() == pytest.approx((0.5 + 1 + 0 + 1 + 0 + 0.5) / 6)


def test_a_constant_embedding_verifies_as_chance_does():
    # Of vectors in one direction all cosines are 1, which rounding would put in some order.
    x = np.random.default_rng(0).random((6, 1)) * np.random.default_rng(1).standard_normal((1, 7))
    curve = metrics.pairs_of(x, [0, 0, 1, 1, 2, 2]).roc()
    assert (curve.auc(), curve.equal_error_rate()) == (0.5, 0.5)
    assert metrics.rank_one(x, [0, 0, 1, 1, 2, 2]) == 0
