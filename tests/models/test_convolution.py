"""Convolutions whose kernel's gradient is made of matrix products on CPUs: the same numbers as XLA's, in every mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close
from jax import lax

from jaxkd import parallel
from jaxkd.models.convolution import Conv, convolve

LAYOUT = ("NHWC", "HWIO", "NHWC")
CASES = {
    "3x3": ((3, 3), (1, 1), [(1, 1), (1, 1)]),
    "strided": ((3, 3), (2, 2), [(1, 1), (1, 1)]),
    "shortcut": ((1, 1), (2, 2), "VALID"),
    "pointwise": ((1, 1), (1, 1), "SAME"),
    "odd": ((5, 2), (1, 1), "SAME"),
    "uneven": ((2, 3), (3, 2), [(0, 2), (1, 0)]),
    "one stride": ((3, 3), (1, 2), "SAME"),
    "large": ((7, 7), (2, 2), [(3, 3), (3, 3)]),
}


def parts(kernel, strides, padding, dtype=np.float32):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 9, 8, 3)).astype(dtype), rng.standard_normal((*kernel, 3, 4)).astype(dtype)

    def theirs(x, w):
        return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=LAYOUT)

    def ours(x, w):
        return convolve(x, w, strides, padding, dimension_numbers=LAYOUT)

    return x, w, ours, theirs


def gradients(convolution, x, w):
    """Of a function that is not linear in either."""
    return jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.sin(convolution(x, w))), argnums=(0, 1)))(x, w)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_xla(name):
    x, w, ours, theirs = parts(*CASES[name])
    np.testing.assert_array_equal(ours(x, w), theirs(x, w))
    assert_trees_close(gradients(ours, x, w), gradients(theirs, x, w), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["3x3", "uneven"])
def test_in_float64_they_agree_to_its_rounding(name):
    with jax.enable_x64(True):
        x, w, ours, theirs = parts(*CASES[name], dtype=np.float64)
        assert_trees_close(gradients(ours, x, w), gradients(theirs, x, w), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["3x3", "strided"])
def test_forward_mode_second_derivatives_and_stacks_work(name):
    x, w, ours, theirs = parts(*CASES[name])
    tangents = (jnp.cos(x), jnp.cos(w))
    found, expected = (jax.jvp(f, (x, w), tangents) for f in (ours, theirs))
    assert_trees_close(found, expected, rtol=1e-4, atol=1e-4)
    twice = [jax.grad(lambda w, f=f: jnp.sum(gradients(f, x, w)[1] ** 2))(w) for f in (ours, theirs)]
    np.testing.assert_allclose(*twice, rtol=1e-3, atol=1e-3)
    stack = jnp.stack([w, 2 * w])
    found, expected = (jax.vmap(lambda w, f=f: gradients(f, x, w))(stack) for f in (ours, theirs))
    assert_trees_close(found, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_stays_bfloat16():
    x, w, ours, theirs = parts(*CASES["3x3"])
    found, expected = (gradients(f, jnp.bfloat16(x), jnp.bfloat16(w)) for f in (ours, theirs))
    assert {g.dtype for g in found} == {jnp.dtype("bfloat16")}
    assert_trees_close(*(jax.tree.map(jnp.float32, g) for g in (found, expected)), rtol=0.05, atol=0.5)


def test_batches_split_over_devices():
    x, w, ours, _ = parts(*CASES["3x3"])
    x = np.concatenate([x] * 4)
    whole = gradients(ours, x, w)
    placed = parallel.put_batch({"image": x}, parallel.make_mesh())["image"]
    assert_trees_close(gradients(ours, placed, w), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("platform", "products"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_only_cpus_get_products(platform, products):
    x, w, ours, _ = parts(*CASES["3x3"])
    gradient = jax.jit(lambda x, w, dy: jax.vjp(lambda w: ours(x, w), w)[1](dy))
    text = gradient.trace(x, w, ours(x, w)).lower(lowering_platforms=(platform,)).as_text()
    assert ("dot_general" in text) is products
    assert ("stablehlo.convolution" in text) is not products


def test_layers_that_are_grouped_or_dilated_are_left_to_xla():
    import flax.linen as nn

    x = np.random.default_rng(0).standard_normal((2, 6, 6, 4)).astype(np.float32)
    for options in ({"feature_group_count": 2}, {"kernel_dilation": 2}, {"input_dilation": 2, "padding": 1}, {}):
        ours, theirs = Conv(4, (3, 3), **options), nn.Conv(4, (3, 3), **options)
        variables = theirs.init(jax.random.key(0), x)
        loss = [jax.jit(jax.grad(lambda v, m=m: jnp.sum(m.apply(v, x) ** 2))) for m in (ours, theirs)]
        assert_trees_close(loss[0](variables), loss[1](variables), rtol=1e-4, atol=1e-4)
