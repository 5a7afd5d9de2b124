"""Recommenders against NumPy: scores, features, first biases, strangers, and what is refused."""

import jax
import numpy as np
import pytest

from jaxkd import models
from jaxkd.types import Variables

U, ITEMS, D, G = 5, 7, 3, 2
RNG = np.random.default_rng(0)
SEEN = (RNG.random((3, ITEMS)) < 0.5).astype(np.uint8)
SEEN[2] = 0
BATCH = {"user": np.array([4, 0, 2], np.int32), "seen": SEEN, "item": np.array([6, 1, 1], np.int32)}
POPULARITY = np.arange(ITEMS)
FEATURES = RNG.standard_normal((ITEMS, G)).astype("f")
NETWORKS = {
    "mf": models.matrix_factorisation(U, ITEMS, width=D, popularity=POPULARITY),
    "towers": models.two_towers(ITEMS, width=D, dropout=0.5, item_features=FEATURES),
}


def started(name):
    variables = models.init(NETWORKS[name], jax.random.key(0), BATCH)
    rng = np.random.default_rng(1)
    return Variables({n: x + rng.standard_normal(x.shape).astype("f") for n, x in sorted(variables.params.items())}, {})


def outputs(name, variables, batch, key=None, train=False):
    return jax.jit(NETWORKS[name].apply, static_argnums=3)(variables, batch, key, train)[0]


def test_matrix_factorisation_equals_its_formula_and_begins_at_the_popularity():
    first = models.init(NETWORKS["mf"], jax.random.key(0), BATCH).params
    logs = np.log1p(POPULARITY)
    np.testing.assert_allclose(first["bias"], logs - logs.mean(), rtol=1e-5)
    assert models.count_parameters(Variables(first, {})) == U * D + ITEMS * D + ITEMS
    variables = started("mf")
    p, out = jax.tree.map(np.asarray, variables.params), outputs("mf", variables, BATCH)
    np.testing.assert_allclose(out.logits, p["user"][[4, 0, 2]] @ p["item"].T + p["bias"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out.features["user"], p["user"][[4, 0, 2]])
    np.testing.assert_array_equal(out.features["item"], p["item"][[6, 1, 1]])
    assert set(outputs("mf", variables, {"user": BATCH["user"]}).features) == {"user"}
    assert np.isnan(outputs("mf", variables, {"user": np.array([0, U, -1])}).logits).all(axis=1).tolist() == [0, 1, 1]


def test_two_towers_equal_their_formula_and_dropout_is_there_in_training_alone():
    variables = started("towers")
    p, out = jax.tree.map(np.asarray, variables.params), outputs("towers", variables, BATCH)
    x = SEEN / np.sqrt(np.maximum(SEEN.sum(axis=1, keepdims=True), 1))
    item = p["item"] + FEATURES @ p["features"]
    user = np.tanh(x @ p["seen"])
    np.testing.assert_allclose(out.features["user"], user, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out.features["item"], item[[6, 1, 1]], rtol=1e-5)
    np.testing.assert_allclose(out.logits, user @ item.T + p["bias"], rtol=1e-5, atol=1e-5)
    noisy = [outputs("towers", variables, BATCH, jax.random.key(k), True).logits for k in (0, 0, 2)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert np.any(noisy[0] != noisy[2])
    np.testing.assert_array_equal(outputs("towers", variables, BATCH, jax.random.key(0), False).logits, out.logits)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="width is 0"):
        models.matrix_factorisation(U, ITEMS, width=0)
    with pytest.raises(ValueError, match=r"popularity has shape \(3,\) but there are 7 items"):
        models.two_towers(ITEMS, width=D, popularity=np.ones(3))
    with pytest.raises(ValueError, match=r"item features have shape \(2, 2\)"):
        models.two_towers(ITEMS, width=D, item_features=np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"dropout is 1\.0"):
        models.two_towers(ITEMS, width=D, dropout=1.0)
    with pytest.raises(ValueError, match="reads the batch's field 'user'"):
        models.init(NETWORKS["mf"], jax.random.key(0), {"seen": SEEN})
