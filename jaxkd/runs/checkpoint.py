"""Checkpoints of a train state through Orbax: asynchronous, atomic, verified bit for bit when they are read."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxkd.keys import is_key, plain_words
from jaxkd.parallel import processes
from jaxkd.runs.checksums import Entry, differences, inventory
from jaxkd.runs.retention import Best, Retention
from jaxkd.types import TrainState

_CENTURY = 100 * 365 * 24 * 3600
_PATIENCE = 1200  # seconds that processes wait for each other in a save
_MIN_BYTES_TO_SPLIT = 1 << 20  # of an array of which several devices hold copies: from here on each writes a shard
_LOG = logging.getLogger(__name__)


def _literal_globs() -> None:
    """Lets Orbax find its files in folders whose names hold [, * or ?, which its paths take for patterns otherwise.

    A checkpoint in such a folder is written without its arrays: its parts are searched with a glob, and none is found.
    """
    path = type(epath.Path("/"))
    original = path.glob

    def literal(self: Any, pattern: str) -> Any:
        return original(type(self)(glob.escape(os.fspath(self))), pattern)

    path.glob = literal


_literal_globs()


class _About(NamedTuple):
    """Description of a checkpoint, saved as JSON next to the state."""

    fingerprint: Mapping[str, str]
    metrics: Mapping[str, Any]
    arrays: Mapping[str, Entry]


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its own question for a stop: JAX counts these questions, and the loop asks them."""

    def reached_preemption(self, step: int) -> bool:
        """Always false, since the loop asks `processes.stop_agreed` instead."""
        return False


class Checkpoints:
    """Checkpoints of one phase of a run, in one folder; a context manager that waits for the last save at its end.

    A checkpoint gets its step number as its name only when it is complete. Incomplete ones that a killed process has
    left are removed at the next opening. Where several processes run, all of them make the same calls.

    Args:
      path: Folder of the checkpoints; made if it is missing.
      keep: Number of the newest checkpoints that are kept.
      best: Criterion of the best checkpoint, which is kept in addition; None keeps the newest alone.
      fingerprint: Name -> digest of everything that a state depends on but does not hold, such as
        {"teacher": cache.fingerprint_variables(...)}. It is saved with each state and compared at restoring. None saves
        and compares nothing.

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
        self.path = Path(path).absolute()
        self._retention, self._fingerprint = Retention(keep, best), fingerprint
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self._retention, cleanup_tmp_directories=True, async_options=_asynchronous()
            )
            handlers = {"state": _state_handler(), "about": ocp.JsonCheckpointHandler()}
            self._manager = _Manager(self.path, options=options, item_handlers=handlers)
        except OSError as error:
            raise OSError(
                f"cannot keep checkpoints in {self.path} ({error.strerror or error}): choose a folder that can be "
                "written to."
            ) from error
        for step in self._manager.all_steps() if best else ():
            with contextlib.suppress(Exception):  # an unreadable one cannot be the best; `restore` reports it
                self._retention.note(step, self._about(step).metrics)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint.

        Returns:
          The step, or None if there is no checkpoint.
        """
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Step of the checkpoint with the best metric, the earliest of equal ones.

        Returns:
          The step, or None if no checkpoint has the metric.
        """
        return next(iter(self._retention.ranked(self._manager.all_steps())), None)

    def save(self, step: int, state: TrainState, metrics: Mapping[str, Any] | None = None) -> None:
        """Starts to write a state and returns as soon as its buffers may be donated again.

        Args:
          step: Number of updates done, the checkpoint's name.
          state: The state, which does not hold the teacher.
          metrics: Name -> number or numbers [S], measured at this step. The checkpoint can become the best one only if
            they include the metric of `best` with a finite value.

        Raises:
          OSError: If this or the previous save could not be written; complete checkpoints are unaffected.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        arrays = inventory(state)  # outside `_readable_errors`: a lost process is not the folder's fault
        with self._readable_errors():
            self._check_space(state)
            measured = {name: np.asarray(value, float).tolist() for name, value in (metrics or {}).items()}
            self._retention.note(step, measured)
            about = _About(dict(self._fingerprint or {}), measured, arrays)._asdict()
            about = ocp.args.JsonSave({**about, "digest": _digest(about)})
            self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(jax.tree.map(_words, state)), about=about)
            )

    def wait(self) -> None:
        """Waits until the last save is complete on disk.

        Raises:
          OSError: If it could not be written.
        """
        with self._readable_errors():
            self._manager.wait_until_finished()

    def restore(self, like: TrainState) -> TrainState | None:
        """Restores the newest readable state; logs a warning about unreadable newer ones and removes them.

        Args:
          like: A state of the same structure, or its abstract shapes, whose shardings the restored state gets. They
            need not be those that the state was saved with.

        Returns:
          The state, or None if there is no checkpoint.

        Raises:
          ValueError: If the state was made with another teacher (or anything else that the fingerprint names), if it
            has another layout, or if there are checkpoints but none can be read.
        """
        return self._first_readable(sorted(self._manager.all_steps(), reverse=True), like)

    def restore_best(self, like: TrainState) -> TrainState | None:
        """Restores the state with the best metric; logs a warning about unreadable better ones and removes them.

        Args:
          like: As in `restore`.

        Returns:
          The state, or None if no checkpoint has the metric.

        Raises:
          ValueError: As in `restore`.
        """
        return self._first_readable(self._retention.ranked(self._manager.all_steps()), like)

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
        """State of the first of these steps that can be read; the steps before it are removed."""
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
        """(state, "") of one step, or (None, reason) if it cannot be read."""
        about, reason = None, ""
        try:
            about = self._about(step)
        except Exception as error:  # a damaged file makes Orbax raise errors of any kind, down to a bare Exception
            reason = _reason(error)
        if _any_process(about is None) or about is None:
            return None, reason or "another process cannot read it"
        self._check_fits(step, about, jax.tree.map(_abstract, like))
        state = None
        try:
            words = jax.tree.map(_words, jax.tree.map(_abstract, like))
            request = ocp.args.PyTreeRestore(words, ocp.checkpoint_utils.construct_restore_args(words))
            words = self._manager.restore(step, args=ocp.args.Composite(state=request)).state
            state = jax.tree.map(_like, like, words)
        except Exception as error:
            reason = _reason(error)
        if _any_process(state is None):
            return None, reason or "another process cannot read it"
        damage = differences(about.arrays, inventory(state))
        return (None, f"it {' and '.join(damage)}") if damage else (state, "")

    def _check_fits(self, step: int, about: _About, target: TrainState) -> None:
        """Checks that the checkpoint was made with the same teacher and has the target's layout."""
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
        """Description of a checkpoint."""
        found = dict(self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about)
        if found.pop("digest", None) != _digest(found):
            raise ValueError("the description of the checkpoint is damaged")
        about = _About(**found)
        return about._replace(arrays={path: Entry(*entry) for path, entry in about.arrays.items()})

    def _check_space(self, state: TrainState) -> None:
        """Checks the free space first, since Orbax's threads print tracebacks of their own on a full disk."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.path).free
        if _any_process(free < needed):
            raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed and {free:,} are free")

    @contextlib.contextmanager
    def _readable_errors(self) -> Iterator[None]:
        """Context manager that rewords the errors of a save as one sentence."""
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
    """Options of background saves; a single process gets no time limit, which a jump of the clock could exceed."""
    alone = jax.process_count() == 1
    return ocp.AsyncOptions(timeout_secs=_CENTURY if alone else _PATIENCE, create_directories_asynchronously=not alone)


def _state_handler() -> ocp.PyTreeCheckpointHandler:
    """Orbax's writer of states, in which replicas split the writing of large arrays alone: a split costs a program."""
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_MIN_BYTES_TO_SPLIT)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _digest(about: Mapping[str, Any]) -> str:
    """SHA-256 of a description's JSON text."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _any_process(flag: bool) -> bool:
    """True if the flag is set in any process: Orbax waits for all, so what one cannot do none may start."""
    return bool(processes.any_of(np.array([flag]))[0])


def _reason(error: Exception) -> str:
    """Reason that the operating system gives, which Orbax reports as a number at the end of a long message."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    said = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0].partition(" [tensorstore_spec")[0]
    return said or type(error).__name__


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of an array."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _words(x: Any) -> Any:
    """PRNG key data of a typed key, concrete or abstract; other arrays unchanged."""
    if isinstance(x, jax.Array) or not is_key(x):
        return plain_words(x)
    words = jax.eval_shape(plain_words, x)
    return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=x.sharding)


def _like(x: Any, words: jax.Array) -> jax.Array:
    """Inverse of `_words`, for an array of the type of `x`."""
    if not is_key(x):
        return words
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(jnp.empty((), x.dtype)))
