"""Bottleneck adapters: the model's outputs at first, an MLP behind a module, and nothing else trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_equal

from jaxkd import models
from jaxkd.types import Variables

KEY = jax.random.key(0)
BATCH = {"image": np.random.default_rng(0).random((4, 3, 3, 1)).astype(np.float32)}
MODEL = models.mlp(3, hidden=(5, 4))


@pytest.fixture(scope="module")
def base():
    return models.init(MODEL, KEY, BATCH)


def test_first_outputs_are_the_model_s_and_later_ones_those_of_an_mlp_behind_a_module(base):
    model = models.with_bottlenecks(MODEL, "dense1$", 2, trained="^head/")
    start = models.add_bottlenecks(KEY, MODEL, base, BATCH, "dense1$", 2, trained="^head/")
    wanted = MODEL.apply(base, BATCH, None, False)[0]
    assert_trees_equal(model.apply(start, BATCH, None, False)[0], wanted)
    assert jax.tree.map(jnp.shape, start.params) == {
        "head": {"kernel": (4, 3), "bias": (3,)},
        "bottlenecks": {"dense1": {"down": {"kernel": (5, 2), "bias": (2,)}, "up": {"kernel": (2, 5), "bias": (5,)}}},
    }
    assert set(start.state["frozen"]) == {"dense1", "dense2"}
    leaves, tree = jax.tree.flatten(start.params)
    other = Variables(jax.tree.unflatten(tree, [x + 0.3 for x in leaves]), start.state)
    out, state = model.apply(other, BATCH, KEY, True)
    own, adapters = (jax.tree.map(np.asarray, x) for x in (base.params, other.params["bottlenecks"]))
    y = BATCH["image"].reshape(4, -1) @ own["dense1"]["kernel"] + own["dense1"]["bias"]
    down, up = (adapters["dense1"][name] for name in ("down", "up"))
    y = y + np.maximum(y @ down["kernel"] + down["bias"], 0) @ up["kernel"] + up["bias"]
    np.testing.assert_allclose(out.features["hidden1"], np.maximum(y, 0), rtol=1e-5, atol=1e-6)
    assert_trees_equal(state, start.state)


def test_what_cannot_be_adapted_gets_a_sentence(base):
    for options, said in (
        ({"rules": "nowhere"}, r"`rules` has the pattern 'nowhere', which no module has: they are .*dense1"),
        ({"rules": ()}, "there is no rule"),
        ({"trained": "nowhere"}, "`trained` has the pattern 'nowhere'"),
        ({"width": 0}, "width is 0: give an integer"),
    ):
        with pytest.raises(ValueError, match=said):
            models.add_bottlenecks(KEY, MODEL, base, BATCH, **{"rules": "dense1", "width": 2, **options})
    with pytest.raises(ValueError, match="the variables have no bottleneck adapters"):
        models.with_bottlenecks(MODEL, "dense1", 2).apply(base, BATCH, None, False)
