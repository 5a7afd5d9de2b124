"""How long steps take, what they wait for and how much memory there is: what a run notes about itself."""

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
except ImportError:  # where the system is no Unix
    resource = None  # type: ignore[assignment]

_LOG = logging.getLogger(__name__)


class _Part(NamedTuple):
    """What a part of the input does, and what helps where it hangs or is slow."""

    what: str
    stalled: str
    slow: str


_PARTS = {
    "read": _Part(
        "reading the source",
        "see whether the disk or the network that holds the data answers",
        "read the set once with data.in_memory, or give data.prefetch more num_threads",
    ),
    "transform": _Part(
        "the transform",
        "see what the transform waits for",
        "transform the set once and keep the result, or give data.prefetch more num_threads",
    ),
    "place": _Part(
        "placing on the device",
        "see whether the device answers",
        "send fewer bytes, such as uint8 images that the device turns into floats",
    ),
}


class Clock:
    """Measures the steps of one `loop.fit` and the parts of its input, and speaks up where data do not come.

    A step's time runs from asking for its batch to the look at the loss of the step before; evaluations, logging and
    checkpoints are left out, and so is the first step, which compiles. Time is spent waiting for data only where the
    device had finished the step before when the batch came.

    Args:
      batch_size: Examples a step, for the rate; 0 leaves the rate out.
      patience: Seconds without a batch after which a warning names the part that hangs; it comes again each time the
        wait has doubled. Also the least span of steps, in seconds, over which a slow input is judged.
      share: Share of such a span spent waiting for data above which one warning names each part's time.
    """

    def __init__(self, batch_size: int = 0, *, patience: float = 30.0, share: float = 0.2) -> None:
        self._batch_size, self._patience, self._share = batch_size, patience, share
        self._lock = threading.Lock()
        self._running: dict[tuple[int, str], float] = {}  # (thread, part) -> when it began
        self._parts: dict[str, np.ndarray] = {}  # part -> seconds and batches, in all
        self._before: dict[str, np.ndarray] = {}  # the same, when the figures were last asked for
        self._asked: float | None = None  # when the batch that is waited for was asked for
        self._began = self._wait = 0.0
        self._loss: Any = None  # of the step before; None before the first
        self._number = 0
        self._steps: list[float] = []
        self._waited = 0.0
        self._span = self._span_waited = 0.0
        self._warned = False

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Measures one part of one batch, in any thread.

        Args:
          part: "read", "transform" or "place", as `data.prefetch` says.
        """
        key, began = (threading.get_ident(), part), time.monotonic()
        with self._lock:
            self._running[key] = began
        try:
            yield
        finally:
            with self._lock:
                del self._running[key]
                spent = np.array([time.monotonic() - began, 1.0])
                self._parts[part] = self._parts.get(part, 0.0) + spent

    @contextlib.contextmanager
    def watching(self, stream: Iterable[Batch], start: int) -> Iterator[Iterator[Batch]]:
        """Measures the waits for batches and, from a thread of its own, reports those that do not come.

        Args:
          stream: Device batches.
          start: Steps done before the first of them.

        Yields:
          The same batches.
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
        """Ends a step, or a bundle of them, once the one before was looked at.

        Args:
          loss: Its loss, on the device; it is asked whether it is there, never waited for.
          count: Steps in the bundle, which share its time.
        """
        if self._loss is not None:
            self._steps += [(time.monotonic() - self._began) / count] * count
            self._waited += self._wait
        self._loss = loss
        self._number += count

    def figures(self) -> dict[str, float]:
        """What was measured since the last call; a warning comes with it where the input is slow.

        Returns:
          `step_ms_median`, `step_ms_p95`, `examples_per_second`, `waiting_share` in 0..1, the mean `read_ms`,
          `transform_ms` and `place_ms` of a batch, and the bytes of `memory`; without what was not measured.
        """
        steps, waited = np.array(self._steps), self._waited
        self._steps, self._waited = [], 0.0
        with self._lock:
            parts = dict(self._parts)
        new = {name: sums - self._before.get(name, 0.0) for name, sums in parts.items()}
        self._before = parts
        found: dict[str, float] = {}
        if steps.size:
            seconds = float(steps.sum())
            found["step_ms_median"], found["step_ms_p95"] = (1e3 * np.percentile(steps, [50, 95])).tolist()
            if self._batch_size:
                found["examples_per_second"] = self._batch_size * len(steps) / seconds
            found["waiting_share"] = waited / seconds
            self._judge(seconds, waited, _milliseconds(parts))
        return found | {f"{name}_ms": value for name, value in _milliseconds(new).items()} | memory()

    def _timed(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of a stream, each wait for one measured."""
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
        """Warns while a batch does not come, each time after twice as long."""
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
        """The sentence on a batch that does not come."""
        with self._lock:
            running = [(now - began, part) for (_, part), began in self._running.items()]
        if not running:
            doing = "no part is in progress: see what stands before data.prefetch"
        else:
            longest, part = max(running)
            threads = sum(name == part for _, name in running)
            doing = (
                f"{_PARTS[part].what} goes on ({threads} thread{'s' * (threads > 1)}, the longest for "
                f"{longest:.0f} s): {_PARTS[part].stalled}"
            )
        return f"no batch has come for {seconds:.0f} s after step {self._number}, {doing}."

    def _judge(self, seconds: float, waited: float, parts: dict[str, float]) -> None:
        """Warns once of an input that the steps wait for."""
        self._span, self._span_waited = self._span + seconds, self._span_waited + waited
        if self._warned or self._span < self._patience:
            return
        share, self._span, self._span_waited = self._span_waited / self._span, 0.0, 0.0
        if share > self._share:
            self._warned = True
            slowest = max(parts, key=lambda name: parts[name], default="read")
            times = ", ".join(f"{_PARTS[name].what} {value:.1f} ms" for name, value in parts.items())
            _LOG.warning(
                "up to step %d, %.0f %% of the time went on waiting for data (%s a batch): %s.",
                *(self._number, 100 * share, times or "no part measured", _PARTS[slowest].slow),
            )


def _milliseconds(parts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean time of a batch in each part that any went through."""
    return {name: float(1e3 * seconds / count) for name, (seconds, count) in parts.items() if count}


def memory() -> dict[str, float]:
    """Memory of this process and of its fullest device, in bytes.

    Returns:
      `device_bytes` and `device_peak_bytes` where the back end tells them (a CPU does not), and the most that the
      process ever held, `host_peak_bytes`, on a Unix.
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
