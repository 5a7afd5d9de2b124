"""A small plain convolutional network for small images; features `stage1..n` and `pooled`."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import from_linen
from jaxkd.models.layers import Conv, Dense, batch_norm
from jaxkd.types import Model, Outputs


class ConvNet(nn.Module):
    """Stages of two 3x3 convolutions with batch norm and ReLU, each of half the resolution, and a mean over space.

    Attributes:
      num_classes: K.
      widths: Channels of the stages.
      dropout: Rate of dropout before the head.
      axis_name: Axis over which batch norm takes its statistics together.
    """

    num_classes: int
    widths: Sequence[int] = (32, 64)
    dropout: float = 0.0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Images [B, H, W, C] -> Outputs with logits [B, K]."""
        features = {}
        for stage, width in enumerate(self.widths, 1):
            for i in (1, 2):
                stride = 2 if stage > 1 and i == 1 else 1
                x = Conv(width, (3, 3), stride, use_bias=False, name=f"stage{stage}_conv{i}")(x)
                name = f"stage{stage}_norm{i}"
                x = nn.relu(batch_norm(x, name, train=train, axis_name=self.axis_name))
            features[f"stage{stage}"] = x
        features["pooled"] = x = jnp.mean(x, axis=(1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Outputs(Dense(self.num_classes, name="head")(x), features)


def convnet(
    num_classes: int, *, widths: Sequence[int] = (32, 64), dropout: float = 0.0, axis_name: str | None = None
) -> Model:
    """Small plain convolutional network.

    Args:
      num_classes: K.
      widths: Channels of the stages; each stage after the first halves height and width.
      dropout: Rate of dropout before the head, 0..1.
      axis_name: `parallel.DATA` for batch norm over all devices under `pmap`; under `jit` it is so anyway.

    Returns:
      A model that reads `image` [B, H, W, C] and returns logits [B, K].
    """
    return from_linen(ConvNet(num_classes, tuple(widths), dropout, axis_name))
