"""Students made of their teachers' weights: selected, ranked, matched, averaged, with statistics measured anew."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_equal

from jaxkd import models
from jaxkd.models.axes import Axes, channel_counts
from jaxkd.models.vision.resnet import ResNet
from jaxkd.types import Variables

IMAGES = {"image": np.random.default_rng(0).standard_normal((4, 8, 8, 1)).astype(np.float32)}
TEXTS = {"tokens": np.arange(12, dtype=np.int32).reshape(3, 4) % 9, "token_mask": np.ones((3, 4), bool)}
TEXT = {"vocabulary": 9, "max_length": 4, "dropout": 0.0}


@functools.cache
def resnet(widths=(4, 6), blocks=(2, 2), classes=3):
    return models.from_linen(ResNet(classes, blocks, widths, widths[0]))


@functools.cache
def vit(layers=2, width=8, heads=2, classes=3):
    return models.vision_transformer(classes, patch=4, layers=layers, width=width, heads=heads)


@functools.cache
def mlp(hidden=(6, 8), classes=3):
    return models.mlp(classes, hidden=hidden)


@functools.cache
def bert(layers=2, width=8, heads=2, classes=3):
    return models.bert(classes, layers=layers, width=width, heads=heads, **TEXT)


def modern_bert():
    return models.modern_bert(3, layers=2, width=8, heads=2, hidden=12, **TEXT)


def axes_of(name, variables, heads=2):
    if name in ("mlp", "convnet"):
        return models.plain_axes(variables)
    return models.resnet_axes(variables) if name == "resnet" else models.transformer_axes(variables, heads)


NETWORKS = {
    "mlp": (mlp, IMAGES),
    "convnet": (functools.partial(models.convnet, 3, widths=(4, 6)), IMAGES),
    "resnet": (resnet, IMAGES),
    "vit": (vit, IMAGES),
    "bert": (bert, TEXTS),
    "modern_bert": (modern_bert, TEXTS),
}


@functools.cache
def shapes_of(model, shape):
    batch = TEXTS if shape is None else {"image": np.zeros(shape, np.float32)}
    return jax.eval_shape(model.init, jax.random.key(0), batch)


def drawn(model, batch, seed=0):
    """Variables in which no array is like another one."""
    shapes = shapes_of(model, batch["image"].shape if "image" in batch else None)
    rng = np.random.default_rng(seed)
    found = jax.tree.map(lambda x: (0.5 * rng.standard_normal(x.shape) + 0.1).astype(x.dtype), shapes)
    return Variables(found.params, jax.tree.map(lambda x: np.abs(x) + 0.5, found.state))


@functools.cache
def made(name):
    """A network, its variables, a batch, and axes."""
    make, batch = NETWORKS[name]
    variables = drawn(model := make(), batch)
    return model, variables, batch, axes_of(name, variables)


@functools.cache
def program(name):
    model = made(name)[0]
    return jax.jit(lambda v, batch: model.apply(v, batch, None, False)[0].logits)


def shuffled(axes, variables):
    """Orders that leave the function as it is: any of channels, and of heads with any inside them."""
    rng, counts = np.random.default_rng(1), channel_counts(variables, axes)
    orders = {name: rng.permutation(count) for name, count in counts.items()}
    for heads in axes.heads:
        order, d = rng.permutation(heads.number), counts[heads.value] // heads.number
        for name in (heads.query_key, heads.value):
            inside = np.arange(d) if heads.ordered and name == heads.query_key else rng.permutation(d)
            orders[name] = np.concatenate([head * d + inside for head in order])
    return orders


@pytest.mark.parametrize("name", NETWORKS)
def test_reordered_channels_compute_the_same_and_are_found_again(name):
    _, variables, batch, axes = made(name)
    other = models.take_channels(variables, axes, shuffled(axes, variables))
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (variables, other)), strict=True))
    np.testing.assert_allclose(program(name)(other, batch), program(name)(variables, batch), rtol=1e-4, atol=1e-5)
    back = models.take_channels(other, axes, models.match_weights(variables, other, axes))
    assert_trees_equal(back, variables)
    assert_trees_equal(models.average([variables, back, back]), variables)


def test_matching_brings_weights_of_other_networks_nearer_until_nothing_improves():
    model, first, batch, axes = made("resnet")
    second = drawn(model, batch, seed=1)

    def distance(x):
        sides = zip(jax.tree.leaves(first.params), jax.tree.leaves(x.params), strict=True)
        return sum(float(np.sum((a - np.asarray(b)) ** 2)) for a, b in sides)

    orders = models.match_weights(first, second, axes)
    matched = models.take_channels(second, axes, orders)
    assert distance(matched) < 0.95 * distance(second)
    again = models.match_weights(first, matched, axes)
    assert distance(models.take_channels(matched, axes, again)) == pytest.approx(distance(matched), rel=1e-6)
    swapped = orders | {"stem": orders["stem"][[1, 0, 2, 3]]}
    assert distance(models.take_channels(second, axes, swapped)) > distance(matched)
    one_round = models.match_weights(first, second, axes, rounds=0)
    assert distance(models.take_channels(second, axes, one_round)) >= distance(matched)


@pytest.mark.parametrize("name", ["convnet", "vit"])
def test_activations_find_a_reordered_copy_too(name):
    model, variables, batch, axes = made(name)
    other = models.take_channels(variables, axes, shuffled(axes, variables))
    orders = models.match_activations(model, variables, other, axes, [batch])
    assert_trees_equal(models.take_channels(other, axes, orders), variables)


def test_what_cannot_be_matched_is_one_sentence():
    model, variables, batch, axes = made("mlp")
    wider = drawn(mlp((6, 9)), batch)
    with pytest.raises(ValueError, match=r"params/\S+ has shape .* in one network and .* in the other"):
        models.match_weights(wider, variables, axes)
    with pytest.raises(ValueError, match="there is no batch"):
        models.match_activations(model, variables, variables, axes, [])


@pytest.mark.parametrize("name", NETWORKS)
def test_selection_of_everything_is_the_teacher(name):
    model, variables, batch, axes = made(name)
    own = drawn(model, batch, seed=1)
    scores = models.weight_norms(variables, axes)
    for choose in (models.evenly, models.first, models.by_importance(scores, axes, axes)):
        assert_trees_equal(models.select(own, variables, axes, choose), variables)


def test_channels_are_selected_evenly_and_alike_in_all_layers():
    assert models.evenly("x", 8, 4).tolist() == [0, 2, 4, 6]
    assert models.evenly("x", 7, 3).tolist() == [0, 2, 4]
    assert models.first("x", 7, 3).tolist() == [0, 1, 2]
    trained = drawn(vit(layers=3, width=16, heads=4), IMAGES)
    own = drawn(vit(), IMAGES, seed=1)
    found = models.select(own, trained, axes_of("vit", trained, 4)).params
    assert sorted(name for name in found if name.startswith("block")) == ["block0", "block1"]
    for name in ("query", "value", "out"):
        np.testing.assert_array_equal(
            found["block1"]["attention"][name]["kernel"],
            trained.params["block1"]["attention"][name]["kernel"][::2, ::2],
        )
    np.testing.assert_array_equal(found["patch"]["kernel"], trained.params["patch"]["kernel"][..., ::2])
    np.testing.assert_array_equal(found["head"]["kernel"], trained.params["head"]["kernel"][::2])
    trained = drawn(resnet((8, 12)), IMAGES)
    found = models.select(drawn(resnet(), IMAGES), trained, axes_of("resnet", trained))
    for tree, big in ((found.params, trained.params), (found.state["batch_stats"], trained.state["batch_stats"])):
        for name in ("norm1", "norm2", "shortcut_norm"):
            for leaf, x in tree["stage2_block1"][name].items():
                np.testing.assert_array_equal(x, big["stage2_block1"][name][leaf][::2])


def test_random_channels_are_those_of_their_key_and_name():
    choose = models.at_random(jax.random.key(0))
    found = choose("stream", 20, 5)
    assert found.tolist() == sorted(set(found.tolist())) == choose("stream", 20, 5).tolist()
    assert len({tuple(choose(name, 20, 5)) for name in ("stream", "block0/mlp", "block1/mlp")}) == 3
    assert found.tolist() != models.at_random(jax.random.key(1))("stream", 20, 5).tolist()


def test_other_classes_begin_anew_or_are_one_sentence():
    _, trained, batch, axes = made("vit")
    own = drawn(vit(classes=5), batch, seed=1)
    found = models.select(own, trained, axes, fresh="^head")
    assert_trees_equal(found.params["head"], own.params["head"])
    assert_trees_equal(found.params["block1"], trained.params["block1"])
    with pytest.raises(ValueError, match=r"params/head/bias has shape \(5,\), which cannot be selected from \(3,\)"):
        models.select(own, trained, axes)
    for other, said in (
        (vit(width=12), r"\(12,\), which cannot be selected from \(8,\)"),
        (vit(layers=3), r"params/block2/\S+ has shape .*, but the trained network has none"),
    ):
        with pytest.raises(ValueError, match=said):
            models.select(drawn(other, batch), trained, axes)
    larger = {"image": np.zeros((1, 12, 12, 1), np.float32)}
    with pytest.raises(ValueError, match=r"params/position has shape \(1, 10, 8\), which .* from \(1, 5, 8\)"):
        models.select(drawn(vit(), larger), trained, axes)
    narrow = drawn(vit(width=4), batch)
    with pytest.raises(ValueError, match=r"`choose` gave \[0, 0, 0, 0\] for channels 'block0/query_key': give 4 diff"):
        models.select(narrow, trained, axes, lambda name, available, wanted: np.zeros(wanted, int))


@pytest.mark.parametrize("kind", ["norms", "activations"])
def test_without_channels_that_do_nothing_the_function_stays(kind):
    model, variables, batch, axes = made("mlp")
    params = jax.tree.map(np.copy, variables.params)
    for layer, after, dead in (("dense1", "dense2", [0, 3]), ("dense2", "head", [1, 6, 7])):
        if kind == "norms":
            params[layer]["kernel"][:, dead] = 0
            params[after]["kernel"][dead] = 0
        params[layer]["bias"][dead] = -1e3  # below any input of the ReLU
    trained = Variables(params, {})
    scores = (
        models.weight_norms(trained, axes)
        if kind == "norms"
        else models.mean_activations(model, trained, axes, [batch, batch])
    )
    small = mlp((4, 5))
    own = drawn(small, batch, seed=1)
    found = models.select(own, trained, axes, models.by_importance(scores, axes, axes))
    logits = small.apply(found, batch, None, False)[0].logits
    np.testing.assert_allclose(logits, program("mlp")(trained, batch), rtol=1e-5, atol=1e-6)


def test_scores_are_their_formulas():
    model, variables, batch, axes = made("mlp")
    p = variables.params
    for order in (1, 2):
        found = models.weight_norms(variables, axes, order=order)["dense1"]
        both = np.concatenate([p["dense1"]["kernel"], p["dense2"]["kernel"].T]).astype(np.float64)
        np.testing.assert_allclose(found, np.linalg.norm(both, order, axis=0), rtol=1e-6)
    hidden = np.maximum(batch["image"].reshape(4, -1) @ p["dense1"]["kernel"] + p["dense1"]["bias"], 0)
    found = models.mean_activations(model, variables, axes, [batch])
    np.testing.assert_allclose(found["dense1"], hidden.mean(0), rtol=1e-4)
    with pytest.raises(ValueError, match="order=3 should be 1 or 2"):
        models.weight_norms(variables, axes, order=3)
    with pytest.raises(ValueError, match="there is no batch"):
        models.mean_activations(model, variables, axes, [])


def test_heads_are_chosen_as_wholes_and_narrowed_inside():
    trained = drawn(vit(width=12, heads=3), IMAGES)
    axes = axes_of("vit", trained, 3)
    scores = models.weight_norms(trained, axes)
    scores["block0/value"] = np.array([1, 1, 1, 1, 5, 6, 7, 8, 9, 8, 7, 6], float)
    scores["block0/query_key"] = np.arange(12.0)[::-1]
    own = axes_of("vit", drawn(vit(), IMAGES), 2)
    choose = models.by_importance(scores, axes, own)
    assert choose("block0/value", 12, 8).tolist() == list(range(4, 12))
    assert choose("block0/query_key", 12, 8).tolist() == list(range(4, 12))
    assert choose("block0/value", 12, 4).tolist() == [6, 7, 8, 9]
    assert choose("block0/query_key", 12, 4).tolist() == [4, 5, 8, 9]
    with pytest.raises(ValueError, match="3 heads of 4 channels, but the student 2 of 6"):
        choose("block0/value", 12, 12)
    with pytest.raises(ValueError, match="scores of the 12 channels 'stream' are missing"):
        models.by_importance({}, axes, own)("stream", 12, 8)
    turned = axes._replace(heads=tuple(heads._replace(ordered=True) for heads in axes.heads))
    with pytest.raises(ValueError, match=r"in an order of their own, but the student 2 of 2: .*, of the same width"):
        models.by_importance(scores, turned, own)("block0/query_key", 12, 4)


def test_axes_that_do_not_fit_are_one_sentence():
    _, variables, _, axes = made("mlp")
    with pytest.raises(ValueError, match=r"params/head/kernel has shape \(8, 3\), but `axes` does not name it"):
        channel_counts(variables, Axes({k: v for k, v in axes.names.items() if k != "params/head/kernel"}))
    tied = dict(axes.names) | {"params/dense2/bias": ("dense1",)}
    with pytest.raises(ValueError, match="has 8 channels 'dense1', but params/dense1/bias has 6"):
        channel_counts(variables, Axes(tied))
    for indices, said in (({"dense9": [0]}, "no channels 'dense9'"), ({"dense1": [6]}, r"are 0\.\.5, but 6 was")):
        with pytest.raises(ValueError, match=said):
            models.take_channels(variables, axes, indices)
    for make, said in (
        (lambda: models.resnet_axes(variables), "the network is no ResNet"),
        (lambda: models.transformer_axes(variables, 2), "the network is no transformer"),
        (lambda: models.transformer_axes(made("vit")[1], 3), "3 heads do not divide the width 8"),
    ):
        with pytest.raises(ValueError, match=said):
            make()


def test_means_are_those_of_the_weights_and_equal_networks_give_themselves():
    _, a, batch, _ = made("resnet")
    b = drawn(resnet(), batch, seed=1)
    assert_trees_equal(models.average([a, a, a]), a)
    assert_trees_equal(models.average([a, b], [1, 0]), a)
    found = models.average([a, b], [1, 3]).params["head"]["kernel"]
    np.testing.assert_allclose(found, (a.params["head"]["kernel"] + 3 * b.params["head"]["kernel"]) / 4, rtol=1e-6)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), made("mlp")[1])
    assert_trees_equal(models.average([half] * 3), half)


def test_what_has_no_mean_is_one_sentence():
    _, a, batch, _ = made("mlp")
    with pytest.raises(ValueError, match=r"dense2/bias of the first has shape \(8,\), but that of number 2 has sh"):
        models.average([a, drawn(mlp((6, 9)), batch)])
    with pytest.raises(ValueError, match=r"dense2/bias of the first has shape .* number 3 has none"):
        models.average([a, a, drawn(mlp((6,)), batch)])
    for networks, weights in (([], None), ([a, a], [1, -1]), ([a, a], [0, 0]), ([a], [1, 1]), ([a], [np.nan])):
        with pytest.raises(ValueError, match=f"{len(networks)} networks cannot be averaged with the weights"):
            models.average(networks, weights)
    counted = [Variables({}, {"seen": np.int32(n)}) for n in (1, 2)]
    assert models.average(counted[:1]).state["seen"] == 1
    with pytest.raises(ValueError, match="seen is of int32 and differs"):
        models.average(counted)


def test_a_greedy_soup_takes_what_helps_the_best_first():
    given = [Variables({"x": np.float32(x)}, {}) for x in (4.0, -1.0, 2.0, -2.0, np.nan)]
    tried = []

    def score(variables):
        tried.append(float(variables.params["x"]))
        return -abs(tried[-1])

    soup, chosen = models.greedy_soup(given, score)
    # -1 is the best; with 2 it is 0.5, which helps; with -2 it is -1/3; with 4 then 3/4, which does not.
    assert chosen == (1, 2, 3)
    assert float(soup.params["x"]) == pytest.approx(-1 / 3)
    assert len(tried) == 5 + 3
    one, chosen = models.greedy_soup(given[:1], score)
    assert chosen == (0,)
    assert_trees_equal(one, given[0])
    same, chosen = models.greedy_soup([given[0]] * 3, score)
    assert chosen == (0, 1, 2), "a score that stays is no reason to leave one out"
    assert_trees_equal(same, given[0])
    with pytest.raises(ValueError, match=r"the scores of the networks are \[nan\]"):
        models.greedy_soup(given[4:], score)


def test_statistics_measured_anew_are_those_of_the_batches():
    model, variables, batch, _ = made("convnet")
    found = models.reestimate_statistics(model, variables, [batch])
    assert_trees_equal(found.params, variables.params)
    trained = jax.jit(lambda v: model.apply(v, batch, None, True)[0].logits)(variables)
    np.testing.assert_allclose(program("convnet")(found, batch), trained, rtol=1e-3, atol=1e-3)
    halves = [{"image": x} for x in np.split(batch["image"] + np.arange(4)[:, None, None, None], 2)]
    halved = models.reestimate_statistics(model, variables, halves).state["batch_stats"]["stage1_norm1"]
    whole = {"image": np.concatenate([x["image"] for x in halves])}
    once = models.reestimate_statistics(model, variables, [whole]).state["batch_stats"]["stage1_norm1"]
    for name in ("mean", "var"):
        np.testing.assert_allclose(halved[name], once[name], rtol=1e-4)
    with pytest.raises(ValueError, match="there is no batch to measure"):
        models.reestimate_statistics(model, variables, [])
    plain = made("mlp")[1]
    assert models.reestimate_statistics(made("mlp")[0], plain, []) == plain
