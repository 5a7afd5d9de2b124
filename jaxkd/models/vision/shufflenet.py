"""ShuffleNets V1 and V2 for small images, as the CIFAR-100 distillation benchmark defines them.

Features: `stem`, `stage1..3`, each `stage*_preact` (before its last ReLU), `last` and `pooled`, its mean
over the positions.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import from_linen, rematerialised
from jaxkd.models.layers import Dense, channel_shuffle, conv_norms
from jaxkd.types import Model, Outputs

_BLOCKS = (4, 8, 4)
"""Number of blocks in each of the three stages, including the first, which downsamples."""
_WIDTHS_V1 = (240, 480, 960)
_GROUPS_V1 = 3
_WIDTHS_V2 = {0.5: (48, 96, 192, 1024), 1.0: (116, 232, 464, 1024), 1.5: (176, 352, 704, 1024)}
"""Factor on the channels -> channels of the three stages and of the last convolution."""


class BlockV1(nn.Module):
    """Grouped 1x1 convolutions around a depthwise one, with the groups' channels shuffled in between.

    Attributes:
      width: Output channels.
      halve: Whether height and width are halved. If so, the averaged input is concatenated; else the input is added.
      axis_name: Axis over which batch norm takes its statistics together.
    """

    width: int
    halve: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """[B, H, W, C] -> [B, H', W', width], and the same before the ReLU."""
        conv_norm = conv_norms(train, self.axis_name)
        made = self.width - x.shape[-1] if self.halve else self.width
        # The 24 channels of the stem are too few for groups.
        groups = _GROUPS_V1 if x.shape[-1] >= _WIDTHS_V1[0] else 1
        y = nn.relu(conv_norm(x, made // 4, "{}1", kernel=1, groups=groups))
        y = channel_shuffle(y, groups)
        y = nn.relu(conv_norm(y, made // 4, "{}2", stride=2 if self.halve else 1, groups=made // 4))
        y = conv_norm(y, made, "{}3", kernel=1, groups=_GROUPS_V1)
        if self.halve:
            averaged = nn.avg_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
            y = jnp.concatenate([y, averaged], axis=-1)
        else:
            y = x + y
        return nn.relu(y), y


class BlockV2(nn.Module):
    """Two shuffled branches: both convolved where the block downsamples, else only one half of the channels.

    Attributes:
      width: Output channels.
      halve: Whether height and width are halved.
      axis_name: Axis over which batch norm takes its statistics together.
    """

    width: int
    halve: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """[B, H, W, C] -> [B, H', W', width], and both branches in order and before their last ReLU."""
        conv_norm, half = conv_norms(train, self.axis_name), self.width // 2
        if self.halve:
            left = conv_norm(x, x.shape[-1], "{}1", stride=2, groups=x.shape[-1])
            before = [conv_norm(left, half, "{}2", kernel=1)]
            y = nn.relu(conv_norm(x, half, "{}3", kernel=1))
            y = conv_norm(y, half, "{}4", stride=2, groups=half)
            before.append(conv_norm(y, half, "{}5", kernel=1))
            both = [nn.relu(branch) for branch in before]
        else:
            kept, y = jnp.split(x, 2, axis=-1)
            y = nn.relu(conv_norm(y, half, "{}1", kernel=1))
            y = conv_norm(y, half, "{}2", groups=half)
            before = [kept, conv_norm(y, half, "{}3", kernel=1)]
            both = [kept, nn.relu(before[1])]
        return channel_shuffle(jnp.concatenate(both, axis=-1), 2), jnp.concatenate(before, axis=-1)


class ShuffleNet(nn.Module):
    """ShuffleNet: a stem of 24 channels and three stages, each of which begins by downsampling.

    Attributes:
      num_classes: K.
      widths: Channels of the stages and, in V2, of a last 1x1 convolution.
      axis_name: Axis over which batch norm takes its statistics together.
      remat: Whether the backward pass computes each stage again.
    """

    num_classes: int
    widths: tuple[int, ...]
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Images [B, H, W, C] -> Outputs with logits [B, K]."""
        conv_norm = conv_norms(train, self.axis_name)
        x = nn.relu(conv_norm(x, 24, "stem_{}", kernel=1))
        features, second = {"stem": x}, len(self.widths) > len(_BLOCKS)
        block = BlockV2 if second else BlockV1
        for number, (count, width) in enumerate(zip(_BLOCKS, self.widths, strict=False), 1):

            def stage(
                self: ShuffleNet, x: jax.Array, number: int = number, count: int = count, width: int = width
            ) -> tuple[jax.Array, jax.Array]:
                for i in range(count):
                    x, before = block(width, i == 0, self.axis_name, name=f"stage{number}_block{i + 1}")(x, train)
                return x, before

            x, before = rematerialised(stage, self.remat)(self, x)
            features |= {f"stage{number}": x, f"stage{number}_preact": before}
        if second:
            x = nn.relu(conv_norm(x, self.widths[-1], "last_{}", kernel=1))
        features["last"] = x
        features["pooled"] = x = jnp.mean(x, axis=(1, 2))
        return Outputs(Dense(self.num_classes, name="head")(x), features)


def shufflenet_v1(num_classes: int, *, axis_name: str | None = None, remat: bool = False) -> Model:
    """ShuffleNet V1 with three groups.

    Args:
      num_classes: K.
      axis_name: `parallel.DATA` for batch norm over all devices under `pmap`; under `jit` it is so anyway.
      remat: Whether the backward pass computes each stage again instead of keeping its activations.

    Returns:
      A model that reads `image` [B, H, W, C] and returns logits [B, K].

    Reference:
      Zhang, Zhou, Lin, Sun, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices",
      CVPR 2018, https://arxiv.org/abs/1707.01083
    """
    return from_linen(ShuffleNet(num_classes, _WIDTHS_V1, axis_name, remat))


def shufflenet_v2(num_classes: int, *, widen: float = 1.0, axis_name: str | None = None, remat: bool = False) -> Model:
    """ShuffleNet V2.

    Args:
      num_classes: K.
      widen: Factor on the channels: 0.5, 1 or 1.5.
      axis_name: As for `shufflenet_v1`.
      remat: As for `shufflenet_v1`.

    Returns:
      A model that reads `image` [B, H, W, C] and returns logits [B, K].

    Raises:
      ValueError: If the factor is another.

    Reference:
      Ma, Zhang, Zheng, Sun, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018,
      https://arxiv.org/abs/1807.11164
    """
    if widen not in _WIDTHS_V2:
        raise ValueError(f"a ShuffleNet V2 is widened by {', '.join(map(str, _WIDTHS_V2))} but widen is {widen}.")
    return from_linen(ShuffleNet(num_classes, _WIDTHS_V2[widen], axis_name, remat))
