"""Bytes that a program moves, and peak rates of a device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from _timing import seconds_per_call


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
