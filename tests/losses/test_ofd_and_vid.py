"""OFD and VID: the margin's meaning, the likelihood, hard places."""

import jax
import numpy as np
import pytest
from losses.programs import differentiated, run

from jaxkd.losses.maps import ofd, ofd_margin, vid


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def test_ofd_margin_is_the_mean_of_the_negative_responses():
    scale, bias = np.array([1.5, -0.7, 2.0]), np.array([0.4, -0.3, 1.0])
    samples = bias + scale * np.random.default_rng(0).standard_normal((400_000, 3))
    expected = [column[column < 0].mean() for column in samples.T]
    np.testing.assert_allclose(run(ofd_margin, scale.astype(np.float32), bias.astype(np.float32)), expected, 1e-2)


def test_ofd_margin_of_channels_that_are_hardly_ever_negative_or_constant():
    scale, bias = np.float32([1, -2, 0, 0, 0, 1]), np.float32([3.2, 8, 1, -1, 0, -1e4])
    found = differentiated(ofd_margin, 0, 1)(scale, bias)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found)), found
    np.testing.assert_allclose(run(ofd_margin, scale, bias), [-3, -6, 0, -1, 0, -1e4], atol=1e-6)


def test_ofd_counts_what_the_teacher_shows_and_what_the_student_shows_too_much():
    s = np.float32([[-5, 0.2, -0.1, 2, -3]])
    t = np.float32([[-9, -0.4, -9, 1, 1]])
    margin = np.full(5, -0.5, np.float32)
    # Below the margin's target; above it twice (targets -0.4 and -0.5); positive teachers always.
    np.testing.assert_allclose(run(ofd, s, t, margin), [0 + 0.36 + 0.16 + 1 + 16], rtol=1e-6)


def test_vid_is_the_mean_gaussian_negative_log_likelihood_without_its_constant():
    mu, t, log_scale = draw(3, 2, 4, 5), draw(3, 2, 4, 5, seed=1), draw(5)
    deviation = np.sqrt(np.log1p(np.exp(log_scale.astype(np.float64))) + 0.1)
    density = np.exp(-((t - mu) ** 2) / (2 * deviation**2)) / (deviation * np.sqrt(2 * np.pi))
    expected = -np.log(density).reshape(3, -1).mean(1) - np.log(2 * np.pi) / 2
    np.testing.assert_allclose(run(vid, mu, t, log_scale, eps=0.1), expected, rtol=1e-5)


def test_vid_of_the_usual_start_has_variance_five():
    log_scale = np.full(5, np.log(np.exp(5 - 1e-5) - 1), np.float32)
    t = draw(2, 3, 5)
    np.testing.assert_allclose(run(vid, t, t, log_scale), np.full(2, np.log(5) / 2), rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e4])
@pytest.mark.parametrize("loss", [ofd, vid])
def test_value_and_gradients_are_finite_at_any_scale(loss, scale):
    arguments = [scale * draw(2, 3, 3, 4), scale * draw(2, 3, 3, 4, seed=1), scale * -np.abs(draw(4))]
    leaves = jax.tree.leaves(differentiated(loss, 0, 1, 2)(*arguments))
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ofd(draw(2, 4), draw(2, 5), draw(5)), r"\(2, 4\).*\(2, 5\)"),
        (lambda: ofd(draw(2, 4), draw(2, 4), draw(5)), r"margin has shape \(5,\).*each of the 4 channels"),
        (lambda: vid(draw(2, 4), draw(2, 4), draw(1)), r"log_scale has shape \(1,\).*each of the 4 channels"),
    ],
)
def test_shapes_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
