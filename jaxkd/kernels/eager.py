"""Functions that run once, at the start of a program, without being compiled as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr


def op_by_op(function: Callable[..., Any], *arguments: Any) -> Any:
    """Result of `jax.jit(function)`, computed operation by operation; unused operations are left out.

    Random numbers take seconds to compile on CPUs, for each kernel of a network; one by one, those of each shape are
    compiled once, whichever networks, stages and seeds ask for them.

    Args:
      function: A pure function that `jax.jit` could compile.
      *arguments: Trees of arrays.

    Returns:
      Its result, in buffers of its own, which may be donated.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    jaxpr, used = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    given = [x for x, needed in zip(jax.tree.leaves(arguments), used, strict=True) if needed]
    seen, found = {id(x) for x in (*given, *closed.consts)}, []
    for x, shape in zip(jax.core.eval_jaxpr(jaxpr, closed.consts, *given), jax.tree.leaves(shapes), strict=True):
        own = x if isinstance(x, jax.Array) else jnp.asarray(x, shape.dtype)
        found.append(jnp.copy(own) if id(x) in seen else own)
        seen.add(id(x))
    return jax.tree.unflatten(jax.tree.structure(shapes), found)


def unoptimised() -> dict[str, int] | None:
    """Compiler options for programs that run a few times: on CPUs compiling them costs more than running them.

    Returns:
      Options of `jax.stages.Lowered.compile`, or None where the back end has none.
    """
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
