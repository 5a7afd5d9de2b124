"""Learned maps between student and teacher against their formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import numerics
from jaxkd.models.reused import reused_classifier
from jaxkd.objectives import networks


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(True):
        yield


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def numpy_conv(x, kernel, bias=0.0):
    """Cross-correlation with zero padding, offset by offset."""
    h, w = kernel.shape[:2]
    H, W = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (h // 2, h // 2), (w // 2, w // 2), (0, 0)))
    return bias + sum(padded[:, i : i + H, j : j + W] @ kernel[i, j] for i, j in np.ndindex(h, w))


def numpy_norm(x, scale, bias):
    axes = tuple(range(x.ndim - 1))
    return scale * (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5) + bias


def generator(D):
    return draw(3, 3, D, D), draw(D), draw(3, 3, D, D, seed=1), draw(D, seed=1)


def numpy_generate(x, k1, b1, k2, b2):
    return numpy_conv(np.maximum(numpy_conv(x, k1, b1), 0), k2, b2)


@pytest.mark.parametrize("mask_shape", [(2, 1, 1, 3), (2, 5, 4, 1)], ids=["channels", "positions"])
def test_mgd_generates_from_what_the_mask_keeps(mask_shape):
    f, parameters = draw(2, 5, 4, 3), generator(3)
    mask = (draw(*mask_shape) > 0).astype(float)
    want = numpy_generate(f * mask, *parameters)
    np.testing.assert_allclose(networks.mgd_generator(f, mask, *parameters), want, rtol=1e-10, atol=1e-12)


def test_vitkd_generates_from_a_square_of_tokens_with_the_masked_ones_replaced():
    f, token, parameters = draw(2, 9, 3), draw(3, seed=5), generator(3)
    mask = draw(2, 9) > 0
    x = np.where(mask[..., None], token, f).reshape(2, 3, 3, 3)
    want = numpy_generate(x, *parameters).reshape(2, 9, 3)
    for m in (mask, mask.astype(float), mask.astype(np.int32)):
        got = networks.vitkd_generator(f, m, token, *parameters)
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
    grad = jax.grad(lambda f: networks.vitkd_generator(f, mask, token, *parameters).sum())(jnp.asarray(f))
    np.testing.assert_array_equal(np.any(grad != 0, axis=-1), ~mask)
    with pytest.raises(ValueError, match=r"\(2, 8, 3\), 8 of them are not a square.*class token"):
        networks.vitkd_generator(f[:, :8], mask[:, :8], token, *parameters)


def test_ickd_and_srrl_embed_with_a_convolution_and_the_norm_of_the_batch():
    f, k, g, b = draw(3, 4, 2, 5), draw(1, 1, 5, 6), draw(6), draw(6, seed=1)
    want = numpy_norm(f @ k[0, 0], g, b)
    np.testing.assert_allclose(networks.ickd_embedding(f, k, g, b), want, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(networks.srrl_connector(f, k, g, b), np.maximum(want, 0), rtol=1e-10, atol=1e-12)


def test_the_reused_classifier_is_the_teachers_head():
    f, k, b = draw(3, 4, 2, 5), draw(5, 7), draw(7)
    np.testing.assert_allclose(reused_classifier(f, k, b), f.mean((1, 2)) @ k + b, rtol=1e-12)


def test_simkd_projects_with_semckds_bottleneck_a_norm_and_a_relu():
    f = draw(3, 4, 3, 5)
    k1, g1, b1 = draw(1, 1, 5, 4), draw(4), draw(4, seed=1)
    k2, g2, b2 = draw(3, 3, 4, 4), draw(4, seed=2), draw(4, seed=3)
    k3, g3, b3 = draw(1, 1, 4, 6), draw(6), draw(6, seed=1)
    x = np.maximum(numpy_norm(numpy_conv(f, k1), g1, b1), 0)
    x = numpy_conv(np.maximum(numpy_norm(numpy_conv(x, k2), g2, b2), 0), k3)
    bottleneck = (k1, g1, b1, k2, g2, b2, k3)
    np.testing.assert_allclose(networks.semckd_regressor(f, *bottleneck), x, rtol=1e-9, atol=1e-11)
    want = np.maximum(numpy_norm(x, g3, b3), 0)
    np.testing.assert_allclose(networks.simkd_projector(f, *bottleneck, g3, b3), want, rtol=1e-9, atol=1e-11)


def test_semckd_embeds_similarities_within_the_batch_as_unit_vectors():
    f, (k1, b1, k2, b2) = draw(4, 2, 3, 2), (draw(4, 6), draw(6), draw(6, 3), draw(3))
    flat = f.reshape(4, -1)
    u = np.maximum(flat @ flat.T @ k1 + b1, 0) @ k2 + b2
    want = u / np.linalg.norm(u, axis=1, keepdims=True)
    np.testing.assert_allclose(networks.semckd_embedding(f, k1, b1, k2, b2), want, rtol=1e-10)
    dead = jax.jit(jax.value_and_grad(lambda k2: networks.semckd_embedding(f, k1, b1 - 1e3, k2, 0 * b2).sum()))(k2)
    assert dead[0] == 0
    assert np.all(np.isfinite(dead[1]))
    with pytest.raises(ValueError, match=r"\(3, 2, 3, 2\).*\(4, 6\).*batches of 4"):
        networks.semckd_embedding(f[:3], k1, b1, k2, b2)


@pytest.mark.parametrize("size", [(2, 2), (3, 1), (5, 4), (7, 6), (1, 1)])
def test_adaptive_pooling_averages_overlapping_windows(size):
    x = draw(2, 5, 4, 3)
    windows = [[(i * n // r, -(-(i + 1) * n // r)) for i in range(r)] for n, r in zip(x.shape[1:3], size, strict=True)]
    want = [[x[:, a:b, c:d].mean((1, 2)) for c, d in windows[1]] for a, b in windows[0]]
    got = numerics.adaptive_average_pool(jnp.asarray(x), size)
    np.testing.assert_allclose(got, np.moveaxis(np.array(want), 2, 0), rtol=1e-12)
