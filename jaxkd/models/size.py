"""Size of a model (parameters, floating-point operations), and the operations of any program from its jaxpr."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr

from jaxkd.types import Batch, Model, Variables

_FREE = {
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "copy_p",
    "gather",
    "iota",
    "pad",
    "reshape",
    "reverse",
    "rng_bit_generator",
    "scatter",
    "select_n",
    "slice",
    "dynamic_slice",
    "dynamic_update_slice",
    "squeeze",
    "stop_gradient",
    "concatenate",
    "transpose",
    "random_bits",
    "random_wrap",
    "random_unwrap",
    "random_fold_in",
    "random_seed",
    "split",
    "expand_dims",
    "device_put",
    "sharding_constraint",
}
"""Primitives that move numbers and compute none."""


def count_parameters(variables: Variables) -> int:
    """Number of trained scalars.

    Args:
      variables: A model's variables, or their abstract shapes.

    Returns:
      Sum of the sizes of all params.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(variables.params))


class Size(NamedTuple):
    """Size of a model.

    Attributes:
      parameters: Trained scalars.
      flops: Floating-point operations of the matrix products and convolutions of one forward pass of the batch; a
        multiplication and an addition count as two, so papers that count pairs have half of it.
    """

    parameters: int
    flops: int


def size(model: Model, batch: Batch) -> Size:
    """Size of a model, without computing anything.

    Args:
      model: Any model.
      batch: A batch that it reads, or its shapes; the operations are those of all its examples.

    Returns:
      Parameters and operations.
    """
    like = jax.eval_shape(lambda b: dict(b), batch)
    variables = jax.eval_shape(model.init, jax.random.key(0), like)
    work = count_work(lambda v, b: model.apply(v, b, None, False)[0].logits, variables, like)
    return Size(count_parameters(variables), int(work.products))


class Work(NamedTuple):
    """Floating-point operations, and the traffic that no fusion saves.

    Attributes:
      products: Operations of matrix products and convolutions; a multiplication and its addition are two.
      elements: Operations of everything else; one for each element computed.
      traffic: Bytes of the operands and results of products and convolutions, and of what reductions read.
      kernels: Number of products, convolutions and reductions, each of which is a kernel on an accelerator at least.
    """

    products: float = 0.0
    elements: float = 0.0
    traffic: float = 0.0
    kernels: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.products + self.elements


def count_work(function: Callable[..., Any], *arguments: Any) -> Work:
    """Counts the operations of a function from its jaxpr, before the compiler changes anything else.

    Operations that no result needs are left out, as `jit` leaves them out: those behind an early exit, for instance.

    A product of [M, K] and [K, N] is 2 M K N; a convolution is 2 * outputs * (kernel elements each of them reads), the
    zeros of padding included and those of dilation not. Reductions count their inputs, other arithmetic its outputs. A
    loop counts each of its steps if their number is known, else one. Of branches the most expensive one counts; of
    branches for different back ends, the default.

    Args:
      function: A function of arrays.
      *arguments: Arrays or their shapes.

    Returns:
      Operations of one call.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return _count(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _count(jaxpr: Any) -> Work:
    sums = [Work()]
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, list(_inner(equation.params))
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            products = 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
            sums.append(Work(products, 0, _bytes(*equation.invars, *equation.outvars), 1))
        elif name == "conv_general_dilated":
            sums.append(Work(_convolution(equation), 0, _bytes(*equation.invars, *equation.outvars), 1))
        elif name == "cond":
            back_ends = equation.params.get("branches_platforms") or ()  # the default counts
            branches = [inner[back_ends.index(None)]] if None in back_ends else inner
            sums.append(max(map(_count, branches), key=lambda w: w.total))
        elif inner:
            times = equation.params.get("length", 1) if name == "scan" else 1
            sums += [Work(*(times * part for part in _count(j))) for j in inner]
        elif name not in _FREE:
            reads = name.startswith(("reduce", "cum", "arg"))
            variables = equation.invars[:1] if reads else equation.outvars
            floating = [v.aval for v in variables if jnp.issubdtype(getattr(v.aval, "dtype", int), jnp.floating)]
            whole = reads and max((a.size for a in floating), default=0) > 1
            sums.append(Work(0, sum(a.size for a in floating), _bytes(*variables) if whole else 0, float(whole)))
    return Work(*map(sum, zip(*sums, strict=True)))


def _bytes(*variables: Any) -> int:
    """Bytes of arrays."""
    return sum(v.aval.size * v.aval.dtype.itemsize for v in variables)


def _inner(params: Any) -> Iterator[Any]:
    """Jaxprs inside an equation, except those of derivative rules."""
    for name, value in params.items():
        if name in ("fwd_jaxpr_thunk", "jvp_jaxpr_fun", "fwd", "bwd", "to_apply", "update_jaxpr", "cond_jaxpr"):
            continue
        for x in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(x, "jaxpr", x)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


def _convolution(equation: Any) -> float:
    kernel, numbers = equation.invars[1].aval, equation.params["dimension_numbers"]
    outputs = kernel.shape[numbers.rhs_spec[0]]
    reads = kernel.size / outputs / math.prod(equation.params["lhs_dilation"])
    return 2 * equation.outvars[0].aval.size * reads
