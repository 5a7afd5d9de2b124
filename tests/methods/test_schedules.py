"""Annealing-KD and dynamic weights, against their formulas, and projections that warm up."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import losses, objectives
from jaxkd.methods.annealing import annealed, annealing
from jaxkd.methods.dynamic_weights import dynamic_weights
from jaxkd.train.optimizers import unfreezing
from jaxkd.types import Outputs, Variables

RANDOM = np.random.default_rng(0)
Z, T = (RANDOM.standard_normal((6, 3)).astype(np.float32) for _ in range(2))
BATCH = {"label": np.array([0, 1, 2, 0, 1, 2]), "held_out": np.array([False, True, False, False, True, False])}
LABEL, MSE = objectives.from_labels(losses.cross_entropy), objectives.from_logits(losses.logits_mse)
KEY = jax.random.key(0)


@functools.cache
def derivative(term):
    params = {name: {} for name in ("label", "kd", "logits")}

    def value(z, state, batch, step):
        found, new, metrics = term.apply(Variables(params, state), Outputs(z), Outputs(T), batch, KEY, step)
        return found, (new, metrics)

    return jax.jit(jax.value_and_grad(value, has_aux=True))


def evaluate(term, state, student=Z, batch=BATCH, step=0):
    """Value, new state, metrics, gradient in the student's logits."""
    (found, (new, metrics)), gradient = derivative(term)(student, state, batch, step)
    return float(found), new, {n: float(x) for n, x in metrics.items()}, np.asarray(gradient)


def begin(term, batch=BATCH):
    return term.init(KEY, Outputs(jnp.asarray(Z)), Outputs(jnp.asarray(T)), batch).state


def test_annealing_grows_the_teachers_logits_then_leaves_the_labels():
    term = annealing(8, max_temperature=4)
    state = begin(term)
    assert list(np.asarray(annealed(8, max_temperature=4)(np.arange(10)))) == [
        *(0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0),
        *(1.0, 1.0),
    ]
    for step, phi in ((0, 0.25), (5, 0.75), (7, 1.0)):
        assert evaluate(term, state, step=step)[0] == pytest.approx(float(np.mean((Z - phi * T) ** 2)), rel=1e-5)
    assert evaluate(term, state, step=8)[0] == pytest.approx(float(jnp.mean(losses.cross_entropy(Z, BATCH["label"]))))
    for steps, most in ((3, 4), (5, 0)):
        with pytest.raises(ValueError, match=f"{steps} steps are too few to anneal from {most}"):
            annealing(steps, max_temperature=most)


def test_held_out_rows_have_no_gradient_and_equal_progress_keeps_the_weights():
    term = dynamic_weights({"label": (0.25, LABEL), "kd": (0.75, MSE)})
    value, state, metrics, gradient = evaluate(term, begin(term))
    kept = ~BATCH["held_out"]
    by_hand = 0.25 * losses.cross_entropy(Z, BATCH["label"]) + 0.75 * losses.logits_mse(Z, T)
    assert value == pytest.approx(float(np.mean(np.asarray(by_hand)[kept])), rel=1e-5)
    assert metrics["label_weight"] == pytest.approx(0.25)
    assert np.all(gradient[~kept] == 0)
    assert np.all(np.abs(gradient[kept]).sum(1) > 0)
    again = evaluate(term, state)
    assert again[2]["kd_weight"] == pytest.approx(0.75, rel=1e-6)
    assert jax.tree.structure(again[1]) == jax.tree.structure(begin(term))


def test_a_loss_that_does_not_fall_gets_more_weight():
    term = dynamic_weights({"label": (0.5, LABEL), "kd": (1.0, MSE)}, memory=0.75, temperature=0.5)
    _, state, _, _ = evaluate(term, begin(term))
    label = lambda z: float(np.mean(np.asarray(losses.cross_entropy(z, BATCH["label"]))[BATCH["held_out"]]))  # noqa: E731
    copied = T.copy()  # the teacher's own logits: its regression falls to 0, the labels change
    _, new, metrics, _ = evaluate(term, state, student=copied)
    start = {"label": label(Z), "kd": float(np.mean((Z - T)[BATCH["held_out"]] ** 2))}
    now = {"label": label(copied), "kd": 0.0}
    ratios = {n: (0.5 * start[n] + 0.5 * now[n]) / (0.75 * start[n] + 0.25 * now[n]) for n in start}
    pulls = {"label": 0.5 * np.exp(ratios["label"] / 0.5), "kd": np.exp(ratios["kd"] / 0.5)}
    for name in pulls:
        assert metrics[f"{name}_weight"] == pytest.approx(1.5 * pulls[name] / sum(pulls.values()), rel=1e-5)
    nothing = {**BATCH, "held_out": np.zeros(6, bool)}  # weights stay as they are
    assert evaluate(term, new, batch=nothing)[2]["kd_weight"] == pytest.approx(metrics["kd_weight"])


def test_what_cannot_be_weighted_is_said():
    for terms in ({"label": (1.0, LABEL)}, {"label": (1.0, LABEL), "seen": (1.0, MSE)}):
        with pytest.raises(ValueError, match="give at least two, none of them called weights, fast, slow, seen"):
            dynamic_weights(terms)
    two = {"label": (1.0, LABEL), "kd": (1.0, MSE)}
    with pytest.raises(ValueError, match="the weight of 'kd' is -1: give a number above 0"):
        dynamic_weights({**two, "kd": (-1, MSE)})
    with pytest.raises(ValueError, match=r"the temperature is 0 and the memory 0.98: give"):
        dynamic_weights(two, temperature=0)
    with pytest.raises(ValueError, match=r"held_out' has shape \(6, 1\): give one boolean an example"):
        begin(dynamic_weights(two), {**BATCH, "held_out": np.zeros((6, 1), bool)})
    with pytest.raises(ValueError, match="held_out"):
        begin(dynamic_weights(two), {"label": BATCH["label"]})
    with pytest.raises(ValueError, match="a switch at step 0 leaves no step"):
        objectives.switched(0)


def test_projections_can_warm_up_before_the_student_moves():
    params = {"student": {"kernel": jnp.ones(2)}, "term": {"hint": jnp.ones(2)}}
    optimizer = unfreezing(optax.sgd, ["^term/", "^student/"], 0.1, decay=1.0, every=2)
    state, moved = optimizer.init(params), []
    for _ in range(3):
        updates, state = optimizer.update(params, state, params)
        moved.append([float(updates["term"]["hint"][0]), float(updates["student"]["kernel"][0])])
    np.testing.assert_allclose(moved, [[-0.1, 0], [-0.1, 0], [-0.1, -0.1]], rtol=1e-6)
