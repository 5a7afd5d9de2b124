"""Parts of a step in the forms in which people give them: what works, and the sentence where it cannot."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import OPTIMIZER, STUDENT, TEACHER, TERM, make_batch, teacher_variables

from jaxkd import losses, metrics, models, objectives, train
from jaxkd.keys import is_key, typed_key
from jaxkd.train import optimizers, students
from jaxkd.types import Model, Outputs, Variables

BATCH = {"image": np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32), "label": np.arange(8) % 4}
SMALL, BIG = models.mlp(4, hidden=()), models.mlp(4, hidden=(3,))
BIG_VARIABLES = BIG.init(jax.random.key(1), BATCH)
TINY = (SMALL, BIG, objectives.from_logits(losses.kd))


def begin(optimizer=OPTIMIZER, key=None, batch=BATCH, known=BIG_VARIABLES, parts=TINY):
    key = jax.random.key(0) if key is None else key
    return train.init_state(*parts, optimizer, key=key, batch=batch, teacher_variables=known)


# --- keys ---


def test_raw_keys_are_the_same_keys():
    wanted = begin(key=jax.random.key(5)).params
    for key in (jax.random.PRNGKey(5), np.asarray(jax.random.PRNGKey(5))):
        state = begin(key=key)
        assert is_key(state.key)
        jax.tree.map(np.testing.assert_array_equal, state.params, wanted)
    assert typed_key(jax.random.split(jax.random.PRNGKey(0), 3), stack=True).shape == (3,)
    swept = students.sweep(lambda: (*TINY, OPTIMIZER), students.grid(seed=(0, 1)))
    states = swept.init(key=jax.random.PRNGKey(0), batch=BATCH, teacher_variables={"params": BIG_VARIABLES.params})
    assert states.key.shape == (2,)


class Anything:
    """Object that answers to every name, as NNX's random streams do."""

    def __getattr__(self, name):
        return Anything()


@pytest.mark.parametrize("key", [0, None, 1.5, "a", np.zeros(2), jnp.asarray(0), [0, 1], Anything()])
def test_what_is_no_key_is_a_sentence(key):
    with pytest.raises(TypeError, match=r"must be a PRNG key: give jax.random.key\(0\)"):
        typed_key(key)


def test_too_many_keys_are_a_sentence():
    with pytest.raises(ValueError, match=r"shape \(2,\), but one key is expected"):
        models.init(SMALL, jax.random.split(jax.random.key(0)), BATCH)
    with pytest.raises(ValueError, match=r"shape \(2, 2\), but one key, or keys \[S\]"):
        typed_key(jax.random.split(jax.random.key(0), (2, 2)), stack=True)


def test_a_stack_of_students_is_no_state_of_one():
    state = begin(key=jax.random.split(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"the state is of 2 students, .*vmap_students"):
        train.make_train_step(*TINY, OPTIMIZER)(state, BIG_VARIABLES, BATCH)


# --- optimizers ---

READERS = {
    "plateau": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1, factor=0.5)),
    "line search": optax.lbfgs(memory_size=2, linesearch=optax.scale_by_backtracking_linesearch(4)),
    "inside": optax.MultiSteps(optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()), 2),
    "sharpness": optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True),
}


@pytest.mark.parametrize(("name", "options"), [*((n, {}) for n in READERS), ("line search", {"micro_batches": 2})])
def test_optimizers_that_read_the_loss_get_it(name, options):
    optimizer = READERS[name]
    state = begin(optimizer)
    step = jax.jit(train.make_train_step(*TINY, optimizer, **options))

    def loss(params):
        out, teacher_out = (
            m.apply(Variables(p, {}), BATCH, None, False)[0]
            for m, p in ((SMALL, params["student"]), (BIG, BIG_VARIABLES.params))
        )
        return jnp.mean(losses.kd(out.logits, teacher_out.logits))

    value, gradient = jax.value_and_grad(loss)(state.params)
    known = {"value": value, "grad": gradient, "value_fn": loss}
    known = {"grad_fn": lambda p, _: jax.grad(loss)(p)} if name == "sharpness" else known
    updates, _ = optimizer.update(gradient, state.opt_state, state.params, **known)
    for _ in range(2):
        new, found = step(state, BIG_VARIABLES, BATCH)
    assert step._cache_size() == 1
    np.testing.assert_allclose(found["loss"], value, rtol=1e-5)
    wanted = optax.apply_updates(state.params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), new.params, wanted)


@pytest.mark.parametrize("optimizer", [0.1, optax.adam, None, optax.cosine_decay_schedule(1.0, 2)])
def test_what_is_no_optimizer_is_a_sentence(optimizer):
    for call in (lambda: begin(optimizer), lambda: train.make_train_step(*TINY, optimizer)):
        with pytest.raises(TypeError, match=r"must be an optax transformation, but is .*optax.adam"):
            call()


def test_masks_of_another_tree_are_a_sentence():
    masked = optax.masked(
        optax.sgd(0.1), jax.tree.map(lambda x: x.ndim > 1, SMALL.init(jax.random.key(0), BATCH).params)
    )
    with pytest.raises(ValueError, match=r'the optimizer cannot begin .*{"student": params, "term": params'):
        begin(masked)
    begin(optax.masked(optax.sgd(0.1), lambda params: jax.tree.map(lambda x: x.ndim > 1, params)))  # as it says


@pytest.mark.parametrize("decay", [2, -0.1, np.nan, "a", [0.9]])
def test_moving_averages_that_do_not_average_are_refused(decay):
    with pytest.raises(ValueError, match=r"ema_decay is .*: give a number from 0 to 1"):
        train.make_train_step(*TINY, OPTIMIZER, ema_decay=decay)


def test_a_state_without_a_moving_average_is_a_sentence():
    steps = (
        train.make_train_step(*TINY, OPTIMIZER, ema_decay=0.9),
        train.make_eval_step(*TINY[:2], {"accuracy": metrics.accuracy}, ema=True),
    )
    for step in steps:
        with pytest.raises(ValueError, match=r"no moving average .* init_state\(\.\.\., ema=True\)"):
            step(begin(), BIG_VARIABLES, BATCH)


@pytest.mark.parametrize("count", [0, 1.5, "2", True])
def test_micro_batches_are_counted(count):
    with pytest.raises(ValueError, match=r"micro_batches is .*: give an integer of at least 1"):
        train.make_train_step(*TINY, OPTIMIZER, micro_batches=count)


def test_an_optimizer_that_asks_for_more_is_a_sentence():
    def update(updates, state, params=None, *, curvature, **_):
        return updates, state

    strange = optax.GradientTransformationExtraArgs(lambda params: (), update)
    with pytest.raises(ValueError, match=r"cannot make this update .*'curvature'"):
        optimizers.updates_of(strange, {}, (), {}, jnp.zeros(()), lambda params: (jnp.zeros(()), params), dict)


# --- metrics ---


@pytest.mark.parametrize("options", [{}, {"micro_batches": 2}])
def test_a_step_reports_the_same_sets_of_metrics_as_an_evaluation(options):
    chosen = {**metrics.DISTILLATION, "worst": metrics.per_class, "cka": metrics.linear_cka("pooled", "pooled")}
    step = jax.jit(train.make_train_step(*TINY, OPTIMIZER, metrics=chosen, **options))
    state = begin()
    _, found = step(state, BIG_VARIABLES, BATCH)
    sums = train.make_eval_step(SMALL, BIG, chosen)(state, BIG_VARIABLES, BATCH)
    for name, value in metrics.values(jax.device_get(sums)).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ([metrics.accuracy], "are a list"),
        (metrics.accuracy, "are the function accuracy"),
        ({"loss": metrics.nll}, "'loss'"),
    ],
)
def test_what_is_no_set_of_metrics_is_a_sentence(chosen, words):
    for call in (
        lambda: train.make_train_step(*TINY, OPTIMIZER, metrics=chosen),
        lambda: train.make_eval_step(SMALL, BIG, chosen),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            call()


# --- parts and batches ---


@pytest.mark.parametrize(
    ("place", "given", "words"),
    [
        (0, lambda x: x, "the student must be a Model, but is the function"),
        (1, None, "the teacher must be a Model, but is None: make one by models.no_teacher"),
        (2, losses.kd, "the objective must be a Term, but is the function kd: .*from_logits"),
    ],
)
def test_parts_of_another_kind_are_a_sentence(place, given, words):
    parts = [*TINY]
    parts[place] = given
    for call in (lambda: begin(parts=parts), lambda: train.make_train_step(*parts, OPTIMIZER)):
        with pytest.raises(TypeError, match=words):
            call()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: {n: x[:0] for n, x in b.items()}, "the batch has no rows"),
        (lambda b: {**b, "label": b["label"][:4]}, "different numbers of rows .*'image': 8, 'label': 4"),
        (lambda b: {**b, "label": list(b["label"])}, "field 'label' is a list: give an array"),
        (lambda b: {**b, "epoch": 3}, "field 'epoch' is 3: give an array"),
        (lambda b: {**b, "name": np.asarray(["a"] * 8)}, "field 'name' holds text"),
        (lambda b: tuple(b.values()), "this is a tuple: give {"),
    ],
)
def test_batches_of_another_kind_are_a_sentence(change, words):
    with pytest.raises((TypeError, ValueError), match=words):
        begin(batch=change(BATCH))


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (lambda z: z, r"the student: its `apply` must return \(Outputs, state\), but returned"),
        (lambda z: (Outputs(z[:, 0]), {}), r"logits have shape \(8,\), without an axis of classes"),
        (lambda z: (Outputs(z[:4]), {}), r"logits have shape \(4, 4\) for a batch of 8 rows"),
    ],
)
def test_models_by_hand_must_return_outputs_and_a_state(apply, words):
    model = Model(SMALL.init, lambda v, b, key, train: apply(SMALL.apply(v, b, key, train)[0].logits))
    with pytest.raises((TypeError, ValueError), match=words):
        begin(parts=(model, *TINY[1:]))


def test_variables_of_flax_are_the_teachers_in_states_and_steps():
    batch, own = make_batch(), teacher_variables()
    flat = {"params": own.params, **own.state}
    step = train.make_train_step(STUDENT, TEACHER, TERM, OPTIMIZER)
    state = begin(batch=batch, known=flat, parts=(STUDENT, TEACHER, TERM))
    shapes = [jax.eval_shape(step, state, known, batch) for known in (own, flat)]
    assert shapes[0] == shapes[1]
    with pytest.raises(ValueError, match=r"the teacher: Small cannot be applied .* missing 'params/conv/kernel'"):
        begin(batch=batch, known=None, parts=(STUDENT, TEACHER, TERM))
