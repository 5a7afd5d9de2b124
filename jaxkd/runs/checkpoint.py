"""Checkpoints of a train state through Orbax: asynchronous, atomic, checked bit for bit when they are read."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxkd.keys import is_key, plain_words
from jaxkd.parallel import processes
from jaxkd.runs.checksums import Entry, differences, inventory
from jaxkd.types import TrainState

_CENTURY = 100 * 365 * 24 * 3600
_PATIENCE = 1200  # seconds that processes wait for each other in a save
_SHARE = 1 << 20  # bytes from which on devices that hold copies of an array each write a share of it
_LOG = logging.getLogger(__name__)


class Best(NamedTuple):
    """What makes a checkpoint the best one.

    Attributes:
      metric: A metric that `save` is given, for example "validation/accuracy"; of several students, their mean counts.
      mode: Whether a high or a low value is good.
    """

    metric: str
    mode: Literal["max", "min"] = "max"


class _About(NamedTuple):
    """What stands beside the state in a checkpoint, as JSON."""

    fingerprint: Mapping[str, str]
    metrics: Mapping[str, Any]
    arrays: Mapping[str, Entry]


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which leaves it to the loop to ask whether all processes stop: that counts the questions."""

    def reached_preemption(self, step: int) -> bool:
        """Never."""
        return False


class _Keep:
    """Orbax's rule for what stays: the newest checkpoints, and the best one besides."""

    def __init__(self, newest: int, best: Best | None) -> None:
        self._newest, self._best = newest, best
        self._scores: dict[int, float] = {}  # step -> the metric, higher is better

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Lets a checkpoint compete if it has the metric."""
        self._scores.pop(step, None)
        if self._best and self._best.metric in metrics:
            value = float(np.mean(metrics[self._best.metric]))
            if math.isfinite(value):
                self._scores[step] = value if self._best.mode == "max" else -value

    def ranked(self, steps: Sequence[int]) -> list[int]:
        """Those that compete, the best first, of equal ones the earliest."""
        return sorted((step for step in steps if step in self._scores), key=lambda step: (-self._scores[step], step))

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether each of the checkpoints, the oldest first, stays."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self._newest :], *self.ranked(steps)[:1]}
        return [step in kept for step in steps]


class Checkpoints:
    """The checkpoints of one phase of a run, in one folder.

    A checkpoint appears under its step number only when it is complete; what a killed process left half-written is
    removed at the next opening. Where several processes run, all of them make the same calls.

    A context manager; leaving it waits for the last save.

    Args:
      path: Folder of the checkpoints; made if it is not there.
      keep: How many of the newest are kept.
      best: By which metric the best one is kept besides; None keeps the newest alone.
      fingerprint: Name -> digest of what a state depends on but does not hold, for instance
        {"teacher": data.fingerprint_variables(...)}: saved with each state, compared when one is restored. None saves
        nothing and compares nothing.

    Raises:
      OSError: If the folder cannot be made or written to.
      ValueError: If the mode of `best` is neither "max" nor "min".
    """

    def __init__(
        self,
        path: Path | str,
        *,
        keep: int = 2,
        best: Best | None = None,
        fingerprint: Mapping[str, str] | None = None,
    ) -> None:
        if best and best.mode not in ("max", "min"):
            raise ValueError(f'the mode of the best checkpoint is {best.mode!r}: choose "max" or "min".')
        self.path = Path(path).absolute()
        self._keep, self._fingerprint = _Keep(keep, best), fingerprint
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self._keep, cleanup_tmp_directories=True, async_options=_asynchronous()
            )
            handlers = {"state": _writer(), "about": ocp.JsonCheckpointHandler()}
            self._manager = _Manager(self.path, options=options, item_handlers=handlers)
        except OSError as error:
            raise OSError(
                f"cannot keep checkpoints in {self.path} ({error.strerror or error}): choose a folder that can be "
                "written to."
            ) from error
        for step in self._manager.all_steps() if best else ():
            with contextlib.suppress(Exception):  # one that cannot be read does not compete; `restore` says so
                self._keep.note(step, self._about(step).metrics)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Step of the checkpoint with the best metric, the first of equal ones; None if no checkpoint has it."""
        return next(iter(self._keep.ranked(self._manager.all_steps())), None)

    def save(self, step: int, state: TrainState, metrics: Mapping[str, Any] | None = None) -> None:
        """Starts writing a state and returns as soon as its buffers may be donated again.

        Args:
          step: Number of updates done, the checkpoint's name.
          state: The state; never holds the teacher.
          metrics: Name -> number or numbers [S] measured at this step; without the metric of `best`, or where that is
            not finite, the checkpoint does not compete.

        Raises:
          OSError: If this or the previous save could not be written; complete checkpoints stay as they are.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        arrays = inventory(state)  # outside of what follows: where a process is lost, no folder is to blame
        with self._readable_errors():
            self._check_space(state)
            measured = {name: np.asarray(value, float).tolist() for name, value in (metrics or {}).items()}
            self._keep.note(step, measured)
            about = _About(dict(self._fingerprint or {}), measured, arrays)._asdict()
            about = ocp.args.JsonSave({**about, "digest": _digest(about)})
            self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(jax.tree.map(_words, state)), about=about)
            )

    def wait(self) -> None:
        """Waits until what was saved is complete on disk.

        Raises:
          OSError: If it could not be written.
        """
        with self._readable_errors():
            self._manager.wait_until_finished()

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest readable state, put where `like` is; unreadable newer ones are named in the log and removed.

        Args:
          like: A state of the same structure, or its abstract shapes with shardings; the devices and shardings need
            not be those that the state was saved with.

        Returns:
          The state, or None if there is no checkpoint.

        Raises:
          ValueError: If the state was made with another teacher (or whatever else the fingerprint names), has another
            layout, or if there are checkpoints but none can be read.
        """
        return self._first_readable(sorted(self._manager.all_steps(), reverse=True), like)

    def restore_best(self, like: TrainState) -> TrainState | None:
        """The state with the best metric, put where `like` is; unreadable better ones are named in the log and removed.

        Args:
          like: As in `restore`.

        Returns:
          The state, or None if no checkpoint has the metric.

        Raises:
          ValueError: As in `restore`.
        """
        return self._first_readable(self._keep.ranked(self._manager.all_steps()), like)

    def close(self) -> None:
        """Waits for the last save and releases Orbax's threads."""
        with self._readable_errors():
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _first_readable(self, steps: Sequence[int], like: TrainState) -> TrainState | None:
        """The state of the first step that can be read; those before it are removed."""
        reason = ""
        for number, step in enumerate(steps):
            state, reason = self._read(step, like)
            if state is not None:
                for bad in steps[:number]:
                    self._manager.delete(bad)
                return state
            _LOG.warning("checkpoint %s/%d cannot be read, trying the one before: %s", self.path, step, reason)
        if steps:
            raise ValueError(
                f"none of the checkpoints in {self.path} (steps {list(steps)}) can be read ({reason}): use the code "
                "that wrote them, or start under another name."
            )
        return None

    def _read(self, step: int, like: TrainState) -> tuple[TrainState | None, str]:
        """The state of one step, or None and why it cannot be read."""
        about, reason = None, ""
        try:
            about = self._about(step)
        except Exception as error:  # Orbax raises whatever the damaged file makes fail, down to a bare Exception
            reason = _reason(error)
        if _any_process(about is None) or about is None:
            return None, reason or "another process cannot read it"
        self._check_fits(step, about, jax.tree.map(_abstract, like))
        state = None
        try:
            words = jax.tree.map(_words, jax.tree.map(_abstract, like))
            how = ocp.args.PyTreeRestore(words, ocp.checkpoint_utils.construct_restore_args(words))
            words = self._manager.restore(step, args=ocp.args.Composite(state=how)).state
            state = jax.tree.map(_like, like, words)
        except Exception as error:
            reason = _reason(error)
        if _any_process(state is None):
            return None, reason or "another process cannot read it"
        damage = differences(about.arrays, inventory(state))
        return (None, f"it {' and '.join(damage)}") if damage else (state, "")

    def _check_fits(self, step: int, about: _About, target: TrainState) -> None:
        """Raises a sentence unless the checkpoint was made with the same teacher and has the target's layout."""
        old = about.fingerprint
        new = old if self._fingerprint is None else self._fingerprint
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                was, now = (str(side.get(name, "none"))[:12] for side in (old, new))
                raise ValueError(
                    f"checkpoint {step} in {self.path} was made with another {name} (fingerprint {was}, now {now}): "
                    f"give the {name} that it was made with, or start under another name."
                )
        if layout := differences(about.arrays, inventory(target)):
            raise ValueError(
                f"checkpoint {step} in {self.path} has another layout than the state: it {', '.join(layout)}; use the "
                "code and config that wrote it, or start under another name."
            )

    def _about(self, step: int) -> _About:
        """What stands beside a state."""
        found = dict(self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about)
        if found.pop("digest", None) != _digest(found):
            raise ValueError("what stands beside the state is damaged")
        about = _About(**found)
        return about._replace(arrays={path: Entry(*entry) for path, entry in about.arrays.items()})

    def _check_space(self, state: TrainState) -> None:
        """Refuses early what would fail half-way: Orbax's threads print tracebacks of their own on a full disk."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.path).free
        if _any_process(free < needed):
            raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed and {free:,} are free")

    @contextlib.contextmanager
    def _readable_errors(self) -> Iterator[None]:
        """Turns what the file system says during a save into one sentence."""
        try:
            yield
        except (OSError, ValueError) as error:
            last = self.latest()
            kept = "there is no complete checkpoint yet" if last is None else f"the last complete one is step {last}"
            raise OSError(
                f"cannot write a checkpoint to {self.path} ({_reason(error)}); {kept}: free space or choose another "
                "folder, then run the same command to go on."
            ) from error


def _asynchronous() -> ocp.AsyncOptions:
    """How saves run in the background: one process waits for nobody, so that a wall clock that jumps may not end it."""
    alone = jax.process_count() == 1
    return ocp.AsyncOptions(timeout_secs=_CENTURY if alone else _PATIENCE, create_directories_asynchronously=not alone)


def _writer() -> ocp.PyTreeCheckpointHandler:
    """What writes a state: only large copies of an array are written in shares, since each share costs a program."""
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_SHARE)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _digest(about: Mapping[str, Any]) -> str:
    """SHA-256 of what JSON makes of it."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _any_process(flag: bool) -> bool:
    """Whether it is so in any process: what one cannot do, all leave, since Orbax waits for all."""
    return bool(processes.any_of(np.array([flag]))[0])


def _reason(error: Exception) -> str:
    """The operating system's word for it: Orbax reports it as a number at the end of a long chain."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    said = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0].partition(" [tensorstore_spec")[0]
    return said or type(error).__name__


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _words(x: Any) -> Any:
    """PRNG keys as the numbers that they are made of, other arrays as they are; shapes alike."""
    if isinstance(x, jax.Array) or not is_key(x):
        return plain_words(x)
    words = jax.eval_shape(plain_words, x)
    return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=x.sharding)


def _like(x: Any, words: jax.Array) -> jax.Array:
    """The way back from `_words`."""
    if not is_key(x):
        return words
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(jnp.empty((), x.dtype)))
