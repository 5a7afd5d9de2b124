"""Coordination of several processes that run one program: joining, barriers, agreed stops, and the end."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

LOST = 75
"""Exit code of a process that has lost another one: a temporary failure, after which the run is started again."""

AUTO = "auto"
"""Name of the coordinator that lets JAX detect Slurm, MPI, Kubernetes or a TPU pod."""

_WAIT_SECONDS = 600.0
_ADVICE = "read the last output of the others, then run the same command again everywhere to go on"

before_exit: list[Callable[[], None]] = []
"""Functions to call before a process leaves without Python's usual shutdown."""

_steps = itertools.count(1)


def start(
    coordinator: str | None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    peer_timeout: float = 60.0,
    start_timeout: float = 300.0,
) -> None:
    """Joins the other processes through `jax.distributed`; must be called before anything uses a device.

    From then on, a process that has lost contact with another one prints one sentence and exits with code 75, even
    while it waits in a collective operation. On CPUs the processes communicate over gloo.

    Args:
      coordinator: Address HOST:PORT of process 0, the same in all processes; "auto" for JAX's detection of Slurm, MPI,
        Kubernetes or a TPU pod; None for a single process.
      num_processes: Number of processes, if the coordinator is an address.
      process_id: Index of this process, 0..num_processes-1, if the coordinator is an address.
      peer_timeout: Seconds without a sign of life after which another process counts as lost.
      start_timeout: Seconds to wait for the others at the start.

    Raises:
      ValueError: If the arguments contradict each other, no cluster is found, or the others do not start in time.
    """
    given = (num_processes, process_id)
    if coordinator is None:
        if given != (None, None):
            raise ValueError(
                "a number of processes was given but no coordinator: give HOST:PORT of process 0, or auto."
            )
        return
    if coordinator != AUTO:
        _check(coordinator, num_processes, process_id)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            None if coordinator == AUTO else coordinator,
            num_processes,
            process_id,
            cluster_detection_method=None if coordinator == AUTO else "deactivate",
            initialization_timeout=round(start_timeout),
            heartbeat_timeout_seconds=round(max(100, 2 * peer_timeout)),  # longer than the watch, which says more
            shutdown_timeout_seconds=round(peer_timeout),
        )
    except (RuntimeError, ValueError) as error:
        where = "a cluster that JAX knows" if coordinator == AUTO else f"all {num_processes} processes at {coordinator}"
        raise ValueError(
            f"did not find {where} ({_reason(error)}): start every process, with the same coordinator and an index of "
            "its own, or leave --coordinator out to run a single process."
        ) from error
    _watch.begin(peer_timeout)


def _check(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    """Checks the arguments of `start`."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"the coordinator is {coordinator!r}: give HOST:PORT of process 0, or auto.")
    if num_processes is None or process_id is None:
        raise ValueError(
            f"the coordinator is {coordinator} but the number of processes is {num_processes} and that of this one "
            f"{process_id}: give both, or let the coordinator be auto."
        )
    if not 0 <= process_id < num_processes:
        raise ValueError(f"process {process_id} of {num_processes} does not exist: give 0..{num_processes - 1}.")


def is_first() -> bool:
    """Tests if this process is process 0, which writes and prints for all.

    Returns:
      True in process 0 and in a single process.
    """
    return jax.process_index() == 0


def barrier(name: str, seconds: float = _WAIT_SECONDS) -> None:
    """Waits until all processes have called it; returns at once in a single process.

    Args:
      name: Name of the barrier, the same in all processes.
      seconds: Time limit.

    Raises:
      ValueError: If another process did not come in time.
    """
    try:
        _wait(name, seconds)
    except RuntimeError as error:
        raise ValueError(
            f"waited {seconds:g} s at the barrier {name!r} for other processes, which did not come in time "
            f"({_reason(error)}): {_ADVICE}."
        ) from error


def agree(choice: str, choices: Sequence[str]) -> str:
    """Choice of process 0, for all processes.

    Args:
      choice: This process's own choice.
      choices: All possible choices, the same in all processes.

    Returns:
      The choice of process 0.
    """
    if jax.process_count() == 1:
        return choice
    return choices[int(_exchanged(multihost_utils.broadcast_one_to_all, np.int32(choices.index(choice))))]


def any_of(flags: np.ndarray) -> np.ndarray:
    """Logical "or" of flags over all processes.

    Args:
      flags: Booleans [N] of this process; N is the same in all processes.

    Returns:
      Booleans [N], the same in all processes.
    """
    if jax.process_count() == 1:
        return flags
    return np.any(_exchanged(multihost_utils.process_allgather, flags), axis=0)


def _exchanged(exchange: Callable[[Any], Any], value: Any) -> Any:
    """Result of an exchange of values between processes; a broken connection raises JAX's runtime error."""
    try:
        return exchange(value)
    except ValueError as error:  # where the connection breaks while the operation starts
        raise jax.errors.JaxRuntimeError(str(error)) from error


def stop_agreed() -> bool:
    """Tests if all processes are to stop after this step, because one of them has received SIGTERM.

    Each process must call it exactly once per step. The answer is the same in all processes.

    Returns:
      True to save and leave; always false in a single process.
    """
    # Counted over all trainings of the program, since JAX lets processes agree on a number that must not come twice.
    return jax.distributed.is_initialized() and multihost_utils.reached_preemption_sync_point(next(_steps))


def run(function: Callable[[], Any]) -> None:
    """Runs a program's main function, after which all processes leave together.

    A process that fails alone does not wait for the others: it leaves at once, so that they learn of it.

    Args:
      function: Main function, called without arguments; it may call `start`.
    """
    try:
        function()
    except BaseException as error:
        if not jax.distributed.is_initialized() or _met(3.0):
            raise
        if _of_the_runtime(error):  # perhaps a broken connection: the watch reports which process is lost
            time.sleep(1.5 * _watch.timeout)
        _watch.end()
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else 1
        else:
            traceback.print_exc()
            code = 1
        if is_first():  # JAX takes its end for a crash of all processes: let the others report the loss first
            time.sleep(1.5 * _watch.timeout)
        _exit(code)
    barrier("the end")
    _watch.end()


def _of_the_runtime(error: BaseException) -> bool:
    """Tests if JAX's runtime raised an error, also one that it raises as a ValueError while an operation starts."""
    started = isinstance(error, ValueError) and re.match(r"[A-Z_]+: ", str(error)) is not None
    return started or isinstance(error, jax.errors.JaxRuntimeError)


def _met(seconds: float) -> bool:
    """Waits for all processes to be about to leave; false if they are not in time."""
    try:
        _wait("the end", seconds)
    except RuntimeError:
        return False
    _watch.end()
    return True


def _wait(name: str, seconds: float) -> None:
    """Waits at a barrier of JAX's coordination service."""
    from jax._src import distributed  # the client is not public

    client = distributed.global_state.client
    if client is not None:
        client.wait_at_barrier(f"jaxkd {name}", round(1000 * seconds))


class _Watch:
    """Watch over the other processes: a thread that meets theirs at barriers, and takes one that is late for lost."""

    def __init__(self) -> None:
        self.timeout = 0.0
        self._ended = threading.Event()

    def begin(self, timeout: float) -> None:
        """Starts the thread."""
        self.timeout = timeout
        threading.Thread(target=self._meet, daemon=True, name="jaxkd-peers").start()

    def end(self) -> None:
        """Stops the thread, since this process leaves."""
        self._ended.set()

    def _meet(self) -> None:
        """Body of the thread."""
        while not self._ended.wait(self.timeout / 4):
            try:
                _wait("alive", self.timeout)
            except RuntimeError as error:
                if self._ended.is_set():
                    return
                who = f"process {jax.process_index()} of {jax.process_count()}"
                what = f"waited {self.timeout:g} s for a sign of life of another process ({_reason(error)})"
                print(f"error: {who} has {what}: {_ADVICE}.", file=sys.stderr)
                _exit(LOST)


_watch = _Watch()


def _reason(error: BaseException) -> str:
    """Reason of JAX's error, for the middle of a sentence: the missing processes, else the first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    names = [line for line in lines if line.replace("/", "").isdigit()]
    return f"missing: process {', '.join(names)}" if names else lines[0].rstrip(".") if lines else type(error).__name__


def _exit(code: int) -> None:
    """Exits without Python's usual shutdown, in which JAX would wait for processes that are gone."""
    for function in before_exit:
        with contextlib.suppress(Exception):  # nothing keeps the process from leaving
            function()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
