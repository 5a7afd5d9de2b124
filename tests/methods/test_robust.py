"""Robust students: what they learn without a perturbation, their formulas, and what the attack on them may touch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax, softmax

from jaxkd import losses, models, objectives, train
from jaxkd.keys import fold_name
from jaxkd.methods import robust
from jaxkd.train import perturbations, students
from jaxkd.train.perturbations import L2, Range
from jaxkd.types import TEACHER, Model, Outputs, Variables

B, K = 4, 3
RNG = np.random.default_rng(0)
BATCH = {"image": RNG.uniform(0, 1, (B, 3, 3, 1)).astype(np.float32), "label": np.array([0, 1, 2, 1])}
ATTACK = robust.Attack(0.3, 0.1, 3)
NONE = robust.Attack(0.0, 0.1, 3)


def init(key, batch):
    inner, head = (jax.random.normal(jax.random.fold_in(key, i), shape) for i, shape in enumerate(((9, 5), (5, K))))
    return Variables({"inner": inner, "head": head}, {"mean": jnp.zeros(5)})


def apply(variables, batch, key, train):
    """Two layers, between which a running mean is taken off, in training the batch's."""
    p, old = variables.params, variables.state["mean"]
    x = batch["image"].reshape(B, -1) @ p["inner"]
    mean = x.mean(axis=0)
    x = jnp.tanh(x - (mean if train else old)[None])
    return Outputs(x @ p["head"], {"inner": x}), {"mean": (old + mean) / 2 if train else old}


PLAIN = Model(init, apply)
START = init(jax.random.key(1), BATCH)
TEACHER_VARIABLES = jax.tree.map(lambda x: 2 * x + 0.3, init(jax.random.key(5), BATCH))
TEACHER_OUT = apply(TEACHER_VARIABLES, BATCH, None, False)[0]
KD = objectives.from_logits(losses.kd, temperature=2.0)
LABEL = objectives.from_labels(losses.cross_entropy)


def step_of(student, term):
    """Gradients and new state of the student that a training step takes."""
    rows = train.state.with_teacher(student, BATCH, TEACHER_VARIABLES)
    key = jax.random.key(2)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def take(params):
        out, state = student.apply(Variables(params, START.state), rows, key, True)
        owned = term.init(key, out, TEACHER_OUT, BATCH)
        return term.apply(owned, out, TEACHER_OUT, BATCH, key, jnp.int32(0))[0], state

    return take(START.params)


WITHOUT = {
    "adversarial training": (robust.against_labels(PLAIN, NONE), robust.adversarial_training(), LABEL),
    "trades": (robust.against_itself(PLAIN, NONE), robust.trades(3.0), LABEL),
    "ard": (robust.against_labels(PLAIN, NONE), robust.ard(2.0), KD),
    "iad": (robust.against_labels(PLAIN, NONE, PLAIN), robust.iad(0.0, 2.0), KD),
    "rslad": (
        robust.against_teacher(PLAIN, NONE, PLAIN),
        robust.rslad(0.6),
        objectives.from_logits(losses.kd, temperature=1.0),
    ),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_epsilon_0_is_plain_training_or_plain_distillation(name):
    student, term, plain = WITHOUT[name]
    exact = name in ("ard", "adversarial training")
    same = functools.partial(np.testing.assert_allclose, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6)
    jax.tree.map(same, step_of(student, term), step_of(PLAIN, plain))


def test_running_statistics_move_once_to_the_middle_of_both_passes():
    out, state = outputs_of(robust.against_labels(PLAIN, ATTACK))
    loss = lambda out, batch: losses.cross_entropy(out.logits, batch["label"])  # noqa: E731
    ball = perturbations.UNIT.ball(jnp.asarray(BATCH["image"]), 0.3)
    attempts = train.attacks.on_model(PLAIN, START, BATCH, loss, train=True)
    start = ball.start(fold_name(jax.random.key(0), "attack"))
    found = jax.jit(lambda x: train.attacks.pgd(attempts, ball, x, steps=3, step_size=0.1).perturbation)(start)
    moved, after = (apply(START, {**BATCH, "image": BATCH["image"] + x}, None, True) for x in (found, 0))
    np.testing.assert_allclose(out.features["adversarial"], moved[0].logits, rtol=1e-4)
    np.testing.assert_allclose(state["mean"], (moved[1]["mean"] + after[1]["mean"]) / 2, rtol=1e-4)
    assert np.abs(moved[1]["mean"] - after[1]["mean"]).max() > 0.01


# --- the attack on a student


def outputs_of(student, **batch):
    """Outputs and new state in training."""
    return jax.jit(functools.partial(student.apply, train=True))(START, {**BATCH, **batch}, jax.random.key(0))


def students_of(attack):
    return {
        "labels": robust.against_labels(PLAIN, attack),
        "itself": robust.against_itself(PLAIN, attack),
        "teacher": robust.against_teacher(PLAIN, attack, PLAIN),
    }


@pytest.mark.parametrize(
    ("against", "norm"),
    [("labels", ATTACK.norm), ("itself", ATTACK.norm), ("teacher", L2)],
    ids=["labels", "itself", "teacher in L2"],
)
def test_the_attack_makes_its_loss_larger(against, norm):
    attack = ATTACK._replace(norm=norm, pixels=Range(-2.0, 2.0))
    out, _ = outputs_of(students_of(attack)[against], **{TEACHER: TEACHER_VARIABLES})
    clean = apply(START, BATCH, None, True)[0].logits
    np.testing.assert_allclose(out.logits, clean, rtol=1e-5)
    before, after = (
        {
            "labels": losses.cross_entropy(z, BATCH["label"]),
            "itself": losses.kd(z, clean, temperature=1.0),
            "teacher": losses.kd(z, TEACHER_OUT.logits, temperature=1.0),
        }[against]
        for z in (clean, out.features["adversarial"])
    )
    assert (after > before).all()


def test_evaluated_it_is_the_network_and_its_variables_are_too():
    for student in students_of(ATTACK).values():
        jax.tree.map(np.testing.assert_array_equal, student.init(jax.random.key(1), BATCH), START)
        found, expected = (model.apply(START, BATCH, None, False) for model in (student, PLAIN))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_teacher_answers_at_the_student_s_perturbed_images():
    asked = outputs_of(robust.against_labels(PLAIN, ATTACK, PLAIN), **{TEACHER: TEACHER_VARIABLES})[0].features
    clean = TEACHER_OUT.logits
    assert np.abs(asked["teacher_adversarial"] - clean).max() > 1e-3
    still = outputs_of(robust.against_labels(PLAIN, NONE, PLAIN), **{TEACHER: TEACHER_VARIABLES})[0].features
    np.testing.assert_allclose(still["teacher_adversarial"], clean, rtol=1e-5)


@pytest.mark.parametrize("key", [None, jax.random.key(0)], ids=["no key", "no teacher"])
def test_a_student_without_what_its_attack_needs_is_one_sentence(key):
    missing = "a key" if key is None else "the variables of its teacher"
    with pytest.raises(ValueError, match=f"which needs {missing}"):
        robust.against_teacher(PLAIN, ATTACK, PLAIN).apply(START, BATCH, key, True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epsilon": -1.0}, "epsilon of an attack is -1.0"),
        ({"step_size": np.nan}, "step size"),
        ({"steps": 0}, "0 steps"),
    ],
)
def test_numbers_of_an_attack_are_checked_first(wrong, message):
    with pytest.raises(ValueError, match=message):
        robust.against_labels(PLAIN, ATTACK._replace(**wrong))


def test_epsilon_and_beta_are_points_of_a_sweep_which_compiles_once():
    optimizer = optax.sgd(0.1)

    def parts(epsilon, beta):
        student = robust.against_itself(PLAIN, ATTACK._replace(epsilon=epsilon))
        return student, models.no_teacher(), robust.trades(beta), optimizer

    points = students.grid(epsilon=(0.0, 0.3), beta=(0.0, 6.0))
    sweep = students.sweep(parts, points)
    none = Variables({}, {})
    begin = functools.partial(sweep.init, key=jax.random.key(2), batch=BATCH, teacher_variables=none)
    step = jax.jit(students.map_students(sweep.make_step()))
    state, metrics = step(begin(student_variables=START), none, BATCH)
    np.testing.assert_allclose(metrics["robust"][:2], 0, atol=1e-7)
    assert (np.asarray(metrics["robust"][2:]) > 1e-3).all()
    np.testing.assert_allclose(
        metrics["loss"], metrics["clean"] + np.array([0, 6, 0, 6]) * metrics["robust"], rtol=1e-5
    )
    other = {"epsilon": np.float32([0.1, 0.2, 0.3, 0.4]), "beta": np.float32([1, 2, 3, 4])}
    step(state.replace(hyper={name: jnp.asarray(x) for name, x in other.items()}), none, BATCH)
    assert step._cache_size() == 1


# --- formulas


def numpy_kl(s, t, T=1.0):
    return T**2 * (softmax(t / T, -1) * (log_softmax(t / T, -1) - log_softmax(s / T, -1))).sum(-1)


LOGITS = {name: 2 * RNG.standard_normal((B, K)) for name in ("clean", "moved", "teacher", "teacher_moved")}


def value_of(term):
    features = {"adversarial": LOGITS["moved"], "teacher_adversarial": LOGITS["teacher_moved"]}
    student = Outputs(*jax.tree.map(jnp.float32, (LOGITS["clean"], features)))
    teacher, key = Outputs(jnp.float32(LOGITS["teacher"])), jax.random.key(0)
    variables = term.init(key, student, teacher, BATCH)
    return float(term.apply(variables, student, teacher, BATCH, key, jnp.int32(0))[0])


def test_terms_equal_their_formulas():
    s, a, t, ta = LOGITS.values()
    y = BATCH["label"]
    ce = lambda z: -log_softmax(z, -1)[np.arange(B), y]  # noqa: E731
    w = softmax(ta, -1)[np.arange(B), y] ** 0.5
    expected = {
        robust.adversarial_training(): ce(a),
        robust.trades(3.0): ce(s) + 3 * numpy_kl(a, s),
        robust.ard(5.0, 0.9): 0.9 * numpy_kl(a, t, 5.0) + 0.1 * ce(s),
        robust.rslad(0.7): 0.3 * numpy_kl(s, t) + 0.7 * numpy_kl(a, t),
        robust.iad(0.5, 2.0): w * numpy_kl(a, t, 2.0) + (1 - w) * numpy_kl(a, s, 2.0),
    }
    for term, values in expected.items():
        assert value_of(term) == pytest.approx(values.mean(), rel=1e-5)


@pytest.mark.parametrize("right", [True, False])
def test_iad_follows_a_certain_teacher_and_not_one_that_excludes_the_label(right, monkeypatch):
    certain = np.where(np.eye(K)[(BATCH["label"] + (not right)) % K] > 0, 1e4, -1e4)
    monkeypatch.setitem(LOGITS, "teacher_moved", certain)
    followed = LOGITS["teacher"] if right else LOGITS["clean"]
    assert value_of(robust.iad(1.0)) == pytest.approx(numpy_kl(LOGITS["moved"], followed).mean(), rel=1e-5)
    assert value_of(robust.iad(lambda step: 0.0)) == pytest.approx(value_of(robust.ard(1.0)), rel=1e-6)


def test_weights_may_be_schedules():
    schedule = lambda step: 0.25 + step  # noqa: E731
    assert value_of(robust.rslad(schedule)) == pytest.approx(value_of(robust.rslad(0.25)), rel=1e-6)
    assert value_of(robust.ard(2.0, schedule)) == pytest.approx(value_of(robust.ard(2.0, 0.25)), rel=1e-6)
