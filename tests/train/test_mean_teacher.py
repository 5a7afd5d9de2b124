"""A teacher from the state's moving average: what it is, that it is data, and that it works in every form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import CLASSES, assert_trees_close, copied, make_batch

from jaxkd import augment, losses, models, objectives, parallel, train
from jaxkd.train import students
from jaxkd.types import Variables

STUDENT = models.mlp(CLASSES, hidden=(6,))
TERM = objectives.weighted(
    label=objectives.from_labels(losses.cross_entropy), consistency=(0.7, objectives.from_logits(losses.logits_mse))
)
PARTS = (STUDENT, STUDENT, TERM, optax.adam(0.05))
KEY = jax.random.key(0)


@functools.cache
def begin(parts=PARTS):
    return train.init_state(*parts, key=KEY, batch=make_batch(), teacher_variables=None, teacher_from_average=True)


def make(decay=0.6, parts=PARTS, **options):
    return train.make_train_step(*parts, ema_decay=decay, teacher_from_average=True, **options)


@functools.cache
def three(decay=0.6):
    """State and metrics after three steps on one device."""
    return run(jax.jit(make(decay)), begin())


def run(step, state, place=lambda batch: batch, steps=3):
    for seed in range(steps):
        state, found = step(state, None, place(make_batch(seed=seed)))
    return state, found


def student_of(state):
    return Variables(state.params["student"], state.state["student"])


def test_it_is_a_step_whose_teacher_is_the_average_before_each_update():
    state = train.init_state(*PARTS, key=KEY, batch=make_batch(), teacher_variables=begin().ema, ema=True)
    step = jax.jit(train.make_train_step(*PARTS, ema_decay=0.6))
    for seed in range(3):
        state, found = step(state, copied(state.ema), make_batch(seed=seed))
    assert_trees_close((three()[0].params, three()[0].ema), (state.params, state.ema), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(three()[1]["loss"], found["loss"], rtol=1e-5)
    assert three()[1]["consistency"] > 1e-3


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_without_decay_it_is_the_student_and_without_change_the_first_weights(decay):
    state, found = three(decay)
    assert_trees_close(state.ema, student_of(state) if decay == 0 else begin().ema, rtol=1e-6)
    assert (found["consistency"] < 1e-10) == (decay == 0)  # the teacher is the average before the update


def test_no_gradient_passes_into_the_average():
    step, batch = make(), make_batch()

    @jax.jit
    @jax.value_and_grad
    def loss(average):
        return step(dataclasses.replace(begin(), ema=average), None, batch)[1]["loss"]

    value, leaked = loss(jax.tree.map(lambda x: x + 0.3, begin().ema))
    assert all(not np.any(x) for x in jax.tree.leaves(leaked))
    assert abs(value - loss(begin().ema)[0]) > 1e-3


@pytest.mark.parametrize("form", ["jit", "pmap", "micro", "vmap"])
def test_every_form_trains_as_one_device_does(form):
    """States are donated in all of them."""
    mesh, stacked = parallel.make_mesh(), form == "vmap"
    if form == "pmap":
        step, put = parallel.compile_pmap(make(axis_name=parallel.DATA)), parallel.put_shards
    else:
        one = make(micro_batches=2 if form == "micro" else 1)
        step, put = parallel.compile_jit(students.vmap_students(one) if stacked else one, mesh), parallel.put_batch
    first = copied(jax.tree.map(lambda x: jnp.stack([x, x]), begin()) if stacked else begin())
    state, found = run(step, parallel.put_replicated(first, mesh), functools.partial(put, mesh=mesh))
    wanted = three()
    got = jax.tree.map(lambda x: x[1] if stacked else x, (state.params, state.ema, found["loss"]))
    assert_trees_close(got, (wanted[0].params, wanted[0].ema, wanted[1]["loss"]), rtol=1e-4, atol=1e-5)


def test_the_teacher_may_see_another_view():
    prepare = augment.two_views(lambda batch: batch, lambda batch: {"image": -batch["image"]}, teacher_image="image")
    teacher = models.reading(STUDENT, image="teacher_image")
    parts = (STUDENT, teacher, TERM, optax.sgd(0.1))
    state = train.init_state(
        *parts, key=KEY, batch=make_batch(), teacher_variables=None, teacher_from_average=True, prepare=prepare
    )
    _, found = jax.jit(make(parts=parts, prepare=prepare))(state, None, make_batch())
    views = make_batch()["image"], -make_batch()["image"]
    z = [STUDENT.apply(state.ema, {"image": x}, None, False)[0].logits for x in views]
    np.testing.assert_allclose(found["consistency"], np.mean(losses.logits_mse(*z)), rtol=1e-5)


def test_a_decay_may_follow_the_step():
    """Until the decay is reached, the average is the plain mean of all variables so far."""
    step, state = jax.jit(make(objectives.schedules.warm_decay(0.9))), begin()
    seen = [student_of(state)]
    for seed in range(3):
        state, _ = step(state, None, make_batch(seed=seed))
        seen.append(student_of(state))
    assert_trees_close(state.ema, jax.tree.map(lambda *x: np.mean(x, 0), *seen), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(objectives.schedules.warm_decay(0.9)(100), 0.9)


def test_what_does_not_fit_fails_in_a_sentence():
    with pytest.raises(ValueError, match="needs a decay: give ema_decay"):
        train.make_train_step(*PARTS, teacher_from_average=True)
    with pytest.raises(ValueError, match="give None in their place"):
        make()(begin(), begin().ema, make_batch())
    with pytest.raises(ValueError, match="give None in their place"):
        train.init_state(*PARTS, key=KEY, batch=make_batch(), teacher_variables=begin().ema, teacher_from_average=True)
    without = dataclasses.replace(begin(), ema=None)
    with pytest.raises(ValueError, match="no moving average"):
        make()(without, None, make_batch())
    other = (STUDENT, models.mlp(CLASSES, hidden=(3,)), TERM, optax.sgd(0.1))
    with pytest.raises(ValueError, match="teacher"):
        begin(parts=other)
    with pytest.raises(ValueError, match="from 0 to 1"):
        objectives.schedules.warm_decay(1.5)
