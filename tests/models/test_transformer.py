"""Transformers: sizes counted from the architecture, named features, what a token may see, and a NumPy twin."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.types import Variables

B, L, V, D, A = 3, 6, 11, 8, 2
RNG = np.random.default_rng(0)
BATCH = {"tokens": RNG.integers(0, V, (B, L)).astype(np.int32), "token_mask": np.arange(L) < np.array([[6], [4], [1]])}
SIZES = {"layers": 2, "width": D, "heads": A, "max_length": 7}


def bert(**more):
    return models.bert(5, **{"vocabulary": V, "dropout": 0.0, **SIZES, **more})


def variables_of(model, batch=BATCH):
    """Not the small initial values, with which attention would be nearly uniform."""
    drawn = jax.jit(model.init)(jax.random.key(0), batch)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: (x + 0.5 * rng.standard_normal(x.shape)).astype(np.float32), drawn.params)
    return Variables(params, {})


def test_bert_base_has_the_size_of_the_paper_s():
    model = models.bert(2)
    shapes = {"tokens": jax.ShapeDtypeStruct((1, 128), jnp.int32), "token_mask": jax.ShapeDtypeStruct((1, 128), bool)}
    variables = jax.eval_shape(model.init, jax.random.key(0), shapes)
    head = 768 * 2 + 2
    assert models.count_parameters(variables) == 109_482_240 + head
    block = sum(x.size for x in jax.tree.leaves(variables.params["encoder"]["block0"]))
    assert block == 12 * 768**2 + 13 * 768


@pytest.mark.parametrize(("model", "logits"), [(bert(), (B, 5)), (models.language_model(V, **SIZES), (B, L, V))])
def test_features_have_their_documented_names_and_shapes(model, logits):
    out, state = jax.eval_shape(
        lambda v: model.apply(v, BATCH, None, False), jax.eval_shape(model.init, jax.random.key(0), BATCH)
    )
    assert (out.logits.shape, state) == (logits, {})
    layers = {"block": (B, L, D), "attention": (B, A, L, L), "qkv": (B, 3, L, D)}
    wanted = {f"{name}{i}": shape for name, shape in layers.items() for i in range(2)}
    wanted |= {"embedding": (B, L, D), "tokens": (B, L, D)} | ({"pooled": (B, D)} if len(logits) == 2 else {})
    assert {name: f.shape for name, f in out.features.items()} == wanted


@functools.partial(jax.jit, static_argnames=("model", "train"))
def outputs(variables, batch, key=None, *, model, train=False):
    return model.apply(variables, batch, key, train)[0]


def norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]


def dense(p, x):
    return np.matmul(x, p["kernel"]) + p["bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attend(p, x, allowed):
    q, k, v = (dense(p[name], x).reshape(B, L, A, D // A).transpose(0, 2, 1, 3) for name in ("query", "key", "value"))
    scores = np.where(allowed, q @ k.transpose(0, 1, 3, 2) / math.sqrt(D // A), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return dense(p["out"], (weights @ v).transpose(0, 2, 1, 3).reshape(B, L, D))


def twin(params, *, norm_first, causal):
    """The last hidden states in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["encoder"])
    x = p["token"]["embedding"][BATCH["tokens"]] + p["position"]["embedding"][None, :L]
    allowed = np.broadcast_to(BATCH["token_mask"][:, None, None, :], (B, 1, L, L))
    if causal:
        allowed = allowed & np.tril(np.ones((L, L), bool))
    if not norm_first:
        x = norm(p["norm"], x + p["segment"]["embedding"][0])
    for block in (p["block0"], p["block1"]):
        if norm_first:
            x = x + attend(block["attention"], norm(block["norm1"], x), allowed)
            x = x + dense(block["mlp2"], gelu(dense(block["mlp1"], norm(block["norm2"], x))))
        else:
            x = norm(block["norm1"], x + attend(block["attention"], x, allowed))
            x = norm(block["norm2"], x + dense(block["mlp2"], gelu(dense(block["mlp1"], x))))
    return norm(p["norm"], x) if norm_first else x


def test_bert_equals_its_twin():
    model = bert()
    params = variables_of(model).params
    layers = jax.tree.map(np.asarray, params)
    x = twin(params, norm_first=False, causal=False)
    pooled = np.tanh(dense(layers["pooler"], x[:, 0]))
    out = outputs(Variables(params, {}), BATCH, model=model)
    np.testing.assert_allclose(out.features["tokens"], x, atol=2e-5)
    np.testing.assert_allclose(out.logits, dense(layers["head"], pooled), atol=5e-5)


def test_language_model_equals_its_twin():
    model = models.language_model(V, **SIZES)
    params = variables_of(model).params
    x = twin(params, norm_first=True, causal=True)
    out = outputs(Variables(params, {}), BATCH, model=model)
    np.testing.assert_allclose(out.features["tokens"], x, atol=2e-5)
    np.testing.assert_allclose(out.logits, x @ np.asarray(params["head"]["kernel"]), atol=1e-4)


def test_padding_is_not_seen_and_a_row_of_padding_stays_finite():
    model = bert()
    variables = variables_of(model)
    other = np.where(BATCH["token_mask"], BATCH["tokens"], (BATCH["tokens"] + 1) % V)
    nothing = BATCH["token_mask"] & np.array([[True], [True], [False]])
    one, two, three = (
        outputs(variables, {"tokens": t, "token_mask": m}, model=model).logits
        for t, m in ((BATCH["tokens"], BATCH["token_mask"]), (other, BATCH["token_mask"]), (other, nothing))
    )
    np.testing.assert_array_equal(one, two)
    assert np.all(np.isfinite(three))


def test_a_causal_model_does_not_look_ahead():
    batch = {**BATCH, "token_mask": np.ones((B, L), bool)}
    later = {**batch, "tokens": np.where(np.arange(L) > 2, (batch["tokens"] + 1) % V, batch["tokens"])}
    changed = {}
    for causal in (True, False):
        model = models.language_model(V, causal=causal, **SIZES)
        variables = variables_of(model)
        one, two = (outputs(variables, b, model=model).logits[:, :3] for b in (batch, later))
        changed[causal] = float(jnp.max(jnp.abs(one - two)))
    assert changed[True] == 0
    assert changed[False] > 1e-2


def test_segments_are_read_where_they_are_named():
    batch = {**BATCH, "kind": (np.arange(L) > 2).astype(np.int32) * np.ones((B, 1), np.int32)}
    named, plain = bert(segments="kind"), bert()
    variables = variables_of(plain)
    zeros = {**batch, "kind": np.zeros((B, L), np.int32)}
    found = [outputs(variables, b, model=m).logits for m, b in ((plain, batch), (named, zeros), (named, batch))]
    np.testing.assert_array_equal(found[0], found[1])
    assert np.max(np.abs(found[0] - found[2])) > 1e-2


def test_rematerialised_gradients_are_the_same_and_dropout_draws():
    params = variables_of(bert()).params

    def gradient(model):
        return jax.jit(jax.grad(lambda p: model.apply(Variables(p, {}), BATCH, None, False)[0].logits[0, 0]))(params)

    plain, again = (gradient(bert(remat=remat)) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, again)
    noisy = bert(dropout=0.5)
    one, two = (
        outputs(Variables(params, {}), BATCH, jax.random.key(k), model=noisy, train=True).logits for k in (0, 1)
    )
    assert np.max(np.abs(one - two)) > 1e-2


def test_what_does_not_fit_gets_a_sentence():
    with pytest.raises(ValueError, match="3 heads do not divide the width 8: choose a multiple of 3"):
        bert(heads=3)
    with pytest.raises(ValueError, match="the tokens have length 6 but max_length is 5"):
        jax.eval_shape(bert(max_length=5).init, jax.random.key(0), BATCH)
