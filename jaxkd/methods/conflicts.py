"""PCGrad and CAGrad: gradients of terms that pull the student in opposite directions, combined without the conflict.

    optimizer = optax.chain(pcgrad(), optax.adam(1e-3))
    term = objectives.weighted(label=objectives.from_labels(losses.cross_entropy), kd=(0.9, kd))

Both combine the gradients in the student's params; what terms own (projections) gets the plain sum. Where no two
gradients have a negative product, PCGrad is the plain step. `train.gradients.make_gradient_report` tells the cosines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.train.by_term import read_terms, tree_dot
from jaxkd.types import PyTree

_BISECTIONS = 40
_SWEEPS = 30


def pcgrad(*, seed: int = 0) -> optax.GradientTransformationExtraArgs:
    """Projecting conflicting gradients: each term's gradient loses its component against another one's.

    g_i <- g_i - min(0, <g_i, g_j>) / ||g_j||^2 g_j  for each j != i in random order,  update = sum_i g_i

    Args:
      seed: Of the random orders, which matter from three terms on.

    Returns:
      An optax transformation for `train.make_train_step`, in front of an optimizer.

    Raises:
      TermError: When traced, if the objective is no sum of terms.

    Reference:
      Yu, Kumar, Gupta, Levine, Hausman, Finn, "Gradient Surgery for Multi-Task Learning", NeurIPS 2020,
      https://arxiv.org/abs/2001.06782
    """
    return _combining(lambda gram, count: pcgrad_factors(gram, jax.random.fold_in(jax.random.key(seed), count)))


def cagrad(c: ArrayLike = 0.5) -> optax.GradientTransformationExtraArgs:
    """Conflict-averse gradient descent: the direction near the mean gradient that helps the worst term most.

    d = argmax_d min_i <g_i, d>  with  ||d - g_0|| <= c ||g_0||,  g_0 = (1 / n) sum_i g_i,  update = n d

    The factor n makes c = 0 the plain step.

    Args:
      c: At least 0; below 1 the mean loss still falls.

    Returns:
      An optax transformation for `train.make_train_step`, in front of an optimizer.

    Raises:
      ValueError: If c is negative.
      TermError: When traced, if the objective is no sum of terms.

    Reference:
      Liu, Liu, Jin, Stone, Liu, "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021,
      https://arxiv.org/abs/2110.14048
    """
    if not isinstance(c, jax.Array) and not np.all(np.asarray(c) >= 0):
        raise ValueError(f"c is {c}: give a radius of at least 0, in units of the mean gradient's norm.")
    return _combining(lambda gram, count: cagrad_factors(gram, c))


def _combining(factors: Callable[[jax.Array, jax.Array], jax.Array]) -> optax.GradientTransformationExtraArgs:
    """Transformation that sums the terms' gradients with factors (products [n, n], count) -> [n] in the student."""

    def init(params: PyTree) -> jax.Array:
        return jnp.zeros((), jnp.int32)

    def update(updates: PyTree, count: jax.Array, params: PyTree = None, **extra: Any) -> tuple[PyTree, jax.Array]:
        each, rest = read_terms(updates, extra)
        gradients = list(each.values())
        shared = [g["student"] for g in gradients]
        gram = jnp.stack([jnp.stack([tree_dot(a, b) for b in shared]) for a in shared])
        weights = factors(gram, count)

        def combined(rest: jax.Array, *g: jax.Array) -> jax.Array:
            return rest + sum(weights[i].astype(x.dtype) * x for i, x in enumerate(g))

        new = {name: jax.tree.map(lambda r, *g: r + sum(g), rest[name], *(g[name] for g in gradients)) for name in rest}
        new["student"] = jax.tree.map(combined, rest["student"], *shared)
        return new, optax.safe_increment(count)

    return optax.GradientTransformationExtraArgs(init, update)


def pcgrad_factors(gram: jax.Array, key: jax.Array) -> jax.Array:
    """Factors of the gradients in the sum of PCGrad.

    Args:
      gram: [n, n], the products <g_i, g_j>.
      key: Typed PRNG key of the orders.

    Returns:
      [n]; 1 where nothing conflicts.
    """
    n = gram.shape[0]

    def project(i: jax.Array, key: jax.Array) -> jax.Array:
        order = jax.random.permutation(key, n)

        def one(position: jax.Array, own: jax.Array) -> jax.Array:
            j = order[position]
            product, square = own @ gram[j], gram[j, j]
            against = (product < 0) & (i != j) & (square > 0)
            return own.at[j].add(-jnp.where(against, product / jnp.where(square > 0, square, 1), 0))

        return jax.lax.fori_loop(0, n, one, jax.nn.one_hot(i, n, dtype=gram.dtype))

    return jnp.sum(jax.vmap(project)(jnp.arange(n), jax.random.split(key, n)), axis=0)


def cagrad_factors(gram: jax.Array, c: ArrayLike) -> jax.Array:
    """Factors of the gradients in the direction of CAGrad, times the number of gradients.

    n d = sum_i (1 + n c ||g_0|| / ||g_w|| w_i) g_i,  w = argmin over the simplex of <g_w, g_0> + c ||g_0|| ||g_w||

    The minimum of this convex function is found by bisection of its slope, along each pair of weights in turn: exact
    for two terms.

    Args:
      gram: [n, n], the products <g_i, g_j>.
      c: At least 0.

    Returns:
      [n]; 1 for c = 0.
    """
    n = gram.shape[0]
    if n == 1:
        return jnp.ones(1, gram.dtype)
    largest = jnp.max(jnp.diagonal(gram))
    a = gram / jnp.where(largest > 0, largest, 1)
    mean, radius = jnp.mean(a, axis=1), jnp.asarray(c, a.dtype) * numerics.safe_sqrt(jnp.maximum(jnp.mean(a), 0))
    first, second = jnp.asarray(np.triu_indices(n, 1))

    def inverse_norm(w: jax.Array) -> jax.Array:
        square = w @ a @ w
        return jnp.where(square > 0, 1 / jnp.sqrt(jnp.where(square > 0, square, 1)), 0)

    def along(number: jax.Array, w: jax.Array) -> jax.Array:
        i, j = first[number % first.size], second[number % first.size]
        way = jax.nn.one_hot(i, n, dtype=a.dtype) - jax.nn.one_hot(j, n, dtype=a.dtype)

        def halve(_: jax.Array, between: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = between
            middle = (low + high) / 2
            at = w + middle * way
            rising = way @ (mean + radius * inverse_norm(at) * (a @ at)) > 0
            return jnp.where(rising, low, middle), jnp.where(rising, middle, high)

        low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (-w[i], w[j]))
        return w + (low + high) / 2 * way

    pairs = first.size * (1 if n == 2 else _SWEEPS)
    w = jax.lax.fori_loop(0, pairs, along, jnp.full(n, 1 / n, a.dtype))
    return 1 + n * radius * inverse_norm(w) * w
