"""Starts computed operation by operation: the bits of a compiled program, buffers of their own, nothing in vain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_equal, make_batch

from jaxkd import models
from jaxkd.kernels.eager import op_by_op


def network():
    return models.resnet(5, depth=8)


def initialised(key, batch):
    return network().init(key, batch)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_start_has_the_bits_of_a_compiled_one(stacked):
    function = jax.vmap(initialised, in_axes=(0, None)) if stacked else initialised
    key = jax.random.split(jax.random.key(1), 2) if stacked else jax.random.key(1)
    one, compiled = op_by_op(function, key, make_batch()), jax.jit(function)(key, make_batch())
    assert jax.tree.structure(one) == jax.tree.structure(compiled)
    assert_trees_equal(one, compiled)
    assert [x.dtype for x in jax.tree.leaves(one)] == [x.dtype for x in jax.tree.leaves(compiled)]


def test_what_one_network_compiled_the_next_one_finds():
    op_by_op(initialised, jax.random.key(0), make_batch())
    compiled = []

    def listen(name, seconds, **_):
        if name.endswith("backend_compile_duration"):
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        op_by_op(lambda key, batch: network().init(key, batch), jax.random.key(2), make_batch())
        assert not compiled
        jax.jit(lambda key, batch: network().init(key, batch))(jax.random.key(2), make_batch())
        assert compiled, "the listener hears"
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_results_may_be_donated():
    """An input that comes out again, a result given twice, and numpy arrays each become a buffer of their own."""
    x, key, row = jnp.arange(3.0), jax.random.key(3), np.arange(2, dtype=np.int32)

    def function(x, key, row):
        doubled = 2 * x
        return {"x": x, "key": key, "row": row, "twice": (doubled, doubled)}

    found = op_by_op(function, x, key, row)
    assert found["row"].dtype == np.int32
    for leaf in jax.tree.leaves(found):
        leaf.delete()
    np.testing.assert_array_equal(x, np.arange(3.0))
    jax.random.key_data(key)
    again = op_by_op(function, x, key, row)
    again["twice"][0].delete()
    np.testing.assert_array_equal(again["twice"][1], 2 * np.arange(3.0))


def test_what_the_result_does_not_need_is_not_computed():
    """Such as the activations of a network, of which an initialisation needs the shapes alone."""
    too_large = (1 << 20, 1 << 20, 1 << 8)

    def function(x):
        return x + jnp.ones(too_large).shape[0]

    assert float(op_by_op(function, jnp.float32(1))) == (1 << 20) + 1
