"""The step under pmap: what eight devices make of it equals one device's step, and the gather is what makes it so."""

import jax
import numpy as np
import optax
import pytest
from helpers import CLASSES, assert_trees_close, make_batch
from matrix import TERMS, Parts, alone, assert_each_is_another, assert_same, parts

from jaxkd import losses, models, objectives, parallel, train
from jaxkd.train import devices, step
from jaxkd.train.devices import on_own_rows
from jaxkd.train.step import make_inputs, make_objective
from jaxkd.types import Variables

DATA = parallel.DATA
ONE = parallel.with_jit(parallel.make_mesh(jax.devices()[:1]))


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("name", TERMS)
def test_pmap_equals_one_device(name, count):
    state, found = parts(name).run(parallel.with_pmap(jax.devices()[:count]))
    assert_same((found, state.params, state.state), alone(name))


def test_without_the_gather_the_comparison_fails(monkeypatch):
    """Negative control."""
    for module in (step, devices):
        monkeypatch.setattr(module, "gathered", lambda tree, axis_name: tree)
    _, many = parts("couples the batch").run(parallel.with_pmap(), steps=1)
    assert_each_is_another(many[0], alone("couples the batch")[0][0])


def test_local_batch_norm_differs_and_its_running_statistics_are_averaged():
    """What the documentation says: without `axis_name`, with which all is the same, each device normalises its own."""
    local = Parts(TERMS["per example"], axis_name=None)
    state, many = local.run(parallel.with_pmap(), steps=1)
    one = alone("per example")[0][0]["loss"]
    assert abs(float(many[0]["loss"]) - one) > 1e-3 * abs(one)
    shards = {name: values.reshape(8, 2, *values.shape[1:]) for name, values in make_batch().items()}
    student = Variables(local.state.params["student"], local.state.state["student"])
    each = jax.jit(jax.vmap(lambda rows: local.student.apply(student, rows, None, True)[1]))(shards)
    assert_trees_close(state.state["student"], jax.tree.map(lambda x: x.mean(0), each), rtol=1e-5, atol=1e-6)


def test_evaluation_counts_the_whole_batch():
    found = [parts("per example").measure(plan) for plan in (ONE, parallel.with_pmap())]
    assert_trees_close(found[1], found[0], rtol=1e-5)
    assert float(found[1]["accuracy"].count) == 11


def test_devices_drop_out_different_units():
    student = models.convnet(CLASSES, widths=(4, 4), dropout=0.5)

    def drawn(axis_name):
        inputs = make_inputs(models.no_teacher(), axis_name=axis_name)
        objective = make_objective(on_own_rows(student, axis_name), objectives.from_labels(losses.cross_entropy))

        def step(state, teacher, batch):
            return objective(state.params, state, inputs(teacher, batch))[1][2].logits

        return step

    batch = {name: np.repeat(value[:1], 16, axis=0) for name, value in make_batch().items()}  # one image, many times
    makers = (student, models.no_teacher(), objectives.from_labels(losses.cross_entropy), optax.sgd(0.1))
    nothing = Variables({}, {})
    state = train.init_state(*makers, key=jax.random.key(0), batch=batch, teacher_variables=nothing)
    plan = parallel.with_pmap()
    logits = np.asarray(plan.compile(drawn(DATA), donate_state=False)(plan.put(state), nothing, plan.place(batch)))
    assert len(np.unique(logits[:, 0].round(5))) > 2  # two rows a device; more than the two of one device repeated


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match=r"has 12 rows, which cannot be split evenly over 8 devices.*multiple of 8"):
        parallel.with_pmap().place(make_batch(12))
