"""Networks of distillation experts: several students' projections, of which a selector chooses one for each row."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.keys import fold_name
from jaxkd.objectives.networks.core import Network, Shape, dense_params
from jaxkd.types import PyTree


def experts(count: int = 5) -> Network:
    """DE's experts and their selector: a mixture of small projections, weighted by the teacher's own vector.

    sum_m s_m E_m(h_s),  E_m = two linear maps with a ReLU between them, of width (Ds + Dt) / 2
    s = softmax( (log softmax(W h_t + b) + g) / tau ),  g of Gumbel's distribution

    Args:
      count: Number of experts M.

    Returns:
      A network with parameters `experts` (kernels and biases stacked [M, ...]) and `selector`. Its `apply` takes the
      params, the student's vectors [B, Ds], the teacher's [B, Dt], tau > 0, and a key or None for no g; it returns
      [B, Dt].

    Raises:
      ValueError: If there is no expert.

    Reference:
      Kang, Hwang, Kweon, Yu, "DE-RRD: A Knowledge Distillation Framework for Recommender System", CIKM 2020,
      https://arxiv.org/abs/2012.04357
    """
    if count < 1:
        raise ValueError(f"there are {count} experts: give at least 1.")

    def init(key: jax.Array, own: Shape, other: Shape) -> PyTree:
        hidden = (own[-1] + other[-1]) // 2

        def expert(key: jax.Array) -> PyTree:
            first, second = jax.random.split(key)
            return [dense_params(first, own[-1], hidden), dense_params(second, hidden, other[-1])]

        each = jax.vmap(expert)(jax.random.split(fold_name(key, "experts"), count))
        return {"experts": each, "selector": dense_params(fold_name(key, "selector"), other[-1], count)}

    def apply(params: PyTree, x: ArrayLike, teacher: ArrayLike, tau: ArrayLike, key: jax.Array | None) -> jax.Array:
        s, t = numerics.promote(x, teacher)
        (first, second), selector = params["experts"], params["selector"]
        hidden = jnp.einsum("bd,mdh->bmh", s, first["kernel"].astype(s.dtype))
        hidden = jax.nn.relu(hidden + first["bias"].astype(s.dtype)[None])
        each = jnp.einsum("bmh,mht->bmt", hidden, second["kernel"].astype(s.dtype))
        each = each + second["bias"].astype(s.dtype)[None]
        log_p = jax.nn.log_softmax(t @ selector["kernel"].astype(t.dtype) + selector["bias"].astype(t.dtype)[None])
        noise: Any = 0 if key is None else jax.random.gumbel(key, log_p.shape, log_p.dtype)
        chosen = jax.nn.softmax((log_p + noise) / jnp.asarray(tau, log_p.dtype), axis=-1)
        return jnp.einsum("bm,bmt->bt", chosen, each)

    return Network(init, apply)
