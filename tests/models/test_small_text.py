"""Small students of texts: PyTorch's GRU, NumPy twins, and padding that is not there for any of them."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.models.text.bag import hashed_bigrams
from jaxkd.models.text.gru import GRU
from jaxkd.types import Variables

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
B, L, V, D, K = 4, 6, 11, 4, 3
LENGTHS = (6, 3, 1, 0)
TOKENS = np.random.default_rng(0).integers(1, V, (B, L)).astype(np.int32)
MASK = np.arange(L)[None] < np.array(LENGTHS)[:, None]
BATCH = {"tokens": TOKENS * MASK, "token_mask": MASK}
SIZES = {"vocabulary": V, "width": D}
NETWORKS = {
    "bag": (models.bag_of_embeddings(K, **SIZES), D, (B, K)),
    "bigrams": (models.bag_of_embeddings(K, **SIZES, bigrams=7, hidden=5), D, (B, K)),
    "cnn": (models.text_cnn(K, **SIZES, kernels=(2, 3), filters=5), 10, (B, K)),
    "cnn per token": (models.text_cnn(K, **SIZES, kernels=(2, 3), filters=5, per_token=True), 10, (B, L, K)),
    "bigru": (models.bigru(K, **SIZES, hidden=5), 10, (B, K)),
    "bigru per token": (models.bigru(K, **SIZES, hidden=5, per_token=True), 10, (B, L, K)),
}


@functools.cache
def variables_of(name):
    drawn = models.init(NETWORKS[name][0], jax.random.key(0), BATCH)
    rng = np.random.default_rng(1)  # biases that are not 0
    return Variables(jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape).astype("f"), drawn.params), {})


@functools.cache
def loss_and_outputs(name):
    """A program of value and gradient that every test of the network shares."""
    model = NETWORKS[name][0]

    def loss(variables, batch):
        out, _ = model.apply(variables, batch, None, False)
        counts = batch["token_mask"].reshape((*out.logits.shape[:-1], 1)) if out.logits.ndim == 3 else 1
        return jnp.sum(jnp.square(out.logits) * counts), out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_changes_nothing_and_empty_texts_are_finite(name):
    variables, run = variables_of(name), loss_and_outputs(name)
    _, width, shape = NETWORKS[name]
    (loss, out), gradient = run(variables, BATCH)
    pooled = 5 if name == "bigrams" else width
    assert {n: f.shape for n, f in out.features.items()} == {
        "embedding": (B, L, D),
        "tokens": (B, L, width),
        "pooled": (B, pooled),
    }
    assert out.logits.shape == shape
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((out, gradient)))
    other = np.where(MASK, TOKENS, np.random.default_rng(3).integers(0, V, (B, L)))  # other padding
    (same, again), gradient_again = run(variables, {"tokens": other.astype(np.int32), "token_mask": MASK})
    for a, b in zip(jax.tree.leaves((loss, gradient)), jax.tree.leaves((same, gradient_again)), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(out.logits, again.logits)
    np.testing.assert_array_equal(out.features["tokens"][~MASK], 0)


def test_bag_is_the_mean_of_tokens_and_bigrams():
    params = jax.tree.map(np.asarray, variables_of("bigrams").params)
    out = loss_and_outputs("bigrams")(variables_of("bigrams"), BATCH)[0][1]
    pairs = np.asarray(hashed_bigrams(BATCH["tokens"], 7))
    for row, length in enumerate(LENGTHS):
        found = [params["token"]["embedding"][t] for t in TOKENS[row, :length]]
        found += [params["bigram"]["embedding"][h] for h in pairs[row, : max(length - 1, 0)]]
        mean = np.sum(found, axis=0) / max(len(found), 1) * np.ones(D)
        hidden = np.maximum(mean @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
        np.testing.assert_allclose(
            out.logits[row], hidden @ params["head"]["kernel"] + params["head"]["bias"], atol=1e-5
        )


def test_bigrams_spread_over_their_rows_and_tell_the_order():
    tokens = np.stack(np.meshgrid(np.arange(60), np.arange(60)), axis=-1).reshape(-1, 2).astype(np.int32)
    rows = np.asarray(hashed_bigrams(tokens, 50))[:, 0]
    counts = np.bincount(rows, minlength=50)
    assert counts.min() > 36  # 72 each, if they fell by chance
    assert counts.max() < 120
    assert np.mean(rows == np.asarray(hashed_bigrams(tokens[:, ::-1], 50))[:, 0]) < 0.1
    np.testing.assert_array_equal(hashed_bigrams(np.array([[101, 2023, 30521]], np.int32), 1 << 16), [[32651, 41910]])


def test_cnn_takes_the_maximum_over_windows_in_the_text():
    params = jax.tree.map(np.asarray, variables_of("cnn").params)
    out = loss_and_outputs("cnn")(variables_of("cnn"), BATCH)[0][1]
    for row, length in enumerate(LENGTHS):
        x = np.zeros((length + 3, D), np.float32)
        x[1 : length + 1] = params["token"]["embedding"][TOKENS[row, :length]]
        pooled = []
        for k, before in ((2, 0), (3, 1)):
            kernel, bias = params[f"conv{k}"]["kernel"], params[f"conv{k}"]["bias"]
            maps = [x[1 + i - before : 1 + i - before + k].reshape(-1) @ kernel + bias for i in range(length)]
            pooled.append(np.max([np.zeros_like(bias), *maps], axis=0))
        np.testing.assert_allclose(out.features["pooled"][row], np.concatenate(pooled), atol=1e-5)


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_gru_equals_pytorch_s_on_packed_sequences(way):
    kept = np.load(GOLDEN / "gru.npz")  # torch.nn.GRU in float64, bidirectional, on sequences of lengths 5, 3 and 1
    suffix, number = ("_reverse", 1) if way == "backward" else ("", 0)
    hidden = kept["last"].shape[-1]
    w, u, b, c = (kept[f"{kind}_l0{suffix}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    params = {"input": {"kernel": w.T, "bias": b}, "hidden_kernel": u.T, "hidden_bias": c}
    x, mask = kept["x"], np.arange(kept["x"].shape[1])[None] < kept["lengths"][:, None]
    with jax.enable_x64(True):

        def run(params):
            states, last = GRU(hidden, way == "backward").apply({"params": params}, x, mask)
            return jnp.sum(jnp.square(states)), (states, last)

        gradient, (states, last) = jax.jit(jax.grad(run, has_aux=True))(params)
    np.testing.assert_allclose(states, kept["states"][..., number * hidden :][..., :hidden], atol=1e-12)
    np.testing.assert_allclose(last, kept["last"][number], atol=1e-12)
    np.testing.assert_allclose(gradient["hidden_kernel"], kept[f"grad_weight_hh_l0{suffix}"].T, atol=1e-12)


def test_embeddings_start_from_a_table():
    variables = variables_of("bag")
    table = np.arange(V * D, dtype=np.float64).reshape(V, D)
    started = models.with_embedding(variables, table)
    np.testing.assert_array_equal(started.params["token"]["embedding"], table)
    assert started.params["token"]["embedding"].dtype == np.float32
    assert started.params["head"]["kernel"] is variables.params["head"]["kernel"]
    with pytest.raises(ValueError, match=rf"shape \({V}, 2\) but the student's 'token/embedding' has \({V}, {D}\)"):
        models.with_embedding(variables, table[:, :2])
    with pytest.raises(ValueError, match="no 'encoder/token': at the top of the params there is head, token"):
        models.with_embedding(variables, table, path="encoder/token")
    with pytest.raises(ValueError, match="not finite"):
        models.with_embedding(variables, table * np.nan)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: models.bigru(K, **SIZES, hidden=0), "hidden is 0: give an integer of at least 1"),
        (lambda: models.text_cnn(K, **SIZES, kernels=()), r"the kernels are \(\): give at least one width"),
        (lambda: models.text_cnn(K, **SIZES, kernels=(3, 0)), r"kernels\[1\] is 0"),
        (lambda: models.bag_of_embeddings(K, vocabulary=2.5, width=D), "vocabulary is 2.5"),
    ],
)
def test_impossible_sizes_get_a_sentence(make, said):
    with pytest.raises(ValueError, match=said):
        make()
