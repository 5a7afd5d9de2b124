"""MobileNets V1 and V2.

Features: `stem`, `stage1..5` (V1) or `stage1..4` (V2), one for each size of the image, each `stage*_preact`, `last`
and `pooled`, its mean over the positions. V2's stages end in a linear layer, so that `stage*_preact` is `stage*`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import from_linen, rematerialised
from jaxkd.models.layers import classify, conv_norms
from jaxkd.types import Model, Outputs


class Group(NamedTuple):
    """Blocks of one width.

    Attributes:
      expand: Factor on the channels inside a block; 0 stands for a block without a first 1x1 convolution.
      width: Output channels.
      blocks: How many there are.
      stride: Stride of the first.
    """

    expand: int
    width: int
    blocks: int
    stride: int


_V1 = (Group(0, 64, 1, 1), Group(0, 128, 2, 2), Group(0, 256, 2, 2), Group(0, 512, 6, 2), Group(0, 1024, 2, 2))
_V2 = (
    Group(0, 16, 1, 1),
    Group(6, 24, 2, 2),
    Group(6, 32, 3, 2),
    Group(6, 64, 4, 2),
    Group(6, 96, 3, 1),
    Group(6, 160, 3, 2),
    Group(6, 320, 1, 1),
)
_V2_SMALL = (Group(1, 16, 1, 1), Group(6, 24, 2, 1), *_V2[2:])
_STAGES_V1 = ((0,), (1,), (2,), (3,), (4,))
_STAGES_V2 = ((0, 1), (2,), (3, 4), (5, 6))
"""Groups of each stage."""


class Block(nn.Module):
    """Inverted residual: a 1x1 convolution that expands, a depthwise one, and a 1x1 convolution that projects.

    Attributes:
      width: Output channels.
      stride: Stride of the depthwise convolution.
      expand: As in `Group`.
      activation: After the first two.
      shortcut: Whether the input is added where the shape stays.
      axis_name: Axis over which batch norm takes its statistics together.
    """

    width: int
    stride: int
    expand: int
    activation: Callable[[jax.Array], jax.Array]
    shortcut: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H / stride, W / stride, width], before any activation."""
        conv_norm, y = conv_norms(train, self.axis_name), x
        if self.expand:
            y = self.activation(conv_norm(y, self.expand * x.shape[-1], "expand_{}", kernel=1))
        y = self.activation(conv_norm(y, y.shape[-1], "depthwise_{}", stride=self.stride, groups=y.shape[-1]))
        y = conv_norm(y, self.width, "project_{}", kernel=1)
        return x + y if self.shortcut and x.shape == y.shape else y


class MobileNet(nn.Module):
    """MobileNet: a stem, groups of blocks, and in V2 a last 1x1 convolution.

    Attributes:
      num_classes: K.
      stem: Channels of the stem.
      groups: The blocks.
      stages: Indices of the groups of each stage.
      last: Channels of the last convolution; 0 for V1, which has none, whose blocks end in an activation and have no
        shortcuts.
      activation: ReLU or ReLU6.
      axis_name: Axis over which batch norm takes its statistics together.
      remat: Whether the backward pass computes each stage again.
    """

    num_classes: int
    stem: int
    groups: Sequence[Group]
    stages: Sequence[Sequence[int]]
    last: int
    activation: Callable[[jax.Array], jax.Array]
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Images [B, H, W, C] -> Outputs with logits [B, K]."""
        conv_norm = conv_norms(train, self.axis_name)
        x = self.activation(conv_norm(x, self.stem, "stem_{}", stride=2))
        features, linear = {"stem": x}, self.last > 0
        for number, members in enumerate(self.stages, 1):

            def stage(self: MobileNet, x: jax.Array, members: Sequence[int] = members) -> tuple[jax.Array, jax.Array]:
                for index in members:
                    group = self.groups[index]
                    block = functools.partial(Block, group.width, expand=group.expand, activation=self.activation)
                    for i in range(group.blocks):
                        stride, name = 1 if i else group.stride, f"group{index}_block{i}"
                        before = block(stride, shortcut=linear, axis_name=self.axis_name, name=name)(x, train)
                        x = before if linear else self.activation(before)
                return x, before

            x, before = rematerialised(stage, self.remat)(self, x)
            features |= {f"stage{number}": x, f"stage{number}_preact": before}
        if linear:
            x = self.activation(conv_norm(x, self.last, "last_{}", kernel=1))
        features["last"] = x
        features["pooled"] = x = jnp.mean(x, axis=(1, 2))
        return Outputs(classify(x, self.num_classes), features)


def mobilenet_v1(num_classes: int, *, widen: float = 1.0, axis_name: str | None = None, remat: bool = False) -> Model:
    """MobileNet V1.

    Args:
      num_classes: K.
      widen: Factor on all channels, which are rounded to multiples of 8.
      axis_name: `parallel.DATA` for batch norm over all devices under `pmap`; under `jit` it is so anyway.
      remat: Whether the backward pass computes each stage again instead of keeping its activations.

    Returns:
      A model that reads `image` [B, H, W, C] and returns logits [B, K].

    Reference:
      Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017,
      https://arxiv.org/abs/1704.04861
    """
    groups = tuple(g._replace(width=rounded(g.width * widen)) for g in _V1)
    return from_linen(
        MobileNet(num_classes, rounded(32 * widen), groups, _STAGES_V1, 0, jax.nn.relu6, axis_name, remat)
    )


def mobilenet_v2(
    num_classes: int,
    *,
    widen: float = 1.0,
    small_images: bool = False,
    axis_name: str | None = None,
    remat: bool = False,
) -> Model:
    """MobileNet V2.

    Args:
      num_classes: K.
      widen: Factor on the channels, which are rounded to multiples of 8 (for small images: down to integers).
      small_images: The variant of the CIFAR-100 distillation benchmark, for 32x32 pixels: it downsamples one time
        fewer, uses ReLU instead of ReLU6, and has the first 1x1 convolution in the first block too. The benchmark's
        `MobileNetV2` has `widen=0.5`.
      axis_name: As for `mobilenet_v1`.
      remat: As for `mobilenet_v1`.

    Returns:
      A model that reads `image` [B, H, W, C] and returns logits [B, K].

    Reference:
      Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
      https://arxiv.org/abs/1801.04381
    """
    size = int if small_images else rounded
    groups = tuple(g._replace(width=size(g.width * widen)) for g in (_V2_SMALL if small_images else _V2))
    activation, last = jax.nn.relu if small_images else jax.nn.relu6, max(1280, size(1280 * widen))
    return from_linen(MobileNet(num_classes, size(32 * widen), groups, _STAGES_V2, last, activation, axis_name, remat))


def rounded(width: float) -> int:
    """Multiple of 8 for a number of channels.

    Args:
      width: Wanted channels.

    Returns:
      The nearest multiple of 8, or the next larger one if the nearest is more than 10 % smaller.
    """
    near = max(8, int(width + 4) // 8 * 8)
    return near + 8 if near < 0.9 * width else near
