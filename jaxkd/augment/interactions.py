"""Items drawn for each user of a batch: one that was chosen, and some that were not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.types import Batch


def draw_items(*, seed: int, negatives: int = 1) -> Callable[[Batch], dict[str, Any]]:
    """Items of each user, whose draw depends on (seed, id, view) alone, so that each epoch has its own.

    key = fold_in(fold_in(key(seed), id), view)

    Args:
      seed: Seed of the draws.
      negatives: Number of items that were not chosen.

    Returns:
      Batch -> batch with `item`, int32 [B], one of the items that `seen` [B, I] marks, and `negatives`, int32
      [B, negatives], some of the others, which may repeat; each -1 for a user without such items. `id` and `view` are
      integers [B].

    Raises:
      ValueError: If fewer than one negative is asked for; by the returned function, if a field is missing.
    """
    if negatives < 1:
        raise ValueError(f"{negatives} negatives are to be drawn: give at least 1.")

    def one(key: jax.Array, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, rest = jax.random.split(key)
        chosen = seen.astype(bool)
        return _nth(first, chosen, ()), _nth(rest, ~chosen, (negatives,))

    def draw(batch: Batch) -> dict[str, Any]:
        for field in ("seen", "id", "view"):
            if field not in batch:
                raise ValueError(f"the batch has no {field!r}, only {sorted(batch)}: give a source of interactions.")
        root = jax.random.key(seed)
        keys = jax.vmap(lambda i, v: jax.random.fold_in(jax.random.fold_in(root, i), v))(batch["id"], batch["view"])
        item, others = jax.vmap(one)(keys, jnp.asarray(batch["seen"]))
        return {**batch, "item": item, "negatives": others}

    return draw


def _nth(key: jax.Array, mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Numbers of true entries of a mask [I], drawn evenly; -1 if it has none."""
    reached = jnp.cumsum(mask.astype(jnp.int32))
    rank = jax.random.randint(key, shape, 0, jnp.maximum(reached[-1], 1))
    return jnp.where(reached[-1] > 0, jnp.searchsorted(reached, rank, side="right"), -1).astype(jnp.int32)
