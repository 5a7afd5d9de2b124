"""Examples that do not count reach no value, gradient, parameter or memory of a term, whatever stands there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from objectives.methods import BATCH, STUDENT, TEACHER, TERMS, B, started

from jaxkd import losses, models, objectives, train
from jaxkd.types import Model, Outputs, Variables

OWNERS = ("vid", "tinybert", "srrl", "crd", "info_nce_queue", "ctkd of instances")
COUNTS = np.arange(B) != 3


def spoiled(tree, rubbish):
    """The same arrays with rubbish in the row that does not count."""

    def spoil(x):
        return jnp.where(jnp.expand_dims(COUNTS, tuple(range(1, x.ndim))), x, rubbish) if x.dtype.kind == "f" else x

    return jax.tree.map(spoil, tree)


def values_and_gradients(rubbish, mask):
    """Of terms that own parameters or memories: value, new state and gradients."""
    return program({name: started(name) for name in OWNERS}, rubbish, mask)


@jax.jit
def program(owners, rubbish, mask):
    student, teacher = spoiled((STUDENT, TEACHER), rubbish)

    def total(moving):
        params, student = moving
        found = {}
        for name in OWNERS:
            owned = Variables(params[name], owners[name].state)
            batch = {**BATCH, "mask": mask}
            found[name] = TERMS[name].apply(owned, student, teacher, batch, jax.random.key(0), 0)[:2]
        return sum(value for value, _ in found.values()), found

    return jax.value_and_grad(total, has_aux=True)(({name: owned.params for name, owned in owners.items()}, student))


def test_an_example_that_does_not_count_reaches_no_term():
    expected = jax.tree.map(np.asarray, values_and_gradients(0.5, COUNTS))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(expected) if x.dtype.kind == "f")
    for rubbish in (np.nan, np.inf, -np.inf, 3e4):
        found = values_and_gradients(rubbish, COUNTS)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), found, expected)


def test_a_batch_in_which_nothing_counts_is_worth_nothing_and_leaves_memories():
    (value, found), gradients = values_and_gradients(np.nan, np.zeros(B, bool))
    assert value == 0
    assert not any(np.any(np.asarray(g)) for g in jax.tree.leaves(gradients))
    for name in ("crd", "info_nce_queue"):
        jax.tree.map(np.testing.assert_array_equal, found[name][1], started(name).state)


WIDTH, CLASSES = 3, 4


def teacher_of(batch):
    """A teacher that is not finite wherever its input is not, in half precision."""
    z = batch["image"] @ np.ones((WIDTH, CLASSES), np.float32) + batch["bad"][:, None]
    return Outputs(z.astype(jnp.bfloat16), {"last": z[:, :2].astype(jnp.float16)})


def step_of(mode):
    """A step of a student with one term of each maker, whose weights leave out row 3."""
    student = models.with_head(models.mlp(CLASSES, hidden=(5,)))
    teacher = Model(lambda key, batch: Variables({}, {}), lambda v, batch, key, train: (teacher_of(batch), {}))
    where = {} if mode == "mask" else {"where": "has"}
    term = objectives.weighted(
        plain=objectives.from_labels(losses.cross_entropy, label="ordinary"),
        labels=objectives.from_labels(losses.cross_entropy, label="soft", **where),
        logits=objectives.from_logits(losses.kd, weigh=objectives.teacher_confidence(), **where),
        features=objectives.from_features(
            losses.hint, student="logits", teacher="last", project=objectives.linear(), **where
        ),
        outputs=objectives.from_outputs(losses.nkd, "student.logits", "teacher.logits", "batch.label", **where),
        ctkd=objectives.curriculum_temperature(strength=1.0, instance=True, hidden=2, **where),
    )
    return student, teacher, term, optax.sgd(0.1)


def images(mode, rubbish):
    rng = np.random.default_rng(0)
    image, soft = rng.standard_normal((8, WIDTH)).astype(np.float32), np.full((8, CLASSES), 1 / CLASSES, np.float32)
    bad = np.where(COUNTS, 0, rubbish).astype(np.float32)
    soft = np.where(COUNTS[:, None], soft, rubbish).astype(np.float32)
    if mode == "mask":  # the row is padding: nothing in it means anything
        image = np.where(COUNTS[:, None], image, rubbish).astype(np.float32)
    label = np.arange(8, dtype=np.int32) % CLASSES
    batch = {"image": image, "bad": bad, "soft": soft, "label": np.where(COUNTS, label, -1), "ordinary": label}
    return {**batch, "mask" if mode == "mask" else "has": COUNTS}


@pytest.mark.parametrize("mode", ["mask", "where"])
def test_all_parameters_stay_finite_after_a_step(mode):
    parts, nothing = step_of(mode), Variables({}, {})
    state = train.init_state(*parts, key=jax.random.key(0), batch=images(mode, 0), teacher_variables=nothing)
    step, results = jax.jit(train.make_train_step(*parts)), []
    for rubbish in (0.0, np.nan, np.inf):
        new, found = step(state, nothing, images(mode, rubbish))
        assert np.isfinite(found["loss"])
        results.append(new.params)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(new.params)), "0 * NaN"
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), results[0], new.params)


def test_weights_that_do_not_fit_the_loss_are_named():
    term, batch = objectives.from_logits(losses.kd), {**BATCH, "mask": np.ones((B, 4), bool)}
    with pytest.raises(ValueError, match=r"the field 'mask' has shape \(8, 4\) but the loss gives values of shape"):
        term.apply(Variables({}, {}), STUDENT, TEACHER, batch, jax.random.key(0), 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_tokens_that_do_not_count_are_taken_out_one_by_one(bad):
    counts = np.asarray([[1, 1, 0], [1, 0, 0]], bool)
    s, t = np.random.default_rng(0).standard_normal((2, 2, 3, 4)).astype(np.float32)
    t = np.where(counts[..., None], t, bad)
    term = objectives.from_logits(losses.kd, where="real")
    run = lambda s: term.apply(Variables({}, {}), Outputs(s, {}), Outputs(t, {}), {"real": counts}, None, 0)[0]  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(run))(s)
    np.testing.assert_allclose(value, np.mean(losses.kd(s[counts], t[counts])), rtol=1e-5)
    assert np.all(np.isfinite(gradient))
    assert not np.any(np.asarray(gradient)[~counts])
