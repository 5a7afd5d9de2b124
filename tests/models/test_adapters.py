"""Networks of any origin behave alike as models: modes, states, keys, names, and sentences where they do not fit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import CLASSES, Small, assert_trees_close, assert_trees_equal, make_batch

from jaxkd import models
from jaxkd.types import Outputs, Variables

# The flags that libraries have for the mode, each with a network that returns 1 in training and 0 in evaluation.
CALLS = {
    "train": lambda self, x, train: x * 0 + train,
    "training": lambda self, x, training: x * 0 + training,
    "is_training": lambda self, x, is_training=False: x * 0 + is_training,
    "deterministic": lambda self, x, *, deterministic: x * 0 + (not deterministic),
    "use_running_average": lambda self, x, use_running_average=None: x * 0 + (not use_running_average),
    "two at once": lambda self, x, train, deterministic: x * 0 + (train and not deterministic),
}
MAKERS = {
    "linen": lambda call, inputs=("x",): models.from_linen(
        type("Net", (nn.Module,), {"__call__": call})(), inputs=inputs
    ),
    "nnx": lambda call, inputs=("x",): models.from_nnx(
        lambda rngs: type("Net", (nnx.Module,), {"__call__": call})(), inputs=inputs
    ),
}
ONES = {"x": np.ones((2, 3), np.float32)}


def init(model, batch, seed=0):
    return jax.jit(model.init)(jax.random.key(seed), batch)


def run(model, variables, batch, seed=None, train=False):
    key = None if seed is None else jax.random.key(seed)
    return jax.jit(model.apply, static_argnums=3)(variables, batch, key, train)


class SmallNNX(nnx.Module):
    """The network of `helpers.Small`, its parts called the same."""

    def __init__(self, rngs, width=4):
        self.conv = nnx.Conv(1, width, (3, 3), 2, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, x):
        features = nnx.relu(self.norm(self.conv(x)))
        pooled = jnp.mean(features, axis=(1, 2))
        return Outputs(self.head(self.dropout(pooled)), {"stage1": features, "pooled": pooled})


@pytest.fixture(scope="module", params=["linen", "nnx"])
def small(request):
    """The same network in both libraries, with its variables after one step of training."""
    model = models.from_linen(Small()) if request.param == "linen" else models.from_nnx(SmallNNX)
    variables = init(model, make_batch(), 3)
    _, state = run(model, variables, make_batch(), 1, True)
    return model, variables, state


# --- modes ---


@pytest.mark.parametrize("library", MAKERS)
@pytest.mark.parametrize("flag", CALLS)
def test_mode_is_set_whatever_the_flag_is_called(library, flag):
    model = MAKERS[library](CALLS[flag])
    variables = init(model, ONES)
    for train in (True, False):
        out, _ = model.apply(variables, ONES, None, train)
        np.testing.assert_array_equal(out.logits, np.full((2, 3), float(train)))


@pytest.mark.parametrize("library", MAKERS)
@pytest.mark.parametrize(
    ("call", "features"),
    [
        (lambda self, x: 2 * x, {}),
        (lambda self, x: (2 * x, {"twin": x}), {"twin": ONES["x"]}),
        (lambda self, x: Outputs(2 * x, {"twin": x}), {"twin": ONES["x"]}),
    ],
    ids=["logits", "pair", "Outputs"],
)
def test_module_may_return_logits_a_pair_or_outputs(library, call, features):
    model = MAKERS[library](call)
    out, _ = model.apply(init(model, ONES), ONES, None, True)
    assert isinstance(out, Outputs)
    np.testing.assert_array_equal(out.logits, 2 * ONES["x"])
    assert_trees_equal(jax.tree.map(np.asarray, dict(out.features)), features)


# --- state and keys ---


def test_batch_statistics_change_in_training_alone(small):
    model, variables, trained = small
    assert jax.tree.structure(trained) == jax.tree.structure(variables.state)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), trained, variables.state)
    assert min(jax.tree.leaves(moved)) > 1e-3
    out, state = run(model, Variables(variables.params, trained), make_batch())
    assert_trees_equal(state, trained)
    # Evaluation uses the statistics: with others the answer is another.
    other, _ = run(model, variables, make_batch())
    assert float(jnp.abs(out.logits - other.logits).max()) > 1e-3


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_batch_statistics_are_the_moving_average(library):
    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.BatchNorm(not train, momentum=0.9, name="norm")(x)

    class NormNNX(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)

        def __call__(self, x):
            return self.norm(x)

    x = np.random.default_rng(0).normal(2, 3, (7, 3)).astype(np.float32)
    made = {"linen": models.from_linen(Norm(), inputs=("x",)), "nnx": models.from_nnx(NormNNX, inputs=("x",))}
    model = made[library]
    _, state = run(model, init(model, {"x": x}), {"x": x}, train=True)
    found = (state["batch_stats"] if library == "linen" else state)["norm"]
    np.testing.assert_allclose(found["mean"], 0.1 * x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * x.var(axis=0), rtol=1e-5)


def test_dropout_is_a_function_of_the_key_and_of_training(small):
    model, variables, _ = small

    def logits(seed, train):
        return np.asarray(run(model, variables, make_batch(), seed, train)[0].logits)

    np.testing.assert_array_equal(logits(1, True), logits(1, True))
    assert np.abs(logits(1, True) - logits(2, True)).max() > 1e-3
    np.testing.assert_array_equal(logits(1, False), logits(2, False))


def test_init_is_a_function_of_the_key(small):
    model, variables, _ = small
    assert_trees_equal(init(model, make_batch(), 3), variables)
    other = init(model, make_batch(), 4).params
    assert float(jnp.abs(other["conv"]["kernel"] - variables.params["conv"]["kernel"]).max()) > 1e-2


def test_params_and_initial_dropout_of_linen_have_streams_of_their_own():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.variable("seen", "params", lambda: jax.random.bits(self.make_rng("params")))
            self.variable("seen", "dropout", lambda: jax.random.bits(self.make_rng("dropout")))
            return x

    state = models.from_linen(Net(), inputs=("x",)).init(jax.random.key(0), ONES).state
    assert state["seen"]["params"] != state["seen"]["dropout"]


def test_missing_field_is_named_with_those_there_are(small):
    model, variables, _ = small
    batch = {"pixels": make_batch()["image"], "label": make_batch()["label"]}
    with pytest.raises(ValueError, match=r"reads the batch's field 'image' but the batch has label, pixels: .*inputs="):
        model.apply(variables, batch, None, False)


@pytest.mark.parametrize("library", MAKERS)
def test_several_inputs_keep_their_order(library):
    model = MAKERS[library](lambda self, x, y: x - y, inputs=("b", "a"))
    batch = {"a": np.ones(2, np.float32), "b": np.full(2, 3, np.float32)}
    out, _ = model.apply(init(model, batch), batch, None, False)
    np.testing.assert_array_equal(out.logits, [2, 2])


# --- under jit and vmap ---


def test_apply_is_the_same_under_jit(small):
    model, variables, trained = small
    for train in (True, False):
        arguments = (Variables(variables.params, trained), make_batch(), jax.random.key(7), train)
        compiled = jax.jit(model.apply, static_argnums=3)(*arguments)
        assert_trees_close(compiled, model.apply(*arguments), rtol=1e-4, atol=1e-5)


def test_students_are_stacked_with_vmap(small):
    model, *_ = small
    keys = jax.random.split(jax.random.key(0), 2)
    batch = make_batch()
    stacked = jax.jit(jax.vmap(model.init, in_axes=(0, None)))(keys, batch)
    found = jax.jit(jax.vmap(lambda v, k: model.apply(v, batch, k, True)))(stacked, keys)
    for i, key in enumerate(keys):
        variables = jax.jit(model.init)(key, batch)
        assert_trees_close(jax.tree.map(lambda x, i=i: x[i], stacked), variables, rtol=1e-5, atol=1e-6)
        alone = jax.jit(model.apply, static_argnums=3)(variables, batch, key, True)
        assert_trees_close(jax.tree.map(lambda x, i=i: x[i], found), alone, rtol=1e-3, atol=1e-4)


# --- capture ---


class Inner(nn.Module):
    """Calls one layer twice, sows something of its own, returns two arrays."""

    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(3, name="dense")
        x = dense(dense(x))
        self.sow("intermediates", "own", x - 7)
        return x, x + 1


class Outer(nn.Module):
    """A network with nested parts that returns logits alone."""

    @nn.compact
    def __call__(self, x, train):
        x, _ = Inner(name="inner")(x)
        self.sow("intermediates", "own", x - 7)
        x = nn.BatchNorm(not train, momentum=0.9, name="norm")(x)
        x = nn.Dropout(0.5, deterministic=not train, name="drop")(x)
        return nn.Dense(5, name="head")(nn.Embed(3, 3, name="never_called").attend(x))


def test_captured_outputs_are_features():
    model = models.from_linen(Outer(), inputs=("x",), capture=("inner/dense", "norm", "drop", "head"))
    batch = {"x": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)}
    variables = init(model, batch)
    out, _ = run(model, variables, batch)
    dense = jax.tree.map(np.asarray, variables.params["inner"]["dense"])
    twice = batch["x"] @ dense["kernel"] @ dense["kernel"]
    assert set(out.features) == {"inner/dense", "norm", "drop", "head"}
    np.testing.assert_allclose(out.features["inner/dense"], twice, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.features["norm"], twice / np.sqrt(1 + 1e-5), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(out.features["drop"], out.features["norm"])
    np.testing.assert_array_equal(out.features["head"], out.logits)


def test_capture_changes_nothing_else():
    batch = {"x": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)}
    plain = models.from_linen(Outer(), inputs=("x",))
    spied = models.from_linen(Outer(), inputs=("x",), capture=("norm",))
    variables = init(plain, batch)
    assert_trees_equal(init(spied, batch), variables)
    for train in (True, False):
        out, state = run(plain, variables, batch, 1, train)
        seen, state_seen = run(spied, variables, batch, 1, train)
        np.testing.assert_array_equal(out.logits, seen.logits)
        assert_trees_equal(state, state_seen)
        assert set(state) == {"batch_stats"}


def test_captured_features_join_those_returned():
    model = models.from_linen(Small(), capture=("conv",))
    out, _ = jax.eval_shape(lambda: model.apply(init(model, make_batch()), make_batch(), None, False))
    assert {n: f.shape for n, f in out.features.items()} == {
        "stage1": (16, 4, 4, 4),
        "pooled": (16, 4),
        "conv": (16, 4, 4, 4),
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inner/conv", r"Outer has no submodule 'inner/conv' .*: drop, head, inner, inner/dense, norm\."),
        ("own", r"Outer has no submodule 'own'"),
        ("never_called", r"Outer has no submodule 'never_called'"),
        ("", r"Outer has no submodule ''"),
        ("inner", r"submodule 'inner' of Outer returns a tuple instead of one array"),
    ],
)
def test_wrong_capture_is_refused_on_shapes_with_the_names_there_are(name, message):
    model = models.from_linen(Outer(), inputs=("x",), capture=("norm", name))
    variables = init(model, ONES)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda v: run(model, v, ONES), variables)


# --- NNX ---


def test_nnx_equals_linen_with_the_same_weights():
    linen, twin = models.from_linen(Small()), models.from_nnx(SmallNNX)
    variables = init(linen, make_batch())
    same = Variables(variables.params, variables.state["batch_stats"])
    assert jax.tree.map(jnp.shape, init(twin, make_batch())) == jax.tree.map(jnp.shape, same)
    out, _ = run(linen, variables, make_batch())
    out_twin, _ = run(twin, same, make_batch())
    assert_trees_close(out, out_twin, rtol=1e-5, atol=1e-6)
    trained, state = run(linen, variables, make_batch(), 0, True)
    trained_twin, state_twin = run(twin, same, make_batch(), 0, True)
    assert_trees_close(trained.features, trained_twin.features, rtol=1e-5, atol=1e-5)  # dropout comes later
    assert_trees_close(state["batch_stats"], state_twin, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_dropouts_of_nnx_have_masks_of_their_own(shared):
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
            self.rngs = rngs if shared else nnx.data(None)

        def __call__(self, x):
            return jnp.stack([self.first(x, rngs=self.rngs), self.second(x, rngs=self.rngs)])

    model = models.from_nnx(Two, inputs=("x",))
    batch = {"x": np.ones(400, np.float32)}
    variables = init(model, batch)
    assert variables == Variables({}, {})

    def masks(seed):
        return np.asarray(run(model, variables, batch, seed, True)[0].logits)

    one, other = masks(0), masks(1)
    assert set(np.unique(one)) == {0.0, 2.0}
    np.testing.assert_array_equal(one, masks(0))
    # Independent masks agree on half of the places.
    for a, b in [(one[0], one[1]), (one[0], other[0]), (one[1], other[1])]:
        assert 0.35 < np.mean(a == b) < 0.65
    out, _ = run(model, variables, batch)
    np.testing.assert_array_equal(out.logits, np.ones((2, 400)))


class Stack(nnx.Module):
    """Layers in a list, and something left behind by the call."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(11)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        self.left = nnx.Intermediate(x)
        return self.norm(x)


def test_variables_of_nnx_are_plain_dicts_with_string_keys():
    model = models.from_nnx(Stack, inputs=("x",))
    variables = init(model, ONES)

    def check(tree):
        if isinstance(tree, jax.Array):
            return
        assert type(tree) is dict
        assert {type(name) for name in tree} == {str}
        for x in tree.values():
            check(x)

    check(variables.params)
    check(variables.state)
    assert set(variables.params["layers"]) == {str(i) for i in range(11)}
    assert set(variables.state) == {"norm"}


def test_layers_of_an_nnx_list_keep_their_order():
    model = models.from_nnx(Stack, inputs=("x",))
    variables = init(model, ONES)
    out, _ = run(model, variables, ONES)
    expected = ONES["x"]
    for i in range(11):
        expected = expected @ np.asarray(variables.params["layers"][str(i)]["kernel"])
    np.testing.assert_allclose(out.logits, expected / np.sqrt(1 + 1e-5), rtol=1e-3, atol=1e-5)


def test_what_a_call_of_nnx_leaves_behind_is_not_carried():
    model = models.from_nnx(Stack, inputs=("x",))
    variables = init(model, ONES)
    for _ in range(2):
        _, state = run(model, variables, ONES, train=True)
        assert jax.tree.structure(state) == jax.tree.structure(variables.state)
        variables = Variables(variables.params, state)


def test_gradients_reach_every_parameter_of_nnx():
    model = models.from_nnx(SmallNNX)
    params, state = init(model, make_batch())

    def loss(params):
        return model.apply(Variables(params, state), make_batch(), jax.random.key(0), True)[0].logits.std()

    grads = jax.jit(jax.grad(loss))(params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_an_existing_nnx_module_brings_its_weights_and_keeps_them():
    def weights():
        return [nnx.to_pure_dict(state) for state in nnx.state(module, nnx.Param, nnx.BatchStat)]

    module = SmallNNX(nnx.Rngs(7))
    module.norm.mean[...] = jnp.arange(4.0)
    before = jax.tree.map(jnp.copy, weights())
    model, batch = models.from_nnx(lambda rngs: module), make_batch()
    variables = models.init(model, jax.random.key(0), batch)
    assert_trees_equal(variables, models.init(model, jax.random.key(1), batch))
    out, _ = run(model, variables, batch)
    module.eval()
    np.testing.assert_allclose(out.logits, module(batch["image"]).logits, rtol=1e-5, atol=1e-6)
    _, state = run(model, variables, batch, seed=0, train=True)
    assert np.any(state["norm"]["mean"] != before[1]["norm"]["mean"])
    assert_trees_equal(weights(), before)
