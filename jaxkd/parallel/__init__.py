"""Devices and processes: meshes, placement of arrays, compilation of steps, and the `Plan` that combines them."""

from jaxkd.parallel import processes
from jaxkd.parallel.compile import Plan, compile_jit, compile_pmap, with_jit, with_pmap
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
    "processes",
    "put",
    "put_batch",
    "put_replicated",
    "put_shards",
    "replicated",
    "sharded",
    "with_jit",
    "with_pmap",
]
