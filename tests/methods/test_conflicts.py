"""PCGrad and CAGrad against slow references in NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from jaxkd.methods.conflicts import cagrad, cagrad_factors, pcgrad, pcgrad_factors


def conflicting(n, size=5, seed=0):
    """[n, size] gradients, some of which pull against each other."""
    return np.random.default_rng(seed).standard_normal((n, size))


def updated(optimizer, gradients):
    """Update of a vector in the student's params and of one in the term's, from gradients [n, size] of each."""
    each = {f"term{i}": {"student": jnp.asarray(g), "term": jnp.asarray(g)} for i, g in enumerate(gradients)}
    whole = jax.tree.map(lambda *g: sum(g), *each.values())
    update, state = optimizer.update(whole, optimizer.init(whole), whole, grad=whole, term_gradients=lambda: each)
    return jax.device_get(update), state


def test_pcgrad_without_conflict_is_the_sum():
    gradients = np.abs(conflicting(3))
    with jax.enable_x64(True):
        np.testing.assert_allclose(updated(pcgrad(), gradients)[0]["student"], gradients.sum(0), rtol=1e-12)


def test_pcgrad_of_two_loses_what_conflicts_and_terms_keep_their_sum():
    a, b = conflicting(2)
    b = -np.sign(a @ b) * b
    with jax.enable_x64(True):
        found, count = updated(optax.chain(pcgrad()), [a, b])
    expected = a - (a @ b) / (b @ b) * b + b - (a @ b) / (a @ a) * a
    np.testing.assert_allclose(found["student"], expected, rtol=1e-12)
    np.testing.assert_allclose(found["term"], a + b, rtol=1e-12)
    assert int(count[0]) == 1
    opposite, _ = updated(pcgrad(), [a, -2 * a])  # nothing is left of either
    np.testing.assert_allclose(opposite["student"], 0, atol=1e-6)
    still, _ = updated(pcgrad(), [a, 0 * a])
    np.testing.assert_allclose(still["student"], a, rtol=1e-6)


def test_pcgrad_of_three_is_one_of_the_orders_for_each():
    g = conflicting(3, seed=1)
    with jax.enable_x64(True):
        factors = np.asarray([pcgrad_factors(jnp.asarray(g @ g.T), jax.random.key(k)) for k in range(12)])
    possible = []
    for i in range(3):
        others = [j for j in range(3) if j != i]
        each = []
        for order in (others, others[::-1]):
            own = g[i].copy()
            for j in order:
                own -= min(0, own @ g[j]) / (g[j] @ g[j]) * g[j]
            each.append(own)
        possible.append(each)
    sums = np.asarray([a + b + c for a in possible[0] for b in possible[1] for c in possible[2]])
    nearest = [np.abs(f @ g - sums).sum(1) for f in factors]
    assert max(x.min() for x in nearest) < 1e-10
    assert len({int(x.argmin()) for x in nearest}) > 1  # the orders are drawn


def slow_direction(g, c):
    """CAGrad's primal problem, max_d min_i <g_i, d> with ||d - g_0|| <= c ||g_0||, by SciPy."""
    mean = g.mean(0)
    radius = c * np.linalg.norm(mean)
    start = np.append(mean, (g @ mean).min())
    found = scipy.optimize.minimize(
        lambda x: -x[-1],
        start,
        method="SLSQP",
        constraints=[
            {"type": "ineq", "fun": lambda x: g @ x[:-1] - x[-1]},
            {"type": "ineq", "fun": lambda x: radius**2 - ((x[:-1] - mean) ** 2).sum()},
        ],
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return found.x[:-1], -found.fun


@pytest.mark.parametrize("n", [2, 3, 5])
def test_cagrad_is_the_best_direction_near_the_mean(n):
    g = conflicting(n, size=6, seed=n)
    with jax.enable_x64(True):
        d = np.asarray(cagrad_factors(jnp.asarray(g @ g.T), 0.6)) @ g / n
    expected, value = slow_direction(g, 0.6)
    np.testing.assert_allclose((g @ d).min(), value, rtol=1e-5)
    np.testing.assert_allclose(d, expected, atol=2e-4)
    distance = np.linalg.norm(d - g.mean(0)) / np.linalg.norm(g.mean(0))
    np.testing.assert_allclose(distance, 0.6, rtol=1e-9)
    assert (g @ d).min() > (g @ g.mean(0)).min()


def test_cagrad_with_radius_zero_is_the_plain_gradient_and_opposites_are_finite():
    g = conflicting(3)
    np.testing.assert_allclose(updated(cagrad(0.0), g)[0]["student"], g.sum(0), rtol=1e-5)
    a, none = g[0], 0 * g[0]
    pairs = np.asarray([[a, -a], [a, none], [none, none], [a, a]], np.float32)
    factors = jax.jit(jax.vmap(lambda g: cagrad_factors(g @ g.T, 0.5)))(pairs)
    assert np.all(np.isfinite(factors))
    np.testing.assert_allclose(factors[3].sum(), 3, rtol=1e-5)  # (1 + c) times the mean of two equal ones, times 2
    with pytest.raises(ValueError, match="c is -1: give a radius of at least 0"):
        cagrad(-1)


def test_one_term_has_nothing_to_conflict_with():
    assert cagrad_factors(jnp.full((1, 1), 3.0), 0.5).tolist() == [1.0]
