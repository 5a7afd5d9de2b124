"""Where a step runs: compilation of pure steps for meshes of devices, and the plans that experiments pass around."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
from jax.sharding import Mesh

from jaxkd.keys import is_key
from jaxkd.parallel.mesh import (
    DATA,
    MODEL,
    Rules,
    fetch,
    fsdp,
    make_mesh,
    put,
    put_batch,
    put_replicated,
    put_shards,
    replicated,
    sharded,
)
from jaxkd.types import Batch, PyTree, TrainState, Variables

__all__ = [
    "DATA",
    "MODEL",
    "Plan",
    "Rules",
    "compile_jit",
    "compile_pmap",
    "fetch",
    "fsdp",
    "make_mesh",
    "put",
    "put_batch",
    "put_replicated",
    "put_shards",
    "replicated",
    "sharded",
    "with_jit",
    "with_pmap",
]


def compile_jit(
    step: Callable[..., Any], mesh: Mesh, *, donate_state: bool = True, student: Rules | None = None
) -> Callable[..., Any]:
    """Compiles a train or evaluation step for a mesh: the batch is split, results are whole on every device.

    State and teacher are whole on every device too, unless the mesh has the axis "model": then they stay split as they
    are given, and each state among the results is split as `fsdp` says.

    Args:
      step: (state, teacher, batch) -> pytrees.
      mesh: The mesh.
      donate_state: Whether the state's buffers are reused for the new state; False for evaluation steps.
      student: Rules for states, those that they were put with.

    Returns:
      The compiled step; what it gives equals the step on one device up to rounding.
    """
    donated = (0,) if donate_state else ()
    whole, split = replicated(mesh), sharded(mesh)
    if MODEL not in mesh.axis_names:
        return jax.jit(step, in_shardings=(whole, whole, split), out_shardings=whole, donate_argnums=donated)

    def settled(state: PyTree, teacher: PyTree, batch: Batch) -> PyTree:
        results = step(state, teacher, batch)
        shardings = jax.tree.map(
            lambda part: fsdp(part, mesh, student) if isinstance(part, TrainState) else whole,
            results,
            is_leaf=lambda x: isinstance(x, TrainState),
        )
        return jax.lax.with_sharding_constraint(results, shardings)

    return jax.jit(settled, donate_argnums=donated)


def compile_pmap(
    step: Callable[..., Any], devices: Sequence[jax.Device] | None = None, *, donate_state: bool = True
) -> Callable[..., Any]:
    """Compiles a step made with `axis_name=DATA` for `pmap`: one share of the batch a device, results from the first.

    Equals `compile_jit` up to rounding, but for two things: dropout draws other units, and batch norm in the student
    sees one device's share, unless the model was made with `axis_name=DATA`; running statistics are averaged anyway.

    Args:
      step: (state, teacher, batch) -> pytrees, of `make_train_step(..., axis_name=DATA)` or `make_eval_step`.
      devices: The devices; all of them, of all processes, if None.
      donate_state: Whether the state's buffers are reused for the new state; False for evaluation steps.

    Returns:
      The compiled step; it takes batches as `put_shards` puts them, and states that `put_replicated` put.
    """
    mesh = make_mesh(devices)
    options: dict[str, Any] = {
        "axis_name": DATA,
        "in_axes": (None, None, 0),
        "out_axes": None,
        "devices": list(mesh.devices.flat),
        "donate_argnums": (0,) if donate_state else (),
    }
    if replicated(mesh).is_fully_addressable:
        return jax.pmap(step, **options)

    def on_raw_keys(state: PyTree, teacher: PyTree, batch: Batch) -> PyTree:
        return _raw_keys(step(*_typed_keys((state, teacher)), batch))

    mapped = jax.pmap(on_raw_keys, **options)

    def run(state: PyTree, teacher: PyTree, batch: Batch) -> PyTree:
        # pmap would take typed keys through the host, and returns arrays of this process's devices alone.
        own = mapped(*_raw_keys((state, teacher)), batch)
        return _typed_keys(jax.tree.map(lambda x: _joined(x, mesh), own))

    return run


@flax.struct.dataclass
class _RawKey:
    """The bits of a typed PRNG key."""

    data: jax.Array
    impl: Any = flax.struct.field(pytree_node=False)


def _raw_keys(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: _RawKey(jax.random.key_data(x), jax.random.key_impl(x)) if is_key(x) else x, tree)


def _typed_keys(tree: PyTree) -> PyTree:
    return jax.tree.map(
        lambda x: jax.random.wrap_key_data(x.data, impl=x.impl) if isinstance(x, _RawKey) else x,
        tree,
        is_leaf=lambda x: isinstance(x, _RawKey),
    )


def _joined(x: jax.Array, mesh: Mesh) -> jax.Array:
    """The global array of which each process has a whole copy on each of its devices; nothing is copied."""
    copies = [shard.data for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, replicated(mesh), copies)


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


def with_jit(mesh: Mesh | None = None, *, student: Rules | None = None, teacher: Rules | None = None) -> Plan:
    """`compile_jit` on a mesh: the usual way.

    `with_jit(make_mesh(model=4), student={r"head/kernel": PartitionSpec("model")})`

    Args:
      mesh: The mesh; all devices along "data" if None.
      student: Rules for states, as `fsdp` takes them.
      teacher: Rules for variables, a teacher's above all.

    Returns:
      The plan.

    Raises:
      ValueError: If there are rules but no axis "model".
    """
    mesh = make_mesh() if mesh is None else mesh
    if (student or teacher) and MODEL not in mesh.axis_names:
        raise ValueError(
            f"there are rules for splitting params but the mesh has no axis {MODEL!r} ({dict(mesh.shape)}): make it "
            "with make_mesh(model=2) or more."
        )

    rules = {TrainState: student, Variables: teacher}

    def put_split(tree: PyTree) -> PyTree:
        return jax.tree.map(
            lambda part: put(part, fsdp(part, mesh, rules.get(type(part)))), tree, is_leaf=lambda x: type(x) in rules
        )

    compiled = functools.partial(compile_jit, mesh=mesh, student=student)
    return Plan(mesh, None, compiled, put_split, functools.partial(put_batch, mesh=mesh))


def with_pmap(devices: Sequence[jax.Device] | None = None) -> Plan:
    """`compile_pmap` on devices: the way without a compiler that splits programs.

    Args:
      devices: The devices; all of them, of all processes, if None.

    Returns:
      The plan.
    """
    mesh = make_mesh(devices)
    return Plan(
        mesh,
        DATA,
        functools.partial(compile_pmap, devices=list(mesh.devices.flat)),
        functools.partial(put_replicated, mesh=mesh),
        functools.partial(put_shards, mesh=mesh),
    )
