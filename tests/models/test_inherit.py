"""What a network inherits from another one, and what begins anew."""

import jax
import numpy as np
import pytest
from helpers import Small, assert_trees_equal, make_batch

from jaxkd import models


@pytest.fixture(scope="module")
def sides():
    """Variables of a network, its own and those of another one that was trained."""
    start = jax.jit(models.from_linen(Small(4)).init)
    return [start(jax.random.key(seed), make_batch()) for seed in (0, 1)]


def test_all_but_the_fresh_layers_are_the_trained_ones(sides):
    own, trained = sides
    other_classes = trained._replace(params={**trained.params, "head": {"kernel": np.zeros((4, 9))}})
    found = models.inherit(own, other_classes)
    assert_trees_equal(found.params["head"], own.params["head"])
    for name in ("conv", "norm"):
        assert_trees_equal(found.params[name], trained.params[name])
    assert_trees_equal(found.state, trained.state)
    found = models.inherit(own, trained, fresh="norm")
    assert_trees_equal(found.params["norm"], own.params["norm"])
    assert_trees_equal(found.state, own.state)
    assert_trees_equal(found.params["head"], trained.params["head"])


def test_networks_that_differ_elsewhere_are_refused(sides):
    own, trained = sides
    wider = jax.eval_shape(models.from_linen(Small(8)).init, jax.random.key(0), make_batch())
    with pytest.raises(ValueError, match=r"params/conv/kernel has shape \(3, 3, 1, 4\) but .* \(3, 3, 1, 8\)"):
        models.inherit(own, wider)
    less = trained._replace(params={name: p for name, p in trained.params.items() if name != "conv"})
    with pytest.raises(ValueError, match=r"params/conv/kernel .* does not exist"):
        models.inherit(own, less)
    with pytest.raises(ValueError, match="no path has 'classifier'"):
        models.inherit(own, trained, fresh="classifier")
