"""Blocks of transformers as functions, and networks whose blocks are computed by something else."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.types import Batch, Model, PyTree, Variables

Replace: TypeAlias = Callable[..., Any]
"""(number, block, *arguments, **keywords) -> results in place of those of a `Block`."""

_BLOCKS = "encoder/block"


def count_blocks(params: PyTree, path: str = _BLOCKS) -> int:
    """Number of blocks of a network.

    Args:
      params: Its params.
      path: Path of its blocks, without their numbers.

    Returns:
      How many there are.

    Raises:
      ValueError: If there is none at the path.
    """
    count = 0
    while (_at(params, f"{path}{count}")) is not None:
        count += 1
    if not count:
        known = ", ".join(sorted(params)) if isinstance(params, dict) else "no dict"
        raise ValueError(f"the params have no {path}0 but {known}: give a transformer, or the path of its blocks.")
    return count


def block_params(params: PyTree, number: int, path: str = _BLOCKS) -> PyTree:
    """Params of one block.

    Args:
      params: Those of the network.
      number: Its number.
      path: Path of the blocks, without their numbers.

    Returns:
      The params.
    """
    return _at(params, f"{path}{number}")


def find_blocks(model: Model, variables: Variables, batch: Batch, path: str = _BLOCKS) -> dict[int, Block]:
    """The blocks of a network of Linen modules as pure functions, found on shapes alone.

    Args:
      model: The network.
      variables: Its variables, or their shapes.
      batch: A batch, or its shapes.
      path: Path of the blocks, without their numbers.

    Returns:
      Number -> block.
    """
    found: dict[int, Block] = {}

    def note(number: int, block: Block, *arguments: Any, **keywords: Any) -> Any:
        found[number] = block
        return block.inside(*arguments, **keywords)

    with replaced_blocks(note, path):
        jax.eval_shape(lambda v, b: model.apply(v, b, None, False)[0], variables, dict(batch))
    return found


class Block:
    """A block as a pure function, which may be called inside `lax.cond` and the like.

    Args:
      module: The block.
      inside: The block as its network calls it, with the network's own params.
      given: Its arguments there.

    Attributes:
      inside: See above.
      shapes: Shapes of its arguments there.
    """

    def __init__(self, module: nn.Module, inside: Callable[..., Any], given: PyTree) -> None:
        self._module, self.inside, self.shapes = module.clone(parent=None), inside, jax.tree.map(jnp.shape, given)

    def __call__(self, params: PyTree, key: jax.Array | None, *arguments: Any, **keywords: Any) -> Any:
        """Results for other params, with the key of its dropout."""
        rngs = None if key is None else {"dropout": key}
        return self._module.apply({"params": params}, *arguments, rngs=rngs, **keywords)


@contextlib.contextmanager
def replaced_blocks(replace: Replace, path: str = _BLOCKS) -> Iterator[None]:
    """Context in which networks of Linen modules have their blocks computed by a function.

    Args:
      replace: (number, block, *arguments, **keywords) -> results in place of the block's.
      path: Path of the blocks, without their numbers.

    Yields:
      Nothing.
    """

    def intercept(inside: Callable[..., Any], arguments: Any, keywords: Any, context: Any) -> Any:
        match = re.fullmatch(rf"{re.escape(path)}(\d+)", "/".join(context.module.path))
        if context.method_name != "__call__" or match is None:
            return inside(*arguments, **keywords)
        return replace(int(match[1]), Block(context.module, inside, arguments), *arguments, **keywords)

    with nn.intercept_methods(intercept):
        yield


def _at(params: PyTree, path: str) -> PyTree:
    for part in path.split("/"):
        params = params.get(part) if isinstance(params, dict) else None
    return params
