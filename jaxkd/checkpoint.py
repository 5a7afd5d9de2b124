"""Checkpoints of a train state through Orbax: asynchronous, atomic, newest readable one first."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxkd.types import TrainState

_LOG = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one stage of a run, in one folder.

    A checkpoint appears under its step number only when it is complete; what a killed process left half-written is
    removed at the next opening.

    Args:
      path: Folder of the checkpoints; made if it is not there.
      keep: How many of the newest are kept.

    Raises:
      OSError: If the folder cannot be made or written to.
    """

    def __init__(self, path: Path | str, *, keep: int = 2) -> None:
        self.path = Path(path).absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
            self._manager = ocp.CheckpointManager(self.path, options=options)
        except OSError as error:
            raise OSError(
                f"cannot keep checkpoints in {self.path} ({error.strerror or error}): choose a folder that can be "
                "written to."
            ) from error

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Starts writing a state and returns as soon as its buffers may be donated again.

        Args:
          step: Number of updates done, the checkpoint's name.
          state: The state; never holds the teacher.

        Raises:
          OSError: If this or the previous save could not be written; complete checkpoints stay as they are.
        """
        with self._readable_errors():
            self._manager.wait_until_finished()
            if step not in self._manager.all_steps():
                self._check_space(state)
                self._manager.save(step, args=ocp.args.StandardSave(state))

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
          like: A state of the same structure, or its abstract shapes with shardings.

        Returns:
          The state, or None if there is no checkpoint.

        Raises:
          ValueError: If there are checkpoints but none can be read into this structure.
        """
        target = jax.tree.map(_abstract, like)
        steps = sorted(self._manager.all_steps(), reverse=True)
        failure: Exception | None = None
        unreadable = []
        for step in steps:
            try:
                state = self._manager.restore(step, args=ocp.args.StandardRestore(target))
            except (ValueError, KeyError, OSError) as error:
                failure = error
                unreadable.append(step)
                _LOG.warning(
                    "checkpoint %s/%d cannot be read, trying the one before: %s", self.path, step, _reason(error)
                )
                continue
            for bad in unreadable:
                self._manager.delete(bad)
            return state
        if failure is not None:
            raise ValueError(
                f"none of the checkpoints in {self.path} (steps {steps}) can be read into this state "
                f"({_reason(failure)}): use the code and config that wrote them, or start under another name."
            ) from failure
        return None

    def close(self) -> None:
        """Waits for the last save and releases Orbax's threads."""
        with self._readable_errors():
            self._manager.close()

    def _check_space(self, state: TrainState) -> None:
        """Refuses early what would fail half-way: Orbax's threads print tracebacks of their own on a full disk."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.path).free
        if free < needed:
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


def _reason(error: Exception) -> str:
    """The operating system's word for it: Orbax reports it as a number at the end of a long chain."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    return getattr(error, "strerror", None) or str(error).splitlines()[0].partition(" [tensorstore_spec")[0]


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
