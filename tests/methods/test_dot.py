"""DOT against its formula written out, against SGD, and in a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd.methods.dot import dot
from jaxkd.train.by_term import TermError

RANDOM = np.random.default_rng(0)
PARAMS = {"student": {"w": RANDOM.standard_normal((2, 3))}, "term": {"p": RANDOM.standard_normal(2)}}
GRADIENTS = [
    {name: jax.tree.map(lambda x: RANDOM.standard_normal(x.shape), PARAMS) for name in ("kd", "hint", "label")}
    for _ in range(4)
]


def steps(optimizer):
    """Params after four updates, in float64."""
    with jax.enable_x64(True):
        params, state = PARAMS, optimizer.init(PARAMS)
        for each in GRADIENTS:
            whole = jax.tree.map(lambda *g: sum(g), *each.values())
            extra = {"grad": whole, "term_gradients": lambda each=each: each}
            updates, state = optimizer.update(whole, state, params, **extra)
            params = optax.apply_updates(params, updates)
        return jax.device_get(params)


def written_out(task, delta, decay=0.0):
    """theta <- theta - gamma (v_task + v_kd), as in the paper; the decay belongs to the task."""
    params, v_task, v_kd = PARAMS, *(jax.tree.map(np.zeros_like, PARAMS) for _ in range(2))
    for each in GRADIENTS:
        sums = [
            jax.tree.map(lambda *g: sum(g), *(g for name, g in each.items() if (name in task) is of_task))
            for of_task in (True, False)
        ]
        v_task = jax.tree.map(lambda v, g, p: (0.9 - delta) * v + g + decay * p, v_task, sums[0], params)
        v_kd = jax.tree.map(lambda v, g: (0.9 + delta) * v + g, v_kd, sums[1])
        params = jax.tree.map(lambda p, a, b: p - 0.1 * (a + b), params, v_task, v_kd)
    return params


def assert_same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("task", [("label",), ("label", "hint")])
def test_dot_is_its_formula(task):
    assert_same(steps(dot(0.1, delta=0.075, task=task)), written_out(task, 0.075))


def test_without_delta_it_is_sgd_with_momentum():
    assert_same(steps(dot(0.1, delta=0.0)), steps(optax.sgd(0.1, momentum=0.9)))


def test_weight_decay_is_the_tasks():
    expected = written_out(("label",), 0.05, decay=0.3)
    assert_same(steps(dot(0.1, delta=0.05, weight_decay=0.3)), expected)
    assert_same(steps(optax.chain(optax.add_decayed_weights(0.3), dot(0.1, delta=0.05))), expected)


def test_what_dot_cannot_use_is_said():
    for options in ({"delta": -0.1}, {"delta": 0.2}, {"momentum": 0.05, "delta": 0.06}, {"delta": float("nan")}):
        with pytest.raises(
            ValueError, match=r"give a momentum and a delta of at least 0 with both of them in \[0, 1\)"
        ):
            dot(0.1, **options)
    with pytest.raises(ValueError, match="no term of the task is named"):
        dot(0.1, task=())
    with pytest.raises(TermError, match="no term 'labels' for the task: it has kd, hint, label; name one as task="):
        steps(dot(0.1, task="labels"))
    dot(jnp.float32(0.1), momentum=jnp.float32(0.9), delta=jnp.float32(0.1))  # as traced in a sweep
