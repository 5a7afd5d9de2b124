"""Metrics of yes-or-no labels against twins that see all scores at once."""

import jax
import numpy as np
import pytest
from metrics.twins import add
from scipy.special import log_expit

from jaxkd import metrics
from jaxkd.types import Outputs

N, L = 60, 3
RNG = np.random.default_rng(0)
Y = (RNG.random((N, L)) < (0.5, 0.2, 0.1)).astype(np.int32)
Z = (2 * RNG.standard_normal((N, L)) + 1.5 * Y - 0.5).astype(np.float32)


def pairs(z, y):
    """AUROC as the fraction of pairs in the right order."""
    yes, no = z[y == 1], z[y == 0]
    return ((yes[:, None] > no).mean() + (yes[:, None] == no).mean() / 2) if len(yes) and len(no) else np.nan


def precision(z, y):
    """Mean over the labels of yes of the precision at their logit."""
    return np.mean([y[z >= score].mean() for score in z[y == 1]])


def f1(z, y):
    called = z > 0
    return 2 * np.sum(called & (y == 1)) / (called.sum() + (y == 1).sum())


def over_labels(one):
    return lambda z, y: np.mean([one(z[:, i], y[:, i]) for i in range(L)])


TWINS = {
    "accuracy": lambda z, y: np.mean((z > 0) == (y == 1)),
    "nll": lambda z, y: -np.mean(log_expit(np.where(y == 1, z, -z).astype(np.float64))),
    "f1": over_labels(f1),
    "auroc": over_labels(pairs),
    "map": over_labels(precision),
}


@jax.jit
def measure_all(z, y, mask):
    chosen = metrics.MULTI_LABEL, metrics.ignoring(metrics.MULTI_LABEL, -1)
    batch = {"label": y, "mask": mask}
    return [{n: metric(Outputs(z), Outputs(None), batch) for n, metric in group.items()} for group in chosen]


def measured(z, y, mask=None, *, ignoring=False):
    """Values over three uneven batches, padded to one size with rubbish."""
    mask, parts = np.ones(len(z), bool) if mask is None else mask, []
    for i in range(0, len(z), 24):
        rows = [x[i : i + 24] for x in (z, y, mask)]
        pad = 24 - len(rows[0])
        rubbish = np.full((pad, L), np.nan, np.float32), np.full((pad, L), 7, y.dtype), np.zeros(pad, bool)
        parts.append(measure_all(*(np.concatenate(pair) for pair in zip(rows, rubbish, strict=True)))[ignoring])
    return metrics.values(add(parts))


def test_the_groups():
    assert list(metrics.BINARY) == ["accuracy", "nll", "f1", "auroc"]
    assert list(metrics.MULTI_LABEL) == ["accuracy", "nll", "f1", "auroc", "map"]


def test_metrics_equal_their_twins_over_uneven_batches():
    found = measured(Z, Y)
    for name, twin in TWINS.items():
        np.testing.assert_allclose(found[name], twin(Z, Y), rtol=5e-3 if name in ("auroc", "map") else 1e-5)
        assert 0.05 < found[name] < 0.95


def test_ranking_is_exact_where_logits_differ_by_more_than_a_bin():
    place = RNG.permutation(N * L).reshape(N, L)
    found = measured((place / 10 - 9).astype(np.float32), Y)
    for name in ("auroc", "map"):
        np.testing.assert_allclose(found[name], TWINS[name](place, Y), rtol=1e-12)


def test_labels_to_ignore_are_left_out_one_by_one():
    y = Y.copy()
    y[::3, 0], y[1::4, 2] = -1, -1
    found = measured(Z, y, ignoring=True)
    for name in ("f1", "auroc", "map"):
        one = {"f1": f1, "auroc": pairs, "map": precision}[name]
        expected = np.mean([one(Z[y[:, i] >= 0, i], y[y[:, i] >= 0, i]) for i in range(L)])
        np.testing.assert_allclose(found[name], expected, rtol=5e-3)
    np.testing.assert_allclose(found["accuracy"], np.mean(((Z > 0) == (y == 1))[y >= 0]), rtol=1e-6)
    assert all(np.isnan(value) for value in measured(Z, y).values())


def test_values_are_the_same_inside_a_program():
    everything = {**metrics.MULTI_LABEL, **metrics.REGRESSION}
    batch = {"label": Y[:24]}

    def sums(z):
        return {name: metric(Outputs(z), Outputs(None), batch) for name, metric in everything.items()}

    inside, outside = jax.jit(lambda z: (metrics.values(sums(z)), sums(z)))(Z[:24])
    for name, value in metrics.values(outside).items():
        np.testing.assert_allclose(inside[name], value, rtol=1e-5, err_msg=name)


def test_a_logit_that_is_nan_is_seen():
    z = Z.copy()
    z[3, 1] = np.nan
    found = measured(z, Y)
    assert all(np.isnan(found[name]) for name in ("nll", "f1", "auroc", "map"))


def test_labels_without_both_answers_are_left_out_of_a_ranking():
    y = Y.copy()
    y[:, 1] = 0
    expected = np.mean([pairs(Z[:, i], y[:, i]) for i in (0, 2)])
    np.testing.assert_allclose(measured(Z, y)["auroc"], expected, rtol=5e-3)
    nothing = measured(Z, np.zeros_like(Y))
    assert np.isnan([nothing["auroc"], nothing["map"]]).all()
    assert measured(Z, Y, np.zeros(N, bool))["accuracy"] == 0


def test_all_labels_together_and_stacked_students():
    parts = [measure_all(z, Y[:24], np.ones(24, bool))[0] for z in (Z[:24], -Z[:24])]
    stacked = jax.tree.map(lambda *x: np.stack(x), *parts)
    for name, value in metrics.values(stacked).items():
        np.testing.assert_allclose(value, [part[name].value() for part in parts], rtol=1e-6)
    np.testing.assert_allclose(stacked["f1"].micro()[0], f1(Z[:24].ravel(), Y[:24].ravel()), rtol=1e-6)


@pytest.mark.parametrize("shape", [(N,), (N, 1)], ids=str)
def test_one_logit_of_every_shape(shape):
    mask = np.ones(N, bool)
    found, _ = measure_all(Z[:, :1].reshape(shape), Y[:, 0], mask)
    expected, _ = measure_all(Z[:, :1], Y[:, :1], mask)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
