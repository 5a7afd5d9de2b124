"""Matching of neurons: channels of one network reordered so that they do what those of another one do.

Networks that were trained from different beginnings have their channels in different orders, so that the mean of their
weights is no network. Reordered, one computes what it did before, and the mean begins to make sense:

    axes = models.resnet_axes(first)
    matched = models.take_channels(second, axes, models.match_weights(first, second, axes))
    fused = models.reestimate_statistics(model, models.average([first, matched]), batches)

Reference:
  Ainsworth, Hayase, Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries", ICLR 2023,
  https://arxiv.org/abs/2209.04836; Jordan et al., "REPAIR: REnormalizing Permuted Activations for Interpolation
  Repair", ICLR 2023, https://arxiv.org/abs/2211.08403, for the running statistics
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.models.axes import Axes, Heads, channel_counts, leaves_of
from jaxkd.models.importance import captured
from jaxkd.types import Batch, Model, Variables

Orders: TypeAlias = dict[str, np.ndarray]
"""Name of channels -> their numbers in their new order, for `take_channels`."""


def match_weights(target: Variables, variables: Variables, axes: Axes, *, rounds: int = 100) -> Orders:
    """Orders of channels in which a network's weights are closest to another one's.

    argmax over permutations P of sum_arrays <w_target, P(w)>, one kind of channels after the other by the Hungarian
    method, until nothing improves

    The authors begin with the given order. Here each kind is first matched by those arrays alone whose other axes are
    matched already, from the inputs on: a reordered copy is then found exactly. Heads are matched as wholes, and the
    channels inside each pair of heads, unless their order matters.

    Args:
      target: The network that stays as it is.
      variables: The other one, of the same shapes.
      axes: The axes of both.
      rounds: Largest number of rounds over all kinds of channels.

    Returns:
      Name of channels -> numbers, for `take_channels(variables, axes, ...)`.

    Raises:
      ValueError: If the networks differ in shape.
    """
    counts, pairs = channel_counts(variables, axes), _pairs(target, variables)
    used: dict[str, list[tuple[str, int]]] = {name: [] for name in counts}
    for path in pairs:
        for axis, name in enumerate(axes.names[path]):
            if name is not None:
                used[name].append((path, axis))
    orders = {name: np.arange(count) for name, count in counts.items()}

    def profit(name: str, known: set[str]) -> np.ndarray:
        """<w_target at channel i, w at channel j>, [N, N], over arrays whose other axes are known."""
        total = np.zeros((counts[name], counts[name]))
        for path, axis in used[name]:
            others = {i: other for i, other in enumerate(axes.names[path]) if other is not None and i != axis}
            if known.issuperset(others.values()):
                a, b = pairs[path]
                for i, other in others.items():
                    b = np.take(b, orders[other], axis=i)
                a, b = (np.moveaxis(x, axis, 0).reshape(counts[name], -1) for x in (a, b))
                total += a @ b.T
        return total

    kinds, known = _kinds(counts, axes), set[str]()
    for names, solve in kinds:
        profits = [profit(name, known) for name in names]
        orders |= dict(zip(names, solve(*profits), strict=True))
        known |= set(names)
    for _ in range(rounds):
        moved = False
        for names, solve in kinds:
            profits = [profit(name, known) for name in names]
            found = solve(*profits)
            before, after = (
                sum(p[np.arange(len(p)), order].sum() for p, order in zip(profits, some, strict=True))
                for some in ([orders[name] for name in names], found)
            )
            if after > before + 1e-9 * abs(before):
                orders, moved = orders | dict(zip(names, found, strict=True)), True
        if not moved:
            break
    return orders


def match_activations(
    model: Model, target: Variables, variables: Variables, axes: Axes, batches: Iterable[Batch]
) -> Orders:
    """Orders of channels in which a network's activations correlate most with another one's.

    argmax over permutations P of sum_c corr(y_target_c, P(y)_c)  for the outputs y of dense layers and convolutions

    Args:
      model: The network, of Linen modules.
      target: Variables of the one that stays as it is.
      variables: Variables of the other one.
      axes: The axes of both.
      batches: Prepared batches.

    Returns:
      As of `match_weights`.

    Raises:
      ValueError: If the networks differ in shape, there is no batch, or no layer of Linen makes some of the channels.
    """
    counts = channel_counts(variables, axes)
    _pairs(target, variables)

    def moments(target: Variables, variables: Variables, batch: Batch) -> dict[str, tuple[jax.Array, ...]]:
        sides = [captured(model, side, batch)[1] for side in (target, variables)]
        found: dict[str, tuple[jax.Array, ...]] = {}
        for path in sides[0]:
            if axes.names.get(path, (None,))[-1] is not None:
                a, b = (side[path].reshape(-1, side[path].shape[-1]) for side in sides)
                found[path] = (a.mean(0), b.mean(0), (a * a).mean(0), (b * b).mean(0), a.T @ b / len(a))
        return found

    program = jax.jit(moments)
    seen = [jax.device_get(program(target, variables, dict(batch))) for batch in batches]
    profits: dict[str, np.ndarray] = {}
    for path in seen[0] if seen else ():
        a, b, aa, bb, ab = (
            np.mean(x, axis=0, dtype=np.float64) for x in zip(*(one[path] for one in seen), strict=True)
        )
        scale = np.sqrt(np.outer(np.maximum(aa - a * a, 0), np.maximum(bb - b * b, 0)))
        correlation = np.divide(ab - np.outer(a, b), scale, out=np.zeros_like(ab), where=scale > 0)
        name = axes.names[path][-1] or ""
        profits[name] = profits.get(name, 0) + correlation
    missing = [name for name in counts if name not in profits]
    if missing:
        why = "there is no batch" if not seen else f"no dense layer or convolution of Linen makes {missing[0]!r}"
        raise ValueError(f"{why}: give batches and a network of Linen modules.")
    orders: Orders = {}
    for names, solve in _kinds(counts, axes):
        orders |= dict(zip(names, solve(*(profits[name] for name in names)), strict=True))
    return orders


def _pairs(target: Variables, variables: Variables) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Params of both networks by their paths, in float64."""
    sides = [leaves_of(target), leaves_of(variables)]
    for path in sides[0].keys() | sides[1].keys():
        shapes = [jnp.shape(side[path]) if path in side else None for side in sides]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path} has shape {shapes[0]} in one network and {shapes[1]} in the other: give two alike."
            )
    paths = [path for path in sides[1] if path.startswith("params/")]
    return {path: tuple(np.asarray(side[path], np.float64) for side in sides) for path in paths}  # type: ignore[misc]


Solve: TypeAlias = Callable[..., tuple[np.ndarray, ...]]
"""Profits [N, N], one for each name that is matched together -> orders."""


def _kinds(counts: Mapping[str, int], axes: Axes) -> list[tuple[tuple[str, ...], Solve]]:
    """Names of channels that are matched together, and how: both kinds of an attention's, and each other by itself."""
    kinds: list[tuple[tuple[str, ...], Solve]] = []
    heads = {heads.query_key: heads for heads in axes.heads}
    values = {heads.value for heads in axes.heads}
    for name in counts:
        if name in heads:
            kinds.append(((name, heads[name].value), _attention(heads[name])))
        elif name not in values:
            kinds.append(((name,), lambda profit: (_assign(profit),)))
    return kinds


def _attention(heads: Heads) -> Solve:
    """Matches heads as wholes, and the channels inside each pair of them."""

    def solve(query_key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, ...]:
        A, d = heads.number, len(value) // heads.number
        still = np.arange(d)
        total, inside = np.zeros((A, A)), np.zeros((2, A, A, d), int)
        for i in range(A):
            for j in range(A):
                for kind, profit in enumerate((query_key, value)):
                    block = profit[i * d : (i + 1) * d, j * d : (j + 1) * d]
                    order = still if heads.ordered and not kind else _assign(block)
                    total[i, j] += block[still, order].sum()
                    inside[kind, i, j] = order
        to = _assign(total)
        return tuple(np.concatenate([to[i] * d + inside[kind, i, to[i]] for i in range(A)]) for kind in range(2))

    return solve


def _assign(profit: np.ndarray) -> np.ndarray:
    """Column of each row with the largest total profit: the Hungarian method."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(profit, maximize=True)[1]
