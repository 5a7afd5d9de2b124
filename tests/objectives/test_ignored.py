"""Terms leave out of their mean what has the label to ignore, with its logits, whatever stands there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import losses, metrics, models, objectives, parallel, train
from jaxkd.types import Outputs

RNG = np.random.default_rng(0)
S, T = RNG.standard_normal((2, 6, 5)).astype(np.float32)
Y = np.array([0, 255, 2, 4, 1, 3])
LEFT = Y != 255
KEY = jax.random.key(0)


def value_and_slope(term, student, batch, teacher=T):
    out = Outputs(jnp.asarray(student)), Outputs(jnp.asarray(teacher))
    batch = jax.tree.map(jnp.asarray, batch)
    owned = term.init(KEY, *out, batch)

    def loss(z):
        return term.apply(owned, Outputs(z), out[1], batch, KEY, jnp.zeros((), jnp.int32))[0]

    return [np.asarray(x) for x in jax.jit(jax.value_and_grad(loss))(out[0].logits)]


def own(logits, label):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.tfkd_reg, own], ids=lambda loss: loss.__name__)
def test_the_mean_is_that_of_the_others(loss):
    value, slope = value_and_slope(objectives.from_labels(loss, ignore=255), S, {"label": Y})
    np.testing.assert_allclose(value, np.mean(loss(S[LEFT], Y[LEFT])), rtol=1e-6)
    assert (slope[~LEFT] == 0).all()
    assert (slope[LEFT] != 0).any(axis=-1).all()


def test_labels_are_one_argument_of_several():
    paths = ("student.logits", "teacher.logits", "batch.label")
    term = objectives.from_outputs(losses.dkd, *paths, ignore=255, beta=2.0, alpha=lambda step: 1.0)
    broken = np.where(LEFT[:, None], S, np.nan)
    value, slope = value_and_slope(term, broken, {"label": Y})
    np.testing.assert_allclose(value, np.mean(losses.dkd(S[LEFT], T[LEFT], Y[LEFT], beta=2.0)), rtol=1e-6)
    assert np.isfinite(slope).all()
    with pytest.raises(ValueError, match="read 2 fields of the batch: name the argument of the loss"):
        objectives.from_outputs(lambda z, a, b: z, "student.logits", "batch.a", "batch.b", ignore=1)


def test_padding_and_weights_of_examples_stay():
    mask = np.array([1, 1, 0, 1, 1, 1], bool)
    weigh = objectives.teacher_confidence()
    term = objectives.from_labels(losses.cross_entropy, ignore=255, weigh=weigh)
    value, _ = value_and_slope(term, S, {"label": Y, "mask": mask})
    rows = LEFT & mask
    p = np.exp(jax.nn.log_softmax(T[rows]))[np.arange(rows.sum()), Y[rows]]
    np.testing.assert_allclose(value, np.mean(p * losses.cross_entropy(S[rows], Y[rows])), rtol=1e-6)


def test_nothing_but_labels_to_ignore_is_zero():
    for field, loss in (("label", losses.cross_entropy), ("label", own)):
        value, slope = value_and_slope(objectives.from_labels(loss, ignore=-1), S, {field: np.full(6, -1)})
        assert value == 0
        assert (slope == 0).all()


def test_tokens_and_labels_of_one_example():
    z = RNG.standard_normal((2, 3, 5)).astype(np.float32)
    y = np.array([[1, 2, -100], [0, -100, -100]])
    value, slope = value_and_slope(objectives.from_labels(losses.cross_entropy, ignore=-100), z, {"label": y}, z)
    np.testing.assert_allclose(value, np.mean(losses.cross_entropy(z[y >= 0], y[y >= 0])), rtol=1e-6)
    assert (slope[y < 0] == 0).all()
    term = objectives.from_outputs(losses.sequence_kd, "student.logits", "batch.tokens", ignore=-100)
    value, _ = value_and_slope(term, z, {"tokens": y}, z)
    np.testing.assert_allclose(value, np.mean(losses.sequence_kd(z, np.maximum(y, 0), y >= 0)), rtol=1e-6)
    several = np.array([[0, 1, -1], [-1, -1, -1]])
    value, _ = value_and_slope(
        objectives.from_labels(losses.binary_cross_entropy, ignore=-1), z[:, 0, :3], {"label": several}, z[:, 0, :3]
    )
    np.testing.assert_allclose(value, losses.binary_cross_entropy(z[:1, 0, :2], several[:1, :2])[0], rtol=1e-6)


def test_tokens_of_hidden_states():
    hidden, kernel = RNG.standard_normal((2, 3, 4)).astype(np.float32), RNG.standard_normal((4, 5)).astype(np.float32)
    y = np.array([[1, 2, -100], [0, -100, -100]], np.int32)
    out = Outputs(None, {"tokens": jnp.asarray(hidden)}, {"kernel": jnp.asarray(kernel)})
    term = objectives.from_hidden(lambda s, t, y: losses.cross_entropy(s, y), label="label", ignore=-100)
    owned = term.init(KEY, out, out, {"label": y})
    value = jax.jit(lambda y: term.apply(owned, out, out, {"label": y}, KEY, jnp.zeros((), jnp.int32))[0])(y)
    kept = y >= 0
    np.testing.assert_allclose(value, np.mean(losses.cross_entropy((hidden @ kernel)[kept], y[kept])), rtol=1e-5)


IMAGES = RNG.random((16, 4, 4, 1)).astype(np.float32)
TASKS = {
    "binary": (losses.binary_cross_entropy, losses.binary_kd, IMAGES.mean((1, 2, 3)) > 0.5, 1, "accuracy"),
    "multi-label": (losses.binary_cross_entropy, losses.binary_kd, IMAGES[:, 0, :3, 0] > 0.5, 3, "accuracy"),
    "regression": (losses.squared_error, losses.logits_mse, 3 * IMAGES.mean((1, 2, 3)), 1, "r2"),
}


@pytest.mark.parametrize("task", TASKS)
def test_tasks_without_a_softmax_train(task):
    loss, distil, label, width, name = TASKS[task]
    batch = {"image": IMAGES, "label": label if task == "regression" else label.astype(np.int32)}
    student, teacher = models.mlp(width, hidden=(8,)), models.mlp(width, hidden=(9,))
    known = teacher.init(jax.random.key(1), batch)
    term = objectives.weighted(label=objectives.from_labels(loss), kd=(0.01, objectives.from_logits(distil)))
    parts = (student, teacher, term, optax.adam(0.05))
    state = train.init_state(*parts, key=KEY, batch=batch, teacher_variables=known)
    step = train.make_train_step(*parts)
    state, found = jax.jit(lambda state: jax.lax.scan(lambda s, _: step(s, known, batch), state, None, 60))(state)
    assert found["loss"][-1] < 0.5 * found["loss"][0]
    chosen = metrics.REGRESSION if task == "regression" else metrics.MULTI_LABEL
    reached = metrics.values(jax.jit(train.make_eval_step(student, teacher, chosen))(state, known, batch))
    assert reached[name] > 0.85


def test_parts_that_cannot_learn_are_refused_before_a_step():
    batch = {"image": IMAGES, "label": np.arange(16) % 2}
    parts = (models.mlp(1, hidden=(5,)), models.no_teacher(), objectives.from_labels(losses.cross_entropy))
    nothing = parts[1].init(KEY, batch)
    with pytest.raises(ValueError, match=r"a softmax over one class .*losses\.binary_cross_entropy"):
        train.check_parts(*parts, batch=batch, teacher_variables=nothing)
    wrapped = {**batch, "label": batch["label"] + 2**32}
    two = (models.mlp(2, hidden=(5,)), *parts[1:])
    with pytest.raises(ValueError, match=r"field 'label' hold 4294967297, which would become another number in int32"):
        train.check_parts(*two, batch=wrapped, teacher_variables=nothing)
    with pytest.raises(ValueError, match="field 'label' hold 4294967297"):
        parallel.put_batch(wrapped, parallel.make_mesh())
