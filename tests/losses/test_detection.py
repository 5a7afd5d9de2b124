"""Losses of detectors against float64 twins, at boxes without area and where nothing counts."""

import jax
import numpy as np
import pytest
from losses.programs import differentiated, run
from scipy.special import expit, log_expit, log_softmax

from jaxkd import losses

RNG = np.random.default_rng(0)
Z, Y = 3 * RNG.standard_normal((2, 5, 4)), RNG.integers(0, 2, (2, 5, 4))
SOFT = RNG.random((2, 5, 4))


def in_float64(loss, *arrays, **options):
    with jax.enable_x64(True):
        return run(loss, *arrays, **options)


def twin_focal(z, y, alpha, gamma):
    q, log_yes, log_no = expit(z), log_expit(z), log_expit(-z)
    return -(alpha * y * (1 - q) ** gamma * log_yes + (1 - alpha) * (1 - y) * q**gamma * log_no).sum(-1)


@pytest.mark.parametrize("options", [{"alpha": 0.25, "gamma": 2.0}, {"alpha": 0.6, "gamma": 0.0}], ids=str)
def test_focal_equals_its_twin(options):
    np.testing.assert_allclose(in_float64(losses.focal, Z, Y, **options), twin_focal(Z, Y, **options), rtol=1e-12)


def test_focal_without_focus_is_half_the_binary_cross_entropy_of_all_classes():
    whole = 4 * in_float64(losses.binary_cross_entropy, Z, SOFT)
    np.testing.assert_allclose(in_float64(losses.focal, Z, SOFT, alpha=0.5, gamma=0.0), whole / 2, rtol=1e-12)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_quality_focal_equals_its_twin_and_is_zero_where_it_agrees(beta):
    expected = -(np.abs(SOFT - expit(Z)) ** beta * (SOFT * log_expit(Z) + (1 - SOFT) * log_expit(-Z))).sum(-1)
    np.testing.assert_allclose(in_float64(losses.quality_focal, Z, SOFT, beta=beta), expected, rtol=1e-10)
    value, (gradient,) = differentiated(losses.quality_focal, 0, beta=beta)(Z, expit(Z))
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(gradient, 0)


def test_distribution_focal_is_the_cross_entropy_of_the_two_bins_beside_a_position():
    z, y = RNG.standard_normal((3, 4, 6)), RNG.uniform(0, 5, (3, 4))
    y[0] = (0, 5, -2, 9)  # the ends, and beyond them
    log_q, at = log_softmax(z, axis=-1), np.clip(y, 0, 5)
    low = np.minimum(np.floor(at).astype(int), 4)
    beside = [np.take_along_axis(log_q, (low + i)[..., None], -1)[..., 0] for i in (0, 1)]
    expected = -((low + 1 - at) * beside[0] + (at - low) * beside[1])
    np.testing.assert_allclose(in_float64(losses.distribution_focal, z, y), expected, rtol=1e-12)


def twin_giou(a, b):
    sides = [max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = sum(areas) - sides[0] * sides[1]
    hull = np.prod([max(a[i + 2], b[i + 2]) - min(a[i], b[i]) for i in (0, 1)])
    return 1 - sides[0] * sides[1] / union + (hull - union) / hull


def test_giou_equals_its_twin_near_and_far():
    low = RNG.uniform(0, 4, (2, 30, 2))
    a, b = np.concatenate([low, low + RNG.uniform(0.1, 3, (2, 30, 2))], axis=-1)
    found = in_float64(losses.giou, a, b)
    np.testing.assert_allclose(found, [twin_giou(*pair) for pair in zip(a, b, strict=True)], rtol=1e-10)
    assert found.min() < 0.9
    assert found.max() > 1.3, "some boxes lie apart"


@pytest.mark.parametrize(
    ("box", "other", "value"),
    [
        ((1, 1, 3, 3), (1, 1, 3, 3), 0.0),
        ((2, 2, 2, 2), (2, 2, 2, 2), 1.0),  # two points at one place
        ((2, 2, 2, 2), (0, 0, 4, 4), 1.0),
        ((3, 3, 1, 1), (0, 0, 4, 4), 1.0),  # its sides are negative
        ((0, 0, 1, 1), (9, 9, 10, 10), 1.98),
    ],
    ids=["equal", "points", "point in a box", "turned", "apart"],
)
def test_giou_of_odd_boxes_is_finite(box, other, value):
    found, gradients = differentiated(losses.giou, 0, 1)(np.array(box, np.float32), np.array(other, np.float32))
    np.testing.assert_allclose(found, value, rtol=1e-6)
    assert np.isfinite(gradients).all()


def test_score_weighted_is_the_weighted_mean_of_squared_errors():
    s, t, w = RNG.standard_normal((2, 3, 4, 5)), RNG.standard_normal((2, 3, 4, 5)), RNG.random((2, 3, 4))
    w[1] = 0
    expected = [(w[0] * np.square(s[0] - t[0]).mean(-1)).sum() / w[0].sum(), 0]
    np.testing.assert_allclose(in_float64(losses.score_weighted, s, t, w), expected, rtol=1e-12)


def test_what_has_no_score_reaches_neither_value_nor_gradient():
    s, t, w = np.ones((1, 2, 2, 3), np.float32), np.zeros((1, 2, 2, 3), np.float32), np.ones((1, 2, 2), np.float32)
    s[0, 0, 0], w[0, 0, 0] = np.nan, 0
    value, (gradient,) = differentiated(losses.score_weighted, 0)(s, t, w)
    assert value == 1
    assert np.isfinite(gradient).all()


def test_planted_mistakes_are_noticed():
    """The other labels, the other side, no focus: each gives another value than the twin."""
    right = twin_focal(Z, Y, 0.25, 2.0)
    for wrong in (
        in_float64(losses.focal, Z, 1 - Y),
        in_float64(losses.focal, -Z, Y),
        in_float64(losses.focal, Z, Y, gamma=0.0),
        in_float64(losses.quality_focal, Z, Y),
    ):
        assert not np.allclose(wrong, right, rtol=1e-3)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(5, 4\) and \(5, 3\)|shape \(5, 4\).*\(5, 3\)"):
        losses.focal(Z[0], Y[0][:, :3])
    with pytest.raises(ValueError, match=r"\(5, 4\).*\(5, 3\)"):
        losses.quality_focal(Z[0], SOFT[0][:, :3])
    with pytest.raises(ValueError, match=r"positions \(4,\)"):
        losses.distribution_focal(Z[0], np.zeros(4))
    with pytest.raises(ValueError, match=r"\(5, 3\) and \(5, 3\)"):
        losses.giou(np.zeros((5, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"weights have shape \(2, 3\)"):
        losses.score_weighted(np.zeros((2, 3, 4, 5)), np.zeros((2, 3, 4, 5)), np.zeros((2, 3)))
