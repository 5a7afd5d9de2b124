"""The floors under tables of texts: they learn, choose C on the validation split, and refuse what they cannot learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jaxkd.experiment import baselines

TEXTS = ["a fine film", "fine and good !", "a bad film", "bad , so bad", "good fun", "dull and bad"]
LABELS = np.array([2, 2, 0, 0, 2, 0])


def test_tf_idf_learns_words_and_leaves_room_for_classes_it_never_saw():
    found = baselines.tf_idf(TEXTS, LABELS, (["good", "dull"], np.array([2, 0])), 3)
    logits = found.logits(["fine fun", "so dull", ""])
    assert logits.shape == (3, 3)
    assert logits.dtype == np.float32
    assert logits[:2].argmax(axis=1).tolist() == [2, 0]
    assert np.all(logits[:, 1] == logits.min())
    words = {w for t in TEXTS for w in [*t.split(), *zip(t.split(), t.split()[1:], strict=False)]}
    assert found.parameters == len(words) + 1
    assert found.bytes == 4 * (2 * len(words) + 1)


def test_c_is_the_smallest_of_those_that_are_best_on_the_validation_split():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 5)), rng.integers(0, 3, 60)
    validation = rng.standard_normal((40, 5)), rng.integers(0, 3, 40)
    found = baselines.logistic_regression(x, y, validation, 3, strengths=(0.01, 1.0, 100.0))
    models = {C: LogisticRegression(C=C, max_iter=5000).fit(x, y) for C in (0.01, 1.0, 100.0)}
    scores = {C: np.mean(model.predict(validation[0]) == validation[1]) for C, model in models.items()}
    assert min(C for C in scores if scores[C] == max(scores.values())) == found.C
    np.testing.assert_allclose(found.logits(x), models[found.C].predict_log_proba(x), rtol=1e-5)
    assert found.parameters == 3 * 5 + 3


@pytest.mark.parametrize("K", [2, 3])
def test_logits_are_finite_log_probabilities_however_far_a_vector_lies(K):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((40, 5)), np.arange(40) % K
    found = baselines.logistic_regression(x, y, (x, y), K, strengths=(1.0,))
    wanted = LogisticRegression(C=1.0, max_iter=5000).fit(x, y).predict_log_proba(x)
    np.testing.assert_allclose(found.logits(x), wanted, rtol=1e-5)
    far = found.logits((1e5 * x).astype(np.float32))
    assert np.isfinite(far).all()
    assert (far.max(axis=1) > np.log(1 / K) - 1e-6).all()


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 1, 2], [-1, 0, 1]])
def test_labels_that_cannot_be_learned_are_refused(labels):
    with pytest.raises(ValueError, match="at least two classes"):
        baselines.logistic_regression(np.eye(3), np.array(labels), (np.eye(3), np.array(labels)), 2)


def test_texts_without_words_are_refused():
    with pytest.raises(ValueError, match="give texts with words"):
        baselines.tf_idf(["", " "], np.array([0, 1]), ([""], np.array([0])), 2)
