"""Many steps in one dispatch, with data on the device: the same numbers as one step after the other."""

import functools
import os
import signal

import jax
import numpy as np
import pytest
from helpers import CLASSES, Setup, assert_trees_close, assert_trees_equal, copied, make_batch
from runs.test_loop import Record

from jaxkd import augment, data, metrics, parallel, train
from jaxkd.runs import loop
from jaxkd.runs.checkpoint import Checkpoints
from jaxkd.train import multistep, students

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


@functools.cache
def ready(name):
    """A plan, parts, and the compiled step on batches and bundle of steps on row numbers."""
    plan = PLANS[name]()
    parts = setup(plan)
    return plan, parts, *compiled(plan, parts.step)


def compiled(plan, step):
    return plan.compile(step), plan.compile(multistep.from_table(multistep.scan_steps(step)))


def one_by_one(plan, parts, step):
    """State and metrics of every step, as the loop usually runs."""
    state, known = plan.put(copied((parts.state, parts.teacher_variables)))
    batches, found = data.train_batches(source(), BATCH, seed=0), []
    for k in range(STEPS):
        state, numbers = step(state, known, plan.place(batches[k]))
        found.append(jax.device_get(numbers))
    return state, {name: np.stack([f[name] for f in found]) for name in found[0]}


def at_once(plan, parts, step, spans=(range(3), range(3, STEPS))):
    """The same from a table on the device, several steps a dispatch."""
    fields, rows = data.table(source())
    state = plan.put(copied(parts.state))
    known = plan.put((copied(parts.teacher_variables), fields))
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
    plan, parts, single, bundle = ready(name)
    expected, numbers = one_by_one(plan, parts, single)
    state, found = at_once(plan, parts, bundle)
    assert_trees_close(found, numbers, rtol=1e-5, atol=1e-6)
    assert_trees_close((state.params, state.state), (expected.params, expected.state), rtol=1e-4, atol=1e-5)
    assert int(state.step) == STEPS


def test_how_steps_are_bundled_changes_no_bit():
    """So that a run that was stopped within a bundle goes on as if it had not been."""
    plan, parts, _, bundle = ready("one device")
    whole, numbers = at_once(plan, parts, bundle)
    parted, others = at_once(plan, parts, bundle, spans=[range(1), range(1, 4), range(4, 5)])
    assert_trees_equal(parted, whole)
    assert_trees_equal(others, numbers)


@pytest.mark.parametrize("form", students.FORMS)
def test_stacks_of_students_too(form):
    plan = PLANS["one device"]()
    parts = setup(plan, keys=jax.random.split(jax.random.key(0), 2))
    single, bundle = compiled(plan, students.FORMS[form](parts.step))
    expected, numbers = one_by_one(plan, parts, single)
    state, found = at_once(plan, parts, bundle, spans=[range(STEPS)])
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
    plan, parts, *_ = ready("eight devices")
    fields, rows = data.table(source())
    single = train.make_eval_step(parts.student, parts.teacher, metrics.DISTILLATION)
    state, known = plan.put((parts.state, parts.teacher_variables))
    table = plan.put(fields)
    found = []
    for step, teacher, split in (
        (single, known, source()),
        (multistep.from_table(single), (known, table), rows),
    ):
        step = plan.compile(step, donate_state=False)
        sums = [step(state, teacher, plan.place(batch)) for batch in data.eval_batches(split, BATCH)]
        found.append(metrics.values(jax.tree.map(lambda *x: np.sum(np.stack(x), axis=0), *sums)))
        assert sum(float(s["accuracy"].count) for s in sums) == SIZE
    assert_trees_close(found[1], found[0], rtol=1e-6)


def fit(at_once, steps, folder=None, during=None, log=None, every=4):
    """A whole training, in bundles or step by step."""
    plan, parts, _, bundle = ready("one device")
    fields, rows = data.table(source())
    batches = data.train_batches(rows, BATCH, seed=0)

    def feed(start, stop):
        if at_once == 1:
            yield from data.prefetch(batches, plan.place, start=start, stop=stop)
            return
        for bundle in data.prefetch(data.bundles(batches, multistep.spans(start, stop, at_once, every)), plan.place):
            yield bundle
            if during:
                during()

    known = plan.put((copied(parts.teacher_variables), fields))
    checkpoints = Checkpoints(folder) if folder else None
    return loop.fit(
        bundle if at_once > 1 else plan.compile(multistep.from_table(parts.step)),
        plan.put(copied(parts.state)),
        known,
        feed,
        steps=steps,
        log=log,
        log_every=3,
        hooks=[loop.Every(every, "validation", lambda state: {"step": float(state.step)})],
        checkpoints=checkpoints,
        checkpoint_every=every,
        bundled=at_once > 1,
    )


def test_a_run_in_bundles_logs_and_measures_what_a_run_in_steps_does():
    single, bundled = Record(), Record()
    one, many = fit(1, 10, log=single), fit(3, 10, log=bundled)
    assert [line[:2] for line in bundled.lines] == [line[:2] for line in single.lines]
    for a, b in zip(bundled.lines, single.lines, strict=True):
        assert_trees_close(a[2], b[2], rtol=1e-5, atol=1e-6)
    assert_trees_close(many.params, one.params, rtol=0, atol=1e-5)


def test_a_run_in_bundles_resumes_bit_for_bit(tmp_path):
    whole, log = Record(), Record()
    expected = fit(3, 11, log=whole)
    with pytest.raises(SystemExit):
        fit(3, 11, tmp_path, during=lambda: os.kill(os.getpid(), signal.SIGTERM), log=log)
    assert Checkpoints(tmp_path).latest() == 4  # the end of the bundle after the signal
    assert_trees_equal(fit(3, 11, tmp_path, log=log), expected)
    assert log.lines == whole.lines


def test_bundles_end_where_something_is_due():
    assert multistep.spans(0, 10, 3, 4) == [range(3), range(3, 4), range(4, 6), range(6, 8), range(8, 9), range(9, 10)]
    assert multistep.spans(6, 10, 3, 4) == multistep.spans(0, 10, 3, 4)[3:]
    assert multistep.spans(5, 5, 3) == []
    assert multistep.spans(0, 6, 3) == [range(3), range(3, 6)]
    with pytest.raises(ValueError, match=r"\(0, 4\): give positive numbers"):
        multistep.spans(0, 10, 0, 4)


def test_a_bundle_that_goes_too_far_is_refused():
    plan, parts, _, bundle = ready("one device")
    fields, rows = data.table(source())
    bundles = data.bundles(data.train_batches(rows, BATCH, seed=0), multistep.spans(0, 6, 3))
    arguments = (
        bundle,
        plan.put(copied(parts.state)),
        plan.put((parts.teacher_variables, fields)),
        lambda a, b: data.prefetch(bundles, plan.place),
    )
    hooks = [loop.Every(5, "validation", lambda state: {})]
    with pytest.raises(ValueError, match=r"steps 4..6 goes past step 5.*\(every 5\): cut bundles with multistep.spans"):
        loop.fit(*arguments, steps=6, hooks=hooks, bundled=True)
