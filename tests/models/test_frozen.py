"""Frozen params: the same outputs, no gradient, no moments, and a step that moves the others alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_equal

from jaxkd import losses, models, objectives, train
from jaxkd.models.size import count_work
from jaxkd.types import Variables

MODEL = models.bag_of_embeddings(3, vocabulary=7, width=4, hidden=5)
BATCH = {"tokens": np.arange(12).reshape(4, 3) % 7, "token_mask": np.ones((4, 3), bool), "label": np.arange(4) % 3}
KEY, PATTERN = jax.random.key(0), "token|^hidden/kernel"


@pytest.fixture(scope="module")
def variables():
    return MODEL.init(KEY, BATCH)


def test_parts_come_together_again(variables):
    apart = models.freeze(variables, PATTERN)
    assert set(apart.params["hidden"]) == {"bias"}
    assert set(apart.state["frozen"]["hidden"]) == {"kernel"}
    assert_trees_equal(models.thaw(apart), variables)
    assert_trees_equal(models.thaw(variables), variables)
    assert models.count_parameters(apart) < models.count_parameters(models.thaw(apart))


def test_a_step_moves_the_others_alone_and_keeps_no_moments_of_the_frozen(variables):
    model, start = models.frozen(MODEL, PATTERN), models.freeze(variables, PATTERN)
    parts = model, models.no_teacher(), objectives.from_labels(losses.cross_entropy), optax.adam(0.1)
    batch = {name: jnp.asarray(x) for name, x in BATCH.items()}
    none = Variables({}, {})
    state = train.init_state(*parts, key=KEY, batch=batch, teacher_variables=none, student_variables=start)
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) == 2 * models.count_parameters(start) + 1
    new, _ = jax.jit(train.make_train_step(*parts))(state, none, batch)
    assert_trees_equal(new.state["student"], start.state)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), new.params["student"], start.params)
    assert all(jax.tree.leaves(moved))
    found = model.apply(start, batch, None, False)[0].logits
    np.testing.assert_array_equal(found, MODEL.apply(variables, batch, None, False)[0].logits)


def test_nothing_is_computed_backward_through_frozen_layers():
    model = models.bert(2, vocabulary=7, layers=3, width=8, heads=2, max_length=4)
    everything = jax.eval_shape(model.init, KEY, BATCH)

    def products(model, variables):
        def loss(params, state):
            return jnp.sum(model.apply(Variables(params, state), BATCH, None, False)[0].logits)

        return count_work(jax.grad(loss), variables.params, variables.state).products

    pattern = r"encoder/(token|position|segment|norm|block[01])"
    apart = jax.eval_shape(lambda v: models.freeze(v, pattern), everything)
    whole, part = products(model, everything), products(models.frozen(model, pattern), apart)
    assert part < 0.6 * whole


@pytest.mark.parametrize(("pattern", "which"), [("encoder", "no param"), (".", "all params")])
def test_a_pattern_that_freezes_nothing_or_everything_is_refused(variables, pattern, which):
    with pytest.raises(ValueError, match=f"freezes {which}: .*head/bias"):
        models.freeze(variables, pattern)


def test_variables_without_frozen_params_get_a_sentence(variables):
    with pytest.raises(ValueError, match="no frozen params: make them by models"):
        models.frozen(MODEL, PATTERN).apply(variables, BATCH, None, False)


def test_frozen_params_are_computed_with_in_the_format_of_the_others_and_stay_exact():
    model = models.mlp(3, hidden=(4,))
    batch = {"image": np.ones((2, 5), np.float32)}
    variables = models.freeze(models.init(model, jax.random.key(0), batch), "^dense1/")
    out, state = models.in_dtype(models.frozen(model, "^dense1/")).apply(variables, batch, None, False)
    assert out.features["pooled"].dtype == jnp.bfloat16
    jax.tree.map(np.testing.assert_array_equal, state, variables.state)


def test_a_pattern_that_is_no_regular_expression_is_one_sentence():
    variables = Variables({"head": {"kernel": jnp.zeros((2, 3))}}, {})
    for use in (models.freeze, lambda v, pattern: models.add_lora(jax.random.key(0), v, pattern, 1)):
        with pytest.raises(ValueError, match=r"'\(' is no regular expression \(missing \)"):
            use(variables, "(")
