"""Products and activations of dense layers, in the forms that compile best."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def by_matrices(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, *, precision: Any = None) -> jax.Array:
    """`lax.dot_general` of the last axis of x and the first of the kernel, with all other axes of x in one."""
    del dimension_numbers  # always these
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return jnp.dot(flat, kernel, precision=precision).reshape(*x.shape[:-1], kernel.shape[1])


def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), Phi the normal distribution's function, from the error function as PyTorch has it.

    `flax.linen.gelu` takes its complement, which is more exact where the result is next to 0, but which XLA computes
    piece by piece, in three times the time on CPUs. Below float32 that would show, so it is computed in float32.

    Args:
      x: Floating, of any shape.

    Returns:
      Of x's shape and dtype.
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * y * (1 + lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)
