"""Ctrl-C at any moment: the first one leaves in order, the second one at once, also while a program compiles."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import jax

from jaxkd.parallel import peers

_SAYS = b"\ninterrupted, saving what is done: Ctrl-C once more leaves at once\n"
_SWALLOW = ("_xla_gc_callback", "__del__")
"""Functions that Python calls on its own and whose exceptions it only prints, so that Ctrl-C would be lost in them."""


class Interrupts:
    """Watch over Ctrl-C. Python's own handlers wait for a compilation to end; this thread does not."""

    def __init__(self) -> None:
        self._count, self._again, self._came = 0, 0, threading.Event()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        threading.Thread(target=self._read, daemon=True, name="jaxkd-interrupts").start()
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._usual:
            signal.signal(signal.SIGINT, self._raise)

    def close(self) -> None:
        """Ends the watch."""
        if self._usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.set_wakeup_fd(self._before)
        os.close(self._writer)  # which ends the thread

    def leave(self, code: object) -> None:
        """Leaves at once after an interrupt, since Python's usual shutdown may meet threads that still compile.

        Args:
          code: The exit code; nothing is done unless it is that of a signal and one came, or if several processes run.
        """
        if isinstance(code, int) and code > 128 and self._came.wait(0.1) and not jax.distributed.is_initialized():
            peers.exit_now(code)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        """Handler in place of Python's own, which waits a moment where an exception would be lost."""
        while frame is not None:
            if frame.f_code.co_name in _SWALLOW:
                threading.Timer(0.02, self._send_again).start()
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    def _send_again(self) -> None:
        """Sends the signal once more."""
        self._again += 1
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _read(self) -> None:
        """Body of the thread: the numbers of the signals, as they come."""
        while numbers := os.read(self._reader, 16):
            for number in numbers:
                if number == signal.SIGINT and self._again:
                    self._again -= 1
                elif number == signal.SIGINT:
                    self._interrupted()
        os.close(self._reader)

    def _interrupted(self) -> None:
        """Says what happens, or leaves."""
        self._count += 1
        self._came.set()
        if self._count > 1:
            peers.exit_now(130)
        with contextlib.suppress(OSError, ValueError):  # nobody reads it
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _SAYS)


@contextlib.contextmanager
def watching() -> Iterator[Interrupts | None]:
    """Context manager that watches over Ctrl-C; in a thread other than the main one, nothing is watched.

    Yields:
      The watch, or None.
    """
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    interrupts = Interrupts()
    try:
        yield interrupts
    finally:
        interrupts.close()
