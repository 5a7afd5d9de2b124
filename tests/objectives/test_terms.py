"""Terms own what they should, take the mean once, add up as written, and name what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import CLASSES, assert_trees_equal

from jaxkd import losses, objectives
from jaxkd.types import Outputs, Variables

KEY = jax.random.key(0)


def outputs(width=4, seed=0, size=6):
    """Logits, a map and a vector, drawn at random."""
    rng = np.random.default_rng(seed)
    features = {"stage1": rng.standard_normal((size, 2, 2, width)), "pooled": rng.standard_normal((size, width))}
    logits = rng.standard_normal((size, CLASSES)).astype(np.float32)
    return Outputs(logits, {n: f.astype(np.float32) for n, f in features.items()})


STUDENT, TEACHER = outputs(), outputs(seed=1)
BATCH = {"image": np.zeros((6, 2, 2, 1), np.float32), "label": np.asarray([0, 1, 2, 3, 4, 0], np.int32)}
HALF = np.asarray([1, 0, 1, 1, 0, 0], bool)


def start(term, student=STUDENT, teacher=TEACHER, batch=BATCH, key=KEY):
    """Variables from shapes alone, as the step makes them."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (student, teacher, batch))
    return term.init(key, *shapes)


def value(term, student=STUDENT, teacher=TEACHER, batch=BATCH, step=0, variables=None):
    variables = start(term, student, teacher, batch) if variables is None else variables
    found, state, _ = term.apply(variables, student, teacher, batch, KEY, jnp.asarray(step))
    assert found.shape == ()
    assert_trees_equal(state, variables.state)
    return float(found)


def mean(x, weights=None):
    return float(np.average(np.asarray(x, np.float64), weights=weights))


def rows(student, teacher, *, scale=1.0, power=2):
    """Sum over classes of scale |s - t|^power: [B]."""
    return scale * jnp.sum(jnp.abs(student - teacher) ** power, axis=-1)


def coupled(student, teacher):
    return jnp.mean(rows(student, teacher))


# --- hyper-parameters ---


def test_unknown_hyper_parameter_is_refused_with_those_there_are():
    with pytest.raises(TypeError, match=r"rows has no hyper-parameter 'temperature': it takes scale, power\."):
        objectives.from_logits(rows, temperature=3.0)
    with pytest.raises(TypeError, match=r"coupled has no hyper-parameter 'scale': it takes none\."):
        objectives.from_logits(coupled, scale=3.0)
    with pytest.raises(TypeError, match=r"hint has no hyper-parameter 'scale'"):
        objectives.from_features(losses.hint, student="a", teacher="b", scale=1.0)

    def anything(student, teacher, **options):
        return options["scale"] * rows(student, teacher)

    assert value(objectives.from_logits(anything, scale=2.0)) == pytest.approx(2 * value(objectives.from_logits(rows)))


def test_temperatures_that_divide_by_nothing_are_refused():
    s, t = STUDENT.logits, TEACHER.logits
    for T in (0.0, -1.0, np.nan, np.inf, "4", None, np.asarray([1.0, 0.0])):
        with pytest.raises(ValueError, match=r"temperature is .* give a positive number"):
            objectives.from_logits(losses.kd, temperature=T)
    for loss in (losses.kd, losses.reverse_kl, losses.logits_mse, losses.dist, losses.binary_kd):
        with pytest.raises(ValueError, match=r"temperature is -2\.0"):
            loss(s, t, temperature=-2.0)
        assert np.isfinite(jax.jit(lambda T, loss=loss: loss(s, t, temperature=T))(2.0)).all()


def test_mixtures_by_weights_outside_0_and_1_are_refused():
    for loss, name in ((losses.jsd, "beta"), (losses.skew_kl, "alpha"), (losses.skew_reverse_kl, "alpha")):
        for weight in (2.0, -0.1, np.nan):
            with pytest.raises(ValueError, match=r"the weight of a mixture is .*: give a number from 0 to 1"):
                loss(STUDENT.logits, TEACHER.logits, **{name: weight})


def test_losses_of_other_arguments_are_refused():
    with pytest.raises(TypeError, match=r"cross_entropy takes logits, labels, but is given student\.logits, teacher"):
        objectives.from_logits(losses.cross_entropy)
    with pytest.raises(TypeError, match=r"dkd takes student_logits, teacher_logits, labels, but is given student"):
        objectives.from_logits(losses.dkd)
    with pytest.raises(TypeError, match=r"kd takes student_logits, teacher_logits, but is given"):
        objectives.from_outputs(losses.kd, "student.logits", "teacher.logits", "batch.label")


def test_held_numbers_reach_the_loss_through_the_state():
    term = objectives.from_logits(rows, scale=2.0, power=3)
    variables = start(term)
    assert variables.params == {}
    assert_trees_equal(variables.state, {"scale": jnp.float32(2.0)})
    expected = mean(np.sum(np.abs(STUDENT.logits - TEACHER.logits) ** 3, axis=-1))
    assert value(term) == pytest.approx(2 * expected, rel=1e-5)
    assert value(term, variables=Variables({}, {"scale": jnp.float32(5.0)})) == pytest.approx(5 * expected, rel=1e-5)


def test_array_of_temperatures_is_one_an_example():
    T = np.asarray([1, 2, 3, 4, 5, 6], np.float32)
    kd = jax.jit(losses.kd)
    alone = [kd(STUDENT.logits[i], TEACHER.logits[i], temperature=T[i]) for i in range(6)]
    assert value(objectives.from_logits(losses.kd, temperature=T)) == pytest.approx(mean(alone), rel=1e-5)


def test_scheduled_temperature_follows_the_step():
    term = objectives.from_logits(losses.kd, temperature=optax.linear_schedule(1.0, 5.0, 4))
    for step, T in [(0, 1.0), (2, 3.0), (4, 5.0), (9, 5.0)]:
        fixed = mean(losses.kd(STUDENT.logits, TEACHER.logits, temperature=T))
        assert value(term, step=step) == pytest.approx(fixed, rel=1e-5)


# --- the mean and its masks ---


def test_labels_are_read_from_their_field():
    expected = optax.softmax_cross_entropy_with_integer_labels(STUDENT.logits, BATCH["label"])
    assert value(objectives.from_labels(losses.cross_entropy)) == pytest.approx(mean(expected), rel=1e-6)
    renamed = {"image": BATCH["image"], "target": BATCH["label"]}
    found = value(objectives.from_labels(losses.cross_entropy, label="target"), batch=renamed)
    assert found == pytest.approx(mean(expected), rel=1e-6)


def terms(**options):
    return {
        "labels": objectives.from_labels(losses.cross_entropy, **options),
        "logits": objectives.from_logits(losses.kd, **options),
        "features": objectives.from_features(losses.hint, student="pooled", teacher="pooled", **options),
    }


def kept(tree, mask):
    return jax.tree.map(lambda x: x[mask], tree)


@pytest.mark.parametrize("kind", ["labels", "logits", "features"])
def test_where_and_mask_leave_examples_out(kind):
    only = value(terms()[kind], *(kept(x, HALF) for x in (STUDENT, TEACHER, BATCH)))
    assert abs(only - value(terms()[kind])) > 1e-3
    assert value(terms()[kind], batch={**BATCH, "mask": HALF}) == pytest.approx(only, rel=1e-5)
    assert value(terms(where="known")[kind], batch={**BATCH, "known": HALF}) == pytest.approx(only, rel=1e-5)
    other = np.asarray([1, 1, 0, 1, 1, 0], bool)
    found = value(terms(where="known")[kind], batch={**BATCH, "mask": other, "known": HALF})
    both = value(terms()[kind], *(kept(x, HALF & other) for x in (STUDENT, TEACHER, BATCH)))
    assert found == pytest.approx(both, rel=1e-5)
    assert value(terms(where="known")[kind], batch={**BATCH, "mask": ~HALF, "known": HALF}) == 0


def test_where_may_hold_weights():
    weight = np.asarray([0.5, 0, 2, 1, 0, 0.25], np.float32)
    found = value(objectives.from_logits(rows, where="w"), batch={**BATCH, "w": weight})
    assert found == pytest.approx(mean(rows(STUDENT.logits, TEACHER.logits), weight), rel=1e-5)


def test_mask_covers_tokens_too():
    student, teacher = (Outputs(x.features["stage1"].reshape(6, 4, 4)) for x in (STUDENT, TEACHER))
    tokens = np.random.default_rng(0).random((6, 4)) < 0.5
    each = np.square(student.logits - teacher.logits).sum(-1)
    expected = mean(each, tokens)
    assert value(objectives.from_logits(rows), student, teacher, {"mask": tokens}) == pytest.approx(expected, rel=1e-5)
    both = mean(each, tokens * HALF[:, None])
    found = value(objectives.from_logits(rows, where="known"), student, teacher, {"mask": tokens, "known": HALF})
    assert found == pytest.approx(both, rel=1e-5)


def test_what_is_left_out_changes_neither_value_nor_gradient():
    term, batch = objectives.from_logits(rows), {**BATCH, "mask": HALF}

    @jax.jit
    @jax.value_and_grad
    def loss(rubbish):
        logits = jnp.where(HALF[:, None], STUDENT.logits, rubbish)
        return term.apply(Variables({}, {}), Outputs(logits), TEACHER, batch, KEY, 0)[0]

    expected, _ = loss(0.0)
    for rubbish in (np.nan, np.inf, 1e30):
        np.testing.assert_allclose(loss(rubbish)[0], expected, rtol=1e-6)
    assert loss(3.0)[1] == 0


def test_loss_that_couples_the_batch_takes_no_mask():
    assert value(objectives.from_logits(coupled)) == pytest.approx(value(objectives.from_logits(rows)), rel=1e-6)
    for term, batch in [
        (objectives.from_logits(coupled), {**BATCH, "mask": HALF}),
        (objectives.from_logits(coupled, where="known"), {**BATCH, "known": HALF}),
    ]:
        with pytest.raises(ValueError, match=r"couples the batch and returns a scalar.*drop the remainder"):
            value(term, batch=batch)


@pytest.mark.parametrize("kind", ["labels", "logits", "features"])
def test_field_of_the_batch_that_is_not_there_is_named(kind):
    with pytest.raises(
        ValueError, match=r"the batch has no field 'known': it has image, label; add it in the pipeline"
    ):
        value(terms(where="known")[kind])


# --- features and projections ---


def test_pick_finds_features_and_logits():
    assert objectives.pick(STUDENT, "pooled", "student") is STUDENT.features["pooled"]
    assert objectives.pick(STUDENT, "logits", "student") is STUDENT.logits


@pytest.mark.parametrize(
    ("given", "name", "message"),
    [
        (STUDENT, "deep", r"the student has no feature 'deep': .*: stage1 \(6, 2, 2, 4\), pooled \(6, 4\)\."),
        (Outputs(STUDENT.logits, {}), "deep", r"the student has no feature 'deep': .* has: none\."),
        (Outputs(None, {}), "deep", r"reads 'deep' of the student, but there is no student"),
        (Outputs(None, {}), "logits", r"reads 'logits' of the student, but there is no student"),
    ],
)
def test_pick_lists_what_there_is(given, name, message):
    with pytest.raises(ValueError, match=message):
        objectives.pick(given, name, "student")


def test_features_are_compared_after_the_projection():
    wide = outputs(width=7, seed=2)
    term = objectives.from_features(losses.hint, student="stage1", teacher="stage1", project=objectives.linear())
    variables = start(term, teacher=wide)
    assert jax.tree.map(jnp.shape, variables) == Variables({"student": {"kernel": (4, 7), "bias": (7,)}}, {})
    moved = variables._replace(params={"student": {**variables.params["student"], "bias": jnp.arange(7.0)}})
    projected = STUDENT.features["stage1"] @ np.asarray(moved.params["student"]["kernel"]) + np.arange(7.0)
    expected = mean((projected - wide.features["stage1"]) ** 2)
    assert value(term, teacher=wide, variables=moved) == pytest.approx(expected, rel=1e-5)
    # The teacher's side is not touched: a projection to the same width is there all the same.
    assert set(start(term).params["student"]) == {"kernel", "bias"}


def test_without_a_projection_features_are_compared_as_they_are():
    term = objectives.from_features(losses.hint, student="pooled", teacher="pooled")
    assert start(term) == Variables({}, {})
    expected = mean((STUDENT.features["pooled"] - TEACHER.features["pooled"]) ** 2)
    assert value(term) == pytest.approx(expected, rel=1e-5)


def test_feature_terms_hold_numbers_and_projections_apart():
    def scaled(student, teacher, *, scale=1.0):
        return scale * losses.hint(student, teacher)

    term = objectives.from_features(
        scaled, student="pooled", teacher="logits", project=objectives.linear(bias=False), scale=3
    )
    variables = start(term)
    assert jax.tree.map(jnp.shape, variables.params) == {"student": {"kernel": (4, CLASSES)}}
    assert_trees_equal(variables.state, {"scale": jnp.float32(3.0)})
    expected = 3 * mean(
        (STUDENT.features["pooled"] @ np.asarray(variables.params["student"]["kernel"]) - TEACHER.logits) ** 2
    )
    assert value(term) == pytest.approx(expected, rel=1e-5)
