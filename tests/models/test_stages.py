"""Networks cut at their features: stages one after the other are the network, and what does not cut it is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from jaxkd import models
from jaxkd.models.stages import Stages
from jaxkd.types import Model, Outputs, Variables

IMAGES = {"image": np.random.default_rng(0).standard_normal((4, 16, 16, 3), np.float32)}
BATCH = {"image": IMAGES["image"][:, 0, 0], "mask": np.array([True, True, False, True])}
KEY = jax.random.key(0)
FAMILIES = {
    "resnet": (models.resnet(3, depth=8), ("stage1", "stage2", "stage3")),
    "wide_resnet": (models.wide_resnet(3, depth=10, widen=1, dropout=0.1), ("stem", "stage2_preact")),
    "convnet": (models.convnet(3, dropout=0.1), ("stage2", "stage1")),
}


class Net(nn.Module):
    """Two stages with batch norms, of which the second also reads the first's feature and a mask of the batch."""

    @nn.compact
    def __call__(self, x, mask, train):
        counts = mask[:, None].astype(x.dtype)
        x = nn.tanh(nn.BatchNorm(not train, name="norm1")(nn.Dense(4, name="dense1")(x))) * counts
        features = {"stage1": x}
        y = nn.Dropout(0.5, deterministic=not train)(nn.Dense(4, name="dense2")(x))
        features["stage2"] = x = x + nn.BatchNorm(not train, name="norm2")(y) * counts
        features["copy"] = features["stage1"] * 1.0
        return nn.Dense(3, name="head")(x), features


NET, NAMES = models.from_linen(Net(), inputs=("image", "mask")), ("stage1", "stage2")


def variables():
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(NET.init, KEY, BATCH)
    return jax.tree.map(lambda x: np.abs(rng.standard_normal(x.shape, np.float32)), shapes)


def program(function, *given):
    """The program of a function without what nobody uses, as text."""
    return str(dce_jaxpr(jax.make_jaxpr(function)(*given).jaxpr, [True] * len(jax.eval_shape(function, *given)))[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_network_cut_at_its_stages_is_the_same_program(name):
    model, names = FAMILIES[name]
    shapes = jax.eval_shape(model.init, KEY, IMAGES)
    keep = lambda name, x: x  # noqa: E731
    whole = lambda v, b, k: jax.tree.leaves(model.apply(v, b, k, True))  # noqa: E731
    cut = lambda v, b, k: jax.tree.leaves(Stages(model, names, v, b, k, True).run(keep))  # noqa: E731
    assert program(cut, shapes, IMAGES, KEY) == program(whole, shapes, IMAGES, KEY)


def test_stages_one_after_the_other_are_the_network_bit_for_bit():
    def both(own, batch, key):
        cut, given, leaves = Stages(NET, reversed(NAMES), own, batch, key, True), {}, []
        for number in range(3):
            value, changed = cut.stage(number, given)
            leaves.append(changed)
            given |= {cut.names[number]: value} if number < 2 else {}
        assert [len(x) for x in leaves] == [2, 2, 0]
        assert [len(cut.before(m, own.state)) for m in range(3)] == [2, 2, 0]
        return (given, value, cut.join(leaves)), NET.apply(own, batch, key, True)

    (given, value, state), (outputs, new) = jax.jit(both)(variables(), BATCH, KEY)
    np.testing.assert_array_equal(value, outputs.logits)
    jax.tree.map(np.testing.assert_array_equal, state, new)
    jax.tree.map(np.testing.assert_array_equal, given, {name: outputs.features[name] for name in NAMES})


def test_replaced_feature_is_read_by_all_layers_after_it_and_gradients_stop_there():
    other = np.random.default_rng(2).standard_normal((4, 4), np.float32)

    def value(own):
        cut = Stages(NET, ("stage1",), own, BATCH, KEY, True)
        outputs, state = cut.run(lambda name, x: jnp.asarray(other))
        return jnp.sum(jnp.square(outputs.logits)), (outputs, state)

    grads, (outputs, state) = jax.jit(jax.grad(value, has_aux=True))(variables())
    assert not np.any(grads.params["dense1"]["kernel"])
    assert np.any(grads.params["dense2"]["kernel"])
    np.testing.assert_array_equal(outputs.features["copy"], other)
    plain, moved = NET.apply(variables(), BATCH, KEY, True)
    np.testing.assert_allclose(outputs.features["stage1"], plain.features["stage1"], rtol=1e-5)
    statistics = [x["batch_stats"] for x in (state, moved)]
    np.testing.assert_allclose(*(x["norm1"]["mean"] for x in statistics), rtol=1e-5)
    assert not np.allclose(*(x["norm2"]["mean"] for x in statistics))


def test_features_that_do_not_cut_a_network_get_a_sentence():
    shapes = jax.eval_shape(NET.init, KEY, BATCH)
    cases = {
        ("foo",): "no feature 'foo' to cut it at: its features are copy, stage1, stage2",
        ("copy",): "'copy' does not cut the network: layers between it and the logits also read",
    }
    for names, message in cases.items():
        with pytest.raises(ValueError, match=message):
            Stages(NET, names, shapes, BATCH)
    with pytest.raises(ValueError, match=r"'stage1' has shape \(4, 4\), but \(4, 2\) was given"):
        Stages(NET, ("stage1",), variables(), BATCH).run(lambda name, x: x[:, :2])

    def apply(variables, batch, key, train):
        x = variables.params * batch["image"].sum()
        return Outputs(x * 2, {"input": batch["image"], "a": x, "b": x}), {}

    hand = Model(lambda key, batch: None, apply)
    for names, message in {("input",): "not computed by the model", ("a", "b"): "a, b are the same array"}.items():
        with pytest.raises(ValueError, match=message):
            Stages(hand, names, Variables(jnp.ones(3), {}), BATCH)
