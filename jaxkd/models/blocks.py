"""Blocks of transformers as functions, and networks whose blocks are computed by something else."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import flax.linen as nn
import jax

from jaxkd.types import Batch, Model, PyTree, Variables

Run: TypeAlias = Callable[..., Any]
"""(params, key | None, *arguments, **keywords) -> the results of a block."""

Replace: TypeAlias = Callable[..., Any]
"""(number, run, *arguments, **keywords) -> results in place of a block's."""

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


def block_runs(model: Model, variables: Variables, batch: Batch, path: str = _BLOCKS) -> dict[int, Run]:
    """The blocks of a network of Linen modules as pure functions, found on shapes alone.

    Args:
      model: The network.
      variables: Its variables, or their shapes.
      batch: A batch, or its shapes.
      path: Path of the blocks, without their numbers.

    Returns:
      Number -> function of the block.
    """
    found: dict[int, Run] = {}

    def note(number: int, run: Run, *arguments: Any, **keywords: Any) -> Any:
        found[number] = run
        return run.inside(*arguments, **keywords)  # type: ignore[attr-defined]

    with replaced_blocks(note, path):
        jax.eval_shape(lambda v, b: model.apply(v, b, None, False)[0], variables, dict(batch))
    return found


class _Run:
    """A block as a function, which may be called inside `lax.cond` and the like.

    Attributes:
      inside: The block as the network calls it, with the network's own params.
    """

    def __init__(self, module: nn.Module, inside: Callable[..., Any]) -> None:
        self._module, self.inside = module.clone(parent=None), inside

    def __call__(self, params: PyTree, key: jax.Array | None, *arguments: Any, **keywords: Any) -> Any:
        rngs = None if key is None else {"dropout": key}
        return self._module.apply({"params": params}, *arguments, rngs=rngs, **keywords)


@contextlib.contextmanager
def replaced_blocks(replace: Replace, path: str = _BLOCKS) -> Iterator[None]:
    """Context in which networks of Linen modules have their blocks computed by a function.

    Args:
      replace: (number, run, *arguments, **keywords) -> results; `run(params, key, *arguments, **keywords)` is the
        block.
      path: Path of the blocks, without their numbers.

    Yields:
      Nothing.
    """

    def intercept(inside: Callable[..., Any], arguments: Any, keywords: Any, context: Any) -> Any:
        match = re.fullmatch(rf"{re.escape(path)}(\d+)", "/".join(context.module.path))
        if context.method_name != "__call__" or match is None:
            return inside(*arguments, **keywords)
        return replace(int(match[1]), _Run(context.module, inside), *arguments, **keywords)

    with nn.intercept_methods(intercept):
        yield


def _at(params: PyTree, path: str) -> PyTree:
    for part in path.split("/"):
        params = params.get(part) if isinstance(params, dict) else None
    return params
