"""ConvNeXt.

Features: `stem`, `stage1..4` (sums that no activation follows), and `pooled` (after the last norm).
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import from_linen, rematerialised
from jaxkd.models.layers import Conv, classify, perceptron
from jaxkd.types import Model, Outputs

_INIT = nn.initializers.truncated_normal(0.02)


class Block(nn.Module):
    """A depthwise 7x7 convolution, layer norm, a two-layer perceptron on each pixel, a trained scale, a shortcut."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        width = x.shape[-1]
        y = Conv(width, (7, 7), padding=3, feature_group_count=width, kernel_init=_INIT, name="conv")(x)
        y = nn.LayerNorm(epsilon=1e-6, name="norm")(y)
        gamma = self.param("gamma", nn.initializers.constant(1e-6), (width,))
        return x + perceptron(y, _INIT) * gamma[None, None, None]


class ConvNeXt(nn.Module):
    """ConvNeXt: four stages of blocks, with a norm and a 2x2 convolution of stride 2 between them.

    Attributes:
      num_classes: K.
      blocks: Blocks of each stage.
      widths: Channels of each stage.
      remat: Whether the backward pass computes each stage again.
    """

    num_classes: int
    blocks: Sequence[int]
    widths: Sequence[int]
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Images [B, H, W, C] -> Outputs with logits [B, K]."""
        x = Conv(self.widths[0], (4, 4), 4, padding="VALID", kernel_init=_INIT, name="stem_conv")(x)
        features = {"stem": (x := nn.LayerNorm(epsilon=1e-6, name="stem_norm")(x))}
        for number, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True), 1):

            def stage(
                self: ConvNeXt, x: jax.Array, number: int = number, count: int = count, width: int = width
            ) -> jax.Array:
                if number > 1:
                    x = nn.LayerNorm(epsilon=1e-6, name=f"stage{number}_norm")(x)
                    name = f"stage{number}_conv"
                    x = Conv(width, (2, 2), 2, padding="VALID", kernel_init=_INIT, name=name)(x)
                for i in range(count):
                    x = Block(name=f"stage{number}_block{i + 1}")(x)
                return x

            features[f"stage{number}"] = x = rematerialised(stage, self.remat)(self, x)
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(jnp.mean(x, axis=(1, 2)))
        features["pooled"] = x
        return Outputs(classify(x, self.num_classes, kernel_init=_INIT), features)


def convnext(
    num_classes: int,
    *,
    blocks: Sequence[int] = (3, 3, 9, 3),
    widths: Sequence[int] = (96, 192, 384, 768),
    remat: bool = False,
) -> Model:
    """ConvNeXt; with the defaults ConvNeXt-tiny.

    Args:
      num_classes: K.
      blocks: Blocks of each stage.
      widths: Channels of each stage.
      remat: Whether the backward pass computes each stage again instead of keeping its activations.

    Returns:
      A model that reads `image` [B, H, W, C], 32 pixels or more, and returns logits [B, K].

    Reference:
      Liu et al., "A ConvNet for the 2020s", CVPR 2022, https://arxiv.org/abs/2201.03545
    """
    return from_linen(ConvNeXt(num_classes, tuple(blocks), tuple(widths), remat))
