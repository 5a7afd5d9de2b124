"""Hyper-parameters: which become traced numbers, which schedules, which stay static."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import objectives


def rows(student, teacher, *, scale=1.0, power=2):
    """Sum over classes of scale |s - t|^power: [B]."""
    return scale * jnp.sum(jnp.abs(student - teacher) ** power, axis=-1)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (2.5, 2.5),
        (3, 3.0),  # the loss's own default is a float
        (np.float32(2.5), 2.5),
        (np.asarray([1.0, 2.0]), [1.0, 2.0]),
        (jnp.asarray(2.5), 2.5),
        (np.float64(0.1), np.float32(0.1)),
    ],
    ids=["float", "int", "float32", "array", "jax", "float64"],
)
def test_numbers_are_held_as_float32_arrays(given, expected):
    held = objectives.hold({"scale": given}, rows)
    assert set(held.arrays) == {"scale"}
    assert type(held.arrays["scale"]) is np.ndarray
    assert held.arrays["scale"].dtype == np.float32
    np.testing.assert_array_equal(held.arrays["scale"], expected)
    # What the state holds, not what was given, reaches the loss.
    assert held.resolve({"scale": 9.0}, 0) == {"scale": 9.0}


@pytest.mark.parametrize("given", [True, "mean", None, (4, 2, 1), np.asarray([1, 2]), jnp.asarray(3)], ids=str)
def test_options_stay_static(given):
    held = objectives.hold({"option": given})
    assert held.arrays == {}
    assert held.resolve({}, 0)["option"] is given


def test_integers_stay_static_unless_the_default_is_a_float():
    held = objectives.hold({"scale": 3, "power": 3}, rows)
    assert set(held.arrays) == {"scale"}
    assert held.resolve({"scale": 1.0}, 0) == {"scale": 1.0, "power": 3}
    assert type(held.resolve({"scale": 1.0}, 0)["power"]) is int
    assert objectives.hold({"scale": 3}).arrays == {}
    assert objectives.hold({"scale": True}, rows).arrays == {}


def test_schedules_are_resolved_at_the_step():
    held = objectives.hold({"scale": lambda step: 2.0 * step, "power": 3}, rows)
    assert held.arrays == {}
    assert [held.resolve({}, step)["scale"] for step in (0, 5)] == [0.0, 10.0]
