"""Run directory of an experiment: its configuration, the environment of each start, and its summary."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from jaxkd.files import explain_write_errors, read_json, to_json, write_json
from jaxkd.runs import owner
from jaxkd.runs.retention import Best

_LONGEST = 200  # bytes of a name; file systems allow 255, of which temporary names take some
_PACKAGES = ("jaxkd", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class Phase:
    """Phase: one training of a run (teacher, alone, distilled, ...), which resumes independently of the others.

    Attributes:
      name: Name of the phase, also in the metrics.
      checkpoints: Absolute path of the folder of its checkpoints, which `Checkpoints` makes.
    """

    name: str
    checkpoints: Path


class Run:
    """Run directory, made by `open_run`; a context manager that also records the duration of an interrupted start.

    Attributes:
      path: `<root>/<name>`.
      resumed: True if an earlier start made the directory.
      summary: Contents of `summary.json`; None while the run is not finished, and always on processes other than 0.
      finished: True if the run is complete.
      examples_per_second: Phase -> examples per second in this start, for the summary.
      best: Phase -> criterion by which a checkpoint of it is the best, or None.
      lost: Phase -> numbers of the students of a stack that were given up, which are no result.
    """

    def __init__(
        self, path: Path, *, resumed: bool, summary: dict[str, Any] | None, owned: owner.Owner | None = None
    ) -> None:
        self.path = path
        self.resumed = resumed
        self.summary = summary
        self.finished = summary is not None
        self.examples_per_second: dict[str, float | None] = {}
        self.best: dict[str, Best | None] = {}
        self.lost: dict[str, list[int]] = {}
        self._began = time.monotonic()
        self._environment: dict[str, Any] = {}
        self._owner = owned
        self._made: list[Path] = []

    @property
    def notice(self) -> str:
        """Sentence for a user who starts a finished run again."""
        return f"{self.path} is already finished: see its summary.json, or delete the folder to run it again."

    def phase(self, name: str) -> Phase:
        """Begins a phase of this run.

        Args:
          name: Name of the phase, a plain folder name.

        Returns:
          The phase, with its own folder of checkpoints.

        Raises:
          ValueError: If the name is not a plain folder name.
        """
        _check_name(name, "phase")
        self.settle()
        self.save_wall_seconds()
        return Phase(name, (self.path / "checkpoints" / name).absolute())

    def settle(self) -> None:
        """Makes sure that this process owns the folder for good, before it writes what it computes.

        Raises:
          ValueError: If a start of the same moment owns it.
        """
        if self._owner is not None:
            self._owner.settle()

    def save_wall_seconds(self) -> float:
        """Records the duration of this start in `environment.json`, so that a killed run keeps its time.

        Returns:
          Seconds since the directory was opened, plus those of all earlier starts.
        """
        if not self._environment or (self._owner is not None and not self._owner.owned()):
            # A finished run, a process other than 0, or one whose claim has given way.
            return time.monotonic() - self._began
        starts = self._environment["starts"]
        starts[-1]["wall_seconds"] = round(time.monotonic() - self._began, 3)
        write_json(self.path / "environment.json", self._environment)
        return sum(start["wall_seconds"] for start in starts)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Finishes the run: writes `summary.json`, with the wall seconds of all starts added.

        Args:
          summary: Name -> number, string, array or a nest of them; NaN and infinity are written as null.

        Raises:
          OSError: If the file cannot be written.
        """
        self.settle()
        seconds = self.save_wall_seconds()
        summary = to_json({**summary, "wall_seconds": seconds, "examples_per_second": self.examples_per_second})
        if jax.process_index() == 0:
            write_json(self.path / "summary.json", summary)
            self.summary = dict(summary)
        self.finished = True
        self._release()

    def _begin(self) -> None:
        """Writes `environment.json` for this start."""
        file = self.path / "environment.json"
        starts = _starts(file) if file.exists() else []
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._environment = {**_environment(), "starts": [*starts, {"at": now, "wall_seconds": 0.0}]}
        write_json(file, self._environment)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # If the body failed, its error is the one to report, not that the disk is too full for the duration as well.
        with contextlib.suppress(*([] if error is None else [OSError])):
            if not self.finished:
                self.save_wall_seconds()
            disk = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
            if isinstance(error, Exception) and not disk and not self.resumed:  # a mistake of the user's
                self._withdraw()
        self._release()

    def _withdraw(self) -> None:
        """Removes what a start has made that failed before its first step, so that its name is free again."""
        if self._owner is not None and self._owner.owned() and not _has_steps(self.path):
            _clear(self.path)
            self._release()
            _remove_empty(self._made)

    def _release(self) -> None:
        """Gives the folder up, so that another start may write in it."""
        if self._owner is not None:
            self._owner.release()
            self._owner = None


def open_run(
    config: Any,
    *,
    name: str | None = None,
    root: str | os.PathLike[str] = "runs",
    ignore: Sequence[str] = (),
    settled: bool = True,
) -> Run:
    """Makes the run directory `<root>/<name>` or, if it was made with the same configuration, resumes it.

    It holds the files that `jaxkd/runs/README.md` lists. The process that opens it owns it until the run is finished or
    left. A directory that holds no step yet begins anew with another configuration.
    Only process 0 reads and writes it; the other processes learn from it whether the run is resumed or finished.

    Args:
      config: The resolved configuration, a dataclass.
      name: Name of the run, a plain folder name; `config.name` by default.
      root: Folder of all runs.
      ignore: Fields that may differ from those of earlier starts; nested ones are written with dots.
      settled: False leaves the run, until its first phase, to a process that began earlier and comes later.

    Returns:
      The run; `finished` is true if it is complete.

    Raises:
      ValueError: If another process is running this run; if the directory was made with another configuration (the
        message lists the differing fields), is not a run, or holds a file that is not JSON; or if there is no name.
      OSError: If the directory cannot be made or written to.
    """
    if name is None:
        name = getattr(config, "name", "")
    _check_name(name, "run")
    path, resolved = _folder(root, name), to_json(config, non_finite=str)
    if jax.process_count() == 1:
        return _open(path, resolved, ignore, settled)
    from jax.experimental import multihost_utils

    run, failure = Run(path, resumed=False, summary=None), None
    if jax.process_index() == 0:
        try:
            run = _open(path, resolved, ignore, settled)
        except Exception as error:  # raised below, once the other processes know
            failure = error
    codes = np.array([failure is not None, run.finished, run.resumed], np.int32)
    failed, run.finished, run.resumed = map(bool, multihost_utils.broadcast_one_to_all(codes))
    if failed:
        raise failure or ValueError(f"process 0 could not open {path}: read its error and correct that.")
    return run


@contextlib.contextmanager
def reserved(root: str | os.PathLike[str], name: str) -> Iterator[None]:
    """Context manager that claims a run's folder before `open_run` does, so that a second start fails early.

    Of two starts of the same moment on one machine, the process that began earlier gets the folder. A folder that
    holds nothing in the end is removed.

    Args:
      root: Folder of all runs.
      name: Name of the run.

    Raises:
      ValueError: If another process is running this run.
      OSError: If the folder cannot be made or written to.
    """
    _check_name(name, "run")
    path = _folder(root, name)
    if (path / "summary.json").exists():
        yield
        return
    with explain_write_errors(path):
        made = _make(path)
        claimed = owner.claim(path)
    try:
        yield
    finally:
        claimed.release()
        _remove_empty(made)


def _folder(root: str | os.PathLike[str], name: str) -> Path:
    """Folder of a run."""
    path = Path(root).expanduser() / name
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file where the run's folder should be: move it away or choose another --name.")
    return path


def _make(path: Path) -> list[Path]:
    """Makes a folder and those that it lies in; returns those that did not exist, the innermost first."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return made


def _open(path: Path, config: dict[str, Any], ignore: Sequence[str], settled: bool) -> Run:
    """Makes or checks the directory; runs on process 0 alone."""
    config_file, summary_file = path / "config.json", path / "summary.json"
    if summary_file.exists() and config_file.exists():
        _check_same_config(path, read_json(config_file), config, ignore)
        return Run(path, resumed=True, summary=read_json(summary_file))
    with explain_write_errors(path):
        made = _make(path)
        owned = owner.claim(path)
    try:
        with explain_write_errors(path):
            if settled:
                owned.settle()
            for leftover in path.glob(".*.tmp"):  # of a start that was killed while writing
                leftover.unlink(missing_ok=True)
        run = Run(path, resumed=_prepared(path, config, ignore), summary=None, owned=owned)
        run._made = made
        run._begin()
    except BaseException:
        owned.release()
        raise
    return run


def _prepared(path: Path, config: dict[str, Any], ignore: Sequence[str]) -> bool:
    """Writes the configuration into an owned folder, or checks the one that it holds; true if that one stays."""
    file = path / "config.json"
    if file.exists():
        old = read_json(file)
        if _has_steps(path):
            _check_same_config(path, old, config, ignore)
        if not (changes := _changes(old, config, ignore)):
            return True
        print(f"{path} holds no step yet, so it begins anew with another configuration ({'; '.join(changes)}).")
        _clear(path)
    elif any(not owner.is_owner_file(file) for file in path.iterdir()):
        raise ValueError(
            f"{path} holds files but no config.json, so it is not a run: move it away or choose another --name."
        )
    write_json(file, config)
    return False


def _has_steps(path: Path) -> bool:
    """Tests if a run's folder holds anything that took time to compute: checkpoint, logged step, targets, arrays."""
    log = path / "metrics.jsonl"
    if (path / "summary.json").exists() or (path / "targets").exists() or (log.exists() and log.stat().st_size):
        return True
    return any(path.glob("arrays/*.npz")) or any(file.name.isdecimal() for file in path.glob("checkpoints/*/*"))


def _clear(path: Path) -> None:
    """Removes the files of a run that holds no step; others stay."""
    for name in (
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "system.jsonl",
        "wandb_id.txt",
        "forms.json",
        "lost.json",
    ):
        (path / name).unlink(missing_ok=True)
    for name in ("arrays", "checkpoints", "tensorboard", "tiny-teacher", "tokens"):
        shutil.rmtree(path / name, ignore_errors=True)


def _remove_empty(made: Sequence[Path]) -> None:
    """Removes the folders that this start has made, as far as they hold nothing."""
    with contextlib.suppress(OSError):
        for folder in made:
            folder.rmdir()


def _check_same_config(path: Path, old: dict[str, Any], new: dict[str, Any], ignore: Sequence[str]) -> None:
    """Checks that two configurations agree; the error lists each differing field with both values."""
    if changes := _changes(old, new, ignore):
        raise ValueError(
            f"{path} was made with another configuration ({'; '.join(changes)}): choose another --name or delete it."
        )


def _changes(old: dict[str, Any], new: dict[str, Any], ignore: Sequence[str]) -> list[str]:
    """Each field in which two configurations differ, with both values."""
    old, new = _flat(old), _flat(new)
    return [
        f"{name} was {_shown(old, name)} and is {_shown(new, name)}"
        for name in {**old, **new}
        if name not in ignore and ((name in old) != (name in new) or old.get(name) != new.get(name))
    ]


def _shown(fields: Mapping[str, Any], name: str) -> str:
    """Value of a field as JSON, or "absent"."""
    return json.dumps(fields[name]) if name in fields else "absent"


def _flat(nest: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nest of dicts as one dict, whose keys are joined with dots."""
    flat: dict[str, Any] = {}
    for key, value in nest.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _check_name(name: str, what: str) -> None:
    """Checks that a name is a plain folder name, so that it stays inside the folder it is joined to."""
    flag = "--name " if what == "run" else ""
    if not isinstance(name, str) or not name.isprintable() or not name or name[0] == "." or set(name) & set("/\\"):
        raise ValueError(
            f"the {what}'s name is {name!r}, but must be a plain folder name: give {flag}one without slashes, control "
            "characters or a first dot."
        )
    if (length := len(name.encode())) > _LONGEST:
        raise ValueError(
            f"the {what}'s name begins with {name[:20]!r} and has {length} bytes, too many for a folder: give {flag}"
            f"one of at most {_LONGEST}."
        )


def _starts(file: Path) -> list[dict[str, Any]]:
    """Earlier starts of a run, each with the seconds that it took."""
    starts = read_json(file).get("starts", [])
    dicts = [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else [{}]
    if dicts == starts and all(isinstance(start.get("wall_seconds"), int | float) for start in dicts):
        return dicts
    raise ValueError(
        f'{file} has no list of "starts" with "wall_seconds" each: restore it, or delete it to count anew.'
    )


def _environment() -> dict[str, Any]:
    """Environment of this start: versions, devices, commit and command line."""
    kinds = [device.device_kind for device in jax.devices()]
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "backend": jax.default_backend(),
        "devices": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "device_count": len(kinds),
        "process_count": jax.process_count(),
        "git_commit": _git_commit(),
        "command": shlex.join(sys.argv),
    }


def _version(package: str) -> str | None:
    """Installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of the experiment's folder, followed by "-dirty" if files differ from it; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(sys.argv[0]).resolve().parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no git, no repository, or one that does not answer
        return None
    return done.stdout.strip() or None
