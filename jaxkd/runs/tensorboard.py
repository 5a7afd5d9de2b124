"""TensorBoard event files, written without a thread so that a full disk raises an error instead of a hang."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxkd.files import explain_write_errors


class EventFiles:
    """Event files of a run, one for each phase of each start.

    Args:
      folder: Folder of the event files; made by the first write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def write(self, phase: str, step: int, scalars: Mapping[str, float]) -> None:
        """Appends scalars to the event file of a phase.

        Args:
          phase: Name of the phase; "" if there are no phases.
          step: Number of updates done.
          scalars: Tag -> value.

        Raises:
          OSError: If the file cannot be written.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        with explain_write_errors(self._folder):
            writer = self._writer(phase)
            writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
            writer.flush()

    def hide_after(self, phase: str, step: int) -> None:
        """Tells TensorBoard to hide what a phase has written after a step.

        Args:
          phase: Name of the phase; "" if there are no phases.
          step: Last step that stays visible.

        Raises:
          OSError: If the file cannot be written.
        """
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        with explain_write_errors(self._folder):
            start = Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START))
            self._writer(phase).write_event(start)

    def close(self) -> None:
        """Closes all files."""
        for writer in self._writers.values():
            with contextlib.suppress(OSError):  # every write was flushed, so only one that already raised is left
                writer.close()
        self._writers = {}

    def _writer(self, phase: str) -> Any:
        """Open event file of a phase."""
        # No SummaryWriter: its thread would hang on a full disk.
        from tensorboardX.event_file_writer import EventsWriter

        if phase not in self._writers:
            folder = self._folder / phase
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads files in the order of their names, in which a clock that is set back must not matter.
            start = sum(1 for _ in folder.glob("events.*"))
            self._writers[phase] = EventsWriter(str(folder / f"events.{start:05d}"), f".{os.getpid()}")
        return self._writers[phase]
