"""Starts that hang say so, and Ctrl-C is obeyed at any moment."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from jaxkd import data
from jaxkd.experiment import cli, interrupts, waiting
from jaxkd.runs import loop


def slow(seconds, rows=4):
    """A source whose reading takes long."""

    def read(numbers):
        time.sleep(seconds)
        return {"image": np.zeros((len(numbers), 2, 2, 1), np.uint8), "label": np.zeros(len(numbers), np.int32)}

    return data.Source("slow", rows, 2, (2, 2, 1), read)


def test_an_input_that_hangs_before_a_training_is_named(caplog, monkeypatch):
    with waiting.watching_input(patience=0.02):
        time.sleep(0.1)
        assert not caplog.messages, "nothing is read"
        data.in_memory(slow(0.2))
    said = caplog.messages[0]
    assert "the input is still being read after 0 s, in source.py, line" in said
    assert "for test_interrupts.py, line" in said
    assert "check that the disk or the network" in said
    assert len(caplog.messages) <= 5, "each after twice the time of the last"
    caplog.clear()
    code = compile("def fit(read):\n    return read()", loop.__file__, "exec")
    place = {}
    exec(code, place)
    with waiting.watching_input(patience=0.02):
        place["fit"](lambda: data.in_memory(slow(0.1)))
    assert not caplog.messages, "the clock of a training has its own words"


@pytest.fixture(autouse=True)
def usual_handler():
    """Python's own handler of Ctrl-C, whatever an earlier test has left."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Left(BaseException):
    """In place of the end of the process."""


def test_two_interrupts_leave_at_once_also_while_the_main_thread_hears_nothing(monkeypatch, capfd):
    codes, left = [], threading.Event()
    monkeypatch.setattr(interrupts.peers, "exit_now", lambda code: (codes.append(code), left.set()))

    def deaf():
        """As a compilation, in which Python's own handlers do not run."""
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                time.sleep(0.005)
                if "Ctrl-C once more" in capfd.readouterr().err:
                    break
            else:
                raise AssertionError("nothing was said")
            assert not codes
            os.kill(os.getpid(), signal.SIGINT)
            assert left.wait(10)
        finally:
            signal.signal(signal.SIGINT, before)

    cli.main(deaf)
    assert codes == [130]


def test_after_an_interrupt_the_usual_shutdown_is_left_out(monkeypatch, capfd):
    monkeypatch.setattr(interrupts.peers, "exit_now", lambda code: (_ for _ in ()).throw(Left(code)))

    class Dies:
        """As a callback of the garbage collector: an exception in it would only be printed, and Ctrl-C lost."""

        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    def interrupted():
        Dies()
        time.sleep(10)

    with pytest.raises(Left, match="130"):
        cli.main(interrupted)
    said = capfd.readouterr().err
    assert said.count("interrupted, saving") == 1
    assert "ignored" not in said
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1, "the watch has ended"
