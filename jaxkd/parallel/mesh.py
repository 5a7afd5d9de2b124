"""Meshes, shardings, and the placement of batches, states and teacher variables on devices."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxkd.keys import is_key, plain_words
from jaxkd.labels import check_range
from jaxkd.types import Batch, PyTree, leaf_name

DATA = "data"
"""Name of the mesh axis over which batches are sharded."""

MODEL = "model"
"""Name of the mesh axis over which params are sharded; batches are sharded over it as well."""

Rules: TypeAlias = Mapping[str, PartitionSpec]
"""Regular expression -> sharding of the arrays in whose paths it is found.

Paths are such as "params/student/head/kernel" and "opt_state/0/trace/student/head/kernel"."""


def make_mesh(devices: Sequence[jax.Device] | None = None, *, model: int = 1) -> Mesh:
    """Mesh of all devices, with a second axis if params are to be sharded too.

    Args:
      devices: The devices; all devices of all processes if None.
      model: Number of devices over which one copy of the params is sharded.

    Returns:
      Mesh with the axis "data" and, if `model` is above 1, the axis "model". Axes are in Auto mode, since Explicit
      ones make the products of Gram matrices raise.

    Raises:
      ValueError: If the devices cannot be divided by `model`.
    """
    devices = jax.devices() if devices is None else devices
    if model < 1 or len(devices) % model:
        raise ValueError(
            f"{len(devices)} devices cannot be arranged in groups of {model}, the size of the axis {MODEL!r}: choose a "
            f"divisor of {len(devices)}."
        )
    sizes = (len(devices) // model, model) if model > 1 else (len(devices),)
    names = (DATA, MODEL)[: len(sizes)]
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding that replicates an array on every device.

    Args:
      mesh: The mesh.

    Returns:
      The sharding.
    """
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """Sharding that splits the leading axis of an array over all devices of the mesh.

    Args:
      mesh: The mesh.

    Returns:
      The sharding.
    """
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def fsdp(tree: PyTree, mesh: Mesh, rules: Rules | None = None, *, smallest: int = 2**14) -> PyTree:
    """FSDP shardings of a state or of teacher variables over the axis "model".

    Each array is split along the largest of its axes that the number of devices divides. An optimizer's moments and a
    moving average get the shardings of their params, which have the same shapes and the same ends of paths.

    Args:
      tree: Arrays or their shapes.
      mesh: The mesh; without the axis "model" all arrays are replicated.
      rules: Exceptions; the first pattern that is found in an array's path decides. Arrays of the optimizer whose shape
        does not fit the rule (factored moments) are split as if there were no rule.
      smallest: Number of elements below which arrays are replicated, unless a rule splits them.

    Returns:
      Tree of shardings.

    Raises:
      ValueError: If a rule does not fit an array, or if its pattern decides over no array.
    """
    if MODEL not in mesh.axis_names:
        return jax.tree.map(lambda _: replicated(mesh), tree)
    used = set()

    def of(path: tuple[Any, ...], x: Any) -> NamedSharding:
        name = leaf_name(path)
        pattern = next((pattern for pattern in rules or {} if re.search(pattern, name)), None)
        if pattern is None or rules is None:
            return NamedSharding(mesh, _largest_axis(x, mesh.shape[MODEL], smallest))
        used.add(pattern)
        if _fits(x.shape, rules[pattern], mesh):
            return NamedSharding(mesh, rules[pattern])
        if "opt_state" in name.split("/"):
            return NamedSharding(mesh, _largest_axis(x, mesh.shape[MODEL], smallest))
        raise ValueError(
            f"{name} of shape {x.shape} cannot be split as {pattern!r} says, {rules[pattern]}, on a mesh of "
            f"{dict(mesh.shape)}: name axes of the mesh whose sizes divide those of the array."
        )

    shardings = jax.tree_util.tree_map_with_path(of, tree)
    if unused := [pattern for pattern in rules or {} if pattern not in used]:
        names = [leaf_name(path) for path, _ in jax.tree.leaves_with_path(tree)]
        raise ValueError(
            f"the pattern {unused[0]!r} decides over no array: check its spelling and the rules before it; the arrays "
            f"are {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}."
        )
    return shardings


def _largest_axis(x: Any, parts: int, smallest: int) -> PartitionSpec:
    """Split along the largest axis that `parts` divides, the last of equal ones; none for small arrays and keys."""
    sizes = [(size, axis) for axis, size in enumerate(x.shape) if size and size % parts == 0]
    if not sizes or np.prod(x.shape) < smallest or is_key(x):
        return PartitionSpec()
    return PartitionSpec(*[None] * max(sizes)[1], MODEL)


def _fits(shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> bool:
    """Checks a spec against an array: it names axes of the mesh, not more than the array has, that divide its axes."""
    named = [(entry,) if isinstance(entry, str) else entry or () for entry in spec]
    if len(named) > len(shape) or any(name not in mesh.shape for names in named for name in names):
        return False
    parts = [int(np.prod([mesh.shape[name] for name in names])) for names in named]
    return all(size % count == 0 for size, count in zip(shape, parts, strict=False))


def put_replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """Replicates a state or teacher variables on every device of a mesh.

    Args:
      tree: Arrays, the same in every process.
      mesh: The mesh.

    Returns:
      The same tree on the devices.
    """
    return put(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Places arrays, which are the same in every process, with given shardings.

    Args:
      tree: Arrays.
      shardings: Their shardings, as `fsdp` returns them.

    Returns:
      The same tree on the devices. It may use the buffers of arrays that already have their sharding.
    """
    return jax.tree.map(_put, tree, shardings)


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    """Places one array."""
    if sharding.is_fully_addressable or not getattr(x, "is_fully_addressable", True):
        return jax.device_put(x, sharding)
    # What only this process sees goes to its own devices: `device_put` would compare all processes' values first.
    if is_key(x):
        data = _put(plain_words(x), NamedSharding(sharding.mesh, PartitionSpec()))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    host = _on_host("", x)
    return jax.make_array_from_callback(host.shape, sharding, lambda rows: host[rows])


def fetch(tree: PyTree) -> PyTree:
    """Copies whole arrays to the host, also those that are split over several processes.

    Args:
      tree: Arrays; all processes must fetch the same ones.

    Returns:
      The same tree of NumPy arrays.
    """

    def whole(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(jax.device_get(x))

    return jax.tree.map(whole, tree)


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Places a batch, split over the devices of a mesh, for `compile_jit`; returns before the copy is done.

    Args:
      batch: Host arrays [B / processes, ...], this process's rows.
      mesh: The mesh.

    Returns:
      Global arrays [B, ...].

    Raises:
      ValueError: If the rows cannot be split evenly over this process's devices, or a field is text.
    """
    fields, _ = _own_rows(batch, mesh)
    return _placed(fields, sharded(mesh))


def put_shards(batch: Batch, mesh: Mesh) -> Batch:
    """Places a batch as one shard for each device, for `compile_pmap`; returns before the copy is done.

    Args:
      batch: Host arrays [B / processes, ...], this process's rows.
      mesh: The devices.

    Returns:
      Arrays [devices, B / devices, ...], one shard on each device.

    Raises:
      ValueError: If the rows cannot be split evenly over this process's devices, or a field is text.
    """
    fields, local = _own_rows(batch, mesh)
    shards = {name: array.reshape(local, len(array) // local, *array.shape[1:]) for name, array in fields.items()}
    return _placed(shards, sharded(mesh))


def _placed(fields: dict[str, np.ndarray], sharding: NamedSharding) -> Batch:
    """Global arrays on the devices, from this process's rows."""
    if not sharding.is_fully_addressable:
        return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in fields.items()}
    # `device_put` takes three times as long for a field. The loop's guard against transfers must let this one pass.
    with jax.transfer_guard_host_to_device("allow"):
        return {n: jax.make_array_from_callback(x.shape, sharding, x.__getitem__) for n, x in fields.items()}


def _own_rows(batch: Batch, mesh: Mesh) -> tuple[dict[str, np.ndarray], int]:
    """Checked fields of this process's rows, and the number of its devices that they are split over."""
    local = max(1, mesh.size // jax.process_count())
    fields = {name: _on_host(name, value) for name, value in batch.items()}
    for name, array in fields.items():
        check_rows(name, array, local, mesh.size)
    return fields, local


def _on_host(name: str, value: Any) -> np.ndarray:
    """Host array of the dtype that a field will have on a device."""
    array = np.asarray(value)
    if array.dtype.kind in "OSU":
        raise ValueError(
            f"the batch's field {name!r} holds text ({array.dtype}), which cannot go onto a device: turn it into "
            "tokens with the pipeline's `transform`."
        )
    check_range(f"the values of the batch's field {name!r}", array)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def check_rows(name: str, value: Any, devices: int, multiple: int) -> None:
    """Checks that the rows of a field can be split evenly over this process's devices.

    Args:
      name: Name of the field.
      value: Its array.
      devices: Number of devices.
      multiple: Number of rows, over all processes, of which a batch must have a multiple.

    Raises:
      ValueError: If they cannot, or there are none.
    """
    if value.ndim and not value.shape[0]:
        raise ValueError(f"the batch's field {name!r} has no rows: give at least {multiple}, one for each device.")
    if value.ndim == 0 or value.shape[0] % devices:
        rows = value.shape[0] if value.ndim else "no"
        raise ValueError(
            f"the batch's field {name!r} has {rows} rows, which cannot be split evenly over {devices} devices: choose "
            f"a batch size that is a multiple of {multiple}."
        )
