"""Gradients of single terms: their sum is the step's gradient in every kind of step, and plain steps do not pay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import CLASSES, make_batch

from jaxkd import losses, models, objectives, parallel, train
from jaxkd.train import optimizers, students
from jaxkd.train.by_term import TermError, read_terms, tree_dot

STUDENT, TEACHER = models.mlp(CLASSES, hidden=(3,)), models.mlp(CLASSES, hidden=(4,))
LABEL = objectives.from_labels(losses.cross_entropy, where="labelled")
KD = objectives.from_logits(losses.kd, temperature=2.0)
HINT = objectives.from_features(losses.hint, student="pooled", teacher="pooled", project=objectives.linear())
WEIGHTED = objectives.weighted(label=(0.3, LABEL), kd=(optax.linear_schedule(1, 0.5, 9), KD), hint=HINT)
BATCH = {**make_batch(16), "mask": np.arange(16) < 13, "labelled": np.arange(16) / 16}
BATCH["image"] = BATCH["image"][:, :2, :2]


def _gap(updates, state, params=None, **extra):
    each, rest = read_terms(updates, extra)
    away = jax.tree.map(lambda u, *parts: u - sum(parts), updates, rest, *each.values())
    return updates, jnp.stack([tree_dot(x, x) for x in (away, updates, rest, *each.values())]) ** 0.5


GAP = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(6), _gap)
"""Keeps the norms of: the gradient less the sum of those of the terms, the gradient, the rest, each term's gradient."""


def filled(make, *arguments):
    """Random arrays of the shapes that a function makes, without compiling it; weights are 1, and whole numbers 0."""
    random = np.random.default_rng(0)

    def fill(x):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if not np.issubdtype(x.dtype, np.floating):
            return np.zeros(x.shape, x.dtype)
        return (random.standard_normal(x.shape) if x.shape else np.ones(())).astype(x.dtype)

    return jax.tree.map(fill, jax.eval_shape(make, *arguments))


KNOWN = filled(lambda: TEACHER.init(jax.random.key(9), BATCH))


def begin(term, optimizer):
    return filled(lambda: train.begin_state(STUDENT, TEACHER, term, optimizer, jax.random.key(0), BATCH, KNOWN))


def run(term=WEIGHTED, optimizer=GAP, stack=0, **options):
    """The state after one step."""
    step = train.make_train_step(STUDENT, TEACHER, term, optimizer, **options)
    state = begin(term, optimizer)
    if stack:
        step = students.vmap_students(step)
        state = jax.tree.map(lambda x: jnp.stack([x] * stack), state)
    return jax.jit(step)(state, KNOWN, BATCH)[0]


def assert_no_gap(norms):
    norms = np.moveaxis(np.asarray(norms), -1, 0)
    assert np.all(norms[0] < 1e-6 * norms[1]), norms
    assert np.all(norms[3:] > 1e-3 * norms[1]), norms


NESTED = objectives.weighted(label=LABEL, rest=(0.5, objectives.weighted(kd=(2.0, KD))), hint=HINT)
UNCERTAIN = objectives.uncertainty_weighted(label=LABEL, kd=KD, hint=HINT)


@pytest.mark.parametrize(
    "options",
    [
        {"term": NESTED, "optimizer": optax.chain(optax.clip_by_global_norm(1e-3), GAP)},
        {"term": UNCERTAIN, "micro_batches": 4},
        {"stack": 2, "optimizer": optimizers.by_path({"dense1": optax.set_to_zero()}, GAP)},
    ],
    ids=lambda options: " ".join(options),
)
def test_gradients_of_terms_add_up_to_the_gradient(options):
    norms = [x for x in jax.tree.leaves(run(**options).opt_state) if jnp.shape(x)[-1:] == (6,)]
    assert_no_gap(norms[0])


def test_they_do_under_pmap():
    plan = parallel.with_pmap(jax.devices()[:2])
    step = plan.compile(train.make_train_step(STUDENT, TEACHER, WEIGHTED, GAP, axis_name=plan.axis_name))
    state, known = plan.put((begin(WEIGHTED, GAP), KNOWN))
    norms = step(state, known, plan.place(BATCH))[0].opt_state
    assert_no_gap(norms)


def test_updates_that_are_not_finite_are_skipped():
    broken = objectives.weighted(label=LABEL, kd=(lambda step: jnp.nan * step, KD), hint=HINT)
    state = run(broken, skip_nonfinite=True)
    assert int(state.skipped) == 1
    np.testing.assert_array_equal(state.opt_state, begin(broken, GAP).opt_state)


def test_what_stands_in_front_scales_the_gradient_of_each_term_or_adds_to_them():
    gradients = {"a": {"student": jnp.array([3.0, 0.0])}, "b": {"student": jnp.array([0.0, 4.0])}}
    whole = {"student": jnp.array([3.0, 4.0])}
    extra = {"grad": whole, "term_gradients": lambda: gradients}
    each, rest = read_terms({"student": 0.2 * whole["student"]}, extra)
    np.testing.assert_allclose([each["a"]["student"], each["b"]["student"]], [[0.6, 0], [0, 0.8]], rtol=1e-6)
    assert not np.any(rest["student"])
    each, rest = read_terms({"student": whole["student"] + jnp.array([1.0, -1.0])}, extra)
    np.testing.assert_array_equal(each["a"]["student"], [3, 0])
    np.testing.assert_array_equal(rest["student"], [1, -1])
    nothing = jax.tree.map(jnp.zeros_like, whole)
    each, rest = read_terms(
        dict(nothing), {"grad": {"student": jnp.zeros(2)}, "term_gradients": lambda: {"a": nothing}}
    )
    assert not np.any([rest["student"], each["a"]["student"]])


def test_steps_that_do_not_ask_do_not_pay():
    asked = []

    def update(updates, state, params=None, **extra):
        asked.append(extra["term_gradients"])
        return updates, state

    polite = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    programs = []
    for optimizer in (optax.identity(), polite):
        state = begin(WEIGHTED, optimizer)
        step = train.make_train_step(STUDENT, TEACHER, WEIGHTED, optimizer)
        programs.append(str(jax.make_jaxpr(step)(state, KNOWN, BATCH)))
    assert asked
    assert programs[0] == programs[1]


def test_what_has_no_terms_is_said():
    with pytest.raises(TermError, match=r"reports no weighted terms.*make it with `weighted"):
        jax.eval_shape(lambda: run(KD))
    with pytest.raises(TermError, match=r"needs the gradient of each term: give it to train.make_train_step"):
        GAP.update({}, jnp.zeros(6), {})
