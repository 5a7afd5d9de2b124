"""Metrics of classifiers: labels of both kinds, calibration, classes over a whole split."""

import jax
import numpy as np
import pytest
from metrics.twins import SOFT, K, add, case, measure, softmax, twin
from sklearn.metrics import matthews_corrcoef

from jaxkd import metrics
from jaxkd.types import Outputs


@pytest.mark.parametrize("shape", [(40,), (5, 4)], ids=str)
@pytest.mark.parametrize("name", SOFT)
def test_soft_labels_count_by_their_largest_entry(name, shape):
    s, t, y = case(shape)
    soft = (0.6 * np.eye(K)[y] + 0.4 * np.random.default_rng(1).dirichlet(np.ones(K), shape)).astype(np.float32)
    np.testing.assert_allclose(measure(name, s, t, soft).value(), measure(name, s, t, y).value(), rtol=1e-6)
    np.testing.assert_allclose(measure(name, s, t, soft).value(), twin(name, s, t, soft), rtol=1e-5)


def test_likelihood_of_soft_labels_is_refused():
    s, t, _ = case((3,))
    with pytest.raises(ValueError, match=r"labels have shape \(3, 6\) .* give integers of shape \(3,\)"):
        measure("nll", s, t, softmax(s))


@pytest.mark.parametrize("metric", [metrics.accuracy, metrics.nll, metrics.binary_accuracy, metrics.mae])
def test_a_batch_without_labels_is_a_sentence(metric):
    s, t, y = case((3,))
    for measure_by in (metric, metrics.ignoring({"a": metric}, 255)["a"]):
        with pytest.raises(ValueError, match=r"no field 'label' to measure by: it has y; add it"):
            measure_by(Outputs(s), Outputs(t), {"y": y})


def test_what_counts_no_logits_and_what_is_no_set_is_refused():
    for k in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=r"the top .* give an integer of at least 1"):
            metrics.top_k(k)
    with pytest.raises(TypeError, match=r"takes a set of metrics, but was given a function"):
        metrics.ignoring(metrics.accuracy, 255)


@pytest.mark.parametrize("k", [1, 2, 3, K, K + 4])
def test_top_k_lies_between_accuracy_and_one(k):
    s, t, y = case()
    found = metrics.top_k(k)(Outputs(s), Outputs(t), {"label": y}).value()
    rank = (s > np.take_along_axis(s, y[:, None], axis=-1)).sum(axis=-1)
    np.testing.assert_allclose(found, np.mean(rank < k), rtol=1e-6)
    assert (found == 1) == (k >= K)


def with_confidence(confidence, right):
    """Logits of two classes with a given confidence in class 1, and labels that make it right or wrong."""
    c = np.asarray(confidence, np.float64)
    logits = np.stack([np.zeros_like(c), np.log(c) - np.log1p(-c)], axis=-1).astype(np.float32)
    return Outputs(logits), Outputs(None), {"label": np.asarray(right, np.int32)}


def test_bins_are_those_made_by_hand():
    student, nobody, batch = with_confidence([0.55, 0.58, 0.65, 0.72, 0.78, 0.95], [1, 0, 1, 1, 1, 0])
    found = jax.jit(metrics.calibration(bins=10))(student, nobody, batch)
    bins = found.bins()
    np.testing.assert_array_equal(bins["count"], [0, 0, 0, 0, 0, 2, 1, 2, 0, 1])
    np.testing.assert_allclose(bins["confidence"], [0, 0, 0, 0, 0, 0.565, 0.65, 0.75, 0, 0.95], rtol=1e-5)
    np.testing.assert_allclose(bins["accuracy"], [0, 0, 0, 0, 0, 0.5, 1, 1, 0, 0], rtol=1e-6)
    by_hand = (2 * abs(0.5 - 0.565) + 1 * abs(1 - 0.65) + 2 * abs(1 - 0.75) + 1 * abs(0 - 0.95)) / 6
    np.testing.assert_allclose(found.value(), by_hand, rtol=1e-5)


def test_certain_and_undecided_predictions_have_a_bin():
    logits = np.asarray([[0, 200], [0, 0]], np.float32)
    found = jax.jit(metrics.calibration(bins=4))(Outputs(logits), Outputs(None), {"label": np.asarray([1, 0])})
    np.testing.assert_array_equal(found.bins()["count"], [0, 1, 0, 1])
    np.testing.assert_allclose(found.bins()["confidence"], [0, 0.5, 0, 1])
    np.testing.assert_allclose(found.value(), 0.25)


def test_bins_of_stacked_students_are_pooled():
    a, nobody, batch = with_confidence([0.6, 0.7, 0.9], [1, 0, 1])
    b, *_ = with_confidence([0.6, 0.95, 0.55], [1, 0, 1])
    metric = jax.jit(metrics.calibration(bins=5))
    apart = [metric(x, nobody, batch) for x in (a, b)]
    stacked = jax.tree.map(lambda x, y: np.stack([x, y]), *apart)
    for name, pooled in stacked.bins().items():
        assert pooled.shape == (5,)
        np.testing.assert_allclose(pooled, add(apart).bins()[name], rtol=1e-6)
    np.testing.assert_allclose(stacked.value(), [x.value() for x in apart], rtol=1e-6)


def test_predictions_drawn_from_the_model_are_calibrated():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 3)).astype(np.float32)
    label = (softmax(logits).cumsum(axis=-1) < rng.random((20_000, 1))).sum(axis=-1).astype(np.int32)
    measure = jax.jit(metrics.calibration())
    honest, boastful = (
        measure(Outputs(np.float32(scale) * logits), Outputs(None), {"label": label}).value() for scale in (1, 3)
    )
    assert honest < 0.02
    assert boastful > 0.1


def test_classes_are_counted_over_batches_without_padding():
    s, t, y = case((40,))
    y = np.where(y == 5, 0, y)  # a class without examples
    per_class, parts = jax.jit(metrics.per_class), []
    for i in range(0, 40, 16):
        rows = [np.resize(x[i : i + 16], (16, *x.shape[1:])) for x in (s, t, y)]
        mask = np.arange(16) < min(16, 40 - i)
        parts.append(per_class(Outputs(rows[0]), Outputs(rows[1]), {"label": rows[2], "mask": mask}))
    found = add(parts)
    called = s.argmax(1), t.argmax(1)
    expected = [np.mean(called[0][y == c] == c) if np.any(y == c) else 0 for c in range(K)]
    np.testing.assert_allclose(found.accuracy(), expected, rtol=1e-6)
    assert found.value() == pytest.approx(min(expected[:5]), rel=1e-6)
    for c in range(5):
        rows = [np.bincount(x[y == c], minlength=K) / np.sum(y == c) for x in called]
        assert found.confusion_difference()[c] == pytest.approx(np.abs(rows[0] - rows[1]).sum() / 2, abs=1e-6)


def test_matthews_correlation_is_scikit_learns_over_batches_of_any_number_of_classes():
    s, _, y = case((40,))
    matthews = jax.jit(metrics.matthews)
    for K_, label in ((K, y), (2, y % 2), (K, y * 0)):  # the last one: labels of one class
        parts = []
        for i in range(0, 40, 16):
            rows = [np.resize(x[i : i + 16], (16, *x.shape[1:])) for x in (s[:, :K_], label)]
            mask = np.arange(16) < min(16, 40 - i)
            parts.append(matthews(Outputs(rows[0]), Outputs(None), {"label": rows[1], "mask": mask}))
        expected = matthews_corrcoef(label, s[:, :K_].argmax(1))
        assert add(parts).value() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    both = metrics.Matthews(np.stack([parts[0].confusion, np.eye(K)]))  # stacked students
    np.testing.assert_allclose(both.value(), [0, 1])
    assert metrics.Matthews(np.array([[0, 3], [2, 0]])).value() == pytest.approx(-1)
