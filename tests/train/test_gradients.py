"""The report of what each term pulls at, and the weights that balance them, against gradients taken one by one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Setup, assert_trees_equal, make_batch

from jaxkd import losses, objectives
from jaxkd.train import gradients
from jaxkd.train.step import make_inputs, make_objective
from jaxkd.types import Variables


def summed(**weights):
    terms = {
        "label": objectives.from_labels(losses.cross_entropy),
        "kd": objectives.from_logits(losses.kd),
        "hint": objectives.from_features(losses.hint, student="pooled", teacher="pooled", project=objectives.linear()),
    }
    return objectives.weighted(**{n: (weights.get(n, 1.0), t) for n, t in terms.items()})


SETUP = Setup(term=summed(kd=3.0))
PARTS = (SETUP.student, SETUP.teacher, SETUP.term)
report_of = jax.jit(gradients.make_gradient_report(*PARTS))


@jax.jit
def balanced(state, rate):
    return gradients.make_balance(*PARTS, rate=rate)(state, SETUP.teacher_variables, make_batch())


def flat(tree):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


@jax.jit
def trees_one_by_one(state):
    inputs = make_inputs(PARTS[1])(SETUP.teacher_variables, make_batch())
    objective, found = make_objective(PARTS[0], PARTS[2]), {}
    for name in ("label", "kd", "hint"):
        weights = state.state["term"]["weights"]
        alone = {n: w * (n == name) for n, w in weights.items()}
        only = dataclasses.replace(state, state={**state.state, "term": {**state.state["term"], "weights": alone}})
        found[name] = jax.grad(lambda p, s=only: objective(p, s, inputs)[0])(state.params)["student"]
    return found


def one_by_one(state):
    """Gradient of each weighted term, by leaving the others out of the sum."""
    return {name: flat(tree) for name, tree in trees_one_by_one(state).items()}


def test_report_equals_gradients_taken_one_by_one():
    report = report_of(SETUP.state, SETUP.teacher_variables, make_batch())
    each = one_by_one(SETUP.state)
    for name, g in each.items():
        assert float(report[f"gradient_norm/{name}"]) == pytest.approx(np.linalg.norm(g), rel=1e-4)
        if name != "label":
            cosine = g @ each["label"] / np.linalg.norm(g) / np.linalg.norm(each["label"])
            assert float(report[f"gradient_cosine/{name}"]) == pytest.approx(cosine, abs=1e-4)
    assert set(report) == {f"gradient_norm/{n}" for n in each} | {"gradient_cosine/kd", "gradient_cosine/hint"}


def test_balanced_terms_pull_alike():
    before = SETUP.state.state["term"]["weights"]
    balance = jax.jit(gradients.make_balance(*PARTS, rate=1.0))
    state, metrics = balance(SETUP.state, SETUP.teacher_variables, make_batch())
    norms = [np.linalg.norm(g) for g in one_by_one(state).values()]
    np.testing.assert_allclose(norms, norms[0], rtol=1e-3)
    old = [np.linalg.norm(g) for g in one_by_one(SETUP.state).values()]
    assert max(old) / min(old) > 1.5  # so that there was something to balance
    after = state.state["term"]["weights"]
    assert float(sum(after.values())) == pytest.approx(float(sum(before.values())), rel=1e-5)
    assert float(metrics["weight/kd"]) == float(after["kd"])
    assert_trees_equal(state.params, SETUP.state.params)
    assert jax.tree.structure(state) == jax.tree.structure(SETUP.state)
    new, _ = jax.jit(SETUP.step)(state, SETUP.teacher_variables, make_batch())
    assert_trees_equal(new.state["term"]["weights"], after)


def test_a_small_rate_moves_the_weights_a_little():
    spread = []
    for rate in (0.0, 0.3, 1.0):
        state, _ = balanced(SETUP.state, rate)
        norms = [np.linalg.norm(g) for g in one_by_one(state).values()]
        spread.append(max(norms) / min(norms))
    assert spread[0] > spread[1] > spread[2]


def test_a_term_without_gradient_keeps_its_weight_and_has_no_direction():
    state = SETUP.state.replace(
        state={
            **SETUP.state.state,
            "term": {
                **SETUP.state.state["term"],
                "weights": {"label": jnp.float32(1), "kd": jnp.float32(0), "hint": jnp.float32(2)},
            },
        }
    )
    report = report_of(state, SETUP.teacher_variables, make_batch())
    assert float(report["gradient_norm/kd"]) == 0
    assert float(report["gradient_cosine/kd"]) == 0
    new, _ = balanced(state, 0.1)
    assert float(new.state["term"]["weights"]["kd"]) == 0
    assert np.all(np.isfinite(flat(new.state["term"]["weights"])))


def test_what_cannot_be_reported_or_balanced_is_said():
    run = (SETUP.state, SETUP.teacher_variables, make_batch())
    with pytest.raises(ValueError, match="no term 'labels' to compare with: it has hint, kd, label"):
        jax.eval_shape(gradients.make_gradient_report(*PARTS, label="labels"), *run)
    faded = Setup(term=summed(kd=optax.linear_schedule(1.0, 0.0, 10)))
    with pytest.raises(ValueError, match=r"those of \['hint', 'label'\] among \['hint', 'kd', 'label'\]"):
        jax.eval_shape(
            gradients.make_balance(faded.student, faded.teacher, faded.term),
            faded.state,
            faded.teacher_variables,
            make_batch(),
        )
    single = Setup(term=objectives.from_labels(losses.cross_entropy))
    with pytest.raises(ValueError, match="reports no weighted terms"):
        jax.eval_shape(
            gradients.make_gradient_report(single.student, single.teacher, single.term),
            single.state,
            single.teacher_variables,
            make_batch(),
        )


def test_uncertainty_weighted_terms_are_reported_too():
    term = objectives.uncertainty_weighted(
        label=objectives.from_labels(losses.cross_entropy), kd=objectives.from_logits(losses.kd)
    )
    setup = Setup(term=term)
    report = jax.eval_shape(
        gradients.make_gradient_report(setup.student, setup.teacher, term),
        setup.state,
        setup.teacher_variables,
        make_batch(),
    )
    assert set(report) == {"gradient_norm/label", "gradient_norm/kd", "gradient_cosine/kd"}
    assert isinstance(setup.teacher_variables, Variables)
