"""The plain switch: inside it nothing depends on the platform, and outside nothing changes."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import kernels, losses, models
from jaxkd.kernels.convolution import convolve
from jaxkd.kernels.switch import is_plain

IMAGES = {"image": jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)}


def branches(function, *arguments):
    """Number of places where the program, traced now, depends on the platform."""
    return str(jax.make_jaxpr(function)(*arguments)).count("platform_index")


def check(program, *arguments):
    assert branches(program, *arguments) > 0
    with kernels.plain():
        assert branches(program, *arguments) == 0


def test_a_resnets_gradient_has_no_branch_for_a_platform_inside():
    model = models.resnet(10, depth=8)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    check(jax.grad(lambda v, b: jnp.sum(model.apply(v, b, None, False)[0].logits)), variables, IMAGES)


def test_a_mobilenet_has_none():
    """Its initialisation passes the images through every layer."""
    check(models.mobilenet_v2(10, widen=0.5, small_images=True).init, jax.random.key(0), IMAGES)


def test_a_large_vocabulary_has_none_either_and_the_same_gradient():
    rng = np.random.default_rng(0)
    hidden, kernel = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((6, 4), (4, 30)))

    @jax.jit
    def gradient(kernel):
        return jax.grad(lambda k: losses.chunked_kl(hidden, hidden, k, kernel[:, ::-1], chunk=3))(kernel)

    assert branches(gradient, kernel) > 0
    usual = gradient(kernel)
    with kernels.plain():
        assert branches(gradient, kernel) == 0
        np.testing.assert_allclose(gradient(kernel), usual, rtol=1e-5, atol=1e-6)


def test_the_switch_is_a_part_of_the_key_of_compiled_functions():
    @jax.jit
    def convolved(x, w):
        return convolve(x, w, (1, 1), "SAME", feature_group_count=4)

    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 5, 5, 4), (3, 3, 1, 4)))
    usual = convolved(x, w)
    with kernels.plain():
        np.testing.assert_allclose(convolved(x, w), usual, rtol=1e-4, atol=1e-5)
        assert "convolution" in convolved.lower(x, w).as_text()
    assert "convolution" not in convolved.lower(x, w).as_text()  # depthwise, a sum of shifted images
    assert convolved._cache_size() == 2


def test_the_switch_holds_for_the_thread_that_enters_it_and_ends_with_an_error():
    seen = []

    def enter():
        with kernels.plain():
            thread = threading.Thread(target=lambda: seen.append(is_plain()))
            thread.start()
            thread.join()
            seen.append(is_plain())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        enter()
    assert seen == [False, True]
    assert not is_plain()
