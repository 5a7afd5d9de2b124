"""Many steps in one dispatch, with data on the device: the same numbers as one step after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CLASSES, Setup, assert_trees_close, assert_trees_equal, make_batch

from jaxkd import augment, data, dispatch, metrics, parallel, students, train

SIZE, BATCH, STEPS = 40, 16, 5
NOISY = augment.augment_batch(augment.compose(augment.random_crop(1), augment.flip()), seed=3)
PLANS = {
    "one device": lambda: parallel.with_jit(parallel.make_mesh(jax.devices()[:1])),
    "eight devices": parallel.with_jit,
    "pmap": parallel.with_pmap,
}


def source():
    batch = make_batch(SIZE)
    return data.open_source({"image": batch["image"], "label": batch["label"]}, num_classes=CLASSES)


def setup(plan, **options):
    return Setup(prepare=NOISY, metrics={"accuracy": metrics.accuracy}, axis_name=plan.axis_name, **options)


def one_by_one(plan, parts, step=None):
    """State and metrics of every step, as the loop usually runs."""
    step = plan.compile(step or parts.step)
    state, known = plan.put(jax.tree.map(jnp.copy, (parts.state, parts.teacher_variables)))
    batches, found = data.train_batches(source(), BATCH, seed=0), []
    for k in range(STEPS):
        state, numbers = step(state, known, plan.place(batches[k]))
        found.append(jax.device_get(numbers))
    return state, {name: np.stack([f[name] for f in found]) for name in found[0]}


def at_once(plan, parts, step=None, spans=(range(3), range(3, STEPS))):
    """The same from a table on the device, several steps a dispatch."""
    fields, rows = data.table(source())
    step = plan.compile(dispatch.scan_steps(dispatch.from_table(step or parts.step)))
    state = plan.put(jax.tree.map(jnp.copy, parts.state))
    known = plan.put((jax.tree.map(jnp.copy, parts.teacher_variables), fields))
    found = []
    bundles = data.bundles(data.train_batches(rows, BATCH, seed=0), spans)
    for batch in data.prefetch(bundles, plan.place):
        assert set(batch) == {"row", "view"}
        with jax.transfer_guard("disallow"):
            state, numbers = step(state, known, batch)
        found.append(jax.device_get(numbers))
    return state, {name: np.concatenate([f[name] for f in found]) for name in found[0]}


@pytest.mark.parametrize("name", PLANS)
def test_many_steps_from_a_table_are_the_same_steps(name):
    plan = PLANS[name]()
    parts = setup(plan)
    expected, numbers = one_by_one(plan, parts)
    state, found = at_once(plan, parts)
    assert_trees_close(found, numbers, rtol=1e-5, atol=1e-6)
    assert_trees_close((state.params, state.state), (expected.params, expected.state), rtol=1e-4, atol=1e-5)
    assert int(state.step) == STEPS


def test_how_steps_are_bundled_changes_no_bit():
    """So that a run that was stopped within a bundle goes on as if it had not been."""
    plan = PLANS["one device"]()
    parts = setup(plan)
    whole, numbers = at_once(plan, parts, spans=[range(2), range(2, 4), range(4, 5)])
    parted, others = at_once(plan, parts, spans=[range(1), range(1, 4), range(4, 5)])
    assert_trees_equal(parted, whole)
    assert_trees_equal(others, numbers)


@pytest.mark.parametrize("form", students.FORMS)
def test_stacks_of_students_too(form):
    plan = PLANS["one device"]()
    parts = setup(plan, keys=jax.random.split(jax.random.key(0), 2))
    step = students.FORMS[form](parts.step)
    expected, numbers = one_by_one(plan, parts, step)
    state, found = at_once(plan, parts, step)
    assert found["loss"].shape == (STEPS, 2)
    assert_trees_close(found, numbers, rtol=1e-5, atol=1e-6)
    assert_trees_close(state.params, expected.params, rtol=0, atol=1e-5)


def test_a_table_of_other_rows_shows():
    """Negative control: the comparison above notices which rows a batch has."""
    fields, rows = data.table(source())
    batch = data.train_batches(rows, BATCH, seed=0)[0]
    right = {name: values[batch["row"]] for name, values in fields.items()}
    assert_trees_equal(
        {name: right[name] for name in fields},
        {n: v for n, v in data.train_batches(source(), BATCH, seed=0)[0].items() if n in fields},
    )
    assert np.any(fields["label"][np.roll(batch["row"], 1)] != right["label"])


def test_evaluation_from_a_table_counts_each_row_once():
    plan = PLANS["eight devices"]()
    parts = setup(plan)
    fields, rows = data.table(source())
    single = train.make_eval_step(parts.student, parts.teacher, metrics.DISTILLATION)
    state, known = plan.put((parts.state, parts.teacher_variables))
    table = plan.put(fields)
    found = []
    for step, teacher, split in (
        (single, known, source()),
        (dispatch.from_table(single), (known, table), rows),
    ):
        step = plan.compile(step, donate_state=False)
        sums = [step(state, teacher, plan.place(batch)) for batch in data.eval_batches(split, BATCH)]
        found.append(metrics.values(jax.tree.map(lambda *x: np.sum(np.stack(x), axis=0), *sums)))
        assert sum(float(s["accuracy"].count) for s in sums) == SIZE
    assert_trees_close(found[1], found[0], rtol=1e-6)
