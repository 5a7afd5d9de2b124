"""Logging of a run's metrics: JSON lines, TensorBoard and W&B."""

from __future__ import annotations

import json
import math
import os
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
from jaxkd.runs.tensorboard import EventFiles

_RESERVED = ("phase", "step", "split")

SYSTEM = "system"
"""Split of measurements that differ from run to run, such as seconds and bytes; they go to a file of their own."""


class Logger:
    """Logger of a run's metrics to `metrics.jsonl`, TensorBoard and W&B; a context manager.

    A line of `metrics.jsonl` is one strict JSON object: `phase` (if the run has phases), `step`, `split`, and name ->
    value, where a value is a number or a list with one number for each student. NaN and infinity are written as null.
    Lines of the split "system" go to `system.jsonl` instead, so that equal runs write equal `metrics.jsonl`, bit for
    bit. TensorBoard and W&B get a list as its mean (`split/name`) and as one scalar for each student (`split/name/0`,
    ...). W&B shows the metrics of each phase over the phase's own steps. Only process 0 writes.
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
        """Opens the run's files for appending and removes an incomplete last line that a kill has left.

        Args:
          path: The run directory, which exists.
          tensorboard: True writes TensorBoard events to `<path>/tensorboard/<phase>`.
          wandb: True logs to W&B (`pip install "jaxkd[wandb]"`; `WANDB_MODE=offline` needs no account).
          project: Name of the project in W&B.
          config: The resolved configuration, shown in W&B.

        Raises:
          ImportError: If `wandb` is asked for but not installed.
          ValueError: If W&B refuses to start.
          OSError: If the folder may not be written to.
        """
        self._path = Path(path)
        self._active = jax.process_index() == 0
        self._events = EventFiles(self._path / "tensorboard") if tensorboard else None
        self._wandb = _start_wandb(self._path, project, config) if wandb and self._active else None
        if self._active:
            for file in self._files:
                with explain_write_errors(file):
                    _cut_torn_line(file)

    @property
    def _files(self) -> tuple[Path, Path]:
        """File of the metrics and file of the system's measurements."""
        return self._path / "metrics.jsonl", self._path / "system.jsonl"

    def phase(self, name: str, progress: Progress | None = None) -> PhaseLogger:
        """Binds the logger to a phase, so that the training loop need not know the phase or the progress bar.

        Args:
          name: Name of the phase, such as "teacher".
          progress: Progress bar that shows the metrics of the split "train", if any.

        Returns:
          Logger with `write(step, split, metrics)` and `truncate(step)` for this phase.
        """
        return PhaseLogger(self, name, progress)

    def write(self, step: int, split: str, metrics: Mapping[str, ArrayLike | Sequence[float]], phase: str = "") -> None:
        """Appends one line atomically and sends the same values to TensorBoard and W&B.

        Args:
          step: Number of updates done in the phase.
          split: "train", "test", ...; "system" for measurements of the run itself.
          metrics: Name -> scalar, or [S] with one value for each student; numbers, NumPy or JAX arrays.
          phase: Name of the phase; "" if the run has no phases.

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
        if self._events is not None:
            self._events.write(phase, int(step), scalars)
        if self._wandb is not None:
            prefix = f"{phase}/" if phase else ""
            self._wandb.define_metric(f"{prefix}*", step_metric=f"{prefix}step")
            self._wandb.log({f"{prefix}step": int(step), **{prefix + name: v for name, v in scalars.items()}})

    def truncate(self, phase: str, step: int) -> None:
        """Removes, atomically, the lines of a phase after a step, so that a resumed training logs each step once.

        TensorBoard is told to hide these steps. W&B keeps what it has.

        Args:
          phase: Name of the phase; "" if the run has no phases.
          step: Step that the training resumes from.

        Raises:
          OSError: If a file cannot be rewritten.
          ValueError: If a line is no record of a step.
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
        if changed and self._events is not None:
            self._events.hide_after(phase, step)

    def close(self) -> None:
        """Closes the event files and ends the W&B run."""
        if self._events is not None:
            self._events.close()
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
    """`Logger` bound to one phase and, if there is one, to its progress bar: the `log` of `jaxkd.runs.fit`."""

    logger: Logger
    name: str
    progress: Progress | None = None

    def write(self, step: int, split: str, metrics: Mapping[str, ArrayLike | Sequence[float]]) -> None:
        """Writes one line of this phase and shows the split "train" in the progress bar.

        Args:
          step: Number of updates done in the phase.
          split: "train", "test", ...; "system" for measurements of the run itself.
          metrics: Name -> scalar, or [S] with one value for each student.

        Raises:
          ValueError: As `Logger.write`.
          OSError: As `Logger.write`.
        """
        self.logger.write(step, split, metrics, self.name)
        if self.progress is not None and split == "train":
            self.progress.update(step, metrics)

    def truncate(self, step: int) -> None:
        """Removes this phase's lines after a step, from which the progress bar continues.

        Args:
          step: Step that the training resumes from.

        Raises:
          OSError: As `Logger.truncate`.
          ValueError: As `Logger.truncate`.
        """
        self.logger.truncate(self.name, step)
        if self.progress is not None:
            self.progress.resume(step)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the logged metrics, also of a run in progress, whose incomplete last line is left out.

    Args:
      path: The run directory, or its `metrics.jsonl`.

    Returns:
      One dict for each line: `step`, `split`, `phase` if there are phases, and name -> number or list of numbers; null
      becomes NaN.

    Raises:
      ValueError: If there is no such file, or a line is no record of a step.
      OSError: If the file cannot be read.
    """
    file = Path(path) / "metrics.jsonl" if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise ValueError(f"there are no metrics at {file}: give the folder of a run that has logged something.")
    return [{name: _nan_for_null(value) for name, value in row.items()} for _, row in _rows(file)]


def _number(name: str, value: Any) -> Any:
    """Metric as a number or a list of numbers."""
    if name in _RESERVED:
        raise ValueError(f"a metric has the name {name!r}, which the log uses itself: give it another name.")
    array = np.asarray(value)
    if array.ndim > 1 or array.dtype.kind in "OSUmMc":
        raise ValueError(
            f"metric {name!r} has shape {array.shape} and dtype {array.dtype}, but must be a number or a list with one "
            "number per student: reduce it before logging."
        )
    return array.tolist() if array.dtype.kind in "biu" else array.astype(float).tolist()


def _scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Name and value of each number, of each list's mean and of its elements."""
    for name, value in values.items():
        if isinstance(value, list):
            yield name, float(np.mean(value)) if value else math.nan
            for student, item in enumerate(value):
                yield f"{name}/{student}", float(item)
        else:
            yield name, float(value)


def _append(file: Path, data: bytes) -> None:
    """Appends all bytes, or none if an error occurs."""
    with file.open("ab", buffering=0) as raw:
        size = raw.tell()
        try:
            while data:
                data = data[raw.write(data) :]
        except OSError:
            raw.truncate(size)
            raise


def _cut_torn_line(file: Path) -> None:
    """Removes the bytes after the last line break."""
    if file.exists():
        data = file.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(file, data.rfind(b"\n") + 1)


def _rows(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Complete lines, each as text and parsed."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except OSError as error:
        raise OSError(f"cannot read {file} ({error.strerror or error}): make it a readable file.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} of {file} is not JSON ({error}): correct or remove that line.") from error
        if wrong := _no_record(row):
            raise ValueError(f"line {number} of {file} is no record of a step, {wrong}: correct or remove that line.")
        rows.append((line, row))
    return rows


def _no_record(row: Any) -> str:
    """What keeps a line from being a record as `Logger.write` makes it; "" if nothing does."""
    if not isinstance(row, dict):
        return f"it holds {json.dumps(row)[:40]} where an object is expected"
    step, split, phase = row.get("step"), row.get("split"), row.get("phase", "")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        return f"its step is {json.dumps(step)[:40]} where a number of updates is expected"
    for name, value in (("split", split), ("phase", phase)):
        if not isinstance(value, str):
            return f"its {name} is {json.dumps(value)[:40]} where a name is expected"
    for name, value in row.items():
        items = value if isinstance(value, list) else [value]
        if name not in _RESERVED and not all(item is None or isinstance(item, int | float) for item in items):
            return (
                f"its metric {name[:40]!r} is {json.dumps(value)[:40]} where a number or a list of numbers is expected"
            )
    return ""


def _nan_for_null(value: Any) -> Any:
    """Replaces null by NaN, also in a list."""
    if isinstance(value, list):
        return [_nan_for_null(item) for item in value]
    return math.nan if value is None else value


def _start_wandb(path: Path, project: str, config: Any) -> Any:
    """Starts or resumes the W&B run whose id is kept in the run directory."""
    try:
        import wandb
    except ImportError as error:
        raise ImportError(
            'logging to W&B needs the package wandb: pip install "jaxkd[wandb]", or switch W&B off.'
        ) from error
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
            f"W&B did not start ({error}): run `wandb login`, set WANDB_MODE=offline, or switch W&B off."
        ) from error
