"""Weights that adapt: what each balances or ignores, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from objectives.adaptive import BATCH, STUDENT, TEACHER, B, K, evaluate, start

from jaxkd import losses, objectives
from jaxkd.types import Outputs, Variables


def two():
    return {"label": objectives.from_labels(losses.cross_entropy), "kd": objectives.from_logits(losses.kd)}


def test_uncertainties_start_as_a_plain_sum_and_settle_at_the_terms():
    term = objectives.uncertainty_weighted(**two())
    owned = start(term)
    total, _, metrics = evaluate(term, owned)
    assert float(total) == pytest.approx(float(metrics["label"] + metrics["kd"]), rel=1e-6)
    assert set(metrics) == {f"{n}{s}" for n in two() for s in ("", "_weighted", "_weight")}
    # d/ds (exp(-s) L + s / 2) = 0 at s = log 2 L, where each share is a half.
    params = {**owned.params, "log_variance": {n: jnp.log(2 * metrics[n]) for n in two()}}
    grads = jax.grad(lambda p: evaluate(term, Variables(p, owned.state))[0])(params)
    np.testing.assert_allclose(jax.tree.leaves(grads["log_variance"]), 0, atol=1e-6)
    settled = evaluate(term, Variables(params, owned.state))[2]
    np.testing.assert_allclose([settled["label_weighted"], settled["kd_weighted"]], 0.5, rtol=1e-5)


def test_uncertainties_are_trained():
    term = objectives.uncertainty_weighted(**two())
    owned = start(term)
    optimizer = optax.sgd(0.5)
    params, opt_state = owned.params, optimizer.init(owned.params)
    slope = jax.jit(jax.grad(lambda p: evaluate(term, Variables(p, owned.state))[0]))
    for _ in range(60):
        grads = slope(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
    metrics = evaluate(term, Variables(params, owned.state))[2]
    np.testing.assert_allclose([metrics["label_weighted"], metrics["kd_weighted"]], 0.5, rtol=1e-2)


@pytest.mark.parametrize("terms", [{}, {"log_variance": two()["kd"]}])
def test_uncertainties_need_named_terms(terms):
    with pytest.raises(ValueError, match="needs at least one term"):
        objectives.uncertainty_weighted(**terms)


P = np.exp(np.asarray(TEACHER.logits, np.float64))
P /= P.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("weigh", "expected"),
    [
        (objectives.teacher_confidence(), P[np.arange(B), np.arange(B) % K]),
        (objectives.teacher_certainty(), 1 + (P * np.log(P)).sum(1) / np.log(K)),
        (
            objectives.student_doubt(power=2.0),
            (1 - np.exp(-np.asarray(losses.cross_entropy(STUDENT.logits, BATCH["label"]), np.float64))) ** 2,
        ),
        (
            objectives.wsld_weight(),
            1
            - np.exp(
                -np.asarray(losses.cross_entropy(STUDENT.logits, BATCH["label"]))
                / -np.log(P[np.arange(B), np.arange(B) % K])
            ),
        ),
    ],
    ids=["confidence", "certainty", "doubt", "wsld"],
)
def test_factors_multiply_each_example_and_pass_no_gradient(weigh, expected):
    np.testing.assert_allclose(weigh(STUDENT, TEACHER, BATCH), expected, rtol=1e-4, atol=1e-6)
    term = objectives.from_logits(losses.kd, weigh=weigh)

    def weighed(student):
        return evaluate(term, start(term), student=Outputs(student))[0]

    def fixed(student):
        return jnp.mean(expected.astype(np.float32) * losses.kd(student, TEACHER.logits))

    (value, gradient), (by_hand, wanted) = (jax.jit(jax.value_and_grad(f))(STUDENT.logits) for f in (weighed, fixed))
    assert float(value) == pytest.approx(float(by_hand), rel=1e-4)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-3, atol=1e-6)


def test_wslds_weight_makes_kd_its_soft_part():
    """The two differ by the teacher's entropy, which has no gradient in the student."""
    term = objectives.from_logits(losses.kd, weigh=objectives.wsld_weight(), temperature=4.0)
    paths = ("student.logits", "teacher.logits", "batch.label")
    whole = objectives.from_outputs(losses.wsld, *paths, alpha=1.0, temperature=4.0)
    slopes = (jax.jit(jax.grad(lambda s, t=t: evaluate(t, start(t), student=Outputs(s))[0])) for t in (term, whole))
    one, two = (slope(STUDENT.logits) for slope in slopes)
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_factors_at_the_ends_are_finite_and_right():
    sure = Outputs(1e4 * jax.nn.one_hot(BATCH["label"], K))
    flat = Outputs(jnp.zeros((B, K)))
    np.testing.assert_allclose(objectives.teacher_certainty()(flat, sure, BATCH), 1)
    np.testing.assert_allclose(objectives.teacher_certainty()(sure, flat, BATCH), 0, atol=1e-6)
    np.testing.assert_allclose(objectives.teacher_confidence()(flat, sure, BATCH), 1)
    np.testing.assert_allclose(objectives.wsld_weight()(flat, sure, BATCH), 1)
    np.testing.assert_allclose(objectives.student_doubt()(sure, flat, BATCH), 0)


def test_a_loss_that_couples_the_batch_cannot_be_weighed():
    term = objectives.from_logits(losses.dist, weigh=objectives.teacher_certainty())
    with pytest.raises(ValueError, match=r"couples the batch.*cannot be weighed"):
        evaluate(term, start(term))
