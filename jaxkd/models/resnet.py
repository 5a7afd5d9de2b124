"""CIFAR residual networks of depth 6n + 2; features `stem`, `stage1..3` and `pooled`."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.convolution import Conv
from jaxkd.models.functional import bound, from_linen, rematerialised
from jaxkd.types import Model, Outputs


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes.

    Attributes:
      width: Output channels.
      stride: Stride of the first convolution.
      axis_name: Axis over which batch norm takes its statistics together.
    """

    width: int
    stride: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H / stride, W / stride, width]."""
        y = Conv(self.width, (3, 3), self.stride, padding=1, use_bias=False, name="conv1")(x)
        y = nn.relu(nn.BatchNorm(not train, momentum=0.9, axis_name=bound(self.axis_name), name="norm1")(y))
        y = Conv(self.width, (3, 3), padding=1, use_bias=False, name="conv2")(y)
        y = nn.BatchNorm(not train, momentum=0.9, axis_name=bound(self.axis_name), name="norm2")(y)
        if x.shape != y.shape:
            x = Conv(self.width, (1, 1), self.stride, use_bias=False, name="shortcut_conv")(x)
            x = nn.BatchNorm(not train, momentum=0.9, axis_name=bound(self.axis_name), name="shortcut_norm")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Stem and three stages of `blocks` residual blocks of 16, 32 and 64 channels (times `widen`).

    Attributes:
      num_classes: K.
      blocks: n of depth 6n + 2.
      widen: Factor on the channels of the stages.
      axis_name: Axis over which batch norm takes its statistics together.
      remat: Whether the backward pass computes each stage again.
    """

    num_classes: int
    blocks: int
    widen: int = 1
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Images [B, H, W, C] -> Outputs with logits [B, K]."""
        x = Conv(16, (3, 3), padding=1, use_bias=False, name="stem_conv")(x)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, axis_name=bound(self.axis_name), name="stem_norm")(x))
        features = {"stem": x}
        for number in (1, 2, 3):

            def stage(self: ResNet, x: jax.Array, number: int = number) -> jax.Array:
                for i in range(self.blocks):
                    stride = 2 if number > 1 and i == 0 else 1
                    width, name = 16 * self.widen * 2 ** (number - 1), f"stage{number}_block{i + 1}"
                    x = Block(width, stride, self.axis_name, name=name)(x, train)
                return x

            features[f"stage{number}"] = x = rematerialised(stage, self.remat)(self, x)
        features["pooled"] = x = jnp.mean(x, axis=(1, 2))
        return Outputs(nn.Dense(self.num_classes, name="head")(x), features)


def resnet(num_classes: int, *, depth: int, widen: int = 1, axis_name: str | None = None, remat: bool = False) -> Model:
    """A CIFAR residual network as a model.

    Args:
      num_classes: K.
      depth: 6n + 2: 8, 14, 20, 32, 44, 56 or 110.
      widen: Factor on the channels of the stages.
      axis_name: `parallel.DATA` for batch norm over all devices under `pmap`; under `jit` it is so anyway.
      remat: Whether the backward pass computes each stage again instead of keeping its activations: less memory, about
        a third more work.

    Returns:
      A model that reads `image` [B, H, W, C] and returns logits [B, K].

    Raises:
      ValueError: If the depth is not 6n + 2.

    Reference:
      He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"a CIFAR ResNet has depth 6n + 2 but depth is {depth}: choose 8, 14, 20, 32, 44, 56 or 110.")
    return from_linen(ResNet(num_classes, (depth - 2) // 6, widen, axis_name, remat))
