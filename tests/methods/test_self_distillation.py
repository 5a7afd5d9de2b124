"""Exits of a network and their objective: the formula by hand, the network as it was, no gradient into the teacher."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import CLASSES, assert_trees_equal, make_batch

from jaxkd import models, train
from jaxkd.methods import self_distillation
from jaxkd.types import Outputs, Variables

NET = models.convnet(CLASSES, widths=(2, 3))
EXITS = ("stage1",)
NET_ALONE = NET._replace(
    init=lambda key, batch: STUDENT.init(key, batch), apply=lambda v, *rest: NET.apply(models.without_exits(v), *rest)
)
STUDENT = models.with_exits(NET, EXITS, CLASSES)
BATCH = {name: x[:4] for name, x in make_batch().items()}


@functools.cache
def start():
    return jax.device_get(jax.jit(STUDENT.init)(jax.random.key(0), BATCH))


@functools.cache
def outputs():
    return jax.jit(lambda v: STUDENT.apply(v, BATCH, None, False))(start())


def test_the_network_stays_as_it_is_and_comes_back_plain():
    out, state = outputs()
    plain, _ = jax.jit(lambda v: NET.apply(v, BATCH, None, False))(models.without_exits(start()))
    np.testing.assert_allclose(out.logits, plain.logits, rtol=1e-6)
    assert_trees_equal(state, start().state)
    assert out.features["logits_stage1"].shape == out.logits.shape
    assert out.features["hint_stage1"].shape == out.features["pooled"].shape
    early = models.at_head(STUDENT, "stage1").apply(start(), BATCH, None, False)[0]
    np.testing.assert_allclose(early.logits, out.features["logits_stage1"], rtol=1e-5, atol=1e-6)


def test_what_lies_deeper_than_an_exit_is_neither_computed_nor_counted():
    def program(model):
        apply = jax.jit(lambda v: model.apply(v, BATCH, None, False)[0].logits)
        return apply.lower(start()).as_text().count("stablehlo.convolution"), models.size(model, BATCH).flops

    early, plain, whole = (program(m) for m in (models.at_head(STUDENT, "stage1"), NET_ALONE, STUDENT))
    assert early[0] == 2 + 2  # of the first stage and of its exit, which halves the map once
    assert whole == plain  # the exits cost nothing where nothing reads them
    assert early[1] < whole[1]


def test_the_objective_is_the_papers_and_the_deepest_exit_is_a_constant_in_it():
    random = np.random.default_rng(1)
    z, z1 = random.standard_normal((2, 4, CLASSES)).astype(np.float32)
    h, h1 = random.standard_normal((2, 4, 3)).astype(np.float32)
    y, alpha, T, w = BATCH["label"], 0.4, 2.0, 0.5
    term = self_distillation.deepest_teaches(EXITS, alpha=alpha, temperature=T, weight=w)

    def value(z, z1, h, h1):
        out = Outputs(z, {"logits_stage1": z1, "hint_stage1": h1, "pooled": h})
        owned = term.init(jax.random.key(0), out, None, BATCH)
        return term.apply(owned, out, None, BATCH, jax.random.key(0), jnp.int32(0))[0]

    found, grads = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2, 3)))(z, z1, h, h1)

    def ce(z):
        return optax.softmax_cross_entropy_with_integer_labels(z, y).mean()

    def kl(q):
        log_p = jax.nn.log_softmax(z / T)
        return T**2 * jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(q / T)), -1).mean()

    wanted = ce(z) + (1 - alpha) * ce(z1) + alpha * kl(z1) + w * np.mean((h1 - h) ** 2)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(grads[0], jax.grad(ce)(z), rtol=1e-5, atol=1e-7)  # labels alone
    np.testing.assert_array_equal(grads[2], np.zeros_like(h))
    np.testing.assert_allclose(grads[3], w * 2 * (h1 - h) / h.size, rtol=1e-4, atol=1e-7)


def test_exits_are_trained_in_a_step_and_may_stand_on_any_feature():
    vectors = models.with_exits(models.mlp(CLASSES, hidden=(4, 3)), ("hidden1",), CLASSES)
    term = self_distillation.deepest_teaches(("hidden1",))
    parts = (vectors, models.no_teacher(), term, optax.adam(0.1))
    state = train.init_state(*parts, key=jax.random.key(0), batch=BATCH, teacher_variables=None)
    step = jax.jit(train.make_train_step(*parts))
    state, first = step(state, None, BATCH)
    for _ in range(20):
        state, found = step(state, None, BATCH)
    assert found["label_hidden1"] < first["label_hidden1"]


def begun(features):
    return models.with_exits(NET, features, CLASSES).init(jax.random.key(0), BATCH)


@pytest.mark.parametrize(("message", "make"), [
    ("name at least one feature, each once", lambda: models.with_exits(NET, ("stage1", "stage1"), CLASSES)),
    ("num_classes is 0: give the number of classes of the exits", lambda: models.with_exits(NET, ("stage1",), 0)),
    ("has no feature 'stage7' for exits", lambda: begun(("stage7",))),
    ("have no exits", lambda: models.without_exits(Variables({"head": 1}, {}))),
    ("name at least one, such as", lambda: self_distillation.deepest_teaches("stage1")),
    ("alpha is 2", lambda: self_distillation.deepest_teaches(EXITS, alpha=2)),
])  # fmt: skip
def test_what_does_not_fit_fails_in_a_sentence(message, make):
    with pytest.raises(ValueError, match=message):
        make()
