"""Modules as other people write them: outputs, flags of training, sown values and weights in any of the usual forms."""

import collections

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

from jaxkd import models
from jaxkd.types import TrainState, Variables, as_variables

X = {"image": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)}
Pair = collections.namedtuple("Pair", "logits hidden")


@flax.struct.dataclass
class Output:
    logits: jax.Array
    hidden: jax.Array


FORMS = {
    "dict": (lambda z, h: {"logits": z, "hidden": h}, {"hidden"}),
    "nested dict": (lambda z, h: {"logits": z, "hidden": (h, {"b": h}), "loss": None}, {"hidden/0", "hidden/1/b"}),
    "dataclass": (Output, {"hidden"}),
    "named tuple": (Pair, {"hidden"}),
    "(logits, array)": (lambda z, h: (z, h), {"output1"}),
    "(logits, list)": (lambda z, h: (z, [h, h]), {"output1/0", "output1/1"}),
    "(logits, array, array)": (lambda z, h: (z, h, h), {"output1", "output2"}),
    "[logits, features]": (lambda z, h: [z, {"hidden": h}], {"hidden"}),
}


def linen(call, **fields):
    """A model of a Linen module with this call and these attributes."""
    annotations = {name: type(value) for name, value in fields.items()}
    return type("Net", (nn.Module,), {"__call__": nn.compact(call), "__annotations__": annotations, **fields})()


def normed(x, still):
    return nn.Dense(2)(nn.BatchNorm(use_running_average=still)(x))


def trained(model):
    """The state after a step of training, and how far it is from the one before."""
    variables = model.init(jax.random.key(0), X)
    _, state = jax.jit(lambda v: model.apply(v, X, jax.random.key(1), True))(variables)
    assert jax.tree.structure(state) == jax.tree.structure(variables.state)
    return sum(
        float(jnp.abs(a - b).sum()) for a, b in zip(*map(jax.tree.leaves, (state, variables.state)), strict=True)
    )


@pytest.mark.parametrize("form", FORMS)
def test_outputs_of_any_form_have_logits_and_named_features(form):
    make, names = FORMS[form]
    model = models.from_linen(linen(lambda self, x: make(x[:, :2], x)))
    out, _ = model.apply(model.init(jax.random.key(0), X), X, None, False)
    np.testing.assert_array_equal(out.logits, X["image"][:, :2])
    assert set(out.features) == names
    assert all(np.array_equal(x, X["image"]) for x in out.features.values())


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda x: {"scores": x}, "returns a dict of scores, without `logits`"),
        (lambda x: x.astype(int), "logits of dtype int.* instead of floats"),
        (lambda x: {"logits": (x, x)}, "returns a tuple as its logits"),
        (lambda x: None, "returns a NoneType as its logits"),
    ],
)
def test_outputs_without_logits_are_a_sentence(returned, words):
    model = models.from_linen(linen(lambda self, x: returned(x)))
    with pytest.raises(TypeError, match=words):
        jax.eval_shape(lambda: model.apply(Variables({}, {}), X, None, False))


TRAINED = {
    "is_train": (lambda self, x, is_train=False: normed(x, not is_train), {}, {}),
    "inference": (lambda self, x, inference=True: normed(x, inference), {}, {}),
    "attribute": (lambda self, x: normed(x, not self.training), {"training": False}, {}),
    "named": (lambda self, x, fit=False: normed(x, not fit), {}, {"training": {"fit": True}}),
    "text": (
        lambda self, x, mode: normed(x, mode == "test"),
        {},
        {"training": {"mode": "fit"}, "evaluation": {"mode": "test"}},
    ),
    "named attribute": (lambda self, x: normed(x, not self.fit), {"fit": False}, {"training": {"fit": True}}),
    "left open": (lambda self, x: normed(x, None), {}, {}),
}


@pytest.mark.parametrize("flag", TRAINED)
def test_batch_norm_is_trained_whatever_says_so(flag):
    call, attributes, options = TRAINED[flag]
    model = models.from_linen(linen(call, **attributes), **options)
    assert trained(model) > 1e-3
    variables = model.init(jax.random.key(0), X)
    assert model.apply(variables, X, None, False)[1] is not None  # evaluation changes nothing, or Flax would refuse


def test_attribute_of_a_module_inside_is_set_but_what_a_layer_was_made_with_stays():
    inner = linen(lambda self, x: normed(x, not self.train), train=False)
    assert trained(models.from_linen(linen(lambda self, x: self.backbone(x), backbone=inner))) > 1e-3
    frozen = nn.Sequential([nn.BatchNorm(use_running_average=True), nn.Dense(2)])
    assert trained(models.from_linen(frozen, training={})) == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda self, x, fit=False: normed(x, not fit), "batch norms keep their .* call takes x, fit.*`training="),
        (lambda self, x, fit=False: nn.Dropout(0.5)(x, not fit), r"its dropout \(Dropout_0\) is off"),
        (lambda self, x: normed(x, False), "it changes its state in evaluation"),
        (lambda self, x: nn.Dropout(0.5, deterministic=False)(x), "it draws random numbers outside of training"),
        (lambda self, x, mode: x, "missing 1 required positional argument: 'mode'; name the fields .*`inputs=`"),
    ],
)
def test_a_module_whose_mode_cannot_be_set_is_a_sentence(call, words):
    model = models.from_linen(linen(call))

    def both():
        variables = model.init(jax.random.key(0), X)
        return [model.apply(variables, X, jax.random.key(0) if train else None, train) for train in (False, True)]

    with pytest.raises(ValueError, match=words):
        jax.eval_shape(both)


def test_named_flags_must_be_there_and_have_an_opposite():
    net = linen(lambda self, x, mode: x)
    with pytest.raises(ValueError, match="no flag 'modus': its call takes x, mode"):
        models.from_linen(net, training={"modus": True})
    with pytest.raises(ValueError, match="'mode' is 'fit' in one mode"):
        models.from_linen(net, training={"mode": "fit"})


def test_what_modules_sow_is_no_state_but_can_be_captured():
    def call(self, x):
        seen = self.variable("memory", "mean", lambda: jnp.zeros(3))
        self.sow("losses", "balance", x.mean())
        self.sow("sums", "balance", x.mean(), init_fn=lambda: 0.0, reduce_fn=lambda a, b: a + b)
        seen.value = x.mean(axis=0) if self.is_mutable_collection("memory") else seen.value
        return self.perturb("input", x)

    model = models.from_linen(linen(call), capture=("losses/balance",))
    variables = model.init(jax.random.key(0), X)
    assert set(variables.state) == {"memory"}
    grown = Variables({}, {**variables.state, "losses": {"balance": (jnp.zeros(()),)}})  # as `module.init` gives them
    for start in (variables, grown):
        out, state = jax.jit(lambda v: model.apply(v, X, None, True))(start)
        assert jax.tree.structure(state) == jax.tree.structure(start.state)
        np.testing.assert_allclose(state["memory"]["mean"], X["image"].mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(out.features["losses/balance"], X["image"].mean(), rtol=1e-5)


def test_other_streams_than_dropout_have_random_numbers_and_a_missing_key_is_a_sentence():
    noisy = models.from_linen(
        linen(lambda self, x, train: x + train * jax.random.normal(self.make_rng("noise"), x.shape))
    )
    one, other = (noisy.apply(Variables({}, {}), X, jax.random.key(i), True)[0].logits for i in (0, 1))
    assert float(jnp.abs(one - other).max()) > 1e-3
    with pytest.raises(ValueError, match=r"draws random numbers in training .* give its `apply` a PRNG key"):
        noisy.apply(Variables({}, {}), X, None, True)


# --- variables ---


def test_variables_are_taken_as_flax_and_checkpoints_keep_them():
    model = models.from_linen(linen(lambda self, x, train=False: normed(x, not train)))
    own = model.init(jax.random.key(0), X)
    flat = {"params": own.params, **own.state}
    wanted = model.apply(own, X, None, False)[0].logits
    for given in (flat, freeze(flat), {"params": own.params, "state": own.state}, tuple(own), Variables(flat, {})):
        assert jax.tree.structure(as_variables(given)) == jax.tree.structure(own)
        np.testing.assert_array_equal(model.apply(given, X, None, False)[0].logits, wanted)
    joined = models.join(flat, own)
    assert jax.tree.structure(joined.params["0"]) == jax.tree.structure(joined.params["1"])
    with pytest.raises(ValueError, match="state are missing 'state/batch_stats/BatchNorm_0/mean'"):
        model.apply(own.params, X, None, False)
    with pytest.raises(TypeError, match=r'TrainState was given: give Variables\(state.params\["student"\]'):
        as_variables(TrainState(0, {}, {}, {}, jax.random.key(0)))


def test_variables_of_another_shape_name_both_shapes_and_the_way_out():
    model = models.mlp(2, hidden=(3,))
    variables = model.init(jax.random.key(0), {"image": np.zeros((1, 2, 2, 3), np.float32)})
    words = r"image \(1, 4, 4, 3\).*dense1/kernel' of shape \(12, 3\) where this batch needs \(48, 3\).*at_resolution"
    with pytest.raises(ValueError, match=words):
        model.apply(variables, {"image": np.zeros((1, 4, 4, 3), np.float32)}, None, False)


# --- NNX ---


class Normed(nnx.Module):
    def __init__(self, *, rngs):
        self.norm, self.head = nnx.BatchNorm(3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(x))


class Learning(Normed):
    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.learning = False

    def __call__(self, x):
        return self.head(self.norm(x, use_running_average=not self.learning))


def test_an_existing_nnx_module_is_a_model_with_its_weights_copied():
    module = Normed(rngs=nnx.Rngs(7))
    model = models.from_nnx(module)
    variables = model.init(jax.random.key(0), X)
    module.eval()
    wanted = module(X["image"])
    for given in (variables, nnx.state(module), Variables(*nnx.state(module, nnx.Param, nnx.BatchStat))):
        np.testing.assert_allclose(model.apply(given, X, None, False)[0].logits, wanted, rtol=1e-6)
    assert trained(model) > 1e-3
    jax.tree.map(lambda x: x.delete(), variables)  # as a step does that is given them
    np.testing.assert_array_equal(module(X["image"]), wanted)


def test_flags_and_makers_of_nnx():
    assert trained(models.from_nnx(Normed)) > 1e-3  # `rngs` by name alone
    assert trained(models.from_nnx(Learning, training={"learning": True})) > 1e-3
    with pytest.raises(ValueError, match=r"batch norms keep their .* attributes are .*learning"):
        trained(models.from_nnx(Learning))
    with pytest.raises(TypeError, match=r"Linear needs in_features, out_features besides"):
        models.from_nnx(nnx.Linear)
    with pytest.raises(TypeError, match=r"was given a Dense: use models.from_linen"):
        models.from_nnx(nn.Dense(2))
    with pytest.raises(TypeError, match=r"was given a Normed: use models.from_nnx"):
        models.from_linen(Normed(rngs=nnx.Rngs(0)))
