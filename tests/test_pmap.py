"""The step under pmap: what eight devices make of it equals one device's step, and the gather is what makes it so."""

import jax
import numpy as np
import optax
import pytest
from helpers import CLASSES, assert_trees_close, make_batch
from matrix import TERMS, Parts

from jaxkd import losses, models, objectives, parallel, train
from jaxkd.types import Variables

DATA = parallel.DATA
ONE = parallel.with_jit(parallel.make_mesh(jax.devices()[:1]))


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("name", TERMS)
def test_pmap_equals_one_device(name, count):
    parts = Parts(TERMS[name])
    one = parts.run(ONE)
    many = parts.run(parallel.with_pmap(jax.devices()[:count]))
    assert_trees_close(many[1], one[1], rtol=2e-6, atol=1e-6)
    assert_trees_close(many[0].params, one[0].params, rtol=0, atol=1e-5)
    assert_trees_close(many[0].state, one[0].state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["couples the batch", "batch norm"])
def test_without_the_gather_the_comparison_fails(name, monkeypatch):
    """Negative control."""
    parts = Parts(TERMS[name])
    _, one = parts.run(ONE, steps=1)
    monkeypatch.setattr(train, "_gathered", lambda tree, axis_name: tree)
    _, many = parts.run(parallel.with_pmap(), steps=1)
    assert abs(float(many["loss"]) - float(one["loss"])) > 1e-3 * abs(float(one["loss"]))


def test_local_batch_norm_differs_and_synchronised_does_not():
    """What the documentation says: without `axis_name` each device normalises by its own share."""
    found = {}
    for axis_name in (None, DATA):
        parts = Parts(TERMS["per example"], axis_name)
        _, one = parts.run(ONE, steps=1)
        _, many = parts.run(parallel.with_pmap(), steps=1)
        found[axis_name] = abs(float(many["loss"]) - float(one["loss"])) / float(one["loss"])
    assert found[DATA] < 1e-5 < 1e-3 < found[None]


def test_evaluation_counts_the_whole_batch():
    parts = Parts(TERMS["per example"])
    found = [parts.measure(plan) for plan in (ONE, parallel.with_pmap())]
    assert_trees_close(found[1], found[0], rtol=1e-5)
    assert float(found[1]["accuracy"].count) == 11


def test_devices_drop_out_different_units():
    student = models.convnet(CLASSES, widths=(4, 4), dropout=0.5)

    def drawn(axis_name):
        share = train.make_share(models.no_teacher(), axis_name=axis_name)
        begin = train.make_objective(student, objectives.from_labels(losses.cross_entropy), axis_name=axis_name)

        def step(state, teacher, batch):
            return begin(state, share(teacher, batch))(state.params)[1][2].logits

        return step

    batch = {name: np.repeat(value[:1], 16, axis=0) for name, value in make_batch().items()}  # one image, many times
    parts = (student, models.no_teacher(), objectives.from_labels(losses.cross_entropy), optax.sgd(0.1))
    nothing = Variables({}, {})
    state = train.init_state(*parts, key=jax.random.key(0), batch=batch, teacher_variables=nothing)
    plan = parallel.with_pmap()
    logits = np.asarray(plan.compile(drawn(DATA), donate_state=False)(plan.put(state), nothing, plan.place(batch)))
    assert len(np.unique(logits[:, 0].round(5))) > 2  # two rows a device; more than the two of one device repeated


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match=r"has 12 rows, which 8 devices cannot share evenly.*multiple of 8"):
        parallel.with_pmap().place(make_batch(12))
