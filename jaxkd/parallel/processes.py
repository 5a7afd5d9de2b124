"""Coordination of several processes that run one program: joining, barriers, agreed stops, and the end."""

from __future__ import annotations

import itertools
import json
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxkd.parallel import peers
from jaxkd.parallel.peers import LOST as LOST

AUTO = "auto"
"""Name of the coordinator that lets JAX detect Slurm, MPI, Kubernetes or a TPU pod."""

_WAIT_SECONDS = 600.0

_steps, _comparisons = itertools.count(1), itertools.count(1)


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
        with peers.noticing_process_0():
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
            f"did not find {where} ({peers.reason(error)}): start every process, with the same coordinator and "
            "an index of its own, or leave --coordinator out to run a single process."
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
        peers.wait(name, seconds)
    except RuntimeError as error:
        raise ValueError(
            f"waited {seconds:g} s at the barrier {name!r} for other processes, which did not come in time "
            f"({peers.reason(error)}): {peers.ADVICE}."
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


def check_same(values: Mapping[str, Any]) -> None:
    """Checks that all processes were started with the same values, before anything needs them to agree.

    Args:
      values: Name, such as a flag, -> a value that JSON can hold.

    Raises:
      ValueError: If a process has other values; raised in all of them, with the names and both values.
    """
    client = peers.client()
    if client is None or jax.process_count() == 1:
        return
    key, limit = f"jaxkd/values{next(_comparisons)}", round(1000 * _WAIT_SECONDS)
    try:
        if is_first():
            others = range(1, jax.process_count())
            told = {one: json.loads(client.blocking_key_value_get(f"{key}/{one}", limit)) for one in others}
            found = _differences(json.loads(json.dumps(values)), told)
            client.key_value_set(f"{key}/found", found)
        else:
            client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(values))
            found = client.blocking_key_value_get(f"{key}/found", limit)
    except RuntimeError as error:
        raise ValueError(
            f"the processes could not compare their flags ({peers.reason(error)}): {peers.ADVICE}."
        ) from error
    if found != "same":
        raise ValueError(f"the processes were started with other values ({found}): give all of them the same.")


def _differences(own: Mapping[str, Any], told: Mapping[int, Mapping[str, Any]]) -> str:
    """Differences between process 0 and the others, for the middle of a sentence; "same" if there are none."""
    found = []
    for one, other in told.items():
        for name in {**own, **other}:
            here, there = (json.dumps(values[name]) if name in values else "absent" for values in (own, other))
            if here != there:
                found.append(f"{name} is {here} in process 0 and {there} in process {one}")
    return "; ".join(found[:8]) or "same"


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
        peers.exit_now(code)
    barrier("the end")
    _watch.end()


def _of_the_runtime(error: BaseException) -> bool:
    """Tests if JAX's runtime raised an error, also one that it raises as a ValueError while an operation starts."""
    started = isinstance(error, ValueError) and re.match(r"[A-Z_]+: ", str(error)) is not None
    return started or isinstance(error, jax.errors.JaxRuntimeError)


def _met(seconds: float) -> bool:
    """Waits for all processes to be about to leave; false if they are not in time."""
    try:
        peers.wait("the end", seconds)
    except RuntimeError:
        return False
    _watch.end()
    return True


_watch = peers.Watch()
