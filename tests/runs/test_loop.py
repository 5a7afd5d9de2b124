"""The loop: resuming, stopping, and refusing to go on from nonsense."""

import functools
import itertools
import os
import signal
import time

import jax
import numpy as np
import pytest
from helpers import Setup, assert_trees_equal, copied, make_batch

from jaxkd import augment, metrics, parallel, train
from jaxkd.runs import divergence, loop
from jaxkd.runs.checkpoint import Checkpoints


class Record:
    """Keeps what is logged, as (step, split) -> metrics."""

    def __init__(self):
        self.lines = []

    def write(self, step, split, found):
        self.lines.append((step, split, {k: np.asarray(v).tolist() for k, v in found.items()}))

    def truncate(self, step):
        self.lines = [line for line in self.lines if line[0] <= step]


@functools.cache
def parts():
    """A step with batch norm, dropout, augmentation and a term with parameters, compiled once."""
    noisy = augment.augment_batch(augment.compose(augment.random_crop(1), augment.flip()), seed=3)
    setup = Setup(prepare=noisy, metrics={"accuracy": metrics.accuracy}, ema_decay=0.9)
    mesh = parallel.make_mesh()
    return setup, mesh, parallel.compile_jit(setup.step, mesh)


def fit(steps, folder=None, poison=None, during=None, **options):
    """Trains from the start, or from the folder's newest checkpoint."""
    setup, mesh, step = parts()

    def batches(start, stop):
        for k in range(start, stop):
            batch = make_batch(seed=k)
            if k == poison:
                batch["image"][3, 0, 0, 0] = np.nan
            if during:
                during(k)
            yield parallel.put_batch(batch, mesh)

    state = parallel.put_replicated(copied(setup.state), mesh)  # a copy, since the step donates it
    teacher = parallel.put_replicated(setup.teacher_variables, mesh)
    checkpoints = Checkpoints(folder) if folder else None
    try:
        return loop.fit(step, state, teacher, batches, steps=steps, checkpoints=checkpoints, **options)
    finally:
        if checkpoints:
            checkpoints.close()


def test_six_steps_equal_three_save_restore_three_bit_for_bit(tmp_path):
    whole_log, log = Record(), Record()
    whole = fit(6, log=whole_log, log_every=1)
    fit(3, tmp_path, log=log, log_every=1)
    resumed = fit(6, tmp_path, log=log, log_every=1)
    assert_trees_equal(resumed, whole)
    assert log.lines == whole_log.lines
    assert [line[0] for line in log.lines] == [1, 2, 3, 4, 5, 6]


def test_steps_after_the_last_checkpoint_are_logged_once(tmp_path):
    def crash(k):
        if k == 3:
            raise KeyboardInterrupt

    log = Record()
    with pytest.raises(KeyboardInterrupt):
        fit(5, tmp_path, during=crash, log=log, log_every=1, checkpoint_every=2)
    assert [line[0] for line in log.lines] == [1, 2, 3]
    fit(5, tmp_path, log=log, log_every=1, checkpoint_every=2)
    assert [line[0] for line in log.lines] == [1, 2, 3, 4, 5]


def test_clock_that_jumps_by_years_changes_nothing(tmp_path, monkeypatch):
    now, jumps = time.time(), itertools.cycle([0, 1e9, -7e8, 5, -1, 3e7])
    monkeypatch.setattr(time, "time", lambda: now + next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * time.time()))
    fit(3, tmp_path, checkpoint_every=1)
    assert_trees_equal(fit(6, tmp_path, checkpoint_every=1), fit(6))


def test_comparison_of_resumed_runs_can_fail(tmp_path):
    """Negative control: another batch after the restore shows in the parameters."""
    whole = fit(4)
    fit(3, tmp_path)
    setup, mesh, step = parts()
    state = Checkpoints(tmp_path).restore(whole)
    other, _ = step(state, setup.teacher_variables, parallel.put_batch(make_batch(seed=77), mesh))
    with pytest.raises(AssertionError):
        assert_trees_equal(other.params, whole.params)


def test_finished_phase_is_not_trained_again(tmp_path):
    first = fit(3, tmp_path)

    def forbidden(k):
        raise AssertionError("a finished phase read a batch")

    assert_trees_equal(fit(3, tmp_path, during=forbidden), first)


def test_hooks_run_on_their_interval_and_at_the_end():
    log = Record()
    seen = []
    hook = loop.Every(2, "validation", lambda state: seen.append(int(state.step)) or {"step_seen": float(state.step)})
    fit(5, log=log, log_every=4, hooks=[hook])
    assert seen == [2, 4, 5]
    assert [(n, split) for n, split, _ in log.lines] == [
        (2, "validation"),
        (4, "train"),
        (4, "validation"),
        (5, "train"),
        (5, "validation"),
    ]


def test_loss_that_is_not_finite_stops_the_run_and_names_step_and_term(tmp_path):
    with pytest.raises(
        divergence.NonFiniteError, match=r"nan at step 4 \(term .*label.*last good checkpoint is step 2 in"
    ):
        fit(9, tmp_path, poison=3, checkpoint_every=2)
    assert Checkpoints(tmp_path).latest() == 2
    resumed = fit(5, tmp_path)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(resumed.params))


def test_last_step_is_checked_too(tmp_path):
    with pytest.raises(divergence.NonFiniteError, match="the loss became nan at step 3"):
        fit(3, tmp_path, poison=2, checkpoint_every=100)
    assert Checkpoints(tmp_path).latest() is None


def skipping(tmp_path, bad):
    """A run of six steps, of which those named break, with a step that leaves such updates out."""
    setup = Setup(skip_nonfinite=True)
    mesh = parallel.make_mesh(jax.devices()[:1])

    def batches(start, stop):
        for k in range(start, stop):
            batch = make_batch(seed=k)
            batch["image"][3] = np.nan if k in bad else batch["image"][3]
            yield parallel.put_batch(batch, mesh)

    log = Record()
    state, teacher = parallel.put_replicated(copied((setup.state, setup.teacher_variables)), mesh)
    step = parallel.compile_jit(setup.step, mesh)
    return loop.fit(
        step, state, teacher, batches, steps=6, log=log, log_every=1, checkpoints=Checkpoints(tmp_path)
    ), log


def test_a_run_that_skips_goes_on_counts_and_keeps_the_count(tmp_path):
    state, log = skipping(tmp_path, {2, 4})
    assert int(state.skipped) == 2
    assert [int(found["skipped"]) for _, _, found in log.lines] == [0, 0, 1, 1, 2, 2]
    restored = Checkpoints(tmp_path).restore(state)
    assert int(restored.skipped) == 2


def test_a_run_that_only_skips_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(divergence, "MAX_SKIPPED", 3)
    with pytest.raises(divergence.NonFiniteError, match="became nan at step 4"):
        skipping(tmp_path, {1, 2, 3, 4, 5})


def test_finite_loss_with_exploded_parameters_is_not_kept(tmp_path):
    setup, mesh, _ = parts()

    def explode(state, teacher, batch):
        params = jax.tree.map(lambda p: p * np.inf, state.params)
        return state.replace(step=state.step + 1, params=params), {"loss": state.step * 0.0}

    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(divergence.NonFiniteError, match="parameters are no longer finite after step 1"):
        loop.fit(
            parallel.compile_jit(explode, mesh, donate_state=False),
            parallel.put_replicated(setup.state, mesh),
            parallel.put_replicated(setup.teacher_variables, mesh),
            lambda a, b: (parallel.put_batch(make_batch(), mesh) for _ in range(a, b)),
            steps=1,
            checkpoints=checkpoints,
        )
    assert checkpoints.latest() is None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_a_checkpoint_says_how_to_go_on_and_leaves(tmp_path, capsys, number, code):
    def interrupt(k):
        if k == 2:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as left:
        fit(6, tmp_path, during=interrupt)
    assert left.value.code == code
    assert "stopped after step 3 of 6, checkpoint saved: run the same command to go on" in capsys.readouterr().out
    assert Checkpoints(tmp_path).latest() == 3
    assert_trees_equal(fit(6, tmp_path), fit(6))
    assert signal.getsignal(number) == before


def test_evaluation_counts_each_example_once():
    setup, mesh, _ = parts()
    step = parallel.compile_jit(
        train.make_eval_step(setup.student, setup.teacher, metrics.DISTILLATION), mesh, donate_state=False
    )
    state = parallel.put_replicated(setup.state, mesh)
    teacher = parallel.put_replicated(setup.teacher_variables, mesh)
    whole = {**make_batch(24), "mask": np.ones(24, bool)}
    pieces = [{k: v[i : i + 8] for k, v in whole.items()} for i in (0, 8, 16)]
    padded = {k: np.concatenate([v[:3], np.full_like(v[:5], 7)]) for k, v in make_batch(24, seed=1).items()}
    padded["mask"] = np.arange(8) < 3
    more = {k: np.concatenate([whole[k], padded[k][:3]]) for k in whole}
    more = {k: np.concatenate([v, v[:5]]) for k, v in more.items()}
    more["mask"] = np.arange(32) < 27
    found = loop.evaluate(step, state, teacher, [parallel.put_batch(b, mesh) for b in [*pieces, padded]])
    at_once = loop.evaluate(step, state, teacher, [parallel.put_batch(more, mesh)])
    assert found["accuracy"].count == 27
    for name, value in metrics.values(found).items():
        np.testing.assert_allclose(value, metrics.values(at_once)[name], rtol=1e-5)


def test_nothing_to_evaluate_on_is_said():
    with pytest.raises(ValueError, match="the split has no batch"):
        loop.evaluate(None, None, None, [])
