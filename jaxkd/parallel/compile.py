"""Compilation of pure steps for several devices, with `jit` or `pmap`, and the plans that experiments pass around."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxkd.keys import is_key
from jaxkd.parallel.mesh import (
    DATA,
    MODEL,
    Rules,
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


def compile_jit(
    step: Callable[..., Any], mesh: Mesh, *, donate_state: bool = True, student: Rules | None = None
) -> Callable[..., Any]:
    """Compiles a train or evaluation step with `jit` for a mesh: the batch is sharded, the results are replicated.

    State and teacher variables are replicated too, unless the mesh has the axis "model". Then they keep the shardings
    that they are given with, and each state among the results is sharded by `fsdp`.

    Args:
      step: (state, teacher_variables, batch) -> pytrees.
      mesh: The mesh.
      donate_state: True reuses the state's buffers for the new state; evaluation steps need False. Arrays of the state
        that the teacher shares, as in `step(state, state.ema, batch)`, are copied first.
      student: Rules for states, the same that they were put on the devices with.

    Returns:
      The compiled step, whose results equal those of the step on one device up to rounding.
    """
    donated = (0,) if donate_state else ()
    whole, split = replicated(mesh), sharded(mesh)
    if MODEL not in mesh.axis_names:
        compiled = jax.jit(step, in_shardings=(whole, whole, split), out_shardings=whole, donate_argnums=donated)
        return CompiledStep(compiled, mesh, donate_state)

    def constrained(state: PyTree, teacher_variables: PyTree, batch: Batch) -> PyTree:
        results = step(state, teacher_variables, batch)
        shardings = jax.tree.map(
            lambda node: fsdp(node, mesh, student) if isinstance(node, TrainState) else whole,
            results,
            is_leaf=lambda x: isinstance(x, TrainState),
        )
        return jax.lax.with_sharding_constraint(results, shardings)

    return CompiledStep(jax.jit(constrained, donate_argnums=donated), mesh, donate_state)


def compile_pmap(
    step: Callable[..., Any], devices: Sequence[jax.Device] | None = None, *, donate_state: bool = True
) -> Callable[..., Any]:
    """Compiles a train or evaluation step with `pmap`: each device gets one shard of the batch.

    The results equal those of `compile_jit` up to rounding, with two exceptions. Dropout drops other units. Batch norm
    in the student normalises by the statistics of one shard, unless the model was made with `axis_name=DATA`; running
    statistics are averaged over the devices in any case.

    Args:
      step: (state, teacher_variables, batch) -> pytrees, from `make_train_step(..., axis_name=DATA)` or
        `make_eval_step`.
      devices: The devices; all devices of all processes if None.
      donate_state: True reuses the state's buffers for the new state; evaluation steps need False.

    Returns:
      The compiled step, which takes states from `put_replicated` and batches from `put_shards`. Its results are those
      of the first device.
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
        return CompiledStep(jax.pmap(step, **options), mesh, donate_state, sharded_rows=True)

    def on_raw_keys(state: PyTree, teacher_variables: PyTree, batch: Batch) -> PyTree:
        return _raw_keys(step(*_typed_keys((state, teacher_variables)), batch))

    mapped = jax.pmap(on_raw_keys, **options)

    def run(state: PyTree, teacher_variables: PyTree, batch: Batch) -> PyTree:
        # pmap would take typed keys through the host, and returns arrays of this process's devices alone.
        own = mapped(*_raw_keys((state, teacher_variables)), batch)
        return _typed_keys(jax.tree.map(lambda x: _joined(x, mesh), own))

    return run


class CompiledStep:
    """A compiled step that shares no donated array, and says in a sentence what does not fit its devices.

    What the compiled function has besides, such as `lower`, it has too.

    Args:
      compiled: (state, teacher_variables, batch) -> results.
      mesh: Its devices.
      donated: Whether the state's buffers are given away.
      sharded_rows: Whether batches have the form of `put_shards`.
    """

    def __init__(self, compiled: Callable[..., Any], mesh: Mesh, donated: bool, *, sharded_rows: bool = False) -> None:
        self._compiled, self._mesh, self._donated, self._sharded_rows = compiled, mesh, donated, sharded_rows
        self._called = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiled, name)

    def __call__(self, state: PyTree, teacher_variables: PyTree, batch: Batch) -> Any:
        """Runs the step."""
        _check_alive(state)
        if self._donated:
            state = _unshared(state, (teacher_variables, batch), _of_buffer if not self._called else id)
            self._called = True
        try:
            return self._compiled(state, teacher_variables, batch)
        except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
            if (why := self._misfit(batch)) is not None:
                raise ValueError(why) from error
            raise

    def _misfit(self, batch: Batch) -> str | None:
        """Fault of the batch after an error, or None."""
        devices = self._mesh.size
        for field, x in batch.items() if isinstance(batch, Mapping) else ():
            shape = getattr(x, "shape", ())
            if self._sharded_rows and shape[:1] != (devices // jax.process_count(),):
                return (
                    f"the batch's field {field!r} has shape {shape}, but a step of `pmap` takes "
                    f"[{devices}, rows, ...]: place the batch with parallel.put_shards."
                )
            if not self._sharded_rows and (not shape or not shape[0] or shape[0] % devices):
                rows = shape[0] if shape else "no"
                return (
                    f"the batch's field {field!r} has {rows} rows, which cannot be split evenly over {devices} "
                    f"devices: choose a batch size that is a multiple of {devices}."
                )
        return None


def _check_alive(state: PyTree) -> None:
    """Raises ValueError if the state's arrays are gone, which some back ends would answer with a crash."""
    if any(isinstance(x, jax.Array) and x.is_deleted() for x in jax.tree.leaves(state)):
        raise ValueError(
            "the state was given away to an earlier step, whose result takes its place: go on with the state that it "
            "returned, or compile the step with donate_state=False."
        )


def _of_buffer(x: jax.Array) -> int:
    """Address of an array's first buffer, or its identity where there is none."""
    if is_key(x) or x.is_deleted() or not x.addressable_shards:
        return id(x)
    return x.addressable_shards[0].data.unsafe_buffer_pointer()


def _unshared(state: PyTree, others: PyTree, name: Callable[[jax.Array], int]) -> PyTree:
    """The state, with copies of its arrays that others hold too, or that stand in it twice."""
    seen = {name(x) for x in jax.tree.leaves(others) if isinstance(x, jax.Array)}
    leaves, structure = jax.tree.flatten(state)
    shared = False
    for i, x in enumerate(leaves):
        if isinstance(x, jax.Array):
            if (of := name(x)) in seen:
                leaves[i], shared = jnp.copy(x), True
            seen.add(of)
    return jax.tree.unflatten(structure, leaves) if shared else state


@flax.struct.dataclass
class _RawKey:
    """Typed PRNG key as an array of its bits."""

    data: jax.Array
    impl: Any = flax.struct.field(pytree_node=False)


def _raw_keys(tree: PyTree) -> PyTree:
    """Replaces typed PRNG keys by `_RawKey`s."""
    return jax.tree.map(lambda x: _RawKey(jax.random.key_data(x), jax.random.key_impl(x)) if is_key(x) else x, tree)


def _typed_keys(tree: PyTree) -> PyTree:
    """Replaces `_RawKey`s by typed PRNG keys."""
    return jax.tree.map(
        lambda x: jax.random.wrap_key_data(x.data, impl=x.impl) if isinstance(x, _RawKey) else x,
        tree,
        is_leaf=lambda x: isinstance(x, _RawKey),
    )


def _joined(x: jax.Array, mesh: Mesh) -> jax.Array:
    """Global replicated array, from one that holds a copy on each device of this process; nothing is copied."""
    copies = [shard.data for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, replicated(mesh), copies)


class Plan(NamedTuple):
    """Plan of a training's devices, made by `with_jit` or `with_pmap`: how steps are compiled and arrays are placed.

    Attributes:
      mesh: The devices.
      axis_name: `axis_name` for `make_train_step`: the name of the mapped axis with `pmap`, None with `jit`.
      compile: (step, donate_state=True) -> compiled step.
      put: State or teacher variables -> the same tree on the devices, as the compiled step takes it.
      place: Host batch -> batch on the devices, as the compiled step takes it.
    """

    mesh: Mesh
    axis_name: str | None
    compile: Callable[..., Callable[..., Any]]
    put: Callable[[PyTree], PyTree]
    place: Callable[[Batch], Batch]


def with_jit(mesh: Mesh | None = None, *, student: Rules | None = None, teacher: Rules | None = None) -> Plan:
    """Plan that compiles with `jit` for a mesh, the usual choice.

    `with_jit(make_mesh(model=4), student={r"head/kernel": PartitionSpec("model")})` shards the arrays of a state over
    groups of four devices, and the head's kernel along its first axis.

    Args:
      mesh: The mesh; all devices along the axis "data" if None.
      student: Rules for states, as `fsdp` takes them.
      teacher: Rules for variables outside of states, such as a teacher's.

    Returns:
      The plan.

    Raises:
      ValueError: If there are rules but no axis "model".
    """
    mesh = make_mesh() if mesh is None else mesh
    if (student or teacher) and MODEL not in mesh.axis_names:
        raise ValueError(
            f"there are rules for splitting params but the mesh has no axis {MODEL!r} ({dict(mesh.shape)}): make the "
            "mesh with make_mesh(model=2) or more."
        )

    rules = {TrainState: student, Variables: teacher}

    def put_split(tree: PyTree) -> PyTree:
        return jax.tree.map(
            lambda node: put(node, fsdp(node, mesh, rules.get(type(node)))), tree, is_leaf=lambda x: type(x) in rules
        )

    compiled = functools.partial(compile_jit, mesh=mesh, student=student)
    return Plan(mesh, None, compiled, put_split, functools.partial(put_batch, mesh=mesh))


def with_pmap(devices: Sequence[jax.Device] | None = None) -> Plan:
    """Plan that compiles with `pmap`: one program for each device, with explicit communication.

    Args:
      devices: The devices; all devices of all processes if None.

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
