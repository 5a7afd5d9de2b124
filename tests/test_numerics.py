"""The safe primitives: right values where the naive formula is right, finite ones where it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, numerics
from jaxkd.keys import fold_name


def test_promote_goes_to_float32_and_keeps_float64():
    half, single = numerics.promote(jnp.zeros(2, jnp.bfloat16), jnp.zeros(3, jnp.int32))
    assert half.dtype == single.dtype == jnp.float32
    with jax.enable_x64(True):
        a, b = numerics.promote(jnp.zeros(2, jnp.float64), jnp.zeros(3, jnp.float32))
        assert a.dtype == b.dtype == jnp.float64


def test_safe_norm_equals_the_norm_and_has_a_zero_gradient_at_zero():
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    np.testing.assert_allclose(numerics.safe_norm(x, axis=1), np.linalg.norm(x, axis=1), rtol=1e-6)
    assert np.all(np.isnan(jax.grad(lambda v: jnp.linalg.norm(v))(jnp.zeros(3))))
    np.testing.assert_array_equal(jax.grad(lambda v: numerics.safe_norm(v))(jnp.zeros(3)), np.zeros(3))
    expected = x[0] / np.linalg.norm(x[0])
    np.testing.assert_allclose(jax.grad(lambda v: numerics.safe_norm(v))(x[0]), expected, rtol=1e-6)


def test_xlogy_is_zero_where_x_is():
    x, y = jnp.array([0.0, 0.0, 2.0]), jnp.array([0.0, 3.0, 5.0])
    np.testing.assert_allclose(numerics.xlogy(x, y), [0, 0, 2 * np.log(5)], rtol=1e-6)
    gx, gy = jax.grad(lambda a, b: numerics.xlogy(a, b).sum(), argnums=(0, 1))(x, y)
    assert np.all(np.isfinite(gx))
    assert np.all(np.isfinite(gy))


def test_masked_mean_ignores_padding_whatever_stands_there():
    values = jnp.array([1.0, 3.0, jnp.nan, jnp.inf])
    mask = np.array([True, True, False, False])
    assert numerics.masked_mean(values, mask) == 2.0
    grad = jax.grad(lambda v: numerics.masked_mean(v, mask))(values)
    np.testing.assert_array_equal(grad, [0.5, 0.5, 0, 0])
    assert numerics.masked_mean(values, np.zeros(4, bool)) == 0.0


def test_masked_mean_takes_weights_and_leading_axes():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    weights = np.array([1.0, 3.0], np.float32)
    np.testing.assert_allclose(
        numerics.masked_mean(jnp.asarray(values), weights), np.average(values, weights=[[1] * 3, [3] * 3])
    )
    np.testing.assert_allclose(numerics.masked_mean(jnp.asarray(values)), values.mean())


def test_pairwise_distances_are_exact_for_equal_rows():
    x = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    x[3] = x[1]
    found = numerics.pairwise_squared_distances(x)
    np.testing.assert_allclose(found, np.square(x[:, None] - x[None]).sum(-1), rtol=1e-5)
    assert found[1, 3] == 0.0


def test_log_softmax_of_masked_classes_has_finite_gradients_also_for_the_temperature():
    z = jnp.array([[1.0, -jnp.inf, 2.0]])
    grads = jax.grad(lambda z, T: numerics.log_softmax(z, T)[0, 0], argnums=(0, 1))(z, jnp.float32(2.0))
    for grad in grads:
        assert np.all(np.isfinite(grad))


def test_kl_is_infinite_where_the_student_excludes_what_the_teacher_allows():
    assert numerics.kl_divergence(jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.0, -jnp.inf])) == jnp.inf


def test_names_give_streams_of_their_own():
    key = jax.random.key(0)
    a, b = (jax.random.key_data(fold_name(key, n)) for n in ("student", "term"))
    assert not np.array_equal(a, b)
    np.testing.assert_array_equal(a, jax.random.key_data(fold_name(key, "student")))


@pytest.mark.parametrize("what", ["logits", "features"])
def test_shape_message_names_both(what):
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(5, 3\)"):
        numerics.check_same_shape(jnp.zeros((2, 3)), jnp.zeros((5, 3)), what)


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_reversed_gradients_keep_the_value(strength):
    x = jnp.asarray([1.0, -3.0, 1e30])
    np.testing.assert_array_equal(numerics.reverse_gradient(x, strength), x)
    gradient = jax.grad(lambda x: jnp.sum(3 * numerics.reverse_gradient(x, strength)))(x)
    np.testing.assert_allclose(gradient, -3 * strength * np.ones(3))


@pytest.mark.parametrize("size", [(2, 2), (3, 1), (5, 4), (7, 6), (1, 1)])
def test_adaptive_pooling_averages_overlapping_windows(size):
    x = np.random.default_rng((0, 2, 5, 4, 3)).standard_normal((2, 5, 4, 3))
    windows = [[(i * n // r, -(-(i + 1) * n // r)) for i in range(r)] for n, r in zip(x.shape[1:3], size, strict=True)]
    want = [[x[:, a:b, c:d].mean((1, 2)) for c, d in windows[1]] for a, b in windows[0]]
    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(True):
        got = numerics.adaptive_average_pool(jnp.asarray(x), size)
    np.testing.assert_allclose(got, np.moveaxis(np.array(want), 2, 0), rtol=1e-12)


def test_rounding_of_a_constants_own_size_is_zero():
    """Equal numbers less their mean are not 0 in floating point, and a norm would blow up what is left."""
    rows = np.asarray([[10.1] * 7, [-333.3] * 7, [1e-6] * 7], np.float32)
    other = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)

    @jax.jit
    def found(rows, other):
        flat = jnp.moveaxis(jnp.broadcast_to(rows[..., None], (3, 7, 5)), 0, 2)  # channels that are constant
        return {
            "standardised": losses.standardize_logits(rows),
            "on a sphere": losses.spherical_kd(rows, rows),
            "Pearson": losses.pkd_pearson(flat, flat[::-1]),
            "centred": numerics.centred(rows),
            "difference": numerics.difference(other * (1 + 3e-7), other),
            "slope of DIST": jax.grad(losses.dist)(jnp.zeros((3, 7)), other),
        }

    for name, value in found(rows, other).items():
        assert np.abs(value).max() < (1 if name == "slope of DIST" else 1e-6), name
    big = numerics.difference(
        jnp.asarray([[np.inf, 1], [np.nan, 1], [3e38, 1], [1e-30, 0]]), jnp.ones((4, 2)).at[3].set(0)
    )
    np.testing.assert_array_equal(np.asarray(big[:, 0]), np.asarray([np.inf, np.nan, 3e38, 1e-30], np.float32))
