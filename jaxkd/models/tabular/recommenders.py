"""Recommenders: scores of all items for a user; features `user` and, of the items that a batch names, `item`.

score(u, i) = <user_u, item_i> + bias_i

They read `user` or `seen` of the sources of `jaxkd.data.ranking`. A batch's field `item`, integers [B], names an item
of each row, whose vector is then a feature [B, D], for losses on both sides of a recommender.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd.keys import fold_name, typed_key
from jaxkd.models.adapters import read_inputs
from jaxkd.models.misfits import check_sizes
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables, as_variables


def matrix_factorisation(users: int, items: int, *, width: int, popularity: ArrayLike | None = None) -> Model:
    """Matrix factorisation: a vector of each user and of each item, and a bias of each item.

    Args:
      users: Number of users U.
      items: Number of items I.
      width: Width of the vectors D.
      popularity: Number of interactions of each item [I], for biases that begin at its logarithm; at 0 if None.

    Returns:
      A model that reads `user`, integers [B], and returns logits [B, I]. A user outside 0..U-1 gives NaN.

    Raises:
      ValueError: If a size is not positive, or the popularity has another shape.

    Reference:
      Koren, Bell, Volinsky, "Matrix Factorization Techniques for Recommender Systems", IEEE Computer 2009,
      https://doi.org/10.1109/MC.2009.263
    """
    first = _first_biases(items, popularity)
    check_sizes(users=users, items=items, width=width)

    def init(key: jax.Array, batch: Batch) -> Variables:
        read_inputs(batch, ["user"], "the source")
        key = typed_key(key)
        sizes = {"user": users, "item": items}
        return Variables({**{n: _vectors(fold_name(key, n), s, width) for n, s in sizes.items()}, "bias": first()}, {})

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        params, state = as_variables(variables)
        (user,) = read_inputs(batch, ["user"], "the source")
        return _outputs(_rows(params["user"], user), params, batch), state

    return Model(init, apply)


def two_towers(
    items: int,
    *,
    width: int,
    dropout: float = 0.0,
    popularity: ArrayLike | None = None,
    item_features: ArrayLike | None = None,
) -> Model:
    """Two towers: a user's vector is a function of the items seen so far, an item's of its number and its features.

    user = tanh( sum_{i seen} E_i / sqrt(n) ),  item_i = V_i + F_i W

    With a softmax over the items it is a denoising autoencoder with one hidden layer. Users that were not trained on
    are no strangers to it, if they have seen items that were.

    Args:
      items: Number of items I.
      width: Width of the vectors D.
      dropout: Rate of dropout on the items seen, 0..1, in training.
      popularity: Number of interactions of each item [I], for biases that begin at its logarithm; at 0 if None.
      item_features: F, known features of the items [I, G], such as 0 or 1 for each genre; none if None.

    Returns:
      A model that reads `seen` [B, I], 1 for items seen so far, and returns logits [B, I].

    Raises:
      ValueError: If a size is not positive, or an array has another number of items.

    Reference:
      Liang, Krishnan, Hoffman, Jebara, "Variational Autoencoders for Collaborative Filtering" (its Mult-DAE), WWW 2018,
      https://arxiv.org/abs/1802.05814
    """
    first = _first_biases(items, popularity)
    check_sizes(items=items, width=width)
    known = None if item_features is None else np.asarray(item_features, np.float32)
    if known is not None and (known.ndim != 2 or len(known) != items):
        raise ValueError(f"item features have shape {known.shape} but there are {items} items: give [I, G].")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}: give a rate of at least 0 and below 1.")

    def init(key: jax.Array, batch: Batch) -> Variables:
        read_inputs(batch, ["seen"], "the source")
        key = typed_key(key)
        params = {name: _vectors(fold_name(key, name), items, width) for name in ("seen", "item")}
        if known is not None:
            params["features"] = jnp.zeros((known.shape[1], width))
        return Variables({**params, "bias": first()}, {})

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        params, state = as_variables(variables)
        (seen,) = read_inputs(batch, ["seen"], "the source")
        x = jnp.asarray(seen).astype(params["seen"].dtype)
        x = x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x, axis=-1, keepdims=True), 1))
        if train and dropout and key is not None:
            kept = jax.random.bernoulli(typed_key(key), 1 - dropout, x.shape)
            x = jnp.where(kept, x / (1 - dropout), 0)
        item = params["item"] if known is None else params["item"] + jnp.asarray(known) @ params["features"]
        return _outputs(jnp.tanh(x @ params["seen"]), {"item": item, "bias": params["bias"]}, batch), state

    return Model(init, apply)


def _outputs(user: jax.Array, params: PyTree, batch: Batch) -> Outputs:
    """Scores of all items; the users' vectors and those of the items that the batch names."""
    features = {"user": user}
    if "item" in batch:
        features["item"] = _rows(params["item"], batch["item"])
    return Outputs(user @ params["item"].T + params["bias"][None], features)


def _rows(table: jax.Array, rows: ArrayLike) -> jax.Array:
    """Rows of a table; NaN where there is no such row."""
    rows = jnp.asarray(rows)
    inside = (rows >= 0) & (rows < len(table))
    found = jnp.take(table, jnp.where(inside, rows, 0), axis=0)
    return found * jnp.where(inside, 1, jnp.nan).astype(table.dtype)[..., None]


def _vectors(key: jax.Array, rows: int, width: int) -> jax.Array:
    """A table of vectors that begin short, so that the biases speak first."""
    return 0.1 * width**-0.25 * jax.random.normal(key, (rows, width))


def _first_biases(items: int, popularity: ArrayLike | None) -> Callable[[], jax.Array]:
    """A function that makes the biases before the first step."""
    if popularity is None:
        return lambda: jnp.zeros(items)
    counts = np.asarray(popularity, np.float64)
    if counts.shape != (items,):
        raise ValueError(f"the popularity has shape {counts.shape} but there are {items} items: give one count each.")
    logs = np.log1p(counts)
    return lambda: jnp.asarray(logs - logs.mean(), jnp.float32)
