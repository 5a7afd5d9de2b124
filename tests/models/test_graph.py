"""Networks of series on graphs: their mathematics against NumPy, their features, and what they refuse."""

import jax
import numpy as np
import pytest

from jaxkd import models
from jaxkd.types import Variables

RNG = np.random.default_rng(0)
A = np.float32([[1, 0.5, 0], [0.5, 0, 0.25], [0, 0.25, 1]])
BATCH = {
    "series": RNG.standard_normal((2, 4, 3)).astype(np.float32),
    "time": RNG.standard_normal((2, 4, 2)).astype(np.float32),
}


def filled(model, batch=BATCH):
    """A network none of whose parameters is zero, with its variables and outputs."""
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    params = jax.tree.map(lambda x: RNG.standard_normal(x.shape).astype(np.float32) / 2, variables.params)
    out, _ = jax.jit(lambda v: model.apply(v, batch, None, False))(Variables(params, variables.state))
    return params, out


def test_an_adjacency_is_normalised_with_ones_on_its_diagonal():
    with_loops = np.where(np.eye(3, dtype=bool), 1, A)
    degree = np.diag(with_loops.sum(1) ** -0.5)
    np.testing.assert_allclose(models.normalise_adjacency(A), degree @ with_loops @ degree, rtol=1e-6)
    for wrong in (A[:2], -A, np.full((3, 3), np.nan)):
        with pytest.raises(ValueError, match="give a square matrix of weights that are not negative"):
            models.normalise_adjacency(wrong)


def test_the_recurrent_network_is_that_of_its_equations():
    params, out = filled(models.tgcn(2, A, hidden=5, learned=2, patch=2, mean=50.0, std=10.0))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    scores = np.exp(np.maximum(params["from"] @ params["to"].T, 0))
    sides = [np.eye(3), models.normalise_adjacency(A), scores / scores.sum(1, keepdims=True)]
    h = np.zeros((2, 3, 5))
    for first in (0, 2):
        x = np.concatenate([np.einsum("nm,bpm->bnp", s, BATCH["series"][:, first : first + 2]) for s in sides], -1)
        clock = np.repeat(BATCH["time"][:, None, first + 1], 3, axis=1)
        own = np.concatenate([x, clock], -1) @ params["input"]["kernel"] + params["input"]["bias"]
        own = own + params["sensor"].transpose(1, 0, 2)
        around = np.concatenate([np.einsum("nm,bmc->bnc", s, h) for s in sides], -1)
        around = around @ params["hidden_kernel"] + params["hidden_bias"]
        r, z = sigmoid(own[..., :5] + around[..., :5]), sigmoid(own[..., 5:10] + around[..., 5:10])
        h = (1 - z) * np.tanh(own[..., 10:] + r * around[..., 10:]) + z * h
    np.testing.assert_allclose(out.features["hidden"], h, rtol=1e-4, atol=1e-5)
    head = np.maximum(h @ params["head1"]["kernel"] + params["head1"]["bias"], 0)
    change = (head @ params["head2"]["kernel"] + params["head2"]["bias"]).swapaxes(1, 2)
    np.testing.assert_allclose(out.logits, 50 + 10 * (BATCH["series"][:, -1:] + change), rtol=1e-4)


def test_a_perceptron_sees_one_sensor_alone():
    model = models.sensor_mlp(2, hidden=(16, 3), sensors=3, embedding=2, mean=50.0, std=10.0)
    params, out = filled(model)
    assert out.logits.shape == (2, 2, 3)
    assert {name: x.shape for name, x in out.features.items()} == {
        "hidden1": (2, 3, 16),
        "hidden2": (2, 3, 3),
        "hidden": (2, 3, 3),
    }
    variables = Variables({**params, "head": jax.tree.map(np.zeros_like, params["head"])}, {})
    changed = {**BATCH, "series": BATCH["series"] + np.float32([0, 0, 1])}
    apply = jax.jit(lambda batch: model.apply(variables, batch, None, False)[0])
    before, after = map(apply, (BATCH, changed))
    np.testing.assert_allclose(before.logits[:, 0], 50 + 10 * BATCH["series"][:, -1], rtol=1e-5)
    (own, seen), place = (out.features["hidden1"] for out in (before, after)), np.arange(3) < 2
    np.testing.assert_array_equal(own[:, place], seen[:, place])
    assert not np.array_equal(own[:, ~place], seen[:, ~place])


def test_what_does_not_fit_gets_a_sentence():
    net = models.tgcn(2, A, hidden=2)
    two = {**BATCH, "series": BATCH["series"][..., :2]}
    with pytest.raises(ValueError, match="series are of 2 sensors but the network was made for 3"):
        net.init(jax.random.key(0), two)
    with pytest.raises(ValueError, match=r"time \(2, 4, 3\): give .* sine and cosine"):
        net.init(jax.random.key(0), {**BATCH, "time": np.zeros((2, 4, 3), np.float32)})
    with pytest.raises(ValueError, match="4 past steps, but 3 are read at once"):
        models.tgcn(2, A, hidden=2, patch=3).init(jax.random.key(0), BATCH)
    with pytest.raises(ValueError, match="hidden is 0: give an integer of at least 1"):
        models.tgcn(2, A, hidden=0)
    with pytest.raises(ValueError, match="has no hidden layer"):
        models.sensor_mlp(2, hidden=())
