"""Weighted sums of terms: what they add up, report, own and refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_equal
from objectives.test_terms import BATCH, KEY, STUDENT, TEACHER, rows, start, value
from sklearn.utils.class_weight import compute_class_weight

from jaxkd import losses, objectives
from jaxkd.types import Outputs, Term, Variables


def hint(project=True, student="pooled"):
    return objectives.from_features(
        losses.hint, student=student, teacher=student, project=objectives.linear() if project else None
    )


def test_weighted_adds_up_and_reports_both_values():
    label, kd = objectives.from_labels(losses.cross_entropy), objectives.from_logits(losses.kd, temperature=2.0)
    term = objectives.weighted(label=label, kd=(0.25, kd))
    total, _, found = term.apply(start(term), STUDENT, TEACHER, BATCH, KEY, 0)
    assert set(found) == {"label", "label_weighted", "kd", "kd_weighted"}
    np.testing.assert_allclose(found["label"], value(label), rtol=1e-6)
    np.testing.assert_allclose(found["kd"], value(kd), rtol=1e-6)
    np.testing.assert_allclose(found["label_weighted"], value(label), rtol=1e-6)
    np.testing.assert_allclose(found["kd_weighted"], 0.25 * value(kd), rtol=1e-6)
    np.testing.assert_allclose(total, value(label) + 0.25 * value(kd), rtol=1e-6)


def test_weighted_lays_out_params_and_state_by_name():
    term = objectives.weighted(
        label=objectives.from_labels(losses.cross_entropy, label_smoothing=0.1),
        kd=(optax.constant_schedule(1.0), objectives.from_logits(losses.kd, temperature=4)),
        hint=(3, hint()),
    )
    variables = start(term)
    assert jax.tree.map(jnp.shape, variables.params) == {
        "label": {},
        "kd": {},
        "hint": {"student": {"kernel": (4, 4), "bias": (4,)}},
    }
    expected = {
        "weights": {"label": jnp.float32(1), "hint": jnp.float32(3)},
        "label": {"label_smoothing": jnp.float32(0.1)},
        "kd": {"temperature": jnp.float32(4)},
        "hint": {},
    }
    assert_trees_equal(variables.state, expected)


@pytest.mark.parametrize(("step", "weight"), [(0, 1.0), (5, 0.6), (10, 0.2), (15, 0.2)])
def test_scheduled_weight_follows_the_step(step, weight):
    plain = objectives.from_logits(rows)
    term = objectives.weighted(a=(optax.linear_schedule(1.0, 0.2, 10), plain), b=(0.5, plain))
    compiled = jax.jit(lambda step: term.apply(start(term), STUDENT, TEACHER, BATCH, KEY, step))
    total, _, found = compiled(step)
    np.testing.assert_allclose(found["a"], value(plain), rtol=1e-6)
    np.testing.assert_allclose(found["a_weighted"], weight * value(plain), rtol=1e-5)
    np.testing.assert_allclose(total, (weight + 0.5) * value(plain), rtol=1e-5)


@pytest.mark.parametrize("weight", [2, 2.0, np.float32(2), np.asarray(2.0), jnp.asarray(2.0), np.int64(2)], ids=type)
def test_weight_may_be_any_single_number(weight):
    plain = objectives.from_logits(rows)
    term = objectives.weighted(a=(weight, plain))
    assert_trees_equal(start(term).state["weights"], {"a": jnp.float32(2)})
    assert value(term) == pytest.approx(2 * value(plain), rel=1e-6)


@pytest.mark.parametrize(
    ("weight", "found"), [(np.asarray([1.0, 2.0]), r"has shape \(2,\)"), (np.nan, "is nan"), ("x", "is 'x'")]
)
def test_weight_that_is_no_single_number_is_refused(weight, found):
    with pytest.raises(ValueError, match=f"the weight of 'kd' {found}: give one finite number or a schedule"):
        objectives.weighted(kd=(weight, objectives.from_logits(losses.kd)))


def test_what_is_no_term_is_refused():
    term = objectives.from_logits(losses.kd)
    for given in (0.5, losses.kd, (0.5,), (term, 0.5), (0.5, losses.kd), None):
        with pytest.raises(TypeError, match=r"'kd' is neither a term nor \(weight, term\): give kd=\(0.5, "):
            objectives.weighted(kd=given)


def test_weighted_sums_nest():
    a, b, c = objectives.from_labels(losses.cross_entropy), objectives.from_logits(losses.kd), hint(project=False)
    inner = objectives.weighted(b=(2.0, b), c=(3.0, c))
    term = objectives.weighted(a=a, rest=(0.5, inner))
    variables = start(term)
    assert set(variables.state["rest"]) == {"weights", "b", "c"}
    total, state, found = term.apply(variables, STUDENT, TEACHER, BATCH, KEY, 0)
    assert_trees_equal(state, variables.state)
    flat = objectives.weighted(a=a, b=(1.0, b), c=(1.5, c))
    np.testing.assert_allclose(total, value(flat), rtol=1e-6)
    names = {"a", "a_weighted", "rest", "rest_weighted"}
    assert set(found) == names | {f"rest/{n}{s}" for n in "bc" for s in ("", "_weighted")}
    np.testing.assert_allclose(found["rest/b_weighted"], 2 * value(b), rtol=1e-6)
    np.testing.assert_allclose(found["rest"], 2 * value(b) + 3 * value(c), rtol=1e-6)


def test_terms_of_a_sum_start_apart():
    term = objectives.weighted(one=hint(), two=hint(), nest=objectives.weighted(one=hint(), two=hint()))
    params = start(term).params
    kernels = [params["one"], params["two"], params["nest"]["one"], params["nest"]["two"]]
    for i, a in enumerate(kernels):
        for b in kernels[:i]:
            assert float(jnp.abs(a["student"]["kernel"] - b["student"]["kernel"]).max()) > 1e-2
    # A term's start depends on its name and the key, not on its neighbours.
    alone = start(objectives.weighted(two=hint())).params
    assert_trees_equal(alone["two"], params["two"])
    other = start(term, key=jax.random.key(1)).params
    assert float(jnp.abs(other["one"]["student"]["kernel"] - params["one"]["student"]["kernel"]).max()) > 1e-2


def test_terms_of_a_sum_draw_apart_and_keep_their_own_state():
    def init(key, student, teacher, batch):
        return Variables({}, {"seen": jnp.zeros((), jnp.int32)})

    def apply(variables, student, teacher, batch, key, step):
        drawn = jax.random.uniform(key)
        return drawn, {"seen": variables.state["seen"] + 1}, {"drawn": drawn}

    noisy = Term(init, apply)
    term = objectives.weighted(one=noisy, two=(2.0, noisy))
    variables = start(term)
    _, state, found = term.apply(variables, STUDENT, TEACHER, BATCH, KEY, 0)
    assert found["one"] != found["two"]
    assert found["one/drawn"] == found["one"]
    assert found["two/drawn"] == found["two"]
    assert_trees_equal({n: state[n]["seen"] for n in ("one", "two")}, {"one": jnp.int32(1), "two": jnp.int32(1)})
    _, again, repeated = term.apply(Variables(variables.params, state), STUDENT, TEACHER, BATCH, KEY, 1)
    assert repeated["one"] == found["one"]  # the key alone decides
    assert again["one"]["seen"] == 2


def test_gradients_reach_student_and_projections_by_their_weights():
    term = objectives.weighted(one=(1.0, hint()), two=(0.0, hint()))
    variables = start(term)

    def loss(params, pooled):
        student = Outputs(STUDENT.logits, {"pooled": pooled})
        return term.apply(Variables(params, variables.state), student, TEACHER, BATCH, KEY, 0)[0]

    params, pooled = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables.params, STUDENT.features["pooled"])
    assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(params["one"]))
    assert_trees_equal(params["two"], jax.tree.map(np.zeros_like, variables.params["two"]))
    assert float(np.abs(pooled).max()) > 1e-3


def test_sum_of_nothing_and_a_term_called_weights_are_refused():
    for given in ({}, {"weights": objectives.from_logits(losses.kd)}):
        with pytest.raises(ValueError, match='at least one term, none of them called "weights"'):
            objectives.weighted(**given)


def test_class_weights_make_classes_count_alike():
    labels = np.array([0, 0, 0, 0, 1, 2, 2, 0])
    weights = objectives.inverse_frequency(labels, 4)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(weights, [*expected, 1], rtol=1e-6)
    np.testing.assert_allclose(weights[labels].mean(), 1, rtol=1e-6)
    given = BATCH | {"label": np.asarray([0, 2, 1, 2, 0, 1], np.int32)}
    term = objectives.from_labels(losses.cross_entropy, weigh=objectives.class_weight([1.0, 2.0, 5.0]))
    found, _, _ = term.apply(start(term), STUDENT, TEACHER, given, KEY, 0)
    each = losses.cross_entropy(STUDENT.logits, given["label"])
    np.testing.assert_allclose(found, np.mean(np.array([1.0, 2, 5])[given["label"]] * each), rtol=1e-6)


def test_class_weights_that_are_none_are_refused():
    for weights in ([1.0], [1.0, -1.0], [1.0, np.nan], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="give one number of 0 or more for each of at least 2 classes"):
            objectives.class_weight(weights)
    for labels in ([], [0, 4], [-1, 0], [0.5]):
        with pytest.raises(ValueError, match=r"give at least one integer in 0\.\.3"):
            objectives.inverse_frequency(np.array(labels), 4)
    weigh = objectives.class_weight([1.0, 2.0])
    assert np.isnan(weigh(STUDENT, TEACHER, {"label": jnp.asarray([0, 2])})).tolist() == [False, True]
