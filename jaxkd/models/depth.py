"""Shallower networks: some blocks of a deeper one, or the means of neighbouring blocks."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from jaxkd.models.soups import mean_of_trees
from jaxkd.types import PyTree, Variables, as_variables

_BLOCK = re.compile(r"(?:(.+)_)?block(\d+)")

Groups: TypeAlias = Sequence[Sequence[int]] | Mapping[str, Sequence[Sequence[int]]]
"""Numbers of the blocks of each group; for networks of several stages: name of the stage -> its groups."""


def take_blocks(variables: Variables, blocks: Sequence[int] | Mapping[str, Sequence[int]]) -> Variables:
    """Variables of a shallower network: some blocks of a deeper one, and all else as it is.

    `take_blocks(teacher_variables, (1, 3, 5))` starts a student of three blocks, otherwise of the teacher's form, from
    every second block of six, as DistilBERT was. `objectives.uniform_layers` and `last_layers` give such numbers, and
    `range(3)` the first ones. `take_blocks(resnet20, {"stage1": (1, 3), "stage2": (1, 2), "stage3": (1, 3)})` starts a
    ResNet-14. Optimizers may update the copies; the arrays are the same ones.

    Args:
      variables: Those of a network of this library whose blocks are called block0, block1, ..., or in each stage
        stage1_block1, stage1_block2, ...
      blocks: Numbers of the blocks to keep, in their new order, as they are in the names; for networks of several
        stages: name of the stage -> numbers. Stages that are not named stay as they are.

    Returns:
      The student's variables.

    Raises:
      ValueError: If there are no blocks, no such ones or no such stage, or one is asked for twice; or if the first
        block of a stage would be another than before, although it alone changes the shape.
    """
    stages = blocks if isinstance(blocks, Mapping) else {"": blocks}
    for stage, numbers in stages.items():
        wanted = [int(number) for number in numbers]
        if not wanted or len(set(wanted)) != len(wanted):
            shown = f"{stage}: {tuple(numbers)}" if stage else tuple(numbers)
            raise ValueError(f"blocks={shown} should be different numbers, such as (1, 3, 5).")
    groups = {stage: [[int(number)] for number in numbers] for stage, numbers in stages.items()}
    return _regroup(as_variables(variables), groups)


def fuse_blocks(variables: Variables, groups: Groups) -> Variables:
    """Variables of a shallower network, whose blocks are the means of groups of a deeper one's blocks.

    theta_m = mean of theta_i over the blocks i of group m, in float64 and rounded once: equal blocks give themselves

    Args:
      variables: As for `take_blocks`.
      groups: Numbers of the blocks of each group, such as `((0, 1), (2, 3))` or, for networks of several stages,
        `{"stage1": ((1, 2),), "stage2": ((1,), (2, 3))}`. Blocks in no group are left out; stages that are not named
        stay as they are.

    Returns:
      The student's variables.

    Raises:
      ValueError: As for `take_blocks`; or if blocks of a group differ in shape, as the first one of a stage does.
    """
    stages = groups if isinstance(groups, Mapping) else {"": groups}
    numbers = {stage: [[int(number) for number in group] for group in each] for stage, each in stages.items()}
    for each in numbers.values():
        flat = [number for group in each for number in group]
        if not flat or not all(each) or len(set(flat)) != len(flat):
            raise ValueError(f"groups={groups} should hold different numbers, such as ((0, 1), (2, 3)).")
    return _regroup(as_variables(variables), numbers, fused=True)


def neighbours(total: int, count: int, *, begin: int = 0) -> tuple[tuple[int, ...], ...]:
    """Groups of consecutive blocks, as equal in size as possible.

    Args:
      total: Number of blocks.
      count: Number of groups, 1..total.
      begin: Number of the first block.

    Returns:
      The groups: ((0, 1), (2, 3)) of 4 and 2.

    Raises:
      ValueError: If there are fewer blocks than groups, or none.
    """
    if not 1 <= count <= total:
        raise ValueError(f"{total} blocks cannot be put into {count} groups: choose 1..{total}.")
    edges = [begin + i * total // count for i in range(count + 1)]
    return tuple(tuple(range(a, b)) for a, b in itertools.pairwise(edges))


def _regroup(variables: Variables, groups: Mapping[str, list[list[int]]], *, fused: bool = False) -> Variables:
    """Variables in which each group of blocks has become one."""
    stages: set[str] = set()

    def shallower(tree: PyTree) -> PyTree:
        if not isinstance(tree, Mapping):
            return tree
        found = {str(name): match for name in tree if (match := _BLOCK.fullmatch(str(name)))}
        result = {name: shallower(x) for name, x in tree.items() if str(name) not in found}
        for stage in sorted({match[1] or "" for match in found.values()}):
            stack = {int(match[2]): tree[name] for name, match in found.items() if (match[1] or "") == stage}
            prefix = f"{stage}_block" if stage else "block"
            stages.add(stage)
            kept = groups.get(stage, [[number] for number in sorted(stack)])
            _check_stage(stage, stack, kept, fused)
            for number, group in enumerate(kept, min(stack)):
                blocks = [stack[i] for i in group]
                result[f"{prefix}{number}"] = mean_of_trees(blocks) if len(blocks) > 1 else blocks[0]
        return result

    params, state = shallower(variables.params), shallower(variables.state)
    if not stages:
        raise ValueError(f"the network has no blocks: its params are {', '.join(variables.params) or 'empty'}.")
    if not groups.keys() <= stages:
        asked = ", ".join(repr(stage) for stage in groups if stage) or "no stages"
        known = ", ".join(sorted(stages)) if stages != {""} else "none, so give numbers alone"
        raise ValueError(f"{asked} are asked for, but the network's stages are: {known}.")
    return Variables(params, state)


def _check_stage(stage: str, stack: Mapping[int, PyTree], groups: list[list[int]], fused: bool) -> None:
    """Raises ValueError unless there are such blocks, and the first one stays so if it is not like the rest."""
    low, high = min(stack), max(stack)
    asked = [number for group in groups for number in group]
    if not set(asked) <= stack.keys():
        shown = groups if fused else tuple(asked)
        where = f" of {stage}" if stage else ", the network's blocks"
        raise ValueError(f"{'groups' if fused else 'blocks'}={shown} should be among {low}..{high}{where}.")
    special = low in stack and any(stack[low].keys() != stack[number].keys() for number in stack)
    if special and (groups[0] != [low]):
        raise ValueError(
            f"{stage or 'the network'} begins with block {groups[0]}, but its block {low} alone has layers that the "
            f"others lack or lacks some of theirs: begin with {low} alone."
        )
