"""Metrics of numbers against twins that see the whole split at once."""

import jax
import numpy as np
import pytest
from metrics.twins import add

from jaxkd import metrics
from jaxkd.types import Outputs

N, D = 50, 2
RNG = np.random.default_rng(0)
Y = (3 * RNG.standard_normal((N, D)) + 5).astype(np.float32)
Z = (Y + RNG.standard_normal((N, D))).astype(np.float32)


def r2(z, y):
    return np.mean(1 - ((z - y) ** 2).sum(axis=0) / ((y - y.mean(axis=0)) ** 2).sum(axis=0))


TWINS = {
    "mae": lambda z, y: np.abs(z - y).mean(),
    "rmse": lambda z, y: np.sqrt(((z - y) ** 2).mean()),
    "r2": r2,
    "centred": r2,
}
ALL = {**metrics.REGRESSION, "centred": metrics.r2(centre=1e4)}


@jax.jit
def measure_all(z, y, mask):
    batch = {"label": y, "mask": mask}
    ignored = metrics.ignoring(ALL, float("nan"))
    return [{n: m(Outputs(z), Outputs(None), batch) for n, m in chosen.items()} for chosen in (ALL, ignored)]


def measured(z, y, *, ignoring=False):
    parts = []
    for i in range(0, len(z), 20):
        rows = [np.resize(x[i : i + 20], (20, D)) for x in (z, y)]
        mask = np.arange(20) < len(z) - i
        rows = [np.where(mask[:, None], x, np.float32(np.nan)) for x in rows]
        parts.append(measure_all(*rows, mask)[ignoring])
    return metrics.values(add(parts))


def test_metrics_equal_their_twins_over_uneven_batches():
    assert list(metrics.REGRESSION) == ["mae", "rmse", "r2"]
    found = measured(Z, Y)
    for name in metrics.REGRESSION:
        np.testing.assert_allclose(found[name], TWINS[name](Z.astype(float), Y.astype(float)), rtol=1e-5)


def test_labels_far_from_zero_need_their_centre():
    found = measured(Z + np.float32(1e4), Y + np.float32(1e4))
    np.testing.assert_allclose(found["centred"], r2(Z, Y), rtol=1e-3)
    assert np.isnan(found["r2"])  # and no number that rounding made


def test_a_constant_label_has_no_variance_to_explain():
    assert np.isnan(measured(Z, np.full_like(Y, 3))["r2"])


def test_numbers_to_ignore_are_left_out_one_by_one():
    y = Y.copy()
    y[::3, 0] = np.nan
    kept = ~np.isnan(y)
    found = measured(Z, y, ignoring=True)
    np.testing.assert_allclose(found["mae"], np.abs(Z - Y)[kept].mean(), rtol=1e-5)
    each = [r2(Z[kept[:, i], i], Y[kept[:, i], i]) for i in range(D)]
    np.testing.assert_allclose(found["r2"], np.mean(each), rtol=1e-4)
    assert np.isnan(list(measured(Z, y).values())).all()


def test_one_output_never_broadcasts_over_the_batch():
    expected = measure_all(Z[:, :1], Y[:, :1], np.ones(N, bool))[0]
    np.testing.assert_allclose(expected["mae"].value(), TWINS["mae"](Z[:, :1], Y[:, :1]), rtol=1e-5)
    for z, y in ((Z[:, 0], Y[:, 0]), (Z[:, :1], Y[:, 0])):
        jax.tree.map(np.testing.assert_array_equal, measure_all(z, y, np.ones(N, bool))[0], expected)


@pytest.mark.parametrize("name", [*metrics.DISTILLATION, "top_2"])
def test_metrics_of_classes_refuse_one_output(name):
    metric = {**metrics.DISTILLATION, "top_2": metrics.top_k(2)}[name]
    with pytest.raises(ValueError, match=r"shape \(50, 1\).*metrics\.BINARY.*metrics\.REGRESSION"):
        metric(Outputs(Z[:, :1]), Outputs(Z[:, :1]), {"label": np.zeros(N, np.int32)})
