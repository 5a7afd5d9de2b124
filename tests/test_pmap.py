"""The step under pmap: what eight devices make of it equals one device's step, and the gather is what makes it so."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import CLASSES, assert_trees_close, make_batch

from jaxkd import losses, metrics, models, objectives, parallel, train
from jaxkd.types import Variables

DATA = parallel.DATA
POOLED = {"student": "pooled", "teacher": "pooled"}
TERMS = {
    "per example": objectives.weighted(
        label=(0.5, objectives.from_labels(losses.cross_entropy)), kd=objectives.from_logits(losses.kd)
    ),
    "couples the batch": objectives.weighted(
        sp=objectives.from_features(losses.sp, **POOLED), dist=objectives.from_logits(losses.dist)
    ),
    "trained projection": objectives.from_features(losses.hint, **POOLED, project=objectives.linear()),
    "batch norm": objectives.from_features(
        losses.ickd, student="stage2", teacher="stage2", project=objectives.connector(), normalize=True
    ),
    "bank": objectives.weighted(
        crd=(0.02, objectives.crd(**POOLED, examples=16, width=5, negatives=8)),
        queue=objectives.info_nce_queue(**POOLED, size=32, width=5),
    ),
}


class Parts:
    """A student with batch norm, a wider teacher, a term, and a state before the first step."""

    def __init__(self, term, axis_name=DATA):
        self.prepare = lambda batch: {**batch, "id": batch["id"] % 16}  # rows of a bank of 16
        self.student = models.convnet(CLASSES, widths=(4, 6), axis_name=axis_name)
        self.teacher = models.convnet(CLASSES, widths=(6, 8))
        self.optimizer = optax.sgd(0.05, momentum=0.9)
        self.makers = (self.student, self.teacher, term, self.optimizer)
        self.known = jax.jit(self.teacher.init)(jax.random.key(9), make_batch())
        self.state = train.init_state(
            *self.makers, key=jax.random.key(0), batch=make_batch(), teacher_variables=self.known, prepare=self.prepare
        )

    def run(self, plan, steps=3):
        step = plan.compile(train.make_train_step(*self.makers, prepare=self.prepare, axis_name=plan.axis_name))
        state, known = plan.put(jax.tree.map(jnp.copy, (self.state, self.known)))
        batches = [plan.place(make_batch(seed=number)) for number in range(steps)]
        with jax.transfer_guard("disallow"):
            for batch in batches:
                state, found = step(state, known, batch)
        return state, found


ONE = parallel.with_jit(parallel.make_mesh(jax.devices()[:1]))


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("name", TERMS)
def test_pmap_equals_one_device(name, count):
    parts = Parts(TERMS[name])
    one = parts.run(ONE)
    many = parts.run(parallel.with_pmap(jax.devices()[:count]))
    assert_trees_close(many[1], one[1], rtol=2e-5, atol=1e-6)
    assert_trees_close(many[0].params, one[0].params, rtol=0, atol=1e-5)
    assert_trees_close(many[0].state, one[0].state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["couples the batch", "batch norm"])
def test_without_the_gather_the_comparison_fails(name, monkeypatch):
    """Negative control."""
    parts = Parts(TERMS[name])
    _, one = parts.run(ONE, steps=1)
    monkeypatch.setattr(train, "_gathered", lambda tree, axis_name: tree)
    _, many = parts.run(parallel.with_pmap(), steps=1)
    assert abs(float(many["loss"]) - float(one["loss"])) > 0.02 * abs(float(one["loss"]))


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
    chosen = {"accuracy": metrics.accuracy, "kl": metrics.kl_to_teacher}
    batch = {**make_batch(), "mask": np.arange(16) < 11}
    found = []
    for plan in (ONE, parallel.with_pmap()):
        step = train.make_eval_step(parts.student, parts.teacher, chosen, axis_name=plan.axis_name)
        step = plan.compile(step, donate_state=False)
        found.append(step(*plan.put((parts.state, parts.known)), plan.place(batch)))
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
