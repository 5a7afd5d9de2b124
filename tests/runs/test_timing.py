"""What a run notes about itself: times, waits, memory, and an input that hangs or is slow."""

import collections
import functools
import json
import re
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import copied, make_batch
from runs.test_loop import Record, fit, parts

from jaxkd import data, parallel
from jaxkd.data import eval_batches, open_source, prefetch
from jaxkd.runs import loop, timing
from jaxkd.runs.timing import Clock, memory

ALONE = {"process_index": 0, "process_count": 1}
SOURCE = open_source({"image": np.zeros((400, 2, 2, 1), np.float32), "label": np.arange(400) % 3})


@pytest.fixture
def hours(monkeypatch):
    """A clock of the system that the test turns: `hours.now`."""
    hand = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(timing.time, "monotonic", lambda: hand.now)
    return hand


class Loss:
    """A loss on a device that is done with it, or not yet."""

    def __init__(self, ready=True):
        self.is_ready = lambda: ready


def drive(watch, hours, steps, *, ready=True, read=0.0, place=0.0):
    """Steps of `wait` and `work` seconds each."""

    def stream():
        for wait, _ in steps:
            with watch.measure("read"):
                hours.now += read
            with watch.measure("place"):
                hours.now += place
            hours.now += wait
            yield {}

    with watch.watching(stream(), 0) as batches:
        for _, (_, work) in zip(batches, steps, strict=True):
            hours.now += work
            watch.stepped(Loss(ready))
            hours.now += 100.0  # an evaluation, which is no step's time


def test_figures_are_those_of_the_interval(hours):
    watch = Clock(batch_size=8)
    drive(watch, hours, [(0.0, 50.0)] + [(0.1, 0.3)] * 20, read=0.02, place=0.01)
    found = watch.figures()
    assert found.pop("host_peak_bytes") > 1e6
    assert found == pytest.approx(
        {
            "step_ms_median": 430,
            "step_ms_p95": 430,
            "examples_per_second": 8 / 0.43,
            "waiting_share": 0.13 / 0.43,
            "read_ms": 20,
            "place_ms": 10,
        }
    )
    assert set(watch.figures()) == {"host_peak_bytes"}, "nothing was measured since"


def test_slow_steps_show_in_the_tail(hours):
    watch = Clock()
    drive(watch, hours, [(0, 9)] + [(0, 1)] * 90 + [(0, 3)] * 10)
    found = watch.figures()
    assert (found["step_ms_median"], found["step_ms_p95"]) == pytest.approx((1000, 3000))
    assert "examples_per_second" not in found


def test_waiting_behind_a_busy_device_is_no_waiting(hours):
    watch = Clock()
    drive(watch, hours, [(0.5, 0.5)] * 10, ready=False)
    assert watch.figures()["waiting_share"] == 0


def test_a_slow_input_is_named_once_with_what_to_do(hours, caplog):
    watch = Clock(patience=30, share=0.2)
    for _ in range(4):
        drive(watch, hours, [(0.0, 0.6)] * 20, read=0.3, place=0.1)  # 20 s each, 40 % of it waiting
        watch.figures()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "40 % of the time was spent waiting for data" in said
    assert "reading the source 300.0 ms, placing on the device 100.0 ms per batch" in said
    assert "data.in_memory" in said
    assert "num_threads" in said


@pytest.mark.parametrize("work", [4.0, 0.1])
def test_an_input_that_keeps_up_or_a_short_look_is_left_alone(work, hours, caplog):
    watch = Clock(patience=30, share=0.2)
    drive(watch, hours, [(0.0, 0.0)] + [(0.0, work)] * 20, read=0.3)  # 7 % of 86 s; 75 % of 8 s
    watch.figures()
    assert not caplog.records


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("read", r"reading the source is still running \(1 thread, the longest for \d+ s\): check that the disk"),
        ("transform", "the transform is still running .*: look for what the transform waits for"),
        ("place", "placing on the device is still running .*: check that the device answers"),
    ],
)
def test_a_stalled_input_is_reported_while_it_hangs(part, said, caplog):
    """The third batch goes on only once the warning was heard."""
    heard = threading.Event()
    watch = Clock(patience=0.05)
    calls = collections.Counter()

    def hang(name, value):
        calls[name] += 1
        if name == part and calls[name] == 3:
            assert heard.wait(60)
        return value

    class Ear:
        def filter(self, record):
            if re.search(rf"no batch has come for \d+ s after step 2, {said}", record.getMessage()):
                heard.set()
            return True

    source = data.Source(
        SOURCE.name, SOURCE.size, SOURCE.num_classes, (2, 2, 1), lambda rows: hang("read", SOURCE.read(rows))
    )
    batches = eval_batches(source, 4, transform=lambda batch: hang("transform", batch), **ALONE)
    caplog.handler.addFilter(ear := Ear())
    try:
        stream = prefetch(
            batches, lambda b: hang("place", b), stop=5, buffer_size=0, num_threads=1, measure=watch.measure
        )
        with watch.watching(stream, 0) as watched:
            for _ in watched:
                watch.stepped(Loss())
    finally:
        caplog.handler.removeFilter(ear)
    assert heard.is_set(), caplog.text
    assert watch._number == 5
    assert not [t for t in threading.enumerate() if t.name == "jaxkd-watchdog"]


def test_warnings_of_one_stall_come_ever_more_seldom(hours, caplog):
    """After one, two, four, ... times the patience, though the watchdog looks every quarter of it."""
    watch = Clock(patience=30)
    ticks = iter(range(40))

    class Done:
        def wait(self, seconds):
            hours.now += seconds
            return next(ticks, None) is None

    watch._asked = hours.now
    watch._look_out(Done())
    assert [r.getMessage().split(" s ")[0].split()[-1] for r in caplog.records] == ["30", "60", "120", "240"]
    assert "no operation of the input pipeline is running" in caplog.text


def test_nothing_is_said_where_batches_come(caplog):
    watch = Clock(patience=30)
    with watch.watching([1, 2, 3], 0) as watched:
        assert list(watched) == [1, 2, 3]
    assert not caplog.records


def test_an_error_of_the_stream_passes_and_ends_the_watchdog():
    def broken():
        yield 1
        raise KeyError("here")

    with pytest.raises(KeyError, match="here"), Clock().watching(broken(), 0) as watched:
        list(watched)
    assert not [t for t in threading.enumerate() if t.name == "jaxkd-watchdog"]


def test_threads_measure_side_by_side():
    watch = Clock()
    batches = eval_batches(SOURCE, 4, transform=lambda batch: batch, **ALONE)
    assert len(list(prefetch(batches, dict, num_threads=8, measure=watch.measure))) == 100
    assert {name: count for name, (_, count) in watch._operations.items()} == {
        "read": 100,
        "transform": 100,
        "place": 100,
    }
    assert not watch._running
    assert batches[0] is not None
    assert watch._operations["read"][1] == 100, "who reads without prefetch is not measured"


def test_memory_of_a_device_where_it_is_told(monkeypatch):
    assert set(memory()) == {"host_peak_bytes"}, "a CPU does not tell"
    told = [{"bytes_in_use": 5, "peak_bytes_in_use": 9}, {"bytes_in_use": 7, "peak_bytes_in_use": 8}, None]
    devices = [types.SimpleNamespace(memory_stats=lambda one=one: one) for one in told]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    found = memory()
    assert (found["device_bytes"], found["device_peak_bytes"]) == (7, 9)
    monkeypatch.setattr(timing, "resource", None)
    assert set(memory()) == {"device_bytes", "device_peak_bytes"}


def test_fit_logs_the_system_beside_each_training_line_and_nothing_else_changes():
    plain, clocked = Record(), Record()
    fit(6, log=plain, log_every=2)
    fit(6, log=clocked, log_every=2, clock=Clock(16))
    assert [line for line in clocked.lines if line[1] != "system"] == plain.lines
    system = [(number, found) for number, split, found in clocked.lines if split == "system"]
    assert [number for number, _ in system] == [2, 4, 6]
    assert all(found["step_ms_median"] > 0 and found["examples_per_second"] > 0 for _, found in system)


def test_the_clock_never_waits_for_the_device(monkeypatch):
    """`fit` fetches as much with a clock as without."""
    setup, mesh, step = parts()
    fetched = []
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(1) or get(tree))

    def run(**options):
        fetched.clear()
        state = parallel.put_replicated(copied(setup.state), mesh)
        teacher = parallel.put_replicated(setup.teacher_variables, mesh)
        batches = functools.partial(map, lambda k: parallel.put_batch(make_batch(seed=k), mesh))
        loop.fit(step, state, teacher, lambda a, b: (x for x in batches(range(a, b))), steps=4, **options)
        return len(fetched)

    assert run(clock=Clock()) == run() == run(divergence=None)


def test_figures_are_plain_numbers():
    watch = Clock(4)
    with watch.watching([1, 2, 3], 0) as watched:
        for _ in watched:
            watch.stepped(jnp.zeros(()))
    assert json.loads(json.dumps(watch.figures()))["step_ms_p95"] > 0
