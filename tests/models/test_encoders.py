"""Text encoders: padding, positions, windows, heads, rates of dropout, fewer blocks, and losses on their features."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, models, numerics
from jaxkd.losses.transformers import pair_mask
from jaxkd.models.text.blocks import Dropouts, Form
from jaxkd.models.text.encoder import Embed, Encoder
from jaxkd.models.text.heads import Pooler, TextClassifier, text_model
from jaxkd.models.text.pooling import each_token, mean_of_tokens
from jaxkd.models.text.positions import allowed_pairs, numbers_after, rotary_tables, rotate, sinusoids
from jaxkd.types import Model, Outputs, Variables

V, D, L, PAD = 13, 8, 9, 1
LENGTHS = np.array([9, 4, 0])
RNG = np.random.default_rng(0)
MASK = np.arange(L) < LENGTHS[:, None]
BATCH = {"tokens": np.where(MASK, RNG.integers(2, V, (3, L)), PAD).astype(np.int32), "token_mask": MASK}
MODERN = {"rotary": (10.0,), "windows": (2,), "first_norm": False}
FORM = Form(2, 12)
AFTER_PADDING = Encoder(V, 1, D, FORM, L, segments=1, pad=PAD)
ROTARY = Encoder(V, 1, D, FORM._replace(gated=True, norm_first=True, norm_bias=False), L, **MODERN)
NARROW = Encoder(V, 1, D, FORM, L, embedding_width=4, fixed_positions=True)


def made(encoder, **options):
    """A classifier and its variables, not as small as they begin."""
    model = text_model(TextClassifier(3, encoder, **options))
    rng = np.random.default_rng(1)
    like = jax.eval_shape(model.init, jax.random.key(0), BATCH)
    return model, jax.tree.map(lambda x: 0.5 * rng.standard_normal(x.shape).astype(np.float32), like)


@pytest.mark.parametrize("encoder", [AFTER_PADDING, ROTARY], ids=["positions after the padding", "rotary, local"])
def test_padding_changes_no_value_and_a_row_of_padding_no_gradient(encoder):
    model, variables = made(encoder, pool=mean_of_tokens, pooler=Pooler(epsilon=1e-5))
    alone = {field: x[1:2, :4] for field, x in BATCH.items()}

    @jax.jit
    def both(params, batch, alone):
        rows = lambda p, b: model.apply(Variables(p, {}), b, None, False)[0]  # noqa: E731
        square = lambda p: (jnp.sum((padded := rows(p, batch)).logits ** 2), padded)  # noqa: E731
        gradient, padded = jax.grad(square, has_aux=True)(params) if encoder is ROTARY else ({}, rows(params, batch))
        return padded, rows(params, alone), gradient

    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables.params)
        padded, real, gradient = both(params, BATCH, alone)
    np.testing.assert_allclose(padded.logits[1:2], real.logits, rtol=1e-6)
    for feature in ("embedding", "block0", "tokens"):
        np.testing.assert_allclose(padded.features[feature][1:2, :4], real.features[feature], rtol=1e-6)
    assert np.isfinite(padded.logits).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_positions_skip_padding_and_windows_are_symmetric():
    np.testing.assert_array_equal(numbers_after(1, jnp.array([[5, 1, 6, 7, 1]])), [[2, 1, 3, 4, 1]])
    seen = allowed_pairs(jnp.array([[True, True, True, False]]), window=1)[0, 0]
    np.testing.assert_array_equal(seen, [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]])
    assert allowed_pairs(jnp.ones((2, 4)), window=3).shape == (2, 1, 1, 4)
    np.testing.assert_allclose(sinusoids(3, 4)[2], [np.sin(2), np.cos(2), np.sin(0.02), np.cos(0.02)], rtol=1e-6)


def test_rotations_keep_lengths_and_depend_on_distances_alone():
    x = jnp.asarray(RNG.standard_normal((1, 1, 1, 6)), jnp.float32)
    turned = rotate(jnp.broadcast_to(x, (1, 1, 5, 6)), rotary_tables(5, 6, 10.0))[0, 0]
    products = turned @ turned.T
    np.testing.assert_allclose(np.diag(products), np.sum(x**2), rtol=1e-5)
    np.testing.assert_allclose(np.diag(products, 2), np.full(3, products[0, 2]), rtol=1e-4)
    assert abs(products[0, 1] - products[0, 2]) > 1e-3


def test_a_token_outside_the_vocabulary_is_nan_and_no_other_token():
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = Embed(3, 2).apply({"params": {"embedding": table}}, jnp.array([2, -1, 3, 0]))
    np.testing.assert_array_equal(found, [[4, 5], [np.nan] * 2, [np.nan] * 2, [0, 1]])


def test_heads_have_their_shapes():
    model, variables = made(NARROW, pool=each_token, pooler=None)
    out = jax.eval_shape(lambda v: model.apply(v, BATCH, None, False)[0], variables)
    assert (out.logits.shape, out.features["pooled"].shape) == ((3, L, 3), (3, L, D))
    bare = models.sentence_embeddings(text_model(TextClassifier(None, NARROW, pooler=None)))
    out = jax.eval_shape(lambda v: bare.apply(v, BATCH, None, False)[0], variables)
    assert (out.logits.shape, out.features["tokens"].shape) == ((3, D), (3, L, D))
    one = jax.eval_shape(lambda v: models.with_head(model).apply(v, BATCH, None, False)[0].head, variables)
    assert one["kernel"].shape == (D, 3)


def test_sentence_embeddings_are_means_of_real_tokens_of_length_one():
    x = RNG.standard_normal((3, L, D)).astype(np.float32)
    given = Model(lambda key, batch: Variables({}, {}), lambda *_: (Outputs(x, {"tokens": jnp.asarray(x)}), {}))
    model = models.sentence_embeddings(given)
    out, _ = model.apply(Variables({}, {}), BATCH, None, False)
    want = np.stack([x[0].mean(0), x[1, :4].mean(0), np.zeros(D)])
    np.testing.assert_allclose(out.features["pooled"], want, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(out.logits, axis=1), [1, 1, 0], rtol=1e-6)
    with pytest.raises(ValueError, match="feature 'hidden' but the model has tokens: name another one"):
        models.sentence_embeddings(given, feature="hidden").apply(Variables({}, {}), BATCH, None, False)
    with pytest.raises(ValueError, match="reads the batch's field 'token_mask'"):
        model.apply(Variables({}, {}), {"tokens": BATCH["tokens"]}, None, False)


def test_each_rate_of_dropout_acts_in_its_place_and_in_training_alone():
    drawn = {"embedding": (3, L, D), "weights": (3, 2, L, L), "attention": (3, L, D), "inner": (3, L, 4)}
    for place in Dropouts._fields:
        form = Form(2, 4, dropout=Dropouts(**{place: 0.5}))
        model, variables = made(Encoder(V, 1, D, form, L), pooler=None)
        for train in (True, False) if place == "weights" else (True,):
            program = jax.make_jaxpr(lambda v, k, m=model, t=train: m.apply(v, BATCH, k, t)[0].logits)
            found = re.findall(r"random_bits\[[^\]]*shape=\(([\d, ]+)\)", str(program(variables, jax.random.key(0))))
            shapes = [tuple(map(int, x.split(","))) for x in found]
            assert shapes == [drawn.get(place, (3, L, D))] * train, place


def test_a_shallower_network_has_the_blocks_that_were_taken():
    deep = models.bert(2, vocabulary=V, layers=4, width=D, heads=2, max_length=L)
    variables = jax.eval_shape(deep.init, jax.random.key(0), BATCH)
    taken = models.take_blocks(variables, (1, 3))
    own, old = taken.params["encoder"], variables.params["encoder"]
    assert sorted(own) == ["block0", "block1", "norm", "position", "segment", "token"]
    assert own["block0"]["mlp1"]["kernel"] is old["block1"]["mlp1"]["kernel"]
    assert own["block1"]["mlp1"]["kernel"] is old["block3"]["mlp1"]["kernel"]
    shallow = models.bert(2, vocabulary=V, layers=2, width=D, heads=2, max_length=L)
    like = jax.eval_shape(shallow.init, jax.random.key(0), BATCH)
    assert jax.tree.structure(like) == jax.tree.structure(taken)
    with pytest.raises(ValueError, match=r"blocks=\(1, 4\) should be among 0..3"):
        models.take_blocks(variables, (1, 4))
    with pytest.raises(ValueError, match=r"blocks=\(1, 1\) should be different numbers"):
        models.take_blocks(variables, (1, 1))
    with pytest.raises(ValueError, match="the network has no blocks: its params are head"):
        models.take_blocks(Variables({"head": {}}, {}), (0,))


def test_losses_of_transformers_read_the_features_under_masks():
    """What padding holds changes neither values nor gradients of one jitted step, which has finite ones."""
    student, own = made(Encoder(V, 1, D, FORM, L))
    teacher, theirs = made(Encoder(V, 2, D, FORM, L))

    def loss(params, batch):
        s, t = (
            m.apply(v, batch, None, False)[0].features for m, v in ((student, Variables(params, {})), (teacher, theirs))
        )
        mask = batch["token_mask"]
        scores = losses.attention_mse(s["attention0"], t["attention1"])
        attention = [jnp.stack([x[f"attention{i}"] for i in range(n)], axis=1) for x, n in ((s, 1), (t, 2))]
        hidden = [
            jnp.stack([x["embedding"], *(x[f"block{i}"] for i in range(n))], axis=1) * mask[:, None, :, None]
            for x, n in ((s, 1), (t, 2))
        ]
        real = mask[:, None, None, :, None] & mask[:, None, None, None, :]
        attention = [jnp.where(real, a, -1e4) for a in attention]
        values = (
            numerics.masked_mean(scores, pair_mask(mask)),
            jnp.mean(losses.tinybert(*attention, *hidden)),
            jnp.mean(losses.minilm(s["qkv0"], t["qkv1"], mask, attention_heads=2)),
            jnp.mean(losses.minilmv2(s["qkv0"], t["qkv1"], mask, relation_heads=4)),
        )
        return sum(values), values

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    other = {**BATCH, "tokens": np.where(MASK, BATCH["tokens"], 7)}
    (_, values), gradient = step(own.params, BATCH)
    (_, again), same = step(own.params, other)
    assert all(0 < x < 1e4 for x in values)
    np.testing.assert_allclose(values, again, rtol=1e-6)
    for one, two in zip(jax.tree.leaves(gradient), jax.tree.leaves(same), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_bfloat16_leaves_the_logits_in_float32():
    model, variables = made(ROTARY)
    half = models.in_dtype(model)
    out = jax.eval_shape(lambda v: half.apply(models.cast(v), BATCH, None, False)[0], variables)
    found = {name: x.dtype for name, x in out.features.items()}
    assert out.logits.dtype == jnp.float32
    assert set(found.values()) == {jnp.dtype(jnp.bfloat16)}, found


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("tokens", BATCH["tokens"][0], r"the tokens have shape \(9,\) and dtype int32: give the tokenizer's integers"),
        ("tokens", BATCH["tokens"][:, :0], r"the tokens have shape \(3, 0\)"),
        ("tokens", BATCH["tokens"] * 1.0, "dtype float"),
        ("token_mask", MASK[:, :4], r"the tokens have shape \(3, 9\) but token_mask has \(3, 4\)"),
        ("segments", np.zeros((3, 4), np.int32), r"but segments has \(3, 4\)"),
    ],
)
def test_a_batch_of_other_shapes_gets_a_sentence(field, value, said):
    model = models.bert(2, vocabulary=V, layers=1, width=D, heads=2, max_length=L)
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(model.init, jax.random.key(0), {**BATCH, field: value})


def test_sizes_that_no_network_has_are_refused():
    model = models.modern_bert(2, vocabulary=V, layers=4, width=D, heads=2, hidden=6)
    params = jax.eval_shape(model.init, jax.random.key(0), BATCH).params
    assert ("norm1" in params["encoder"]["block0"], "norm1" in params["encoder"]["block1"]) == (False, True)
    with pytest.raises(ValueError, match="2 heads of the width 3 cannot be turned by pairs of channels"):
        models.modern_bert(2, width=6, heads=2)
    with pytest.raises(ValueError, match="layers is 0: give an integer of at least 1"):
        models.bert(2, layers=0)
    with pytest.raises(ValueError, match="global_every is 0"):
        models.modern_bert(2, global_every=0)
