"""Metrics hold the rule of labels: NaN outside the classes, and nothing of what has the label to ignore."""

import jax
import numpy as np
import pytest
from metrics.twins import ALL, K, case

from jaxkd import metrics
from jaxkd.types import Outputs

EVERY = {**ALL, "per_class": metrics.per_class, "matthews": metrics.matthews}
FIDELITY = ("agreement", "kl", "total_variation", "agreement_at_3")  # which read no label
S, T, Y = case((8,))


@jax.jit
def measure_all(s, t, y):
    groups = EVERY, metrics.ignoring(EVERY, 255)
    return [{n: metric(Outputs(s), Outputs(t), {"label": y}) for n, metric in chosen.items()} for chosen in groups]


@pytest.mark.parametrize("label", [-1, K, 255])
def test_a_label_outside_the_classes_is_nan(label):
    y = Y.copy()
    y[3] = label
    found = metrics.values(measure_all(S, T, y)[0])
    assert {name for name, value in found.items() if np.isnan(value)} == set(EVERY) - set(FIDELITY)


def test_rows_to_ignore_count_in_no_metric():
    y = Y.copy()
    y[[1, 6]] = 255
    s = S.copy()
    s[1] = np.nan
    found, left = metrics.values(measure_all(s, T, y)[1]), y != 255
    expected = metrics.values(measure_all(S[left], T[left], Y[left])[0])
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", sorted(set(EVERY) - set(FIDELITY)))
def test_labels_that_wrap_or_do_not_fit_are_named(name):
    for y, message in (
        (Y.astype(np.int64) + 2**32, r"labels hold 429496\d+, which would become another number"),
        (Y[:3], r"labels have shape \(3,\) .*logits have shape \(8, 6\)"),
        (Y.astype(np.float32), r"dtype float32 .*integers of shape \(8,\)"),
        (np.eye(K, dtype=np.int32)[Y], r"argmax\(labels, axis=-1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            EVERY[name](Outputs(S), Outputs(T), {"label": y})


@pytest.mark.parametrize("name", FIDELITY)
def test_other_classes_than_the_teachers_are_refused(name):
    with pytest.raises(ValueError, match=r"different numbers of classes \(6 and 5"):
        EVERY[name](Outputs(S), Outputs(T[:, :5]), {})


def test_labels_with_an_axis_of_one_are_labels():
    jax.tree.map(np.testing.assert_array_equal, measure_all(S, T, Y[:, None]), measure_all(S, T, Y))
