"""Multilayer perceptron; features `hidden1..n` (before dropout) and `pooled` (the last of them)."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax

from jaxkd.models.adapters import from_linen
from jaxkd.models.layers import Dense
from jaxkd.types import Model, Outputs


class MLP(nn.Module):
    """Multilayer perceptron: dense layers with ReLU on the flattened input.

    Attributes:
      num_classes: K.
      hidden: Widths of the hidden layers.
      dropout: Rate of dropout after each hidden layer.
    """

    num_classes: int
    hidden: Sequence[int] = (128,)
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Images [B, ...] -> Outputs with logits [B, K]."""
        x = pooled = x.reshape(x.shape[0], -1)
        features = {}
        for i, width in enumerate(self.hidden, 1):
            features[f"hidden{i}"] = pooled = nn.relu(Dense(width, name=f"dense{i}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        features["pooled"] = pooled
        return Outputs(Dense(self.num_classes, name="head")(x), features)


def mlp(num_classes: int, *, hidden: Sequence[int] = (128,), dropout: float = 0.0) -> Model:
    """Multilayer perceptron.

    Args:
      num_classes: K.
      hidden: Widths of the hidden layers.
      dropout: Rate of dropout after each hidden layer, 0..1.

    Returns:
      A model that reads `image` [B, ...] and returns logits [B, K].
    """
    return from_linen(MLP(num_classes, tuple(hidden), dropout))
