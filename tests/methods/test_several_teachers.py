"""Several teachers: their weights, terms with these, weights that are trained, several students of one teacher."""

import functools

import jax
import numpy as np
import optax
import pytest
from helpers import CLASSES, assert_trees_close, make_batch

from jaxkd import losses, models, objectives, train
from jaxkd.methods import several_teachers
from jaxkd.types import Outputs, Variables

B, M = 6, 3
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (M, B, CLASSES)).astype(np.float32)
LABEL = RNG.integers(0, CLASSES, B).astype(np.int32)
BATCH = {"label": LABEL, "teacher": np.array([0, 1, 2, 2, 1, 0], np.int32)}
STUDENT = Outputs(RNG.normal(0, 1, (B, CLASSES)).astype(np.float32), {"pooled": RNG.normal(0, 1, (B, 4))})
KINDS = {
    "equal": several_teachers.equal(),
    "confidence": several_teachers.by_confidence(),
    "entropy": several_teachers.by_entropy(),
    "agreement": several_teachers.by_agreement(),
    "tag": several_teachers.by_tag(),
}
KEY = jax.random.key(0)


def outputs(logits):
    """Outputs of an ensemble of teachers with these logits [M, B, K]."""
    features = {f"{m}/logits": z for m, z in enumerate(logits)} | {
        f"{m}/pooled": z[:, :4] for m, z in enumerate(logits)
    }
    return Outputs(logits.mean(axis=0), features)


def softmax(z, axis=-1):
    e = np.exp(np.asarray(z, np.float64) - np.max(z, axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def kd(m, weigh):
    return objectives.from_outputs(losses.kd, "student.logits", f"teacher.{m}/logits", weigh=weigh, temperature=2.0)


def value(term, logits=LOGITS, batch=BATCH, student=STUDENT):
    teacher = outputs(logits)
    start = term.init(KEY, student, teacher, batch)
    return jax.jit(lambda *given: term.apply(start, *given, KEY, 0)[0])(student, teacher, dict(batch))


def weights(name, logits=LOGITS, batch=BATCH):
    return np.asarray(jax.jit(KINDS[name])(STUDENT, logits, batch))


PLAIN = objectives.from_outputs(losses.kd, "student.logits", "teacher.0/logits", temperature=2.0)


@pytest.mark.parametrize("name", KINDS)
def test_weights_sum_to_one_and_follow_the_order_of_the_teachers(name):
    found = weights(name)
    assert found.shape == (M, B)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=0), np.ones(B), rtol=1e-6)
    order = [2, 0, 1]
    batch = {**BATCH, "teacher": np.argsort(order)[BATCH["teacher"]].astype(np.int32)}
    permuted = weights(name, LOGITS[order], batch)
    np.testing.assert_allclose(permuted, found[order], rtol=1e-5, atol=1e-7)
    far = weights(name, 1e4 * np.sign(LOGITS))
    np.testing.assert_allclose(np.sum(far, axis=0), np.ones(B), rtol=1e-6)


def test_weights_are_those_of_their_formulas():
    p = softmax(LOGITS)
    e = np.exp(-np.log(p[:, np.arange(B), LABEL]))
    found = {name: weights(name) for name in KINDS}
    np.testing.assert_allclose(found["confidence"], (1 - e / e.sum(axis=0)) / (M - 1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["entropy"], softmax((p * np.log(p)).sum(-1), axis=0), rtol=1e-4)
    apart = np.stack([sum(np.abs(a - b).sum(-1) / 2 for b in p) / (M - 1) for a in p])
    np.testing.assert_allclose(found["agreement"], softmax(-apart / 0.25, axis=0), rtol=1e-4)
    np.testing.assert_array_equal(found["tag"], (BATCH["teacher"] == np.arange(M)[:, None]).astype(np.float32))


@pytest.mark.parametrize("name", KINDS)
def test_one_teacher_and_identical_teachers_are_plain_distillation(name):
    batch = {**BATCH, "teacher": np.zeros(B, np.int32)}
    one = value(several_teachers.each(kd, 1, KINDS[name]), LOGITS[:1], batch)
    np.testing.assert_allclose(one, value(PLAIN), rtol=1e-6)
    same = value(several_teachers.each(kd, M, KINDS[name]), np.stack([LOGITS[0]] * M))
    np.testing.assert_allclose(same, value(PLAIN), rtol=1e-6)


def test_the_tag_selects_exactly():
    expected = np.mean(
        [losses.kd(STUDENT.logits[[b]], LOGITS[m][[b]], temperature=2.0)[0] for b, m in enumerate(BATCH["teacher"])]
    )
    found = value(several_teachers.each(kd, M, several_teachers.by_tag()))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_wrong_tag_or_label_is_nan_and_its_absence_a_sentence():
    term = several_teachers.each(kd, M, several_teachers.by_tag())
    wrong = {**BATCH, "teacher": np.array([0, 1, 2, 3, 1, 0], np.int32)}
    assert np.isnan(value(term, batch=wrong))
    assert np.isfinite(value(term, batch={**wrong, "mask": np.arange(B) != 3}))  # padding
    with pytest.raises(ValueError, match="no field 'teacher'"):
        value(term, batch={"label": LABEL})
    with pytest.raises(ValueError, match=r"tags 'teacher' have shape \(6,\) and dtype float32 .* integer in 0..2"):
        value(term, batch={**BATCH, "teacher": np.zeros(B, np.float32)})
    confident = several_teachers.each(kd, M, several_teachers.by_confidence())
    assert np.isnan(value(confident, batch={"label": np.full(B, CLASSES, np.int32)}))


def test_hints_of_several_teachers_are_weighed_alike():
    def hint(m, weigh):
        return objectives.from_features(losses.hint, student="pooled", teacher=f"{m}/pooled", weigh=weigh)

    expected = np.mean(
        [losses.hint(STUDENT.features["pooled"][[b]], LOGITS[m][[b], :4])[0] for b, m in enumerate(BATCH["teacher"])]
    )
    found = value(several_teachers.each(hint, M, several_teachers.by_tag()))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="members is 0"):
        several_teachers.each(kd, 0)
    with pytest.raises(ValueError, match="scale of the teachers' weights is 0"):
        several_teachers.by_entropy(scale=0.0)
    with pytest.raises(ValueError, match="the teacher has no feature '3/logits'"):
        value(several_teachers.each(kd, 4))
    with pytest.raises(ValueError, match="members is 0"):
        objectives.learned_teachers(losses.kd, members=0)
    with pytest.raises(ValueError, match="the student has no member 2: it has 0/logits, 1/logits"):
        value(objectives.of_member(PLAIN, student=2), student=outputs(LOGITS[:2]))


# --- weights that are trained ---


def skilled(rows):
    """Logits of two good teachers and of one that always says the first class, of labels of these rows."""
    label = RNG.integers(0, CLASSES, rows).astype(np.int32)
    good = 3 * np.eye(CLASSES)[label] + RNG.normal(0, 1, (2, rows, CLASSES))
    constant = np.broadcast_to(8.0 * (np.arange(CLASSES) == 0), (1, rows, CLASSES))
    return np.concatenate([good, constant]).astype(np.float32), label


@pytest.mark.parametrize("gate", [None, "student.pooled"])
def test_trained_weights_leave_a_teacher_that_always_says_the_same(gate):
    logits, label = skilled(60)
    student = Outputs(logits[2], {"pooled": RNG.normal(0, 1, (60, 4)).astype(np.float32)})  # a student like the bad one
    teacher, batch = outputs(logits), {"label": label}
    term = objectives.learned_teachers(losses.kd, members=3, gate=gate, temperature=2.0)
    start = term.init(KEY, student, teacher, batch)
    optimizer = optax.adam(0.1)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda p: term.apply(Variables(p, start.state), student, teacher, batch, KEY, 0)[0])(
                params
            )
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, 60)
        return term.apply(Variables(params, start.state), student, teacher, batch, KEY, 0)[2]

    found = run(start.params)
    weights = [float(found[f"weight{m}"]) for m in range(3)]
    np.testing.assert_allclose(sum(weights), 1, rtol=1e-5)
    assert weights[2] < 0.03
    assert min(weights[:2]) > 0.2


def test_trained_weights_begin_equal_and_reach_no_student():
    teacher = outputs(LOGITS)
    term = objectives.learned_teachers(losses.kd, members=M, gate="student.pooled", temperature=2.0)
    start = term.init(KEY, STUDENT, teacher, BATCH)
    assert {name: x.shape for name, x in start.params.items()} == {"bias": (M,), "kernel": (4, M)}

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def of_pooled(x):
        found, _, metrics = term.apply(start, STUDENT._replace(features={"pooled": x}), teacher, BATCH, KEY, 0)
        return found, metrics

    (found, metrics), gradient = of_pooled(np.float32(STUDENT.features["pooled"]))
    np.testing.assert_array_equal(gradient, 0)
    mixture = np.mean(-np.log(softmax(LOGITS).mean(axis=0)[np.arange(B), LABEL]))
    np.testing.assert_allclose(found, value(several_teachers.each(kd, M)) + mixture, rtol=1e-5)
    np.testing.assert_allclose([metrics[f"weight{m}"] for m in range(M)], 1 / M, rtol=1e-6)
    some = objectives.learned_teachers(losses.kd, members=M, where="held_out", temperature=2.0)
    none = value(some, batch={"label": np.full(B, -1), "held_out": np.zeros(B, bool)})
    np.testing.assert_allclose(none, value(several_teachers.each(kd, M)), rtol=1e-5)
    with pytest.raises(ValueError, match=r"gate's feature .* name one with a vector for each row"):
        value(
            objectives.learned_teachers(losses.kd, members=M, gate="student.map"),
            student=STUDENT._replace(features={"map": np.zeros((B, 2, 4))}),
        )
    with pytest.raises(ValueError, match=r"gives values of shape .* use one that gives a value for each row"):
        value(objectives.learned_teachers(losses.dist, members=M))


# --- several students of one teacher ---

NETWORKS = [models.mlp(CLASSES, hidden=(width,)) for width in (3, 4)]
TEACHER = models.mlp(CLASSES, hidden=(6,))


def trained(student, term, start, teacher_variables, steps=3):
    """Variables after a few steps."""
    parts = student, TEACHER, term, optax.sgd(0.1)
    state = train.init_state(
        *parts, key=KEY, batch=make_batch(), teacher_variables=teacher_variables, student_variables=start
    )
    step = jax.jit(train.make_train_step(*parts))
    for i in range(steps):
        state, _ = step(state, teacher_variables, make_batch(seed=i))
    return Variables(state.params["student"], state.state["student"])


def test_several_students_of_one_teacher_are_those_that_are_trained_alone():
    batch = make_batch()
    starts = [jax.jit(model.init)(jax.random.key(i), batch) for i, model in enumerate(NETWORKS)]
    teacher_variables = jax.jit(TEACHER.init)(jax.random.key(9), batch)
    terms = [
        objectives.weighted(label=objectives.from_labels(losses.cross_entropy), kd=objectives.from_logits(losses.kd)),
        objectives.from_logits(losses.kd, temperature=4.0),
    ]
    both = objectives.weighted(**{f"student{i}": objectives.of_member(term, student=i) for i, term in enumerate(terms)})
    found = trained(models.ensemble(*NETWORKS), both, models.join(*starts), teacher_variables)
    for i, (model, term, start) in enumerate(zip(NETWORKS, terms, starts, strict=True)):
        alone = trained(model, term, start, teacher_variables)
        assert_trees_close(found.params[str(i)], alone.params, rtol=1e-5, atol=1e-6)


def test_a_stack_is_the_ensemble():
    batch, model = make_batch(), NETWORKS[0]
    one, other = models.stacked(model, M), models.ensemble(*[model] * M)
    made, apart = jax.jit(one.init)(KEY, batch), jax.jit(other.init)(KEY, batch)
    owned = [Variables(apart.params[str(i)], apart.state[str(i)]) for i in range(M)]
    assert_trees_close(models.stack(*owned), made, rtol=1e-6)
    found, _ = jax.jit(one.apply, static_argnums=3)(models.stack(*owned), batch, None, False)
    expected, _ = jax.jit(other.apply, static_argnums=3)(apart, batch, None, False)
    assert found.features.keys() == expected.features.keys()
    assert_trees_close(dict(found.features), dict(expected.features), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"stack of 2 members have leading axes \[\(3,\)\]"):
        models.stacked(model, 2).apply(made, batch, None, False)
    with pytest.raises(ValueError, match="members 0 and 1 of a stack have other names or shapes"):
        models.stack(owned[0], Variables({"other": np.zeros(3)}, {}))
    with pytest.raises(ValueError, match="at least one"):
        models.stacked(model, 0)
    with pytest.raises(ValueError, match="at least one"):
        models.stack()
