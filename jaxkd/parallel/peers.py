"""Watch over the other processes: one that has lost another says so and leaves, whatever it is waiting in."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

LOST = 75
"""Exit code of a process that has lost another one: a temporary failure, after which the run is started again."""

ADVICE = "read the last output of the others, then run the same command again everywhere to go on"
"""Advice for someone whose processes have lost each other, for the end of a sentence."""

before_exit: list[Callable[[], None]] = []
"""Functions to call before a process leaves without Python's usual shutdown."""

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


def wait(name: str, seconds: float) -> None:
    """Waits at a barrier of JAX's coordination service; returns at once in a single process.

    Args:
      name: Name of the barrier, the same in all processes.
      seconds: Time limit.

    Raises:
      RuntimeError: If another process did not come in time, or process 0 does not answer.
    """
    if (found := client()) is not None:
        found.wait_at_barrier(f"jaxkd {name}", round(1000 * seconds))


def client() -> Any:
    """The client of JAX's coordination service, which is not public.

    Returns:
      The client; None in a single process.
    """
    return _jax_state().client


def _jax_state() -> Any:
    """JAX's own record of the processes."""
    from jax._src import distributed

    return distributed.global_state


def reason(error: BaseException) -> str:
    """Reason of JAX's error, for the middle of a sentence.

    Args:
      error: The error.

    Returns:
      The missing processes if it names them, else its first line.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    names = [line for line in lines if line.replace("/", "").isdigit()]
    return f"missing: process {', '.join(names)}" if names else lines[0].rstrip(".") if lines else type(error).__name__


class Watch:
    """Watch over the other processes: a thread that meets theirs at barriers, and takes one that is late for lost.

    Process 0 serves the barriers: a second thread takes it for lost if it does not even say that somebody is late.
    """

    def __init__(self) -> None:
        self.timeout = 0.0
        self._asked: float | None = None
        self._ended = threading.Event()

    def begin(self, timeout: float) -> None:
        """Starts the threads.

        Args:
          timeout: Seconds without a sign of life after which another process counts as lost.
        """
        self.timeout = timeout
        threading.Thread(target=self._meet, daemon=True, name="jaxkd-peers").start()
        threading.Thread(target=self._look_at_process_0, daemon=True, name="jaxkd-process-0").start()

    def end(self) -> None:
        """Stops the threads, since this process leaves."""
        self._ended.set()

    def _meet(self) -> None:
        """Body of the thread that meets the others."""
        while not self._ended.wait(self.timeout / 4):
            self._asked = time.monotonic()
            try:
                wait("alive", self.timeout)
            except RuntimeError as error:
                if not self._ended.is_set():
                    self._leave(reason(error))
                return
            self._asked = None

    def _look_at_process_0(self) -> None:
        """Body of the thread that looks whether process 0 answers."""
        while not self._ended.wait(self.timeout / 8):
            asked = self._asked
            if asked is not None and time.monotonic() - asked > 1.25 * self.timeout + 1 and not self._ended.is_set():
                self._leave("process 0 does not answer")

    def _leave(self, why: str) -> None:
        """Leaves with code 75."""
        what = f"waited {self.timeout:g} s for a sign of life of another process ({why})"
        print(f"error: {_who()} has {what}: {ADVICE}.", file=sys.stderr)
        exit_now(LOST)


def exit_now(code: int) -> None:
    """Exits without Python's usual shutdown, in which JAX would wait for processes that are gone.

    Args:
      code: The exit code.
    """
    for function in before_exit:
        with contextlib.suppress(Exception):  # nothing keeps the process from leaving
            function()
    with contextlib.suppress(OSError, ValueError):  # nobody reads what is said any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def noticing_process_0() -> Iterator[None]:
    """Context manager for `jax.distributed.initialize`, after which the loss of process 0 ends the others in order.

    JAX aborts a process, with C++'s stack, as soon as its connection to process 0 breaks. It has a callback for this,
    which jaxlib cannot call (it cannot turn the status into a Python object) and aborts for instead, without a stack.
    The signal of the abort is caught: if process 0 is gone, the process says so and leaves with code 75.
    """
    from jax._src.lib import _jax

    original = _jax.get_distributed_runtime_client
    _jax.get_distributed_runtime_client = functools.partial(original, missed_heartbeat_callback=_lost_process_0)
    _catch_aborts()
    try:
        yield
    finally:
        _jax.get_distributed_runtime_client = original


def _catch_aborts() -> None:
    """Installs `_lost_process_0` in C, since Python's own handlers do not run before an abort."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, _HANDLER), ctypes.c_void_p
    libc.signal(signal.SIGABRT, _on_abort)


def _lost_process_0(*_: Any) -> None:
    """Leaves with code 75 if process 0 can no longer be reached; else the abort that called it takes its course."""
    state = _jax_state()
    if state.coordinator_address is None or _reachable(state.coordinator_address):
        return
    what = f"has lost process 0, which cannot be reached at {state.coordinator_address} any more"
    print(f"error: {_who()} {what}: {ADVICE}.", file=sys.stderr)
    exit_now(LOST)


_on_abort = _HANDLER(_lost_process_0)


def _reachable(address: str) -> bool:
    """Tests if something still answers at HOST:PORT after two seconds: a process that ends closes its door last."""
    host, _, port = address.rpartition(":")
    for _ in range(10):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
        except OSError:
            return False
        time.sleep(0.2)
    return True


def _who() -> str:
    """This process among all."""
    state = _jax_state()
    return f"process {state.process_id} of {state.num_processes}"
