"""What a program costs by its own arithmetic, and what a device can do: operations, bytes, peak rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from _timing import seconds_per_call

_FREE = {
    "broadcast_in_dim", "convert_element_type", "copy", "copy_p", "gather", "iota", "pad", "reshape", "reverse",
    "rng_bit_generator", "scatter", "select_n", "slice", "dynamic_slice", "dynamic_update_slice", "squeeze",
    "stop_gradient", "concatenate", "transpose", "random_bits", "random_wrap", "random_unwrap", "random_fold_in",
    "random_seed", "split", "expand_dims", "device_put", "sharding_constraint",
}  # fmt: skip
"""Primitives that move numbers and compute none."""


class Work(NamedTuple):
    """Floating-point operations: of matrix products and convolutions, and one for each other element computed."""

    products: float = 0.0
    elements: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.products + self.elements


def work(function: Callable[..., Any], *arguments: Any) -> Work:
    """Counts what a function asks for, from its jaxpr: analytic, whatever the compiler makes of it.

    A product of [M, K] and [K, N] is 2 M K N; a convolution is 2 * outputs * (kernel elements each of them reads), the
    zeros of padding included and those of dilation not. Reductions count their inputs, other arithmetic its outputs. A
    loop counts its steps where their number is known, and one where it is not; of branches the dearest counts.

    Args:
      function: Of arrays.
      *arguments: Arrays or their shapes.

    Returns:
      The operations of one call.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> Work:
    products = elements = 0.0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, list(_inner(equation.params))
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            products += 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            products += _convolution(equation)
        elif name == "cond":
            dearest = max(map(_count, inner), key=lambda w: w.total)
            products, elements = products + dearest.products, elements + dearest.elements
        elif inner:
            times = equation.params.get("length", 1) if name == "scan" else 1
            found = [_count(j) for j in inner]
            products += times * sum(w.products for w in found)
            elements += times * sum(w.elements for w in found)
        elif name not in _FREE:
            reads = name.startswith(("reduce", "cum", "arg"))
            variables = equation.invars[:1] if reads else equation.outvars
            floating = [v.aval for v in variables if jnp.issubdtype(getattr(v.aval, "dtype", int), jnp.floating)]
            elements += sum(a.size for a in floating)
    return Work(products, elements)


def _inner(params: Any) -> Iterator[Any]:
    """The programs within an equation, those of derivative rules left out."""
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


def bytes_of(*trees: Any) -> int:
    """Bytes of all arrays."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(trees))


def peak_products(dtype: Any = jnp.float32, *, size: int, seconds: float) -> float:
    """Floating-point operations a second of a large square matrix product, the best of five turns."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(a, a))
    return 2 * size**3 / min(_calls(lambda: multiply(a, a), seconds) for _ in range(5))


def peak_bytes(*, size: int, seconds: float) -> float:
    """Bytes read and written a second by adding one to a large array of `size` numbers, the best of five turns."""
    x = jnp.zeros(size, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    jax.block_until_ready(add(x))
    return 8 * size / min(_calls(lambda: add(x), seconds) for _ in range(5))


def _calls(call: Callable[[], Any], seconds: float) -> float:
    """Seconds a call when several are in flight, as in training, so that launching them is hidden."""

    def several() -> None:
        jax.block_until_ready([call() for _ in range(8)])

    return seconds_per_call(several, seconds / 5) / 8


def peaks(*, seconds: float, small: bool = False) -> dict[str, float]:
    """The device's measured peak rates: "float32" (and "bfloat16") operations a second, and "bytes" a second."""
    accelerator = jax.default_backend() != "cpu"
    side, length = (256, 2**18) if small else (8192, 2**28) if accelerator else (2048, 2**25)
    formats = {"float32": jnp.float32, **({"bfloat16": jnp.bfloat16} if accelerator else {})}
    rates = {name: peak_products(dtype, size=side, seconds=seconds) for name, dtype in formats.items()}
    return {**rates, "bytes": peak_bytes(size=length, seconds=seconds)}
