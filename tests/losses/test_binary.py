"""Losses of yes-or-no labels: float64 twins, saturated logits, and labels that do not count."""

import jax
import numpy as np
import pytest
from losses.programs import differentiated, run
from scipy.special import expit, log_expit, rel_entr

from jaxkd import losses

RNG = np.random.default_rng(0)
S, T = 3 * RNG.standard_normal((2, 5, 4))
Y = RNG.integers(0, 2, (5, 4))
SOFT = RNG.random((5, 4))


def twin_entropy(z, y, smoothing=0.0, w=1.0):
    p = (1 - smoothing) * y + smoothing / 2
    return (-w * p * log_expit(z) - (1 - p) * log_expit(-z)).mean(axis=-1)


def twin_kd(s, t, temperature):
    p, q = expit(t / temperature), expit(s / temperature)
    return temperature**2 * (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).mean(axis=-1)


@pytest.mark.parametrize("labels", [Y, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "pos_weight": 3.0}], ids=str)
def test_binary_cross_entropy_equals_its_twin(labels, options):
    with jax.enable_x64(True):
        found = run(losses.binary_cross_entropy, S, labels, **options)
    np.testing.assert_allclose(found, twin_entropy(S, labels, *options.values()), rtol=1e-12)


def test_a_weight_for_each_label():
    w = np.array([1.0, 2.0, 0.5, 10.0])
    with jax.enable_x64(True):
        found = run(losses.binary_cross_entropy, S, Y, pos_weight=w)
    np.testing.assert_allclose(found, twin_entropy(S, Y, w=w), rtol=1e-12)
    with pytest.raises(ValueError, match=r"pos_weight has shape \(5,\) but logits have shape \(5, 4\)"):
        losses.binary_cross_entropy(S, Y, pos_weight=np.ones(5))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_binary_kd_equals_its_twin(temperature):
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            run(losses.binary_kd, S, T, temperature=temperature), twin_kd(S, T, temperature), rtol=1e-10
        )


def test_one_label_of_every_shape():
    s, t, y = S[:, 0].astype(np.float32), T[:, 0].astype(np.float32), Y[:, 0]
    expected = twin_entropy(s[:, None], y[:, None])
    for logits in (s, s[:, None]):
        for labels in (y, y[:, None], y.astype(bool), y.astype(np.float32)):
            np.testing.assert_allclose(run(losses.binary_cross_entropy, logits, labels), expected, rtol=1e-5)
    np.testing.assert_allclose(run(losses.binary_kd, s, t), twin_kd(s[:, None], t[:, None], 1.0), rtol=1e-5)
    with pytest.raises(ValueError, match=r"labels have shape \(5,\) but logits have shape \(5, 4\).*cross_entropy"):
        losses.binary_cross_entropy(S, y)


@pytest.mark.parametrize("sign", [1, -1])
def test_saturated_teachers_are_followed(sign):
    s, t = np.float32([[0.5, -2.0]]), sign * np.float32([[1e4, -1e4]])
    value, gradient = differentiated(losses.binary_kd, 0)(s, t)
    np.testing.assert_allclose(value, twin_kd(s.astype(float), t.astype(float), 1.0)[0], rtol=1e-6)
    np.testing.assert_allclose(gradient[0], (expit(s) - (t > 0)) / 2, rtol=1e-5)
    value, gradient = differentiated(losses.binary_kd, 0)(t, t)
    assert (value, np.abs(gradient[0]).max()) == (0, 0)


def test_a_label_alone_may_be_ignored():
    y = Y.astype(np.int32)
    y[0, :3], y[1] = -1, -1
    z = S.astype(np.float32)
    z[0, 0] = np.nan
    found = np.asarray(run(losses.binary_cross_entropy, z, y, ignore=-1))
    expected = twin_entropy(S, Y)
    expected[0], expected[1] = twin_entropy(S[0, 3:], Y[0, 3:]), 0
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(np.isnan(losses.binary_cross_entropy(S, y)), [1, 1, 0, 0, 0])
    soft = np.where(y < 0, np.nan, SOFT)
    assert np.isfinite(losses.binary_cross_entropy(z, soft, ignore=float("nan"))).all()


@pytest.mark.parametrize("label", [-0.1, 1.1, np.nan, np.inf])
def test_what_is_no_probability_is_nan(label):
    soft = SOFT.copy()
    soft[2, 1] = label
    np.testing.assert_array_equal(np.isnan(run(losses.binary_cross_entropy, S, soft)), np.arange(5) == 2)
