"""Progress of a training: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

import jax
import numpy as np
import rich.console
import rich.progress
from jax.typing import ArrayLike


class Progress:
    """Progress bar of a training, which prints plain lines where the output is no terminal; a context manager."""

    def __init__(
        self,
        name: str,
        total: int,
        *,
        batch_size: int = 0,
        console: rich.console.Console | None = None,
        every_seconds: float = 2.0,
        shows: str = "accuracy",
    ) -> None:
        """Sets the bar up; entering the context shows it, on process 0 alone.

        Args:
          name: Name of the training, such as "distilled".
          total: Number of steps, may be 0.
          batch_size: Examples in a step, for the rate; 0 leaves the rate out.
          console: Console to show it on; standard output by default.
          every_seconds: Minimal time between two plain lines; the last step is always printed.
          shows: Name of the metric that is shown beside the loss.
        """
        self._name, self._total, self._batch_size, self._shows = name, total, batch_size, shows
        self._console = console or rich.console.Console()
        self._active = jax.process_index() == 0
        self._every_seconds = every_seconds
        self._last_line = -math.inf
        self._numbers = ""
        self._times = collections.deque([(time.monotonic(), 0)], maxlen=50)
        self._bar: rich.progress.Progress | None = None
        if self._active and self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}", markup=False),
                rich.progress.BarColumn(bar_width=24),
                rich.progress.TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[numbers]}", markup=False),
                console=self._console,
            )
            self._task = self._bar.add_task(name, total=total, numbers="")

    def resume(self, step: int) -> None:
        """Continues from a step that an earlier start of the run had reached.

        Args:
          step: Number of steps done.
        """
        self._times.clear()
        self._times.append((time.monotonic(), step))
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def update(self, step: int, metrics: Mapping[str, ArrayLike | Sequence[float]] | None = None) -> None:
        """Shows the number of steps done, with the loss and the metric last given.

        Args:
          step: Number of steps done.
          metrics: Name -> scalar or [S] with one value for each student; the means of `loss` and of the metric to
            show are shown. A plain line is printed only if metrics are given.
        """
        if not self._active:
            return
        now = time.monotonic()
        if step > self._times[-1][1]:
            self._times.append((now, step))
        if metrics is not None:
            means = {k: np.mean(jax.device_get(metrics[k])) for k in ("loss", self._shows) if k in metrics}
            self._numbers = "  ".join(f"{k} {v:.3g}" if k == "loss" else f"{k} {v:.3f}" for k, v in means.items())
        text = "  ".join(filter(None, [self._numbers, self._pace(step)]))
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=text)
        elif metrics is not None and (step >= self._total or now - self._last_line >= self._every_seconds):
            self._last_line = now
            line = "  ".join(filter(None, [self._name, f"step {step}/{self._total}", text]))
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _pace(self, step: int) -> str:
        """Text with examples per second and time left, from the last updates."""
        rate = self._steps_per_second()
        if rate is None:
            return ""
        minutes, seconds_left = divmod(round(max(self._total - step, 0) / rate), 60)
        clock = (
            f"{minutes}:{seconds_left:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{seconds_left:02}"
        )
        speed = f"{rate * self._batch_size:,.0f} examples/s  " if self._batch_size else ""
        return f"{speed}{clock} left"

    @property
    def examples_per_second(self) -> float | None:
        """Mean rate over the last updates shown, compilation excluded; None if nothing was trained."""
        rate = self._steps_per_second()
        return rate * self._batch_size if rate is not None and self._batch_size else None

    def _steps_per_second(self) -> float | None:
        """Rate over the last updates; None before the first."""
        # The first step compiles: it is left out as soon as two others are measured.
        points = list(self._times)[1:] if len(self._times) > 2 else list(self._times)
        seconds, steps = points[-1][0] - points[0][0], points[-1][1] - points[0][1]
        return steps / seconds if steps > 0 and seconds > 0 else None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
