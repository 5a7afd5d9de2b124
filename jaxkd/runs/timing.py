"""Measurements of a training: duration of steps, waiting for data, operations of the input pipeline, memory."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd.types import Batch

try:
    import resource
except ImportError:  # not on Unix
    resource = None  # type: ignore[assignment]

_LOG = logging.getLogger(__name__)


class _Operation(NamedTuple):
    """Operation of the input pipeline: its name in warnings, and advice where it hangs or is slow."""

    name: str
    stalled: str
    slow: str


_OPERATIONS = {
    "read": _Operation(
        "reading the source",
        "check that the disk or the network that holds the data answers",
        "read the set once with data.in_memory, or give data.prefetch more num_threads",
    ),
    "transform": _Operation(
        "the transform",
        "look for what the transform waits for",
        "transform the set once and keep the result, or give data.prefetch more num_threads",
    ),
    "place": _Operation(
        "placing on the device",
        "check that the device answers",
        "send fewer bytes, such as uint8 images that the device turns into floats",
    ),
}


class Clock:
    """Clock of one `fit`: measures its steps and its input pipeline, and warns of an input that hangs or is slow.

    The time of a step begins with the request for its batch and ends when the loss of the previous step was checked.
    Evaluations, logging, checkpoints and the first step, which compiles, are left out. A wait for a batch counts as
    waiting for data only if the device had finished the previous step when the batch came.

    Args:
      batch_size: Examples in a step, for the rate; 0 leaves the rate out.
      patience: Seconds without a batch after which a warning names the operation that hangs; the warning is repeated
        each time the wait has doubled. Also the minimal time, in seconds, over which a slow input is judged.
      share: Fraction of such a time, spent waiting for data, above which one warning gives the time of each operation.
    """

    def __init__(self, batch_size: int = 0, *, patience: float = 30.0, share: float = 0.2) -> None:
        self._batch_size, self._patience, self._share = batch_size, patience, share
        self._lock = threading.Lock()
        self._running: dict[tuple[int, str], float] = {}  # (thread, operation) -> when it began
        self._operations: dict[str, np.ndarray] = {}  # operation -> seconds and batches, in all
        self._before: dict[str, np.ndarray] = {}  # the same at the last call of `figures`
        self._asked: float | None = None  # when the batch that is waited for was requested
        self._began = self._wait = 0.0
        self._loss: Any = None  # of the previous step; None before the first
        self._number = 0
        self._steps: list[float] = []
        self._waited = 0.0
        self._span = self._span_waited = 0.0
        self._warned = False

    @contextlib.contextmanager
    def measure(self, operation: str) -> Iterator[None]:
        """Context manager that times one operation on one batch, in any thread.

        Args:
          operation: "read", "transform" or "place" (`jaxkd.data.pipeline.Operation`).
        """
        key, began = (threading.get_ident(), operation), time.monotonic()
        with self._lock:
            self._running[key] = began
        try:
            yield
        finally:
            with self._lock:
                del self._running[key]
                spent = np.array([time.monotonic() - began, 1.0])
                self._operations[operation] = self._operations.get(operation, 0.0) + spent

    @contextlib.contextmanager
    def watching(self, stream: Iterable[Batch], start: int) -> Iterator[Iterator[Batch]]:
        """Context manager that times the waits for batches; a thread of its own warns of a batch that does not come.

        Args:
          stream: Device batches.
          start: Number of steps done before the first batch.

        Yields:
          Iterator over the same batches.
        """
        self._number = start
        done = threading.Event()
        watchdog = threading.Thread(target=self._look_out, args=(done,), daemon=True, name="jaxkd-watchdog")
        watchdog.start()
        try:
            yield self._timed(iter(stream))
        finally:
            done.set()
            watchdog.join()

    def stepped(self, loss: Any, count: int = 1) -> None:
        """Ends the time of a step or of a bundle of steps; called once the loss of the previous one was checked.

        Args:
          loss: Loss of the step, on the device; the clock asks if it is ready and never waits for it.
          count: Number of steps in the bundle, among which its time is divided evenly.
        """
        if self._loss is not None:
            self._steps += [(time.monotonic() - self._began) / count] * count
            self._waited += self._wait
        self._loss = loss
        self._number += count

    def figures(self) -> dict[str, float]:
        """Measurements since the last call; logs a warning if the input is slow.

        Returns:
          `step_ms_median`, `step_ms_p95`, `examples_per_second`, `waiting_share` in 0..1, the mean `read_ms`,
          `transform_ms` and `place_ms` of a batch, and the bytes of `memory`. Names that were not measured are left
          out.
        """
        steps, waited = np.array(self._steps), self._waited
        self._steps, self._waited = [], 0.0
        with self._lock:
            operations = dict(self._operations)
        new = {name: sums - self._before.get(name, 0.0) for name, sums in operations.items()}
        self._before = operations
        found: dict[str, float] = {}
        if steps.size:
            seconds = float(steps.sum())
            found["step_ms_median"], found["step_ms_p95"] = (1e3 * np.percentile(steps, [50, 95])).tolist()
            if self._batch_size:
                found["examples_per_second"] = self._batch_size * len(steps) / seconds
            found["waiting_share"] = waited / seconds
            self._judge(seconds, waited, _milliseconds(operations))
        return found | {f"{name}_ms": value for name, value in _milliseconds(new).items()} | memory()

    def _timed(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """Batches of a stream, with the wait for each one measured."""
        while True:
            self._asked = self._began = time.monotonic()
            try:
                batch = next(stream)
            except StopIteration:
                return
            finally:
                self._asked = None
            hidden = self._loss is not None and not self._loss.is_ready()
            self._wait = 0.0 if hidden else time.monotonic() - self._began
            yield batch

    def _look_out(self, done: threading.Event) -> None:
        """Watchdog's thread: warns while a batch does not come, each time after twice the wait."""
        asked, due = None, self._patience
        while not done.wait(self._patience / 4):
            now, before = time.monotonic(), asked
            asked = self._asked
            if asked is None or asked != before:
                due = self._patience
            if asked is not None and now - asked >= due:
                due *= 2
                _LOG.warning("%s", self._stalled(now, now - asked))

    def _stalled(self, now: float, seconds: float) -> str:
        """Warning about a batch that does not come."""
        with self._lock:
            running = [(now - began, operation) for (_, operation), began in self._running.items()]
        if not running:
            doing = "no operation of the input pipeline is running: look at what precedes data.prefetch"
        else:
            longest, operation = max(running)
            threads = sum(name == operation for _, name in running)
            doing = (
                f"{_OPERATIONS[operation].name} is still running ({threads} thread{'s' * (threads > 1)}, the longest "
                f"for {longest:.0f} s): {_OPERATIONS[operation].stalled}"
            )
        return f"no batch has come for {seconds:.0f} s after step {self._number}, {doing}."

    def _judge(self, seconds: float, waited: float, operations: dict[str, float]) -> None:
        """Warns once if the steps wait too long for the input."""
        self._span, self._span_waited = self._span + seconds, self._span_waited + waited
        if self._warned or self._span < self._patience:
            return
        share, self._span, self._span_waited = self._span_waited / self._span, 0.0, 0.0
        if share > self._share:
            self._warned = True
            slowest = max(operations, key=lambda name: operations[name], default="read")
            times = ", ".join(f"{_OPERATIONS[name].name} {value:.1f} ms" for name, value in operations.items())
            _LOG.warning(
                "up to step %d, %.0f %% of the time was spent waiting for data (%s per batch): %s.",
                *(self._number, 100 * share, times or "no operation measured", _OPERATIONS[slowest].slow),
            )


def _milliseconds(operations: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean time of each operation that was measured, a batch."""
    return {name: float(1e3 * seconds / count) for name, (seconds, count) in operations.items() if count}


def memory() -> dict[str, float]:
    """Memory in use by this process and on the device that uses most, in bytes.

    Returns:
      `device_bytes` and `device_peak_bytes` where the back end reports them (a CPU does not), and `host_peak_bytes`,
      the maximum that the process has held so far, on Unix.
    """
    found: dict[str, float] = {}
    stats = [told for device in jax.local_devices() if (told := device.memory_stats())]
    for name, key in (("device_bytes", "bytes_in_use"), ("device_peak_bytes", "peak_bytes_in_use")):
        if values := [told[key] for told in stats if key in told]:
            found[name] = max(values)
    if resource is not None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["host_peak_bytes"] = peak if sys.platform == "darwin" else 1024 * peak
    return found
