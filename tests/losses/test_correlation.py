"""Losses on logits that couple the batch: float64 NumPy twins and the relations they must obey."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from jaxkd.losses import correlation


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def run(loss, *arrays, **options):
    """The loss as one program: op by op, dispatch would take most of a test's time."""
    return jax.jit(functools.partial(loss, **options))(*arrays)


def draw(shape, seed, scale=2.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def numpy_dist(s, t, beta, gamma, T):
    q, p = softmax(s / T, -1), softmax(t / T, -1)
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    return T**2 * (beta * inter + gamma * intra)


def numpy_mlkd(s, t, temperatures):
    total = 0.0
    for T in temperatures:
        q, p = softmax(s / T, -1), softmax(t / T, -1)
        total += T**2 * rel_entr(p, q).sum(-1).mean()
        total += np.linalg.norm(p @ p.T - q @ q.T) ** 2 / len(s)
        total += np.linalg.norm(p.T @ p - q.T @ q) ** 2 / s.shape[1]
    return total


@pytest.mark.parametrize(("batch", "classes"), [(5, 8), (8, 3), (4, 2)])
def test_values_equal_their_twins(batch, classes):
    s, t = draw((batch, classes), 0), draw((batch, classes), 1)
    with jax.enable_x64(True):
        value = run(correlation.dist, s, t, beta=0.7, gamma=1.9, temperature=2.0)
        np.testing.assert_allclose(value, numpy_dist(s, t, 0.7, 1.9, 2.0), rtol=1e-5)
        value = run(correlation.mlkd, s, t, temperatures=(1.5, 3.0))
        np.testing.assert_allclose(value, numpy_mlkd(s, t, (1.5, 3.0)), rtol=1e-12)
        value = run(correlation.mlkd, s, t)
        np.testing.assert_allclose(value, numpy_mlkd(s, t, (2, 3, 4, 5, 6)), rtol=1e-12)


@pytest.mark.parametrize("loss", [correlation.dist, correlation.mlkd])
def test_leading_axes_count_as_one_batch(loss):
    s, t = draw((2, 3, 5), 2).astype(np.float32), draw((2, 3, 5), 3).astype(np.float32)
    value = run(loss, s, t)
    assert value.shape == ()
    np.testing.assert_allclose(value, run(loss, s.reshape(6, 5), t.reshape(6, 5)), rtol=1e-6)


def test_dist_needs_correlation_and_not_equality():
    """Probabilities that are an affine function of the teacher's within each class correlate perfectly there."""
    t = np.log(softmax(draw((6, 4), 4), -1))
    s = np.log(0.4 * np.exp(t) + 0.6 * 0.25)
    with jax.enable_x64(True):
        np.testing.assert_allclose(run(correlation.dist, s, t), 0, atol=1e-5)  # the 1e-8 in rho
        assert run(correlation.mlkd, s, t) > 0.01


def test_dist_of_one_example_and_of_uniform_rows_has_finite_gradients():
    s, t = draw((1, 4), 5).astype(np.float32), draw((1, 4), 6).astype(np.float32)
    of_one = run(correlation.dist, s, t, beta=1.0, gamma=0.5, temperature=2.0)
    inter = run(correlation.dist, s, t, beta=1.0, gamma=0.0, temperature=2.0)
    np.testing.assert_allclose(of_one, inter + 4 * 0.5, rtol=1e-6)
    for x in (s, np.zeros((3, 4), np.float32)):
        assert np.all(np.isfinite(jax.grad(lambda a, x=x: run(correlation.dist, a, x))(x)))


def test_mlkd_adds_up_over_temperatures_and_takes_them_traced():
    s, t = draw((4, 6), 7).astype(np.float32), draw((4, 6), 8).astype(np.float32)
    each = sum(run(correlation.mlkd, s, t, temperatures=[T]) for T in (1.0, 2.0))
    traced = jax.jit(lambda T: run(correlation.mlkd, s, t, temperatures=T))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(traced, each, rtol=1e-5)


@pytest.mark.parametrize("loss", [correlation.dist, correlation.mlkd])
def test_shapes_that_do_not_fit_are_named(loss):
    with pytest.raises(ValueError, match=r"shape \(3, 10\).*shape \(4, 10\)"):
        run(loss, np.zeros((3, 10)), np.zeros((4, 10)))
