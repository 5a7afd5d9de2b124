"""Parameters by path: frozen ones stay bit for bit, others get their own rate, decay spares biases and norms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Setup, assert_trees_equal, make_batch

from jaxkd import train
from jaxkd.train import optimizers

PARAMS = {
    "student": {"stem": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "head": {"kernel": jnp.ones((2, 3))}},
    "term": {"hint": {"kernel": jnp.ones((2, 2))}},
}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def moves(optimizer):
    updates, _ = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
    return jax.tree.map(lambda u: float(np.unique(u).item()), updates)


def test_the_first_rule_that_matches_decides():
    rules = {r"stem/bias": optax.sgd(3.0), r"student/stem": optax.set_to_zero(), r"^term": optax.sgd(2.0)}
    assert moves(optimizers.by_path(rules, optax.sgd(1.0))) == {
        "student": {"stem": {"kernel": 0.0, "bias": -3.0}, "head": {"kernel": -1.0}},
        "term": {"hint": {"kernel": -2.0}},
    }


@pytest.mark.parametrize("rules", [{"stom": optax.sgd(1.0)}, {"stem": optax.sgd(1.0), "stem/bias": optax.sgd(2.0)}])
def test_a_rule_for_nothing_is_an_error_that_lists_the_parameters(rules):
    with pytest.raises(ValueError, match=r"decides over no parameter.*student/head/kernel, student/stem/bias"):
        optimizers.by_path(rules, optax.sgd(1.0)).init(PARAMS)


def test_frozen_layers_stay_bit_for_bit_and_carry_no_moments():
    base = Setup()
    optimizer = optimizers.by_path({r"student/conv": optax.set_to_zero()}, optax.adam(1e-2))
    parts = (base.student, base.teacher, base.term, optimizer)
    state = train.init_state(
        *parts, key=jax.random.key(0), batch=make_batch(), teacher_variables=base.teacher_variables
    )
    step = jax.jit(train.make_train_step(*parts))
    start = state.params
    for seed in range(3):
        state, _ = step(state, base.teacher_variables, make_batch(seed=seed))
    assert_trees_equal(state.params["student"]["conv"], start["student"]["conv"])
    assert float(jnp.abs(state.params["student"]["head"]["kernel"] - start["student"]["head"]["kernel"]).max()) > 1e-3
    assert float(jnp.abs(state.params["term"]["hint"]["student"]["kernel"]).max()) > 0
    sizes = [np.size(x) for x in jax.tree.leaves(state.opt_state)]
    moving = sum(np.size(x) for x in jax.tree.leaves(start)) - np.size(start["student"]["conv"]["kernel"])
    assert sum(s for s in sizes if s > 1) <= 2 * moving


def test_decay_spares_vectors():
    assert optimizers.kernels_only(PARAMS) == {
        "student": {"stem": {"kernel": True, "bias": False}, "head": {"kernel": True}},
        "term": {"hint": {"kernel": True}},
    }
    decay = optax.chain(optax.add_decayed_weights(0.5, mask=optimizers.kernels_only), optax.sgd(1.0))
    assert moves(decay)["student"]["stem"] == {"kernel": -1.5, "bias": -1.0}


def test_masks_by_path():
    assert optimizers.path_mask("head|term")(PARAMS) == {
        "student": {"stem": {"kernel": False, "bias": False}, "head": {"kernel": True}},
        "term": {"hint": {"kernel": True}},
    }


def test_deeper_groups_thaw_first_and_learn_faster():
    groups = ("head|term/", "stem/kernel", "stem")
    optimizer = optimizers.unfreezing(optax.sgd, groups, optax.linear_schedule(1.0, 0.0, 10), decay=0.5, every=2)
    state, found = optimizer.init(PARAMS), []
    for _ in range(6):
        updates, state = optimizer.update(GRADS, state, PARAMS)
        student = updates["student"]
        parts = (student["head"], updates["term"]["hint"], student["stem"])
        parts = [*(part["kernel"] for part in parts), student["stem"]["bias"]]
        found.append([-float(np.unique(part).item()) for part in parts])
    rate = 1 - np.arange(6) / 10
    head, term, kernel, bias = np.transpose(found)
    np.testing.assert_allclose(head, rate, rtol=1e-6)
    np.testing.assert_array_equal(term, head)
    np.testing.assert_allclose(kernel, np.where(np.arange(6) < 2, 0, 0.5 * rate), rtol=1e-6)
    np.testing.assert_allclose(bias, np.where(np.arange(6) < 4, 0, 0.25 * rate), rtol=1e-6)


def test_groups_must_hold_every_parameter():
    with pytest.raises(ValueError, match="no group has student/stem/bias, student/stem/kernel: add a pattern"):
        optimizers.unfreezing(optax.sgd, ("head", "term"), 0.1).init(PARAMS)
    with pytest.raises(ValueError, match="no group of layers to unfreeze"):
        optimizers.unfreezing(optax.sgd, (), 0.1)
