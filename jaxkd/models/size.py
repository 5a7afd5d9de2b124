"""The size of a model: parameters, bytes, operations."""

from __future__ import annotations

from typing import NamedTuple

import jax

from jaxkd.models.operations import count_work
from jaxkd.types import Batch, Model, Variables


def count_parameters(variables: Variables) -> int:
    """Number of trained scalars.

    Args:
      variables: A model's variables, or their abstract shapes.

    Returns:
      The sum of the sizes of all params.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(variables.params))


class Size(NamedTuple):
    """How large a model is.

    Attributes:
      parameters: Trained scalars.
      flops: Floating-point operations of the matrix products and convolutions that give a batch its logits; a
        multiplication and its addition are two, so papers that count pairs have half of it.
    """

    parameters: int
    flops: int


def size(model: Model, batch: Batch) -> Size:
    """Size of a model, without computing anything.

    Args:
      model: Any model.
      batch: A batch that it reads, or its shapes; the operations are those of all its examples.

    Returns:
      Parameters and operations.
    """
    like = jax.eval_shape(lambda b: dict(b), batch)
    variables = jax.eval_shape(model.init, jax.random.key(0), like)
    work = count_work(lambda v, b: model.apply(v, b, None, False)[0].logits, variables, like)
    return Size(count_parameters(variables), int(work.products))
