"""Feature losses against their authors' numbers and the relations they must obey."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_hint_equals_the_authors(case):
    with np.load(GOLDEN / "fitnet_hint.npz") as file:
        stored = {k.split("/")[1]: file[k] for k in file.files if k.startswith(case)}
    with jax.enable_x64(True):
        value, grad = jax.value_and_grad(lambda s: jnp.mean(losses.hint(s, jnp.asarray(stored["teacher_feature"]))))(
            jnp.asarray(stored["student_feature"])
        )
        np.testing.assert_allclose(value, stored["value"], rtol=1e-9)
        scale = np.abs(stored["grad_student_feature"]).max()
        np.testing.assert_allclose(grad, stored["grad_student_feature"], rtol=0, atol=1e-8 * scale)


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
