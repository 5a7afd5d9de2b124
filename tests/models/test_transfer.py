"""What a network inherits from another one, and what begins anew."""

import jax
import numpy as np
import pytest
from helpers import Small, assert_trees_equal, make_batch

from jaxkd import models

MODEL = models.from_linen(Small(4))
OWN, TRAINED = (jax.jit(MODEL.init)(jax.random.key(seed), make_batch()) for seed in (0, 1))


def test_all_but_the_fresh_layers_are_the_trained_ones():
    other_classes = TRAINED._replace(params={**TRAINED.params, "head": {"kernel": np.zeros((4, 9))}})
    found = models.inherit(OWN, other_classes)
    assert_trees_equal(found.params["head"], OWN.params["head"])
    for name in ("conv", "norm"):
        assert_trees_equal(found.params[name], TRAINED.params[name])
    assert_trees_equal(found.state, TRAINED.state)
    found = models.inherit(OWN, TRAINED, fresh="norm")
    assert_trees_equal(found.params["norm"], OWN.params["norm"])
    assert_trees_equal(found.state, OWN.state)
    assert_trees_equal(found.params["head"], TRAINED.params["head"])


def test_networks_that_differ_elsewhere_are_refused():
    wider = jax.eval_shape(models.from_linen(Small(8)).init, jax.random.key(0), make_batch())
    with pytest.raises(ValueError, match=r"params/conv/kernel has shape \(3, 3, 1, 4\) but .* \(3, 3, 1, 8\)"):
        models.inherit(OWN, wider)
    less = TRAINED._replace(params={name: p for name, p in TRAINED.params.items() if name != "conv"})
    with pytest.raises(ValueError, match=r"params/conv/kernel .* does not exist"):
        models.inherit(OWN, less)
    with pytest.raises(ValueError, match="no path has 'classifier'"):
        models.inherit(OWN, TRAINED, fresh="classifier")
