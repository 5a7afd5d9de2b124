"""Divergences against SciPy in float64, their limits, and the relations between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses.programs import compiled, differentiated, run
from scipy.special import rel_entr, softmax

from jaxkd.losses import divergences, logits

ALL = [
    divergences.reverse_kl,
    divergences.jeffreys,
    divergences.jsd,
    divergences.tvd,
    divergences.skew_kl,
    divergences.skew_reverse_kl,
]


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def draw(shape, seed, scale=2.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def kl(p, q):
    return rel_entr(p, q).sum(-1)


def entropy(p):
    return -(p * np.log(p)).sum(-1)


def _jsd(p, q, beta):
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


TWINS = [
    (divergences.reverse_kl, {}, lambda p, q: kl(q, p)),
    (divergences.jeffreys, {"lam": 0.3}, lambda p, q: 0.7 * kl(p, q) + 0.3 * kl(q, p)),
    (
        divergences.jeffreys,
        {"lam": 0.3, "keep_teacher_entropy": True},
        lambda p, q: 0.7 * (kl(p, q) + entropy(p)) + 0.3 * kl(q, p),
    ),
    (divergences.jsd, {"beta": 0.2}, lambda p, q: _jsd(p, q, 0.2)),
    (divergences.jsd, {"beta": 0.0}, kl),
    (divergences.jsd, {"beta": 1.0}, lambda p, q: kl(q, p)),
    (divergences.tvd, {}, lambda p, q: 0.5 * np.abs(p - q).sum(-1)),
    (divergences.skew_kl, {"alpha": 0.2}, lambda p, q: kl(p, 0.2 * p + 0.8 * q)),
    (
        divergences.skew_kl,
        {"alpha": 0.2, "keep_teacher_entropy": True},
        lambda p, q: kl(p, 0.2 * p + 0.8 * q) + entropy(p),
    ),
    (divergences.skew_reverse_kl, {"alpha": 0.2}, lambda p, q: kl(q, 0.8 * p + 0.2 * q)),
]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(
    ("loss", "options", "twin"), TWINS, ids=[f"{loss.__name__}-{options}" for loss, options, _ in TWINS]
)
def test_value_equals_its_twin_for_one_hyper_parameter_and_for_one_a_row(loss, options, twin, temperature):
    s, t = draw((3, 4, 9), 0), draw((3, 4, 9), 1)
    with jax.enable_x64(True):
        value = run(loss, s, t, temperature=temperature, **options)
        np.testing.assert_allclose(value, twin(softmax(t / temperature, -1), softmax(s / temperature, -1)), rtol=1e-12)
        fixed = {k: v for k, v in options.items() if isinstance(v, bool)}
        each = {k: np.full(3, v) for k, v in options.items() if k not in fixed}
        again = compiled(loss, **fixed)(s, t, temperature=np.full((3, 4), temperature), **each)
        np.testing.assert_allclose(again, value, rtol=1e-13)


def test_the_known_limits():
    s, t = draw((5, 8), 2), draw((5, 8), 3)
    with jax.enable_x64(True):
        forward, backward = run(logits.kd, s, t, temperature=1.0), run(logits.kd, t, s, temperature=1.0)
        np.testing.assert_allclose(run(divergences.reverse_kl, s, t), backward, rtol=1e-12)
        np.testing.assert_allclose(run(divergences.skew_kl, s, t, alpha=0.0), forward, rtol=1e-12)
        np.testing.assert_allclose(run(divergences.skew_reverse_kl, s, t, alpha=0.0), backward, rtol=1e-12)
        np.testing.assert_allclose(2 * run(divergences.jeffreys, s, t), forward + backward, rtol=1e-12)
        small = 1e-5
        np.testing.assert_allclose(run(divergences.jsd, s, t, beta=small) / small, forward, rtol=1e-3)
        np.testing.assert_allclose(
            run(divergences.jsd, s, t, beta=0.3), run(divergences.jsd, t, s, beta=0.7), rtol=1e-12
        )


def test_bounds():
    """JSD stays below log 2, TVD below 1, skew KL below -log alpha, and Pinsker's inequality holds."""
    s, t = draw((50, 6), 4, 20.0).astype(np.float32), draw((50, 6), 5, 20.0).astype(np.float32)
    assert np.log(2) * 0.9 < run(divergences.jsd, s, t).max() <= np.log(2) * (1 + 1e-6)
    assert 0.9 < run(divergences.tvd, s, t).max() <= 1 + 1e-6
    assert run(divergences.skew_kl, s, t, alpha=0.1).max() <= -np.log(0.1) * (1 + 1e-6)
    assert run(divergences.skew_reverse_kl, s, t, alpha=0.1).max() <= -np.log(0.1) * (1 + 1e-6)
    assert np.all(run(divergences.tvd, s, t) <= np.sqrt(run(logits.kd, s, t, temperature=1.0) / 2) + 1e-6)


@pytest.mark.parametrize("name", ["jeffreys", "skew_kl"])
def test_the_teachers_entropy_changes_the_value_and_not_the_students_gradient(name):
    loss = getattr(divergences, name)
    s, t = draw((4, 6), 6).astype(np.float32), draw((4, 6), 7).astype(np.float32)
    kept, plain = (differentiated(loss, 0, keep_teacher_entropy=keep)(s, t) for keep in (True, False))
    assert kept[0] > plain[0] + 0.1
    np.testing.assert_allclose(kept[1], plain[1], rtol=1e-6, atol=1e-7)


def test_bounded_divergences_survive_a_class_that_one_side_masks():
    s, t = draw((3, 5), 8).astype(np.float32), draw((3, 5), 9).astype(np.float32)
    s[:, 1], t[:, 3] = -np.inf, -np.inf
    p, q = softmax(t.astype(np.float64), -1), softmax(s.astype(np.float64), -1)
    assert np.all(np.isinf(run(divergences.reverse_kl, s, t)))
    for loss, twin in (
        (divergences.jsd, _jsd(p, q, 0.5)),
        (divergences.tvd, 0.5 * np.abs(p - q).sum(-1)),
        (divergences.skew_kl, kl(p, 0.1 * p + 0.9 * q)),
        (divergences.skew_reverse_kl, kl(q, 0.9 * p + 0.1 * q)),
    ):
        np.testing.assert_allclose(run(loss, s, t), twin, rtol=1e-5)
        for grad in differentiated(loss, 0, 1)(s, t)[1]:
            assert np.all(np.isfinite(grad))


@pytest.mark.parametrize("loss", ALL)
def test_hyper_parameters_can_be_traced_and_learned(loss):
    s, t = draw((3, 5), 10).astype(np.float32), draw((3, 5), 11).astype(np.float32)
    s[:, 2] = t[:, 2] = -np.inf
    name = {"jeffreys": "lam", "jsd": "beta", "skew_kl": "alpha", "skew_reverse_kl": "alpha"}.get(loss.__name__)
    given = {"temperature": 2.0} | ({name: 0.4} if name else {})
    value, grads = jax.jit(jax.value_and_grad(lambda h: loss(s, t, **h).sum()))(given)
    np.testing.assert_allclose(value, np.sum(run(loss, s, t, **given)), rtol=1e-6)
    assert all(np.isfinite(g) and g != 0 for g in grads.values())


def test_end_points_of_jsd_are_found_inside_jit():
    s, t = draw((3, 5), 12).astype(np.float32), draw((3, 5), 13).astype(np.float32)
    compiled = jax.jit(lambda beta: divergences.jsd(s, t, beta=beta))
    np.testing.assert_allclose(compiled(jnp.float32(0)), run(logits.kd, s, t, temperature=1.0), rtol=1e-6)
    np.testing.assert_allclose(compiled(jnp.float32(1)), run(divergences.reverse_kl, s, t), rtol=1e-6)


@pytest.mark.parametrize("loss", ALL)
def test_close_distributions_do_not_drown_in_rounding(loss):
    """In float32 p log(p / q) sums to noise of 1e-8 here, ten thousand times the value."""
    t = draw((4, 100), 14).astype(np.float32)
    s = t + 1e-5 * draw((4, 100), 15).astype(np.float32)
    with jax.enable_x64(True):
        exact = run(loss, s.astype(np.float64), t.astype(np.float64))
    np.testing.assert_allclose(run(loss, s, t), exact, rtol=0.1)


@pytest.mark.parametrize("loss", ALL)
def test_shapes_that_do_not_fit_are_named(loss):
    with pytest.raises(ValueError, match=r"different numbers of classes \(10 and 7"):
        run(loss, np.zeros((4, 10)), np.zeros((4, 7)))


def test_no_temperature_squared():
    """All are invariant to scaling logits and temperature together, which a factor T^2 would break."""
    s, t = draw((3, 5), 16), draw((3, 5), 17)

    @jax.jit
    def both(s, t):
        return [loss(5 * s, 5 * t, temperature=5.0) for loss in ALL], [loss(s, t) for loss in ALL]

    with jax.enable_x64(True):
        np.testing.assert_allclose(*both(s, t), rtol=1e-10)
