"""Weight selection: a narrower and shallower network that starts with a part of a trained one's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.keys import fold_name
from jaxkd.models.axes import Axes, channel_counts, leaves_of
from jaxkd.models.inherit import is_fresh
from jaxkd.types import Variables, as_variables, leaf_name

Choose: TypeAlias = Callable[[str, int, int], Any]
"""(name of channels, number N of them, number n that is wanted) -> numbers of n channels, ascending."""


def evenly(name: str, available: int, wanted: int) -> np.ndarray:
    """Channels at even distances: uniform element selection.

    floor(i N / n) for i = 0..n-1

    Where n divides N it is every (N / n)-th channel, as in the authors' code. Elsewhere that code rounds n numbers from
    0 to N, of which the last is no channel any more; these stay below N.

    Args:
      name: Name of the channels; all names are treated alike.
      available: N.
      wanted: n.

    Returns:
      int [n].
    """
    return np.arange(wanted) * available // wanted


def first(name: str, available: int, wanted: int) -> np.ndarray:
    """The first channels: consecutive selection.

    Args:
      name: Name of the channels; all names are treated alike.
      available: N.
      wanted: n.

    Returns:
      int [n].
    """
    return np.arange(wanted)


def at_random(key: jax.Array) -> Choose:
    """Channels drawn at random, the same ones wherever a name stands: random selection with consistency.

    Args:
      key: Typed PRNG key [].

    Returns:
      A function for `select`.
    """

    def choose(name: str, available: int, wanted: int) -> np.ndarray:
        return np.sort(np.asarray(jax.random.permutation(fold_name(key, name), available))[:wanted])

    return choose


def by_importance(scores: Mapping[str, Any], axes: Axes, own_axes: Axes) -> Choose:
    """The most important channels; of attentions the most important heads, and the channels that are so inside them.

    A head's importance is the L2 norm of its values' scores. Heads are whole where the student's are as wide.

    Args:
      scores: Name of channels -> their importance [N], as `weight_norms` and `mean_activations` measure it.
      axes: Axes of the trained network.
      own_axes: Axes of the student.

    Returns:
      A function for `select`.

    Raises:
      ValueError: By that function, if there are no scores of some channels, or the student's heads do not fit: it has
        more or wider ones, or narrower ones whose order matters.
    """
    of_name = {name: heads for heads in axes.heads for name in (heads.query_key, heads.value)}
    own = {heads.value: heads.number for heads in own_axes.heads}

    def choose(name: str, available: int, wanted: int) -> np.ndarray:
        for needed in (name, *((of_name[name].value,) if name in of_name else ())):
            shape = np.shape(scores[needed]) if needed in scores else None
            if shape != (available,):
                found = "are missing" if shape is None else f"have shape {shape}"
                raise ValueError(f"scores of the {available} channels {needed!r} {found}: measure this network.")
        if name not in of_name:
            return _largest(np.asarray(scores[name]), wanted)
        heads = of_name[name]
        count = own.get(heads.value, heads.number)
        width, wide = wanted // count, available // heads.number
        if count > heads.number or width > wide or (heads.ordered and width != wide):
            turned = " in an order of their own" if heads.ordered else ""
            raise ValueError(
                f"{heads.value} has {heads.number} heads of {wide} channels{turned}, but the student {count} of "
                f"{width}: give it no more heads and no wider ones{', of the same width' if turned else ''}."
            )
        values = np.asarray(scores[heads.value]).reshape(heads.number, wide)
        chosen = _largest(np.linalg.norm(values, axis=1), count)
        inside = np.asarray(scores[name]).reshape(heads.number, wide)
        return np.concatenate([head * wide + _largest(inside[head], width) for head in chosen])

    return choose


def select(
    own: Variables, trained: Variables, axes: Axes, choose: Choose = evenly, *, fresh: str | None = None
) -> Variables:
    """Variables of a narrower and shallower network, selected from those of a trained one of its family.

    w_student = w_teacher[I_1, I_2, ...], the same channels I of one name in all arrays

    Of more blocks than the student has the first ones are taken; `take_blocks` and `fuse_blocks` make others of them.
    A student of the teacher's own sizes gets the teacher's arrays. Batch norms' running statistics are selected too.

    Args:
      own: The student's own variables, as `init` makes them.
      trained: The teacher's.
      axes: Axes of the teacher: `resnet_axes(trained)`, `transformer_axes(trained, heads)`, `plain_axes(trained)`.
      choose: Chooses channels: `evenly`, `first`, or what `at_random` and `by_importance` give.
      fresh: Regular expression, searched in paths such as "head/kernel": these arrays stay the student's own, as the
        last layer has to for other classes. The authors leave it out always.

    Returns:
      Variables of the structure of `own`.

    Raises:
      ValueError: If an array has no counterpart, or one that is too small or differs in an axis without channels, such
        as classes, tokens, or pixels; the sentence names path and shapes.

    Reference:
      Xu et al., "Initializing Models with Larger Ones", ICLR 2024, https://arxiv.org/abs/2311.18823
    """
    own, trained = as_variables(own), as_variables(trained)
    known, counts = leaves_of(trained), channel_counts(trained, axes)
    kept = {path: x for path, x in leaves_of(own).items() if fresh is None or not is_fresh(fresh, path)}
    wanted: dict[str, int] = {}
    for path, leaf in kept.items():
        if path not in known:
            raise ValueError(f"{path} has shape {jnp.shape(leaf)}, but the trained network has none: {_ADVICE}.")
        wanted |= _wanted(path, jnp.shape(leaf), jnp.shape(known[path]), axes.names[path], wanted)
    chosen = {
        name: _checked(choose(name, counts[name], n), name, counts[name], n)
        for name, n in wanted.items()
        if n != counts[name]
    }

    def take(path: Sequence[Any], leaf: Any) -> Any:
        where = leaf_name(path)
        if where not in kept:
            return leaf
        found = known[where]
        for axis, name in enumerate(axes.names[where]):
            if name in chosen:
                found = jnp.take(found, chosen[name], axis=axis)
        return found

    return jax.tree_util.tree_map_with_path(take, own)


_ADVICE = "give a student of the same family that is no larger, or let this begin anew by `fresh=`"


def _wanted(
    path: str, own: tuple[int, ...], trained: tuple[int, ...], names: tuple[str | None, ...], before: Mapping[str, int]
) -> dict[str, int]:
    """Name -> number of channels of the student, of one array."""
    fits = len(own) == len(trained) and all(
        n <= N and before.get(name, n) == n if name else n == N for n, N, name in zip(own, trained, names, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{path} has shape {own}, which cannot be selected from {trained} of the trained network: {_ADVICE}."
        )
    return {name: n for n, name in zip(own, names, strict=True) if name}


def _checked(indices: Any, name: str, available: int, wanted: int) -> jax.Array:
    """Numbers of channels, as many different ones as wanted."""
    numbers = np.asarray(indices)
    if numbers.shape != (wanted,) or len(set(numbers.tolist())) != wanted or not set(numbers) <= set(range(available)):
        raise ValueError(
            f"`choose` gave {numbers.tolist()} for channels {name!r}: give {wanted} different numbers of "
            f"0..{available - 1}."
        )
    return jnp.asarray(numbers)


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the largest scores, ascending; of equal ones the first."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])
