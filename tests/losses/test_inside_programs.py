"""A loss on a network's outputs inside one program has the value and the gradient that it has on them as arrays.

XLA may compute an output twice in one program, rounded in two ways: then the difference of an example and itself is
not 0 but a rounding error, of which nothing may come.
"""

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses

PIXELS = 9  # 1 / 9 is not exact, so that a processor may fuse the mean with what follows and round it otherwise
B, D = 6, 5
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}  # as users have it
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones have no such option
    OPTIMISED["xla_cpu_use_fusion_emitters"] = True


def network(pixels):
    """The last mean of a network: [B, PIXELS, D] -> [B, D]."""
    return jnp.mean(pixels, axis=1)


@pytest.mark.parametrize("equal_rows", [False, True], ids=["different rows", "two equal rows"])
@pytest.mark.parametrize("loss", [losses.rkd, losses.rkd_angle, losses.rkd_distance, losses.dark_rank_soft])
def test_losses_of_pairs_take_an_example_and_itself_for_equal(loss, equal_rows):
    pixels, teacher = np.random.default_rng(0).standard_normal((2, B, PIXELS, D)).astype(np.float32)
    if equal_rows:
        pixels[3] = pixels[1]
    program = jax.value_and_grad(lambda pixels: loss(network(pixels), network(teacher)))
    inside = jax.jit(program, compiler_options=OPTIMISED)(pixels)
    embeddings = [np.asarray(jax.jit(network)(side)) for side in (pixels, teacher)]
    value, gradient = jax.jit(jax.value_and_grad(loss))(*embeddings)
    np.testing.assert_allclose(inside[0], value, rtol=1e-5)
    expected = np.repeat(np.asarray(gradient)[:, None], PIXELS, axis=1) / PIXELS
    np.testing.assert_allclose(inside[1], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("loss", [losses.rkd_angle, losses.rkd_distance])
def test_a_row_that_is_not_finite_is_seen_in_the_loss(loss, bad):
    student, teacher = np.random.default_rng(0).standard_normal((2, B, D)).astype(np.float32)
    student[2, 1] = bad
    assert not np.isfinite(jax.jit(loss)(student, teacher))
