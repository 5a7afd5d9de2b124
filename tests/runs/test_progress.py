"""Progress is shown on a terminal and in a file: rates, time left, means over students."""

from __future__ import annotations

import io
import math
import re
import time

import jax.numpy as jnp
import pytest
import rich.console

from jaxkd.runs.logger import Logger, read_metrics
from jaxkd.runs.progress import Progress


class Clock:
    """A monotonic clock that only the test moves."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def progress(out, total=1000, *, terminal=False, **options):
    console = rich.console.Console(file=out, force_terminal=terminal, width=120)
    return Progress("distilled", total, batch_size=100, console=console, **options)


def test_plain_lines_say_everything(clock):
    out = io.StringIO()
    with progress(out) as bar:
        for step in (50, 100, 150, 200):
            clock.now += 10
            bar.update(step, {"loss": jnp.float32(0.42), "accuracy": 0.91})
    assert out.getvalue().splitlines()[-1] == (
        "distilled  step 200/1000  loss 0.42  accuracy 0.910  500 examples/s  2:40 left"
    )
    assert len(out.getvalue().splitlines()) == 4


def test_the_rate_forgets_the_compilation_of_the_first_step(clock):
    out = io.StringIO()
    with progress(out) as bar:
        bar.resume(0)
        clock.now += 600
        bar.update(10)
        for step in (20, 30):
            clock.now += 5
            bar.update(step, {"loss": 1.0})
    assert "200 examples/s  8:05 left" in out.getvalue().splitlines()[-1]


def test_a_resumed_training_counts_only_its_own_steps(clock):
    out = io.StringIO()
    with progress(out, 10_000) as bar:
        bar.resume(5000)
        clock.now += 10
        bar.update(5010, {"loss": 1.0})
    assert "step 5010/10000  loss 1  100 examples/s  1:23:10 left" in out.getvalue()


def test_plain_lines_come_now_and_then_and_at_the_end(clock):
    out = io.StringIO()
    with progress(out, 100, every_seconds=2.0) as bar:
        for step in range(1, 101):
            clock.now += 0.1
            bar.update(step, {"loss": 1.0} if step % 2 == 0 else None)
    steps = [int(re.search(r"step (\d+)/", line)[1]) for line in out.getvalue().splitlines()]
    assert steps[0] == 2
    assert steps[-1] == 100
    assert len(steps) <= 7


def test_students_are_shown_by_their_mean_and_other_metrics_not_at_all(clock):
    out = io.StringIO()
    with progress(out) as bar:
        bar.update(10, {"loss": jnp.array([1.0, 3.0]), "accuracy": [0.5, 0.7], "grad_norm": 7.0})
    assert out.getvalue() == "distilled  step 10/1000  loss 2  accuracy 0.600\n"


def test_no_steps_no_metrics_no_wrapping_and_no_markup(clock):
    out = io.StringIO()
    with progress(out, 0) as bar:
        bar.update(0, {})
    assert out.getvalue() == "distilled  step 0/0\n"
    console = rich.console.Console(file=(out := io.StringIO()), width=20)
    with Progress("[b]a very long name of a phase[/b]", 1, console=console) as bar:
        bar.update(1, {"loss": math.nan})
    assert out.getvalue() == "[b]a very long name of a phase[/b]  step 1/1  loss nan\n"


@pytest.mark.parametrize("total", [0, 3])
def test_a_terminal_gets_a_bar(clock, total):
    out = io.StringIO()
    with progress(out, total, terminal=True) as bar:
        for step in range(1, total + 1):
            clock.now += 1
            bar.update(step, {"loss": jnp.ones(2) * step, "accuracy": 0.5})
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert "━" in shown
    assert f"{total}/{total}" in shown
    assert ("loss 3  accuracy 0.500  100 examples/s  0:00 left" in shown) == (total == 3)


def test_the_phase_shows_training_metrics_and_resumes(tmp_path, clock):
    out = io.StringIO()
    with Logger(tmp_path, tensorboard=False) as logger, progress(out) as bar:
        phase = logger.phase("distilled", bar)
        phase.truncate(100)
        clock.now += 10
        phase.write(150, "test", {"loss": 9.0})
        phase.write(150, "train", {"loss": 1.0})
    assert out.getvalue() == "distilled  step 150/1000  loss 1  500 examples/s  2:50 left\n"
    assert len(read_metrics(tmp_path)) == 2
