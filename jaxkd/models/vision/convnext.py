"""ConvNeXt, V1 and V2.

Features: `stem`, `stage1..4` (sums that no activation follows), and `pooled` (after the last norm).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.kernels.dense import gelu
from jaxkd.models.adapters import from_linen, rematerialised
from jaxkd.models.layers import Conv, classify, perceptron
from jaxkd.numerics import safe_norm
from jaxkd.types import Model, Outputs

_INIT = nn.initializers.truncated_normal(0.02)


class ResponseNorm(nn.Module):
    """Global response normalisation of ConvNeXt V2: channels compete by their norms over the image."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        scale = self.param("scale", nn.initializers.zeros_init(), x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])
        size = safe_norm(x, axis=(1, 2), keepdims=True)
        share = size / (jnp.mean(size, axis=-1, keepdims=True) + 1e-6)
        return x + (bias[None, None, None] + scale[None, None, None] * (x * share))


class Block(nn.Module):
    """A depthwise 7x7 convolution, layer norm, a two-layer perceptron on each pixel, a trained scale, a shortcut.

    Attributes:
      response_norm: Whether the perceptron has a response norm inside, in place of the scale at its end (V2).
      epsilon: Added to the variance in the norm.
      activation: Of the perceptron.
    """

    response_norm: bool
    epsilon: float
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        width = x.shape[-1]
        y = Conv(width, (7, 7), padding=3, feature_group_count=width, kernel_init=_INIT, name="conv")(x)
        y = nn.LayerNorm(epsilon=self.epsilon, name="norm")(y)
        if self.response_norm:
            return x + perceptron(y, _INIT, activation=self.activation, inside=ResponseNorm(name="response_norm"))
        gamma = self.param("gamma", nn.initializers.constant(1e-6), (width,))
        return x + perceptron(y, _INIT, activation=self.activation) * gamma[None, None, None]


class ConvNeXt(nn.Module):
    """ConvNeXt: four stages of blocks, with a norm and a 2x2 convolution of stride 2 between them.

    Attributes:
      num_classes: K.
      blocks: Blocks of each stage.
      widths: Channels of each stage.
      response_norm: As in `Block`.
      epsilon: Added to the variance in all norms.
      activation: As in `Block`.
      remat: Whether the backward pass computes each stage again.
    """

    num_classes: int
    blocks: Sequence[int]
    widths: Sequence[int]
    response_norm: bool = False
    epsilon: float = 1e-6
    activation: Callable[[jax.Array], jax.Array] = gelu
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Images [B, H, W, C] -> Outputs with logits [B, K]."""
        x = Conv(self.widths[0], (4, 4), 4, padding="VALID", kernel_init=_INIT, name="stem_conv")(x)
        features = {"stem": (x := nn.LayerNorm(epsilon=self.epsilon, name="stem_norm")(x))}
        for number, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True), 1):

            def stage(
                self: ConvNeXt, x: jax.Array, number: int = number, count: int = count, width: int = width
            ) -> jax.Array:
                if number > 1:
                    x = nn.LayerNorm(epsilon=self.epsilon, name=f"stage{number}_norm")(x)
                    name = f"stage{number}_conv"
                    x = Conv(width, (2, 2), 2, padding="VALID", kernel_init=_INIT, name=name)(x)
                for i in range(count):
                    name = f"stage{number}_block{i + 1}"
                    x = Block(self.response_norm, self.epsilon, self.activation, name=name)(x)
                return x

            features[f"stage{number}"] = x = rematerialised(stage, self.remat)(self, x)
        x = nn.LayerNorm(epsilon=self.epsilon, name="norm")(jnp.mean(x, axis=(1, 2)))
        features["pooled"] = x
        return Outputs(classify(x, self.num_classes, kernel_init=_INIT), features)


def convnext(
    num_classes: int,
    *,
    blocks: Sequence[int] = (3, 3, 9, 3),
    widths: Sequence[int] = (96, 192, 384, 768),
    response_norm: bool = False,
    epsilon: float = 1e-6,
    activation: Callable[[jax.Array], jax.Array] = gelu,
    remat: bool = False,
) -> Model:
    """ConvNeXt; with the defaults ConvNeXt-tiny.

    Args:
      num_classes: K.
      blocks: Blocks of each stage.
      widths: Channels of each stage.
      response_norm: Whether perceptrons have a global response norm inside, in place of a scale at their end: V2.
      epsilon: Added to the variance in all norms.
      activation: Of the perceptrons.
      remat: Whether the backward pass computes each stage again instead of keeping its activations.

    Returns:
      A model that reads `image` [B, H, W, C], 32 pixels or more, and returns logits [B, K].

    Reference:
      Liu et al., "A ConvNet for the 2020s", CVPR 2022, https://arxiv.org/abs/2201.03545; Woo et al., "ConvNeXt V2:
      Co-designing and Scaling ConvNets with Masked Autoencoders", CVPR 2023, https://arxiv.org/abs/2301.00808
    """
    return from_linen(ConvNeXt(num_classes, tuple(blocks), tuple(widths), response_norm, epsilon, activation, remat))
