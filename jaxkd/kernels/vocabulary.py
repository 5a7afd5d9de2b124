"""Gradients of a head over a large vocabulary, added block by block in the order that suits each back end."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.kernels.switch import is_plain

_ROWS = 128
"""Rows of a head's gradient that are added at a time; a product of its whole size would need a second head's memory."""

_COLUMNS = 1024
"""Columns that are added at a time on CPUs, so that they fit the cache. Elsewhere devices may shard the columns."""


class Pulled(NamedTuple):
    """Gradients with respect to the hidden states and to the head's matrix; a part that is not wanted is None."""

    hidden: Any
    kernel: Any


def _block(i: jax.Array, size: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Begin of a block, and which of its entries are not in the block before (the last block may overlap)."""
    begin = jnp.minimum(i * size, length - size)
    return begin, begin + jnp.arange(size) >= i * size


def _by_columns(total: Pulled, hidden: jax.Array, kernel: jax.Array, d_logits: jax.Array) -> Pulled:
    """Adds the gradients of one chunk, both products by blocks of the vocabulary."""
    size = min(_COLUMNS, kernel.shape[1])

    def add(i: jax.Array, total: Pulled) -> Pulled:
        begin, new = _block(i, size, kernel.shape[1])
        d_hidden, d_kernel = total
        d = jnp.where(new[None], jax.lax.dynamic_slice_in_dim(d_logits, begin, size, 1), 0)
        if d_hidden is not None:
            d_hidden = d_hidden + d @ jax.lax.dynamic_slice_in_dim(kernel, begin, size, 1).T
        if d_kernel is not None:
            block = jax.lax.dynamic_slice_in_dim(d_kernel, begin, size, 1) + hidden.T @ d
            d_kernel = jax.lax.dynamic_update_slice_in_dim(d_kernel, block, begin, 1)
        return Pulled(d_hidden, d_kernel)

    return jax.lax.fori_loop(0, -(-kernel.shape[1] // size), add, total)


def _by_rows(total: Pulled, hidden: jax.Array, kernel: jax.Array, d_logits: jax.Array) -> Pulled:
    """Adds the gradients of one chunk, the kernel's by blocks of the hidden size."""
    size = min(_ROWS, len(kernel))

    def add(i: jax.Array, d_kernel: jax.Array) -> jax.Array:
        begin, new = _block(i, size, len(kernel))
        h = jnp.where(new[:, None], jax.lax.dynamic_slice_in_dim(hidden.T, begin, size), 0)
        block = jax.lax.dynamic_slice_in_dim(d_kernel, begin, size) + h @ d_logits
        return jax.lax.dynamic_update_slice_in_dim(d_kernel, block, begin, 0)

    d_hidden, d_kernel = total
    return Pulled(
        None if d_hidden is None else d_hidden + d_logits @ kernel.T,
        None if d_kernel is None else jax.lax.fori_loop(0, -(-len(kernel) // size), add, d_kernel),
    )


def pull(start: Pulled, hidden: jax.Array, kernel: jax.Array, d_logits: jax.Array) -> Pulled:
    """Adds one chunk's part to the gradients of hidden states and of the head's matrix.

    Args:
      start: The sums so far; None where a gradient is not wanted.
      hidden: The chunk's hidden states [N, D].
      kernel: The head's matrix [D, K].
      d_logits: Gradient of the chunk's logits [N, K].

    Returns:
      The sums with this chunk in them.
    """
    if is_plain():
        return _by_rows(start, hidden, kernel, d_logits)
    return jax.lax.platform_dependent(start, hidden, kernel, d_logits, cpu=_by_columns, default=_by_rows)
