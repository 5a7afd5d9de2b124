"""Small networks of methods against their formulas in numpy."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.models.reused import Projector, reused_classifier
from jaxkd.objectives import connector, networks


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


def named(names, *arrays):
    return dict(zip(names, arrays, strict=True))


def generator(D):
    arrays = draw(3, 3, D, D), draw(D), draw(3, 3, D, D, seed=1), draw(D, seed=1)
    return named(("kernel1", "bias1", "kernel2", "bias2"), *arrays)


def numpy_leaky(y):
    return np.where(y > 0, y, 0.1 * y)


def numpy_generate(x, kernel1, bias1, kernel2, bias2):
    return numpy_conv(np.maximum(numpy_conv(x, kernel1, bias1), 0), kernel2, bias2)


@pytest.mark.parametrize("mask_shape", [(2, 1, 1, 3), (2, 5, 4, 1)], ids=["channels", "positions"])
def test_mgd_generates_from_what_the_mask_keeps(mask_shape):
    f, parameters = draw(2, 5, 4, 3), generator(3)
    mask = (draw(*mask_shape) > 0).astype(float)
    want = numpy_generate(f * mask, **parameters)
    np.testing.assert_allclose(networks.generator().apply(parameters, f, mask), want, rtol=1e-10, atol=1e-12)


def test_vitkd_generates_from_a_square_of_tokens_with_the_masked_ones_replaced():
    generate = networks.token_generator().apply
    f, token, parameters = draw(2, 9, 3), draw(3, seed=5), generator(3)
    mask = draw(2, 9) > 0
    x = np.where(mask[..., None], token, f).reshape(2, 3, 3, 3)
    want = numpy_generate(x, **parameters).reshape(2, 9, 3)
    for m in (mask, mask.astype(float), mask.astype(np.int32)):
        got = generate(parameters, f, m, token)
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
    grad = jax.grad(lambda f: generate(parameters, f, mask, token).sum())(jnp.asarray(f))
    np.testing.assert_array_equal(np.any(grad != 0, axis=-1), ~mask)
    with pytest.raises(ValueError, match=r"\(2, 8, 3\), 8 of them are not a square.*class token"):
        generate(parameters, f[:, :8], mask[:, :8], token)


def test_ickd_and_srrl_embed_with_a_convolution_and_the_norm_of_the_batch():
    f, k, g, b = draw(3, 4, 2, 5), draw(1, 1, 5, 6), draw(6), draw(6, seed=1)
    want = numpy_norm(f @ k[0, 0], g, b)
    params = {"kernel": k, "scale": g, "bias": b}
    np.testing.assert_allclose(connector().apply(params, f), want, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(connector(relu=True).apply(params, f), np.maximum(want, 0), rtol=1e-10, atol=1e-12)


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
    names = ("kernel1", "scale1", "bias1", "kernel2", "scale2", "bias2", "kernel3")
    params = named(names, k1, g1, b1, k2, g2, b2, k3)
    np.testing.assert_allclose(networks.bottleneck().apply(params, f), x, rtol=1e-9, atol=1e-11)
    want = np.maximum(numpy_norm(x, g3, b3), 0)
    projector = Projector(4, 6, None)
    given = {f"conv{i}": {"kernel": k} for i, k in enumerate((k1, k2, k3), 1)}
    given |= {f"norm{i}": {"scale": g, "bias": b} for i, (g, b) in enumerate(((g1, b1), (g2, b2), (g3, b3)), 1)}
    statistics = {f"norm{i}": {"mean": 0 * g, "var": 0 * g} for i, g in enumerate((g1, g2, g3), 1)}  # not read
    with jax.numpy_dtype_promotion("standard"):  # flax's batch norm names float32 beside float64
        found, _ = projector.apply({"params": given, "batch_stats": statistics}, f, True, mutable=["batch_stats"])
    np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-11)


def test_semckd_embeds_similarities_within_the_batch_as_unit_vectors():
    f, (k1, b1, k2, b2) = draw(4, 2, 3, 2), (draw(4, 6), draw(6), draw(6, 3), draw(3))
    flat, embed = f.reshape(4, -1), networks.embedding().apply

    def params(b1, k2, b2):
        return named(("kernel1", "bias1", "kernel2", "bias2"), k1, b1, k2, b2)

    u = np.maximum(flat @ flat.T @ k1 + b1, 0) @ k2 + b2
    want = u / np.linalg.norm(u, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(params(b1, k2, b2), f), want, rtol=1e-10)
    dead = jax.jit(jax.value_and_grad(lambda k2: embed(params(b1 - 1e3, k2, 0 * b2), f).sum()))(k2)
    assert dead[0] == 0
    assert np.all(np.isfinite(dead[1]))
    with pytest.raises(ValueError, match="the batch has 3 examples: give at least 4"):
        networks.embedding().init(jax.random.key(0), (3, 2, 2, 4), (3, 2, 2, 4))
    with pytest.raises(ValueError, match=r"\(3, 2, 3, 2\).*\(4, 6\).*batches of 4"):
        embed(params(b1, k2, b2), f[:3])


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("linear_end", [False, True])
def test_ft_translates_by_a_chain_of_convolution_norm_and_leaky_relu(normed, linear_end):
    x, widths = draw(2, 4, 3, 3), [3, 3, 2]
    kernels = [draw(3, 3, a, b, seed=a) for a, b in pairwise(widths)]
    biases, norms = [draw(3), draw(2)], [(draw(3, seed=1), draw(3, seed=2)), (draw(2, seed=1), draw(2, seed=2))]
    want = x
    for i, (kernel, bias, norm) in enumerate(zip(kernels, biases, norms, strict=True)):
        want = numpy_conv(want, kernel, bias)
        want = numpy_norm(want, *norm) if normed else want
        want = want if linear_end and i == 1 else numpy_leaky(want)
    params = {"kernels": kernels, "biases": biases}
    params |= {"norms": [named(("scale", "bias"), *norm) for norm in norms]} if normed else {}
    network = networks.translator(norm=normed, linear_end=linear_end)
    assert network.couples == normed
    np.testing.assert_allclose(network.apply(params, x), want, rtol=1e-9, atol=1e-11)


def test_vids_mean_has_relu_between_its_convolutions_only():
    x, kernels = draw(2, 3, 4, 3), [draw(1, 1, 3, 6), draw(1, 1, 6, 2)]
    want = np.maximum(x @ kernels[0][0, 0], 0) @ kernels[1][0, 0]
    np.testing.assert_allclose(networks.pointwise().apply(kernels, x), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("network", "own", "result", "more", "shapes"),
    [
        (networks.pointwise(), (2, 4, 4, 3), (2, 4, 4, 5), (), [(1, 1, 3, 5), (1, 1, 5, 5), (1, 1, 5, 5)]),
        (networks.pointwise(hidden=7), (2, 4, 4, 3), (2, 4, 4, 5), (), [(1, 1, 3, 7), (1, 1, 7, 7), (1, 1, 7, 5)]),
        (networks.embedding(), (9, 4, 4, 3), (9, 2), (), [(4,), (2,), (9, 4), (4, 2)]),
        (networks.fusion(middle=6), (2, 4, 4, 3), (2, 4, 4, 5), ((2, 2, 2, 6),), None),
        (networks.bottleneck(), (2, 4, 4, 3), (2, 4, 4, 5), (), None),
        (networks.context_block(), (2, 4, 4, 6), (2, 4, 4, 6), (), None),
        (networks.translator(norm=True), (2, 4, 4, 3), (2, 4, 4, 5), (), None),
        (networks.generator(), (2, 4, 4, 3), (2, 4, 4, 3), ((2, 4, 4, 1),), None),
        (networks.token_generator(), (2, 9, 3), (2, 9, 3), ((2, 9), (3,)), None),
    ],
)
def test_apply_takes_the_parameters_that_init_makes(network, own, result, more, shapes):
    params = jax.eval_shape(lambda key: network.init(key, own, result), jax.random.key(0))
    if shapes is not None:
        assert [leaf.shape for leaf in jax.tree.leaves(params)] == shapes
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (own, *more)]
    found = jax.eval_shape(network.apply, params, *inputs)
    assert jax.tree.leaves(found)[0].shape == result


def test_fgds_context_block_starts_as_the_identity():
    block, x = networks.context_block(), draw(2, 4, 4, 6)
    found = jax.jit(lambda key: block.apply(block.init(key, x.shape, x.shape), x))(jax.random.key(0))
    np.testing.assert_allclose(found, x, rtol=1e-12)


@pytest.mark.parametrize(
    ("network", "params", "shape", "message"),
    [
        (networks.pointwise(), [draw(1, 1, 5, 2)], (2, 3, 3, 4), r"\(2, 3, 3, 4\) does not fit a kernel"),
        (networks.translator(), {"kernels": [draw(3, 3, 4, 4)], "biases": []}, (2, 3, 3, 4), "1 kernels, 0 biases"),
        (networks.translator(), {"kernels": [draw(3, 3, 3, 4)], "biases": [draw(4)]}, (2, 3, 3, 4), "does not fit"),
    ],
)
def test_shapes_that_do_not_fit_are_named(network, params, shape, message):
    with pytest.raises(ValueError, match=message):
        network.apply(params, draw(*shape))
