"""Losses of numbers: float64 twins, shapes that would broadcast, and labels that do not count."""

import jax
import numpy as np
import pytest
from losses.programs import differentiated, run

from jaxkd import losses

RNG = np.random.default_rng(0)
Z, T, Y = 2 * RNG.standard_normal((3, 5, 4))
ERRORS = {
    losses.squared_error: lambda e: e**2,
    losses.absolute_error: np.abs,
    losses.huber: lambda e: np.where(np.abs(e) <= 1, e**2 / 2, np.abs(e) - 0.5),
}
NAMES = {"ids": lambda loss: loss.__name__}


@pytest.mark.parametrize("loss", ERRORS, **NAMES)
def test_errors_equal_their_twins(loss):
    with jax.enable_x64(True):
        np.testing.assert_allclose(run(loss, Z, Y), ERRORS[loss](Z - Y).mean(axis=-1), rtol=1e-12)


@pytest.mark.parametrize("loss", ERRORS, **NAMES)
def test_one_output_never_broadcasts_over_the_batch(loss):
    z, y = Z[:, 0].astype(np.float32), Y[:, 0].astype(np.float32)
    expected = ERRORS[loss](z - y)
    for outputs in (z, z[:, None]):
        for labels in (y, y[:, None]):
            np.testing.assert_allclose(loss(outputs, labels), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"labels have shape \(5,\) but outputs have shape \(5, 4\)"):
        loss(Z, y)


@pytest.mark.parametrize("delta", [0.5, 3.0])
def test_huber_is_linear_past_delta(delta):
    e = np.abs(Z - Y)
    expected = np.where(e <= delta, e**2 / 2, delta * (e - delta / 2)).mean(axis=-1)
    with jax.enable_x64(True):
        np.testing.assert_allclose(run(losses.huber, Z, Y, delta=delta), expected, rtol=1e-12)


@pytest.mark.parametrize("margin", [0.0, 3.0])
def test_a_student_better_than_its_teacher_is_left_alone(margin):
    one, bound = (((x - Y) ** 2).sum(axis=-1) for x in (Z, T))
    counts = one + margin > bound
    assert 0 < counts.sum() < 5
    with jax.enable_x64(True):
        value, slope = differentiated(losses.teacher_bounded, 0, margin=margin)(Z, T, Y)
    np.testing.assert_allclose(value, one[counts].sum(), rtol=1e-12)
    np.testing.assert_allclose(slope[0], np.where(counts[:, None], 2 * (Z - Y), 0), rtol=1e-12)
    teacher = T.copy()
    teacher[0] = np.nan
    assert np.isnan(losses.teacher_bounded(Z, teacher, Y)[0])


@pytest.mark.parametrize("loss", ERRORS, **NAMES)
def test_missing_numbers_are_nan_unless_ignored(loss):
    y = Y.copy()
    y[0, :3], y[1], y[2, 0] = np.nan, np.nan, np.inf
    np.testing.assert_array_equal(np.isnan(loss(Z, y)), [1, 1, 1, 0, 0])
    found = np.asarray(loss(Z[:2], y[:2], ignore=float("nan")))
    np.testing.assert_allclose(found, [ERRORS[loss](Z[0, 3] - Y[0, 3]), 0], rtol=1e-5)


def test_labels_may_be_integers_and_no_booleans():
    ages = np.array([30, 41, 7, 70, 55])
    np.testing.assert_allclose(losses.squared_error(Z[:, 0], ages), (Z[:, 0] - ages) ** 2, rtol=1e-6)
    with pytest.raises(ValueError, match="labels of a regression are numbers, but these are booleans"):
        losses.squared_error(Z[:, 0], ages > 40)
    with pytest.raises(ValueError, match="labels hold 4294967326"):
        losses.squared_error(Z[:1, 0], ages[:1] + 2**32)
