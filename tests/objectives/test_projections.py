"""Projections: linear maps, connectors and regressors against their formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses.programs import run

from jaxkd import objectives

KEY = jax.random.key(0)


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def loops_convolution(x, kernel, bias, stride, padding):
    x = np.pad(x.astype(np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    h, w = kernel.shape[:2]
    rows, columns = range(0, x.shape[1] - h + 1, stride), range(0, x.shape[2] - w + 1, stride)
    windows = [[np.einsum("bhwc,hwcd->bd", x[:, i : i + h, j : j + w], kernel) for j in columns] for i in rows]
    return np.stack([np.stack(row, 1) for row in windows], 1) + bias


def normalised(x, scale, bias):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return scale * (x - mean) / np.sqrt(variance + 1e-5) + bias


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1)])
def test_fitnet_regressor_is_the_papers_convolution_and_with_a_norm_the_benchmarks(stride, padding):
    x, kernel, bias, scale, shift = (
        draw(2, 6, 5, 3),
        draw(3, 3 if padding else 2, 3, 4),
        draw(4),
        draw(4, seed=1),
        draw(4, seed=2),
    )
    expected = loops_convolution(x, kernel, bias, stride, padding)
    params = {"kernel": kernel, "bias": bias, "scale": scale, "shift": shift}
    plain = run(objectives.regressor(halve=stride == 2).apply, params, x)
    np.testing.assert_allclose(plain, expected, rtol=1e-4, atol=1e-5)
    normed = run(objectives.regressor(halve=stride == 2, norm=True).apply, params, x)
    np.testing.assert_allclose(normed, np.maximum(normalised(expected, scale, shift), 0), rtol=1e-4, atol=1e-4)


def test_a_connector_is_a_pointwise_projection_and_a_norm():
    x, kernel, scale, bias = draw(3, 2, 4, 5), draw(1, 1, 5, 3), draw(3), draw(3, seed=1)
    expected = normalised(x.astype(np.float64) @ kernel[0, 0], scale, bias)
    np.testing.assert_allclose(
        run(objectives.connector().apply, {"kernel": kernel, "scale": scale, "bias": bias}, x),
        expected,
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("bias", [True, False])
def test_linear_projection_is_a_pointwise_convolution(bias):
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    project = objectives.linear(bias=bias)
    params = project.init(KEY, x.shape, (2, 3, 5, 7))
    assert set(params) == ({"kernel", "bias"} if bias else {"kernel"})
    shift = np.arange(7, dtype=np.float32) if bias else np.zeros(7, np.float32)
    params = {**params, "bias": jnp.asarray(shift)} if bias else params
    convolved = jax.lax.conv_general_dilated(
        x, params["kernel"][None, None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(project.apply(params, x), convolved + shift.reshape(1, 1, 1, 7), rtol=1e-4, atol=1e-5)
    # A vector is a map of one position.
    np.testing.assert_allclose(project.apply(params, x[:, 0, 0]), project.apply(params, x)[:, 0, 0], rtol=1e-5)


def test_linear_projection_keeps_the_scale_at_the_start():
    x = np.random.default_rng(0).standard_normal((512, 100)).astype(np.float32)
    project = objectives.linear()
    params = project.init(KEY, x.shape, (512, 50))
    np.testing.assert_array_equal(params["bias"], np.zeros(50))
    assert float(project.apply(params, x).std()) == pytest.approx(1, rel=0.1)


def test_linear_projection_computes_in_float32():
    params = objectives.linear().init(KEY, (2, 4), (2, 3))
    half = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4)), jnp.bfloat16)
    found = objectives.linear().apply(params, half)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, objectives.linear().apply(params, half.astype(jnp.float32)))


def test_linear_projection_changes_the_last_axis_alone():
    with pytest.raises(ValueError, match=r"last axis only.*\(2, 4, 4, 3\).*\(2, 2, 2, 3\): choose stages of one"):
        objectives.linear().init(KEY, (2, 4, 4, 3), (2, 2, 2, 3))


@pytest.mark.parametrize(
    ("network", "params", "shape"),
    [
        (objectives.connector(), {"kernel": draw(1, 1, 4, 2), "scale": draw(2), "bias": draw(2)}, (2, 4)),
        (objectives.regressor(), {"kernel": draw(3, 3, 3, 4), "bias": draw(4)}, (2, 3, 3, 4)),
    ],
)
def test_a_feature_that_does_not_fit_the_kernel_is_refused(network, params, shape):
    with pytest.raises(ValueError, match="does not fit a kernel"):
        network.apply(params, draw(*shape))
