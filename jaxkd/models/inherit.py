"""Initial variables of a network taken from a trained one, such as for other classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import jax

from jaxkd.types import PyTree, Variables, as_variables, leaf_name

_BLOCK = re.compile(r"block(\d+)")


def inherit(own: Variables, trained: Variables, *, fresh: str = r"(^|/)head") -> Variables:
    """Variables of a network with those of a trained one in all but the fresh layers.

    `inherit(models.init(student, key, batch), pretrained)` gives a student all pretrained layers but the last.

    Args:
      own: The network's own variables, as `init` makes them.
      trained: Those of a network that differs in the fresh layers only.
      fresh: Regular expression, searched in paths such as "head/kernel": these params and states stay its own.

    Returns:
      Variables of the structure of `own`.

    Raises:
      ValueError: If an inherited array has no counterpart or another shape (the sentence names path and shapes), or if
        `fresh` matches no path.
    """
    own, trained = as_variables(own), as_variables(trained)
    known = {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(trained)}
    paths = [leaf_name(path) for path, _ in jax.tree.leaves_with_path(own)]
    if not any(re.search(fresh, path.split("/", 1)[1]) for path in paths):
        raise ValueError(f"no path has {fresh!r}, so that nothing would begin anew: they are {', '.join(paths[:10])}.")

    def choose(path: tuple, leaf: jax.Array) -> jax.Array:
        name = leaf_name(path)
        if re.search(fresh, name.split("/", 1)[1]):
            return leaf
        if name not in known or known[name].shape != leaf.shape:
            found = f"has shape {known[name].shape}" if name in known else "does not exist"
            raise ValueError(
                f"{name} has shape {leaf.shape} but in the trained network {found}: give networks that differ in their "
                "fresh layers only."
            )
        return known[name]

    return jax.tree_util.tree_map_with_path(choose, own)


def take_blocks(variables: Variables, blocks: Sequence[int]) -> Variables:
    """Variables of a shallower transformer: some blocks of a deeper one, and all else as it is.

    `take_blocks(teacher_variables, (1, 3, 5))` starts a student of three blocks, otherwise of the teacher's form, from
    every second block of six, as DistilBERT was. Optimizers may update the copies; the arrays are the same ones.

    Args:
      variables: Those of any transformer of this library, whose blocks are called block0, block1, ...
      blocks: Numbers of the blocks to keep, from 0, which become block0, block1, ... in this order.

    Returns:
      The student's variables.

    Raises:
      ValueError: If there are no blocks, no such ones, or one is asked for twice.
    """
    variables, wanted = as_variables(variables), [int(number) for number in blocks]
    if not wanted or len(set(wanted)) != len(wanted):
        raise ValueError(f"blocks={tuple(blocks)} should be different numbers, such as (1, 3, 5).")
    stacks: list[int] = []

    def shallower(tree: PyTree) -> PyTree:
        if not isinstance(tree, Mapping):
            return tree
        numbers = {int(found[1]) for name in tree if (found := _BLOCK.fullmatch(str(name)))}
        if numbers == set(range(len(numbers))) and numbers:
            stacks.append(len(numbers))
            if not set(wanted) <= numbers:
                raise ValueError(f"blocks={tuple(blocks)} should be among 0..{len(numbers) - 1}, the network's blocks.")
            others = {name: x for name, x in tree.items() if not _BLOCK.fullmatch(str(name))}
            return {**others, **{f"block{i}": tree[f"block{number}"] for i, number in enumerate(wanted)}}
        return {name: shallower(x) for name, x in tree.items()}

    params, state = shallower(variables.params), shallower(variables.state)
    if not stacks:
        raise ValueError(f"the network has no blocks: its params are {', '.join(variables.params) or 'empty'}.")
    return Variables(params, state)
