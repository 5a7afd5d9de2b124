"""A word about an input that is still being read before a training begins, so that a start that hangs says why."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_LOG = logging.getLogger(__name__)
_PACKAGE = Path(__file__).resolve().parents[1]
_READERS = ("data", "pytorch")
"""Folders of the library that read what a user gives."""


@contextlib.contextmanager
def watching_input(patience: float = 30.0) -> Iterator[None]:
    """Context manager that warns when its body's thread has been reading an input for long outside `runs.fit`.

    Inside `fit` the clock of the training does so (`runs.Clock`). Each warning comes after twice the time of the last.

    Args:
      patience: Seconds until the first warning.
    """
    done, reader = threading.Event(), threading.get_ident()
    watch = threading.Thread(target=_look, args=(done, reader, patience), daemon=True, name="jaxkd-input")
    watch.start()
    try:
        yield
    finally:
        done.set()


def _look(done: threading.Event, reader: int, patience: float) -> None:
    """Body of the thread."""
    began, due = time.monotonic(), patience
    while not done.wait(patience / 4):
        where = _where(sys._current_frames().get(reader))
        if where is None:
            began, due = time.monotonic(), patience
        elif (waited := time.monotonic() - began) >= due:
            due *= 2
            _LOG.warning(
                "the input is still being read after %.0f s, in %s: check that the disk or the network that holds it "
                "answers, or wait if there is much to read.",
                *(waited, where),
            )


def _where(frame: FrameType | None) -> str | None:
    """Place in the library that reads, and the one in the experiment that asked for it; None if nothing is read."""
    reads, asked = "", ""
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        place = f"{file.name}, line {frame.f_lineno} ({frame.f_code.co_name})"
        if not file.is_relative_to(_PACKAGE):
            asked = place if reads and not asked and "site-packages" not in file.parts else asked
        elif file.parent.name == "runs" and file.name == "loop.py":
            return None
        elif not reads and file.relative_to(_PACKAGE).parts[0] in _READERS:
            reads = place
        frame = frame.f_back
    return f"{reads}, for {asked}" if reads and asked else reads or None
