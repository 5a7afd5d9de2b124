"""Feature losses against their authors' numbers and the relations they must obey."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses.programs import run

from jaxkd import losses
from jaxkd.losses import hints
from jaxkd.testing import FINITE, SCALE_INVARIANT, ZERO_ROWS, check_loss


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def test_hint_is_per_example_and_averages_over_the_rest():
    rng = np.random.default_rng(0)
    s, t = rng.standard_normal((2, 3, 4, 4, 5)).astype(np.float32)
    value = losses.hint(s, t)
    assert value.shape == (3,)
    np.testing.assert_allclose(value, np.square(s.astype(np.float64) - t).reshape(3, -1).mean(1), rtol=1e-5)
    np.testing.assert_array_equal(losses.hint(s, s), np.zeros(3))


def test_hint_names_both_shapes():
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(2, 8\).*project"):
        losses.hint(np.zeros((2, 4)), np.zeros((2, 8)))


def draw(*shape, seed=0, scale=1.0):
    return scale * np.random.default_rng((seed, *shape)).standard_normal(shape)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def numpy_pool(x, rows, columns):
    """Adaptive average pooling, window by window."""
    B, H, W, C = x.shape
    out = np.zeros((B, rows, columns, C))
    for i, j in np.ndindex(rows, columns):
        top, bottom = i * H // rows, math.ceil((i + 1) * H / rows)
        left, right = j * W // columns, math.ceil((j + 1) * W / columns)
        out[:, i, j] = x[:, top:bottom, left:right].mean((1, 2))
    return out


@pytest.mark.parametrize(
    ("shape", "levels", "weights"),
    [
        ((5, 5), (1, 4, 2, 1), (1, 1 / 2, 1 / 4, 1 / 8)),
        ((6, 3), (1, 4, 2, 1), (1, 1 / 2, 1 / 4, 1 / 8)),  # not square: H decides which levels there are
        ((4, 4), (1, 2, 1), (1, 1 / 2, 1 / 4)),
        ((1, 1), (1,), (1,)),
    ],
)
def test_review_hcl_averages_hints_of_the_levels_below_the_height(x64, shape, levels, weights):
    s, t = draw(2, *shape, 3), draw(2, *shape, 3, seed=1)
    distances = [np.square(s - t).mean((1, 2, 3))]
    distances += [np.square(numpy_pool(s, n, n) - numpy_pool(t, n, n)).mean((1, 2, 3)) for n in levels[1:]]
    want = sum(w * h for w, h in zip(weights, distances, strict=True)) / sum(weights)
    np.testing.assert_allclose(run(hints.review_hcl, s, t), want, rtol=1e-12)


def test_mgd_and_simkd_are_a_sum_and_a_mean_of_squares(x64):
    s, t = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1)
    np.testing.assert_allclose(run(hints.mgd, s, t), 7e-5 * np.square(s - t).sum((1, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(run(hints.mgd, s, t, alpha=1.0), 60 * run(hints.hint, s, t), rtol=1e-12)
    np.testing.assert_allclose(run(hints.simkd, s, t), np.square(s - t).mean((1, 2, 3)), rtol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
def test_ickd_compares_gram_matrices_of_channels(x64, normalize):
    s, t = draw(3, 4, 4, 5), draw(3, 2, 3, 5, seed=1)
    grams = [np.einsum("bhwi,bhwj->bij", x, x) for x in (s, t)]
    if normalize:
        grams = [g / np.linalg.norm(g, axis=-1, keepdims=True) for g in grams]
    want = np.square(grams[0] - grams[1]).sum((1, 2)) / 5
    np.testing.assert_allclose(run(hints.ickd, s, t, normalize=normalize), want, rtol=1e-12)


def test_ickd_ignores_the_order_of_positions_and_with_normalize_the_scale(x64):
    s, t = draw(3, 4, 4, 5), draw(3, 4, 4, 5, seed=1)
    shuffled = s.reshape(3, 16, 5)[:, np.random.default_rng(0).permutation(16)]
    np.testing.assert_allclose(run(hints.ickd, shuffled, t), run(hints.ickd, s, t), rtol=1e-12)
    report = check_loss(
        functools.partial(hints.ickd, normalize=True), (s, t), properties=(FINITE, ZERO_ROWS, SCALE_INVARIANT)
    )
    assert report, str(report)
    assert not check_loss(hints.ickd, (s, t), properties=(SCALE_INVARIANT,))


def test_srrl_adds_the_distance_of_pooled_features_and_beta_times_that_of_logits(x64):
    s, t = draw(2, 4, 4, 3), draw(2, 2, 2, 3, seed=1)
    z_s, z_t = draw(2, 7), draw(2, 7, seed=1)
    pooled = np.square(s.mean((1, 2)) - t.mean((1, 2))).mean(1)
    logits = np.square(z_s - z_t).mean(1)
    np.testing.assert_allclose(run(hints.srrl, s, t, z_s, z_t), pooled + logits, rtol=1e-12)
    np.testing.assert_allclose(run(hints.srrl, s, t, z_s, z_t, beta=5.0), pooled + 5 * logits, rtol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
def test_cat_kd_compares_pooled_maps_of_each_class(x64, normalize):
    s, t = draw(2, 5, 4, 3), draw(2, 3, 7, 3, seed=1)
    pooled = [numpy_pool(x, 2, 2) for x in (s, t)]
    if normalize:
        pooled = [x / np.sqrt(np.square(x).sum((1, 2), keepdims=True)) for x in pooled]
    want = np.square(pooled[0] - pooled[1]).mean((1, 2, 3))
    np.testing.assert_allclose(run(hints.cat_kd, s, t, normalize=normalize), want, rtol=1e-12)
    same = run(hints.cat_kd, s, s[::-1], resolution=1, normalize=normalize)
    signs = np.square(np.sign(s.mean((1, 2))) - np.sign(s[::-1].mean((1, 2)))).mean(1)  # one number of length one
    means = np.square(s.mean((1, 2)) - s[::-1].mean((1, 2))).mean(1)
    np.testing.assert_allclose(same, signs if normalize else means, rtol=1e-12)


def test_semckd_goes_from_the_mean_pair_to_the_best_matched_one_as_soft_falls(x64):
    q, k, pairs = draw(2, 3, 4), draw(2, 5, 4, seed=1), np.abs(draw(2, 3, 5))
    scores = np.einsum("bid,bjd->bij", q, k) / 0.5
    attention = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(
        run(hints.semckd, q, k, pairs, soft=0.5), (attention * pairs).sum(-1).mean(-1), rtol=1e-12
    )
    np.testing.assert_allclose(run(hints.semckd, q, k, pairs, soft=1e9), pairs.mean((1, 2)), rtol=1e-6)
    best = np.take_along_axis(pairs, scores.argmax(-1)[..., None], -1).mean((1, 2))
    np.testing.assert_allclose(run(hints.semckd, q, k, pairs, soft=1e-6), best, rtol=1e-6)


@pytest.mark.parametrize(("exponent", "temperature"), [(4.0, 1.0), (1.0, 4.0), (2.5, 0.5)])
def test_srd_equals_its_numpy_twin(x64, exponent, temperature):
    s, t, z_s, z_t = draw(4, 6), draw(4, 6, seed=1), draw(4, 5, seed=2), draw(4, 5, seed=3)
    p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum(-1, keepdims=True) for z in (z_t, z_s))
    want = 2 * np.log((np.abs(s - t) ** exponent).sum()) + (p * np.log(p / q)).sum(-1).mean()
    value = run(hints.srd, s, t, z_s, z_t, exponent=exponent, temperature=temperature)
    np.testing.assert_allclose(value, want, rtol=1e-12)


def test_srd_in_float32_keeps_differences_whose_powers_underflow_and_masked_classes():
    z = np.array([[0.0, 1.0, -np.inf]], np.float32)
    t = np.zeros((1, 3), np.float32)
    srd = jax.jit(jax.value_and_grad(hints.srd, argnums=(0, 2)))
    value, grads = srd(t + np.float32(1e-15), t, z, z[:, [1, 0, 2]])
    kl = srd(t + np.float32(1), t, z, z[:, [1, 0, 2]])[0] - 2 * np.log(3)
    np.testing.assert_allclose(value, 2 * np.log(3 * 1e-60) + kl, rtol=1e-5)
    np.testing.assert_allclose(grads[0], np.full((1, 3), 8 / 3 / 1e-15), rtol=1e-5)
    assert np.all(np.isfinite(grads[1]))
    at_equality = srd(t, t, z, z)[0]
    assert np.isfinite(at_equality)
    assert at_equality < value


def test_pkd_pearson_is_one_minus_the_correlation_of_each_channel_and_ignores_its_scale(x64):
    s, t = draw(3, 4, 2, 5), draw(3, 4, 2, 5, seed=1)
    n = 3 * 4 * 2
    r = [np.corrcoef(s[..., c].ravel(), t[..., c].ravel())[0, 1] for c in range(5)]
    value = run(hints.pkd_pearson, s, t)
    np.testing.assert_allclose(value, (1 - np.mean(r)) * (n - 1) / n, rtol=1e-5)
    affine = s * np.abs(draw(5)) + draw(5, seed=1)
    np.testing.assert_allclose(run(hints.pkd_pearson, affine, t), value, rtol=1e-4)
    np.testing.assert_allclose(
        run(hints.pkd_pearson, s, t, loss_weight=6.0), 6 * run(hints.pkd_pearson, s, t), rtol=1e-12
    )


def test_pkd_pearson_adds_1e_6_to_the_standard_deviation_and_survives_constant_channels(x64):
    s, t = 1e-6 * draw(3, 4, 2, 5), draw(3, 4, 2, 5, seed=1)
    hats = [(x - x.mean((0, 1, 2))) / (x.std((0, 1, 2), ddof=1) + 1e-6) for x in (s, t)]
    np.testing.assert_allclose(run(hints.pkd_pearson, s, t), np.square(hats[0] - hats[1]).mean() / 2, rtol=1e-12)
    value, grad = jax.jit(jax.value_and_grad(hints.pkd_pearson))(jnp.ones((1, 1, 1, 5)), jnp.asarray(t[:1, :1, :1]))
    assert value == 0
    assert np.all(np.isfinite(grad))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: hints.review_hcl(np.zeros((2, 4, 4, 3)), np.zeros((2, 2, 2, 3))),
            r"\(2, 4, 4, 3\).*\(2, 2, 2, 3\)",
        ),
        (lambda: hints.review_hcl(np.zeros((2, 4)), np.zeros((2, 4))), r"\(2, 4\).*maps \[B, H, W, C\]"),
        (lambda: hints.mgd(np.zeros((2, 4)), np.zeros((2, 8))), r"\(2, 4\).*\(2, 8\).*project"),
        (lambda: hints.ickd(np.zeros((2, 4, 4)), np.zeros((2, 4, 8))), r"\(2, 4, 4\).*\(2, 4, 8\).*projection"),
        (lambda: hints.cat_kd(np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 5))), r"\(2, 4, 4, 3\).*\(2, 4, 4, 5\)"),
        (lambda: hints.srrl(*np.zeros((2, 2, 4)), np.zeros((2, 3)), np.zeros((2, 5))), r"classes \(3 and 5"),
        (lambda: hints.semckd(*np.zeros((2, 2, 3, 4)), np.zeros((2, 3, 2))), r"\(2, 3, 2\).*\(2, 3, 3\)"),
        (lambda: hints.srd(np.zeros((2, 4)), np.zeros((2, 8)), *np.zeros((2, 2, 3))), r"\(2, 4\).*\(2, 8\)"),
        (lambda: hints.pkd_pearson(np.zeros((2, 4)), np.zeros((2, 8))), r"\(2, 4\).*\(2, 8\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
