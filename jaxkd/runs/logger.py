"""What a run leaves behind while it trains: metrics as JSON lines, TensorBoard and W&B, and a view of its progress."""

from __future__ import annotations

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
from jax.typing import ArrayLike

from jaxkd.files import explain_write_errors, to_json, write_atomically
from jaxkd.runs.progress import Progress

_RESERVED = ("phase", "step", "split")

SYSTEM = "system"
"""The split of figures that no second run repeats, such as seconds and bytes; it has a file of its own."""


class Logger:
    """Writes the metrics of a run: `metrics.jsonl`, and TensorBoard events and W&B beside it; a context manager.

    A line of `metrics.jsonl` is one strict JSON object: `step`, `split`, `phase` if there are any, and name -> value,
    where a value is a number or a list with one number a student. A NaN or an infinity is written as null.
    TensorBoard and W&B get a list as its mean (`split/name`) and one scalar a student (`split/name/0`, ...); W&B shows
    the metrics of each phase over that phase's own step. Off process 0 nothing is written. Lines of the split "system"
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
          tensorboard: Whether events go to `<path>/tensorboard/<phase>`.
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
                with explain_write_errors(file):
                    _cut_torn_line(file)

    @property
    def _files(self) -> tuple[Path, Path]:
        """Where metrics go, and where the system's figures."""
        return self._path / "metrics.jsonl", self._path / "system.jsonl"

    def phase(self, name: str, progress: Progress | None = None) -> PhaseLogger:
        """Binds a phase, so that a training loop need not know which one it runs nor how it is shown.

        Args:
          name: The phase's name, for example "teacher".
          progress: Shown the metrics of the split "train", if there is one.

        Returns:
          `write(step, split, metrics)` and `truncate(step)` for that phase.
        """
        return PhaseLogger(self, name, progress)

    def write(self, step: int, split: str, metrics: Mapping[str, ArrayLike | Sequence[float]], phase: str = "") -> None:
        """Appends one line, whole or not at all, and sends the same to TensorBoard and W&B.

        Args:
          step: Number of updates done.
          split: "train", "test", ...; "system" for figures about the run itself.
          metrics: Name -> scalar, or [S] with one value a student; numbers, numpy or JAX arrays.
          phase: The phase that the step counts in.

        Raises:
          ValueError: If a value is neither a number nor a list of numbers, or a name is `phase`, `step` or `split`.
          OSError: If the disk is full or may not be written to.
        """
        if not self._active:
            return
        values = {name: _number(name, value) for name, value in jax.device_get(dict(metrics)).items()}
        head = {"phase": phase} if phase else {}
        line = json.dumps({**head, "step": int(step), "split": split, **to_json(values)}, allow_nan=False)
        file = self._files[split == SYSTEM]
        with explain_write_errors(file):
            _append(file, line.encode() + b"\n")
        scalars = {f"{split}/{name}": scalar for name, scalar in _scalars(values)}
        if self._tensorboard:
            self._write_events(phase, int(step), scalars)
        if self._wandb is not None:
            prefix = f"{phase}/" if phase else ""
            self._wandb.define_metric(f"{prefix}*", step_metric=f"{prefix}step")
            self._wandb.log({f"{prefix}step": int(step), **{prefix + name: v for name, v in scalars.items()}})

    def truncate(self, phase: str, step: int) -> None:
        """Forgets what a phase logged after a step, atomically, so that after resuming there each step stands once.

        TensorBoard is told to hide those steps; what W&B already has stays there.

        Args:
          phase: The phase's name; "" if there are no phases.
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
            kept = [line for line, row in rows if row.get("phase", "") != phase or row["step"] <= step]
            if len(kept) < len(rows):
                changed = True
                write_atomically(file, "".join(line + "\n" for line in kept))
        if changed and self._tensorboard:
            from tensorboardX.proto.event_pb2 import Event, SessionLog

            with explain_write_errors(self._path / "tensorboard"):
                start = Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START))
                self._event_writer(phase).write_event(start)

    def _write_events(self, phase: str, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the scalars to the phase's event file."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        with explain_write_errors(self._path / "tensorboard"):
            writer = self._event_writer(phase)
            writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
            writer.flush()

    def _event_writer(self, phase: str) -> Any:
        """The phase's open event file. No SummaryWriter: its thread would hang, not raise, on a full disk."""
        from tensorboardX.event_file_writer import EventsWriter

        if phase not in self._events:
            folder = self._path / "tensorboard" / phase
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads files in the order of their names, which the clock alone would leave to the clock.
            start = sum(1 for _ in folder.glob("events.*"))
            self._events[phase] = EventsWriter(str(folder / f"events.{start:05d}"), f".{os.getpid()}")
        return self._events[phase]

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


class PhaseLogger(NamedTuple):
    """A `Logger` bound to one phase and, perhaps, to its progress: what `jaxkd.runs.loop.fit` logs to."""

    logger: Logger
    name: str
    progress: Progress | None = None

    def write(self, step: int, split: str, metrics: Mapping[str, ArrayLike | Sequence[float]]) -> None:
        """As `Logger.write`, for this phase."""
        self.logger.write(step, split, metrics, self.name)
        if self.progress is not None and split == "train":
            self.progress.update(step, metrics)

    def truncate(self, step: int) -> None:
        """As `Logger.truncate`, for this phase; its progress goes on from there."""
        self.logger.truncate(self.name, step)
        if self.progress is not None:
            self.progress.resume(step)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the logged lines, also while the run goes on (a last line that is not whole yet is left out).

    Args:
      path: The run directory, or its `metrics.jsonl`.

    Returns:
      One dict a line: `step`, `split`, perhaps `phase`, and name -> number or list of numbers; null becomes NaN.

    Raises:
      ValueError: If there is no such file, or a line is no JSON.
    """
    file = Path(path) / "metrics.jsonl" if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise ValueError(f"there are no metrics at {file}: give the folder of a run that has logged something.")
    return [{name: _nan_for_null(value) for name, value in row.items()} for _, row in _rows(file)]


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
            config=to_json(config) if config is not None else None,
            settings=wandb.Settings(console="off", silent=True),
        )
    except wandb.Error as error:
        raise ValueError(
            f"W&B did not start ({error}): `wandb login`, set WANDB_MODE=offline, or leave it off."
        ) from error
