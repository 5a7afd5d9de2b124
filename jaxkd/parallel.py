"""Where a step runs: meshes, shardings, and compilation of pure steps for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxkd.types import Batch, PyTree

DATA = "data"
"""Name of the mesh axis over which batches are split."""


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One-axis mesh over all devices there are.

    Args:
      devices: The devices; all of them, of all processes, if None.

    Returns:
      A mesh with the axis "data" in Auto mode (Explicit axes make Gram matrices raise).
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding that holds a whole copy on every device.

    Args:
      mesh: The mesh.

    Returns:
      The sharding.
    """
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """Sharding that splits the leading axis over the devices.

    Args:
      mesh: The mesh.

    Returns:
      The sharding.
    """
    return NamedSharding(mesh, PartitionSpec(DATA))


def put_replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies a state or a teacher to every device of the mesh.

    Args:
      tree: Arrays, the same in every process.
      mesh: The mesh.

    Returns:
      The same tree on the devices.
    """
    return jax.device_put(tree, replicated(mesh))


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Puts this process's rows of a batch onto the mesh, split over the devices; returns before the copy is done.

    Args:
      batch: Host arrays [B / processes, ...].
      mesh: The mesh.

    Returns:
      Global arrays [B, ...].

    Raises:
      ValueError: If the rows cannot be split evenly over this process's devices, or a field is text.
    """
    local = max(1, mesh.size // jax.process_count())
    ready = {}
    for name, value in batch.items():
        array = _on_host(name, value)
        _check_rows(name, array, local, mesh.size)
        ready[name] = jax.make_array_from_process_local_data(sharded(mesh), array)
    return ready


def compile_jit(step: Callable[..., Any], mesh: Mesh, *, donate_state: bool = True) -> Callable[..., Any]:
    """Compiles a train or evaluation step for a mesh: batch split, state, teacher and results on every device.

    Args:
      step: (state, teacher, batch) -> pytrees.
      mesh: The mesh.
      donate_state: Whether the state's buffers are reused for the new state; False for evaluation steps.

    Returns:
      The compiled step; what it gives equals the step on one device up to rounding.
    """
    whole, split = replicated(mesh), sharded(mesh)
    return jax.jit(
        step,
        in_shardings=(whole, whole, split),
        out_shardings=whole,
        donate_argnums=(0,) if donate_state else (),
    )


def compile_pmap(
    step: Callable[..., Any], devices: Sequence[jax.Device] | None = None, *, donate_state: bool = True
) -> Callable[..., Any]:
    """Compiles a step made with `axis_name=DATA` for `pmap`: one share of the batch a device, results from the first.

    Equals `compile_jit` up to rounding, but for two things: dropout draws other units, and batch norm in the student
    sees one device's share, unless the model was made with `axis_name=DATA`; running statistics are averaged anyway.

    Args:
      step: (state, teacher, batch) -> pytrees, of `make_train_step(..., axis_name=DATA)` or `make_eval_step`.
      devices: Devices of this process; all of them if None.
      donate_state: Whether the state's buffers are reused for the new state; False for evaluation steps.

    Returns:
      The compiled step; it takes batches as `put_shares` puts them, and states that `put_replicated` put.
    """
    return jax.pmap(
        step,
        axis_name=DATA,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=jax.local_devices() if devices is None else list(devices),
        donate_argnums=(0,) if donate_state else (),
    )


def put_shares(batch: Batch, mesh: Mesh) -> Batch:
    """Puts a batch onto the devices of one process as `compile_pmap` wants it; returns before the copy is done.

    Args:
      batch: Host arrays [B, ...].
      mesh: The devices.

    Returns:
      Arrays [devices, B / devices, ...], one share on each device.

    Raises:
      ValueError: If the rows cannot be split evenly over the devices, or a field is text.
    """
    ready = {}
    for name, value in batch.items():
        array = _on_host(name, value)
        _check_rows(name, array, mesh.size, mesh.size)
        shares = array.reshape(mesh.size, array.shape[0] // mesh.size, *array.shape[1:])
        ready[name] = jax.device_put(shares, sharded(mesh))
    return ready


def _on_host(name: str, value: Any) -> np.ndarray:
    """A field in the dtype that it will have on a device."""
    array = np.asarray(value)
    if array.dtype.kind in "OSU":
        raise ValueError(
            f"the batch's field {name!r} holds text ({array.dtype}), which cannot go onto a device: turn it into "
            "tokens with the pipeline's `transform`."
        )
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def _check_rows(name: str, value: Any, devices: int, multiple: int) -> None:
    if value.ndim == 0 or value.shape[0] % devices:
        rows = value.shape[0] if value.ndim else "no"
        raise ValueError(
            f"the batch's field {name!r} has {rows} rows, which {devices} devices cannot share evenly: choose a "
            f"batch size that is a multiple of {multiple}."
        )


class Plan(NamedTuple):
    """How an experiment's steps are spread over devices: `with_jit` or `with_pmap`.

    Attributes:
      mesh: The devices.
      axis_name: What steps are made with: an axis's name under `pmap`, None under `jit`.
      compile: (step, donate_state=True) -> compiled step.
      put: Tree of arrays -> the same tree where the compiled step wants states and teachers.
      place: Host batch -> the batch as the compiled step wants it.
    """

    mesh: Mesh
    axis_name: str | None
    compile: Callable[..., Callable[..., Any]]
    put: Callable[[PyTree], PyTree]
    place: Callable[[Batch], Batch]


def with_jit(mesh: Mesh | None = None) -> Plan:
    """`compile_jit` on a mesh: the usual way.

    Args:
      mesh: The mesh; all devices if None.

    Returns:
      The plan.
    """
    mesh = make_mesh() if mesh is None else mesh
    return Plan(
        mesh,
        None,
        functools.partial(compile_jit, mesh=mesh),
        functools.partial(put_replicated, mesh=mesh),
        functools.partial(put_batch, mesh=mesh),
    )


def with_pmap(devices: Sequence[jax.Device] | None = None) -> Plan:
    """`compile_pmap` on the devices of one process.

    Args:
      devices: The devices; all of this process if None.

    Returns:
      The plan.
    """
    mesh = make_mesh(jax.local_devices() if devices is None else list(devices))
    return Plan(
        mesh,
        DATA,
        functools.partial(compile_pmap, devices=list(mesh.devices.flat)),
        functools.partial(put_replicated, mesh=mesh),
        functools.partial(put_shares, mesh=mesh),
    )
