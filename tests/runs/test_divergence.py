"""What ends a run and what does not: a loss that explodes does, ordinary training never."""

import jax
import numpy as np
import pytest
from runs.test_loop import Record, parts

from jaxkd import parallel
from jaxkd.runs import divergence, loop
from jaxkd.runs.checkpoint import Checkpoints
from jaxkd.runs.divergence import Divergence, DivergenceError, Done, LossWatch, NonFiniteError
from jaxkd.runs.lost import LostStudents
from jaxkd.types import TrainState

QUICK = Divergence(factor=10.0, patience=4)


def feed(losses, divergence=divergence.USUAL, start=0, **more):
    """Shows a watch the losses of steps start+1, start+2, ..."""
    eye = LossWatch(None, divergence)
    for i, loss in enumerate([*losses, np.zeros_like(losses[-1])]):
        eye.check_previous(Done(start + i, {"loss": np.asarray(loss), **{name: v[i] for name, v in more.items()}}))
    return eye


def ordinary(name, steps=3000):
    """Curves of trainings that nobody would want to be stopped."""
    rng, t = np.random.default_rng(0), np.arange(steps)
    noise = np.exp(rng.normal(0, 0.5, steps))
    return {
        "falling": 5 * np.exp(-t / 300) * noise + 1e-7,
        "noisy around zero": rng.standard_t(2, steps),
        "negative": -3 - np.log1p(t) + rng.normal(0, 0.3, steps),
        "single spikes": 0.1 * noise * np.where(t % 97 == 0, 1e6, 1),
        "warm restarts of a memorised set": np.where(t % 900 < 150, 0.1, 1e-8) * noise,
        "weight that ramps up from nothing": t * noise,
        "term that joins late": np.where(t < 1500, 0.3, 20.0) * noise,
        "constant": np.full(steps, 2.0),
        "huge from the start": 1e12 * noise,
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "falling",
        "noisy around zero",
        "negative",
        "single spikes",
        "warm restarts of a memorised set",
        "weight that ramps up from nothing",
        "term that joins late",
        "constant",
        "huge from the start",
    ],
)
def test_ordinary_training_is_left_alone(name):
    feed(ordinary(name))


@pytest.mark.parametrize("usual", [1.0, 1e-6, -5.0, 1e9])
@pytest.mark.parametrize("rate", [1.03, 2.0, 1e4])
def test_exploding_loss_is_stopped_while_it_is_finite(usual, rate):
    noise = np.random.default_rng(1).normal(0, 0.1, 300) * abs(usual)
    growth = max(abs(usual), 1.0) * np.exp(np.minimum(np.arange(400) * np.log(rate), 60))
    with pytest.raises(DivergenceError, match="diverges: it is") as caught:
        feed(np.concatenate([usual + noise, growth]))
    step = int(str(caught.value).split("at step ")[1].split()[0])
    assert 350 <= step <= 550
    feed(np.concatenate([usual + noise, growth[:40]]))  # not before it has lasted


def test_the_sentence_names_step_value_level_and_student():
    losses = np.ones((60, 3))
    losses[30:, 1] = 500.0
    with pytest.raises(DivergenceError) as caught:
        feed(losses, QUICK)
    assert str(caught.value) == (
        "the loss of student 1 diverges: it is 500 at step 34 and has been far above its usual 1 for 4 steps in a row; "
        "if such a rise is intended, give a Divergence with a factor above 10, else lower the learning rate, clip "
        "gradients, or check the data."
    )


def test_each_student_has_a_level_of_its_own():
    feed(np.tile([1.0, 1000.0], (100, 1)), QUICK)
    losses = np.tile([1.0, 1000.0], (100, 1))
    losses[50:, 0] = 1000.0  # what is usual for its neighbour
    with pytest.raises(DivergenceError, match="of student 0"):
        feed(losses, QUICK)


def test_looks_count_only_in_a_row():
    losses = np.ones(200)
    losses[50:][np.arange(150) % 4 != 3] = 1e6  # three high, one ordinary
    feed(losses, QUICK)
    losses[120] = losses[121] = losses[122] = losses[123] = 1e6
    with pytest.raises(DivergenceError, match="at step 12"):
        feed(losses, QUICK)


def test_high_looks_do_not_become_usual():
    """The level at the end is that of the start, however long and often the loss was high before."""
    losses = np.ones(900)
    losses[30:800][np.arange(770) % 4 != 3] = 1e6
    losses[800:] = 50.0
    with pytest.raises(DivergenceError, match="its usual 1 for 4 steps"):
        feed(losses, QUICK)


def test_high_is_measured_from_the_usual_level():
    losses = np.tile([1.0, 3.0, 5.0], 100)  # m = 3, q = 1 and so 3 + 0.5 * 4
    losses[150:] = 4.9
    feed(losses, Divergence(0.5, 4))
    losses[150:] = 5.1
    with pytest.raises(DivergenceError, match=r"it is 5\.1 at step 154 .* usual 3 "):
        feed(losses, Divergence(0.5, 4))


def test_nothing_is_stopped_without_a_guard_or_before_there_is_a_level():
    losses = np.ones(100)
    losses[50:] = 1e30
    feed(losses, None)
    feed(np.concatenate([np.ones(10), np.full(300, 1e30)]))


def test_the_guard_sees_the_losses_alone():
    """Not the steps' numbers: a run that resumes counts as one that begins."""
    losses = np.ones(60)
    losses[40:] = 1e6
    for start in (0, 777):
        with pytest.raises(DivergenceError, match=f"at step {start + 44} "):
            feed(losses, QUICK, start)


def test_skipped_steps_are_not_looked_at():
    losses = np.ones(60)
    losses[40:42], losses[42], losses[43:] = 1e6, np.nan, 1e6
    skipped = np.cumsum(np.append(np.isnan(losses), False))
    with pytest.raises(DivergenceError, match="at step 45 "):
        feed(losses, QUICK, skipped=skipped)
    losses[:] = 1.0
    losses[::2] = np.nan
    feed(losses, QUICK, skipped=np.cumsum(np.append(np.isnan(losses), False)))


def test_broken_gradients_under_a_finite_loss_are_called_so(monkeypatch):
    monkeypatch.setattr(divergence, "MAX_SKIPPED", 3)
    with pytest.raises(NonFiniteError, match=r"^the gradients are not finite at step 8, where 3 updates in a row were"):
        feed(np.ones(9), skipped=np.maximum(np.arange(10) - 4, 0))


def run(tmp_path, levels, **options):
    """A training whose losses are given and whose state says how often it was updated."""
    setup, mesh, _ = parts()

    def step(state, teacher, batch):
        return state.replace(step=state.step + 1), {"loss": batch["level"][0]}

    def batches(start, stop):
        yield from (parallel.put_batch({"level": np.full(8, levels[k], np.float32)}, mesh) for k in range(start, stop))

    checkpoints = Checkpoints(tmp_path)
    try:
        return loop.fit(
            parallel.compile_jit(step, mesh, donate_state=False),
            *parallel.put_replicated((setup.state, setup.teacher_variables), mesh),
            batches,
            steps=len(levels),
            checkpoints=checkpoints,
            **options,
        )
    finally:
        checkpoints.close()


def test_the_newest_checkpoint_is_from_before_the_explosion(tmp_path):
    levels = np.ones(60)
    levels[32:] = 1e5
    with pytest.raises(DivergenceError, match=r"at step 42 .* its usual 1 .*the last good checkpoint is step 30 in"):
        run(tmp_path, levels, checkpoint_every=5, divergence=Divergence(10.0, 10))
    assert Checkpoints(tmp_path).latest() == 30


def test_a_loss_that_comes_down_again_changes_nothing(tmp_path):
    levels = np.ones(60)
    levels[32:37] = 1e5
    log, calm = Record(), Record()
    run(tmp_path / "spike", levels, checkpoint_every=5, divergence=Divergence(10.0, 10), log=log, log_every=20)
    run(tmp_path / "calm", np.ones(60), log=calm, log_every=20)
    assert log.lines == calm.lines
    assert Checkpoints(tmp_path / "spike").latest() == 60


def test_the_last_state_is_kept_even_if_its_loss_is_high(tmp_path):
    levels = np.ones(40)
    levels[38:] = 1e5
    state = run(tmp_path, levels, checkpoint_every=5, divergence=QUICK)
    assert int(jax.device_get(state.step)) == Checkpoints(tmp_path).latest() == 40


@pytest.mark.parametrize("bad", [1e9, np.nan])
def test_a_student_of_a_sweep_is_given_up_alone(bad, caplog, monkeypatch):
    """With updates that may be skipped, one student may go; the last one's end is the run's."""
    monkeypatch.setattr(divergence, "MAX_SKIPPED", 5)
    losses = np.random.default_rng(0).uniform(1, 2, (120, 3))
    skipped = np.zeros((121, 3), int)
    for student in (0, 2):
        losses[40 + 20 * student :, student] = bad
    if np.isnan(bad):
        skipped[:120] = np.cumsum(np.isnan(losses), axis=0)
    eye = feed(losses, QUICK, skipped=skipped)
    assert [("student 0" in r.message, "student 2" in r.message) for r in caplog.records] == [(1, 0), (0, 1)]
    assert not np.any(eye._guard.in_a_row), "checkpoints are due again"
    losses[100:, 1] = bad
    if np.isnan(bad):
        skipped[:120] = np.cumsum(np.isnan(losses), axis=0)
    with pytest.raises((DivergenceError, NonFiniteError), match="of student 1"):
        feed(losses, QUICK, skipped=skipped)
    with pytest.raises((DivergenceError, NonFiniteError), match="of student 0"):
        feed(losses, QUICK)


@pytest.mark.parametrize("at", [2, 3, 4])
def test_a_bundle_is_looked_at_step_by_step(at):
    losses = np.ones(6)
    losses[at] = np.nan
    eye = LossWatch(None, None)

    def look():
        for first in (0, 3):
            part = losses[first : first + 3]
            eye.check_previous(Done(10 + first, {"loss": part, "kd": part, "other": np.ones(3)}, bundle=3))
        eye.check_previous(Done(16, {"loss": np.ones(1)}, bundle=1))

    with pytest.raises(NonFiniteError, match=rf"at step {11 + at} \(term kd\)"):
        look()


def test_students_that_are_lost_at_the_end_are_given_up(caplog):
    """Also in a training too short for a hundred skipped updates; one that skipped now and then is not lost."""
    skipped = np.array([[0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 2, 0], [0, 3, 1], [0, 3, 1]])
    eye = feed(np.ones((5, 3)), skipped=skipped)
    eye.check_end(5)
    assert eye._given_up.numbers == [1]
    assert "student 1 had no finite update at the end at step 5" in caplog.text
    for every in (np.arange(6), np.arange(6)[:, None] * np.ones(2, int)):
        with pytest.raises(NonFiniteError, match="updates were skipped until the end, step 5"):
            feed(np.ones((5, *every.shape[1:])), skipped=every).check_end(5)


def test_a_student_whose_parameters_are_not_finite_does_not_end_the_others():
    def state(*values):
        ones = np.ones(len(values))
        return TrainState(step=ones, params={"w": np.array(values)[:, None]}, state={}, opt_state=(), key=ones)

    eye = feed(np.ones((3, 2)), skipped=np.zeros((4, 2), int))
    assert eye.check_state(3, state(1.0, np.inf))
    assert eye._given_up.numbers == [1]
    with pytest.raises(NonFiniteError, match="parameters are no longer finite"):
        eye.check_state(4, state(np.nan, np.inf))


def test_lost_students_are_known_after_a_resume(tmp_path):
    file = tmp_path / "lost.json"
    LostStudents(file, "a").add([3, 1], 20)
    LostStudents(file, "b").add([0], 5)
    again = LostStudents(file, "a")
    again.add([1, 2], 40)
    again = LostStudents(file, "a")
    assert again.numbers == [1, 2, 3]
    assert again.mask(5).tolist() == [False, True, True, True, False]
    again.resume(30)
    assert again.numbers == [1, 3], "student 2 was lost after the checkpoint"
    assert LostStudents(file, "b").numbers == [0]
    assert LostStudents().numbers == []
