"""Convolutions in forms of their own on CPUs: the same numbers as XLA's, in every mode."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close
from jax import lax

from jaxkd import parallel
from jaxkd.kernels.convolution import convolve
from jaxkd.models.layers import Conv

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
    "few pixels": ((3, 3), (4, 4), [(1, 0), (1, 1)]),
    "few pixels, unpadded": ((5, 5), (3, 3), "VALID"),
    "many channels": ((3, 3), (3, 3), "SAME"),
    "grouped": ((3, 3), (1, 1), "SAME"),
    "grouped, few pixels": ((3, 3), (4, 4), "SAME"),
    "grouped, wide": ((3, 3), (1, 1), "SAME"),
    "grouped, by twos": ((3, 2), (1, 1), "SAME"),
    "depthwise": ((3, 3), (1, 1), "SAME"),
    "depthwise, strided": ((3, 2), (2, 1), [(1, 2), (0, 1)]),
    "depthwise, large": ((7, 7), (1, 1), "SAME"),
}


def words(name):
    return {*re.findall(r"\w+", name)}


def parts(name, dtype=np.float32):
    (kernel, strides, padding), groups = CASES[name], 3 if {"depthwise", "grouped"} & words(name) else 1
    groups = 6 if "twos" in words(name) else groups
    sizes = {"depthwise": (1, 3), "wide": (4, 96), "twos": (8, 96), "grouped": (2, 6), "many": (384, 400)}
    rng, features = np.random.default_rng(0), next((sizes[word] for word in sizes if word in words(name)), (3, 4))
    x, w = rng.standard_normal((2, 9, 8, features[0] * groups)), rng.standard_normal((*kernel, *features))
    if "many" in words(name):  # so that sums of so many products are no larger than the others
        w *= 0.1 * (features[0] * math.prod(kernel)) ** -0.5
    x, w = x.astype(dtype), w.astype(dtype)
    ours, theirs = (
        functools.partial(
            f, window_strides=strides, padding=padding, dimension_numbers=LAYOUT, feature_group_count=groups
        )
        for f in (convolve, lax.conv_general_dilated)
    )
    return x, w, ours, theirs


def lowered(function, platform, *arguments):
    """The program for a back end that need not be here."""
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def gradients(convolution, x, w):
    """Of a function that is not linear in either."""
    return jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.sin(convolution(x, w))), argnums=(0, 1)))(x, w)


def both(function, ours, theirs):
    """What a function of a convolution makes of the two, in one program."""
    return jax.jit(lambda *given: tuple(function(f, *given) for f in (ours, theirs)))


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_xla(name):
    x, w, *convolutions = parts(name)
    (value, slope), (expected, slope_expected) = both(
        lambda f, *given: (f(*given), gradients(f, *given)), *convolutions
    )(x, w)
    if {"depthwise", "few", "many"} & words(name):  # a sum in another order
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_array_equal(value, expected)
    assert_trees_close(slope, slope_expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["3x3", "uneven", "few pixels", "many channels", "grouped", "depthwise"])
def test_in_float64_they_agree_to_its_rounding(name):
    with jax.enable_x64(True):
        x, w, *convolutions = parts(name, dtype=np.float64)
        assert_trees_close(*both(gradients, *convolutions)(x, w), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["3x3", "strided", "few pixels", "grouped", "depthwise"])
def test_forward_mode_second_derivatives_and_stacks_work(name):
    x, w, *convolutions = parts(name)

    def forward(f, x, w):
        return jax.jvp(f, (x, w), (jnp.cos(x), jnp.cos(w)))

    def twice(f, x, w):
        return jax.grad(lambda w: jnp.sum(gradients(f, x, w)[1] ** 2))(w)

    def stacked(f, x, w):
        return jax.vmap(lambda w: gradients(f, x, w))(jnp.stack([w, 2 * w]))

    found, expected = both(lambda *given: (forward(*given), twice(*given), stacked(*given)), *convolutions)(x, w)
    for mine, other, tolerance in zip(found, expected, (1e-4, 1e-3, 1e-4), strict=True):
        assert_trees_close(mine, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["3x3", "few pixels", "grouped", "depthwise"])
def test_bfloat16_stays_bfloat16(name):
    x, w, *convolutions = parts(name)
    found, expected = both(gradients, *convolutions)(*(a.astype(jnp.bfloat16) for a in (x, w)))
    assert {g.dtype for g in found} == {jnp.dtype("bfloat16")}
    assert_trees_close(*(jax.tree.map(jnp.float32, g) for g in (found, expected)), rtol=0.05, atol=0.5)


@pytest.mark.parametrize("name", ["3x3", "few pixels", "grouped", "depthwise"])
def test_batches_split_over_devices(name):
    x, w, ours, _ = parts(name)
    x = np.concatenate([x] * 4)
    whole = gradients(ours, x, w)
    placed = parallel.put_batch({"image": x}, parallel.make_mesh())["image"]
    assert_trees_close(gradients(ours, placed, w), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("platform", "products"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_only_cpus_get_products(platform, products):
    x, w, ours, _ = parts("3x3")
    text = lowered(lambda x, w, dy: jax.vjp(lambda w: ours(x, w), w)[1](dy), platform, x, w, jax.eval_shape(ours, x, w))
    assert ("dot_general" in text) is products
    assert ("stablehlo.convolution" in text) is not products


@pytest.mark.parametrize(("platform", "grouped"), [("cpu", False), ("cuda", True), ("tpu", True)])
def test_only_cpus_get_gradients_for_each_group(platform, grouped):
    x, w, ours, _ = parts("grouped")
    text = lowered(lambda x, w, dy: jax.vjp(ours, x, w)[1](dy), platform, x, w, jax.eval_shape(ours, x, w))
    assert ("feature_group_count = 3" in text) is grouped


@pytest.mark.parametrize(("name", "count"), [("grouped", 1), ("grouped, by twos", 3), ("grouped, wide", 3)])
def test_narrow_groups_go_together(name, count):
    x, w, ours, theirs = parts(name)
    text = lowered(lambda x, dy: jax.vjp(lambda x: ours(x, w), x)[1](dy), "cpu", x, jax.eval_shape(theirs, x, w))
    assert text.count("stablehlo.convolution") == count


@pytest.mark.parametrize(("platform", "products"), [("cpu", True), ("cuda", False), ("tpu", False)])
@pytest.mark.parametrize("name", ["few pixels", "many channels"])
def test_only_cpus_get_one_product_where_pixels_are_few(platform, products, name):
    x, w, ours, _ = parts(name)
    text = lowered(lambda x, w, dy: jax.vjp(ours, x, w)[1](dy), platform, x, w, jax.eval_shape(ours, x, w))
    assert ("dot_general" in text) is products
    assert ("stablehlo.convolution" in text) is not products


@pytest.mark.parametrize("name", ["3x3", "strided"])
def test_cpus_get_the_fast_order_of_axes_in_loops_too(name):
    x, w, ours, _ = parts(name)

    def descend(x, _):
        return x - jax.grad(lambda x: jnp.sum(jnp.sin(ours(x, w))))(x), None

    program = jax.jit(lambda x: lax.scan(descend, x, length=3)[0]).lower(x).compile().as_text()
    assert set(re.findall(r"dim_labels=(\S+),", program)) == {"b01f_01io->b01f"}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_back_ends_get_the_gradient_of_images_from_xla(platform):
    x, w, *convolutions = parts("3x3")
    texts = [
        lowered(lambda x, dy, f=f: jax.vjp(lambda x: f(x, w), x)[1](dy), platform, x, jax.eval_shape(f, x, w))
        for f in convolutions
    ]
    assert texts[0].count("stablehlo.transpose") == texts[1].count("stablehlo.transpose") == 0
    assert texts[0].count("stablehlo.convolution") == texts[1].count("stablehlo.convolution") == 1


@pytest.mark.parametrize(("platform", "multiples"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_only_cpus_get_sums_of_multiples(platform, multiples):
    x, w, ours, _ = parts("depthwise")
    text = lowered(lambda x, w, dy: jax.vjp(ours, x, w)[1](dy), platform, x, w, jax.eval_shape(ours, x, w))
    assert ("stablehlo.multiply" in text) is multiples
    assert ("stablehlo.convolution" in text) is not multiples


def test_layers_that_are_grouped_or_dilated_agree_with_flax():
    import flax.linen as nn

    x = np.random.default_rng(0).standard_normal((2, 6, 6, 4)).astype(np.float32)
    for options in ({"feature_group_count": 2}, {"kernel_dilation": 2}, {"input_dilation": 2, "padding": 1}, {}):
        layers = Conv(4, (3, 3), **options), nn.Conv(4, (3, 3), **options)
        rng, like = np.random.default_rng(1), jax.eval_shape(layers[1].init, jax.random.key(0), x)
        variables = jax.tree.map(lambda leaf, rng=rng: 0.2 * rng.standard_normal(leaf.shape).astype(np.float32), like)
        slopes = both(lambda m, v: jax.grad(lambda v: jnp.sum(m.apply(v, x) ** 2))(v), *layers)(variables)
        assert_trees_close(*slopes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 8, 8, 16), (4, 4, 4, 512), (4, 2, 2, 16)])
def test_padding_is_not_fused_into_what_reads_it(shape):
    """LLVM's vector code would read what lies before the images, where there may be no memory."""

    def loss(x, w):
        return jnp.sum(jnp.square(convolve(x, w, (1, 1), "SAME")))

    x, w = jnp.ones(shape), jnp.ones((3, 3, shape[3], shape[3]))
    program = jax.jit(jax.grad(loss, (0, 1))).lower(x, w).compile().as_text()
    padding = [part for part in program.split("\n\n") if re.search(r"= \S+ pad\(", part) and "ENTRY" not in part]
    assert padding
    for part in padding:
        assert not re.search(r"= \S+ add\(", part), part
