"""Multilayer perceptrons of a few hundred parameters for rows of tables; features as those of `models.vision.mlp`."""

from __future__ import annotations

from collections.abc import Sequence

from jaxkd.models.adapters import from_linen
from jaxkd.models.vision.mlp import MLP
from jaxkd.types import Model


def table_mlp(num_outputs: int, *, hidden: Sequence[int] = (8, 8), dropout: float = 0.0) -> Model:
    """Multilayer perceptron of the encoded columns of a table.

    Args:
      num_outputs: K classes, D numbers, or 1 for the one logit of two classes.
      hidden: Widths of the hidden layers; (128, 128) of 10 columns is 10-128-128-1.
      dropout: Rate of dropout after each hidden layer, 0..1.

    Returns:
      A model that reads `columns` [B, D] and returns logits [B, K], with the features `hidden1..n` and `pooled`.
    """
    return from_linen(MLP(num_outputs, tuple(hidden), dropout), inputs=("columns",))
