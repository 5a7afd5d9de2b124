"""Gradients of micro-batches: their mean is the whole batch's where that is possible, and elsewhere it is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import CLASSES, Setup, assert_trees_close, make_batch
from objectives.methods import BATCH, STUDENT, TEACHER, TERMS, started

from jaxkd import losses, metrics, models, objectives, parallel, train
from jaxkd.objectives import means
from jaxkd.train import students
from jaxkd.types import WHOLE, Term, Variables, Whole

LABEL = objectives.from_labels(losses.cross_entropy)
KD = objectives.from_logits(losses.kd, temperature=2.0)
SP = objectives.from_features(losses.sp, student="pooled", teacher="pooled")
MASKED = objectives.weighted(
    label=(0.3, objectives.from_labels(losses.cross_entropy, where="labelled")),
    kd=objectives.from_logits(losses.kd, weigh=objectives.teacher_confidence()),
)
PER_EXAMPLE = {
    "labels and soft labels": objectives.weighted(label=(0.5, LABEL), kd=(optax.linear_schedule(1, 0, 9), KD)),
    "masks": MASKED,
    "projection": objectives.from_features(
        losses.hint, student="pooled", teacher="pooled", project=objectives.linear()
    ),
    "uncertainty": objectives.uncertainty_weighted(
        label=objectives.from_labels(losses.cross_entropy, where="labelled")
    ),
}
# These draw a mask for each example, so their values differ with the batch's shape; on average they do not.
RANDOM = ("mgd channels", "mgd positions", "vitkd")
SLOW = ("fgd", "review", "semckd")  # to compile; others own convolutions and attention too


def batch(seed=0):
    """A batch with padding at its end and few labels, unevenly spread."""
    rng = np.random.default_rng(seed)
    return {**make_batch(24, seed), "mask": np.arange(24) < 19, "labelled": rng.uniform(size=24) ** 2}


SMALL = models.mlp(CLASSES, hidden=(6,))  # neither batch norm nor dropout
ADD = {"mask": np.ones(16, bool), "labelled": np.ones(16)}


def prepare(batch):
    """Setup initialises the term on a batch without masks."""
    return {**{name: values[: len(batch["label"])] for name, values in ADD.items()}, **batch}


def trained(term, plan=None, steps=2, **options):
    """State and metrics after a few steps."""
    setup = Setup(student=SMALL, term=term, prepare=prepare, **options)
    step, state, known = setup.step, setup.state, setup.teacher_variables
    step = plan.compile(step) if plan else jax.jit(step)
    state, known = plan.put((state, known)) if plan else (state, known)
    for seed in range(steps):
        state, found = step(state, known, plan.place(batch(seed)) if plan else batch(seed))
    return state, found


ACCURACY = {"metrics": {"accuracy": metrics.accuracy}}


@functools.cache
def at_once(name):
    """What whole batches make of an objective."""
    return trained(PER_EXAMPLE[name], **ACCURACY)


@pytest.mark.parametrize("name", PER_EXAMPLE)
@pytest.mark.parametrize("count", [3, 24])
def test_micro_batches_give_the_whole_batchs_step(name, count):
    whole, cut = at_once(name), trained(PER_EXAMPLE[name], micro_batches=count, **ACCURACY)
    assert_trees_close(cut[1], whole[1], rtol=2e-6, atol=1e-6)
    assert_trees_close(cut[0].params, whole[0].params, rtol=0, atol=1e-6)
    assert set(cut[1]) == set(whole[1])


def test_without_the_whole_batchs_masks_they_do_not(monkeypatch):
    """Negative control: a mean of the micro-batches' own means counts rows unequally."""
    monkeypatch.setattr(means, "WHOLE", "no such field")
    whole = trained(MASKED, steps=1)[1]
    cut = trained(MASKED, micro_batches=3, steps=1)[1]
    assert abs(cut["label"] - whole["label"]) > 0.01 * whole["label"]


@pytest.mark.parametrize("plan", [parallel.with_jit, parallel.with_pmap])
def test_micro_batches_on_eight_devices(plan):
    plan = plan()
    whole = at_once("masks")
    cut = trained(MASKED, plan, micro_batches=3, axis_name=plan.axis_name, **ACCURACY)
    assert_trees_close(cut[1], whole[1], rtol=1e-5, atol=1e-6)
    assert_trees_close(cut[0].params, whole[0].params, rtol=0, atol=1e-6)


def test_students_at_once_accumulate_too():
    keys = jax.random.split(jax.random.key(0), 2)
    whole, cut = (Setup(keys=keys, student=SMALL, term=KD, micro_batches=n) for n in (1, 4))
    states = [
        jax.jit(students.vmap_students(s.step))(s.state, s.teacher_variables, make_batch())[0] for s in (whole, cut)
    ]
    assert_trees_close(states[1].params, states[0].params, rtol=0, atol=1e-6)


def test_running_statistics_see_one_part_after_the_other():
    setup, batch = Setup(term=KD, micro_batches=2), make_batch()
    found = jax.jit(setup.step)(setup.state, setup.teacher_variables, batch)[0].state["student"]
    state = setup.state.state["student"]
    apply = jax.jit(setup.student.apply, static_argnums=3)
    for i in range(2):
        rows = {name: value[i::2] for name, value in batch.items()}
        variables = Variables(setup.state.params["student"], state)
        _, state = apply(variables, rows, jax.random.key(0), True)
    assert_trees_close(found, state, rtol=1e-5, atol=1e-6)


def test_each_micro_batch_draws_for_itself():
    def apply(variables, student, teacher, batch, key, step):
        drawn = jax.random.uniform(key)
        return jnp.mean(student.logits), {}, {"drawn": drawn, "squared": drawn**2}

    setup = Setup(student=SMALL, term=Term(lambda *_: Variables({}, {}), apply), micro_batches=4)
    _, found = jax.jit(setup.step)(setup.state, setup.teacher_variables, make_batch())
    assert found["squared"] - found["drawn"] ** 2 > 1e-3, "the variance of four draws"


def test_losses_that_couple_the_batch_are_refused_unless_the_approximation_is_asked_for():
    plain = make_batch()
    setup = Setup(student=SMALL, term=objectives.weighted(kd=KD, sp=SP), micro_batches=2)
    with pytest.raises(ValueError, match=r"couples the batch.*micro_batches=1, or approximate=True"):
        setup.step(setup.state, setup.teacher_variables, plain)
    setup = Setup(student=SMALL, term=SP, micro_batches=2, approximate=True)
    state, found = jax.jit(setup.step)(setup.state, setup.teacher_variables, plain)
    halves = Setup(student=SMALL, term=SP)
    step = jax.jit(halves.step)
    each = [step(setup.state, setup.teacher_variables, {k: v[i::2] for k, v in plain.items()}) for i in range(2)]
    np.testing.assert_allclose(found["loss"], np.mean([f["loss"] for _, f in each]), rtol=1e-5)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, each[0][0].params, each[1][0].params)
    assert_trees_close(state.params, mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "term", [TERMS["ickd"], TERMS["crd"], objectives.weighted(kd=KD, bank=TERMS["info_nce_queue"])]
)
def test_terms_with_a_batch_norm_or_a_memory_are_refused_before_anything_is_traced(term):
    network = models.mlp(CLASSES)
    with pytest.raises(ValueError, match=r"a batch norm or a memory in the term couples the batch.*approximate=True"):
        train.make_train_step(network, network, term, optax.sgd(0.1), micro_batches=2)
    train.make_train_step(network, network, term, optax.sgd(0.1), micro_batches=2, approximate=True)


@pytest.mark.parametrize("name", sorted(set(TERMS) - {*RANDOM, *SLOW}))
def test_a_term_is_refused_exactly_if_its_halves_do_not_add_up(name):
    term, owned = TERMS[name], started(name)
    rows = {k: np.asarray(v)[:8] for k, v in BATCH.items()}
    sides = jax.tree.map(np.asarray, (STUDENT, TEACHER))

    @functools.partial(jax.jit, static_argnums=4)
    def value(student, teacher, part, rows, approximate):
        part = {**part, WHOLE: Whole(rows, approximate)}
        return term.apply(owned, student, teacher, part, jax.random.key(1), jnp.int32(0))

    def cut(start, step):
        return *jax.tree.map(lambda x: x[start::step], (*sides, rows)), rows

    def works(function):
        try:
            function()
        except (ValueError, TypeError, AssertionError):  # refused, of a fixed size, or of another value
            return False
        return True

    def add_up():
        each = [value(*cut(start, 2), True) for start in (0, 1)]
        whole = value(*cut(0, 1), True)
        np.testing.assert_allclose(np.mean([value for value, _, _ in each]), whole[0], rtol=1e-5)
        assert_trees_close(whole[1], owned.state, rtol=1e-6)

    allowed = not term.couples and works(lambda: value.eval_shape(*cut(0, 2), False))
    assert allowed == works(add_up)


def test_rows_that_cannot_be_cut_are_refused():
    setup = Setup(term=KD, micro_batches=5)
    with pytest.raises(ValueError, match=r"16 rows cannot be cut into 5 micro-batches: choose a multiple of 5"):
        setup.step(setup.state, setup.teacher_variables, make_batch())
    with pytest.raises(ValueError, match="micro_batches is 0"):
        Setup(term=KD, micro_batches=0)


def test_memory_is_that_of_one_part():
    student = models.convnet(CLASSES, widths=(16, 16))

    def temporary(count):
        setup = Setup(student=student, term=KD, micro_batches=count)
        program = jax.jit(setup.step).lower(setup.state, setup.teacher_variables, make_batch(512)).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary(8) < 0.4 * temporary(1)


def test_sums_of_terms_hand_the_mark_on():
    assert objectives.weighted(a=KD, b=TERMS["crd"]).couples
    assert objectives.uncertainty_weighted(a=KD, b=TERMS["ickd"]).couples
    assert not objectives.weighted(a=KD, b=LABEL).couples
    assert not Term(KD.init, KD.apply).couples
