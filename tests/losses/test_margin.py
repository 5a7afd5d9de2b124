"""Margin softmax: a float64 twin by angles, embeddings on a centre and opposite to it, and planted mistakes."""

import inspect
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses.programs import differentiated, run
from scipy.special import log_softmax

from jaxkd import losses, objectives
from jaxkd.losses import margin as module
from jaxkd.types import Outputs, Variables

RNG = np.random.default_rng(0)
X, W, Y = RNG.standard_normal((7, 4)), RNG.standard_normal((5, 4)), np.arange(7) % 5
FLOATS = X.astype(np.float32), Y, W.astype(np.float32)
OPTIONS = [
    {"scale": 16.0, "margin": 0.5, "cosine_margin": 0.0},
    {"scale": 30.0, "margin": 0.0, "cosine_margin": 0.35},
    {"scale": 8.0, "margin": 1.5, "cosine_margin": 0.1},
    {"scale": 8.0, "margin": 3.0, "cosine_margin": 0.0},  # most angles lie beyond pi - m
]
PROGRAM = jax.jit(losses.margin_softmax)  # one for all options, which are traced


def twin(x, y, w, *, scale=64.0, margin=0.5, cosine_margin=0.0):
    """By the angles themselves."""
    cosines = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T
    angles, rows = np.arccos(np.clip(cosines, -1, 1)), np.arange(len(x))
    own = angles[rows, y]
    moved = np.where(own <= np.pi - margin, np.cos(own + margin), np.cos(own) - margin * np.sin(margin))
    cosines[rows, y] = moved - cosine_margin
    return -log_softmax(scale * cosines, axis=1)[rows, y]


def outputs(kernel):
    """Of a network of one layer."""
    return Outputs(None, {"pooled": jnp.tanh(X.astype(np.float32) @ kernel)})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_equals_its_twin(options):
    with jax.enable_x64(True):
        np.testing.assert_allclose(PROGRAM(X, Y, W, **options), twin(X, Y, W, **options), rtol=1e-11)


def test_without_margins_it_is_the_cross_entropy_of_scaled_cosines():
    x, w = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (X, W))
    found = PROGRAM(*FLOATS, scale=5.0, margin=0.0, cosine_margin=0.0)
    np.testing.assert_allclose(found, run(losses.cross_entropy, 5 * x @ w.T, Y), rtol=1e-5)


@pytest.mark.parametrize("sign", [1, -1], ids=["on its centre", "opposite to it"])
def test_gradients_at_the_ends_of_the_cosine_are_finite_and_of_their_size(sign):
    x = (sign * W[Y] * RNG.uniform(0.5, 2, (7, 1))).astype(np.float32)
    own = differentiated(losses.margin_softmax, 0, 2, scale=16.0, margin=0.5)
    value, gradients = own(x, Y, W.astype(np.float32))
    np.testing.assert_allclose(value, twin(x.astype(float), Y, W, scale=16.0, margin=0.5).sum(), rtol=1e-4)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() < 2 * 7 * 16 / np.linalg.norm(W, axis=1).min()


def test_labels_that_are_none_give_nan_and_zero_rows_do_not():
    x = X.astype(np.float32)
    x[0] = 0
    found = PROGRAM(x, np.where(np.arange(7) == 3, 5, Y), W.astype(np.float32), **OPTIONS[0])
    assert np.isnan(found).tolist() == [i == 3 for i in range(7)]


def test_widths_and_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"embeddings have shape \(7, 3\) and centres \(5, 4\)"):
        losses.margin_softmax(X[:, :3], Y, W)
    with pytest.raises(ValueError, match=r"labels have shape \(3,\)"):
        losses.margin_softmax(X, Y[:3], W)
    with pytest.raises(ValueError, match="num_classes is 1: give an integer of at least 2"):
        objectives.margin_softmax(1)


MISTAKES = [
    ("sine * jnp.sin(m)", "sine * m"),
    ("cosine - m * jnp.sin(m)", "cosine"),
    ("> -jnp.cos(m)", "> jnp.cos(m)"),
    ("- c)", ")"),
    ("s * jnp.where", "jnp.where"),
    ("jnp.where(is_own", "jnp.where(~is_own"),
    ("numerics.unit(w)", "w"),
    ("numerics.unit(x), ", "x, "),
]


@pytest.mark.parametrize(("right", "wrong"), MISTAKES)
def test_planted_mistakes_are_noticed(right, wrong):
    source = textwrap.dedent(inspect.getsource(losses.margin_softmax))
    start = source.index("def ")
    assert source.count(right) == 1
    space = dict(vars(module))
    exec(
        compile("from __future__ import annotations\n" + source[start:].replace(right, wrong), "mutant", "exec"), space
    )
    found = [np.asarray(space["margin_softmax"](*map(jnp.asarray, FLOATS), **options)) for options in OPTIONS]
    assert not all(np.allclose(a, twin(X, Y, W, **o), rtol=1e-4) for a, o in zip(found, OPTIONS, strict=True))


def test_its_term_owns_centres_and_both_they_and_a_network_learn_inside_one_program():
    term = objectives.margin_softmax(5, feature="pooled", scale=8.0)
    batch, key, nothing = {"label": Y}, jax.random.key(0), Outputs(None)
    begin = {"kernel": np.eye(4, dtype=np.float32), "term": term.init(key, outputs(np.eye(4)), nothing, batch)}

    def loss(params, state):
        owned = Variables(params["centres"], state)
        return term.apply(owned, outputs(params["kernel"]), nothing, batch, key, 0)[0]

    params, state = {"kernel": begin["kernel"], "centres": begin["term"].params}, begin["term"].state
    value, gradient = jax.jit(jax.value_and_grad(loss))(params, state)
    centres = np.asarray(params["centres"]["centres"])
    np.testing.assert_allclose(value, twin(np.tanh(X), Y, centres.astype(float), scale=8.0).mean(), rtol=1e-5)
    stepped = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)
    assert centres.shape == (5, 4)
    assert min(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient)) > 1e-3
    assert loss(stepped, state) < value


def test_the_term_leaves_a_label_to_ignore_out_of_its_mean():
    features = np.random.default_rng(3).standard_normal((4, 5)).astype(np.float32)
    label = np.array([0, 1, -1, 2], np.int32)

    def mean(ignore, rows):
        term = objectives.margin_softmax(3, feature="e", ignore=ignore)
        outputs = Outputs(np.zeros((len(rows), 2), np.float32), {"e": features[rows]})
        batch = {"label": label[rows]}
        variables = term.init(jax.random.key(0), outputs, outputs, batch)
        return float(term.apply(variables, outputs, outputs, batch, jax.random.key(1), jnp.int32(0))[0])

    assert mean(-1, [0, 1, 2, 3]) == pytest.approx(mean(None, [0, 1, 3]), rel=1e-6)
