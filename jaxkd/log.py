"""What a run leaves behind while it trains: metrics as JSON lines, TensorBoard and W&B, and a view of its progress."""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console
import rich.progress
from jax.typing import ArrayLike

from jaxkd.run import plain, write_atomically, writing

_RESERVED = ("stage", "step", "split")

SYSTEM = "system"
"""The split of figures that no second run repeats, such as seconds and bytes; it has a file of its own."""


class Logger:
    """Writes the metrics of a run: `metrics.jsonl`, and TensorBoard events and W&B beside it; a context manager.

    A line of `metrics.jsonl` is one strict JSON object: `step`, `split`, `stage` if there are any, and name -> value,
    where a value is a number or a list with one number a student. A NaN or an infinity is written as null.
    TensorBoard and W&B get a list as its mean (`split/name`) and one scalar a student (`split/name/0`, ...); W&B shows
    the metrics of each stage over that stage's own step. Off process 0 nothing is written. Lines of the split "system"
    go to `system.jsonl` instead, so that `metrics.jsonl` holds only what an equal run would write again, bit for bit.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tensorboard: bool = True,
        wandb: bool = False,
        project: str = "jaxkd",
        config: Any = None,
    ) -> None:
        """Opens both files for appending, after cutting off a last line that a kill left torn.

        Args:
          path: The run directory, which exists.
          tensorboard: Whether events go to `<path>/tensorboard/<stage>`.
          wandb: Whether to log to W&B (`pip install "jaxkd[wandb]"`; `WANDB_MODE=offline` needs no account).
          project: The project's name in W&B.
          config: The resolved configuration, shown in W&B.

        Raises:
          ImportError: If `wandb` is asked for but not installed.
          ValueError: If W&B refuses to start.
          OSError: If the folder may not be written to.
        """
        self._path = Path(path)
        self._active = jax.process_index() == 0
        self._tensorboard = tensorboard
        self._events: dict[str, Any] = {}
        self._wandb = _start_wandb(self._path, project, config) if wandb and self._active else None
        if self._active:
            for file in self._files:
                with writing(file):
                    _cut_torn_line(file)

    @property
    def _files(self) -> tuple[Path, Path]:
        """Where metrics go, and where the system's figures."""
        return self._path / "metrics.jsonl", self._path / "system.jsonl"

    def stage(self, name: str, progress: Progress | None = None) -> StageLogger:
        """Binds a stage, so that a training loop need not know which one it runs nor how it is shown.

        Args:
          name: The stage's name, for example "teacher".
          progress: Shown the metrics of the split "train", if there is one.

        Returns:
          `write(step, split, metrics)` and `truncate(step)` for that stage.
        """
        return StageLogger(self, name, progress)

    def write(self, step: int, split: str, metrics: Mapping[str, ArrayLike | Sequence[float]], stage: str = "") -> None:
        """Appends one line, whole or not at all, and sends the same to TensorBoard and W&B.

        Args:
          step: Number of updates done.
          split: "train", "test", ...; "system" for figures about the run itself.
          metrics: Name -> scalar, or [S] with one value a student; numbers, numpy or JAX arrays.
          stage: The stage that the step counts in.

        Raises:
          ValueError: If a value is neither a number nor a list of numbers, or a name is `stage`, `step` or `split`.
          OSError: If the disk is full or may not be written to.
        """
        if not self._active:
            return
        values = {name: _number(name, value) for name, value in jax.device_get(dict(metrics)).items()}
        head = {"stage": stage} if stage else {}
        line = json.dumps({**head, "step": int(step), "split": split, **plain(values)}, allow_nan=False)
        file = self._files[split == SYSTEM]
        with writing(file):
            _append(file, line.encode() + b"\n")
        scalars = {f"{split}/{name}": scalar for name, scalar in _scalars(values)}
        if self._tensorboard:
            self._write_events(stage, int(step), scalars)
        if self._wandb is not None:
            prefix = f"{stage}/" if stage else ""
            self._wandb.define_metric(f"{prefix}*", step_metric=f"{prefix}step")
            self._wandb.log({f"{prefix}step": int(step), **{prefix + name: v for name, v in scalars.items()}})

    def truncate(self, stage: str, step: int) -> None:
        """Forgets what a stage logged after a step, atomically, so that after resuming there each step stands once.

        TensorBoard is told to hide those steps; what W&B already has stays there.

        Args:
          stage: The stage's name; "" if there are no stages.
          step: The step that training resumes from.

        Raises:
          OSError: If a file cannot be rewritten.
          ValueError: If a line is no JSON.
        """
        if not self._active:
            return
        changed = False
        for file in self._files:
            rows = _rows(file) if file.exists() else []
            kept = [line for line, row in rows if row.get("stage", "") != stage or row["step"] <= step]
            if len(kept) < len(rows):
                changed = True
                write_atomically(file, "".join(line + "\n" for line in kept))
        if changed and self._tensorboard:
            from tensorboardX.proto.event_pb2 import Event, SessionLog

            with writing(self._path / "tensorboard"):
                start = Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START))
                self._event_writer(stage).write_event(start)

    def _write_events(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the scalars to the stage's event file."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        with writing(self._path / "tensorboard"):
            writer = self._event_writer(stage)
            writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
            writer.flush()

    def _event_writer(self, stage: str) -> Any:
        """The stage's open event file. No SummaryWriter: its thread would hang, not raise, on a full disk."""
        from tensorboardX.event_file_writer import EventsWriter

        if stage not in self._events:
            folder = self._path / "tensorboard" / stage
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads files in the order of their names, which the clock alone would leave to the clock.
            start = sum(1 for _ in folder.glob("events.*"))
            self._events[stage] = EventsWriter(str(folder / f"events.{start:05d}"), f".{os.getpid()}")
        return self._events[stage]

    def close(self) -> None:
        """Closes the event files and ends the W&B run."""
        for writer in self._events.values():
            with contextlib.suppress(OSError):  # every write was flushed, so only one that already raised is left
                writer.close()
        self._events = {}
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None

    def __enter__(self) -> Logger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class StageLogger(NamedTuple):
    """A `Logger` bound to one stage and, perhaps, to its progress: what `jaxkd.loop.fit` logs to."""

    logger: Logger
    name: str
    progress: Progress | None = None

    def write(self, step: int, split: str, metrics: Mapping[str, ArrayLike | Sequence[float]]) -> None:
        """As `Logger.write`, for this stage."""
        self.logger.write(step, split, metrics, self.name)
        if self.progress is not None and split == "train":
            self.progress.update(step, metrics)

    def truncate(self, step: int) -> None:
        """As `Logger.truncate`, for this stage; its progress goes on from there."""
        self.logger.truncate(self.name, step)
        if self.progress is not None:
            self.progress.resume(step)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the logged lines, also while the run goes on (a last line that is not whole yet is left out).

    Args:
      path: The run directory, or its `metrics.jsonl`.

    Returns:
      One dict a line: `step`, `split`, perhaps `stage`, and name -> number or list of numbers; null becomes NaN.

    Raises:
      ValueError: If there is no such file, or a line is no JSON.
    """
    file = Path(path) / "metrics.jsonl" if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise ValueError(f"there are no metrics at {file}: give the folder of a run that has logged something.")
    return [{name: _nan_for_null(value) for name, value in row.items()} for _, row in _rows(file)]


class Progress:
    """Shows how far a training is: a bar on a terminal, elsewhere a plain line now and then; a context manager."""

    def __init__(
        self,
        name: str,
        total: int,
        *,
        batch_size: int = 0,
        console: rich.console.Console | None = None,
        every_seconds: float = 2.0,
    ) -> None:
        """Shows nothing yet; off process 0, never.

        Args:
          name: What is trained, for example "distilled".
          total: Number of steps, may be 0.
          batch_size: Examples a step, for the rate; 0 leaves the rate out.
          console: Where to show it; standard output by default.
          every_seconds: Least time between two plain lines; the last step always gets one.
        """
        self._name, self._total, self._batch_size = name, total, batch_size
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
        """Counts from a step that an earlier start had reached.

        Args:
          step: Steps done, of the total.
        """
        self._times.clear()
        self._times.append((time.monotonic(), step))
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def update(self, step: int, metrics: Mapping[str, ArrayLike | Sequence[float]] | None = None) -> None:
        """Shows that `step` steps are done, with the loss and accuracy last given.

        Args:
          step: Steps done, of the total.
          metrics: If it has `loss` or `accuracy`, scalar or [S] with one value a student, their mean is shown. A plain
            line is printed only where metrics are given.
        """
        if not self._active:
            return
        now = time.monotonic()
        if step > self._times[-1][1]:
            self._times.append((now, step))
        if metrics is not None:
            means = {k: np.mean(jax.device_get(metrics[k])) for k in ("loss", "accuracy") if k in metrics}
            self._numbers = "  ".join(f"{k} {v:.3g}" if k == "loss" else f"{k} {v:.3f}" for k, v in means.items())
        text = "  ".join(filter(None, [self._numbers, self._pace(step)]))
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=text)
        elif metrics is not None and (step >= self._total or now - self._last_line >= self._every_seconds):
            self._last_line = now
            line = "  ".join(filter(None, [self._name, f"step {step}/{self._total}", text]))
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _pace(self, step: int) -> str:
        """Examples per second and the time left, from the last updates."""
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
        """Mean rate over the last updates shown, without the compilation; None if nothing was trained."""
        rate = self._steps_per_second()
        return rate * self._batch_size if rate is not None and self._batch_size else None

    def _steps_per_second(self) -> float | None:
        """Rate over the last updates, None before there is one."""
        # The first step compiles: once two others are known, it says nothing about those to come.
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


def _number(name: str, value: Any) -> Any:
    """The metric as a number or a list of numbers, or a sentence."""
    if name in _RESERVED:
        raise ValueError(f"a metric is called {name!r}, which the log uses itself: give it another name.")
    array = np.asarray(value)
    if array.ndim > 1 or array.dtype.kind in "OSUmMc":
        raise ValueError(
            f"metric {name!r} has shape {array.shape} and dtype {array.dtype}, but must be a number or a list with one "
            "number a student: reduce it before logging."
        )
    return array.tolist() if array.dtype.kind in "biu" else array.astype(float).tolist()


def _scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every number by itself, and the mean of each list."""
    for name, value in values.items():
        if isinstance(value, list):
            yield name, float(np.mean(value)) if value else math.nan
            for student, item in enumerate(value):
                yield f"{name}/{student}", float(item)
        else:
            yield name, float(value)


def _append(file: Path, data: bytes) -> None:
    """Appends all of the bytes or, on an error, none."""
    with file.open("ab", buffering=0) as raw:
        size = raw.tell()
        try:
            while data:
                data = data[raw.write(data) :]
        except OSError:
            raw.truncate(size)
            raise


def _cut_torn_line(file: Path) -> None:
    """Drops what stands behind the last line end."""
    if file.exists():
        data = file.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(file, data.rfind(b"\n") + 1)


def _rows(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Whole lines, as text and parsed."""
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append((line, json.loads(line)))
        except ValueError as error:
            raise ValueError(f"line {number} of {file} is no JSON ({error}): mend or remove that line.") from error
    return rows


def _nan_for_null(value: Any) -> Any:
    """Null as the NaN that it stands for, also in a list."""
    if isinstance(value, list):
        return [_nan_for_null(item) for item in value]
    return math.nan if value is None else value


def _start_wandb(path: Path, project: str, config: Any) -> Any:
    """Starts, or on resuming goes on with, the W&B run whose id stands in the run directory."""
    try:
        import wandb
    except ImportError as error:
        raise ImportError('logging to W&B needs its package: pip install "jaxkd[wandb]", or leave W&B off.') from error
    file = path / "wandb_id.txt"
    if not file.exists():
        write_atomically(file, uuid.uuid4().hex[:12] + "\n")
    try:
        return wandb.init(
            project=project,
            name=path.name,
            id=file.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(path),
            config=plain(config) if config is not None else None,
            settings=wandb.Settings(console="off", silent=True),
        )
    except wandb.Error as error:
        raise ValueError(
            f"W&B did not start ({error}): `wandb login`, set WANDB_MODE=offline, or leave it off."
        ) from error
