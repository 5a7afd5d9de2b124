"""Where a step runs: meshes, shardings, and compilation of pure steps for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
        array = np.asarray(value)
        if array.dtype.kind in "OSU":
            raise ValueError(
                f"the batch's field {name!r} holds text ({array.dtype}), which cannot go onto a device: turn it into "
                "tokens with the pipeline's `transform`."
            )
        if array.ndim == 0 or array.shape[0] % local:
            rows = array.shape[0] if array.ndim else "no"
            raise ValueError(
                f"the batch's field {name!r} has {rows} rows, which {local} devices cannot share evenly: choose a "
                f"batch size that is a multiple of {mesh.size}."
            )
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
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


def vmap_students(step: Callable[..., Any]) -> Callable[..., Any]:
    """Trains students stacked on a leading axis at once; teacher and batch are shared and computed once.

    Args:
      step: (state, teacher, batch) -> pytrees, of one student.

    Returns:
      The step of stacked states [S, ...]; its results are stacked likewise.
    """
    return jax.vmap(step, in_axes=(0, None, None))
